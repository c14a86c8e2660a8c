//! The moving of bytes: from the link towards the target, from the target towards the link.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use super::{Attached, End, Mode, Phase, Session};
use crate::stream::{AckWanted, FRAME_PAYLOAD, Received, Stream, Violation};
use crate::tunnel::link::SEND;
use crate::tunnel::scratch::{self, Kind};

/// Payload that is read from a target at once: frames of it fill [`SEND`] to the byte.
const READ: usize = SEND / (2 * 16_384) * FRAME_PAYLOAD;

/// Bytes for the target beyond which the bridge is not read.
const BACKLOG: usize = 1024 * 1024;
/// The same while the window is full: the ACKs that would open it may lie behind data (protocol W9).
const BACKLOG_WHEN_BLOCKED: usize = 16 * 1024 * 1024;

/// An ACK goes this long after something was received, if nothing else takes it along earlier. Peers are used to 50 ms.
const ACK_DELAY: Duration = Duration::from_millis(20);

/// Shorter pieces are put into one record with what goes before and after them.
const SHORT: usize = 2048;

impl Session {
    /// From the bridge: opens what came and gives it to the target, or to the backlog.
    pub(super) fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        if matches!(self.phase, Phase::Delivering { .. } | Phase::Lingering { .. }) {
            return false;
        }
        if !self.has_room_inbound() {
            return self.gives_up_on_the_rest();
        }
        let Some(Attached { link, connection, .. }) = &mut self.link else { return false };
        let (mode, ledger) = (&mut self.mode, &self.ledger);
        let mut outcome = Ok(Received::default());
        let (received, plain) = scratch::with(Kind::Delivery, |plain| {
            plain.clear();
            let received = link.poll_receive(cx, &mut |piece| match mode {
                Mode::Raw => plain.extend_from_slice(piece),
                Mode::Framed(stream) => {
                    if let Ok(before) = outcome {
                        let now = stream.receive(connection, piece, &mut |fresh| plain.extend_from_slice(fresh));
                        outcome = now.map(|now| before.and(now));
                    }
                }
            });
            ledger.received(plain.len());
            (received, std::mem::take(plain))
        });
        self.accept(cx, &plain);
        scratch::with(Kind::Delivery, |spare| *spare = plain);
        self.was_connected |= matches!(received, Poll::Ready(Ok(1..)));
        match outcome {
            Err(Violation::Session(what)) => self.violated(what),
            Err(Violation::Connection(what)) => {
                tracing::warn!(session = %self.ledger.name(), %what, "the bridge connection is closed");
                self.lost_link(what);
            }
            Ok(found) if found.closed => self.client_closed(),
            Ok(found) => match received {
                Poll::Pending => return false,
                Poll::Ready(Ok(1..)) => {
                    self.heard(found.acknowledged);
                    self.believe_the_old();
                }
                Poll::Ready(Ok(0)) => self.lost_link("end of file"),
                Poll::Ready(Err(error)) => self.lost_link(&error.to_string()),
            },
        }
        true
    }

    /// A connection that cannot be written is read to its end. Where the target does not take even that, the end is never
    /// reached, and nothing else would say so; what is not read was not acknowledged, and comes again with a redial.
    fn gives_up_on_the_rest(&mut self) -> bool {
        let is_deaf = self.link.as_ref().is_some_and(|attached| attached.deaf);
        if is_deaf {
            self.lost_link("nothing can be written to it, and the target takes nothing");
        }
        is_deaf
    }

    fn has_room_inbound(&self) -> bool {
        let is_deaf = self.link.as_ref().is_some_and(|attached| attached.deaf);
        let limit = if self.blocked || is_deaf { BACKLOG_WHEN_BLOCKED } else { BACKLOG };
        self.backlog.is_empty() || self.backlog.len() < limit.min(self.ledger.allowance(self.backlog.len()))
    }

    /// Payload for the target: written at once as far as it goes, the rest is kept.
    pub(super) fn accept(&mut self, cx: &mut Context<'_>, mut payload: &[u8]) {
        if payload.is_empty() {
            return;
        }
        // Protocol 7.2: the client's first byte is when the target is dialled.
        self.target.dial();
        while self.backlog.is_empty() && !payload.is_empty() {
            let Poll::Ready(count) = self.target.poll_write(cx, payload) else { break };
            payload = &payload[count.min(payload.len())..];
        }
        self.backlog.extend(payload);
    }

    pub(super) fn connect_target(&mut self, cx: &mut Context<'_>) -> bool {
        let Poll::Ready(outcome) = self.target.poll_connect(cx) else { return false };
        if let Err(error) = outcome {
            let why = format!("{}: {error}", self.target.address());
            tracing::warn!(session = %self.ledger.name(), target = %self.target.address(), %error, "the target cannot be reached");
            self.ledger.target_unreachable();
            self.say_goodbye(End::TargetUnreachable(why));
        }
        true
    }

    /// From the backlog to the target.
    pub(super) fn deliver(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while !self.backlog.is_empty() {
            let Poll::Ready(count) = self.target.poll_write(cx, self.backlog.as_slices().0) else { break };
            self.backlog.drain(..count.min(self.backlog.len()));
            progress = true;
        }
        if progress {
            self.delivered();
        }
        if progress && self.backlog.is_empty() {
            // An idle session holds no buffer.
            self.backlog = std::collections::VecDeque::new();
        }
        progress
    }

    /// From the target, if the link has taken everything before and there is room to keep what is read. A target that takes
    /// nothing is read as well: it may be that it cannot say what it wants to say first (protocol W9).
    pub(super) fn read_target(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.is_running() || self.target.is_gone() || !self.target.was_dialled() {
            return false;
        }
        let room = self.room_outbound();
        let Some(Attached { link, connection, deaf }) = &mut self.link else { return false };
        let flushed = if *deaf { Poll::Pending } else { link.poll_flush_outgoing(cx) };
        let (free, framed) = match (&self.mode, flushed) {
            (_, Poll::Ready(Err(error))) => {
                self.lost_writing(&error);
                return true;
            }
            (Mode::Framed(stream), flushed) => (flushed.is_ready() && stream.is_sent(connection), true),
            (Mode::Raw, flushed) => (flushed.is_ready(), false),
        };
        if !(free || framed && self.backlog.len() >= BACKLOG) {
            return false;
        }
        let was_blocked = std::mem::replace(&mut self.blocked, room == 0);
        if self.blocked {
            if !was_blocked {
                self.ledger.blocked();
            }
            // The bridge may be read further from here on, and nothing else would say so.
            return !was_blocked;
        }
        let read = scratch::with(Kind::Target, |plain| {
            plain.resize(READ, 0);
            let count = match self.target.poll_read(cx, &mut plain[..READ.min(room)]) {
                Poll::Pending => return Ok(None),
                Poll::Ready(Err(_) | Ok(0)) => return Ok(Some(0)),
                Poll::Ready(Ok(count)) => count,
            };
            self.ledger.sent(count);
            match &mut self.mode {
                Mode::Framed(stream) => stream.push(&plain[..count]),
                Mode::Raw => link.send(cx, &plain[..count])?,
            }
            Ok(Some(count))
        });
        match read {
            Ok(None) => return false,
            Ok(Some(0)) => self.target_ended(),
            Ok(Some(_)) => {}
            Err(error) => self.lost_writing(&error),
        }
        true
    }

    /// How much may be read from the target before somebody acknowledges.
    fn room_outbound(&self) -> usize {
        match &self.mode {
            Mode::Framed(stream) => {
                let room = self.ledger.allowance(stream.held()).saturating_sub(stream.held());
                // Crumbs of room would make crumbs of frames.
                if room < FRAME_PAYLOAD { 0 } else { room }
            }
            Mode::Raw => READ,
        }
    }

    /// To the bridge: frames, ACKs, and at last the close frame.
    pub(super) fn transmit(&mut self, cx: &mut Context<'_>) -> bool {
        self.acknowledge();
        let Mode::Framed(stream) = &mut self.mode else { return false };
        let Some(Attached { link, connection, deaf: false }) = &mut self.link else { return false };
        let mut progress = false;
        let broken = loop {
            match link.poll_flush_outgoing(cx) {
                Poll::Pending => break None,
                Poll::Ready(Err(error)) => break Some(error),
                Poll::Ready(Ok(())) => {}
            }
            match send_next(stream, connection, |bytes| link.send(cx, bytes)) {
                Ok(0) => break None,
                Ok(_) => progress = true,
                Err(error) => break Some(error),
            }
        };
        if let Some(error) = broken {
            self.lost_writing(&error);
            return true;
        }
        progress
    }

    fn acknowledge(&mut self) {
        if !self.may_acknowledge() {
            return;
        }
        let Mode::Framed(stream) = &mut self.mode else { return };
        let Some(Attached { connection, .. }) = &mut self.link else { return };
        let due = self.ack_at.is_some_and(|at| at <= self.now);
        match stream.ack_wanted() {
            AckWanted::No => self.ack_at = None,
            AckWanted::Soon if !due && stream.is_sent(connection) => {
                self.ack_at.get_or_insert(self.now + ACK_DELAY);
            }
            AckWanted::Soon | AckWanted::Now => {
                self.ack_at = None;
                stream.acknowledge(connection);
            }
        }
    }

    /// Writing failed. What has come is read before the end is believed: the client's last bytes, its close frame, or the
    /// alert with which the bridge says why. Reading ends by itself, since the socket is dead.
    fn lost_writing(&mut self, error: &io::Error) {
        tracing::debug!(session = %self.ledger.name(), %error, "nothing can be written to the bridge");
        if let Some(attached) = &mut self.link {
            attached.deaf = true;
        }
    }
}

/// Sends what lies together; short pieces go in one record. Returns how many bytes were sent.
fn send_next(
    stream: &mut Stream,
    connection: &mut crate::stream::Connection,
    mut send: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<usize> {
    let mut short = [0; SHORT];
    let mut filled = 0;
    loop {
        let piece = stream.transmit(connection);
        if piece.is_empty() {
            break;
        }
        let Some(space) = short.get_mut(filled..filled + piece.len()) else {
            if filled > 0 {
                break;
            }
            let count = piece.len().min(SEND);
            send(&piece[..count])?;
            stream.sent(connection, count);
            return Ok(count);
        };
        space.copy_from_slice(piece);
        let count = piece.len();
        filled += count;
        stream.sent(connection, count);
    }
    if filled > 0 {
        send(&short[..filled])?;
    }
    Ok(filled)
}
