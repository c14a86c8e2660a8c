//! The real agent as a process on this host: a home of its own, a configuration, and a hand on its life.
//!
//! For everything that needs no service manager. The environment is empty but for what a test sets, so that nothing of
//! the machine leaks in; the log is kept and shown when an expectation fails.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::plane::ControlPlane;

/// Directories of one agent; removed when dropped.
#[derive(Debug)]
pub struct Home {
    binary: PathBuf,
    directory: TempDir,
    environment: Vec<(String, String)>,
}

impl Home {
    /// An empty home for `binary`. Nothing is configured yet.
    ///
    /// # Panics
    /// No temporary directory can be made.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        Self { binary: binary.into(), directory, environment: Vec::new() }
    }

    /// A home configured for `plane`, with `extra` YAML lines.
    ///
    /// # Panics
    /// The files cannot be written.
    #[must_use]
    pub fn of(binary: impl Into<PathBuf>, plane: &ControlPlane, extra: &str) -> Self {
        let mut home = Self::new(binary);
        let roots = home.path("web-ca.pem");
        std::fs::write(&roots, plane.web_ca_pem()).expect("the home is writable");
        home.set("SSL_CERT_FILE", &roots.display().to_string());
        home.set("BAMF_RECONNECT_BASE_DELAY", "100ms");
        home.configure(&format!("platform_url: {}\n{extra}", plane.url()));
        home
    }

    /// A path in this home.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the identity lies.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    /// Where the control socket lies.
    #[must_use]
    pub fn runtime_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// Writes the configuration; data directory and a free health port are added.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn configure(&self, yaml: &str) {
        let yaml = format!("data_dir: {}\nlisten: 127.0.0.1:0\n{yaml}", self.data_dir().display());
        std::fs::write(self.path("agent.yaml"), yaml).expect("the home is writable");
    }

    /// Sets a variable for every process of this home.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(set, _)| set != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// A command line of the agent in this home.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .arg("--config")
            .arg(self.path("agent.yaml"))
            .arg("--runtime-dir")
            .arg(self.runtime_dir())
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// The binary cannot be started.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Finished {
        Finished::from(self.command(arguments).output().expect("the agent's binary can be started"))
    }

    /// The JSON of `status --json`.
    ///
    /// # Panics
    /// It fails or prints something else.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let finished = self.run(&["status", "--json"]);
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("no status ({error}): {finished:?}"))
    }

    /// Starts the service.
    ///
    /// # Panics
    /// The binary cannot be started.
    #[must_use]
    pub fn start(&self) -> Agent {
        let mut child = self
            .command(&["run"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the agent's binary can be started");
        let log = Arc::new(Mutex::new(String::new()));
        let mut stderr = child.stderr.take().expect("standard error is piped");
        let sink = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                sink.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Agent { child, log }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; 128 and the signal's number where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: code(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Agent {
    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("process ids fit");
        // A process that has ended already is waited for all the same.
        let _ = kill(Pid::from_raw(pid), signal);
    }

    /// Waits for the end; kills it after `limit`.
    #[must_use]
    pub fn wait(mut self, limit: Duration) -> Finished {
        let deadline = Instant::now() + limit;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => break None,
            }
        };
        let code = status.map_or(-1, code);
        Finished { code, stdout: String::new(), stderr: self.log() }
    }

    /// Ends it as systemd would, and waits.
    #[must_use]
    pub fn terminate(self, limit: Duration) -> Finished {
        self.signal(Signal::SIGTERM);
        self.wait(limit)
    }

    /// Kills it without notice.
    pub fn kill(self) {
        drop(self);
    }

    /// Waits until the log holds `text`.
    #[must_use]
    pub fn logs(&self, text: &str, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.log().contains(text) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads a file that should be there.
///
/// # Panics
/// It is not.
#[must_use]
pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
