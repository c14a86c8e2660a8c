//! Records that must end a connection, and what the peer is told about them.

use super::forger::Forger;
use super::*;

const TICKET: u8 = 4;

/// What the client says of `wire` behind a record of honest data, and which alert it sends. However the bytes are cut.
fn verdict(wire: impl Fn(&mut Forger) -> Vec<u8>) -> (Alert, &'static str) {
    let verdicts = [usize::MAX, 1, 7].map(|piece| {
        let [mut client, mut server] = pair(Suite::Aes128Gcm);
        let mut forger = Forger::new();
        let mut bytes = forger.record(b"honest\x17");
        bytes.extend(wire(&mut forger));
        let (mut incoming, mut answer, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        let outcome = bytes.chunks(piece.min(bytes.len())).try_for_each(|bytes| {
            incoming.extend_from_slice(bytes);
            let opened = client.open(&mut incoming, &mut answer, &mut |piece| plain.extend_from_slice(piece))?;
            incoming.drain(..opened.consumed);
            Ok(())
        });
        let Err(Error::Violation { what, alert }) = outcome else { panic!("{outcome:?}") };
        assert!(plain.starts_with(b"honest"), "{what}: {plain:?}");
        assert_eq!(opened(&mut server, &answer).0, Err(Error::Alert(alert)), "{what}: the peer is told");
        assert_eq!(client.seal(b"", &mut [0; 100]), Err(Error::Over));
        assert_eq!(opened(&mut client, b"").0, Err(Error::Over));
        (alert, what)
    });
    assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{verdicts:?}");
    verdicts[0]
}

fn is(expected: Alert, wire: impl Fn(&mut Forger) -> Vec<u8>) {
    let (alert, what) = verdict(wire);
    assert_eq!(alert, expected, "{what}");
}

#[test]
fn bytes_that_are_no_records_are_refused_by_their_header() {
    is(Alert::UNEXPECTED_MESSAGE, |_| b"HTTP/1.1 400 Bad Request".to_vec());
    is(Alert::UNEXPECTED_MESSAGE, |_| vec![20, 3, 3, 0, 1, 1]);
    is(Alert::UNEXPECTED_MESSAGE, |_| vec![21, 3, 3, 0, 2, 2, 40]);
    is(Alert::UNEXPECTED_MESSAGE, |_| vec![22, 3, 3, 0, 4, 0, 0, 0, 0]);
    is(Alert::PROTOCOL_VERSION, |_| vec![23, 3, 1, 0, 17]);
    is(Alert::PROTOCOL_VERSION, |_| vec![23, 3, 4, 0, 17]);
    is(Alert::RECORD_OVERFLOW, |_| vec![23, 3, 3, 0x41, 0x01]);
    is(Alert::RECORD_OVERFLOW, |_| vec![23, 3, 3, 0xff, 0xff]);
}

#[test]
fn records_that_were_not_sealed_like_this_are_refused() {
    is(Alert::BAD_RECORD_MAC, |_| vec![23, 3, 3, 0, 0]);
    is(Alert::BAD_RECORD_MAC, |_| [&[23, 3, 3, 0, 15][..], &[0; 15]].concat());
    is(Alert::BAD_RECORD_MAC, |_| [&[23, 3, 3, 0x41, 0][..], &[0; LONGEST]].concat());
    // Each bit counts, the tag's and the header's too.
    for at in [3, 4, 5, 20, 30] {
        is(Alert::BAD_RECORD_MAC, |forger| {
            let mut record = forger.record(b"something to change\x17");
            record[at] ^= 1;
            record.extend_from_slice(&[0; 300]);
            record
        });
    }
    // Left out, repeated, swapped.
    is(Alert::BAD_RECORD_MAC, |forger| {
        forger.record(b"lost\x17");
        forger.record(b"next\x17")
    });
    is(Alert::BAD_RECORD_MAC, |forger| {
        let record = forger.record(b"twice\x17");
        [&record[..], &record].concat()
    });
    is(Alert::BAD_RECORD_MAC, |forger| {
        let first = forger.record(b"first\x17");
        [forger.record(b"second\x17"), first].concat()
    });
}

#[test]
fn sealed_records_that_mean_nothing_are_refused() {
    is(Alert::UNEXPECTED_MESSAGE, |forger| forger.record(b""));
    is(Alert::UNEXPECTED_MESSAGE, |forger| forger.record(&[0; 300]));
    is(Alert::UNEXPECTED_MESSAGE, |forger| forger.record(&[1, 20]));
    is(Alert::UNEXPECTED_MESSAGE, |forger| forger.record(&[1, 24, 0]));
    is(Alert::RECORD_OVERFLOW, |forger| forger.record(&[&[1; CONTENT + 1][..], &[23]].concat()));
    is(Alert::RECORD_OVERFLOW, |forger| forger.record(&[&[1][..], &[23], &[0; CONTENT]].concat()));
    // Alerts are whole, and alone in their record.
    is(Alert::DECODE_ERROR, |forger| forger.record(&[21]));
    is(Alert::DECODE_ERROR, |forger| forger.record(&[2, 21]));
    is(Alert::DECODE_ERROR, |forger| forger.record(&[1, 0, 1, 0, 21]));
}

#[test]
fn handshake_messages_that_do_not_belong_there_are_refused() {
    for kind in [0, 1, 2, 5, 8, 11, 13, 15, 20, 254] {
        is(Alert::UNEXPECTED_MESSAGE, |forger| forger.record(&[kind, 0, 0, 0, 22]));
    }
    is(Alert::UNEXPECTED_MESSAGE, |forger| forger.record(&[22]));
    is(Alert::UNEXPECTED_MESSAGE, |forger| [forger.record(&[TICKET, 22]), forger.record(&[22])].concat());
    is(Alert::UNEXPECTED_MESSAGE, |forger| {
        [forger.record(&[TICKET, 0, 0, 9, 1, 22]), forger.record(b"data\x17")].concat()
    });
    is(Alert::UNEXPECTED_MESSAGE, |forger| [forger.record(&[24, 0, 22]), forger.record(b"\x17")].concat());
    is(Alert::DECODE_ERROR, |forger| forger.record(&[TICKET, 1, 0, 1, 22]));
    is(Alert::DECODE_ERROR, |forger| forger.record(&[24, 0, 0, 0, 22]));
    is(Alert::DECODE_ERROR, |forger| forger.record(&[24, 0, 0, 2, 0, 0, 22]));
    is(Alert::ILLEGAL_PARAMETER, |forger| forger.record(&[24, 0, 0, 1, 2, 22]));
    // A key update ends its record: what follows has another key.
    is(Alert::UNEXPECTED_MESSAGE, |forger| forger.record(&[24, 0, 0, 1, 0, TICKET, 22]));
}

#[test]
fn tickets_are_passed_over_however_they_are_cut() {
    let ticket = |len: u8| [&[TICKET, 0, 0, len][..], &vec![0xaa; usize::from(len)]].concat();
    let tickets = [ticket(200), ticket(0), ticket(1), ticket(77)].concat();
    for piece in 1..=tickets.len() {
        let [mut client, mut server] = pair(Suite::ChaCha20Poly1305);
        let mut wire = Vec::new();
        for content in tickets.chunks(piece) {
            wire.extend(record(&mut server, Kind::Handshake, content));
        }
        wire.extend(sealed(&mut server, b"data"));
        let (outcome, plain, answer) = opened(&mut client, &wire);
        assert_eq!(outcome.unwrap().consumed, wire.len());
        assert_eq!((&plain[..], &answer[..]), (&b"data"[..], &[][..]));
    }
}

#[test]
fn somebody_who_cancels_is_heard_out() {
    let [mut client, mut server] = pair(Suite::Aes128Gcm);
    let mut wire = record(&mut server, Kind::Alert, &[1, 90]);
    wire.extend(sealed(&mut server, b"data"));
    server.close_notify(&mut wire).unwrap();
    let (outcome, plain, _) = opened(&mut client, &wire);
    assert!(outcome.unwrap().ended);
    assert_eq!(plain, b"data");
}

#[test]
fn whatever_bytes_come_they_end_in_an_error_or_wait_for_more() {
    for seed in 0..2000 {
        let [mut client, mut server] = pair(Suite::Aes128Gcm);
        let mut wire = sealed(&mut server, &noise(60));
        let at = seed % wire.len();
        wire[at] = wire[at].wrapping_add(noise(1)[0]).wrapping_add(1).max(1);
        wire.extend(noise(40));
        drop(opened(&mut client, &wire));
    }
}
