//! TLS 1.3 after the handshake: records in, bytes out, and the other way round, with a state that can be carried away.
//!
//! ```text
//!   handshake (rustls, `tls`) ─ suite, two secrets ─► Records ── export ─► State ─► import ─► Records
//!                                                      │   ▲
//!   sink ◄─ plaintext, in place ── open ◄── input ─────┘   └── seal ◄── plain ──► space
//!                                    └─► output: fatal alerts, key updates
//! ```
//!
//! rustls keeps its keys to itself once it is running. This layer runs from the first record after the handshake to the
//! last, not only after a hand-over, so that the path that a hand-over depends on is used all day.
//!
//! It keeps no bytes. What was received stays with the caller until its record is complete, and sealed bytes are the
//! caller's at once: a record is sealed once, and a cut in the middle of it is no business of this layer. The order of what
//! is sealed is the order in which it has to be sent.

mod alert;
mod direction;
mod message;
mod secret;
mod state;

#[cfg(test)]
mod tests;

use std::io;

pub use self::alert::Alert;
use self::direction::Direction;
pub use self::direction::Suite;
pub use self::message::Fragment;
use self::message::{KeyUpdate, key_update};
pub use self::secret::TrafficSecret;
pub use self::state::{Ask, Half, Standing, State};

/// Length of a record's header (RFC 8446, 5.1).
pub(super) const HEADER: usize = 5;
/// Content of a full record.
const CONTENT: usize = 16 * 1024;
/// What a peer may make of it with its padding (RFC 8446, 5.2).
const LONGEST: usize = CONTENT + 256;
/// Length of an authentication tag, the same for all suites.
const TAG: usize = 16;
/// What a record is longer than its content.
const OVERHEAD: usize = HEADER + 1 + TAG;

/// Key updates of a peer in a row, without data. Each costs us more than it costs the peer; no honest one sends two.
const UPDATES_IN_A_ROW: u8 = 16;

/// What ends a connection, or is asked of it too late.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The peer ends it, and says why.
    #[error("the peer ended the connection with the alert {0}")]
    Alert(Alert),
    /// The peer does not speak TLS 1.3, or somebody else spoke.
    #[error("the peer sent {what}")]
    Violation {
        /// What it sent.
        what: &'static str,
        /// What it is told.
        alert: Alert,
    },
    /// It had ended before.
    #[error("the connection has ended")]
    Over,
    /// There is no number left for another record.
    #[error("the keys of the connection are used up")]
    UsedUp,
    /// The caller's space is shorter than [`sealed_len`].
    #[error("there is no room for what is sealed")]
    NoRoom,
    /// The library for cryptography did not do its work.
    #[error("the cryptographic library failed")]
    Crypto,
    /// This is no state of a connection.
    #[error("the connection's saved state has {0}")]
    State(&'static str),
}

const fn violation(what: &'static str, alert: Alert) -> Error {
    Error::Violation { what, alert }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Over => io::ErrorKind::BrokenPipe,
            Error::Alert(_) | Error::Violation { .. } | Error::State(_) => io::ErrorKind::InvalidData,
            Error::UsedUp | Error::NoRoom | Error::Crypto => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// What a record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Alert,
    Handshake,
    Data,
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        match number {
            21 => Some(Self::Alert),
            22 => Some(Self::Handshake),
            23 => Some(Self::Data),
            _ => None,
        }
    }
}

/// What was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// Bytes of plaintext that were handed over.
    pub plain: usize,
    /// The peer said that nothing follows.
    pub ended: bool,
}

/// Room that this many bytes of plaintext need when they are sealed, and a key update before them; never too little.
#[must_use]
pub const fn sealed_len(plain: usize) -> usize {
    plain + plain.div_ceil(CONTENT) * OVERHEAD + KEY_UPDATE
}

/// Length of the record of a key update.
const KEY_UPDATE: usize = 5 + OVERHEAD;
/// Length of the record of an alert.
const ALERT: usize = 2 + OVERHEAD;

