//! The platform misbehaves: every wrong answer on every call, and the agent stays up, says so, and is patient.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant, SystemTime};

use bamf_lab::agent::{Agent, Home, LIMIT, NAME, write};
use bamf_lab::plane::{ControlPlane, Endpoint, Fault, Options, RequestRecord};
use nix::sys::signal::Signal;

const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");

fn plane() -> ControlPlane {
    ControlPlane::start(Options::default()).unwrap()
}

fn home(plane: &ControlPlane) -> Home {
    Home::settled(BINARY, plane)
}

/// What can go wrong and mend itself, and what the agent should say of it.
fn passing_faults() -> Vec<(Fault, &'static str)> {
    vec![
        (Fault::Status(409), "was refused: 409 Agent with this name already exists"),
        (Fault::Status(422), "Field required"),
        (Fault::Status(429), "put off by the rate limit"),
        (Fault::StatusWithRetryAfter(429, 1), "put off by the rate limit"),
        (Fault::Status(500), "failed on the platform's side: 500 Internal server error"),
        (Fault::StatusWithRetryAfter(503, 1), "failed on the platform's side: 503"),
        (Fault::Html(502), "failed on the platform's side: 502 <!DOCTYPE html>"),
        (Fault::Html(200), "was answered by something else"),
        (Fault::Html(401), "was answered by something else: 401 <!DOCTYPE html>"),
        (Fault::Html(404), "was answered by something else: 404 <!DOCTYPE html>"),
        (Fault::Garbage, "was answered by something else"),
        (Fault::WrongShape, "was answered by something else"),
        (Fault::HugeBody, "was answered by something else"),
        (Fault::CutBeforeAnswer, "was not answered"),
        (Fault::Redirect("https://elsewhere.invalid/".into()), "it redirects to https://elsewhere.invalid"),
    ]
}

/// The fault lasts until it has shown everywhere, then it is over.
fn endures(endpoint: Endpoint, fault: &Fault, words: &str) {
    let plane = plane();
    let home = home(&plane);
    let agent = home.connect(&plane);
    agent.expect_ready(200);
    plane.inject(endpoint, fault.clone(), 1_000_000);
    if endpoint == Endpoint::Events {
        plane.end_streams();
    }
    agent.expect(words);
    agent.expect_ready(503);
    let problem = home.problem();
    assert!(problem.contains(words), "{endpoint:?} {fault:?}: {problem}");
    assert_eq!(agent.get("/health").0, 200);
    plane.clear_faults();
    agent.expect_ready(200);
    assert_eq!(home.problem(), "", "{endpoint:?} {fault:?}");
}

fn endures_all(endpoint: Endpoint) {
    std::thread::scope(|scope| {
        for (fault, words) in passing_faults() {
            // An empty object is a valid answer to a heartbeat, and a stream cut before its head is tried elsewhere.
            if !(endpoint == Endpoint::Heartbeat && fault == Fault::WrongShape) {
                scope.spawn(move || endures(endpoint, &fault, words));
            }
        }
    });
}

#[test]
fn an_agent_endures_every_wrong_answer_to_a_heartbeat_and_recovers() {
    endures_all(Endpoint::Heartbeat);
}

#[test]
fn an_agent_endures_every_wrong_answer_to_the_event_stream_and_recovers() {
    endures_all(Endpoint::Events);
}

#[test]
fn a_version_that_cannot_be_learned_disturbs_nothing() {
    for fault in [Fault::Status(500), Fault::Html(200), Fault::Garbage, Fault::HugeBody, Fault::Hang, Fault::CutMidBody]
    {
        let plane = plane();
        let home = home(&plane);
        for endpoint in [Endpoint::Version, Endpoint::Health, Endpoint::OpenApi] {
            plane.inject(endpoint, fault.clone(), 1000);
        }
        let agent = home.connect(&plane);
        agent.expect_ready(200);
        assert_eq!(home.status()["api"]["version"], serde_json::Value::Null, "{fault:?}");
    }
}

#[test]
fn the_certificate_is_not_shown_to_another_origin() {
    let plane = plane();
    let other = ControlPlane::start(Options { tls: false, ..Options::default() }).unwrap();
    for endpoint in [Endpoint::Heartbeat, Endpoint::Events, Endpoint::Renew] {
        plane.inject(endpoint, Fault::Redirect(format!("{}/stolen", other.url())), 1000);
    }
    let home = home(&plane);
    let agent = home.start();
    agent.expect("set platform_url to the address it should be");
    assert!(plane.wait_for(LIMIT, |seen| seen.requests.total() > 6));
    assert_eq!(other.requests().len(), 0);
}

#[test]
fn a_redirect_within_the_origin_is_followed_with_the_certificate() {
    let plane = plane();
    let home = home(&plane);
    let there = format!("{}/api/v1/agents/{NAME}/heartbeat", plane.url());
    plane.inject(Endpoint::Heartbeat, Fault::Redirect(there), 1);
    home.connect(&plane).expect_ready(200);
    assert!(!plane.heartbeats().is_empty());
}

