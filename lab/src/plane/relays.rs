//! Which bridge serves an agent's web requests at an edge (protocol 5.1, 9.1 and 16).
//!
//! No clock in here. An assignment lives for 180 seconds and for as long as the agent reports `http` or `https` resources,
//! whether or not its bridge still exists; only when there is none does an agent hear of a new one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Life of an assignment.
const LIFE: Duration = Duration::from_secs(180);

#[derive(Debug)]
struct Assignment {
    bridge: String,
    until: Instant,
}

/// Assignments by agent and edge.
#[derive(Debug, Default)]
pub(crate) struct Assignments(BTreeMap<(String, String), Assignment>);

impl Assignments {
    pub(crate) fn get(&self, agent: &str, edge: &str, now: Instant) -> Option<&str> {
        let assignment = self.0.get(&(agent.to_owned(), edge.to_owned()))?;
        (assignment.until >= now).then_some(assignment.bridge.as_str())
    }

    pub(crate) fn assign(&mut self, agent: &str, edge: &str, bridge: &str, now: Instant) {
        let assignment = Assignment { bridge: bridge.to_owned(), until: now + LIFE };
        self.0.insert((agent.to_owned(), edge.to_owned()), assignment);
    }

    pub(crate) fn forget(&mut self, agent: &str) {
        self.0.retain(|(holder, _), _| holder != agent);
    }

    /// Prolongs what is alive, if this very heartbeat lists a resource of the right type; `http-audit` and `kubernetes` are
    /// not.
    pub(crate) fn heartbeat(&mut self, agent: &str, resources: &[Value], now: Instant) {
        if !resources.iter().any(|resource| matches!(resource["resource_type"].as_str(), Some("http" | "https"))) {
            return;
        }
        let alive = self.0.iter_mut().filter(|((holder, _), assignment)| holder == agent && assignment.until >= now);
        alive.for_each(|(_, assignment)| assignment.until = now + LIFE);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_assignment_lives_180_seconds_and_only_http_prolongs_it() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        for (kind, alive) in [("http", true), ("https", true), ("http-audit", false), ("kubernetes", false)] {
            let mut relays = Assignments::default();
            relays.assign("a", "", "b-0", start);
            relays.heartbeat("a", &[json!({ "name": "w", "resource_type": kind })], after(100));
            assert_eq!(relays.get("a", "", after(280)).is_some(), alive, "{kind}");
            assert_eq!(relays.get("a", "eu", after(1)), None);
            assert_eq!(relays.get("a", "", after(281)), None);
        }
    }

    #[test]
    fn an_expired_assignment_is_not_brought_back() {
        let (mut relays, start) = (Assignments::default(), Instant::now());
        relays.assign("a", "", "b-0", start);
        let late = start + Duration::from_secs(181);
        relays.heartbeat("a", &[json!({ "name": "w", "resource_type": "http" })], late);
        assert_eq!(relays.get("a", "", late), None);
    }
}
