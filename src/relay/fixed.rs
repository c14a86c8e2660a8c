//! Requests that cannot leave this process: their target speaks TLS, whose state a library keeps to itself.
//!
//! Before everything is handed to another process, they are given a moment to be answered. Streams are not waited for.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;

/// How many there are.
#[derive(Debug, Default)]
pub struct Fixed {
    count: AtomicUsize,
    freed: Notify,
}

impl Fixed {
    /// How many there are at present.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// One more.
    pub fn enter(&self) {
        self.count.fetch_add(1, Relaxed);
    }

    /// One less.
    pub fn leave(&self) {
        if self.count.fetch_sub(1, Relaxed) == 1 {
            self.freed.notify_waiters();
        }
    }

    /// Waits until there is none, at most `limit`. Returns how many are left.
    pub async fn none(&self, limit: Duration) -> usize {
        let none = async {
            loop {
                let freed = self.freed.notified();
                if self.count() == 0 {
                    return;
                }
                freed.await;
            }
        };
        // Who is left then is cut off; the caller says so.
        drop(tokio::time::timeout(limit, none).await);
        self.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_one_that_leaves_is_waited_for_and_one_that_stays_is_not_waited_for_long() {
        let fixed = Fixed::default();
        assert_eq!(fixed.none(Duration::from_secs(1)).await, 0);
        fixed.enter();
        fixed.enter();
        let (left, ()) = tokio::join!(fixed.none(Duration::from_secs(9)), async {
            fixed.leave();
            tokio::time::sleep(Duration::from_secs(1)).await;
            fixed.leave();
        });
        assert_eq!(left, 0);
        fixed.enter();
        let begun = tokio::time::Instant::now();
        assert_eq!(fixed.none(Duration::from_secs(2)).await, 1);
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
    }
}
