//! Reads one key at a time: the variable if it is set, else the file, expanded; what is wrong goes into the report.
//!
//! The rule that the environment wins, the rule that empty means "not set", and the rule that a message never shows a
//! secret are kept here, once, for all keys. A value in the file that a variable overrides is not judged: it has no
//! effect, and a machine that works should not stop because of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::expand::{Lookup, Unexpanded, expand, has_reference};
use super::keys::{self, Key};
use super::raw::{Body, Entry, Node, bare, get};
use super::report::{Mark, Origin, Report, quoted};
use super::source::Environment;

/// What a message shows instead of a secret.
const HIDDEN: &str = "a value that is not shown";

/// A text that was set somewhere.
#[derive(Clone, Debug)]
pub(super) struct Text {
    /// The text, expanded and trimmed.
    pub(super) text: String,
    /// How messages show it.
    pub(super) found: String,
    /// Where it was set.
    pub(super) origin: Origin,
}

impl Text {
    pub(super) const fn is_from_variable(&self) -> bool {
        matches!(self.origin, Origin::Variable(_))
    }
}

/// A problem stands in the report: whoever gets this need not say again that a value is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reported;

/// A value, `None` where nobody set it.
pub(super) type Read<T> = Result<Option<T>, Reported>;

/// Why a scalar gave no text.
enum Unreadable {
    WrongKind,
    Unexpanded(Unexpanded),
}

