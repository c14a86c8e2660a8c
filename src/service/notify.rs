//! sd_notify(3): READY, STATUS, WATCHDOG and STOPPING. Without a service manager every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// Start-up is finished: `systemctl start` returns.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The line that `systemctl status` shows.
pub fn status(line: &str) {
    send(&[NotifyState::Status(line)]);
}

/// Shutting down, on purpose.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// A sign of life. Sent by the loop whose life matters, never by a timer of its own.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// How often [`alive`] should be called: half of `WatchdogSec=`; `None` where the unit has no watchdog.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be notified");
    }
}
