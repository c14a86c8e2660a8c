//! Restarts with sessions open: how long those who are in the middle of something wait, and what the agent's part of it is.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{LIMIT, report};
use crate::crowd::{Mix, Surroundings};
use crate::demo::screen;
use crate::plane;
use crate::site::{Site, UNIT};

/// Sessions that say nothing while the talkers talk.
const IDLE: [usize; 3] = [0, 160, 960];
const TALKERS: usize = 40;
const RESTARTS: usize = 5;
/// Between two restarts, so that a stall is that of one.
const PAUSE: Duration = Duration::from_secs(2);

/// Measures and prints.
///
/// # Errors
/// A session does not open, or does not live.
pub(super) fn run(binary: &Path) -> Result<(), String> {
    for idle in IDLE {
        restarts(binary, idle)?;
    }
    Ok(())
}

fn restarts(binary: &Path, idle: usize) -> Result<(), String> {
    let failed = |error: crate::site::Error| error.to_string();
    let site = Site::install_binary(binary).map_err(failed)?;
    let unlimited = plane::RateLimits { anonymous: u32::MAX, identified: u32::MAX };
    site.plane.set_rate_limits(unlimited);
    let surroundings = Surroundings::set_up(&site).map_err(|error| error.to_string())?;
    site.start().map_err(failed)?;
    let mix = Mix { talkers: TALKERS, idlers: idle, websockets: 4, event_streams: 4, ..Mix::default() };
    let crowd = surroundings.gather(mix)?;
    let (mut medians, mut worst, mut commands) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RESTARTS {
        crowd.begin_measuring();
        let began = Instant::now();
        site.machine.check(["systemctl", "restart", UNIT]).map_err(|error| error.to_string())?;
        commands.push(began.elapsed());
        crowd.goes_on(LIMIT).map_err(|who| format!("{who:?} do not go on"))?;
        std::thread::sleep(PAUSE);
        medians.push(crowd.stalls().median());
        worst.push(crowd.stalls().worst());
    }
    let sessions = idle + TALKERS;
    let again = crowd.dialled_again();
    let faults = crowd.leave().faults;
    if !(faults.is_empty() && again.is_empty()) {
        return Err(format!("{sessions} sessions did not live through {RESTARTS} restarts: {faults:?} {again:?}"));
    }
    report(&format!("{sessions} sessions: pause of a busy one ({RESTARTS} restarts)"), &mut medians);
    report(&format!("{sessions} sessions: longest pause"), &mut worst);
    report(&format!("{sessions} sessions: systemctl restart"), &mut commands);
    let journal = site.machine.journal(UNIT).map_err(|error| error.to_string())?;
    for (what, message) in [("release", "left to the next process"), ("adoption", "taken over from")] {
        let mut times = times(&journal, message);
        report(&format!("{sessions} sessions: {what}"), &mut times);
    }
    screen::line("");
    Ok(())
}

/// What the agent says about how long its part takes.
fn times(journal: &str, message: &str) -> Vec<Duration> {
    let lines = journal.lines().filter(|line| line.contains(message));
    let took = |line: &str| {
        let after = line.split("\"took_us\":").nth(1)?;
        let digits: String = after.chars().filter(|c| *c != '"').take_while(char::is_ascii_digit).collect();
        digits.parse().ok().map(Duration::from_micros)
    };
    lines.filter_map(took).collect()
}
