//! The log: JSON lines for machines, text on a terminal, always on standard error.
//!
//! Levels have a meaning: *error* wants a person now, *warn* wants one some day, *info* is what happened to the agent,
//! *debug* is how. Dependencies speak only when something is wrong with them.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Warnings only: for commands that print a result of their own.
    Quiet,
    /// What happens.
    Normal,
    /// And how.
    Debug,
}

/// Starts logging for the whole process; `colours` counts on a terminal only. A second call changes nothing.
pub fn start(verbosity: Verbosity, colours: bool) {
    let own = match verbosity {
        Verbosity::Quiet => LevelFilter::WARN,
        Verbosity::Normal => LevelFilter::INFO,
        Verbosity::Debug => LevelFilter::DEBUG,
    };
    let filter = Targets::new().with_default(LevelFilter::WARN).with_target("bamf_agent", own);
    let registry = tracing_subscriber::registry().with(filter);
    let terminal = std::io::stderr().is_terminal();
    let started = if terminal {
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_target(false);
        registry.with(layer).try_init()
    } else {
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
        registry.with(layer.with_current_span(false).with_span_list(false)).try_init()
    };
    // Only a second start fails; the first one goes on.
    drop(started);
}
