//! Is the new version healthy? A verdict from observations, without clock, disk or network.
//!
//! Contract section 4: "Healthy = the unit is active, its main process runs the new file, and over the control socket it
//! reports the new version and `connected` with the same agent id and certificate. If the API itself is unreachable, the
//! updater waits for it instead of blaming the new binary, up to `health_timeout` after the API answers again or 10 minutes,
//! then keeps the new version if the process is stable."
//!
//! So there are two kinds of trouble. *Local* trouble (unit, process, socket, version) is the new binary's own and must be
//! over within `health_timeout`, whatever the API does: a missing control socket is a failed check, not a skipped one. Only
//! *not connected* is excused while the updater itself cannot reach the API either.
//!
//! ```text
//! observation ─┬─ died before it was ever ready, ready without taking over open sessions,
//!              │  failed unit, third restart, another identity ───────────────────────► Unhealthy, at once
//!              ├─ all well, for SETTLE ───────────────────────────────────────────────► Healthy
//!              ├─ local trouble for health_timeout ───────────────────────────────────► Unhealthy
//!              ├─ local well, not connected, API answers for health_timeout ──────────► Unhealthy
//!              └─ local well, not connected, API silent for OUTAGE_LIMIT, stable ─────► KeepUnproven
//! ```
//!
//! Only a version that was never ready is given up at its first death: sessions of the version before wait in the unit's
//! descriptor store meanwhile, and a start that failed once will most likely fail again. Whose death it was is told by
//! systemd's own times ([`Marks`]), not by what happened to be seen: a process can be ready and dead between two looks.
//!
//! `now` is time since boot, suspend included ([`crate::clock::boottime`]): wall clocks jump. After a reboot a new gate begins; the
//! journal's count of starts bounds how often.

use std::time::Duration;

use crate::service::unit::Active;

/// How long everything must stay well before it counts, so that a process that connects and then dies is not committed.
pub const SETTLE: Duration = Duration::from_secs(3);

/// How long an unreachable API excuses an unconnected agent (contract: 10 minutes).
pub const OUTAGE_LIMIT: Duration = Duration::from_secs(600);

/// How long an agent may take to find out that the API is back: its longest pause between two tries is 60 s.
///
/// Off-contract: after an outage that the trial saw, a shorter `health_timeout` is stretched to this, because an agent
/// that happens to pause is not a bad one.
const RECONNECT_LIMIT: Duration = Duration::from_secs(75);

/// Automatic restarts during the trial that make a crash loop.
pub const RESTARTS_LIMIT: u32 = 3;

/// How long a process may take to take over open sessions; it does so first of all, in milliseconds.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(5);

/// How long one process must have run without local trouble to be called stable.
const STABLE: Duration = Duration::from_secs(30);

/// What the new version has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The version that was installed.
    pub version: String,
    /// Who the agent was before; `None` where it could not be asked, e.g. the Go agent.
    pub identity: Option<Identity>,
    /// The configuration's `update.health_timeout`.
    pub health_timeout: Duration,
}

/// Who an agent is. A field that is not known on either side is not compared, the name always is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The agent's name.
    pub agent_name: String,
    /// The platform's id for it.
    pub agent_id: Option<String>,
    /// SHA-256 of its certificate.
    pub certificate_sha256: String,
    /// Seconds since 1970 from which the certificate is valid.
    pub certificate_not_before: Option<i64>,
}

/// Times that systemd keeps of a unit, in its own clock. They are compared with themselves only: one that is another than
/// before means that it happened since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// When the latest main process was started; it may have ended since.
    pub main_started: u64,
    /// When the unit became active last, that is, when a process was ready; 0 if never.
    pub entered_active: u64,
}

/// What was seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Time since boot.
    pub now: Duration,
    /// The unit's state.
    pub active: Active,
    /// Why it ended last (`Result`).
    pub result: String,
    /// Its main process, pid and start time: a pid alone comes again.
    pub process: Option<(u32, u64)>,
    /// The main process runs the file at the installed path.
    pub runs_new_file: bool,
    /// Automatic restarts since the trial began.
    pub restarts: u32,
    /// The main process has ended and systemd is about to start another one by itself.
    pub waits_for_restart: bool,
    /// Descriptors of sessions that wait to be taken over.
    pub stored: u32,
    /// `None` where the unit could not be looked at.
    pub marks: Option<Marks>,
    /// The control socket's answer; `None` where there is none.
    pub agent: Option<Report>,
    /// The updater itself reaches the API, as far as it has asked.
    pub api_reachable: bool,
}

