//! The plane's side of sessions and relays, with bridges that have registered.

use serde_json::{Value, json};

use super::super::*;
use super::SHORT;
use super::rig::{Rig, beat, connect, event_data};
use crate::plane::tests::client::{Answer, LIMIT, ask};

fn second_bridge(rig: &Rig, edge: &str) -> Bridge {
    let options = BridgeOptions { id: "bridge-1".into(), edge: edge.into(), ..BridgeOptions::default() };
    Bridge::start(&rig.plane, options).unwrap()
}

fn asked_by(rig: &Rig, user: &str, path: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {user}");
    ask(&rig.plane, "POST", path, &[("authorization", &bearer)], &body.to_string())
}

#[test]
fn a_connect_is_answered_and_commanded_with_exactly_the_documented_fields() {
    let mut rig = Rig::new();
    let id = "-k3vQ0m_8h-TtYx2LrW7cPq1Ab9Dn4Ke";
    rig.plane.set_next_session_id(id);
    let answer = connect(&rig.plane, &json!({ "resource_name": "shell", "protocol": "web-ssh" })).json();
    let keys = |object: &Value| object.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(
        keys(&answer),
        "bridge_hostname bridge_port ca_certificate candidate_edges probe_required resource_type session_cert \
         session_expires_at session_id session_key"
    );
    assert_eq!((&answer["session_id"], &answer["resource_type"]), (&json!(id), &json!("web-ssh")));
    assert_eq!(answer["bridge_port"], rig.bridge.port());
    let event = rig.events.event();
    assert!(event.starts_with("event: tunnel_request\n"));
    let data = event_data(&event);
    assert_eq!(
        keys(&data),
        "bridge_host bridge_port ca_certificate command resource_name resource_type session_cert session_id session_key"
    );
    assert_eq!((&data["command"], &data["resource_name"]), (&json!("dial"), &json!("shell")));
    assert_ne!(data["session_cert"], answer["session_cert"]);
    let session = rig.plane.session(id).unwrap();
    assert_eq!((session.agent.as_str(), session.instance_id.as_str()), ("edge-1", "i-1"));
}

