//! The record layer against published vectors, against itself cut anywhere, and against peers that mean harm.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

mod cuts;
mod forger;
mod hostile;
mod updates;
mod vectors;

const SUITES: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

fn secret(suite: Suite, seed: u8) -> TrafficSecret {
    let len = if suite == Suite::Aes256Gcm { 48 } else { 32 };
    TrafficSecret::new(&(0..len).map(|at| seed ^ at).collect::<Vec<u8>>())
}

/// Two ends of a connection, client and server.
fn pair(suite: Suite) -> [Records; 2] {
    let end = |ours, theirs| Records::new(suite, secret(suite, ours), secret(suite, theirs)).unwrap();
    [end(0xc1, 0x5e), end(0x5e, 0xc1)]
}

/// The same, with so many records sent each way already.
fn pair_at(suite: Suite, sequence: u64) -> [Records; 2] {
    pair(suite).map(|records| {
        let mut state = records.export();
        (state.outbound.sequence, state.inbound.sequence) = (sequence, sequence);
        Records::import(state).unwrap()
    })
}

fn sealed(records: &mut Records, plain: &[u8]) -> Vec<u8> {
    let mut space = vec![0; sealed_len(plain.len())];
    let written = records.seal(plain, &mut space).unwrap();
    space.truncate(written);
    space
}

/// A record of any kind.
fn record(records: &mut Records, kind: Kind, content: &[u8]) -> Vec<u8> {
    let mut space = vec![0; content.len() + OVERHEAD];
    records.outbound.seal(kind, content, &mut space).unwrap();
    space
}

/// What is opened of `bytes`, and what is said to it.
fn opened(records: &mut Records, bytes: &[u8]) -> (Result<Opened, Error>, Vec<u8>, Vec<u8>) {
    let (mut input, mut answer, mut plain) = (bytes.to_vec(), Vec::new(), Vec::new());
    let outcome = records.open(&mut input, &mut answer, &mut |piece| plain.extend_from_slice(piece));
    (outcome, plain, answer)
}

/// The connection, as another process finds it.
fn carried(records: Records) -> Records {
    let text = serde_json::to_string(&records.export()).unwrap();
    Records::import(serde_json::from_str(&text).unwrap()).unwrap()
}

/// Bytes without a pattern that a mistake could hide in.
fn noise(len: usize) -> Vec<u8> {
    static STATE: AtomicU64 = AtomicU64::new(1);
    let mut state = STATE.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn what_one_end_seals_the_other_opens_in_place_and_in_pieces_of_a_record() {
    for suite in SUITES {
        let [mut client, mut server] = pair(suite);
        for len in [0, 1, CONTENT - 1, CONTENT, CONTENT + 1, 5 * CONTENT, 128 * 1024] {
            let plain = noise(len);
            let mut input = sealed(&mut client, &plain);
            assert!(input.len() <= sealed_len(len));
            let bounds = input.as_ptr_range();
            let mut heard = Vec::new();
            let outcome = server.open(&mut input, &mut Vec::new(), &mut |piece| {
                assert!(bounds.contains(&piece.as_ptr()), "nothing is copied");
                heard.extend_from_slice(piece);
            });
            assert_eq!(outcome.unwrap(), Opened { consumed: input.len(), plain: len, ended: false });
            assert!(heard == plain, "{suite:?} {len}");
        }
    }
}

#[test]
fn too_little_space_costs_nothing() {
    let [mut client, mut server] = pair(Suite::Aes128Gcm);
    assert_eq!(client.seal(&noise(100), &mut [0; 126]), Err(Error::NoRoom));
    let wire = sealed(&mut client, b"in time");
    assert_eq!(opened(&mut server, &wire).1, b"in time");
}

#[test]
fn after_close_notify_nothing_is_said_and_everything_is_still_heard() {
    let [mut client, mut server] = pair(Suite::Aes256Gcm);
    let mut bye = Vec::new();
    client.close_notify(&mut bye).unwrap();
    assert_eq!(client.close_notify(&mut Vec::new()), Err(Error::Over));
    assert_eq!(client.seal(b"more", &mut [0; 100]), Err(Error::Over));

    bye.extend_from_slice(b"garbage behind the end");
    let (outcome, ..) = opened(&mut server, &bye);
    assert_eq!(outcome, Ok(Opened { consumed: bye.len(), plain: 0, ended: true }));
    assert!(opened(&mut server, b"and more of it").0.unwrap().ended);

    // Half-closed; a wish for new keys meets somebody who must not speak.
    server.refresh();
    let wire = sealed(&mut server, b"late");
    let (outcome, plain, answer) = opened(&mut client, &wire);
    assert_eq!((outcome.unwrap().ended, &plain[..], &answer[..]), (false, &b"late"[..], &[][..]));
}

#[test]
fn every_alert_of_the_peer_is_an_error_with_its_name_and_gets_no_answer() {
    for (number, name) in [(42, "bad_certificate"), (48, "unknown_ca"), (51, "decrypt_error"), (200, "number 200")] {
        for level in [1, 2, 77] {
            let [mut client, mut server] = pair(Suite::Aes128Gcm);
            let mut wire = sealed(&mut server, b"before");
            wire.extend(record(&mut server, Kind::Alert, &[level, number]));
            let (outcome, plain, answer) = opened(&mut client, &wire);
            let error = outcome.unwrap_err();
            assert_eq!(error.to_string(), format!("the peer ended the connection with the alert {name}"));
            assert_eq!((&plain[..], &answer[..]), (&b"before"[..], &[][..]));
            assert_eq!(opened(&mut client, &wire).0, Err(Error::Over));
            assert_eq!(client.seal(b"", &mut [0; 100]), Err(Error::Over));
        }
    }
}

#[test]
fn secrets_are_shown_nowhere() {
    let [client, _] = pair(Suite::Aes256Gcm);
    let mut shown = format!("{client:?}");
    shown += &format!("{:?}", client.export());
    assert!(shown.contains("***"));
    assert!(!shown.contains("193"), "{shown}");
}

#[test]
fn a_state_of_another_version_is_read_and_an_impossible_one_is_refused() {
    let state = || {
        let [client, _] = pair(Suite::Aes128Gcm);
        serde_json::to_value(client.export()).unwrap()
    };
    let import = |state| Records::import(serde_json::from_value(state).unwrap());

    let mut newer = state();
    newer["colour"] = "blue".into();
    newer["standing"]["mood"] = 3.into();
    newer["outbound"]["epoch"] = 0.into();
    import(newer).unwrap();
    let mut older = state();
    older.as_object_mut().unwrap().remove("standing");
    import(older).unwrap();

    let mut unknown = state();
    unknown["suite"] = 0x1304.into();
    assert!(matches!(import(unknown), Err(Error::State(_))));
    let mut mixed = state();
    mixed["suite"] = 0x1302.into();
    assert!(matches!(import(mixed), Err(Error::State(_))));
    let mut piece = state();
    piece["standing"]["fragment"]["skip"] = 1_000_000.into();
    assert!(matches!(import(piece), Err(Error::State(_))));
    let mut long = state();
    long["inbound"]["secret"] = vec![0; 49].into();
    assert!(serde_json::from_value::<State>(long).is_err());
}
