//! The updater: signed releases only, never newer than the API, atomic on disk, healthy or rolled back.
//!
//! ```text
//! lock ─► recover ─► decide ─► fetch ─► verify ─► try ─► swap ─► restart ─► gate ─┬─► commit
//!                    (pure)             (proof)  (exec)   │ journal can undo      └─► restore
//! ```
//!
//! Every arrow consumes what the one before produced: there is no [`trust::Verified`] without signature and hash, and
//! nothing is swapped in without one.

pub mod plan;
pub mod source;
pub mod trust;
