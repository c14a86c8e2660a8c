//! The HTTP relay: bridges send web requests over connections that the agent keeps open to them (protocol chapter 9).
//!
//! ```text
//!  relay_connect ─► Handle ─► pool (one per edge and bridge) ─ dial ─► bridge
//!  relays.json ───────┘         │ 32 connections                          │ HTTP/1.1 requests
//!                               ▼                                         ▼
//!       targets ◄── route, headers ◄── conversation (plain data) ◄── exchange (sockets, time)
//! ```
//!
//! No HTTP library carries the requests: what is known about a connection must be plain data at any byte, so that it can
//! be handed to another process in the middle of a request. The pure part is [`conversation`] with what it uses.

pub mod body;
pub mod carry;
pub mod conversation;
pub mod counters;
pub mod dial;
pub mod exchange;
pub mod fixed;
pub mod head;
pub mod headers;
pub mod memory;
pub mod pace;
pub mod pool;
pub mod route;
pub mod rules;
pub mod streams;
pub mod targets;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;

use self::counters::Counters;
use self::dial::{BridgeAddress, Dial};
use self::exchange::{Connection, Limits, Service, Signals};
use self::fixed::Fixed;
use self::memory::Memory;
use self::pace::Ewma;
use self::pool::{Pool, RelayStatus};
use self::route::Router;
use self::rules::RuleBook;
use self::streams::Streams;
use self::targets::Targets;
use crate::clock;
use crate::config::{NetworkConfig, Resource};
use crate::http;
use crate::kubernetes::ServiceAccount;
use crate::tasks::Tasks;

/// Pools in all, superseded ones included; each is 32 connections.
const MAX_POOLS: usize = 16;
/// The platform's edge names are short.
const MAX_EDGE: usize = 128;
/// How often idle connections to targets are looked at.
const SWEEP: Duration = Duration::from_secs(15);
/// For saying good-bye to what had to be cut off.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What the relay needs to know.
#[derive(Clone, Debug)]
pub struct Config<D> {
    /// Dials bridges.
    pub dial: D,
    /// The configured resources.
    pub resources: Vec<Resource>,
    /// Trust roots for targets in TLS.
    pub network: NetworkConfig,
    /// Where `relays.json` lies.
    pub data_dir: PathBuf,
    /// Where the service account is mounted, usually [`crate::kubernetes::MOUNT`].
    pub service_account: PathBuf,
    /// How long what may take.
    pub limits: Limits,
}

/// A relay connection on its way to another process.
#[derive(Debug)]
pub struct Carried<L> {
    /// The edge of its pool.
    pub edge: String,
    /// The bridge of its pool.
    pub bridge: BridgeAddress,
    /// The authority that the platform named for the bridge.
    pub ca_pem: Option<String>,
    /// The platform has named another bridge for the edge.
    pub superseded: bool,
    /// The connection, as it was left. A target's connection in TLS cannot leave the process; without it, the request
    /// that it was for is answered 504, or its response cut off.
    pub connection: Connection<L>,
}

/// What all tasks of the relay share.
struct Shared<D: Dial> {
    dial: D,
    service: Service,
    signals: Signals,
    tasks: Tasks,
    data_dir: PathBuf,
    memory: Mutex<Memory>,
    memory_changed: Notify,
    rtts: Mutex<BTreeMap<String, Ewma>>,
    pools: Mutex<Vec<Arc<Pool>>>,
    streams: Arc<Streams>,
    harvest: Mutex<Vec<Carried<D::Link>>>,
}

/// The relay's front door; clones are the same relay.
pub struct Handle<D: Dial> {
    shared: Arc<Shared<D>>,
}

impl<D: Dial> Clone for Handle<D> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<D: Dial> std::fmt::Debug for Handle<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("pools", &self.shared.pools().len()).finish_non_exhaustive()
    }
}

