//! All sessions of the agent: who may open one, which command goes where, and what they hold together.

mod ledger;
mod refusal;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;

pub(super) use self::ledger::Ledger;
use self::ledger::Shared;
use super::dial::Credentials;
use super::session::{self, End, Order, Outcome, Session, Setup};
use super::target::{self, Address, Target};
use crate::config::Resource;
use crate::handoff::{Arrival, Departure};
use crate::heap;
use crate::identity;
use crate::platform::events::{TunnelKind, TunnelRequest};
use crate::tasks::Tasks;
use crate::telemetry::metrics::SessionMetrics;

/// More sessions than this at one time are refused: each has two descriptors and may hold twice [`ledger::FLOOR`] bytes,
/// whatever the others do.
const MAX_SESSIONS: usize = 2_000;
/// Orders that may wait for one session; a redial replaces the one before, so that few are ever of use.
const ORDERS: usize = 8;
/// Refusals that are told to clients at one time; beyond, clients wait for the bridge's 30 s.
const MAX_REFUSALS: usize = 16;
/// How long after its end a session certificate is still tried: the two clocks may differ.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);
/// Sessions that have to end before memory is given back to the kernel: each is worth some 12 KiB.
const TRIM_AFTER: usize = 100;
/// No honest session id is longer.
const MAX_ID: usize = 256;

/// Why a session is not opened.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("no resource of that name is configured")]
    UnknownResource,
    #[error("the resource has no port, and its type has none of its own: set `port`")]
    NoPort,
    #[error("{MAX_SESSIONS} sessions are open already")]
    TooMany,
    #[error("the agent is shutting down")]
    Leaving,
}

/// The table of sessions. Cheap to clone.
#[derive(Clone)]
pub struct Tunnels(Arc<Inner>);

struct Inner {
    resources: Vec<Resource>,
    open: Mutex<Open>,
    shared: Arc<Shared>,
    /// Rung when a session ends.
    ended: Notify,
    refusals: Arc<Semaphore>,
    tasks: Tasks,
}

#[derive(Default)]
struct Open {
    sessions: HashMap<String, mpsc::Sender<Order>>,
    leaving: bool,
    /// The most sessions since memory was last given back.
    peak: usize,
    /// Sessions that were stopped where they were.
    frozen: Vec<Frozen>,
}

/// A session on its way to another process.
pub struct Frozen {
    id: String,
    resource: String,
    session: Box<Session>,
}

impl std::fmt::Debug for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frozen").field("resource", &self.resource).finish_non_exhaustive()
    }
}

/// The same as plain data.
#[derive(Serialize, Deserialize)]
pub struct Record {
    id: String,
    resource: String,
    session: session::Record,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record").field("resource", &self.resource).finish_non_exhaustive()
    }
}

impl Frozen {
    /// Takes it apart; its sockets go to `departure`.
    #[must_use]
    pub fn record(self, departure: &mut Departure) -> Record {
        Record { id: self.id, resource: self.resource, session: self.session.record(departure) }
    }
}

impl Open {
    /// Whether enough has ended since the peak for giving memory back to be worth its while.
    fn has_shrunk(&mut self) -> bool {
        let left = self.sessions.len();
        let worth_it = left <= self.peak / 2 && self.peak - left >= TRIM_AFTER;
        if worth_it {
            self.peak = left;
            self.sessions.shrink_to(2 * left);
        }
        worth_it
    }
}

impl std::fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnels").field("active", &self.active()).finish_non_exhaustive()
    }
}

impl Tunnels {
    /// A table for these resources. Sessions run among `tasks`, on the runtime that this is called on.
    #[must_use]
    pub fn new(resources: Vec<Resource>, metrics: SessionMetrics, tasks: Tasks) -> Self {
        let shared = Arc::new(Shared::new(metrics));
        tasks.spawn("buffers", Arc::clone(&shared).tidy(tasks.stop_token()));
        Self(Arc::new(Inner {
            resources,
            open: Mutex::default(),
            shared,
            ended: Notify::new(),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            tasks,
        }))
    }