/// The state of reading one configuration.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) environment: &'a Environment,
    file: Option<Arc<Path>>,
    pub(super) report: Report,
    /// Where each value came from, by path; what is missing here is a default.
    pub(super) origins: BTreeMap<String, Origin>,
    /// The variable that `join_token` names and that is not set: an error only while no certificate is stored, which
    /// is not known before `data_dir` is.
    pub(super) join_token_unset: Option<(String, Origin)>,
    /// The path of each resource that is kept, e.g. `resources[2]` or `resources.ssh`.
    pub(super) resource_places: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(environment: &'a Environment, file: Option<Arc<Path>>, report: Report) -> Self {
        Self {
            environment,
            file,
            report,
            origins: BTreeMap::new(),
            join_token_unset: None,
            resource_places: Vec::new(),
        }
    }

    /// The place of a mark in the file.
    pub(super) fn at(&self, mark: Mark) -> Origin {
        match &self.file {
            Some(path) => Origin::File { path: Arc::clone(path), mark: Some(mark) },
            None => Origin::Default,
        }
    }

    /// The first variable of a key that is set to something.
    pub(super) fn variable(&mut self, key: &Key) -> Read<Text> {
        for name in key.variables {
            let origin = Origin::Variable((*name).into());
            match self.environment.lookup(name) {
                Lookup::Set(value) if !value.trim().is_empty() => {
                    let found = if key.secret { HIDDEN.to_owned() } else { quoted(value) };
                    return Ok(Some(Text { text: value.trim().to_owned(), found, origin }));
                }
                Lookup::Set(_) | Lookup::Unset => {}
                Lookup::NotUtf8 => {
                    return Err(self.problem(origin, key.path, "bytes that are not UTF-8", key.expected));
                }
            }
        }
        Ok(None)
    }

    /// A key of the top level or of a section: its variable, else its place in the map.
    pub(super) fn setting(&mut self, key: &Key, map: &[Entry]) -> Read<Text> {
        match (self.variable(key)?, get(map, key.leaf())) {
            (Some(text), _) => Ok(Some(text)),
            (None, Some(node)) => self.scalar(key, key.path, node),
            (None, None) => Ok(None),
        }
    }

    /// A key of an item at `at`, e.g. `resources[2]`, which no variable sets.
    pub(super) fn field(&mut self, key: &Key, at: &str, map: &[Entry]) -> Read<Text> {
        match get(map, key.leaf()) {
            Some(node) => self.scalar(key, &format!("{at}.{}", key.leaf()), node),
            None => Ok(None),
        }
    }

    /// A scalar that is not empty.
    pub(super) fn scalar(&mut self, key: &Key, path: &str, node: &Node) -> Read<Text> {
        let text = self.literal(key, path, node)?;
        let trimmed = text.text.trim();
        Ok((!trimmed.is_empty()).then(|| Text { text: trimmed.to_owned(), ..text }))
    }

    /// A scalar exactly as written, null being the empty text.
    pub(super) fn literal(&mut self, key: &Key, path: &str, node: &Node) -> Result<Text, Reported> {
        let origin = self.at(node.mark);
        match self.expanded(node) {
            Ok((text, found)) => {
                let found = if key.secret { HIDDEN.to_owned() } else { found };
                Ok(Text { text, found, origin })
            }
            Err(Unreadable::WrongKind) => Err(self.problem(origin, path, node.kind(), key.expected)),
            Err(Unreadable::Unexpanded(Unexpanded::Unset(name))) if key.path == keys::JOIN_TOKEN.path => {
                self.join_token_unset = Some((name, origin));
                Err(Reported)
            }
            Err(Unreadable::Unexpanded(why)) => {
                let (found, expected) = explain(&why);
                Err(self.problem(origin, path, found, expected))
            }
        }
    }

    /// Adds a problem to the report.
    pub(super) fn problem(
        &mut self,
        origin: Origin,
        path: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Reported {
        self.report.problem(origin, path, found, expected);
        Reported
    }

    /// The text, and how messages show it: as it was written, since a variable that is named there may be a secret.
    fn expanded(&self, node: &Node) -> Result<(String, String), Unreadable> {
        match &node.body {
            Body::Null => Ok((String::new(), "nothing".to_owned())),
            Body::Text(text) if has_reference(text) => {
                let value = expand(text, |name| self.environment.lookup(name)).map_err(Unreadable::Unexpanded)?;
                Ok((value, format!("what {} stands for", quoted(text))))
            }
            Body::Text(text) => Ok((text.clone(), quoted(text))),
            Body::List(_) | Body::Map(_) => Err(Unreadable::WrongKind),
        }
    }

    /// The entries of a map; a missing or empty one has none.
    pub(super) fn map<'n>(&mut self, path: &str, expected: &str, node: Option<&'n Node>) -> &'n [Entry] {
        match node.map(|node| (&node.body, node)) {
            None | Some((Body::Null, _)) => &[],
            Some((Body::Map(entries), _)) => entries,
            Some((Body::Text(_) | Body::List(_), node)) => {
                self.report.problem(self.at(node.mark), path, node.kind(), expected);
                &[]
            }
        }
    }

    /// The items of a list; a missing or empty one has none.
    pub(super) fn list<'n>(&mut self, path: &str, expected: &str, node: Option<&'n Node>) -> &'n [Node] {
        match node.map(|node| (&node.body, node)) {
            None | Some((Body::Null, _)) => &[],
            Some((Body::List(items), _)) => items,
            Some((Body::Text(_) | Body::Map(_), node)) => {
                self.report.problem(self.at(node.mark), path, node.kind(), expected);
                &[]
            }
        }
    }

    /// Notes where a value came from, reads it, and reports what it should have been where it cannot be read.
    pub(super) fn judge<T, E: Into<String>>(
        &mut self,
        path: &str,
        text: Read<Text>,
        read: impl FnOnce(&Text) -> Result<T, E>,
    ) -> Read<T> {
        let Some(text) = text? else { return Ok(None) };
        match read(&text) {
            Ok(value) => {
                self.origins.insert(path.to_owned(), text.origin);
                Ok(Some(value))
            }
            Err(expected) => Err(self.problem(text.origin, path, text.found, expected)),
        }
    }

    /// [`Reader::setting`] and [`Reader::judge`] for a value whose only fault can be that it is not what the key
    /// expects. A reported value counts as not set from here on.
    pub(super) fn parsed<T>(&mut self, key: &Key, map: &[Entry], read: impl FnOnce(&Text) -> Option<T>) -> Option<T> {
        let text = self.setting(key, map);
        self.judge(key.path, text, |text| read(text).ok_or(key.expected)).ok().flatten()
    }

    /// Warns about every key of the map at `at` that the table does not have under `prefix`.
    pub(super) fn warn_unknown(&mut self, prefix: &str, at: &str, map: &[Entry]) {
        for entry in map {
            if !keys::in_map(prefix).any(|leaf| leaf == entry.key) {
                let path = if at.is_empty() { bare(&entry.key) } else { format!("{at}.{}", bare(&entry.key)) };
                let origin = self.at(entry.mark);
                self.report.warning_with(origin, path, || keys::hint(prefix, &entry.key));
            }
        }
    }
}

/// Found and expected for a reference that cannot be replaced.
fn explain(why: &Unexpanded) -> (String, &'static str) {
    match why {
        Unexpanded::Unset(name) => (
            format!("${{{name}}}, and {name} is not set in the environment"),
            "a variable that is set (a literal ${ is written $${)",
        ),
        Unexpanded::NotUtf8(name) => {
            (format!("${{{name}}}, and {name} holds bytes that are not UTF-8"), "a variable that holds text")
        }
        Unexpanded::Malformed => {
            ("${ without the name of a variable and }".to_owned(), "${NAME} (a literal ${ is written $${)")
        }
    }
}

/// Yes or no. In the file as YAML 1.1 spells it, which is what the Go agent reads; in a variable `true` and `1`, `false`
/// and `0`.
///
/// Off-contract for protocol 2.2, where every other variable text means false: `TRUE` or `yes` meant the opposite, and
/// contract section 2 makes a wrong value an error.
pub(super) fn truth(text: &Text) -> Option<bool> {
    match text.text.as_str() {
        "true" | "1" => return Some(true),
        "false" | "0" => return Some(false),
        _ if text.is_from_variable() => return None,
        _ => {}
    }
    match text.text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" => Some(true),
        "false" | "no" | "off" | "n" => Some(false),
        _ => None,
    }
}
