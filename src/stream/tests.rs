//! The vectors of the protocol, each weakness of protocol 8.7 that is dealt with in here, and two ends against a model.

mod carried;
mod model;

use serde_json::Value;

use super::frame::{self, DATA_HEADER};
use super::*;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../tests/vectors.json")).unwrap()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let text = hex.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

/// Everything that a connection would send now.
fn drain(stream: &mut Stream, connection: &mut Connection) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let piece = stream.transmit(connection).to_vec();
        if piece.is_empty() {
            return all;
        }
        stream.sent(connection, piece.len());
        all.extend(piece);
    }
}

fn receive(stream: &mut Stream, connection: &mut Connection, input: &[u8]) -> Result<Vec<u8>, Violation> {
    let mut delivered = Vec::new();
    stream.receive(connection, input, &mut |piece| delivered.extend_from_slice(piece))?;
    Ok(delivered)
}

#[test]
fn the_constants_are_the_protocols() {
    let vectors = vectors();
    let constants = &vectors["constants"];
    let kinds = [("data", frame::DATA), ("ack", frame::ACK), ("handshake", frame::HANDSHAKE), ("close", frame::CLOSE)];
    for (name, kind) in kinds {
        assert_eq!(constants["frame_types"][name], kind, "{name}");
    }
    assert_eq!(constants["data_header_len"], DATA_HEADER);
    assert_eq!((&constants["ack_len"], &constants["handshake_len"]), (&9.into(), &frame::NUMBERED.into()));
    assert_eq!(constants["max_payload"], frame::MAX_PAYLOAD);
    assert_eq!((&constants["first_seq"], &constants["initial_next_expected"]), (&1.into(), &frame::FIRST_SEQ.into()));
    const { assert!(FRAME_PAYLOAD <= 32_768, "larger ones lose bytes at the platform's client (W2)") }
}

#[test]
fn data_frames_are_the_protocols() {
    for case in list(&vectors()["data_frames"]) {
        let (payload, frame) = (bytes(&case["payload_hex"]), bytes(&case["frame_hex"]));
        let header = frame::data_header(number(&case["seq"]), u32::try_from(payload.len()).unwrap());
        assert_eq!([&header[..], &payload].concat(), frame, "{}", case["name"]);
    }
    for case in list(&vectors()["data_frames_large"]) {
        let len = u32::try_from(number(&case["payload_len"])).unwrap();
        assert_eq!(frame::data_header(number(&case["seq"]), len).to_vec(), bytes(&case["header_hex"]));
    }
}

#[test]
fn acks_and_handshakes_are_the_protocols() {
    for (cases, kind, key) in
        [("ack_frames", frame::ACK, "ack_seq"), ("handshake_frames", frame::HANDSHAKE, "next_expected")]
    {
        for case in list(&vectors()[cases]) {
            let frame = bytes(&case["frame_hex"]);
            assert_eq!(frame::numbered(kind, number(&case[key])).to_vec(), frame);
            assert_eq!(frame::number(&frame), number(&case[key]));
        }
    }
    assert_eq!(bytes(&vectors()["close_frame"]["frame_hex"]), [frame::CLOSE]);
}

#[test]
fn mixed_frames_mean_the_same_however_they_are_split() {
    let vectors = vectors();
    let input = bytes(&vectors["mixed_stream"]["bytes_hex"]);
    for size in 1..=input.len() {
        let mut stream = Stream::new();
        let mut connection = stream.first();
        // The vector acknowledges four frames, so four were sent.
        for _ in 0..4 {
            stream.push(b"x");
        }
        drain(&mut stream, &mut connection);
        let mut delivered = Vec::new();
        let mut closed = false;
        for piece in input.chunks(size) {
            let mut deliver = |bytes: &[u8]| delivered.extend_from_slice(bytes);
            closed |= stream.receive(&mut connection, piece, &mut deliver).unwrap().closed;
        }
        assert_eq!(
            (delivered.as_slice(), closed, stream.all_acknowledged()),
            (&b"helloworld"[..], true, true),
            "{size}"
        );
    }
}

