//! A crowd: many busy users of an agent that runs on a site's machine, each of whom checks every byte and feels every pause.
//!
//! Whether a restart of the agent is noticed can only be said by those who were in the middle of something. So there are
//! members of every kind: sessions with frames and without, of several types of resource, that talk, download, upload,
//! idle, read slowly or have not said a word yet; WebSockets, event streams, downloads and web requests through the relay.
//! None of them comes back when its connection breaks, as on the platform, where the record is gone by then: a fault stays.
//!
//! ```text
//!   test ── Surroundings ─► bridge, targets ◄── agent (in the machine)
//!             │ gather                 ▲
//!             ▼                        │ the machine's 127.0.0.1
//!           Crowd ── members ──────────┘
//!             └── stalls, faults, dialled_again ◄── one Meter for each member
//! ```
//!
//! Members are paced so that two cores carry platform, agent and crowd with time to spare: what is measured is how long
//! they wait for the agent, and not for a processor.

mod meter;
mod session;
mod surroundings;
mod visit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

pub use self::meter::{Errand, Habit, Stall, Stalls, Way};
pub use self::surroundings::Surroundings;

use self::meter::Meter;
use self::session::User;
use self::surroundings::{NAME, POOL};
use crate::plane::Role;
use crate::runtime::Inside;

/// How long the whole crowd may take until everybody is at work.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(90);
/// How long the slowest member may take to finish what it is doing.
const LEAVING_LIMIT: Duration = Duration::from_secs(60);
/// Members that open something at one time.
const AT_THE_DOOR: usize = 12;
/// Threads that all members share.
const THREADS: usize = 2;

/// How many members of which kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mix {
    /// Sessions that send something and wait for its echo, a few times a second.
    pub talkers: usize,
    /// Sessions that receive all the time.
    pub downloads: usize,
    /// Sessions that send all the time and hear what has arrived.
    pub uploads: usize,
    /// Sessions that talk every few seconds.
    pub idlers: usize,
    /// Sessions whose client takes less than the target offers.
    pub slow_readers: usize,
    /// Sessions whose client says nothing before [`Crowd::wake`].
    pub silent: usize,
    /// WebSockets through the relay.
    pub websockets: usize,
    /// Event streams through the relay.
    pub event_streams: usize,
    /// Visitors who send one web request after the other.
    pub visitors: usize,
    /// Visitors who download one long answer after the other.
    pub web_downloads: usize,
}

impl Mix {
    /// So many sessions, of all kinds.
    #[must_use]
    pub const fn sessions(count: usize) -> Self {
        let [downloads, uploads, idlers, slow_readers, silent] =
            [count / 14, count / 14, count / 6, count / 20, count / 10];
        Self {
            talkers: count - downloads - uploads - idlers - slow_readers - silent,
            downloads,
            uploads,
            idlers,
            slow_readers,
            silent,
            websockets: 0,
            event_streams: 0,
            visitors: 0,
            web_downloads: 0,
        }
    }

    /// The same with so many members, of all kinds, that come through the relay.
    #[must_use]
    pub const fn and_relay(self, count: usize) -> Self {
        let [event_streams, visitors, web_downloads] = [count * 3 / 10, count * 2 / 10, count * 2 / 10];
        let websockets = count - event_streams - visitors - web_downloads;
        Self { websockets, event_streams, visitors, web_downloads, ..self }
    }

    /// How many of them have a session.
    #[must_use]
    pub const fn session_count(&self) -> usize {
        self.talkers + self.downloads + self.uploads + self.idlers + self.slow_readers + self.silent
    }

    /// How many relay connections are taken out of the pool for good.
    const fn detached(&self) -> usize {
        self.websockets + self.event_streams
    }

    /// How many of them need the relay.
    const fn through_relay(&self) -> usize {
        self.detached() + self.visitors + self.web_downloads
    }
}

/// What members share.
#[derive(Debug)]
struct Common {
    /// Turns true when everybody is to finish.
    leaving: watch::Sender<bool>,
    /// One permit for each silent member that is to speak.
    awake: Semaphore,
    door: Semaphore,
    /// Members that are at work.
    arrived: AtomicUsize,
    /// Sessions to each target that have made the agent dial it.
    dialled: BTreeMap<&'static str, AtomicUsize>,
    /// Sessions by id.
    sessions: std::sync::Mutex<Vec<String>>,
}

/// Connections that the agent has made, in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Those that each target has accepted. Connections for ordinary web requests are not here: they are reused or not as
    /// the agent likes.
    pub to_targets: BTreeMap<&'static str, usize>,
    /// TLS handshakes at the bridge, of agent and clients, and those that failed.
    pub to_the_bridge: usize,
    /// Relay connections that were registered.
    pub relays: usize,
}

/// What has come of a crowd.
#[derive(Clone, Debug)]
pub struct Farewell {
    /// What went wrong for whom, the final verification included.
    pub faults: Vec<String>,
    /// Requests with an answer, echoes, portions.
    pub turns: u64,
    /// Bytes that were received and checked, and bytes that arrived at the far end.
    pub bytes: u64,
}

