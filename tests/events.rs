//! The command stream: cut, ended, garbled and flooded, and what the agent makes of what comes over it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, SystemTime};

use bamf_lab::agent::{Agent, Home, LIMIT, NAME};
use bamf_lab::plane::{ControlPlane, Options};
use serde_json::json;

const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");

fn plane() -> ControlPlane {
    ControlPlane::start(Options::default()).unwrap()
}

fn home(plane: &ControlPlane) -> Home {
    Home::settled(BINARY, plane)
}

/// Asks for a session, in a command without a certificate, and waits until the agent has seen it.
fn expect_session(plane: &ControlPlane, agent: &Agent, resource: &str) {
    let data = json!({
        "command": "dial", "session_id": "-an-id", "resource_name": resource, "resource_type": "http",
        "bridge_host": "0.bridge.test", "bridge_port": 443, "later": {"added": [1]},
    });
    assert!(plane.send(NAME, "tunnel_request", &data).is_some());
    agent.expect(resource);
}

#[test]
fn what_is_no_event_is_passed_over_and_the_stream_goes_on() {
    let plane = plane();
    let home = home(&plane);
    let agent = home.connect(&plane);
    let long_line = [b"event: tunnel_request\ndata: ".to_vec(), vec![b'x'; 2 << 20], b"\n\n".to_vec()].concat();
    let pieces: [&[u8]; 10] = [
        b": a comment\n\n",
        b"\r\n\r\n\n",
        b"event: tunnel_request\ndata: {broken\n\n",
        b"event: tunnel_request\ndata: [1, 2]\n\n",
        b"event: tunnel_request\ndata: {\"command\": \"shrink\"}\n\n",
        b"data: {}\n\n",
        b"event: revoke\n\n",
        b"event: \xff\xfe\x00\ndata: \xff\n\n",
        b"event: config_push\ndata: {\"since\": \"2.0\"}\n\n",
        &long_line,
    ];
    for piece in pieces {
        assert_eq!(plane.send_raw_to_streams(piece), 1);
    }
    expect_session(&plane, &agent, "session-after-all-that");
    for words in [
        "its data is not a JSON object",
        "unknown tunnel command",
        "without a name",
        "without data",
        "config_push",
        "larger than 1 MiB",
    ] {
        agent.expect(words);
    }
    assert_eq!((plane.stream_opens(), plane.open_streams().len()), (1, 1));
    agent.expect_ready(200);
}

#[test]
fn a_command_that_lacks_something_is_answered_by_a_line_that_says_what() {
    let plane = plane();
    let home = home(&plane);
    let agent = home.connect(&plane);
    expect_session(&plane, &agent, "session-one");
    agent.expect("the certificate that came with the command cannot be used");
    let relay = json!({"command": "relay_connect", "bridge_port": 443});
    assert!(plane.send(NAME, "relay_connect", &relay).is_some());
    agent.expect("names no bridge");
    let endless = json!({"session_id": "x".repeat(300), "resource_name": "wiki"});
    assert!(plane.send(NAME, "tunnel_request", &endless).is_some());
    agent.expect("an impossible id");
}

#[test]
fn an_answer_cannot_forge_a_line_of_the_log() {
    let plane = plane();
    let home = home(&plane);
    let agent = home.connect(&plane);
    expect_session(&plane, &agent, "forged\n{\"level\":\"ERROR\"}\u{1b}[31m".split('\n').next().unwrap());
    let forged = "x\n{\"level\":\"FORGED\"}\u{1b}[31mred";
    for (id, resource) in [("id", forged), (forged, "w")] {
        let data = json!({"command": "dial", "session_id": id, "resource_name": resource});
        assert!(plane.send(NAME, "tunnel_request", &data).is_some());
    }
    agent.expect("FORGED");
    agent.expect("an impossible id");
    let log = agent.log();
    assert!(!log.contains('\u{1b}') && log.lines().all(|line| line.starts_with("{\"timestamp\"")), "{log}");
}

#[test]
fn a_stream_that_ends_is_opened_again_at_once_and_there_are_never_two() {
    std::thread::scope(|scope| {
        for cut in [false, true] {
            scope.spawn(move || ends_and_opens(cut));
        }
    });
}

fn ends_and_opens(cut: bool) {
    let plane = plane();
    let mut home = home(&plane);
    // The default; other tests are in a hurry.
    home.set("BAMF_RECONNECT_BASE_DELAY", "1s");
    let agent = home.connect(&plane);
    let mut most_open = 0;
    for opens in 2..4 {
        let ended = SystemTime::now();
        assert_eq!(if cut { plane.cut_streams() } else { plane.end_streams() }, 1);
        let opened = plane.wait_for(LIMIT, |seen| {
            most_open = most_open.max(seen.open_streams.len());
            seen.stream_opens == opens && !seen.open_streams.is_empty()
        });
        assert!(opened, "{}", agent.log());
        let gap = plane.open_streams()[0].opened_at.duration_since(ended).unwrap_or_default();
        // 1 s, doubled with each end in a row, and slack for a busy machine.
        let limit = Duration::from_secs(1 << (opens - 2)) + Duration::from_millis(1500);
        assert!(gap < limit, "cut: {cut}, open {opens}: {gap:?}");
    }
    assert_eq!(most_open, 1);
    assert!(!agent.log().contains("a command was ignored"), "half an event was obeyed:\n{}", agent.log());
    expect_session(&plane, &agent, "session-on-the-new-stream");
}

#[test]
fn a_command_that_came_while_no_stream_was_open_is_delivered_to_the_next() {
    let plane = plane();
    let home = home(&plane);
    let agent = home.connect(&plane);
    plane.end_streams();
    assert!(plane.wait_for(LIMIT, |seen| seen.open_streams.is_empty()));
    expect_session(&plane, &agent, "session-in-the-gap");
}

#[test]
fn a_revoked_agent_ends_with_advice_and_says_no_goodbye() {
    let revoked = plane();
    let home_of_revoked = home(&revoked);
    let agent = home_of_revoked.connect(&revoked);
    let before = home_of_revoked.files();
    revoked.revoke_certificate(&revoked.heartbeats()[0].certificate_sha256);
    agent.wait(LIMIT).expect(78, &["revoked agent edge-1: Certificate revoked", "join --force", "new join token"]);
    assert_eq!(home_of_revoked.files(), before, "the certificate stays where it is");

    let deleted = plane();
    let home_of_deleted = home(&deleted);
    let agent = home_of_deleted.connect(&deleted);
    assert!(deleted.delete_agent(NAME));
    agent.wait(LIMIT).expect(78, &["Agent deleted by administrator", "join --force"]);
    for plane in [&revoked, &deleted] {
        assert!(plane.drains().is_empty() && plane.offlines().is_empty());
        assert!(plane.requests().iter().all(|request| !request.path.ends_with("/drain")));
    }
}

#[test]
fn a_silent_stream_is_not_taken_for_a_broken_one_too_early() {
    let plane = plane();
    let home = home(&plane);
    let agent = home.connect(&plane);
    plane.silence_streams(true);
    // Longer than any time limit of a call that is not the stream's own would be unkind to the suite; the limit itself is
    // tested at unit level, on virtual time.
    assert!(!plane.wait_for(Duration::from_secs(3), |seen| seen.stream_opens > 1));
    agent.expect_ready(200);
}
