//! The platform's catalogue of resources by name (protocol 5.1), with its flaw: names belong to whoever wrote last.
//!
//! No clock in here.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::Value;

use super::agents::PRESENCE;

/// A resource that somebody reported within the last 180 seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// The agent's name.
    pub(crate) agent: String,
    pub(crate) kind: String,
    at: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    entries: BTreeMap<String, Listed>,
    /// Names of each agent's last list.
    reported: BTreeMap<String, Vec<String>>,
}

impl Catalogue {
    /// Takes in an agent's list; an empty one means "no change" and prolongs nothing. Names that the agent dropped are
    /// deleted, even if another agent owns them meanwhile.
    pub(crate) fn heartbeat(&mut self, agent: &str, resources: &[Value], now: Instant) {
        if resources.is_empty() {
            return;
        }
        let text = |resource: &Value, key: &str| resource[key].as_str().unwrap_or_default().to_owned();
        let names: Vec<_> = resources.iter().map(|resource| text(resource, "name")).collect();
        for dropped in self.reported.insert(agent.to_owned(), names.clone()).unwrap_or_default() {
            if !names.contains(&dropped) {
                self.entries.remove(&dropped);
            }
        }
        for (name, resource) in names.into_iter().zip(resources) {
            let kind = text(resource, "resource_type");
            self.entries.insert(name, Listed { agent: agent.to_owned(), kind, at: now });
        }
    }

    pub(crate) fn get(&self, name: &str, now: Instant) -> Option<&Listed> {
        self.entries.get(name).filter(|listed| now.saturating_duration_since(listed.at) <= PRESENCE)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn list(names: &[&str]) -> Vec<Value> {
        names.iter().map(|name| json!({ "name": name, "resource_type": "ssh" })).collect()
    }

    #[test]
    fn the_last_writer_owns_a_name_and_the_first_one_deletes_it_all_the_same() {
        let (mut catalogue, now) = (Catalogue::default(), Instant::now());
        catalogue.heartbeat("one", &list(&["a", "b"]), now);
        catalogue.heartbeat("two", &list(&["b"]), now);
        assert_eq!(catalogue.get("b", now).unwrap().agent, "two");
        catalogue.heartbeat("one", &list(&["a"]), now);
        assert_eq!(catalogue.get("b", now), None);
    }

    #[test]
    fn entries_live_for_180_seconds_and_empty_lists_prolong_nothing() {
        let (mut catalogue, start) = (Catalogue::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        catalogue.heartbeat("one", &list(&["a"]), start);
        catalogue.heartbeat("one", &[], after(100));
        assert!(catalogue.get("a", after(180)).is_some());
        assert!(catalogue.get("a", after(181)).is_none());
    }
}
