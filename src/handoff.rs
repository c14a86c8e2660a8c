//! The way from one process of the agent to the next: connections, and what is known about them.
//!
//! ```text
//!   old process                          systemd                        new process
//!   sessions, relay ─► records ─► memory file ┐
//!                 └─► sockets ─────────────────┴► carriers ─► store ─► LISTEN_FDS ─► records, sockets ─► sessions, relay
//! ```
//!
//! Three layers, each with a file of its own:
//!
//! - [`snapshot`] is the format: records with a kind, a length and a checksum, in a sealed memory file that has no name and
//!   lives nowhere but in memory. Records are written by whoever owns what they say; this module does not know sessions.
//! - [`carrier`] packs that file and all sockets into few descriptors that a service manager can keep.
//! - [`crate::service::fds`] hands those to systemd, and takes them back.
//!
//! What is true at any time: until [`Arrival::settle`] nothing has changed, and the next process could still take all of it;
//! after it, nobody can take it a second time. A connection that was continued must never be continued again from the same
//! state: its nonces would be used twice.

pub mod carrier;
mod memory;
pub mod snapshot;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::snapshot::{Kind, Reader, Writer};
use crate::service::fds;

/// Starts of a process that began to read a snapshot and did not come to its end. Beyond, it is taken for the cause.
const ATTEMPTS: u64 = 3;

/// Why nothing can be handed over, or was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The memory file cannot be made or written.
    #[error("the memory for the hand-over cannot be written")]
    Memory(#[source] io::Error),
    /// A record cannot be written.
    #[error("a record of the hand-over cannot be written")]
    Record(#[source] snapshot::Error),
    /// The sockets cannot be packed.
    #[error("the connections cannot be packed for the hand-over")]
    Pack(#[source] io::Error),
    /// systemd does not take it.
    #[error("systemd does not take the connections")]
    Store(#[source] io::Error),
}

/// The process that left: the first record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Its version.
    pub version: String,
    /// The instance that it was to the platform.
    pub instance_id: String,
    /// Relay connections that were open, those that could not be written down included.
    pub relays: u64,
}

/// What one process leaves to the next, while it is put together.
pub struct Departure {
    writer: Writer,
    sockets: Vec<OwnedFd>,
}

impl std::fmt::Debug for Departure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Departure").field("sockets", &self.sockets.len()).finish_non_exhaustive()
    }
}

impl Departure {
    /// An empty one. Made before anything is frozen, so that what fails here costs nothing.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { writer: Writer::new().map_err(Error::Memory)?, sockets: Vec::new() })
    }

    /// Takes a socket along; the number is how records speak of it.
    pub fn take(&mut self, socket: OwnedFd) -> u32 {
        self.sockets.push(socket);
        u32::try_from(self.sockets.len() - 1).expect("a process has fewer descriptors")
    }

    /// Writes a record.
    ///
    /// # Errors
    /// It cannot be written; the ones before it are as they were.
    pub fn put(&mut self, kind: Kind, record: &impl Serialize) -> Result<(), Error> {
        self.writer.put(kind, record).map_err(Error::Record)
    }

    /// Nothing more comes. `sessions` is how many there were; it is known to the next process even if nothing else is.
    ///
    /// # Errors
    /// The end cannot be written.
    pub fn seal(self, sessions: u32) -> Result<Sealed, Error> {
        let memory = self.writer.finish().map_err(Error::Record)?;
        Ok(Sealed { memory, sockets: self.sockets, sessions })
    }
}

/// How many descriptors a service manager has to keep for so many sockets.
#[must_use]
pub const fn descriptors(sockets: usize) -> usize {
    carrier::ends(sockets + 1)
}

/// A finished snapshot and its sockets.
#[derive(Debug)]
pub struct Sealed {
    memory: File,
    sockets: Vec<OwnedFd>,
    sessions: u32,
}

