//! A client end against a peer that is written by hand.

use std::time::Duration;

use super::super::{Dial, Handshake, Link, Options, Received, Status, Tunnel, Wire, frame};
use crate::runtime::block_on;

const LIMIT: Duration = Duration::from_secs(20);

fn pair(options: Options) -> (Tunnel, Wire, tokio::sync::mpsc::UnboundedReceiver<Wire>) {
    let (coming, came) = tokio::sync::mpsc::unbounded_channel();
    let link = move || -> (Link, Wire) {
        let (one, other) = tokio::io::duplex(200_000);
        (Box::new(one), Wire::new(Box::new(other)))
    };
    let (first, wire) = link();
    let dial: Dial = Box::new(move || {
        let (next, wire) = link();
        let sent = coming.send(wire).map(|()| next).map_err(|_| std::io::ErrorKind::ConnectionRefused.into());
        Box::pin(async move { sent })
    });
    (Tunnel::framed(first, Some(dial), options), wire, came)
}

async fn failure_after(bytes: &[u8]) -> String {
    let (tunnel, mut wire, _came) = pair(Options::robust());
    wire.write(bytes).await.unwrap();
    tokio::time::timeout(LIMIT, tunnel.wait_over()).await.unwrap();
    let Status::Failed(why) = tunnel.status() else { panic!("{:?}", tunnel.status()) };
    why
}

#[test]
fn a_peer_that_breaks_the_rules_is_named_for_it() {
    block_on(async {
        let cases = [
            (frame::data(2, b"gap"), "frame 2 came where 1 was expected"),
            (frame::data_header(1, 0).to_vec(), "data frame 1 is empty"),
            (frame::data_header(1, 65537).to_vec(), "data frame 1 announces 65537 bytes"),
            (vec![9], "0x09 is no type of a frame"),
            (frame::ack(1).to_vec(), "frame 1 was acknowledged and never sent"),
            (frame::handshake(1).to_vec(), "a handshake came where none belongs"),
        ];
        for (bytes, why) in cases {
            let seen = failure_after(&bytes).await;
            assert!(seen.contains(why), "{seen}");
        }
    });
}

#[test]
fn a_close_frame_right_behind_data_loses_nothing() {
    block_on(async {
        let (tunnel, mut wire, _came) = pair(Options::default());
        let bytes = [frame::data(1, b"all "), frame::data(2, b"of it"), frame::CLOSE.to_vec()].concat();
        wire.write_byte_by_byte(&bytes).await.unwrap();
        assert_eq!(tunnel.read_to_end().await.unwrap(), b"all of it");
        // The platform's client closes in turn; its ticker had no time to acknowledge.
        assert_eq!(wire.next_but_acks(LIMIT).await.unwrap(), Received::Close);
        assert_eq!(wire.next(LIMIT).await.unwrap(), Received::End);
    });
}

#[test]
fn acknowledgements_come_in_time_and_only_when_there_is_something_new() {
    block_on(async {
        let (_tunnel, mut wire, _came) = pair(Options::default());
        wire.write(&[frame::data(1, b"a"), frame::data(2, b"b")].concat()).await.unwrap();
        assert_eq!(wire.next(LIMIT).await.unwrap(), Received::Ack(2));
        assert!(wire.next(Duration::from_millis(200)).await.is_err());
        wire.write(&frame::data(3, b"c")).await.unwrap();
        assert_eq!(wire.next(LIMIT).await.unwrap(), Received::Ack(3));
    });
}

/// Lets the first connection break and returns the second.
async fn broken(options: Options) -> (Tunnel, Wire, tokio::sync::mpsc::UnboundedReceiver<Wire>) {
    let (tunnel, mut wire, mut came) = pair(options);
    tunnel.write(b"first").await.unwrap();
    assert_eq!(wire.next(LIMIT).await.unwrap(), Received::Data { seq: 1, payload: b"first".to_vec() });
    wire.write(&frame::data(1, b"answer")).await.unwrap();
    tunnel.read_exact(&mut [0; 6]).await.unwrap();
    wire.end().await;
    let again = came.recv().await.unwrap();
    (tunnel, again, came)
}

#[test]
fn a_reconnect_says_what_is_expected_and_repeats_what_is_missing() {
    block_on(async {
        let (tunnel, mut wire, _came) = broken(Options::robust()).await;
        assert_eq!(wire.next(LIMIT).await.unwrap(), Received::Handshake(2));
        wire.write(&[&frame::handshake(1)[..], &frame::data(2, b"more")].concat()).await.unwrap();
        assert_eq!(wire.next_but_acks(LIMIT).await.unwrap(), Received::Data { seq: 1, payload: b"first".to_vec() });
        let mut more = [0; 4];
        tunnel.read_exact(&mut more).await.unwrap();
        assert_eq!((&more, tunnel.counts().frames_repeated), (b"more", 1));
    });
}

#[test]
fn impossible_numbers_in_a_handshake_end_the_session() {
    block_on(async {
        for claim in [0, 3, u64::MAX] {
            let (tunnel, mut wire, _came) = broken(Options::robust()).await;
            wire.write(&frame::handshake(claim)).await.unwrap();
            tokio::time::timeout(LIMIT, tunnel.wait_over()).await.unwrap();
            assert!(matches!(tunnel.status(), Status::Failed(why) if why.contains("handshake asks for")), "{claim}");
        }
    });
}

#[test]
fn a_handshake_that_is_not_answered_counts_as_an_attempt() {
    block_on(async {
        let options = Options { handshake_limit: Duration::from_millis(50), ..Options::robust() };
        let (tunnel, silent, mut came) = broken(options).await;
        let mut wire = came.recv().await.unwrap();
        wire.write(&frame::handshake(2)).await.unwrap();
        assert!(tunnel.wait_reconnects(1, LIMIT).await);
        assert!(tunnel.counts().attempts >= 2);
        drop(silent);
    });
}

#[test]
fn a_client_may_claim_anything_in_its_handshake_or_say_nothing() {
    block_on(async {
        let (_tunnel, mut wire, _came) = broken(Options { handshake: Handshake::Claim(77), ..Options::robust() }).await;
        assert_eq!(wire.next(LIMIT).await.unwrap(), Received::Handshake(77));
        let (_tunnel, mut wire, _came) = broken(Options { handshake: Handshake::Silent, ..Options::robust() }).await;
        assert!(wire.next(Duration::from_millis(100)).await.is_err());
    });
}

#[test]
fn a_client_that_vanishes_says_nothing_and_does_not_come_back() {
    block_on(async {
        let (tunnel, mut wire, mut came) = pair(Options::robust());
        drop(tunnel);
        assert_eq!(wire.next(LIMIT).await.unwrap(), Received::End);
        assert!(came.recv().await.is_none());
    });
}
