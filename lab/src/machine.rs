//! Machines: real systemd as PID 1, in namespaces of this host, from nothing to `running` in about a second.
//!
//! What the agent promises (descriptor store, watchdog, restart jobs, sandboxed units, atomic swaps on a disk) can only be
//! believed after it was seen under a real service manager. A virtual machine would need an image and minutes; a machine
//! here is the host's own root file system under an overlay, with its own processes, network, clock origin, boot id and
//! machine id. Everything that it writes disappears with it, and it disappears with the process that booted it, however
//! that ends.
//!
//! ```text
//!   test ── pipe ── keeper.sh ──── supervisor ──── systemd (PID 1) ──── units
//!                   owns network   unshare(1)      overlay, cgroup, /dev, /proc
//! ```
//!
//! What is not separate: the kernel. The page cache survives [`Machine::power_cut`], so it kills processes but loses no
//! unsynced write; the wall clock is the host's and cannot be set from inside; on hosts with hybrid cgroups there is no
//! memory controller; units with `ProtectProc=` or `ProcSubset=` mount a new /proc, which shows the host's boot id.
//!
//! Root is needed: see [`Machine::available`] and [`or_skip`].

mod command;
mod files;
mod keeper;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::serve::Network;

pub use command::{Invocation, Output, Running};
use keeper::Keeper;

/// Units that D-Bus, sockets or other units would start although nothing wants them: no seats, clocks or networks here.
const MASKED: &[&str] = &[
    "systemd-logind.service",
    "systemd-timesyncd.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-resolved.service",
    "systemd-udevd.service",
    "systemd-journald-audit.socket",
    "systemd-remount-fs.service",
    "systemd-sysctl.service",
    "tmp.mount",
];

/// A stop of all services; systemd gives each 90 s by default.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(120);

/// What kind of machine to boot.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its host name; several machines may have the same.
    pub hostname: String,
    /// Further units of the host's image that must not run.
    pub mask: Vec<String>,
    /// How long systemd may take until all is started.
    pub boot_limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { hostname: "machine".to_owned(), mask: Vec::new(), boot_limit: Duration::from_secs(60) }
    }
}

/// How a machine goes down before it comes up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// Services are stopped in order, as `systemctl reboot` does.
    Clean,
    /// Every process dies at once.
    PowerCut,
}

/// A running machine. Dropping it stops it and removes its disk.
#[derive(Debug)]
pub struct Machine {
    keeper: Keeper,
    boot_limit: Duration,
}

/// What went wrong with a machine.
///
/// Its `Debug` form is its message: tests `unwrap` these, and a command's output should be legible there.
#[derive(thiserror::Error)]
pub enum Error {
    /// This host cannot run machines.
    #[error("cannot boot a machine here: {0}")]
    Unavailable(String),
    /// A file or process on the host's side.
    #[error("cannot {what}")]
    Host {
        /// What was tried, with its subject.
        what: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Systemd did not come up (or go down) in time.
    #[error("the machine did not {what} within {limit:?}; its console says:\n{console}")]
    NoProgress {
        /// `boot`, `stop`.
        what: &'static str,
        /// How long it had.
        limit: Duration,
        /// What init and systemd printed.
        console: String,
    },
    /// A command inside took too long and was killed.
    #[error("`{command}` did not end within {limit:?} and was killed\nstdout: {}\nstderr: {}", output.stdout, output.stderr)]
    TooSlow {
        /// The command line.
        command: String,
        /// Its time limit.
        limit: Duration,
        /// What it had printed so far.
        output: Box<Output>,
    },
    /// A command inside ended with another status than 0.
    #[error("`{command}` failed with {}\nstdout: {}\nstderr: {}", output.status, output.stdout, output.stderr)]
    Failed {
        /// The command line.
        command: String,
        /// Status and output.
        output: Box<Output>,
    },
    /// Something expected did not happen.
    #[error("waited {limit:?} in vain for {what}")]
    InVain {
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
    },
}

impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")?;
        std::error::Error::source(self).map_or(Ok(()), |source| write!(f, ": {source}"))
    }
}

/// Wraps an I/O error with what was tried.
pub(crate) fn host(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::Host { what, source }
}

/// Whether the test `name` must be skipped because machines cannot run here; says so on standard error if it must.
///
/// A test that is skipped in silence looks like one that passed, so the line always has the same form:
/// `skipped: <name>: <reason>`.
#[must_use]
pub fn or_skip(name: &str) -> bool {
    Machine::available().inspect_err(|reason| report_skipped(name, reason)).is_err()
}

/// Says that the test `name` is skipped and why: on standard error past the test runner's capture, and as a line of the
/// file that `BAMF_SKIPPED` names, from which `scripts/test` lists them at its end.
pub fn report_skipped(name: &str, reason: &str) {
    let line = format!("skipped: {name}: {reason}\n");
    // Neither is worth failing a test for.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(list) = std::env::var_os("BAMF_SKIPPED") {
        let _ = std::fs::File::options()
            .create(true)
            .append(true)
            .open(list)
            .and_then(|mut f| f.write_all(line.as_bytes()));
    }
}