/// What the agent says about itself over its control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its version.
    pub version: String,
    /// It is registered and its connection to the API stands.
    pub connected: bool,
    /// Who it is.
    pub identity: Identity,
    /// The last thing that went wrong, for the message.
    pub last_error: Option<String>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Look again; at `until` (time since boot) at the latest something will be decided or a further deadline named.
    Wait {
        /// When.
        until: Duration,
    },
    /// Commit.
    Healthy,
    /// Restore the old version.
    Unhealthy {
        /// The sentence for people.
        why: Symptom,
    },
    /// Commit, and say that it could not be proven.
    KeepUnproven {
        /// What is not as it should be, through no fault of the new version that could be seen.
        why: Symptom,
    },
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Symptom {
    /// systemd has given up on it.
    #[error("the unit failed (result `{result}`)")]
    UnitFailed {
        /// systemd's word.
        result: String,
    },
    /// It keeps crashing.
    #[error("the new version was restarted {restarts} times after crashes")]
    CrashLoop {
        /// How often.
        restarts: u32,
    },
    /// It has ended, and at no time was it ready.
    #[error("the new version ended before it was ready (result `{result}`)")]
    DiedUnready {
        /// systemd's word.
        result: String,
    },
    /// It leaves what the process before has left for it.
    #[error("the new version does not take over the open sessions, which stand still until somebody does")]
    NotTakenOver,
    /// The unit does not run.
    #[error("the unit is {state}, not active{}", not_ready(state))]
    NotActive {
        /// systemd's word.
        state: String,
    },
    /// The process still runs the old file.
    #[error("the service's main process does not run the new binary")]
    OldFile,
    /// The control socket does not answer.
    #[error("the new version does not answer on its control socket")]
    NoSocket,
    /// Another version answers.
    #[error("the agent says that it is version {found}, not {expected}")]
    OtherVersion {
        /// What answers.
        found: String,
        /// What was installed.
        expected: String,
    },
    /// Another agent answers.
    #[error("the new version runs as another agent: {what} is {found}, it was {expected}")]
    OtherIdentity {
        /// Name, id or certificate.
        what: &'static str,
        /// What it is.
        found: String,
        /// What it was.
        expected: String,
    },
    /// It has no connection, and the API answers the updater.
    #[error("the new version is not connected although the API answers{}", said(last_error.as_deref()))]
    NotConnected {
        /// What the agent says about it.
        last_error: Option<String>,
    },
    /// It has no connection, and neither has the updater.
    #[error("the API cannot be reached, so the connection of the new version could not be proven")]
    ApiUnreachable,
    /// It runs, but never for long.
    #[error("the process of the new version changed again and again")]
    Unstable,
}

/// The gate of one trial. Feed it with [`Gate::observe`] some times a second until it says anything but `Wait`.
#[derive(Clone, Debug)]
pub struct Gate {
    expected: Expected,
    /// The unit right before the restart into the new version; `None` where nobody looked.
    before: Option<Marks>,
    /// When the trial began. Invariant: every deadline is at most [`Gate::last_deadline`] after it.
    began: Duration,
    process: Option<(u32, u64)>,
    /// The present process has been without local trouble since.
    sound_since: Option<Duration>,
    /// The present process has left sessions waiting since.
    idle_since: Option<Duration>,
    /// All has been well since.
    well_since: Option<Duration>,
    /// Local trouble since.
    trouble_since: Option<Duration>,
    /// The first time that the API was seen unreachable.
    outage_began: Option<Duration>,
    /// The API has been answering since; `None` while it does not.
    api_since: Option<Duration>,
}

impl Gate {
    /// A trial that began at `now`, right after the restart. `before` is the unit right before it, with the new file in place
    /// already; without it no death is taken for one before the new version was ready.
    #[must_use]
    pub const fn new(expected: Expected, before: Option<Marks>, now: Duration) -> Self {
        Self {
            expected,
            before,
            began: now,
            process: None,
            sound_since: None,
            idle_since: None,
            well_since: None,
            trouble_since: Some(now),
            outage_began: None,
            api_since: Some(now),
        }
    }

