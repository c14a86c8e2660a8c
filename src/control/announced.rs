//! A restart that was announced: for machines where systemd cannot be asked what a SIGTERM means.
//!
//! The updater knows that it is about to restart the service, and says so over the control socket. Kept in memory, for a
//! while: the process that was told is the one that is restarted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// As long as the updater waits for the old process to end (`update/apply.rs`): what is later is another restart.
pub const VALID: Duration = Duration::from_secs(120);

/// What a kernel shows for every user that a user namespace does not know (`/proc/sys/kernel/overflowuid`).
const OVERFLOW_UID: u32 = 65534;

/// When a restart was announced last; clones share it. `now` is time since boot ([`crate::clock::boottime`]).
#[derive(Clone, Debug, Default)]
pub struct Announced(Arc<Mutex<Option<Duration>>>);

impl Announced {
    /// A restart is about to come.
    pub fn note(&self, now: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// A restart was announced and may still come.
    #[must_use]
    pub fn holds(&self, now: Duration) -> bool {
        let noted = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.is_some_and(|noted| now.saturating_sub(noted) < VALID)
    }
}

/// Whether a caller with this uid may announce a restart to an agent that runs as `own`: only who can restart it. The
/// service's group, which may read the status, cannot turn a stop into a restart.
#[must_use]
pub fn may_announce(peer: Option<u32>, own: u32) -> bool {
    peer.is_some_and(|peer| peer == 0 || (peer == own && own != OVERFLOW_UID))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_announcement_holds_for_two_minutes_and_can_be_renewed() {
        let announced = Announced::default();
        assert!(!announced.holds(SECOND), "nobody said anything");
        announced.clone().note(SECOND);
        assert!(announced.holds(SECOND) && announced.holds(VALID));
        assert!(!announced.holds(SECOND + VALID));
        announced.note(VALID);
        assert!(announced.holds(SECOND + VALID));
    }

    #[test]
    fn only_root_and_the_agents_own_user_may_announce() {
        assert!(may_announce(Some(0), 990) && may_announce(Some(990), 990) && may_announce(Some(0), 0));
        assert!(!may_announce(Some(1000), 990), "a member of the group");
        assert!(!may_announce(Some(990), 0), "the unprivileged to an agent that runs as root");
        assert!(!may_announce(None, 990));
        assert!(!may_announce(Some(OVERFLOW_UID), OVERFLOW_UID), "it may be anybody");
    }
}
