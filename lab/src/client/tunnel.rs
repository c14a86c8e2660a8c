//! The user's side of a tunnel: read, write, close, and what a user does who is not so polite.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::api::Session;
use super::carrier::{Dial, Link, carry};
use super::options::Options;
use super::shared::{Counts, Shared, Status, Wish};

/// A peer that does not read makes closing wait; nobody waits longer than this for it.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// A tunnel; the last clone that is dropped takes the connection with it, without a close frame.
#[derive(Clone, Debug)]
pub struct Tunnel {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    shared: Arc<Shared>,
    session: Option<Session>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.wish(Wish::Vanish);
    }
}

impl Tunnel {
    /// A framed tunnel over `link`; `dial` gets the next connection when it breaks. Must be called on a runtime.
    #[must_use]
    pub fn framed(link: Link, dial: Option<Dial>, options: Options) -> Self {
        Self::begin(link, dial, options, true, None)
    }

    /// A raw tunnel over `link`: the bytes as they are, no reconnect. Must be called on a runtime.
    #[must_use]
    pub fn raw(link: Link, options: Options) -> Self {
        Self::begin(link, None, options, false, None)
    }

    pub(super) fn begin(
        link: Link,
        dial: Option<Dial>,
        options: Options,
        framed: bool,
        session: Option<Session>,
    ) -> Self {
        let shared = Arc::new(Shared::new(options, framed));
        tokio::spawn(carry(Arc::clone(&shared), link, dial));
        Self { held: Arc::new(Held { shared, session }) }
    }

    fn shared(&self) -> &Shared {
        &self.held.shared
    }

    /// What the platform answered when this session began.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        self.held.session.as_ref()
    }

    /// Reads what is there, at least one byte; 0 at the end. Cancel safe.
    ///
    /// # Errors
    /// The tunnel has failed.
    pub async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(read) = self.shared().try_read(into) {
                return read;
            }
            self.shared().readable.notified().await;
        }
    }

    /// Reads until `into` is full.
    ///
    /// # Errors
    /// The tunnel has ended before, or has failed.
    pub async fn read_exact(&self, into: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < into.len() {
            match self.read(&mut into[filled..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// The tunnel has failed.
    pub async fn read_to_end(&self) -> io::Result<Vec<u8>> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            match self.read(&mut buffer).await? {
                0 => return Ok(all),
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Accepts all of `bytes`. They are sent as soon as the connection and the window allow; what was accepted before this
    /// is dropped stays accepted.
    ///
    /// # Errors
    /// The tunnel is over, or the window was exceeded and is deadly.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.shared().try_write(rest) {
                Some(written) => rest = &rest[written?..],
                None => self.shared().writable.notified().await,
            }
        }
        Ok(())
    }

    /// Sends what was written, then the close frame, and waits for that, but not for ever. What was received can still be
    /// read.
    pub async fn close(&self) {
        self.shared().wish(Wish::Close);
        if timeout(CLOSE_LIMIT, self.wait_over()).await.is_err() {
            self.vanish();
        }
    }

    /// Waits until the tunnel is over, for whatever reason.
    pub async fn wait_over(&self) {
        // The sender lives in what this borrows.
        drop(self.shared().over.subscribe().wait_for(|over| *over).await);
    }

    /// Drops the connection without a close frame and gets another, like a client that was told of a nearer edge.
    pub fn hop(&self) {
        self.shared().wish(Wish::Hop);
    }

    /// Drops the connection without a close frame and never comes back, like a client that was killed.
    pub fn vanish(&self) {
        self.shared().wish(Wish::Vanish);
    }

    /// How things stand.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared().lock().status.clone()
    }

    /// What has happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared().lock().counts
    }

    /// Bytes on the wire that the peer has not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.shared().lock().sending.unacknowledged()
    }

    /// Waits until everything that was written is acknowledged; false after `limit`, or if the tunnel ends before.
    pub async fn wait_acknowledged(&self, limit: Duration) -> bool {
        let acknowledged = async {
            while self.unacknowledged() > 0 && self.status() == Status::Open {
                // A bell of its own would be rung for every frame; nothing but tests waits here.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(limit, acknowledged).await.is_ok() && self.unacknowledged() == 0
    }

    /// Waits until this many reconnects have succeeded; false after `limit`, or if the tunnel ends before.
    pub async fn wait_reconnects(&self, count: u64, limit: Duration) -> bool {
        let mut connections = self.shared().connections.subscribe();
        let reached = async {
            tokio::select! {
                reached = connections.wait_for(|connections| *connections > count) => reached.is_ok(),
                () = self.wait_over() => false,
            }
        };
        timeout(limit, reached).await.unwrap_or(false)
    }
}
