//! The life of the agent on its machine: start, restart, shutdown, and what it offers locally.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::Duration;

use bamf_lab::agent::{Home, LIMIT, NAME, until, write};
use bamf_lab::plane::{ControlPlane, Endpoint, Fault, Options};
use bamf_lab::proxy::Proxy;
use nix::sys::signal::Signal;

const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");

fn plane() -> ControlPlane {
    ControlPlane::start(Options::default()).unwrap()
}

fn home(plane: &ControlPlane) -> Home {
    Home::settled(BINARY, plane)
}

#[test]
fn an_agent_joins_once_and_comes_back_with_the_same_certificate_and_instance() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    let agent = home.connect(&plane);
    let (certificate, instance) = (home.fingerprint(), home.status()["instance_id"].clone());
    assert_eq!(certificate, plane.joins()[0].certificate_sha256);
    agent.kill();
    let agent = home.connect(&plane);
    assert_eq!(home.fingerprint(), certificate);
    assert_eq!(home.status()["instance_id"], instance, "a crash keeps the instance id");
    assert_eq!(agent.terminate(LIMIT).code, 0);
    let agent = home.connect(&plane);
    assert_eq!(home.fingerprint(), certificate);
    assert_ne!(home.status()["instance_id"], instance, "what has drained stays drained");
    assert_eq!((plane.joins().len(), plane.join_attempts()), (1, 1));
    drop(agent);
    assert_eq!(home.fingerprint(), certificate, "without an agent the disk is read");
}

#[test]
fn the_token_may_be_revoked_and_removed_after_the_join() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    drop(home.connect(&plane));
    let agent = home.connect(&plane);
    assert!(agent.log().contains("no longer needed"), "the token still stands in the configuration");
    drop(agent);
    home.configure(&format!("platform_url: {}\n", plane.url()));
    let agent = home.connect(&plane);
    assert!(!agent.log().contains("no longer needed"));
    assert_eq!(plane.join_attempts(), 1);
}

/// The last parts of the paths that were asked for, in order.
fn calls(plane: &ControlPlane) -> Vec<String> {
    let requests = plane.requests();
    requests.iter().filter_map(|request| request.path.rsplit('/').next().map(str::to_owned)).collect()
}

#[test]
fn a_stop_drains_and_then_goes_offline_and_no_heartbeat_follows() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let plane = plane();
        let home = home(&plane);
        let agent = home.connect(&plane);
        let instance = home.status()["instance_id"].as_str().unwrap().to_owned();
        agent.signal(signal);
        agent.wait(LIMIT).expect(0, &["shutting down", "bye"]);
        let calls = calls(&plane);
        let at = |name: &str| calls.iter().position(|call| call == name);
        let (drain, offline) = (at("drain").unwrap(), at("offline").unwrap());
        assert!(drain < offline, "{calls:?}");
        assert_eq!(offline, calls.len() - 1, "nothing comes after: {calls:?}");
        assert_eq!((&plane.drains()[0].instance_id, &plane.offlines()[0].instance_id), (&instance, &instance));
        assert!(plane.open_streams().is_empty());
    }
}

#[test]
fn a_heartbeat_under_way_is_answered_before_the_agent_goes_offline() {
    let plane = plane();
    let home = home(&plane);
    let agent = home.connect(&plane);
    plane.inject(Endpoint::Heartbeat, Fault::Delay(Duration::from_secs(1)), 1);
    let before = calls(&plane).iter().filter(|call| *call == "heartbeat").count();
    assert!(plane.wait_for(LIMIT, |seen| {
        seen.requests.iter().filter(|request| request.path.ends_with("/heartbeat")).count() > before
    }));
    let finished = agent.terminate(LIMIT);
    assert_eq!(finished.code, 0);
    let (last_beat, offline) = (plane.heartbeats().last().unwrap().at, plane.offlines()[0].at);
    assert!(last_beat <= offline, "a heartbeat after offline would enter the instance again");
    let slow =
        plane.requests().iter().filter(|request| request.path.ends_with("/heartbeat")).all(|r| r.status == Some(200));
    assert!(slow, "the heartbeat was cut off while the platform worked on it");
}

