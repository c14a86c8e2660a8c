//! How a session ends: each side gets what the other said last, within limits (protocol 7.3, 8.6, W10).

use std::task::{Context, Poll};
use std::time::Duration;

use super::{Attached, End, Mode, Phase, REDIAL_WAIT, Session};

/// How long the client may acknowledge nothing at all before it is told of the end regardless.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);
/// How long it may then go on acknowledging nothing: as long as a client that is gone is waited for, since one that pauses
/// should not fare worse.
const LATE_LIMIT: Duration = REDIAL_WAIT;
/// How long the target may take nothing at all of what the client said last.
const DELIVERY_LIMIT: Duration = Duration::from_secs(30);
/// How long the bridge may take to end its side. Until then what it sends is read and thrown away: closing a socket with
/// unread input resets the connection, and the end of what was sent with it.
pub(super) const LINGER_LIMIT: Duration = Duration::from_secs(60);

impl Session {
    /// The target has nothing more to say, or cannot say it any more.
    pub(super) fn target_ended(&mut self) {
        self.end.get_or_insert(End::TargetEnded);
        if let Mode::Framed(stream) = &mut self.mode {
            stream.close();
        }
        self.phase = Phase::Finishing { until: self.now + FLUSH_LIMIT, late: false };
    }

    /// Something came from the client: one that acknowledges is given more time.
    pub(super) fn heard(&mut self, acknowledged: bool) {
        if let Phase::Finishing { until, late } = &mut self.phase
            && acknowledged
        {
            *until = self.now + if *late { LATE_LIMIT } else { FLUSH_LIMIT };
        }
    }

    /// The client acknowledged nothing for a while: it is told of the end behind what is on its way already. The connection
    /// stays until it has that, because a bridge that sees one end close cuts off what it has not passed on.
    pub(super) fn flush_is_late(&mut self) {
        if let (Mode::Framed(stream), Some(Attached { connection, .. })) = (&mut self.mode, &mut self.link) {
            stream.close_now(connection);
        }
        self.phase = Phase::Finishing { until: self.now + LATE_LIMIT, late: true };
    }

    /// A session that is ending has got another connection.
    pub(super) fn go_on_ending(&mut self) {
        match self.phase {
            Phase::Running | Phase::Delivering { .. } => {}
            Phase::Finishing { .. } => {
                self.phase = Phase::Finishing { until: self.now + FLUSH_LIMIT, late: false };
            }
            Phase::Lingering { .. } => {
                if let (Mode::Framed(stream), Some(Attached { connection, .. })) = (&mut self.mode, &mut self.link) {
                    stream.close_now(connection);
                }
            }
        }
    }

    /// The client closed the session: what it said before still goes to the target.
    pub(super) fn client_closed(&mut self) {
        self.end.get_or_insert(End::ClientClosed);
        self.forget_redials();
        self.phase = Phase::Delivering { until: self.now + DELIVERY_LIMIT };
    }

    /// The target takes what the client said last: it is given more time.
    pub(super) fn delivered(&mut self) {
        if let Phase::Delivering { until } = &mut self.phase {
            *until = self.now + DELIVERY_LIMIT;
        }
    }

    /// A raw session's bridge connection is gone; there is no other.
    pub(super) fn bridge_ended(&mut self) {
        self.end.get_or_insert(End::BridgeEnded);
        self.phase = Phase::Delivering { until: self.now + DELIVERY_LIMIT };
    }

    pub(super) fn violated(&mut self, what: &str) {
        tracing::warn!(session = %self.ledger.name(), %what, "the session is ended");
        self.say_goodbye(End::Violation(format!("the client {what}")));
    }

    /// Ends the session now, and lets the client know if it can be reached.
    pub(super) fn say_goodbye(&mut self, end: End) {
        let leaves_at_once = end == End::AgentEnds && self.link.is_none();
        self.end.get_or_insert(end);
        self.target.close();
        self.backlog = std::collections::VecDeque::new();
        self.phase = Phase::Lingering { until: self.now + LINGER_LIMIT };
        self.over |= leaves_at_once;
        if self.link.is_some() {
            self.forget_redials();
            self.go_on_ending();
        }
    }

    pub(super) fn finished(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.over = true;
    }

    /// Goes on to the next phase when the present one has nothing left to do.
    pub(super) fn proceed(&mut self, cx: &mut Context<'_>) -> bool {
        match self.phase {
            Phase::Running => false,
            Phase::Finishing { .. } => self.finish(cx),
            Phase::Delivering { .. } => {
                self.target.hush(cx);
                if self.backlog.is_empty() {
                    self.target.finish();
                    self.say_goodbye(End::ClientClosed);
                    self.phase = Phase::Lingering { until: self.now + DELIVERY_LIMIT };
                }
                self.backlog.is_empty()
            }
            Phase::Lingering { .. } => self.linger(cx),
        }
    }

    /// The client gets everything, then the close frame.
    fn finish(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(Attached { link, connection, .. }) = &mut self.link else { return false };
        let said = match &self.mode {
            Mode::Raw => true,
            Mode::Framed(stream) => connection.close_is_sent() && stream.all_acknowledged(),
        };
        if link.poll_flush_outgoing(cx).is_pending() || !said {
            return false;
        }
        self.target.close();
        self.backlog = std::collections::VecDeque::new();
        self.phase = Phase::Lingering { until: self.now + LINGER_LIMIT };
        true
    }

    /// Over when the bridge has closed its side and the target has taken everything.
    fn linger(&mut self, cx: &mut Context<'_>) -> bool {
        let target_left = self.target.poll_leave(cx).is_ready();
        let progress = self.linger_on_link(cx);
        self.over |= target_left && self.link.is_none() && !self.is_connecting();
        progress || self.over
    }

    /// Closes our side when the last frame has gone, and reads until the bridge closes its own.
    fn linger_on_link(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(Attached { link, connection, .. }) = &mut self.link else { return false };
        let said = self.mode.is_raw() || connection.close_is_sent();
        let broken = said && matches!(link.poll_close(cx), Poll::Ready(Err(_)));
        match link.poll_receive(cx, &mut |_| {}) {
            _ if broken => self.link = None,
            Poll::Pending => return false,
            Poll::Ready(Ok(1..)) => {}
            Poll::Ready(Ok(0) | Err(_)) => self.link = None,
        }
        true
    }
}
