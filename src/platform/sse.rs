//! Server-sent events, the subset that the platform sends (protocol 6.1). Pure: bytes in, events out.
//!
//! Ours rather than a crate's because of the limits: an event may not grow without bound, a broken one may not end the
//! stream, and what was received when the stream broke must be forgotten, not delivered.

use serde_json::{Map, Value};

/// The largest event that is kept; today's largest is about 6 KB.
pub const MAX_EVENT_BYTES: usize = 1024 * 1024;
/// More than this without the end of an event is no event stream any more.
const MAX_RUNAWAY_BYTES: usize = 16 * MAX_EVENT_BYTES;

/// One event of the stream.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    /// The `event:` line.
    pub name: String,
    /// The JSON object of the `data:` lines. It may hold private keys.
    pub data: Map<String, Value>,
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Event").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a stream of bytes turned out to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A whole event.
    Event(Event),
    /// An event that cannot be used, and why. The stream goes on.
    Dropped(&'static str),
}

/// The stream never comes to the end of an event.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {} MiB came without the end of an event", MAX_RUNAWAY_BYTES >> 20)]
pub struct Runaway;

/// Decodes one stream. A new connection starts with a new decoder.
#[derive(Default)]
pub struct Decoder {
    line: Vec<u8>,
    name: String,
    data: String,
    /// The present event exceeds the limit and is only skipped.
    oversize: bool,
    /// Bytes since the last event ended.
    pending_bytes: usize,
    /// The byte before was a CR that ended a line, so that an LF now belongs to it.
    after_cr: bool,
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes, in whatever pieces they come, and appends what they complete to `items`.
    ///
    /// # Errors
    /// [`Runaway`]: close the connection.
    pub fn feed(&mut self, bytes: &[u8], items: &mut Vec<Item>) -> Result<(), Runaway> {
        for &byte in bytes {
            let line_feed_of_cr = self.after_cr && byte == b'\n';
            self.after_cr = byte == b'\r';
            match byte {
                b'\n' if line_feed_of_cr => {}
                b'\n' | b'\r' => self.end_line(items),
                _ => self.push(byte),
            }
            self.pending_bytes += 1;
            if self.pending_bytes > MAX_RUNAWAY_BYTES {
                return Err(Runaway);
            }
        }
        Ok(())
    }

    fn push(&mut self, byte: u8) {
        if self.line.len() + self.data.len() < MAX_EVENT_BYTES {
            self.line.push(byte);
        } else {
            self.oversize = true;
        }
    }

    fn end_line(&mut self, items: &mut Vec<Item>) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() && !self.oversize {
            items.extend(self.dispatch());
            self.start_event();
        } else if line.is_empty() && self.data.len() < MAX_EVENT_BYTES {
            items.push(Item::Dropped("larger than 1 MiB"));
            self.start_event();
        } else if !self.oversize {
            self.field(&line);
        }
        self.reuse(line);
    }

    /// Keeps a small buffer for the next line, gives a large one back.
    fn reuse(&mut self, mut line: Vec<u8>) {
        if line.capacity() <= 16 * 1024 {
            line.clear();
            self.line = line;
        }
    }

    fn start_event(&mut self) {
        self.name.clear();
        self.data = String::new();
        self.oversize = false;
        self.pending_bytes = 0;
    }

    fn field(&mut self, line: &[u8]) {
        let Ok(line) = std::str::from_utf8(line) else {
            // Not text: the event cannot be valid JSON any more, which dispatch will say.
            self.data.push('\u{fffd}');
            return;
        };
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            // Comments (an empty field name), id and retry carry nothing for us.
            _ => {}
        }
    }

    /// An event needs both a name and data that is a JSON object.
    fn dispatch(&self) -> Option<Item> {
        match (self.name.is_empty(), self.data.is_empty()) {
            (true, true) => None,
            (true, false) => Some(Item::Dropped("without a name")),
            (false, true) => Some(Item::Dropped("without data")),
            (false, false) => Some(match serde_json::from_str(&self.data) {
                Ok(data) => Item::Event(Event { name: self.name.clone(), data }),
                Err(_) => Item::Dropped("its data is not a JSON object"),
            }),
        }
    }
}

#[cfg(test)]
mod tests;
