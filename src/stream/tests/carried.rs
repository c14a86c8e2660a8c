//! One conversation, carried to another process at every byte of it; and states that no conversation can be in.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::super::state::Impossible;
use super::model::network::carried;
use super::*;

/// What one end does; then bytes move until this many have, or none is left.
#[derive(Clone, Copy, Debug)]
enum Step {
    Say(usize, usize),
    Acknowledge(usize),
    /// The connection breaks, with what is under way, and both ends resume on another.
    Break,
    /// The end closes, and its close frame follows everything that is acknowledged.
    Close(usize),
}

/// Breaks are in the middle of data frames, of their heads, of acknowledgements and of handshakes.
const SCRIPT: [(Step, usize); 20] = [
    (Step::Say(0, 40), usize::MAX),
    (Step::Say(1, 1), 5),
    (Step::Say(0, 30), 30),
    (Step::Acknowledge(1), 3),
    (Step::Break, 7),
    (Step::Break, usize::MAX),
    (Step::Say(1, 60), 70),
    (Step::Acknowledge(0), 41),
    (Step::Break, 18),
    (Step::Say(0, 9), 12),
    (Step::Say(1, 33), usize::MAX),
    (Step::Acknowledge(0), usize::MAX),
    (Step::Acknowledge(1), 4),
    (Step::Say(1, 20), 20),
    (Step::Break, 60),
    (Step::Say(0, 50), usize::MAX),
    (Step::Acknowledge(0), usize::MAX),
    (Step::Acknowledge(1), usize::MAX),
    (Step::Close(1), usize::MAX),
    (Step::Close(0), usize::MAX),
];

struct End {
    stream: Stream,
    connection: Connection,
    /// On its way to here.
    wire: VecDeque<u8>,
    said: Vec<u8>,
    heard: Vec<u8>,
}

impl End {
    fn new() -> Self {
        let stream = Stream::new();
        let connection = stream.first();
        Self { stream, connection, wire: VecDeque::new(), said: Vec::new(), heard: Vec::new() }
    }

    /// The next byte that it sends; one at a time, as a socket may take them.
    fn next_byte(&mut self) -> Option<u8> {
        let byte = self.stream.transmit(&mut self.connection).first().copied()?;
        self.stream.sent(&mut self.connection, 1);
        Some(byte)
    }

    fn hear(&mut self, byte: u8) {
        let heard = &mut self.heard;
        self.stream.receive(&mut self.connection, &[byte], &mut |piece| heard.extend_from_slice(piece)).unwrap();
    }

    fn hand_over(&mut self) {
        let stream = carried(&self.stream).checked().unwrap();
        let connection: Connection = carried(&self.connection);
        stream.check(&connection).unwrap();
        assert!(stream == self.stream && connection == self.connection, "something changes on the way");
        (self.stream, self.connection) = (stream, connection);
    }
}

/// Goes through the script byte by byte, a byte each way at a time. `hand_over` is asked at every byte boundary which ends
/// change their process there. Returns how many there were.
fn converse(hand_over: &mut dyn FnMut(usize) -> [bool; 2]) -> usize {
    let mut ends = [End::new(), End::new()];
    let mut boundaries = 0;
    for (step, limit) in SCRIPT {
        match step {
            Step::Say(side, len) => {
                let bytes: Vec<u8> =
                    (0..len).map(|at| u8::try_from((at * 7 + ends[side].said.len()) % 251).unwrap()).collect();
                ends[side].stream.push(&bytes);
                ends[side].said.extend(bytes);
            }
            Step::Acknowledge(side) => {
                let End { stream, connection, .. } = &mut ends[side];
                stream.acknowledge(connection);
            }
            Step::Break => {
                for end in &mut ends {
                    end.wire.clear();
                    end.connection = end.stream.resume();
                }
            }
            Step::Close(side) => ends[side].stream.close(),
        }
        let mut moved = 0;
        while moved < limit {
            let before = moved;
            for from in 0..2 {
                if let Some(byte) = ends[from].next_byte() {
                    ends[1 - from].wire.push_back(byte);
                    moved += 1;
                }
                // What one end sends is under way for a while.
                let to = &mut ends[1 - from];
                if to.wire.len() > 6 || moved == before {
                    to.wire.pop_front().into_iter().for_each(|byte| to.hear(byte));
                }
                for (end, change) in ends.iter_mut().zip(hand_over(boundaries)) {
                    if change {
                        end.hand_over();
                    }
                }
                boundaries += 1;
            }
            if moved == before && ends.iter().all(|end| end.wire.is_empty()) {
                break;
            }
        }
    }
    let [first, second] = &ends;
    assert!(first.heard == second.said && second.heard == first.said, "every byte, in order, once");
    assert!(ends.iter().all(|end| end.stream.all_acknowledged() && end.stream.held() == 0));
    assert!(second.connection.close_is_sent() && first.stream.closed_by_peer());
    boundaries
}

