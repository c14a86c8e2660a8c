//! minisign's signature files, the pre-hashed form only.
//!
//! ```text
//! untrusted comment: …
//! base64( "ED" ‖ key id (8) ‖ Ed25519 over BLAKE2b-512 of the file (64) )
//! trusted comment: …
//! base64( Ed25519 over the signature (64) ‖ trusted comment )
//! ```
//!
//! The older form (`Ed`, over the file itself) is refused: one way to sign leaves nothing to confuse. Both signatures are
//! checked with `verify_strict`, which refuses the small-order points that the textbook equation lets through.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2b512, Digest};

use super::MAX_SIGNATURE_BYTES;
use super::keys::{KeyId, PublicKey};

/// Algorithm (2), key id (8), signature (64).
const SIGNATURE_LINE_BYTES: usize = 74;

/// What is wrong with a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureProblem {
    /// Larger than a signature file can be.
    #[error("the signature file is larger than {MAX_SIGNATURE_BYTES} bytes")]
    TooLong,
    /// Not the four lines of a signature file.
    #[error("it is not a minisign signature file: {0}")]
    Form(&'static str),
    /// The form over the file itself instead of its hash.
    #[error("it is in minisign's legacy form: sign with `minisign -S -H`, or with minisign 0.10 or later")]
    Legacy,
    /// The signature does not fit file and key.
    #[error("checksums.txt was changed after key {0} signed it, or key {0} did not sign it")]
    Wrong(KeyId),
    /// The second signature does not fit the trusted comment.
    #[error("the trusted comment was changed after key {0} signed it")]
    WrongComment(KeyId),
}

/// What minisign signs in the pre-hashed form.
pub(super) fn prehash(text: &[u8]) -> [u8; 64] {
    Blake2b512::digest(text).into()
}

/// A signature file, parsed; nothing in it is believed yet.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    key_id: KeyId,
    signature: [u8; 64],
    trusted_comment: String,
    global_signature: [u8; 64],
}

impl Signature {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, SignatureProblem> {
        if bytes.len() > MAX_SIGNATURE_BYTES {
            return Err(SignatureProblem::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| SignatureProblem::Form("it is not text"))?;
        let lines: Vec<&str> = text.strip_suffix('\n').unwrap_or(text).split('\n').collect();
        let [untrusted, signature, trusted, global] = lines[..] else {
            return Err(SignatureProblem::Form("it does not have four lines"));
        };
        if !untrusted.starts_with("untrusted comment: ") {
            return Err(SignatureProblem::Form("line 1 is not an untrusted comment"));
        }
        let trusted_comment = trusted
            .strip_prefix("trusted comment: ")
            // It is shown to people: no escape sequences for their terminals.
            .filter(|comment| !comment.chars().any(char::is_control))
            .ok_or(SignatureProblem::Form("line 3 is not a trusted comment"))?;
        let line: [u8; SIGNATURE_LINE_BYTES] =
            decode(signature).ok_or(SignatureProblem::Form("line 2 is not a signature"))?;
        let global_signature = decode(global).ok_or(SignatureProblem::Form("line 4 is not a signature"))?;
        let (algorithm, rest) = line.split_first_chunk::<2>().expect("74 bytes hold 2");
        let (key_id, rest) = rest.split_first_chunk::<8>().expect("72 bytes hold 8");
        let signature = *rest.first_chunk::<64>().expect("64 bytes are left");
        match algorithm {
            b"ED" => {}
            b"Ed" => return Err(SignatureProblem::Legacy),
            _ => return Err(SignatureProblem::Form("it is not an Ed25519 signature")),
        }
        Ok(Self { key_id: KeyId(*key_id), signature, trusted_comment: trusted_comment.to_owned(), global_signature })
    }

    /// The key that is said to have signed.
    pub(super) const fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// Checks both signatures; `digest` is the file's [`prehash`].
    pub(super) fn verify(&self, key: &PublicKey, digest: &[u8; 64]) -> Result<(), SignatureProblem> {
        let check = |message: &[u8], signature: &[u8; 64]| {
            key.verifying().verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature))
        };
        check(digest, &self.signature).map_err(|_| SignatureProblem::Wrong(key.id()))?;
        let signed_comment = [self.signature.as_slice(), self.trusted_comment.as_bytes()].concat();
        check(&signed_comment, &self.global_signature).map_err(|_| SignatureProblem::WrongComment(key.id()))
    }

    /// The comment that the second signature covers. Meaningful after [`Self::verify`].
    pub(super) fn into_trusted_comment(self) -> String {
        self.trusted_comment
    }
}

fn decode<const N: usize>(line: &str) -> Option<[u8; N]> {
    STANDARD.decode(line).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
untrusted comment: signature from minisign secret key
RUQ6nxDSdOo8I0yPyUmN9bA0eLf9FTXfVlNSNaJfjXtoxF5PwHWXbYAmUHcoOSNpUNjD/GkJ0a/qnpFzaqsCVd/8k0ORSH3HKwo=
trusted comment: timestamp:1783936800 file:checksums.txt tag:v1.2.0
do6Ao6/CK+rnOxOblgZEvERi8XMJF0FkeC0GY7g88xA4gPLJ45OlXTknM9A8r8X1o7qG5XqoT7aOIoqeXryvCw==
";

    #[test]
    fn a_file_made_by_minisign_is_read_with_and_without_its_last_line_end() {
        for text in [GOOD, GOOD.trim_end()] {
            let signature = Signature::parse(text.as_bytes()).unwrap();
            assert_eq!(signature.key_id().to_string(), "233CEA74D2109F3A");
            assert_eq!(signature.trusted_comment, "timestamp:1783936800 file:checksums.txt tag:v1.2.0");
        }
    }

    #[test]
    fn anything_but_the_four_lines_is_refused() {
        let lines: Vec<&str> = GOOD.lines().collect();
        let altered = |index: usize, line: &str| {
            let mut lines = lines.clone();
            lines[index] = line;
            lines.join("\n")
        };
        let table = [
            String::new(),
            "<!doctype html>\n<title>Sign in</title>\n\n\n".to_owned(),
            GOOD.replace('\n', "\r\n"),
            format!("{GOOD}\n"),
            format!("{GOOD}more\n"),
            lines[..3].join("\n"),
            altered(0, "comment"),
            altered(1, &lines[1][..96]),
            altered(1, lines[3]),
            altered(1, &format!(" {}", lines[1])),
            altered(2, "untrusted comment: tag:v1.2.0"),
            altered(2, "trusted comment: tag:v1.2.0\u{1b}[2J"),
            altered(3, lines[1]),
            altered(3, ""),
        ];
        for text in table {
            let problem = Signature::parse(text.as_bytes()).unwrap_err();
            assert!(matches!(problem, SignatureProblem::Form(_)), "{text:?}: {problem}");
        }
        assert!(matches!(Signature::parse(b"\xff\n\n\n").unwrap_err(), SignatureProblem::Form(_)));
    }

    #[test]
    fn a_signature_file_without_end_is_refused_before_it_is_read() {
        let long = vec![b'\n'; MAX_SIGNATURE_BYTES + 1];
        assert_eq!(Signature::parse(&long).unwrap_err(), SignatureProblem::TooLong);
    }
}