#[test]
fn every_documented_refusal_is_given() {
    let rig = Rig::new();
    let status = |body: Value| connect(&rig.plane, &body).status;
    let anonymous = ask(&rig.plane, "POST", "/api/v1/connect", &[], r#"{"resource_name":"db"}"#);
    assert_eq!(anonymous.status, 401);
    assert_eq!(status(json!({})), 422);
    assert_eq!(status(json!({ "resource_name": "x".repeat(64) })), 422);
    assert_eq!(status(json!({ "resource_name": "nothing" })), 404);
    assert_eq!(status(json!({ "resource_name": "db", "protocol": "web-ssh" })), 400);
    assert_eq!(status(json!({ "resource_name": "db", "reconnect_session_id": "gone" })), 404);
    let session = connect(&rig.plane, &json!({ "resource_name": "db" })).json()["session_id"].clone();
    let theirs = json!({ "resource_name": "db", "reconnect_session_id": session });
    assert_eq!(asked_by(&rig, "bob@example.com", "/api/v1/connect", &theirs).status, 403);
    rig.agent.post(&rig.plane, "instance/i-1/offline", "null");
    assert_eq!(status(json!({ "resource_name": "db" })), 502);
    beat(&rig.plane, &rig.agent);
    rig.bridge.stop();
    assert_eq!(status(json!({ "resource_name": "db" })), 503);
    rig.plane.skip_time(Duration::from_secs(181));
    assert_eq!(status(json!({ "resource_name": "db" })), 404, "the catalogue has forgotten it");
}

#[test]
fn a_record_lives_30_seconds_and_a_reconnecting_one_300() {
    let mut rig = Rig::new();
    let (client, _) = rig.open("db");
    rig.plane.skip_time(Duration::from_secs(29));
    let (again, _) = rig.reopen(&client.session);
    assert_eq!(again.session, client.session);
    rig.plane.skip_time(Duration::from_secs(100));
    assert!(rig.plane.session(&client.session).is_some());
    rig.plane.skip_time(Duration::from_secs(201));
    assert_eq!(rig.plane.session(&client.session), None);
}

#[test]
fn a_redial_goes_to_the_idlest_instance_and_not_to_the_owner() {
    let rig = Rig::new();
    let answer = connect(&rig.plane, &json!({ "resource_name": "db" })).json();
    let busy = json!({ "instance_id": "i-1", "active_tunnels": 1 });
    rig.agent.post(&rig.plane, "heartbeat", &busy.to_string());
    rig.agent.heartbeat(&rig.plane, "i-2", 0);
    assert_eq!(rig.reconnect(answer["session_id"].as_str().unwrap()).status, 200);
    let commands = rig.plane.commands();
    let sent: Vec<_> = commands.iter().map(|c| (c.command.as_deref().unwrap(), c.instance_id.as_str())).collect();
    assert_eq!(sent, [("dial", "i-1"), ("redial", "i-2")]);
}

#[tokio::test]
async fn the_least_loaded_bridge_is_used_and_the_last_one_avoided() {
    let mut rig = Rig::new();
    let (session, _client, _agent) = rig.tunnel().await;
    let second = second_bridge(&rig, "");
    let (new, _) = rig.open("db");
    assert_eq!(new.port, second.port(), "it carries nothing");
    let (moved, _) = rig.reopen(&session);
    assert_eq!(moved.port, second.port());
    let (back, _) = rig.reopen(&session);
    assert_eq!(back.port, rig.bridge.port(), "busier, but not the last one");
}

#[tokio::test]
async fn a_session_is_issued_anew_to_its_agent_alone() {
    let mut rig = Rig::new();
    let second = second_bridge(&rig, "");
    let (session, _client, _agent) = rig.tunnel().await;
    assert_eq!(rig.plane.reissue(&session, "redial", Some("bridge-1")).as_deref(), Some("i-1"));
    assert_eq!(rig.command("redial").port, second.port());
    assert_eq!(rig.plane.reissue(&session, "novelty", None).as_deref(), Some("i-1"));
    assert_eq!(rig.command("novelty").port, rig.bridge.port());
    assert_eq!(rig.plane.reissue("unknown", "redial", None), None);
}

#[test]
fn what_a_bridge_advertises_is_told_instead_of_where_it_listens() {
    let rig = Rig::with(BridgeOptions { advertised_port: Some(4433), ..BridgeOptions::default() });
    let told = |rig: &Rig| {
        let answer = connect(&rig.plane, &json!({ "resource_name": "db" })).json();
        (answer["bridge_hostname"].clone(), answer["bridge_port"].clone())
    };
    assert_eq!(told(&rig), (json!("localhost"), json!(4433)));
    rig.bridge.advertise("127.0.0.1", 4434);
    rig.bridge.restart().unwrap();
    assert_eq!(told(&rig), (json!("127.0.0.1"), json!(4434)));
}

#[test]
fn a_relay_is_asked_for_only_while_none_is_assigned_even_if_its_bridge_is_gone() {
    let mut rig = Rig::new();
    assert_eq!(rig.plane.proxy_route("edge-1", ""), None);
    let (bridge, asked) = rig.plane.ask_for_relay("edge-1", "").unwrap();
    assert!(asked && bridge.internal == rig.bridge.internal_address());
    let data = event_data(&rig.events.event());
    let keys: Vec<_> = data.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["bridge_host", "bridge_port", "ca_certificate", "command"]);
    rig.bridge.kill();
    let _second = second_bridge(&rig, "");
    rig.plane.skip_time(Duration::from_secs(100));
    beat(&rig.plane, &rig.agent);
    rig.plane.skip_time(Duration::from_secs(100));
    let (bridge, asked) = rig.plane.ask_for_relay("edge-1", "").unwrap();
    assert_eq!((bridge.id.as_str(), asked), ("bridge-0", false), "heartbeats have kept it");
    rig.plane.skip_time(Duration::from_secs(81));
    beat(&rig.plane, &rig.agent);
    let (bridge, asked) = rig.plane.ask_for_relay("edge-1", "").unwrap();
    assert_eq!((bridge.id.as_str(), asked), ("bridge-1", true));
    assert_eq!(rig.plane.command_relay("edge-1", "bridge-0").as_deref(), Some("i-1"));
    assert_eq!(rig.plane.proxy_route("edge-1", "").unwrap().id, "bridge-0");
    assert_eq!(rig.plane.ask_for_relay("edge-1", "mars"), None, "no bridge");
    assert_eq!(rig.plane.ask_for_relay("nobody", ""), None, "no agent");
}

