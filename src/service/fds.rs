//! systemd's descriptor store: `FDSTORE=1`, `FDSTOREREMOVE=1` (sd_notify(3)) and what comes back (sd_listen_fds(3)).

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sendmsg_addr, socket_with,
};

/// The manager reads its queue whatever else it does; one that does not is in trouble.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// Descriptors that go in one message.
const PER_MESSAGE: usize = 128;

/// Where the service manager listens; `None` where there is none.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the manager's word to the process, not configuration")]
pub fn notify_socket() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET")
}

/// A name that was never used: removing one removes all of that name, a moment later. Names are seen by every user of the
/// machine, and say nothing. 12 characters: all of them go into one environment string.
#[must_use]
pub fn fresh_name() -> String {
    format!("bamf{:08x}", fastrand::u32(..))
}

/// Stores descriptors under a name. The manager keeps them when the process ends, unless that is the end of the unit.
///
/// # Errors
/// They could not be sent. There is no answer, so that success means that the manager has them in its queue; it works that
/// off before it looks at the end of the sender.
pub fn store(name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    // FDPOLL=0: kept even if somebody hangs up. systemd before 246 does not know it and passes it over.
    let message = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n");
    descriptors.chunks(PER_MESSAGE).try_for_each(|part| send(&message, part))
}

/// Lets the manager close what it keeps under a name.
pub fn forget(name: &str) {
    if let Err(error) = send(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), &[]) {
        tracing::warn!(%error, "systemd still keeps descriptors that nobody needs; they go when the service is stopped");
    }
}

fn send(message: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let Some(path) = notify_socket() else {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "there is no service manager"));
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => SocketAddrUnix::new(path)?,
    };
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(SEND_LIMIT))?;
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(PER_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg_addr(&socket, &address, &[IoSlice::new(message.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What the process was started with, and the name of each. They belong to the caller; there is nothing at a second call.
#[must_use]
pub fn inherited() -> Vec<(OwnedFd, String)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    match sd_notify::listen_fds_with_names() {
        Ok(descriptors) => descriptors.map(|(descriptor, name)| (own(descriptor), name)).collect(),
        Err(error) => {
            tracing::warn!(%error, "what systemd passed to the process cannot be used");
            Vec::new()
        }
    }
}

#[expect(unsafe_code, reason = "a number in the environment is how a service manager passes descriptors")]
fn own(descriptor: i32) -> OwnedFd {
    // SAFETY: sd_listen_fds(3): the manager opened this descriptor for this very process, which LISTEN_PID names, before it
    // began. Nothing else in the process knows its number, and `inherited` hands each out once.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(descriptor) }
}
