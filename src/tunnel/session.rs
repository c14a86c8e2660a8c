//! One session: a target on one side, a bridge connection on the other, and nothing that waits for one side alone.
//!
//! ```text
//!            orders (redial, end)
//!                 ▼
//!   target ◄─ backlog ◄─ stream ◄─ link ◄── bridge
//!     └──── read ──► stream ──► link ──────►          `next`: the connection of a redial, until its handshake is done
//! ```
//!
//! The task polls everything that can move, in rounds, until nothing does. Each step takes only what the step behind it
//! has room for: the target is read when the link has taken everything and the window is open, the bridge is read while the
//! backlog of the target is short. That is all the back-pressure there is, and it bounds the memory of a session.

mod attach;
mod carry;
mod clock;
mod finish;
mod pump;

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

pub(super) use self::carry::Record;
use super::BridgeAddress;
use super::dial::{self, Credentials};
use super::link::Link;
use super::table::Ledger;
use super::target::Target;
use crate::stream::{Connection, Stream};

/// How long a session with a target waits for another bridge connection (protocol 7.5; the client tries for 2½ minutes).
pub(super) const REDIAL_WAIT: Duration = Duration::from_secs(300);
/// The same for a session that never had a connection that worked.
pub(super) const FIRST_WAIT: Duration = Duration::from_secs(150);

/// Rounds before others get their turn.
const ROUNDS: usize = 16;

/// What a session is told from outside.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// The platform made new credentials for a further connection.
    Redial(BridgeAddress, Credentials),
    /// The agent ends.
    End,
    /// Stop where you are; what is half made has until then to be done.
    Freeze(Instant),
}

/// How a session's task ended.
pub(super) enum Outcome {
    /// The session is over.
    Ended(End),
    /// It was stopped where it is.
    Frozen(Box<Session>),
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    /// The target had nothing more to say.
    TargetEnded,
    /// The target cannot be reached.
    TargetUnreachable(String),
    /// The client closed it.
    ClientClosed,
    /// A raw session's bridge connection ended.
    BridgeEnded,
    /// The bridge connection was lost, and no other came in time.
    NeverRedialled,
    /// The client broke the protocol.
    Violation(String),
    /// The agent ends.
    AgentEnds,
    /// The target's connection did not come along from the process before.
    NotCarried,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TargetEnded => f.write_str("the target ended it"),
            Self::TargetUnreachable(why) => write!(f, "the target cannot be reached: {why}"),
            Self::ClientClosed => f.write_str("the client closed it"),
            Self::BridgeEnded => f.write_str("the bridge ended it"),
            Self::NeverRedialled => f.write_str("the bridge connection was lost and nobody came back"),
            Self::Violation(what) => f.write_str(what),
            Self::AgentEnds => f.write_str("the agent ends"),
            Self::NotCarried => f.write_str("the target's connection could not be carried over a restart"),
        }
    }
}

/// What the bytes between agent and client are.
enum Mode {
    /// The reliable stream (protocol chapter 8).
    Framed(Box<Stream>),
    /// The target's own bytes; the three types of protocol 7.1.
    Raw,
}

impl Mode {
    const fn is_raw(&self) -> bool {
        matches!(self, Self::Raw)
    }
}

/// A bridge connection and the session's place on it.
struct Attached {
    link: Link,
    connection: Connection,
    /// Writing has failed; what has come before is still read.
    deaf: bool,
}

/// A bridge connection that is being made.
struct Dialling {
    bridge: BridgeAddress,
    credentials: Credentials,
    connecting: Pin<Box<dyn Future<Output = Result<Link, dial::Error>> + Send>>,
    /// The session's first connection has no handshake.
    first: bool,
}

/// Where a session is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// The target has said everything: the client gets it, and is told. `late` says that it is told whether or not it has
    /// acknowledged everything.
    Finishing {
        until: Instant,
        late: bool,
    },
    /// The client has said everything: the target gets it.
    Delivering {
        until: Instant,
    },
    /// Everything is said; the bridge's side is drained so that no reset destroys the end of it (protocol W10).
    Lingering {
        until: Instant,
    },
}

