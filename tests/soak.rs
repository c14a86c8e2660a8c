//! Two hundred sessions at a time, opened, used, cut and closed at random, for as long as `BAMF_SOAK_SECONDS` says.
//!
//! Every byte is checked, and afterwards the agent holds as little as before. `BAMF_SOAK_SEED` repeats a run as far as
//! threads can be repeated.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::sync::RwLock;
use std::time::{Duration, Instant};

use bamf_lab::agent::{LIMIT, until};
use bamf_lab::bridge::{BridgeOptions, Cut};
use bamf_lab::client::{Client, Options, Pipe, Window};
use bamf_lab::pattern::Pattern;
use bamf_lab::plane::RateLimits;
use bamf_lab::scene::{Scene, Setting};
use bamf_lab::targets::Tcp;

const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");

/// Sessions that are open at a time.
const SESSIONS: u64 = 200;
/// What the agent may have grown by when everything is over: what its allocator keeps for itself.
const MEMORY: usize = 8 << 20;
/// After this long a cut has reached both ends.
const CUT_TIME: Duration = Duration::from_millis(50);

#[expect(clippy::disallowed_methods, reason = "how long and with which seed is for whoever runs it")]
fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// How long the last sessions may take to end.
const QUIET: Duration = Duration::from_secs(15);
/// Sessions in two thousand that may wait for a client that is gone.
const LEFT: usize = 3;
/// How long memory may take to come to rest.
const REST: Duration = Duration::from_secs(5);

struct Soak {
    scene: Scene,
    client: Client,
    /// Held by whoever closes a session, and by whoever cuts one: a close frame that is cut off leaves a session that waits
    /// for its client for five minutes.
    peace: RwLock<()>,
}

impl Soak {
    /// Uses and cuts sessions; returns how many were opened and how often they came back.
    fn run(&self, seed: u64, time: Duration) -> (u64, u64) {
        let until = Instant::now() + time;
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                (1..=SESSIONS).map(|worker| scope.spawn(move || self.work(seed + worker, until))).collect();
            self.cut(seed, until);
            let add = |(a, b): (u64, u64), (c, d): (u64, u64)| (a + c, b + d);
            workers.into_iter().map(|worker| worker.join().unwrap()).fold((0, 0), add)
        })
    }

    /// One session after the other.
    fn work(&self, seed: u64, until: Instant) -> (u64, u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut sessions, mut reconnects) = (0, 0);
        while Instant::now() < until {
            let pipe = self.client.open("thing").unwrap();
            let mut pattern = Pattern::at(random.u64(0..1 << 40));
            for _ in 0..random.u32(1..30) {
                let length = if random.u32(0..10) == 0 { random.usize(1..2 << 20) } else { random.usize(1..20_000) };
                echo(&pipe, &mut pattern, length);
                std::thread::sleep(Duration::from_millis(random.u64(0..100)));
            }
            {
                let _peace = self.peace.read().unwrap();
                echo(&pipe, &mut pattern, 1);
                pipe.close();
                // A cut that overtakes the close frame leaves a session that waits for its client, as it should.
                let id = pipe.tunnel.session().unwrap().session_id.clone();
                let passed_on = || self.scene.bridge.splices().iter().all(|splice| splice.session != id);
                assert!(bamf_lab::agent::until(LIMIT, passed_on), "the close frame does not arrive");
            }
            sessions += 1;
            reconnects += pipe.tunnel.counts().reconnects;
        }
        (sessions, reconnects)
    }

    fn cut(&self, seed: u64, until: Instant) {
        let mut random = fastrand::Rng::with_seed(seed);
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(random.u64(10..200)));
            let _war = self.peace.write().unwrap();
            match random.u32(0..40) {
                0 => self.scene.cable.snap(),
                1 => self.scene.cable.cut(),
                _ => self.cut_some(&mut random),
            }
            std::thread::sleep(CUT_TIME);
        }
    }

    fn cut_some(&self, random: &mut fastrand::Rng) {
        let cuts = [Cut::ResetAgent, Cut::ResetBoth, Cut::Clean, Cut::CleanUnreported];
        for splice in self.scene.bridge.splices() {
            if random.u32(0..20) == 0 {
                self.scene.bridge.cut(&splice.session, cuts[random.usize(0..cuts.len())]);
            }
        }
    }

    /// Descriptors and memory of the agent when nothing is open but sessions whose clients were cut off with their close
    /// frame: those wait for them (protocol 8.6), and may be few. Returns their number as well.
    fn at_rest(&self) -> (usize, usize, usize) {
        let all_closed = self.scene.wait_active(0, QUIET);
        let left = if all_closed { 0 } else { usize::try_from(self.scene.active()).unwrap() };
        assert!(left <= LEFT, "{left} are left\n{}", self.scene.agent.log());
        // The last connections to bridges and targets close behind the sessions.
        let mut descriptors = self.scene.agent.descriptors();
        let quiet = until(LIMIT, || {
            std::thread::sleep(Duration::from_millis(200));
            let before = std::mem::replace(&mut descriptors, self.scene.agent.descriptors());
            before == descriptors
        });
        assert!(quiet, "descriptors come and go");
        // Buffers are kept for what the last second needed, so that memory takes a few seconds to come to rest.
        let begun = Instant::now();
        let mut memory = self.scene.agent.resident();
        while begun.elapsed() < REST {
            std::thread::sleep(Duration::from_millis(200));
            memory = memory.min(self.scene.agent.resident());
        }
        (descriptors, memory, left)
    }
}

