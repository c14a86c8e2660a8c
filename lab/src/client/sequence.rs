//! Both directions of a stream as numbers and buffers (protocol 8.2, 8.3, 8.5). Knows no connection and no clock.
//!
//! What was sent and not acknowledged lies in one ring, as it goes on the wire. A connection takes whole frames from it, so
//! that a retransmission is nothing but beginning again at the ring's front.

use std::collections::VecDeque;
use std::io::Read as _;

use super::frame;

/// What a peer that keeps to the protocol does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It sent bytes that are no frame.
    #[error("{0}")]
    Malformed(#[from] frame::Malformed),
    /// It left frames out.
    #[error("frame {found} came where {expected} was expected")]
    Gap {
        /// What should have come.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// It acknowledged a frame that was never sent.
    #[error("frame {0} was acknowledged and never sent")]
    UnknownAck(u64),
    /// It wants a frame that it had acknowledged before.
    #[error("the handshake asks for frame {asked}; the oldest one kept is {oldest}")]
    Forgotten {
        /// What it wants.
        asked: u64,
        /// What is there.
        oldest: u64,
    },
    /// It claims frames that were never sent.
    #[error("the handshake asks for frame {asked}; the next one to be sent is {next}")]
    Ahead {
        /// What it wants.
        asked: u64,
        /// What comes next.
        next: u64,
    },
    /// It sent a handshake in the middle of a connection, or something else instead of one.
    #[error("a handshake came where none belongs, or something else instead of one")]
    Handshake,
}

/// What goes to the peer.
#[derive(Debug)]
pub(super) struct Sending {
    ring: VecDeque<u8>,
    /// Wire lengths of the frames in the ring.
    frames: VecDeque<usize>,
    /// Number of the first frame in the ring.
    first: u64,
    /// How many frames of the ring the connection has taken, and their bytes.
    taken: (usize, usize),
}

impl Sending {
    /// A direction whose first frame gets this number.
    pub(super) const fn starting_at(first: u64) -> Self {
        Self { ring: VecDeque::new(), frames: VecDeque::new(), first, taken: (0, 0) }
    }

    /// The number of the next new frame.
    pub(super) fn next(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// Wire bytes that are not acknowledged, sent or not.
    pub(super) fn unacknowledged(&self) -> usize {
        self.ring.len()
    }

    /// Wire bytes that the connection has not taken.
    pub(super) fn waiting(&self) -> usize {
        self.ring.len() - self.taken.1
    }

    pub(super) fn push(&mut self, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("payloads are cut to the size of a frame before");
        self.ring.extend(&frame::data_header(self.next(), length));
        self.ring.extend(payload);
        self.frames.push_back(frame::DATA_HEADER + payload.len());
    }

    /// Appends frames to `into`, each `copies` times, until it holds `enough` bytes. Returns how many.
    pub(super) fn take(&mut self, into: &mut Vec<u8>, enough: usize, copies: usize) -> u64 {
        let mut count = 0;
        while into.len() < enough
            && let Some(&length) = self.frames.get(self.taken.0)
        {
            for _ in 0..copies {
                append(into, &self.ring, self.taken.1, length);
            }
            self.taken = (self.taken.0 + 1, self.taken.1 + length);
            count += 1;
        }
        count
    }

    pub(super) fn acknowledge(&mut self, seq: u64) -> Result<(), Violation> {
        if seq >= self.next() {
            return Err(Violation::UnknownAck(seq));
        }
        while self.first <= seq
            && let Some(length) = self.frames.pop_front()
        {
            self.ring.drain(..length);
            self.first += 1;
            // A peer that keeps reading the old connection during a handshake may know more than it said there.
            self.taken = (self.taken.0.saturating_sub(1), self.taken.1.saturating_sub(length));
        }
        Ok(())
    }

    /// Begins a new connection on which the peer wants `asked` next. Returns how many frames that repeats.
    pub(super) fn resume(&mut self, asked: u64) -> Result<usize, Violation> {
        let next = self.next();
        if asked < self.first {
            return Err(Violation::Forgotten { asked, oldest: self.first });
        }
        if asked > next {
            return Err(Violation::Ahead { asked, next });
        }
        if asked > self.first {
            self.acknowledge(asked - 1)?;
        }
        let (repeated, _) = std::mem::take(&mut self.taken);
        Ok(repeated)
    }

    /// For raw connections: bytes as they are, kept nowhere.
    pub(super) fn push_raw(&mut self, bytes: &[u8]) {
        self.ring.extend(bytes);
    }

    pub(super) fn take_raw(&mut self, into: &mut Vec<u8>, enough: usize) {
        let length = self.ring.len().min(enough);
        append(into, &self.ring, 0, length);
        self.ring.drain(..length);
    }
}

fn append(into: &mut Vec<u8>, ring: &VecDeque<u8>, start: usize, length: usize) {
    let (front, back) = ring.as_slices();
    let end = start + length;
    if start < front.len() {
        into.extend_from_slice(&front[start..end.min(front.len())]);
    }
    if end > front.len() {
        into.extend_from_slice(&back[start.saturating_sub(front.len())..end - front.len()]);
    }
}

/// What comes from the peer.
#[derive(Debug)]
pub(super) struct Receiving {
    ring: VecDeque<u8>,
    next: u64,
    acknowledged: u64,
}

impl Receiving {
    pub(super) const fn starting_at(next: u64) -> Self {
        Self { ring: VecDeque::new(), next, acknowledged: next - 1 }
    }

    pub(super) const fn next_expected(&self) -> u64 {
        self.next
    }

    /// Bytes that nobody has read yet.
    pub(super) fn unread(&self) -> usize {
        self.ring.len()
    }

    /// Keeps the payload; false if the frame had come before.
    pub(super) fn accept(&mut self, seq: u64, payload: &[u8]) -> Result<bool, Violation> {
        if seq < self.next {
            return Ok(false);
        }
        if seq > self.next {
            return Err(Violation::Gap { expected: self.next, found: seq });
        }
        self.ring.extend(payload);
        self.next = seq.checked_add(1).ok_or(Violation::Gap { expected: 0, found: seq })?;
        Ok(true)
    }

    pub(super) fn accept_raw(&mut self, bytes: &[u8]) {
        self.ring.extend(bytes);
    }

    pub(super) fn read(&mut self, into: &mut [u8]) -> usize {
        let mut total = 0;
        // One read of a ring ends where it wraps.
        while total < into.len() {
            match self.ring.read(&mut into[total..]) {
                Ok(count @ 1..) => total += count,
                Ok(0) | Err(_) => break,
            }
        }
        total
    }

    /// What should be acknowledged and was not.
    pub(super) fn owed(&self) -> Option<u64> {
        (self.next - 1 > self.acknowledged).then_some(self.next - 1)
    }

    pub(super) fn acknowledge_sent(&mut self, seq: u64) {
        self.acknowledged = seq;
    }
}
