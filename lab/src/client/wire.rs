//! A session by hand: every byte as a test wants it, and the peer's frames one by one. What misbehaves is written with this.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::carrier::Link;
use super::frame::{self, Frame};

/// A frame that came, on its own feet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A data frame.
    Data {
        /// Its number.
        seq: u64,
        /// Its payload.
        payload: Vec<u8>,
    },
    /// An acknowledgement.
    Ack(u64),
    /// A handshake.
    Handshake(u64),
    /// A close frame.
    Close,
    /// The connection has ended without one.
    End,
}

impl From<Frame<'_>> for Received {
    fn from(frame: Frame<'_>) -> Self {
        match frame {
            Frame::Data { seq, payload } => Self::Data { seq, payload: payload.to_vec() },
            Frame::Ack(seq) => Self::Ack(seq),
            Frame::Handshake(next) => Self::Handshake(next),
            Frame::Close => Self::Close,
        }
    }
}

/// A connection of which nothing is known but its bytes. See [`frame`] for what to write.
pub struct Wire {
    link: Link,
    read: Vec<u8>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "wire with {} bytes read ahead", self.read.len())
    }
}

impl Wire {
    /// Takes over a connection whose header is written.
    #[must_use]
    pub const fn new(link: Link) -> Self {
        Self { link, read: Vec::new() }
    }

    /// Writes bytes in one go.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.link.write_all(bytes).await?;
        self.link.flush().await
    }

    /// Writes each byte for itself.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn write_byte_by_byte(&mut self, bytes: &[u8]) -> io::Result<()> {
        for byte in bytes {
            self.write(std::slice::from_ref(byte)).await?;
        }
        Ok(())
    }

    /// The peer's next frame, or the end.
    ///
    /// # Errors
    /// It sends no frame, or nothing within `limit`.
    pub async fn next(&mut self, limit: Duration) -> io::Result<Received> {
        timeout(limit, self.receive()).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// The peer's next frame that is no acknowledgement, or the end.
    ///
    /// # Errors
    /// As with [`Self::next`].
    pub async fn next_but_acks(&mut self, limit: Duration) -> io::Result<Received> {
        let other = async {
            loop {
                let received = self.receive().await?;
                if !matches!(received, Received::Ack(_)) {
                    return Ok(received);
                }
            }
        };
        timeout(limit, other).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn receive(&mut self) -> io::Result<Received> {
        loop {
            if let Some((frame, length)) = frame::decode(&self.read).map_err(io::Error::other)? {
                let received = frame.into();
                self.read.drain(..length);
                return Ok(received);
            }
            let mut buffer = [0; 16 << 10];
            match self.link.read(&mut buffer).await {
                Ok(count @ 1..) => self.read.extend_from_slice(&buffer[..count]),
                // A reset, or TLS that ends without its farewell: for a stream all of them are the end.
                Ok(0) | Err(_) => return Ok(Received::End),
            }
        }
    }

    /// Ends the connection in order (TLS farewell and FIN), without a close frame.
    pub async fn end(mut self) {
        drop(self.link.shutdown().await);
    }
}
