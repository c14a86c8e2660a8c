//! The main job on real systemd with the real binary: join once, update, roll back, and refuse what must be refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bamf_lab::binaries::{Defect, agent_binary, defective_binary};
use bamf_lab::machine::or_skip;
use bamf_lab::release::Release;
use bamf_lab::site::{BINARY, Ended, Site, UNIT, architecture};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn one_join_and_one_certificate_through_restart_kill_update_and_rollback() {
    if or_skip("one_join_and_one_certificate_through_restart_kill_update_and_rollback") {
        return;
    }
    let site = Site::running("1.1.0").unwrap();
    let certificate = site.certificate();
    let first = site.installed();

    site.plane.revoke_token(&site.token);
    site.configure_without_token().unwrap();
    site.machine.check(["systemctl", "restart", UNIT]).unwrap();
    site.connected().unwrap();
    assert_eq!(site.certificate(), certificate, "after a restart");

    let pid = site.status()["pid"].clone();
    site.machine.kill(UNIT, Signal::SIGKILL).unwrap();
    site.machine.wait_until("another process", LIMIT, |_| site.status()["pid"] != pid).unwrap();
    site.connected().unwrap();
    assert_eq!(site.certificate(), certificate, "after SIGKILL");

    site.publish(&site.release("1.1.0")).unwrap();
    let ended = site.agent(&["update", "--json"]);
    assert_eq!(ended.code, 0, "{ended:?}\n{}", site.machine.journal(UNIT).unwrap());
    assert_eq!(ended.json["outcome"], "updated", "{ended:?}");
    assert_eq!((&ended.json["from"], &ended.json["to"]), (&"1.0.0".into(), &"1.1.0".into()));
    let sessions = |ended: &Ended| [ended.json["sessions_before"].clone(), ended.json["sessions_after"].clone()];
    assert_eq!(sessions(&ended), [0, 0], "of the version before and of the new one");
    assert_eq!(site.status()["version"], "1.1.0");
    assert_eq!(site.certificate(), certificate, "after the update");
    assert_eq!(site.releases.rest_calls(), 0, "the tag of the API's version costs no REST call");
    assert_ne!(site.installed(), first);

    let again = site.agent(&["update", "--json"]);
    assert_eq!((again.code, &again.json["outcome"]), (0, &"up_to_date".into()), "{again:?}");

    let back = site.agent(&["rollback", "--json"]);
    assert_eq!((back.code, &back.json["outcome"]), (0, &"rolled_back".into()), "{back:?}");
    assert_eq!(sessions(&back), [0, 0]);
    assert_eq!(site.status()["version"], "1.0.0");
    assert_eq!(site.installed(), first);
    assert_eq!(site.certificate(), certificate, "after the rollback");

    let bad = site.agent(&["update", "--json"]);
    assert_eq!((bad.code, &bad.json["reason"]), (25, &"known_bad".into()), "{bad:?}");
    assert_eq!(site.plane.joins().len(), 1);
    assert_eq!(site.plane.join_attempts(), 1);
}

#[test]
fn a_broken_version_is_rolled_back_and_the_old_one_runs_on() {
    if or_skip("a_broken_version_is_rolled_back_and_the_old_one_runs_on") {
        return;
    }
    let site = Site::running("1.2.0").unwrap();
    // What hangs is given this long twice.
    site.edit_config(|text| text.replace("health_timeout: 20s", "health_timeout: 6s")).unwrap();
    let (certificate, first) = (site.certificate(), site.installed());
    for (defect, why) in [
        (Defect::ExitsAtOnce, "ended before it was ready (result `exit-code`)"),
        (Defect::NeverReady, "never said that it is ready"),
        (Defect::NoControlSocket, "does not answer on its control socket"),
        (Defect::CrashesWhenReady, "was restarted 3 times after crashes"),
    ] {
        let release =
            Release::new("v1.2.0").binary(architecture(), defective_binary("1.2.0", defect)).signed_by(&site.key);
        site.publish(&release).unwrap();
        let ended = site.agent(&["update", "--force", "--json"]);
        assert_eq!(ended.code, 23, "{defect:?}: {ended:?}");
        assert_eq!(ended.json["outcome"], "rolled_back", "{defect:?}");
        assert_eq!(ended.json["reason"], "unhealthy", "{defect:?}");
        assert!(ended.json["message"].as_str().unwrap().contains(why), "{defect:?}: {ended:?}");
        let sessions = (&ended.json["sessions_before"], &ended.json["sessions_after"]);
        assert_eq!(sessions, (&0.into(), &0.into()), "{defect:?}, of the version before, before and after");
        assert_eq!(site.installed(), first, "{defect:?}");
        assert_eq!(site.status()["version"], "1.0.0", "{defect:?}");
        assert_eq!(site.certificate(), certificate, "{defect:?}");
        assert_eq!(site.status()["update"]["last"]["reason"], "unhealthy", "{defect:?}");
    }
    let history = site.agent(&["history", "--json"]);
    let outcomes: Vec<_> = history.json.as_array().unwrap().iter().map(|record| &record["outcome"]).collect();
    assert_eq!(outcomes, ["rolled_back"; 4], "{history:?}");
    assert_eq!(site.plane.joins().len(), 1);
}