/// One session, as a future that ends when the session does.
pub(super) struct Session {
    mode: Mode,
    header: Arc<[u8]>,
    target: Target,
    link: Option<Attached>,
    next: Option<Attached>,
    next_until: Option<Instant>,
    /// What is impossible about the handshake on `next`, if its client does not turn out to be gone.
    doubt: Option<Cow<'static, str>>,
    dialling: Option<Dialling>,
    /// Invariant: set while there is no link and nothing else limits the session.
    redial_until: Option<Instant>,
    /// Some connection has worked.
    was_connected: bool,
    /// Accepted from the client, not taken by the target yet.
    backlog: std::collections::VecDeque<u8>,
    phase: Phase,
    /// What will be the end, known before it is reached.
    end: Option<End>,
    over: bool,
    ack_at: Option<Instant>,
    /// The window was full when the target was last to be read.
    blocked: bool,
    orders: mpsc::Receiver<Order>,
    ledger: Ledger,
    alarm: Option<Pin<Box<Sleep>>>,
    now: Instant,
    /// It is to be carried to another process, and stops at the latest then.
    freeze_by: Option<Instant>,
}

/// What a session is made of.
pub(super) struct Setup {
    pub(super) session_id: String,
    /// Decides how the bytes are carried; goes on the header line.
    pub(super) session_type: String,
    pub(super) target: Target,
    pub(super) bridge: BridgeAddress,
    pub(super) credentials: Credentials,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) ledger: Ledger,
}

/// The types whose bytes are not framed: exactly these (protocol 7.1).
pub(super) fn is_raw(session_type: &str) -> bool {
    matches!(session_type, "ssh-audit" | "web-ssh" | "web-db")
}

/// The two header lines, for one write (protocol 7.1).
pub(super) fn header(session_id: &str, session_type: &str) -> Vec<u8> {
    format!("{session_id}\ntype={session_type}\n").into_bytes()
}

impl Session {
    /// Boxed: futures that carry it by value would make room for it several times.
    pub(super) fn new(setup: Setup) -> Box<Self> {
        let Setup { session_id, session_type, target, bridge, credentials, orders, ledger } = setup;
        let now = Instant::now();
        let mode = if is_raw(&session_type) { Mode::Raw } else { Mode::Framed(Box::default()) };
        let mut session = Box::new(Self {
            mode,
            header: header(&session_id, &session_type).into(),
            target,
            link: None,
            next: None,
            next_until: None,
            doubt: None,
            dialling: None,
            redial_until: None,
            was_connected: false,
            backlog: std::collections::VecDeque::new(),
            phase: Phase::Running,
            end: None,
            over: false,
            ack_at: None,
            blocked: false,
            orders,
            ledger,
            alarm: None,
            now,
            freeze_by: None,
        });
        session.dial(bridge, credentials, true);
        session
    }

    /// Runs until the session is over or frozen.
    pub(super) async fn run(mut self: Box<Self>) -> Outcome {
        match std::future::poll_fn(|cx| self.poll(cx)).await {
            Some(end) => Outcome::Ended(end),
            None => Outcome::Frozen(self),
        }
    }

    /// Ready with the end, or without one when it is frozen.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        for _ in 0..ROUNDS {
            self.now = Instant::now();
            let progress = self.round(cx);
            self.account();
            if self.over {
                return Poll::Ready(Some(self.end.take().unwrap_or(End::BridgeEnded)));
            }
            if self.freeze_by.is_some_and(|by| by <= self.now || self.is_settled()) {
                return Poll::Ready(None);
            }
            if !progress {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One turn for everything that can move; says whether something did.
    fn round(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = self.take_orders(cx);
        progress |= self.connect_bridge(cx);
        progress |= self.shake_hands(cx);
        progress |= self.receive(cx);
        progress |= self.connect_target(cx);
        progress |= self.deliver(cx);
        progress |= self.read_target(cx);
        progress |= self.transmit(cx);
        progress |= self.proceed(cx);
        progress | self.ring(cx)
    }

    /// Tells the ledger what this session holds.
    fn account(&mut self) {
        let stream = match &self.mode {
            Mode::Framed(stream) => stream.held(),
            Mode::Raw => 0,
        };
        self.ledger.account(stream + self.backlog.len());
    }

    const fn is_raw(&self) -> bool {
        self.mode.is_raw()
    }
}
