//! Our signatures against the real minisign, in both directions.

use std::path::Path;
use std::process::{Command, Output};

use super::*;

const COMMENT: &str = "timestamp:1700000000 file:checksums.txt tag:v1.2.0";

/// Runs minisign in `dir`; `None`, with a word about it, where the tool is not installed.
fn minisign(dir: &Path, arguments: &[&str]) -> Option<Output> {
    match Command::new("minisign").current_dir(dir).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: minisign is not installed (Debian package minisign)");
            None
        }
        Err(error) => panic!("minisign cannot be run: {error}"),
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Lets minisign judge `signature` over `data`.
fn judge(key: &SigningKey, data: &[u8], signature: &str, more: &[&str]) -> Option<Output> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), data).unwrap();
    std::fs::write(dir.path().join("file.minisig"), signature).unwrap();
    let public = key.public_key();
    minisign(dir.path(), &[&["-V", "-P", &public, "-m", "file"], more].concat())
}

#[test]
fn minisign_accepts_both_forms_of_our_signatures() {
    let key = SigningKey::from_seed([7; 32]);
    for (form, more) in [(Form::Prehashed, ["-H"].as_slice()), (Form::Legacy, &[])] {
        let Some(output) = judge(&key, b"some file\n", &key.sign(b"some file\n", COMMENT, form), more) else { return };
        assert!(output.status.success(), "{form:?}: {}", text(&output));
        assert!(text(&output).contains(COMMENT), "{}", text(&output));
    }
}

#[test]
fn minisign_refuses_a_legacy_signature_where_the_prehashed_form_is_required() {
    let key = SigningKey::from_seed([7; 32]);
    let Some(output) = judge(&key, b"data", &key.sign(b"data", COMMENT, Form::Legacy), &["-H"]) else { return };
    assert!(!output.status.success(), "{}", text(&output));
}

#[test]
fn minisign_refuses_an_altered_file_an_altered_comment_and_an_impostor() {
    let key = SigningKey::from_seed([7; 32]);
    let good = key.sign(b"data", COMMENT, Form::Prehashed);
    let forged = key.impostor().sign(b"data", COMMENT, Form::Prehashed);
    for (data, signature) in
        [(b"dato", good.clone()), (b"data", good.replace("tag:v1.2.0", "tag:v1.3.0")), (b"data", forged)]
    {
        let Some(output) = judge(&key, data, &signature, &[]) else { return };
        assert!(!output.status.success(), "{}", text(&output));
    }
}

/// Ed25519 is deterministic, so equal keys must give equal bytes.
#[test]
fn a_key_made_by_minisign_signs_the_same_bytes_here_and_there() {
    let dir = tempfile::tempdir().unwrap();
    let Some(made) = minisign(dir.path(), &["-G", "-W", "-p", "key.pub", "-s", "key"]) else { return };
    assert!(made.status.success(), "{}", text(&made));
    let secret = second_line(&std::fs::read_to_string(dir.path().join("key")).unwrap());
    // minisign's secret key: three algorithms of 2 bytes, salt 32, limits 8 + 8, then id 8, seed 32, public key 32.
    let key = SigningKey::from_parts(&secret[62..94].try_into().unwrap(), secret[54..62].try_into().unwrap());

    let public = std::fs::read_to_string(dir.path().join("key.pub")).unwrap();
    assert_eq!(public.lines().nth(1).unwrap(), key.public_key());
    assert!(public.contains(&key.key_id_hex()), "{public} should name {}", key.key_id_hex());

    std::fs::write(dir.path().join("file"), "some file\n").unwrap();
    for (form, flag) in [(Form::Prehashed, "-H"), (Form::Legacy, "-l")] {
        let signed = minisign(dir.path(), &["-S", "-W", flag, "-s", "key", "-m", "file", "-t", COMMENT]).unwrap();
        assert!(signed.status.success(), "{}", text(&signed));
        let theirs = std::fs::read_to_string(dir.path().join("file.minisig")).unwrap();
        let ours = key.sign(b"some file\n", COMMENT, form);
        assert_eq!(theirs.lines().skip(1).collect::<Vec<_>>(), ours.lines().skip(1).collect::<Vec<_>>());
    }
}

fn second_line(text: &str) -> Vec<u8> {
    STANDARD.decode(text.lines().nth(1).unwrap()).unwrap()
}

#[test]
fn a_seed_gives_one_key_and_generated_keys_differ() {
    assert_eq!(SigningKey::from_seed([1; 32]).public_key(), SigningKey::from_seed([1; 32]).public_key());
    assert_ne!(SigningKey::generate().public_key(), SigningKey::generate().public_key());
    assert_eq!(SigningKey::from_parts(&[1; 32], [1, 0, 0, 0, 0, 0, 0, 0xAB]).key_id_hex(), "AB00000000000001");
}
