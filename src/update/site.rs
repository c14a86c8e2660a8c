//! What is installed here, as which unit, and what the running service looks like from outside.
//!
//! The unit says where the binary lies, not the path of the program that happens to be the updater: after a swap
//! `current_exe()` is wrong, and an operator may run a copy. The unit also says with which configuration the service
//! lives. It is asked of the manager, which has it from files that belong to root, and never of the running process:
//! whoever takes over the service could otherwise choose the keys that root trusts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Uid, User as SystemUser};
use semver::Version;
use tokio::process::Command;

use super::outcome::Failure;
use super::state_dir;
use super::swap::Paths;
use super::trial::{User, parse_version_line};
use crate::config::Config;
use crate::control::{self, Status};
use crate::exit::Reason;
use crate::service::bus::{Manager, Services};
use crate::service::process::FileId;
use crate::service::unit::Unit;
use crate::telemetry::Build;

/// The unit's name (contract section 5).
pub const UNIT: &str = "bamf-agent.service";
/// The updater's own files (contract section 4).
pub const STATE_DIR: &str = "/var/lib/bamf-agent-updater";

/// Which installation on this machine is meant, and where its updater keeps its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Who manages the unit.
    pub manager: Manager,
    /// The unit's name.
    pub unit: String,
    /// The updater's directory.
    pub state_dir: PathBuf,
}

impl Place {
    /// A unit of PID 1. Another unit than the usual one has an updater's directory of its own.
    #[must_use]
    pub fn system(unit: &str) -> Self {
        Self { manager: Manager::System, unit: unit.to_owned(), state_dir: beside(PathBuf::from(STATE_DIR), unit) }
    }

    /// A unit of the caller's own manager; `state_home` is `$XDG_STATE_HOME` (XDG base directory specification).
    #[must_use]
    pub fn user(unit: &str, state_home: &Path) -> Self {
        let state_dir = beside(state_home.join("bamf-agent-updater"), unit);
        Self { manager: Manager::User, unit: unit.to_owned(), state_dir }
    }
}

fn beside(usual: PathBuf, unit: &str) -> PathBuf {
    if unit == UNIT {
        return usual;
    }
    let mut name = usual.into_os_string();
    name.push("-");
    name.push(unit.replace('/', "_"));
    PathBuf::from(name)
}

fn resolve(program: &Path) -> Result<Paths, Failure> {
    Paths::resolve(program).map_err(|error| Failure::new(error.reason(), &error))
}

/// A program that prints its version takes milliseconds.
const VERSION_LIMIT: Duration = Duration::from_secs(10);
/// More than any environment file holds.
const MAX_ENVIRONMENT_BYTES: u64 = 1024 * 1024;

/// One installation.
#[derive(Debug)]
pub struct Site {
    services: Services,
    /// Which one it is.
    pub place: Place,
    unit: Option<Unit>,
}

impl Site {
    /// Looks for the agent's unit.
    pub async fn find(place: Place) -> Self {
        let services = Services::connect(place.manager).await;
        let unit = match services.unit(&place.unit).await {
            Ok(unit) => Some(unit),
            Err(error) => {
                tracing::debug!(error = %crate::http::chain(&error), "no unit is installed");
                None
            }
        };
        Self { services, place, unit }
    }

    /// The service manager.
    #[must_use]
    pub const fn services(&self) -> &Services {
        &self.services
    }

    /// The unit as it was found; `None` where there is none.
    #[must_use]
    pub const fn unit(&self) -> Option<&Unit> {
        self.unit.as_ref()
    }

    /// The variables that the unit gives the service: `Environment=`, then its files, which win (systemd.exec(5)).
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let Some(unit) = &self.unit else { return Vec::new() };
        let written = unit.environment.iter().filter_map(|entry| entry.split_once('='));
        let mut pairs: Vec<_> = written.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        for path in &unit.environment_files {
            for pair in environment_file(path) {
                pairs.retain(|(name, _)| *name != pair.0);
                pairs.push(pair);
            }
        }
        pairs
    }

    /// The service's command line as the unit has it.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        self.unit.as_ref().map(|unit| unit.arguments.as_slice()).unwrap_or_default()
    }

    /// The names around the installed binary, checked to be safe from other users.
    ///
    /// # Errors
    /// The path leads nowhere, or somebody else can write on the way.
    pub fn paths(&self) -> Result<Paths, Failure> {
        let program = self.unit.as_ref().and_then(|unit| unit.program.clone());
        program.map_or_else(|| self.own_paths(), |program| resolve(&program))
    }

    /// The same around the running program, for where no unit names one.
    ///
    /// # Errors
    /// As [`Site::paths`].
    pub fn own_paths(&self) -> Result<Paths, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::because(Reason::Internal, format!("cannot tell what is installed: {error}")))?;
        resolve(&program)
    }

    /// Whether the unit is this agent's: it notifies its manager, or its program says that it is one. The Go agent does
    /// neither.
    pub async fn runs_ours(&self, build: &Build) -> bool {
        let Some(unit) = &self.unit else { return false };
        let Some(program) = &unit.program else { return false };
        unit.kind == "notify" || version_of(program, build).await.is_some()
    }

    /// The user that the service runs as; `None` for the caller.
    ///
    /// # Errors
    /// The unit names a user that does not exist.
    pub fn user(&self) -> Result<Option<User>, Failure> {
        let name = self.unit.as_ref().map(|unit| unit.user.as_str()).unwrap_or_default();
        if name.is_empty() || name == "root" || !Uid::effective().is_root() {
            return Ok(None);
        }
        match SystemUser::from_name(name) {
            Ok(Some(user)) => Ok(Some(User { uid: user.uid.as_raw(), gid: user.gid.as_raw() })),
            Ok(None) | Err(_) => Err(Failure::because(
                Reason::ConfigInvalid,
                format!("the unit {} runs as user {name}, which does not exist here", self.place.unit),
            )),
        }
    }
}

/// The version of the binary at `path`: known where it is the running program, else asked; the Go agent has none.
pub(super) async fn version_of(path: &Path, build: &Build) -> Option<Version> {
    let own = FileId::of_process(std::process::id()).ok().flatten();
    if own.is_some() && own == FileId::of(path).ok() {
        return Some(build.version.clone());
    }
    let asked = Command::new(path).arg("--version").env_clear().kill_on_drop(true).output();
    let output = tokio::time::timeout(VERSION_LIMIT, asked).await.ok()?.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    parse_version_line(text.lines().next()?).map(|(version, _)| version)
}

/// What the running agent says about itself; `None` where none answers.
pub(super) async fn ask(config: &Config) -> Option<Status> {
    match control::client::status(&config.runtime_dir).await {
        Ok(status) => Some(status),
        Err(error) => {
            tracing::debug!(error = %crate::http::chain(&error), "no status");
            None
        }
    }
}

/// The variables of one file; a missing one is no error, and one that others could write counts as missing.
fn environment_file(path: &Path) -> Vec<(String, String)> {
    use std::io::Read;
    if let Err(error) = state_dir::check_file(path) {
        if path.exists() {
            tracing::warn!(error = %crate::http::chain(&error), "an environment file is not used");
        }
        return Vec::new();
    }
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_ENVIRONMENT_BYTES).read_to_string(&mut text));
    read.map(|_| crate::service::environment::parse(&text)).unwrap_or_default()
}
