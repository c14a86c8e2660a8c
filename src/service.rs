//! The service manager's side of the agent: its unit, its jobs, its main process.
//!
//! `notify` is what the agent tells systemd. `bus` talks to systemd over D-Bus and waits for jobs by their path;
//! `systemctl` is the way without a bus; `unit` and `job` are what both share; `process` tells which file a process runs;
//! `environment` reads what units read; `ending` asks what the manager means by a SIGTERM; `fds` keeps descriptors with it.

pub mod bus;
pub mod ending;
pub mod environment;
pub mod fds;
pub mod job;
pub mod notify;
pub mod process;
pub mod systemctl;
pub mod unit;