    /// Sessions that are open, those that wait for a redial included (protocol 15.2, 5).
    #[must_use]
    pub fn active(&self) -> usize {
        self.lock().sessions.len()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out a command of the platform. Never waits.
    pub fn obey(&self, request: TunnelRequest) {
        let name = ledger::short(&request.session_id);
        if request.session_id.is_empty() || request.session_id.len() > MAX_ID || !is_printable(&request.session_id) {
            tracing::warn!("a session was asked for with an impossible id; ignored");
            return;
        }
        let credentials = match usable(&request) {
            Ok(credentials) => credentials,
            Err(why) => {
                tracing::warn!(session = %name, resource = %request.resource_name, %why, "a command was ignored");
                return;
            }
        };
        match request.kind {
            TunnelKind::Dial => self.dial(request, credentials),
            TunnelKind::Redial => self.redial(request, credentials),
        }
    }

    fn dial(&self, request: TunnelRequest, credentials: Credentials) {
        let name = ledger::short(&request.session_id);
        let resource = self.0.resources.iter().find(|resource| resource.name == request.resource_name);
        let found = resource.ok_or(Refused::UnknownResource);
        let found = found.and_then(|found| Ok((found, Address::of(found).ok_or(Refused::NoPort)?)));
        let session_type = match (&*request.resource_type, resource) {
            ("", Some(resource)) => resource.resource_type.clone(),
            (asked, _) => asked.to_owned(),
        };
        let (orders, inbox) = mpsc::channel(ORDERS);
        let opened = found.and_then(|found| self.enter(&request.session_id, orders).map(|fresh| (found, fresh)));
        let (resource, address) = match opened {
            Ok((_, false)) => {
                tracing::warn!(session = %name, "a second dial for an open session was ignored");
                return;
            }
            Ok((found, true)) => found,
            Err(refused) => return self.refuse(&request, session_type, credentials, &refused),
        };
        tracing::info!(session = %name, resource = %resource.name, kind = %session_type, bridge = %request.bridge, "session opened");
        let mut target = Target::new(address);
        if target::is_eager(resource, &session_type) {
            target.dial();
        }
        let TunnelRequest { session_id, bridge, resource_name, .. } = request;
        let ledger = Ledger::new(Arc::clone(&self.0.shared), &session_id);
        self.0.shared.metrics.opened.inc();
        let id = session_id.clone();
        let setup = Setup { session_id, session_type, target, bridge, credentials, orders: inbox, ledger };
        let session = Session::new(setup);
        self.run(id, resource_name, session);
    }

    fn run(&self, id: String, resource: String, session: Box<Session>) {
        let entry = Entry { table: self.clone(), id, resource, end: None, frozen: false };
        self.0.tasks.spawn("session", entry.run(session));
    }

    /// Makes an entry; false if the session is open already.
    fn enter(&self, id: &str, orders: mpsc::Sender<Order>) -> Result<bool, Refused> {
        let mut open = self.lock();
        if open.sessions.contains_key(id) {
            return Ok(false);
        }
        if open.leaving {
            return Err(Refused::Leaving);
        }
        if open.sessions.len() >= MAX_SESSIONS {
            return Err(Refused::TooMany);
        }
        self.insert(&mut open, id, orders);
        Ok(true)
    }

    fn insert(&self, open: &mut Open, id: &str, orders: mpsc::Sender<Order>) {
        open.sessions.insert(id.to_owned(), orders);
        open.peak = open.peak.max(open.sessions.len());
        self.0.shared.metrics.active.set(i64::try_from(open.sessions.len()).unwrap_or(i64::MAX));
    }

    /// Stops all sessions where they are and hands them out. Nothing is said to anybody. What is only half made, a
    /// connection to a bridge or a target, is given `grace`; a session that does not stop within `limit` is lost, and counted
    /// in the second number.
    pub async fn freeze(&self, grace: Duration, limit: Duration) -> (Vec<Frozen>, usize) {
        let order = Order::Freeze(Instant::now() + grace);
        let sessions: Vec<_> = {
            let mut open = self.lock();
            // One that is opened now would be in nobody's hands.
            open.leaving = true;
            open.sessions.values().cloned().collect()
        };
        // It fails where the session has just ended; one that has too many orders to take another holds up nobody else.
        let full: Vec<_> = sessions
            .into_iter()
            .filter(|orders| matches!(orders.try_send(order.clone()), Err(TrySendError::Full(_))))
            .collect();
        let freezing = async {
            for orders in full {
                drop(orders.send(order.clone()).await);
            }
            loop {
                let ended = self.0.ended.notified();
                if self.active() == 0 {
                    return;
                }
                ended.await;
            }
        };
        drop(tokio::time::timeout(limit, freezing).await);
        let mut open = self.lock();
        (std::mem::take(&mut open.frozen), open.sessions.len())
    }

    /// Goes on with a session of another process. What it has lost on the way is logged and counted; false if that is all.
    pub fn adopt(&self, record: Record, arrival: &mut Arrival) -> bool {
        let Record { id, resource, session } = record;
        let name = ledger::short(&id);
        let metrics = &self.0.shared.metrics;
        let (orders, inbox) = mpsc::channel(ORDERS);
        let ledger = Ledger::new(Arc::clone(&self.0.shared), &id);
        let configured = self.0.resources.iter().find(|configured| configured.name == resource).and_then(Address::of);
        let revived = Session::revive(session, arrival, inbox, ledger, configured.as_ref());
        let lost = |why: &dyn std::fmt::Display, what: &str| {
            tracing::warn!(session = %name, %resource, %why, "a session was not carried over{what}");
            metrics.lost.inc();
        };
        let (session, loss) = match revived {
            Ok(revived) => revived,
            Err(why) => {
                lost(&why, "");
                return false;
            }
        };
        let mut open = self.lock();
        if open.sessions.contains_key(&id) {
            drop(open);
            lost(&"it is there already", "");
            return false;
        }
        self.insert(&mut open, &id, orders);
        drop(open);
        match loss {
            None => metrics.adopted.inc(),
            Some(why) => lost(&why, " whole"),
        }
        self.run(id, resource, session);
        true
    }

    /// Sessions that another process could not even write down.
    pub fn lost(&self, count: u64) {
        self.0.shared.metrics.lost.inc_by(count);
    }

    /// Redials are not routed to the instance that owns the session (protocol 5.2), so that unknown ones are usual.
    fn redial(&self, request: TunnelRequest, credentials: Credentials) {
        let name = ledger::short(&request.session_id);
        let Some(orders) = self.lock().sessions.get(&request.session_id).cloned() else {
            tracing::info!(session = %name, "a redial for a session that is not open here was ignored");
            return;
        };
        tracing::info!(session = %name, bridge = %request.bridge, "redial");
        if orders.try_send(Order::Redial(request.bridge, credentials)).is_err() {
            tracing::warn!(session = %name, "too many redials at one time; one was ignored");
        }
    }

    /// Tells the client that its session is not opened, instead of letting it wait.
    fn refuse(&self, request: &TunnelRequest, session_type: String, credentials: Credentials, refused: &Refused) {
        let name = ledger::short(&request.session_id);
        tracing::warn!(session = %name, resource = %request.resource_name, why = %refused, "a session was refused");
        self.0.shared.metrics.refused.inc();
        let Ok(place) = Arc::clone(&self.0.refusals).try_acquire_owned() else { return };
        let refusal = refusal::tell(request.bridge.clone(), credentials, request.session_id.clone(), session_type);
        self.0.tasks.spawn("refusal", async move {
            refusal.await;
            drop(place);
        });
    }

    /// Refuses sessions from now on.
    pub fn leave(&self) {
        self.lock().leaving = true;
    }

    /// Waits until no session is open, at most `limit`. Returns how many still are.
    pub async fn drained(&self, limit: Duration) -> usize {
        let all_ended = async {
            loop {
                let ended = self.0.ended.notified();
                if self.active() == 0 {
                    return;
                }
                ended.await;
            }
        };
        // Late is late: the caller ends what is left.
        drop(tokio::time::timeout(limit, all_ended).await);
        self.active()
    }

    /// Ends all sessions: clients are told, targets are closed.
    pub fn end_all(&self) {
        for orders in self.lock().sessions.values() {
            // A full queue means that the session does not turn; the end of the process ends it too.
            drop(orders.try_send(Order::End));
        }
    }
}

/// A session's place in the table; gives it up however the session ends.
struct Entry {
    table: Tunnels,
    id: String,
    resource: String,
    end: Option<End>,
    frozen: bool,
}

impl Entry {
    async fn run(mut self, session: Box<Session>) {
        match session.run().await {
            Outcome::Ended(end) => self.end = Some(end),
            Outcome::Frozen(session) => {
                self.frozen = true;
                let frozen = Frozen { id: self.id.clone(), resource: self.resource.clone(), session };
                self.table.lock().frozen.push(frozen);
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let inner = &self.table.0;
        let (left, shrunk) = {
            let mut open = self.table.lock();
            open.sessions.remove(&self.id);
            (open.sessions.len(), open.has_shrunk())
        };
        if shrunk && !self.frozen {
            heap::trim();
        }
        inner.shared.metrics.active.set(i64::try_from(left).unwrap_or(i64::MAX));
        inner.ended.notify_waiters();
        if self.frozen {
            return;
        }
        let name = ledger::short(&self.id);
        match &self.end {
            Some(end) => tracing::info!(session = %name, resource = %self.resource, %end, "session closed"),
            None => {
                tracing::error!(session = %name, resource = %self.resource, "session ended by a fault or by the end of the agent")
            }
        }
    }
}

fn is_printable(id: &str) -> bool {
    id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What a command must have (protocol 6.2), and a certificate that has not ended already: commands can come late.
fn usable(request: &TunnelRequest) -> Result<Credentials, String> {
    if !request.bridge.is_plausible() {
        return Err("it names no bridge".to_owned());
    }
    let certificate = request.certificate_pem.expose();
    let credentials = Credentials::new(certificate, request.private_key_pem.expose(), &request.ca_pem);
    let credentials = credentials.map_err(|error| error.to_string())?;
    match identity::inspect::valid_until(certificate) {
        Some(end) if end + CLOCK_TOLERANCE < crate::clock::now() => Err(format!(
            "its certificate ended at {}: it came too late, or this machine's clock is ahead",
            crate::clock::rfc3339(end)
        )),
        Some(_) | None => Ok(credentials),
    }
}

/// Whether a session of this type is carried without frames.
#[must_use]
pub fn is_raw(session_type: &str) -> bool {
    session::is_raw(session_type)
}
