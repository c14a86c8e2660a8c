//! Large buffers that belong to the thread and are lent for the time of one system call.
//!
//! A session holds no buffer while it waits; a thousand idle sessions share these few.

use std::cell::{Cell, RefCell};
use std::thread::LocalKey;

/// Bytes that are read from a socket at once: the cost of a session is system calls, not bytes.
pub(super) const READ: usize = 128 * 1024;

/// Buffers for ciphertext that are kept for the next connection that sends.
const KEPT: usize = 8;

thread_local! {
    /// Ciphertext that comes in.
    static INCOMING: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// Ciphertext that goes out. A connection keeps one for as long as its socket does not take everything.
    static OUTGOING: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    /// Plaintext on its way to a target.
    static DELIVERY: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// Plaintext read from a target.
    static TARGET: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Which buffer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Incoming,
    Delivery,
    Target,
}

impl Kind {
    const fn key(self) -> &'static LocalKey<Cell<Vec<u8>>> {
        match self {
            Self::Incoming => &INCOMING,
            Self::Delivery => &DELIVERY,
            Self::Target => &TARGET,
        }
    }
}

/// A buffer of at least this length, with whatever it held last.
pub(super) fn take_outgoing(len: usize) -> Vec<u8> {
    let mut buffer = OUTGOING.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    buffer
}

/// Keeps a buffer for the next who asks, unless there are enough.
pub(super) fn give_back_outgoing(buffer: Vec<u8>) {
    OUTGOING.with_borrow_mut(|kept| {
        if kept.len() < KEPT && buffer.capacity() >= READ {
            kept.push(buffer);
        }
    });
}

/// Lends a buffer with whatever it held last. Who asks for one that is lent already gets another.
pub(super) fn with<T>(kind: Kind, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut buffer = kind.key().take();
    let outcome = work(&mut buffer);
    kind.key().set(buffer);
    outcome
}