    /// The time since boot at which the verdict has been given for certain, whatever is observed.
    #[must_use]
    pub fn last_deadline(&self) -> Duration {
        // One health_timeout before an outage begins, one after it ends, and once more until something is stable.
        let health_timeout = self.expected.health_timeout;
        self.began + OUTAGE_LIMIT + health_timeout + health_timeout.max(RECONNECT_LIMIT) + STABLE
    }

    /// How long the agent may take to connect while the API answers.
    fn connect_limit(&self) -> Duration {
        let health_timeout = self.expected.health_timeout;
        if self.outage_began.is_some() { health_timeout.max(RECONNECT_LIMIT) } else { health_timeout }
    }

    /// Takes an observation into account. `now` must not go backwards.
    pub fn observe(&mut self, seen: &Observation) -> Verdict {
        if let Some(why) = self.beyond_repair(seen) {
            return Verdict::Unhealthy { why };
        }
        let local = self.local_trouble(seen);
        self.remember(seen, local.is_none());
        if let Some(since) = self.well_since
            && seen.now.saturating_sub(since) >= SETTLE
        {
            return Verdict::Healthy;
        }
        if seen.now >= self.last_deadline() {
            return self.at_last(local, seen);
        }
        match local {
            Some(why) => self.in_trouble(why, seen.now),
            None if self.well_since.is_some() => Verdict::Wait { until: seen.now + SETTLE },
            None => self.unconnected(seen),
        }
    }

    /// What no waiting can mend.
    fn beyond_repair(&self, seen: &Observation) -> Option<Symptom> {
        if self.died_unready(seen) {
            return Some(Symptom::DiedUnready { result: seen.result.clone() });
        }
        if self.leaves_sessions(seen) {
            return Some(Symptom::NotTakenOver);
        }
        if seen.restarts >= RESTARTS_LIMIT {
            return Some(Symptom::CrashLoop { restarts: seen.restarts });
        }
        if seen.active == Active::Failed {
            return Some(Symptom::UnitFailed { result: seen.result.clone() });
        }
        let report = seen.agent.as_ref().filter(|report| seen.runs_new_file && report.connected)?;
        other_identity(self.expected.identity.as_ref()?, &report.identity)
    }

    /// The process that has just ended was started from the new file, and none of it was ever ready, or was so without taking
    /// over the open sessions.
    fn died_unready(&self, seen: &Observation) -> bool {
        let (Some(before), Some(marks)) = (self.before, seen.marks) else { return false };
        let started = marks.main_started != before.main_started;
        let was_ready = marks.entered_active != before.entered_active;
        // No restart of its own follows on an end that somebody asked for.
        let took_over = was_ready && seen.stored == 0;
        started && !took_over && seen.waits_for_restart && seen.result != "success"
    }

    /// Sessions wait for the process to take them over, and it does not: they stand still meanwhile, and the version from
    /// before can still have them. One that is ready has taken over before.
    fn leaves_sessions(&self, seen: &Observation) -> bool {
        // Seen twice: the parts of one observation are not of the same instant.
        let Some(since) = self.idle_since.filter(|_| seen.process == self.process) else { return false };
        let late = seen.now.saturating_sub(since) >= TAKE_OVER_LIMIT;
        seen.stored > 0 && seen.runs_new_file && (late || seen.active.is_running())
    }

    fn local_trouble(&self, seen: &Observation) -> Option<Symptom> {
        if !seen.active.is_running() {
            return Some(Symptom::NotActive { state: seen.active.word().to_owned() });
        }
        if seen.process.is_none() || !seen.runs_new_file {
            return Some(Symptom::OldFile);
        }
        let Some(report) = &seen.agent else { return Some(Symptom::NoSocket) };
        if report.version != self.expected.version {
            let (found, expected) = (report.version.clone(), self.expected.version.clone());
            return Some(Symptom::OtherVersion { found, expected });
        }
        None
    }