#[test]
fn impossible_frames_end_the_connection() {
    for case in list(&vectors()["data_frames_invalid"]) {
        let input = if case["frame_hex"].is_string() { bytes(&case["frame_hex"]) } else { bytes(&case["header_hex"]) };
        let mut stream = Stream::new();
        let mut connection = stream.first();
        let outcome = receive(&mut stream, &mut connection, &input);
        assert!(matches!(outcome, Err(Violation::Connection(_))), "{}: {outcome:?}", case["name"]);
    }
}

#[test]
fn repeated_frames_are_dropped_and_a_gap_ends_the_session() {
    let vectors = vectors();
    let case = &vectors["dedup_and_gap"];
    let mut stream = Stream::new();
    let mut connection = stream.first();
    for seq in 1..number(&case["state_next_expected"]) {
        let frame = [&frame::data_header(seq, 1)[..], b"-"].concat();
        receive(&mut stream, &mut connection, &frame).unwrap();
    }
    for incoming in list(&case["incoming"]) {
        let outcome = receive(&mut stream, &mut connection, &bytes(&incoming["frame_hex"]));
        match incoming["deliver"].as_bool() {
            Some(deliver) => assert_eq!(outcome.unwrap().is_empty(), !deliver),
            None => assert!(matches!(outcome, Err(Violation::Session(_)))),
        }
    }
}

#[test]
fn a_write_is_cut_into_frames_that_the_platforms_client_can_take() {
    let mut stream = Stream::new();
    let mut connection = stream.first();
    let payload: Vec<u8> = (0..100_000u32).map(|index| u8::try_from(index % 251).unwrap()).collect();
    stream.push(&payload);
    stream.push(&[]);
    let sent = drain(&mut stream, &mut connection);
    let (mut at, mut seq, mut content) = (0, 1, Vec::new());
    while at < sent.len() {
        assert_eq!((sent[at], frame::number(&sent[at..])), (frame::DATA, seq));
        let len = frame::payload_len(&sent[at..]) as usize;
        assert!((1..=32_768).contains(&len));
        content.extend_from_slice(&sent[at + DATA_HEADER..at + DATA_HEADER + len]);
        (at, seq) = (at + DATA_HEADER + len, seq + 1);
    }
    assert_eq!(content, payload);
    assert_eq!(DATA_HEADER + FRAME_PAYLOAD, 2 * 16_384, "whole TLS records");
}

#[test]
fn the_first_connection_goes_as_in_the_protocols_example() {
    let vectors = vectors();
    let example = &vectors["first_connection_example"];
    let of =
        |side: &str, step: u64| bytes(&list(&example[side]).iter().find(|entry| entry["step"] == step).unwrap()["hex"]);
    let mut stream = Stream::new();
    let mut connection = stream.first();
    assert!(drain(&mut stream, &mut connection).is_empty(), "no handshake on a first connection");
    assert_eq!(receive(&mut stream, &mut connection, &of("client_to_agent_via_bridge", 2)).unwrap(), b"ask");
    stream.push(b"reply");
    assert_eq!(drain(&mut stream, &mut connection), of("agent_to_bridge", 3));
    stream.acknowledge(&mut connection);
    assert_eq!(drain(&mut stream, &mut connection), of("agent_to_bridge", 4));
}

/// The agent's end of the protocol's reconnect examples: 7 frames sent, 4 acknowledged, 3 received.
fn before_the_break() -> (Stream, Connection) {
    let mut stream = Stream::new();
    let mut connection = stream.first();
    for number in 1..=7u8 {
        stream.push(&[number]);
    }
    drain(&mut stream, &mut connection);
    for seq in 1..=3 {
        receive(&mut stream, &mut connection, &[&frame::data_header(seq, 1)[..], b"c"].concat()).unwrap();
    }
    receive(&mut stream, &mut connection, &frame::numbered(frame::ACK, 4)).unwrap();
    (stream, connection)
}

