//! What is asked of a service manager, and how it can go wrong.

use std::time::Duration;

/// A job for a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Start it; nothing happens if it runs.
    Start,
    /// Stop it.
    Stop,
    /// Stop it if it runs, and start it.
    Restart,
}

impl Verb {
    /// As `systemctl` spells it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }

    /// As org.freedesktop.systemd1.Manager spells it.
    #[must_use]
    pub const fn method(self) -> &'static str {
        match self {
            Self::Start => "StartUnit",
            Self::Stop => "StopUnit",
            Self::Restart => "RestartUnit",
        }
    }
}

/// Why the service manager did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such unit.
    #[error("systemd knows no unit {unit}; install it with install.sh, or name the right one")]
    NoUnit {
        /// Its name.
        unit: String,
    },
    /// The caller may not do this.
    #[error("systemd does not let this user {action} {unit}; run the command as root")]
    NotPermitted {
        /// What was asked.
        action: &'static str,
        /// For which unit.
        unit: String,
    },
    /// The job ended without success.
    #[error("systemd could not {action} {unit}: the job ended as `{result}`; look at `journalctl -u {unit}`")]
    Job {
        /// What was asked.
        action: &'static str,
        /// For which unit.
        unit: String,
        /// The job's result, e.g. `failed`, `timeout`, `canceled`.
        result: String,
    },
    /// The job is not over yet; it goes on without us.
    #[error("systemd did not {action} {unit} within {} s; look at `systemctl status {unit}`", limit.as_secs())]
    TooSlow {
        /// What was asked.
        action: &'static str,
        /// For which unit.
        unit: String,
        /// The limit.
        limit: Duration,
    },
    /// The connection ended before the answer, e.g. because the bus daemon was restarted.
    #[error("the connection to systemd ended while it was asked to {action} {unit}")]
    Lost {
        /// What was asked.
        action: &'static str,
        /// For which unit.
        unit: String,
    },
    /// The manager answered with an error.
    #[error("systemd could not {action} {unit}")]
    Call {
        /// What was asked.
        action: &'static str,
        /// For which unit.
        unit: String,
        /// Its answer.
        source: Box<zbus::Error>,
    },
    /// `systemctl` could not be run.
    #[error("no D-Bus connection to systemd, and systemctl cannot be run; is systemd the service manager here?")]
    NoSystemctl(#[source] std::io::Error),
    /// `systemctl` failed.
    #[error("`systemctl {action} {unit}` failed: {said}")]
    Systemctl {
        /// What was asked.
        action: &'static str,
        /// For which unit.
        unit: String,
        /// What it printed, or how it ended.
        said: String,
    },
}