impl Sealed {
    /// How many sockets go along.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.sockets.len()
    }

    /// Gives it to systemd. From then on the process has one thing to do: to end.
    ///
    /// # Errors
    /// systemd does not take it, or not all: nothing of it is there any more, and the process can [`Self::take_back`].
    pub fn store(&self) -> Result<(), Error> {
        let mut cargo: Vec<BorrowedFd<'_>> = vec![self.memory.as_fd()];
        cargo.extend(self.sockets.iter().map(std::os::fd::AsFd::as_fd));
        let carriers = carrier::pack(&cargo, self.sessions).map_err(Error::Pack)?;
        let name = fds::fresh_name();
        let ends: Vec<BorrowedFd<'_>> = carriers.iter().flat_map(carrier::Carrier::ends).collect();
        fds::store(&name, &ends).map_err(|error| {
            // The part that may have arrived.
            fds::forget(&name);
            Error::Store(error)
        })
    }

    /// Goes on in this process instead.
    #[must_use]
    pub fn take_back(self) -> Arrival {
        let sockets = self.sockets.into_iter().map(Some).collect();
        Arrival { memory: Some(self.memory), sockets, sessions: self.sessions, carriers: Vec::new() }
    }
}

/// What was inherited from the service manager, whatever it is.
#[derive(Debug, Default)]
pub struct Inheritance {
    arrivals: Vec<Arrival>,
    names: Vec<String>,
}

impl Inheritance {
    /// Takes what the process was started with. Only the first call gets it.
    #[must_use]
    pub fn take() -> Self {
        let mut names = Vec::new();
        let mut ends = Vec::new();
        for (descriptor, name) in fds::inherited() {
            if !names.contains(&name) {
                names.push(name);
            }
            ends.push(descriptor);
        }
        let arrivals = carrier::unpack(ends).into_iter().map(Arrival::of).collect();
        Self { arrivals, names }
    }

    /// True if there is nothing to adopt.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.arrivals.is_empty()
    }

    /// What one process left; usually there is one or none.
    pub fn arrivals(&mut self) -> Vec<Arrival> {
        std::mem::take(&mut self.arrivals)
    }

    /// Nobody needs what systemd keeps any more. Call it when every arrival is settled: descriptors that systemd holds keep
    /// connections open that both ends have closed.
    pub fn forget(self) {
        for name in &self.names {
            fds::forget(name);
        }
    }
}

/// What another process has left.
#[derive(Debug)]
pub struct Arrival {
    /// Absent where its carrier did not come.
    memory: Option<File>,
    sockets: Vec<Option<OwnedFd>>,
    sessions: u32,
    carriers: Vec<OwnedFd>,
}

impl Arrival {
    fn of(load: carrier::Load) -> Self {
        let mut cargo = load.cargo.into_iter();
        let memory = cargo.next().flatten().map(File::from);
        Self { memory, sockets: cargo.collect(), sessions: load.note, carriers: load.ends }
    }

    /// A snapshot whose sockets did not come along.
    #[must_use]
    pub const fn without_sockets(memory: File) -> Self {
        Self { memory: Some(memory), sockets: Vec::new(), sessions: 0, carriers: Vec::new() }
    }

    /// How many sessions there were.
    #[must_use]
    pub const fn sessions(&self) -> u32 {
        self.sessions
    }

    /// Opens the snapshot for reading.
    ///
    /// # Errors
    /// It is none, or of a later version, or processes died over it. What it held is lost.
    pub fn read(&self) -> Result<Reader<'_>, snapshot::Error> {
        let memory = self.memory.as_ref().ok_or(snapshot::Error::NotASnapshot)?;
        // The place in the file is not used for reading. systemd's descriptor shares it, so it outlives a crash.
        let attempts = snapshot::begin_attempt(memory)?;
        if attempts > ATTEMPTS {
            return Err(snapshot::Error::Abandoned { attempts: ATTEMPTS });
        }
        Reader::new(memory)
    }

    /// The socket that a record speaks of; each is given away once.
    pub fn socket(&mut self, number: u32) -> Option<OwnedFd> {
        self.sockets.get_mut(usize::try_from(number).ok()?)?.take()
    }

    /// The point of no return: nobody else can take these sockets any more. Those that no record spoke of are closed.
    pub fn settle(self) {
        carrier::empty(&self.carriers);
    }
}

/// Reads a record; an error costs this one only.
///
/// # Errors
/// It is not what its kind says.
pub fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, snapshot::Error> {
    snapshot::parse(payload)
}
