//! Clients that break the protocol, and what they can do with it: nothing (protocol 8.3, 8.5, 8.7).

use std::time::Duration;

use bamf_lab::agent::LIMIT;
use bamf_lab::client::{BlockingWire, Client, Received, frame};
use bamf_lab::scene::{Scene, Setting};
use bamf_lab::targets::{Tcp, Then};

use super::{hear, lazy_acks, scene, scene_of};

/// What is expected at once.
const SOON: Duration = Duration::from_secs(5);

fn opened(behaviour: Tcp) -> (Scene, BlockingWire) {
    let scene = scene_of(behaviour, Setting::friendly());
    let wire = scene.client(lazy_acks()).open_wire("thing").unwrap();
    (scene, wire)
}

/// An echo in which `one` was said and heard.
fn talked() -> (Scene, Client, BlockingWire) {
    let (scene, mut wire) = opened(Tcp::Echo);
    wire.write(&frame::data(1, b"one")).unwrap();
    assert_eq!(hear(&mut wire, 3), b"one");
    let client = scene.client(lazy_acks());
    (scene, client, wire)
}

#[test]
fn frames_come_numbered_and_are_acknowledged_in_time() {
    let (_scene, mut wire) = opened(Tcp::Echo);
    wire.write(&frame::data(1, b"one")).unwrap();
    let mut came = [wire.next(SOON).unwrap(), wire.next(SOON).unwrap()];
    came.sort_by_key(|received| matches!(received, Received::Ack(_)));
    assert_eq!(came, [Received::Data { seq: 1, payload: b"one".to_vec() }, Received::Ack(1)]);
    wire.write(&frame::ack(1)).unwrap();
    wire.write(&frame::data(2, b"two")).unwrap();
    assert_eq!(wire.next_but_acks(SOON).unwrap(), Received::Data { seq: 2, payload: b"two".to_vec() });
}

