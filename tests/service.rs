//! What the agent learns from a real systemd, unprivileged and inside its unit's sandbox.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bamf_lab::machine::or_skip;
use bamf_lab::site::{BINARY, Site, UNIT};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(30);

const RESTARTS: &str = "systemd restarts the service";
const STOPS: &str = "systemd stops the service";
const UNKNOWN: &str = "systemd does not say";
const ANNOUNCED: &str = "a restart of the service was announced";

/// A site whose agent logs how long its questions take.
fn site() -> Site {
    let site = Site::install("1.0.0").unwrap();
    site.plane.set_version(Some("1.0.0"));
    drop_in(&site, "debug", &format!("[Service]\nExecStart=\nExecStart={BINARY} run --debug\n"));
    site.start().unwrap();
    site
}

fn drop_in(site: &Site, name: &str, text: &str) {
    let path = format!("/etc/systemd/system/{UNIT}.d/{name}.conf");
    site.machine.write(path, text, 0o644, "root").unwrap();
    site.machine.check(["systemctl", "daemon-reload"]).unwrap();
}

/// What the agents that have ended so far said about their ends, in order.
fn said(journal: &str) -> Vec<&'static str> {
    let word = |line: &str| [RESTARTS, STOPS, UNKNOWN, ANNOUNCED].into_iter().find(|word| line.contains(word));
    journal.lines().filter_map(word).collect()
}

fn journal(site: &Site) -> String {
    site.machine.journal(UNIT).unwrap()
}

fn process(site: &Site) -> Option<u32> {
    site.machine.main_pid(UNIT).unwrap()
}

/// Waits until another process than `before` is connected.
fn another(site: &Site, before: Option<u32>) {
    let there = |_: &_| process(site).is_some_and(|pid| Some(pid) != before);
    site.machine.wait_until("another process", LIMIT, there).unwrap();
    site.connected().unwrap();
}

fn systemctl(site: &Site, words: &[&str]) {
    site.machine.check([&["systemctl"], words, &[UNIT]].concat()).unwrap();
}

#[test]
fn an_agent_that_is_told_to_end_knows_whether_it_is_restarted() {
    if or_skip("an_agent_that_is_told_to_end_knows_whether_it_is_restarted") {
        return;
    }
    let mut site = site();
    let mut expected = Vec::new();
    for verb in ["restart", "try-restart", "reload-or-restart"] {
        let before = process(&site);
        systemctl(&site, &[verb]);
        another(&site, before);
        expected.push(RESTARTS);
        assert_eq!(said(&journal(&site)), expected, "systemctl {verb}");
    }

    let before = process(&site);
    site.machine.kill(UNIT, Signal::SIGTERM).unwrap();
    another(&site, before);
    expected.push(RESTARTS);
    assert_eq!(said(&journal(&site)), expected, "a signal, and the unit starts again after every end");

    systemctl(&site, &["stop"]);
    expected.push(STOPS);
    assert_eq!(said(&journal(&site)), expected, "systemctl stop");
    site.start().unwrap();

    // The signal comes only when the start is queued behind the stop.
    let wait = "[Service]\nExecStop=/bin/sh -c 'until [ -e /run/queued ]; do sleep 0.01; done'\n";
    drop_in(&site, "wait", wait);
    let before = process(&site);
    systemctl(&site, &["stop", "--no-block"]);
    systemctl(&site, &["start", "--no-block"]);
    site.machine.write("/run/queued", "", 0o644, "root").unwrap();
    another(&site, before);
    expected.push(RESTARTS);
    assert_eq!(said(&journal(&site)), expected, "a start behind a stop");

    drop_in(&site, "wait", "");
    site.machine.power_off().unwrap();
    site.machine.power_on().unwrap();
    site.start().unwrap();
    expected.push(STOPS);
    assert_eq!(said(&journal(&site)), expected, "the machine goes down");

    drop_in(&site, "once", "[Service]\nRestart=on-failure\n");
    site.machine.kill(UNIT, Signal::SIGTERM).unwrap();
    site.machine.wait_until("the end of the process", LIMIT, |_| process(&site).is_none()).unwrap();
    expected.push(STOPS);
    assert_eq!(said(&journal(&site)), expected, "a signal, and the unit does not start again after a clean exit");

    for took in journal(&site).lines().filter_map(|line| line.split("\"took_us\":").nth(1)) {
        println!("asking took {} us", took.split(',').next().unwrap());
    }
}

