//! Agent and bridge come and go, and web requests are served again within a second or two.

use std::cell::Cell;
use std::time::{Duration, Instant};

use bamf_lab::agent::{Agent, LIMIT, NAME, read, until, write};
use bamf_lab::bridge::Bridge;
use bamf_lab::serve::Network;
use bamf_lab::targets::Closed;

use super::scene::{MEMORY, POOL, SOON, Scene, served};

/// Ends the agent as `end` does, starts it again, and measures how long visitors wait. The platform does not ask again.
#[track_caller]
#[expect(clippy::print_stdout, reason = "a figure for whoever reads the run")]
fn restart(scene: Scene, how: &str, end: impl FnOnce(Agent)) -> Scene {
    let (commands, visitor) = (scene.plane.commands().len(), scene.visitor());
    let began = Cell::new(Instant::now());
    let scene = scene.restarted(end, |_, _| began.set(Instant::now()));
    let (_, failed) = served(&visitor);
    let took = began.get().elapsed();
    println!("after {how}: served again {took:?} after the start of the agent; {failed} attempts failed");
    assert!(took < SOON, "{took:?}\n{}", scene.agent.log());
    assert_eq!(scene.plane.commands().len(), commands, "the platform takes the relay for granted");
    scene
}

#[test]
fn an_agent_that_was_killed_serves_again_at_once_without_being_asked() {
    let scene = restart(Scene::open(), "SIGKILL", Agent::kill);
    scene.full();
    scene.still_serves();
}

#[test]
fn an_agent_that_was_stopped_serves_again_at_once_without_being_asked() {
    let scene = restart(Scene::open(), "SIGTERM", |agent| assert_eq!(agent.terminate(LIMIT).code, 0));
    scene.full();
    scene.still_serves();
}

#[test]
fn a_bridge_that_was_killed_or_stopped_is_found_again_at_once() {
    let scene = Scene::open();
    for (how, end) in [("killed", Bridge::kill as fn(&Bridge)), ("stopped", Bridge::stop)] {
        end(&scene.bridge);
        // Away for long enough that the agent has tried in vain.
        assert!(until(LIMIT, || scene.home.status()["relays"][0]["last_error"].is_string()));
        scene.bridge.restart().unwrap();
        let (took, failed) = served(&scene.visitor());
        println!("the bridge was {how}: served again {took:?} after it was back; {failed} attempts failed");
        assert!(took < SOON, "{took:?}\n{}", scene.agent.log());
        scene.full();
    }
}

#[test]
fn a_bridge_that_restarts_in_an_instant_is_found_again_at_once() {
    let scene = Scene::open();
    for _ in 0..3 {
        scene.bridge.restart().unwrap();
        let (took, failed) = served(&scene.visitor());
        println!("served again {took:?} after an instant restart of the bridge; {failed} attempts failed");
        assert!(took < SOON, "{took:?}\n{}", scene.agent.log());
        scene.full();
    }
}

#[test]
fn a_restart_of_agent_and_bridge_together_heals_too() {
    let scene = Scene::open().restarted(Agent::kill, |_, bridge| bridge.kill());
    scene.agent.expect("no relay connection");
    scene.bridge.restart().unwrap();
    let (took, _) = served(&scene.visitor());
    println!("served again {took:?} after both were restarted");
    assert!(took < SOON, "{took:?}\n{}", scene.agent.log());
}

#[test]
fn a_damaged_memory_costs_nothing_but_the_memory() {
    let mut scene = Scene::open();
    assert!(until(LIMIT, || scene.memory().exists()));
    let whole = std::fs::read(scene.memory()).unwrap();
    let huge = vec![b' '; 3 << 20];
    for damage in [&b""[..], b"{", b"\xff\xfe", &whole[..whole.len() / 2], &huge] {
        scene = scene.restarted(Agent::kill, |home, _| write(home.data_dir().join(MEMORY), damage));
        scene.agent.expect("the event stream is open");
        assert_eq!(scene.home.status()["relays"], serde_json::json!([]));
    }
    scene.plane.forget_relays(NAME);
    let scene = scene.opened();
    served(&scene.visitor());
    assert!(until(LIMIT, || std::fs::read(scene.memory()).is_ok_and(|text| text.len() > 100)));
}

#[test]
fn a_memory_that_names_a_bridge_that_is_gone_does_not_keep_the_platform_from_naming_another() {
    let closed = Closed::reserve(&Network::Host).unwrap();
    let scene = Scene::open().restarted(Agent::kill, |home, bridge| {
        let path = home.data_dir().join(MEMORY);
        let (port, gone) = (bridge.port().to_string(), closed.address().port().to_string());
        write(&path, read(&path).replace(&port, &gone));
    });
    scene.agent.expect("no relay connection");
    scene.agent.expect("the event stream is open");
    scene.plane.forget_relays(NAME);
    let scene = scene.opened();
    served(&scene.visitor());
    assert!(until(LIMIT, || scene.home.status()["relays"].as_array().unwrap().len() == 1), "{}", scene.home.status());
}

#[test]
fn a_stop_finishes_the_request_under_way_and_says_good_bye_to_the_bridge() {
    let scene = Scene::open();
    let visitor = scene.visitor();
    let waiting = std::thread::spawn(move || visitor.get("/slow/1500").unwrap());
    assert!(scene.target.wait_for(LIMIT, |seen| seen.requests.len() == 1));
    let Scene { agent, bridge, plane, target, home } = scene;
    let began = Instant::now();
    let finished = agent.terminate(LIMIT);
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let answer = waiting.join().unwrap();
    assert_eq!((answer.status, answer.text()), (200, "at last".into()));
    println!("the agent ended {:?} after SIGTERM", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5), "it waits for the request and no longer");
    assert_eq!((plane.drains().len(), plane.offlines().len()), (1, 1));
    assert_eq!(bridge.relays(NAME), POOL - 1, "the bridge was told that this was the connection's last answer");
    drop((target, home));
}

#[test]
fn a_request_that_outlasts_the_drain_is_cut_off_and_the_agent_ends() {
    let scene = Scene::open();
    let visitor = scene.visitor();
    let waiting = std::thread::spawn(move || visitor.get("/never").map(|answer| answer.status));
    assert!(scene.target.wait_for(LIMIT, |seen| seen.requests.len() == 1));
    let Scene { agent, bridge, plane, target, home } = scene;
    let finished = agent.terminate(LIMIT);
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert!(finished.stderr.contains("cut off"), "{}", finished.stderr);
    assert!(waiting.join().unwrap().is_ok_and(|status| status == 502), "the bridge says so");
    assert!(target.wait_for(LIMIT, |seen| seen.ended == 1));
    drop((bridge, plane, home));
}

#[test]
fn connections_that_a_stop_has_closed_are_no_trap_for_the_next_agents_visitors() {
    let scene = Scene::open().restarted(|agent| assert_eq!(agent.terminate(LIMIT).code, 0), |_, _| {});
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.relays_ever(NAME) == 2 * POOL), "{}", scene.agent.log());
    let measured = scene.visitor().measure("/", 1, 200);
    println!("after a clean stop: {} of 200 requests met a dead connection", measured.refused + measured.failed);
    // The platform's bridge does not watch idle connections either: each costs one 502, once, and no more.
    assert!(measured.refused <= POOL && measured.failed == 0, "{measured:?}");
    assert_eq!(scene.visitor().measure("/", 8, 200).good, 200);
    assert_eq!(scene.bridge.relays(NAME), POOL);
}
