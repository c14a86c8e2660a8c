//! The crowd: sessions and streams of all kinds over restarts, updates and rollbacks, and over none.

use std::time::Duration;

use bamf_lab::agent::until;
use bamf_lab::binaries::{Defect, agent_binary, defective_binary};
use bamf_lab::crowd::Mix;
use bamf_lab::machine::or_skip;
use bamf_lab::release::Release;
use bamf_lab::site::{Ended, Site, UNIT, architecture};
use nix::sys::signal::Signal;

use super::scene::{LIMIT, Scene, Stalls, restart};

/// What one process after the other has to carry.
fn everybody() -> Mix {
    Mix::sessions(200).and_relay(30)
}

const RESTARTS: usize = 10;

/// What is wrong with two versions: the one is dead at once, the other never healthy.
const DEFECTS: [(&str, Defect); 2] = [("1.2.0", Defect::ExitsAtOnce), ("1.3.0", Defect::NoControlSocket)];

/// Makes a version the one that the platform wants.
fn offer(site: &Site, release: &Release, version: &str) {
    site.publish(release).unwrap();
    site.plane.set_version(Some(version));
}

/// The updater, too, has counted every session before and after.
#[track_caller]
fn nobody_lost(ended: &Ended, sessions: usize) {
    assert_eq!(ended.json["sessions_before"], sessions, "{ended:?}");
    assert_eq!(ended.json["sessions_after"], sessions, "{ended:?}");
}

#[test]
fn nobody_in_a_crowd_notices_restarts_an_update_a_rollback_and_updates_that_fail() {
    if or_skip("nobody_in_a_crowd_notices_restarts_an_update_a_rollback_and_updates_that_fail") {
        return;
    }
    // Building takes the processors that the crowd needs.
    for version in ["1.0.0", "1.1.0"] {
        let _built = agent_binary(version);
    }
    let broken = DEFECTS.map(|(version, defect)| (version, defect, defective_binary(version, defect)));
    let scene = Scene::with(everybody());
    let sessions = scene.crowd.sessions();
    scene.platform_heard_nothing("before the first restart");

    for number in 1..=RESTARTS {
        scene.unnoticed(&format!("restart {number}"), "1.0.0", Stalls::Bounded, restart);
        // Somebody speaks for the first time, to a process that did not open the session.
        scene.crowd.wake(1);
    }

    offer(&scene.site, &scene.site.release("1.1.0"), "1.1.0");
    let ended = scene.unnoticed("update", "1.1.0", Stalls::Bounded, |site| site.agent(&["update", "--json"]));
    assert_eq!((ended.code, &ended.json["outcome"]), (0, &"updated".into()), "{ended:?}");
    nobody_lost(&ended, sessions);

    let ended = scene.unnoticed("rollback", "1.0.0", Stalls::Bounded, |site| site.agent(&["rollback", "--json"]));
    assert_eq!((ended.code, &ended.json["outcome"]), (0, &"rolled_back".into()), "{ended:?}");
    nobody_lost(&ended, sessions);
    scene.stood_still_briefly();

    for (version, defect, binary) in broken {
        let release = Release::new(&format!("v{version}")).binary(architecture(), binary).signed_by(&scene.site.key);
        offer(&scene.site, &release, version);
        let what = format!("update that fails: {}", defect.name());
        let ended = scene.unnoticed(&what, "1.0.0", Stalls::OfAFailure, |site| site.agent(&["update", "--json"]));
        assert_eq!((ended.code, &ended.json["outcome"]), (23, &"rolled_back".into()), "{ended:?}");
        assert_eq!(ended.json["reason"], "unhealthy", "{ended:?}");
        nobody_lost(&ended, sessions);
    }

    let site = scene.leave();
    assert_eq!(site.plane.joins().len(), 1);
}

#[test]
fn a_crowd_at_an_agent_that_is_left_alone_finds_no_fault() {
    if or_skip("a_crowd_at_an_agent_that_is_left_alone_finds_no_fault") {
        return;
    }
    let scene = Scene::with(Mix::sessions(50).and_relay(10));
    scene.crowd.begin_measuring();
    let first = scene.crowd.connections();
    std::thread::sleep(Duration::from_secs(5));
    let stalls = scene.crowd.stalls();
    eprintln!("left alone: worst {:?}, median {:?}\n{}", stalls.worst(), stalls.median(), stalls.table());
    assert!(stalls.all().len() >= 40, "most wanted something\n{}", stalls.table());
    assert!(stalls.worst() < Duration::from_millis(500), "{}", stalls.table());
    assert_eq!(scene.crowd.faults(), [""; 0]);
    assert_eq!(scene.crowd.connections(), first);
    let status = scene.site.status();
    assert_eq!(status["sessions"]["active"], 50, "{status}");
    scene.platform_heard_nothing("left alone");

    scene.crowd.wake(2);
    scene.crowd.goes_on(LIMIT).unwrap();
    assert_eq!(scene.crowd.dialled_again(), [""; 0]);
    scene.leave();
}

#[test]
fn a_crowd_sees_its_agent_die() {
    if or_skip("a_crowd_sees_its_agent_die") {
        return;
    }
    let scene = Scene::with(Mix::sessions(20).and_relay(10));
    scene.site.machine.kill(UNIT, Signal::SIGKILL).unwrap();
    // Those who have nothing to say notice it as well; only slow readers have first to read what is under way.
    let sessions = ["talks", "downloads", "uploads", "idles", "was silent"];
    for way in sessions.into_iter().chain(["websocket", "event stream", "browses", "web download"]) {
        let noticed = until(LIMIT, || scene.crowd.faults().iter().any(|fault| fault.contains(way)));
        assert!(noticed, "{way}: {:#?}", scene.crowd.faults());
    }
    // What the next process dials is seen.
    let relays = |again: &String| again.contains("new relay connections");
    assert!(until(LIMIT, || scene.crowd.dialled_again().iter().any(relays)), "{:?}", scene.crowd.dialled_again());
}