impl Machine {
    /// Whether machines can run here, found out once per process by trying everything but systemd itself.
    ///
    /// # Errors
    /// The sentence why not: not root, a missing tool, a kernel or container that refuses namespaces or the overlay.
    pub fn available() -> Result<(), String> {
        static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
        ANSWER.get_or_init(keeper::probe).clone()
    }

    /// Boots a machine and waits until systemd has started everything (`running`, or `degraded` if some unit failed).
    ///
    /// # Errors
    /// Machines are not available here, or systemd does not get there within `options.boot_limit`.
    pub fn boot(options: Options) -> Result<Self, Error> {
        Self::available().map_err(Error::Unavailable)?;
        let masks = MASKED.iter().copied().chain(options.mask.iter().map(String::as_str));
        let keeper = Keeper::start(&options.hostname, masks)?;
        let mut machine = Self { keeper, boot_limit: options.boot_limit };
        machine.start()?;
        Ok(machine)
    }

    fn start(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + self.boot_limit;
        self.keeper.boot(self.boot_limit)?;
        loop {
            // Until PID 1 listens this fails at once; from then on it waits by itself.
            let left = deadline.saturating_duration_since(Instant::now());
            let state = self.command(["systemctl", "is-system-running", "--wait"]).limit(left).run();
            if state.is_ok_and(|output| matches!(output.stdout.trim(), "running" | "degraded")) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.keeper.no_progress("boot", self.boot_limit));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Takes the machine down and boots it again: same disk, same network, new boot id, clocks near zero.
    ///
    /// `systemctl reboot` inside would only end the machine: what boots it again is this.
    ///
    /// # Errors
    /// A clean stop takes more than two minutes (it was then cut off), or the machine does not boot.
    pub fn reboot(&mut self, down: Down) -> Result<(), Error> {
        match down {
            Down::Clean => self.power_off()?,
            Down::PowerCut => self.power_cut()?,
        }
        self.start()
    }

    /// Stops all services in order and leaves the machine off, its disk still there; [`Machine::power_on`] goes on.
    ///
    /// # Errors
    /// It takes more than two minutes; the machine is then still on its way down.
    pub fn power_off(&mut self) -> Result<(), Error> {
        // SIGRTMIN+4 is systemd's `poweroff`; unlike systemctl it does not lose its connection half way.
        self.check(["sh", "-c", "kill -s RTMIN+4 1"])?;
        self.keeper.wait_for_the_end(SHUTDOWN_LIMIT)
    }

    /// Kills every process of the machine at once and leaves it off, its disk as it is; [`Machine::power_on`] goes on.
    ///
    /// # Errors
    /// The processes do not die, which is a fault of the kernel.
    pub fn power_cut(&mut self) -> Result<(), Error> {
        self.keeper.stop()
    }

    /// Boots a machine that was powered off or cut.
    ///
    /// # Errors
    /// See [`Machine::boot`].
    pub fn power_on(&mut self) -> Result<(), Error> {
        self.start()
    }

    /// The machine's network, for servers that it should reach on its 127.0.0.1. They outlive its reboots.
    #[must_use]
    pub fn network(&self) -> Network {
        Network::Namespace(self.keeper.network_namespace())
    }

    /// A command inside, to be given a user, environment, input or time limit before it runs.
    pub fn command<I, S>(&self, words: I) -> Invocation
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        Invocation::new(self.keeper.entrance(), words)
    }

