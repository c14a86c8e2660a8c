//! The bridges that have registered, and the choice among them (protocol 11.2 and 12.3).
//!
//! No clock in here. A bridge beats every 10 seconds and its record lives for 60: while one runs, it counts as having beaten
//! just now; one that was killed stays a candidate until its 60 seconds are over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a bridge's last heartbeat keeps its record.
const PRESENCE: Duration = Duration::from_secs(60);

/// What a bridge registers.
#[derive(Clone, Debug)]
pub(crate) struct BridgeEntry {
    pub(crate) id: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) edge: String,
    pub(crate) internal: SocketAddr,
    /// Tunnels that it carries right now.
    pub(crate) load: Arc<AtomicUsize>,
}

/// A bridge as the platform knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeView {
    /// Its id, the CN of its certificate.
    pub id: String,
    /// The host that agents and clients are told.
    pub host: String,
    /// The port that they are told.
    pub port: u16,
    /// Its edge; empty for the default one.
    pub edge: String,
    /// Where the proxy finds its plain HTTP port.
    pub internal: SocketAddr,
}

#[derive(Debug)]
struct Known {
    entry: BridgeEntry,
    standing: Standing,
}

#[derive(Debug)]
enum Standing {
    Running,
    SilentSince(Instant),
    SignedOff,
}

impl Known {
    fn is_fresh(&self, now: Instant) -> bool {
        match self.standing {
            Standing::Running => true,
            Standing::SilentSince(at) => now.saturating_duration_since(at) <= PRESENCE,
            Standing::SignedOff => false,
        }
    }

    fn view(&self) -> BridgeView {
        let BridgeEntry { id, host, port, edge, internal, load: _ } = self.entry.clone();
        BridgeView { id, host, port, edge, internal }
    }
}

/// All bridges by id. Records stay when bridges go, because a relay assignment may name one that is gone (protocol 9.1).
#[derive(Debug, Default)]
pub(crate) struct Bridges(BTreeMap<String, Known>);

impl Bridges {
    pub(crate) fn register(&mut self, entry: BridgeEntry) {
        self.0.insert(entry.id.clone(), Known { entry, standing: Standing::Running });
    }

    /// It was killed: its heartbeats end.
    pub(crate) fn silence(&mut self, id: &str, now: Instant) {
        self.set_standing(id, Standing::SilentSince(now));
    }

    /// It stopped on purpose: no longer a candidate.
    pub(crate) fn sign_off(&mut self, id: &str) {
        self.set_standing(id, Standing::SignedOff);
    }

    fn set_standing(&mut self, id: &str, standing: Standing) {
        if let Some(known) = self.0.get_mut(id) {
            known.standing = standing;
        }
    }

    pub(crate) fn advertise(&mut self, id: &str, host: &str, port: u16) {
        if let Some(known) = self.0.get_mut(id) {
            known.entry.host = host.to_owned();
            known.entry.port = port;
        }
    }

    pub(crate) fn view(&self, id: &str) -> Option<BridgeView> {
        self.0.get(id).map(Known::view)
    }

    /// Edges with a bridge that counts as alive, each with one of its bridges. The default edge is the empty name.
    pub(crate) fn edges(&self, now: Instant) -> BTreeMap<String, BridgeView> {
        self.0.values().filter(|known| known.is_fresh(now)).map(|k| (k.entry.edge.clone(), k.view())).rev().collect()
    }

    /// The least loaded bridge, of `edge` if one is given; the previous one only when there is no other.
    pub(crate) fn choose(&self, edge: Option<&str>, previous: Option<&str>, now: Instant) -> Option<BridgeView> {
        let fits = |known: &&Known| known.is_fresh(now) && edge.is_none_or(|edge| known.entry.edge == edge);
        let order = |known: &&Known| known.entry.load.load(Ordering::Relaxed);
        let others = self.0.values().filter(fits).filter(|known| Some(known.entry.id.as_str()) != previous);
        others.min_by_key(order).or_else(|| self.0.values().find(fits)).map(Known::view)
    }

    /// Ids of the bridges that count as alive.
    pub(crate) fn alive(&self, now: Instant) -> BTreeSet<String> {
        self.0.iter().filter(|(_, known)| known.is_fresh(now)).map(|(id, _)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridges(loads: &[(&str, &str, usize)]) -> Bridges {
        let mut bridges = Bridges::default();
        for (id, edge, load) in loads {
            bridges.register(BridgeEntry {
                id: (*id).to_owned(),
                host: "localhost".into(),
                port: 1,
                edge: (*edge).to_owned(),
                internal: SocketAddr::from(([127, 0, 0, 1], 1)),
                load: Arc::new(AtomicUsize::new(*load)),
            });
        }
        bridges
    }

    #[test]
    fn the_least_loaded_bridge_is_chosen_and_the_previous_one_only_if_there_is_no_other() {
        let (bridges, now) = (bridges(&[("a", "", 3), ("b", "", 1), ("c", "eu", 2)]), Instant::now());
        let id = |edge, previous| bridges.choose(edge, previous, now).map(|bridge| bridge.id);
        assert_eq!(id(None, None).as_deref(), Some("b"));
        assert_eq!(id(Some(""), Some("b")).as_deref(), Some("a"));
        assert_eq!(id(Some("eu"), Some("c")).as_deref(), Some("c"));
        assert_eq!(id(Some("us"), None), None);
        assert_eq!(bridges.edges(now).into_keys().collect::<Vec<_>>(), ["", "eu"]);
    }

    #[test]
    fn a_killed_bridge_stays_a_candidate_for_60_seconds_and_a_stopped_one_does_not() {
        let (mut bridges, now) = (bridges(&[("a", "", 0), ("b", "", 5)]), Instant::now());
        bridges.silence("a", now);
        assert_eq!(bridges.choose(None, None, now + Duration::from_secs(60)).unwrap().id, "a");
        assert_eq!(bridges.choose(None, None, now + Duration::from_secs(61)).unwrap().id, "b");
        bridges.sign_off("b");
        assert_eq!(bridges.choose(None, None, now + Duration::from_secs(61)), None);
        assert!(bridges.view("b").is_some(), "assignments may still name it");
    }
}
