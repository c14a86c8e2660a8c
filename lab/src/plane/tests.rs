//! The control plane over its wire, and its methods as tests use them.

use std::net::TcpStream;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::{Agent, Client, LIMIT, ask, join_body};
use serde_json::json;

use super::*;

pub(crate) mod client;

fn plane() -> ControlPlane {
    with(Options::default())
}

fn with(options: Options) -> ControlPlane {
    ControlPlane::start(Options { tls: false, ..options }).unwrap()
}

fn no_stream_is_open(plane: &ControlPlane) -> bool {
    plane.wait_for(LIMIT, |seen| seen.open_streams.is_empty())
}

#[test]
fn an_agent_joins_once_with_a_token_and_is_remembered() {
    let plane = plane();
    let token = plane.issue_token(1);
    let body = json!({ "join_token": token, "name": "edge-1", "labels": { "site": "ams" } }).to_string();
    let answer = ask(&plane, "POST", "/api/v1/agents/join", &[("x-request-id", "r-1")], &body);
    assert_eq!((answer.status, answer.header("x-request-id")), (201, Some("r-1")));
    let json = answer.json();
    assert_eq!(json["ca_certificate"], plane.ca_pem());
    assert!(json["certificate"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----\n"));
    assert!(json["private_key"].as_str().unwrap().ends_with("-----END PRIVATE KEY-----\n"));
    let expires = json["certificate_expires_at"].as_str().unwrap();
    assert!(expires.len() == 20 && expires.ends_with('Z'), "whole seconds, UTC: {expires}");
    let join = &plane.joins()[0];
    assert_eq!((join.name.as_str(), join.labels["site"].as_str(), &join.token), ("edge-1", "ams", &token));
    assert_eq!(json["agent_id"], join.agent_id.as_str());
    assert_eq!(plane.agent("edge-1").unwrap().id, join.agent_id);
}

#[test]
fn a_join_is_refused_for_bad_tokens_taken_names_and_wrong_shapes() {
    let plane = plane();
    let join = |body: &str| ask(&plane, "POST", "/api/v1/agents/join", &[], body);
    let (once, revoked) = (plane.issue_token(1), plane.issue_token(1));
    plane.revoke_token(&revoked);
    assert_eq!(join(&join_body("bamf_unknown", "a")).status, 401);
    assert_eq!(join(&join_body(&revoked, "a")).status, 401);
    assert_eq!(join(&join_body(&once, "a")).status, 201);
    assert_eq!(join(&join_body(&once, "b")).status, 401, "used up");
    let taken = join(&join_body(&plane.issue_token(1), " a "));
    assert_eq!((taken.status, taken.detail().is_string()), (409, true));
    let wrong = join("{}");
    assert_eq!((wrong.status, wrong.detail()[0]["loc"].clone()), (422, json!(["body", "join_token"])));
    assert_eq!(join("{").status, 422);
    assert_eq!((plane.joins().len(), plane.join_attempts()), (1, 7));
}

#[test]
fn a_heartbeat_is_recorded_as_it_came() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    plane.set_edge_probe_targets(vec![json!({ "edge": "nl", "host": "0.example", "port": 443 })]);
    let answer = agent.heartbeat(&plane, "i-1", 2);
    assert_eq!((answer.status, answer.json()["message"].clone()), (200, json!("OK")));
    assert_eq!(answer.json()["edge_probe_targets"][0]["edge"], "nl");
    assert!(plane.wait_for_heartbeats(1, LIMIT));
    let beat = &plane.heartbeats()[0];
    assert_eq!((beat.agent.as_str(), beat.instance_id.as_deref()), ("edge-1", Some("i-1")));
    assert_eq!(beat.body["active_tunnels"], 2);
    assert_eq!(beat.certificate_sha256, plane.joins()[0].certificate_sha256);
    let by_uuid = Agent { name: agent.id.clone(), ..agent };
    assert_eq!(by_uuid.heartbeat(&plane, "i-1", 0).status, 200, "the path takes the UUID too");
}

#[test]
fn the_certificate_is_judged_before_the_bodys_shape_but_after_its_syntax() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    let anonymous = |body| ask(&plane, "POST", "/api/v1/agents/edge-1/heartbeat", &[], body);
    assert_eq!(anonymous(r#"{"labels":null}"#).status, 401);
    assert_eq!(anonymous("no json").status, 422);
    let answer = agent.post(&plane, "heartbeat", r#"{"labels":null}"#);
    assert_eq!((answer.status, answer.detail()[0]["loc"].clone()), (422, json!(["body", "labels"])));
    let events = |query| {
        let path = format!("/api/v1/agents/edge-1/events{query}");
        (
            ask(&plane, "GET", &path, &[], "").status,
            ask(&plane, "GET", &path, &[("X-Bamf-Client-Cert", &agent.header)], "").status,
        )
    };
    assert_eq!(events(""), (401, 422));
    assert_eq!(events("?instance="), (401, 422));
}

#[test]
fn another_agents_path_is_403_and_a_deleted_agents_404_until_the_name_is_used_again() {
    let plane = plane();
    let (one, two) = (Agent::join(&plane, "one"), Agent::join(&plane, "two"));
    let stranger = Agent { name: "one".into(), id: two.id.clone(), header: two.header.clone() };
    assert_eq!(stranger.heartbeat(&plane, "i", 0).status, 403);
    assert!(plane.delete_agent("one"));
    assert!(!plane.delete_agent("one"));
    let gone = one.heartbeat(&plane, "i", 0);
    assert_eq!((gone.status, gone.detail()), (404, json!("Agent not found")));
    Agent::join(&plane, "one");
    assert_eq!(one.heartbeat(&plane, "i", 0).status, 200, "deletion puts nothing on the denylist");
}

#[test]
fn a_new_authority_turns_every_old_identity_away() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    let before = plane.ca_pem();
    plane.rotate_ca();
    assert_ne!(plane.ca_pem(), before);
    assert_eq!(agent.heartbeat(&plane, "i", 0).status, 401);
    assert_eq!(agent.post(&plane, "renew", "null").status, 401, "renewal does not survive it either");
    assert_eq!(ask(&plane, "GET", "/api/v1/certificates/ca", &[], "").json()["ca_certificate"], plane.ca_pem());
}

#[test]
fn a_renewal_hands_out_a_new_certificate_and_the_old_one_stays_good() {
    let plane = plane();
    plane.set_certificate_lifetime(Duration::from_secs(60));
    let agent = Agent::join(&plane, "edge-1");
    let answer = agent.post(&plane, "renew", "null");
    assert_eq!((answer.status, answer.json()["agent_id"].clone()), (200, json!(agent.id)));
    assert!(plane.wait_for_renewals(1, LIMIT));
    let renewal = &plane.renewals()[0];
    assert_eq!(renewal.presented_sha256, plane.joins()[0].certificate_sha256);
    assert_ne!(renewal.presented_sha256, renewal.issued_sha256);
    let renewed = Agent { header: STANDARD.encode(answer.json()["certificate"].as_str().unwrap()), ..agent };
    assert_eq!(renewed.heartbeat(&plane, "i", 0).status, 200);
    assert_eq!(plane.heartbeats()[0].certificate_sha256, renewal.issued_sha256);
}

#[test]
fn a_minted_identity_works_once_its_agent_is_registered() {
    let plane = plane();
    let now = SystemTime::now();
    let identity = plane.ca().identity("old-timer", now - LIMIT, now + LIMIT).unwrap();
    let header = STANDARD.encode(&identity.certificate_pem);
    let agent = Agent { name: identity.name.clone(), id: String::new(), header };
    assert_eq!(agent.heartbeat(&plane, "i", 0).status, 404);
    let id = plane.register(&identity);
    assert_eq!(agent.heartbeat(&plane, "i", 0).status, 200);
    assert_eq!(plane.agent("old-timer").unwrap().id, id);
    assert!(plane.joins().is_empty());
}

#[test]
fn a_command_reaches_the_stream_of_the_least_busy_instance() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    assert_eq!(plane.send("edge-1", "tunnel_request", &json!({})), None, "no instance");
    assert_eq!(plane.send("nobody", "tunnel_request", &json!({})), None);
    agent.heartbeat(&plane, "busy", 3);
    agent.heartbeat(&plane, "idle", 0);
    let (mut busy, mut idle) = (agent.stream(&plane, "busy"), agent.stream(&plane, "idle"));
    assert!(plane.wait_for(LIMIT, |seen| seen.open_streams.len() == 2));
    let dial = json!({ "command": "dial", "session_id": "s" });
    assert_eq!(plane.send("edge-1", "tunnel_request", &dial).as_deref(), Some("idle"));
    assert_eq!(idle.event(), format!("event: tunnel_request\ndata: {dial}\n\n"));
    assert!(busy.hears_nothing_for(Duration::from_millis(50)));
}

#[test]
fn commands_wait_for_a_stream_and_die_with_their_list() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    agent.heartbeat(&plane, "i", 0);
    plane.send("edge-1", "first", &json!({}));
    plane.skip_time(Duration::from_secs(59));
    plane.send("edge-1", "second", &json!({}));
    plane.skip_time(Duration::from_secs(59));
    let mut stream = agent.stream(&plane, "i");
    assert!(stream.event().starts_with("event: first\n"), "118 seconds old");
    assert!(stream.event().starts_with("event: second\n"));
    drop(stream);
    assert!(no_stream_is_open(&plane));
    plane.send("edge-1", "late", &json!({}));
    plane.skip_time(Duration::from_secs(63));
    let mut stream = agent.stream(&plane, "i");
    assert_eq!(plane.send("edge-1", "next", &json!({})), None, "nobody beat for 180 seconds");
    agent.heartbeat(&plane, "i", 0);
    plane.send("edge-1", "next", &json!({}));
    assert!(stream.event().starts_with("event: next\n"), "the late one expired");
}

