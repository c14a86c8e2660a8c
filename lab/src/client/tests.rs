//! The published vectors, read by this end.

mod ends;
mod hostile;
mod platform;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::frame::{self, Frame, Malformed};
use super::sequence::{Receiving, Sending, Violation};
use super::shared::Shared;
use super::{Options, header, is_framed, rate_limit_pause};
use crate::plane::hex;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/vectors.json")).unwrap()
}

fn list<'a>(vectors: &'a Value, name: &str) -> &'a Vec<Value> {
    vectors[name].as_array().unwrap()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let digits = hex.as_str().unwrap().as_bytes();
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn number(text: &Value) -> u64 {
    text.as_u64().unwrap_or_else(|| text.as_str().unwrap().parse().unwrap())
}

#[test]
fn every_frame_of_the_vectors_is_read_and_written_alike() {
    let vectors = vectors();
    for vector in list(&vectors, "data_frames") {
        let (seq, payload, wire) = (number(&vector["seq"]), bytes(&vector["payload_hex"]), bytes(&vector["frame_hex"]));
        assert_eq!(frame::data(seq, &payload), wire, "{vector}");
        assert_eq!(frame::decode(&wire), Ok(Some((Frame::Data { seq, payload: &payload }, wire.len()))));
    }
    for vector in list(&vectors, "ack_frames") {
        let (seq, wire) = (number(&vector["ack_seq"]), bytes(&vector["frame_hex"]));
        assert_eq!((&frame::ack(seq)[..], frame::decode(&wire)), (&wire[..], Ok(Some((Frame::Ack(seq), 9)))));
    }
    for vector in list(&vectors, "handshake_frames") {
        let (next, wire) = (number(&vector["next_expected"]), bytes(&vector["frame_hex"]));
        assert_eq!(
            (&frame::handshake(next)[..], frame::decode(&wire)),
            (&wire[..], Ok(Some((Frame::Handshake(next), 9))))
        );
    }
    assert_eq!(bytes(&vectors["close_frame"]["frame_hex"]), frame::CLOSE);
}

#[test]
fn large_frames_have_the_hash_of_the_vectors() {
    for vector in list(&vectors(), "data_frames_large") {
        let payload: Vec<u8> = (0..number(&vector["payload_len"])).map(|at| (at % 251) as u8).collect();
        let wire = frame::data(number(&vector["seq"]), &payload);
        assert_eq!(wire.len() as u64, number(&vector["frame_len"]));
        assert_eq!(hex(&Sha256::digest(&wire)), vector["frame_sha256"].as_str().unwrap());
        assert!(frame::decode(&wire).unwrap().is_some());
        assert_eq!(frame::decode(&wire[..wire.len() - 1]), Ok(None));
    }
}

#[test]
fn bytes_that_are_no_frame_are_refused_by_their_header() {
    let vectors = vectors();
    let refused: Vec<Malformed> = list(&vectors, "data_frames_invalid")
        .iter()
        .map(|vector| bytes(if vector["frame_hex"].is_string() { &vector["frame_hex"] } else { &vector["header_hex"] }))
        .filter_map(|wire| frame::decode(&wire).err())
        .collect();
    let expected = [Malformed::Empty(1), Malformed::TooLong(1, 65537), Malformed::Unknown(5), Malformed::Unknown(0)];
    // The fifth is a handshake: well-formed, and out of place on a first connection.
    assert_eq!(refused, expected);
    let first = Shared::new(Options::default(), true);
    assert_eq!(first.take_in(&frame::handshake(5)), Err(Violation::Handshake));
}

#[test]
fn a_mixed_stream_reads_the_same_however_it_is_split() {
    let vectors = vectors();
    let wire = bytes(&vectors["mixed_stream"]["bytes_hex"]);
    for split in 1..=wire.len() {
        let (mut events, mut inbox) = (Vec::new(), Vec::new());
        for piece in wire.chunks(split) {
            inbox.extend_from_slice(piece);
            while let Some((frame, length)) = frame::decode(&inbox).unwrap() {
                events.push(match frame {
                    Frame::Data { seq, payload } => {
                        serde_json::json!({ "data": { "seq": seq, "payload": String::from_utf8_lossy(payload) } })
                    }
                    Frame::Ack(seq) => serde_json::json!({ "ack": seq }),
                    Frame::Close => serde_json::json!({ "close": true }),
                    Frame::Handshake(_) => unreachable!(),
                });
                inbox.drain(..length);
            }
        }
        assert_eq!(Value::from(events), vectors["mixed_stream"]["events"], "pieces of {split}");
    }
}

#[test]
fn duplicates_are_dropped_and_gaps_are_violations() {
    let vectors = vectors();
    let vector = &vectors["dedup_and_gap"];
    let mut receiving = Receiving::starting_at(number(&vector["state_next_expected"]));
    for incoming in vector["incoming"].as_array().unwrap() {
        let wire = bytes(&incoming["frame_hex"]);
        let Ok(Some((Frame::Data { seq, payload }, _))) = frame::decode(&wire) else { panic!("{incoming}") };
        let accepted = receiving.accept(seq, payload);
        if incoming["deliver"].is_boolean() {
            assert_eq!(accepted, Ok(incoming["deliver"] == true));
            assert_eq!(receiving.next_expected(), number(&incoming["next_expected_after"]));
        } else {
            assert_eq!(accepted, Err(Violation::Gap { expected: 4, found: 9 }));
        }
    }
}