#[test]
fn an_agent_without_a_bus_goes_by_what_the_updater_announces() {
    if or_skip("an_agent_without_a_bus_goes_by_what_the_updater_announces") {
        return;
    }
    let site = site();
    site.plane.set_version(Some("1.1.0"));
    site.publish(&site.release("1.1.0")).unwrap();
    drop_in(&site, "no-bus", "[Service]\nInaccessiblePaths=/run/dbus\n");
    systemctl(&site, &["restart"]);
    site.connected().unwrap();

    let socket = ["--unix-socket", "/run/bamf-agent/agent.sock", "http://agent/v1/restart"];
    let announce = |who: &[&str]| {
        let asked = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST"];
        site.machine.check([who, &asked[..], &socket].concat()).unwrap()
    };
    let member = ["setpriv", "--reuid=nobody", "--regid=bamf", "--clear-groups"];
    assert_eq!(announce(&member), "403", "who may read the status but not restart the service");
    systemctl(&site, &["stop"]);
    assert_eq!(said(&journal(&site)), [RESTARTS, UNKNOWN]);

    site.start().unwrap();
    assert_eq!(announce(&["setpriv", "--reuid=bamf", "--regid=bamf", "--clear-groups"]), "204");
    assert_eq!(announce(&[]), "204");
    systemctl(&site, &["stop"]);
    assert_eq!(said(&journal(&site)), [RESTARTS, UNKNOWN, ANNOUNCED]);

    site.start().unwrap();
    let ended = site.agent(&["update", "--json"]);
    assert_eq!((ended.code, &ended.json["outcome"]), (0, &"updated".into()), "{ended:?}");
    assert_eq!(said(&journal(&site)), [RESTARTS, UNKNOWN, ANNOUNCED, ANNOUNCED]);
}

#[test]
fn an_agent_of_a_users_own_manager_asks_that_one() {
    if or_skip("an_agent_of_a_users_own_manager_asks_that_one") {
        return;
    }
    let site = Site::install("1.0.0").unwrap();
    let machine = &site.machine;
    site.plane.set_version(Some("1.0.0"));
    let uid = machine.check(["id", "-u", "bamf"]).unwrap();
    let home = format!("/run/user/{}", uid.trim());
    machine.check(["install", "-d", "-o", "bamf", "-m", "0700", &home]).unwrap();
    let unit = format!(
        "[Service]\nType=notify\nExecStart={BINARY} run\nRestart=always\n\
         Environment=BAMF_DATA_DIR={home}/data BAMF_RUNTIME_DIR={home}/agent\n"
    );
    machine.write("/etc/systemd/user/mine.service", unit, 0o644, "root").unwrap();
    let environment = format!("--setenv=XDG_RUNTIME_DIR={home}");
    let started = ["systemd-run", "--unit=manager", "--uid=bamf", "--property=Delegate=yes", &environment];
    machine.check([&started[..], &["/lib/systemd/systemd", "--user"]].concat()).unwrap();

    let systemctl = |verb: &str| {
        let command = machine.command(["systemctl", "--user", verb, "mine.service"]);
        command.user("bamf").env("XDG_RUNTIME_DIR", &home).run().unwrap().code() == Some(0)
    };
    machine.wait_until("the user's manager", LIMIT, |_| systemctl("start")).unwrap();
    assert!(systemctl("restart") && systemctl("stop"));
    machine.check(["journalctl", "--sync"]).unwrap();
    let journal = machine.check(["journalctl", "--no-pager", "--identifier=bamf-agent"]).unwrap();
    assert_eq!(said(&journal), [RESTARTS, STOPS], "{journal}");
}