/// When the journal has the last line with these words, in seconds.
fn last(site: &Site, words: &str) -> f64 {
    site.machine.check(["journalctl", "--sync"]).unwrap();
    let journal = site.machine.check(["journalctl", "--no-pager", "--output=short-unix", "--unit", UNIT]).unwrap();
    let line = journal.lines().rfind(|line| line.contains(words)).unwrap_or_else(|| panic!("no {words} in {journal}"));
    line.split(' ').next().unwrap().parse().unwrap()
}

fn drop_in(site: &Site, text: &str) {
    let path = format!("/etc/systemd/system/{UNIT}.d/test.conf");
    site.machine.write(path, format!("[Service]\n{text}\n"), 0o644, "root").unwrap();
    site.machine.check(["systemctl", "daemon-reload"]).unwrap();
}

#[test]
fn a_version_that_dies_before_it_is_ready_is_rolled_back_before_systemd_tries_it_again() {
    if or_skip("a_version_that_dies_before_it_is_ready_is_rolled_back_before_systemd_tries_it_again") {
        return;
    }
    let site = Site::running("1.2.0").unwrap();
    // Longer than everything else: with patience for another start this would end at `health_timeout`, for another reason.
    drop_in(&site, "RestartSec=60s");
    let binary = defective_binary("1.2.0", Defect::ExitsAtOnce);
    site.publish(&Release::new("v1.2.0").binary(architecture(), binary).signed_by(&site.key)).unwrap();
    let ended = site.agent(&["update", "--json"]);
    assert_eq!((ended.code, &ended.json["reason"]), (23, &"unhealthy".into()), "{ended:?}");
    assert!(ended.json["message"].as_str().unwrap().contains("ended before it was ready"), "{ended:?}");
    assert_eq!(site.status()["version"], "1.0.0");
    let journal = site.machine.journal(UNIT).unwrap();
    assert!(!journal.contains("Scheduled restart job"), "{journal}");
    let took = last(&site, "Started bamf-agent.service") - last(&site, "Stopping bamf-agent.service");
    println!("from the restart to the version before being ready again: {:.0} ms", took * 1000.0);
}

#[test]
fn neither_an_old_version_that_dies_while_it_stops_nor_one_crash_of_a_sound_one_fails_an_update() {
    if or_skip("neither_an_old_version_that_dies_while_it_stops_nor_one_crash_of_a_sound_one_fails_an_update") {
        return;
    }
    let site = Site::running("1.1.0").unwrap();
    site.publish(&site.release("1.1.0")).unwrap();
    drop_in(&site, "ExecStop=/bin/sh -c 'kill -KILL $MAINPID'");
    let mut update = site.agent_command(&["update", "--json"]).spawn().unwrap();
    let connected = |_: &_| site.status()["version"] == "1.1.0" && site.status()["api"]["connected"] == true;
    site.machine.wait_until("the new version", LIMIT, connected).unwrap();
    assert_eq!(site.status()["update"]["state"], "trial");
    site.machine.kill(UNIT, Signal::SIGKILL).unwrap();
    assert!(update.is_running(), "the crash came too late to be judged");
    let ended = Ended::from(update.wait(2 * LIMIT).unwrap());
    assert_eq!((ended.code, &ended.json["outcome"]), (0, &"updated".into()), "{ended:?}");
    assert_eq!(site.machine.property(UNIT, "NRestarts").unwrap(), "1");
    let journal = site.machine.journal(UNIT).unwrap();
    assert_eq!(journal.matches("code=killed, status=9/KILL").count(), 2, "at its stop, and by hand: {journal}");
}

#[test]
fn an_update_cures_a_crash_loop_and_leaves_a_stopped_service_stopped() {
    if or_skip("an_update_cures_a_crash_loop_and_leaves_a_stopped_service_stopped") {
        return;
    }
    const UPDATER: &str = "/root/bamf-agent";
    let site = Site::running("1.1.0").unwrap();
    let certificate = site.certificate();
    site.publish(&site.release("1.1.0")).unwrap();
    site.machine.copy_in(agent_binary("1.1.0"), UPDATER, 0o755).unwrap();
    let update = || Ended::after(site.machine.command([UPDATER, "update", "--force", "--json"]).limit(4 * LIMIT));

    site.machine.copy_in(defective_binary("1.0.0", Defect::CrashesWhenReady), BINARY, 0o755).unwrap();
    site.machine.exec(["systemctl", "restart", UNIT]).unwrap();
    let restarts = |_: &_| site.machine.property(UNIT, "NRestarts").unwrap().parse::<u32>().unwrap() > 3;
    site.machine.wait_until("a crash loop", LIMIT, restarts).unwrap();
    let cured = update();
    assert_eq!((cured.code, &cured.json["outcome"]), (0, &"updated".into()), "{cured:?}");
    assert_eq!((&cured.json["from"], &site.status()["version"]), (&"1.0.0".into(), &"1.1.0".into()));

    site.machine.check(["systemctl", "stop", UNIT]).unwrap();
    let ended = update();
    assert_eq!((ended.code, &ended.json["outcome"]), (0, &"updated".into()), "{ended:?}");
    assert!(ended.json["message"].as_str().unwrap().contains("is not running"), "{ended:?}");
    assert_eq!(site.machine.property(UNIT, "ActiveState").unwrap(), "inactive");
    site.start().unwrap();
    assert_eq!(site.certificate(), certificate);
    assert_eq!(site.plane.joins().len(), 1);
}

