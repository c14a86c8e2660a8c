//! Somebody who has the keys and seals what no honest peer would. It derives and seals on its own account, so that a
//! misreading of RFC 8446 in the record layer meets another reading here.

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{KeyType, Prk};
use aws_lc_rs::{aead, hkdf};

use super::*;

struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

/// The server's voice.
pub(super) struct Forger {
    key: LessSafeKey,
    iv: Vec<u8>,
    sequence: u8,
}

impl Forger {
    pub(super) fn new() -> Self {
        let secret = secret(Suite::Aes128Gcm, 0x5e);
        let prk = Prk::new_less_safe(hkdf::HKDF_SHA256, secret.expose());
        let derive = |info: &[u8], len| {
            let mut out = vec![0; len];
            prk.expand(&[info], Bytes(len)).unwrap().fill(&mut out).unwrap();
            out
        };
        let key = derive(b"\x00\x10\x09tls13 key\x00", 16);
        let iv = derive(b"\x00\x0c\x08tls13 iv\x00", 12);
        Self { key: LessSafeKey::new(UnboundKey::new(&aead::AES_128_GCM, &key).unwrap()), iv, sequence: 0 }
    }

    /// A record with exactly this inside: content, type, padding.
    pub(super) fn record(&mut self, inner: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let header = [23, 3, 3, high, low];
        let mut nonce: [u8; 12] = self.iv[..].try_into().unwrap();
        nonce[11] ^= self.sequence;
        self.sequence += 1;
        let mut body = inner.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut body).unwrap();
        [&header[..], &body].concat()
    }
}

#[test]
fn padding_and_records_without_content_are_nothing() {
    let [mut client, _] = pair(Suite::Aes128Gcm);
    let mut forger = Forger::new();
    let mut wire = Vec::new();
    wire.extend(forger.record(b"ab\x17"));
    wire.extend(forger.record(b"\x17"));
    wire.extend(forger.record(b"\x17\0\0\0\0"));
    wire.extend(forger.record(b"c\0\x17\0\0"));
    wire.extend(forger.record(&[&[7; CONTENT][..], b"\x17"].concat()));
    wire.extend(forger.record(&[&[8; 1000][..], b"\x17", &[0; CONTENT - 1000]].concat()));
    let (outcome, plain, _) = opened(&mut client, &wire);
    assert_eq!(outcome.unwrap().consumed, wire.len());
    assert_eq!(plain, [&b"abc\0"[..], &[7; CONTENT], &[8; 1000]].concat());
}
