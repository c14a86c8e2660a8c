//! A whole site: a machine with a real systemd, a control plane and a release server in its network, and the agent
//! installed on it as an operator would have it. What the updater is tried on.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::binaries;
use crate::machine::{self, Invocation, Machine, Output};
use crate::plane::{self, ControlPlane};
use crate::release::{Release, ReleaseServer, SigningKey};

/// Where the agent is installed.
pub const BINARY: &str = "/usr/local/bin/bamf-agent";
/// Where its configuration lies.
pub const CONFIG: &str = "/etc/bamf/agent.yaml";
/// Its unit.
pub const UNIT: &str = "bamf-agent.service";
/// Generous: only a failure waits this long.
const LIMIT: Duration = Duration::from_secs(60);

/// Why a site cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine said no.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// A file or a port said no.
    #[error("the site cannot be set up")]
    Io(#[from] std::io::Error),
    /// The agent did not connect.
    #[error("the agent is not connected after {} s; its log:\n{log}", LIMIT.as_secs())]
    NotConnected {
        /// The unit's journal.
        log: String,
    },
}

/// A machine, what it talks to, and the key that its releases are signed with.
#[derive(Debug)]
pub struct Site {
    /// The machine.
    pub machine: Machine,
    /// The control plane, on the machine's loopback, over TLS.
    pub plane: ControlPlane,
    /// The release server, on the machine's loopback.
    pub releases: ReleaseServer,
    /// The key that the agent trusts.
    pub key: SigningKey,
    /// The token of the configuration, good for one join.
    pub token: String,
    /// Where the agent is, or will be, installed.
    binary: &'static str,
    /// Lines of the configuration that [`Site::offer`] asked for.
    offered: Mutex<String>,
    directory: TempDir,
}

/// How a command of the agent ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// The JSON that it printed; `null` if it printed none.
    pub json: Value,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// What a finished process left.
    #[must_use]
    pub fn of(output: std::io::Result<std::process::Output>) -> Self {
        match output {
            Ok(output) => Self::new(
                output.status.code().unwrap_or(-1),
                String::from_utf8_lossy(&output.stdout).into_owned(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ),
            Err(error) => Self::new(-1, String::new(), error.to_string()),
        }
    }

    /// Runs a command in a machine to its end.
    ///
    /// # Panics
    /// The command cannot be run at all.
    #[must_use]
    pub fn after(command: Invocation) -> Self {
        Self::from(command.run().unwrap_or_else(|error| panic!("{error}")))
    }

    fn new(code: i32, stdout: String, stderr: String) -> Self {
        let json = stdout.lines().last().and_then(|line| serde_json::from_str(line).ok());
        Self { code, json: json.unwrap_or_default(), stdout, stderr }
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self::new(output.code().unwrap_or(-1), output.stdout, output.stderr)
    }
}

/// What a refused update must leave as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// SHA-256 of the installed binary.
    pub installed: String,
    /// The updater's files beside it.
    pub beside: Vec<String>,
    /// What the running agent says that it is.
    pub version: Value,
    /// The running agent's process.
    pub pid: Value,
    /// Whether it is connected.
    pub connected: Value,
    /// How many event streams it has opened in all.
    pub streams_opened: usize,
}

