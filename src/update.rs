//! The updater: signed releases only, never newer than the API, atomic on disk, healthy or rolled back.
//!
//! ```text
//! lock ─► recover ─► decide ─► fetch ─► verify ─► try ─► swap ─► restart ─► gate ─┬─► commit
//!                    (pure)             (proof)  (exec)   │ journal can undo      └─► restore
//! ```
//!
//! Every arrow consumes what the one before produced: there is no [`trust::Verified`] without signature and hash, no
//! [`trial::Tried`] without both of the staged file's own checks, and nothing is swapped in without one.
//!
//! It runs as root, beside the agent and never inside it. What decides (`plan`, `recover`, `gate`, `ownership`'s
//! decision) is pure; what does (`stage`, `swap`, `journal`) makes no choices.

mod apply;
pub mod choose;
pub mod digest;
pub mod elf;
mod fetch;
pub mod gate;
pub mod history;
pub mod journal;
pub mod lock;
mod notes;
pub mod outcome;
pub mod ownership;
pub mod plan;
pub mod recover;
pub mod site;
pub mod source;
pub mod stage;
pub mod state_dir;
pub mod swap;
pub mod trial;
pub mod trust;
pub mod unattended;
mod watch;

use std::ffi::OsString;

use jiff::civil::Weekday;
use semver::Version;

use self::apply::{Drive, End, disk_failed, swap_failed};
pub use self::choose::Wish;
use self::elf::Machine;
use self::journal::{Action, Binary, Journal, ServiceBefore, Step, Transaction};
use self::lock::Lock;
pub use self::notes::{View, pin, records, unpin, view};
pub use self::outcome::{Ending, Failure, Outcome};
use self::ownership::Refusal;
use self::plan::{Direction, Plan};
use self::site::Site;
use self::source::Source;
use self::state_dir::StateDir;
use self::swap::Paths;
use self::trial::Trial;
use self::trust::Verified;
use crate::config::Config;
use crate::exit::{Exit, Reason};
use crate::http::{self, Purpose};
use crate::service::bus::Manager;
use crate::service::unit::Active;
use crate::telemetry::Build;

/// What an update tells on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A step begins.
    Message(String),
    /// Something to know that stops nothing.
    Warning(String),
    /// Bytes have arrived.
    Download {
        /// So far.
        done: u64,
        /// In all, where that is known.
        total: Option<u64>,
    },
}

/// What to do, besides which version.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Which version, and what is allowed.
    pub wish: Wish,
    /// Only find out.
    pub check: bool,
    /// Everything but the swap.
    pub dry_run: bool,
    /// Leave the restart to the operator.
    pub no_restart: bool,
    /// No person asks: the local day and minute of the day, to which `update.window` is held.
    pub unattended: Option<(Weekday, u16)>,
    /// Where releases come from, instead of the configured place.
    pub source: Option<String>,
    /// Who asks, for the history.
    pub by: String,
}

/// An updater at work on one installation.
pub struct Updater<'u> {
    config: &'u Config,
    build: &'u Build,
    site: &'u Site,
    tell: &'u mut dyn FnMut(&Event),
}

impl std::fmt::Debug for Updater<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Updater").field("site", self.site).finish_non_exhaustive()
    }
}

/// What an update needs once it may begin: held together, released together.
struct Work {
    state: StateDir,
    /// Invariant: held until the work is dropped.
    _lock: Lock,
    paths: Paths,
    installed: Option<Version>,
}

impl<'u> Updater<'u> {
    /// An updater that runs as `build` on `site`, under `config`; `tell` hears what happens.
    pub fn new(config: &'u Config, build: &'u Build, site: &'u Site, tell: &'u mut dyn FnMut(&Event)) -> Self {
        Self { config, build, site, tell }
    }

    fn tell(&mut self, event: &Event) {
        (self.tell)(event);
    }

    /// Brings the agent to another version, or says why not. Whatever happens is in the outcome.
    pub async fn update(mut self, request: &Request) -> Outcome {
        let mut outcome = Outcome::new(None);
        match self.try_update(request, &mut outcome).await {
            Ok((ending, exit, message)) => outcome.ended(ending, exit, message),
            Err(Stop::Failed(failure)) => outcome.failed(failure),
            Err(Stop::Ended(end)) => end.into_outcome(outcome),
        }
    }

