//! What the file says, before anybody decides what it means: a small tree of texts, lists and maps with their places.
//!
//! Scalars keep the text that was written. `num: 5` is the text "5" and `flag: yes` is the text "yes" (protocol 2.3),
//! which a YAML library that types scalars early has lost by the time anyone asks. Aliases are copied and merge keys
//! (`<<`) are followed, as Go's YAML library does for the Go agent.
//!
//! A hostile file costs bounded time and memory: nesting and the total weight of the tree are limited, so a chain of
//! aliases that doubles at every step ends at the limit. All of it is a function of the text.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::path::Path;
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput, Tag};

use super::report::{Mark, Origin, Report, quoted};

/// Deepest nesting. The deepest path of keys that mean anything has six levels.
const MAX_DEPTH: usize = 32;

/// Weight limit of a whole tree: a megabyte of ordinary configuration stays well below, a bomb does not.
const MAX_WEIGHT: usize = 8 << 20;

/// Weight of a node besides its text, about what it takes in memory.
const NODE_WEIGHT: usize = 64;

/// A value and the place where it is written; for an alias, the place of what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where it begins.
    pub mark: Mark,
    /// What stands there.
    pub body: Body,
    /// Weight of this node and everything below it, counted so that copying an alias is refused before it is done.
    weight: usize,
}

/// The kinds of value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing, `~` or `null`.
    Null,
    /// A scalar, literally.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping in the order of the file, keys unique.
    Map(Vec<Entry>),
}

/// One key of a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, literally.
    pub key: String,
    /// Where the key stands.
    pub mark: Mark,
    /// The value.
    pub value: Node,
}

impl Node {
    /// What a message calls it, without showing what it holds.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self.body {
            Body::Null => "nothing",
            Body::Text(_) => "a text",
            Body::List(_) => "a list",
            Body::Map(_) => "a map",
        }
    }
}

/// The value of a key in a mapping.
#[must_use]
pub fn get<'a>(entries: &'a [Entry], key: &str) -> Option<&'a Node> {
    entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
}

/// Reads the text of a file. `None` after a fault that leaves no tree; duplicate keys are reported and reading goes on.
pub fn parse(path: &Arc<Path>, text: &str, report: &mut Report) -> Option<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder { parser: Parser::new_from_str(text), path, report, anchors: BTreeMap::new(), weight: 0 };
    match unprintable(text).map_or_else(|| builder.document(), Err) {
        Ok(root) => Some(root),
        Err(fault) => {
            let origin = Origin::File { path: Arc::clone(path), mark: Some(fault.mark) };
            report.problem(origin, "", fault.found, fault.expected);
            None
        }
    }
}

/// What ends the reading.
struct Fault {
    mark: Mark,
    found: String,
    expected: &'static str,
}

impl Fault {
    fn new(mark: Mark, found: impl Into<String>, expected: &'static str) -> Self {
        Self { mark, found: found.into(), expected }
    }
}

/// YAML 1.2.2, 5.1: these may not stand in a file as they are; one of them is a sign of a binary file.
fn unprintable(text: &str) -> Option<Fault> {
    let is_bad = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}');
    let position = text.find(is_bad)?;
    let mark = mark_at(&text[..position]);
    Some(Fault::new(mark, "a control character", "a YAML file, which is text"))
}

/// The place right after a text that begins the file.
pub(super) fn mark_at(before: &str) -> Mark {
    let line_begins = before.rfind('\n').map_or(0, |newline| newline + 1);
    Mark { line: before.matches('\n').count() + 1, column: before[line_begins..].chars().count() + 1 }
}

/// Turns events into a tree.
struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    path: &'a Arc<Path>,
    report: &'a mut Report,
    /// Finished anchored nodes by the parser's number.
    anchors: BTreeMap<usize, Node>,
    /// Weight of everything built so far, copies included.
    weight: usize,
}

type Built<T> = Result<T, Fault>;

