//! Runs the staged binary before it is installed: it must say its version and pass its selftest, as the service's user.
//!
//! Most bad releases end here, before the running agent is touched. The program under test is signed but unproven, so it
//! gets nothing it does not need: another user, no supplementary groups, a given environment, `/` as directory, no
//! input, a bounded output, a time limit, and its whole process group is killed when it is over.
//!
//! Changing the user needs no `unsafe`: std's `CommandExt` calls setgid(2), setgroups(2) with no groups, then setuid(2),
//! in this order, in the child. A test looks at the result from inside.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::elf::Machine;
use super::stage::Staged;
use crate::exit::Reason;

/// A selftest reads a few files; what takes this long hangs.
pub const TIME_LIMIT: Duration = Duration::from_secs(20);

const OUTPUT_LIMIT_BYTES: usize = 64 * 1024;
/// What of the output goes into a message: the end, where the reason stands.
const MESSAGE_LIMIT_CHARS: usize = 1500;
/// Another thread's fork may hold our write descriptor of the staged file until its exec: `ETXTBSY` passes by itself.
const BUSY_RETRIES: u32 = 20;
const BUSY_WAIT: Duration = Duration::from_millis(25);

/// Who the staged binary runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
}

/// What the staged binary has to show.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The service's user; `None` runs it as the caller.
    pub user: Option<User>,
    /// The whole environment of the process, e.g. `PATH` and the `BAMF_*` variables of the unit.
    pub environment: Vec<(OsString, OsString)>,
    /// The live configuration file, if the service has one.
    pub config: Option<PathBuf>,
    /// The version that was signed.
    pub version: semver::Version,
    /// The machine it must be built for.
    pub machine: Machine,
    /// Time limit of each of the two runs, normally [`TIME_LIMIT`].
    pub time_limit: Duration,
}

/// Proof: the staged binary said the right version and passed its selftest.
#[derive(Debug)]
pub struct Tried {
    staged: Staged,
    selftest_output: String,
}

impl Tried {
    /// The file that was tried.
    #[must_use]
    pub const fn staged(&self) -> &Staged {
        &self.staged
    }

    /// What the selftest printed, bounded and on one line.
    #[must_use]
    pub fn selftest_output(&self) -> &str {
        &self.selftest_output
    }

    /// Takes a staged file for tried, in tests of what comes after.
    #[cfg(test)]
    pub(super) const fn unchecked(staged: Staged) -> Self {
        Self { staged, selftest_output: String::new() }
    }
}

/// Why the staged binary is not installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel would not execute it.
    #[error(
        "the new binary cannot be executed as user {uid}; a file system mounted noexec, or a security policy, may forbid it"
    )]
    Execute {
        /// The user it was to run as.
        uid: u32,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It did not end in time.
    #[error("`{command}` of the new binary did not end within {} s and was killed; it said: {output}", limit.as_secs())]
    TooSlow {
        /// Which run.
        command: &'static str,
        /// The limit.
        limit: Duration,
        /// The end of what it printed.
        output: String,
    },
    /// `--version` failed or said something that no agent says.
    #[error("the new binary does not say its version: {ended}, output: {output}")]
    NoVersion {
        /// How it ended.
        ended: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// The file is of another version than the one it was signed as.
    #[error("the release is signed as {expected}, but its binary says {found}; tell whoever publishes the releases")]
    Version {
        /// What was signed.
        expected: semver::Version,
        /// What the binary says.
        found: String,
    },
    /// The file is for another platform.
    #[error("the new binary is for {found}, this machine is {}", expected.platform())]
    Platform {
        /// This machine.
        expected: Machine,
        /// What the binary says.
        found: String,
    },
    /// It does not like the live configuration or identity.
    #[error(
        "the new binary's selftest with the live configuration failed ({ended}); nothing was changed. It said: {output}"
    )]
    Selftest {
        /// How it ended.
        ended: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
}

impl Error {
    /// The stable reason word (contract section 1).
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Version { .. } => Reason::WrongVersion,
            Self::Platform { .. } => Reason::WrongPlatform,
            Self::Execute { .. } | Self::TooSlow { .. } | Self::NoVersion { .. } | Self::Selftest { .. } => {
                Reason::SelftestFailed
            }
        }
    }
}

/// Runs the staged file twice, with `--version` and with `selftest`.
///
/// # Errors
/// The first thing that is wrong; the installed binary was not touched, and the staged file is to be discarded.
pub async fn try_run(staged: Staged, trial: &Trial) -> Result<Tried, Error> {
    let selftest_output = try_program(staged.path(), trial).await?;
    Ok(Tried { staged, selftest_output })
}

