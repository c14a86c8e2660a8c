//! A peer's connection: TLS over a socket that can be made to end in a reset.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::ahead::Ahead;

/// How long a peer that does not read may hold up the end of its connection.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// A connection after its handshake.
pub(crate) type Link = Ahead<TlsStream<Leg>>;

/// A socket that resets its connection when it is dropped after its own or its bridge's order.
#[derive(Debug)]
pub(crate) struct Leg {
    tcp: TcpStream,
    own: Arc<AtomicBool>,
    bridges: Arc<AtomicBool>,
}

impl Leg {
    pub(crate) fn new(tcp: TcpStream, bridges: Arc<AtomicBool>) -> Self {
        // Nagle's algorithm would hold back the tail of every small answer.
        drop(tcp.set_nodelay(true));
        Self { tcp, own: Arc::default(), bridges }
    }
}

impl Drop for Leg {
    fn drop(&mut self) {
        if self.own.load(Ordering::SeqCst) || self.bridges.load(Ordering::SeqCst) {
            drop(self.tcp.set_zero_linger());
        }
    }
}

/// Ends a connection without a word.
pub(crate) fn reset(link: Link) {
    link.stream().get_ref().0.own.store(true, Ordering::SeqCst);
    drop(link);
}

/// Ends a connection with `close_notify` and FIN.
pub(crate) async fn close(mut link: Link) {
    drop(tokio::time::timeout(CLOSE_LIMIT, link.shutdown()).await);
}

impl AsyncRead for Leg {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Leg {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
