//! Somebody at work through the agent while the story goes on: a session that sends and checks bytes all the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::bridge::{Bridge, BridgeOptions};
use crate::client::{Client, Options, Tunnel};
use crate::plane::ControlPlane;
use crate::serve::Network;
use crate::targets::{Target, Tcp};

/// The name of the resource.
pub(super) const RESOURCE: &str = "echo";
/// Between two round trips: somebody who types fast.
const PACE: Duration = Duration::from_millis(10);
/// Between two attempts to open a session.
const RETRY: Duration = Duration::from_millis(50);
/// An echo that takes longer counts as a broken session.
const PATIENCE: Duration = Duration::from_secs(5);

/// A bridge and a target for the story's agent.
pub(super) struct Surroundings {
    pub(super) target: Target,
    _bridge: Bridge,
}

impl Surroundings {
    pub(super) fn set_up(plane: &ControlPlane, network: &Network) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("no bridge or target: {error}");
        let target = Target::tcp(network, Tcp::Echo).map_err(failed)?;
        let options = BridgeOptions { network: network.clone(), ..BridgeOptions::default() };
        let bridge = Bridge::start(plane, options).map_err(failed)?;
        Ok(Self { target, _bridge: bridge })
    }
}

/// What the person has seen so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) round_trips: usize,
    /// The longest time for a round trip since somebody asked.
    pub(super) longest: Duration,
    /// A byte that was not what was sent, or the end of the session. Never mended.
    pub(super) wrong: Option<String>,
}

/// The person; leaves when dropped.
pub(super) struct Worker {
    seen: Arc<Mutex<Seen>>,
    leave: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Begins to work, from inside `network`.
    pub(super) fn start(plane: &ControlPlane, network: &Network) -> Result<Self, String> {
        // A session that breaks is over, here as on today's platform.
        let options = Options { reconnect_pauses: Vec::new(), ..Options::robust() };
        let client = Client::new(&plane.url(), plane.web_ca_pem(), "token").with(options);
        let (seen, leave) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let desk = Desk { client, seen: Arc::clone(&seen), leave: Arc::clone(&leave) };
        let network = network.clone();
        let thread = std::thread::spawn(move || {
            // Sockets belong to the network that the thread was in when it made them.
            if network.enter().is_err() {
                return;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Ok(runtime) = runtime {
                runtime.block_on(desk.work());
            }
        });
        let worker = Self { seen, leave, thread: Some(thread) };
        let began = Instant::now();
        while worker.seen().round_trips == 0 {
            if began.elapsed() > Duration::from_secs(30) {
                return Err("no session can be opened".to_owned());
            }
            std::thread::sleep(RETRY);
        }
        Ok(worker)
    }

    fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until there were `more` round trips; the longest pause is counted anew from here on.
    pub(super) fn works_on(&self, more: usize) -> Result<Seen, String> {
        let (before, began) = (self.seen().round_trips, Instant::now());
        loop {
            let seen = self.seen();
            if let Some(wrong) = seen.wrong {
                return Err(format!("the session did not live: {wrong}"));
            }
            if seen.round_trips >= before + more {
                self.seen.lock().unwrap_or_else(PoisonError::into_inner).longest = Duration::ZERO;
                return Ok(seen);
            }
            if began.elapsed() > Duration::from_secs(30) {
                return Err("the session stands still".to_owned());
            }
            std::thread::sleep(PACE);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.leave.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Desk {
    client: Client,
    seen: Arc<Mutex<Seen>>,
    leave: Arc<AtomicBool>,
}

impl Desk {
    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn leaves(&self) -> bool {
        self.leave.load(Ordering::Relaxed)
    }

    async fn work(self) {
        let tunnel = loop {
            match self.client.connect(RESOURCE).await {
                Ok(tunnel) => break tunnel,
                Err(_) if self.leaves() => return,
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        };
        for number in 0_u64.. {
            if self.leaves() {
                tunnel.close().await;
                return;
            }
            if let Err(wrong) = self.round_trip(&tunnel, number).await {
                self.note(|seen| seen.wrong = Some(format!("{wrong} after {number} round trips")));
                return;
            }
            tokio::time::sleep(PACE).await;
        }
    }

    /// Sends a few bytes and compares what comes back.
    async fn round_trip(&self, tunnel: &Tunnel, number: u64) -> Result<(), String> {
        let (sent, began) = (number.to_be_bytes(), Instant::now());
        let mut back = [0; 8];
        let exchange = async {
            tunnel.write(&sent).await?;
            tunnel.read_exact(&mut back).await
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(Ok(())) if back == sent => {}
            Ok(Ok(())) => return Err(format!("{back:?} came instead of {sent:?}")),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("no echo within {} s", PATIENCE.as_secs())),
        }
        self.note(|seen| {
            seen.round_trips += 1;
            seen.longest = seen.longest.max(began.elapsed());
        });
        Ok(())
    }
}
