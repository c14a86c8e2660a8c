//! Carries a transaction through: [`super::recover`] names the next step, this does it, records it, and asks again.
//!
//! A fresh update and one that was cut off yesterday take the same way, so the way back is walked every day. The journal
//! is written before each step that may have to be undone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::fetch::disk_reason;
use super::gate::{Expected, Identity, Marks, Symptom, Verdict};
use super::history::{History, Record};
use super::journal::{self, Action, Began, Journal, KnownBad, Step, Transaction};
use super::outcome::{Ending, Failure, Outcome};
use super::recover::{self, Disk, Next, Running};
use super::state_dir::StateDir;
use super::swap::{self, Paths};
use super::{Event, Updater, watch};
use crate::clock;
use crate::control;
use crate::durable;
use crate::exit::{Exit, Reason};
use crate::service::job::Verb;
use crate::service::process;
use crate::service::unit::Unit;

/// From the request for a restart until there is another process: a stop may take as long as the unit allows it.
const STOP_ALLOWANCE: Duration = Duration::from_secs(120);
/// A healthy agent answers within a millisecond; one that hangs is restarted all the same.
const ANNOUNCE_LIMIT: Duration = Duration::from_secs(1);
/// How often to look for the other process. A restart takes a tenth of a second.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How a transaction ended.
#[derive(Debug)]
pub(super) enum End {
    /// Nothing was unfinished.
    Nothing,
    /// The new version stays. The sentence is for people.
    Committed(String),
    /// The old version is back.
    Restored(Failure),
    /// A rollback that was asked for is done.
    WentBack(String),
    /// The operator has to restart the service. The sentence is for people.
    AwaitsRestart(String),
    /// Nothing was changed, or by somebody else.
    Dropped(String),
}

/// Drives the transaction in the journal.
pub(super) struct Drive<'a, 'u> {
    pub(super) updater: &'a mut Updater<'u>,
    pub(super) state: &'a StateDir,
    pub(super) paths: &'a Paths,
    /// Filled with what is learned on the way.
    pub(super) outcome: &'a mut Outcome,
    restart_asked: Option<Instant>,
    /// The unit right before that.
    before_restart: Option<Marks>,
    began: Instant,
}

impl<'a, 'u> Drive<'a, 'u> {
    pub(super) fn new(
        updater: &'a mut Updater<'u>,
        state: &'a StateDir,
        paths: &'a Paths,
        outcome: &'a mut Outcome,
    ) -> Self {
        Self { updater, state, paths, outcome, restart_asked: None, before_restart: None, began: Instant::now() }
    }

    /// Goes on until nothing is left to do.
    pub(super) async fn run(&mut self) -> Result<End, Failure> {
        loop {
            let journal = self.load()?;
            let disk = self.paths.look().map_err(disk_failed)?;
            let transaction = journal.transaction.as_ref();
            let next = recover::next(transaction, &disk, self.running().await);
            tracing::debug!(?next, step = ?transaction.map(|transaction| transaction.step), "updater");
            let transaction = match (next, transaction) {
                (Next::Nothing, _) => return Ok(End::Nothing),
                (Next::AskOperator(trouble), _) => return Err(Failure::new(Reason::RestoreFailed, &trouble)),
                (Next::DiscardStaging, None) => {
                    swap::discard(self.paths).map_err(disk_failed)?;
                    continue;
                }
                (_, None) => return Ok(End::Nothing),
                (_, Some(transaction)) => transaction.clone(),
            };
            if let Some(end) = self.step(next, &transaction, &disk).await? {
                return Ok(end);
            }
        }
    }