#[test]
fn an_agent_whose_log_nobody_reads_any_more_goes_on() {
    let plane = plane();
    let home = home(&plane);
    let mut child = home.command(&["run"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert!(plane.wait_for(LIMIT, |seen| seen.heartbeats.total() > 1 && !seen.open_streams.is_empty()));
    plane.end_streams();
    assert!(plane.wait_for(LIMIT, |seen| seen.stream_opens > 1), "it died of its own log");
    assert!(until(LIMIT, || home.status()["api"]["connected"] == true));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(plane.offlines().len(), 1);
}

#[test]
fn the_control_socket_is_private_and_one_that_a_dead_agent_left_is_replaced() {
    let plane = plane();
    let home = home(&plane);
    std::fs::create_dir(home.runtime_dir()).unwrap();
    let socket = home.runtime_dir().join("agent.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(home.status()["pid"], serde_json::Value::Null, "nobody answers there");
    let agent = home.connect(&plane);
    assert_eq!(home.status()["pid"], agent.pid());
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let mode = |name: &str| home.data_dir().join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("instance.json"), 0o600);
    agent.kill();
    let agent = home.connect(&plane);
    assert_eq!(home.status()["pid"], agent.pid());
}

#[test]
fn the_directories_that_the_agent_makes_are_private() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    drop(home.connect(&plane));
    let mode = |path: std::path::PathBuf| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(home.data_dir()), 0o700);
    let modes = ["agent.crt", "agent.key", "ca.crt", ".lock"].map(|name| mode(home.data_dir().join(name)) & 0o077);
    assert_eq!(modes, [0, 0, 0o044, modes[3]]);
    assert_eq!(modes[3] & 0o022, 0, "nobody else can write the lock");
}

#[test]
fn a_second_agent_on_the_same_data_or_the_same_socket_is_refused_and_the_first_goes_on() {
    let plane = plane();
    let home = home(&plane);
    let agent = home.connect(&plane);
    let data_dir = home.data_dir().display().to_string();
    home.run(&["run"]).expect(1, &["another bamf-agent uses", &data_dir, "data_dir"]);
    let other_data = home.path("other").display().to_string();
    let yaml = format!("platform_url: {}\ndata_dir: {other_data}\nlisten: 127.0.0.1:0\n", plane.url());
    std::fs::create_dir(home.path("other")).unwrap();
    for name in ["agent.crt", "agent.key", "ca.crt"] {
        std::fs::copy(home.data_dir().join(name), home.path("other").join(name)).unwrap();
    }
    write(home.path("agent.yaml"), yaml);
    home.run(&["run"]).expect(1, &["another bamf-agent answers on", "--runtime-dir"]);
    assert_eq!(home.status()["pid"], agent.pid());
    agent.expect_ready(200);
}

#[test]
fn the_health_port_serves_the_go_agents_paths_and_metrics() {
    let plane = plane();
    let home = home(&plane);
    let agent = home.connect(&plane);
    agent.expect_ready(200);
    assert_eq!(agent.get("/health"), (200, "ok\n".into()));
    assert_eq!(agent.get("/ready"), (200, "ready\n".into()));
    assert_eq!(agent.get("/nothing").0, 404);
    let (status, metrics) = agent.get("/metrics");
    assert_eq!(status, 200);
    for line in ["bamf_agent_active_tunnels 0", "bamf_agent_active_relay 0", "bamf_agent_connected 1"] {
        assert!(metrics.lines().any(|found| found == line), "{line} is missing in\n{metrics}");
    }
    plane.inject(Endpoint::Heartbeat, Fault::Status(500), 1_000_000);
    agent.expect_ready(503);
    assert_eq!(agent.get("/ready"), (503, "not ready\n".into()));
    let (_, metrics) = agent.get("/metrics");
    assert!(metrics.contains("bamf_agent_connected 0") && metrics.contains("outcome=\"failed\""), "{metrics}");
}

