//! One run of a bridge: a runtime of its own, its listeners, and everything that ends with it.
//!
//! The runtime is what makes a kill honest: when it is dropped, every task is, in whatever state, and every socket with it.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::meeting::Meeting;
use super::pool::Pool;
use super::splice::Splices;
use super::{BridgeOptions, Certificate, ClosedReport};
use crate::plane::{Role, Shared};

/// How long a clean stop waits for its connections to end.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// What has been seen, over all runs.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) handshakes: usize,
    pub(crate) failed_handshakes: usize,
    pub(crate) turned_away: usize,
    pub(crate) by_session: HashMap<(String, Role), usize>,
    pub(crate) relays: HashMap<String, usize>,
    pub(crate) interim_taken_as_final: usize,
    pub(crate) unsolicited: usize,
    pub(crate) finished_up: u64,
    pub(crate) finished_down: u64,
}

/// What can be changed while a bridge runs.
#[derive(Debug)]
pub(crate) struct Switches {
    pub(crate) never_match: bool,
    pub(crate) closed_report: ClosedReport,
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) certificate: Certificate,
}

/// What outlives a run.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) plane: Arc<Shared>,
    pub(crate) options: BridgeOptions,
    pub(crate) load: Arc<AtomicUsize>,
    seen: Mutex<Seen>,
    changed: Condvar,
    switches: Mutex<Switches>,
}

impl Base {
    pub(crate) fn new(plane: Arc<Shared>, options: BridgeOptions, tls: Arc<ServerConfig>) -> Self {
        let certificate = options.certificate.clone();
        let switches = Switches { never_match: false, closed_report: options.closed_report, tls, certificate };
        Self {
            plane,
            options,
            load: Arc::default(),
            seen: Mutex::default(),
            changed: Condvar::new(),
            switches: Mutex::new(switches),
        }
    }

    /// Notes something, and wakes whoever waits for it.
    pub(crate) fn note<T>(&self, act: impl FnOnce(&mut Seen) -> T) -> T {
        let outcome = act(&mut locked(&self.seen));
        self.changed.notify_all();
        outcome
    }

    pub(crate) fn switches<T>(&self, act: impl FnOnce(&mut Switches) -> T) -> T {
        act(&mut locked(&self.switches))
    }

    /// Blocks until something was noted, or for a moment: counters of bytes ring no bell.
    pub(crate) fn wait_for_news(&self, left: Duration) {
        let moment = Duration::from_millis(10).min(left);
        drop(self.changed.wait_timeout(locked(&self.seen), moment));
    }
}

/// What ends with a run.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) base: Arc<Base>,
    pub(crate) meeting: Meeting,
    pub(crate) splices: Splices,
    pub(crate) pool: Pool,
    /// Sockets that are dropped from now on reset their connections.
    pub(crate) killed: Arc<AtomicBool>,
    handle: tokio::runtime::Handle,
    stopping: watch::Sender<bool>,
    tasks: AtomicUsize,
}

impl Life {
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Closes relay connections of an agent, at most so many; returns how many.
    pub(crate) fn reap(&self, agent: &str, most: usize) -> usize {
        let (count, idle) = self.pool.reap(agent, most);
        self.handle.spawn(super::pool::close_links(idle));
        count
    }

    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let running = Counted::new(self);
        tokio::spawn(async move {
            task.await;
            drop(running);
        });
    }
}

/// A task that a clean stop waits for.
struct Counted(Arc<Life>);

impl Counted {
    fn new(life: &Arc<Life>) -> Self {
        life.tasks.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(life))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::SeqCst);
        self.0.base.note(|_| ());
    }
}

/// A run and its runtime.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) life: Arc<Life>,
    runtime: Option<Runtime>,
}

impl Running {
    /// Begins to serve both listeners.
    pub(crate) fn start(
        base: &Arc<Base>,
        peers: std::net::TcpListener,
        visitors: std::net::TcpListener,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(format!("lab-{}", base.options.id))
            .enable_all()
            .build()?;
        let life = Arc::new(Life {
            base: Arc::clone(base),
            meeting: Meeting::default(),
            splices: Splices::new(Arc::clone(&base.load)),
            pool: Pool::default(),
            killed: Arc::default(),
            handle: runtime.handle().clone(),
            stopping: watch::Sender::new(false),
            tasks: AtomicUsize::new(0),
        });
        let _guard = runtime.enter();
        let (peers, visitors) = (listening(peers)?, listening(visitors)?);
        life.spawn(accept(Arc::clone(&life), peers, Door::Peers));
        life.spawn(accept(Arc::clone(&life), visitors, Door::Visitors));
        let reaper = Arc::clone(&life);
        tokio::spawn(async move { super::pool::reap_for_ever(&reaper).await });
        Ok(Self { life, runtime: Some(runtime) })
    }

    /// Ends everything at once, with resets and without a report.
    pub(crate) fn kill(mut self) {
        self.life.killed.store(true, Ordering::SeqCst);
        self.end();
    }

    /// Ends everything in order: splices are closed and reported, relay connections closed.
    pub(crate) fn stop(mut self) {
        self.life.stopping.send_replace(true);
        let begun = Instant::now();
        while self.life.tasks.load(Ordering::SeqCst) > 0 && begun.elapsed() < STOP_LIMIT {
            self.life.base.wait_for_news(STOP_LIMIT);
        }
        self.end();
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime may not be dropped by a thread of another one, as a test's may be.
            drop(std::thread::spawn(move || drop(runtime)).join());
        }
        self.life.pool.clear();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.runtime.is_some() {
            self.life.killed.store(true, Ordering::SeqCst);
            self.end();
        }
    }
}

#[derive(Clone, Copy)]
enum Door {
    Peers,
    Visitors,
}

fn listening(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn accept(life: Arc<Life>, listener: TcpListener, door: Door) {
    let mut stopping = life.stopping();
    loop {
        let tcp = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.changed() => break,
        };
        match tcp {
            Ok((tcp, _)) => life.spawn(attended(Arc::clone(&life), tcp, door)),
            // Out of descriptors or the like; a lab that spins on it would hide the cause.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    drop(listener);
    if let Door::Peers = door {
        life.pool.close_all().await;
    }
}

/// Serves one connection. A stop ends it wherever it stands; what ends in a special way there looks at the stop itself.
async fn attended(life: Arc<Life>, tcp: TcpStream, door: Door) {
    match door {
        Door::Peers => super::peer::attend(&life, tcp).await,
        Door::Visitors => {
            let mut stopping = life.stopping();
            tokio::select! {
                () = super::relay::serve(&life, tcp) => {}
                _ = stopping.changed() => {}
            }
        }
    }
}

/// A lock that a test's panic does not poison: the others should see their own failures.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
