//! What the relay counts, for metrics and tests.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use super::conversation::Outcome;

/// Running totals. Each is right by itself; two read one after the other may be a moment apart.
#[derive(Debug, Default)]
pub struct Counters {
    relayed: [AtomicU64; 5],
    answered: AtomicU64,
    truncated: AtomicU64,
    carried: AtomicU64,
    in_flight: AtomicI64,
    from_bridge: AtomicU64,
    to_bridge: AtomicU64,
}

/// A reading of the [`Counters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Targets' answers by hundreds of the status: index 0 is 1xx.
    pub relayed: [u64; 5],
    /// The agent's own answers.
    pub answered: u64,
    /// Responses that were cut off.
    pub truncated: u64,
    /// Requests that went to another process half done.
    pub carried: u64,
    /// Requests under way.
    pub in_flight: i64,
    /// Bytes from bridges.
    pub from_bridge: u64,
    /// Bytes to bridges.
    pub to_bridge: u64,
}

impl Counters {
    pub(super) fn begun(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        self.in_flight.fetch_sub(1, Relaxed);
        let counter = match outcome {
            Outcome::Relayed(status) => &self.relayed[usize::from(status / 100).clamp(1, 5) - 1],
            Outcome::Answered(_) => &self.answered,
            Outcome::Truncated => &self.truncated,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn carried(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
        self.carried.fetch_add(1, Relaxed);
    }

    pub(super) fn received(&self, count: usize) {
        self.from_bridge.fetch_add(count as u64, Relaxed);
    }

    pub(super) fn sent(&self, count: usize) {
        self.to_bridge.fetch_add(count as u64, Relaxed);
    }

    /// All of them at this moment.
    #[must_use]
    pub fn read(&self) -> Reading {
        Reading {
            relayed: [0, 1, 2, 3, 4].map(|class| self.relayed[class].load(Relaxed)),
            answered: self.answered.load(Relaxed),
            truncated: self.truncated.load(Relaxed),
            carried: self.carried.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            from_bridge: self.from_bridge.load(Relaxed),
            to_bridge: self.to_bridge.load(Relaxed),
        }
    }
}
