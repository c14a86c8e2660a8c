//! What lies between two processes is damaged, of another version, or meets a program that dies: that costs sessions at
//! most, and never the start of the service.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bamf_lab::crowd::Mix;
use bamf_lab::machine::{Machine, or_skip};
use bamf_lab::site::{BINARY, Site, UNIT};
use serde_json::Value;

use super::scene::{LIMIT, Scene, journal};

const MEDDLER: &str = "/usr/local/bin/meddler";
const ORDER: &str = "/var/lib/bamf-agent/meddle";
const SESSIONS: u64 = 12;

/// Cargo has built it with all tests, but not where somebody runs only these.
fn meddler() -> PathBuf {
    let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--example", "meddler"]).status().unwrap();
    assert!(built.success(), "{built}");
    Path::new(env!("CARGO_BIN_EXE_bamf-agent")).with_file_name("examples").join("meddler")
}

/// A crowd at an agent that is always started by way of the meddler.
fn meddled_with() -> Scene {
    let site = Site::install("1.0.0").unwrap();
    site.machine.copy_in(meddler(), MEDDLER, 0o755).unwrap();
    let unit = format!("[Service]\nExecStart=\nExecStart={MEDDLER} {ORDER} {BINARY} run\n");
    site.machine.check(["mkdir", "-p", "/etc/systemd/system/bamf-agent.service.d"]).unwrap();
    site.machine.write("/etc/systemd/system/bamf-agent.service.d/meddler.conf", unit, 0o644, "root").unwrap();
    site.machine.check(["systemctl", "daemon-reload"]).unwrap();
    let mix = Mix::sessions(usize::try_from(SESSIONS).unwrap()).and_relay(10);
    Scene::at(site, mix, |text| text.to_owned())
}

impl Scene {
    /// Restarts the agent while somebody meddles; what the next one says of its sessions.
    fn restart_meddled(&self, how: &str) -> Value {
        self.site.machine.write(ORDER, how, 0o644, "bamf").unwrap();
        let before = self.site.status()["pid"].clone();
        // The first process in the agent's place ends before it is ready, and systemctl says so.
        drop(self.site.machine.exec(["systemctl", "restart", UNIT]));
        let is_back = |_: &Machine| self.site.status()["pid"].as_u64().is_some_and(|pid| before != pid);
        self.site.machine.wait_until("the agent runs again", LIMIT, is_back).unwrap_or_else(|_| self.give_up());
        self.site.connected().unwrap_or_else(|_| self.give_up());
        assert!(!self.site.machine.path(ORDER).exists(), "nobody has meddled");
        assert_eq!(self.site.machine.property(UNIT, "NFileDescriptorStore").unwrap(), "0", "systemd keeps nothing");
        self.sessions()
    }

    fn give_up(&self) -> ! {
        panic!("the agent does not come back:\n{}", journal(&self.site))
    }
}

#[test]
fn what_a_later_version_has_written_is_taken_over_whole_by_this_one() {
    if or_skip("what_a_later_version_has_written_is_taken_over_whole_by_this_one") {
        return;
    }
    let scene = meddled_with();
    let sessions = scene.restart_meddled("later");
    assert_eq!((&sessions["adopted"], &sessions["lost"]), (&SESSIONS.into(), &0.into()), "{}", journal(&scene.site));
    scene.crowd.goes_on(LIMIT).unwrap_or_else(|who| panic!("{who:?}\n{}", journal(&scene.site)));
    assert_eq!(scene.crowd.dialled_again(), [""; 0]);
    scene.leave();
}

#[test]
fn a_program_that_dies_before_it_has_taken_anything_over_leaves_everything_to_the_next() {
    if or_skip("a_program_that_dies_before_it_has_taken_anything_over_leaves_everything_to_the_next") {
        return;
    }
    let scene = meddled_with();
    let sessions = scene.restart_meddled("crash 4");
    assert_eq!((&sessions["adopted"], &sessions["lost"]), (&SESSIONS.into(), &0.into()), "{}", journal(&scene.site));
    scene.crowd.goes_on(LIMIT).unwrap_or_else(|who| panic!("{who:?}\n{}", journal(&scene.site)));
    assert_eq!(scene.crowd.dialled_again(), [""; 0]);
    scene.leave();
}

/// The whole snapshot is of no use: all sessions are lost and counted, and the agent serves new ones.
#[track_caller]
fn costs_all_sessions(how: &str) {
    let scene = meddled_with();
    let sessions = scene.restart_meddled(how);
    assert_eq!((&sessions["adopted"], &sessions["lost"]), (&0.into(), &SESSIONS.into()), "{}", journal(&scene.site));
    let journal = journal(&scene.site);
    assert!(journal.contains("sessions are lost") || journal.contains("was not carried over"), "{journal}");
}

#[test]
fn an_empty_snapshot_costs_the_sessions_and_not_the_start() {
    if !or_skip("an_empty_snapshot_costs_the_sessions_and_not_the_start") {
        costs_all_sessions("empty");
    }
}

#[test]
fn garbage_costs_the_sessions_and_not_the_start() {
    if !or_skip("garbage_costs_the_sessions_and_not_the_start") {
        costs_all_sessions("garbage");
    }
}

#[test]
fn a_snapshot_of_an_unknown_format_costs_the_sessions_and_not_the_start() {
    if !or_skip("a_snapshot_of_an_unknown_format_costs_the_sessions_and_not_the_start") {
        costs_all_sessions("format");
    }
}

#[test]
fn a_snapshot_that_somebody_could_change_is_not_believed() {
    if !or_skip("a_snapshot_that_somebody_could_change_is_not_believed") {
        costs_all_sessions("unsealed");
    }
}

#[test]
fn a_snapshot_whose_sockets_are_gone_costs_the_sessions_and_not_the_start() {
    if !or_skip("a_snapshot_whose_sockets_are_gone_costs_the_sessions_and_not_the_start") {
        costs_all_sessions("sockets");
    }
}

#[test]
fn a_damaged_record_costs_its_session_and_no_other() {
    if or_skip("a_damaged_record_costs_its_session_and_no_other") {
        return;
    }
    let scene = meddled_with();
    let sessions = scene.restart_meddled("flipped");
    assert_eq!((&sessions["adopted"], &sessions["lost"]), (&(SESSIONS - 1).into(), &1.into()));
    let cut = |scene: &Scene| scene.crowd.faults().len();
    let waited = std::time::Instant::now();
    while cut(&scene) == 0 && waited.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(cut(&scene), 1, "{:?}\n{}", scene.crowd.faults(), journal(&scene.site));
}

#[test]
fn a_snapshot_that_is_cut_off_costs_what_is_behind_the_cut() {
    if or_skip("a_snapshot_that_is_cut_off_costs_what_is_behind_the_cut") {
        return;
    }
    let scene = meddled_with();
    let sessions = scene.restart_meddled("truncated");
    let number = |name: &str| sessions[name].as_u64().unwrap();
    assert!(number("adopted") > 0, "{sessions}");
    assert_eq!(number("adopted") + number("lost"), SESSIONS, "{sessions}\n{}", journal(&scene.site));
}
