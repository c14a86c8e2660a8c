//! Commands inside a machine: entered with nsenter(1), with a clean environment, a time limit, and no way to hang.
//!
//! Output goes to unnamed files rather than pipes. A command that leaves a daemon behind would keep a pipe open, and
//! whoever reads it to the end would wait for the daemon.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::{Error, host};

/// The search path inside, and of the lab's own helpers.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a command may take if nothing else is said.
const LIMIT: Duration = Duration::from_secs(60);

/// Moves itself into the machine's cgroup, so that /proc/self/cgroup reads as inside, then enters.
const ENTER: &str = r#"echo 0 >"$0" && exec nsenter "$@""#;

/// The wall clock and the kernel's modules belong to the host, and root in a machine is root. init.sh takes the same
/// away from systemd and so from every service.
const WITHOUT_THE_HOST: &str = "--bounding-set=-sys_time,-sys_module";

/// How a command gets in: the process whose namespaces to enter, and the cgroup to enter first.
#[derive(Clone, Debug)]
pub(super) struct Entrance {
    /// PID 1's number outside; 0 while the machine is off, which nsenter refuses.
    pub(super) pid: i32,
    /// A cgroup of the machine that is a leaf.
    pub(super) cgroup: PathBuf,
}

/// How a command ended and what it printed.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit status; of a killed one, the signal.
    pub status: ExitStatus,
    /// Standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, invalid UTF-8 replaced.
    pub stderr: String,
}

impl Output {
    /// The exit code; none if a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Whether the status is 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.success()
    }
}

/// A command that is about to run inside a machine.
#[derive(Debug)]
#[must_use = "nothing runs before `run`, `check` or `spawn`"]
pub struct Invocation {
    entrance: Entrance,
    words: Vec<OsString>,
    user: Option<String>,
    environment: Vec<(OsString, OsString)>,
    input: Vec<u8>,
    limit: Duration,
}

impl Invocation {
    pub(super) fn new<I, S>(entrance: Entrance, words: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let words = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let environment =
            vec![("PATH".into(), PATH.into()), ("HOME".into(), "/root".into()), ("LANG".into(), "C.UTF-8".into())];
        Self { entrance, words, user: None, environment, input: Vec::new(), limit: LIMIT }
    }

    /// Runs it as this user, with the user's groups.
    pub fn user(mut self, name: &str) -> Self {
        self.user = Some(name.to_owned());
        self
    }

    /// Sets an environment variable. There are `PATH`, `HOME` and `LANG` from the start, and nothing of the lab's own.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What it reads from standard input; without this, nothing.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// How long it may take; without this, a minute.
    pub const fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end. A status other than 0 is not an error.
    ///
    /// # Errors
    /// It cannot be started, or [`Error::TooSlow`].
    pub fn run(self) -> Result<Output, Error> {
        let limit = self.limit;
        self.spawn()?.wait(limit)
    }

    /// Runs it to its end and returns its standard output.
    ///
    /// # Errors
    /// As [`Invocation::run`], and [`Error::Failed`] if the status is not 0.
    pub fn check(self) -> Result<String, Error> {
        let command = self.line();
        let output = self.run()?;
        if output.success() { Ok(output.stdout) } else { Err(Error::Failed { command, output: Box::new(output) }) }
    }

    /// Starts it and leaves it running. The time limit does not apply: [`Running::wait`] has its own.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(self) -> Result<Running, Error> {
        let line = self.line();
        self.start().map_err(host(format!("start `{line}` in the machine")))
    }

    fn line(&self) -> String {
        self.words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    fn start(self) -> io::Result<Running> {
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut stdin = tempfile::tempfile()?;
        stdin.write_all(&self.input)?;
        stdin.rewind()?;
        let mut command = Command::new("sh");
        command.args(["-c", ENTER]).arg(self.entrance.cgroup.join("cgroup.procs"));
        command.args([
            "-t",
            &self.entrance.pid.to_string(),
            "-m",
            "-p",
            "-u",
            "-i",
            "-n",
            "-C",
            "-T",
            "-r",
            "-w",
            "--",
        ]);
        command.args(["setpriv", WITHOUT_THE_HOST]);
        if let Some(user) = &self.user {
            let (uid, gid) = account(&self.entrance, user)?;
            command.args(["--reuid", &uid, "--regid", &gid, "--init-groups"]);
        }
        command.arg("--");
        let line = self.line();
        command.args(&self.words).env_clear().envs(self.environment);
        command.stdin(stdin).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?).process_group(0);
        Ok(Running { child: command.spawn()?, line, stdout, stderr })
    }
}

/// A command that runs inside a machine. Dropping it kills it and its process group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    line: String,
    stdout: File,
    stderr: File,
}

impl Running {
    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has printed so far: standard output, standard error.
    #[must_use]
    pub fn printed(&self) -> (String, String) {
        (text(&self.stdout), text(&self.stderr))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error::TooSlow`] after `limit`; it is then killed.
    pub fn wait(mut self, limit: Duration) -> Result<Output, Error> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = self.child.try_wait().map_err(host(format!("wait for `{}`", self.line)))? {
                return Ok(self.output(status));
            }
            if Instant::now() >= deadline {
                let status = self.kill().map_err(host(format!("kill `{}`", self.line)))?;
                return Err(Error::TooSlow {
                    command: self.line.clone(),
                    limit,
                    output: Box::new(self.output(status)),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Ends it with a signal to its process, not to that one's children, and returns its output.
    ///
    /// # Errors
    /// [`Error::TooSlow`] if it does not end within `limit`; it is then killed.
    pub fn end(self, signal: Signal, limit: Duration) -> Result<Output, Error> {
        // nsenter waits outside for the one child that it forked; a signal to nsenter would end only the waiting.
        let nsenter = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{nsenter}/task/{nsenter}/children")).unwrap_or_default();
        if let Some(inner) = children.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
            // Fails only if it has ended, which `wait` finds out.
            let _ = kill(Pid::from_raw(inner), signal);
        }
        self.wait(limit)
    }

    fn group(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    fn kill(&mut self) -> io::Result<ExitStatus> {
        // nsenter and the command that it forked share a process group; killing nsenter alone would leave the command.
        let _ = killpg(self.group(), Signal::SIGKILL);
        self.child.wait()
    }

    fn output(&self, status: ExitStatus) -> Output {
        let (stdout, stderr) = self.printed();
        Output { status, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            drop(self.kill());
        }
    }
}

/// User and group number of a user of the machine. runuser(1) would look them up itself, but it stays between us and
/// the command, and takes signals its own way.
fn account(entrance: &Entrance, user: &str) -> io::Result<(String, String)> {
    let path = format!("/proc/{}/root/etc/passwd", entrance.pid);
    std::fs::read_to_string(path)?
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find_map(|fields| match fields[..] {
            [name, _, uid, gid, ..] if name == user => Some((uid.to_owned(), gid.to_owned())),
            _ => None,
        })
        .ok_or_else(|| io::Error::other(format!("the machine has no user `{user}`")))
}

/// All that a file holds, read through a descriptor of its own so that the writer's offset stays.
fn text(file: &File) -> String {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    while let Ok(count @ 1..) = file.read_at(&mut chunk, bytes.len() as u64) {
        bytes.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