    /// Runs a command as root, for at most a minute. A status other than 0 is not an error.
    ///
    /// # Errors
    /// It does not end in time, or cannot be started.
    pub fn exec<I, S>(&self, words: I) -> Result<Output, Error>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        self.command(words).run()
    }

    /// Like [`Machine::exec`], as another user of the machine.
    ///
    /// # Errors
    /// See [`Machine::exec`]; or the machine's /etc/passwd has no such user.
    pub fn exec_as<I, S>(&self, user: &str, words: I) -> Result<Output, Error>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        self.command(words).user(user).run()
    }

    /// Like [`Machine::exec`], with environment variables. Nothing is inherited from the lab's own environment.
    ///
    /// # Errors
    /// See [`Machine::exec`].
    pub fn exec_with_env<I, S>(&self, environment: &[(&str, &str)], words: I) -> Result<Output, Error>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        environment.iter().fold(self.command(words), |command, (name, value)| command.env(name, value)).run()
    }

    /// Runs a command as root and returns its standard output.
    ///
    /// # Errors
    /// As [`Machine::exec`], and [`Error::Failed`] with all output if the status is not 0.
    pub fn check<I, S>(&self, words: I) -> Result<String, Error>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        self.command(words).check()
    }

    /// Starts a command as root and leaves it running; it is killed when the handle is dropped.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn<I, S>(&self, words: I) -> Result<Running, Error>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        self.command(words).spawn()
    }

    /// Asks again and again until `condition` holds.
    ///
    /// # Errors
    /// [`Error::InVain`] after `limit`.
    pub fn wait_until(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Self) -> bool,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        while !condition(self) {
            if Instant::now() >= deadline {
                return Err(Error::InVain { what: what.to_owned(), limit });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Everything that the journal has of a unit, earlier boots included.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn journal(&self, unit: &str) -> Result<String, Error> {
        self.check(["journalctl", "--sync"])?;
        self.check(["journalctl", "--no-pager", "--output=short-precise", "--unit", unit])
    }

    /// The number, inside the machine, of a service's main process; none if it does not run.
    ///
    /// # Errors
    /// systemd does not answer.
    pub fn main_pid(&self, unit: &str) -> Result<Option<u32>, Error> {
        let answer = self.property(unit, "MainPID")?;
        Ok(answer.parse().ok().filter(|pid| *pid != 0))
    }

    /// One property of a unit as `systemctl show` prints it, e.g. `ActiveState` or `NRestarts`.
    ///
    /// # Errors
    /// systemd does not answer.
    pub fn property(&self, unit: &str, name: &str) -> Result<String, Error> {
        Ok(self.check(["systemctl", "show", "--value", "--property", name, unit])?.trim().to_owned())
    }

    /// Sends a signal to a service's main process, and to no other process of it.
    ///
    /// # Errors
    /// The service does not run.
    pub fn kill(&self, unit: &str, signal: Signal) -> Result<(), Error> {
        let signal = signal.as_str().trim_start_matches("SIG");
        // 252 renamed --kill-who to --kill-whom and understands both.
        self.check(["systemctl", "kill", "--kill-who=main", "--signal", signal, unit]).map(drop)
    }

    /// Mounts an empty tmpfs of `size` bytes over a directory: the cheapest disk that can be filled.
    ///
    /// # Errors
    /// The mount fails.
    pub fn mount_small_tmpfs(&self, path: impl AsRef<Path>, size: u64) -> Result<(), Error> {
        let path = path.as_ref();
        self.check(["mkdir".as_ref(), "-p".as_ref(), path.as_os_str()])?;
        let options = format!("size={size},mode=0755");
        self.check([
            "mount".as_ref(),
            "-t".as_ref(),
            "tmpfs".as_ref(),
            "-o".as_ref(),
            options.as_ref(),
            "tmpfs".as_ref(),
            path.as_os_str(),
        ])
        .map(drop)
    }

    /// Makes a directory and what is below it read-only, until [`Machine::unmount`].
    ///
    /// # Errors
    /// The mount fails.
    pub fn remount_read_only(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref().as_os_str();
        self.check(["mount".as_ref(), "--bind".as_ref(), path, path])?;
        self.check(["mount".as_ref(), "-o".as_ref(), "remount,bind,ro".as_ref(), path]).map(drop)
    }

    /// Takes back one mount.
    ///
    /// # Errors
    /// Nothing is mounted there, or it is busy.
    pub fn unmount(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.check(["umount".as_ref(), path.as_ref().as_os_str()]).map(drop)
    }

    /// Makes the machine trust a certificate authority, as `update-ca-certificates` would.
    ///
    /// # Errors
    /// The machine's trust store cannot be written.
    pub fn trust(&self, authority_pem: &str) -> Result<(), Error> {
        const STORE: &str = "/etc/ssl/certs/ca-certificates.crt";
        let mut bundle = self.read(STORE).unwrap_or_default();
        if !bundle.is_empty() && !bundle.ends_with(b"\n") {
            bundle.push(b'\n');
        }
        bundle.extend_from_slice(authority_pem.as_bytes());
        self.write(STORE, &bundle, 0o644, "root:root")
    }

    /// Where the lab's own process finds a path of the machine. Links are followed as inside the machine, never to the
    /// host; the last component need not exist. Valid until the machine stops.
    #[must_use]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        files::inside(&self.keeper.root(), inside.as_ref())
    }

    /// Reads a file of the machine.
    ///
    /// # Errors
    /// It does not exist or is a directory.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, Error> {
        let path = path.as_ref();
        std::fs::read(self.path(path)).map_err(host(format!("read {} in the machine", path.display())))
    }

    /// Writes a file of the machine in one step, its directories included, with `mode` and an owner (`user` or
    /// `user:group`, names of the machine).
    ///
    /// # Errors
    /// The file cannot be written, or the owner is unknown.
    pub fn write(&self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>, mode: u32, owner: &str) -> Result<(), Error> {
        files::put(self, path.as_ref(), mode, owner, |staged| std::fs::write(staged, bytes.as_ref()))
    }

    /// Copies a file of the host, e.g. a binary, into the machine in one step; it belongs to root.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn copy_in(&self, from: impl AsRef<Path>, path: impl AsRef<Path>, mode: u32) -> Result<(), Error> {
        let from = from.as_ref();
        files::put(self, path.as_ref(), mode, "root:root", |staged| std::fs::copy(from, staged).map(drop))
    }
}

/// Whether a program is found on the search path that machines use.
fn tool_exists(name: &str) -> bool {
    Command::new("sh")
        .args(["-c", "command -v \"$0\"", name])
        .env("PATH", command::PATH)
        .output()
        .is_ok_and(|o| o.status.success())
}
