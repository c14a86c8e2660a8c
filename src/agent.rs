//! The running agent: from a stored certificate to a connected instance, and in good order back down.
//!
//! ```text
//!              ┌──────────── registration: load, or join once ────────────┐
//!              ▼                                                          │ refused for good: exit 78
//!   board ◄── heartbeat (and renewal) ──► platform ──► commands ──► tunnels, relay
//!     │                                                   │ revoked: exit 78
//!     ├─► control socket   ├─► health port   ├─► STATUS=  └────► shutdown: drain, offline, exit 0
//! ```
//!
//! Every task writes what it knows on the [`board`]; nothing else is shared. What an answer of the platform means for
//! the agent is decided in `reaction`, without a clock or a socket.

pub mod board;
mod bridges;
mod commands;
mod edges;
mod handover;
mod health;
mod heartbeat;
mod reaction;
pub mod registration;
mod renewal;
mod retry;
mod sharing;
mod shutdown;
mod version_watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use self::board::Board;
use self::bridges::Bridges;
use self::edges::Edges;
pub use self::reaction::Anew;
use crate::config::Config;
use crate::control::{self, Announced};
use crate::handoff::Inheritance;
use crate::http;
use crate::identity::shared::{self, Shared};
use crate::identity::{self, Identity, Store, instance::Instance};
use crate::kubernetes;
use crate::platform::Client;
use crate::platform::client::AgentClient;
use crate::relay;
use crate::service::notify;
use crate::tasks::Tasks;
use crate::telemetry::Build;
use crate::tunnel::Tunnels;