/// Both directions of a connection.
pub struct Records {
    outbound: Direction,
    inbound: Direction,
    standing: Standing,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").field("standing", &self.standing).finish_non_exhaustive()
    }
}

impl Records {
    /// A connection right after its handshake, before the first record under application keys in either direction.
    ///
    /// # Errors
    /// The secrets are not of this suite.
    pub fn new(suite: Suite, outbound: TrafficSecret, inbound: TrafficSecret) -> Result<Self, Error> {
        Ok(Self {
            outbound: Direction::new(suite, outbound, 0)?,
            inbound: Direction::new(suite, inbound, 0)?,
            standing: Standing::default(),
        })
    }

    /// Opens the complete records of `input` in place and hands their content to `sink`. What the peer is told right away,
    /// i.e. a fatal alert or, if `output` is empty, a key update, is appended to `output`; it is at most 27 bytes.
    ///
    /// # Errors
    /// The bytes are not the peer's, or it sent an alert. What was handed over before is the peer's word all the same.
    pub fn open(
        &mut self,
        input: &mut [u8],
        output: &mut Vec<u8>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<Opened, Error> {
        if self.standing.broken {
            return Err(Error::Over);
        }
        let outcome = self.open_all(input, sink).and_then(|opened| {
            // With something before it that does not get away, it waits for the next data: nothing can pile up.
            if self.standing.update_due && !self.standing.said_all && output.is_empty() {
                self.append_update(output)?;
            }
            Ok(opened)
        });
        outcome.inspect_err(|error| self.break_off(error, output))
    }

    fn open_all(&mut self, input: &mut [u8], sink: &mut dyn FnMut(&[u8])) -> Result<Opened, Error> {
        let mut opened = Opened::default();
        while !self.standing.heard_all {
            let rest = &mut input[opened.consumed..];
            let Some(len) = record_len(rest)? else { break };
            opened.consumed += len;
            let (kind, content) = self.inbound.open(&mut rest[..len])?;
            match kind {
                Kind::Data => {
                    self.standing.take_data(content)?;
                    opened.plain += content.len();
                    sink(content);
                }
                Kind::Alert => self.standing.take_alert(content)?,
                Kind::Handshake => {
                    if let Some(update) = self.standing.fragment.take(content)? {
                        self.standing.take_update(update)?;
                        self.inbound.update()?;
                    }
                }
            }
        }
        if self.standing.heard_all {
            // RFC 8446, 6.1: whatever follows is ignored.
            (opened.consumed, opened.ended) = (input.len(), true);
        }
        if self.inbound.is_worn() && self.standing.ask == Ask::No {
            self.refresh();
        }
        Ok(opened)
    }

    /// Writes `plain`, sealed, to the beginning of `space`, which is as long as [`sealed_len`] says, and returns how many
    /// bytes that are.
    ///
    /// # Errors
    /// The connection is not open any more, or `space` is too short.
    pub fn seal(&mut self, plain: &[u8], space: &mut [u8]) -> Result<usize, Error> {
        self.may_speak()?;
        if space.len() < sealed_len(plain.len()) {
            return Err(Error::NoRoom);
        }
        let mut written = 0;
        if self.standing.update_due || self.outbound.is_worn() {
            written += self.write_update(space)?;
        }
        for content in plain.chunks(CONTENT) {
            let record = self.outbound.seal(Kind::Data, content, &mut space[written..]);
            written += record.inspect_err(|_| self.standing.broken = true)?;
        }
        Ok(written)
    }

    /// Appends the alert that says that nothing follows.
    ///
    /// # Errors
    /// The connection is not open any more.
    pub fn close_notify(&mut self, output: &mut Vec<u8>) -> Result<(), Error> {
        self.may_speak()?;
        self.append_alert(1, Alert::CLOSE_NOTIFY, output)
    }

    /// New keys for both directions, with the next bytes that go out.
    pub fn refresh(&mut self) {
        self.standing.update_due = true;
        if self.standing.ask == Ask::No {
            self.standing.ask = Ask::Due;
        }
    }

    const fn may_speak(&self) -> Result<(), Error> {
        if self.standing.said_all || self.standing.broken { Err(Error::Over) } else { Ok(()) }
    }

    fn write_update(&mut self, space: &mut [u8]) -> Result<usize, Error> {
        let asks = self.standing.ask == Ask::Due;
        let message = key_update(if asks { KeyUpdate::Requested } else { KeyUpdate::Told });
        let written = self.outbound.seal(Kind::Handshake, &message, space).and_then(|written| {
            self.outbound.update()?;
            Ok(written)
        });
        let written = written.inspect_err(|_| self.standing.broken = true)?;
        self.standing.update_due = false;
        if asks {
            self.standing.ask = Ask::Sent;
        }
        Ok(written)
    }

    fn append_update(&mut self, output: &mut Vec<u8>) -> Result<(), Error> {
        let mut record = [0; KEY_UPDATE];
        let written = self.write_update(&mut record)?;
        output.extend_from_slice(&record[..written]);
        Ok(())
    }

    fn append_alert(&mut self, level: u8, alert: Alert, output: &mut Vec<u8>) -> Result<(), Error> {
        self.standing.said_all = true;
        let mut record = [0; ALERT];
        let written = self.outbound.seal(Kind::Alert, &[level, alert.0], &mut record)?;
        output.extend_from_slice(&record[..written]);
        Ok(())
    }

    /// Nothing goes on after an error; the peer is told what it did, unless it spoke the last word or we had.
    fn break_off(&mut self, error: &Error, output: &mut Vec<u8>) {
        let alert = match error {
            Error::Alert(_) | Error::Over => None,
            Error::Violation { alert, .. } => Some(*alert),
            Error::UsedUp | Error::NoRoom | Error::Crypto | Error::State(_) => Some(Alert::INTERNAL_ERROR),
        };
        if let Some(alert) = alert
            && self.may_speak().is_ok()
        {
            // Without the alert the end is as certain.
            drop(self.append_alert(2, alert, output));
        }
        self.standing.broken = true;
    }
}

impl Standing {
    fn take_data(&mut self, content: &[u8]) -> Result<(), Error> {
        if !self.fragment.is_empty() {
            return Err(violation("data in the middle of a handshake message", Alert::UNEXPECTED_MESSAGE));
        }
        if !content.is_empty() {
            self.updates_in_a_row = 0;
        }
        Ok(())
    }

