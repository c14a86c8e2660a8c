//! One relay connection as a state machine: bytes in, bytes out, and what to do next. Pure.
//!
//! ```text
//!            head              connected                 response complete
//!  Waiting ───────► Dialling ───────────► Serving ─────────────────────────────► Waiting
//!     │  refused       │ failed              │ 101 ─► Spliced      body unread ─► Discarding ─► Waiting
//!     └────────────────┴──► own answer       └ truncated ──────────────────────► Closing
//! ```
//!
//! A [`Conversation`] is plain data, sockets lie beside it: the driver can stop between any two calls, carry it to
//! another process and go on there. The order of calls does not matter; the driver asks what is [`needed`](
//! Conversation::need), whether bytes are wanted, what is to be written, and reports what happened.
//!
//! Which status says what (protocol 9.4): the proxy repeats a request of any method whose answer is 502. So 502 is said
//! only where surely nothing reached the target. Everything that fails later is 504, not 500: the application did not
//! fail, its answer did not arrive, and that is how gateways and those who watch them call it. A 502 of the target's own
//! passes for a method that may be repeated; for any other it becomes a 504, or one POST would run three times.

mod request;
mod response;
mod state;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use self::state::Impossible;
use super::body::Decoder;
use super::head;
use super::headers;
use super::route::Target;

/// More than this waiting to be written stops the reading at the other side.
pub const HIGH_WATER: usize = 64 * 1024;
/// What is left of a request's body when its answer is complete is read up to here, then the connection is closed. Much:
/// a bridge reads no word of the answer before its request is written, so a connection that ends in between costs the
/// answer, a 413 to a long upload for one, and the proxy repeats the upload. It has the body in memory; it comes fast.
const MAX_DISCARD: u64 = 256 * 1024 * 1024;
/// Interim responses before the final one; they are swallowed.
const MAX_INTERIM: u8 = 32;

/// A request, ready for its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Where it goes.
    pub target: Target,
    /// The head as the target gets it.
    pub head: Vec<u8>,
    /// It asks to leave HTTP behind.
    pub upgrade: bool,
}

/// The agent's own answer instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Status code.
    pub status: u16,
    /// What it says.
    pub text: Cow<'static, str>,
}

impl Refusal {
    /// An answer with this status and text.
    pub fn new(status: u16, text: impl Into<Cow<'static, str>>) -> Self {
        Self { status, text: text.into() }
    }
}

/// Decides about requests: where each goes, or why not.
pub trait Rules {
    /// Judges a head whose body is framed so.
    ///
    /// # Errors
    /// The answer that the request gets instead.
    fn prepare(&self, head: &head::Request<'_>, framing: super::body::Framing) -> Result<Prepared, Refusal>;
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need<'a> {
    /// Read and write.
    Transfer,
    /// Connect to this target, then say [`Conversation::dialled`] or [`Conversation::not_dialled`].
    Dial {
        /// Where.
        target: &'a Target,
        /// Which connections will do.
        reuse: Reuse,
    },
    /// Everything is written: close the bridge's connection in good order.
    Close,
}

/// Which connections to a target will do for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Any.
    Any,
    /// A fresh one, or one that was used a moment ago: the request cannot be repeated if the target is just closing it.
    Recent,
    /// A fresh one.
    Never,
}

/// What the connection waits for, so that the driver can limit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A stream, or nothing: no limit.
    Unlimited,
    /// The next request.
    Request,
    /// The rest of a request's head.
    RequestHead,
    /// A response's head.
    ResponseHead,
    /// Progress of a body, in either direction.
    Body,
    /// Progress of the rest of a body that nobody wants.
    Discard,
    /// The last bytes to be taken.
    Close,
}

/// What becomes of the connection to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// It can serve the next request.
    Reuse,
    /// It cannot.
    Drop,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The target's answer, by its status.
    Relayed(u16),
    /// The agent's own answer.
    Answered(u16),
    /// Cut off after the response had begun.
    Truncated,
}

/// Everything that is known about one relay connection between two calls. Whoever deserialises one calls
/// [`Conversation::checked`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    phase: Phase,
    /// Read from the bridge and not used yet.
    #[serde(with = "serde_bytes")]
    bridge_in: Vec<u8>,
    /// Read from the target and not used yet: the beginning of a head.
    #[serde(with = "serde_bytes")]
    target_in: Vec<u8>,
    /// Invariant: how many bytes of the input that waits for the end of a head were searched for it.
    searched: usize,
    bridge_out: Outbox,
    target_out: Outbox,
    /// The connection ends with the present exchange.
    closing: bool,
    /// Something of the bridge's stays unread at the end.
    unread: bool,
    /// Not part of the state: told to the driver within the same call.
    #[serde(skip)]
    release: Option<Release>,
    #[serde(skip)]
    outcome: Option<Outcome>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    #[default]
    Waiting,
    Dialling(Box<Exchange>),
    Serving(Box<Exchange>),
    Discarding {
        body: Decoder,
        allowed: u64,
    },
    Spliced,
    Closing,
    Closed,
}

