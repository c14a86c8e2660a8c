//! The real agent as a process on this host: a home of its own, a configuration, and a hand on its life.
//!
//! For everything that needs no service manager. The environment is empty but for what a test sets, so that nothing of
//! the machine leaks in; the log is kept and shown when an expectation fails. Whatever an agent prints in a test is
//! searched for secrets when it ends: no test has to remember to.

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::plane::{ControlPlane, IssuedIdentity};

/// How long a test waits for something that should happen at once: a machine that is busy with other tests is slow, and
/// only a failure waits this long.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The name that [`Home::joining`] joins under.
pub const NAME: &str = "edge-1";

/// Directories of one agent; removed when dropped.
#[derive(Debug)]
pub struct Home {
    binary: PathBuf,
    directory: TempDir,
    environment: Vec<(String, String)>,
    launcher: Vec<String>,
}

impl Home {
    /// An empty home for `binary`. Nothing is configured yet.
    ///
    /// # Panics
    /// No temporary directory can be made.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        Self { binary: binary.into(), directory, environment: Vec::new(), launcher: Vec::new() }
    }

    /// A home configured for `plane`, with `extra` YAML lines. It trusts the plane and tries again soon.
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
        home.set("BAMF_HEARTBEAT_INTERVAL", "1s");
        home.configure(&format!("platform_url: {}\n{extra}", plane.url()));
        home
    }

    /// A home that will join `plane` as [`NAME`], with a token for one join.
    #[must_use]
    pub fn joining(binary: impl Into<PathBuf>, plane: &ControlPlane) -> Self {
        Self::of(binary, plane, &format!("agent_name: {NAME}\njoin_token: {}\n", plane.issue_token(1)))
    }

    /// A home of [`NAME`], which joined `plane` long ago and has a fresh certificate.
    #[must_use]
    pub fn settled(binary: impl Into<PathBuf>, plane: &ControlPlane) -> Self {
        Self::joined(binary, plane, &identity(plane, NAME))
    }

    /// A home with the stored identity of an agent that `plane` enters for it; no token.
    #[must_use]
    pub fn joined(binary: impl Into<PathBuf>, plane: &ControlPlane, identity: &IssuedIdentity) -> Self {
        let home = Self::of(binary, plane, "");
        plane.register(identity);
        home.store(identity);
        home
    }

    /// Lays an identity down as the Go agent does.
    ///
    /// # Panics
    /// The files cannot be written.
    pub fn store(&self, identity: &IssuedIdentity) {
        std::fs::create_dir_all(self.data_dir()).expect("the home is writable");
        let files = [
            ("agent.crt", &identity.certificate_pem),
            ("agent.key", &identity.private_key_pem),
            ("ca.crt", &identity.ca_pem),
        ];
        for (name, text) in files {
            std::fs::write(self.data_dir().join(name), text).expect("the home is writable");
        }
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

    /// Lets `launcher` start every process of this home: a program and its arguments, to which the agent's are added.
    pub fn launch_by(&mut self, launcher: &[&str]) {
        self.launcher = launcher.iter().map(|&word| word.to_owned()).collect();
    }

    /// A command line of the agent in this home.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut words = self.launcher.iter().map(std::ffi::OsStr::new).chain([self.binary.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command
            .args(words)
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
    /// The binary cannot be started, or prints a secret.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Finished {
        self.finish(self.command(arguments).output().expect("the agent's binary can be started"))
    }

    /// Runs a command to its end with a text on its standard input.
    ///
    /// # Panics
    /// The binary cannot be started, or prints a secret.
    #[must_use]
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Finished {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the agent's binary can be started");
        // A command that does not read its input has closed it; that is its own affair.
        drop(child.stdin.take().expect("standard input is piped").write_all(input.as_bytes()));
        self.finish(child.wait_with_output().expect("a child can be waited for"))
    }

    fn finish(&self, output: Output) -> Finished {
        let finished = Finished::from(output);
        keeps_secrets(&format!("{}\n{}", finished.stdout, finished.stderr), &self.data_dir());
        finished
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

    /// What `status` names as the present problem; empty for none.
    #[must_use]
    pub fn problem(&self) -> String {
        self.status()["api"]["last_error"].as_str().unwrap_or_default().to_owned()
    }

    /// Fingerprint of the certificate in use.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.status()["certificate"]["sha256"].as_str().unwrap_or_default().to_owned()
    }

    /// The files of the data directory, by path within it.
    #[must_use]
    pub fn files(&self) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
        files_below(&self.data_dir(), &self.data_dir())
    }

    /// Starts the service.
    ///
    /// # Panics
    /// The binary cannot be started.
    #[must_use]
    pub fn start(&self) -> Agent {
        self.start_with(&["run"])
    }

    /// Starts the service with these arguments.
    ///
    /// # Panics
    /// The binary cannot be started.
    #[must_use]
    pub fn start_with(&self, arguments: &[&str]) -> Agent {
        let mut child = self
            .command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the agent's binary can be started");
        let stderr = child.stderr.take().expect("standard error is piped");
        Agent { child, log: Log::of(stderr), data_dir: self.data_dir() }
    }

    /// Starts the service and waits until `plane` has seen it connect.
    ///
    /// # Panics
    /// It does not connect.
    #[must_use]
    pub fn connect(&self, plane: &ControlPlane) -> Agent {
        let opened = plane.stream_opens();
        let beats = plane.heartbeats().len();
        let agent = self.start();
        let connected = plane.wait_for(LIMIT, |seen| seen.heartbeats.total() > beats && seen.stream_opens > opened);
        assert!(connected, "not connected:\n{}", agent.log());
        agent.expect("the platform accepts the agent's heartbeat");
        agent.expect("the event stream is open");
        agent
    }
}

