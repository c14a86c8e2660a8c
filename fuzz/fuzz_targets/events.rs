//! Whatever a platform sends in place of events: no panic, bounded items, and the same items however it was cut.

#![no_main]

use bamf_agent::platform::sse::{Decoder, Item, Runaway};
use bamf_agent_fuzz::cuts;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (lengths, wire) = cuts::split(data);
    let whole = run(&[wire]);
    assert!(whole.0.len() <= wire.len(), "more came out than went in");
    assert!(whole == run(&cuts::pieces(lengths, wire)), "it matters how the bytes were cut");
});

fn run(pieces: &[&[u8]]) -> (Vec<Item>, Result<(), Runaway>) {
    let mut decoder = Decoder::new();
    let mut items = Vec::new();
    for piece in pieces {
        if let Err(runaway) = decoder.feed(piece, &mut items) {
            return (items, Err(runaway));
        }
    }
    (items, Ok(()))
}