#[test]
fn two_streams_of_one_instance_share_its_commands() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    agent.heartbeat(&plane, "i", 0);
    let mut one = agent.stream(&plane, "i");
    let mut two = agent.stream(&plane, "i");
    assert!(plane.wait_for(LIMIT, |seen| seen.open_streams.len() == 2));
    plane.send("edge-1", "first", &json!({}));
    plane.send("edge-1", "second", &json!({}));
    let mut events = [one.event(), two.event()];
    events.sort();
    assert!(events[0].starts_with("event: first\n") && events[1].starts_with("event: second\n"), "{events:?}");
}

#[test]
fn an_idle_stream_carries_heartbeat_events_and_a_silenced_one_nothing() {
    let plane = with(Options { heartbeat_event_after: Duration::from_millis(30), ..Options::default() });
    let agent = Agent::join(&plane, "edge-1");
    agent.heartbeat(&plane, "i", 0);
    let mut stream = agent.stream(&plane, "i");
    assert_eq!(stream.event(), "event: heartbeat\ndata: {}\n\n");
    assert_eq!(stream.event(), "event: heartbeat\ndata: {}\n\n");
    plane.silence_streams(true);
    while !stream.hears_nothing_for(Duration::from_millis(300)) {
        stream.event();
    }
    plane.send("edge-1", "stolen", &json!({}));
    assert!(stream.hears_nothing_for(Duration::from_millis(100)));
    assert_eq!(plane.open_streams().len(), 1);
    plane.silence_streams(false);
    assert_eq!(stream.event(), "event: heartbeat\ndata: {}\n\n", "the command was popped and lost");
}

