//! One bridge connection of a session: the place in the middle of a frame, each way, and the handshake.

use serde::{Deserialize, Serialize};

use super::Violation;
use super::frame::{self, ACK, CLOSE, DATA, HANDSHAKE, MAX_PAYLOAD, NUMBERED};
use super::outbox::Outbox;

/// What a call of [`super::Stream::receive`] came upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The peer's handshake came: from now on this is the session's connection.
    pub resumed: bool,
    /// Memory may have become free.
    pub acknowledged: bool,
    /// The peer ended the session.
    pub closed: bool,
}

impl Received {
    /// What two calls came upon together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            resumed: self.resumed || other.resumed,
            acknowledged: self.acknowledged || other.acknowledged,
            closed: self.closed || other.closed,
        }
    }
}

/// One thing that was found in the input.
pub(super) enum Progress<'a> {
    /// The input is used up.
    More,
    /// A data frame begins.
    Data {
        seq: u64,
        len: u32,
    },
    /// Fresh bytes of its payload.
    Payload(&'a [u8]),
    Ack(u64),
    Handshake(u64),
    Close,
}

/// A short frame on its way out, in full or in part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Control {
    bytes: [u8; NUMBERED],
    len: usize,
    sent: usize,
}

impl Control {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..self.len).unwrap_or_default()
    }

    const fn is_empty(&self) -> bool {
        self.sent == self.len
    }

    /// Whether what is left of it is the end of a short frame.
    fn check(&self) -> bool {
        let whole = self.bytes[0] != DATA && frame::head_len(self.bytes[0]) == Some(self.len);
        self.sent <= self.len && (whole || self.len == 0)
    }

    fn set(&mut self, frame: &[u8]) {
        self.bytes[..frame.len()].copy_from_slice(frame);
        (self.len, self.sent) = (frame.len(), 0);
    }
}

/// Whether the close frame may go, and has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Closing {
    NotYet,
    Allowed,
    Sent,
}

/// The state of one connection. Serialised, it belongs to the [`super::Stream`] that it was serialised with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The head of the frame that is being received, as far as it has come.
    head: [u8; frame::DATA_HEADER],
    have: usize,
    /// Payload still to come of the frame that is being received, and how much of it is known already.
    body_left: u32,
    skip: u32,
    /// Nothing but the peer's handshake is believed, and no data sent, before it has come.
    awaits_handshake: bool,
    sent_until: u64,
    control: Control,
    ack: Option<u64>,
    closing: Closing,
    /// What was offered last was a control frame.
    offered_control: bool,
}

impl Connection {
    pub(super) const fn established(sent_until: u64) -> Self {
        Self {
            head: [0; frame::DATA_HEADER],
            have: 0,
            body_left: 0,
            skip: 0,
            awaits_handshake: false,
            sent_until,
            control: Control { bytes: [0; NUMBERED], len: 0, sent: 0 },
            ack: None,
            closing: Closing::NotYet,
            offered_control: false,
        }
    }

    pub(super) fn resuming(next_expected: u64) -> Self {
        let mut connection = Self { awaits_handshake: true, ..Self::established(0) };
        connection.control.set(&frame::numbered(HANDSHAKE, next_expected));
        connection
    }

    /// Whether the peer's handshake is still awaited.
    #[must_use]
    pub const fn awaits_handshake(&self) -> bool {
        self.awaits_handshake
    }

    /// The close frame has gone out in full.
    #[must_use]
    pub fn close_is_sent(&self) -> bool {
        self.closing == Closing::Sent && self.control.is_empty()
    }

    /// Whether the invariants hold. `next_expected` is the stream's.
    pub(super) fn check(&self, next_expected: u64) -> bool {
        let head = self.have == 0 || frame::head_len(self.head[0]).is_some_and(|wanted| self.have < wanted);
        // Nothing but a handshake is taken before the handshake.
        let body = self.skip <= self.body_left
            && self.body_left <= MAX_PAYLOAD
            && (self.body_left == 0 || self.have == 0 && !self.awaits_handshake);
        head && body && self.control.check() && self.ack.is_none_or(|value| value < next_expected)
    }

    /// Payload still to come that is not known yet. Invariant: [`Self::check`].
    pub(super) const fn fresh_left(&self) -> u32 {
        self.body_left - self.skip
    }