    async fn step(&mut self, next: Next, transaction: &Transaction, disk: &Disk) -> Result<Option<End>, Failure> {
        match next {
            Next::Nothing | Next::AskOperator(_) => Ok(Some(End::Nothing)),
            Next::DiscardStaging => {
                swap::discard(self.paths).map_err(disk_failed)?;
                self.forget()?;
                Ok(Some(End::Dropped("an update that had changed nothing yet was cleared away".into())))
            }
            Next::FinishSwap => {
                swap::finish_swap(transaction.old.sha256, self.paths).map_err(swap_failed)?;
                self.enter(Step::Swapped)?;
                Ok(None)
            }
            Next::Restart => {
                self.enter(Step::Restarting)?;
                self.restart().await;
                // At once: to look at the files first would be to look away from a start that fails.
                self.judge(transaction).await.map(|()| None)
            }
            Next::AwaitStart => Ok(Some(End::AwaitsRestart(awaits(transaction)))),
            Next::ResumeGate => self.judge(transaction).await.map(|()| None),
            Next::Commit => self.commit(transaction).map(Some),
            Next::Restore => {
                self.updater.tell(&Event::Message(going_back(transaction)));
                swap::restore(transaction.old.sha256, self.paths).map_err(swap_failed)?;
                self.enter(Step::Restored)?;
                Ok(None)
            }
            Next::FinishRestore => self.finish_restore(transaction, disk).await.map(Some),
            Next::Abandon => {
                self.forget()?;
                let message =
                    "the installed binary was replaced by somebody else during an update; it was left as it is";
                Ok(Some(End::Dropped(message.into())))
            }
        }
    }

    /// Watches the version on trial and records the verdict.
    async fn judge(&mut self, transaction: &Transaction) -> Result<(), Failure> {
        if transaction.step != Step::Trial {
            self.change(|transaction| {
                transaction.trial = Some(now());
                transaction.enter(Step::Trial);
            })?;
        }
        let Some(expected) = expected(transaction, transaction.new.version.as_deref()) else {
            return self.enter(Step::Committing);
        };
        self.updater.tell(&Event::Message(format!("watching {} until it is connected", expected.version)));
        let since = self.restart_asked.unwrap_or_else(Instant::now);
        let seen = watch::watch(self.updater, self.paths, expected, self.before_restart, since).await?;
        match &seen.verdict {
            Verdict::Unhealthy { why } => {
                self.change(|transaction| transaction.enter_restore(Reason::Unhealthy, why.to_string()))
            }
            Verdict::KeepUnproven { why } => {
                self.learn(&seen);
                self.updater.tell(&Event::Warning(format!("the new version is kept although {why}")));
                self.enter(Step::Committing)
            }
            Verdict::Healthy | Verdict::Wait { .. } => {
                self.learn(&seen);
                self.enter(Step::Committing)
            }
        }
    }

