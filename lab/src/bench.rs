//! Measures what docs/performance.md claims: size, memory, start, sessions, web requests, restarts with sessions open, and
//! how long an update takes.
//!
//! Medians of several runs; what is compared runs in turn, in the same run.

mod far;
mod handover;
pub mod plain;
pub mod process;
mod relay;
mod sessions;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::agent::Home;
use crate::binaries;
use crate::demo::screen;
use crate::machine::Machine;
use crate::plane::{ControlPlane, Options};
use crate::site::Site;

/// Enough for a median that one slow run does not move.
const STARTS: usize = 21;
const UPDATES: usize = 5;
/// Long enough for everything that an agent does at its start to be over.
const IDLE: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(30);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Size, memory when idle, start.
    Base,
    /// Sessions beside a plain copy.
    Sessions,
    /// Web requests.
    Relay,
    /// Restarts with sessions open; needs root.
    Handover,
    /// Updates; needs root.
    Updates,
}

/// Measures and prints; all parts where none is named. Updates need several versions, which are built; everything else
/// is measured with `agent`, if one is given.
///
/// # Errors
/// The agent cannot be built or does not connect.
pub fn run(parts: &[Part], agent: Option<&Path>) -> Result<(), String> {
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    let build = |version| binaries::build(version, None).map_err(|error| format!("the agent cannot be built: {error}"));
    let binary = agent.map_or_else(|| build("1.0.0"), |agent| Ok(agent.to_owned()))?;
    if wanted(Part::Base) {
        base(&binary)?;
    }
    if wanted(Part::Sessions) {
        sessions::run(&binary)?;
    }
    if wanted(Part::Relay) {
        relay::run(&binary)?;
    }
    if !wanted(Part::Handover) && !wanted(Part::Updates) {
        return Ok(());
    }
    if let Err(why) = Machine::available() {
        screen::line(&format!("restart, update                           not measured: {why}"));
        return Ok(());
    }
    if wanted(Part::Handover) {
        handover::run(&binary)?;
    }
    if wanted(Part::Updates) {
        build("1.1.0")?;
        updates()?;
    }
    Ok(())
}

fn base(binary: &Path) -> Result<(), String> {
    let size = binary.metadata().map_err(|error| error.to_string())?.len();
    screen::line(&format!("size of the binary                        {:.2} MiB", mebibytes(size)));
    memory(binary)?;
    starts(binary)
}

/// Resident and private memory of an idle, connected agent.
fn memory(binary: &Path) -> Result<(), String> {
    let plane = ControlPlane::start(Options::default()).map_err(|error| error.to_string())?;
    let home = joined(binary, &plane)?;
    let agent = home.start();
    if !plane.wait_for_stream(LIMIT) {
        return Err(format!("not connected:\n{}", agent.log()));
    }
    std::thread::sleep(IDLE);
    for (name, key) in [("resident", "Rss:"), ("private dirty", "Private_Dirty:")] {
        let bytes = process::memory(agent.pid(), key)?;
        screen::line(&format!("memory, idle for {} s, {name:<20}    {:.2} MiB", IDLE.as_secs(), mebibytes(bytes)));
    }
    Ok(())
}

/// From starting the process to the platform's having the first heartbeat, and the event stream.
fn starts(binary: &Path) -> Result<(), String> {
    let plane = ControlPlane::start(Options::default()).map_err(|error| error.to_string())?;
    let home = joined(binary, &plane)?;
    let (mut heartbeats, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let (beats, opened) = (plane.heartbeats().len(), plane.stream_opens());
        let began = Instant::now();
        let agent = home.start();
        if !plane.wait_for_heartbeats(beats + 1, LIMIT) {
            return Err(format!("no heartbeat:\n{}", agent.log()));
        }
        heartbeats.push(began.elapsed());
        if !plane.wait_for(LIMIT, |seen| seen.stream_opens > opened) {
            return Err(format!("no event stream:\n{}", agent.log()));
        }
        streams.push(began.elapsed());
        drop(agent);
    }
    report(&format!("start to first heartbeat ({STARTS} starts)"), &mut heartbeats);
    report(&format!("start to event stream open ({STARTS} starts)"), &mut streams);
    Ok(())
}

/// `bamf-agent update` on a machine with a real systemd, there and back again.
fn updates() -> Result<(), String> {
    let site = Site::install("1.0.0").map_err(|error| error.to_string())?;
    site.plane.set_version(Some("1.1.0"));
    site.publish(&site.release("1.1.0")).map_err(|error| error.to_string())?;
    site.start().map_err(|error| error.to_string())?;
    let (mut walls, mut restarts, mut downloads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..UPDATES {
        let began = Instant::now();
        let ended = site.agent(&["update", "--force", "--json"]);
        if ended.code != 0 {
            return Err(format!("the update failed: {}{}", ended.stdout, ended.stderr));
        }
        walls.push(began.elapsed());
        let milliseconds = |key: &str| ended.json[key].as_u64().map(Duration::from_millis);
        restarts.extend(milliseconds("restart_ms"));
        downloads.extend(milliseconds("download_ms"));
        let ended = site.agent(&["rollback", "--json"]);
        if ended.code != 0 {
            return Err(format!("the rollback failed: {}{}", ended.stdout, ended.stderr));
        }
    }
    report(&format!("update: download ({UPDATES} updates)"), &mut downloads);
    report("update: restart asked for to connected again", &mut restarts);
    report("update: the whole command, 3 s of watching included", &mut walls);
    Ok(())
}

/// A home whose agent has joined, so that what is measured is the ordinary start.
fn joined(binary: &Path, plane: &ControlPlane) -> Result<Home, String> {
    let home = Home::of(binary, plane, "agent_name: edge-1\n");
    let token = home.path("token");
    std::fs::write(&token, plane.issue_token(1)).map_err(|error| error.to_string())?;
    let ended = home.run(&["join", "--token-file", &token.display().to_string()]);
    if ended.code == 0 { Ok(home) } else { Err(format!("not joined: {}", ended.stderr)) }
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let milliseconds = |time: &Duration| time.as_secs_f64() * 1000.0;
    let (Some(least), Some(most)) = (times.first(), times.last()) else { return };
    let median = &times[times.len() / 2];
    screen::line(&format!(
        "{what:<52} median {:>7.1} ms  (min {:.1}, max {:.1})",
        milliseconds(median),
        milliseconds(least),
        milliseconds(most)
    ));
}

/// The middle one; of an even number the upper one of the two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}
