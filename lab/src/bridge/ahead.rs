//! A stream of which more was read than was asked for: the surplus comes first.
//!
//! Header lines, HTTP heads and spliced bytes come over one connection, and no byte may be lost between them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// Room for one read.
const ROOM: usize = 64 << 10;

/// What is read at most in search of the end of a line or head.
pub(crate) const HEAD_LIMIT: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Ahead<S> {
    stream: S,
    ahead: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Ahead<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, ahead: BytesMut::new() }
    }

    pub(crate) const fn stream(&self) -> &S {
        &self.stream
    }

    /// What was read and not yet asked for.
    pub(crate) fn surplus(&self) -> &[u8] {
        &self.ahead
    }

    /// Reads more into the surplus; zero bytes at the end of the stream.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        self.ahead.reserve(ROOM);
        self.stream.read_buf(&mut self.ahead).await
    }

    /// Fills until the surplus has this many bytes.
    pub(crate) async fn fill_to(&mut self, length: usize) -> io::Result<()> {
        while self.ahead.len() < length {
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Takes at most this many bytes, at least one; `None` at the end of the stream.
    pub(crate) async fn take(&mut self, most: usize) -> io::Result<Option<Bytes>> {
        if self.ahead.is_empty() && self.fill().await? == 0 {
            return Ok(None);
        }
        let length = most.min(self.ahead.len());
        Ok(Some(self.ahead.split_to(length).freeze()))
    }

    /// Takes everything up to and including `mark`; `None` if the stream ends before its first byte.
    pub(crate) async fn take_until(&mut self, mark: &[u8]) -> io::Result<Option<Bytes>> {
        let mut searched = 0_usize;
        loop {
            let from = searched.saturating_sub(mark.len());
            if let Some(at) = self.ahead[from..].windows(mark.len()).position(|window| window == mark) {
                return Ok(Some(self.ahead.split_to(from + at + mark.len()).freeze()));
            }
            searched = self.ahead.len();
            if searched > HEAD_LIMIT {
                return Err(io::Error::other("the end of a head does not come"));
            }
            if self.fill().await? == 0 {
                return if searched == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Looks, without waiting, whether something has come: the number of bytes, zero at the end of the stream.
    pub(crate) fn peek(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut bytes = [0; 1024];
        let mut buffer = ReadBuf::new(&mut bytes);
        let read = Pin::new(&mut self.stream).poll_read(context, &mut buffer);
        self.ahead.extend_from_slice(buffer.filled());
        let length = buffer.filled().len();
        read.map(|read| read.map(|()| length))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = buffer.remaining().min(self.ahead.len());
        buffer.put_slice(&self.ahead.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ahead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
