//! What sessions hold and have moved: the bounds on memory, and the numbers that monitoring sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::telemetry::metrics::SessionMetrics;

/// What one session may hold in each direction, in bytes, whatever the others hold.
pub(super) const FLOOR: usize = 128 * 1024;
/// What one session may hold in each direction at most. The far end acknowledges every 50 ms, so that this many bytes are
/// what 640 MiB/s need (protocol W1: any size will do, the platform's own 4 MiB are too few).
const WINDOW: usize = 32 * 1024 * 1024;
/// What all sessions may hold together beyond their floors.
const TOGETHER: usize = 128 * 1024 * 1024;

/// What all sessions share.
pub(super) struct Shared {
    pub(super) metrics: SessionMetrics,
    held: AtomicUsize,
}

impl Shared {
    pub(super) const fn new(metrics: SessionMetrics) -> Self {
        Self { metrics, held: AtomicUsize::new(0) }
    }
}

/// One session's account.
pub(crate) struct Ledger {
    shared: Arc<Shared>,
    /// Enough of the id to tell sessions apart in a log; the whole would be a key to the platform's internal calls.
    name: String,
    held: usize,
}

/// The part of a session id that is logged.
pub(super) fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

impl Ledger {
    pub(super) fn new(shared: Arc<Shared>, id: &str) -> Self {
        shared.metrics.opened.inc();
        Self { shared, name: short(id), held: 0 }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Notes what the session holds now.
    pub(crate) fn account(&mut self, held: usize) {
        if held > self.held {
            self.shared.held.fetch_add(held - self.held, Ordering::Relaxed);
        } else if held < self.held {
            let less = self.held - held;
            if self.shared.held.fetch_sub(less, Ordering::Relaxed) == less {
                // Nobody holds anything: the transfer for which buffers were kept is over.
                crate::stream::give_back_spares();
            }
        }
        self.held = held;
    }

    /// How much a session that holds `mine` bytes in one direction may hold there.
    pub(crate) fn allowance(&self, mine: usize) -> usize {
        let free = TOGETHER.saturating_sub(self.shared.held.load(Ordering::Relaxed));
        FLOOR.max(WINDOW.min(mine + free))
    }

    pub(crate) fn sent(&self, count: usize) {
        self.shared.metrics.sent.inc_by(count as u64);
    }

    pub(crate) fn received(&self, count: usize) {
        self.shared.metrics.received.inc_by(count as u64);
    }

    pub(crate) fn repeated(&self, count: u64) {
        self.shared.metrics.repeated.inc_by(count);
    }

    pub(crate) fn redialled(&self) {
        self.shared.metrics.redials.inc();
    }

    pub(crate) fn target_unreachable(&self) {
        self.shared.metrics.unreachable.inc();
    }

    pub(crate) fn blocked(&self) {
        self.shared.metrics.blocked.inc();
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.account(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_session_may_take_a_window_and_many_share_what_there_is_but_never_less_than_their_floor() {
        let shared = Arc::new(Shared::new(SessionMetrics::unregistered()));
        let mut first = Ledger::new(Arc::clone(&shared), "one");
        assert_eq!(first.allowance(0), WINDOW);
        first.account(TOGETHER - 1);
        let second = Ledger::new(Arc::clone(&shared), "two");
        assert_eq!(second.allowance(0), FLOOR);
        assert_eq!(second.allowance(WINDOW), WINDOW, "what is held is held");
        drop(first);
        assert_eq!(second.allowance(0), WINDOW, "what ended gives back");
    }

    #[test]
    fn a_log_shows_a_part_of_the_id_only() {
        assert_eq!(short("Zk3vQ0m_8h-TtYx2LrW7cPq1Ab9Dn4Ke"), "Zk3vQ0m_");
    }
}