#[test]
fn a_reconnect_goes_as_in_the_protocols_example() {
    let (mut stream, _broken) = before_the_break();
    let mut connection = stream.resume();
    assert_eq!(drain(&mut stream, &mut connection), frame::numbered(frame::HANDSHAKE, 4), "before the peer has spoken");
    let input = frame::numbered(frame::HANDSHAKE, 6);
    assert!(stream.receive(&mut connection, &input, &mut |_| {}).unwrap().resumed);
    let again = [&frame::data_header(6, 1)[..], &[6], &frame::data_header(7, 1), &[7]].concat();
    assert_eq!(drain(&mut stream, &mut connection), again);
}

#[test]
fn a_reconnect_after_which_nothing_is_missing_repeats_nothing() {
    let (mut stream, _broken) = before_the_break();
    let mut connection = stream.resume();
    receive(&mut stream, &mut connection, &frame::numbered(frame::HANDSHAKE, 8)).unwrap();
    assert_eq!(drain(&mut stream, &mut connection), frame::numbered(frame::HANDSHAKE, 4));
    assert!(stream.all_acknowledged());
}

#[test]
fn a_handshake_that_asks_for_the_impossible_ends_the_session() {
    let vectors = vectors();
    let case = &vectors["handshake_validation"];
    for value in list(&case["peer_next_expected"]) {
        let (mut stream, _broken) = before_the_break();
        let mut connection = stream.resume();
        let next = number(&value["value"]);
        let outcome = receive(&mut stream, &mut connection, &frame::numbered(frame::HANDSHAKE, next));
        assert_eq!(outcome.is_ok(), value["ok"] == true, "{next}: {outcome:?}");
    }
}

#[test]
fn an_ack_of_what_was_never_sent_ends_the_session() {
    let mut stream = Stream::new();
    let mut connection = stream.first();
    stream.push(b"one");
    let outcome = receive(&mut stream, &mut connection, &frame::numbered(frame::ACK, 1));
    assert!(matches!(outcome, Err(Violation::Session(_))), "it is only in line: {outcome:?}");
    let mut connection = stream.first();
    drain(&mut stream, &mut connection);
    receive(&mut stream, &mut connection, &frame::numbered(frame::ACK, 1)).unwrap();
    let outcome = receive(&mut stream, &mut connection, &frame::numbered(frame::ACK, u64::MAX));
    assert!(matches!(outcome, Err(Violation::Session(_))), "{outcome:?}");
}

#[test]
fn the_rest_of_a_frame_that_was_cut_is_delivered_by_the_next_connection() {
    let mut stream = Stream::new();
    let mut connection = stream.first();
    let payload: Vec<u8> = (0..=255).collect();
    let whole = [&frame::data_header(1, 256)[..], &payload].concat();
    assert_eq!(receive(&mut stream, &mut connection, &whole[..100]).unwrap(), payload[..87]);
    assert_eq!(stream.ack_wanted(), AckWanted::No, "part of a frame is not acknowledged");
    let mut connection = stream.resume();
    receive(&mut stream, &mut connection, &frame::numbered(frame::HANDSHAKE, 1)).unwrap();
    let mut rest = Vec::new();
    for piece in whole.chunks(7) {
        rest.extend(receive(&mut stream, &mut connection, piece).unwrap());
    }
    assert_eq!(rest, payload[87..]);
    let mut connection = stream.resume();
    receive(&mut stream, &mut connection, &frame::numbered(frame::HANDSHAKE, 1)).unwrap();
    assert!(receive(&mut stream, &mut connection, &whole).unwrap().is_empty(), "known as a whole");
}

