//! The public keys whose signatures are believed.
//!
//! The build carries the project's release keys; `update.trusted_keys` *replaces* them, because whoever signs their own
//! releases does not want ours to count as well. No key is ever fetched.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::VerifyingKey;

use super::Error;

/// The project's release keys, comma separated, as the release build sets them (`BAMF_TRUSTED_KEYS`).
///
/// Empty in every other build: a developer's binary believes nobody until its configuration names a key. The secret
/// halves live with the release process, not in the source.
const BUILT_IN: &str = match option_env!("BAMF_TRUSTED_KEYS") {
    Some(keys) => keys,
    None => "",
};

/// More keys than any project has maintainers that sign.
const MAX_KEYS: usize = 32;
/// Algorithm (2), key id (8), Ed25519 public key (32).
const KEY_BYTES: usize = 42;
/// 42 bytes in base64.
const KEY_CHARS: usize = 56;

/// What is wrong with a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    /// Not a line of base64 of the right length.
    #[error("it is not a minisign public key: expected the 56 characters of base64 that follow the comment line")]
    Form,
    /// Another algorithm than Ed25519.
    #[error("it is not an Ed25519 key")]
    Algorithm,
    /// Not a point of the curve, or one under which anything verifies.
    #[error("it is not a safe Ed25519 key")]
    Weak,
    /// A list without end.
    #[error("there are more than {MAX_KEYS} trusted keys")]
    TooMany,
}

/// The eight bytes by which minisign names a key; shown as minisign shows them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub(super) [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // minisign prints the little-endian number that the bytes are.
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A minisign public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicKey {
    id: KeyId,
    key: VerifyingKey,
}

impl PublicKey {
    fn parse(text: &str) -> Result<Self, KeyProblem> {
        if text.len() != KEY_CHARS {
            return Err(KeyProblem::Form);
        }
        let bytes: [u8; KEY_BYTES] =
            STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(KeyProblem::Form)?;
        let (algorithm, rest) = bytes.split_first_chunk::<2>().expect("42 bytes hold 2");
        let (id, rest) = rest.split_first_chunk::<8>().expect("40 bytes hold 8");
        let key = rest.first_chunk::<32>().expect("32 bytes are left");
        if algorithm != b"Ed" {
            return Err(KeyProblem::Algorithm);
        }
        let key = VerifyingKey::from_bytes(key).map_err(|_| KeyProblem::Weak)?;
        if key.is_weak() {
            return Err(KeyProblem::Weak);
        }
        Ok(Self { id: KeyId(*id), key })
    }

    pub(super) const fn id(&self) -> KeyId {
        self.id
    }

    pub(super) const fn verifying(&self) -> &VerifyingKey {
        &self.key
    }
}

/// The keys that may sign a release, and how many of them have to.
#[derive(Clone, Debug)]
pub struct TrustedKeys {
    /// Invariant: no two have the same id or the same key.
    keys: Vec<PublicKey>,
    /// Invariant: at least 1, at most the number of keys.
    required: usize,
}

impl TrustedKeys {
    /// The configured keys, or the built-in ones where none are configured.
    ///
    /// `required` is `update.required_signatures`; 0 counts as 1.
    ///
    /// # Errors
    /// A key of no use, no key at all, or more signatures required than there are keys.
    pub fn new(configured: &[String], required: usize) -> Result<Self, Error> {
        let built_in = BUILT_IN.split(',').map(str::trim).filter(|key| !key.is_empty());
        if configured.is_empty() {
            Self::from_texts(built_in, required)
        } else {
            Self::from_texts(configured.iter().map(|key| key.trim()), required)
        }
    }

