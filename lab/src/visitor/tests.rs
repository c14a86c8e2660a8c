//! The proxy's side against a bridge of a few lines that hands every request to a target.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::{self, Message};

use super::{Error, Kind, Resource, User, Visitor};
use crate::pattern::Pattern;
use crate::runtime::block_on;
use crate::serve::Network;
use crate::targets::Target;

const LIMIT: Duration = Duration::from_secs(20);
const AGENT: &str = "edge-1";

/// Takes `/relay/edge-1` off the path and passes everything else through; enough, since targets are no proxies.
fn bridge(target: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let target = TcpStream::connect(target).unwrap();
            let (mut from_target, mut to_client) = (target.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || {
                drop(std::io::copy(&mut from_target, &mut to_client));
                to_client.shutdown(std::net::Shutdown::Both)
            });
            std::thread::spawn(move || pass(client, target));
        }
    });
    address
}

fn pass(mut client: TcpStream, mut target: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    while let count @ 1.. = client.read(&mut buffer)? {
        // Heads come in one piece from this client, each at the start of what is read.
        let prefix = format!(" /relay/{AGENT}").into_bytes();
        match buffer[..count].windows(prefix.len()).take(8).position(|window| window == prefix) {
            Some(at) => {
                let rest = &buffer[at + prefix.len()..count];
                target.write_all(&[&buffer[..at], b" ", rest].concat())?;
            }
            None => target.write_all(&buffer[..count])?,
        }
    }
    target.shutdown(std::net::Shutdown::Both)
}

fn visit() -> (Target, Visitor) {
    let target = Target::http(&Network::Host).unwrap();
    let resource = Resource::web("wiki", "wiki.internal", 8085);
    let visitor = Visitor::new(bridge(target.address()), AGENT, resource);
    (target, visitor)
}

