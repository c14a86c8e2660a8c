//! Whatever a target sends in place of a response: no panic, no matter how it was cut or when the conversation was carried
//! over as data, and the bridge always gets one response whose framing tells the truth.
//!
//! The first byte behind the cuts says what was asked: `g`, `h` (HEAD), `p` (a body whose rest never comes) or `u`.

#![no_main]

use bamf_agent::relay::conversation::Outcome;
use bamf_agent_fuzz::cuts;
use bamf_agent_fuzz::desk::{Desk, Writing};
use bamf_agent_fuzz::message::{Kind, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (lengths, wire) = cuts::split(data);
    let Some((&kind, wire)) = wire.split_first() else { return };
    let pieces = cuts::pieces(lengths, wire);
    let whole = run(kind, &[wire], Writing::Held, false);
    check(kind, &whole);
    for writing in [Writing::Held, Writing::AtOnce] {
        for carried in [false, true] {
            let cut = run(kind, &pieces, writing, carried);
            check(kind, &cut);
            assert_eq!(whole.outcomes, cut.outcomes);
            assert_eq!(response(kind, &whole), response(kind, &cut));
        }
    }
});

fn run(kind: u8, pieces: &[&[u8]], writing: Writing, carried: bool) -> Desk {
    let (method, more) = match kind {
        b'h' => ("HEAD", "\r\n"),
        b'p' => ("POST", "Content-Length: 5\r\n\r\nhel"),
        b'u' => ("GET", "Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
        _ => ("GET", "\r\n"),
    };
    let mut desk = Desk::new(writing, carried);
    desk.bridge(format!("{method} / HTTP/1.1\r\nX-Bamf-Target: http://wiki.internal:8085\r\n{more}").as_bytes());
    desk.flush();
    for piece in pieces {
        desk.target(piece);
    }
    desk.target_ends();
    desk.flush();
    desk
}

fn read(kind: u8, desk: &Desk) -> Option<Message<'_>> {
    Message::read(&desk.to_bridge, if kind == b'h' { Kind::ResponseToHead } else { Kind::Response })
}

/// What the bridge got, in a form that does not depend on how chunks were cut.
fn response(kind: u8, desk: &Desk) -> String {
    format!("{:?}", read(kind, desk))
}

fn check(kind: u8, desk: &Desk) {
    let [outcome] = desk.outcomes[..] else { panic!("a request ends once: {:?}", desk.outcomes) };
    let response = read(kind, desk).expect("there is always an answer");
    assert!(response.status() >= 200 || outcome == Outcome::Relayed(101), "an interim response was passed on");
    match outcome {
        Outcome::Relayed(101) => assert!(kind == b'u', "nobody asked for another protocol"),
        Outcome::Relayed(_) | Outcome::Answered(_) => {
            assert!(response.complete && response.rest.is_empty(), "one response, and whole: {response:?}");
        }
        Outcome::Truncated => assert!(!response.complete, "what was cut off looks whole: {response:?}"),
    }
}
