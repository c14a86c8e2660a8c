//! Key updates: asked for, answered, due by age, and too many.

use super::*;

/// Says `plain` from one end to the other and returns what the other answers at once.
fn say(from: &mut Records, to: &mut Records, plain: &[u8]) -> Vec<u8> {
    let wire = sealed(from, plain);
    let (outcome, heard, answer) = opened(to, &wire);
    assert_eq!(outcome.unwrap().plain, plain.len());
    assert!(heard == plain);
    answer
}

fn hear(records: &mut Records, wire: &[u8]) {
    assert_eq!(opened(records, wire).0.unwrap().plain, 0);
}

#[test]
fn both_directions_get_new_keys_and_data_goes_on() {
    for suite in SUITES {
        let [mut client, mut server] = pair(suite);
        let first = sealed(&mut client, b"same");
        hear_data(&mut server, &first, b"same");
        for _ in 0..40 {
            client.refresh();
            let answer = say(&mut client, &mut server, b"up");
            assert_eq!(answer.len(), KEY_UPDATE);
            hear(&mut client, &answer);
            assert!(say(&mut server, &mut client, b"down").is_empty());
        }
        // The number of the record is the same as in the first generation; nothing else is.
        client.refresh();
        let wire = sealed(&mut client, b"same");
        assert_ne!(wire[KEY_UPDATE..], first);
        hear_data(&mut server, &wire, b"same");
    }
}

fn hear_data(records: &mut Records, wire: &[u8], plain: &[u8]) {
    assert_eq!(opened(records, wire).1, plain);
}

#[test]
fn an_answer_that_cannot_go_at_once_goes_before_the_next_data_and_none_pile_up() {
    let [mut client, mut server] = pair(Suite::Aes128Gcm);
    let mut wire = Vec::new();
    for _ in 0..100 {
        server.refresh();
        server.standing.ask = Ask::Due;
        wire.extend(sealed(&mut server, b"now!"));
    }
    let mut stuck = b"stuck".to_vec();
    let outcome = client.open(&mut wire, &mut stuck, &mut |_| ());
    assert_eq!(outcome.unwrap().plain, 400);
    assert_eq!(stuck, b"stuck");
    // One answer to all of them.
    let wire = sealed(&mut client, b"yes");
    assert_eq!(wire.len(), KEY_UPDATE + 3 + OVERHEAD);
    hear_data(&mut server, &wire, b"yes");
    assert_eq!(server.standing.ask, Ask::No);
}

#[test]
fn old_keys_are_replaced_in_time_and_the_peers_are_asked_for() {
    for suite in SUITES {
        let worn = 1 << 23;
        let [mut client, mut server] = pair_at(suite, worn - 1);
        assert_eq!(say(&mut client, &mut server, b"the last of the old").len(), KEY_UPDATE, "the server asks");
        let [mut client, mut server] = pair_at(suite, worn - 1);
        let wire = sealed(&mut client, b"the last of the old");
        let mut silent = vec![0];
        server.open(&mut wire.clone(), &mut silent, &mut |_| ()).unwrap();
        let wire = sealed(&mut client, b"the first of the new");
        assert_eq!(wire.len(), KEY_UPDATE + 20 + OVERHEAD);
        server.open(&mut wire.clone(), &mut silent, &mut |_| ()).unwrap();
        assert_eq!(client.export().outbound.sequence, 1);
    }
}

#[test]
fn a_peer_that_is_asked_and_does_not_answer_is_asked_once() {
    let [mut client, mut server] = pair_at(Suite::Aes128Gcm, 1 << 23);
    let wire = record(&mut server, Kind::Data, b"old");
    assert_eq!(opened(&mut client, &wire).2.len(), KEY_UPDATE);
    let wire = record(&mut server, Kind::Data, b"old");
    assert!(opened(&mut client, &wire).2.is_empty());
    assert_eq!(client.standing.ask, Ask::Sent);
}

#[test]
fn the_last_number_is_never_used_and_nothing_wraps() {
    let [client, server] = pair(Suite::Aes128Gcm);
    let at_end = |records: Records| {
        let mut state = records.export();
        (state.outbound.sequence, state.inbound.sequence) = (u64::MAX, u64::MAX);
        Records::import(state).unwrap()
    };
    let (mut client, mut server) = (at_end(client), at_end(server));
    assert_eq!(client.seal(b"x", &mut [0; 100]), Err(Error::UsedUp));
    assert_eq!(client.seal(b"x", &mut [0; 100]), Err(Error::Over));
    let anything = [&[23, 3, 3, 0, 20][..], &[0; 20]].concat();
    assert_eq!(opened(&mut server, &anything).0, Err(Error::UsedUp));
}

#[test]
fn sixteen_updates_in_a_row_are_enough() {
    for (data, accepted) in [(&b"data"[..], true), (b"", false)] {
        let [mut client, mut server] = pair(Suite::Aes128Gcm);
        let mut wire = Vec::new();
        for _ in 0..16 {
            server.append_update(&mut wire).unwrap();
        }
        wire.extend(record(&mut server, Kind::Data, data));
        server.append_update(&mut wire).unwrap();
        let (outcome, ..) = opened(&mut client, &wire);
        assert_eq!(outcome.is_ok(), accepted, "{outcome:?}");
        if !accepted {
            let alert = Alert::UNEXPECTED_MESSAGE;
            assert_eq!(outcome, Err(Error::Violation { what: "too many key updates", alert }));
        }
    }
}

#[test]
fn an_update_cut_into_bytes_is_an_update() {
    let [mut client, mut server] = pair(Suite::Aes256Gcm);
    let mut wire = Vec::new();
    for byte in key_update(KeyUpdate::Requested) {
        wire.extend(record(&mut server, Kind::Handshake, &[byte]));
    }
    server.outbound.update().unwrap();
    wire.extend(sealed(&mut server, b"new"));
    let (outcome, plain, answer) = opened(&mut client, &wire);
    assert_eq!((outcome.unwrap().plain, &plain[..], answer.len()), (3, &b"new"[..], KEY_UPDATE));
}