    async fn try_update(&mut self, request: &Request, outcome: &mut Outcome) -> Result<(Ending, Exit, String), Stop> {
        if let Some(message) = request.unattended.and_then(|now| unattended::stays_back(&self.config.update, now)) {
            return Ok((Ending::UpToDate, Exit::Done, message));
        }
        let source_text = request.source.clone().unwrap_or_else(|| self.config.update.source.clone());
        if request.check {
            let paths = self.site.paths()?;
            let installed = site::version_of(&paths.installed, self.build).await;
            outcome.from = installed.as_ref().map(ToString::to_string);
            let standing = notes::peek(&self.site.place.state_dir);
            let source = self.open_source(&source_text, outcome)?;
            let plan = self.choose(request, installed.as_ref(), standing, &source, outcome).await?;
            let refusal = owned(&paths, self.config.kubernetes).await.err();
            return Ok(checked(plan, refusal.as_ref(), outcome)?);
        }
        // Contract section 4: lock → …
        let work = self.begin().await?;
        outcome.from = work.installed.as_ref().map(ToString::to_string);
        // "… and the next `update` (or boot) finishes or undoes the rest."
        self.finish_unfinished(&work, outcome).await?;
        // … → API version → choose → …
        let source = self.open_source(&source_text, outcome)?;
        let standing = notes::peek(&self.site.place.state_dir);
        let plan = self.choose(request, work.installed.as_ref(), standing, &source, outcome).await?;
        let version = match plan {
            Plan::Update { version, .. } => version,
            Plan::UpToDate { message } => return Ok((Ending::UpToDate, Exit::Done, message)),
            Plan::Refuse(refusal) => return Err(Failure::because(refusal.reason, refusal.message).into()),
        };
        outcome.to = Some(version.to_string());
        // … → signature and checksums → download to a private staging directory → verify → …
        let verified = fetch::fetch(self, &version, &source, &work.state, outcome).await?;
        // … → architecture and `--version` of the staged binary match → staged `selftest` with the live config → …
        let tried = self.try_staged(&verified, &work).await?;
        if request.dry_run {
            swap::discard(&work.paths).map_err(disk_failed)?;
            let message = format!("{version} was downloaded, verified and tried; nothing was installed (--dry-run)");
            return Ok((Ending::Available, Exit::Done, message));
        }
        // … → keep the old binary → durable atomic swap → systemd restart → health → commit, or restore and restart.
        let old = self.record_begin(&version, &verified, &work, request, outcome).await?;
        self.tell(&Event::Message(format!("installing {version}")));
        let swapped = swap::swap(tried, old, &work.paths);
        if let Ok(swapped) = &swapped {
            let method = swapped.method;
            Journal::change_transaction(&work.state.journal(), |transaction| {
                transaction.method = Some(method);
                transaction.enter(Step::Swapped);
            })
            .map_err(disk_failed)?;
        }
        let end = Drive::new(self, &work.state, &work.paths, outcome).run().await;
        // A swap that failed was undone or finished by now; its own error says more than what that led to.
        swapped.map_err(swap_failed)?;
        Err(Stop::Ended(end?))
    }

    /// Puts the kept binary back.
    pub async fn rollback(mut self, no_restart: bool, by: &str) -> Outcome {
        let mut outcome = Outcome::new(None);
        match self.try_rollback(no_restart, by, &mut outcome).await {
            Ok(end) => end.into_outcome(outcome),
            Err(Stop::Failed(failure)) => outcome.failed(failure),
            Err(Stop::Ended(end)) => end.into_outcome(outcome),
        }
    }

