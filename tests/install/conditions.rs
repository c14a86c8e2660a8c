//! Machines that lack something: tools, root, systemd, a network, a platform that knows its version.

use bamf_lab::machine::or_skip;
use bamf_lab::release::{ALWAYS, Fault};
use bamf_lab::site::{BINARY, Ended, architecture};

use crate::scene::{Scene, assert_same};

#[test]
fn one_of_openssl_and_minisign_is_enough_and_without_both_it_refuses() {
    if or_skip("one_of_openssl_and_minisign_is_enough_and_without_both_it_refuses") {
        return;
    }
    let scene = Scene::new();
    let hide =
        |name: &str| scene.site.machine.check(["mv", &format!("/usr/bin/{name}"), &format!("/root/{name}")]).unwrap();
    let show =
        |name: &str| scene.site.machine.check(["mv", &format!("/root/{name}"), &format!("/usr/bin/{name}")]).unwrap();
    hide("openssl");
    hide("minisign");
    let before = scene.tree();
    let ended = Ended::after(scene.first(&["--no-start"]));
    assert_eq!(ended.code, 21, "{ended:?}");
    assert!(ended.stderr.contains("neither minisign nor openssl"), "{ended:?}");
    assert_same(&before, &scene.tree());
    for verifier in ["openssl", "minisign"] {
        show(verifier);
        let ended = Ended::after(scene.first(&["--no-start"]));
        assert_eq!(ended.code, 0, "{ended:?}");
        assert!(ended.stdout.contains(&format!("checked with {verifier}")), "{ended:?}");
        scene.remove(&[BINARY]);
        hide(verifier);
    }
    // An openssl of before 3, whose tools cannot do it.
    scene
        .site
        .machine
        .write("/usr/bin/openssl", "#!/bin/sh\necho OpenSSL 1.1.1w  11 Sep 2023\n", 0o755, "root")
        .unwrap();
    let ended = Ended::after(scene.first(&["--no-start"]));
    assert_eq!(ended.code, 21, "{ended:?}");
}

#[test]
fn wget_does_where_there_is_no_curl_and_busyboxs_does_not() {
    if or_skip("wget_does_where_there_is_no_curl_and_busyboxs_does_not") {
        return;
    }
    let scene = Scene::new();
    scene.remove(&["/usr/bin/curl"]);
    scene.site.releases.inject("checksums.txt", Fault::Status(503), 1);
    let ended = Ended::after(scene.first(&["--no-start"]));
    assert_eq!(ended.code, 0, "{ended:?}");
    let missing = Ended::after(scene.first(&["--no-start", "--version", "0.9.0"]));
    assert_eq!(missing.code, 69, "{missing:?}");
    assert!(missing.stderr.contains("has no checksums.txt of release v0.9.0"), "{missing:?}");
    scene.remove(&["/usr/bin/wget"]);
    scene.site.machine.write("/usr/bin/wget", "#!/bin/sh\necho BusyBox v1.36 >&2; exit 1\n", 0o755, "root").unwrap();
    let ended = Ended::after(scene.first(&["--no-start"]));
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("neither curl nor GNU wget"), "{ended:?}");
}

#[test]
fn without_root_nothing_is_changed_and_sudo_is_named() {
    if or_skip("without_root_nothing_is_changed_and_sudo_is_named") {
        return;
    }
    let scene = Scene::new();
    let before = scene.tree();
    let ended = Ended::after(scene.first(&[]).user("nobody"));
    assert_eq!(ended.code, 77, "{ended:?}");
    assert!(ended.stderr.contains("sudo"), "{ended:?}");
    assert_same(&before, &scene.tree());
    assert!(scene.site.releases.requests().is_empty());
}

#[test]
fn without_systemd_the_binary_is_installed_and_what_is_missing_is_said() {
    if or_skip("without_systemd_the_binary_is_installed_and_what_is_missing_is_said") {
        return;
    }
    let scene = Scene::new();
    scene.site.machine.write("/root/install.sh", crate::scene::SCRIPT, 0o755, "root").unwrap();
    let hidden = "mount -t tmpfs tmpfs /run/systemd && exec sh /root/install.sh \"$@\"";
    let (url, source, key) = (scene.site.plane.url(), scene.site.releases.source_url(), scene.site.key.public_key());
    let flags = ["--platform-url", &url, "--source", &source, "--trusted-key", &key];
    let ended = Ended::after(
        scene.site.machine.command([&["unshare", "--mount", "sh", "-c", hidden, "sh"][..], &flags].concat()),
    );
    assert_eq!(ended.code, 0, "{ended:?}");
    for word in ["systemd does not run here", "What is missing", "bamf-agent run"] {
        assert!(ended.stdout.contains(word), "{word}: {ended:?}");
    }
    assert!(scene.exists(BINARY) && scene.exists("/etc/bamf/agent.yaml"));
    assert!(!scene.exists("/etc/systemd/system/bamf-agent.service"));
    let checked = scene.site.agent(&["config", "check"]);
    assert_eq!(checked.code, 0, "{checked:?}");
}

