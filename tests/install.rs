//! packaging/install.sh and `bamf-agent uninstall` on machines with a real systemd, as an operator uses them: the script
//! comes through a pipe, releases come over TLS.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "install/conditions.rs"]
mod conditions;
#[path = "install/fresh.rs"]
mod fresh;
#[path = "install/go_agent.rs"]
mod go_agent;
#[path = "install/refusals.rs"]
mod refusals;
#[path = "install/removal.rs"]
mod removal;
#[path = "install/scene.rs"]
mod scene;
#[path = "install/script.rs"]
mod script;
#[path = "install/standing.rs"]
mod standing;