    async fn try_rollback(&mut self, no_restart: bool, by: &str, outcome: &mut Outcome) -> Result<End, Stop> {
        let work = self.begin().await?;
        self.turn_back(&work, no_restart, by).await?;
        self.finish_unfinished(&work, outcome).await?;
        let disk = work.paths.look().map_err(disk_failed)?;
        let (Some(installed), Some(kept)) = (disk.installed, disk.kept) else {
            let message =
                format!("no earlier binary is kept beside {}: nothing to go back to", work.paths.installed.display());
            return Err(Failure::because(Reason::NoPrevious, message).into());
        };
        let old = site::version_of(&work.paths.kept, self.build).await.map(|version| version.to_string());
        let new = work.installed.as_ref().map(ToString::to_string);
        (outcome.from, outcome.to) = (new.clone(), old.clone());
        let (service, identity) = self.before(no_restart).await;
        outcome.sessions_before = service.sessions;
        let mut transaction = self.transaction(Action::Rollback, &work, service, identity, by);
        transaction.old = Binary { version: old, sha256: kept };
        transaction.new = Binary { version: new, sha256: installed };
        transaction.enter(Step::Restoring);
        store(&work.state, transaction)?;
        Ok(Drive::new(self, &work.state, &work.paths, outcome).run().await?)
    }

    /// Ownership, permission, state directory and lock, in this order: who is told to become root should not find out
    /// then that a package manager owns the file.
    async fn begin(&mut self) -> Result<Work, Failure> {
        check_ownership(self.site, self.config.kubernetes).await?;
        let paths = self.site.paths()?;
        if self.site.place.manager == Manager::System && !nix::unistd::geteuid().is_root() {
            let message = format!("replacing {} needs root: run the command with sudo", paths.installed.display());
            return Err(Failure::because(Reason::NotPermitted, message));
        }
        let state = StateDir::open(&self.site.place.state_dir).map_err(fetch::no_room)?;
        let lock = Lock::acquire(state.path()).map_err(|error| match &error {
            lock::Error::Held { .. } => Failure::new(Reason::Locked, &error),
            lock::Error::Disk(disk) => Failure::new(fetch::disk_reason(disk), &error),
        })?;
        let installed = site::version_of(&paths.installed, self.build).await;
        Ok(Work { state, _lock: lock, paths, installed })
    }

    /// Finishes what an earlier update left, if anything. An end that speaks for itself is the whole outcome.
    async fn finish_unfinished(&mut self, work: &Work, outcome: &mut Outcome) -> Result<(), Stop> {
        if let Some(transaction) = &self.unfinished(work)? {
            let what = apply::shown(transaction.to().version.as_ref());
            self.tell(&Event::Message(format!("an earlier change to {what} was cut off: finishing it first")));
            outcome.from.clone_from(&transaction.from().version);
            outcome.to.clone_from(&transaction.to().version);
            outcome.sessions_before = transaction.service.sessions;
        }
        match Drive::new(self, &work.state, &work.paths, outcome).run().await? {
            End::Nothing => Ok(()),
            End::Dropped(message) => {
                self.tell(&Event::Message(message));
                (outcome.to, outcome.sessions_before) = (None, None);
                Ok(())
            }
            end @ (End::Committed(_) | End::Restored(_) | End::WentBack(_) | End::AwaitsRestart(_)) => {
                Err(Stop::Ended(end))
            }
        }
    }

    fn unfinished(&mut self, work: &Work) -> Result<Option<Transaction>, Failure> {
        let loaded = Journal::load(&work.state.journal()).map_err(disk_failed)?;
        if let Some(path) = &loaded.set_aside {
            self.tell(&apply::set_aside(path));
        }
        Ok(loaded.journal.transaction)
    }

    /// A version that is installed but not confirmed yet is what the operator wants to leave: the change to it becomes
    /// the way back from it.
    async fn turn_back(&mut self, work: &Work, no_restart: bool, by: &str) -> Result<(), Failure> {
        let Some(transaction) = self.unfinished(work)? else { return Ok(()) };
        let installed = work.paths.look().map_err(disk_failed)?.installed;
        if transaction.action == Action::Rollback || installed != Some(transaction.new.sha256) {
            return Ok(());
        }
        // Those of now: the change may have waited for days.
        let sessions = site::ask(self.config).await.map(|status| status.sessions.active);
        Journal::change_transaction(&work.state.journal(), |transaction| {
            transaction.action = Action::Rollback;
            transaction.service.sessions = sessions;
            transaction.service.no_restart = no_restart;
            by.clone_into(&mut transaction.by);
            transaction.cause = None;
            transaction.enter(Step::Restoring);
        })
        .map(drop)
        .map_err(disk_failed)
    }