#[test]
fn handshakes_are_judged_as_the_vectors_say() {
    let vectors = vectors();
    let vector = &vectors["handshake_validation"];
    let (oldest, next) = (number(&vector["local"]["oldest_unacked"]), number(&vector["local"]["next_send_seq"]));
    for case in vector["peer_next_expected"].as_array().unwrap() {
        let mut sending = Sending::starting_at(oldest);
        (oldest..next).for_each(|seq| sending.push(seq.to_string().as_bytes()));
        sending.take(&mut Vec::new(), usize::MAX, 1);
        let answer = sending.resume(number(&case["value"]));
        assert_eq!(answer.is_ok(), case["ok"] == true, "{case}");
        if let Ok(count) = answer {
            let mut wire = Vec::new();
            sending.take(&mut wire, usize::MAX, 1);
            let repeated: Vec<u64> = data_frames(&wire).iter().map(|(seq, _)| *seq).collect();
            assert_eq!(Value::from(repeated.clone()), case["retransmit"]);
            assert_eq!(count, repeated.len());
        }
    }
}

fn data_frames(wire: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let (mut rest, mut frames) = (wire, Vec::new());
    while let Ok(Some((Frame::Data { seq, payload }, length))) = frame::decode(rest) {
        frames.push((seq, payload.to_vec()));
        rest = &rest[length..];
    }
    frames
}

#[test]
fn a_reconnect_repeats_what_the_vectors_repeat() {
    let vectors = vectors();
    let vector = &vectors["reconnect_example"];
    let sides = [("agent", 5..8, "row-", 6, 1), ("client", 3..5, "cmd-", 4, 0)];
    for (who, unacknowledged, text, asked, _) in sides {
        let mut sending = Sending::starting_at(unacknowledged.start);
        unacknowledged.for_each(|seq| sending.push(format!("{text}{seq}").as_bytes()));
        sending.take(&mut Vec::new(), usize::MAX, 1);
        sending.resume(asked).unwrap();
        let mut wire = Vec::new();
        sending.take(&mut wire, usize::MAX, 1);
        let expected = &vector[format!("{who}_writes_on_new_connection")][2]["hex"];
        assert_eq!(hex(&wire), expected.as_str().unwrap(), "{who}");
    }
}

#[test]
fn writes_are_cut_and_counted_as_the_vectors_say() {
    let vectors = vectors();
    for case in list(&vectors, "chunking") {
        let mut sending = Sending::starting_at(number(&case["start_seq"]));
        vec![7; number(&case["write_len"]) as usize].chunks(frame::MAX_PAYLOAD).for_each(|piece| sending.push(piece));
        let mut wire = Vec::new();
        sending.take(&mut wire, usize::MAX, 1);
        let frames = data_frames(&wire);
        let frames: Vec<Value> =
            frames.iter().map(|(seq, payload)| serde_json::json!({ "seq": seq, "len": payload.len() })).collect();
        assert_eq!(Value::from(frames), case["frames"]);
    }
    for (length, most) in vectors["retransmit_accounting"]["max_unacked_frames"].as_object().unwrap() {
        let length: usize = length.parse().unwrap();
        let shared = Shared::new(Options { max_payload: length, ..Options::default() }, true);
        let payload = vec![0; length];
        let mut count = 0;
        while shared.try_write(&payload).is_some_and(|written| written.is_ok()) {
            count += 1;
            // The connection takes each frame at once and the peer acknowledges none.
            shared.collect(&mut Vec::new(), false);
        }
        assert_eq!(count, number(most), "frames of {length}");
    }
}

#[test]
fn headers_modes_and_pauses_are_those_of_the_vectors() {
    let vectors = vectors();
    for vector in list(&vectors, "tunnel_headers") {
        let text = header(vector["session_id"].as_str().unwrap(), vector["type"].as_str().unwrap());
        assert_eq!(text.as_bytes(), bytes(&vector["bytes_hex"]));
    }
    let mode = |name: &str| vectors["tunnel_mode"][name].as_array().unwrap().clone();
    assert!(mode("framed").iter().all(|name| is_framed(name.as_str().unwrap())));
    assert!(mode("raw").iter().all(|name| !is_framed(name.as_str().unwrap())));
    let pauses: Vec<u64> = Options::default().reconnect_pauses.iter().map(std::time::Duration::as_secs).collect();
    assert_eq!(Value::from(pauses), vectors["connect_reconnect_delays_s"]);
    for case in vectors["rate_limit_backoff"]["cases"].as_array().unwrap() {
        let attempt = u32::try_from(number(&case["attempt"])).unwrap();
        let pause = rate_limit_pause(attempt, case["retry_after"].as_str());
        assert_eq!(pause.as_secs(), number(&case["delay_s"]), "{case}");
    }
}
