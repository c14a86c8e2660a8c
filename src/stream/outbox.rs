//! What was accepted for sending: frames, kept byte for byte until the peer has them.
//!
//! Every byte that was ever framed has a position, counted from the session's first; a connection's place is such a
//! position, and so is the end of what is acknowledged.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::buffer::Buffer;
use super::frame::{self, DATA_HEADER, FIRST_SEQ};
use super::{FRAME_PAYLOAD, Violation};

/// What a chunk costs besides its bytes: its entry in the queue, and the allocator's own.
const CHUNK_OVERHEAD: usize = size_of::<Chunk>() + 16;
/// The frames of one push, as they go over the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chunk {
    start: u64,
    first_seq: u64,
    bytes: Buffer,
}

impl Chunk {
    const fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Sequence number and end of each frame, in order.
    fn frames(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut at = 0;
        (self.first_seq..).map_while(move |seq| {
            let head = self.bytes.get(at..at + DATA_HEADER)?;
            at += DATA_HEADER + frame::payload_len(head) as usize;
            Some((seq, self.start + at as u64))
        })
    }

    /// The length of each frame; `None` if these are not the bytes of whole frames, one behind the other.
    fn checked_frames(&self) -> Option<Vec<u64>> {
        let (mut rest, mut seq, mut lens) = (&self.bytes[..], self.first_seq, Vec::new());
        while !rest.is_empty() {
            let len = frame::payload_len(rest.get(..DATA_HEADER)?);
            if len == 0 || len > frame::MAX_PAYLOAD || !rest.starts_with(&frame::data_header(seq, len)) {
                return None;
            }
            let whole = DATA_HEADER + len as usize;
            rest = rest.get(whole..)?;
            lens.push(whole as u64);
            seq = seq.checked_add(1)?;
        }
        (!lens.is_empty()).then_some(lens)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outbox {
    /// Invariant: consecutive in position and sequence number.
    chunks: VecDeque<Chunk>,
    /// Invariant: what the chunks cost.
    #[serde(skip)]
    held: usize,
    next_seq: u64,
    /// Where the next frame begins.
    end: u64,
    /// The last frame that the peer has, and where it ended.
    acknowledged: u64,
    acknowledged_end: u64,
    /// The furthest that any connection has sent.
    sent_end: u64,
}

impl Outbox {
    pub(super) const fn new() -> Self {
        Self {
            chunks: VecDeque::new(),
            held: 0,
            next_seq: FIRST_SEQ,
            end: 0,
            acknowledged: 0,
            acknowledged_end: 0,
            sent_end: 0,
        }
    }

    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// The furthest that any connection has sent.
    pub(super) const fn sent_end(&self) -> u64 {
        self.sent_end
    }

    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// After deserialising: counts what is held, and says whether the invariants hold.
    pub(super) fn check(&mut self) -> bool {
        self.held = self.chunks.iter().map(|chunk| chunk.bytes.capacity() + CHUNK_OVERHEAD).sum();
        let has_room = self.next_seq < u64::MAX - (1 << 32) && self.end < u64::MAX - (1 << 48);
        let in_order =
            self.acknowledged < self.next_seq && self.acknowledged_end <= self.sent_end && self.sent_end <= self.end;
        has_room && in_order && self.chunks_fit()
    }

    /// Whether the chunks are frames without a gap, and the acknowledged ones end where it is said that they do.
    fn chunks_fit(&self) -> bool {
        let (mut position, mut seq) = match self.chunks.front() {
            Some(first) => (first.start, first.first_seq),
            None => (self.end, self.next_seq),
        };
        let begins_early_enough = position <= self.acknowledged_end && seq <= self.acknowledged.saturating_add(1);
        if !begins_early_enough {
            return false;
        }
        let mut acknowledged_end = (seq == self.acknowledged.saturating_add(1)).then_some(position);
        for chunk in &self.chunks {
            if (chunk.start, chunk.first_seq) != (position, seq) {
                return false;
            }
            let Some(frames) = chunk.checked_frames() else { return false };
            for len in frames {
                position += len;
                if seq == self.acknowledged {
                    acknowledged_end = Some(position);
                }
                seq += 1;
            }
        }
        (position, seq) == (self.end, self.next_seq) && acknowledged_end == Some(self.acknowledged_end)
    }

    /// Whether a connection can be at this position.
    pub(super) fn reaches(&self, position: u64) -> bool {
        position == self.end || self.chunk_at(position).is_some()
    }

    /// The peer has everything.
    pub(super) const fn is_empty(&self) -> bool {
        self.acknowledged_end == self.end
    }

    pub(super) fn push(&mut self, payload: &[u8]) {
        if payload.is_empty() {
            return;
        }
        let frames = payload.len().div_ceil(FRAME_PAYLOAD);
        let mut bytes = Buffer::with_capacity(payload.len() + frames * DATA_HEADER);
        let first_seq = self.next_seq;
        for piece in payload.chunks(FRAME_PAYLOAD) {
            let len = u32::try_from(piece.len()).expect("a frame's payload is below 64 KiB");
            bytes.append(&frame::data_header(self.next_seq, len));
            bytes.append(piece);
            // 2^64 frames of 32 KiB take longer than any session.
            self.next_seq += 1;
        }
        let chunk = Chunk { start: self.end, first_seq, bytes };
        self.end = chunk.end();
        self.held += chunk.bytes.capacity() + CHUNK_OVERHEAD;
        self.chunks.push_back(chunk);
    }

    fn chunk_at(&self, position: u64) -> Option<&Chunk> {
        let index = self.chunks.partition_point(|chunk| chunk.end() <= position);
        self.chunks.get(index).filter(|chunk| chunk.start <= position)
    }

    /// The bytes from `position` on that lie together, not beyond `limit`.
    pub(super) fn bytes(&self, position: u64, limit: u64) -> &[u8] {
        let Some(chunk) = self.chunk_at(position) else { return &[] };
        let from = usize::try_from(position - chunk.start).unwrap_or(usize::MAX);
        let until = usize::try_from(limit.min(chunk.end()).saturating_sub(chunk.start)).unwrap_or(usize::MAX);
        chunk.bytes.get(from..until).unwrap_or_default()
    }

    /// The first position at or behind `position` at which no frame is cut.
    pub(super) fn boundary(&self, position: u64) -> u64 {
        let Some(chunk) = self.chunk_at(position) else { return position };
        if position == chunk.start {
            return position;
        }
        chunk.frames().map(|(_, end)| end).find(|end| *end >= position).unwrap_or(position)
    }

    /// Where frame `seq` ends, for frames that are held.
    fn end_of(&self, seq: u64) -> Option<u64> {
        let index = self.chunks.partition_point(|chunk| chunk.first_seq <= seq).checked_sub(1)?;
        self.chunks.get(index)?.frames().find(|(number, _)| *number == seq).map(|(_, end)| end)
    }

    /// The peer has everything up to frame `seq`. `sent_until` is the place of the connection that goes on.
    pub(super) fn acknowledge(&mut self, seq: u64, sent_until: u64) -> Result<(), Violation> {
        if seq <= self.acknowledged {
            return Ok(());
        }
        let end = self.end_of(seq).filter(|end| *end <= self.sent_end);
        let end = end.ok_or(Violation::Session("acknowledged what was never sent"))?;
        self.acknowledged = seq;
        self.acknowledged_end = end;
        self.release(sent_until);
        Ok(())
    }

    /// Gives up chunks that the peer has, unless the connection is still in the middle of one.
    fn release(&mut self, sent_until: u64) {
        let until = self.acknowledged_end.min(sent_until);
        while let Some(chunk) = self.chunks.front().filter(|chunk| chunk.end() <= until) {
            self.held -= chunk.bytes.capacity() + CHUNK_OVERHEAD;
            self.chunks.pop_front();
        }
        if self.chunks.is_empty() {
            // An idle session holds no buffer.
            self.chunks = VecDeque::new();
        }
    }

    /// The peer of a new connection expects frame `next`: everything before is acknowledged. Returns where to go on.
    pub(super) fn resume_at(&mut self, next: u64) -> Result<u64, Violation> {
        if next <= self.acknowledged {
            return Err(Violation::Session("asked for a frame that it had acknowledged"));
        }
        let last = next - 1;
        if last > self.acknowledged {
            let end = self.end_of(last).filter(|end| *end <= self.sent_end);
            let end = end.ok_or(Violation::Session("claims to have what was never sent"))?;
            self.acknowledged = last;
            self.acknowledged_end = end;
            self.release(end);
        }
        Ok(self.acknowledged_end)
    }

    /// A connection has sent up to `position`. Returns where it goes on: frames that the peer has by another connection
    /// are passed over.
    pub(super) fn sent(&mut self, position: u64) -> u64 {
        self.sent_end = self.sent_end.max(position);
        let next = if position < self.acknowledged_end && self.boundary(position) == position {
            self.acknowledged_end
        } else {
            position
        };
        if position <= self.acknowledged_end {
            self.release(next);
        }
        next
    }
}
