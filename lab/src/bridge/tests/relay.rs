//! The relay: visitors on one side, an agent's connections on the other.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::*;
use super::rig::{Rig, end_of, read_until};
use super::{LIMIT, SHORT};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn a_request_reaches_the_agent_and_its_answer_the_visitor() {
    let rig = Rig::new();
    let mut relay = rig.relay().await;
    let mut visitor = rig.visitor().await;
    let request = "POST /relay/edge-1/a%2Fb%20c?q=%2F HTTP/1.1\r\nHost: web.example.com\r\nConnection: close, X-Mine\r\n\
        X-Mine: 1\r\nX-Bamf-Target: http://localhost:80\r\nContent-Length: 4\r\n\r\nbody";
    visitor.write_all(request.as_bytes()).await.unwrap();
    let expected = "POST /a/b%20c?q=%2F HTTP/1.1\r\nHost: web.example.com\r\nUser-Agent: Go-http-client/1.1\r\n\
        Content-Length: 4\r\nConnection: keep-alive\r\nX-Bamf-Target: http://localhost:80\r\n\r\n";
    assert_eq!(read_until(&mut relay, "\r\n\r\n").await, expected);
    let mut record = [0; 64];
    assert_eq!(relay.read(&mut record).await.unwrap(), 4, "the body comes in a record of its own");
    let answer = "HTTP/1.1 201 Created\r\nKeep-Alive: 9\r\nX-Own: 1\r\nTransfer-Encoding: chunked\r\n\r\n\
        3\r\nabc\r\n0\r\n\r\n";
    relay.write_all(answer.as_bytes()).await.unwrap();
    let mut read = String::new();
    visitor.read_to_string(&mut read).await.unwrap();
    let expected = "HTTP/1.1 201 Created\r\nX-Own: 1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
        3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(read, expected);
}

#[tokio::test]
async fn the_first_free_connection_of_the_list_is_used_again_and_again() {
    let rig = Rig::new();
    let (mut first, mut second) = (rig.relay().await, rig.relay().await);
    let mut visitors = [rig.visitor().await, rig.visitor().await];
    for _ in 0..3 {
        visitors[0].write_all(b"GET /relay/edge-1/ HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        read_until(&mut first, "\r\n\r\n").await;
        assert_eq!(rig.bridge.busy_relays("edge-1"), 1);
        visitors[1].write_all(b"GET /relay/edge-1/ HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        read_until(&mut second, "\r\n\r\n").await;
        for (relay, visitor) in [&mut first, &mut second].into_iter().zip(&mut visitors) {
            relay.write_all(OK).await.unwrap();
            read_until(visitor, "\r\n\r\nok").await;
        }
        assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.busy_relays("edge-1") == 0));
    }
    assert_eq!(rig.bridge.relays("edge-1"), 2);
}