    fn from_texts<'a>(texts: impl Iterator<Item = &'a str>, required: usize) -> Result<Self, Error> {
        let mut keys = Vec::<PublicKey>::new();
        for text in texts {
            let refused = |source| Error::Key { key: text.to_owned(), source };
            let key = PublicKey::parse(text).map_err(refused)?;
            // One key under two names would count as two signers.
            if keys.iter().any(|known| known.id == key.id || known.key == key.key) {
                continue;
            }
            if keys.len() == MAX_KEYS {
                return Err(refused(KeyProblem::TooMany));
            }
            keys.push(key);
        }
        let required = required.max(1);
        match keys.len() {
            0 => Err(Error::NoKeys),
            trusted if trusted < required => Err(Error::Unreachable { required, trusted }),
            _ => Ok(Self { keys, required }),
        }
    }

    /// How many different keys must have signed.
    #[must_use]
    pub const fn required(&self) -> usize {
        self.required
    }

    /// The ids of the keys.
    #[must_use]
    pub fn ids(&self) -> Vec<KeyId> {
        self.keys.iter().map(PublicKey::id).collect()
    }

    /// The names under which a release may carry signatures of these keys, the common one first.
    ///
    /// Contract section 4: `checksums.txt.minisig`, and `checksums.txt.<keyid>.minisig` "where more than one key signs".
    /// The key id is written as minisign prints it, in sixteen upper-case digits.
    pub fn signature_names(&self) -> impl Iterator<Item = String> {
        let common = std::iter::once("checksums.txt.minisig".to_owned());
        common.chain(self.keys.iter().map(|key| format!("checksums.txt.{}.minisig", key.id)))
    }

    pub(super) fn find(&self, id: KeyId) -> Option<&PublicKey> {
        self.keys.iter().find(|key| key.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by minisign 0.11; the secret half was thrown away.
    const REAL: &str = "RWQ6nxDSdOo8I7NxQLV5Ev6dqiFn30PjZXWwpJt3emmfcs3/IUsT2d5H";

    fn encoded(algorithm: &[u8; 2], id: [u8; 8], key: [u8; 32]) -> String {
        STANDARD.encode([algorithm.as_slice(), &id, &key].concat())
    }

    #[test]
    fn a_key_made_by_minisign_is_read_and_named_as_minisign_names_it() {
        let keys = TrustedKeys::new(&[format!(" {REAL}\n")], 1).unwrap();
        assert_eq!(keys.ids()[0].to_string(), "233CEA74D2109F3A");
        let names: Vec<String> = keys.signature_names().collect();
        assert_eq!(names, ["checksums.txt.minisig", "checksums.txt.233CEA74D2109F3A.minisig"]);
    }

    #[test]
    fn a_text_that_is_no_key_is_refused_with_what_is_wrong() {
        let mut identity_point = [0; 32];
        identity_point[0] = 1;
        let table = [
            (String::new(), KeyProblem::Form),
            (REAL[..55].to_owned(), KeyProblem::Form),
            (format!("{REAL}="), KeyProblem::Form),
            (REAL.replace('R', "-"), KeyProblem::Form),
            ("untrusted comment: minisign public key 233CEA74D2109F3A".into(), KeyProblem::Form),
            (encoded(b"ED", [1; 8], [7; 32]), KeyProblem::Algorithm),
            (encoded(b"Ed", [1; 8], identity_point), KeyProblem::Weak),
            (encoded(b"Ed", [1; 8], [0; 32]), KeyProblem::Weak),
        ];
        for (text, expected) in table {
            assert_eq!(PublicKey::parse(&text), Err(expected), "{text}");
        }
    }

    #[test]
    fn one_key_under_two_ids_counts_once() {
        let key: [u8; 32] = STANDARD.decode(REAL).unwrap()[10..].try_into().unwrap();
        let other_id = encoded(b"Ed", [9; 8], key);
        let error = TrustedKeys::new(&[REAL.into(), other_id.clone()], 2).unwrap_err();
        assert!(matches!(error, Error::Unreachable { required: 2, trusted: 1 }), "{error}");
        assert_eq!(TrustedKeys::new(&[REAL.into(), REAL.into(), other_id], 1).unwrap().ids().len(), 1);
    }

    #[test]
    fn without_any_key_the_error_says_what_to_set() {
        let error = TrustedKeys::from_texts(std::iter::empty(), 1).unwrap_err();
        assert!(error.to_string().contains("set update.trusted_keys"), "{error}");
    }

    #[test]
    fn the_keys_of_this_build_are_usable() {
        match TrustedKeys::new(&[], 1) {
            Ok(keys) => assert!(!BUILT_IN.is_empty() && !keys.ids().is_empty()),
            Err(error) => assert!(BUILT_IN.is_empty() && matches!(error, Error::NoKeys), "{error}"),
        }
    }

    #[test]
    fn zero_required_signatures_still_means_one() {
        assert_eq!(TrustedKeys::new(&[REAL.into()], 0).unwrap().required(), 1);
    }
}
