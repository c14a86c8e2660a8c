//! The connections to one bridge: 32 of them, opened one after the other, replaced when they end.
//!
//! ```text
//!  relay_connect ─► dial ─► serving (32) ─► ended: dial again at once
//!                    │          └► streams: not counted, replaced, bounded by themselves
//!                    └► failed, or ended at once: wait, longer each time, for ever
//! ```
//!
//! The control plane asks once and then takes the pool for granted, so a lost pool comes back by itself. Only a pool that
//! was superseded (the platform named another bridge for its edge) gives up: when a dial fails, or when nobody has used
//! it for a while.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::conversation::Conversation;
use super::dial::{BridgeAddress, Dial, greeting};
use super::exchange::{Connection, End, Observer, Signals, serve};
use super::pace::Retry;
use super::streams::{Kind, Place, Streams};
use crate::http;

/// As many as the platform expects (protocol 9.1): applications call back through their own agent, streams take long.
pub const SIZE: usize = 32;
/// Between two dials that fill a pool: a handshake costs both ends a millisecond, and requests come first.
const PAUSE: Duration = Duration::from_millis(10);
/// A connection that ends sooner, without a request, was not wanted: TLS 1.3 tells of a refused certificate only later.
const PROVEN: Duration = Duration::from_secs(3);
/// A superseded pool that nobody used for so long is closed.
const SUPERSEDED_IDLE: Duration = Duration::from_secs(600);
/// For the greeting; a socket that does not take 30 bytes is no connection.
const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// What `status` shows of a pool (contract section 5, `relays`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RelayStatus {
    /// The edge; empty for the default one.
    pub edge: String,
    /// `host:port`.
    pub bridge: String,
    /// `connected`, `connecting` or `superseded`.
    pub state: &'static str,
    /// Connections that can serve requests.
    pub connections: usize,
    /// Event streams and upgrades.
    pub streams: usize,
    /// Requests since the pool was made.
    pub requests: u64,
    /// Why it is not connected.
    pub last_error: Option<String>,
}

#[derive(Debug)]
struct State {
    ca_pem: Option<String>,
    superseded: Option<Instant>,
    /// Invariant: connections that count, the one being dialled included; at most [`SIZE`].
    counted: usize,
    streams: usize,
    /// Open connections that count.
    open: usize,
    last_request: Instant,
    requests: u64,
    last_error: Option<String>,
    /// Since when it fails; `None` once a connection has proven itself.
    failing: Option<Instant>,
    /// A connection ended so soon that the next dial should wait.
    ended_at_once: bool,
    /// Nobody dials any more.
    given_up: bool,
}

/// The connections to one bridge.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) edge: String,
    pub(super) bridge: BridgeAddress,
    state: Mutex<State>,
    changed: Notify,
    kicked: Notify,
    all_streams: Arc<Streams>,
    signals: Signals,
}

/// What the pool's task does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Dial,
    /// Wait before dialling: something is wrong.
    Back,
    /// Wait for a change, or this long.
    Rest(Duration),
    GiveUp,
}

impl Pool {
    pub(super) fn new(
        edge: &str,
        bridge: BridgeAddress,
        ca_pem: Option<String>,
        all_streams: Arc<Streams>,
        signals: &Signals,
    ) -> Arc<Self> {
        let state = State {
            ca_pem,
            superseded: None,
            counted: 0,
            streams: 0,
            open: 0,
            last_request: Instant::now(),
            requests: 0,
            last_error: None,
            failing: None,
            ended_at_once: false,
            given_up: false,
        };
        Arc::new(Self {
            edge: edge.to_owned(),
            bridge,
            state: Mutex::new(state),
            changed: Notify::new(),
            kicked: Notify::new(),
            all_streams,
            signals: Signals { end: signals.end.child_token(), ..signals.clone() },
        })
    }

    /// The platform asks for it, perhaps again: it is the newest of its edge, and need not wait. False if it has given up.
    pub(super) fn ask_for(&self, ca_pem: Option<String>) -> bool {
        let mut state = self.state();
        if state.given_up {
            return false;
        }
        state.ca_pem = ca_pem.or_else(|| state.ca_pem.take());
        state.superseded = None;
        drop(state);
        self.kicked.notify_one();
        self.changed.notify_one();
        true
    }

