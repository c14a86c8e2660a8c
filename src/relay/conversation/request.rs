//! The bridge's half of a conversation: heads, bodies on their way to the target, and what must not be there.

use super::{Answer, Conversation, Exchange, MAX_INTERIM, Outcome, Phase, Refusal, Release, Reuse, Rules};
use crate::relay::body::{Decoder, Framing, LAST_CHUNK, encode_chunk};
use crate::relay::head::{self, Search};
use crate::relay::headers;

impl Exchange {
    pub(super) const fn reuse(&self) -> Reuse {
        if self.upgrade || self.repeated {
            Reuse::Never
        } else if self.idempotent && self.body.is_done() {
            Reuse::Any
        } else {
            Reuse::Recent
        }
    }

    /// True if the target may have closed this connection before it saw the request (RFC 9112 9.3.1).
    pub(super) const fn may_repeat(&self) -> bool {
        let untouched = matches!(self.answer, Answer::Head { interim: 0 }) && !self.body_begun;
        self.reused && !self.repeated && untouched && (self.idempotent || !self.reached)
    }
}

impl Conversation {
    /// The bridge sent bytes.
    pub fn bridge_sent(&mut self, bytes: &[u8], rules: &dyn Rules) {
        let mut held = std::mem::take(&mut self.bridge_in);
        if held.is_empty() {
            let used = self.take_bridge(bytes, rules);
            self.bridge_in = bytes[used..].to_vec();
        } else {
            held.extend_from_slice(bytes);
            let used = self.take_bridge(&held, rules);
            held.drain(..used);
            self.bridge_in = held;
        }
        if self.bridge_in.is_empty() {
            self.bridge_in = Vec::new();
        }
    }

    /// The bridge ended its side. It never does so while it still wants an answer.
    pub fn bridge_ended(&mut self) {
        if matches!(self.phase, Phase::Spliced) {
            self.release = None;
            self.bridge_out.clear();
            self.phase = Phase::Closing;
        } else {
            self.abandon();
        }
    }