    fn open_source(&self, text: &str, outcome: &mut Outcome) -> Result<Source, Failure> {
        let client = http::client(&self.config.network, Purpose::Releases, &self.build.version.to_string())
            .map_err(|error| Failure::new(Reason::ConfigInvalid, &error))?;
        let source = Source::open(source::Config {
            source: text,
            api_url: self.config.update.api_url.as_ref(),
            github_token: self.config.update.github_token.clone(),
            allow_insecure_http: self.config.allow_insecure_http,
            client,
            cache_dir: self.site.place.state_dir.clone(),
        })
        .map_err(|error| Failure::new(error.reason(), &error))?;
        outcome.source = Some(source.to_string());
        Ok(source)
    }

    async fn choose(
        &mut self,
        request: &Request,
        installed: Option<&Version>,
        standing: choose::Standing,
        source: &Source,
        outcome: &mut Outcome,
    ) -> Result<Plan, Failure> {
        // The Go agent's binary carries no version; every release is newer.
        let installed = installed.cloned().unwrap_or_else(|| Version::new(0, 0, 0));
        choose::choose(self, &request.wish, installed, standing, source, outcome).await
    }

    /// Stages the verified file and lets it show that it is what it was signed as and that it likes this machine.
    async fn try_staged(&mut self, verified: &Verified, work: &Work) -> Result<trial::Tried, Failure> {
        let machine = Machine::current()
            .ok_or_else(|| Failure::because(Reason::WrongPlatform, "releases are built for amd64 and arm64 only"))?;
        let target = crate::durable::parent(&work.paths.installed);
        state_dir::check_space(&[(target, verified.size_bytes())]).map_err(fetch::no_room)?;
        let expected = stage::Expected { sha256: verified.sha256(), size: verified.size_bytes(), machine };
        let staged = stage::stage(verified.file(), &expected, &work.paths)
            .map_err(|error| Failure::new(error.reason(), &error))?;
        self.tell(&Event::Message(format!("trying {}", verified.version())));
        let trial = Trial {
            user: self.site.user()?,
            environment: self.trial_environment(),
            config: self.config.file.clone(),
            version: verified.version().clone(),
            machine,
            time_limit: trial::TIME_LIMIT,
        };
        let tried = trial::try_run(staged, &trial).await;
        tried.map_err(|error| {
            if let Err(disk) = swap::discard(&work.paths) {
                tracing::warn!(error = %http::chain(&disk), "the staged file stays until the next update");
            }
            Failure::new(error.reason(), &error)
        })
    }

    /// What the unit gives the service, and the least that every program needs.
    fn trial_environment(&self) -> Vec<(OsString, OsString)> {
        let path = ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin".to_owned());
        let pairs = std::iter::once(path).chain(self.site.environment());
        pairs.map(|(name, value)| (name.into(), value.into())).collect()
    }

    /// Writes down what is about to happen; returns the hash of the installed file.
    async fn record_begin(
        &self,
        version: &Version,
        verified: &Verified,
        work: &Work,
        request: &Request,
        outcome: &mut Outcome,
    ) -> Result<digest::Sha256, Failure> {
        let installed = work.paths.look().map_err(disk_failed)?.installed.ok_or_else(|| {
            Failure::because(Reason::Internal, format!("{} has vanished", work.paths.installed.display()))
        })?;
        let (service, identity) = self.before(request.no_restart).await;
        outcome.sessions_before = service.sessions;
        let mut transaction = self.transaction(Action::Update, work, service, identity, &request.by);
        transaction.old = Binary { version: work.installed.as_ref().map(ToString::to_string), sha256: installed };
        transaction.new = Binary { version: Some(version.to_string()), sha256: verified.sha256() };
        transaction.source = outcome.source.clone().unwrap_or_default();
        transaction.enter(Step::Swapping);
        store(&work.state, transaction)?;
        Ok(installed)
    }

