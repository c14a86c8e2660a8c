//! Memory for frames that are sent: large pieces come from the kernel and go back to it.
//!
//! A bulk transfer holds tens of MiB for a while. Taken from the allocator, they would stay with the process for good,
//! because something small always lies behind them. Taken from the kernel each time, they would cost a fifth of the time
//! that the transfer takes. So a thread keeps what was mapped until [`give_back_spares`].

use std::cell::RefCell;

use memmap2::{MmapMut, MmapOptions};
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

/// Buffers at least this large are mapped: what a bulk transfer reads at once, and not much of it wasted.
const LARGE: usize = 96 * 1024;
/// All mapped buffers have this size, so that each can be used for any.
const MAPPED: usize = 128 * 1024;
/// Spares of a thread at most, in bytes: what all sessions together may hold.
const SPARES: usize = 128 * 1024 * 1024;

thread_local! {
    static KEPT: RefCell<Vec<MmapMut>> = const { RefCell::new(Vec::new()) };
}

/// Gives the kernel back what this thread keeps beyond `needed` bytes.
pub fn give_back_spares(needed: usize) {
    KEPT.with_borrow_mut(|kept| {
        kept.truncate(needed.div_ceil(MAPPED));
        if kept.is_empty() {
            *kept = Vec::new();
        }
    });
}

enum Memory {
    Heap(Box<[u8]>),
    /// Absent only while it is dropped.
    Mapped(Option<MmapMut>),
}

/// Bytes that are written once, from the front.
pub(super) struct Buffer {
    memory: Memory,
    len: usize,
}

impl Buffer {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let memory = match (LARGE..=MAPPED).contains(&capacity).then(mapped).flatten() {
            Some(memory) => Memory::Mapped(Some(memory)),
            None => Memory::Heap(vec![0; capacity].into_boxed_slice()),
        };
        Self { memory, len: 0 }
    }

    pub(super) fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Heap(memory) => memory.len(),
            Memory::Mapped(_) => MAPPED,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Appends what the caller made room for.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        let memory = match &mut self.memory {
            Memory::Heap(memory) => &mut memory[..],
            Memory::Mapped(memory) => memory.as_deref_mut().unwrap_or_default(),
        };
        memory[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }
}

fn mapped() -> Option<MmapMut> {
    let spare = KEPT.with_borrow_mut(Vec::pop);
    // Prefaulted: one call instead of a fault for each page.
    spare.or_else(|| MmapOptions::new().len(MAPPED).populate().map_anon().ok())
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Memory::Mapped(memory) = &mut self.memory else { return };
        // A thread that is ending keeps nothing.
        let _kept = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < SPARES / MAPPED {
                kept.extend(memory.take());
            }
        });
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let memory = match &self.memory {
            Memory::Heap(memory) => &memory[..],
            Memory::Mapped(memory) => memory.as_deref().unwrap_or_default(),
        };
        &memory[..self.len]
    }
}

impl Serialize for Buffer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self)
    }
}

impl<'de> Deserialize<'de> for Buffer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Bytes)
    }
}

struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Buffer;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Buffer, E> {
        let mut buffer = Buffer::with_capacity(bytes.len());
        buffer.append(bytes);
        Ok(buffer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Buffer, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = list.next_element::<u8>()? {
            bytes.push(byte);
        }
        self.visit_bytes(&bytes)
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut copy = Self::with_capacity(self.capacity());
        copy.append(self);
        copy
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Buffer {}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} bytes", self.len, self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_buffer_is_used_again_and_holds_nothing_of_before() {
        give_back_spares(0);
        let mut first = Buffer::with_capacity(LARGE);
        first.append(b"secret");
        drop(first);
        assert_eq!(KEPT.with_borrow(Vec::len), 1);
        let again = Buffer::with_capacity(MAPPED);
        assert_eq!((again.len(), &*again), (0, &b""[..]));
        assert_eq!(KEPT.with_borrow(Vec::len), 0);
        drop(again);
        give_back_spares(0);
        assert_eq!(KEPT.with_borrow(Vec::len), 0);
    }

    #[test]
    fn small_and_very_large_ones_are_the_allocators() {
        for capacity in [0, 1, LARGE - 1, MAPPED + 1] {
            let buffer = Buffer::with_capacity(capacity);
            assert_eq!(buffer.capacity(), capacity);
            assert!(matches!(buffer.memory, Memory::Heap(_)));
        }
    }
}