impl Site {
    /// Boots a machine and installs the agent in `version`; nothing is started yet.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn install(version: &str) -> Result<Self, Error> {
        Self::install_binary(&binaries::agent_binary(version))
    }

    /// A site whose agent runs in 1.0.0 and is connected, with the API at `api`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn running(api: &str) -> Result<Self, Error> {
        let site = Self::install("1.0.0")?;
        // Tests ask for the API's version more often in a minute than any operator.
        site.plane.set_rate_limits(plane::RateLimits { anonymous: u32::MAX, identified: u32::MAX });
        site.plane.set_version(Some(api));
        site.start()?;
        Ok(site)
    }

    /// The same with a binary of the caller's.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn install_binary(binary: &std::path::Path) -> Result<Self, Error> {
        let site = Self::set_up(false, BINARY)?;
        site.machine.copy_in(binary, BINARY, 0o755)?;
        site.machine.write("/usr/lib/sysusers.d/bamf-agent.conf", SYSUSERS, 0o644, "root")?;
        site.machine.write(format!("/etc/systemd/system/{UNIT}"), SERVICE, 0o644, "root")?;
        site.machine.check(["systemd-sysusers"])?;
        site.configure("")?;
        site.machine.check(["systemctl", "daemon-reload"])?;
        Ok(site)
    }

    /// A machine without any agent, and a release server with TLS: what an installer finds.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn bare() -> Result<Self, Error> {
        Self::set_up(true, BINARY)
    }

    /// The same for an agent that the caller will install as `binary`, with a release server without TLS.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn bare_for(binary: &'static str) -> Result<Self, Error> {
        Self::set_up(false, binary)
    }

    fn set_up(tls: bool, binary: &'static str) -> Result<Self, Error> {
        let machine = Machine::boot(machine::Options::default())?;
        let network = machine.network();
        let plane = ControlPlane::start(plane::Options { network: network.clone(), ..plane::Options::default() })?;
        let directory = tempfile::tempdir()?;
        let releases = ReleaseServer::start(&network, tls.then(|| plane.web_tls()), directory.path())?;
        let key = SigningKey::generate();
        let token = plane.issue_token(1);
        let site = Self { machine, plane, releases, key, token, binary, offered: Mutex::default(), directory };
        site.machine.trust(site.plane.web_ca_pem())?;
        Ok(site)
    }

    /// Where a release published with [`Site::publish`] lies, a directory per tag.
    #[must_use]
    pub fn published(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Adds lines to every configuration that is written from now on, and writes one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn offer(&self, lines: &str) -> Result<(), Error> {
        lines.clone_into(&mut self.offered.lock().unwrap_or_else(PoisonError::into_inner));
        self.configure("")
    }

    /// Writes the configuration: the site's own, and `extra` lines.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn configure(&self, extra: &str) -> Result<(), Error> {
        self.write_config(&format!("join_token: {}\n{extra}", self.token))
    }

    /// The same without the join token.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn configure_without_token(&self) -> Result<(), Error> {
        self.write_config("")
    }

    fn write_config(&self, extra: &str) -> Result<(), Error> {
        let offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let yaml = format!(
            "platform_url: {}\nagent_name: edge-1\n{offered}{extra}update:\n  source: {}\n  trusted_keys: [{}]\n  health_timeout: 20s\n  drain_timeout: 2s\n",
            self.plane.url(),
            self.releases.source_url(),
            self.key.public_key(),
        );
        self.machine.check(["mkdir", "-p", "/etc/bamf"])?;
        Ok(self.machine.write(CONFIG, yaml, 0o640, "root:bamf")?)
    }

    /// Starts the service and waits until it is connected.
    ///
    /// # Errors
    /// [`Error::NotConnected`].
    pub fn start(&self) -> Result<(), Error> {
        self.machine.check(["systemctl", "start", UNIT])?;
        self.connected()
    }

    /// Waits until the running agent says that it is connected.
    ///
    /// # Errors
    /// [`Error::NotConnected`].
    pub fn connected(&self) -> Result<(), Error> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if self.agent(&["status", "--json"]).json["api"]["connected"] == true {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::NotConnected { log: self.machine.journal(UNIT)? });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Changes the text of the configuration; the running agent does not hear of it. Returns the text from before.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn edit_config(&self, edit: impl FnOnce(&str) -> String) -> Result<String, Error> {
        let before = String::from_utf8_lossy(&self.machine.read(CONFIG)?).into_owned();
        self.machine.write(CONFIG, edit(&before), 0o640, "root:bamf")?;
        Ok(before)
    }

    /// Runs the installed agent with these arguments, as root.
    ///
    /// # Panics
    /// The command cannot be run at all.
    #[must_use]
    pub fn agent(&self, arguments: &[&str]) -> Ended {
        Ended::after(self.agent_command(arguments))
    }

    /// The installed agent with these arguments, as root, to be changed before it runs.
    pub fn agent_command(&self, arguments: &[&str]) -> Invocation {
        self.machine.command([&[self.binary], arguments].concat()).limit(Duration::from_secs(180))
    }

    /// The JSON of `status --json`.
    #[must_use]
    pub fn status(&self) -> Value {
        self.agent(&["status", "--json"]).json
    }

    /// A release of `version` with the real agent and its unit in it, signed with the site's key, not yet written.
    #[must_use]
    pub fn release(&self, version: &str) -> Release {
        Release::new(&format!("v{version}"))
            .binary(architecture(), binaries::agent_binary(version))
            .asset(UNIT, SERVICE)
            .signed_by(&self.key)
    }

    /// Publishes a release on the site's server.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn publish(&self, release: &Release) -> Result<PathBuf, Error> {
        Ok(release.write(self.directory.path())?)
    }

    /// Takes all published releases back.
    ///
    /// # Errors
    /// The files cannot be removed.
    pub fn withdraw_all(&self) -> Result<(), Error> {
        for entry in self.directory.path().read_dir()? {
            std::fs::remove_dir_all(entry?.path())?;
        }
        Ok(())
    }

    /// What a refused update must leave as it was.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let status = self.status();
        let mut beside: Vec<String> = std::fs::read_dir(self.machine.path(self.binary).with_file_name(""))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(".bamf-agent"))
            .collect();
        beside.sort();
        Standing {
            installed: self.installed(),
            beside,
            version: status["version"].clone(),
            pid: status["pid"].clone(),
            connected: status["api"]["connected"].clone(),
            streams_opened: self.plane.stream_opens(),
        }
    }

    /// SHA-256 of the installed binary.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn installed(&self) -> String {
        crate::release::builder::sha256_hex(&self.machine.path(self.binary)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The agent's certificate, by fingerprint, as it says itself.
    ///
    /// # Panics
    /// It has none.
    #[must_use]
    pub fn certificate(&self) -> String {
        let status = self.status();
        status["certificate"]["sha256"].as_str().unwrap_or_else(|| panic!("no certificate in {status}")).to_owned()
    }
}

/// The architecture of this machine, as release assets name it.
#[must_use]
pub fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// The project's own unit.
const SERVICE: &str = include_str!("../../systemd/bamf-agent.service");
/// The project's own user.
const SYSUSERS: &str = include_str!("../../systemd/bamf-agent.sysusers");