#[tokio::test]
async fn without_connections_there_is_a_502_at_once_and_with_busy_ones_after_a_while() {
    let rig = Rig::with(BridgeOptions { relay_wait: SHORT, ..BridgeOptions::default() });
    let get = async || {
        let mut visitor = rig.visitor().await;
        visitor.write_all(b"GET /relay/edge-1/x HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        let begun = Instant::now();
        let head = read_until(&mut visitor, "\r\n\r\n").await;
        (head.lines().next().unwrap_or_default().to_owned(), begun.elapsed())
    };
    assert_eq!(get().await.0, "HTTP/1.1 502 Bad Gateway");
    let mut relay = rig.relay().await;
    let mut busy = rig.visitor().await;
    busy.write_all(b"GET /relay/edge-1/x HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    read_until(&mut relay, "\r\n\r\n").await;
    let (status, waited) = get().await;
    assert!(status == "HTTP/1.1 502 Bad Gateway" && waited >= SHORT);
}

#[tokio::test]
async fn a_dead_connection_costs_one_502_and_is_gone_then() {
    let rig = Rig::new();
    drop(rig.relay().await);
    let mut relay = rig.relay().await;
    assert_eq!(rig.bridge.relays("edge-1"), 2, "nobody looks before a request does");
    let mut visitor = rig.visitor().await;
    visitor.write_all(b"GET /relay/edge-1/x HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    assert!(read_until(&mut visitor, "\r\n\r\n").await.starts_with("HTTP/1.1 502"));
    let mut visitor = rig.visitor().await;
    visitor.write_all(b"GET /relay/edge-1/x HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    read_until(&mut relay, "\r\n\r\n").await;
    assert_eq!(rig.bridge.relays("edge-1"), 1);
}

#[tokio::test]
async fn the_rest_of_an_answer_never_becomes_the_next_one() {
    let rig = Rig::new();
    let mut relay = rig.relay().await;
    let mut visitor = rig.visitor().await;
    visitor.write_all(b"GET /relay/edge-1/x HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    read_until(&mut relay, "\r\n\r\n").await;
    relay.write_all(&[OK, OK].concat()).await.unwrap();
    read_until(&mut visitor, "\r\n\r\nok").await;
    assert!(end_of(&mut relay).await.1.is_ok(), "a connection with a rest is not kept");
    assert_eq!((rig.bridge.unsolicited(), rig.bridge.relays("edge-1")), (1, 0));
}

#[tokio::test]
async fn a_visitor_that_leaves_in_mid_body_leaves_nothing_behind() {
    let rig = Rig::new();
    let mut relay = rig.relay().await;
    let mut visitor = rig.visitor().await;
    visitor.write_all(b"GET /relay/edge-1/x HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    read_until(&mut relay, "\r\n\r\n").await;
    drop(visitor);
    relay.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await.unwrap();
    let piece = vec![b'x'; 1 << 16];
    while relay.write_all(&piece).await.is_ok() {}
    assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.relays("edge-1") == 0));
}

#[tokio::test]
async fn an_interim_response_is_taken_for_the_final_one() {
    let rig = Rig::new();
    let mut relay = rig.relay().await;
    let mut visitor = rig.visitor().await;
    visitor
        .write_all(b"PUT /relay/edge-1/x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(read_until(&mut visitor, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n", "from the bridge");
    visitor.write_all(b"x").await.unwrap();
    assert!(read_until(&mut relay, "\r\n\r\n").await.contains("Expect: 100-continue"));
    relay.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.unwrap();
    let answer = read_until(&mut visitor, "\r\n\r\n").await;
    assert_eq!(answer, "HTTP/1.1 102 Processing\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(rig.bridge.interim_responses(), 1);
    // What the agent meant as its answer would be the next visitor's.
    relay.write_all(OK).await.unwrap();
    assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.busy_relays("edge-1") == 0));
}

#[tokio::test]
async fn bodiless_answers_and_those_that_end_with_the_connection_are_understood() {
    let rig = Rig::new();
    let mut relay = rig.relay().await;
    let mut visitor = rig.visitor().await;
    for (method, answer) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ] {
        visitor.write_all(format!("{method} /relay/edge-1/x HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await.unwrap();
        read_until(&mut relay, "\r\n\r\n").await;
        relay.write_all(answer.as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut visitor, "\r\n\r\n").await, answer);
    }
    visitor.write_all(b"GET /relay/edge-1/x HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    read_until(&mut relay, "\r\n\r\n").await;
    relay.write_all(b"HTTP/1.1 200 OK\r\n\r\nall").await.unwrap();
    relay.shutdown().await.unwrap();
    assert!(read_until(&mut visitor, "\r\n0\r\n\r\n").await.ends_with("chunked\r\n\r\n3\r\nall\r\n0\r\n\r\n"));
    assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.relays("edge-1") == 0));
}

#[tokio::test]
async fn an_event_stream_takes_its_connection_out_of_the_pool_until_the_agent_ends_it() {
    let rig = Rig::new();
    let mut relay = rig.relay().await;
    let mut visitor = rig.visitor().await;
    visitor.write_all(b"GET /relay/edge-1/events HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    read_until(&mut relay, "\r\n\r\n").await;
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
    relay.write_all(head.as_bytes()).await.unwrap();
    relay.write_all(b"4\r\none\n\r\n").await.unwrap();
    read_until(&mut visitor, "4\r\none\n\r\n").await;
    assert_eq!((rig.bridge.relays("edge-1"), rig.bridge.detached_relays("edge-1")), (0, 1));
    drop(visitor);
    for _ in 0..100 {
        relay.write_all(b"4\r\ntwo\n\r\n").await.unwrap();
    }
    relay.write_all(b"0\r\n\r\n").await.unwrap();
    assert!(tokio::time::timeout(SHORT, relay.read_u8()).await.is_err(), "the bridge never closes it");
    relay.shutdown().await.unwrap();
    assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.detached_relays("edge-1") == 0));
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways_until_one_side_ends() {
    let rig = Rig::new();
    let mut relay = rig.relay().await;
    let mut visitor = rig.visitor().await;
    let request = "GET /relay/edge-1/ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nahead";
    visitor.write_all(request.as_bytes()).await.unwrap();
    assert!(read_until(&mut relay, "\r\n\r\n").await.contains("\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"));
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    relay.write_all(format!("{answer}first").as_bytes()).await.unwrap();
    assert_eq!(read_until(&mut visitor, "first").await, format!("{answer}first"));
    assert_eq!(read_until(&mut relay, "ahead").await, "ahead");
    assert_eq!((rig.bridge.relays("edge-1"), rig.bridge.detached_relays("edge-1")), (0, 1));
    visitor.write_all(b"last").await.unwrap();
    visitor.shutdown().await.unwrap();
    let (read, end) = end_of(&mut relay).await;
    assert!(read == b"last" && end.is_ok());
    assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.detached_relays("edge-1") == 0));
}