#[test]
fn a_stream_silenced_as_if_half_open_leaves_later_ones_alone() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    agent.heartbeat(&plane, "i", 0);
    let mut dead = agent.stream(&plane, "i");
    assert!(plane.wait_for_stream(LIMIT));
    plane.silence_open_streams();
    let mut fresh = agent.stream(&plane, "i");
    assert!(plane.wait_for(LIMIT, |seen| seen.open_streams.len() == 2));
    // They take turns: one of two is lost.
    plane.send("edge-1", "tunnel_request", &json!({}));
    plane.send("edge-1", "tunnel_request", &json!({}));
    assert!(fresh.event().starts_with("event: tunnel_request\n"));
    assert!(fresh.hears_nothing_for(Duration::from_millis(50)));
    assert!(dead.hears_nothing_for(Duration::from_millis(50)));
}

#[test]
fn hostile_bytes_arrive_as_they_are() {
    let plane = plane();
    let mut stream = Agent::join(&plane, "edge-1").stream(&plane, "i");
    assert!(plane.wait_for_stream(LIMIT));
    assert_eq!(plane.send_raw_to_streams(b"event: nov"), 1);
    assert_eq!(stream.chunk().unwrap(), "event: nov");
    let long = format!("data: {}\n\n", "x".repeat(2 << 20));
    assert_eq!(plane.send_raw_to_streams(long.as_bytes()), 1);
    assert_eq!(stream.event().len(), long.len());
}