    fn remember(&mut self, seen: &Observation, sound: bool) {
        if seen.process != self.process {
            self.process = seen.process;
            (self.sound_since, self.well_since, self.idle_since) = (None, None, None);
        }
        let connected = seen.agent.as_ref().is_some_and(|report| report.connected);
        hold(&mut self.idle_since, seen.stored > 0 && seen.runs_new_file, seen.now);
        hold(&mut self.sound_since, sound, seen.now);
        hold(&mut self.well_since, sound && connected, seen.now);
        hold(&mut self.trouble_since, !sound, seen.now);
        hold(&mut self.api_since, seen.api_reachable, seen.now);
        if !seen.api_reachable && self.outage_began.is_none() {
            self.outage_began = Some(seen.now);
        }
    }

    fn in_trouble(&self, why: Symptom, now: Duration) -> Verdict {
        decide_at(self.trouble_since.unwrap_or(self.began) + self.expected.health_timeout, now, || Verdict::Unhealthy {
            why,
        })
    }

    /// No local trouble and no connection: whose fault is it?
    fn unconnected(&self, seen: &Observation) -> Verdict {
        if let Some(since) = self.api_since {
            // The agent had no chance to connect before it was there to try.
            let since = since.max(self.sound_since.unwrap_or(since));
            return decide_at(since + self.connect_limit(), seen.now, || unconnected_while_api_answers(seen));
        }
        let outage = self.outage_began.unwrap_or(seen.now) + OUTAGE_LIMIT;
        let stable = self.sound_since.unwrap_or(seen.now) + STABLE;
        decide_at(outage.max(stable), seen.now, || Verdict::KeepUnproven { why: Symptom::ApiUnreachable })
    }

    /// Nothing may be waited for any longer.
    fn at_last(&self, local: Option<Symptom>, seen: &Observation) -> Verdict {
        if let Some(why) = local {
            return Verdict::Unhealthy { why };
        }
        if self.sound_since.is_none_or(|since| seen.now.saturating_sub(since) < STABLE) {
            return Verdict::Unhealthy { why: Symptom::Unstable };
        }
        if self.well_since.is_some() {
            return Verdict::Healthy;
        }
        match self.api_since {
            Some(since) if seen.now.saturating_sub(since) >= self.connect_limit() => {
                unconnected_while_api_answers(seen)
            }
            _ => Verdict::KeepUnproven { why: Symptom::ApiUnreachable },
        }
    }
}

/// Sets, keeps or clears the beginning of a state.
fn hold(since: &mut Option<Duration>, holds: bool, now: Duration) {
    *since = if holds { Some(since.unwrap_or(now)) } else { None };
}

fn decide_at(deadline: Duration, now: Duration, verdict: impl FnOnce() -> Verdict) -> Verdict {
    if now >= deadline { verdict() } else { Verdict::Wait { until: deadline } }
}

fn unconnected_while_api_answers(seen: &Observation) -> Verdict {
    let last_error = seen.agent.as_ref().and_then(|report| report.last_error.clone());
    Verdict::Unhealthy { why: Symptom::NotConnected { last_error } }
}

/// The same agent with a newer certificate is the same: it may have renewed during the trial.
fn other_identity(expected: &Identity, found: &Identity) -> Option<Symptom> {
    let other =
        |what, found: &str, was: &str| Some(Symptom::OtherIdentity { what, found: found.into(), expected: was.into() });
    if found.agent_name != expected.agent_name {
        return other("the name", &found.agent_name, &expected.agent_name);
    }
    if let (Some(found), Some(expected)) = (&found.agent_id, &expected.agent_id)
        && found != expected
    {
        return other("the agent id", found, expected);
    }
    let renewed = found.certificate_not_before > expected.certificate_not_before;
    if found.certificate_sha256 != expected.certificate_sha256 && !renewed {
        return other("the certificate", &found.certificate_sha256, &expected.certificate_sha256);
    }
    None
}

/// A start that takes this long is one that hangs.
fn not_ready(state: &str) -> &'static str {
    if state == Active::Activating.word() { ": the new version never said that it is ready" } else { "" }
}

fn said(last_error: Option<&str>) -> String {
    last_error.map(|error| format!("; it says: {error}")).unwrap_or_default()
}

#[cfg(test)]
mod tests;
