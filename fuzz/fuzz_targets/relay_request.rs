//! Whatever a bridge sends in place of requests: no panic, no field that must not pass, and no matter how it was cut or
//! when the conversation was carried over as data.

#![no_main]

use bamf_agent_fuzz::cuts;
use bamf_agent_fuzz::desk::{Desk, Writing, check_request, is_upgrade};
use bamf_agent_fuzz::message::{Kind, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (lengths, wire) = cuts::split(data);
    let pieces = cuts::pieces(lengths, wire);
    let whole = held(&[wire], false);
    for carried in [false, true] {
        let cut = held(&pieces, carried);
        assert_eq!(whole.conversation, cut.conversation);
        assert_eq!((&whole.to_bridge, &whole.outcomes), (&cut.to_bridge, &cut.outcomes));
        assert_eq!((whole.requests(), whole.asked()), (cut.requests(), cut.asked()));
    }
    let live = lively(&pieces, false);
    let carried = lively(&pieces, true);
    assert_eq!((&live.to_bridge, &live.to_target), (&carried.to_bridge, &carried.to_target));
    check(&live);
});

/// The agent gets to write, and the target to answer, only when everything was sent.
fn held(pieces: &[&[u8]], carried: bool) -> Desk {
    let mut desk = Desk::new(Writing::Held, carried);
    for piece in pieces {
        desk.bridge(piece);
    }
    desk.flush();
    desk
}

/// Everything is written at once, and the target answers as soon as it has a request.
fn lively(pieces: &[&[u8]], carried: bool) -> Desk {
    let mut desk = Desk::new(Writing::AtOnce, carried);
    for piece in pieces {
        desk.bridge(piece);
        let answer: &[u8] = match desk.request() {
            Some(request) if is_upgrade(&request) => b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            Some(request) if request.complete => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            _ => continue,
        };
        if desk.conversation.wants_target() {
            desk.target(answer);
        }
    }
    desk
}

fn check(desk: &Desk) {
    // A body that is broken from the start breaks the exchange off before anything is written.
    for wire in desk.to_target.iter().filter(|wire| !wire.is_empty()) {
        let request = Message::read(wire, Kind::Request).expect("a head is written as a whole");
        check_request(&request);
        assert!(is_upgrade(&request) || request.rest.is_empty(), "the target got more than one request: {request:?}");
    }
    assert!(desk.to_target.len() <= desk.asked().len(), "dialled for nothing");
}