    /// What the version that stays says about the restart.
    fn learn(&mut self, seen: &watch::Seen) {
        self.outcome.restart_ms = self.restart_asked.and(seen.connected_after).and_then(milliseconds);
        self.outcome.sessions_after = seen.sessions;
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<End, Failure> {
        let version = shown(transaction.new.version.as_ref());
        let message = if transaction.service.was_running {
            format!("{version} is installed, running and connected")
        } else {
            format!("{version} is installed; {} is not running, the next start uses it", transaction.service.unit)
        };
        self.record(transaction, Ending::Updated, None, &message)?;
        swap::tidy(self.paths).map_err(disk_failed)?;
        self.finish(|journal| {
            if let Some(version) = &transaction.new.version {
                journal.clear_bad(version);
            }
        })?;
        Ok(End::Committed(message))
    }

    /// The old file is installed again: the service must run it, and the bad version is remembered.
    async fn finish_restore(&mut self, transaction: &Transaction, disk: &Disk) -> Result<End, Failure> {
        // Nothing kept: the names are as they should be, and hashing the files would only keep sessions waiting.
        if disk.kept.is_some() {
            swap::restore(transaction.old.sha256, self.paths).map_err(swap_failed)?;
        }
        let old = shown(transaction.old.version.as_ref());
        let new = shown(transaction.new.version.as_ref());
        let cause = transaction
            .cause
            .as_ref()
            .map_or_else(|| "the operator asked for it".into(), |cause| cause.message.clone());
        let wants_running = transaction.service.was_running && !transaction.service.no_restart;
        let mut trouble = None;
        if wants_running {
            // systemd may have started it by itself: what is on its way up is left alone.
            if self.running().await != Running::Installed || !self.unit().await.is_up() {
                // The Go agent, whose binary has no version.
                if transaction.old.version.is_none() {
                    self.stop().await;
                }
                self.restart().await;
            }
            trouble = self.check_old(transaction).await?;
        }
        let asked_for = transaction.action == Action::Rollback && transaction.cause.is_none();
        let (ending, failure) = match &trouble {
            Some(why) => {
                let message = format!(
                    "{old} was put back ({cause}), but it does not become healthy either: {why}. Look at \
                     `journalctl -u {}`",
                    transaction.service.unit
                );
                (Ending::Failed, Some(Failure::because(Reason::RestoreFailed, message)))
            }
            None if asked_for => (Ending::RolledBack, None),
            None => {
                let running = if wants_running { " and runs again" } else { "" };
                let message = format!("{new} was rolled back: {cause}. {old} is installed{running}");
                (Ending::RolledBack, Some(Failure::because(Reason::Unhealthy, message)))
            }
        };
        let message = failure
            .as_ref()
            .map_or_else(|| format!("went back from {new} to {old}"), |failure| failure.message.clone());
        self.record(transaction, ending, failure.as_ref().map(|failure| failure.reason), &message)?;
        self.finish(|journal| {
            if let Some(version) = &transaction.new.version {
                let at = clock::rfc3339(clock::now());
                journal.mark_bad(KnownBad { version: version.clone(), reason: cause.clone(), at });
            }
        })?;
        match failure {
            Some(failure) if failure.reason == Reason::RestoreFailed => Err(failure),
            Some(failure) => Ok(End::Restored(failure)),
            None => Ok(End::WentBack(message)),
        }
    }

    /// Watches the version that was put back; what is wrong with it, if anything.
    async fn check_old(&mut self, transaction: &Transaction) -> Result<Option<Symptom>, Failure> {
        let Some(expected) = expected(transaction, transaction.old.version.as_deref()) else {
            // The Go agent has no control socket to ask; that its process runs must do.
            let unit = self.unit().await;
            return Ok((!unit.is_up()).then(|| Symptom::NotActive { state: unit.active.word().to_owned() }));
        };
        let since = self.restart_asked.unwrap_or_else(Instant::now);
        // It was healthy before: it has as many tries as a unit's crash may need.
        let seen = watch::watch(self.updater, self.paths, expected, None, since).await?;
        self.learn(&seen);
        Ok(match seen.verdict {
            Verdict::Unhealthy { why } => Some(why),
            Verdict::Healthy | Verdict::KeepUnproven { .. } | Verdict::Wait { .. } => None,
        })
    }

    /// Asks for a restart and waits until another process was started, or the job is over. A job that fails is the new
    /// version's doing as often as not: the watch finds out.
    ///
    /// Not until the job is over: a version that never says that it is ready keeps its start job waiting for as long as
    /// the unit allows, and `health_timeout` is what the operator chose.
    async fn restart(&mut self) {
        let unit = self.updater.site.place.unit.clone();
        self.updater.tell(&Event::Message(format!("restarting {unit}")));
        let services = self.updater.site.services();
        // A version that was in a crash loop has used up the start limit, and its restarts are not those of the next one.
        if let Err(error) = services.reset_failed(&unit).await {
            tracing::debug!(error = %crate::http::chain(&error), "the failed state stays");
        }
        self.announce().await;
        let look = async || services.unit(&unit).await.ok().as_ref().and_then(watch::marks);
        let before = look().await;
        self.before_restart = before;
        self.restart_asked = Some(Instant::now());
        let other_process = async {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                // By its start, not by its pid: it may have ended already.
                let started = look().await.filter(|marks| marks.main_started != 0);
                if started.is_some_and(|marks| before.is_none_or(|before| marks.main_started != before.main_started)) {
                    return;
                }
            }
        };
        tokio::select! {
            ended = services.run(Verb::Restart, &unit, STOP_ALLOWANCE) => if let Err(error) = ended {
                tracing::warn!(error = %crate::http::chain(&error), "the restart did not go well");
            },
            () = other_process => {}
        }
    }

