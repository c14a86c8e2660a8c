//! Decides which bytes are a release: the only place that makes a [`Verified`].
//!
//! ```text
//! signatures ─► SignedChecksums ─► Verified
//! (TrustedKeys)  (tag, hashes)      (open file, hashed through its descriptor)
//! ```
//!
//! Neither source nor transport is believed. A release is believed because enough trusted keys signed its checksums.txt,
//! because the tag in both signed places is the tag that was asked for, and because the file at hand has the hash that is
//! listed there. Nothing is parsed before it is authenticated, except the signature itself. Nothing is fetched to decide,
//! and no date takes part: signatures that expire have taken whole fleets offline.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use semver::Version;
use sha2::Digest;

use super::digest::Sha256;
use crate::exit::Reason;

mod checksums;
mod keys;
mod minisign;

pub use checksums::ChecksumsProblem;
pub use keys::{KeyId, KeyProblem, TrustedKeys};
pub use minisign::SignatureProblem;

/// The signed list of a release (contract section 4, "Release layout").
pub const CHECKSUMS: &str = "checksums.txt";
/// The first signature of it.
pub const CHECKSUMS_SIGNATURE: &str = "checksums.txt.minisig";

/// Contract section 4: "sizes over 256 MiB are refused."
pub const MAX_ASSET_BYTES: u64 = 256 << 20;
/// No release has a thousand files of a hundred bytes each.
pub const MAX_CHECKSUMS_BYTES: usize = 1 << 20;
/// minisign's own limit for a trusted comment is 8 KiB; nothing else in the file is long.
pub const MAX_SIGNATURE_BYTES: usize = 16 << 10;
/// Read size while hashing: large enough to hide the system call, small enough for an idle agent's memory.
const HASH_CHUNK_BYTES: usize = 128 << 10;

/// Which release the caller wants to see proven.
#[derive(Clone, Copy, Debug)]
pub enum Expected<'a> {
    /// The release of this version and no other. The updater's only choice.
    Version(&'a Version),
    /// Whatever release was signed. For `verify` without `--tag`, which shows the tag to a person.
    Any,
}

/// Why something is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A trusted key as configured or built in is of no use.
    #[error("trusted key {key:?} is not usable")]
    Key {
        /// The key as written.
        key: String,
        /// What is wrong with it.
        source: KeyProblem,
    },
    /// Neither the configuration nor the build names a key.
    #[error("this build has no built-in release key: set update.trusted_keys to the public key of your releases")]
    NoKeys,
    /// More signatures are wanted than there are keys.
    #[error("update.required_signatures asks for {required} signatures, but there are only {trusted} trusted keys")]
    Unreachable {
        /// Signatures wanted.
        required: usize,
        /// Keys there are.
        trusted: usize,
    },
    /// The release has no signature at all.
    #[error("the release is not signed: checksums.txt.minisig is missing")]
    Unsigned,
    /// A signature file is malformed, in the wrong form, or does not verify.
    #[error("the signature of checksums.txt is not valid")]
    Signature(#[from] SignatureProblem),
    /// No signature was made by a trusted key.
    #[error("checksums.txt is signed by {} but trusted are only {}", list(signers), list(trusted))]
    Untrusted {
        /// Who signed.
        signers: Vec<KeyId>,
        /// Who may sign.
        trusted: Vec<KeyId>,
    },
    /// Some, but not enough trusted keys signed.
    #[error("checksums.txt is signed by {} of the {required} trusted keys that are required ({})", signers.len(), list(signers))]
    TooFew {
        /// The trusted keys that signed.
        signers: Vec<KeyId>,
        /// How many are required.
        required: usize,
    },
    /// The signed tag is not the tag that was asked for.
    #[error(
        "asked for {expected} but {place} says {found}: an old release may be passed off as another; do not install it"
    )]
    Tag {
        /// The tag asked for.
        expected: String,
        /// Where another one stands.
        place: &'static str,
        /// What stands there.
        found: String,
    },
    /// checksums.txt is authentic and yet malformed.
    #[error("checksums.txt is malformed")]
    Checksums(#[from] ChecksumsProblem),
    /// checksums.txt does not list the file.
    #[error("checksums.txt of {tag} does not list {name}")]
    NotListed {
        /// The release.
        tag: String,
        /// The file.
        name: String,
    },
    /// The file has another hash than the signed one.
    #[error("{name} has SHA-256 {found}, but {expected} was signed")]
    Hash {
        /// The file.
        name: String,
        /// The signed hash.
        expected: Sha256,
        /// The hash of the file at hand.
        found: Sha256,
    },
    /// The file is larger than any release.
    #[error("{name} has {bytes} bytes, more than the {MAX_ASSET_BYTES} that a release file may have")]
    TooLarge {
        /// The file.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// The file cannot be read.
    #[error("cannot read {name} to verify it")]
    Read {
        /// The file.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// The reason word of an update that stops here.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Key { .. } | Self::NoKeys | Self::Unreachable { .. } => Reason::ConfigInvalid,
            Self::Unsigned | Self::Signature(_) | Self::TooFew { .. } => Reason::BadSignature,
            Self::Untrusted { .. } => Reason::UntrustedKey,
            Self::Tag { .. } => Reason::TagMismatch,
            Self::Checksums(_) | Self::NotListed { .. } | Self::Hash { .. } => Reason::BadChecksum,
            Self::TooLarge { .. } => Reason::TooLarge,
            Self::Read { .. } => Reason::DiskError,
        }
    }
}

