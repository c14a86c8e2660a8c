//! The edge of the updater's commands without a service manager: who may call them how, and what a script reads then.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::chown;

use bamf_lab::agent::{Finished, Home, write};
use bamf_lab::plane::{ControlPlane, Options};
use bamf_lab::release::{Release, SigningKey};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");
const NOBODY: u32 = 65534;

fn home(yaml: &str) -> Home {
    let home = Home::new(BINARY);
    home.configure(&format!("platform_url: https://platform.example\n{yaml}"));
    home
}

/// The one JSON document on standard output.
fn json(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {finished:?}"))
}

/// Lets every process of `home` be another user's who owns it; false where the test cannot do that.
#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
fn become_nobody(home: &mut Home) -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: becoming another user needs root");
        return false;
    }
    chown(home.path(""), Some(NOBODY), Some(NOBODY)).unwrap();
    home.launch_by(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    let works = home.run(&["version"]).code == 0;
    if !works {
        println!("skipped: the binary lies where nobody may not go");
    }
    works
}

#[test]
fn with_json_a_failure_is_one_document_too() {
    let home = home("");
    let misused: [&[&str]; 3] = [
        &["update", "--version", "latest", "--json"],
        &["update", "--assume-api-version", "", "--json"],
        &["update", "--json", "--version", "1.2"],
    ];
    for line in misused {
        let finished = home.run(line);
        let outcome = json(&finished);
        assert_eq!((finished.code, &outcome["exit_code"], &outcome["outcome"]), (2, &2.into(), &"refused".into()));
        assert!(outcome.get("reason").is_none() && !outcome["message"].as_str().unwrap().is_empty(), "{outcome}");
    }
    home.run(&["update", "--version", "latest"]).expect(2, &["\"latest\" is not a version such as 1.2.0"]);

    home.configure("platform_url: [\n");
    for command in [&["status", "--json"][..], &["config", "show", "--json"]] {
        let finished = home.run(command);
        let failure = json(&finished);
        assert_eq!((finished.code, &failure["exit_code"]), (78, &78.into()), "{command:?}: {finished:?}");
        assert!(!failure["error"].as_str().unwrap().is_empty(), "{finished:?}");
    }
}

#[test]
fn a_history_that_cannot_be_read_is_a_document_too() {
    let mut home = home("");
    home.set("HOME", &home.path("").display().to_string());
    if !become_nobody(&mut home) {
        return;
    }
    let updater = home.path(".local/state/bamf-agent-updater");
    std::fs::create_dir_all(updater.join("history.jsonl")).unwrap();
    let finished = home.run(&["history", "--user", "--json"]);
    let failure = json(&finished);
    assert_eq!((finished.code, &failure["exit_code"]), (74, &74.into()), "{finished:?}");
}

#[test]
fn an_unattended_update_that_nobody_switched_on_does_nothing() {
    let home = home("");
    let finished = home.run(&["update", "--unattended", "--json"]);
    let outcome = json(&finished);
    assert_eq!((finished.code, &outcome["outcome"]), (0, &"up_to_date".into()), "{finished:?}");
    assert_eq!(outcome["message"], "unattended updates are off (update.auto)");
}

#[test]
fn an_unattended_update_that_may_begin_is_an_ordinary_one() {
    let home = Home::new(BINARY);
    // Nobody listens on port 1: an update that goes on finds that out.
    home.configure("platform_url: http://127.0.0.1:1\nupdate: {auto: true}\n");
    let finished = home.run(&["update", "--unattended", "--check", "--json"]);
    assert_eq!((finished.code, &json(&finished)["reason"]), (69, &"api_unreachable".into()), "{finished:?}");
}

#[test]
fn a_user_of_ones_own_service_manager_is_never_root() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: the test is about root");
        return;
    }
    let home = home("");
    for command in ["update", "rollback", "history", "pin", "unpin", "status"] {
        home.run(&[command, "--user"]).expect(2, &["--user", "without sudo"]);
    }
    let finished = home.run(&["rollback", "--user", "--json"]);
    assert_eq!((finished.code, &json(&finished)["exit_code"]), (2, &2.into()), "{finished:?}");
}

#[test]
fn a_user_pins_and_unpins_an_agent_of_their_own_without_root() {
    let mut home = home("");
    home.set("HOME", &home.path("").display().to_string());
    if !become_nobody(&mut home) {
        return;
    }
    home.run(&["pin", "--user", "1.2.0"]).expect(0, &[]);
    let journal = home.path(".local/state/bamf-agent-updater/state.json");
    assert!(std::fs::read_to_string(journal).unwrap().contains("1.2.0"));
    let unpinned = home.run(&["unpin", "--user", "--unit", "bamf-agent"]);
    assert_eq!((unpinned.code, unpinned.stdout.as_str()), (0, "no longer pinned to 1.2.0\n"));
    home.run(&["pin", "1.2.0"]).expect(77, &["run the command with sudo"]);
}

