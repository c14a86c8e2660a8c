//! Signs like minisign, so that refusal tests can sign whatever a careless or hostile holder of a key would.
//!
//! The format is minisign's (<https://jedisct1.github.io/minisign/>, "Signature format"): four lines, of which the second
//! signs the file and the fourth signs the second together with the trusted comment. The agent reads it with code of its
//! own; this writer shares none of that, and is held against the real `minisign` instead.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2b512, Digest as _};
use ed25519_dalek::Signer as _;

/// How the file enters the signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `ED`: its BLAKE2b-512 digest is signed; the only form that contract section 4 accepts.
    Prehashed,
    /// `Ed`: the file itself is signed, as minisign did before 0.8.
    Legacy,
}

impl Form {
    const fn algorithm(self) -> &'static [u8; 2] {
        match self {
            Self::Prehashed => b"ED",
            Self::Legacy => b"Ed",
        }
    }
}

/// A minisign key pair.
#[derive(Clone)]
pub struct SigningKey {
    pair: ed25519_dalek::SigningKey,
    id: [u8; 8],
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "SigningKey({})", self.key_id_hex())
    }
}

impl SigningKey {
    /// A new key, different from every other.
    #[must_use]
    pub fn generate() -> Self {
        let mut seed = [0; 32];
        rustls::crypto::aws_lc_rs::default_provider()
            .secure_random
            .fill(&mut seed)
            .expect("the operating system gives random bytes");
        Self::from_seed(seed)
    }

    /// Always the same key, id included, for the same seed.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let digest = Blake2b512::digest(seed);
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        Self::from_parts(&seed, id)
    }

    /// The key with this Ed25519 seed and this id. The id is a label that a key's owner chooses: two keys can share one.
    #[must_use]
    pub fn from_parts(seed: &[u8; 32], id: [u8; 8]) -> Self {
        Self { pair: ed25519_dalek::SigningKey::from_bytes(seed), id }
    }

    /// Another key that claims this key's id, as a forger's would.
    #[must_use]
    pub fn impostor(&self) -> Self {
        let mut seed = self.pair.to_bytes();
        seed[0] ^= 1;
        Self::from_parts(&seed, self.id)
    }

    /// Another key with another id.
    #[must_use]
    pub fn stranger(&self) -> Self {
        let mut seed = self.pair.to_bytes();
        seed[0] ^= 2;
        Self::from_seed(seed)
    }

    /// What `minisign -P` and `update.trusted_keys` take: base64 of `Ed`, key id and public key.
    #[must_use]
    pub fn public_key(&self) -> String {
        let public = self.pair.verifying_key();
        STANDARD.encode([b"Ed".as_slice(), &self.id, public.as_bytes()].concat())
    }

    /// The key id as minisign prints it and as `checksums.txt.<keyid>.minisig` names it: 16 upper-case hex digits of the
    /// id read as a little-endian number.
    #[must_use]
    pub fn key_id_hex(&self) -> String {
        format!("{:016X}", u64::from_le_bytes(self.id))
    }

    /// The text of a `.minisig` file for `data`. `trusted_comment` must not contain a line break.
    #[must_use]
    pub fn sign(&self, data: &[u8], trusted_comment: &str, form: Form) -> String {
        let signature = match form {
            Form::Prehashed => self.pair.sign(&Blake2b512::digest(data)),
            Form::Legacy => self.pair.sign(data),
        }
        .to_bytes();
        let global = self.pair.sign(&[signature.as_slice(), trusted_comment.as_bytes()].concat()).to_bytes();
        format!(
            "untrusted comment: signature of the bamf lab, key {}\n{}\ntrusted comment: {trusted_comment}\n{}\n",
            self.key_id_hex(),
            STANDARD.encode([form.algorithm().as_slice(), &self.id, &signature].concat()),
            STANDARD.encode(global),
        )
    }
}

#[cfg(test)]
mod tests;
