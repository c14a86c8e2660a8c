//! The whole story on a fresh machine: joins once, reconnects, is updated, refuses, and undoes a bad update.
//!
//! As root on a machine of the lab with a real systemd of its own; without root as a unit of the caller's own service
//! manager. What it shows it also checks: the demo ends with an error at the first thing that is not as it should be.

mod home;
pub mod screen;
mod session;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use self::home::HomeSite;
use self::screen::Row;
use self::session::{Surroundings, Worker};
use crate::binaries::{self, Defect};
use crate::machine::Machine;
use crate::plane::ControlPlane;
use crate::release::{Release, ReleaseServer, SigningKey};
use crate::serve::Network;
use crate::site::{Ended, Site, architecture};

/// An installed agent with everything around it.
trait Stage {
    fn plane(&self) -> &ControlPlane;
    /// The network that agent, platform and releases are in.
    fn network(&self) -> Network;
    /// Adds lines to the configuration, before the first start.
    fn offer(&self, lines: &str) -> Result<(), String>;
    fn releases(&self) -> &ReleaseServer;
    fn key(&self) -> &SigningKey;
    /// Starts the service; returns when it is connected.
    fn start(&self) -> Result<(), String>;
    /// Runs `systemctl VERB UNIT`.
    fn systemctl(&self, verb: &[&str]) -> Result<(), String>;
    /// Waits until the agent says that it is connected.
    fn connected(&self) -> Result<(), String>;
    /// Runs a command of the agent.
    fn agent(&self, arguments: &[&str]) -> Ended;
    fn publish(&self, release: &Release) -> Result<(), String>;
    /// Writes the configuration without the join token.
    fn forget_token(&self) -> Result<(), String>;
    /// SHA-256 of the installed binary.
    fn installed(&self) -> String;
}

impl Stage for Site {
    fn plane(&self) -> &ControlPlane {
        &self.plane
    }
    fn network(&self) -> Network {
        self.machine.network()
    }
    fn offer(&self, lines: &str) -> Result<(), String> {
        Self::offer(self, lines).map_err(|error| error.to_string())
    }
    fn releases(&self) -> &ReleaseServer {
        &self.releases
    }
    fn key(&self) -> &SigningKey {
        &self.key
    }
    fn start(&self) -> Result<(), String> {
        Self::start(self).map_err(|error| error.to_string())
    }
    fn systemctl(&self, verb: &[&str]) -> Result<(), String> {
        let words = [&["systemctl"], verb, &[crate::site::UNIT]].concat();
        self.machine.check(words).map(drop).map_err(|error| error.to_string())
    }
    fn connected(&self) -> Result<(), String> {
        Self::connected(self).map_err(|error| error.to_string())
    }
    fn agent(&self, arguments: &[&str]) -> Ended {
        Self::agent(self, arguments)
    }
    fn publish(&self, release: &Release) -> Result<(), String> {
        Self::publish(self, release).map(drop).map_err(|error| error.to_string())
    }
    fn forget_token(&self) -> Result<(), String> {
        self.plane.revoke_token(&self.token);
        self.configure_without_token().map_err(|error| error.to_string())
    }
    fn installed(&self) -> String {
        Self::installed(self)
    }
}

/// The versions of the story: the last one is broken.
const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];
const BROKEN: &str = "1.2.0";

/// Shows everything, then a table of what was shown and measured.
///
/// # Errors
/// What is missing on this machine, or the first thing that did not go as it should.
pub fn run() -> Result<(), String> {
    let root = Machine::available();
    let home = home::available();
    if let (Err(no_root), Err(no_home)) = (&root, &home) {
        return Err(format!(
            "the demo needs a service manager to show an update on.\n  As root, in namespaces of its own: {no_root}.\n  \
             As you are, with your own systemd: {no_home}."
        ));
    }
    screen::step("building the agent in the versions of the story");
    let build = |version: &str, defect| {
        binaries::build(version, defect).map_err(|error| format!("the agent cannot be built: {error}"))
    };
    for version in VERSIONS {
        build(version, None)?;
    }
    let broken = build(BROKEN, Some(Defect::CrashesWhenReady))?;
    let began = Instant::now();
    let mut story = Story { rows: Vec::new(), certificate: String::new() };
    if root.is_ok() {
        screen::step("booting a machine with a real systemd, a control plane and a release server");
        let site = Site::install(VERSIONS[0]).map_err(|error| error.to_string())?;
        story.saw("a machine of its own", "real systemd runs", Some(began.elapsed()));
        story.tell(&site, &broken)?;
    } else {
        screen::step("installing a unit of your own service manager, with a control plane and a release server");
        let site = HomeSite::install(VERSIONS[0])?;
        story.saw("a unit of your own", "your systemd has it", Some(began.elapsed()));
        story.tell(&site, &broken)?;
    }
    screen::table(&story.rows);
    screen::line(&format!("\nthe whole story took {:.1} s", began.elapsed().as_secs_f64()));
    Ok(())
}

