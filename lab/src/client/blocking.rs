//! The same for tests that are not async. Not to be called from a runtime's threads.

use std::io::{self, Read, Write};
use std::time::Duration;

use super::{Client, Error, Received, Tunnel, Wire};
use crate::runtime::block_on;

impl Client {
    /// [`Client::connect`], waited for.
    ///
    /// # Errors
    /// As there.
    pub fn open(&self, resource: &str) -> Result<Pipe, Error> {
        block_on(self.connect(resource)).map(|tunnel| Pipe { tunnel })
    }

    /// [`Client::wire`], waited for.
    ///
    /// # Errors
    /// As there.
    pub fn open_wire(&self, resource: &str) -> Result<BlockingWire, Error> {
        block_on(self.wire(resource)).map(|(wire, session)| BlockingWire { wire, session_id: session.session_id })
    }

    /// [`Client::wire_again`], waited for.
    ///
    /// # Errors
    /// As there.
    pub fn open_wire_again(&self, resource: &str, session_id: &str) -> Result<BlockingWire, Error> {
        block_on(self.wire_again(resource, session_id))
            .map(|(wire, session)| BlockingWire { wire, session_id: session.session_id })
    }
}

/// A tunnel to read from and write to as from a socket.
#[derive(Clone, Debug)]
pub struct Pipe {
    /// The tunnel itself.
    pub tunnel: Tunnel,
}

impl Pipe {
    /// [`Tunnel::close`], waited for.
    pub fn close(&self) {
        block_on(self.tunnel.close());
    }

    /// Reads at most for this long.
    ///
    /// # Errors
    /// `TimedOut`, or the tunnel has failed.
    pub fn read_within(&self, limit: Duration, into: &mut [u8]) -> io::Result<usize> {
        block_on(async { tokio::time::timeout(limit, self.tunnel.read(into)).await })
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Waits for the end of the tunnel; false after `limit`.
    #[must_use]
    pub fn wait_over(&self, limit: Duration) -> bool {
        block_on(async { tokio::time::timeout(limit, self.tunnel.wait_over()).await }).is_ok()
    }

    /// [`Tunnel::wait_reconnects`], waited for.
    #[must_use]
    pub fn wait_reconnects(&self, count: u64, limit: Duration) -> bool {
        block_on(self.tunnel.wait_reconnects(count, limit))
    }

    /// [`Tunnel::wait_acknowledged`], waited for.
    #[must_use]
    pub fn wait_acknowledged(&self, limit: Duration) -> bool {
        block_on(self.tunnel.wait_acknowledged(limit))
    }
}

impl Read for &Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        block_on(self.tunnel.read(into))
    }
}

impl Write for &Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        block_on(self.tunnel.write(bytes)).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A [`Wire`], waited for.
#[derive(Debug)]
pub struct BlockingWire {
    wire: Wire,
    /// The session that it belongs to.
    pub session_id: String,
}

impl BlockingWire {
    /// [`Wire::write`].
    ///
    /// # Errors
    /// As there.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        block_on(self.wire.write(bytes))
    }

    /// [`Wire::write_byte_by_byte`].
    ///
    /// # Errors
    /// As there.
    pub fn write_byte_by_byte(&mut self, bytes: &[u8]) -> io::Result<()> {
        block_on(self.wire.write_byte_by_byte(bytes))
    }

    /// [`Wire::next`].
    ///
    /// # Errors
    /// As there.
    pub fn next(&mut self, limit: Duration) -> io::Result<Received> {
        block_on(self.wire.next(limit))
    }

    /// [`Wire::next_but_acks`].
    ///
    /// # Errors
    /// As there.
    pub fn next_but_acks(&mut self, limit: Duration) -> io::Result<Received> {
        block_on(self.wire.next_but_acks(limit))
    }

    /// [`Wire::end`].
    pub fn end(self) {
        block_on(self.wire.end());
    }
}
