//! Attacks on a release, each against the whole check; and real files made by minisign, which must pass.

use std::io::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};

use super::*;

/// Made by minisign 0.11 with throw-away keys.
mod real {
    pub(super) const KEY: &str = "RWQ6nxDSdOo8I7NxQLV5Ev6dqiFn30PjZXWwpJt3emmfcs3/IUsT2d5H";
    pub(super) const OTHER_KEY: &str = "RWSoHBRR6hlWIrEwBhphlvsW2CwJY/8BQfiHD4ykFV0ApT+WQ0CTqHF1";
    pub(super) const CHECKSUMS: &str = "\
# tag: v1.2.0
57b23f25260e0c70244a07b23605616477540c07ba13e65a109d8f451e0a2b9f  bamf-agent-linux-amd64
b48de7d9a2b8dde851f6172b5fe918bdbc0d6e537f1efbd3348a9938136c80ef  bamf-agent-linux-arm64
";
    pub(super) const SIGNATURE: &str = "\
untrusted comment: signature from minisign secret key
RUQ6nxDSdOo8I0yPyUmN9bA0eLf9FTXfVlNSNaJfjXtoxF5PwHWXbYAmUHcoOSNpUNjD/GkJ0a/qnpFzaqsCVd/8k0ORSH3HKwo=
trusted comment: timestamp:1783936800 file:checksums.txt tag:v1.2.0
do6Ao6/CK+rnOxOblgZEvERi8XMJF0FkeC0GY7g88xA4gPLJ45OlXTknM9A8r8X1o7qG5XqoT7aOIoqeXryvCw==
";
    pub(super) const OTHER_SIGNATURE: &str = "\
untrusted comment: signature from minisign secret key
RUSoHBRR6hlWIv4FfoPvRqwmwyiGGcYhANUAXYBy+A1zdVoTiQmF52bEh33xZqj36BxKoIUQCYyoupj9uDjVG8tW3KxdDDnAkwY=
trusted comment: tag:v1.2.0
JsN6ulJWlCl5mAgmA92twcMvDc2fUzNUZ26HJL5Yb6qxhjvAGF3NeA6+Bpe/vvsbcuyOYpAGubxd9/kqrGmuDg==
";
    /// The same key, the form over the file itself.
    pub(super) const LEGACY_SIGNATURE: &str = "\
untrusted comment: signature from minisign secret key
RWQ6nxDSdOo8I2cAPokuUMAoDxpMuwIjtCc7Ay7iwab2rQyvdcVLb4jZCPLMAFiflzXe4BLSeEiVL/WLXD5f999WSUu56z6OHww=
trusted comment: tag:v1.2.0
4vZDeHf7kBkvbe1OXscfr84GizUAkwJfDNJZYSUzxYXnR9ReEpbDwMvB9Ff+QyegxwZD+skvO2k9gL5tIbMeBQ==
";
}

/// A signer with a fixed key; the id is the seed, eight times.
fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(seed: u8) -> String {
    STANDARD.encode([b"Ed".as_slice(), &[seed; 8], key(seed).verifying_key().as_bytes()].concat())
}

fn sign(seed: u8, text: &str, comment: &str) -> Vec<u8> {
    sign_as(seed, seed, text, comment)
}

/// A signature by the key of `seed` that claims to be by the key of `id`.
fn sign_as(id: u8, seed: u8, text: &str, comment: &str) -> Vec<u8> {
    let signature = key(seed).sign(&minisign::prehash(text.as_bytes())).to_bytes();
    let global = key(seed).sign(&[signature.as_slice(), comment.as_bytes()].concat()).to_bytes();
    let line = STANDARD.encode([b"ED".as_slice(), &[id; 8], &signature].concat());
    format!("untrusted comment: x\n{line}\ntrusted comment: {comment}\n{}\n", STANDARD.encode(global)).into_bytes()
}

fn trusted(seeds: &[u8], required: usize) -> TrustedKeys {
    TrustedKeys::new(&seeds.iter().map(|seed| public(*seed)).collect::<Vec<_>>(), required).unwrap()
}

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

fn check(keys: &TrustedKeys, wanted: &str, text: &str, signatures: &[Vec<u8>]) -> Result<SignedChecksums, Error> {
    verify_checksums(keys, Expected::Version(&version(wanted)), text.as_bytes(), signatures)
}

fn refusal(keys: &TrustedKeys, wanted: &str, text: &str, signatures: &[Vec<u8>]) -> Reason {
    check(keys, wanted, text, signatures).unwrap_err().reason()
}

const TEXT: &str = "\
# tag: v1.2.0
57b23f25260e0c70244a07b23605616477540c07ba13e65a109d8f451e0a2b9f  bamf-agent-linux-amd64
";
const COMMENT: &str = "timestamp:1783936800 tag:v1.2.0";

