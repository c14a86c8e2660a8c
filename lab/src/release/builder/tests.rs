//! A right release in full, and that every flaw shows in the files and nowhere else.

use super::*;

fn key() -> SigningKey {
    SigningKey::from_seed([3; 32])
}

fn good() -> Release {
    Release::new("v1.2.0").signed_by(&key())
}

/// All files of a written release.
fn files(release: &Release) -> BTreeMap<String, Vec<u8>> {
    let parent = tempfile::tempdir().unwrap();
    let dir = release.write(parent.path()).unwrap();
    let read = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    dir.read_dir().unwrap().map(read).collect()
}

fn text(files: &BTreeMap<String, Vec<u8>>, name: &str) -> String {
    String::from_utf8(files[name].clone()).unwrap()
}

#[test]
fn a_right_release_has_the_layout_of_the_contract() {
    let files = files(&good().binary("amd64", "new agent\n"));
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["bamf-agent-linux-amd64", "bamf-agent-linux-arm64", "bamf-agent.service", CHECKSUMS, SIGNATURE]);
    let list = text(&files, CHECKSUMS);
    let lines: Vec<_> = list.lines().collect();
    assert_eq!(lines[0], "# tag: v1.2.0");
    // printf 'new agent\n' | sha256sum
    assert_eq!(lines[1], "e2348734d929aee0f5985ca689049f858a2b7f3da9fb4c31c3d01c835dff84f0  bamf-agent-linux-amd64");
    assert_eq!(lines.len(), 4);
    let comment = "timestamp:1760000000 file:checksums.txt tag:v1.2.0";
    assert_eq!(text(&files, SIGNATURE), key().sign(list.as_bytes(), comment, Form::Prehashed));
}

#[test]
fn sha256sum_accepts_a_right_release_and_sees_one_flipped_bit() {
    for (release, verdict) in [(good(), true), (good().damaged("bamf-agent-linux-amd64", Damage::FlippedBit), false)] {
        let parent = tempfile::tempdir().unwrap();
        let dir = release.write(parent.path()).unwrap();
        let check = std::process::Command::new("sha256sum")
            .args(["--check", "--quiet", CHECKSUMS])
            .current_dir(&dir)
            .output()
            .unwrap();
        assert_eq!(check.status.success(), verdict, "{}", String::from_utf8_lossy(&check.stdout));
    }
}

#[test]
fn every_further_key_signs_under_its_own_name() {
    let second = SigningKey::from_seed([4; 32]);
    let files = files(&good().signed_by(&second));
    assert!(text(&files, &format!("checksums.txt.{}.minisig", second.key_id_hex())).contains(&second.key_id_hex()));
    assert!(text(&files, SIGNATURE).contains(&key().key_id_hex()));
}

