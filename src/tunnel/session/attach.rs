//! Bridge connections of a session: the first, the later ones, and the moment of change (protocol 7.6, 8.5).

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Attached, Dialling, End, FIRST_WAIT, Mode, Order, Phase, REDIAL_WAIT, Session};
use crate::http::chain;
use crate::stream::{Received, Violation};
use crate::tunnel::dial::{self, Credentials};
use crate::tunnel::{BridgeAddress, Link};

/// How long the exchange of handshakes may take: the bridge keeps an unmatched connection for 30 s, and its client may
/// come in the last of them (protocol 7.5).
pub(super) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(35);

/// How long a client with an impossible handshake may take to be gone. A bridge does not notice that a peer which waits has
/// left (protocol 7.4), and so brings together what one end has given up, handshake and all, with the other's next attempt.
const DOUBT_LIMIT: Duration = Duration::from_secs(1);

/// What may come on the old connection without an acknowledgement while another waits for its client: the platform's client
/// gives up when 4 MiB are not acknowledged (protocol 8.2), part of which is under way at any time.
const RELUCTANCE: u64 = 1024 * 1024;
/// How long a client may take to the other connection. Until then, what comes on the old one may be what it left behind.
const MOVE: Duration = Duration::from_millis(250);

/// How long a bridge that cannot be reached is tried: the client may wait there for 30 s (protocol 7.5), and what broke the
/// connection before may be in the way of this one.
const DIAL_LIMIT: Duration = Duration::from_secs(20);
/// Between two attempts.
const DIAL_PAUSE: Duration = Duration::from_millis(500);

