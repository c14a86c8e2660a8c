//! What the agent says about itself: its build, its log, its metrics.

pub mod build;
pub mod log;
pub mod metrics;

pub use build::Build;