    pub(super) const fn sent_until(&self) -> u64 {
        self.sent_until
    }

    pub(super) const fn has_control(&self) -> bool {
        !self.control.is_empty() || self.ack.is_some()
    }

    pub(super) const fn queue_ack(&mut self, value: u64) {
        self.ack = Some(value);
    }

    pub(super) const fn allow_close(&mut self) {
        if matches!(self.closing, Closing::NotYet) {
            self.closing = Closing::Allowed;
        }
    }

    pub(super) const fn resume_at(&mut self, position: u64) {
        self.awaits_handshake = false;
        self.sent_until = position;
    }

    /// How much of the payload that follows is known already; all of it, as long as nobody says otherwise.
    pub(super) const fn skip(&mut self, count: u32) {
        self.skip = count;
    }

    /// Takes the next thing out of the input.
    pub(super) fn parse<'a>(&mut self, input: &mut &'a [u8]) -> Result<Progress<'a>, Violation> {
        if self.body_left > 0 {
            return Ok(self.body(input));
        }
        let Some(&kind) = self.head[..self.have].first().or_else(|| input.first()) else { return Ok(Progress::More) };
        let wanted = frame::head_len(kind).ok_or(Violation::Connection("a frame of an unknown type"))?;
        if self.awaits_handshake && kind != HANDSHAKE {
            return Err(Violation::Connection("something else instead of a handshake"));
        }
        let count = (wanted - self.have).min(input.len());
        let (taken, rest) = input.split_at(count);
        self.head[self.have..self.have + count].copy_from_slice(taken);
        self.have += count;
        *input = rest;
        if self.have < wanted {
            return Ok(Progress::More);
        }
        self.have = 0;
        let value = frame::number(&self.head);
        match kind {
            DATA => {
                self.body_left = frame::payload_len(&self.head);
                // Of a frame that the stream refuses, nothing is payload.
                self.skip = self.body_left;
                Ok(Progress::Data { seq: value, len: self.body_left })
            }
            ACK => Ok(Progress::Ack(value)),
            HANDSHAKE if self.awaits_handshake => Ok(Progress::Handshake(value)),
            CLOSE => Ok(Progress::Close),
            _ => Err(Violation::Connection("a handshake in the middle of a connection")),
        }
    }

    /// Payload, less what is known already.
    fn body<'a>(&mut self, input: &mut &'a [u8]) -> Progress<'a> {
        let here = usize::try_from(self.body_left).unwrap_or(usize::MAX).min(input.len());
        let (taken, rest) = input.split_at(here);
        *input = rest;
        let count = u32::try_from(here).expect("it is at most body_left");
        self.body_left -= count;
        let known = self.skip.min(count);
        self.skip -= known;
        Progress::Payload(taken.get(known as usize..).unwrap_or_default())
    }

    /// Up to which position data may be offered now; `None` where something else goes first.
    pub(super) fn data_limit(&self, outbox: &Outbox) -> Option<u64> {
        if self.awaits_handshake || !self.control.is_empty() || self.closing == Closing::Sent {
            return None;
        }
        if self.ack.is_none() {
            return Some(outbox.end());
        }
        // A waiting ACK goes at the next place where no frame is cut.
        let boundary = outbox.boundary(self.sent_until);
        (boundary > self.sent_until).then_some(boundary)
    }

    /// The short frame that is to go now; empty if there is none. `drained` says that no data is left.
    pub(super) fn control(&mut self, drained: bool) -> &[u8] {
        if self.control.is_empty() {
            if let Some(value) = self.ack.take() {
                self.control.set(&frame::numbered(ACK, value));
            } else if drained && self.closing == Closing::Allowed && !self.awaits_handshake {
                self.closing = Closing::Sent;
                self.control.set(&[CLOSE]);
            }
        }
        self.offered_control = true;
        self.control.rest()
    }

    pub(super) const fn offers_data(&mut self) {
        self.offered_control = false;
    }

    pub(super) fn sent(&mut self, count: usize, outbox: &mut Outbox) {
        if self.offered_control {
            self.control.sent = (self.control.sent + count).min(self.control.len);
        } else {
            self.sent_until = outbox.sent(self.sent_until + count as u64);
        }
    }
}
