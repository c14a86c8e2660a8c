//! Builds with the real Cargo, and runs what came out.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::*;

#[test]
fn a_real_agent_is_built_per_version_and_asked_for_once() {
    let one = agent_binary("v1.0.0");
    assert!(one.ends_with("1.0.0/bamf-agent"), "{}", one.display());
    assert_eq!(fs::read(&one).unwrap()[..4], *b"\x7fELF");
    let other = agent_binary("1.1.0");
    assert_ne!(one, other);
    assert_eq!(agent_binary("1.0.0"), one);
    // The versions do not throw each other away: the second did not change the first.
    let inode = fs::metadata(&one).unwrap().ino();
    assert_eq!(Plan::new("1.0.0", None).carry_out().unwrap(), one);
    assert_eq!(fs::metadata(&one).unwrap().ino(), inode);
}

#[test]
fn a_defective_agent_looks_right_before_it_runs() {
    let binary = defective_binary("v1.2.0", Defect::ExitsAtOnce);
    let version = Command::new(&binary).arg("--version").output().unwrap();
    let text = String::from_utf8(version.stdout).unwrap();
    assert!(text.starts_with("bamf-agent 1.2.0 (linux/") && text.ends_with(")\n"), "{text}");
    let code = |arguments: &[&str]| Command::new(&binary).args(arguments).status().unwrap().code();
    assert_eq!(code(&["--config", "/etc/bamf/agent.yaml", "selftest"]), Some(0));
    assert_eq!(code(&["--config", "/etc/bamf/agent.yaml"]), Some(1));
    assert_eq!(code(&["run"]), Some(1));
}

#[test]
fn a_defective_agent_fails_its_selftest_where_that_is_the_defect() {
    let binary = defective_binary("1.2.0", Defect::FailsSelftest);
    assert_eq!(Command::new(binary).arg("selftest").status().unwrap().code(), Some(78));
}

/// Starts it with a notification socket and answers its first word, if one comes within `patience`.
fn first_word(defect: Defect, patience: Duration) -> (std::process::Child, io::Result<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    let child = Command::new(defective_binary("1.2.0", defect)).arg("run").env("NOTIFY_SOCKET", &path).spawn().unwrap();
    let mut word = [0; 64];
    let received = socket.recv(&mut word).map(|length| String::from_utf8_lossy(&word[..length]).into_owned());
    (child, received)
}

#[test]
fn readiness_is_told_by_those_that_fail_later_only() {
    let (mut silent, word) = first_word(Defect::NeverReady, Duration::from_millis(500));
    assert!(word.is_err(), "{word:?}");
    assert!(silent.try_wait().unwrap().is_none(), "it should hang");
    silent.kill().unwrap();
    silent.wait().unwrap();

    let (mut mute, word) = first_word(Defect::NoControlSocket, Duration::from_secs(20));
    assert_eq!(word.unwrap(), "READY=1");
    assert!(mute.try_wait().unwrap().is_none(), "it should stay");
    mute.kill().unwrap();
    mute.wait().unwrap();

    let (mut short, word) = first_word(Defect::CrashesWhenReady, Duration::from_secs(20));
    assert_eq!(word.unwrap(), "READY=1");
    assert_eq!(short.wait().unwrap().code(), Some(1));
}

#[test]
fn what_is_no_version_is_not_built() {
    for text in ["", "latest", "1.2", "1.2.0\" --cfg \"x"] {
        let error = build(text, None).unwrap_err();
        assert!(error.to_string().contains("is not a version"), "{error}");
    }
}