/// Sends the next bytes of the pattern and takes them back.
fn echo(mut pipe: &Pipe, pattern: &mut Pattern, length: usize) {
    let mut back = pattern.clone();
    pipe.write_all(&pattern.bytes(length)).unwrap();
    let mut answer = vec![0; length];
    pipe.read_exact(&mut answer).unwrap();
    back.check(&answer).unwrap();
}

#[test]
fn two_hundred_sessions_at_a_time_with_random_cuts_lose_no_byte_and_leave_nothing_behind() {
    let seed = number("BAMF_SOAK_SEED", fastrand::u64(0..1 << 32));
    let time = Duration::from_secs(number("BAMF_SOAK_SECONDS", 20));
    eprintln!("BAMF_SOAK_SEED={seed}");
    let bridge = BridgeOptions { match_wait: Duration::from_secs(3), ..BridgeOptions::default() };
    let scene = Scene::of(BINARY, Tcp::Echo, Setting { bridge, ..Setting::friendly() });
    scene.plane.set_rate_limits(RateLimits { anonymous: u32::MAX, identified: u32::MAX });
    // A client that leaves before its close frame has been passed on leaves a session that waits for it (protocol 8.6).
    let client = Options { window: Window::Blocking(4 << 20), linger: LIMIT, ..Options::robust() };
    let client = scene.client(client);
    let soak = Soak { scene, client, peace: RwLock::new(()) };
    soak.run(seed, time / 4);
    let (descriptors, memory, _) = soak.at_rest();
    let (sessions, reconnects) = soak.run(seed + 1_000_000, time);
    let (descriptors_after, memory_after, left) = soak.at_rest();
    eprintln!("{sessions} sessions, {reconnects} reconnects, memory {memory} then {memory_after}");
    assert!(reconnects > 0, "nothing was cut");
    // Its target's socket, and its bridge connection while that lasts.
    let held = 2 * left;
    assert!(descriptors_after <= descriptors + held, "{descriptors} descriptors before, {descriptors_after} after");
    assert!(memory_after < memory + MEMORY, "{memory} bytes before, {memory_after} after");
    assert_eq!(soak.scene.target.seen().abandoned, 0);
    soak.scene.agent.terminate(LIMIT).expect(0, &["bye"]);
}