    /// Before an agent starts that takes no sessions over: a restart would leave them to nobody, open and silent, and a stop
    /// ends them in good order.
    async fn stop(&self) {
        let unit = &self.updater.site.place.unit;
        if let Err(error) = self.updater.site.services().run(Verb::Stop, unit, STOP_ALLOWANCE).await {
            tracing::warn!(error = %crate::http::chain(&error), "the stop did not go well");
        }
    }

    /// For an agent that cannot ask systemd itself whether it is restarted or stopped. One that is older than this, or hangs,
    /// does not hear it.
    async fn announce(&self) {
        let announcing = control::client::announce_restart(&self.updater.config.runtime_dir);
        match tokio::time::timeout(ANNOUNCE_LIMIT, announcing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = %crate::http::chain(&error), "the restart is not announced"),
            Err(_elapsed) => tracing::debug!("the agent does not hear that it is restarted"),
        }
    }

    async fn running(&self) -> Running {
        match self.unit().await.main_pid.map(|pid| process::runs(pid, &self.paths.installed).unwrap_or(false)) {
            Some(true) => Running::Installed,
            Some(false) => Running::Other,
            None => Running::Nothing,
        }
    }

    /// The unit; one that cannot be looked at is like one that does not run.
    async fn unit(&self) -> Unit {
        let site = &self.updater.site;
        site.services().unit(&site.place.unit).await.unwrap_or_default()
    }

    fn load(&mut self) -> Result<Journal, Failure> {
        let loaded = Journal::load(&self.state.journal()).map_err(disk_failed)?;
        if let Some(path) = loaded.set_aside {
            self.updater.tell(&set_aside(&path));
        }
        Ok(loaded.journal)
    }

    fn enter(&self, step: Step) -> Result<(), Failure> {
        self.change(|transaction| transaction.enter(step))
    }

    fn change(&self, change: impl FnOnce(&mut Transaction)) -> Result<(), Failure> {
        Journal::change_transaction(&self.state.journal(), change).map(drop).map_err(disk_failed)
    }

    fn forget(&self) -> Result<(), Failure> {
        self.finish(|_| {})
    }

    /// Ends the transaction; downloads are of no more use.
    fn finish(&self, change: impl FnOnce(&mut Journal)) -> Result<(), Failure> {
        Journal::change(&self.state.journal(), |journal| {
            journal.transaction = None;
            change(journal);
        })
        .map_err(disk_failed)?;
        clear(&self.state.staging());
        Ok(())
    }

    fn record(
        &self,
        transaction: &Transaction,
        ending: Ending,
        reason: Option<Reason>,
        message: &str,
    ) -> Result<(), Failure> {
        let action = match transaction.action {
            Action::Update => "update",
            Action::Rollback => "rollback",
            Action::Unknown => "unknown",
        };
        let word = serde_json::to_value(ending).ok().and_then(|word| word.as_str().map(str::to_owned));
        let record = Record {
            id: transaction.id.clone(),
            at: clock::rfc3339(clock::now()),
            action: action.to_owned(),
            from: transaction.from().version.clone(),
            to: transaction.to().version.clone(),
            source: transaction.source.clone(),
            by: transaction.by.clone(),
            outcome: word.unwrap_or_default(),
            reason: reason.map(|reason| reason.word().to_owned()),
            message: message.to_owned(),
            duration_ms: milliseconds(self.began.elapsed()).unwrap_or_default(),
            restart_ms: self.outcome.restart_ms,
            downloaded_bytes: self.outcome.downloaded_bytes,
            sessions_before: transaction.service.sessions,
            sessions_after: self.outcome.sessions_after,
            unknown: serde_json::Map::new(),
        };
        History::new(self.state.history()).append(&record).map_err(disk_failed)
    }
}

