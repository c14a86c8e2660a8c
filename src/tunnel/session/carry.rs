//! A session on its way to another process: as it is in the middle of whatever it does.
//!
//! Everything that a session knows is plain data between two rounds, so that it can stop after any of them. What cannot be
//! carried is a connection that is only being made: it is given a moment, and begun again in the other process if it takes
//! longer. The deadlines travel as the time that is left.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::attach::HANDSHAKE_LIMIT;
use super::{Attached, End, Mode, Order, Phase, Session};
use crate::handoff::{Arrival, Departure};
use crate::stream::{Connection, Impossible, Stream};
use crate::tunnel::dial::{Credentials, Material};
use crate::tunnel::table::Ledger;
use crate::tunnel::{BridgeAddress, Link, link, target};

/// A session as plain data.
#[derive(Serialize, Deserialize)]
pub(in crate::tunnel) struct Record {
    /// The lines that begin a bridge connection.
    #[serde(with = "serde_bytes")]
    header: Vec<u8>,
    /// Absent for a raw session.
    #[serde(default)]
    stream: Option<Box<Stream>>,
    target: target::Record,
    #[serde(default)]
    link: Option<AttachedRecord>,
    #[serde(default)]
    next: Option<AttachedRecord>,
    #[serde(default)]
    next_left_ms: Option<u64>,
    #[serde(default)]
    doubt: Option<String>,
    #[serde(default)]
    dialling: Option<DiallingRecord>,
    #[serde(default)]
    redial_left_ms: Option<u64>,
    #[serde(default)]
    was_connected: bool,
    #[serde(default, with = "serde_bytes")]
    backlog: Vec<u8>,
    phase: PhaseRecord,
    #[serde(default)]
    end: Option<End>,
}

#[derive(Serialize, Deserialize)]
struct AttachedRecord {
    socket: u32,
    link: link::State,
    connection: Connection,
    #[serde(default)]
    deaf: bool,
}

#[derive(Serialize, Deserialize)]
struct DiallingRecord {
    bridge: BridgeAddress,
    material: Material,
    first: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PhaseRecord {
    Running,
    Finishing { left_ms: u64, late: bool },
    Delivering { left_ms: u64 },
    Lingering { left_ms: u64 },
}

/// What a session has lost on its way.
#[derive(Debug, thiserror::Error)]
pub(in crate::tunnel) enum Loss {
    /// All of it.
    #[error(transparent)]
    Stream(#[from] Impossible),
    /// All of it: the stream has ended, or is to end, and the session goes on.
    #[error("its saved stream and its phase contradict each other")]
    Phase,
    /// The connection to its bridge; a redial can replace it.
    #[error("its bridge connection was not carried: {0}")]
    Link(String),
    /// The connection to its target, which nothing can replace, or a target that is not configured any more.
    #[error("its target's connection was not carried, or its resource is not configured any more")]
    Target,
}

fn left(until: Instant, now: Instant) -> u64 {
    u64::try_from(until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX)
}

/// No deadline of a session is longer than an hour; another number is no reason to overflow.
fn after(now: Instant, left_ms: u64) -> Instant {
    now + Duration::from_millis(left_ms.min(3_600_000))
}

impl Phase {
    /// Whether a session with this stream can be here.
    const fn suits(self, stream: &Stream) -> bool {
        match self {
            Self::Running => !stream.is_closing() && !stream.closed_by_peer(),
            Self::Finishing { .. } => !stream.closed_by_peer(),
            Self::Delivering { .. } | Self::Lingering { .. } => true,
        }
    }

    fn record(self, now: Instant) -> PhaseRecord {
        match self {
            Self::Running => PhaseRecord::Running,
            Self::Finishing { until, late } => PhaseRecord::Finishing { left_ms: left(until, now), late },
            Self::Delivering { until } => PhaseRecord::Delivering { left_ms: left(until, now) },
            Self::Lingering { until } => PhaseRecord::Lingering { left_ms: left(until, now) },
        }
    }
}

impl PhaseRecord {
    fn phase(&self, now: Instant) -> Phase {
        match *self {
            Self::Running => Phase::Running,
            Self::Finishing { left_ms, late } => Phase::Finishing { until: after(now, left_ms), late },
            Self::Delivering { left_ms } => Phase::Delivering { until: after(now, left_ms) },
            Self::Lingering { left_ms } => Phase::Lingering { until: after(now, left_ms) },
        }
    }
}

impl Attached {
    /// `None` where the runtime does not give the socket back: then it is closed.
    fn record(self, departure: &mut Departure) -> Option<AttachedRecord> {
        let (socket, link) = self.link.export().ok()?;
        Some(AttachedRecord { socket: departure.take(socket), link, connection: self.connection, deaf: self.deaf })
    }
}

impl AttachedRecord {
    fn revive(self, arrival: &mut Arrival, mode: &Mode) -> Result<Attached, Loss> {
        let lost = |why: &dyn std::fmt::Display| Loss::Link(why.to_string());
        if let Mode::Framed(stream) = mode {
            stream.check(&self.connection).map_err(|error| lost(&error))?;
        }
        let socket = arrival.socket(self.socket).ok_or_else(|| lost(&"its socket is gone"))?;
        let link = Link::import(socket, self.link).map_err(|error| lost(&error))?;
        Ok(Attached { link, connection: self.connection, deaf: self.deaf })
    }
}

impl Session {
    /// Whether it can be carried as it is: nothing is only half made.
    pub(super) const fn is_settled(&self) -> bool {
        self.dialling.is_none() && !self.target.is_connecting()
    }