#[test]
fn a_conversation_goes_on_after_a_hand_over_at_any_byte() {
    let whole = converse(&mut |_| [false, false]);
    assert!(whole > 500, "{whole}");
    for at in 0..whole {
        converse(&mut |now| [now == at, now == at]);
    }
}

#[test]
fn a_conversation_goes_on_after_a_hand_over_at_every_byte() {
    for changes in [[true, true], [true, false], [false, true]] {
        converse(&mut |_| changes);
    }
}

#[test]
fn what_was_sent_of_long_frames_and_not_acknowledged_is_carried() {
    let mut stream = Stream::new();
    let mut connection = stream.first();
    // Small ones, mapped ones, and larger ones than are mapped.
    for len in [1, FRAME_PAYLOAD, FRAME_PAYLOAD + 1, 3 * FRAME_PAYLOAD + 5, 200_000] {
        stream.push(&vec![7; len]);
    }
    let mut sent = 0;
    for count in [0, 1, 14, 15, 40_000, 90_000, 290_000] {
        while sent < count {
            let piece = stream.transmit(&mut connection).len().min(count - sent);
            assert!(piece > 0, "there is more to send");
            stream.sent(&mut connection, piece);
            sent += piece;
        }
        let next = carried(&stream).checked().unwrap();
        assert!(next == stream && next.held() == stream.held());
        let mut other = next.clone();
        let mut going_on: Connection = carried(&connection);
        next.check(&going_on).unwrap();
        assert!(drain(&mut other, &mut going_on) == drain(&mut stream.clone(), &mut connection.clone()), "{count}");
    }
}

/// A stream in the middle of things, and its connection: half of a frame received, half of one sent, one acknowledged.
fn busy() -> (Stream, Connection) {
    let mut stream = Stream::new();
    let mut connection = stream.first();
    for text in [&b"one"[..], b"two", b"three"] {
        stream.push(text);
    }
    let mut left = 40;
    while left > 0 {
        let count = stream.transmit(&mut connection).len().min(left);
        assert!(count > 0, "there is more to send");
        stream.sent(&mut connection, count);
        left -= count;
    }
    let input =
        [&frame::data_header(1, 3)[..], b"abc", &frame::numbered(frame::ACK, 1), &frame::data_header(2, 9), b"half"];
    assert_eq!(receive(&mut stream, &mut connection, &input.concat()).unwrap(), b"abchalf");
    stream.acknowledge(&mut connection);
    (stream, connection)
}

/// Changes one value of a JSON text.
fn with(mut state: Value, path: &str, value: &Value) -> Value {
    *state.pointer_mut(path).expect(path) = value.clone();
    state
}

fn stream_of(state: Value) -> Result<Stream, Impossible> {
    serde_json::from_value::<Stream>(state).unwrap().checked()
}

#[test]
fn a_stream_that_cannot_be_is_refused() {
    let state = serde_json::to_value(busy().0).unwrap();
    stream_of(state.clone()).unwrap();
    let cases = [
        ("/outbox/next_seq", json!(3)),
        ("/outbox/next_seq", json!(u64::MAX)),
        ("/outbox/end", json!(1)),
        ("/outbox/end", json!(u64::MAX)),
        ("/outbox/acknowledged", json!(0)),
        ("/outbox/acknowledged", json!(2)),
        ("/outbox/acknowledged", json!(u64::MAX)),
        ("/outbox/acknowledged_end", json!(15)),
        ("/outbox/acknowledged_end", json!(17)),
        ("/outbox/acknowledged_end", json!(u64::MAX)),
        ("/outbox/sent_end", json!(0)),
        ("/outbox/sent_end", json!(u64::MAX)),
        ("/outbox/chunks/0/start", json!(0)),
        ("/outbox/chunks/0/start", json!(u64::MAX)),
        ("/outbox/chunks/0/first_seq", json!(1)),
        ("/outbox/chunks/0/first_seq", json!(u64::MAX)),
        ("/outbox/chunks/1/start", json!(u64::MAX)),
        ("/outbox/chunks/0/bytes", json!([])),
        ("/outbox/chunks/0/bytes", json!([1, 0, 0])),
        ("/outbox/chunks/0/bytes/12", json!(200)),
        ("/outbox/chunks/0/bytes/9", json!(255)),
        ("/outbox/chunks/0/bytes/8", json!(9)),
        ("/outbox/chunks/0/bytes/0", json!(2)),
        ("/outbox/chunks", json!([])),
        ("/inbox/next_expected", json!(0)),
        ("/inbox/next_expected", json!(1)),
        ("/inbox/next_expected", json!(u64::MAX)),
        ("/inbox/acknowledged", json!(2)),
        ("/inbox/acknowledged", json!(u64::MAX)),
        ("/inbox/since", json!(u64::MAX)),
        ("/inbox/partial/len", json!(4)),
        ("/inbox/partial/len", json!(65_537)),
        ("/inbox/partial/delivered", json!(9)),
        ("/inbox/partial/delivered", json!(u32::MAX)),
    ];
    for (path, value) in cases {
        stream_of(with(state.clone(), path, &value)).expect_err(&format!("{path} = {value}"));
    }
}

