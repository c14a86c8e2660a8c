//! The demo's stage without root: a unit of the caller's own service manager, files in a temporary directory, a control
//! plane and a release server on loopback. Nothing of it stays when the demo ends.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::Stage;
use crate::binaries;
use crate::plane::{ControlPlane, Options};
use crate::release::{Release, ReleaseServer, SigningKey};
use crate::serve::Network;
use crate::site::Ended;

/// Not the name of a real agent's unit: one may be installed.
const UNIT: &str = "bamf-agent-demo.service";
const LIMIT: Duration = Duration::from_secs(60);

/// Says why there is no user manager to use.
pub(super) fn available() -> Result<(), String> {
    if nix::unistd::geteuid().is_root() {
        return Err("the agent refuses `--user` as root".to_owned());
    }
    let asked = Command::new("systemctl").args(["--user", "show", "--property=Version"]).output();
    match asked {
        Ok(output) if output.status.success() => runtime_dir().map(drop),
        Ok(output) => Err(format!("`systemctl --user` says: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("`systemctl` cannot be run: {error}")),
    }
}

fn runtime_dir() -> Result<PathBuf, String> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).ok_or_else(|| "XDG_RUNTIME_DIR is not set".to_owned())
}

/// An agent installed for the caller alone.
pub(super) struct HomeSite {
    plane: ControlPlane,
    releases: ReleaseServer,
    key: SigningKey,
    token: String,
    unit_file: PathBuf,
    offered: RefCell<String>,
    directory: TempDir,
}

impl HomeSite {
    pub(super) fn install(version: &str) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("the stage cannot be set up: {error}");
        // Below the caller's home, where nobody else can write: the updater insists on that.
        let home = std::env::var_os("HOME").map(PathBuf::from).ok_or("HOME is not set")?;
        let directory = tempfile::Builder::new().prefix(".bamf-agent-demo.").tempdir_in(home).map_err(failed)?;
        let plane = ControlPlane::start(Options::default()).map_err(failed)?;
        let published = directory.path().join("releases");
        std::fs::create_dir(&published).map_err(failed)?;
        let releases = ReleaseServer::start(&Network::Host, None, &published).map_err(failed)?;
        let key = SigningKey::generate();
        let token = plane.issue_token(1);
        let units = runtime_dir()?.join("systemd/user");
        std::fs::create_dir_all(&units).map_err(failed)?;
        let site =
            Self { plane, releases, key, token, unit_file: units.join(UNIT), offered: RefCell::default(), directory };
        std::fs::copy(binaries::agent_binary(version), site.path("bamf-agent")).map_err(failed)?;
        std::fs::write(site.path("web-ca.pem"), site.plane.web_ca_pem()).map_err(failed)?;
        site.configure(&format!("join_token: {}\n", site.token))?;
        std::fs::write(&site.unit_file, site.unit()).map_err(failed)?;
        site.manager(&["daemon-reload"])?;
        Ok(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn unit(&self) -> String {
        let place = |name| self.path(name).display().to_string();
        format!(
            "[Unit]\nDescription=BAMF agent (demo)\nStartLimitIntervalSec=0\n\n[Service]\nType=notify\n\
             Environment=SSL_CERT_FILE={}\nExecStart={} run --config {} --runtime-dir {}\nRestart=always\n\
             RestartSec=250ms\nRestartPreventExitStatus=78\nFileDescriptorStoreMax=4096\n",
            place("web-ca.pem"),
            place("bamf-agent"),
            place("agent.yaml"),
            place("run"),
        )
    }

    fn configure(&self, extra: &str) -> Result<(), String> {
        let yaml = format!(
            "platform_url: {}\nagent_name: edge-1\ndata_dir: {}\nlisten: 127.0.0.1:0\n{}{extra}update:\n  source: {}\n  \
             trusted_keys: [{}]\n  health_timeout: 20s\n  drain_timeout: 2s\n",
            self.plane.url(),
            self.path("data").display(),
            self.offered.borrow(),
            self.releases.source_url(),
            self.key.public_key(),
        );
        std::fs::write(self.path("agent.yaml"), yaml)
            .map_err(|error| format!("the configuration cannot be written: {error}"))
    }

    fn manager(&self, words: &[&str]) -> Result<(), String> {
        let output = Command::new("systemctl").arg("--user").args(words).output();
        let output = output.map_err(|error| format!("systemctl cannot be run: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("systemctl --user {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr)))
    }
}

impl Stage for HomeSite {
    fn plane(&self) -> &ControlPlane {
        &self.plane
    }
    fn network(&self) -> Network {
        Network::Host
    }
    fn offer(&self, lines: &str) -> Result<(), String> {
        self.offered.replace(lines.to_owned());
        self.configure(&format!("join_token: {}\n", self.token))
    }
    fn releases(&self) -> &ReleaseServer {
        &self.releases
    }
    fn key(&self) -> &SigningKey {
        &self.key
    }
    fn start(&self) -> Result<(), String> {
        self.manager(&["start", UNIT])?;
        self.connected()
    }
    fn systemctl(&self, verb: &[&str]) -> Result<(), String> {
        self.manager(&[verb, &[UNIT]].concat())
    }
    fn connected(&self) -> Result<(), String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let ended = self.agent(&["status", "--json"]);
            if ended.json["api"]["connected"] == true {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "the agent is not connected after {} s: {}{}",
                    LIMIT.as_secs(),
                    ended.stdout,
                    ended.stderr
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    fn agent(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new(self.path("bamf-agent"));
        let updater = matches!(arguments.first(), Some(&("update" | "rollback" | "history" | "status")));
        command.args(arguments).arg("--config").arg(self.path("agent.yaml")).arg("--runtime-dir").arg(self.path("run"));
        if updater {
            command.args(["--user", "--unit", UNIT]);
        }
        command.env("SSL_CERT_FILE", self.path("web-ca.pem")).env("XDG_STATE_HOME", self.path("state"));
        Ended::of(command.output())
    }
    fn publish(&self, release: &Release) -> Result<(), String> {
        release
            .write(&self.path("releases"))
            .map(drop)
            .map_err(|error| format!("the release cannot be written: {error}"))
    }
    fn forget_token(&self) -> Result<(), String> {
        self.plane.revoke_token(&self.token);
        self.configure("")
    }
    fn installed(&self) -> String {
        crate::release::builder::sha256_hex(Path::new(&self.path("bamf-agent"))).unwrap_or_default()
    }
}

impl Drop for HomeSite {
    fn drop(&mut self) {
        // The caller's manager should not keep what the demo put there.
        drop(self.manager(&["stop", UNIT]));
        drop(std::fs::remove_file(&self.unit_file));
        drop(self.manager(&["daemon-reload"]));
    }
}
