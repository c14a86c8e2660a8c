//! The connections to bridges: how many, to whom, under which certificate, and what is told of them.

use std::time::{Duration, SystemTime};

use bamf_lab::agent::{Agent, Home, LIMIT, NAME, until};
use bamf_lab::bridge::{Bridge, BridgeOptions, Reap};
use bamf_lab::plane::{self, ControlPlane};
use bamf_lab::visitor::{Resource, Visitor};

use super::scene::{BINARY, POOL, Scene, served, wiki};

/// A bridge of this name, at this edge.
fn bridge(plane: &ControlPlane, id: &str, edge: &str) -> Bridge {
    Bridge::start(plane, BridgeOptions { id: id.into(), edge: edge.into(), ..BridgeOptions::default() }).unwrap()
}

/// A sample of the agent's metrics.
fn metric(agent: &Agent, name: &str) -> u64 {
    let (_, text) = agent.get("/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is missing in\n{text}")).parse().unwrap()
}

#[test]
fn forty_slow_requests_share_thirty_two_connections_and_all_are_answered() {
    let scene = Scene::open();
    let visitor = scene.visitor();
    let most = std::thread::scope(|scope| {
        let slow = scope.spawn(move || visitor.measure("/slow/400", 40, 120));
        let (mut most, mut busy) = (0, 0);
        while !slow.is_finished() {
            most = most.max(scene.bridge.relays(NAME));
            busy = busy.max(scene.bridge.busy_relays(NAME));
            std::thread::sleep(Duration::from_millis(1));
        }
        let measured = slow.join().unwrap();
        assert_eq!((measured.good, measured.refused, measured.failed), (120, 0, 0), "{measured:?}");
        assert_eq!(busy, POOL);
        most
    });
    assert_eq!(most, POOL);
    assert_eq!(scene.bridge.relays_ever(NAME), POOL);
}

#[test]
fn connections_that_the_bridge_reaps_are_replaced() {
    let scene = Scene::open();
    assert_eq!(scene.bridge.reap(NAME, Reap::One), 1);
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.relays_ever(NAME) == POOL + 1));
    scene.full();
    for round in 1..=3 {
        assert_eq!(scene.bridge.reap(NAME, Reap::All), POOL);
        let (took, failed) = served(&scene.visitor());
        println!("served again {took:?} after the reaper, {failed} attempts failed");
        assert!(took < super::scene::SOON, "{took:?}");
        scene.full();
        let ever = scene.bridge.relays_ever(NAME);
        assert!(ever <= POOL * (round + 1) + 1, "{ever}: the pool is never overfilled");
    }
}

#[test]
fn another_bridge_for_the_same_edge_gets_a_pool_and_the_old_one_serves_on() {
    let scene = Scene::open();
    let other = bridge(&scene.plane, "bridge-1", "");
    scene.plane.command_relay(NAME, "bridge-1").unwrap();
    assert!(other.wait_for(LIMIT, |bridge| bridge.relays(NAME) == POOL), "{}", scene.agent.log());
    let port = scene.target.address().port();
    let through = Visitor::new(other.internal_address(), NAME, Resource::web("wiki", "127.0.0.1", port));
    assert_eq!(through.get("/moved").unwrap().status, 200);
    scene.still_serves();
    // The one that is gone is not looked for, and not remembered.
    scene.bridge.kill();
    let states = || scene.home.status()["relays"].as_array().unwrap().len();
    assert!(until(LIMIT, || states() == 1), "{}", scene.home.status());
    assert_eq!(scene.home.status()["relays"][0]["bridge"], format!("localhost:{}", other.port()));
    assert!(until(LIMIT, || remembered(&scene.home).contains(&other.port().to_string())));
    assert!(!remembered(&scene.home).contains(&scene.bridge.port().to_string()));
    assert_eq!(through.get("/still-there").unwrap().status, 200);
}

fn remembered(home: &Home) -> String {
    std::fs::read_to_string(home.data_dir().join("relays.json")).unwrap_or_default()
}

#[test]
fn two_edges_have_two_pools_and_their_distances_are_reported() {
    let scene = Scene::open();
    let far = bridge(&scene.plane, "bridge-eu", "eu");
    assert!(scene.plane.ask_for_relay(NAME, "eu").unwrap().1);
    assert!(far.wait_for(LIMIT, |bridge| bridge.relays(NAME) == POOL), "{}", scene.agent.log());
    let port = scene.target.address().port();
    let through = Visitor::new(far.internal_address(), NAME, Resource::web("wiki", "127.0.0.1", port));
    assert_eq!(through.get("/eu").unwrap().status, 200);
    scene.still_serves();
    assert_eq!(scene.bridge.relays(NAME), POOL, "the default edge keeps its own");
    let reported = scene
        .plane
        .wait_for(LIMIT, |seen| seen.heartbeats.last().is_some_and(|beat| beat.body["edge_rtts"]["eu"].is_u64()));
    assert!(reported, "{:?}", scene.plane.heartbeats().last());
    let status = scene.home.status();
    let edges: Vec<_> =
        status["relays"].as_array().unwrap().iter().map(|pool| pool["edge"].as_str().unwrap()).collect();
    assert_eq!(edges.len(), 2);
    assert!(edges.contains(&"") && edges.contains(&"eu"), "{edges:?}");
}