#[test]
fn a_chunk_at_the_end_of_all_numbers_is_refused() {
    let chunk = json!({ "start": 0, "first_seq": u64::MAX, "bytes": [] });
    let mut state = serde_json::to_value(Stream::new()).unwrap();
    state["outbox"]["chunks"] = json!([chunk]);
    stream_of(state.clone()).unwrap_err();
    let bytes = [&frame::data_header(u64::MAX, 1)[..], b"x"].concat();
    state["outbox"]["chunks"][0]["bytes"] = json!(bytes);
    stream_of(state.clone()).unwrap_err();
    state["outbox"]["acknowledged"] = json!(u64::MAX - (1 << 33));
    state["outbox"]["next_seq"] = json!(u64::MAX - (1 << 32) - 1);
    stream_of(state).unwrap_err();
}

#[test]
fn a_connection_that_cannot_be_is_refused() {
    let (stream, connection) = busy();
    let state = serde_json::to_value(&connection).unwrap();
    let check = |state: Value| {
        let connection: Connection = serde_json::from_value(state).unwrap();
        stream.check(&connection)
    };
    check(state.clone()).unwrap();
    let cases = [
        ("/body_left", json!(4)),
        ("/body_left", json!(6)),
        ("/body_left", json!(u32::MAX)),
        ("/skip", json!(1)),
        ("/skip", json!(u32::MAX)),
        ("/have", json!(1)),
        ("/have", json!(13)),
        ("/have", json!(u32::MAX)),
        ("/sent_until", json!(0)),
        ("/sent_until", json!(1000)),
        ("/sent_until", json!(u64::MAX)),
        ("/ack", json!(2)),
        ("/ack", json!(u64::MAX)),
        ("/awaits_handshake", json!(true)),
        ("/control/len", json!(10)),
        ("/control/len", json!(u32::MAX)),
        ("/control/sent", json!(1)),
        ("/control/sent", json!(u32::MAX)),
    ];
    for (path, value) in cases {
        check(with(state.clone(), path, &value)).expect_err(&format!("{path} = {value}"));
    }
    for head in [frame::DATA, frame::ACK, frame::CLOSE, 9] {
        let mut state = with(state.clone(), "/body_left", &json!(0));
        (state["have"], state["head"][0]) = (json!(9), json!(head));
        assert_eq!(check(state).is_ok(), head == frame::DATA, "{head}");
    }
}

proptest::proptest! {
    /// Whatever the numbers are: refused, or good for going on without a panic.
    #[test]
    fn random_numbers_in_a_state_do_no_harm(
        changes in proptest::collection::vec((0..200_usize, number_like()), 1..6),
        input in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
    ) {
        let (stream, connection) = busy();
        let mut state = json!({ "stream": stream, "connection": connection });
        let mut places = Vec::new();
        numbers_in(&state, String::new(), &mut places);
        for (place, number) in changes {
            *state.pointer_mut(&places[place % places.len()]).unwrap() = json!(number);
        }
        let stream = serde_json::from_value::<Stream>(state["stream"].take());
        let connection = serde_json::from_value::<Connection>(state["connection"].take());
        if let (Ok(stream), Ok(mut connection)) = (stream, connection)
            && let Ok(mut stream) = stream.checked()
            && stream.check(&connection).is_ok()
        {
            let went_on = receive(&mut stream, &mut connection, &input).is_ok();
            stream.acknowledge(&mut connection);
            stream.push(b"more");
            drain(&mut stream, &mut connection);
            let mut next = stream.resume();
            proptest::prop_assert!(drain(&mut stream, &mut next).starts_with(&[frame::HANDSHAKE]));
            if went_on {
                let stream = carried(&stream).checked().unwrap();
                stream.check(&connection).unwrap();
            }
        }
    }
}

fn number_like() -> impl proptest::strategy::Strategy<Value = u64> {
    use proptest::prelude::*;
    prop_oneof![
        0..20_u64,
        0..100_u64,
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        any::<u64>(),
        any::<u32>().prop_map(u64::from)
    ]
}

fn numbers_in(value: &Value, path: String, places: &mut Vec<String>) {
    match value {
        Value::Number(_) => places.push(path),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(at, value)| numbers_in(value, format!("{path}/{at}"), places))
        }
        Value::Object(map) => map.iter().for_each(|(key, value)| numbers_in(value, format!("{path}/{key}"), places)),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}