#[test]
fn a_frame_that_is_left_out_ends_the_session_with_a_close_frame() {
    let (scene, _client, mut wire) = talked();
    wire.write(&frame::data(3, b"three")).unwrap();
    assert_eq!(wire.next_but_acks(SOON).unwrap(), Received::Close);
    scene.agent.expect("left out a frame");
    assert!(scene.wait_active(0, LIMIT));
    assert_eq!(scene.target.seen().received, 3, "nothing behind the gap was delivered");
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_ends_the_session_with_a_close_frame() {
    let (scene, _client, mut wire) = talked();
    wire.write(&frame::ack(2)).unwrap();
    assert_eq!(wire.next_but_acks(SOON).unwrap(), Received::Close);
    scene.agent.expect("acknowledged what was never sent");
    assert!(scene.wait_active(0, LIMIT));
}

#[test]
fn acknowledgements_that_say_nothing_new_are_harmless() {
    let (_scene, _client, mut wire) = talked();
    wire.write(&[frame::ack(1), frame::ack(0), frame::ack(1)].concat()).unwrap();
    wire.write(&frame::data(2, b"two")).unwrap();
    assert_eq!(hear(&mut wire, 3), b"two");
}

/// Bytes that make no sense: the connection is closed at once, and the session waits for another.
fn is_dropped(bytes: &[u8]) {
    let (scene, client, mut wire) = talked();
    let session = wire.session_id.clone();
    wire.write(bytes).unwrap();
    assert_eq!(wire.next_but_acks(SOON).unwrap(), Received::End, "{}", scene.agent.log());
    scene.agent.expect("the bridge connection is closed");
    assert_eq!(scene.active(), 1);
    let mut wire = client.open_wire_again("thing", &session).unwrap();
    assert_eq!(wire.next(SOON).unwrap(), Received::Handshake(2));
    wire.write(&[&frame::handshake(2)[..], &frame::data(2, b"two")].concat()).unwrap();
    assert_eq!(hear(&mut wire, 3), b"two");
}

#[test]
fn an_empty_frame_ends_the_connection_and_not_the_session() {
    is_dropped(&frame::data_header(2, 0));
}

#[test]
fn a_frame_that_announces_too_much_ends_the_connection_and_not_the_session() {
    is_dropped(&frame::data_header(2, 65_537));
    is_dropped(&frame::data_header(2, u32::MAX));
}

#[test]
fn an_unknown_frame_ends_the_connection_and_not_the_session() {
    is_dropped(&[0]);
    is_dropped(&[5, 0, 0, 0]);
    is_dropped(b"GET / HTTP/1.1\r\n\r\n");
}

#[test]
fn a_handshake_on_the_first_connection_ends_it() {
    is_dropped(&frame::handshake(2));
}

#[test]
fn the_longest_frame_is_taken() {
    let (_scene, mut wire) = opened(Tcp::Echo);
    let payload = vec![7; frame::MAX_PAYLOAD];
    wire.write(&frame::data(1, &payload)).unwrap();
    assert_eq!(hear(&mut wire, payload.len()), payload);
}

#[test]
fn frames_byte_by_byte_are_frames() {
    let (_scene, mut wire) = opened(Tcp::Echo);
    wire.write_byte_by_byte(&[&frame::data(1, b"one")[..], &frame::data(2, b"two"), &frame::ack(0)].concat()).unwrap();
    assert_eq!(hear(&mut wire, 6), b"onetwo");
    wire.write_byte_by_byte(&frame::CLOSE).unwrap();
    assert_eq!(wire.next_but_acks(SOON).unwrap(), Received::Close);
}

#[test]
fn a_handshake_byte_by_byte_is_a_handshake() {
    let (_scene, client, wire) = talked();
    let session = wire.session_id.clone();
    wire.end();
    let mut wire = client.open_wire_again("thing", &session).unwrap();
    wire.write_byte_by_byte(&[&frame::handshake(1)[..], &frame::data(2, b"two")].concat()).unwrap();
    assert_eq!(wire.next(SOON).unwrap(), Received::Handshake(2));
    assert_eq!(hear(&mut wire, 6), b"onetwo");
}

#[test]
fn repeated_and_halved_frames_are_delivered_once() {
    let (scene, client, mut wire) = talked();
    let session = wire.session_id.clone();
    // The second frame comes in part, then the connection is gone.
    let second = frame::data(2, b"0123456789");
    wire.write(&second[..frame::DATA_HEADER + 4]).unwrap();
    assert_eq!(hear(&mut wire, 4), b"0123");
    wire.end();
    let mut wire = client.open_wire_again("thing", &session).unwrap();
    assert_eq!(wire.next(SOON).unwrap(), Received::Handshake(2), "it is not whole");
    let all = [&frame::handshake(2)[..], &frame::data(1, b"one"), &second, &second, &frame::data(3, b"!")].concat();
    wire.write(&all).unwrap();
    // Frame 2 of the agent is the four bytes that this end never acknowledged.
    assert_eq!(hear(&mut wire, 11), b"0123456789!");
    assert_eq!(scene.target.seen().received, 3 + 10 + 1);
}

/// A handshake that cannot be true ends the session, and both bridge and target are told soon.
fn is_impossible(bytes: &[u8], why: &str) {
    let (scene, client, mut wire) = talked();
    wire.write(&frame::ack(1)).unwrap();
    wire.write(&frame::data(2, b"two")).unwrap();
    assert_eq!(hear(&mut wire, 3), b"two");
    wire.write(&frame::ack(2)).unwrap();
    wire.write(&frame::data(3, b"!")).unwrap();
    assert_eq!(hear(&mut wire, 1), b"!");
    let session = wire.session_id.clone();
    wire.end();
    let mut wire = client.open_wire_again("thing", &session).unwrap();
    assert_eq!(wire.next(SOON).unwrap(), Received::Handshake(4));
    wire.write(bytes).unwrap();
    scene.agent.expect(why);
    assert_eq!(wire.next_but_acks(SOON).unwrap(), Received::Close, "{}", scene.agent.log());
    assert!(scene.target.wait_for(SOON, |seen| seen.ended == 1), "{}", scene.agent.log());
    assert!(scene.wait_active(0, SOON), "{}", scene.agent.log());
}

#[test]
fn a_handshake_that_takes_an_acknowledgement_back_ends_the_session() {
    is_impossible(&frame::handshake(2), "asked for a frame that it had acknowledged");
    is_impossible(&frame::handshake(0), "asked for a frame that it had acknowledged");
}

#[test]
fn a_handshake_that_claims_what_was_never_sent_ends_the_session() {
    is_impossible(&frame::handshake(5), "claims to have what was never sent");
    is_impossible(&frame::handshake(u64::MAX), "claims to have what was never sent");
}

#[test]
fn an_old_handshake_of_a_client_that_is_gone_already_fails_the_attempt_and_not_the_session() {
    let (scene, client, mut wire) = talked();
    wire.write(&frame::ack(1)).unwrap();
    wire.write(&frame::data(2, b"two")).unwrap();
    assert_eq!(hear(&mut wire, 3), b"two");
    let session = wire.session_id.clone();
    wire.end();
    // What bridges make of an attempt that was given up: its bytes reach the agent, and its end right behind them.
    let mut stale = client.open_wire_again("thing", &session).unwrap();
    stale.write(&frame::handshake(1)).unwrap();
    stale.end();
    assert!(scene.plane.wait_for(LIMIT, |seen| seen.established.total() == 2));
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.splices().is_empty()));
    let mut wire = client.open_wire_again("thing", &session).unwrap();
    assert_eq!(wire.next(SOON).unwrap(), Received::Handshake(3));
    wire.write(&[&frame::handshake(2)[..], &frame::data(3, b"three")].concat()).unwrap();
    assert_eq!(hear(&mut wire, 8), b"twothree", "{}", scene.agent.log());
}