#[test]
fn the_updater_lives_by_the_configuration_that_the_unit_names() {
    if or_skip("the_updater_lives_by_the_configuration_that_the_unit_names") {
        return;
    }
    let site = Site::running("1.1.0").unwrap();
    site.publish(&site.release("1.1.0")).unwrap();
    let machine = &site.machine;
    machine.check(["mv", "/etc/bamf/agent.yaml", "/etc/bamf/elsewhere.yaml"]).unwrap();
    let drop_in = "[Service]\nEnvironment=BAMF_ZONE=internal\nEnvironmentFile=/etc/bamf/agent.env\nExecStart=\n\
        ExecStart=/usr/local/bin/bamf-agent run --config /etc/bamf/elsewhere.yaml\n";
    machine.check(["mkdir", "-p", "/etc/systemd/system/bamf-agent.service.d"]).unwrap();
    machine.write("/etc/systemd/system/bamf-agent.service.d/place.conf", drop_in, 0o644, "root").unwrap();
    machine.write("/etc/bamf/agent.env", "BAMF_LABELS=\"site=ams\"\n", 0o600, "root").unwrap();
    machine.check(["systemctl", "daemon-reload"]).unwrap();
    machine.check(["systemctl", "restart", UNIT]).unwrap();
    let ended = site.agent(&["update", "--check", "--json"]);
    assert_eq!((ended.code, &ended.json["outcome"]), (10, &"available".into()), "{ended:?}");

    machine.check(["chown", "bamf", "/etc/bamf/elsewhere.yaml"]).unwrap();
    let ended = site.agent(&["update", "--json"]);
    assert_eq!((ended.code, &ended.json["reason"]), (78, &"config_invalid".into()), "{ended:?}");
    assert!(ended.json["message"].as_str().unwrap().contains("elsewhere.yaml"), "{ended:?}");
}

#[test]
fn an_old_version_is_not_blamed_for_the_crashes_of_the_one_before() {
    if or_skip("an_old_version_is_not_blamed_for_the_crashes_of_the_one_before") {
        return;
    }
    let site = Site::running("1.0.0").unwrap();
    // As after a crash loop: systemd itself has started what was put back, and its count of restarts is high.
    for _ in 0..4 {
        let pid = site.status()["pid"].clone();
        site.machine.kill(UNIT, Signal::SIGKILL).unwrap();
        let another = |_: &_| site.status()["pid"].is_u64() && site.status()["pid"] != pid;
        site.machine.wait_until("another process", LIMIT, another).unwrap();
    }
    site.connected().unwrap();
    let journal = serde_json::json!({"version": 1, "transaction": {
        "id": "cut-off", "action": "update", "step": "restored",
        "old": {"version": "1.0.0", "sha256": site.installed()},
        "new": {"version": "1.1.0", "sha256": "0".repeat(64)},
        "target": BINARY, "kept": "/usr/local/bin/.bamf-agent.previous",
        "health_timeout_ms": 20_000, "service": {"unit": UNIT, "was_running": true},
        "cause": {"reason": "unhealthy", "message": "it crashed"},
    }});
    site.machine.check(["mkdir", "-m", "0700", "/var/lib/bamf-agent-updater"]).unwrap();
    site.machine.write("/var/lib/bamf-agent-updater/state.json", journal.to_string(), 0o600, "root").unwrap();
    let pid = site.status()["pid"].clone();
    let ended = site.agent(&["update", "--json"]);
    assert_eq!((ended.code, &ended.json["reason"]), (23, &"unhealthy".into()), "{ended:?}");
    assert_eq!(site.status()["pid"], pid, "what runs well is not restarted");
}

#[test]
fn root_joins_by_hand_with_a_token_of_its_own_for_the_service_to_use() {
    if or_skip("root_joins_by_hand_with_a_token_of_its_own_for_the_service_to_use") {
        return;
    }
    let site = Site::install("1.0.0").unwrap();
    site.plane.set_version(Some("1.0.0"));
    site.configure_without_token().unwrap();
    site.machine.write("/root/bamf-token", format!("{}\n", site.token), 0o600, "root").unwrap();
    let joined = site.agent(&["join", "--token-file", "/root/bamf-token"]);
    assert_eq!(joined.code, 0, "{joined:?}");
    let owners = site.machine.check(["stat", "-c", "%U %a", "/var/lib/bamf-agent/agent.key"]).unwrap();
    assert_eq!(owners.trim(), "bamf 600");
    site.start().unwrap();
    assert!(joined.stdout.contains(&site.certificate()), "{joined:?}");
    assert_eq!(site.plane.joins().len(), 1);
}