#[test]
fn list_flaws_are_signed_along() {
    type Shows<'a> = &'a dyn Fn(&str) -> bool;
    let hash = "0".repeat(64);
    let amd64 = "bamf-agent-linux-amd64".to_owned();
    let table: [(ListFlaw, Shows<'_>); 9] = [
        (ListFlaw::TagLine("v1.1.0".into()), &|list| list.starts_with("# tag: v1.1.0\n")),
        (ListFlaw::NoTagLine, &|list| !list.contains('#')),
        (ListFlaw::Duplicate(amd64.clone()), &|list| list.matches("bamf-agent-linux-amd64").count() == 2),
        (ListFlaw::Name("../agent".into()), &|list| list.contains(&format!("{hash}  ../agent\n"))),
        (ListFlaw::Name("a\u{7}b".into()), &|list| list.contains("a\u{7}b")),
        (ListFlaw::Unlisted(amd64.clone()), &|list| !list.contains("amd64")),
        (ListFlaw::Hash(amd64, "xyz".into()), &|list| list.contains("\nxyz  bamf-agent-linux-amd64\n")),
        (ListFlaw::CrLf, &|list| list.lines().count() == list.matches("\r\n").count()),
        (ListFlaw::PaddedTo(2 << 20), &|list| list.len() >= 2 << 20),
    ];
    for (flaw, shows) in table {
        let files = files(&good().list_flaw(flaw.clone()));
        let list = text(&files, CHECKSUMS);
        assert!(shows(&list), "{flaw:?}");
        assert!(!shows(&text(&self::files(&good()), CHECKSUMS)), "{flaw:?} shows without being there");
        let comment = trusted_comment(Some("v1.2.0"));
        assert_eq!(text(&files, SIGNATURE), key().sign(list.as_bytes(), &comment, Form::Prehashed), "{flaw:?}");
    }
}

#[test]
fn signature_flaws_leave_the_list_alone_but_for_the_one_that_is_about_it() {
    let list = text(&files(&good()), CHECKSUMS);
    let right = trusted_comment(Some("v1.2.0"));
    let sign = |key: &SigningKey, comment: &str, form| key.sign(list.as_bytes(), comment, form);
    let prehashed = sign(&key(), &right, Form::Prehashed);
    let table = [
        (SignatureFlaw::Unsigned, None),
        (SignatureFlaw::ByStranger, Some(sign(&key().stranger(), &right, Form::Prehashed))),
        (SignatureFlaw::ByImpostor, Some(sign(&key().impostor(), &right, Form::Prehashed))),
        (SignatureFlaw::LegacyForm, Some(sign(&key(), &right, Form::Legacy))),
        (
            SignatureFlaw::TrustedTag("v1.3.0".into()),
            Some(sign(&key(), &trusted_comment(Some("v1.3.0")), Form::Prehashed)),
        ),
        (SignatureFlaw::NoTrustedTag, Some(sign(&key(), &trusted_comment(None), Form::Prehashed))),
        (SignatureFlaw::AlteredTrustedTag("v1.3.0".into()), Some(prehashed.replace("tag:v1.2.0", "tag:v1.3.0"))),
        (SignatureFlaw::AlteredList, Some(prehashed.clone())),
        (SignatureFlaw::PaddedTo(1 << 20), Some(format!("{prehashed}{}", "\n".repeat((1 << 20) - prehashed.len())))),
    ];
    for (flaw, expected) in table {
        let files = files(&good().signature_flaw(flaw.clone()));
        assert_eq!(files.get(SIGNATURE).map(|bytes| String::from_utf8(bytes.clone()).unwrap()), expected, "{flaw:?}");
        let list = if matches!(flaw, SignatureFlaw::AlteredList) { format!("{list}\n") } else { list.clone() };
        assert_eq!(text(&files, CHECKSUMS), list, "{flaw:?}");
    }
}

#[test]
fn damages_change_the_named_file_only() {
    let name = "bamf-agent-linux-amd64";
    let right = files(&good());
    for (damage, length) in [
        (Damage::FlippedBit, Some(64)),
        (Damage::Truncated, Some(32)),
        (Damage::Emptied, Some(0)),
        (Damage::Html, Some(HTML.len())),
        (Damage::GrownTo(1 << 20), Some(1 << 20)),
        (Damage::Missing, None),
    ] {
        let mut wrong = files(&good().damaged(name, damage.clone()));
        let damaged = wrong.remove(name);
        assert_eq!(damaged.as_ref().map(Vec::len), length, "{damage:?}");
        assert_ne!(damaged.as_ref(), Some(&right[name]), "{damage:?}");
        assert!(right.iter().all(|(file, bytes)| file == name || wrong[file] == *bytes), "{damage:?}");
    }
}

#[test]
fn a_damage_to_a_file_that_is_not_there_is_an_error() {
    let parent = tempfile::tempdir().unwrap();
    let error = good().damaged("no-such-file", Damage::Emptied).write(parent.path()).unwrap_err();
    assert!(error.to_string().contains("no-such-file"), "{error}");
}

#[test]
fn an_old_release_under_a_new_name_keeps_its_own_tag_inside() {
    let parent = tempfile::tempdir().unwrap();
    let dir = good().published_as("v9.9.9").write(parent.path()).unwrap();
    assert_eq!(dir, parent.path().join("v9.9.9"));
    assert!(fs::read_to_string(dir.join(CHECKSUMS)).unwrap().starts_with("# tag: v1.2.0\n"));
    assert!(fs::read_to_string(dir.join(SIGNATURE)).unwrap().contains("tag:v1.2.0\n"));
}

#[test]
fn writing_again_replaces_what_was_there() {
    let parent = tempfile::tempdir().unwrap();
    good().asset("left-over", "x").write(parent.path()).unwrap();
    let dir = good().write(parent.path()).unwrap();
    assert!(!dir.join("left-over").exists());
}

#[test]
fn the_stand_in_binaries_are_elf_headers_of_their_machines() {
    assert_eq!(elf("arm64")[18..20], [183, 0]);
    assert_eq!(elf("amd64")[..20], *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
}