/// What was shown so far.
struct Story {
    rows: Vec<Row>,
    certificate: String,
}

impl Story {
    fn saw(&mut self, what: &str, seen: impl Into<String>, took: Option<Duration>) {
        let row = Row { what: what.to_owned(), seen: seen.into(), took };
        screen::seen(&row);
        self.rows.push(row);
    }

    fn tell(&mut self, stage: &impl Stage, broken: &Path) -> Result<(), String> {
        let around = Surroundings::set_up(stage.plane(), &stage.network())?;
        let port = around.target.address().port();
        let resource = format!("{{name: {}, type: tcp, hostname: 127.0.0.1, port: {port}}}", session::RESOURCE);
        stage.offer(&format!("resources: [{resource}]\n"))?;
        self.joins_once(stage)?;
        self.comes_back(stage)?;
        let worker = self.serves_a_session(stage)?;
        screen::step("restart, with the session open");
        stage.systemctl(&["restart"])?;
        self.same_session(&worker, "the session over a restart")?;
        self.updates(stage)?;
        self.same_session(&worker, "the session over the update")?;
        self.refuses_a_forgery(stage)?;
        self.undoes_a_bad_version(stage, broken)?;
        self.same_session(&worker, "the session over the bad version")?;
        drop(worker);
        let joins = stage.plane().joins().len();
        expect(joins == 1, || format!("the agent joined {joins} times"))?;
        self.saw("joins in all of this", "exactly one", None);
        Ok(())
    }

    fn joins_once(&mut self, stage: &impl Stage) -> Result<(), String> {
        let [first, _] = VERSIONS;
        screen::step(&format!("{first} joins the platform with a one-time token"));
        stage.plane().set_version(Some(first));
        let began = Instant::now();
        stage.start()?;
        let took = began.elapsed();
        self.certificate = certificate(stage)?;
        self.saw("joins once", format!("certificate {}…", &self.certificate[..16]), Some(took));
        Ok(())
    }

