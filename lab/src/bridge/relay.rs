//! The bridge's internal HTTP port: what the proxy sends goes to an agent over one of its relay connections (protocol 9).
//!
//! The bridge writes a request whole before it reads a word of the answer, as the platform's does.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::ahead::Ahead;
use super::http::{Draft, Framing, Head, Incoming, framed, recoded_path};
use super::life::Life;
use super::link::{Link, close};
use super::pool::{Condition, Offer, POLL, Taken, condition};
use super::splice::{Counts, copy_both};

type Visitor = Ahead<TcpStream>;

/// What becomes of the visitor's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Next,
    Over,
}

/// Answers request after request until the visitor leaves or something breaks.
pub(crate) async fn serve(life: &Arc<Life>, tcp: TcpStream) {
    drop(tcp.set_nodelay(true));
    let mut visitor = Ahead::new(tcp);
    while let Ok(Some(head)) = Head::read(&mut visitor).await {
        match answer(life, &mut visitor, head).await {
            Ok(After::Next) => {}
            Ok(After::Over) | Err(_) => return,
        }
    }
}

async fn answer(life: &Arc<Life>, visitor: &mut Visitor, head: Head) -> io::Result<After> {
    let (_, target) = head.words();
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let plain = match path {
        "/health" => Some((200, r#"{"status":"healthy"}"#)),
        "/ready" if life.is_stopping() => Some((503, r#"{"status":"draining"}"#)),
        "/ready" => Some((200, r#"{"status":"ready"}"#)),
        "/metrics" => Some((200, "")),
        _ => None,
    };
    if let Some((status, text)) = plain {
        return refuse(visitor, status, text).await;
    }
    let addressed = path.strip_prefix("/relay/").map(|rest| rest.split_once('/').unwrap_or((rest, "")));
    let Some((agent, path)) = addressed.and_then(|(agent, path)| Some((recoded_path(agent)?, recoded_path(path)?)))
    else {
        return refuse(visitor, 404, "404 page not found\n").await;
    };
    let target = query.map_or_else(|| format!("/{path}"), |query| format!("/{path}?{query}"));
    let Some(taken) = acquire(life, &agent).await else {
        return refuse(visitor, 502, "no relay connection\n").await;
    };
    Exchange { life, agent, number: taken.number }.run(visitor, &head, &target, *taken).await
}

/// The first free connection; waits for one only if there are any at all.
async fn acquire(life: &Arc<Life>, agent: &str) -> Option<Box<Taken>> {
    let begun = Instant::now();
    loop {
        match life.pool.take(agent) {
            Offer::Free(taken) => return Some(taken),
            Offer::Nothing => return None,
            Offer::AllBusy if begun.elapsed() >= life.base.options.relay_wait => return None,
            Offer::AllBusy => tokio::time::sleep(POLL).await,
        }
    }
}

/// An answer of the bridge's own. The request's body was not read, so the connection ends with it.
async fn refuse(visitor: &mut Visitor, status: u16, text: &str) -> io::Result<After> {
    let mut draft = Draft::new(&format!("HTTP/1.1 {status} {}", reason(status)));
    draft.field("Content-Type", "text/plain; charset=utf-8");
    draft.field("Content-Length", text.len().to_string());
    draft.field("Connection", "close");
    visitor.write_all(&[&draft.finish(), text.as_bytes()].concat()).await?;
    visitor.flush().await?;
    visitor.shutdown().await?;
    // What is left unread would turn the end into a reset and take the answer with it.
    let drain = async { while visitor.take(usize::MAX).await.is_ok_and(|piece| piece.is_some()) {} };
    drop(tokio::time::timeout(std::time::Duration::from_secs(2), drain).await);
    Ok(After::Over)
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        404 => "Not Found",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

/// One request on one relay connection.
struct Exchange<'a> {
    life: &'a Arc<Life>,
    agent: String,
    number: u64,
}

/// How an exchange ended, as far as its relay connection is concerned.
enum Outcome {
    /// It can be used again.
    Usable(After),
    /// It answered, and that was its last answer.
    Spent(After),
    /// It left the pool, to be read until its agent closes it.
    Streamed,
    /// It becomes a tunnel.
    Upgraded,
    /// Nothing was answered.
    Failed,
}

impl Exchange<'_> {
    async fn run(self, visitor: &mut Visitor, head: &Head, target: &str, taken: Taken) -> io::Result<After> {
        let Taken { mut link, reaped, .. } = taken;
        let outcome = tokio::select! {
            outcome = self.exchange(visitor, head, target, &mut link) => outcome,
            () = reaped.notified() => Err(io::ErrorKind::ConnectionAborted.into()),
        };
        let pool = &self.life.pool;
        match outcome {
            Ok(Outcome::Usable(after)) => {
                if let Some(reaped) = pool.give_back(&self.agent, self.number, link) {
                    close(reaped).await;
                }
                Ok(after)
            }
            Ok(Outcome::Spent(after)) => {
                pool.remove(&self.agent, self.number);
                close(link).await;
                Ok(after)
            }
            Ok(Outcome::Failed) => {
                pool.remove(&self.agent, self.number);
                close(link).await;
                refuse(visitor, 502, "relay failed\n").await
            }
            Ok(Outcome::Streamed) => {
                // The visitor's connection has ended by then, one way or the other.
                while link.take(usize::MAX).await.is_ok_and(|piece| piece.is_some()) {}
                pool.detached_ended(&self.agent);
                Ok(After::Over)
            }
            Ok(Outcome::Upgraded) => {
                copy_both(visitor, &mut link, &Counts::default(), false).await;
                tokio::join!(close(link), async { drop(visitor.shutdown().await) });
                pool.detached_ended(&self.agent);
                Ok(After::Over)
            }
            Err(error) => {
                pool.remove(&self.agent, self.number);
                close(link).await;
                Err(error)
            }
        }
    }

    /// An error means that an answer had begun, or that the visitor broke off.
    async fn exchange(&self, visitor: &mut Visitor, head: &Head, target: &str, link: &mut Link) -> io::Result<Outcome> {
        match condition(link) {
            Condition::Quiet => {}
            Condition::Ended => return Ok(Outcome::Failed),
            Condition::Speaking => {
                self.life.base.note(|seen| seen.unsolicited += 1);
                return Ok(Outcome::Failed);
            }
        }
        if !self.send(visitor, head, target, link).await? {
            return Ok(Outcome::Failed);
        }
        let Ok(Some(answer)) = Head::read(link).await else { return Ok(Outcome::Failed) };
        let Some(status) = answer.status() else { return Ok(Outcome::Failed) };
        self.life.pool.answered(&self.agent, self.number);
        if status == 101 {
            self.life.pool.detach(&self.agent, self.number);
            visitor.write_all(&switching(&answer)).await?;
            return Ok(Outcome::Upgraded);
        }
        if (100..200).contains(&status) {
            self.life.base.note(|seen| seen.interim_taken_as_final += 1);
        }
        let media = answer.get("content-type").unwrap_or_default().to_ascii_lowercase();
        if media.starts_with("text/event-stream") {
            self.life.pool.detach(&self.agent, self.number);
            self.stream(visitor, head, &answer, link).await;
            return Ok(Outcome::Streamed);
        }
        self.copy_answer(visitor, head, &answer, link).await
    }

    /// Head and body in records of their own. False if the relay connection broke; an error if the visitor did.
    async fn send(&self, visitor: &mut Visitor, head: &Head, target: &str, link: &mut Link) -> io::Result<bool> {
        let framing = head.request_framing()?;
        if write(link, request(head, target, framing)).await.is_err() {
            return Ok(false);
        }
        if head.lists("expect", "100-continue") {
            visitor.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let mut body = Incoming::new(framing);
        while let Some(piece) = body.next(visitor).await? {
            if write(link, framed(framing, Some(piece))).await.is_err() {
                return Ok(false);
            }
        }
        Ok(write(link, framed(framing, None)).await.is_ok())
    }

    async fn copy_answer(
        &self,
        visitor: &mut Visitor,
        request: &Head,
        answer: &Head,
        link: &mut Link,
    ) -> io::Result<Outcome> {
        let framing = answer.response_framing(request.words().0)?;
        let outward = outward(framing);
        visitor.write_all(&response(answer, outward, request)).await?;
        let mut body = Incoming::new(framing);
        while let Some(piece) = body.next(link).await? {
            visitor.write_all(&framed(outward, Some(piece))).await?;
        }
        visitor.write_all(&framed(outward, None)).await?;
        visitor.flush().await?;
        let after = if request.lists("connection", "close") { After::Over } else { After::Next };
        if !link.surplus().is_empty() {
            self.life.base.note(|seen| seen.unsolicited += 1);
            return Ok(Outcome::Spent(after));
        }
        let last = framing == Framing::UntilEnd || answer.lists("connection", "close");
        Ok(if last { Outcome::Spent(after) } else { Outcome::Usable(after) })
    }

    /// Passes a stream on for as long as the visitor listens, and reads it to its end in any case.
    async fn stream(&self, visitor: &mut Visitor, request: &Head, answer: &Head, link: &mut Link) {
        let Ok(framing) = answer.response_framing(request.words().0) else { return };
        let outward = outward(framing);
        let mut listening = visitor.write_all(&response(answer, outward, request)).await.is_ok();
        let mut body = Incoming::new(framing);
        loop {
            match body.next(link).await {
                Ok(Some(piece)) => {
                    listening = listening && visitor.write_all(&framed(outward, Some(piece))).await.is_ok();
                }
                Ok(None) => {
                    drop(visitor.write_all(&framed(outward, None)).await);
                    break;
                }
                Err(_) => break,
            }
        }
        drop(visitor.shutdown().await);
    }
}

async fn write(link: &mut Link, bytes: Bytes) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    link.write_all(&bytes).await?;
    link.flush().await
}

/// The head as the agent gets it.
fn request(head: &Head, target: &str, framing: Framing) -> Bytes {
    let mut draft = Draft::new(&format!("{} {target} HTTP/1.1", head.words().0));
    let host = head.get("x-bamf-forward-host").or_else(|| head.get("host")).unwrap_or_default();
    draft.field("Host", host);
    draft.field("User-Agent", head.get("user-agent").unwrap_or("Go-http-client/1.1"));
    match framing {
        Framing::Chunked => draft.field("Transfer-Encoding", "chunked"),
        Framing::Length(length) if length > 0 || head.get("content-length").is_some() => {
            draft.field("Content-Length", length.to_string());
        }
        Framing::Length(_) | Framing::UntilEnd => {}
    }
    match head.get("upgrade") {
        Some(upgrade) => {
            draft.field("Connection", "Upgrade");
            draft.field("Upgrade", upgrade);
        }
        None => draft.field("Connection", "keep-alive"),
    }
    let written = ["host", "user-agent", "content-length", "x-bamf-forward-host"];
    for (name, value) in head.end_to_end() {
        if !written.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            draft.field(name, value);
        }
    }
    draft.finish()
}

/// How a body goes on to the visitor: chunked when its length is not known.
const fn outward(framing: Framing) -> Framing {
    match framing {
        Framing::Length(length) => Framing::Length(length),
        Framing::Chunked | Framing::UntilEnd => Framing::Chunked,
    }
}

/// The head as the visitor gets it.
fn response(answer: &Head, framing: Framing, request: &Head) -> Bytes {
    let mut draft = Draft::new(&answer.start);
    for (name, value) in answer.end_to_end() {
        draft.field(name, value);
    }
    let interim = matches!(answer.status(), Some(100..200));
    match framing {
        Framing::Chunked | Framing::UntilEnd => draft.field("Transfer-Encoding", "chunked"),
        Framing::Length(_) if interim => draft.field("Content-Length", "0"),
        Framing::Length(_) => {}
    }
    if request.lists("connection", "close") {
        draft.field("Connection", "close");
    }
    draft.finish()
}

/// A 101 goes on as it came.
fn switching(answer: &Head) -> Bytes {
    let mut draft = Draft::new(&answer.start);
    for (name, value) in &answer.fields {
        draft.field(name, value);
    }
    draft.finish()
}
