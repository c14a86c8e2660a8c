//! Answers, before and after they become HTTP: decided as plain values, torn or endless where a fault wants it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::serve::Body;

/// Bytes of a [`Content::Huge`] body: far above any sensible limit, and still an end.
const HUGE_BODY: usize = 256 << 20;
const HUGE_PIECE: usize = 64 << 10;

/// An answer that was decided.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) content: Content,
}

pub(crate) enum Content {
    Whole(Bytes),
    /// Announced at full length; the connection ends after the first half.
    Torn(Bytes),
    /// Well-formed JSON of 256 MiB.
    Huge,
    /// What a stream's feed puts in.
    Pieces(Pieces),
}

impl Reply {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self::text(status, "application/json", body.to_string())
    }

    pub(crate) fn text(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, content_type, headers: Vec::new(), content: Content::Whole(body.into()) }
    }

    /// A refusal as the API words it: text in `detail`.
    pub(crate) fn detail(status: u16, detail: &str) -> Self {
        Self::json(status, &json!({ "detail": detail }))
    }

    /// A 422: `detail` is an array of objects.
    pub(crate) fn invalid(problems: super::schema::Problems) -> Self {
        Self::json(422, &json!({ "detail": problems }))
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    /// The same answer, cut off half way.
    pub(crate) fn torn(self) -> Self {
        let content = match self.content {
            Content::Whole(body) => Content::Torn(body),
            Content::Pieces(_) => {
                Content::Torn(Bytes::from_static(b"event: tunnel_request\ndata: {\"command\":\"dial\"}\n\n"))
            }
            other @ (Content::Torn(_) | Content::Huge) => other,
        };
        Self { content, ..self }
    }

    pub(crate) fn into_response(self) -> io::Result<Response<Body>> {
        let mut response = Response::builder().status(self.status).header("content-type", self.content_type);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        let body = match self.content {
            Content::Whole(body) => Full::new(body).map_err(|never| match never {}).boxed(),
            Content::Torn(body) => {
                response = response.header("content-length", body.len());
                torn(&body).boxed()
            }
            Content::Huge => huge().boxed(),
            Content::Pieces(pieces) => pieces.boxed(),
        };
        response.body(body).map_err(io::Error::other)
    }
}

/// The error that makes the server drop a connection.
pub(crate) fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "cut on purpose")
}

/// A part of a body.
pub(crate) enum Piece {
    Data(Bytes),
    /// The connection ends here, in the middle of the body.
    Cut,
}

/// A body fed through a channel.
pub(crate) struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    cutting: bool,
}

impl Pieces {
    /// The body and what feeds it. One piece waits at most: what was popped from a queue must not pile up here.
    pub(crate) fn new() -> (mpsc::Sender<Piece>, Self) {
        let (sender, receiver) = mpsc::channel(1);
        (sender, Self { receiver, cutting: false })
    }
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.cutting {
            return Poll::Ready(Some(Err(cut())));
        }
        match ready!(self.receiver.poll_recv(context)) {
            Some(Piece::Data(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Piece::Cut) => {
                // The server writes out what it has only when the body makes it wait, and drops it on an error.
                self.cutting = true;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(None),
        }
    }
}

fn torn(body: &Bytes) -> Pieces {
    let (sender, pieces) = Pieces::new();
    let half = body.slice(..body.len() / 2);
    tokio::spawn(async move {
        if sender.send(Piece::Data(half)).await.is_ok() {
            drop(sender.send(Piece::Cut).await);
        }
    });
    pieces
}

fn huge() -> Pieces {
    let (sender, pieces) = Pieces::new();
    tokio::spawn(async move {
        let filling = Bytes::from(vec![b'x'; HUGE_PIECE]);
        let start = std::iter::once(Bytes::from_static(b"{\"message\":\""));
        let end = std::iter::once(Bytes::from_static(b"\"}"));
        for piece in start.chain(std::iter::repeat_n(filling, HUGE_BODY / HUGE_PIECE)).chain(end) {
            if sender.send(Piece::Data(piece)).await.is_err() {
                return;
            }
        }
    });
    pieces
}