#[test]
fn a_cut_stream_ends_in_the_middle_of_an_event_and_an_ended_one_properly() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    let mut stream = agent.stream(&plane, "i");
    assert_eq!(plane.cut_streams(), 1);
    let half = stream.chunk().unwrap();
    assert!(half.starts_with("event: tunnel_request\ndata: {") && !half.contains("\n\n"), "{half}");
    stream.chunk().unwrap_err();
    assert!(no_stream_is_open(&plane));
    let mut stream = agent.stream(&plane, "i");
    assert_eq!(plane.end_streams(), 1);
    assert_eq!(stream.chunk().unwrap(), "", "the last chunk");
    assert!(no_stream_is_open(&plane));
    assert_eq!(plane.stream_opens(), 2);
}

#[test]
fn a_client_that_goes_away_closes_its_stream_and_loses_no_queued_command() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    agent.heartbeat(&plane, "i", 0);
    drop(agent.stream(&plane, "i"));
    assert!(no_stream_is_open(&plane));
    plane.send("edge-1", "tunnel_request", &json!({}));
    assert!(agent.stream(&plane, "i").event().starts_with("event: tunnel_request\n"));
}

#[test]
fn revocation_turns_the_certificate_away_and_tells_the_instances_of_its_holder() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    agent.heartbeat(&plane, "i", 0);
    let mut stream = agent.stream(&plane, "i");
    plane.revoke_certificate(&plane.joins()[0].certificate_sha256.to_uppercase());
    assert_eq!(stream.event(), "event: revoke\ndata: {\"command\":\"revoke\",\"reason\":\"Certificate revoked\"}\n\n");
    assert_eq!(agent.heartbeat(&plane, "i", 0).status, 401);
}

#[test]
fn revoking_a_certificate_that_was_renewed_since_tells_nobody() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    agent.heartbeat(&plane, "i", 0);
    agent.post(&plane, "renew", "null");
    let mut stream = agent.stream(&plane, "i");
    plane.revoke_certificate(&plane.joins()[0].certificate_sha256);
    assert!(stream.hears_nothing_for(Duration::from_millis(50)));
    assert_eq!(agent.heartbeat(&plane, "i", 0).status, 401);
}

#[test]
fn a_deleted_agents_open_stream_still_hears_of_it() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    agent.heartbeat(&plane, "i", 0);
    let mut stream = agent.stream(&plane, "i");
    plane.delete_agent("edge-1");
    assert!(stream.event().contains("Agent deleted by administrator"));
}

#[test]
fn drain_and_offline_are_recorded_and_take_the_instance_out_of_the_choice() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    agent.heartbeat(&plane, "i", 0);
    let drained = agent.post(&plane, "drain", r#"{"instance_id":"i"}"#);
    assert_eq!((drained.status, drained.json()["success"].clone()), (200, json!(true)));
    assert_eq!(agent.post(&plane, "drain", r#"{"instance_id":"unknown"}"#).status, 200);
    assert_eq!(agent.post(&plane, "drain", "null").status, 422);
    assert_eq!(plane.send("edge-1", "tunnel_request", &json!({})), None);
    assert!(plane.agent("edge-1").unwrap().instances[0].draining);
    assert_eq!(agent.post(&plane, "instance/i/offline", "null").status, 200);
    assert!(plane.agent("edge-1").unwrap().instances.is_empty());
    assert_eq!((plane.drains().len(), plane.offlines()[0].instance_id.as_str()), (2, "i"));
}

#[test]
fn the_version_is_reported_where_the_test_says() {
    let plane = plane();
    let get = |path| ask(&plane, "GET", path, &[], "");
    assert_eq!(get("/api/v1/version").status, 404);
    assert_eq!(get("/health").json(), json!({ "status": "healthy" }));
    assert_eq!(get("/api/openapi.json").json()["info"], json!({ "title": "BAMF API", "version": "0.1.0" }));
    assert_eq!(get("/ready").json()["checks"]["redis"], "healthy");
    plane.set_version(Some("1.2.0"));
    assert_eq!(get("/api/v1/version").json(), json!({ "version": "1.2.0" }));
    plane.report_version_at(VersionReport::OpenApi);
    assert_eq!(get("/api/v1/version").status, 404);
    assert_eq!(get("/api/openapi.json").json()["info"]["version"], "1.2.0");
}

#[test]
fn too_many_requests_are_told_when_to_come_back() {
    let plane = with(Options { rate_limits: RateLimits { anonymous: 2, identified: 5 }, ..Options::default() });
    let get = |path| ask(&plane, "GET", path, &[], "");
    let first = get("/api/openapi.json");
    assert_eq!((first.header("x-ratelimit-limit"), first.header("x-ratelimit-remaining")), (Some("2"), Some("1")));
    get("/api/openapi.json");
    let refused = get("/api/openapi.json");
    assert_eq!((refused.status, refused.detail()), (429, json!("Rate limit exceeded")));
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait));
    assert_eq!(get("/health").status, 200, "outside the API");
    let identified = ask(&plane, "GET", "/api/openapi.json", &[("X-Bamf-Client-Cert", "anything")], "");
    assert_eq!(identified.header("x-ratelimit-limit"), Some("5"), "carrying the header is enough");
    plane.skip_time(Duration::from_secs(60));
    assert_eq!(get("/api/openapi.json").status, 200);
}

