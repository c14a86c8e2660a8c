//! Restarts that nobody notices, on real systemd: a crowd of users in the middle of what they do, and real programs.
//!
//! Everything here is asked from outside: `systemctl`, the agent's own commands, its status, and what users, targets, bridge
//! and platform have seen. The platform is as strict as the real one: a bridge connection that drops takes its session with
//! it, and no client comes back.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "what was measured is shown")]

#[path = "handover/crowd.rs"]
mod crowd;
#[path = "handover/damage.rs"]
mod damage;
#[path = "handover/haste.rs"]
mod haste;
#[path = "handover/programs.rs"]
mod programs;
#[path = "handover/scene.rs"]
mod scene;
#[path = "handover/stop.rs"]
mod stop;
