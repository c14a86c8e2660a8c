//! One direction of a connection: its key, the number of its next record, and how to get to the next key.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{self, KeyType, Prk};
use zeroize::Zeroizing;

use super::secret::TrafficSecret;
use super::{Alert, CONTENT, Error, HEADER, Kind, TAG, violation};

/// Records after which a key is replaced. AES-GCM is good for 2^24.5 of them (RFC 8446, 5.5); the other one for more, which
/// needs no second rule.
const WORN: u64 = 1 << 23;

/// Length of a nonce, the same for all.
const NONCE: usize = aead::NONCE_LEN;
/// The longest key.
const KEY: usize = 32;

/// The cipher suites that are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// `TLS_AES_128_GCM_SHA256`
    Aes128Gcm,
    /// `TLS_AES_256_GCM_SHA384`
    Aes256Gcm,
    /// `TLS_CHACHA20_POLY1305_SHA256`
    ChaCha20Poly1305,
}

impl Suite {
    /// The registered number (RFC 8446, B.4).
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Aes128Gcm => 0x1301,
            Self::Aes256Gcm => 0x1302,
            Self::ChaCha20Poly1305 => 0x1303,
        }
    }

    /// The suite with this number, if it is one of ours.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        [Self::Aes128Gcm, Self::Aes256Gcm, Self::ChaCha20Poly1305].into_iter().find(|suite| suite.number() == number)
    }

    fn aead(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }

    const fn hkdf(self) -> hkdf::Algorithm {
        match self {
            Self::Aes256Gcm => hkdf::HKDF_SHA384,
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => hkdf::HKDF_SHA256,
        }
    }
}

/// What is needed to send, or to receive.
pub(super) struct Direction {
    suite: Suite,
    secret: TrafficSecret,
    key: LessSafeKey,
    iv: Zeroizing<[u8; NONCE]>,
    /// Invariant: no record was sealed with this number, nor will one with a smaller number be.
    sequence: u64,
}

impl Direction {
    pub(super) fn new(suite: Suite, secret: TrafficSecret, sequence: u64) -> Result<Self, Error> {
        if secret.expose().len() != suite.hkdf().len() {
            return Err(Error::State("a secret that does not fit its cipher suite"));
        }
        let mut key = Zeroizing::new([0; KEY]);
        let key = &mut key[..suite.aead().key_len()];
        expand(suite, &secret, b"key", key)?;
        let mut iv = Zeroizing::new([0; NONCE]);
        expand(suite, &secret, b"iv", &mut *iv)?;
        let key = UnboundKey::new(suite.aead(), key).map_err(|_| Error::Crypto)?;
        Ok(Self { suite, secret, key: LessSafeKey::new(key), iv, sequence })
    }

    pub(super) const fn suite(&self) -> Suite {
        self.suite
    }

    /// What another `Direction` goes on from. This one is gone, or its nonces would be used twice.
    pub(super) fn into_parts(self) -> (TrafficSecret, u64) {
        (self.secret, self.sequence)
    }

    /// Whether the key has done enough.
    pub(super) const fn is_worn(&self) -> bool {
        self.sequence >= WORN
    }

    /// The next generation (RFC 8446, 7.2).
    pub(super) fn update(&mut self) -> Result<(), Error> {
        let mut next = Zeroizing::new([0; 64]);
        let next = &mut next[..self.suite.hkdf().len()];
        expand(self.suite, &self.secret, b"traffic upd", next)?;
        *self = Self::new(self.suite, TrafficSecret::new(next), 0)?;
        Ok(())
    }

    /// Takes the number of a record, whatever becomes of the record.
    fn nonce(&mut self) -> Result<Nonce, Error> {
        let sequence = self.sequence;
        self.sequence = sequence.checked_add(1).ok_or(Error::UsedUp)?;
        let mut nonce = *self.iv;
        for (byte, number) in nonce[NONCE - 8..].iter_mut().zip(sequence.to_be_bytes()) {
            *byte ^= number;
        }
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Writes one record to the beginning of `space` and returns its length. `content` is read once and never copied.
    pub(super) fn seal(&mut self, kind: Kind, content: &[u8], space: &mut [u8]) -> Result<usize, Error> {
        let inner = content.len() + 1 + TAG;
        let header = header(inner);
        let record = space.get_mut(..HEADER + inner).ok_or(Error::NoRoom)?;
        let (head, body) = record.split_at_mut(HEADER);
        let (sealed, end) = body.split_at_mut(content.len());
        head.copy_from_slice(&header);
        let nonce = self.nonce()?;
        self.key
            .seal_out_of_place_scatter(nonce, Aad::from(header), content, sealed, &[kind.number()], end)
            .map_err(|_| Error::Crypto)?;
        Ok(HEADER + inner)
    }

    /// Opens a record in place: its type and its content without padding.
    pub(super) fn open<'r>(&mut self, record: &'r mut [u8]) -> Result<(Kind, &'r [u8]), Error> {
        let forged = violation("a record that nobody with the key has sealed", Alert::BAD_RECORD_MAC);
        let (header, body) = record.split_first_chunk_mut::<HEADER>().ok_or(Error::Crypto)?;
        let Some(len) = body.len().checked_sub(TAG) else { return Err(forged) };
        let (inner, tag) = body.split_at_mut(len);
        let nonce = self.nonce()?;
        self.key.open_in_place_separate_tag(nonce, Aad::from(*header), tag, inner).map_err(|_| forged)?;
        if inner.len() > CONTENT + 1 {
            return Err(violation("a record with too much in it", Alert::RECORD_OVERFLOW));
        }
        let end = inner.iter().rposition(|byte| *byte != 0);
        let end = end.ok_or(violation("a record without a type", Alert::UNEXPECTED_MESSAGE))?;
        let kind = Kind::from_number(inner[end]);
        let kind = kind.ok_or(violation("a record of an impossible type", Alert::UNEXPECTED_MESSAGE))?;
        Ok((kind, &inner[..end]))
    }
}

/// The header of a protected record, which is its additional data as well (RFC 8446, 5.2).
fn header(inner: usize) -> [u8; HEADER] {
    let len = u16::try_from(inner).expect("content is at most 16 KiB");
    let [high, low] = len.to_be_bytes();
    [Kind::Data.number(), 3, 3, high, low]
}

/// HKDF-Expand-Label without context (RFC 8446, 7.1).
fn expand(suite: Suite, secret: &TrafficSecret, label: &[u8], out: &mut [u8]) -> Result<(), Error> {
    struct Len(usize);
    impl KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    const PREFIX: &[u8] = b"tls13 ";
    let byte = |len: usize| u8::try_from(len).expect("labels and keys are short");
    let lens = [0, byte(out.len()), byte(PREFIX.len() + label.len())];
    let info = [&lens[..], PREFIX, label, &[0]];
    let prk = Prk::new_less_safe(suite.hkdf(), secret.expose());
    prk.expand(&info, Len(out.len())).and_then(|okm| okm.fill(out)).map_err(|_| Error::Crypto)
}
