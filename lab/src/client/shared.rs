//! What the user's side of a tunnel and its connection share: buffers, numbers, and who waits for what.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::frame::{self, Frame};
use super::options::{AckPolicy, Options, Window};
use super::sequence::{Receiving, Sending, Violation};

/// Bytes handed to a connection in one go.
pub(super) const BATCH: usize = 256 << 10;

/// How things stand with a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It carries, or is reconnecting.
    Open,
    /// This end has closed it.
    Closed,
    /// The peer has closed it: a close frame, or the end of a raw connection.
    ClosedByPeer,
    /// It is over for this reason.
    Failed(String),
}

/// What has happened in a tunnel so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Payload bytes accepted from the user.
    pub bytes_written: u64,
    /// Payload bytes received in order.
    pub bytes_received: u64,
    /// Data frames written to a connection, repetitions included.
    pub frames_sent: u64,
    /// Data frames written again after a handshake.
    pub frames_repeated: u64,
    /// Data frames received in order.
    pub frames_received: u64,
    /// Data frames received that had come before.
    pub duplicates: u64,
    /// The longest payload received.
    pub longest_payload: usize,
    /// Acknowledgements sent.
    pub acks_sent: u64,
    /// Acknowledgements received.
    pub acks_received: u64,
    /// Connections that ended without a close frame.
    pub breaks: u64,
    /// Attempts to reconnect.
    pub attempts: u64,
    /// Reconnects that succeeded.
    pub reconnects: u64,
}

/// What the user wants of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Carry,
    /// Drop the connection without a close frame and get another.
    Hop,
    /// Send what was written, then the close frame.
    Close,
    /// Be gone, as if killed.
    Vanish,
}

/// What the writer of a connection does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Write,
    Wait,
    Close,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
    pub(super) counts: Counts,
    pub(super) status: Status,
    pub(super) wish: Wish,
}

#[derive(Debug)]
pub(super) struct Shared {
    core: Mutex<Core>,
    pub(super) options: Options,
    pub(super) framed: bool,
    /// There is something to read, or nothing will come.
    pub(super) readable: Notify,
    /// There may be room to write, or there will be none.
    pub(super) writable: Notify,
    /// The connection has something to write or to obey.
    pub(super) to_write: Notify,
    /// The connection may have to be dropped.
    pub(super) unwanted: Notify,
    /// The user has read something.
    pub(super) room: Notify,
    pub(super) over: watch::Sender<bool>,
    /// How often a connection has been in use.
    pub(super) connections: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new(options: Options, framed: bool) -> Self {
        let core = Core {
            sending: Sending::starting_at(1),
            receiving: Receiving::starting_at(1),
            counts: Counts::default(),
            status: Status::Open,
            wish: Wish::Carry,
        };
        Self {
            core: Mutex::new(core),
            options,
            framed,
            readable: Notify::new(),
            writable: Notify::new(),
            to_write: Notify::new(),
            unwanted: Notify::new(),
            room: Notify::new(),
            over: watch::Sender::new(false),
            connections: watch::Sender::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the tunnel; the first reason stays.
    pub(super) fn end(&self, status: Status) {
        let mut core = self.lock();
        if core.status == Status::Open {
            core.status = status;
        }
        drop(core);
        self.readable.notify_one();
        self.writable.notify_one();
        self.over.send_replace(true);
    }

    pub(super) fn wish(&self, wish: Wish) {
        let mut core = self.lock();
        // Whoever has vanished does nothing any more.
        if core.wish != Wish::Vanish {
            core.wish = wish;
        }
        drop(core);
        self.to_write.notify_one();
        self.unwanted.notify_one();
    }

    /// Accepts the start of `bytes`; `None` if there is no room yet.
    pub(super) fn try_write(&self, bytes: &[u8]) -> Option<io::Result<usize>> {
        let mut core = self.lock();
        if core.status != Status::Open || core.wish == Wish::Close || core.wish == Wish::Vanish {
            self.writable.notify_one();
            return Some(Err(io::Error::new(io::ErrorKind::BrokenPipe, format!("the tunnel is {:?}", core.status))));
        }
        let length = if self.framed { bytes.len().min(self.options.max_payload) } else { bytes.len().min(BATCH) };
        let wire = length + frame::DATA_HEADER;
        // The platform's client writes each frame to the connection before it takes the next.
        let ahead = if matches!(self.options.window, Window::Deadly(_)) { 0 } else { BATCH };
        if core.sending.waiting() > ahead {
            return None;
        }
        match self.options.window {
            Window::Deadly(limit) if self.framed && core.sending.unacknowledged() + wire > limit => {
                drop(core);
                let why = format!("{limit} bytes are not acknowledged");
                self.end(Status::Failed(why.clone()));
                self.wish(Wish::Close);
                return Some(Err(io::Error::other(why)));
            }
            Window::Blocking(limit) if self.framed && core.sending.unacknowledged() + wire > limit => return None,
            Window::Deadly(_) | Window::Blocking(_) | Window::Unlimited => {}
        }
        if self.framed {
            core.sending.push(&bytes[..length]);
        } else {
            core.sending.push_raw(&bytes[..length]);
        }
        core.counts.bytes_written += length as u64;
        drop(core);
        self.to_write.notify_one();
        Some(Ok(length))
    }

    /// Reads what is there; `None` if nothing is there yet.
    pub(super) fn try_read(&self, into: &mut [u8]) -> Option<io::Result<usize>> {
        let mut core = self.lock();
        let count = core.receiving.read(into);
        let status = core.status.clone();
        drop(core);
        if count > 0 {
            self.room.notify_one();
            return Some(Ok(count));
        }
        if into.is_empty() {
            return Some(Ok(0));
        }
        if status != Status::Open {
            // Whoever else waits should learn it too.
            self.readable.notify_one();
        }
        match status {
            Status::Open => None,
            Status::Closed | Status::ClosedByPeer => Some(Ok(0)),
            Status::Failed(why) => Some(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why))),
        }
    }