fn files_below(directory: &Path, root: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut files = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(files_below(&path, root));
        } else if path.is_file()
            && let (Ok(name), Ok(content)) = (path.strip_prefix(root), std::fs::read(&path))
        {
            files.insert(name.to_owned(), content);
        }
    }
    files
}

/// Fails if `text` holds a join token, or a line of any certificate or key in `data_dir`, plain or as the header carries it.
fn keeps_secrets(text: &str, data_dir: &Path) {
    let is_token = |rest: &str| rest.len() >= 32 && rest.bytes().take(32).all(|byte| byte.is_ascii_hexdigit());
    assert!(!text.split("bamf_").skip(1).any(is_token), "a join token was printed:\n{text}");
    // "-----BEGIN" as it is and in base64.
    for start in ["-----BEGIN", "LS0tLS1CRUdJTi"] {
        assert!(!text.contains(start), "PEM was printed:\n{text}");
    }
    for (name, content) in files_below(data_dir, data_dir) {
        let is_public = name.file_name().is_some_and(|name| name == "ca.crt");
        let content = String::from_utf8_lossy(&content).into_owned();
        for line in content.lines().filter(|line| line.len() >= 40 && !is_public && !line.contains(['{', ' '])) {
            assert!(!text.contains(line), "a line of {} was printed:\n{text}", name.display());
        }
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

impl Finished {
    /// Checks the code, and that standard error has each of `words`.
    ///
    /// # Panics
    /// It is another code, or a word is missing.
    #[track_caller]
    pub fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing in\n{}", self.stderr);
        }
    }
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

/// What a process writes, read as it comes.
#[derive(Clone, Debug, Default)]
struct Log(Arc<(Mutex<Written>, Condvar)>);

#[derive(Debug, Default)]
struct Written {
    text: String,
    ended: bool,
}

impl Log {
    fn of(mut from: impl Read + Send + 'static) -> Self {
        let log = Self::default();
        let sink = log.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                sink.lock().text.push_str(&String::from_utf8_lossy(&buffer[..count]));
                sink.0.1.notify_all();
            }
            sink.lock().ended = true;
            sink.0.1.notify_all();
        });
        log
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, limit: Duration, condition: impl Fn(&Written) -> bool) -> bool {
        let waited = self.0.1.wait_timeout_while(self.lock(), limit, |written| !condition(written) && !written.ended);
        condition(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }
}

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: Log,
    data_dir: PathBuf,
}

