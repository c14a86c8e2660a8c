//! `handoff/golden`: what was written by every version that wrote something of its own, and what it means.
//!
//! A set is one snapshot with one record for each kind, `NAME.bin`, and `NAME.json` beside it with what is in the record. A set
//! that was released stays as it is. Who means to change what is written gives [`SET`] another name, runs
//!
//! ```sh
//! cargo test --test handoff write_the_golden_files -- --ignored
//! ```
//!
//! and looks at the difference between the new JSON and the old: what was added must have a default, or the old sets are not
//! read any more; what is gone or means something else needs another `FORMAT`.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::*;

/// The set that today's version writes.
const SET: &str = "v1";

pub(super) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/handoff/golden")
}

fn meaning(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(directory().join(name).with_extension("json")).unwrap()).unwrap()
}

/// The file that is written for a record which says this.
fn written(kind: Kind, meaning: &Value) -> Vec<u8> {
    let mut writer = handoff::snapshot::Writer::new().unwrap();
    match kind {
        Kind::PROCESS => writer.put(kind, &serde_json::from_value::<handoff::Process>(meaning.clone()).unwrap()),
        Kind::SESSION => writer.put(kind, &serde_json::from_value::<table::Record>(meaning.clone()).unwrap()),
        Kind::RELAY => writer.put(kind, &serde_json::from_value::<carry::Record>(meaning.clone()).unwrap()),
        other => panic!("{other:?}"),
    }
    .unwrap();
    let file = writer.finish().unwrap();
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Whether everything that is in `old` is in `new`; a later version may understand more of it.
fn has(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            old.iter().all(|(key, old)| new.get(key).is_some_and(|new| has(new, old)))
        }
        (Value::Array(new), Value::Array(old)) => {
            new.len() == old.len() && new.iter().zip(old).all(|(new, old)| has(new, old))
        }
        _ => new == old,
    }
}

#[test]
fn what_was_ever_written_is_understood_as_it_was_meant() {
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().unwrap() != "bin" {
            continue;
        }
        let arrival = Arrival::without_sockets(sealed(&std::fs::read(&path).unwrap()));
        let mut reader = arrival.read().unwrap();
        let (kind, payload) = reader.record().unwrap().unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let (found, meant) = (understood(kind, payload).unwrap(), meaning(name));
        assert!(has(&found, &meant), "{name}: {found}\nis not\n{meant}");
        assert!(reader.record().unwrap().is_none());
        seen.insert(name.to_owned());
    }
    let first: BTreeSet<String> = samples::all().map(|(name, ..)| format!("v1-{name}")).into();
    assert!(first.is_subset(&seen), "{seen:?}");
}

#[test]
fn what_is_written_today_is_the_newest_set_to_the_byte() {
    for (name, kind, _) in samples::all() {
        let name = format!("{SET}-{name}");
        let golden = std::fs::read(directory().join(&name).with_extension("bin")).unwrap();
        assert!(written(kind, &meaning(&name)) == golden, "{name}: see the head of this file");
    }
}

#[test]
fn the_newest_set_has_everything_set_that_can_be() {
    for (name, kind, sample) in samples::all() {
        let meaning = meaning(&format!("{SET}-{name}"));
        assert_eq!(meaning, sample, "{name}: a new set is due");
        assert_eq!(carried(kind, &sample).unwrap(), sample, "{name}");
    }
}

#[test]
#[ignore = "changes the sources: see the head of this file"]
#[expect(clippy::disallowed_methods, reason = "no data of an agent")]
fn write_the_golden_files() {
    for (name, kind, sample) in samples::all() {
        let path = directory().join(format!("{SET}-{name}"));
        let text = serde_json::to_string_pretty(&sample).unwrap();
        std::fs::write(path.with_extension("json"), in_lines(&text) + "\n").unwrap();
        std::fs::write(path.with_extension("bin"), written(kind, &sample)).unwrap();
    }
}

/// Lists of numbers in one line each.
fn in_lines(pretty: &str) -> String {
    let mut text = String::new();
    for line in pretty.lines() {
        let last = text.trim_end().chars().last();
        let is_number = line.trim().trim_end_matches(',').parse::<u64>().is_ok();
        let ends_numbers = line.trim().starts_with(']') && last.is_some_and(|last| last.is_ascii_digit());
        if is_number && last == Some(',') && !text.ends_with(",\n") || is_number && last == Some('[') || ends_numbers {
            text.push_str(if last == Some(',') { " " } else { "" });
            text.push_str(line.trim());
        } else {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(line);
        }
    }
    text
}