    fn transaction(
        &self,
        action: Action,
        work: &Work,
        service: ServiceBefore,
        identity: Option<journal::Identity>,
        by: &str,
    ) -> Transaction {
        let nothing = Binary { version: None, sha256: digest::Sha256::new([0; 32]) };
        Transaction {
            id: uuid::Uuid::new_v4().to_string(),
            action,
            step: Step::Fetched,
            steps: 0,
            old: nothing.clone(),
            new: nothing,
            target: work.paths.installed.clone(),
            kept: work.paths.kept.clone(),
            method: None,
            began: apply::now(),
            trial: None,
            health_timeout_ms: apply::milliseconds(self.config.update.health_timeout).unwrap_or(u64::MAX),
            starts: 0,
            service,
            identity,
            source: String::new(),
            by: by.to_owned(),
            cause: None,
            unknown: serde_json::Map::new(),
        }
    }

    /// The service and the agent as they are, to compare with afterwards.
    async fn before(&self, no_restart: bool) -> (ServiceBefore, Option<journal::Identity>) {
        let unit = self.site.services().unit(&self.site.place.unit).await.unwrap_or_default();
        let status = site::ask(self.config).await;
        let service = ServiceBefore {
            unit: self.site.place.unit.clone(),
            // A crash loop is `activating` between two starts: it is meant to run, and this update may be its cure.
            was_running: unit.active.is_running() || unit.active == Active::Activating || unit.main_pid.is_some(),
            no_restart,
            main_pid: unit.main_pid,
            restarts: unit.restarts,
            sessions: status.as_ref().map(|status| status.sessions.active),
        };
        let identity = status.as_ref().and_then(|status| {
            let not_before = status.certificate.as_ref().map(|certificate| certificate.not_before.clone());
            Some(apply::to_journal(&watch::identity(status)?, not_before))
        });
        (service, identity)
    }
}

/// Why the straight way ended early.
enum Stop {
    /// Something stood against it.
    Failed(Failure),
    /// A transaction came to its end.
    Ended(End),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

async fn owned(paths: &Paths, kubernetes: bool) -> Result<(), Refusal> {
    ownership::decide(&ownership::probe::Probe::default().gather(&paths.installed, kubernetes).await)
}

/// Whether the installed binary may be replaced, for who cannot read the configuration: `kubernetes` comes from its
/// detection.
///
/// # Errors
/// Something else owns the binary, or only root may replace it.
pub async fn check_ownership(site: &Site, kubernetes: bool) -> Result<(), Failure> {
    let refused = |refusal: Refusal| Failure::new(refusal.reason(), &refusal);
    if kubernetes {
        // Wherever the binary lies, and whether or not that can be seen.
        return Err(refused(Refusal::Kubernetes));
    }
    owned(&site.paths()?, kubernetes).await.map_err(refused)
}

/// What `--check` says of a plan, and of a machine that cannot carry it out by itself.
fn checked(plan: Plan, refusal: Option<&Refusal>, outcome: &mut Outcome) -> Result<(Ending, Exit, String), Failure> {
    match plan {
        Plan::UpToDate { message } => Ok((Ending::UpToDate, Exit::Done, message)),
        Plan::Refuse(refusal) => Err(Failure::because(refusal.reason, refusal.message)),
        Plan::Update { version, direction } => {
            outcome.to = Some(version.to_string());
            let what = match direction {
                Direction::Up => format!("{version} is available"),
                Direction::Down => format!("{version} is what the API asks for: stepping down is possible"),
                Direction::Again => format!("{version} would be installed again"),
            };
            let message = match refusal.filter(|refusal| refusal.reason().exit() == Exit::NotSelfUpdatable) {
                Some(refusal) => format!("{what}, but the agent does not update itself here: {refusal}"),
                None if direction == Direction::Up => format!("{what}: `sudo bamf-agent update` installs it"),
                None => what,
            };
            Ok((Ending::Available, Exit::Available, message))
        }
    }
}

fn store(state: &StateDir, transaction: Transaction) -> Result<(), Failure> {
    Journal::change(&state.journal(), |journal| journal.transaction = Some(transaction)).map(drop).map_err(disk_failed)
}

/// The version of the installed binary; the Go agent's carries none.
///
/// # Errors
/// The installed path leads nowhere, or is not safe.
pub async fn installed_version(site: &Site, build: &Build) -> Result<Option<Version>, Failure> {
    Ok(site::version_of(&site.paths()?.installed, build).await)
}
