//! What was received: which frame comes next, and how much of it the application already has.

use serde::{Deserialize, Serialize};

use super::Violation;
use super::frame::{FIRST_SEQ, MAX_PAYLOAD};

/// A frame whose beginning was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Partial {
    len: u32,
    /// Invariant: less than `len`.
    delivered: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inbox {
    next_expected: u64,
    /// The frame `next_expected`, if part of it was delivered. A later connection brings it again from its beginning.
    partial: Option<Partial>,
    /// The value of the last ACK.
    acknowledged: u64,
    /// Payload bytes of whole frames since then.
    since: u64,
}

impl Inbox {
    pub(super) const fn new() -> Self {
        Self { next_expected: FIRST_SEQ, partial: None, acknowledged: 0, since: 0 }
    }

    /// Whether the invariants hold.
    pub(super) fn check(&self) -> bool {
        let partial = self.partial.is_none_or(|partial| partial.len <= MAX_PAYLOAD && partial.delivered < partial.len);
        partial
            && self.next_expected >= FIRST_SEQ
            && self.next_expected < u64::MAX
            && self.acknowledged < self.next_expected
            && self.since < 1 << 62
    }

    /// What is left of the frame that is being received, if one is.
    pub(super) fn partial_left(&self) -> Option<u32> {
        self.partial.map(|partial| partial.len - partial.delivered)
    }

    pub(super) const fn next_expected(&self) -> u64 {
        self.next_expected
    }

    /// A data frame begins. Returns how many bytes of its payload are known already.
    pub(super) const fn begin(&mut self, seq: u64, len: u32) -> Result<u32, Violation> {
        if len == 0 || len > MAX_PAYLOAD {
            return Err(Violation::Connection("a data frame of impossible length"));
        }
        if seq < self.next_expected {
            return Ok(len);
        }
        if seq > self.next_expected || seq == u64::MAX {
            return Err(Violation::Session("left out a frame"));
        }
        match self.partial {
            // Frames are repeated as they were (protocol 8.2), or their ends would not fit together.
            Some(partial) if partial.len != len => Err(Violation::Session("repeated a frame with another length")),
            Some(partial) => Ok(partial.delivered),
            None => {
                self.partial = Some(Partial { len, delivered: 0 });
                Ok(0)
            }
        }
    }

    /// The next bytes of the frame that [`Self::begin`] announced, behind what was known.
    pub(super) const fn take(&mut self, count: u32) {
        let Some(partial) = &mut self.partial else { return };
        partial.delivered += count;
        if partial.delivered == partial.len {
            self.since += partial.len as u64;
            self.partial = None;
            self.next_expected += 1;
        }
    }

    /// Bytes received since the last ACK; `None` if there is nothing to acknowledge.
    pub(super) const fn unacknowledged(&self) -> Option<u64> {
        if self.next_expected > self.acknowledged + 1 { Some(self.since) } else { None }
    }

    /// The value of an ACK that says something new.
    pub(super) const fn acknowledge(&mut self) -> Option<u64> {
        if self.unacknowledged().is_none() {
            return None;
        }
        self.acknowledged = self.next_expected - 1;
        self.since = 0;
        Some(self.acknowledged)
    }
}
