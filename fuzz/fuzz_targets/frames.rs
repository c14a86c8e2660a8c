//! Whatever a client sends in place of frames: no panic, bounded delivery, and the same result however it was cut.
//!
//! The first byte says whether the connection is a session's first (`1`) or resumes it (`r`).

#![no_main]

use bamf_agent::stream::{Connection, Received, Stream, Violation, frame};
use bamf_agent_fuzz::cuts;
use libfuzzer_sys::fuzz_target;

/// Enough rounds for everything that is there to send.
const ROUNDS: usize = 64;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else { return };
    let (lengths, wire) = cuts::split(data);
    let whole = run(kind, &[wire]);
    assert!(whole == run(kind, &cuts::pieces(lengths, wire)), "it matters how the bytes were cut");
});

/// Everything that can be seen of a connection at its end.
#[derive(PartialEq)]
struct End {
    delivered: Vec<u8>,
    result: Result<(Received, Stream, Connection), Violation>,
    sent: Vec<u8>,
}

fn run(kind: u8, pieces: &[&[u8]]) -> End {
    let (mut stream, mut connection) = begun(kind);
    let mut delivered = Vec::new();
    let mut received = Ok(Received::default());
    for piece in pieces {
        let one = stream.receive(&mut connection, piece, &mut |payload| delivered.extend_from_slice(payload));
        received = received.and_then(|before| one.map(|one| before.and(one)));
        if received.is_err() {
            break;
        }
    }
    assert!(delivered.len() <= pieces.iter().map(|piece| piece.len()).sum(), "more came out than went in");
    assert!(stream.held() <= 1024, "a peer makes the memory grow");
    let end = received.map(|received| (received, stream.clone(), connection.clone()));
    let sent = if end.is_ok() { transmitted(&mut stream, &mut connection) } else { Vec::new() };
    End { delivered, result: end, sent }
}

/// A session in which three frames were sent and, if it resumes, one received.
fn begun(kind: u8) -> (Stream, Connection) {
    let mut stream = Stream::new();
    let mut first = stream.first();
    for payload in [&b"one"[..], b"two", b"three"] {
        stream.push(payload);
        transmitted(&mut stream, &mut first);
    }
    if kind != b'r' {
        return (stream, first);
    }
    let frame = [&frame::data_header(1, 1)[..], b"x"].concat();
    stream.receive(&mut first, &frame, &mut |_| {}).expect("it is in order");
    let connection = stream.resume();
    (stream, connection)
}

fn transmitted(stream: &mut Stream, connection: &mut Connection) -> Vec<u8> {
    stream.acknowledge(connection);
    let mut sent = Vec::new();
    for _ in 0..ROUNDS {
        let piece = stream.transmit(connection).to_vec();
        if piece.is_empty() {
            return sent;
        }
        sent.extend_from_slice(&piece);
        stream.sent(connection, piece.len());
    }
    panic!("it sends without end");
}