#[test]
fn the_status_has_the_fields_of_the_contract_with_and_without_an_agent() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    let before = home.status();
    assert_eq!((&before["pid"], &before["certificate"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    let agent = home.connect(&plane);
    agent.expect_ready(200);
    let running = home.status();
    assert_eq!(running["pid"], agent.pid());
    assert_eq!(running["agent_id"], plane.joins()[0].agent_id);
    assert_eq!(running["api"]["url"], plane.url());
    assert_eq!((&running["api"]["connected"], &running["api"]["last_error"]), (&true.into(), &serde_json::Value::Null));
    assert!(running["api"]["last_heartbeat"].is_string() && running["started_at"].is_string());
    let text = home.run(&["status"]);
    for words in ["runs since", &agent.pid().to_string(), ": connected", "valid until", "0 active"] {
        assert!(text.stdout.contains(words), "{words} is missing in\n{}", text.stdout);
    }
    agent.kill();
    let after = home.status();
    let keys = |status: &serde_json::Value| status.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!((keys(&before), keys(&after)), (keys(&running), keys(&running)));
    assert_eq!((&after["certificate"], &after["agent_id"]), (&running["certificate"], &running["agent_id"]));
    assert_eq!(after["api"]["connected"], false);
    assert!(home.run(&["status"]).stdout.contains("is not running"));
}

#[test]
fn a_health_port_or_runtime_directory_that_cannot_be_had_is_said_and_the_agent_runs() {
    let plane = plane();
    let home = home(&plane);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let yaml = format!(
        "platform_url: {}\ndata_dir: {}\nlisten: {}\n",
        plane.url(),
        home.data_dir().display(),
        taken.local_addr().unwrap()
    );
    write(home.path("agent.yaml"), yaml);
    write(home.runtime_dir(), "in the way");
    let agent = home.connect(&plane);
    agent.expect("/health, /ready and /metrics are not served");
    agent.expect("`bamf-agent status` and `update` will not see this agent");
    let address = taken.local_addr().unwrap().to_string();
    let runtime_dir = home.runtime_dir().display().to_string();
    let log = agent.log();
    assert!(log.contains(&address) && log.contains(&runtime_dir), "{log}");
    assert_eq!(agent.terminate(LIMIT).code, 0);
}

/// A plane under a name that only the proxy can find.
fn named_plane() -> (ControlPlane, String) {
    let options = Options { server_names: vec!["platform.example".into()], ..Options::default() };
    let plane = ControlPlane::start(options).unwrap();
    let url = plane.url().replace("localhost", "platform.example");
    (plane, url)
}

#[test]
fn a_proxy_carries_the_join_the_heartbeats_and_the_stream() {
    let (plane, url) = named_plane();
    let proxy = Proxy::start().unwrap();
    let mut home = Home::of(BINARY, &plane, "");
    home.configure(&format!("platform_url: {url}\nagent_name: {NAME}\njoin_token: {}\n", plane.issue_token(1)));
    home.set("HTTPS_PROXY", &proxy.url());
    let agent = home.connect(&plane);
    agent.expect_ready(200);
    let target = url.trim_start_matches("https://").to_owned();
    let asked = proxy.asked();
    assert!(!asked.is_empty() && asked.iter().all(|asked| *asked == target), "{asked:?}");
}

#[test]
fn a_host_of_no_proxy_is_reached_directly_and_so_is_the_loopback() {
    let (plane, url) = named_plane();
    let proxy = Proxy::start().unwrap();
    let mut home = Home::of(BINARY, &plane, "");
    home.configure(&format!("platform_url: {url}\nagent_name: {NAME}\njoin_token: {}\n", plane.issue_token(1)));
    home.set("HTTPS_PROXY", &proxy.url());
    home.set("NO_PROXY", "platform.example");
    let agent = home.start();
    agent.expect("cannot be reached");
    drop(agent);
    home.set("NO_PROXY", "");
    home.configure(&format!(
        "platform_url: {}\nagent_name: {NAME}\njoin_token: {}\n",
        plane.url(),
        plane.issue_token(1)
    ));
    drop(home.connect(&plane));
    assert_eq!(proxy.asked(), Vec::<String>::new());
}

#[test]
fn a_proxy_that_is_down_is_named_without_its_password() {
    let (plane, url) = named_plane();
    let mut home = Home::of(BINARY, &plane, "");
    home.configure(&format!("platform_url: {url}\nagent_name: {NAME}\njoin_token: {}\n", plane.issue_token(1)));
    home.set("HTTPS_PROXY", "http://someone:hunter2@127.0.0.1:1");
    let agent = home.start();
    agent.expect("trying again");
    assert!(!agent.log().contains("hunter2") && !home.run(&["config", "show"]).stdout.contains("hunter2"));
    assert!(
        agent.log().contains("proxy") || agent.log().contains("tunnel") || agent.log().contains("refused"),
        "{}",
        agent.log()
    );
}