    /// Puts into `into` what is to be written now. `ack_is_due` says whether enough time has passed; the answer says
    /// whether there is one.
    pub(super) fn collect(&self, into: &mut Vec<u8>, ack_is_due: bool) -> (Next, bool) {
        into.clear();
        let mut core = self.lock();
        let mut acknowledged = false;
        if self.framed {
            if ack_is_due && let Some(seq) = core.receiving.owed() {
                into.extend_from_slice(&frame::ack(seq));
                core.receiving.acknowledge_sent(seq);
                core.counts.acks_sent += 1;
                acknowledged = true;
            }
            core.counts.frames_sent += core.sending.take(into, BATCH, self.options.copies);
        } else {
            core.sending.take_raw(into, BATCH);
        }
        let next = match (into.is_empty(), core.wish) {
            (false, _) => Next::Write,
            (true, Wish::Close) => Next::Close,
            (true, Wish::Carry | Wish::Hop | Wish::Vanish) => Next::Wait,
        };
        (next, acknowledged)
    }

    /// Takes in whole frames from the start of `bytes`. Returns the bytes used up and whether the peer has closed.
    pub(super) fn take_in(&self, bytes: &[u8]) -> Result<(usize, bool), Violation> {
        let mut core = self.lock();
        let owed_before = core.receiving.owed().is_some();
        let (mut used, mut closed, mut acknowledged) = (0, false, false);
        if self.framed {
            while core.receiving.unread() < self.options.receive_buffer
                && !closed
                && let Some((frame, length)) = frame::decode(&bytes[used..])?
            {
                used += length;
                closed = frame == Frame::Close;
                acknowledged |= matches!(frame, Frame::Ack(_));
                core.take_frame(frame)?;
            }
        } else if core.receiving.unread() < self.options.receive_buffer {
            core.receiving.accept_raw(bytes);
            core.counts.bytes_received += bytes.len() as u64;
            used = bytes.len();
        }
        let owed = core.receiving.owed().is_some();
        drop(core);
        self.readable.notify_one();
        if acknowledged {
            self.writable.notify_one();
        }
        // The writer watches the clock by itself once it owes something.
        if owed && !owed_before {
            self.to_write.notify_one();
        }
        Ok((used, closed))
    }

    /// How long acknowledgements are held back; `None` for ever.
    pub(super) fn ack_pause(&self) -> Option<Duration> {
        match self.options.acks {
            AckPolicy::EveryMs(pause) => Some(Duration::from_millis(pause)),
            AckPolicy::OnReceipt => Some(Duration::ZERO),
            AckPolicy::Never => None,
        }
    }
}

impl Core {
    fn take_frame(&mut self, frame: Frame<'_>) -> Result<(), Violation> {
        match frame {
            Frame::Data { seq, payload } => {
                if self.receiving.accept(seq, payload)? {
                    self.counts.frames_received += 1;
                    self.counts.bytes_received += payload.len() as u64;
                    self.counts.longest_payload = self.counts.longest_payload.max(payload.len());
                } else {
                    self.counts.duplicates += 1;
                }
            }
            Frame::Ack(seq) => {
                self.counts.acks_received += 1;
                self.sending.acknowledge(seq)?;
            }
            Frame::Handshake(_) => return Err(Violation::Handshake),
            Frame::Close => {}
        }
        Ok(())
    }
}
