//! Large buffers that belong to the thread and are lent for the time of one system call.
//!
//! A session holds no buffer while it waits; a thousand idle sessions share these few.

use std::cell::Cell;
use std::thread::LocalKey;

/// Bytes that are read from a socket at once: the cost of a session is system calls, not bytes.
pub(super) const READ: usize = 128 * 1024;

thread_local! {
    /// Ciphertext that comes in.
    static INCOMING: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// Ciphertext that goes out.
    static OUTGOING: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// Plaintext on its way to a target.
    static DELIVERY: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// Plaintext read from a target.
    static TARGET: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Which buffer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Incoming,
    Outgoing,
    Delivery,
    Target,
}

impl Kind {
    const fn key(self) -> &'static LocalKey<Cell<Vec<u8>>> {
        match self {
            Self::Incoming => &INCOMING,
            Self::Outgoing => &OUTGOING,
            Self::Delivery => &DELIVERY,
            Self::Target => &TARGET,
        }
    }
}

/// Lends a buffer with whatever it held last. Who asks for one that is lent already gets another.
pub(super) fn with<T>(kind: Kind, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut buffer = kind.key().take();
    let outcome = work(&mut buffer);
    kind.key().set(buffer);
    outcome
}
