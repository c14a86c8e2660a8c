//! What sessions hold and have moved: the bounds on memory, and the numbers that monitoring sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::heap;
use crate::stream;
use crate::telemetry::metrics::SessionMetrics;

/// What one session may hold in each direction, in bytes, whatever the others hold.
pub(super) const FLOOR: usize = 128 * 1024;
/// What one session may hold in each direction at most. The far end acknowledges every 50 ms, so that this many bytes are
/// what 1.2 GiB/s need (protocol W1: any size will do, the platform's own 4 MiB are too few). A slow client costs less: the
/// target is read no faster than the connection takes it.
const WINDOW: usize = 64 * 1024 * 1024;
/// What all sessions may hold together beyond their floors.
const TOGETHER: usize = 128 * 1024 * 1024;
/// From here on buffers are large ones, of which some are kept.
const MUCH: usize = 256 * 1024;
/// Between two looks at what is needed.
const LOOK: Duration = Duration::from_secs(1);

/// What all sessions share.
pub(super) struct Shared {
    pub(super) metrics: SessionMetrics,
    held: AtomicUsize,
    /// The most that was held since the last look.
    peak: AtomicUsize,
    /// Rung when much is held.
    busy: Notify,
}

impl Shared {
    pub(super) fn new(metrics: SessionMetrics) -> Self {
        Self { metrics, held: AtomicUsize::new(0), peak: AtomicUsize::new(0), busy: Notify::new() }
    }

    /// Keeps as many spare buffers as the last second has needed, and none when transfers are over. Sleeps while nothing
    /// large is going on. Must run on the thread of the sessions, whose buffers they are.
    pub(super) async fn tidy(self: Arc<Self>, stop: CancellationToken) {
        let tidying = async {
            loop {
                self.busy.notified().await;
                while self.peak.swap(self.held.load(Ordering::Relaxed), Ordering::Relaxed) > 0 {
                    tokio::time::sleep(LOOK).await;
                    stream::give_back_spares(self.peak.load(Ordering::Relaxed));
                }
                heap::trim();
            }
        };
        tokio::select! {
            () = tidying => {}
            () = stop.cancelled() => {}
        }
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
        Self { shared, name: short(id), held: 0 }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Notes what the session holds now.
    pub(crate) fn account(&mut self, held: usize) {
        if held > self.held {
            let more = held - self.held;
            let together = self.shared.held.fetch_add(more, Ordering::Relaxed) + more;
            let peak = self.shared.peak.fetch_max(together, Ordering::Relaxed);
            if peak < MUCH && together >= MUCH {
                self.shared.busy.notify_one();
            }
        } else {
            self.shared.held.fetch_sub(self.held - held, Ordering::Relaxed);
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