async fn reach(bridge: BridgeAddress, credentials: Credentials) -> Result<Link, dial::Error> {
    let begun = Instant::now();
    loop {
        match dial::connect(&bridge, &credentials).await {
            Ok((link, _took)) => return Ok(link),
            Err(error) if error.may_pass() && begun.elapsed() < DIAL_LIMIT => {
                tracing::debug!(%bridge, error = %chain(&error), "trying again");
                sleep(DIAL_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

impl Session {
    /// Begins to make a connection. One that is being made is given up: the newest command wins.
    pub(super) fn dial(&mut self, bridge: BridgeAddress, credentials: Credentials, first: bool) {
        let connecting = Box::pin(reach(bridge.clone(), credentials.clone()));
        (self.next, self.next_until) = (None, None);
        self.dialling = Some(Dialling { bridge, credentials, connecting, first });
    }

    pub(super) fn take_orders(&mut self, cx: &mut Context<'_>) -> bool {
        let Poll::Ready(Some(order)) = self.orders.poll_recv(cx) else { return false };
        match order {
            // The bridge would take a second raw connection for the client's (protocol 7.4).
            Order::Redial(..) if self.is_raw() => {}
            Order::Redial(bridge, credentials) => {
                self.ledger.redialled();
                self.dial(bridge, credentials, false);
            }
            Order::End => self.say_goodbye(End::AgentEnds),
            Order::Freeze(by) => self.freeze_by = Some(by),
        }
        true
    }

    pub(super) fn connect_bridge(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(dialling) = &mut self.dialling else { return false };
        let Poll::Ready(outcome) = dialling.connecting.as_mut().poll(cx) else { return false };
        let first = dialling.first;
        self.dialling = None;
        match outcome {
            Ok(mut link) => match link.send(cx, &self.header) {
                Ok(()) => self.attach(link, first),
                Err(error) => self.not_connected(&error.to_string()),
            },
            Err(error) => self.not_connected(&chain(&error)),
        }
        true
    }

    fn attach(&mut self, link: Link, first: bool) {
        match &self.mode {
            Mode::Framed(stream) if !first => {
                self.next = Some(Attached { link, connection: stream.resume(), deaf: false });
                self.next_until = Some(self.now + HANDSHAKE_LIMIT);
                self.doubt = None;
            }
            Mode::Framed(stream) => self.take_over(Attached { link, connection: stream.first(), deaf: false }),
            Mode::Raw => {
                self.take_over(Attached { link, connection: crate::stream::Stream::new().first(), deaf: false })
            }
        }
    }

    fn take_over(&mut self, attached: Attached) {
        self.link = Some(attached);
        (self.redial_until, self.next, self.next_until) = (None, None, None);
        self.go_on_ending();
    }

    fn not_connected(&mut self, why: &str) {
        tracing::warn!(session = %self.ledger.name(), %why, "no connection to the bridge");
        if self.is_raw() {
            self.finished(End::BridgeEnded);
        } else {
            self.wait_for_redial();
        }
    }

    /// The link is gone. The target stays, unread; the client may come back by another bridge.
    pub(super) fn lost_link(&mut self, why: &str) {
        self.link = None;
        self.ack_at = None;
        if self.was_connected {
            tracing::debug!(session = %self.ledger.name(), %why, "the bridge connection ended");
        } else {
            // With TLS 1.3 this is how a bridge says that it does not accept the session's certificate (protocol 1.4).
            tracing::warn!(session = %self.ledger.name(), %why, "the bridge ended the first connection before the client said anything");
        }
        if self.is_raw() {
            self.bridge_ended();
        } else {
            self.wait_for_redial();
        }
    }

    pub(super) fn wait_for_redial(&mut self) {
        if self.link.is_none() && self.redial_until.is_none() {
            let wait = if self.was_connected { REDIAL_WAIT } else { FIRST_WAIT };
            self.redial_until = Some(self.now + wait);
        }
    }

    /// The connection of a redial: our handshake goes at once, and when the peer's has come, this is the session's
    /// connection. Until then the old one carries on.
    pub(super) fn shake_hands(&mut self, cx: &mut Context<'_>) -> bool {
        let Mode::Framed(stream) = &mut self.mode else { return false };
        let Some(next) = &mut self.next else { return false };
        if self.doubt.is_some() {
            return match next.link.poll_receive(cx, &mut |_| {}) {
                Poll::Pending => false,
                Poll::Ready(Ok(1..)) => true,
                Poll::Ready(Ok(0) | Err(_)) => {
                    self.redial_failed("the client had given it up");
                    true
                }
            };
        }
        let handshake = stream.transmit(&mut next.connection).to_vec();
        if !handshake.is_empty() && next.link.send(cx, &handshake).is_ok() {
            stream.sent(&mut next.connection, handshake.len());
        }
        let flushed = next.link.poll_flush_outgoing(cx);
        let mut outcome = Ok(Received::default());
        let mut fresh = Vec::new();
        let received = next.link.poll_receive(cx, &mut |piece| {
            if let Ok(before) = outcome {
                let now = stream.receive(&mut next.connection, piece, &mut |payload| fresh.extend_from_slice(payload));
                outcome = now.map(|now| before.and(now));
            }
        });
        let gone = matches!(flushed, Poll::Ready(Err(_))) || matches!(received, Poll::Ready(Ok(0) | Err(_)));
        match outcome {
            Err(Violation::Session(what)) => {
                self.doubt = Some(what.into());
                self.next_until = Some(self.now + DOUBT_LIMIT);
            }
            Err(Violation::Connection(what)) => self.redial_failed(what),
            Ok(found) if found.resumed => {
                let repeated = stream.repeats(&next.connection);
                self.ledger.repeated(repeated);
                if let Some(next) = self.next.take() {
                    // The old link goes with this; what was on it comes again on the new one.
                    self.take_over(next);
                }
                self.accept(cx, &fresh);
                if found.closed {
                    self.client_closed();
                }
                if gone {
                    self.lost_link("it ended behind the handshake");
                }
            }
            Ok(_) if gone => self.redial_failed("it ended before the handshake"),
            Ok(_) => return !handshake.is_empty() || received.is_ready(),
        }
        true
    }

    /// The connection of a redial has had its time.
    pub(super) fn redial_is_late(&mut self) {
        let Some(what) = self.doubt.take() else { return self.redial_failed("no handshake in time") };
        if let (Mode::Framed(stream), Some(mut next)) = (&mut self.mode, self.next.take()) {
            // This is where the client is, so this is where it is told.
            stream.only_close(&mut next.connection);
            self.take_over(next);
        }
        self.violated(&what);
    }

    pub(super) fn redial_failed(&mut self, why: &str) {
        tracing::debug!(session = %self.ledger.name(), %why, "a redial came to nothing");
        (self.next, self.next_until) = (None, None);
        self.wait_for_redial();
    }

    /// Whether a connection may be acknowledged on: while another one resumes, the peer must keep what we announced there.
    pub(super) const fn may_acknowledge(&self) -> bool {
        self.next.is_none()
    }

    /// A client that sends this much on the old connection has not left it: it is acknowledged there, or it would die of its
    /// window. If it does leave, its own reconnect causes another redial.
    pub(super) fn believe_the_old(&mut self) {
        let waits = self.next_until.is_some_and(|until| until <= self.now + HANDSHAKE_LIMIT.saturating_sub(MOVE));
        if let Mode::Framed(stream) = &self.mode
            && waits
            && stream.unacknowledged() > RELUCTANCE
        {
            self.redial_failed("the client goes on with the connection that it has");
        }
    }

    /// Nobody needs a connection that is only beginning.
    pub(super) fn forget_redials(&mut self) {
        (self.next, self.next_until, self.dialling) = (None, None, None);
    }

    /// Whether a connection is being made.
    pub(super) const fn is_connecting(&self) -> bool {
        self.dialling.is_some() || self.next.is_some()
    }

    pub(super) const fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }
}