/// The members at work. They are torn out of it when this is dropped.
#[derive(Debug)]
pub struct Crowd {
    surroundings: Surroundings,
    common: Arc<Common>,
    meters: Vec<Arc<Meter>>,
    tasks: Vec<JoinHandle<()>>,
    sessions: usize,
    /// When everybody had come.
    at_first: Connections,
    inside: Inside,
}

impl Surroundings {
    /// Lets all members of `mix` come, and returns when all are at work. The agent must run and be connected.
    ///
    /// # Errors
    /// Not everybody got in; what their faults were.
    pub fn gather(self, mix: Mix) -> Result<Crowd, String> {
        let inside = Inside::new(&self.network, THREADS);
        let inside = inside.map_err(|error| format!("the machine's network cannot be entered: {error}"))?;
        let common = Arc::new(Common {
            leaving: watch::Sender::new(false),
            awake: Semaphore::new(0),
            door: Semaphore::new(AT_THE_DOOR),
            arrived: AtomicUsize::new(0),
            dialled: self.session_targets().map(|(name, _)| (name, AtomicUsize::new(0))).collect(),
            sessions: std::sync::Mutex::default(),
        });
        self.open_relay(mix)?;
        let mut crowd = Crowd {
            surroundings: self,
            common,
            meters: Vec::new(),
            tasks: Vec::new(),
            sessions: mix.session_count(),
            at_first: Connections::default(),
            inside,
        };
        crowd.fill(mix);
        crowd.wait_until_all_are_there(mix)?;
        Ok(crowd)
    }
}

impl Crowd {
    fn fill(&mut self, mix: Mix) {
        let habits = [
            (Habit::Talks, mix.talkers),
            (Habit::Downloads, mix.downloads),
            (Habit::Uploads, mix.uploads),
            (Habit::Idles, mix.idlers),
            (Habit::ReadsSlowly, mix.slow_readers),
            (Habit::IsSilent, mix.silent),
        ];
        for (habit, count) in habits {
            for number in 0..count {
                let user = User::new(&self.surroundings, habit, number);
                self.enter(Way::Session(habit), user.thing(), |meter, common| user.come(meter, common));
            }
        }
        let errands = [
            (Errand::WebSocket, mix.websockets),
            (Errand::EventStream, mix.event_streams),
            (Errand::Browses, mix.visitors),
            (Errand::Downloads, mix.web_downloads),
        ];
        for (errand, count) in errands {
            for number in 0..count {
                let (visitor, random) = (self.surroundings.visitor(errand), Rng::with_seed(number as u64));
                let come = |meter, common| visit::come(errand, visitor, random, meter, common);
                self.enter(Way::Relay(errand), "through the relay".to_owned(), come);
            }
        }
    }

