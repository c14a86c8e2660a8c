//! Web requests: rate, delay and processor time beside the same visitor without an agent in between, what many requests
//! leave behind, and how soon requests are served again after a restart.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{LIMIT, mebibytes, process};
use crate::agent::{Agent, Home, NAME, identity};
use crate::bridge::{Bridge, BridgeOptions};
use crate::demo::screen;
use crate::plane::{self, ControlPlane};
use crate::serve::Network;
use crate::targets::Target;
use crate::visitor::{Measured, Resource, Visitor};

/// An answer of 1 KiB.
const PAGE: &str = "/big/1024";
/// Visitors at once, and their requests in all. The last has as many as a pool has connections.
const LOADS: [(usize, usize); 3] = [(1, 10_000), (8, 20_000), (32, 20_000)];
/// Repetitions of each load; the median by rate is shown.
const RUNS: usize = 3;
/// A run that would show a leak of a few bytes for each request.
const MANY: usize = 200_000;
const RESTARTS: usize = 5;
/// Connections of a full pool (protocol 9.1).
const POOL: usize = 32;

struct Stage {
    plane: ControlPlane,
    bridge: Bridge,
    target: Target,
    home: Home,
    agent: Option<Agent>,
}

/// Measures and prints.
///
/// # Errors
/// The agent does not connect, or requests are not answered.
pub(super) fn run(binary: &Path) -> Result<(), String> {
    let mut stage = Stage::set_up(binary)?;
    for (workers, requests) in LOADS {
        stage.load(workers, requests)?;
    }
    stage.endurance()?;
    stage.restarts()
}

impl Stage {
    fn set_up(binary: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| error.to_string();
        let plane = ControlPlane::start(plane::Options::default()).map_err(failed)?;
        let bridge = Bridge::start(&plane, BridgeOptions::default()).map_err(failed)?;
        let target = Target::http(&Network::Host).map_err(failed)?;
        let port = target.address().port();
        let resource = format!("{{name: site, type: http, hostname: 127.0.0.1, port: {port}, tunnel_hostname: site}}");
        let home = Home::of(binary, &plane, &format!("resources: [{resource}]\n"));
        let identity = identity(&plane, NAME);
        plane.register(&identity);
        home.store(&identity);
        let agent = home.connect(&plane);
        plane.ask_for_relay(NAME, "").ok_or("the platform does not know the agent")?;
        let stage = Self { plane, bridge, target, home, agent: Some(agent) };
        stage.full()?;
        Ok(stage)
    }

    fn full(&self) -> Result<(), String> {
        if self.bridge.wait_for(LIMIT, |bridge| bridge.relays(NAME) == POOL) {
            return Ok(());
        }
        Err(format!("the pool is not full:\n{}", self.agent.as_ref().map(Agent::log).unwrap_or_default()))
    }

    fn resource(&self) -> Resource {
        Resource::web("site", "127.0.0.1", self.target.address().port())
    }

    fn visitor(&self) -> Visitor {
        Visitor::new(self.bridge.internal_address(), NAME, self.resource())
    }

    fn pid(&self) -> u32 {
        self.agent.as_ref().map(Agent::pid).unwrap_or_default()
    }

    /// Through bridge and agent, and straight to the target, in turn.
    fn load(&self, workers: usize, requests: usize) -> Result<(), String> {
        let (relay, straight) = (self.visitor(), Visitor::straight(self.target.address(), self.resource()));
        let (mut through, mut around, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..RUNS {
            around.push(complete(straight.measure(PAGE, workers, requests), requests)?);
            let before = process::cpu(self.pid());
            through.push(complete(relay.measure(PAGE, workers, requests), requests)?);
            cpu.push((process::cpu(self.pid()) - before).as_secs_f64() * 10_000.0 / requests as f64);
        }
        let figures = |runs: &mut Vec<Measured>| {
            runs.sort_unstable_by(|left, right| left.rate().total_cmp(&right.rate()));
            let middle = &runs[runs.len() / 2];
            let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
            format!(
                "{:>6.0} requests/s  p50 {:>6.2} ms  p99 {:>6.2} ms",
                middle.rate(),
                milliseconds(middle.p50),
                milliseconds(middle.p99)
            )
        };
        let what = format!("1 KiB answers, {workers} at once");
        screen::line(&format!(
            "{what:<30} relay {}  {:.2} CPU-s of the agent per 10,000",
            figures(&mut through),
            super::median(cpu)
        ));
        screen::line(&format!("{:<30} straight to the target {}", "", figures(&mut around)));
        Ok(())
    }

    /// Memory and descriptors around many requests, after the loads above have warmed everything up.
    fn endurance(&self) -> Result<(), String> {
        let used = || Ok::<_, String>((process::memory(self.pid(), "Rss:")?, process::descriptors(self.pid())));
        let before = used()?;
        let measured = complete(self.visitor().measure(PAGE, 8, MANY), MANY)?;
        let after = used()?;
        screen::line(&format!(
            "{MANY} requests ({:.0}/s)      memory {:.2} -> {:.2} MiB  descriptors {} -> {}  relay connections used {}",
            measured.rate(),
            mebibytes(before.0),
            mebibytes(after.0),
            before.1,
            after.1,
            self.bridge.relays_ever(NAME)
        ));
        Ok(())
    }

    /// The platform asks for the relay once, at the beginning, and never again.
    fn restarts(&mut self) -> Result<(), String> {
        let asked = self.plane.commands().len();
        for (how, politely) in [("killed", false), ("stopped", true)] {
            let (mut times, mut lost) = (Vec::new(), 0);
            for _ in 0..RESTARTS {
                if let Some(agent) = self.agent.take() {
                    if politely {
                        drop(agent.terminate(LIMIT));
                    } else {
                        agent.kill();
                    }
                }
                let began = Instant::now();
                self.agent = Some(self.home.start());
                lost += self.served()?;
                times.push(began.elapsed());
                self.settled()?;
            }
            super::report(&format!("agent {how} and started, to the first answer"), &mut times);
            screen::line(&format!(
                "{:<52} {:.0} requests met connections of the agent before",
                "",
                lost as f64 / RESTARTS as f64
            ));
        }
        let mut times = Vec::new();
        for _ in 0..RESTARTS {
            self.bridge.kill();
            // Long enough for the agent to be waiting between two attempts.
            std::thread::sleep(Duration::from_secs(3));
            self.bridge.restart().map_err(|error| error.to_string())?;
            let began = Instant::now();
            self.served()?;
            times.push(began.elapsed());
            self.full()?;
        }
        super::report("bridge killed and back after 3 s, to the first answer", &mut times);
        if self.plane.commands().len() == asked { Ok(()) } else { Err("the platform asked again".to_owned()) }
    }

    /// Asks until the site answers; how often a connection that was dead was met instead.
    fn served(&self) -> Result<usize, String> {
        let (visitor, began, mut lost) = (self.visitor(), Instant::now(), 0);
        while began.elapsed() < LIMIT {
            match visitor.get(PAGE) {
                Ok(answer) if answer.status == 200 => return Ok(lost),
                Ok(answer) => lost += usize::from(answer.text().contains("relay failed")),
                Err(_) => {}
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err("requests are not served again".to_owned())
    }

    /// Only connections of the present agent are left.
    fn settled(&self) -> Result<(), String> {
        self.full()?;
        self.served().map(drop)
    }
}

fn complete(measured: Measured, requests: usize) -> Result<Measured, String> {
    if measured.good == requests { Ok(measured) } else { Err(format!("not all were answered: {measured:?}")) }
}
