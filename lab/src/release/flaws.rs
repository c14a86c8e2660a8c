//! What can be wrong with a release itself: its list, its signature, its files.
//!
//! The three enums are the three moments of making one. A [`ListFlaw`] is signed along, as if the signer had been careless
//! or the key stolen; a [`SignatureFlaw`] is made while signing; a [`Damage`] happens to the published files afterwards.

/// What is wrong with `checksums.txt` although it is signed.
#[derive(Clone, Debug)]
pub enum ListFlaw {
    /// The `# tag:` line names this tag.
    TagLine(String),
    /// There is no `# tag:` line.
    NoTagLine,
    /// This name stands there twice, with two hashes; the second is right.
    Duplicate(String),
    /// A further line lists this name, such as `../agent`, `a/b` or one with control characters.
    Name(String),
    /// The line of this asset is missing.
    Unlisted(String),
    /// The hash of this asset (first) is this text (second), such as one of 63 digits.
    Hash(String, String),
    /// Lines end in CR LF.
    CrLf,
    /// Comment lines follow until it has at least this many bytes.
    PaddedTo(usize),
}

/// What is wrong with the signatures.
#[derive(Clone, Debug)]
pub enum SignatureFlaw {
    /// There are none.
    Unsigned,
    /// Another key signed, under its own id.
    ByStranger,
    /// A key signed that is another one but has the right key's id.
    ByImpostor,
    /// Signed over the file rather than over its digest.
    LegacyForm,
    /// The trusted comment names this tag.
    TrustedTag(String),
    /// The trusted comment has no `tag:` word.
    NoTrustedTag,
    /// The trusted comment names this tag, and was changed after it had been signed.
    AlteredTrustedTag(String),
    /// One byte was added to `checksums.txt` after signing: a line break at its end.
    AlteredList,
    /// Line breaks follow until the signature file has at least this many bytes.
    PaddedTo(usize),
}

/// What happened to a file of the release after signing. It applies to any of them, `checksums.txt` and the signatures too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The lowest bit of the middle byte is flipped.
    FlippedBit,
    /// Only the first half is there.
    Truncated,
    /// Nothing is in it.
    Emptied,
    /// An HTML page stands in its place, as when somebody saved a proxy's answer.
    Html,
    /// It is this long: zeros follow, in a sparse file that takes no room on disk.
    GrownTo(u64),
    /// It was not uploaded.
    Missing,
}

/// The page of [`Damage::Html`] and of a captive portal.
pub const HTML: &str = "<!DOCTYPE html>\n<html><head><title>Sign in to the network</title></head>\n\
<body><form action=\"/login\"><input name=\"user\"></form></body></html>\n";
