//! HTTP servers of the lab: each on a thread of its own, on the host's loopback or inside a machine's network.
//!
//! A machine has its own network namespace and so its own 127.0.0.1. A socket keeps the namespace that it was made in,
//! so the listener is bound by a thread that entered the machine, and everything else stays in the test's process: tests
//! read and change the control plane's state through plain method calls while a real agent talks to it.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Network {
    /// The loopback of this process.
    Host,
    /// The loopback of the namespace behind this file, e.g. `/proc/4711/ns/net`.
    Namespace(PathBuf),
}

impl Network {
    /// Moves the calling thread into this network: sockets that it makes from now on belong there.
    ///
    /// # Errors
    /// The namespace cannot be entered (that needs root).
    pub fn enter(&self) -> io::Result<()> {
        let Self::Namespace(path) = self else { return Ok(()) };
        let namespace = std::fs::File::open(path)?;
        Ok(nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?)
    }

    /// Does something on a thread that has entered this network, and waits for it. Programs started there are inside too.
    ///
    /// # Errors
    /// The namespace cannot be entered (that needs root).
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> io::Result<T> {
        if let Self::Host = self {
            return Ok(act());
        }
        // setns(2) changes the calling thread only, so a thread is spent on it.
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| self.enter().map(|()| act()));
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Binds a TCP listener on 127.0.0.1 of this network. Port 0 asks for a free one.
    ///
    /// # Errors
    /// The address is taken, or the namespace cannot be entered (that needs root).
    pub fn bind(&self, port: u16) -> io::Result<TcpListener> {
        self.within(|| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))?
    }

    /// Holds a port while nobody listens on it: bound but not listening, so that connections are refused and yet no other
    /// process is given the port. A machine's own network has nobody else who could take it.
    pub(crate) fn reserve(&self, port: u16) -> Option<TcpSocket> {
        let Self::Host = self else { return None };
        let socket = TcpSocket::new_v4().ok()?;
        // Lets a listener bind beside it; two sockets may share a port as long as none listens (socket(7), SO_REUSEADDR).
        socket.set_reuseaddr(true).ok()?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).ok()?;
        Some(socket)
    }
}

/// A response body that may be cut off by an error half way.
pub type Body = BoxBody<Bytes, io::Error>;

/// What a handler answers; an error cuts the connection without a response.
pub type Answer = Pin<Box<dyn Future<Output = io::Result<Response<Body>>> + Send>>;

/// Answers one request after the other.
pub type Handler = Arc<dyn Fn(Request<Incoming>) -> Answer + Send + Sync>;

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Serves `handler` on a thread of its own. With `tls`, every connection begins with a TLS handshake.
    ///
    /// # Errors
    /// See [`Network::bind`].
    pub fn start(
        network: &Network,
        port: u16,
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: Handler,
    ) -> io::Result<Self> {
        let listener = network.bind(port)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name(format!("lab-{}", address.port())).spawn(move || {
            runtime.block_on(accept(listener, tls.map(TlsAcceptor::from), handler, stopped));
            runtime.shutdown_background();
        })?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, handler: Handler, mut stopped: watch::Receiver<bool>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // Out of descriptors or the like; a lab that spins on it would hide the cause.
                Err(_) => { tokio::time::sleep(std::time::Duration::from_millis(20)).await; continue }
            },
            _ = stopped.changed() => return,
        };
        let (tls, handler) = (tls.clone(), Arc::clone(&handler));
        tokio::spawn(async move {
            match tls {
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        converse(stream, handler).await;
                    }
                }
                None => converse(stream, handler).await,
            }
        });
    }
}

async fn converse<S>(stream: S, handler: Handler)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| handler(request));
    // An error here is a peer that went away or a handler that cut the connection on purpose.
    drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}