#[tokio::test]
async fn the_reaper_closes_what_has_not_answered_for_long_even_if_it_is_busy() {
    let options = BridgeOptions { reaper_period: SHORT, reaper_idle: SHORT, ..BridgeOptions::default() };
    let rig = Rig::with(options);
    let (mut busy, mut idle) = (rig.relay().await, rig.relay().await);
    let mut visitor = rig.visitor().await;
    visitor.write_all(b"GET /relay/edge-1/x HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    read_until(&mut busy, "\r\n\r\n").await;
    assert!(end_of(&mut idle).await.1.is_ok() && end_of(&mut busy).await.1.is_ok());
    assert_eq!(visitor.read(&mut [0; 1]).await.unwrap_or(0), 0, "the visitor is cut off");
    assert_eq!(rig.bridge.relays("edge-1"), 0);
}

#[tokio::test]
async fn connections_are_reaped_on_demand_one_or_all() {
    let rig = Rig::new();
    let (mut first, mut second, mut third) = (rig.relay().await, rig.relay().await, rig.relay().await);
    assert_eq!((rig.bridge.reap("edge-1", Reap::One), rig.bridge.reap("nobody", Reap::All)), (1, 0));
    assert!(end_of(&mut first).await.1.is_ok());
    assert_eq!((rig.bridge.relays("edge-1"), rig.bridge.reap("edge-1", Reap::All)), (2, 2));
    assert!(end_of(&mut second).await.1.is_ok() && end_of(&mut third).await.1.is_ok());
    assert_eq!(rig.bridge.relays_ever("edge-1"), 3);
}

#[tokio::test]
async fn the_internal_port_tells_of_its_health() {
    let rig = Rig::new();
    for (path, expected) in [("/health", r#"{"status":"healthy"}"#), ("/ready", r#"{"status":"ready"}"#)] {
        let mut visitor = rig.visitor().await;
        visitor.write_all(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        visitor.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(expected), "{answer}");
    }
}
