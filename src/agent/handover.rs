//! A restart that nobody notices: everything that is under way goes to the next process as it is.
//!
//! [`release`] is the old process's last act, [`adopt`] the new one's first. In between nobody reads or writes, and the
//! kernel keeps what comes in. The platform is told nothing: the instance goes on.

use std::time::{Duration, Instant};

use super::{Bridges, Context};
use crate::handoff::snapshot::Kind;
use crate::handoff::{self, Arrival, Departure, Inheritance, Process, Sealed};
use crate::http;
use crate::relay::targets::Stream;
use crate::relay::{self, Carried, carry};
use crate::tunnel::{Link, Tunnels, table};

/// How long the tasks that talk to the platform may take to see that they should end; sessions go on meanwhile.
const COMMANDS_LIMIT: Duration = Duration::from_millis(50);
/// How long web requests to targets in TLS may take to be answered; nothing stands still meanwhile.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long a connection that is just being made may take to be made. Everything else stands still for as long.
const GRACE: Duration = Duration::from_millis(100);
/// How long sessions may take to stop: a task that does not turn for so long is lost anyway.
const FREEZE_LIMIT: Duration = Duration::from_secs(2);

/// What an adoption brought besides the sessions, which run already.
#[derive(Debug, Default)]
pub(super) struct Adopted {
    /// Relay connections; they need to know who the agent is before they can go on.
    pub(super) relays: Vec<Carried<Link>>,
    /// The instance that the process before was.
    pub(super) instance_id: Option<String>,
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Goes on with what the process before has left, if it has.
///
/// Whatever is wrong with it costs sessions, never the start.
pub(super) fn adopt(mut inheritance: Inheritance, tunnels: &Tunnels) -> Adopted {
    let mut adopted = Adopted::default();
    for mut arrival in inheritance.arrivals() {
        adopt_one(&mut arrival, tunnels, &mut adopted);
        arrival.settle();
    }
    inheritance.forget();
    adopted
}

fn adopt_one(arrival: &mut Arrival, tunnels: &Tunnels, adopted: &mut Adopted) {
    let begun = Instant::now();
    let records = match records(arrival) {
        Ok(records) => records,
        Err(error) => {
            let (error, sessions) = (http::chain(&error), arrival.sessions());
            tracing::error!(error, sessions, "what the process before has left cannot be read; its sessions are lost");
            tunnels.lost(sessions.into());
            return;
        }
    };
    let Records { process, sessions, relays, damaged } = records;
    let before = adopted.relays.len();
    let unwritten = u64::from(arrival.sessions()).saturating_sub(sessions.len() as u64);
    let mut kept = 0;
    for record in sessions {
        kept += u64::from(tunnels.adopt(record, arrival));
    }
    for record in relays {
        match record.revive(arrival) {
            Ok(carried) => adopted.relays.push(carried),
            Err(error) => tracing::warn!(%error, "a relay connection was not carried over"),
        }
    }
    tunnels.lost(unwritten);
    let relays = adopted.relays.len() - before;
    let lost_relays = process.relays.saturating_sub(relays as u64);
    if unwritten + lost_relays + damaged > 0 {
        tracing::warn!(sessions = unwritten, relays = lost_relays, damaged, "not everything was carried over");
    }
    tracing::info!(
        from = process.version,
        sessions = kept,
        relays,
        took_us = micros(begun),
        "taken over from the process before"
    );
    adopted.instance_id = Some(process.instance_id).filter(|id| !id.is_empty());
}

#[derive(Default)]
struct Records {
    process: Process,
    sessions: Vec<table::Record>,
    relays: Vec<carry::Record>,
    damaged: u64,
}

fn records(arrival: &Arrival) -> Result<Records, handoff::snapshot::Error> {
    let mut reader = arrival.read()?;
    let mut records = Records::default();
    loop {
        let outcome = match reader.record() {
            Ok(None) => return Ok(records),
            Ok(Some((Kind::PROCESS, payload))) => handoff::parse(payload).map(|process| records.process = process),
            Ok(Some((Kind::SESSION, payload))) => handoff::parse(payload).map(|session| records.sessions.push(session)),
            Ok(Some((Kind::RELAY, payload))) => handoff::parse(payload).map(|relay| records.relays.push(relay)),
            // Of a later version, which tolerates that it is not understood.
            Ok(Some(_)) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            records.damaged += 1;
            tracing::warn!(error = %http::chain(&error), "a part of what the process before has left is of no use");
            if matches!(error, handoff::snapshot::Error::Io(_)) {
                return Ok(records);
            }
        }
    }
}

/// Stops everything where it is and leaves it to the next process. True if that is done: then there is nothing left to do
/// but to end, at once. `room` is how many descriptors the service manager can keep, where it says that.
pub(super) async fn release(context: &Context, room: Option<u32>) -> bool {
    let sockets = 3 * context.tunnels.active() + 2 * context.relay.open();
    let needed = handoff::descriptors(sockets);
    if room.is_some_and(|room| needed > room as usize) {
        tracing::error!(
            needed,
            room,
            "the unit's FileDescriptorStoreMax= is too small to hand over sessions; they are ended as by a stop"
        );
        return false;
    }
    let departure = match Departure::new() {
        Ok(departure) => departure,
        Err(error) => {
            tracing::error!(error = %http::chain(&error), "sessions cannot be handed over; they are ended as by a stop");
            return false;
        }
    };
    // No command is taken any more that would be forgotten.
    context.tasks.shut_down(COMMANDS_LIMIT).await;
    context.relay.settled(ANSWER_LIMIT).await;
    let begun = Instant::now();
    let ((sessions, stuck), relays) =
        tokio::join!(context.tunnels.freeze(GRACE, FREEZE_LIMIT), context.relay.freeze(FREEZE_LIMIT));
    let froze = micros(begun);
    let cut_off =
        relays.iter().filter(|carried| matches!(carried.connection.target, Some((_, Stream::Tls(_))))).count();
    if cut_off > 0 {
        tracing::warn!(requests = cut_off, "web requests to targets in TLS cannot be handed over, and are cut off");
    }
    let (session_count, relay_count) = (sessions.len(), relays.len());
    let process = Process {
        version: context.board.status().version,
        instance_id: context.instance.instance_id.clone(),
        relays: relay_count as u64,
    };
    if session_count + stuck + relay_count == 0 {
        tracing::info!("nothing is under way that the next process would have to go on with");
        return true;
    }
    let all_sessions = u32::try_from(session_count + stuck).unwrap_or(u32::MAX);
    let sealed = match write_down(departure, &process, all_sessions, sessions, relays) {
        Ok(sealed) => sealed,
        Err(error) => {
            tracing::error!(error = %http::chain(&error), "sessions cannot be handed over, and are lost");
            return false;
        }
    };
    if let Err(error) = sealed.store() {
        tracing::error!(error = %http::chain(&error), "sessions cannot be handed over; they are ended as by a stop");
        adopt_one(&mut sealed.take_back(), &context.tunnels, &mut Adopted::default());
        return false;
    }
    tracing::info!(
        sessions = session_count,
        relays = relay_count,
        sockets = sealed.sockets(),
        froze_us = froze,
        took_us = micros(begun),
        "left to the next process"
    );
    true
}

fn write_down(
    mut departure: Departure,
    process: &Process,
    all_sessions: u32,
    sessions: Vec<table::Frozen>,
    relays: Vec<Carried<Link>>,
) -> Result<Sealed, handoff::Error> {
    departure.put(Kind::PROCESS, process)?;
    for session in sessions {
        let record = session.record(&mut departure);
        if let Err(error) = departure.put(Kind::SESSION, &record) {
            tracing::warn!(error = %http::chain(&error), ?record, "a session cannot be handed over");
        }
    }
    for carried in relays {
        let written = carry::Record::of(carried, &mut departure).map_err(handoff::Error::Memory);
        if let Err(error) = written.and_then(|record| departure.put(Kind::RELAY, &record)) {
            tracing::warn!(error = %http::chain(&error), "a relay connection cannot be handed over");
        }
    }
    departure.seal(all_sessions)
}

/// Gives the relay what was carried over for it.
pub(super) fn adopt_relays(relay: &relay::Handle<Bridges>, relays: Vec<Carried<Link>>) {
    if !relays.is_empty() {
        relay.adopt(relays);
    }
}