#[test]
fn every_fault_is_what_it_says_and_then_it_is_over() {
    let plane = plane();
    let fault = |fault| {
        plane.inject(Endpoint::Health, fault, 1);
        ask(&plane, "GET", "/health", &[], "")
    };
    assert_eq!(fault(Fault::Status(500)).detail(), json!("Internal server error"));
    assert!(fault(Fault::Status(422)).detail().is_array());
    let limited = fault(Fault::StatusWithRetryAfter(429, 7));
    assert_eq!((limited.status, limited.header("retry-after")), (429, Some("7")));
    let portal = fault(Fault::Html(200));
    assert_eq!((portal.status, portal.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(serde_json::from_slice::<Value>(&fault(Fault::Garbage).body).is_err());
    assert_eq!(fault(Fault::WrongShape).json().get("status"), None);
    let moved = fault(Fault::Redirect("https://elsewhere.example/".into()));
    assert_eq!((moved.status, moved.header("location")), (307, Some("https://elsewhere.example/")));
    let torn = fault(Fault::CutMidBody);
    assert!(torn.torn && torn.status == 200 && !torn.body.is_empty());
    assert_eq!(fault(Fault::Delay(Duration::from_millis(1))).json(), json!({ "status": "healthy" }));
    assert_eq!(ask(&plane, "GET", "/health", &[], "").json(), json!({ "status": "healthy" }));
}

#[test]
fn a_request_cut_before_its_answer_was_carried_out() {
    let plane = plane();
    plane.inject(Endpoint::Join, Fault::CutBeforeAnswer, 1);
    let body = join_body(&plane.issue_token(1), "edge-1");
    Client::connect(&plane).ask("POST", "/api/v1/agents/join", &[], &body).unwrap_err();
    assert_eq!(plane.joins()[0].name, "edge-1");
    assert_eq!(plane.requests()[0].status, None);
    let again = ask(&plane, "POST", "/api/v1/agents/join", &[], &join_body(&plane.issue_token(1), "edge-1"));
    assert_eq!(again.status, 409, "the name is taken, as on the platform");
}

#[test]
fn a_fault_that_refuses_leaves_the_request_undone() {
    let plane = plane();
    plane.inject(Endpoint::All, Fault::Status(503), 1);
    let token = plane.issue_token(1);
    assert_eq!(ask(&plane, "POST", "/api/v1/agents/join", &[], &join_body(&token, "a")).status, 503);
    assert!(plane.joins().is_empty());
    assert_eq!(ask(&plane, "POST", "/api/v1/agents/join", &[], &join_body(&token, "a")).status, 201);
    assert_eq!(plane.join_attempts(), 2);
}

#[test]
fn a_hanging_request_is_seen_but_never_answered() {
    let plane = plane();
    plane.inject(Endpoint::Health, Fault::Hang, 1);
    let mut client = Client::connect(&plane);
    client.write("GET", "/health", &[], "");
    assert!(plane.wait_for(LIMIT, |seen| seen.requests.total() == 1));
    assert!(client.hears_nothing_for(Duration::from_millis(50)));
    assert_eq!(plane.requests()[0].status, None);
}

#[test]
fn a_huge_body_keeps_coming() {
    let plane = plane();
    plane.inject(Endpoint::Version, Fault::HugeBody, 1);
    let mut client = Client::connect(&plane);
    client.write("GET", "/api/v1/version", &[], "");
    assert_eq!(client.read_head().unwrap().status, 200);
    let read: usize = (0..64).map(|_| client.chunk().unwrap().len()).sum();
    assert!(read > 2 << 20);
}

#[test]
fn a_torn_event_stream_ends_within_an_event() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    plane.inject(Endpoint::Events, Fault::CutMidBody, 1);
    let torn =
        ask(&plane, "GET", "/api/v1/agents/edge-1/events?instance_id=i", &[("x-bamf-client-cert", &agent.header)], "");
    assert!(torn.torn && !torn.body.ends_with(b"\n\n"));
    assert!(no_stream_is_open(&plane));
}

#[test]
fn requests_are_recorded_without_the_bearer_certificate() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    let path = "/api/v1/agents/edge-1/heartbeat";
    ask(&plane, "POST", path, &[("X-Bamf-Client-Cert", &agent.header), ("User-Agent", "probe/1")], "{}");
    let record = plane.requests().pop().unwrap();
    assert_eq!((record.method.as_str(), record.path.as_str(), record.status), ("POST", path, Some(200)));
    assert_eq!((record.headers["user-agent"].as_str(), record.body_len), ("probe/1", 2));
    assert_eq!(record.certificate_sha256, Some(plane.joins()[0].certificate_sha256.clone()));
    assert!(!format!("{record:?}").contains(&agent.header));
}

