//! The rules in both directions: the protocol's vectors, and tables.

use serde_json::Value;

use super::*;
use crate::kubernetes::ServiceAccount;
use crate::relay::conversation::{Prepared, Refusal, Rules as _};
use crate::relay::head;
use crate::relay::route::Router;
use crate::relay::route::tests::resource;
use crate::relay::rules::RuleBook;
use crate::relay::vectors;

struct Desk {
    directory: tempfile::TempDir,
    rules: RuleBook,
}

impl Desk {
    fn new(forward_session_token: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut wiki = resource("wiki", "http", "wiki.internal", 8085);
        wiki.forward_session_token = forward_session_token;
        let router = Router::new(&[wiki, resource("cluster", "kubernetes", "", 6443)]);
        let rules = RuleBook::new(router, std::sync::Arc::new(ServiceAccount::new(directory.path())));
        let desk = Self { directory, rules };
        desk.token(" sa-token\n");
        desk
    }

    fn token(&self, text: &str) {
        crate::durable::write(&self.directory.path().join("token"), text.as_bytes(), 0o600).unwrap();
    }

    fn prepare(&self, text: &str) -> Result<Prepared, Refusal> {
        let head = head::request(text.as_bytes()).unwrap();
        let framing = head::request_framing(&head).unwrap();
        self.rules.prepare(&head, framing)
    }

    fn forwarded(&self, text: &str) -> String {
        String::from_utf8(self.prepare(text).unwrap().head).unwrap()
    }
}

fn web(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: bridge\r\nX-Bamf-Target: http://wiki.internal:8085\r\n{lines}\r\n")
}

fn cluster(lines: &str) -> String {
    format!("GET /api HTTP/1.1\r\nHost: b\r\nX-Bamf-Target: https://kubernetes.default.svc:6443\r\n{lines}\r\n")
}

/// Values of a field in a head's text, in order.
fn lines<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
    fields.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

fn expected_in(vector: &Value, head: &str) {
    let expected = &vector["to_target"];
    let url = expected["url"].as_str().unwrap();
    let path = &url[url.find(expected["host"].as_str().unwrap()).unwrap() + expected["host"].as_str().unwrap().len()..];
    let first = format!("{} {path} HTTP/1.1\r\n", expected["method"].as_str().unwrap());
    assert!(head.starts_with(&first), "{head}");
    assert_eq!(lines(head, "host"), [expected["host"].as_str().unwrap()]);
    for (name, value) in expected["must_contain"].as_object().into_iter().flatten() {
        assert_eq!(lines(head, name), [value.as_str().unwrap()], "{head}");
    }
    for name in expected["must_not_contain"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let found = match name.strip_suffix('*') {
            Some(start) => head.to_lowercase().contains(&format!("\r\n{}", start.to_lowercase())),
            None => !lines(head, name).is_empty(),
        };
        assert!(!found, "{name} in\n{head}");
    }
    if let Some(user) = expected.get("impersonate_user") {
        assert_eq!(lines(head, "impersonate-user"), [user.as_str().unwrap()]);
        let groups: Vec<&str> = expected["impersonate_group_lines"]
            .as_array()
            .unwrap()
            .iter()
            .map(|group| group.as_str().unwrap())
            .collect();
        assert_eq!(lines(head, "impersonate-group"), groups);
        assert_eq!(lines(head, "authorization"), ["Bearer sa-token"]);
    }
}

#[test]
fn requests_of_the_protocols_vectors_arrive_as_they_should() {
    let desk = Desk::new(true);
    let mut seen = 0;
    for vector in vectors()["relay_http"].as_array().unwrap() {
        if let Some(text) = vector["from_bridge"].as_str() {
            expected_in(vector, &desk.forwarded(text));
            seen += 1;
        }
    }
    assert_eq!(seen, 2);
}

#[test]
fn the_session_token_is_handed_on_only_where_the_resource_says_so() {
    let text = web("X-Bamf-Session-Token: tok\r\n");
    assert_eq!(lines(&Desk::new(true).forwarded(&text), "x-bamf-session-token"), ["tok"]);
    assert_eq!(lines(&Desk::new(false).forwarded(&text), "x-bamf-session-token"), [""; 0]);
}

#[test]
fn what_concerns_one_hop_only_does_not_pass_and_nothing_is_added() {
    let desk = Desk::new(false);
    let text = web(
        "Connection: keep-alive, X-Private, X-Forwarded-Email\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: trailers\r\n\
         Trailer: x\r\nUpgrade:\r\nX-Private: 1\r\nExpect: 100-continue\r\nX-Forwarded-Email: ana@example.com\r\n\
         impersonate-uid: 0\r\nIMPERSONATE-USER: root\r\nX_Forwarded_Email: eve@example.com\r\nX_y: kept\r\ncOOkie: a=b\r\n",
    );
    assert_eq!(
        desk.forwarded(&text),
        "GET / HTTP/1.1\r\nHost: wiki.internal:8085\r\nX-Forwarded-Email: ana@example.com\r\nX_y: kept\r\ncOOkie: a=b\r\n\r\n"
    );
}

#[test]
fn the_body_is_framed_anew() {
    let desk = Desk::new(false);
    for (given, written) in [
        ("Content-Length: 007\r\n", "Content-Length: 7"),
        ("Transfer-Encoding: CHUNKED\r\n", "Transfer-Encoding: chunked"),
    ] {
        let head = desk.forwarded(&web(given));
        assert!(head.ends_with(&format!("\r\n{written}\r\n\r\n")), "{head}");
    }
}