fn list(keys: &[KeyId]) -> String {
    if keys.is_empty() {
        return "no key".to_owned();
    }
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The tag of a version, as releases are named.
#[must_use]
pub fn tag(version: &Version) -> String {
    format!("v{version}")
}

/// The hashes of a release, signed by enough trusted keys under the right tag.
///
/// Invariant: made by [`verify_checksums`] only.
#[derive(Debug)]
pub struct SignedChecksums {
    version: Version,
    entries: checksums::Entries,
    signers: Vec<KeyId>,
}

/// Authenticates a checksums.txt with the signatures that came with it.
///
/// # Errors
/// Any doubt: a signature by a trusted key that does not verify is refused even where others would suffice.
pub fn verify_checksums(
    keys: &TrustedKeys,
    expected: Expected<'_>,
    text: &[u8],
    signatures: &[Vec<u8>],
) -> Result<SignedChecksums, Error> {
    let signers = signers(keys, text, signatures)?;
    let (version, entries) = checksums::parse(text)?;
    // "The signed tag, in both places, must be the tag asked for": this place first, then the comments against it.
    if let Expected::Version(wanted) = expected
        && *wanted != version
    {
        return Err(Error::Tag {
            expected: tag(wanted),
            place: "the first line of checksums.txt",
            found: tag(&version),
        });
    }
    for signer in &signers {
        signer.comment_names(&version)?;
    }
    Ok(SignedChecksums { version, entries, signers: signers.into_iter().map(|signer| signer.id).collect() })
}

/// A trusted key whose signature verified, with the comment that it signed.
struct Signer {
    id: KeyId,
    comment: String,
}

impl Signer {
    /// The trusted comment must have the word `tag:vX.Y.Z`, once.
    fn comment_names(&self, version: &Version) -> Result<(), Error> {
        let mut tags = self.comment.split_whitespace().filter_map(|word| word.strip_prefix("tag:"));
        let expected = tag(version);
        let found = match (tags.next(), tags.next()) {
            (Some(only), None) if only == expected => return Ok(()),
            (Some(only), None) => only.to_owned(),
            (None, _) => "nothing".to_owned(),
            (Some(_), Some(_)) => "several tags".to_owned(),
        };
        Err(Error::Tag { expected, place: "the signature's trusted comment", found })
    }
}

/// The different trusted keys behind `signatures`; enough of them, and every one of theirs valid.
fn signers(keys: &TrustedKeys, text: &[u8], signatures: &[Vec<u8>]) -> Result<Vec<Signer>, Error> {
    if signatures.is_empty() {
        return Err(Error::Unsigned);
    }
    let digest = minisign::prehash(text);
    let (mut signers, mut strangers) = (Vec::<(keys::PublicKey, Signer)>::new(), Vec::new());
    for bytes in signatures {
        let signature = minisign::Signature::parse(bytes)?;
        let Some(key) = keys.find(signature.key_id()) else {
            strangers.push(signature.key_id());
            continue;
        };
        signature.verify(key, &digest)?;
        if signers.iter().all(|(known, _)| known != key) {
            let signer = Signer { id: key.id(), comment: signature.into_trusted_comment() };
            signers.push((key.clone(), signer));
        }
    }
    let signers: Vec<Signer> = signers.into_iter().map(|(_, signer)| signer).collect();
    if signers.is_empty() {
        return Err(Error::Untrusted { signers: strangers, trusted: keys.ids() });
    }
    if signers.len() < keys.required() {
        let signers = signers.into_iter().map(|signer| signer.id).collect();
        return Err(Error::TooFew { signers, required: keys.required() });
    }
    Ok(signers)
}

impl SignedChecksums {
    /// The version that was signed.
    #[must_use]
    pub const fn version(&self) -> &Version {
        &self.version
    }

    /// The tag that was signed, `vX.Y.Z`.
    #[must_use]
    pub fn tag(&self) -> String {
        tag(&self.version)
    }

    /// The different trusted keys that signed.
    #[must_use]
    pub fn signers(&self) -> &[KeyId] {
        &self.signers
    }

    /// The signed hash of a file of the release.
    #[must_use]
    pub fn sha256_of(&self, name: &str) -> Option<Sha256> {
        self.entries.get(name).copied()
    }

    /// The files of the release.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Proves that `file` is the release's file `name`, by hashing it through this very descriptor.
    ///
    /// The caller keeps others from writing to it: it lies in a directory that only root can enter.
    ///
    /// # Errors
    /// The file is not listed, too large, unreadable, or another.
    pub fn accept(&self, name: &str, file: File) -> Result<Verified, Error> {
        let expected =
            self.sha256_of(name).ok_or_else(|| Error::NotListed { tag: self.tag(), name: name.to_owned() })?;
        let (found, size_bytes) = hash(name, &file)?;
        if found != expected {
            return Err(Error::Hash { name: name.to_owned(), expected, found });
        }
        Ok(Verified { file, name: name.to_owned(), version: self.version.clone(), sha256: found, size_bytes })
    }
}

/// SHA-256 and size of a file from its first byte, wherever its position stands.
fn hash(name: &str, file: &File) -> Result<(Sha256, u64), Error> {
    let failed = |source| Error::Read { name: name.to_owned(), source };
    let too_large = |bytes| Error::TooLarge { name: name.to_owned(), bytes };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    if metadata.len() > MAX_ASSET_BYTES {
        return Err(too_large(metadata.len()));
    }
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; HASH_CHUNK_BYTES];
    let mut offset = 0_u64;
    loop {
        let read = match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok((Sha256::new(hasher.finalize().into()), offset)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        hasher.update(&buffer[..read]);
        offset = offset.saturating_add(read as u64);
        // It may have grown since its size was asked for.
        if offset > MAX_ASSET_BYTES {
            return Err(too_large(offset));
        }
    }
}

/// A file of a release, proven by signature, tag and hash.
///
/// Invariant: made by [`SignedChecksums::accept`] only. It holds the open file that was hashed, not a path under which
/// another file may lie by now.
#[derive(Debug)]
pub struct Verified {
    file: File,
    name: String,
    version: Version,
    sha256: Sha256,
    size_bytes: u64,
}

impl Verified {
    /// The open file that was hashed. Its position is the caller's business.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// The file's name in the release.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version that was signed.
    #[must_use]
    pub const fn version(&self) -> &Version {
        &self.version
    }

    /// The tag that was signed, `vX.Y.Z`.
    #[must_use]
    pub fn tag(&self) -> String {
        tag(&self.version)
    }

    /// The hash that was signed and found.
    #[must_use]
    pub const fn sha256(&self) -> Sha256 {
        self.sha256
    }

    /// The size in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} (SHA-256 {})", self.name, self.tag(), self.sha256)
    }
}

#[cfg(test)]
mod tests;