    fn enter<F>(&mut self, way: Way, thing: String, come: impl FnOnce(Arc<Meter>, Arc<Common>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let meter = Arc::new(Meter::new(format!("#{} {way}, {thing}", self.meters.len()), way));
        let task = come(Arc::clone(&meter), Arc::clone(&self.common));
        self.meters.push(meter);
        self.tasks.push(self.inside.spawn(task));
    }

    fn wait_until_all_are_there(&mut self, mix: Mix) -> Result<(), String> {
        let (bridge, began) = (&self.surroundings.bridge, Instant::now());
        let there = || {
            self.common.arrived.load(Ordering::SeqCst) == self.meters.len()
                && bridge.splices().len() == self.sessions
                && bridge.detached_relays(NAME) == mix.detached()
                && (mix.through_relay() == 0 || bridge.relays(NAME) == POOL)
                && self.dialled_too_little().is_none()
        };
        while !there() {
            let faults = self.faults();
            if !faults.is_empty() || began.elapsed() > ARRIVAL_LIMIT {
                return Err(format!(
                    "{} of {} members are at work, {} of {} sessions stand, {} relay connections wait; {faults:#?}",
                    self.common.arrived.load(Ordering::SeqCst),
                    self.meters.len(),
                    bridge.splices().len(),
                    self.sessions,
                    bridge.relays(NAME),
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.at_first = self.connections();
        self.begin_measuring();
        Ok(())
    }

    /// How many members have a session.
    #[must_use]
    pub const fn sessions(&self) -> usize {
        self.sessions
    }

    /// The bridge, to look at.
    #[must_use]
    pub const fn bridge(&self) -> &crate::bridge::Bridge {
        &self.surroundings.bridge
    }

    /// Forgets the stalls so far. A wait that is under way counts from here on.
    pub fn begin_measuring(&self) {
        self.meters.iter().for_each(|meter| meter.mark());
    }

    /// The longest stall of each member since [`Crowd::begin_measuring`]: without progress although it wanted some. Who wanted
    /// nothing meanwhile is not in it.
    #[must_use]
    pub fn stalls(&self) -> Stalls {
        Stalls::of(&self.meters)
    }

    /// What went wrong so far: wrong bytes, ended sessions and streams, failed requests, members that wait in vain.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        self.meters.iter().flat_map(|meter| meter.faults()).collect()
    }

    /// Turns of all members so far; what [`Crowd::goes_on`] compares.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.meters.iter().map(|meter| meter.done().0).sum()
    }

    /// Waits until every member that is busy has got something done from here on.
    ///
    /// # Errors
    /// The names of those who stand still after `limit`, or at once where one of them has found a fault.
    pub fn goes_on(&self, limit: Duration) -> Result<(), Vec<String>> {
        let before: Vec<u64> = self.meters.iter().map(|meter| meter.done().1).collect();
        let began = Instant::now();
        loop {
            let waiting = self.meters.iter().zip(&before);
            let waiting = waiting.filter(|(meter, before)| meter.way().is_busy() && meter.done().1 == **before);
            let waiting: Vec<_> = waiting.map(|(meter, _)| meter).collect();
            if waiting.is_empty() {
                return Ok(());
            }
            if began.elapsed() > limit || waiting.iter().any(|meter| !meter.faults().is_empty()) {
                return Err(waiting.iter().map(|meter| meter.name().to_owned()).collect());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets so many of the silent members speak.
    pub fn wake(&self, count: usize) {
        self.common.awake.add_permits(count);
    }

    /// All connections that the agent has made so far.
    #[must_use]
    pub fn connections(&self) -> Connections {
        let bridge = &self.surroundings.bridge;
        Connections {
            to_targets: self.surroundings.accepted(),
            to_the_bridge: bridge.handshakes() + bridge.failed_handshakes(),
            relays: bridge.relays_ever(NAME),
        }
    }

    /// What was dialled a second time since everybody came: targets with more connections than sessions and streams, sessions
    /// with more than one connection to the bridge, new relay connections. Nothing of the crowd itself dials meanwhile.
    #[must_use]
    pub fn dialled_again(&self) -> Vec<String> {
        let (now, mut again) = (self.connections(), Vec::new());
        for (target, accepted) in &now.to_targets {
            let due = self.due(target);
            if *accepted > due {
                again.push(format!("the target `{target}` has accepted {accepted} connections where {due} were due"));
            }
        }
        if now.to_the_bridge != self.at_first.to_the_bridge {
            again.push(format!("{} new handshakes at the bridge", now.to_the_bridge - self.at_first.to_the_bridge));
        }
        if now.relays != self.at_first.relays {
            again.push(format!("{} new relay connections", now.relays - self.at_first.relays));
        }
        let bridge = &self.surroundings.bridge;
        for session in self.common.sessions.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter() {
            match bridge.session_handshakes(session, Role::Agent) {
                1 => {}
                count => again.push(format!("the agent has come {count} times for session {session}")),
            }
        }
        again
    }

    /// Connections to this target that there must be.
    fn due(&self, target: &str) -> usize {
        let dialled = self.common.dialled.get(target).map(|count| count.load(Ordering::SeqCst));
        dialled.unwrap_or_else(|| self.meters.iter().filter(|meter| meter.way().is_stream()).count())
    }

    fn dialled_too_little(&self) -> Option<String> {
        let accepted = self.surroundings.accepted();
        let missing = accepted.iter().find(|(target, accepted)| **accepted < self.due(target));
        missing.map(|(target, accepted)| format!("`{target}` has {accepted} connections of {}", self.due(target)))
    }

    /// Lets everybody finish what they are doing, close and go; then the targets are asked as well. A session is closed only
    /// when all that was sent on it has arrived at the other end, which is part of the verification.
    #[must_use]
    pub fn leave(self) -> Farewell {
        self.common.leaving.send_replace(true);
        let began = Instant::now();
        while self.tasks.iter().any(|task| !task.is_finished()) && began.elapsed() < LEAVING_LIMIT {
            std::thread::sleep(Duration::from_millis(20));
        }
        for (meter, task) in self.meters.iter().zip(&self.tasks) {
            if !task.is_finished() {
                meter.fault(format!("is not done after {} s", LEAVING_LIMIT.as_secs()));
            }
        }
        let mut faults = self.faults();
        faults.extend(self.surroundings.complaints());
        let (turns, bytes) = self.meters.iter().map(|meter| meter.done()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        Farewell { faults, turns, bytes }
    }
}

impl Common {
    /// Whether everybody is to finish.
    fn leaves(&self) -> bool {
        *self.leaving.borrow()
    }

    /// Waits until everybody is to finish.
    async fn time_to_leave(&self) {
        // The sender lives in what this borrows.
        drop(self.leaving.subscribe().wait_for(|leaving| *leaving).await);
    }

    /// Waits for some time, or until everybody is to finish.
    async fn pause(&self, time: Duration) {
        drop(tokio::time::timeout(time, self.time_to_leave()).await);
    }

    fn arrived(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
    }

    fn dialled(&self, target: &str) {
        if let Some(count) = self.dialled.get(target) {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
}