    /// The target's connection is there; `reused` if it served another request before.
    pub fn dialled(&mut self, reused: bool, rules: &dyn Rules) {
        let Phase::Dialling(mut exchange) = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return;
        };
        exchange.reused = reused;
        exchange.reached = false;
        self.target_out.clear();
        self.target_out.tail().extend_from_slice(&exchange.head);
        if !exchange.may_repeat() {
            exchange.head = Vec::new();
        }
        self.phase = Phase::Serving(exchange);
        self.bridge_sent(&[], rules);
    }

    /// The target cannot be reached: nothing of the request was sent.
    pub fn not_dialled(&mut self, refusal: &Refusal, rules: &dyn Rules) {
        let Phase::Dialling(exchange) = std::mem::replace(&mut self.phase, Phase::Closed) else { return };
        self.answer(refusal, exchange.body, exchange.to_head);
        self.bridge_sent(&[], rules);
    }

    /// Writing to the target failed. It may have answered before it stopped listening, so that its answer is still read.
    pub fn target_refuses_input(&mut self) {
        self.target_out.clear();
        match &mut self.phase {
            Phase::Serving(exchange) => exchange.cut = true,
            Phase::Spliced => self.abandon(),
            Phase::Closing => self.release = Some(Release::Drop),
            Phase::Waiting | Phase::Dialling(_) | Phase::Discarding { .. } | Phase::Closed => {}
        }
    }

    /// Uses what it can of `input` and says how much that was.
    fn take_bridge(&mut self, input: &[u8], rules: &dyn Rules) -> usize {
        let mut at = 0;
        loop {
            let rest = &input[at..];
            let used = match &mut self.phase {
                Phase::Waiting if rest.is_empty() => return at,
                // Pipelined, or a body that was longer than it said: it is not a request.
                Phase::Waiting if !self.bridge_out.is_empty() => {
                    self.close_unread();
                    rest.len()
                }
                Phase::Waiting => match self.take_head(rest, rules) {
                    Some(used) => used,
                    None => return at,
                },
                Phase::Serving(_) => match self.take_body(rest) {
                    Some(used) => used,
                    None => return at,
                },
                Phase::Discarding { .. } => match self.discard(rest) {
                    Some(used) => used,
                    None => return at,
                },
                Phase::Spliced => {
                    self.target_out.tail().extend_from_slice(rest);
                    return input.len();
                }
                Phase::Dialling(_) => return at,
                Phase::Closing | Phase::Closed => return input.len(),
            };
            at += used;
        }
    }

    fn take_head(&mut self, input: &[u8], rules: &dyn Rules) -> Option<usize> {
        match head::find_end(input, self.searched) {
            Search::NotYet => {
                self.searched = input.len();
                None
            }
            Search::TooLong => {
                self.refuse_head(431, "the request head is longer than 64 KiB");
                Some(input.len())
            }
            Search::Found(end) => {
                self.searched = 0;
                self.begin(&input[..end], rules);
                Some(end)
            }
        }
    }

    /// Where the next request begins is not known any more.
    fn refuse_head(&mut self, status: u16, text: impl Into<std::borrow::Cow<'static, str>>) {
        self.searched = 0;
        self.closing = true;
        self.unread = true;
        self.answer(&Refusal::new(status, text), Decoder::new(Framing::None), false);
    }

    fn begin(&mut self, bytes: &[u8], rules: &dyn Rules) {
        let read = head::request(bytes).and_then(|head| head::request_framing(&head).map(|framing| (head, framing)));
        let (head, framing) = match read {
            Ok(read) => read,
            Err(head::Error::TooManyFields) => return self.refuse_head(431, head::Error::TooManyFields.to_string()),
            Err(error) => return self.refuse_head(400, error.to_string()),
        };
        let body = Decoder::new(framing);
        let to_head = head.method == "HEAD";
        match rules.prepare(&head, framing) {
            Err(refusal) => self.answer(&refusal, body, to_head),
            Ok(prepared) => {
                self.phase = Phase::Dialling(Box::new(Exchange {
                    target: prepared.target,
                    to_head,
                    idempotent: headers::is_idempotent(head.method),
                    upgrade: prepared.upgrade,
                    body,
                    chunked: framing == Framing::Chunked,
                    body_begun: false,
                    head: prepared.head,
                    reused: false,
                    repeated: false,
                    reached: false,
                    cut: false,
                    answer: Answer::Head { interim: 0 },
                }));
            }
        }
    }

    /// Moves the request's body on. `None` where the input has to wait.
    fn take_body(&mut self, input: &[u8]) -> Option<usize> {
        let Phase::Serving(exchange) = &mut self.phase else { return None };
        if exchange.body.is_done() {
            if exchange.upgrade {
                return None;
            }
            if !input.is_empty() {
                // It comes before the answer was complete: pipelined, or smuggled. Never parsed.
                self.closing = true;
                self.unread = true;
            }
            return (!input.is_empty()).then_some(input.len());
        }
        if exchange.cut || input.is_empty() {
            return None;
        }
        let mut rest = input;
        loop {
            match exchange.body.next(&mut rest) {
                Ok(Some(content)) if exchange.chunked => encode_chunk(content, self.target_out.tail()),
                Ok(Some(content)) => self.target_out.tail().extend_from_slice(content),
                Ok(None) => break,
                Err(error) => {
                    self.break_off(&error);
                    return Some(input.len());
                }
            }
        }
        exchange.body_begun = true;
        exchange.head = Vec::new();
        if exchange.body.is_done() && exchange.chunked {
            self.target_out.tail().extend_from_slice(LAST_CHUNK);
        }
        Some(input.len() - rest.len())
    }

    /// The request's body is not framed as it should be: nothing behind it can be believed.
    fn break_off(&mut self, error: &crate::relay::body::Error) {
        let Phase::Serving(exchange) = std::mem::replace(&mut self.phase, Phase::Closing) else { return };
        self.drop_target();
        self.closing = true;
        self.unread = true;
        match exchange.answer {
            Answer::Head { .. } => {
                let body = Decoder::new(Framing::None);
                self.answer(&Refusal::new(400, error.to_string()), body, exchange.to_head);
            }
            Answer::Body { .. } => self.outcome = Some(Outcome::Truncated),
        }
    }

    fn discard(&mut self, input: &[u8]) -> Option<usize> {
        let Phase::Discarding { body, allowed } = &mut self.phase else { return None };
        if input.is_empty() {
            return None;
        }
        let mut rest = input;
        let broken = loop {
            match body.next(&mut rest) {
                Ok(Some(_)) => {}
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        let used = input.len() - rest.len();
        *allowed = allowed.saturating_sub(used as u64);
        if broken || *allowed == 0 {
            self.close_unread();
        } else if body.is_done() {
            self.phase = if self.closing { Phase::Closing } else { Phase::Waiting };
        }
        Some(used)
    }
}

/// Interim responses are counted where they are swallowed; the constant stands with the other limits.
pub(super) const fn too_many(interim: u8) -> bool {
    interim >= MAX_INTERIM
}
