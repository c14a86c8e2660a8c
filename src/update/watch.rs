//! Watches a version on trial: gathers what [`super::gate`] judges, until it has judged.

use std::time::Duration;

use tokio::time::Instant;

use super::Updater;
use super::gate::{Expected, Gate, Identity, Marks, Observation, Report, Verdict};
use super::outcome::Failure;
use super::site;
use super::swap::Paths;
use crate::clock;
use crate::control::Status;
use crate::exit::Reason;
use crate::http::{self, Purpose};
use crate::platform::version;
use crate::service::process;
use crate::service::unit::Unit;

/// How often to look. Sessions may stand still meanwhile, and looking costs next to nothing.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often the API is asked by the updater itself while the agent is not connected.
const ASK_API_EVERY: Duration = Duration::from_secs(2);
/// An API that hangs is away, and must not keep the watch from seeing a crash loop.
const ASK_API_LIMIT: Duration = Duration::from_secs(5);

/// What the watch saw.
#[derive(Debug)]
pub(super) struct Seen {
    /// The judgement; never [`Verdict::Wait`].
    pub(super) verdict: Verdict,
    /// From the beginning of the watch to the first sight of a connected agent.
    pub(super) connected_after: Option<Duration>,
    /// Sessions at the last sight.
    pub(super) sessions: Option<u64>,
}

/// Watches until there is a verdict. `since` is when the restart was asked for, `before` the unit right before, where a
/// version may be given up at its first death.
pub(super) async fn watch(
    updater: &Updater<'_>,
    paths: &Paths,
    expected: Expected,
    before: Option<Marks>,
    since: Instant,
) -> Result<Seen, Failure> {
    let client = http::client(&updater.config.network, Purpose::Platform, &updater.build.version.to_string())
        .map_err(|error| Failure::new(Reason::ConfigInvalid, &error))?;
    let mut gate = Gate::new(expected.clone(), before, clock::boottime());
    let mut api = ApiProbe { client, asked: None, reachable: true };
    let mut restarts = Restarts::default();
    let mut seen = Seen { verdict: Verdict::Healthy, connected_after: None, sessions: None };
    loop {
        let observation = observe(updater, paths, &mut api, &mut restarts).await;
        if let Some(report) = &observation.agent {
            let well = report.connected && report.version == expected.version && observation.runs_new_file;
            if well && seen.connected_after.is_none() {
                seen.connected_after = Some(since.elapsed());
            }
        }
        match gate.observe(&observation) {
            Verdict::Wait { .. } => tokio::time::sleep(LOOK_EVERY).await,
            verdict @ (Verdict::Healthy | Verdict::Unhealthy { .. } | Verdict::KeepUnproven { .. }) => {
                seen.verdict = verdict;
                seen.sessions = site::ask(updater.config).await.map(|status| status.sessions.active);
                return Ok(seen);
            }
        }
    }
}

/// Whether the updater itself reaches the API, asked seldom.
struct ApiProbe {
    client: reqwest::Client,
    asked: Option<Instant>,
    /// The last answer; true before the first.
    reachable: bool,
}

impl ApiProbe {
    async fn reachable(&mut self, url: &url::Url) -> bool {
        if self.asked.is_none_or(|asked| asked.elapsed() >= ASK_API_EVERY) {
            let asking = version::discover(&self.client, url);
            self.reachable = tokio::time::timeout(ASK_API_LIMIT, asking).await.is_ok_and(|answer| answer.is_ok());
            self.asked = Some(Instant::now());
        }
        self.reachable
    }
}

/// systemd's count of automatic restarts, as far as this watch has seen it grow: what was counted before is the doing of
/// the version before, which systemd may have replaced by itself after the files changed places.
#[derive(Default)]
struct Restarts {
    base: Option<u32>,
    grown: u32,
}

impl Restarts {
    /// Takes the unit's count into account; one that cannot be looked at says nothing.
    fn count(&mut self, unit: &Unit) -> u32 {
        if unit.loaded {
            // A count that went down was cleared by a start by hand.
            let base = self.base.map_or(unit.restarts, |base| base.min(unit.restarts));
            self.base = Some(base);
            self.grown = unit.restarts - base;
        }
        self.grown
    }
}

async fn observe(updater: &Updater<'_>, paths: &Paths, api: &mut ApiProbe, restarts: &mut Restarts) -> Observation {
    let unit = match updater.site.services().unit(&updater.site.place.unit).await {
        Ok(unit) => unit,
        Err(error) => {
            tracing::debug!(error = %http::chain(&error), "the unit cannot be looked at");
            Unit::default()
        }
    };
    let status = site::ask(updater.config).await;
    let connected = status.as_ref().is_some_and(|status| status.api.connected);
    let api_reachable = if connected {
        // Proof enough.
        true
    } else if unit.active.is_running() {
        api.reachable(&updater.config.platform_url).await
    } else {
        // The API cannot be to blame, and an answer may take so long that the failure of a start is not seen.
        api.reachable
    };
    Observation {
        now: clock::boottime(),
        result: unit.result.clone(),
        process: unit.main_pid.and_then(|pid| Some((pid, process::start_ticks(pid)?))),
        runs_new_file: unit.main_pid.is_some_and(|pid| process::runs(pid, &paths.installed).unwrap_or(false)),
        restarts: restarts.count(&unit),
        waits_for_restart: unit.waits_for_restart(),
        stored: unit.stored,
        marks: marks(&unit),
        api_reachable,
        active: unit.active,
        agent: status.as_ref().map(report),
    }
}

/// What the gate compares; `None` where the unit could not be looked at.
pub(super) fn marks(unit: &Unit) -> Option<Marks> {
    let Unit { main_started, entered_active, .. } = *unit;
    unit.loaded.then_some(Marks { main_started, entered_active })
}

fn report(status: &Status) -> Report {
    Report {
        version: status.version.clone(),
        connected: status.api.connected,
        identity: identity(status).unwrap_or_else(|| Identity {
            agent_name: status.agent_name.clone(),
            agent_id: None,
            certificate_sha256: String::new(),
            certificate_not_before: None,
        }),
        last_error: status.api.last_error.clone(),
    }
}

/// Who an agent says that it is; `None` before it has a certificate.
pub(super) fn identity(status: &Status) -> Option<Identity> {
    let certificate = status.certificate.as_ref()?;
    Some(Identity {
        agent_name: status.agent_name.clone(),
        agent_id: status.agent_id.clone(),
        certificate_sha256: certificate.sha256.clone(),
        certificate_not_before: seconds(&certificate.not_before),
    })
}

/// Seconds since 1970 of an RFC 3339 time.
pub(super) fn seconds(time: &str) -> Option<i64> {
    time.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_restarts_that_the_watch_has_seen_are_counted() {
        let unit = |restarts| Unit { loaded: true, restarts, ..Unit::default() };
        let mut restarts = Restarts::default();
        assert_eq!(restarts.count(&Unit::default()), 0, "nothing was seen yet");
        assert_eq!(restarts.count(&unit(4)), 0, "the version before crashed four times");
        assert_eq!(restarts.count(&unit(5)), 1);
        assert_eq!(restarts.count(&Unit::default()), 1, "a unit that cannot be seen changes nothing");
        assert_eq!(restarts.count(&unit(0)), 0, "cleared");
        assert_eq!(restarts.count(&unit(3)), 3);
    }
}
