//! The proxy's side of the relay: what the platform's proxy sends to a bridge's internal port on behalf of a browser.
//!
//! The requests are those of protocol 9.4 and 9.8: the browser's own, without what a browser must not say of itself, and
//! with what the proxy knows about the user and the resource.
//!
//! ```text
//!   test ── Visitor ── HTTP ──► bridge: /relay/AGENT/PATH ──► relay connection ──► agent ──► target
//! ```

mod bench;
mod front_door;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{HeaderMap, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;

pub use bench::Measured;
pub use front_door::FrontDoor;
pub use request::{Kind, Resource, User};

/// The longest answer to a replayed 502, as the proxy words it.
const UNAVAILABLE: &[u8] = b"Service temporarily unavailable";
/// How often the proxy repeats a request that was answered with 502 (protocol 9.4).
const REPLAYS: usize = 2;
const MOST_EVENT: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bridge cannot be reached, or the connection ended.
    #[error("the bridge's internal port")]
    Io(#[from] io::Error),
    /// There is no whole HTTP answer.
    #[error("no whole answer through the relay")]
    Http(#[from] hyper::Error),
    /// The request cannot be made.
    #[error("this is no request")]
    Request(#[from] hyper::http::Error),
    /// No WebSocket came of it. An answer other than 101 is in here.
    #[error("no WebSocket through the relay")]
    WebSocket(#[source] Box<tungstenite::Error>),
}

/// An answer as a browser would see it.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Header.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// How often the request was sent.
    pub sent: usize,
}

impl Answer {
    /// The first value of a header field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `null` if it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// A user who visits one resource.
#[derive(Clone, Debug)]
pub struct Visitor {
    bridge: SocketAddr,
    /// Empty where there is none in between.
    agent: String,
    resource: Resource,
    user: User,
    replays: bool,
}

impl Visitor {
    /// A user who visits `resource` of the agent with this name, through the bridge with this internal address.
    #[must_use]
    pub fn new(bridge: SocketAddr, agent: &str, resource: Resource) -> Self {
        Self { bridge, agent: agent.to_owned(), resource, user: User::default(), replays: false }
    }

    /// A user who is next to the target: no bridge, no agent.
    #[must_use]
    pub fn straight(target: SocketAddr, resource: Resource) -> Self {
        Self::new(target, "", resource)
    }

    /// The same visit by another user.
    #[must_use]
    pub fn by(self, user: User) -> Self {
        Self { user, ..self }
    }

    /// Repeat what was answered with 502 up to two times, as the proxy does, and show 503 then.
    #[must_use]
    pub fn with_replays(self) -> Self {
        Self { replays: true, ..self }
    }

    /// Opens a connection to the bridge that is kept for several requests.
    ///
    /// # Errors
    /// The bridge cannot be reached.
    pub async fn session(&self) -> Result<Visit, Error> {
        Ok(Visit { visitor: self.clone(), sender: self.connect().await? })
    }

    /// One request on a connection of its own.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, Error> {
        self.session().await?.ask(method, path, headers, body).await
    }

    /// [`Self::ask`] with GET, waited for.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn get(&self, path: &str) -> Result<Answer, Error> {
        self.send("GET", path, &[], b"")
    }

    /// [`Self::ask`], waited for.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, Error> {
        crate::runtime::block_on(self.ask(method, path, headers, body))
    }

    /// The bytes of a request's head as the proxy would write them, to be sent by hand with a body that misbehaves.
    #[must_use]
    pub fn head(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
        let fields = request::fields(&self.resource, &self.user, headers);
        let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{method} {} HTTP/1.1\r\n{fields}\r\n", self.path(path))
    }

    /// Reads an answer piece by piece; dropping it leaves the browser's way.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stream(&self, path: &str) -> Result<Events, Error> {
        let mut sender = self.connect().await?;
        let request = self.request("GET", path, &[("Accept", "text/event-stream")], Bytes::new())?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let answer = Response::from_parts(head, ());
        Ok(Events {
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
            body,
            text: String::new(),
            _sender: sender,
        })
    }