/// A request on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Exchange {
    target: Target,
    /// The method is HEAD.
    to_head: bool,
    idempotent: bool,
    upgrade: bool,
    /// The request's body as it comes.
    body: Decoder,
    /// The request's body goes on in chunks.
    chunked: bool,
    /// Bytes of the body were taken, so that the request cannot be sent again.
    body_begun: bool,
    /// The head, kept while the request could have to be sent again.
    #[serde(with = "serde_bytes")]
    head: Vec<u8>,
    /// The target's connection served another request before.
    reused: bool,
    /// The request was tried on a connection that turned out to be dead.
    repeated: bool,
    /// Something was written to the target.
    reached: bool,
    /// The target takes no more of the request.
    cut: bool,
    answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Head { interim: u8 },
    Body { status: u16, body: Decoder, chunked: bool, persistent: bool, stream: bool },
}

/// Bytes on their way out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Outbox {
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    fn pending(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    const fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    const fn is_full(&self) -> bool {
        self.bytes.len() - self.sent >= HIGH_WATER
    }

    /// Where to append. What was sent goes first, so that a long body does not pile up.
    fn tail(&mut self) -> &mut Vec<u8> {
        if self.sent > 0 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        &mut self.bytes
    }

    /// Buffers are given back when empty: most connections are idle most of the time.
    fn advance(&mut self, count: usize) {
        self.sent = (self.sent + count).min(self.bytes.len());
        if self.is_empty() {
            self.clear();
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Conversation {
    /// A connection on which nothing has happened.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What the driver has to do next.
    #[must_use]
    pub fn need(&self) -> Need<'_> {
        match &self.phase {
            Phase::Dialling(exchange) => Need::Dial { target: &exchange.target, reuse: exchange.reuse() },
            Phase::Closing if self.bridge_out.is_empty() && self.target_out.is_empty() => Need::Close,
            Phase::Closed => Need::Close,
            Phase::Waiting | Phase::Serving(_) | Phase::Discarding { .. } | Phase::Spliced | Phase::Closing => {
                Need::Transfer
            }
        }
    }

    /// True if bytes from the bridge are of use.
    #[must_use]
    pub fn wants_bridge(&self) -> bool {
        match &self.phase {
            // A next request before the answer was sent would be pipelined.
            Phase::Waiting => self.bridge_out.is_empty(),
            Phase::Serving(exchange) if exchange.body.is_done() => {
                // Only to notice that the bridge went away, or the first bytes of what an upgrade leads to.
                !self.unread && self.bridge_in.len() < HIGH_WATER
            }
            Phase::Serving(exchange) => !exchange.cut && !self.target_out.is_full(),
            Phase::Discarding { .. } => true,
            Phase::Spliced => !self.target_out.is_full(),
            Phase::Dialling(_) | Phase::Closing | Phase::Closed => false,
        }
    }

    /// True if bytes from the target are of use.
    #[must_use]
    pub const fn wants_target(&self) -> bool {
        matches!(self.phase, Phase::Serving(_) | Phase::Spliced) && !self.bridge_out.is_full()
    }

    /// What to write to the bridge.
    #[must_use]
    pub fn bridge_output(&self) -> &[u8] {
        self.bridge_out.pending()
    }

    /// What to write to the target.
    #[must_use]
    pub fn target_output(&self) -> &[u8] {
        self.target_out.pending()
    }

    /// The bridge took so many bytes.
    pub fn wrote_bridge(&mut self, count: usize) {
        self.bridge_out.advance(count);
    }

    /// The target took so many bytes.
    pub fn wrote_target(&mut self, count: usize) {
        if let Phase::Serving(exchange) = &mut self.phase {
            exchange.reached |= count > 0;
        }
        self.target_out.advance(count);
    }

    /// True between two requests, with nothing half read.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Waiting) && self.bridge_in.is_empty() && self.bridge_out.is_empty()
    }

    /// True while a response streams that has no end of its own, or another protocol is spoken: such a connection is out
    /// of the bridge's pool.
    #[must_use]
    pub const fn is_detached(&self) -> bool {
        match &self.phase {
            Phase::Spliced => true,
            Phase::Serving(exchange) => matches!(exchange.answer, Answer::Body { stream: true, .. }),
            Phase::Waiting | Phase::Dialling(_) | Phase::Discarding { .. } | Phase::Closing | Phase::Closed => false,
        }
    }

    /// True while another protocol is spoken.
    #[must_use]
    pub const fn is_spliced(&self) -> bool {
        matches!(self.phase, Phase::Spliced)
    }

    /// True if the target's connection is in use; the driver need not carry another.
    #[must_use]
    pub const fn uses_target(&self) -> bool {
        matches!(self.phase, Phase::Serving(_) | Phase::Spliced) || !self.target_out.is_empty()
    }

    /// True if the end leaves bytes of the bridge unread, so that closing at once could cost it the answer.
    #[must_use]
    pub const fn leaves_unread(&self) -> bool {
        self.unread && !matches!(self.phase, Phase::Closed)
    }

    /// What the connection waits for.
    #[must_use]
    pub fn wait(&self) -> Wait {
        match &self.phase {
            Phase::Waiting if !self.bridge_out.is_empty() => Wait::Body,
            Phase::Waiting if !self.bridge_in.is_empty() => Wait::RequestHead,
            Phase::Waiting => Wait::Request,
            Phase::Spliced | Phase::Dialling(_) | Phase::Closed => Wait::Unlimited,
            Phase::Serving(exchange) => match &exchange.answer {
                Answer::Head { .. } if exchange.cut => Wait::ResponseHead,
                Answer::Head { .. } if exchange.body.is_done() && self.target_out.is_empty() => Wait::ResponseHead,
                Answer::Body { stream: true, .. } => Wait::Unlimited,
                Answer::Head { .. } | Answer::Body { .. } => Wait::Body,
            },
            Phase::Discarding { .. } => Wait::Discard,
            Phase::Closing => Wait::Close,
        }
    }

    /// The connection to the target is not needed any more.
    pub const fn take_release(&mut self) -> Option<Release> {
        self.release.take()
    }

    /// A request has ended.
    pub const fn take_outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    /// The connection shall end after the present request; at once if there is none.
    pub fn finish_soon(&mut self) {
        self.closing = true;
        if matches!(self.phase, Phase::Waiting) && self.bridge_in.is_empty() {
            self.phase = Phase::Closing;
        }
    }

    /// The limit for `wait` is over.
    pub fn timed_out(&mut self, wait: Wait, rules: &dyn Rules) {
        match (wait, &self.phase) {
            (Wait::ResponseHead, Phase::Serving(_)) => self.fail_exchange("the target did not answer in time"),
            (Wait::Body, Phase::Serving(_)) => self.fail_exchange("the request or its answer stood still"),
            (Wait::Close, _) | (Wait::Body, Phase::Waiting) => self.abandon(),
            (Wait::RequestHead | Wait::Discard, _) => self.close_unread(),
            (Wait::Request, _) => self.finish_soon(),
            (Wait::Unlimited | Wait::ResponseHead | Wait::Body, _) => {}
        }
        self.resume_bridge(rules);
    }

    /// What the bridge sends from here on is not read any more.
    fn close_unread(&mut self) {
        self.closing = true;
        self.unread = true;
        self.phase = Phase::Closing;
    }

    /// Nothing more can be written to the bridge, or it went away: whatever is under way is pointless.
    pub fn abandon(&mut self) {
        if matches!(self.phase, Phase::Serving(_)) {
            self.outcome = Some(Outcome::Truncated);
        }
        if self.uses_target() {
            self.release = Some(Release::Drop);
        }
        self.bridge_out.clear();
        self.target_out.clear();
        self.bridge_in = Vec::new();
        self.target_in = Vec::new();
        self.phase = Phase::Closed;
    }

    /// The present exchange cannot go on: the agent's own answer if none has begun, else the end.
    fn fail_exchange(&mut self, text: &'static str) {
        let Phase::Serving(exchange) = std::mem::replace(&mut self.phase, Phase::Closing) else { return };
        self.drop_target();
        match exchange.answer {
            Answer::Head { .. } => {
                let status = if exchange.reached { 504 } else { 502 };
                self.answer(&Refusal::new(status, text), exchange.body, exchange.to_head);
            }
            // The end of the connection within the body is the only way left to say that it is not complete.
            Answer::Body { .. } => {
                self.closing = true;
                self.outcome = Some(Outcome::Truncated);
            }
        }
    }

    fn drop_target(&mut self) {
        self.target_out.clear();
        self.target_in = Vec::new();
        self.searched = 0;
        self.release = Some(Release::Drop);
    }

    /// Queues the agent's own answer to a request of which `body` is not read yet.
    fn answer(&mut self, refusal: &Refusal, body: Decoder, to_head: bool) {
        self.closing |= body.known_rest() > MAX_DISCARD;
        let bytes = headers::answer(refusal.status, &refusal.text, self.closing, to_head);
        self.bridge_out.tail().extend_from_slice(&bytes);
        self.outcome = Some(Outcome::Answered(refusal.status));
        self.end_exchange(body);
    }

    /// The response is complete. What is left of the request's body must never be taken for a next request.
    fn end_exchange(&mut self, body: Decoder) {
        if self.closing || body.known_rest() > MAX_DISCARD {
            self.unread |= !body.is_done();
            self.closing = true;
            self.phase = Phase::Closing;
        } else if body.is_done() {
            self.phase = Phase::Waiting;
        } else {
            self.phase = Phase::Discarding { body, allowed: MAX_DISCARD };
        }
    }
}

#[cfg(test)]
mod tests;