/// Makes a relay without any connection. Follow with [`Handle::adopt`], then [`Handle::reconnect`].
#[must_use]
pub fn start<D: Dial>(config: Config<D>) -> Handle<D> {
    let Config { dial, resources, network, data_dir, service_account, limits } = config;
    let cluster = Arc::new(ServiceAccount::new(service_account));
    let service = Service {
        rules: RuleBook::new(Router::new(&resources), Arc::clone(&cluster)),
        targets: Targets::new(network, cluster),
        counters: Counters::default(),
        fixed: Fixed::default(),
        limits,
    };
    let shared = Arc::new(Shared {
        dial,
        service,
        signals: Signals::default(),
        tasks: Tasks::new(),
        memory: Mutex::new(Memory::load(&data_dir, now())),
        data_dir,
        memory_changed: Notify::new(),
        rtts: Mutex::default(),
        pools: Mutex::default(),
        streams: Arc::default(),
        harvest: Mutex::default(),
    });
    shared.tasks.spawn("relay sweep", sweep(Arc::clone(&shared)));
    shared.tasks.spawn("relay memory", keep_memory(Arc::clone(&shared)));
    Handle { shared }
}

impl<D: Dial> Handle<D> {
    /// Obeys `relay_connect`, at once: a pool that lives stays, a new one is opened, others of the edge are superseded.
    pub fn connect(&self, edge: &str, bridge: BridgeAddress, ca_pem: Option<String>) {
        if !bridge.is_plausible() || edge.len() > MAX_EDGE {
            tracing::warn!(%bridge, "a relay was asked for to what cannot be a bridge");
            return;
        }
        let mut pools = self.shared.pools();
        pools.retain(|pool| !pool.is_over());
        for other in pools.iter().filter(|pool| pool.edge == edge && pool.bridge != bridge) {
            other.supersede();
        }
        let known = |pool: &&Arc<Pool>| pool.edge == edge && pool.bridge == bridge;
        if pools.iter().filter(known).any(|pool| pool.ask_for(ca_pem.clone())) {
            return;
        }
        if pools.len() >= MAX_POOLS && !make_room(&mut pools) {
            tracing::warn!(edge, %bridge, "no relay is opened: there are {MAX_POOLS} already");
            return;
        }
        tracing::info!(edge, %bridge, "a relay is opened");
        let pool = self.shared.new_pool(edge, bridge, ca_pem);
        pools.push(Arc::clone(&pool));
        self.shared.tasks.spawn("relay pool", pool::keep(pool, Arc::clone(&self.shared)));
    }

    /// Opens pools to the remembered bridges, without waiting for the platform, which may never ask again.
    pub fn reconnect(&self) {
        let memory = self.shared.memory().clone();
        for (edge, endpoint) in memory.endpoints() {
            if !self.shared.pools().iter().any(|pool| pool.edge == edge) {
                self.connect(edge, endpoint.bridge.clone(), endpoint.ca_pem.clone());
            }
        }
    }

    /// Goes on with connections of another process, from where they were left.
    pub fn adopt(&self, carried: Vec<Carried<D::Link>>) {
        let mut pools = self.shared.pools();
        let before = pools.len();
        for Carried { edge, bridge, ca_pem, superseded, connection } in carried {
            let known = |pool: &&Arc<Pool>| pool.edge == edge && pool.bridge == bridge;
            let pool = pools.iter().find(known).cloned().unwrap_or_else(|| {
                let pool = self.shared.new_pool(&edge, bridge, ca_pem);
                if superseded {
                    pool.supersede();
                }
                pools.push(Arc::clone(&pool));
                pool
            });
            pool::adopt(&pool, connection, &self.shared);
        }
        // Only now, so that what was carried is not dialled as well.
        for pool in &pools[before..] {
            self.shared.tasks.spawn("relay pool", pool::keep(Arc::clone(pool), Arc::clone(&self.shared)));
        }
    }

    /// What `status` shows.
    #[must_use]
    pub fn status(&self) -> Vec<RelayStatus> {
        self.shared.pools().iter().filter(|pool| !pool.is_over()).map(|pool| pool.status()).collect()
    }