    /// The platform named another bridge for its edge.
    pub(super) fn supersede(&self) {
        self.state().superseded.get_or_insert_with(Instant::now);
        self.changed.notify_one();
    }

    /// No more dials, and no more requests after the present ones.
    pub(super) fn give_up(&self) {
        self.state().given_up = true;
        self.signals.end.cancel();
    }

    pub(super) fn ca_pem(&self) -> Option<String> {
        self.state().ca_pem.clone()
    }

    /// True once nothing is left of it.
    pub(super) fn is_over(&self) -> bool {
        let state = self.state();
        state.given_up && state.open == 0 && state.streams == 0
    }

    pub(super) fn superseded_since(&self) -> Option<Instant> {
        self.state().superseded
    }

    pub(super) fn status(&self) -> RelayStatus {
        let state = self.state();
        RelayStatus {
            edge: self.edge.clone(),
            bridge: self.bridge.to_string(),
            state: match (state.superseded, state.open) {
                (Some(_), _) => "superseded",
                (None, 0) => "connecting",
                (None, _) => "connected",
            },
            connections: state.open,
            streams: state.streams,
            requests: state.requests,
            last_error: state.last_error.clone(),
        }
    }

    /// Decides what is next at `now`.
    fn step(&self, now: Instant) -> Step {
        let mut state = self.state();
        if let Some(since) = state.superseded {
            let used = since.max(state.last_request);
            let unused = now.saturating_duration_since(used);
            let failing = state.failing.is_some() || state.ended_at_once;
            if unused >= SUPERSEDED_IDLE || (failing && state.counted == 0) {
                state.given_up = true;
                return Step::GiveUp;
            }
            if failing || state.counted >= SIZE {
                return Step::Rest(SUPERSEDED_IDLE - unused);
            }
        }
        if std::mem::take(&mut state.ended_at_once) {
            state.failing.get_or_insert(now);
            return Step::Back;
        }
        if state.counted < SIZE { Step::Dial } else { Step::Rest(Duration::from_secs(3600)) }
    }

    fn failed(&self, error: String) {
        let mut state = self.state();
        if state.last_error.as_ref() != Some(&error) {
            tracing::warn!(edge = self.edge, bridge = %self.bridge, %error, "no relay connection");
        }
        state.last_error = Some(error);
        state.failing.get_or_insert_with(Instant::now);
    }

    fn failing_for(&self) -> Option<Duration> {
        self.state().failing.map(|since| since.elapsed())
    }

