//! Many descriptors in few: a pair of sockets with a message in flight between them that carries the others.
//!
//! A service manager's store is made for a handful of descriptors. systemd compares each with all that it has (four thousand
//! take it seconds), passes their names in one environment string whose length is limited, watches each, and before version
//! 246 drops those whose peer hangs up. None of that happens to what lies in a queue between two sockets: to systemd it is
//! two descriptors, and the kernel keeps what they carry. Both ends are stored, so that neither sees the other hang up.
//!
//! The receiver looks at the message without taking it (`MSG_PEEK` gives it descriptors of its own), so that a process that
//! dies before it is done leaves everything as it was. [`empty`] takes it, for good.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Descriptors in one message: the kernel takes 253 (unix(7)).
const PER_MESSAGE: usize = 250;
/// What a message begins with.
const MAGIC: [u8; 8] = *b"BAMFFDS1";
/// Magic, id of the load, number of this message, number of all, number of descriptors, and the sender's note.
const MESSAGE: usize = 8 + 8 + 4 + 4 + 4 + 4;
/// No honest load has more messages.
const MAX_MESSAGES: u32 = 256;

/// Two sockets with descriptors in flight between them.
#[derive(Debug)]
pub struct Carrier {
    full: OwnedFd,
    other: OwnedFd,
}

impl Carrier {
    /// Both ends; whoever keeps the cargo keeps both.
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.full.as_fd(), self.other.as_fd()]
    }
}

/// How many ends there are for so much cargo.
pub(super) const fn ends(cargo: usize) -> usize {
    2 * cargo.div_ceil(PER_MESSAGE)
}

/// Packs descriptors, in order. The note is for whoever cannot make sense of them.
///
/// # Errors
/// The kernel does not take them: `ETOOMANYREFS` where more are in flight than the user may have open.
pub fn pack(cargo: &[BorrowedFd<'_>], note: u32) -> io::Result<Vec<Carrier>> {
    let load = fastrand::u64(..).to_le_bytes();
    let messages = u32::try_from(cargo.chunks(PER_MESSAGE).len()).unwrap_or(u32::MAX);
    let mut carriers = Vec::new();
    for (index, part) in (0_u32..).zip(cargo.chunks(PER_MESSAGE)) {
        let (full, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut message = Vec::with_capacity(MESSAGE);
        message.extend_from_slice(&MAGIC);
        message.extend_from_slice(&load);
        for number in [index, messages, u32::try_from(part.len()).unwrap_or(u32::MAX), note] {
            message.extend_from_slice(&number.to_le_bytes());
        }
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(PER_MESSAGE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(part)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // It waits for nobody: an empty queue has room for a message.
        sendmsg(&other, &[IoSlice::new(&message)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        carriers.push(Carrier { full, other });
    }
    Ok(carriers)
}

/// What was unpacked.
#[derive(Debug)]
pub struct Load {
    /// In order; `None` where a part is missing.
    pub cargo: Vec<Option<OwnedFd>>,
    /// What the sender noted.
    pub note: u32,
    /// All ends that were inherited with it; see [`empty`].
    pub ends: Vec<OwnedFd>,
}

/// What one message says.
struct Part {
    end: OwnedFd,
    load: u64,
    index: u32,
    note: u32,
    cargo: Vec<OwnedFd>,
}

/// Looks into the ends that were inherited, in any order. Others than those of carriers are closed.
#[must_use]
pub fn unpack(ends: Vec<OwnedFd>) -> Vec<Load> {
    // The other end of a carrier has nothing in it, and no use once the full one is here.
    let mut parts: Vec<Part> = ends.into_iter().filter_map(look).collect();
    parts.sort_by_key(|part| (part.load, part.index));
    let loads = parts.into_iter().fold(Vec::<Vec<Part>>::new(), |mut loads, part| {
        match loads.last_mut() {
            Some(load) if load[0].load == part.load => load.push(part),
            _ => loads.push(vec![part]),
        }
        loads
    });
    loads.into_iter().map(put_together).collect()
}

/// The parts are of one load and in order.
fn put_together(parts: Vec<Part>) -> Load {
    let mut load = Load { cargo: Vec::new(), note: 0, ends: Vec::new() };
    let mut expected = 0;
    for part in parts {
        for _missing in expected..part.index {
            load.cargo.extend((0..PER_MESSAGE).map(|_| None));
        }
        // The last message is the only one that may be shorter, and nothing comes after it.
        expected = part.index.saturating_add(1);
        load.note = part.note;
        load.cargo.extend(part.cargo.into_iter().map(Some));
        load.ends.push(part.end);
    }
    load
}

/// Looks at the message without taking it.
fn look(end: OwnedFd) -> Option<Part> {
    let mut message = [0; MESSAGE];
    let (len, cargo) = receive(end.as_fd(), &mut message, RecvFlags::PEEK).ok()?;
    let field = |at: usize| message.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let load = message.get(8..16)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))?;
    let (index, messages, count, note) = (field(16)?, field(20)?, field(24)?, field(28)?);
    let whole = usize::try_from(count).is_ok_and(|count| count == cargo.len());
    let ours = len == MESSAGE && message.starts_with(&MAGIC) && index < messages && messages <= MAX_MESSAGES && whole;
    ours.then_some(Part { end, load, index, note, cargo })
}

fn receive(end: BorrowedFd<'_>, message: &mut [u8], how: RecvFlags) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(PER_MESSAGE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = how | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(end, &mut [IoSliceMut::new(message)], &mut control, flags)?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    Ok((received.bytes, descriptors))
}

/// Takes the messages out for good. The descriptors that are thrown away here are duplicates.
pub fn empty(ends: &[OwnedFd]) {
    for end in ends {
        if let Err(error) = receive(end.as_fd(), &mut [0; MESSAGE], RecvFlags::empty()) {
            tracing::debug!(%error, "a carrier was empty already");
        }
    }
}

#[cfg(test)]
mod tests;
