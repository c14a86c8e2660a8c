//! The control socket: how the agent is asked what it is doing (contract section 5).
//!
//! HTTP/1.1 on `<runtime dir>/agent.sock`, so that `curl --unix-socket` works too. The updater judges a new version by
//! what it says here, therefore the answers come from the same process that does the work, never from a file.

pub mod announced;
pub mod client;
pub mod server;
pub mod status;

pub use announced::Announced;
pub use status::Status;

/// Name of the socket in the runtime directory.
pub const SOCKET: &str = "agent.sock";
/// Where [`Status`] is served.
pub const STATUS_PATH: &str = "/v1/status";
/// Where a restart is announced.
pub const RESTART_PATH: &str = "/v1/restart";
