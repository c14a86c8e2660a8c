//! `relays.json`: the bridges that the agent keeps relay connections to, kept across restarts.
//!
//! The platform asks for relay connections once and then takes them for granted as long as heartbeats come (protocol 16:
//! 503 for minutes after a restart, until somebody deletes a key). So an agent that starts opens them by itself. Losing
//! the file costs nothing but a pause (contract section 3); whatever is odd about it counts as lost.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::dial::BridgeAddress;
use crate::durable;

/// Name of the file in the data directory.
pub const FILE: &str = "relays.json";
const FORMAT: u32 = 1;
/// No honest file is larger; a larger one is not read.
const MAX_BYTES: u64 = 1 << 20;
/// Edges are regions; nobody has more.
pub const MAX_EDGES: usize = 16;
/// One certificate has about 600 bytes.
const MAX_CA: usize = 32 * 1024;
/// An assignment does not outlive 180 s without the agent; a machine that was off for long starts afresh.
const MAX_AGE: u64 = 30 * 86_400;
/// `last_used` is written again after this time.
const REFRESH: u64 = 3600;

/// A bridge that served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where it is.
    #[serde(flatten)]
    pub bridge: BridgeAddress,
    /// The authority that the platform named for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// When it was last connected to, Unix seconds.
    pub last_used: u64,
}

/// The content of `relays.json`. Unknown fields are ignored: a rollback lets an old agent read a new one's file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    format: u32,
    /// The newest bridge of each edge.
    edges: BTreeMap<String, Endpoint>,
}

impl Memory {
    /// Reads what is remembered at `now` (Unix seconds); nothing where that cannot be used.
    #[must_use]
    pub fn load(data_dir: &Path, now: u64) -> Self {
        let mut memory = Self::read(&data_dir.join(FILE)).unwrap_or_default();
        memory
            .edges
            .retain(|_, endpoint| endpoint.bridge.is_plausible() && now.saturating_sub(endpoint.last_used) < MAX_AGE);
        while memory.edges.len() > MAX_EDGES {
            memory.forget_oldest();
        }
        memory
    }

    fn read(path: &Path) -> Option<Self> {
        let mut text = Vec::new();
        durable::open_regular(path).ok()?.take(MAX_BYTES).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The newest bridge of each edge.
    pub fn endpoints(&self) -> impl Iterator<Item = (&str, &Endpoint)> {
        self.edges.iter().map(|(edge, endpoint)| (edge.as_str(), endpoint))
    }

    /// Notes that a bridge served at `now`. True if that is worth writing.
    pub fn note(&mut self, edge: &str, bridge: &BridgeAddress, ca_pem: Option<&str>, now: u64) -> bool {
        let ca_pem = ca_pem.filter(|pem| pem.len() <= MAX_CA).map(str::to_owned);
        let new = Endpoint { bridge: bridge.clone(), ca_pem, last_used: now };
        let known = self.edges.get(edge).is_some_and(|old| {
            (&old.bridge, &old.ca_pem) == (&new.bridge, &new.ca_pem) && now.abs_diff(old.last_used) < REFRESH
        });
        if known {
            return false;
        }
        self.edges.insert(edge.to_owned(), new);
        if self.edges.len() > MAX_EDGES {
            self.forget_oldest();
        }
        true
    }

    fn forget_oldest(&mut self) {
        let oldest = self.edges.iter().min_by_key(|(_, endpoint)| endpoint.last_used);
        if let Some(edge) = oldest.map(|(edge, _)| edge.clone()) {
            self.edges.remove(&edge);
        }
    }

    /// Stores it. Callers may go on without.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn write(&self, data_dir: &Path) -> durable::Result<()> {
        let content = Self { format: FORMAT, edges: self.edges.clone() };
        let text = serde_json::to_vec_pretty(&content).expect("strings and numbers serialise");
        durable::write(&data_dir.join(FILE), &text, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn bridge(host: &str) -> BridgeAddress {
        BridgeAddress { host: host.into(), port: 8443 }
    }

    #[test]
    fn the_newest_bridge_of_each_edge_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut memory = Memory::default();
        assert!(memory.note("", &bridge("a"), Some("PEM"), 100));
        assert!(memory.note("", &bridge("b"), None, 101));
        assert!(memory.note("eu", &bridge("c"), Some("PEM"), 102));
        assert!(!memory.note("eu", &bridge("c"), Some("PEM"), 103), "nothing new");
        assert!(memory.note("eu", &bridge("c"), Some("PEM"), 102 + REFRESH));
        memory.write(directory.path()).unwrap();
        let found = Memory::load(directory.path(), 200);
        let found: Vec<_> = found.endpoints().map(|(edge, endpoint)| (edge, &endpoint.bridge.host[..])).collect();
        assert_eq!(found, [("", "b"), ("eu", "c")]);
        let mode = directory.path().join(FILE).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(
            Memory::load(directory.path(), 200 + MAX_AGE + REFRESH),
            Memory { format: FORMAT, ..Memory::default() }
        );
    }

    #[test]
    fn it_does_not_grow_without_bound() {
        let mut memory = Memory::default();
        for number in 0..100 {
            memory.note(&number.to_string(), &bridge("a"), Some(&"x".repeat(MAX_CA + 1)), number);
        }
        assert_eq!(memory.edges.len(), MAX_EDGES);
        assert!(memory.edges.contains_key("99") && memory.edges["99"].ca_pem.is_none());
    }

    #[test]
    fn a_damaged_file_costs_nothing_and_a_later_ones_fields_are_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let put = |text: &str| durable::write(&directory.path().join(FILE), text.as_bytes(), 0o600).unwrap();
        for damaged in ["", "{", "[]", "null", r#"{"format":1,"edges":{"":{"host":"a"}}}"#, r#"{"format":"x"}"#] {
            put(damaged);
            assert_eq!(Memory::load(directory.path(), 0), Memory::default(), "{damaged}");
        }
        put(
            r#"{"format":2,"new":[1],"edges":{"":{"host":"a","port":1,"last_used":5,"new":{}},"x":{"host":"","port":1,"last_used":5}}}"#,
        );
        assert_eq!(Memory::load(directory.path(), 6).endpoints().count(), 1);
    }
}
