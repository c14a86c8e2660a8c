//! Round-trip times to the platform's edges, measured by connecting to them (protocol 5.4).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;

use super::Context;
use super::bridges::Bridges;
use crate::http;
use crate::platform::wire::{BridgeAddress, EdgeProbeTarget};
use crate::relay::dial::Dial as _;
use crate::tunnel::dial;

/// How long one edge may take (protocol 5.4).
const PROBE_LIMIT: Duration = Duration::from_secs(3);
/// More edges than that are not probed: one after the other, they would take longer than a heartbeat's interval.
const MAX_EDGES: usize = 64;

/// What heartbeats ask for and report. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Edges {
    wanted: watch::Sender<Vec<EdgeProbeTarget>>,
    measured: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Edges {
    pub(super) fn new() -> Self {
        Self { wanted: watch::Sender::new(Vec::new()), measured: Arc::default() }
    }

    /// The platform's list. An empty one says nothing: deployments without edges send it always.
    pub(super) fn ask(&self, mut targets: Vec<EdgeProbeTarget>) {
        if !targets.is_empty() {
            targets.truncate(MAX_EDGES);
            self.wanted.send_replace(targets);
        }
    }

    /// Milliseconds by edge.
    pub(super) fn measured(&self) -> BTreeMap<String, u64> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, targets: &[EdgeProbeTarget], edge: &str, took: Option<Duration>) {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        // An edge that is no longer listed is forgotten; one that did not answer keeps its last value.
        measured.retain(|known, _| targets.iter().any(|target| target.edge == *known));
        if let Some(took) = took {
            measured.insert(edge.to_owned(), u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        }
    }
}

/// Probes what the last heartbeat's answer listed, one edge after the other, never two batches at a time.
pub(super) async fn run(context: Context) {
    let stop = context.tasks.stop_token();
    let mut wanted = context.edges.wanted.subscribe();
    let bridges = Bridges::new(context.session.subscribe());
    loop {
        tokio::select! {
            Ok(()) = wanted.changed() => {}
            () = stop.cancelled() => return,
        }
        let targets = wanted.borrow_and_update().clone();
        for target in &targets {
            tokio::select! {
                took = probe(&bridges, target) => context.edges.note(&targets, &target.edge, took),
                () = stop.cancelled() => return,
            }
        }
    }
}

/// TCP and TLS with the identity certificate, under the stored authority, then away without a byte.
async fn probe(bridges: &Bridges, target: &EdgeProbeTarget) -> Option<Duration> {
    let bridge = BridgeAddress { host: target.host.clone(), port: target.port };
    let measured = async {
        let (mut link, took) = bridges.dial(&bridge, None).await?;
        // Whether the goodbye arrives is of no interest.
        drop(link.shutdown().await);
        Ok::<_, dial::Error>(took)
    };
    match tokio::time::timeout(PROBE_LIMIT, measured).await {
        Ok(Ok(took)) => Some(took),
        Ok(Err(error)) => {
            tracing::debug!(edge = %target.edge, error = %http::chain(&error), "an edge does not answer");
            None
        }
        Err(_) => {
            tracing::debug!(edge = %target.edge, "an edge does not answer within 3 s");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(edge: &str) -> EdgeProbeTarget {
        EdgeProbeTarget { edge: edge.into(), host: "h".into(), port: 443 }
    }

    #[test]
    fn a_silent_edge_keeps_its_value_and_one_that_is_not_listed_any_more_is_forgotten() {
        let edges = Edges::new();
        let both = [target("nl"), target("us")];
        edges.note(&both, "nl", Some(Duration::from_micros(12_900)));
        edges.note(&both, "us", Some(Duration::from_micros(400)));
        edges.note(&both, "nl", None);
        assert_eq!(edges.measured(), BTreeMap::from([("nl".into(), 12), ("us".into(), 0)]));
        edges.note(&both[..1], "nl", None);
        assert_eq!(edges.measured(), BTreeMap::from([("nl".into(), 12)]));
    }

    #[test]
    fn an_empty_list_asks_for_nothing_new() {
        let edges = Edges::new();
        edges.ask(vec![target("nl")]);
        edges.ask(Vec::new());
        assert_eq!(edges.wanted.borrow().len(), 1);
    }
}