#[test]
fn the_status_and_the_metrics_tell_what_the_relay_does() {
    let scene = Scene::of("");
    assert_eq!(scene.home.status()["relays"], serde_json::json!([]));
    assert_eq!(metric(&scene.agent, "bamf_agent_active_relay"), 0);
    let scene = scene.opened();
    for path in ["/a", "/b", "/redirect/c", "/status/404", "/status/500"] {
        scene.visitor().get(path).unwrap();
    }
    scene.visitor_of(Resource::web("wiki", "127.0.0.1", 22)).get("/").unwrap();
    scene.visitor().get("/reset/100").unwrap_err();
    scene.full();
    let requests = |outcome: &str| format!("bamf_agent_relay_requests_total{{outcome=\"{outcome}\"}}");
    for (outcome, count) in [("2xx", 2), ("3xx", 1), ("4xx", 1), ("5xx", 1), ("agent", 1), ("cut_off", 1), ("1xx", 0)] {
        assert_eq!(metric(&scene.agent, &requests(outcome)), count, "{outcome}");
    }
    assert_eq!(metric(&scene.agent, "bamf_agent_active_relay"), 1);
    assert_eq!(metric(&scene.agent, "bamf_agent_relay_connections"), POOL as u64);
    assert_eq!(metric(&scene.agent, "bamf_agent_relay_requests_in_flight"), 0);
    let bytes =
        |direction: &str| metric(&scene.agent, &format!("bamf_agent_relay_bytes_total{{direction=\"{direction}\"}}"));
    assert!((1000..10_000).contains(&bytes("from_bridge")), "{}", bytes("from_bridge"));
    assert!((500..10_000).contains(&bytes("to_bridge")), "{}", bytes("to_bridge"));
    let relays = scene.home.status()["relays"].clone();
    assert_eq!(relays.as_array().unwrap().len(), 1);
    assert_eq!(relays[0]["edge"], "");
    assert_eq!(relays[0]["bridge"], format!("localhost:{}", scene.bridge.port()));
    assert_eq!(relays[0]["state"], "connected");
    assert_eq!(relays[0]["connections"], POOL);
    assert_eq!(relays[0]["streams"], 0);
    assert_eq!(relays[0]["requests"], 7);
    assert_eq!(relays[0]["last_error"], serde_json::Value::Null);
    // One under way is seen as such.
    let waiting = std::thread::spawn({
        let visitor = scene.visitor();
        move || visitor.get("/never").unwrap().status
    });
    assert!(until(LIMIT, || metric(&scene.agent, "bamf_agent_relay_requests_in_flight") == 1));
    scene.target.resume();
    assert_eq!(waiting.join().unwrap(), 200);
    scene.bridge.kill();
    assert!(until(LIMIT, || metric(&scene.agent, "bamf_agent_active_relay") == 0));
    assert!(until(LIMIT, || scene.home.status()["relays"][0]["last_error"].is_string()), "{}", scene.home.status());
    assert_eq!(scene.home.status()["relays"][0]["state"], "connecting");
}

#[test]
fn a_renewed_certificate_is_used_for_new_connections_while_the_old_ones_serve_on() {
    let options = plane::Options { certificate_lifetime: Duration::from_secs(3600), ..plane::Options::default() };
    let plane = ControlPlane::start(options).unwrap();
    let bridge = Bridge::start(&plane, BridgeOptions::default()).unwrap();
    let target = bamf_lab::targets::Target::http(&bamf_lab::serve::Network::Host).unwrap();
    let port = target.address().port();
    let home = Home::of(BINARY, &plane, &format!("resources:\n{}\n", wiki(port, "")));
    // Half of its life is over in eight seconds from now; all of it in sixteen.
    let now = SystemTime::now();
    let old = plane.ca().identity(NAME, now, now + Duration::from_secs(16)).unwrap();
    plane.register(&old);
    home.store(&old);
    let agent = home.connect(&plane);
    assert!(plane.ask_for_relay(NAME, "").unwrap().1);
    assert!(bridge.wait_for(LIMIT, |bridge| bridge.relays(NAME) == POOL), "{}", agent.log());
    assert_eq!(plane.renewals().len(), 0, "the relay was open before");
    let visitor = Visitor::new(bridge.internal_address(), NAME, Resource::web("wiki", "127.0.0.1", port));
    assert_eq!(visitor.get("/before").unwrap().status, 200);
    agent.expect("the certificate was renewed");
    assert_eq!(visitor.get("/after").unwrap().status, 200);
    assert_eq!(bridge.relays_ever(NAME), POOL, "nothing was dialled anew for it");
    // The bridge takes no certificate that is over.
    let over = old_is_over(now);
    std::thread::sleep(over);
    bridge.reap(NAME, Reap::All);
    assert!(bridge.wait_for(LIMIT, |bridge| bridge.relays(NAME) == POOL), "{}", agent.log());
    assert_eq!((visitor.get("/new").unwrap().status, bridge.failed_handshakes()), (200, 0));
}

