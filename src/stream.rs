//! The reliable stream between client and agent, carried inside a session's bridge connections (protocol chapter 8).
//!
//! ```text
//!   target ─ push ─► outbox ─► transmit ─┐                ┌─ receive ─► inbox ─► deliver ─► target
//!                      ▲ frames stay     ├── Connection ──┤                │
//!                      └─ until ACK      └────────────────┘                └─► ACK, by volume or time
//! ```
//!
//! Everything here is a function of its input: no clock, no socket, no task. A [`Stream`] lives as long as the session; a
//! [`Connection`] as long as one bridge connection, and holds what is lost with it: the place in the middle of a frame,
//! each way. The order of calls for one connection:
//!
//! 1. [`Stream::first`] for a session's first connection, [`Stream::resume`] for every later one.
//! 2. [`Stream::receive`] with whatever has come, [`Stream::transmit`] for whatever should go, in any order and as often
//!    as there is something; after a resumption `receive` says when the peer's handshake has come.
//! 3. Drop the [`Connection`] when its transport ends. The [`Stream`] is as good as before.
//!
//! What the platform's own agent gets wrong (protocol 8.7) is dealt with by whoever drives this: [`Stream::held`] is for
//! back-pressure (W1), [`Stream::ack_wanted`] for early ACKs (W8), [`Stream::all_acknowledged`] for a close that flushes
//! (W10). The rest is in here: frames are short (W2), a partly delivered frame is continued where it ended (W2), gaps and
//! impossible values end the session (W3, W4).

mod buffer;
mod connection;
pub mod frame;
mod inbox;
mod outbox;
mod state;

pub use self::buffer::give_back_spares;
use self::connection::Progress;
pub use self::connection::{Connection, Received};
use self::inbox::Inbox;
use self::outbox::Outbox;
pub use self::state::Impossible;
use serde::{Deserialize, Serialize};

/// Payload of the frames that are sent: header and payload fill two TLS records to the byte, and stay below the 32768
/// that the platform's client can take in one read (protocol 8.2, W2).
pub const FRAME_PAYLOAD: usize = 2 * 16_384 - frame::DATA_HEADER;

/// Received bytes after which an ACK is wanted without waiting for the timer (protocol W8).
const ACK_VOLUME: u64 = 64 * 1024;

/// What a peer did that the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The bytes make no sense. The connection is of no use any more; the session may go on with another.
    #[error("the client sent {0}")]
    Connection(&'static str),
    /// Bytes are gone that nobody can bring back: the session has to end.
    #[error("the client {0}; the session cannot go on without losing data")]
    Session(&'static str),
}

/// How urgent the next ACK is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckWanted {
    /// Nothing was received since the last one.
    No,
    /// Within the 50 ms that the peer is used to.
    Soon,
    /// A good deal was received.
    Now,
}

/// One end of a session's reliable stream.
///
/// Serialised, it is what another process needs to go on; whoever deserialises one calls [`Stream::checked`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    outbox: Outbox,
    inbox: Inbox,
    /// The application has nothing more to send; the close frame follows the last byte.
    closing: bool,
    /// The peer sent its close frame.
    closed_by_peer: bool,
}

impl Default for Stream {
    fn default() -> Self {
        Self::new()
    }
}

impl Stream {
    /// A stream on which nothing was sent or received.
    #[must_use]
    pub const fn new() -> Self {
        Self { outbox: Outbox::new(), inbox: Inbox::new(), closing: false, closed_by_peer: false }
    }

    /// The first connection of a session: it has no handshake (protocol 8.5).
    #[must_use]
    pub const fn first(&self) -> Connection {
        Connection::established(0)
    }

    /// A later connection: both ends say at once what they expect next (protocol 8.5).
    #[must_use]
    pub fn resume(&self) -> Connection {
        Connection::resuming(self.inbox.next_expected())
    }

    /// Accepts bytes from the application, to be sent in frames and kept until they are acknowledged.
    pub fn push(&mut self, payload: &[u8]) {
        debug_assert!(!self.closing, "nothing is pushed after close");
        self.outbox.push(payload);
    }

    /// The application has nothing more to say. The close frame is sent once [`Self::all_acknowledged`] or
    /// [`Self::close_now`].
    pub const fn close(&mut self) {
        self.closing = true;
    }

    /// Lets the close frame go even though not everything is acknowledged.
    pub const fn close_now(&mut self, connection: &mut Connection) {
        self.closing = true;
        connection.allow_close();
    }