#[test]
fn a_release_signed_by_minisign_is_accepted() {
    let keys = TrustedKeys::new(&[real::KEY.into()], 1).unwrap();
    let signed = check(&keys, "1.2.0", real::CHECKSUMS, &[real::SIGNATURE.into()]).unwrap();
    assert_eq!((signed.tag().as_str(), signed.signers()), ("v1.2.0", keys.ids().as_slice()));
    assert_eq!(signed.names().count(), 2);
}

#[test]
fn two_signatures_by_minisign_fulfil_a_requirement_of_two() {
    let keys = TrustedKeys::new(&[real::KEY.into(), real::OTHER_KEY.into()], 2).unwrap();
    let both = [real::SIGNATURE.into(), real::OTHER_SIGNATURE.into()];
    assert_eq!(check(&keys, "1.2.0", real::CHECKSUMS, &both).unwrap().signers().len(), 2);
    assert_eq!(refusal(&keys, "1.2.0", real::CHECKSUMS, &both[..1]), Reason::BadSignature);
}

#[test]
fn minisigns_legacy_form_is_refused_even_from_a_trusted_key() {
    let keys = TrustedKeys::new(&[real::KEY.into()], 1).unwrap();
    let error = check(&keys, "1.2.0", real::CHECKSUMS, &[real::LEGACY_SIGNATURE.into()]).unwrap_err();
    assert!(matches!(error, Error::Signature(SignatureProblem::Legacy)), "{error}");
}

#[test]
fn a_change_anywhere_in_a_signed_file_is_refused() {
    let keys = TrustedKeys::new(&[real::KEY.into()], 1).unwrap();
    for index in (0..real::CHECKSUMS.len()).step_by(13) {
        let mut changed = real::CHECKSUMS.as_bytes().to_vec();
        changed[index] ^= 1;
        let error =
            verify_checksums(&keys, Expected::Any, &changed, &[real::SIGNATURE.as_bytes().to_vec()]).unwrap_err();
        assert!(matches!(error, Error::Signature(SignatureProblem::Wrong(_))), "byte {index}: {error}");
    }
}

#[test]
fn a_change_anywhere_in_a_signature_is_refused() {
    let keys = TrustedKeys::new(&[real::KEY.into()], 1).unwrap();
    let untrusted_comment = real::SIGNATURE.find('\n').unwrap();
    for index in (untrusted_comment..real::SIGNATURE.len() - 1).step_by(5) {
        let mut changed = real::SIGNATURE.as_bytes().to_vec();
        changed[index] ^= 1;
        let error = check(&keys, "1.2.0", real::CHECKSUMS, &[changed]).unwrap_err();
        assert!(matches!(error.reason(), Reason::BadSignature | Reason::UntrustedKey), "byte {index}: {error}");
    }
}

#[test]
fn a_release_without_signature_is_refused() {
    assert_eq!(refusal(&trusted(&[1], 1), "1.2.0", TEXT, &[]), Reason::BadSignature);
}

#[test]
fn a_release_signed_by_a_stranger_is_refused_with_both_names() {
    let error = check(&trusted(&[1], 1), "1.2.0", TEXT, &[sign(2, TEXT, COMMENT)]).unwrap_err();
    assert_eq!(error.reason(), Reason::UntrustedKey);
    assert!(
        error.to_string().contains("0202020202020202") && error.to_string().contains("0101010101010101"),
        "{error}"
    );
}

#[test]
fn a_stranger_who_borrows_a_trusted_key_id_is_refused() {
    let error = check(&trusted(&[1], 1), "1.2.0", TEXT, &[sign_as(1, 2, TEXT, COMMENT)]).unwrap_err();
    assert!(matches!(error, Error::Signature(_)), "{error}");
}

#[test]
fn a_trusted_comment_from_another_signature_is_refused() {
    let good = String::from_utf8(sign(1, TEXT, COMMENT)).unwrap();
    let other = String::from_utf8(sign(1, "another file", "tag:v1.2.0")).unwrap();
    let mixed: Vec<&str> = good.lines().take(2).chain(other.lines().skip(2)).collect();
    let error = check(&trusted(&[1], 1), "1.2.0", TEXT, &[mixed.join("\n").into_bytes()]).unwrap_err();
    assert!(matches!(error, Error::Signature(SignatureProblem::WrongComment(_))), "{error}");
}

#[test]
fn a_release_signed_for_another_tag_is_refused() {
    let keys = trusted(&[1], 1);
    let old = TEXT.replace("v1.2.0", "v1.1.0");
    // The old release, complete and validly signed, served under the new tag.
    assert_eq!(refusal(&keys, "1.2.0", &old, &[sign(1, &old, "tag:v1.1.0")]), Reason::TagMismatch);
    // The two signed places disagree, in both directions.
    assert_eq!(refusal(&keys, "1.2.0", &old, &[sign(1, &old, COMMENT)]), Reason::TagMismatch);
    assert_eq!(refusal(&keys, "1.2.0", TEXT, &[sign(1, TEXT, "tag:v1.1.0")]), Reason::TagMismatch);
}