async fn try_program(program: &Path, trial: &Trial) -> Result<String, Error> {
    let said = run(program, "--version", vec!["--version".into()], trial).await?;
    check_version(&said, trial)?;
    let mut arguments: Vec<OsString> = vec!["selftest".into()];
    if let Some(config) = &trial.config {
        arguments.extend(["--config".into(), config.into()]);
    }
    let selftest = run(program, "selftest", arguments, trial).await?;
    if !selftest.ended.success() {
        return Err(Error::Selftest { ended: selftest.ended, output: selftest.shown() });
    }
    Ok(selftest.shown())
}

/// Version and platform of a line such as `bamf-agent 1.2.0 (linux/amd64, rustc 1.95.0, commit abc)`.
#[must_use]
pub fn parse_version_line(line: &str) -> Option<(semver::Version, String)> {
    let (version, rest) = line.strip_prefix("bamf-agent ")?.split_once(" (")?;
    let details = rest.strip_suffix(')')?;
    let platform = details.split(',').next()?.trim();
    Some((semver::Version::parse(version).ok()?, platform.to_owned()))
}

fn check_version(said: &Output, trial: &Trial) -> Result<(), Error> {
    let text = String::from_utf8_lossy(&said.stdout);
    let parsed = text.lines().next().and_then(parse_version_line).filter(|_| said.ended.success());
    let Some((version, platform)) = parsed else {
        return Err(Error::NoVersion { ended: said.ended, output: said.shown() });
    };
    if platform != trial.machine.platform() {
        return Err(Error::Platform { expected: trial.machine, found: platform });
    }
    // Build metadata has no precedence and no place in a tag: compare all of it.
    if version != trial.version {
        return Err(Error::Version { expected: trial.version.clone(), found: version.to_string() });
    }
    Ok(())
}

/// How a run ended and what it printed, both bounded.
struct Output {
    ended: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Output {
    fn shown(&self) -> String {
        shown(&self.stdout, &self.stderr)
    }
}

async fn run(program: &Path, name: &'static str, arguments: Vec<OsString>, trial: &Trial) -> Result<Output, Error> {
    let mut child = spawn(program, &arguments, trial).await?;
    let group = Group::of(&child);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let all = async {
        let ended = async {
            let ended = child.wait().await;
            // Descendants that outlive the program would hold its pipes open.
            group.kill();
            ended
        };
        let (ended, (), ()) = tokio::join!(ended, drain(out, &mut stdout), drain(err, &mut stderr));
        ended
    };
    match tokio::time::timeout(trial.time_limit, all).await {
        Ok(Ok(ended)) => Ok(Output { ended, stdout, stderr }),
        Ok(Err(source)) => Err(execute(trial, source)),
        Err(_elapsed) => {
            group.kill();
            Err(Error::TooSlow { command: name, limit: trial.time_limit, output: shown(&stdout, &stderr) })
        }
    }
}

async fn spawn(program: &Path, arguments: &[OsString], trial: &Trial) -> Result<Child, Error> {
    let mut retries = 0;
    loop {
        match command(program, arguments, trial).spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy && retries < BUSY_RETRIES => {
                retries += 1;
                tokio::time::sleep(BUSY_WAIT).await;
            }
            other => return other.map_err(|source| execute(trial, source)),
        }
    }
}

fn command(program: &Path, arguments: &[OsString], trial: &Trial) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(trial.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some(user) = trial.user {
        command.uid(user.uid).gid(user.gid);
    }
    command
}

fn execute(trial: &Trial, source: std::io::Error) -> Error {
    let uid = trial.user.map_or_else(|| nix::unistd::geteuid().as_raw(), |user| user.uid);
    Error::Execute { uid, source }
}

/// The process group of a run; it is killed once, when the run is over, however it ends.
struct Group(AtomicI32);

impl Group {
    fn of(child: &Child) -> Self {
        Self(AtomicI32::new(child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0)))
    }

    /// Once only: the number may belong to somebody else later.
    fn kill(&self) {
        let group = self.0.swap(0, Ordering::Relaxed);
        if group > 1 {
            // ESRCH: nobody is left, which is what is wanted.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads to the end and keeps the first [`OUTPUT_LIMIT_BYTES`], so that a talkative program is not blocked by its pipe.
async fn drain(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = [0; 4096];
    // A pipe that fails has nothing more to say.
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let room = OUTPUT_LIMIT_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}

/// Both outputs on one line, the end of them, without control characters: it goes to terminals and logs.
fn shown(stdout: &[u8], stderr: &[u8]) -> String {
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned()).join("\n");
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let plain: String = lines.join(" | ").chars().filter(|c| !c.is_control()).collect();
    let skip = plain.chars().count().saturating_sub(MESSAGE_LIMIT_CHARS);
    let end: String = plain.chars().skip(skip).collect();
    if end.is_empty() { "nothing".to_owned() } else { end }
}

#[cfg(test)]
mod tests;