#[test]
fn without_a_network_nothing_is_changed() {
    if or_skip("without_a_network_nothing_is_changed") {
        return;
    }
    let scene = Scene::new();
    let before = scene.tree();
    let nowhere = Ended::after(scene.first(&["--source", "https://127.0.0.1:9/mattrobinsonsre/bamf"]));
    assert_eq!(nowhere.code, 69, "{nowhere:?}");
    assert!(nowhere.stderr.contains("cannot be fetched from https://127.0.0.1:9/"), "{nowhere:?}");
    let unknown = Ended::after(scene.first(&["--source", "https://mirror.invalid/bamf"]));
    assert_eq!(unknown.code, 69, "{unknown:?}");
    scene.site.plane.stop_listening();
    for flags in [&[][..], &["--version", "1.0.0"]] {
        let ended = Ended::after(scene.first(flags));
        assert_eq!(ended.code, 69, "{ended:?}");
        assert!(ended.stderr.contains("the platform cannot be asked"), "{ended:?}");
    }
    assert_same(&before, &scene.tree());
    // An image can be made without: whoever names the version knows it.
    let ended = Ended::after(scene.first(&["--version", "1.0.0", "--no-start"]));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("warning: whether 1.0.0 is newer than the platform is not known"), "{ended:?}");
}

#[test]
fn a_platform_that_does_not_say_its_version_wants_one_to_be_named_and_an_older_one_is_never_passed() {
    if or_skip("a_platform_that_does_not_say_its_version_wants_one_to_be_named_and_an_older_one_is_never_passed") {
        return;
    }
    let scene = Scene::new();
    scene.publish(&scene.site.release("1.1.0"));
    let before = scene.tree();
    let newer = Ended::after(scene.first(&["--version", "1.1.0"]));
    assert_eq!(newer.code, 20, "{newer:?}");
    assert!(newer.stderr.contains("API, then agents, then CLI"), "{newer:?}");
    scene.site.plane.set_version(None);
    let silent = Ended::after(scene.first(&[]));
    assert_eq!(silent.code, 20, "{silent:?}");
    assert!(silent.stderr.contains("does not report its version"), "{silent:?}");
    assert_same(&before, &scene.tree());
    let named = scene.first(&["--version", "v1.0.0"]).env("BAMF_INSTALL_TOKEN", &scene.site.token);
    let ended = Ended::after(named);
    assert_eq!(ended.code, 0, "{ended:?}");
    let upgraded = Ended::after(scene.script(&["--version", "1.1.0"]));
    assert_eq!(upgraded.code, 0, "{upgraded:?}");
    assert_eq!(scene.site.status()["version"], "1.1.0");
}

#[test]
fn a_download_that_is_cut_off_is_tried_again_and_an_endless_one_ends() {
    if or_skip("a_download_that_is_cut_off_is_tried_again_and_an_endless_one_ends") {
        return;
    }
    let scene = Scene::new();
    let before = scene.tree();
    let binary = format!("bamf-agent-linux-{}", architecture());
    for (file, fault, code) in [
        (binary.as_str(), Fault::CutAfter(1 << 20), 69),
        ("checksums.txt", Fault::Endless, 21),
        ("checksums.txt", Fault::Html, 21),
        ("checksums.txt.minisig", Fault::Html, 21),
        ("checksums.txt", Fault::RedirectLoop, 69),
        ("checksums.txt", Fault::RedirectTo("http://127.0.0.1:9/x".into()), 69),
        ("checksums.txt", Fault::RedirectTo("file:///etc/passwd".into()), 69),
    ] {
        scene.site.releases.inject(file, fault.clone(), ALWAYS);
        let ended = Ended::after(scene.first(&[]));
        assert_eq!(ended.code, code, "{file} {fault:?}: {ended:?}");
        assert_same(&before, &scene.tree());
        scene.site.releases.clear_faults();
    }
    scene.site.releases.inject(&binary, Fault::CutAfter(1 << 20), 1);
    scene.site.releases.inject("checksums.txt", Fault::Status(502), 1);
    scene.install();
}
