//! Small HTTP/1.1 servers for the control socket and the health port: bounded in connections, head size and time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::tasks::Tasks;

/// More callers than that at one time are turned away: probes and scrapes are few and short.
const MAX_CONNECTIONS: usize = 32;
/// A caller that does not finish its request head in this time is cut.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole conversation, keep-alive included.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);

/// What a route answers.
pub type Answer = Response<Full<Bytes>>;

/// Who asks, where the kernel knows it: an extension of requests that came over a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The effective user that connected (`SO_PEERCRED`, unix(7)), as this process's user namespace names it.
    pub uid: u32,
}

/// Answers a request from what it already knows; nothing in a route waits.
pub type Routes = Arc<dyn Fn(&Request<Incoming>) -> Answer + Send + Sync>;

/// Accepts connections; both kinds of listener can.
pub trait Accept: Send + 'static {
    /// The connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Waits for the next one.
    fn accept(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;
    /// Who is at the other end.
    fn peer(_stream: &Self::Stream) -> Option<Peer> {
        None
    }
}

impl Accept for TcpListener {
    type Stream = tokio::net::TcpStream;
    async fn accept(&self) -> std::io::Result<Self::Stream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;
    async fn accept(&self) -> std::io::Result<Self::Stream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
    fn peer(stream: &Self::Stream) -> Option<Peer> {
        stream.peer_cred().ok().map(|credentials| Peer { uid: credentials.uid() })
    }
}

/// Serves until the tasks' stop token is cancelled.
pub async fn serve<A: Accept>(listener: A, routes: Routes, tasks: Tasks) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let stop = tasks.stop_token();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (stream, place) = match (accepted, Arc::clone(&places).try_acquire_owned()) {
            (Ok(stream), Ok(place)) => (stream, place),
            // Full: dropping the connection is the answer.
            (Ok(_), Err(_)) => continue,
            (Err(error), _) => {
                // Out of descriptors, most likely; trying again at once would only burn the processor.
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (routes, stop, peer) = (Arc::clone(&routes), stop.clone(), A::peer(&stream));
        tasks.spawn("http connection", async move {
            let _place = place;
            tokio::select! {
                () = converse(stream, peer, routes) => {}
                () = tokio::time::sleep(CONNECTION_LIMIT) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Option<Peer>, routes: Routes) {
    let service = service_fn(move |mut request| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let answer = routes(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a local caller went away");
    }
}

/// Done, and nothing to say about it.
#[must_use]
pub fn nothing() -> Answer {
    let mut answer = Answer::default();
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

/// A plain-text answer.
#[must_use]
pub fn text(status: StatusCode, body: &'static str) -> Answer {
    with_type(status, "text/plain; charset=utf-8", Bytes::from_static(body.as_bytes()))
}

/// An answer with a content type.
#[must_use]
pub fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    Response::builder()
        .status(status)
        .header(hyper::header::CONTENT_TYPE, content_type)
        .body(Full::new(body))
        .expect("constant header values are valid")
}