    /// The session ends and this connection is good for one thing: the close frame, handshake or not.
    pub const fn only_close(&mut self, connection: &mut Connection) {
        self.closing = true;
        connection.resume_at(self.outbox.end());
        connection.allow_close();
    }

    /// Memory held for the peer, in bytes: frames that it has not acknowledged.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.outbox.held()
    }

    /// The peer has everything.
    #[must_use]
    pub fn all_acknowledged(&self) -> bool {
        self.outbox.is_empty()
    }

    /// The application has nothing more to say.
    #[must_use]
    pub const fn is_closing(&self) -> bool {
        self.closing
    }

    /// The peer ended the session.
    #[must_use]
    pub const fn closed_by_peer(&self) -> bool {
        self.closed_by_peer
    }

    /// Whether a connection has taken everything that there is to send. ACKs do not count.
    #[must_use]
    pub const fn is_sent(&self, connection: &Connection) -> bool {
        connection.sent_until() == self.outbox.end() && !connection.has_control()
    }

    /// How many bytes go over the wire again because this connection had to begin before where the last one was.
    #[must_use]
    pub const fn repeats(&self, connection: &Connection) -> u64 {
        self.outbox.sent_end().saturating_sub(connection.sent_until())
    }

    /// How urgent an ACK is.
    #[must_use]
    pub const fn ack_wanted(&self) -> AckWanted {
        match self.inbox.unacknowledged() {
            None => AckWanted::No,
            Some(bytes) if bytes >= ACK_VOLUME => AckWanted::Now,
            Some(_) => AckWanted::Soon,
        }
    }

    /// Payload bytes that came since the last ACK.
    #[must_use]
    pub const fn unacknowledged(&self) -> u64 {
        match self.inbox.unacknowledged() {
            None => 0,
            Some(bytes) => bytes,
        }
    }

    /// Puts an ACK in line if anything was received since the last one. It must go on the connection that the peer will
    /// go on with; while another one resumes, none is sent (protocol 7.6).
    pub const fn acknowledge(&mut self, connection: &mut Connection) {
        if let Some(value) = self.inbox.acknowledge() {
            connection.queue_ack(value);
        }
    }

    /// Takes what came on a connection, in pieces of any size. Payload goes to `deliver`, in order and once.
    ///
    /// # Errors
    /// [`Violation`]; nothing further of this connection may be fed.
    pub fn receive(
        &mut self,
        connection: &mut Connection,
        mut input: &[u8],
        deliver: &mut dyn FnMut(&[u8]),
    ) -> Result<Received, Violation> {
        let mut received = Received::default();
        while !input.is_empty() && !self.closed_by_peer {
            match connection.parse(&mut input)? {
                Progress::More => break,
                Progress::Data { seq, len } => connection.skip(self.inbox.begin(seq, len)?),
                Progress::Payload(fresh) => {
                    self.inbox.take(u32::try_from(fresh.len()).expect("a payload is at most 64 KiB"));
                    deliver(fresh);
                }
                Progress::Ack(value) => {
                    self.outbox.acknowledge(value, connection.sent_until())?;
                    received.acknowledged = true;
                }
                Progress::Handshake(value) => {
                    let position = self.outbox.resume_at(value)?;
                    connection.resume_at(position);
                    received.resumed = true;
                }
                Progress::Close => {
                    self.closed_by_peer = true;
                    received.closed = true;
                }
            }
        }
        Ok(received)
    }

    /// The next bytes to send on a connection, as many as lie together; empty if there is nothing. Say with
    /// [`Self::sent`] how many of them the transport took.
    #[must_use]
    pub fn transmit<'a>(&'a self, connection: &'a mut Connection) -> &'a [u8] {
        if self.closing && self.outbox.is_empty() {
            connection.allow_close();
        }
        if let Some(limit) = connection.data_limit(&self.outbox) {
            let data = self.outbox.bytes(connection.sent_until(), limit);
            if !data.is_empty() {
                connection.offers_data();
                return data;
            }
        }
        connection.control(self.closing && connection.sent_until() == self.outbox.end())
    }

    /// The transport took this many of the bytes that [`Self::transmit`] offered.
    pub fn sent(&mut self, connection: &mut Connection, count: usize) {
        connection.sent(count, &mut self.outbox);
    }
}

#[cfg(test)]
mod tests;