#[test]
fn something_else_instead_of_a_handshake_fails_the_attempt_and_not_the_session() {
    let (scene, client, wire) = talked();
    let session = wire.session_id.clone();
    wire.end();
    for bytes in [&frame::data(2, b"two")[..], &frame::CLOSE, &frame::ack(1), &[9]] {
        let mut wire = client.open_wire_again("thing", &session).unwrap();
        assert_eq!(wire.next(SOON).unwrap(), Received::Handshake(2));
        wire.write(bytes).unwrap();
        assert_eq!(wire.next(SOON).unwrap(), Received::End);
    }
    let mut wire = client.open_wire_again("thing", &session).unwrap();
    wire.write(&frame::handshake(2)).unwrap();
    assert_eq!(wire.next(SOON).unwrap(), Received::Handshake(2));
    wire.write(&frame::data(2, b"two")).unwrap();
    assert_eq!(hear(&mut wire, 3), b"two");
    assert_eq!(scene.target.seen().received, 6);
}

#[test]
fn a_close_frame_right_behind_data_lets_the_data_through() {
    let scene = scene(Tcp::Sink);
    let mut wire = scene.client(lazy_acks()).open_wire("thing").unwrap();
    let payload = bamf_lab::pattern::Pattern::default().bytes(40_000);
    wire.write(&[&frame::data(1, &payload)[..], &frame::CLOSE, b"whatever follows is of no interest"].concat())
        .unwrap();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    let seen = scene.target.seen();
    assert_eq!((seen.received, seen.complaints), (40_000, Vec::new()));
    assert_eq!(wire.next_but_acks(SOON).unwrap(), Received::Close);
    assert!(scene.wait_active(0, LIMIT));
}

#[test]
fn a_close_frame_as_the_first_word_dials_nobody() {
    let (scene, mut wire) = opened(Tcp::Echo);
    wire.write(&frame::CLOSE).unwrap();
    assert_eq!(wire.next(SOON).unwrap(), Received::Close);
    assert!(scene.wait_active(0, LIMIT));
    assert_eq!(scene.target.seen().accepted, 0);
}

#[test]
fn the_end_of_a_target_is_told_even_to_a_client_that_never_acknowledges() {
    let (scene, mut wire) = opened(Tcp::Source(100_000, Then::Close));
    wire.write(&frame::data(1, b"go")).unwrap();
    assert_eq!(hear(&mut wire, 100_000).len(), 100_000);
    assert_eq!(wire.next_but_acks(LIMIT).unwrap(), Received::Close);
    // Whether it has everything only its own close frame says now.
    assert_eq!(scene.active(), 1);
    wire.write(&frame::CLOSE).unwrap();
    assert!(scene.wait_active(0, LIMIT));
}
