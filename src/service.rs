//! The service manager: what the agent tells systemd, and what the updater asks of it.

pub mod notify;