    /// The level is ignored (RFC 8446, 6): what is not the end of a conversation is an error.
    fn take_alert(&mut self, content: &[u8]) -> Result<(), Error> {
        let [_, number] = *content else {
            return Err(violation("an alert of the wrong length", Alert::DECODE_ERROR));
        };
        match Alert(number) {
            Alert::CLOSE_NOTIFY => self.heard_all = true,
            Alert::USER_CANCELED => {}
            alert => return Err(Error::Alert(alert)),
        }
        Ok(())
    }

    fn take_update(&mut self, update: KeyUpdate) -> Result<(), Error> {
        self.updates_in_a_row = self.updates_in_a_row.saturating_add(1);
        if self.updates_in_a_row > UPDATES_IN_A_ROW {
            return Err(violation("too many key updates", Alert::UNEXPECTED_MESSAGE));
        }
        self.ask = Ask::No;
        self.update_due |= update == KeyUpdate::Requested;
        Ok(())
    }
}

/// The length of the record that `bytes` begin with, when it is complete. What cannot be a record is told by its header.
fn record_len(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let Some(&[kind, major, minor, high, low]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    match kind {
        23 => {}
        21 => return Err(violation("an alert that is not sealed", Alert::UNEXPECTED_MESSAGE)),
        _ => return Err(violation("something that is not a sealed record", Alert::UNEXPECTED_MESSAGE)),
    }
    if [major, minor] != [3, 3] {
        return Err(violation("a record of another version", Alert::PROTOCOL_VERSION));
    }
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len > LONGEST {
        return Err(violation("a record that is too long", Alert::RECORD_OVERFLOW));
    }
    Ok((bytes.len() >= HEADER + len).then_some(HEADER + len))
}