#[tokio::test]
async fn the_first_proxied_request_waits_for_the_agent_and_the_next_does_not() {
    let rig = Rig::new();
    let begun = Instant::now();
    rig.plane.open_proxy_route("edge-1", "").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let begun = Instant::now();
    rig.plane.open_proxy_route("edge-1", "").await.unwrap();
    assert!(begun.elapsed() < SHORT * 4);
}

#[test]
fn edges_are_offered_probed_and_chosen_by_the_way_through_them() {
    let rig = Rig::with(BridgeOptions { edge: "nl".into(), ..BridgeOptions::default() });
    let second = second_bridge(&rig, "eu");
    let probing = json!({ "resource_name": "shell", "protocol": "web-ssh", "probe_retry_supported": true });
    let answer = connect(&rig.plane, &probing).json();
    assert_eq!((&answer["probe_required"], &answer["session_id"]), (&json!(true), &json!("")));
    let edges: Vec<_> = answer["candidate_edges"].as_array().unwrap().iter().map(|edge| edge["name"].clone()).collect();
    assert_eq!(edges, ["eu", "nl"]);
    let measured = json!({ "resource_name": "db", "client_edge_rtts": { "nl": 30, "eu": 20, "us": 1 } });
    assert_eq!(connect(&rig.plane, &measured).json()["bridge_port"], second.port());
    let beat = json!({ "instance_id": "i-1", "edge_rtts": { "eu": 50, "nl": 5 } });
    let answer = rig.agent.post(&rig.plane, "heartbeat", &beat.to_string()).json();
    let targets = answer["edge_probe_targets"].as_array().unwrap();
    assert_eq!((targets.len(), &targets[0]["edge"], &targets[0]["port"]), (2, &json!("eu"), &json!(second.port())));
    assert_eq!(connect(&rig.plane, &measured).json()["bridge_port"], rig.bridge.port());
    let (bridge, _) = rig.plane.ask_for_relay("edge-1", "eu").unwrap();
    assert_eq!(bridge.id, "bridge-1");
}

#[test]
fn a_client_is_told_to_hop_when_a_test_says_so() {
    let rig = Rig::new();
    let session = connect(&rig.plane, &json!({ "resource_name": "db" })).json()["session_id"].clone();
    let body = json!({ "session_id": session, "client_edge_rtts": { "eu": 1 } });
    let hop = || asked_by(&rig, "ann@example.com", "/api/v1/connect/reevaluate", &body).json()["hop_edge"].clone();
    assert_eq!(hop(), Value::Null);
    rig.plane.set_hop_edge(Some("eu"));
    assert_eq!(hop(), "eu");
    assert_eq!(asked_by(&rig, "bob@example.com", "/api/v1/connect/reevaluate", &body).status, 403);
}

#[test]
fn a_killed_bridge_counts_as_alive_for_a_minute() {
    let rig = Rig::new();
    rig.bridge.kill();
    assert_eq!(rig.plane.bridges(), ["bridge-0"]);
    rig.plane.skip_time(Duration::from_secs(61));
    assert!(rig.plane.bridges().is_empty());
    rig.bridge.restart().unwrap();
    assert_eq!(rig.plane.bridges(), ["bridge-0"]);
    assert!(rig.plane.wait_for(LIMIT, |seen| seen.commands.total() == 0));
}