/// How long until the first certificate of the test has ended.
fn old_is_over(from: SystemTime) -> Duration {
    (from + Duration::from_secs(17)).duration_since(SystemTime::now()).unwrap_or_default()
}

#[test]
fn a_revoked_agent_closes_its_relay_and_ends() {
    let scene = Scene::open();
    let identity = scene.home.fingerprint();
    scene.plane.revoke_certificate(&identity);
    let Scene { agent, bridge, .. } = scene;
    let finished = agent.wait(LIMIT);
    assert_ne!(finished.code, 137, "{}", finished.stderr);
    assert!(finished.stderr.contains("revoke"), "{}", finished.stderr);
    drop(bridge);
}

#[test]
fn a_relay_command_that_makes_no_sense_is_ignored() {
    let scene = Scene::of("");
    let ca = scene.plane.ca_pem();
    let commands = [
        serde_json::json!({"command": "relay_connect"}),
        serde_json::json!({"command": "relay_connect", "bridge_host": "", "bridge_port": 1, "ca_certificate": ca}),
        serde_json::json!({"command": "relay_connect", "bridge_host": "a b", "bridge_port": 1, "ca_certificate": ca}),
        serde_json::json!({"command": "relay_connect", "bridge_host": "localhost", "bridge_port": 0}),
        serde_json::json!({"command": "relay_connect", "bridge_host": "localhost", "bridge_port": 99999}),
        serde_json::json!({"command": "relay_connect", "bridge_host": 5, "bridge_port": "x", "edge": []}),
        serde_json::json!({"command": "relay_connect", "bridge_host": "localhost", "bridge_port": 1, "edge": "e".repeat(1000)}),
    ];
    for command in &commands {
        scene.plane.send(NAME, "relay_connect", command).unwrap();
    }
    // Commands are carried out in order: when this one is, the others were looked at.
    let scene = scene.opened();
    assert_eq!(scene.home.status()["relays"].as_array().unwrap().len(), 1, "{}", scene.home.status());
    // An authority that cannot be read is none: the stored one counts.
    let other = bridge(&scene.plane, "bridge-eu", "eu");
    let command = serde_json::json!({
        "command": "relay_connect", "bridge_host": "localhost", "bridge_port": other.port(), "ca_certificate": "no PEM",
        "edge": "eu", "later": {"unknown": true},
    });
    scene.plane.send(NAME, "relay_connect", &command).unwrap();
    assert!(other.wait_for(LIMIT, |bridge| bridge.relays(NAME) == POOL), "{}", scene.agent.log());
}

#[test]
fn a_bridge_under_another_authority_gets_nothing() {
    let scene = Scene::of("");
    let stranger = ControlPlane::start(plane::Options::default()).unwrap();
    let false_bridge = Bridge::start(&stranger, BridgeOptions::default()).unwrap();
    let command = serde_json::json!({
        "command": "relay_connect", "bridge_host": "localhost", "bridge_port": false_bridge.port(),
        "ca_certificate": scene.plane.ca_pem(),
    });
    scene.plane.send(NAME, "relay_connect", &command).unwrap();
    assert!(false_bridge.wait_for(LIMIT, |bridge| bridge.failed_handshakes() > 1), "{}", scene.agent.log());
    assert_eq!((false_bridge.relays_ever(NAME), false_bridge.handshakes()), (0, 0));
    assert!(scene.home.status()["relays"][0]["last_error"].is_string());
    // The true one is found all the same.
    scene.plane.command_relay(NAME, scene.bridge.id()).unwrap();
    scene.full();
    scene.still_serves();
}

#[test]
fn thousands_of_requests_leave_memory_and_descriptors_where_they_were() {
    let scene = Scene::open();
    let used = || {
        let pid = scene.agent.pid();
        (bamf_lab::bench::process::memory(pid, "Rss:").unwrap(), bamf_lab::bench::process::descriptors(pid))
    };
    let warm = scene.visitor().measure("/big/1024", 8, 4_000);
    assert_eq!(warm.good, 4_000);
    let before = used();
    let measured = scene.visitor().measure("/big/1024", 8, 20_000);
    assert_eq!((measured.good, measured.bytes), (20_000, 20_000 * 1024));
    let after = used();
    println!("before {before:?}, after {after:?}, {:.0} requests/s", measured.rate());
    assert!(after.0 < before.0 + (2 << 20), "{before:?} {after:?}");
    // Idle connections to the target come and go with the load.
    assert!(after.1 <= before.1 + 8, "{before:?} {after:?}");
    assert_eq!(scene.bridge.relays_ever(NAME), POOL);
}
