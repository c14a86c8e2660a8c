//! Restarts that follow each other faster than anybody would ask for them, and restarts that nobody asked for.

use bamf_lab::crowd::Mix;
use bamf_lab::machine::or_skip;
use bamf_lab::site::UNIT;
use nix::sys::signal::Signal;

use super::scene::{LIMIT, Scene, journal};

const SESSIONS: usize = 16;

fn scene() -> Scene {
    Scene::with(Mix::sessions(SESSIONS).and_relay(10))
}

impl Scene {
    /// Everybody is where they were, and what they use is the same connections.
    fn nobody_has_noticed(self) {
        self.crowd.goes_on(LIMIT).unwrap_or_else(|who| panic!("{who:?}\n{}", journal(&self.site)));
        assert_eq!(self.sessions()["lost"], 0, "{}", journal(&self.site));
        assert_eq!(self.crowd.dialled_again(), [""; 0]);
        self.leave();
    }
}

#[test]
fn twenty_restarts_without_a_pause_lose_nothing() {
    if or_skip("twenty_restarts_without_a_pause_lose_nothing") {
        return;
    }
    let scene = scene();
    for _ in 0..20 {
        scene.site.machine.check(["systemctl", "restart", UNIT]).unwrap();
    }
    scene.nobody_has_noticed();
}

#[test]
fn restarts_that_are_asked_for_while_one_is_under_way_lose_nothing() {
    if or_skip("restarts_that_are_asked_for_while_one_is_under_way_lose_nothing") {
        return;
    }
    let scene = scene();
    let flurry = format!(
        "for i in $(seq 30); do systemctl --no-block restart {UNIT}; sleep 0.0$((i % 9))$((i * 7 % 10)); done; \
         systemctl restart {UNIT}"
    );
    scene.site.machine.check(["sh", "-c", &flurry]).unwrap();
    scene.nobody_has_noticed();
}

#[test]
fn a_sigterm_that_comes_from_anybody_is_a_restart_where_systemd_starts_the_service_again() {
    if or_skip("a_sigterm_that_comes_from_anybody_is_a_restart_where_systemd_starts_the_service_again") {
        return;
    }
    let scene = scene();
    for _ in 0..3 {
        let before = scene.site.status()["pid"].clone();
        scene.site.machine.kill(UNIT, Signal::SIGTERM).unwrap();
        let is_back = |_: &bamf_lab::machine::Machine| {
            let pid = scene.site.status()["pid"].clone();
            pid.is_u64() && pid != before
        };
        scene.site.machine.wait_until("the agent runs again", LIMIT, is_back).unwrap();
    }
    scene.nobody_has_noticed();
}

#[test]
fn a_manager_that_is_reloaded_and_executed_anew_meanwhile_keeps_everything() {
    if or_skip("a_manager_that_is_reloaded_and_executed_anew_meanwhile_keeps_everything") {
        return;
    }
    let scene = scene();
    for manager in ["daemon-reload", "daemon-reexec"] {
        // While nobody runs: the start waits for a moment.
        let drop_in = "[Service]\nExecStartPre=/bin/sleep 0.4\n";
        scene.site.machine.check(["mkdir", "-p", "/etc/systemd/system/bamf-agent.service.d"]).unwrap();
        let path = "/etc/systemd/system/bamf-agent.service.d/slow.conf";
        scene.site.machine.write(path, drop_in, 0o644, "root").unwrap();
        scene.site.machine.check(["systemctl", "daemon-reload"]).unwrap();
        scene.site.machine.check(["systemctl", "--no-block", "restart", UNIT]).unwrap();
        let between = |machine: &bamf_lab::machine::Machine| {
            machine.property(UNIT, "SubState").is_ok_and(|state| state == "start-pre")
        };
        scene.site.machine.wait_until("nobody runs", LIMIT, between).unwrap();
        scene.site.machine.check(["systemctl", manager]).unwrap();
        scene.site.connected().unwrap();
    }
    scene.nobody_has_noticed();
}
