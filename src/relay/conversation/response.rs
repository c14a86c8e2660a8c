//! The target's half of a conversation: its response, re-framed so that the bridge can use its connection again.

use super::request::too_many;
use super::{Answer, Conversation, Exchange, Outcome, Phase, Release, Rules};
use crate::relay::body::{Decoder, Framing, LAST_CHUNK, encode_chunk};
use crate::relay::head::{self, Search};
use crate::relay::headers::{self, After};

/// Why a response is not used.
const MALFORMED: &str = "the target's answer is not valid HTTP";

impl Conversation {
    /// The target sent bytes.
    pub fn target_sent(&mut self, bytes: &[u8], rules: &dyn Rules) {
        let mut held = std::mem::take(&mut self.target_in);
        if held.is_empty() {
            let used = self.take_target(bytes);
            held.extend_from_slice(&bytes[used..]);
        } else {
            held.extend_from_slice(bytes);
            let used = self.take_target(&held);
            held.drain(..used);
        }
        // Where the exchange is over, what is left belongs to nothing.
        if matches!(self.phase, Phase::Serving(_)) && !held.is_empty() {
            self.target_in = held;
        }
        self.resume_bridge(rules);
    }

    /// The target ended its side.
    pub fn target_ended(&mut self, rules: &dyn Rules) {
        self.target_gone(true, rules);
    }

    /// The target's connection broke: a body that lasts until the end of it is not complete (RFC 9112 8).
    pub fn target_broke(&mut self, rules: &dyn Rules) {
        self.target_gone(false, rules);
    }

    fn target_gone(&mut self, in_order: bool, rules: &dyn Rules) {
        match &mut self.phase {
            Phase::Serving(exchange) if exchange.may_repeat() && !exchange.head.is_empty() => {
                exchange.repeated = true;
                exchange.cut = false;
                let Phase::Serving(exchange) = std::mem::replace(&mut self.phase, Phase::Closed) else { return };
                self.drop_target();
                self.phase = Phase::Dialling(exchange);
            }
            Phase::Serving(exchange) => match &mut exchange.answer {
                Answer::Head { .. } => self.fail_exchange("the target closed the connection without an answer"),
                Answer::Body { body, .. } => {
                    if in_order && body.end() {
                        self.complete(false);
                    } else {
                        self.fail_exchange("the target's answer is cut off");
                    }
                }
            },
            Phase::Spliced => {
                self.target_out.clear();
                self.release = Some(Release::Drop);
                self.phase = Phase::Closing;
            }
            Phase::Waiting | Phase::Dialling(_) | Phase::Discarding { .. } | Phase::Closing | Phase::Closed => {}
        }
        self.resume_bridge(rules);
    }

    /// What the bridge sent while it was not its turn may be usable after a change of phase.
    pub(super) fn resume_bridge(&mut self, rules: &dyn Rules) {
        if !self.bridge_in.is_empty() && !matches!(self.phase, Phase::Serving(_) | Phase::Dialling(_)) {
            self.bridge_sent(&[], rules);
        }
    }

    fn take_target(&mut self, input: &[u8]) -> usize {
        let mut at = 0;
        loop {
            let rest = &input[at..];
            match &mut self.phase {
                Phase::Serving(exchange) => match &exchange.answer {
                    Answer::Head { interim } => match head::find_end(rest, self.searched) {
                        Search::NotYet => {
                            self.searched = rest.len();
                            return at;
                        }
                        Search::TooLong => {
                            self.fail_exchange("the head of the target's answer is longer than 64 KiB");
                            return input.len();
                        }
                        Search::Found(end) => {
                            let interim = *interim;
                            self.searched = 0;
                            self.take_response_head(&rest[..end], interim);
                            at += end;
                        }
                    },
                    Answer::Body { .. } => {
                        self.take_response_body(rest);
                        return input.len();
                    }
                },
                Phase::Spliced => {
                    self.bridge_out.tail().extend_from_slice(rest);
                    return input.len();
                }
                Phase::Waiting | Phase::Dialling(_) | Phase::Discarding { .. } | Phase::Closing | Phase::Closed => {
                    return input.len();
                }
            }
        }
    }