#[test]
fn a_frame_that_is_repeated_with_another_length_ends_the_session() {
    let mut stream = Stream::new();
    let mut connection = stream.first();
    receive(&mut stream, &mut connection, &[&frame::data_header(1, 3)[..], b"a"].concat()).unwrap();
    let mut connection = stream.resume();
    receive(&mut stream, &mut connection, &frame::numbered(frame::HANDSHAKE, 1)).unwrap();
    let outcome = receive(&mut stream, &mut connection, &frame::data_header(1, 4));
    assert!(matches!(outcome, Err(Violation::Session(_))), "{outcome:?}");
}

#[test]
fn only_a_handshake_is_believed_before_the_handshake() {
    let mut stream = Stream::new();
    let mut connection = stream.resume();
    let outcome = receive(&mut stream, &mut connection, &frame::numbered(frame::ACK, 0));
    assert!(matches!(outcome, Err(Violation::Connection(_))), "{outcome:?}");
}

#[test]
fn an_ack_never_cuts_a_frame_and_goes_as_soon_as_it_can() {
    let mut stream = Stream::new();
    let mut connection = stream.first();
    stream.push(&[7; 2 * FRAME_PAYLOAD]);
    receive(&mut stream, &mut connection, &[&frame::data_header(1, 1)[..], b"c"].concat()).unwrap();
    assert!(stream.transmit(&mut connection).len() > 100);
    stream.sent(&mut connection, 100);
    stream.acknowledge(&mut connection);
    assert_eq!(stream.transmit(&mut connection).len(), DATA_HEADER + FRAME_PAYLOAD - 100, "the rest of the frame");
    let rest = drain(&mut stream, &mut connection);
    let ack = &rest[DATA_HEADER + FRAME_PAYLOAD - 100..][..frame::NUMBERED];
    assert_eq!(ack, frame::numbered(frame::ACK, 1));
}

#[test]
fn acks_are_wanted_by_volume() {
    let mut stream = Stream::new();
    let mut connection = stream.first();
    assert_eq!(stream.ack_wanted(), AckWanted::No);
    receive(&mut stream, &mut connection, &[&frame::data_header(1, 1)[..], b"c"].concat()).unwrap();
    assert_eq!(stream.ack_wanted(), AckWanted::Soon);
    let large = [&frame::data_header(2, 65_536)[..], &[0; 65_536]].concat();
    receive(&mut stream, &mut connection, &large).unwrap();
    assert_eq!(stream.ack_wanted(), AckWanted::Now);
    stream.acknowledge(&mut connection);
    assert_eq!(stream.ack_wanted(), AckWanted::No);
    assert_eq!(drain(&mut stream, &mut connection), frame::numbered(frame::ACK, 2));
}

#[test]
fn the_close_frame_waits_until_everything_is_acknowledged_or_it_is_told_not_to() {
    for forced in [false, true] {
        let mut stream = Stream::new();
        let mut connection = stream.first();
        stream.push(b"last");
        stream.close();
        assert_eq!(drain(&mut stream, &mut connection).len(), DATA_HEADER + 4);
        if forced {
            stream.close_now(&mut connection);
        } else {
            receive(&mut stream, &mut connection, &frame::numbered(frame::ACK, 1)).unwrap();
        }
        assert!(!connection.close_is_sent());
        assert_eq!(drain(&mut stream, &mut connection), [frame::CLOSE]);
        assert!(connection.close_is_sent());
        assert!(drain(&mut stream, &mut connection).is_empty(), "once");
    }
}

#[test]
fn what_comes_behind_a_close_frame_is_not_looked_at() {
    let mut stream = Stream::new();
    let mut connection = stream.first();
    assert!(stream.receive(&mut connection, &[frame::CLOSE, 99, 99], &mut |_| {}).unwrap().closed);
    assert!(stream.closed_by_peer());
}

#[test]
fn an_idle_stream_holds_no_memory() {
    let mut stream = Stream::new();
    let mut connection = stream.first();
    stream.push(&[1; 200_000]);
    assert!(stream.held() > 200_000);
    drain(&mut stream, &mut connection);
    receive(&mut stream, &mut connection, &frame::numbered(frame::ACK, 7)).unwrap();
    assert_eq!(stream.held(), 0);
}