impl<'a> Builder<'a> {
    /// The one document of the stream; an empty stream is an empty document.
    fn document(&mut self) -> Built<Node> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => {
                    let empty = Node { mark: mark_of(span.start), body: Body::Null, weight: NODE_WEIGHT };
                    return Ok(root.unwrap_or(empty));
                }
                Event::DocumentStart(_) if root.is_some() => {
                    return Err(Fault::new(mark_of(span.start), "a second document", "one document in the file"));
                }
                Event::DocumentStart(_) | Event::DocumentEnd | Event::StreamStart | Event::Nothing => {}
                Event::Alias(_)
                | Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingStart(..)
                | Event::MappingEnd => root = Some(self.node(event, span, 0)?),
            }
        }
    }

    fn next(&mut self) -> Built<(Event<'a>, Span)> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(Fault::new(
                mark_of(*error.marker()),
                format!("YAML that cannot be read ({})", error.info()),
                "valid YAML",
            )),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    /// The node that begins with this event.
    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Built<Node> {
        let mark = mark_of(span.start);
        if depth > MAX_DEPTH {
            return Err(Fault::new(mark, "nesting deeper than 32 levels", "a configuration, which needs six"));
        }
        let (anchor, body) = match event {
            Event::Alias(anchor) => return self.alias(anchor, mark),
            Event::Scalar(text, style, anchor, tag) => (anchor, scalar(&text, style, tag.as_deref(), mark)?),
            Event::SequenceStart(anchor, tag) => {
                refuse_unknown_tag(tag.as_deref(), mark)?;
                (anchor, Body::List(self.list(depth)?))
            }
            Event::MappingStart(anchor, tag) => {
                refuse_unknown_tag(tag.as_deref(), mark)?;
                (anchor, Body::Map(self.map(depth)?))
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return Err(Fault::new(mark, "a value that does not begin", "valid YAML")),
        };
        let (own, below) = match &body {
            Body::Null => (0, 0),
            Body::Text(text) => (text.len(), 0),
            Body::List(nodes) => (0, nodes.iter().map(|node| node.weight).sum()),
            Body::Map(entries) => (
                entries.iter().map(|entry| entry.key.len()).sum(),
                entries.iter().map(|entry| entry.value.weight).sum(),
            ),
        };
        self.charge(NODE_WEIGHT + own, mark)?;
        let node = Node { mark, body, weight: NODE_WEIGHT + own + below };
        if anchor != 0 {
            self.charge(node.weight, mark)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    /// A copy of what an anchor named, if the tree may still grow by that much.
    fn alias(&mut self, anchor: usize, mark: Mark) -> Built<Node> {
        let Some(weight) = self.anchors.get(&anchor).map(|node| node.weight) else {
            return Err(Fault::new(
                mark,
                "an alias inside the value that it stands for",
                "an alias to a finished value",
            ));
        };
        self.charge(weight, mark)?;
        Ok(self.anchors[&anchor].clone())
    }

    fn charge(&mut self, weight: usize, mark: Mark) -> Built<()> {
        self.weight = self.weight.saturating_add(weight);
        if self.weight > MAX_WEIGHT {
            return Err(Fault::new(mark, "too many values, aliases counted each time", "a file of ordinary size"));
        }
        Ok(())
    }

    fn list(&mut self, depth: usize) -> Built<Vec<Node>> {
        let mut nodes = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(nodes);
            }
            nodes.push(self.node(event, span, depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Built<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut merged = Vec::new();
        let mut written: BTreeMap<String, Mark> = BTreeMap::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<");
            let (key, mark) = self.key(event, span)?;
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            if is_merge {
                merge(value, &mut merged)?;
                continue;
            }
            match written.entry(key.clone()) {
                btree_map::Entry::Vacant(vacant) => {
                    vacant.insert(mark);
                    entries.push(Entry { key, mark, value });
                }
                btree_map::Entry::Occupied(first) => {
                    let found = format!("it a second time (first in line {})", first.get().line);
                    let origin = Origin::File { path: Arc::clone(self.path), mark: Some(mark) };
                    self.report.problem(origin, bare(&key), found, "every key once");
                }
            }
        }
        for entry in merged {
            if let btree_map::Entry::Vacant(vacant) = written.entry(entry.key.clone()) {
                vacant.insert(entry.mark);
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// A key must be a scalar, or an alias to one.
    fn key(&mut self, event: Event<'a>, span: Span) -> Built<(String, Mark)> {
        let mark = mark_of(span.start);
        let named = match event {
            Event::Scalar(text, _, anchor, _) => {
                let text = text.into_owned();
                if anchor != 0 {
                    let weight = NODE_WEIGHT + text.len();
                    self.charge(weight, mark)?;
                    self.anchors.insert(anchor, Node { mark, body: Body::Text(text.clone()), weight });
                }
                Some(text)
            }
            Event::Alias(anchor) => match self.alias(anchor, mark)?.body {
                Body::Text(text) => Some(text),
                Body::Null | Body::List(_) | Body::Map(_) => None,
            },
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceStart(..)
            | Event::SequenceEnd
            | Event::MappingStart(..)
            | Event::MappingEnd => None,
        };
        named.map(|text| (text, mark)).ok_or_else(|| Fault::new(mark, "a key that is no text", "a plain key"))
    }
}

/// The entries behind `<<`: a map, or a list of maps of which the earlier ones win.
fn merge(value: Node, merged: &mut Vec<Entry>) -> Built<()> {
    let mark = value.mark;
    match value.body {
        Body::Map(entries) => merged.extend(entries),
        Body::List(nodes) if nodes.iter().all(|node| matches!(node.body, Body::Map(_))) => {
            for node in nodes {
                merge(node, merged)?;
            }
        }
        Body::Null | Body::Text(_) | Body::List(_) => {
            return Err(Fault::new(mark, "a merge key (<<) without a map", "an alias to a map"));
        }
    }
    Ok(())
}

/// The text as written; only a plain scalar can mean null, quotes make it a text.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, mark: Mark) -> Built<Body> {
    refuse_unknown_tag(tag, mark)?;
    let looks_null = style == ScalarStyle::Plain && matches!(text, "" | "~" | "null" | "Null" | "NULL");
    let means_null = match tag.map(|tag| tag.suffix.as_str()) {
        None => looks_null,
        Some(suffix) => suffix == "null",
    };
    Ok(if means_null { Body::Null } else { Body::Text(text.to_owned()) })
}

/// The core schema's tags change nothing here, since every key has its own type; others ask for something unknown.
fn refuse_unknown_tag(tag: Option<&Tag>, mark: Mark) -> Built<()> {
    let known = |tag: &Tag| {
        tag.is_yaml_core_schema()
            && matches!(tag.suffix.as_str(), "str" | "int" | "float" | "bool" | "null" | "map" | "seq")
    };
    match tag {
        Some(tag) if !known(tag) => {
            Err(Fault::new(mark, format!("the tag {}", quoted(&tag.to_string())), "a value without a tag"))
        }
        Some(_) | None => Ok(()),
    }
}

fn mark_of(marker: Marker) -> Mark {
    // An empty stream has no position yet; its place is the beginning.
    Mark { line: marker.line().max(1), column: marker.col() + 1 }
}

/// A key fit for a message: as written where it is harmless, else quoted.
#[must_use]
pub fn bare(key: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    if !key.is_empty() && key.len() <= 64 && key.chars().all(harmless) { key.to_owned() } else { quoted(key) }
}

#[cfg(test)]
mod tests;
