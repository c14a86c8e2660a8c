//! One record of each kind in which everything is set that can be.

use std::sync::Arc;

use bamf_agent::config::{Dial, Resource};
use bamf_agent::handoff::Process;
use bamf_agent::handoff::snapshot::Kind;
use bamf_agent::kubernetes::ServiceAccount;
use bamf_agent::relay::conversation::Conversation;
use bamf_agent::relay::route::Router;
use bamf_agent::relay::rules::RuleBook;
use bamf_agent::stream::{Connection, Stream, frame};
use bamf_agent::tunnel::link;
use bamf_agent::tunnel::record::{Ask, Fragment, Half, Standing, State, TrafficSecret};
use serde_json::{Value, json};

const SESSION: &str = "-h3vQ0m_8h-TtYx2LrW7cPq1Ab9Dn4Ke";

/// Name, kind, and record.
pub(super) fn all() -> [(&'static str, Kind, Value); 4] {
    [
        ("process", Kind::PROCESS, process()),
        ("session-framed", Kind::SESSION, framed()),
        ("session-raw", Kind::SESSION, raw()),
        ("relay", Kind::RELAY, relay()),
    ]
}

fn process() -> Value {
    let instance_id = "0b54cf0a-3a1b-4a6e-9c39-0d5f2f6f2a11".into();
    serde_json::to_value(Process { version: "1.2.3".into(), instance_id, relays: 33 }).unwrap()
}

/// A link in the middle of two records.
fn link(suite: u16, seed: u8) -> link::State {
    let len = if suite == 0x1302 { 48 } else { 32 };
    let half = |seed: u8, sequence| {
        let secret: Vec<u8> = (0..len).map(|at| seed.wrapping_add(at)).collect();
        Half { secret: TrafficSecret::new(&secret), sequence }
    };
    // Part of a session ticket has come: its head is not whole, or the rest of it is passed over.
    let fragment = match suite {
        0x1302 => Fragment { head: Vec::new(), skip: 60 },
        _ => Fragment { head: vec![4, 0], skip: 0 },
    };
    let standing = Standing {
        fragment,
        update_due: true,
        ask: Ask::Due,
        updates_in_a_row: 2,
        heard_all: false,
        said_all: false,
        broken: false,
    };
    link::State {
        records: State { suite, outbound: half(seed, 1 << 20), inbound: half(seed ^ 0xff, 77), standing },
        incoming: vec![23, 3, 3, 0, 90, 1, 2, 3, 200],
        outgoing: vec![250; 40],
        plain: b"read ahead".to_vec(),
        ended: false,
        closing: false,
    }
}

/// A stream in the middle of things, and its connection: a frame half sent, one half received, one acknowledged.
fn busy() -> (Stream, Connection) {
    let mut stream = Stream::new();
    let mut connection = stream.first();
    for text in [&b"one"[..], b"two", b"three"] {
        stream.push(text);
    }
    let mut left = 40;
    while left > 0 {
        let count = stream.transmit(&mut connection).len().min(left);
        stream.sent(&mut connection, count);
        left -= count;
    }
    let head = frame::data_header(2, 9);
    let input = [&frame::data_header(1, 3)[..], b"abc", &frame::numbered(frame::ACK, 1), &head, b"half"].concat();
    stream.receive(&mut connection, &input, &mut |_| ()).unwrap();
    stream.acknowledge(&mut connection);
    (stream, connection)
}

fn framed() -> Value {
    let (stream, connection) = busy();
    let next = stream.resume();
    json!({
        "id": SESSION,
        "resource": "thing",
        "session": {
            "header": format!("{SESSION}\ntype=tcp\n").as_bytes(),
            "stream": stream,
            "target": {
                "host": "127.0.0.1", "port": 5432, "state": {"open": {"socket": 2}}, "deaf": false, "scrapped": 17,
            },
            "link": {"socket": 0, "link": link(0x1301, 40), "connection": connection, "deaf": true},
            "next": {"socket": 1, "link": link(0x1302, 90), "connection": next, "deaf": false},
            "next_left_ms": 34_000,
            "doubt": "asked for a frame that it had acknowledged",
            "dialling": {
                "bridge": {"host": "127.0.0.1", "port": 9},
                "material": {"certificate_pem": "C", "private_key_pem": "K", "ca_pem": "A"},
                "first": false,
            },
            "redial_left_ms": 299_000,
            "was_connected": true,
            "backlog": b"not taken yet",
            "phase": "running",
            "end": {"target_unreachable": "db:5432: no answer within 10 s"},
        }
    })
}

fn raw() -> Value {
    json!({
        "id": "raw-1",
        "resource": "thing",
        "session": {
            "header": b"raw-1\ntype=web-db\n",
            "stream": null,
            "target": {"host": "127.0.0.1", "port": 5432, "state": {"leaving": {"socket": 1}}, "deaf": true, "scrapped": 0},
            "link": {"socket": 0, "link": link(0x1303, 7), "connection": Stream::new().first(), "deaf": false},
            "next": null,
            "next_left_ms": null,
            "doubt": null,
            "dialling": null,
            "redial_left_ms": null,
            "was_connected": true,
            "backlog": b"",
            "phase": {"finishing": {"left_ms": 1500, "late": true}},
            "end": "target_ended",
        }
    })
}

/// A request whose chunked body is under way, and whose chunked answer is as well.
fn relay() -> Value {
    let resource = Resource {
        name: "wiki".into(),
        resource_type: "http".into(),
        hostname: "127.0.0.1".into(),
        port: 8080,
        labels: Default::default(),
        tunnel_hostname: None,
        webhooks: Vec::new(),
        forward_session_token: false,
        dial: Dial::Auto,
    };
    let rules = RuleBook::new(Router::new(&[resource]), Arc::new(ServiceAccount::new("/nonexistent")));
    let mut conversation = Conversation::new();
    let head =
        "POST /page HTTP/1.1\r\nHost: b\r\nX-Bamf-Target: http://127.0.0.1:8080\r\nTransfer-Encoding: chunked\r\n\r\n";
    conversation.bridge_sent(head.as_bytes(), &rules);
    conversation.dialled(true, &rules);
    conversation.bridge_sent(b"5\r\nhello\r\nff\r\nhalf a chunk", &rules);
    conversation.wrote_target(20);
    conversation.target_sent(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7;x=y\r\nanswer", &rules);
    conversation.wrote_bridge(11);
    json!({
        "edge": "eu",
        "bridge": {"host": "bridge-0.example.com", "port": 8443},
        "ca_pem": "A",
        "superseded": true,
        "conversation": conversation,
        "socket": 0,
        "link": link(0x1301, 3),
        "target": {"target": {"scheme": "http", "host": "127.0.0.1", "port": 8080}, "socket": 1},
    })
}