fn to(requests: &[RequestRecord], end: &str) -> Vec<SystemTime> {
    requests.iter().filter(|request| request.path.ends_with(end)).map(|request| request.at).collect()
}

#[test]
fn the_wait_that_the_platform_asks_for_is_kept_on_both_ways() {
    let plane = plane();
    let home = home(&plane);
    plane.inject(Endpoint::Heartbeat, Fault::StatusWithRetryAfter(503, 2), 1);
    plane.inject(Endpoint::Events, Fault::StatusWithRetryAfter(429, 2), 1);
    drop(home.connect(&plane));
    for end in ["/heartbeat", "/events"] {
        let asked = to(&plane.requests(), end);
        let gap = asked[1].duration_since(asked[0]).unwrap();
        assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&gap), "{end}: {gap:?}");
    }
}

#[test]
fn an_agent_for_which_everything_fails_asks_no_more_often_than_it_should() {
    let plane = plane();
    let mut home = home(&plane);
    // The default; other tests are in a hurry.
    home.set("BAMF_RECONNECT_BASE_DELAY", "1s");
    plane.inject(Endpoint::All, Fault::Status(500), 1_000_000);
    let agent = home.start();
    agent.expect("trying again");
    std::thread::sleep(Duration::from_secs(4));
    let requests = plane.requests();
    for end in ["/heartbeat", "/events"] {
        let count = to(&requests, end).len();
        assert!((1..=12).contains(&count), "{count} to {end} in 4 s");
    }
    assert!(requests.len() < 30, "{}", requests.len());
}

#[test]
fn a_platform_that_refuses_connections_is_named_and_found_again() {
    let plane = plane();
    let home = home(&plane);
    let agent = home.connect(&plane);
    plane.stop_listening();
    agent.expect_ready(503);
    agent.expect("cannot be reached");
    assert!(home.problem().contains("Connection refused"), "{}", home.problem());
    plane.resume().unwrap();
    agent.expect_ready(200);
    assert_eq!(plane.join_attempts(), 0);
}

#[test]
fn an_authority_that_is_not_trusted_is_named() {
    let plane = plane();
    let mut home = home(&plane);
    let other = ControlPlane::start(Options::default()).unwrap();
    write(home.path("other.pem"), other.web_ca_pem());
    home.set("SSL_CERT_FILE", &home.path("other.pem").display().to_string());
    let agent = home.start();
    agent.expect("trying again");
    let problem = home.problem();
    assert!(problem.contains("invalid peer certificate"), "{problem}");
    assert_eq!(plane.requests().len(), 0);
}

/// Ends an agent whose platform hangs.
fn ends_soon(agent: Agent, limit: Duration) {
    let asked = Instant::now();
    assert_eq!(agent.terminate(LIMIT).code, 0);
    assert!(asked.elapsed() < limit, "{:?}", asked.elapsed());
}

#[test]
fn an_agent_whose_platform_hangs_answers_locally_and_ends_within_the_units_limit() {
    let plane = plane();
    let home = home(&plane);
    plane.inject(Endpoint::All, Fault::Hang, 1000);
    let agent = home.start();
    assert!(plane.wait_for(LIMIT, |seen| seen.requests.total() > 1));
    assert_eq!((agent.get("/health").0, agent.get("/ready").0), (200, 503));
    assert_eq!(home.status()["api"]["connected"], false);
    // TimeoutStopSec is 60 s.
    ends_soon(agent, Duration::from_secs(20));
}

#[test]
fn a_second_signal_ends_the_agent_at_once_while_the_platform_hangs() {
    let plane = plane();
    let home = home(&plane);
    let agent = home.connect(&plane);
    plane.inject(Endpoint::All, Fault::Hang, 1000);
    agent.signal(Signal::SIGTERM);
    agent.expect("SIGTERM: shutting down");
    assert!(plane.wait_for(LIMIT, |seen| seen.requests.last().is_some_and(|last| last.path.ends_with("/drain"))));
    agent.signal(Signal::SIGTERM);
    let asked = Instant::now();
    agent.wait(LIMIT).expect(0, &["a second signal"]);
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
}

#[test]
fn every_wrong_answer_to_the_goodbye_is_told_and_ends_nothing() {
    for fault in [Fault::Status(404), Fault::Status(500), Fault::Html(200), Fault::CutBeforeAnswer] {
        let plane = plane();
        let home = home(&plane);
        let agent = home.connect(&plane);
        plane.inject(Endpoint::Drain, fault.clone(), 1);
        plane.inject(Endpoint::Offline, fault.clone(), 1);
        let finished = agent.terminate(LIMIT);
        assert_eq!(finished.code, 0, "{fault:?}");
        assert!(fault == Fault::Html(200) || finished.stderr.contains("the platform was not told"), "{fault:?}");
    }
}