#[test]
fn a_web_request_carries_what_the_proxy_says_and_not_what_the_browser_claims() {
    let (target, visitor) = visit();
    let browser = [
        ("Accept", "*/*"),
        ("X-Forwarded-Email", "mallory@example.com"),
        ("X-Bamf-Target", "http://evil"),
        ("Impersonate-User", "admin"),
        ("Authorization", "Basic x"),
        ("Cookie", "a=1; bamf_session=secret; b=2"),
    ];
    let answer = visitor.send("GET", "/page?id=42", &browser, b"").unwrap();
    assert_eq!((answer.status, answer.json()["path"].as_str()), (200, Some("/page?id=42")));
    let request = target.seen().requests[0].clone();
    let expected = [
        ("Host", "wiki.internal:8085"),
        ("Accept", "*/*"),
        ("Accept-Encoding", "identity"),
        ("X-Bamf-Resource", "wiki"),
        ("X-Bamf-Session-Token", "tok-123"),
        ("X-Bamf-Target", "http://wiki.internal:8085"),
        ("X-Forwarded-Email", "ana@example.com"),
        ("X-Forwarded-For", "198.51.100.7"),
        ("X-Forwarded-Host", "wiki.tunnel.example.com"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Roles", "dev,ops"),
        ("X-Forwarded-User", "ana@example.com"),
        ("Cookie", "a=1; b=2"),
    ];
    for (name, value) in expected {
        assert_eq!(request.all(name).collect::<Vec<_>>(), [value], "{name}");
    }
    assert_eq!((request.header("authorization"), request.header("impersonate-user")), (None, None));
}

#[test]
fn origins_are_built_as_the_proxy_builds_them() {
    let web = |host: &str, port| Resource { port, ..Resource::web("a", host, 0) }.origin();
    assert_eq!(web("wiki", Some(8085)), "http://wiki:8085");
    // The platform's defect: an https resource on 443 becomes plain HTTP on 80.
    assert_eq!([web("wiki", Some(80)), web("wiki", Some(443)), web("wiki", None)], ["http://wiki"; 3]);
    assert_eq!(web("", Some(1)), "http://localhost:1");
    assert_eq!(Resource::kubernetes("", None).origin(), "https://kubernetes.default.svc:6443");
    assert_eq!(Resource::kubernetes("k8s", Some(443)).origin(), "https://k8s:443");
}

#[test]
fn kubernetes_and_webhook_requests_differ_as_they_should() {
    let bridge = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let user = User { email: "bo@example.com".to_owned(), ..User::default() };
    let cluster = Visitor::new(bridge, AGENT, Resource::kubernetes("", None)).by(user);
    let head = cluster.head("GET", "/api/v1", &[("Impersonate-User", "mallory")]);
    assert!(head.starts_with("GET /relay/edge-1/api/v1 HTTP/1.1\r\nHost: kubernetes.default.svc:6443\r\n"), "{head}");
    for line in ["X-Forwarded-K8s-Groups: developers,view", "Authorization: Bearer tok-123", "X-Forwarded-Email: bo@"] {
        assert!(head.contains(line), "{line} is missing in {head}");
    }
    assert!(!head.contains("mallory") && !head.contains("X-Bamf-Resource"), "{head}");
    let hook = Visitor::new(bridge, AGENT, Resource::web("ci", "ci", 8080).as_kind(Kind::Webhook));
    let head = hook.head("POST", "/hook", &[("Authorization", "Bearer hook")]);
    assert!(head.contains("Authorization: Bearer hook") && head.contains("X-Bamf-Resource: ci"), "{head}");
    assert!(!head.contains("X-Forwarded") && !head.contains("Session-Token"), "{head}");
}

#[test]
fn a_502_is_replayed_twice_and_becomes_a_503() {
    let (target, visitor) = visit();
    let answer = visitor.clone().with_replays().get("/status/502").unwrap();
    assert_eq!((answer.status, answer.sent, answer.header("retry-after")), (503, 3, Some("5")));
    assert_eq!(target.seen().requests.len(), 3);
    assert_eq!(visitor.get("/status/502").unwrap().status, 502);
    assert_eq!(visitor.with_replays().get("/status/504").unwrap().sent, 1);
}

#[test]
fn bodies_go_both_ways_and_connections_are_kept() {
    let (target, visitor) = visit();
    block_on(async {
        let mut visit = visitor.session().await.unwrap();
        let body = Pattern::default().bytes(3 << 20);
        let answer = visit.ask("POST", "/sink", &[], &body).await.unwrap();
        assert_eq!((answer.status, answer.text()), (200, body.len().to_string()));
        let answer = visit.ask("GET", "/chunked/1000000", &[], b"").await.unwrap();
        assert_eq!((answer.body.len(), Pattern::default().check(&answer.body)), (1_000_000, Ok(())));
    });
    assert_eq!(target.seen().accepted, 1);
}

#[test]
fn events_come_one_by_one_and_leaving_is_noticed() {
    let (target, visitor) = visit();
    block_on(async {
        let mut events = visitor.stream("/sse/3").await.unwrap();
        for number in 1..=3 {
            let event = events.next(LIMIT).await.unwrap().unwrap();
            assert!(event.ends_with(&format!("data: {{\"number\":{number}}}")), "{event}");
        }
        assert_eq!(events.next(LIMIT).await.unwrap(), None);
        let mut endless = visitor.stream("/sse-endless").await.unwrap();
        assert!(endless.next(LIMIT).await.unwrap().is_some());
    });
    assert!(target.wait_for(LIMIT, |seen| seen.abandoned == 1));
}

#[test]
fn websockets_echo_greet_and_are_refused() {
    let (_target, visitor) = visit();
    block_on(async {
        let mut socket = visitor.websocket("/ws-greeting", Some("chat, other")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
        let long = Message::binary(Pattern::default().bytes(100_000));
        socket.send(long.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), long);
        socket.close(None).await.unwrap();
        assert!(matches!(socket.next().await, Some(Ok(Message::Close(_))) | None));
        let refused = visitor.websocket("/ws-refused", None).await.unwrap_err();
        let Error::WebSocket(refused) = refused else { panic!("{refused}") };
        let tungstenite::Error::Http(answer) = *refused else { panic!("{refused}") };
        assert_eq!(answer.status(), 403);
    });
}

#[test]
fn a_measurement_counts_every_request() {
    let (target, visitor) = visit();
    let measured = visitor.measure("/status/200", 4, 42);
    assert_eq!((measured.good, measured.refused, measured.failed), (42, 0, 0));
    assert!(measured.p50 <= measured.p99 && measured.p99 <= measured.took && measured.rate() > 0.0);
    assert_eq!(target.seen().requests.len(), 42);
}