#[test]
fn the_trusted_comment_must_name_the_tag_exactly_once() {
    let keys = trusted(&[1], 1);
    for comment in [
        "",
        "v1.2.0",
        "tag:1.2.0",
        "tag: v1.2.0",
        "tag:v1.2.0-rc.1",
        "tag:v1.2.0 tag:v1.1.0",
        "xtag:v1.2.0",
        "tag:v1.2.0,",
    ] {
        assert_eq!(refusal(&keys, "1.2.0", TEXT, &[sign(1, TEXT, comment)]), Reason::TagMismatch, "{comment:?}");
    }
    check(&keys, "1.2.0", TEXT, &[sign(1, TEXT, "a tag:v1.2.0 b")]).unwrap();
}

#[test]
fn without_an_expected_tag_the_two_signed_places_must_still_agree() {
    let keys = trusted(&[1], 1);
    let any = |comment| verify_checksums(&keys, Expected::Any, TEXT.as_bytes(), &[sign(1, TEXT, comment)]);
    assert_eq!(any(COMMENT).unwrap().version(), &version("1.2.0"));
    assert_eq!(any("tag:v1.1.0").unwrap_err().reason(), Reason::TagMismatch);
}

#[test]
fn two_signatures_of_one_key_count_once() {
    let twice = [sign(1, TEXT, COMMENT), sign(1, TEXT, "tag:v1.2.0")];
    assert_eq!(refusal(&trusted(&[1, 2], 2), "1.2.0", TEXT, &twice), Reason::BadSignature);
    let two = [sign(1, TEXT, COMMENT), sign(2, TEXT, COMMENT)];
    assert_eq!(check(&trusted(&[1, 2, 3], 2), "1.2.0", TEXT, &two).unwrap().signers().len(), 2);
}

#[test]
fn a_stranger_does_not_count_and_does_no_harm() {
    let keys = trusted(&[1, 2], 1);
    let with_stranger = [sign(9, TEXT, COMMENT), sign(1, TEXT, COMMENT)];
    assert_eq!(check(&keys, "1.2.0", TEXT, &with_stranger).unwrap().signers(), [KeyId([1; 8])]);
    assert_eq!(refusal(&trusted(&[1, 2], 2), "1.2.0", TEXT, &with_stranger), Reason::BadSignature);
}

#[test]
fn a_wrong_signature_of_a_trusted_key_is_refused_beside_a_right_one() {
    let one_wrong = [sign(1, TEXT, COMMENT), sign(2, "another file", COMMENT)];
    assert_eq!(refusal(&trusted(&[1, 2], 1), "1.2.0", TEXT, &one_wrong), Reason::BadSignature);
}

#[test]
fn an_authentic_but_malformed_list_is_refused() {
    let malformed = TEXT.replace("bamf-agent-linux-amd64", "../../etc/passwd");
    assert_eq!(refusal(&trusted(&[1], 1), "1.2.0", &malformed, &[sign(1, &malformed, COMMENT)]), Reason::BadChecksum);
}

fn file(directory: &Path, content: &[u8]) -> File {
    let mut file = crate::durable::create_new(&directory.join("asset"), 0o600).unwrap();
    file.write_all(content).unwrap();
    file
}

fn release() -> SignedChecksums {
    check(&trusted(&[1], 1), "1.2.0", TEXT, &[sign(1, TEXT, COMMENT)]).unwrap()
}

#[test]
fn a_file_with_the_signed_hash_is_proven_wherever_its_position_stands() {
    let directory = tempfile::tempdir().unwrap();
    // Written through the same descriptor: the position is at the end.
    let verified = release().accept("bamf-agent-linux-amd64", file(directory.path(), b"agent for amd64\n")).unwrap();
    assert_eq!((verified.tag().as_str(), verified.size_bytes()), ("v1.2.0", 16));
    assert_eq!(Some(verified.sha256()), release().sha256_of("bamf-agent-linux-amd64"));
}

#[test]
fn a_file_with_another_hash_or_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let changed = file(directory.path(), b"agent for amd64!");
    let other = changed.try_clone().unwrap();
    let error = release().accept("bamf-agent-linux-amd64", changed).unwrap_err();
    assert!(matches!(error, Error::Hash { .. }) && error.reason() == Reason::BadChecksum, "{error}");
    let error = release().accept("bamf-agent-linux-arm64", other).unwrap_err();
    assert!(matches!(error, Error::NotListed { .. }) && error.reason() == Reason::BadChecksum, "{error}");
}

#[test]
fn a_file_that_is_too_large_or_no_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let huge = file(directory.path(), b"");
    huge.set_len(MAX_ASSET_BYTES + 1).unwrap();
    assert_eq!(release().accept("bamf-agent-linux-amd64", huge).unwrap_err().reason(), Reason::TooLarge);
    let device = File::open("/dev/zero").unwrap();
    assert_eq!(release().accept("bamf-agent-linux-amd64", device).unwrap_err().reason(), Reason::DiskError);
}
