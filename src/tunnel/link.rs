//! A connection to a bridge: bytes in, bytes out. Sessions and relays know nothing else of it.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::record::{self, Records};
use super::scratch::{self, Kind};

/// Plaintext that is sealed and written at once.
pub const SEND: usize = scratch::READ;

/// A TLS 1.3 connection to a bridge.
///
/// It holds bytes only where the network does not take or complete them: idle, it has no buffer.
pub struct Link {
    socket: TcpStream,
    records: Records,
    /// What has come and is not a complete record yet.
    incoming: Vec<u8>,
    /// `incoming` may hold complete records: the handshake left them.
    unread: bool,
    /// What a received record made us say, e.g. the answer to a key update. Goes before anything that is sealed later.
    answers: Vec<u8>,
    /// What is sealed and not taken by the socket yet; lent by the thread, and given back when it is gone.
    outgoing: Vec<u8>,
    sent: usize,
    sealed: usize,
    /// Opened bytes that a reader of [`AsyncRead`] had no room for.
    plain: Vec<u8>,
    given: usize,
    /// The peer sends nothing any more.
    ended: bool,
    closing: bool,
}

/// Everything that a [`Link`] is but its socket.
///
/// Like [`record::State`], it can be used once. What is not known is passed over, and what is missing is empty.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// Keys and numbers.
    pub records: record::State,
    /// What has come and was not opened.
    #[serde(default, with = "serde_bytes")]
    pub incoming: Vec<u8>,
    /// What is sealed and was not sent. It goes first, or what follows it makes no sense to the peer.
    #[serde(default, with = "serde_bytes")]
    pub outgoing: Vec<u8>,
    /// What was opened and nobody has read.
    #[serde(default, with = "serde_bytes")]
    pub plain: Vec<u8>,
    /// The peer sends nothing any more.
    #[serde(default)]
    pub ended: bool,
    /// We have said that nothing follows.
    #[serde(default)]
    pub closing: bool,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("peer", &self.socket.peer_addr()).finish_non_exhaustive()
    }
}

impl Link {
    /// A connection after its handshake; `incoming` is what came behind it.
    pub(super) const fn new(socket: TcpStream, records: Records, incoming: Vec<u8>) -> Self {
        Self {
            socket,
            records,
            unread: !incoming.is_empty(),
            incoming,
            answers: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
            sealed: 0,
            plain: Vec::new(),
            given: 0,
            ended: false,
            closing: false,
        }
    }

    /// The connection as a socket and plain data, at whatever point it is. Nothing is said to the peer.
    ///
    /// # Errors
    /// The runtime does not give the socket back.
    pub fn export(self) -> io::Result<(OwnedFd, State)> {
        let mut outgoing = self.outgoing[self.sent..self.sealed].to_vec();
        outgoing.extend_from_slice(&self.answers);
        let state = State {
            records: self.records.export(),
            incoming: self.incoming,
            outgoing,
            plain: self.plain[self.given..].to_vec(),
            ended: self.ended,
            closing: self.closing,
        };
        Ok((self.socket.into_std()?.into(), state))
    }

    /// Goes on where [`Self::export`] stopped.
    ///
    /// # Errors
    /// It is no socket, or no connection can be in such a state.
    pub fn import(socket: OwnedFd, state: State) -> io::Result<Self> {
        let link = Self::new(adopt(socket)?, Records::import(state.records)?, state.incoming);
        Ok(Self { answers: state.outgoing, plain: state.plain, ended: state.ended, closing: state.closing, ..link })
    }

