//! The only room that prints: results on standard output, everything else on standard error.
//!
//! A reader that has gone away (`bamf-agent status | head -1`) is no error. Colour is left to what the terminal library
//! decides from the terminal and NO_COLOR.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// Prints one line of a result.
pub(super) fn line(text: impl AsRef<str>) {
    tolerate(writeln!(io::stdout().lock(), "{}", harmless(text.as_ref())));
}

/// Prints one JSON document on one line.
pub(super) fn json<T: Serialize>(document: &T) {
    let mut out = io::stdout().lock();
    let written = serde_json::to_writer(&mut out, document).map_err(io::Error::from).and_then(|()| writeln!(out));
    tolerate(written);
}

/// Prints a remark for a person.
pub(super) fn note(text: impl AsRef<str>) {
    tolerate(writeln!(io::stderr().lock(), "{}", harmless(text.as_ref())));
}

/// Prints what went wrong.
pub(super) fn error(text: impl AsRef<str>) {
    tolerate(writeln!(io::stderr().lock(), "bamf-agent: {}", harmless(text.as_ref())));
}

/// Shows a download's progress in place, on a terminal only.
pub(super) struct Progress {
    shown: bool,
    percent: u64,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { shown: io::stderr().is_terminal(), percent: u64::MAX }
    }

    /// Redraws when a whole percent has passed.
    pub(super) fn update(&mut self, done: u64, total: u64) {
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0).min(100);
        if !self.shown || percent == self.percent {
            return;
        }
        self.percent = percent;
        let bar = "#".repeat(usize::try_from(percent / 4).unwrap_or(0));
        let megabytes = |bytes: u64| bytes / 1_000_000;
        tolerate(write!(
            io::stderr().lock(),
            "\r\x1b[Kdownloading [{bar:<25}] {percent:>3} %  {}/{} MB",
            megabytes(done),
            megabytes(total)
        ));
    }

    /// Takes the bar away.
    pub(super) fn finish(self) {
        if self.shown && self.percent != u64::MAX {
            tolerate(write!(io::stderr().lock(), "\r\x1b[K"));
        }
    }
}

/// Without what a terminal would obey: a message may quote a platform, a release server or a hostile agent.
fn harmless(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// A closed pipe ends the output, not the command.
fn tolerate(written: io::Result<()>) {
    drop(written);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_left_out() {
        assert_eq!(harmless("one\n\ttwo \u{1b}[31mred\u{9b}0m\r\u{7} ü"), "one\n\ttwo [31mred0m ü");
    }
}