impl Agent {
    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory that it occupies, in bytes (`VmRSS`).
    ///
    /// # Panics
    /// It has ended.
    #[must_use]
    pub fn resident(&self) -> usize {
        self.process_status("VmRSS:") * 1024
    }

    /// How many threads it has.
    ///
    /// # Panics
    /// It has ended.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.process_status("Threads:")
    }

    /// How many descriptors it has open.
    ///
    /// # Panics
    /// It has ended.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the agent runs").count()
    }

    fn process_status(&self, name: &str) -> usize {
        let text = read(Path::new(&format!("/proc/{}/status", self.pid())));
        let value = text.lines().find_map(|line| line.strip_prefix(name)).expect("a running process has it");
        value.trim().trim_end_matches(" kB").parse().expect("it is a number")
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().text.clone()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("process ids fit");
        // A process that has ended already is waited for all the same.
        let _ = kill(Pid::from_raw(pid), signal);
    }

    /// Waits for the end; kills it after `limit`, and the code is then that of SIGKILL.
    #[must_use]
    pub fn wait(mut self, limit: Duration) -> Finished {
        if !self.log.wait(limit, |written| written.ended) {
            drop(self.child.kill());
        }
        let code = self.child.wait().map_or(-1, code);
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

    /// Waits until the log holds `text`, at most until the process ends.
    #[must_use]
    pub fn logs(&self, text: &str, limit: Duration) -> bool {
        self.log.wait(limit, |written| written.text.contains(text))
    }

    /// Waits until the log holds `text`.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn expect(&self, text: &str) {
        assert!(self.logs(text, LIMIT), "{text:?} was not logged:\n{}", self.log());
    }

    /// Where its health port listens.
    ///
    /// # Panics
    /// It does not say so.
    #[must_use]
    pub fn health_address(&self) -> SocketAddr {
        self.expect("/health, /ready and /metrics are served");
        let log = self.log();
        let (_, after) = log.split_once("\"listen\":\"").expect("the line names the address");
        after.split('"').next().and_then(|text| text.parse().ok()).expect("the address is one")
    }

    /// Asks its health port: status and body.
    ///
    /// # Panics
    /// There is no HTTP answer.
    #[must_use]
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.health_address()).expect("the health port accepts");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers with text");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("it answers with a status");
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// Waits until `/ready` answers with this status.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn expect_ready(&self, status: u16) {
        assert!(until(LIMIT, || self.get("/ready").0 == status), "/ready is never {status}:\n{}", self.log());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        self.log.wait(LIMIT, |written| written.ended);
        if !std::thread::panicking() {
            keeps_secrets(&self.log(), &self.data_dir);
        }
    }
}

/// An identity that `plane` did not hand out and would take, valid from a minute ago for a day.
///
/// # Panics
/// The name is no agent's.
#[must_use]
pub fn identity(plane: &ControlPlane, name: &str) -> IssuedIdentity {
    let from = SystemTime::now() - Duration::from_secs(60);
    plane.ca().identity(name, from, from + Duration::from_secs(86400)).expect("names of agents fit into a certificate")
}

/// Asks again and again for something that rings no bell; false when it was never so within `limit`.
#[must_use]
pub fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
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

/// Writes a file, new or in place.
///
/// # Panics
/// It cannot be written.
pub fn write(path: impl AsRef<Path>, text: impl AsRef<[u8]>) {
    let path = path.as_ref();
    std::fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
