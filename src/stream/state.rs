//! A stream that comes from another process: is it one?

use super::{Connection, Stream};

/// No stream can be in such a state; whoever wrote it was of another mind, or the bytes were changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved {0} is in an impossible state")]
pub struct Impossible(&'static str);

impl Stream {
    /// Takes a deserialised stream for good if it can be one.
    ///
    /// # Errors
    /// It cannot, and would lose or repeat bytes, or come to a halt.
    pub fn checked(mut self) -> Result<Self, Impossible> {
        if !self.outbox.check() {
            return Err(Impossible("outbox"));
        }
        if self.inbox.check() { Ok(self) } else { Err(Impossible("inbox")) }
    }

    /// The same for a connection of this stream.
    ///
    /// # Errors
    /// It can be no connection of this stream.
    pub fn check(&self, connection: &Connection) -> Result<(), Impossible> {
        if !connection.check(self.inbox.next_expected()) {
            return Err(Impossible("connection"));
        }
        let reachable = connection.awaits_handshake() || self.outbox.reaches(connection.sent_until());
        // The payload that is still to come is what the stream waits for, or known in full.
        let fresh = connection.fresh_left();
        let fits = fresh == 0 || self.inbox.partial_left() == Some(fresh);
        if reachable && fits { Ok(()) } else { Err(Impossible("connection")) }
    }
}
