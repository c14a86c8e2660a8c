//! Handshake messages that come after the handshake (RFC 8446, 4.6), cut wherever the peer cuts them.
//!
//! Two kinds may come. A ticket is of no use to an agent that never resumes, and is passed over byte by byte; a key update
//! has five bytes. So nothing is ever collected but those five.

use serde::{Deserialize, Serialize};

use super::{Alert, Error, violation};

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// The longest ticket that is passed over; honest ones have some hundred bytes.
const LONGEST: u32 = 64 * 1024;

/// What the end of a record has left of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fragment {
    /// The beginning of a message, up to the point where it is known what to do with it: at most 4 bytes.
    pub head: Vec<u8>,
    /// Bytes of a message that are still to come and do not matter.
    pub skip: u32,
}

/// The peer's next record has the next key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyUpdate {
    /// And that is all.
    Told,
    /// And ours must have one as well.
    Requested,
}

/// A message of five bytes that says that the next record has the next key.
pub(super) fn key_update(update: KeyUpdate) -> [u8; 5] {
    [KEY_UPDATE, 0, 0, 1, u8::from(update == KeyUpdate::Requested)]
}

impl Fragment {
    pub(super) fn is_empty(&self) -> bool {
        self.head.is_empty() && self.skip == 0
    }

    /// Whether this can be what a record has left.
    pub(super) fn is_possible(&self) -> bool {
        self.skip <= LONGEST && self.head.len() < 5 && (self.skip == 0 || self.head.is_empty())
    }

    /// Takes the content of one record.
    pub(super) fn take(&mut self, mut content: &[u8]) -> Result<Option<KeyUpdate>, Error> {
        if content.is_empty() {
            return Err(violation("an empty piece of a handshake message", Alert::UNEXPECTED_MESSAGE));
        }
        while !content.is_empty() {
            let skipped = content.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            self.skip = self.skip.saturating_sub(u32::try_from(skipped).unwrap_or(u32::MAX));
            let Some((byte, rest)) = content[skipped..].split_first() else { break };
            content = rest;
            self.head.push(*byte);
            match self.head[..] {
                [NEW_SESSION_TICKET, a, b, c] => {
                    self.skip = u32::from_be_bytes([0, a, b, c]);
                    if self.skip > LONGEST {
                        return Err(violation("a ticket without end", Alert::DECODE_ERROR));
                    }
                    self.head = Vec::new();
                }
                [KEY_UPDATE, 0, 0, 1, request] => {
                    self.head = Vec::new();
                    if !rest.is_empty() {
                        return Err(violation("something behind a key update", Alert::UNEXPECTED_MESSAGE));
                    }
                    return key_update_of(request).map(Some);
                }
                [KEY_UPDATE, a, b, c] if [a, b, c] != [0, 0, 1] => {
                    return Err(violation("a key update of the wrong length", Alert::DECODE_ERROR));
                }
                [NEW_SESSION_TICKET | KEY_UPDATE, ..] => {}
                _ => return Err(violation("a handshake message after the handshake", Alert::UNEXPECTED_MESSAGE)),
            }
        }
        Ok(None)
    }
}

const fn key_update_of(request: u8) -> Result<KeyUpdate, Error> {
    match request {
        0 => Ok(KeyUpdate::Told),
        1 => Ok(KeyUpdate::Requested),
        _ => Err(violation("a key update that asks for the impossible", Alert::ILLEGAL_PARAMETER)),
    }
}
