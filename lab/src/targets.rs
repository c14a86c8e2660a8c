//! What agents forward to: TCP services and web sites that behave well, badly, or as slowly as a test wants.
//!
//! Everything is written by hand on blocking sockets, one thread for each connection: most of these would be refused by a
//! framework that keeps to the rules.
//!
//! ```text
//!   test ──► Target ──► seen{ connections, bytes, requests } ◄── wait_for
//!              │                       ▲
//!   agent ─ TCP ─► listener ─► thread ─┴─ tcp | http | websocket
//! ```

mod front;
mod http;
mod message;
mod sites;
mod tcp;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpSocket;

pub use front::TlsFront;
pub use message::Request;
pub use tcp::{Tcp, Then};

use crate::serve::Network;

/// What a target has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Connections accepted.
    pub accepted: usize,
    /// Connections that are over.
    pub ended: usize,
    /// Payload bytes read.
    pub received: u64,
    /// Payload bytes written.
    pub sent: u64,
    /// Peers that went away while the target was not done.
    pub abandoned: usize,
    /// What was wrong with the bytes that came, and other complaints.
    pub complaints: Vec<String>,
    /// Requests, oldest first; the newest tens of thousands.
    pub requests: Vec<Request>,
    /// How often [`Target::resume`] was called.
    resumed: usize,
    stopping: bool,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
    /// Clones of the open sockets, to end their threads with.
    open: Mutex<HashMap<usize, TcpStream>>,
}

/// Requests that are kept; half of them goes when there are more.
const MOST_REQUESTS: usize = 32_768;

impl Seen {
    fn requested(&mut self, request: Request) {
        if self.requests.len() == MOST_REQUESTS {
            self.requests.drain(..MOST_REQUESTS / 2);
        }
        self.requests.push(request);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn wait(&self, limit: Duration, condition: impl Fn(&Seen) -> bool) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |seen| !condition(seen) && !seen.stopping);
        condition(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Waits until [`Target::resume`] has been called this often, or the target ends.
    fn wait_resumed(&self, times: usize) {
        drop(self.changed.wait_while(self.lock(), |seen| seen.resumed < times && !seen.stopping));
    }
}

/// What a connection is handled by.
type Behaviour = Arc<dyn Fn(TcpStream, &Shared) -> io::Result<()> + Send + Sync>;

/// A running target; it ends, and its connections with it, when this is dropped.
#[derive(Debug)]
pub struct Target {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Target {
    /// A TCP service.
    ///
    /// # Errors
    /// See [`Network::bind`].
    pub fn tcp(network: &Network, behaviour: Tcp) -> io::Result<Self> {
        Self::start(network, Arc::new(move |stream, shared| tcp::serve(&behaviour, stream, shared)))
    }

    /// A web site; the path decides what it does. The first part of the path is one of these, anything may follow; every
    /// other path echoes the request as JSON.
    ///
    /// | path | answer |
    /// |---|---|
    /// | `/big/N`, `/chunked/N`, `/close-delimited/N`, `/http10/N` | N pattern bytes, framed in this way |
    /// | `/steady/N/RATE` | N pattern bytes with their length, RATE of them a second |
    /// | `/sink` | the length of the body, checked against the pattern |
    /// | `/status/N` | this status and no body |
    /// | `/redirect/WHERE` | 302 to `/WHERE` with a cookie |
    /// | `/never` | nothing, until the peer leaves or [`Target::resume`] |
    /// | `/slow/MS` | an answer after so many milliseconds |
    /// | `/reset/N` | a longer body, of which N bytes come before a reset |
    /// | `/sse/N`, `/sse-endless`, `/sse-silent` | N events and the end; events for ever; one event and silence |
    /// | `/sse-every/MS` | events for ever, so many milliseconds apart |
    /// | `/ws`, `/ws-greeting` | a WebSocket that echoes; its first message comes with the head of the answer |
    /// | `/app` | a page whose script uses a WebSocket, an event stream and a long body |
    /// | `/ws-refused` | 403 with a body, whatever the request wants |
    /// | `/continue`, `/early-hints` | 100 or 103 first |
    /// | `/hasty` | an answer before the body is read, which then is |
    /// | `/rude` | an answer without reading the body, and the end of the connection |
    /// | `/both-lengths`, `/bad-chunk`, `/huge-head`, `/garbage`, `/two-lengths` | no valid HTTP |
    ///
    /// # Errors
    /// See [`Network::bind`].
    pub fn http(network: &Network) -> io::Result<Self> {
        Self::start(network, Arc::new(http::serve))
    }

    fn start(network: &Network, behaviour: Behaviour) -> io::Result<Self> {
        let listener = network.bind(0)?;
        let target = Self { address: listener.local_addr()?, shared: Arc::default() };
        let shared = Arc::clone(&target.shared);
        std::thread::Builder::new()
            .name(format!("target-{}", target.address.port()))
            .spawn(move || accept(&listener, &shared, &behaviour))?;
        Ok(target)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has seen so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.shared.lock().clone()
    }

    /// Waits until it has seen this; false after `limit`.
    #[must_use]
    pub fn wait_for(&self, limit: Duration, condition: impl Fn(&Seen) -> bool) -> bool {
        self.shared.wait(limit, condition)
    }

    /// Lets what is stalled go on.
    pub fn resume(&self) {
        self.shared.note(|seen| seen.resumed += 1);
    }

    /// Cuts all connections that are open.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).values() {
            // One that the peer has cut already needs no second cut.
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.shared.note(|seen| seen.stopping = true);
        self.cut();
        // Nobody else connects here; the listener's thread wakes up and sees that it is over.
        drop(TcpStream::connect_timeout(&self.address, Duration::from_millis(100)));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, behaviour: &Behaviour) {
    for (number, stream) in listener.incoming().flatten().enumerate() {
        if shared.lock().stopping {
            return;
        }
        shared.note(|seen| seen.accepted += 1);
        if let Ok(clone) = stream.try_clone() {
            shared.open.lock().unwrap_or_else(PoisonError::into_inner).insert(number, clone);
        }
        let (shared, behaviour) = (Arc::clone(shared), Arc::clone(behaviour));
        std::thread::spawn(move || {
            let served = stream.set_nodelay(true).and_then(|()| behaviour(stream, &shared));
            shared.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
            shared.note(|seen| {
                seen.ended += 1;
                seen.abandoned += usize::from(served.is_err());
            });
        });
    }
}

/// A port that refuses connections for as long as this is kept.
#[derive(Debug)]
pub struct Closed {
    address: SocketAddr,
    /// Bound and not listening, so that nobody else is given the port. In a machine's network there is nobody else.
    _reserved: Option<TcpSocket>,
}

impl Closed {
    /// Reserves a port of this network.
    ///
    /// # Errors
    /// See [`Network::bind`].
    pub fn reserve(network: &Network) -> io::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let Network::Host = network else {
            return Ok(Self { address: network.bind(0)?.local_addr()?, _reserved: None });
        };
        let socket = TcpSocket::new_v4()?;
        socket.bind(address)?;
        Ok(Self { address: socket.local_addr()?, _reserved: Some(socket) })
    }

    /// What to connect to in vain.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}