#[test]
fn who_is_not_root_hears_first_that_the_image_is_what_to_update() {
    let mut home = home("");
    home.set("KUBERNETES_SERVICE_HOST", "10.0.0.1");
    if !become_nobody(&mut home) {
        return;
    }
    for command in ["update", "rollback"] {
        let finished = home.run(&[command, "--json"]);
        let outcome = json(&finished);
        assert_eq!((finished.code, &outcome["reason"]), (22, &"in_kubernetes".into()), "{finished:?}");
        assert!(outcome["message"].as_str().unwrap().contains("`helm upgrade RELEASE CHART"), "{outcome}");
    }
}

#[test]
fn a_check_says_that_there_is_an_update_and_that_this_machine_cannot_install_it() {
    let plane = ControlPlane::start(Options::default()).unwrap();
    plane.set_version(Some("1.2.0"));
    let mut home = Home::of(BINARY, &plane, "");
    let release = home.path("releases/v1.2.0");
    std::fs::create_dir_all(&release).unwrap();
    write(release.join("checksums.txt.minisig"), "the choice asks only whether it is there");
    let source = home.path("releases").display().to_string();
    let check = ["update", "--check", "--source", &source];
    let finished = home.run(&check);
    assert_eq!(finished.code, 10, "{finished:?}");
    assert!(finished.stdout.contains("1.2.0 is available"), "{finished:?}");
    home.set("KUBERNETES_SERVICE_HOST", "10.0.0.1");
    let finished = home.run(&check);
    assert_eq!(finished.code, 10, "{finished:?}");
    assert!(finished.stdout.contains("1.2.0 is available") && finished.stdout.contains("helm upgrade"), "{finished:?}");
}

/// A signed release in `home`; its checksums.txt.
fn release(home: &Home, key: &SigningKey) -> String {
    let directory = home.path("releases");
    std::fs::create_dir_all(&directory).unwrap();
    let release = Release::new("v1.2.0").binary("amd64", b"\x7fELF, more or less".to_vec()).signed_by(key);
    release.write(&directory).unwrap().join("checksums.txt").display().to_string()
}

#[test]
fn files_are_verified_on_a_machine_that_has_no_agent_and_no_configuration() {
    let home = Home::new(BINARY);
    let key = SigningKey::generate();
    let checksums = release(&home, &key);
    let binary = checksums.replace("checksums.txt", "bamf-agent-linux-amd64");
    let verify = |keys: Option<&str>| -> Finished {
        let mut command = std::process::Command::new(BINARY);
        command.args(["verify", "--checksums", &checksums, "--tag", "v1.2.0", &binary]);
        command.env_clear().current_dir(home.path(""));
        command.envs(keys.map(|keys| ("BAMF_UPDATE_TRUSTED_KEYS", keys)));
        Finished::from(command.output().unwrap())
    };
    let finished = verify(Some(&key.public_key()));
    assert_eq!(finished.code, 0, "{finished:?}");
    assert!(finished.stdout.contains("authentic, of release v1.2.0"), "{finished:?}");
    assert_eq!(verify(Some(&SigningKey::generate().public_key())).code, 21, "signed by somebody else");
    verify(Some("nonsense")).expect(78, &["BAMF_UPDATE_TRUSTED_KEYS", "update.trusted_keys"]);
    // A build trusts its own keys, or none: not this one.
    let finished = verify(None);
    assert!(matches!(finished.code, 21 | 78), "{finished:?}");
    assert!(!finished.stderr.contains("platform_url"), "{finished:?}");
}

#[test]
fn only_what_says_whom_to_trust_keeps_a_configuration_from_being_used_for_verifying() {
    let home = Home::new(BINARY);
    let key = SigningKey::generate();
    let checksums = release(&home, &key);
    let binary = checksums.replace("checksums.txt", "bamf-agent-linux-amd64");
    let verify = || home.run(&["verify", "--checksums", &checksums, &binary]);
    let trust = format!("trusted_keys: [\"{}\"]", key.public_key());
    home.configure(&format!("agent_name: Not Valid\nzone: [x]\nupdate:\n  window: whenever\n  {trust}\n"));
    assert_eq!(verify().code, 0, "{:?}", verify());
    home.configure(&format!("update:\n  required_signatures: 2\n  {trust}\n"));
    verify().expect(78, &["update.required_signatures"]);
    home.configure(&format!("update:\n  {trust}\n  {trust}\n"));
    verify().expect(78, &["trusted_keys", "a second time"]);
    home.configure("update:\n  trusted_keys: [\"${KEY}\"]\n");
    verify().expect(78, &["KEY is not set"]);
    home.configure("update: [\n");
    verify().expect(78, &["agent.yaml"]);
}