    /// Opens a WebSocket. The proxy makes the request itself and passes on sub-protocols only.
    ///
    /// # Errors
    /// See [`Error`]; an answer other than 101 is [`tungstenite::Error::Http`] inside.
    pub async fn websocket(&self, path: &str, protocol: Option<&str>) -> Result<WebSocketStream<TcpStream>, Error> {
        let stream = self.tcp().await?;
        let mut request = hyper::Request::get(format!("ws://{}{}", self.bridge, self.path(path)))
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", tungstenite::handshake::client::generate_key());
        let offered = protocol.map(|name| ("Sec-WebSocket-Protocol", name));
        for (name, value) in request::fields(&self.resource, &self.user, offered.as_slice()) {
            request = request.header(name, value);
        }
        let opened = tokio_tungstenite::client_async(request.body(())?, stream).await;
        opened.map(|(socket, _)| socket).map_err(|error| Error::WebSocket(Box::new(error)))
    }

    fn path(&self, path: &str) -> String {
        if self.agent.is_empty() { path.to_owned() } else { format!("/relay/{}{path}", self.agent) }
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<hyper::Request<Full<Bytes>>, Error> {
        let mut request = hyper::Request::builder().method(method).uri(self.path(path));
        for (name, value) in request::fields(&self.resource, &self.user, headers) {
            request = request.header(name, value);
        }
        Ok(request.body(Full::new(body))?)
    }

    async fn tcp(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.bridge).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Error> {
        let stream = TokioIo::new(self.tcp().await?);
        let mut builder = hyper::client::conn::http1::Builder::new();
        let (sender, connection) = builder.preserve_header_case(true).handshake(stream).await?;
        // It ends when the sender and the body are gone, or with an error that the sender has as well.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}

/// A connection to the bridge, for one request after the other.
#[derive(Debug)]
pub struct Visit {
    visitor: Visitor,
    sender: SendRequest<Full<Bytes>>,
}

impl Visit {
    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, Error> {
        let body = Bytes::copy_from_slice(body);
        let tries = if self.visitor.replays { 1 + REPLAYS } else { 1 };
        let mut sent = 0;
        loop {
            sent += 1;
            let answer = self.once(method, path, headers, body.clone(), sent).await?;
            if answer.status != 502 || !self.visitor.replays {
                return Ok(answer);
            }
            if sent == tries {
                let headers = HeaderMap::from_iter([(hyper::header::RETRY_AFTER, hyper::header::HeaderValue::from(5))]);
                return Ok(Answer { status: 503, headers, body: Bytes::from_static(UNAVAILABLE), sent });
            }
        }
    }

    async fn once(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
        sent: usize,
    ) -> Result<Answer, Error> {
        if self.sender.ready().await.is_err() {
            self.sender = self.visitor.connect().await?;
        }
        let request = self.visitor.request(method, path, headers, body)?;
        let (head, body): (_, Incoming) = self.sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body, sent })
    }
}

/// An answer that is read event by event.
#[derive(Debug)]
pub struct Events {
    /// Status.
    pub status: u16,
    /// Header.
    pub headers: HeaderMap,
    body: Incoming,
    text: String,
    _sender: SendRequest<Full<Bytes>>,
}

impl Events {
    /// The next event's text without the empty line behind it; `None` at the end of the stream.
    ///
    /// # Errors
    /// The stream was cut, or is silent for longer than `limit`.
    pub async fn next(&mut self, limit: Duration) -> Result<Option<String>, Error> {
        let next = tokio::time::timeout(limit, self.read()).await;
        next.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    /// The next bytes of the body as they come, for what is no event stream; `None` at the end.
    ///
    /// # Errors
    /// The answer was cut, or is silent for longer than `limit`.
    pub async fn piece(&mut self, limit: Duration) -> Result<Option<Bytes>, Error> {
        let next = tokio::time::timeout(limit, self.data()).await;
        next.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    async fn data(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    async fn read(&mut self) -> Result<Option<String>, Error> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                return Ok(Some(event));
            }
            if self.text.len() > MOST_EVENT {
                return Err(io::Error::other("an event does not end").into());
            }
            match self.data().await? {
                None => return Ok(None),
                Some(data) => self.text.push_str(&String::from_utf8_lossy(&data)),
            }
        }
    }
}