#[test]
fn a_connection_carries_request_after_request_until_it_is_told_to_close() {
    let plane = plane();
    let mut client = Client::connect(&plane);
    for _ in 0..3 {
        assert_eq!(client.ask("GET", "/health", &[("connection", "keep-alive")], "").unwrap().status, 200);
    }
    let last = client.ask("GET", "/health", &[("connection", "close")], "").unwrap();
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    assert_eq!(client.read_head().unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_stopped_plane_refuses_connections_keeps_its_memory_and_comes_back_on_its_port() {
    let plane = plane();
    let agent = Agent::join(&plane, "edge-1");
    let mut stream = agent.stream(&plane, "i");
    let (url, address) = (plane.url(), plane.url().replace("http://", ""));
    plane.stop_listening();
    stream.chunk().unwrap_err();
    assert_eq!(TcpStream::connect(&address).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(plane.open_streams().is_empty());
    plane.resume().unwrap();
    plane.resume().unwrap();
    assert_eq!(plane.url(), url);
    assert_eq!(agent.heartbeat(&plane, "i", 0).status, 200);
}

#[test]
fn the_port_of_a_stopped_plane_is_given_to_nobody_else() {
    let plane = plane();
    plane.stop_listening();
    let address = plane.url().replace("http://", "").parse().unwrap();
    let error = tokio::net::TcpSocket::new_v4().unwrap().bind(address).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}

#[test]
fn waiting_ends_at_its_limit() {
    let plane = plane();
    assert!(!plane.wait_for_heartbeats(1, Duration::from_millis(1)));
    assert!(!plane.wait_for_stream(Duration::from_millis(1)));
    assert!(plane.wait_for_renewals(0, Duration::ZERO));
}

#[test]
fn https_is_served_under_the_web_authority_for_every_name_and_not_under_the_bamf_ca() {
    let plane =
        ControlPlane::start(Options { server_names: vec!["api.example".into()], ..Options::default() }).unwrap();
    assert!(plane.url().starts_with("https://localhost:"));
    for name in ["localhost", "127.0.0.1", "api.example"] {
        assert_eq!(https(&plane, plane.web_ca_pem(), name).unwrap(), "HTTP/1.1 200 OK", "{name}");
    }
    assert!(https(&plane, plane.web_ca_pem(), "other.example").is_err());
    assert!(https(&plane, &plane.ca_pem(), "localhost").is_err());
}

/// The status line of `GET /health` over TLS, trusting `ca_pem` and expecting `name`.
fn https(plane: &ControlPlane, ca_pem: &str, name: &str) -> std::io::Result<String> {
    use std::io::{BufRead as _, BufReader, Write as _};

    use rustls::pki_types::pem::PemObject as _;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(plane.url().replace("https://localhost", "127.0.0.1"))?;
    socket.set_read_timeout(Some(LIMIT))?;
    let mut stream = rustls::StreamOwned::new(session, socket);
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}