#[test]
fn an_upgrade_keeps_its_protocol_but_another_http_is_not_offered() {
    let desk = Desk::new(false);
    let upgrade = desk.prepare(&web("Connection: Upgrade, x-y\r\nUpgrade: websocket\r\nX-Y: 1\r\n")).unwrap();
    let head = String::from_utf8(upgrade.head).unwrap();
    assert!(upgrade.upgrade);
    assert_eq!((lines(&head, "upgrade"), lines(&head, "connection")), (vec!["websocket"], vec!["Upgrade"]));
    assert_eq!(lines(&head, "x-y"), [""; 0]);
    for other in ["h2c", "websocket, H2C", "HTTP/2.0", "TLS/1.0"] {
        let plain = desk.prepare(&web(&format!("Connection: Upgrade\r\nUpgrade: {other}\r\n"))).unwrap();
        assert!(!plain.upgrade, "{other}");
        assert!(!String::from_utf8(plain.head).unwrap().contains("pgrade"), "{other}");
    }
}

#[test]
fn a_request_without_a_good_target_is_refused_and_says_why() {
    let desk = Desk::new(false);
    let refused = |text: &str| {
        let refusal = desk.prepare(text).unwrap_err();
        (refusal.status, refusal.text.into_owned())
    };
    let missing = (502, "missing X-Bamf-Target header".to_owned());
    let unknown = (403, "no resource with this target is configured at the agent".to_owned());
    assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), missing);
    assert_eq!(refused("GET / HTTP/1.1\r\nX-Bamf-Target:\r\n\r\n"), missing);
    assert_eq!(refused(&web("X-Bamf-Target: http://evil\r\n")), missing);
    assert_eq!(refused("GET / HTTP/1.1\r\nX-Bamf-Target: http://evil\r\n\r\n"), unknown);
    // A web request cannot reach a cluster, nor a cluster's request a web application.
    assert_eq!(refused(&cluster("")), unknown);
    assert_eq!(refused(&web("X-Forwarded-Email: a@b\r\nX-Forwarded-K8s-Groups: x\r\n")), unknown);
}

#[test]
fn a_cluster_is_told_one_user_or_nothing() {
    let desk = Desk::new(false);
    let no_user = Refusal::new(403, "missing X-Forwarded-Email for K8s request");
    for lines in ["", "X-Forwarded-Email:\r\n", "X-Forwarded-Email: a@b\r\nX-Forwarded-Email: root\r\n"] {
        let text = cluster(&format!("X-Forwarded-K8s-Groups: view\r\n{lines}"));
        assert_eq!(desk.prepare(&text), Err(no_user.clone()), "{lines}");
    }
    let text = cluster("X-Forwarded-Email: a@b\r\nX-Forwarded-K8s-Groups: ,\r\nX-Forwarded-K8s-Groups: a,,b \r\n");
    assert_eq!(lines(&desk.forwarded(&text), "impersonate-group"), ["a", "b"]);
}

#[test]
fn the_service_accounts_token_is_read_for_every_request() {
    let desk = Desk::new(false);
    let text = cluster("X-Forwarded-Email: a@b\r\nX-Forwarded-K8s-Groups: view\r\nAuthorization: Bearer user\r\n");
    assert_eq!(lines(&desk.forwarded(&text), "authorization"), ["Bearer sa-token"]);
    desk.token("rotated");
    assert_eq!(lines(&desk.forwarded(&text), "authorization"), ["Bearer rotated"]);
    for unusable in ["", "two\r\nlines"] {
        desk.token(unusable);
        assert_eq!(desk.prepare(&text).unwrap_err().status, 502, "{unusable:?}");
    }
}

fn answered(text: &str, to_head: bool) -> String {
    let head = head::response(text.as_bytes()).unwrap();
    let framing = head::response_framing(&head, to_head).unwrap();
    String::from_utf8(to_bridge(&head, head.status, framing, After::Stays)).unwrap()
}

#[test]
fn a_response_keeps_its_length_or_gets_chunks_and_loses_what_concerns_the_hop() {
    let table = [
        (
            "HTTP/1.0 200 Fine\r\nServer: x\r\n\r\n",
            false,
            "HTTP/1.1 200 Fine\r\nServer: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\n",
            false,
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\n",
        ),
        (
            "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
            false,
            "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", true, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", false, "HTTP/1.1 204 No Content\r\n\r\n"),
        (
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
            false,
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n",
            false,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
    ];
    for (given, to_head, expected) in table {
        assert_eq!(answered(given, to_head), expected, "{given:?}");
    }
}

#[test]
fn event_streams_and_closing_targets_are_recognised() {
    let head = |line: &'static str| line;
    for (line, stream) in [
        ("Content-Type: Text/Event-Stream; charset=utf-8", true),
        ("Content-Type: text/event-streams", true),
        ("Content-Type: text/html", false),
        ("X: text/event-stream", false),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", head(line));
        assert_eq!(is_event_stream(&head::response(text.as_bytes()).unwrap()), stream, "{line}");
    }
    for (text, persistent) in [
        ("HTTP/1.1 200 OK\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nConnection: x, Close\r\n\r\n", false),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", false),
    ] {
        assert_eq!(is_persistent(&head::response(text.as_bytes()).unwrap()), persistent, "{text}");
    }
}
