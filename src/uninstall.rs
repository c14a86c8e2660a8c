//! Takes the agent off this machine: what install.sh or an operator's hands have put there, and nothing else.
//!
//! ```text
//! look ─► plan (pure) ─► steps, each said and done
//! ```
//!
//! The order makes every cut repeatable: the service ends first and the binary goes last, so whoever was interrupted runs the
//! same command again. Configuration and identity stay unless they are asked for, and the user stays with them, because
//! another user could be given the number that owns the files.
//!
//! The binary is removed by its path, as the unit names it; a running program keeps its file open. A crate that deletes the
//! running executable would go by `current_exe()`, which is another file where an operator runs a copy.

mod look;
mod plan;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use self::plan::Step;
use crate::durable;
use crate::exit::Reason;
use crate::http;
use crate::service::bus::Services;
use crate::service::job::{self, Verb};
use crate::telemetry::Build;
use crate::update::Failure;
use crate::update::lock::{self, Lock};
use crate::update::ownership::Owner;
use crate::update::site::Site;

/// The directory that the unit makes for the identity (StateDirectory=), which nothing else uses.
pub const STATE_DIRECTORY: &str = "/var/lib/bamf-agent";

/// Longer than the unit's TimeoutStopSec=: a stop drains sessions.
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// userdel(8) takes milliseconds, or waits for a lock.
const USER_LIMIT: Duration = Duration::from_secs(30);

/// What to remove, and where it lies.
#[derive(Clone, Debug)]
pub struct Request {
    /// Configuration, identity and user too.
    pub purge: bool,
    /// The configuration file that the service lives by.
    pub config: PathBuf,
    /// Where the identity lies.
    pub data_dir: PathBuf,
    /// The process runs in Kubernetes.
    pub kubernetes: bool,
}

/// Removes what there is to remove; `tell` hears each step when it is done. Returns what was left on purpose.
///
/// # Errors
/// The first step that failed, or why nothing may be removed here. What was done before stays done, and the same call goes on.
pub async fn uninstall(
    site: &Site,
    build: &Build,
    request: &Request,
    tell: &mut dyn FnMut(&str),
) -> Result<Vec<PathBuf>, Failure> {
    let found = look::look(site, build, request).await?;
    may(&found, request)?;
    let _lock = lock(&found)?;
    let steps = plan::plan(&found, request.purge);
    for step in &steps {
        if carry_out(step, site.services()).await? {
            tell(&step.to_string());
        }
    }
    Ok(plan::left(&found, request.purge))
}

/// Whose business it is; what else owns the files says how to remove them.
fn may(found: &plan::Found, request: &Request) -> Result<(), Failure> {
    let installed = found.installed.display();
    let managed = |package: &str, command: String| {
        let message = format!("{installed} belongs to the package {package}: remove it with `{command}`");
        Err(Failure::because(Reason::PackageManaged, message))
    };
    if request.kubernetes {
        let message = "this agent runs in Kubernetes: remove the chart with `helm uninstall`";
        return Err(Failure::because(Reason::InKubernetes, message));
    }
    match &found.owner {
        Owner::Nobody => {}
        Owner::Dpkg(name) => return managed(name, format!("apt-get remove {name}")),
        Owner::Rpm(name) => return managed(name, format!("dnf remove {name}")),
        Owner::Other(name) => return managed(name, name.clone()),
        Owner::Store => {
            let message = format!("{installed} lies in a store: remove it from the configuration that put it there");
            return Err(Failure::because(Reason::PackageManaged, message));
        }
        Owner::Image => {
            let message = format!("{installed} belongs to a container image: stop and remove the container");
            return Err(Failure::because(Reason::InContainer, message));
        }
    }
    if !nix::unistd::geteuid().is_root() {
        let message = "removing the agent needs root: run the command with sudo";
        return Err(Failure::because(Reason::NotPermitted, message));
    }
    Ok(())
}

/// No update may run meanwhile. Where no updater ever ran there is nothing to lock.
fn lock(found: &plan::Found) -> Result<Option<Lock>, Failure> {
    let Some(state_dir) = &found.state_dir else { return Ok(None) };
    Lock::acquire(state_dir).map(Some).map_err(|error| match &error {
        lock::Error::Held { .. } => Failure::new(Reason::Locked, &error),
        lock::Error::Disk(_) => Failure::new(Reason::DiskError, &error),
    })
}

/// True if something was done that is worth a line.
async fn carry_out(step: &Step, services: &Services) -> Result<bool, Failure> {
    let systemd = |error: job::Error| Failure::new(Reason::Internal, &error);
    match step {
        Step::Stop(unit) => services.run(Verb::Stop, unit, STOP_LIMIT).await.map_err(systemd)?,
        Step::Disable(units) => services.disable(units).await.map_err(systemd)?,
        Step::Reload => {
            services.reload().await.map_err(systemd)?;
            return Ok(false);
        }
        Step::Remove(path) => durable::remove_file(path).map_err(|error| disk(&error))?,
        Step::RemoveTree(path) => durable::remove_directory(path).map_err(|error| disk(&error))?,
        // Whatever else lies there is somebody's.
        Step::RemoveIfEmpty(path) => return Ok(std::fs::remove_dir(path).is_ok()),
        Step::PutBack { kept, place } => durable::rename(kept, place).map_err(|error| disk(&error))?,
        Step::RemoveUser(name) => return Ok(remove_user(name).await),
    }
    Ok(true)
}

fn disk(error: &durable::Error) -> Failure {
    Failure::new(if error.is_not_writable() { Reason::NotWritable } else { Reason::DiskError }, error)
}

/// A user who stays is no reason to keep the rest.
async fn remove_user(name: &str) -> bool {
    for program in ["userdel", "deluser"] {
        let mut command = Command::new(program);
        command.arg(name).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(USER_LIMIT, command.output()).await {
            Ok(Ok(output)) if output.status.success() => return true,
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                tracing::warn!(%said, "the user {name} stays: {program} refused");
                return false;
            }
            Ok(Err(error)) => tracing::debug!(error = %http::chain(&error), program, "cannot be run"),
            Err(_elapsed) => tracing::warn!("the user {name} stays: {program} does not end"),
        }
    }
    false
}

/// Whether anything is there under this name, a dangling link included.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