    /// Reads what has come and hands it to `sink`, piece by piece; returns how many bytes, 0 at the end.
    ///
    /// # Errors
    /// The connection broke, or the peer sent an alert.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>, sink: &mut dyn FnMut(&[u8])) -> Poll<io::Result<usize>> {
        while !self.ended {
            let opened = scratch::with(Kind::Incoming, |buffer| self.read_and_open(cx, buffer, sink));
            let received = ready!(opened)?;
            if received > 0 {
                return Poll::Ready(Ok(received));
            }
        }
        Poll::Ready(Ok(0))
    }

    /// One read from the socket. The buffer begins with what was left over.
    fn read_and_open(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Vec<u8>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        let kept = self.incoming.len();
        buffer.resize(kept.max(scratch::READ / 2) + scratch::READ, 0);
        let mut filled = kept;
        if !std::mem::take(&mut self.unread) {
            let mut space = ReadBuf::new(&mut buffer[kept..]);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut space))?;
            filled += space.filled().len();
            if filled == kept {
                // Without close_notify the end is not the peer's word; to a session it is a break all the same.
                self.ended = true;
                return Poll::Ready(Ok(0));
            }
        }
        buffer[..kept].copy_from_slice(&self.incoming);
        let opened = self.records.open(&mut buffer[..filled], &mut self.answers, sink);
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.ended = true;
                // The alert that says why; whether it arrives does not matter any more.
                drop(self.poll_flush_outgoing(cx));
                return Poll::Ready(Err(error.into()));
            }
        };
        self.incoming = buffer[opened.consumed..filled].to_vec();
        self.ended = opened.ended;
        Poll::Ready(Ok(opened.plain))
    }

    /// Waits until everything that was sealed is with the kernel.
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_flush_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.sent < self.sealed {
                let count = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.outgoing[self.sent..self.sealed]))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.sent += count;
            }
            if !self.outgoing.is_empty() {
                scratch::give_back_outgoing(std::mem::take(&mut self.outgoing));
                (self.sent, self.sealed) = (0, 0);
            }
            if self.answers.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.outgoing = std::mem::take(&mut self.answers);
            self.sealed = self.outgoing.len();
        }
    }

    /// Seals `plain` and writes as much as the socket takes; the rest is kept. Call it only when
    /// [`Self::poll_flush_outgoing`] was ready, with at most [`SEND`] bytes: that is the bound of what is kept.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send(&mut self, cx: &mut Context<'_>, plain: &[u8]) -> io::Result<()> {
        debug_assert!(self.sealed == 0 && plain.len() <= SEND, "everything before it has gone");
        self.outgoing = scratch::take_outgoing(record::sealed_len(plain.len()));
        self.sealed = self.records.seal(plain, &mut self.outgoing)?;
        if !self.answers.is_empty() {
            self.answers.extend_from_slice(&self.outgoing[..self.sealed]);
            self.sealed = 0;
        }
        match self.poll_flush_outgoing(cx) {
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Says that nothing follows, and closes the sending side.
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.closing, true) {
            self.records.close_notify(&mut self.answers)?;
        }
        ready!(self.poll_flush_outgoing(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// The runtime's socket from a descriptor of another process.
///
/// # Errors
/// It is no TCP socket, or the runtime does not take it.
pub fn adopt(socket: OwnedFd) -> io::Result<TcpStream> {
    if rustix::net::sockopt::socket_type(&socket)? != rustix::net::SocketType::STREAM {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let socket = std::net::TcpStream::from(socket);
    socket.set_nonblocking(true)?;
    TcpStream::from_std(socket)
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.given == this.plain.len() {
            let mut plain = std::mem::take(&mut this.plain);
            plain.clear();
            this.given = 0;
            let received = this.poll_receive(cx, &mut |piece| {
                // What the reader has room for is not copied twice.
                let direct = if plain.is_empty() { piece.len().min(into.remaining()) } else { 0 };
                let (now, later) = piece.split_at(direct);
                into.put_slice(now);
                plain.extend_from_slice(later);
            });
            this.plain = plain;
            return received.map_ok(drop);
        }
        let rest = &this.plain[this.given..];
        let count = rest.len().min(into.remaining());
        into.put_slice(&rest[..count]);
        this.given += count;
        if this.given == this.plain.len() {
            (this.plain, this.given) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_flush_outgoing(cx))?;
        let count = bytes.len().min(SEND);
        this.send(cx, &bytes[..count])?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flush_outgoing(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_close(cx)
    }
}