    fn proven(&self) {
        let mut state = self.state();
        state.failing = None;
        state.last_error = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the connections that count; gives its place back when dropped.
struct Slot {
    pool: Arc<Pool>,
    open: AtomicBool,
    /// Among all streams, once it is one.
    stream: OnceLock<Place>,
    /// Ends it where it is.
    cut: CancellationToken,
    requested: AtomicBool,
    opened: Instant,
}

impl Slot {
    /// Takes a place, for a connection that is about to be dialled or was carried over.
    fn take(pool: &Arc<Pool>) -> Self {
        pool.state().counted += 1;
        Self {
            pool: Arc::clone(pool),
            open: AtomicBool::new(false),
            stream: OnceLock::new(),
            cut: CancellationToken::new(),
            requested: AtomicBool::new(false),
            opened: Instant::now(),
        }
    }

    fn opened(mut self) -> Self {
        self.pool.state().open += 1;
        self.open = AtomicBool::new(true);
        self.opened = Instant::now();
        self
    }
}

impl Observer for Slot {
    fn requested(&self) {
        if !self.requested.swap(true, Relaxed) {
            self.pool.proven();
        }
        let mut state = self.pool.state();
        state.requests += 1;
        state.last_request = Instant::now();
    }

    fn detached(&self, kind: Kind) {
        // Without a place there it keeps the one in its pool, so that streams cannot multiply without end.
        let Some(place) = self.pool.all_streams.enter(kind, &self.cut) else { return };
        if self.stream.set(place).is_err() {
            return;
        }
        let mut state = self.pool.state();
        state.counted -= 1;
        state.open -= 1;
        state.streams += 1;
        drop(state);
        self.pool.changed.notify_one();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        if let Some(place) = self.stream.get() {
            self.pool.all_streams.leave(place);
            state.streams -= 1;
        } else {
            state.counted -= 1;
            if self.open.load(Relaxed) {
                state.open -= 1;
                let at_once = !self.requested.load(Relaxed) && self.opened.elapsed() < PROVEN;
                state.ended_at_once |= at_once;
                if !at_once {
                    state.failing = None;
                }
            }
        }
        drop(state);
        self.pool.changed.notify_one();
    }
}

/// Keeps a pool full until it gives up or the relay stops.
pub(super) async fn keep<D: Dial>(pool: Arc<Pool>, shared: Arc<Shared<D>>) {
    let stop = shared.tasks.stop_token();
    let ending = pool.signals.end.clone();
    let keeping = async {
        let mut retry = Retry::default();
        loop {
            match pool.step(Instant::now()) {
                Step::GiveUp => return,
                Step::Rest(limit) => drop(timeout(limit, pool.changed.notified()).await),
                Step::Back => wait(&pool, &mut retry).await,
                Step::Dial => {
                    if pool.failing_for().is_none() {
                        retry = Retry::default();
                    }
                    let slot = Slot::take(&pool);
                    match open(&pool, &shared).await {
                        Ok(link) => {
                            start(slot, Connection::new(link), &shared);
                            shared.remember(&pool);
                            tokio::time::sleep(PAUSE).await;
                        }
                        Err(error) => {
                            pool.failed(error);
                            drop(slot);
                            wait(&pool, &mut retry).await;
                        }
                    }
                }
            }
        }
    };
    tokio::select! {
        // Whoever is asked to stop does not dial in the place of connections that are just taken away.
        biased;
        () = stop.cancelled() => {}
        () = shared.signals.freeze.cancelled() => pool.state().given_up = true,
        () = ending.cancelled() => {}
        () = keeping => {
            tracing::info!(edge = pool.edge, bridge = %pool.bridge, "a superseded relay pool was given up");
            pool.give_up();
        }
    }
}

/// Waits before the next attempt, or until the platform asks.
async fn wait(pool: &Pool, retry: &mut Retry) {
    let pause = retry.next(pool.failing_for().unwrap_or_default(), fastrand::f64());
    drop(timeout(pause, pool.kicked.notified()).await);
}

async fn open<D: Dial>(pool: &Pool, shared: &Shared<D>) -> Result<D::Link, String> {
    let ca_pem = pool.ca_pem();
    let dialled = shared.dial.dial(&pool.bridge, ca_pem.as_deref()).await;
    let (mut link, took) = dialled.map_err(|error| http::chain(&error).to_string())?;
    shared.sample(&pool.edge, took);
    let greeting = greeting(&shared.dial.agent_name());
    let greet = async {
        // One write, and nothing behind it: the bridge would take that for the first response.
        link.write_all(&greeting).await?;
        link.flush().await
    };
    match timeout(GREETING_LIMIT, greet).await {
        Ok(Ok(())) => Ok(link),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the bridge does not take a greeting".to_owned()),
    }
}

/// A connection that was carried over takes its place in the pool.
pub(super) fn adopt<D: Dial>(pool: &Arc<Pool>, connection: Connection<D::Link>, shared: &Arc<Shared<D>>) {
    start(Slot::take(pool), connection, shared);
}

fn start<D: Dial>(slot: Slot, mut connection: Connection<D::Link>, shared: &Arc<Shared<D>>) {
    let slot = slot.opened();
    let serving = Arc::clone(shared);
    let signals = Signals { cut: slot.cut.clone(), ..slot.pool.signals.clone() };
    shared.tasks.spawn("relay connection", async move {
        let proving = async {
            tokio::time::sleep(PROVEN).await;
            slot.pool.proven();
            std::future::pending::<()>().await;
        };
        let end = tokio::select! {
            biased;
            end = serve(&mut connection, &serving.service, &signals, &slot) => end,
            () = proving => End::Closed,
        };
        if end == End::Frozen {
            serving.harvest(&slot.pool, connection);
        }
    });
}

impl<B> Connection<B> {
    /// A connection on which nothing has happened.
    #[must_use]
    pub fn new(bridge: B) -> Self {
        Self { conversation: Conversation::new(), bridge, target: None }
    }
}

#[cfg(test)]
mod tests;
