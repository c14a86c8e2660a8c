//! Releases and machines that nothing may be installed from or on; nothing on the machine changes.

use bamf_lab::machine::or_skip;
use bamf_lab::release::{Damage, ListFlaw, Release, SignatureFlaw, elf};
use bamf_lab::site::{Ended, UNIT, architecture};

use crate::scene::{Scene, assert_same};

/// What is wrong, and a word of what is said.
fn tampered(scene: &Scene) -> Vec<(Release, &'static str)> {
    let good = || scene.site.release("1.0.0");
    let binary = format!("bamf-agent-linux-{}", architecture());
    let list = |flaw: ListFlaw| good().list_flaw(flaw);
    let signature = |flaw: SignatureFlaw| good().signature_flaw(flaw);
    let other = if architecture() == "amd64" { "arm64" } else { "amd64" };
    vec![
        (list(ListFlaw::TagLine("v0.9.0".into())), "an old release may be passed off"),
        (list(ListFlaw::NoTagLine), "an old release may be passed off"),
        (list(ListFlaw::Duplicate(UNIT.into())), "lists a name twice"),
        (list(ListFlaw::Name("../agent".into())), "plain file name"),
        (list(ListFlaw::Name("a..b".into())), "plain file name"),
        (list(ListFlaw::Name("a b".into())), "plain file name"),
        (list(ListFlaw::Name("a\u{1b}[2J".into())), "plain file name"),
        (list(ListFlaw::Hash(UNIT.into(), "0".repeat(63))), "plain file name"),
        (list(ListFlaw::Hash(UNIT.into(), "0".repeat(64))), "was signed"),
        (list(ListFlaw::CrLf), "an old release may be passed off"),
        (list(ListFlaw::PaddedTo(1 << 20 | 1)), "larger than"),
        (list(ListFlaw::PaddedTo(1 << 17)), "longer than any"),
        (signature(SignatureFlaw::Unsigned), "not signed by a key"),
        (signature(SignatureFlaw::ByStranger), "not signed by a key"),
        (signature(SignatureFlaw::ByImpostor), "is not what key"),
        (signature(SignatureFlaw::LegacyForm), "legacy form"),
        (signature(SignatureFlaw::TrustedTag("v0.9.0".into())), "trusted comment says v0.9.0"),
        (signature(SignatureFlaw::TrustedTag("v1.0.0 tag:v1.0.0".into())), "several tags"),
        (signature(SignatureFlaw::NoTrustedTag), "says nothing"),
        (signature(SignatureFlaw::AlteredTrustedTag("v1.0.0 x".into())), "is not what key"),
        (signature(SignatureFlaw::AlteredList), "is not what key"),
        (signature(SignatureFlaw::PaddedTo(1 << 14 | 1)), "larger than a signature"),
        (good().damaged(&binary, Damage::FlippedBit), "was signed"),
        (good().damaged(&binary, Damage::Truncated), "was signed"),
        (good().damaged(&binary, Damage::Html), "was signed"),
        (good().damaged(UNIT, Damage::Emptied), "was signed"),
        (good().damaged("checksums.txt", Damage::FlippedBit), "is not what key"),
        (good().damaged("checksums.txt.minisig", Damage::Truncated), "is not a minisign signature"),
        (good().binary(architecture(), elf(other)), "is not a program for"),
        (good().binary(architecture(), "#!/bin/sh\necho bamf-agent 1.0.0 (linux\n"), "is not a program for"),
        (scene.site.release("1.1.0").published_as("v1.0.0"), "an old release may be passed off"),
        (good().binary(architecture(), bamf_lab::binaries::agent_binary("1.1.0")), "says that it is: bamf-agent 1.1.0"),
    ]
}

#[test]
fn a_tampered_release_is_refused_by_either_verifier_and_nothing_is_changed() {
    if or_skip("a_tampered_release_is_refused_by_either_verifier_and_nothing_is_changed") {
        return;
    }
    let scene = Scene::new();
    let releases = tampered(&scene);
    for hidden in ["/usr/bin/minisign", "/usr/bin/openssl"] {
        scene.site.machine.check(["mv", hidden, "/root/hidden"]).unwrap();
        let before = scene.tree();
        for (release, word) in &releases {
            scene.publish(release);
            let ended = Ended::after(scene.first(&["--no-start"]));
            assert_eq!(ended.code, 21, "{word}, without {hidden}: {ended:?}");
            assert!(ended.stderr.contains(word), "{word} is not in {ended:?}");
        }
        assert_same(&before, &scene.tree());
        scene.site.machine.check(["mv", "/root/hidden", hidden]).unwrap();
    }
}

