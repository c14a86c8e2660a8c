//! Every task has an owner, a name and an end.
//!
//! Nothing else in the crate calls `tokio::spawn`. A [`Tasks`] is one owner's set: it hands out the token that asks its
//! tasks to end, runs each in a span of its name, and waits for them within a limit when the owner shuts down.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// One owner's tasks.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The token that is cancelled when these tasks should end.
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a named task. It is expected to watch the stop token or to end by itself.
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
        self.tracker.spawn(task.instrument(tracing::debug_span!("task", name)))
    }

    /// Asks all tasks to end and waits for them, at most `limit`. Returns how many were still running then.
    pub async fn shut_down(&self, limit: Duration) -> usize {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(limit, self.tracker.wait()).await.is_ok() { 0 } else { self.tracker.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ignores_the_token_is_counted_when_the_limit_is_over() {
        let tasks = Tasks::new();
        let token = tasks.stop_token();
        tasks.spawn("obedient", async move { token.cancelled().await });
        tasks.spawn("stubborn", std::future::pending::<()>());
        assert_eq!(tasks.shut_down(Duration::from_secs(1)).await, 1);
    }
}
