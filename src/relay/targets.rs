//! Connections to targets: dialled in plain TCP or TLS, kept for a while after a request, looked at before the next.
//!
//! Always to a configured address ([`super::route`]), never to one that a request spells.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::net::sockopt;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::conversation::{Refusal, Reuse};
use super::route::{Scheme, Target};
use crate::config::NetworkConfig;
use crate::http;
use crate::kubernetes::ServiceAccount;

/// Protocol 9.3: 10 s to connect, and 10 s for the TLS handshake.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// Idle connections are closed after this time. Common servers wait 60 to 75 s; a shorter one is noticed by looking.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// A request that cannot be repeated takes only a connection that was used this recently: no server closes one so soon.
const RECENT: Duration = Duration::from_secs(2);
/// Idle time after which a connection is probed, time between probes, and how many may stay unanswered. Streams have no
/// limit of time, so that nothing else would tell of a device that lost its power.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);
/// As many as there are relay connections in a pool, which is what can be in use at once.
const MAX_IDLE_PER_TARGET: usize = 32;
/// Idle connections in all.
const MAX_IDLE: usize = 128;

/// A connection to a target.
#[derive(Debug)]
pub enum Stream {
    /// As it is: its socket is all its state.
    Plain(TcpStream),
    /// In TLS, whose state only this process has.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// True if nothing came and nobody left since the last response.
    fn is_quiet(&mut self) -> bool {
        if let Self::Tls(stream) = self {
            // Tickets may lie there, which are no answer; reading takes them.
            let mut byte = [0];
            let mut context = Context::from_waker(Waker::noop());
            if Pin::new(stream).poll_read(&mut context, &mut ReadBuf::new(&mut byte)).is_ready() {
                return false;
            }
        }
        // Asked of the kernel: the runtime may not have heard yet.
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        let mut byte = [0_u8];
        matches!(rustix::net::recv(self.socket(), &mut byte, flags), Err(rustix::io::Errno::AGAIN))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[derive(Debug)]
struct Idle {
    stream: Stream,
    since: Instant,
}

#[derive(Debug, Default)]
struct Shelf {
    /// Newest last. Invariant: no empty list stays.
    idle: HashMap<Target, Vec<Idle>>,
    /// Invariant: how many there are in all lists.
    count: usize,
}

/// Makes and keeps connections to targets.
#[derive(Debug)]
pub struct Targets {
    shelf: Mutex<Shelf>,
    network: NetworkConfig,
    /// Made with the first `https` target: reading the system's roots takes longer than a start should.
    tls: Mutex<Option<Arc<ClientConfig>>>,
    cluster: Arc<ServiceAccount>,
}

impl Targets {
    /// Targets under the roots that `network` names, and clusters under their own.
    #[must_use]
    pub fn new(network: NetworkConfig, cluster: Arc<ServiceAccount>) -> Self {
        Self { shelf: Mutex::default(), network, tls: Mutex::default(), cluster }
    }

    /// A connection to `target`; true if it served before.
    ///
    /// # Errors
    /// The answer that the request gets: nothing of it was sent.
    pub async fn connect(&self, target: &Target, reuse: Reuse) -> Result<(Stream, bool), Refusal> {
        if let Some(stream) = self.take(target, reuse) {
            return Ok((stream, true));
        }
        self.dial(target).await.map(|stream| (stream, false))
    }

    /// The most recently used idle connection that is still good.
    fn take(&self, target: &Target, reuse: Reuse) -> Option<Stream> {
        let limit = match reuse {
            Reuse::Any => IDLE_LIMIT,
            Reuse::Recent => RECENT,
            Reuse::Never => return None,
        };
        let mut shelf = self.shelf();
        loop {
            let list = shelf.idle.get_mut(target)?;
            if list.last()?.since.elapsed() >= limit {
                return None;
            }
            let mut idle = list.pop()?;
            if list.is_empty() {
                shelf.idle.remove(target);
            }
            shelf.count -= 1;
            if idle.stream.is_quiet() {
                return Some(idle.stream);
            }
        }
    }

    /// Keeps a connection for the next request, if there is room.
    pub fn keep(&self, target: Target, stream: Stream) {
        let mut shelf = self.shelf();
        let here = shelf.idle.get(&target).map_or(0, Vec::len);
        if here < MAX_IDLE_PER_TARGET && shelf.count < MAX_IDLE {
            shelf.idle.entry(target).or_default().push(Idle { stream, since: Instant::now() });
            shelf.count += 1;
        }
    }

    /// Closes what has been idle for too long, or was closed by its target.
    pub fn sweep(&self) {
        let mut shelf = self.shelf();
        shelf.idle.retain(|_, list| {
            list.retain_mut(|idle| idle.since.elapsed() < IDLE_LIMIT && idle.stream.is_quiet());
            !list.is_empty()
        });
        shelf.count = shelf.idle.values().map(Vec::len).sum();
    }

    /// How many idle connections are kept.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.shelf().count
    }

    async fn dial(&self, target: &Target) -> Result<Stream, Refusal> {
        let tls = match target.scheme {
            Scheme::Http => None,
            Scheme::Https => Some(self.tls().map_err(|error| unusable(&error))?),
            Scheme::Kubernetes => Some(self.cluster.tls().map_err(|error| unusable(&error))?),
        };
        let connecting = TcpStream::connect((target.host.as_str(), target.port));
        let stream = match timeout(DIAL_LIMIT, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, host = target.host, port = target.port, "a target cannot be reached");
                return Err(Refusal::new(502, format!("the target cannot be reached: {}", error.kind())));
            }
            Err(_) => return Err(Refusal::new(504, "the target cannot be reached: no answer within 10 s")),
        };
        // Whatever cannot be set is no reason to refuse a request.
        tune(&stream).ok();
        let Some(config) = tls else { return Ok(Stream::Plain(stream)) };
        let name = ServerName::try_from(target.host.clone()).map_err(|error| unusable(&error))?;
        match timeout(DIAL_LIMIT, TlsConnector::from(config).connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
            Ok(Err(error)) => {
                tracing::warn!(%error, host = target.host, port = target.port, "no TLS with a target");
                Err(Refusal::new(502, format!("no TLS with the target: {error}")))
            }
            Err(_) => Err(Refusal::new(504, "no TLS with the target: no answer within 10 s")),
        }
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, http::Error> {
        let mut kept = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = kept.as_ref() {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(http::tls_config(&self.network)?);
        *kept = Some(Arc::clone(&config));
        Ok(config)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Heads and bodies go out as soon as they are there, and a target that vanished is found.
fn tune(socket: &TcpStream) -> io::Result<()> {
    let (idle, interval, count) = KEEP_ALIVE;
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, idle)?;
    sockopt::set_tcp_keepintvl(socket, interval)?;
    Ok(sockopt::set_tcp_keepcnt(socket, count)?)
}

fn unusable(error: &(dyn std::error::Error + 'static)) -> Refusal {
    tracing::warn!(error = %http::chain(error), "a target cannot be spoken to in TLS");
    Refusal::new(502, format!("no TLS with the target: {error}"))
}

#[cfg(test)]
mod tests;