/// Why the agent ends other than by a signal. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The identity cannot be read or stored.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The platform will not register this agent.
    #[error(transparent)]
    Registration(#[from] registration::Error),
    /// The Secret that replicas share cannot be used; only the `join` command ends with this.
    #[error(transparent)]
    Shared(#[from] shared::Error),
    /// No HTTP client can be made.
    #[error("the platform cannot be called")]
    Http(#[from] http::Error),
    /// Another agent runs here.
    #[error(transparent)]
    Control(#[from] control::server::Error),
    /// The certificate ended before it could be renewed.
    #[error(
        "the certificate of agent {name} expired at {expired} and the platform refuses it, so it cannot renew itself. \
         Have an administrator delete the agent {name} on the platform and make a new join token, then \
         {anew} with it"
    )]
    Expired {
        /// The agent.
        name: String,
        /// End of validity, RFC 3339.
        expired: String,
        /// What to do.
        anew: Anew,
    },
    /// The platform revoked the agent.
    #[error(
        "the platform revoked agent {name}: {reason}. The stored certificate was left in place. To bring the agent back, \
         make a new join token on the platform (delete the agent there if it is still listed), then \
         {anew} with it"
    )]
    Revoked {
        /// The agent.
        name: String,
        /// The platform's words.
        reason: String,
        /// What to do.
        anew: Anew,
    },
    /// The signal handlers cannot be installed.
    #[error("signals cannot be handled")]
    Signals(#[source] std::io::Error),
    /// The metrics cannot be set up.
    #[error("the metrics cannot be set up")]
    Metrics(#[from] prometheus::Error),
}

/// Who the agent is at this moment; replaced as a whole by a renewal.
#[derive(Clone, Debug)]
pub struct Session {
    /// The identity in use.
    pub identity: Arc<Identity>,
    /// Calls the platform with it.
    pub client: AgentClient,
}

/// What every task of the agent has at hand.
#[derive(Clone)]
pub(crate) struct Context {
    config: Arc<Config>,
    client: Client,
    store: Store,
    /// The Secret that all replicas have in common, in a cluster.
    shared: Option<Shared>,
    instance: Arc<Instance>,
    board: Board,
    session: watch::Sender<Session>,
    /// Fingerprint of the certificate that the platform accepted last; empty before the first time.
    accepted: watch::Sender<String>,
    /// Whose turn it is to write a set into the data directory.
    identity_turn: Arc<tokio::sync::Mutex<()>>,
    /// A task that finds the agent cannot go on says why here.
    verdict: mpsc::Sender<Error>,
    tasks: Tasks,
    /// Sessions run among these: they outlive the tasks that talk to the platform until they are drained.
    work: Tasks,
    tunnels: Tunnels,
    relay: relay::Handle<Bridges>,
    edges: Edges,
}

impl Context {
    fn session(&self) -> Session {
        self.session.borrow().clone()
    }

    /// From now on every call is made as `identity`.
    fn assume(&self, identity: Identity) {
        self.board.identify(&identity, &self.instance);
        let identity = Arc::new(identity);
        self.session.send_replace(Session { client: self.client.as_agent(&identity), identity });
    }

    /// How a person registers this agent anew.
    fn anew(&self) -> Anew {
        self.shared.as_ref().map_or(Anew::Command, |shared| Anew::Secret(shared.place().clone()))
    }

    /// The platform has accepted a heartbeat of this session.
    fn accepted(&self, session: &Session) {
        self.accepted.send_if_modified(|accepted| {
            let new = *accepted != session.identity.sha256;
            accepted.clone_from(&session.identity.sha256);
            new
        });
    }

    /// Ends the agent with an error, unless another one came first.
    fn give_up(&self, error: Error) {
        // Full means that a verdict is already on its way.
        drop(self.verdict.try_send(error));
    }
}

/// Runs the agent until a signal ends it.
///
/// # Errors
/// Only what needs a person: see [`Error`]. Trouble with the network or the platform never ends the agent.
pub async fn run(config: Config, warnings: &[String], build: &Build) -> Result<(), Error> {
    let mut signals = shutdown::Signals::install().map_err(Error::Signals)?;
    let config = Arc::new(config);
    let board = Board::new(&config, build)?;
    tracing::info!(version = %build.version, platform = %config.platform_url, "bamf-agent starts");
    let work = Tasks::new();
    let tunnels = Tunnels::new(config.resources.clone(), board.metrics.sessions.clone(), work.clone());
    // Before anything else: people are waiting.
    let adopted = handover::adopt(Inheritance::take(), &tunnels);
    tokio::task::yield_now().await;
    let store = Store::new(&config.data_dir);
    store.prepare()?;
    let _lock = store.lock()?;
    let shared = Shared::of(&config, &build.version.to_string());
    let stored = match store.load() {
        // Nothing else could help.
        Err(error) if shared.is_none() => return Err(error.into()),
        stored => stored,
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if let shared::Kind::NotShared(sentence) = shared::kind(&config) {
        tracing::warn!("{sentence}");
    }
    let local = Tasks::new();
    let announced = Announced::default();
    serve_locally(&config, &board, &announced, &local).await?;

    let client = Client::new(&config.network, &config.platform_url, &build.version.to_string())?;
    let mut watch = Watch::new(board.clone());
    let identity = {
        let leaving = CancellationToken::new();
        let known = registration::Known { stored, shared: shared.as_ref() };
        let registered = registration::identity(&config, &store, &client, &board, known, &leaving);
        tokio::pin!(registered);
        let Some(identity) = watch.during(&mut registered, &mut signals).await else {
            leaving.cancel();
            return shutdown::after_joining(registered, &mut signals).await;
        };
        identity?
    };
    let Some(identity) = identity else { return Ok(()) };
    let (context, mut verdicts) =
        context(config, client, Kept { store, shared }, board, identity, Sessions { work, tunnels, adopted });
    let tasks = &context.tasks;
    // Before anything else: web requests may be waiting, and the platform will not ask again (protocol chapter 16).
    context.relay.reconnect();
    tasks.spawn("heartbeat", heartbeat::run(context.clone()));
    tasks.spawn("commands", commands::run(context.clone()));
    tasks.spawn("edges", edges::run(context.clone()));
    tasks.spawn("renewal", renewal::run(context.clone()));
    if let Some(shared) = &context.shared {
        tasks.spawn("sharing", sharing::run(context.clone(), shared.clone()));
    }
    tasks.spawn("version watch", version_watch::run(context.clone(), build.version.clone()));
    notify::ready();

    let verdict = watch.during(verdicts.recv(), &mut signals).await.flatten();
    if shutdown::in_order(&context, &announced, &mut signals, verdict.is_none()).await == shutdown::Left::Everything {
        return Ok(());
    }
    local.shut_down(shutdown::TASK_LIMIT).await;
    verdict.map_or(Ok(()), Err)
}

/// What runs before it is known who the agent is.
struct Sessions {
    work: Tasks,
    tunnels: Tunnels,
    adopted: handover::Adopted,
}

/// Where the identity is kept.
struct Kept {
    store: Store,
    shared: Option<Shared>,
}

/// Puts together what the tasks share, once it is known who the agent is.
fn context(
    config: Arc<Config>,
    client: Client,
    kept: Kept,
    board: Board,
    identity: Identity,
    sessions: Sessions,
) -> (Context, mpsc::Receiver<Error>) {
    let Sessions { work, tunnels, adopted } = sessions;
    let Kept { store, shared } = kept;
    let instance = Instance::load(store.directory());
    let instance = match &adopted.instance_id {
        Some(id) => instance.continuing(id),
        None => instance,
    };
    if let Err(error) = instance.write(store.directory()) {
        tracing::warn!(error = %http::chain(&error), "the instance id is not kept for the next start");
    }
    board.identify(&identity, &instance);
    let identity = Arc::new(identity);
    let (session, _) = watch::channel(Session { client: client.as_agent(&identity), identity });
    let (accepted, _) = watch::channel(String::new());
    let (verdict, verdicts) = mpsc::channel(1);
    let instance = Arc::new(instance);
    let relay = relay::start(relay::Config {
        dial: Bridges::new(session.subscribe()),
        resources: config.resources.clone(),
        network: config.network.clone(),
        data_dir: config.data_dir.clone(),
        service_account: kubernetes::MOUNT.into(),
        limits: relay::exchange::Limits::default(),
    });
    handover::adopt_relays(&relay, adopted.relays);
    board.show_relay(relay.clone());
    let edges = Edges::new();
    let tasks = Tasks::new();
    let context = Context {
        config,
        client,
        store,
        shared,
        instance,
        board,
        session,
        accepted,
        identity_turn: Arc::default(),
        verdict,
        tasks,
        work,
        tunnels,
        relay,
        edges,
    };
    (context, verdicts)
}

/// Reports to the service manager and keeps its watchdog fed, whatever the agent is busy with.
struct Watch {
    board: Board,
    beat: tokio::time::Interval,
    shown: String,
}

impl Watch {
    fn new(board: Board) -> Self {
        let period = notify::watchdog_interval().unwrap_or(Duration::from_secs(3600));
        Self { board, beat: tokio::time::interval(period), shown: String::new() }
    }

    /// Waits for `work`; `None` if a signal came first.
    async fn during<T>(&mut self, work: impl Future<Output = T>, signals: &mut shutdown::Signals) -> Option<T> {
        tokio::pin!(work);
        loop {
            // Subscribed before the line is read, so that no change between the two is missed.
            let changed = self.board.changed();
            let line = self.board.line();
            if line != self.shown {
                notify::status(&line);
                self.shown = line;
            }
            tokio::select! {
                // Who the agent is is known at once after the first time, and without it nothing can be handed over.
                biased;
                done = &mut work => return Some(done),
                () = signals.next() => return None,
                _ = self.beat.tick() => notify::alive(),
                () = changed => {}
            }
        }
    }
}

/// Starts the control socket and the health port: before the platform is asked for anything, so that an agent that
/// cannot reach it can still say so.
async fn serve_locally(config: &Config, board: &Board, announced: &Announced, tasks: &Tasks) -> Result<(), Error> {
    let runtime_dir: PathBuf = config.runtime_dir.clone();
    match control::server::bind(&runtime_dir).await {
        Ok(listener) => {
            let board = board.clone();
            let status: Arc<dyn Fn() -> control::Status + Send + Sync> = Arc::new(move || board.status());
            tasks.spawn("control", control::server::serve(listener, status, announced.clone(), tasks.clone()));
        }
        Err(error @ control::server::Error::InUse { .. }) => return Err(error.into()),
        Err(error) => {
            tracing::error!(error = %http::chain(&error), "`bamf-agent status` and `update` will not see this agent");
        }
    }
    match tokio::net::TcpListener::bind(config.listen).await {
        Ok(listener) => {
            // The configured port may have been 0.
            let listen = listener.local_addr().unwrap_or(config.listen);
            tracing::info!(%listen, "/health, /ready and /metrics are served");
            tasks.spawn("health", health::serve(listener, board.clone(), tasks.clone()));
        }
        Err(error) => {
            tracing::error!(%error, listen = %config.listen, "/health, /ready and /metrics are not served (`listen:` chooses another address)");
        }
    }
    Ok(())
}