#[test]
fn any_of_several_trusted_keys_may_have_signed_and_none_is_trusted_by_itself() {
    if or_skip("any_of_several_trusted_keys_may_have_signed_and_none_is_trusted_by_itself") {
        return;
    }
    let scene = Scene::new();
    let (ours, second) = (scene.site.key.clone(), scene.site.key.stranger());
    let before = scene.tree();
    let untrusting = Ended::after(scene.script(&[
        "--platform-url",
        &scene.site.plane.url(),
        "--source",
        &scene.site.releases.source_url(),
    ]));
    assert_eq!(untrusting.code, 78, "{untrusting:?}");
    assert!(untrusting.stderr.contains("--trusted-key"), "{untrusting:?}");
    let foreign = Ended::after(scene.first(&["--trusted-key", &second.public_key()]));
    assert_eq!(foreign.code, 21, "{foreign:?}");
    // The first signature is a stranger's, the one of our key lies beside it under its name.
    scene.publish(&Release::new("v1.0.0").signed_by(&second));
    let unsigned = Ended::after(scene.first(&[]));
    assert_eq!(unsigned.code, 21, "{unsigned:?}");
    assert_same(&before, &scene.tree());
    let both = Release::new("v1.0.0")
        .binary(architecture(), bamf_lab::binaries::agent_binary("1.0.0"))
        .asset(UNIT, include_str!("../../systemd/bamf-agent.service"))
        .signed_by(&second)
        .signed_by(&ours);
    scene.publish(&both);
    let ended = Ended::after(scene.first(&["--no-start"]));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains(&ours.key_id_hex()), "{ended:?}");
}

#[test]
fn what_makes_no_sense_is_a_usage_error_before_anything_is_asked() {
    if or_skip("what_makes_no_sense_is_a_usage_error_before_anything_is_asked") {
        return;
    }
    let scene = Scene::new();
    let before = scene.tree();
    for flags in [
        &["--frobnicate"][..],
        &["--version"],
        &["--version", "latest"],
        &["--version", "1.0.0; rm -rf /"],
        &["--prefix", "relative"],
        &["--prefix", "/usr/../tmp"],
        &["--prefix", "/home/me"],
        &["--platform-url", "http://bamf.example.com"],
        &["--platform-url", "http://127.0.0.1.example.com"],
        &["--platform-url", "https://user:secret@bamf.example.com"],
        &["--platform-url", "https://bamf.example.com\nevil: true"],
        &["--source", "ftp://example.com"],
        &["--source", "https://example.com/$(touch /root/pwned)"],
        &["--token", "two words"],
    ] {
        let ended = Ended::after(scene.first(flags));
        assert_eq!(ended.code, 2, "{flags:?}: {ended:?}");
    }
    let key = Ended::after(scene.first(&["--trusted-key", "RWnonsense"]));
    assert_eq!(key.code, 78, "{key:?}");
    assert_same(&before, &scene.tree());
    assert!(scene.site.releases.requests().is_empty());
}

#[test]
fn places_that_others_own_are_left_to_them() {
    if or_skip("places_that_others_own_are_left_to_them") {
        return;
    }
    let scene = Scene::new();
    let machine = &scene.site.machine;
    machine.check(["mkdir", "-p", "/usr/lib/bamf-agent"]).unwrap();
    machine.write("/usr/lib/bamf-agent/install-method", "deb\n", 0o644, "root").unwrap();
    let packaged = Ended::after(scene.first(&[]));
    assert_eq!(packaged.code, 22, "{packaged:?}");
    assert!(packaged.stderr.contains("apt-get install --only-upgrade"), "{packaged:?}");
    scene.remove(&["/usr/lib/bamf-agent"]);

    machine.check(["mkdir", "-p", "/opt/theirs/bin"]).unwrap();
    for (command, word) in [
        (["chmod", "0777", "/opt/theirs/bin"], "written by everybody"),
        (["chgrp", "nogroup", "/opt/theirs/bin"], "written by its group"),
        (["chown", "nobody", "/opt/theirs/bin"], "does not belong to root"),
    ] {
        machine.check(["chmod", "0775", "/opt/theirs/bin"]).unwrap();
        machine.check(command).unwrap();
        let ended = Ended::after(scene.first(&["--prefix", "/opt/theirs"]));
        assert_eq!(ended.code, 22, "{ended:?}");
        assert!(ended.stderr.contains(word), "{word}: {ended:?}");
    }
    assert!(scene.site.releases.requests().is_empty());
}

#[test]
fn two_at_once_are_one() {
    if or_skip("two_at_once_are_one") {
        return;
    }
    let scene = Scene::new();
    let machine = &scene.site.machine;
    machine.check(["install", "-d", "-m", "0700", "/var/lib/bamf-agent-updater"]).unwrap();
    let held = machine.spawn(["flock", "/var/lib/bamf-agent-updater/lock", "sleep", "600"]).unwrap();
    let locked =
        |_: &_| machine.exec(["flock", "-n", "/var/lib/bamf-agent-updater/lock", "true"]).unwrap().code() == Some(1);
    machine.wait_until("the lock is held", std::time::Duration::from_secs(20), locked).unwrap();
    let ended = Ended::after(scene.first(&[]));
    assert_eq!(ended.code, 26, "{ended:?}");
    assert!(!scene.exists("/usr/local/bin/bamf-agent"));
    drop(held);
}