    fn take_response_head(&mut self, bytes: &[u8], interim: u8) {
        let Phase::Serving(exchange) = &mut self.phase else { return };
        let read = head::response(bytes)
            .and_then(|head| head::response_framing(&head, exchange.to_head).map(|framing| (head, framing)));
        let Ok((head, framing)) = read else { return self.fail_exchange(MALFORMED) };
        exchange.head = Vec::new();
        match head.status {
            101 if exchange.upgrade && exchange.body.is_done() && !exchange.cut => self.splice(&head),
            101 => self.fail_exchange("the target changed to a protocol that nobody asked for"),
            100..=199 if too_many(interim) => self.fail_exchange(MALFORMED),
            // The bridge would take an interim response for the final one (protocol 9.3).
            100..=199 => exchange.answer = Answer::Head { interim: interim + 1 },
            _ => self.begin_response(&head, framing),
        }
    }

    fn splice(&mut self, head: &head::Response<'_>) {
        let bytes = headers::to_bridge(head, 101, Framing::None, After::Upgrades);
        self.bridge_out.tail().extend_from_slice(&bytes);
        let early = std::mem::take(&mut self.bridge_in);
        self.target_out.tail().extend_from_slice(&early);
        self.outcome = Some(Outcome::Relayed(101));
        self.phase = Phase::Spliced;
    }

    fn begin_response(&mut self, head: &head::Response<'_>, framing: Framing) {
        let Phase::Serving(exchange) = &mut self.phase else { return };
        let status = if head.status == 502 && !exchange.idempotent { 504 } else { head.status };
        let stream = headers::is_event_stream(head) && framing != Framing::None;
        exchange.answer = Answer::Body {
            status: head.status,
            body: Decoder::new(framing),
            chunked: matches!(framing, Framing::Chunked | Framing::UntilClose),
            persistent: headers::is_persistent(head) && framing != Framing::UntilClose,
            stream,
        };
        // A stream's connection leaves the bridge's pool anyway (protocol 9.6).
        let after = if self.closing { After::Ends } else { After::Stays };
        self.closing |= stream;
        self.bridge_out.tail().extend_from_slice(&headers::to_bridge(head, status, framing, after));
    }

    fn take_response_body(&mut self, input: &[u8]) {
        let Phase::Serving(exchange) = &mut self.phase else { return };
        let Exchange { answer: Answer::Body { body, chunked, .. }, .. } = &mut **exchange else { return };
        let mut rest = input;
        loop {
            match body.next(&mut rest) {
                Ok(Some(content)) if *chunked => encode_chunk(content, self.bridge_out.tail()),
                Ok(Some(content)) => self.bridge_out.tail().extend_from_slice(content),
                Ok(None) => break,
                Err(_) => return self.fail_exchange(MALFORMED),
            }
        }
        if body.is_done() {
            self.complete(rest.is_empty());
        }
    }

    /// The response is complete; `clean` if nothing came behind it.
    fn complete(&mut self, clean: bool) {
        let Phase::Serving(exchange) = std::mem::replace(&mut self.phase, Phase::Closing) else { return };
        let Answer::Body { status, chunked, persistent, .. } = exchange.answer else { return };
        if chunked {
            self.bridge_out.tail().extend_from_slice(LAST_CHUNK);
        }
        let whole = exchange.body.is_done() && !exchange.cut && self.target_out.is_empty();
        let reusable = clean && persistent && whole && !exchange.upgrade;
        self.drop_target();
        self.release = Some(if reusable { Release::Reuse } else { Release::Drop });
        self.outcome = Some(Outcome::Relayed(status));
        // What was sent behind a request for an upgrade, in hope of one, is no request.
        let hoped = exchange.upgrade && !self.bridge_in.is_empty();
        self.closing |= hoped;
        self.unread |= hoped;
        self.end_exchange(exchange.body);
    }
}
