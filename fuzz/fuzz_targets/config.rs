//! Whatever stands in a configuration file and the environment: no panic, and a reason for every refusal.
//!
//! Behind the text of the file come `NAME=VALUE` pairs, each after a NUL.

#![no_main]

use std::path::Path;

use bamf_agent::config::{self, Document, Environment, Origin, Overrides};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(data) = std::str::from_utf8(data) else { return };
    let (text, variables) = data.split_once('\0').unwrap_or((data, ""));
    let environment = Environment::from_pairs(variables.split('\0').filter_map(|pair| pair.split_once('=')));
    let document =
        Document { path: Path::new("/etc/bamf/agent.yaml").into(), named_by: Origin::Default, text: text.to_owned() };
    match config::interpret(Some(&document), &Overrides::default(), &environment) {
        Ok(loaded) => {
            assert!(!loaded.show().is_empty());
            for stored in [false, true] {
                drop(loaded.check_join_token(stored));
            }
        }
        Err(invalid) => {
            assert!(!invalid.problems.is_empty(), "refused without a reason");
            assert!(invalid.to_string().lines().count() >= invalid.problems.len(), "a problem takes a line at least");
        }
    }
});
