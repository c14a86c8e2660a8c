//! The updater: lock, recover, decide, fetch, verify, try, swap, restart, gate, then commit or restore (contract section 4).
//!
//! It runs as root, beside the agent and never inside it. What decides (`plan`, `recover`, `gate`, `ownership`'s decision)
//! is pure; what does (`stage`, `swap`, `journal`) makes no choices.

pub mod digest;
pub mod elf;
pub mod gate;
pub mod history;
pub mod journal;
pub mod lock;
pub mod ownership;
pub mod recover;
pub mod stage;
pub mod state_dir;
pub mod swap;
pub mod trial;
