//! What is wrong with a configuration, and where it was written.
//!
//! Every finding names its place, the key, what was found and what was expected, because the reader has the file open
//! and not the source code. Findings are collected, not thrown: whoever repairs a file wants all of them at once. The
//! list is bounded, since a file that is no configuration at all can be wrong in a hundred thousand lines.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

/// More findings than this are counted instead of kept: nobody reads a second screen of them.
const FINDINGS_KEPT: usize = 50;

/// Longer texts are cut in messages.
const QUOTED_CHARACTERS: usize = 60;

/// A place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Written nowhere: the built-in default.
    Default,
    /// Taken from the machine, e.g. `host name`.
    Machine(&'static str),
    /// Written in the file; without a mark where the whole file is meant.
    File {
        /// The file as it was named.
        path: Arc<Path>,
        /// The place in it.
        mark: Option<Mark>,
    },
    /// An environment variable.
    Variable(Cow<'static, str>),
    /// A command-line flag.
    Flag(&'static str),
}

impl std::fmt::Display for Origin {
    /// `default`, `host name`, `/etc/bamf/agent.yaml:12`, `BAMF_ZONE` or `--debug`; `{:#}` adds the column.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Machine(what) => f.write_str(what),
            Self::File { path, mark: None } => write!(f, "{}", path.display()),
            Self::File { path, mark: Some(mark) } if f.alternate() => {
                write!(f, "{}:{}:{}", path.display(), mark.line, mark.column)
            }
            Self::File { path, mark: Some(mark) } => write!(f, "{}:{}", path.display(), mark.line),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// Something that makes the configuration unusable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written.
    pub origin: Origin,
    /// The key, e.g. `update.window` or `resources[2].port`; empty where the whole file is meant.
    pub key: String,
    /// What stands there. Never a secret.
    pub found: String,
    /// What should stand there.
    pub expected: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        place(f, &self.origin, &self.key)?;
        write!(f, "found {}, expected {}", self.found, self.expected)
    }
}

/// Something that the agent can live with and the operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where it was written.
    pub origin: Origin,
    /// The key; empty where the whole file is meant.
    pub key: String,
    /// A sentence without a full stop. Never a secret.
    pub message: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        place(f, &self.origin, &self.key)?;
        f.write_str(&self.message)
    }
}

/// `FILE:LINE:COL: key: `, with what is not known left out.
fn place(f: &mut std::fmt::Formatter<'_>, origin: &Origin, key: &str) -> std::fmt::Result {
    match origin {
        Origin::Default | Origin::Machine(_) => {}
        Origin::File { .. } | Origin::Variable(_) | Origin::Flag(_) => write!(f, "{origin:#}: ")?,
    }
    if key.is_empty() { Ok(()) } else { write!(f, "{key}: ") }
}

/// Collects findings while a configuration is read.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Findings that make the configuration unusable, in the order they were met.
    pub problems: Vec<Problem>,
    /// Findings to tell the operator.
    pub warnings: Vec<Warning>,
    /// Problems beyond the ones kept.
    pub further_problems: usize,
    /// Warnings beyond the ones kept.
    pub further_warnings: usize,
}

impl Report {
    /// Adds a problem, or counts it where enough are kept.
    pub fn problem(
        &mut self,
        origin: Origin,
        key: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) {
        if self.problems.len() < FINDINGS_KEPT {
            let (key, found, expected) = (key.into(), found.into(), expected.into());
            self.problems.push(Problem { origin, key, found, expected });
        } else {
            self.further_problems = self.further_problems.saturating_add(1);
        }
    }

    /// Adds a warning, or counts it where enough are kept.
    pub fn warning(&mut self, origin: Origin, key: impl Into<String>, message: impl Into<String>) {
        self.warning_with(origin, key, || message.into());
    }

    /// [`Report::warning`] for a message that costs something to make and is made only to be kept.
    pub fn warning_with(&mut self, origin: Origin, key: impl Into<String>, message: impl FnOnce() -> String) {
        if self.warnings.len() < FINDINGS_KEPT {
            self.warnings.push(Warning { origin, key: key.into(), message: message() });
        } else {
            self.further_warnings = self.further_warnings.saturating_add(1);
        }
    }
}

/// A text from outside made fit for a message: quoted, control characters escaped, passwords in addresses hidden, cut.
#[must_use]
pub fn quoted(text: &str) -> String {
    let text = without_credentials(text);
    let mut shown: String = text.chars().take(QUOTED_CHARACTERS).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTED_CHARACTERS).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

/// `https://user:secret@host` → `https://***@host`; everything up to the last `@` counts, since passwords hold `/` and
/// `@`. `https:user:secret@host` is read as an address too (URL standard), so a colon alone makes it suspicious.
fn without_credentials(text: &str) -> Cow<'_, str> {
    match text.rsplit_once('@') {
        Some((before, host)) if before.contains(':') => {
            let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
            Cow::Owned(format!("{scheme}***@{host}"))
        }
        Some(_) | None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_file(line: usize, column: usize) -> Origin {
        Origin::File { path: Arc::from(Path::new("/etc/bamf/agent.yaml")), mark: Some(Mark { line, column }) }
    }

    #[test]
    fn a_problem_reads_as_place_key_found_expected() {
        let problem = Problem {
            origin: in_file(12, 9),
            key: "resources[1].port".into(),
            found: quoted("99999"),
            expected: "a port from 1 to 65535".into(),
        };
        assert_eq!(
            problem.to_string(),
            "/etc/bamf/agent.yaml:12:9: resources[1].port: found \"99999\", expected a port from 1 to 65535"
        );
    }

    #[test]
    fn a_value_from_the_environment_is_placed_by_its_variable() {
        let warning =
            Warning { origin: Origin::Variable("BAMF_ZONE".into()), key: "zone".into(), message: "is odd".into() };
        assert_eq!(warning.to_string(), "BAMF_ZONE: zone: is odd");
    }

    #[test]
    fn quoting_hides_passwords_escapes_control_characters_and_cuts() {
        assert_eq!(quoted("http://me:s3cr@t@proxy:3128"), "\"http://***@proxy:3128\"");
        assert_eq!(quoted("https:me:s3cret@host"), "\"***@host\"");
        assert_eq!(quoted("a\u{1b}[31m\n"), "\"a\\u{1b}[31m\\n\"");
        assert_eq!(quoted(&"x".repeat(100)), format!("\"{}…\"", "x".repeat(60)));
    }

    #[test]
    fn findings_beyond_the_limit_are_counted() {
        let mut report = Report::default();
        for _ in 0..FINDINGS_KEPT + 3 {
            report.problem(Origin::Default, "k", "f", "e");
            report.warning(Origin::Default, "k", "m");
        }
        assert_eq!((report.problems.len(), report.further_problems), (FINDINGS_KEPT, 3));
        assert_eq!((report.warnings.len(), report.further_warnings), (FINDINGS_KEPT, 3));
    }

    #[test]
    fn a_message_is_made_only_for_a_warning_that_is_kept() {
        let (mut report, mut made) = (Report::default(), 0);
        for _ in 0..FINDINGS_KEPT + 3 {
            report.warning_with(Origin::Default, "k", || {
                made += 1;
                String::new()
            });
        }
        assert_eq!((made, report.further_warnings), (FINDINGS_KEPT, 3));
    }
}