    /// Takes the session apart. Its sockets go to `departure`.
    pub(in crate::tunnel) fn record(self, departure: &mut Departure) -> Record {
        let now = Instant::now();
        let dialling = self.dialling.map(|dialling| DiallingRecord {
            bridge: dialling.bridge,
            material: dialling.credentials.material().clone(),
            first: dialling.first,
        });
        Record {
            header: self.header.to_vec(),
            stream: match self.mode {
                Mode::Framed(stream) => Some(stream),
                Mode::Raw => None,
            },
            target: self.target.record(departure),
            link: self.link.and_then(|attached| attached.record(departure)),
            next: self.next.and_then(|attached| attached.record(departure)),
            next_left_ms: self.next_until.map(|until| left(until, now)),
            doubt: self.doubt.map(std::borrow::Cow::into_owned),
            dialling,
            redial_left_ms: self.redial_until.map(|until| left(until, now)),
            was_connected: self.was_connected,
            backlog: self.backlog.into(),
            phase: self.phase.record(now),
            end: self.end,
        }
    }

    /// Puts a session together again. It goes on even if something was lost, as far as it can. `configured` is where its
    /// target is, if it has still to be dialled.
    ///
    /// # Errors
    /// Nothing is left of it.
    pub(in crate::tunnel) fn revive(
        record: Record,
        arrival: &mut Arrival,
        orders: mpsc::Receiver<Order>,
        ledger: Ledger,
        configured: Option<&target::Address>,
    ) -> Result<(Box<Self>, Option<Loss>), Loss> {
        let now = Instant::now();
        let phase = record.phase.phase(now);
        let mode = match record.stream {
            Some(stream) => Mode::Framed(Box::new(stream.checked()?)),
            None => Mode::Raw,
        };
        if let Mode::Framed(stream) = &mode
            && !phase.suits(stream)
        {
            return Err(Loss::Phase);
        }
        let mut loss = None;
        let mut attach = |attached: Option<AttachedRecord>, loss: &mut Option<Loss>| {
            let revived = attached.map(|attached| attached.revive(arrival, &mode)).transpose();
            revived.unwrap_or_else(|why| {
                *loss = Some(why);
                None
            })
        };
        let had_link = record.link.is_some();
        let link = attach(record.link, &mut loss);
        // The client causes another redial where this one is lost.
        let next = attach(record.next.filter(|_| !mode.is_raw()), &mut None);
        let next_left = record.next_left_ms.unwrap_or(u64::MAX);
        let (target, target_is_lost) = record.target.revive(arrival, configured);
        let mut session = Box::new(Self {
            mode,
            header: record.header.into(),
            target,
            next_until: next.as_ref().map(|_| after(now, next_left).min(now + HANDSHAKE_LIMIT)),
            link,
            next,
            doubt: record.doubt.map(Into::into),
            dialling: None,
            redial_until: record.redial_left_ms.map(|left| after(now, left)),
            was_connected: record.was_connected,
            backlog: record.backlog.into(),
            phase,
            end: record.end,
            over: false,
            // Soon is soon enough: whatever is due is sent with the first round.
            ack_at: None,
            blocked: false,
            orders,
            ledger,
            alarm: None,
            now,
            freeze_by: None,
        });
        if let Some(DiallingRecord { bridge, material, first }) = record.dialling {
            session.dial_again(bridge, &material, first);
        }
        if target_is_lost {
            loss = Some(Loss::Target);
        }
        session.end_without_target(target_is_lost);
        if session.link.is_none() {
            session.go_on_without_link(had_link);
        }
        Ok((session, loss))
    }

    /// A session whose target is gone has nothing to do but to end.
    fn end_without_target(&mut self, is_lost: bool) {
        match self.phase {
            Phase::Running if is_lost || self.target.is_gone() => {
                self.end.get_or_insert(End::NotCarried);
                self.target_ended();
            }
            Phase::Finishing { .. } if is_lost => self.target_ended(),
            Phase::Delivering { .. } if is_lost => self.say_goodbye(End::NotCarried),
            Phase::Running | Phase::Finishing { .. } | Phase::Delivering { .. } | Phase::Lingering { .. } => {}
        }
    }

    /// There is no bridge connection; `was_there` says that it was lost on the way.
    fn go_on_without_link(&mut self, was_there: bool) {
        if was_there {
            self.lost_link("it was not carried over");
        } else if self.is_connecting() {
            // The dial decides.
        } else if !self.is_raw() {
            self.wait_for_redial();
        } else if matches!(self.phase, Phase::Running | Phase::Finishing { .. }) {
            self.bridge_ended();
        }
    }

    fn dial_again(&mut self, bridge: BridgeAddress, material: &Material, first: bool) {
        let Material { certificate_pem, private_key_pem, ca_pem } = material;
        match Credentials::new(certificate_pem.expose(), private_key_pem.expose(), ca_pem) {
            Ok(credentials) => self.dial(bridge, credentials, first),
            Err(error) => tracing::warn!(session = %self.ledger.name(), %error, "a dial was not carried over"),
        }
    }
}