    fn comes_back(&mut self, stage: &impl Stage) -> Result<(), String> {
        screen::step("the token is revoked and removed from the configuration; restart, then SIGKILL");
        stage.forget_token()?;
        let began = Instant::now();
        stage.systemctl(&["restart"])?;
        stage.connected()?;
        self.same_certificate(stage, "comes back after a restart", began.elapsed())?;
        let pid = status(stage)["pid"].clone();
        let began = Instant::now();
        stage.systemctl(&["kill", "--kill-who=main", "--signal=SIGKILL"])?;
        while status(stage)["pid"] == pid && began.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(10));
        }
        stage.connected()?;
        self.same_certificate(stage, "comes back after SIGKILL", began.elapsed())
    }

    fn serves_a_session(&mut self, stage: &impl Stage) -> Result<Worker, String> {
        screen::step("somebody opens a session to an echo service, through a bridge, and does not stop typing");
        let began = Instant::now();
        let worker = Worker::start(stage.plane(), &stage.network())?;
        let took = began.elapsed();
        let seen = worker.works_on(50)?;
        let active = status(stage)["sessions"]["active"].clone();
        expect(active == 1, || format!("{active} sessions are open; {seen:?}"))?;
        self.saw("a session", format!("open, {} round trips, every byte compared", seen.round_trips), Some(took));
        Ok(worker)
    }

    /// The session lives, and nothing was lost or changed in it. Shows the longest pause.
    fn same_session(&mut self, worker: &Worker, what: &str) -> Result<(), String> {
        let seen = worker.works_on(50)?;
        self.saw(what, format!("goes on, {} round trips, every byte compared", seen.round_trips), Some(seen.longest));
        Ok(())
    }

    fn updates(&mut self, stage: &impl Stage) -> Result<(), String> {
        let [first, second] = VERSIONS;
        screen::step(&format!("{second} is published while the API is still at {first}"));
        let binary = binaries::agent_binary(second);
        let release = Release::new(&format!("v{second}")).binary(architecture(), binary).signed_by(stage.key());
        stage.publish(&release)?;
        let ended = stage.agent(&["update", "--version", second, "--force", "--json"]);
        expect_json(&ended, 20, "reason", "newer_than_api")?;
        self.saw("newer than the API", "refused, exit 20, even with --force", None);

        screen::step(&format!("the API is upgraded to {second}; `bamf-agent update`"));
        stage.plane().set_version(Some(second));
        let began = Instant::now();
        let ended = stage.agent(&["update", "--json"]);
        let took = began.elapsed();
        expect_json(&ended, 0, "outcome", "updated")?;
        let calls = stage.releases().rest_calls();
        let restart = ended.json["restart_ms"].as_u64().map(Duration::from_millis);
        self.saw("update", format!("{first} -> {second}, {calls} REST calls"), Some(took));
        self.saw("restart until connected again", "measured by the updater", restart);
        self.same_certificate_now(stage, "identity after the update")
    }

    fn refuses_a_forgery(&mut self, stage: &impl Stage) -> Result<(), String> {
        screen::step("somebody else signs a release");
        stage.plane().set_version(Some(BROKEN));
        let binary = binaries::agent_binary(VERSIONS[1]);
        let forged =
            Release::new(&format!("v{BROKEN}")).binary(architecture(), binary).signed_by(&SigningKey::generate());
        stage.publish(&forged)?;
        let before = stage.installed();
        let ended = stage.agent(&["update", "--json"]);
        expect_json(&ended, 21, "reason", "untrusted_key")?;
        expect(stage.installed() == before, || "the installed file changed".into())?;
        self.saw("signed by another key", "refused, exit 21, nothing touched", None);
        Ok(())
    }

    fn undoes_a_bad_version(&mut self, stage: &impl Stage, broken: &Path) -> Result<(), String> {
        let [_, second] = VERSIONS;
        screen::step(&format!("{BROKEN} is signed and published, and crashes as soon as it is ready"));
        let release =
            Release::new(&format!("v{BROKEN}")).binary(architecture(), broken.to_owned()).signed_by(stage.key());
        stage.publish(&release)?;
        let before = stage.installed();
        let began = Instant::now();
        let ended = stage.agent(&["update", "--json"]);
        let took = began.elapsed();
        expect_json(&ended, 23, "outcome", "rolled_back")?;
        expect(stage.installed() == before, || "another file is installed".into())?;
        stage.connected()?;
        let version = status(stage)["version"].as_str().unwrap_or_default().to_owned();
        expect(version == second, || format!("{version} runs"))?;
        self.saw("a bad version", format!("rolled back, {second} runs and is connected"), Some(took));
        self.same_certificate_now(stage, "identity after the rollback")
    }

    fn same_certificate(&mut self, stage: &impl Stage, what: &str, took: Duration) -> Result<(), String> {
        let found = certificate(stage)?;
        expect(found == self.certificate, || format!("{what}: the certificate changed to {found}"))?;
        self.saw(what, "same certificate", Some(took));
        Ok(())
    }

    fn same_certificate_now(&mut self, stage: &impl Stage, what: &str) -> Result<(), String> {
        let found = certificate(stage)?;
        expect(found == self.certificate, || format!("{what}: the certificate changed to {found}"))?;
        self.saw(what, "same certificate", None);
        Ok(())
    }
}

fn status(stage: &impl Stage) -> Value {
    stage.agent(&["status", "--json"]).json
}

fn certificate(stage: &impl Stage) -> Result<String, String> {
    let status = status(stage);
    let found = status["certificate"]["sha256"].as_str();
    found.map(str::to_owned).ok_or_else(|| format!("the agent shows no certificate: {status}"))
}

fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn expect_json(ended: &Ended, code: i32, key: &str, value: &str) -> Result<(), String> {
    let as_expected = ended.code == code && ended.json[key] == value;
    expect(as_expected, || {
        format!(
            "exit code {code} and {key} {value} were expected; got {}\n{}{}",
            ended.code, ended.stdout, ended.stderr
        )
    })
}
