//! The real agent against the lab's control plane, over TLS, without a service manager.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bamf_lab::agent::{Agent, Home};
use bamf_lab::plane::{ControlPlane, Options};

/// Generous: a machine that is busy with other tests is slow, and only a failure waits this long.
const LIMIT: Duration = Duration::from_secs(30);

const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");

fn plane() -> ControlPlane {
    ControlPlane::start(Options::default()).unwrap()
}

/// A home with a token for one join.
fn home(plane: &ControlPlane) -> Home {
    let token = plane.issue_token(1);
    Home::of(BINARY, plane, &format!("agent_name: edge-1\njoin_token: {token}\n"))
}

/// Starts the agent and waits until it is connected.
fn connect(plane: &ControlPlane, home: &Home) -> Agent {
    let opened = plane.stream_opens();
    let beats = plane.heartbeats().len();
    let agent = home.start();
    let connected = plane.wait_for(LIMIT, |seen| seen.heartbeats.total() > beats && seen.stream_opens > opened);
    assert!(connected, "not connected:\n{}", agent.log());
    agent
}

fn fingerprint(home: &Home) -> String {
    home.status()["certificate"]["sha256"].as_str().unwrap_or_else(|| panic!("no certificate")).to_owned()
}

#[test]
fn an_agent_joins_once_and_comes_back_with_the_same_certificate_and_instance() {
    let plane = plane();
    let home = home(&plane);
    let agent = connect(&plane, &home);
    let (certificate, instance) = (fingerprint(&home), home.status()["instance_id"].clone());
    agent.kill();
    let agent = connect(&plane, &home);
    assert_eq!(fingerprint(&home), certificate);
    assert_eq!(home.status()["instance_id"], instance, "a crash keeps the instance id");
    assert_eq!(agent.terminate(LIMIT).code, 0);
    let _agent = connect(&plane, &home);
    assert_eq!(fingerprint(&home), certificate);
    assert_eq!(plane.joins().len(), 1);
    assert_eq!(plane.join_attempts(), 1);
}

#[test]
fn the_token_may_be_revoked_and_removed_after_the_join() {
    let plane = plane();
    let home = home(&plane);
    drop(connect(&plane, &home));
    home.configure(&format!("platform_url: {}\nagent_name: edge-1\n", plane.url()));
    let agent = connect(&plane, &home);
    assert!(!agent.log().contains("no longer needed"));
    assert_eq!(plane.join_attempts(), 1);
}