impl End {
    /// The outcome that this end is.
    pub(super) fn into_outcome(self, outcome: Outcome) -> Outcome {
        match self {
            Self::Committed(message) => outcome.ended(Ending::Updated, Exit::Done, message),
            Self::WentBack(message) => outcome.ended(Ending::RolledBack, Exit::Done, message),
            Self::Restored(failure) => outcome.failed(failure),
            Self::AwaitsRestart(message) => outcome.ended(Ending::Updated, Exit::Done, message),
            Self::Nothing => outcome.ended(Ending::UpToDate, Exit::Done, "nothing was unfinished"),
            Self::Dropped(message) => outcome.ended(Ending::UpToDate, Exit::Done, message),
        }
    }
}

/// Pins and known bad versions went with it, which an operator should hear.
pub(super) fn set_aside(path: &Path) -> Event {
    Event::Warning(format!(
        "the updater's journal could not be read and was set aside as {}; pins and versions known to be bad in it count \
         no longer",
        path.display()
    ))
}

/// What the watched version has to be; `None` where it has no version to say, as the Go agent.
fn expected(transaction: &Transaction, version: Option<&str>) -> Option<Expected> {
    let identity = transaction.identity.as_ref().map(|identity| Identity {
        agent_name: identity.agent_name.clone(),
        agent_id: identity.agent_id.clone(),
        certificate_sha256: identity.certificate_sha256.clone(),
        certificate_not_before: identity.certificate_not_before.as_deref().and_then(watch::seconds),
    });
    Some(Expected {
        version: version?.to_owned(),
        identity,
        health_timeout: Duration::from_millis(transaction.health_timeout_ms),
    })
}

/// When something begins.
pub(super) fn now() -> Began {
    Began {
        at: clock::rfc3339(clock::now()),
        boot_id: process::boot_id(),
        boottime_ms: milliseconds(clock::boottime()).unwrap_or_default(),
    }
}

pub(super) fn milliseconds(duration: Duration) -> Option<u64> {
    u64::try_from(duration.as_millis()).ok()
}

/// A version for people; the Go agent's binary does not carry one.
pub(super) fn shown(version: Option<&String>) -> String {
    version.cloned().unwrap_or_else(|| "the version without a number".to_owned())
}

fn awaits(transaction: &Transaction) -> String {
    let (version, unit) = (shown(transaction.new.version.as_ref()), &transaction.service.unit);
    format!(
        "{version} is installed and not started yet: `systemctl restart {unit}` starts it, and the next \
         `bamf-agent update` confirms it"
    )
}

fn going_back(transaction: &Transaction) -> String {
    let why = transaction.cause.as_ref().map(|cause| format!(" ({})", cause.message)).unwrap_or_default();
    format!("putting {} back{why}", shown(transaction.old.version.as_ref()))
}

/// Downloads are fetched again if they are needed again; failing to remove one fails nothing.
fn clear(staging: &PathBuf) {
    let Ok(entries) = std::fs::read_dir(staging) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            drop(durable::remove_file(&entry.path()));
        }
    }
}

pub(super) fn disk_failed(error: durable::Error) -> Failure {
    Failure::new(disk_reason(&error), &error)
}

pub(super) fn swap_failed(error: swap::Error) -> Failure {
    Failure::new(error.reason(), &error)
}

/// The journal's own form of an identity.
pub(super) fn to_journal(identity: &Identity, not_before: Option<String>) -> journal::Identity {
    journal::Identity {
        agent_name: identity.agent_name.clone(),
        agent_id: identity.agent_id.clone(),
        certificate_sha256: identity.certificate_sha256.clone(),
        certificate_not_before: not_before,
    }
}
