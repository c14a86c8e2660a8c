//! Real agents in several versions, and broken ones, built on demand.
//!
//! Cargo decides what is fresh; nothing here compares sources. Two of its features make asking it cheap and safe while
//! tests run:
//!
//! - Arguments after `cargo rustc … --` are part of a unit's identity. A `--cfg` that names the version, though no source
//!   looks at it, gives every version an artifact of its own; with the environment variable alone, each version would
//!   throw the one before away. The dependencies and the library are built once for all of them.
//! - `build.build-dir` is apart from `--target-dir`: the work is shared with the ordinary build, and the result does not
//!   replace the `target/…/bamf-agent` that other tests run.
//!
//! Cargo locks its build directory, so processes that ask at the same time build once. The binary that a caller gets has a
//! path of its own which changes by rename only, so it can be copied while another process asks again.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Chooses Cargo's profile for everything built here: `dev` (the default), `lab`, `release`.
pub const PROFILE_VARIABLE: &str = "BAMF_LAB_PROFILE";

/// How a defective agent fails. All of them answer `--version` as their version, and `selftest` with success unless said
/// otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Defect {
    /// `run` exits with 1 at once.
    ExitsAtOnce,
    /// `run` stays, but never says that it is ready.
    NeverReady,
    /// `run` says that it is ready and keeps the watchdog content, but has no control socket.
    NoControlSocket,
    /// `run` says that it is ready and exits with 1.
    CrashesWhenReady,
    /// `selftest` exits with 78.
    FailsSelftest,
}

impl Defect {
    /// Every defect.
    pub const ALL: [Self; 5] =
        [Self::ExitsAtOnce, Self::NeverReady, Self::NoControlSocket, Self::CrashesWhenReady, Self::FailsSelftest];

    /// Its name in `BAMF_DEFECT`, which is read when the defective agent is built.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ExitsAtOnce => "exits-at-once",
            Self::NeverReady => "never-ready",
            Self::NoControlSocket => "no-control-socket",
            Self::CrashesWhenReady => "crashes-when-ready",
            Self::FailsSelftest => "fails-selftest",
        }
    }

    /// The defect of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|defect| defect.name() == name)
    }
}

/// The agent of this version (`v1.2.0` or `1.2.0`): `target/lab/<profile>/<version>/bamf-agent`.
///
/// # Panics
/// It cannot be built; a test has nothing else to do then. [`build`] answers an error instead.
#[must_use]
pub fn agent_binary(version: &str) -> PathBuf {
    build(version, None).unwrap_or_else(|error| panic!("{error}"))
}

/// An agent of this version that fails as `defect` says: `target/lab/<profile>/<version>-<defect>/bamf-agent`.
///
/// # Panics
/// As [`agent_binary`].
#[must_use]
pub fn defective_binary(version: &str, defect: Defect) -> PathBuf {
    build(version, Some(defect)).unwrap_or_else(|error| panic!("{error}"))
}

/// Builds an agent, a real one without a `defect`. Cargo is asked once per process and binary.
///
/// # Errors
/// `version` is none, or Cargo fails; its messages went to standard error.
pub fn build(version: &str, defect: Option<Defect>) -> io::Result<PathBuf> {
    static BUILT: Mutex<BTreeMap<(String, Option<Defect>), PathBuf>> = Mutex::new(BTreeMap::new());
    let version = version.strip_prefix('v').unwrap_or(version);
    semver::Version::parse(version)
        .map_err(|error| io::Error::other(format!("{version:?} is not a version to build: {error}")))?;
    // Held while building: a second thread that asks for the same wants the result, not a second Cargo.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (version.to_owned(), defect);
    if let Some(path) = built.get(&key) {
        return Ok(path.clone());
    }
    let path = Plan::new(version, defect).carry_out()?;
    built.insert(key, path.clone());
    Ok(path)
}

/// What Cargo is asked for, and where the result goes.
struct Plan<'a> {
    version: &'a str,
    defect: Option<Defect>,
    profile: String,
    workspace: &'a Path,
    /// Cargo's `target`.
    target: PathBuf,
    /// Of this binary alone.
    own: PathBuf,
}

impl<'a> Plan<'a> {
    fn new(version: &'a str, defect: Option<Defect>) -> Self {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the lab lies in the workspace");
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| OsString::from("target"));
        // A relative one is relative to where Cargo runs; an absolute one replaces the workspace here.
        let target = workspace.join(target);
        let profile = std::env::var(PROFILE_VARIABLE).unwrap_or_else(|_| "dev".to_owned());
        let suffix = defect.map(|defect| format!("-{}", defect.name())).unwrap_or_default();
        let own = target.join("lab").join(&profile).join(format!("{version}{suffix}"));
        Self { version, defect, profile, workspace, target, own }
    }

    fn carry_out(&self) -> io::Result<PathBuf> {
        let status = self.cargo().status()?;
        if !status.success() {
            let what = self.defect.map_or("the agent", |_| "the defective agent");
            return Err(io::Error::other(format!("cargo cannot build {what} {}: {status}", self.version)));
        }
        // Cargo's directory names of the two profiles that are not called as their directory.
        let directory = match self.profile.as_str() {
            "dev" | "test" => "debug",
            "bench" => "release",
            other => other,
        };
        let made = self.own.join(directory).join(self.binary());
        let path = self.own.join("bamf-agent");
        link(&made, &path).map_err(|error| {
            io::Error::new(error.kind(), format!("{} cannot become {}: {error}", made.display(), path.display()))
        })?;
        Ok(path)
    }

    const fn binary(&self) -> &'static str {
        if self.defect.is_some() { "defective-agent" } else { "bamf-agent" }
    }

    fn cargo(&self) -> Command {
        let package = if self.defect.is_some() { "bamf-lab" } else { "bamf-agent" };
        // Cargo names itself to what it runs, which keeps the toolchain; without it the workspace's file chooses.
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
        cargo
            .current_dir(self.workspace)
            .args(["rustc", "--quiet", "--package", package, "--bin", self.binary(), "--profile", &self.profile])
            .arg("--target-dir")
            .arg(&self.own)
            .env("BAMF_VERSION", self.version)
            .args(["--", "--cfg", &format!("bamf_lab_version=\"{}\"", self.version)]);
        if std::env::var_os("CARGO_BUILD_BUILD_DIR").is_none() {
            cargo.env("CARGO_BUILD_BUILD_DIR", &self.target);
        }
        match self.defect {
            Some(defect) => cargo
                .env("BAMF_DEFECT", defect.name())
                .args(["--cfg", &format!("bamf_lab_defect=\"{}\"", defect.name())]),
            None => cargo.env_remove("BAMF_DEFECT"),
        };
        cargo
    }
}

/// Makes `path` the same file as `made`, by rename unless it is already.
fn link(made: &Path, path: &Path) -> io::Result<()> {
    let wanted = fs::metadata(made)?;
    if fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (wanted.dev(), wanted.ino())) {
        return Ok(());
    }
    let temporary = path.with_extension(std::process::id().to_string());
    // Left over if its process was killed, or if another made the same link first: rename(2) then does nothing.
    drop(fs::remove_file(&temporary));
    fs::hard_link(made, &temporary)?;
    fs::rename(&temporary, path)?;
    drop(fs::remove_file(&temporary));
    Ok(())
}

#[cfg(test)]
mod tests;