    /// True while any relay connection is open.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.open() > 0
    }

    /// Connections to bridges, streams included.
    #[must_use]
    pub fn open(&self) -> usize {
        self.status().iter().map(|pool| pool.connections + pool.streams).sum()
    }

    /// Smoothed round-trip times in milliseconds by edge, for the heartbeat.
    #[must_use]
    pub fn rtts(&self) -> BTreeMap<String, u64> {
        let rtts = self.shared.rtts.lock().unwrap_or_else(PoisonError::into_inner);
        rtts.iter().filter_map(|(edge, ewma)| Some((edge.clone(), ewma.milliseconds()?))).collect()
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> counters::Reading {
        self.shared.service.counters.read()
    }

    /// Ends every connection when its present request is answered, and what is not done after `limit` at once. Returns
    /// how many had to be cut off.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.shared.signals.end.cancel();
        self.shared.tasks.shut_down(limit).await;
        let cut_off = self.freeze(LAST_WORD).await;
        let count = cut_off.len();
        let last_words = async {
            for mut carried in cut_off {
                drop(carried.connection.bridge.shutdown().await);
            }
        };
        drop(tokio::time::timeout(LAST_WORD, last_words).await);
        count
    }

    /// Waits until no request is under way that could not be carried to another process, at most `limit`; event streams and
    /// upgrades aside. Everything goes on meanwhile. Returns how many are left.
    pub async fn settled(&self, limit: Duration) -> usize {
        self.shared.service.fixed.none(limit).await
    }

    /// Stops everything where it is and hands it out. Nothing is said to the peers, so that they notice nothing.
    pub async fn freeze(&self, limit: Duration) -> Vec<Carried<D::Link>> {
        self.shared.signals.freeze.cancel();
        let stuck = self.shared.tasks.shut_down(limit).await;
        if stuck > 0 {
            tracing::warn!(stuck, "relay tasks did not stop in time");
        }
        std::mem::take(&mut *self.shared.harvest.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Gives up the pool that was superseded first.
fn make_room(pools: &mut Vec<Arc<Pool>>) -> bool {
    let superseded = pools.iter().enumerate().filter_map(|(index, pool)| Some((pool.superseded_since()?, index)));
    let Some((_, oldest)) = superseded.min() else { return false };
    pools.remove(oldest).give_up();
    true
}

impl<D: Dial> Shared<D> {
    fn new_pool(&self, edge: &str, bridge: BridgeAddress, ca_pem: Option<String>) -> Arc<Pool> {
        Pool::new(edge, bridge, ca_pem, Arc::clone(&self.streams), &self.signals)
    }

    fn pools(&self) -> MutexGuard<'_, Vec<Arc<Pool>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sample(&self, edge: &str, took: Duration) {
        let mut rtts = self.rtts.lock().unwrap_or_else(PoisonError::into_inner);
        if rtts.len() < memory::MAX_EDGES || rtts.contains_key(edge) {
            rtts.entry(edge.to_owned()).or_default().sample(took);
        }
    }

    /// A superseded bridge is not worth remembering.
    fn remember(&self, pool: &Pool) {
        let ca_pem = pool.ca_pem();
        let newest = pool.superseded_since().is_none();
        if newest && self.memory().note(&pool.edge, &pool.bridge, ca_pem.as_deref(), now()) {
            self.memory_changed.notify_one();
        }
    }

    fn harvest(&self, pool: &Pool, connection: Connection<D::Link>) {
        let carried = Carried {
            edge: pool.edge.clone(),
            bridge: pool.bridge.clone(),
            ca_pem: pool.ca_pem(),
            superseded: pool.superseded_since().is_some(),
            connection,
        };
        self.harvest.lock().unwrap_or_else(PoisonError::into_inner).push(carried);
    }
}

async fn sweep<D: Dial>(shared: Arc<Shared<D>>) {
    let stop = shared.tasks.stop_token();
    let mut tick = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => shared.service.targets.sweep(),
        }
    }
}

/// Writes the memory when it has changed; away from the thread that moves bytes, because a sync can take long.
async fn keep_memory<D: Dial>(shared: Arc<Shared<D>>) {
    let stop = shared.tasks.stop_token();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.memory_changed.notified() => {}
        }
        let (memory, data_dir) = (shared.memory().clone(), shared.data_dir.clone());
        let written = tokio::task::spawn_blocking(move || memory.write(&data_dir)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(error = %http::chain(&error), "the relay's bridges are not kept for the next start");
        }
    }
}

fn now() -> u64 {
    clock::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The protocol's vectors.
#[cfg(test)]
fn vectors() -> serde_json::Value {
    serde_json::from_str(include_str!("../tests/vectors.json")).unwrap()
}
