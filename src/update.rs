//! The updater: signed releases only, never newer than the API, atomic on disk, healthy or rolled back.
//!
//! ```text
//! lock ─► recover ─► decide ─► fetch ─► verify ─► try ─► swap ─► restart ─► gate ─┬─► commit
//!                    (pure)             (proof)  (exec)   │ journal can undo      └─► restore
//! ```
//!
//! Every arrow consumes what the one before produced: there is no [`trust::Verified`] without signature and hash, no
//! [`trial::Tried`] without both of the staged file's own checks, and nothing is swapped in without one.
//!
//! It runs as root, beside the agent and never inside it. What decides (`plan`, `recover`, `gate`, `ownership`'s
//! decision) is pure; what does (`stage`, `swap`, `journal`) makes no choices.

pub mod digest;
pub mod elf;
pub mod gate;
pub mod history;
pub mod journal;
pub mod lock;
pub mod outcome;
pub mod ownership;
pub mod plan;
pub mod recover;
pub mod source;
pub mod stage;
pub mod state_dir;
pub mod swap;
pub mod trial;
pub mod trust;
