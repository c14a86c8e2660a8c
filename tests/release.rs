//! `scripts/release` with everything real but the compiler's work: what it makes, and what it refuses to call a release.
//!
//! The binaries are the lab's (`--prebuilt`), which have no keys built in; the agent that verifies is told them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "what a test writes need not outlive a power cut")]

#[path = "release/journey.rs"]
mod journey;
#[expect(dead_code, reason = "the installer's tests use all of it")]
#[path = "install/scene.rs"]
mod scene;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bamf_lab::binaries::agent_binary;
use bamf_lab::machine::report_skipped;
use bamf_lab::site::architecture;

const TAG: &str = "v1.2.0";

/// A place to release in, with keys.
struct Desk {
    directory: tempfile::TempDir,
}

fn prebuilt() -> String {
    format!("prebuilt/bamf-agent-linux-{}", architecture())
}

/// How the script ended.
#[derive(Debug)]
struct Ended {
    success: bool,
    said: String,
}

impl Ended {
    #[track_caller]
    fn refused(&self, why: &str) {
        assert!(!self.success && self.said.contains(why), "{why}: {self:#?}");
    }
}

impl Desk {
    /// None, said by the test's name, where it lacks a tool.
    fn new(test: &str) -> Option<Self> {
        for tool in ["minisign", "objdump", "strip", "git"] {
            if Command::new(tool).arg("-v").output().is_err() {
                report_skipped(test, &format!("{tool} is not installed"));
                return None;
            }
        }
        let desk = Self { directory: tempfile::tempdir().unwrap() };
        for key in ["one", "two", "stranger"] {
            desk.make_key(key, "");
        }
        desk.make_key("locked", "open sesame\n");
        std::fs::create_dir(desk.path("prebuilt")).unwrap();
        desk.prebuild("1.2.0");
        // The agent of the release before, which does not change with the next one.
        let agent = desk.path("previous");
        std::fs::copy(desk.path(&prebuilt()), &agent).unwrap();
        let keys = ["one", "two", "locked"].map(|key| desk.public(key)).join(",");
        let told = format!("#!/bin/sh\nBAMF_UPDATE_TRUSTED_KEYS={keys} exec {} \"$@\"\n", agent.display());
        std::fs::write(desk.path("agent"), told).unwrap();
        std::fs::set_permissions(desk.path("agent"), std::fs::Permissions::from_mode(0o755)).unwrap();
        Some(desk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The binary of this version becomes the one that is released.
    fn prebuild(&self, version: &str) {
        // A tenth of the size, as a release's own is.
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(self.path(&prebuilt())).arg(agent_binary(version));
        assert!(strip.status().unwrap().success());
    }

    fn make_key(&self, name: &str, password: &str) {
        let mut minisign = Command::new("minisign");
        minisign.args(["-G", "-f", "-p"]).arg(self.path(&format!("{name}.pub")));
        minisign.arg("-s").arg(self.path(&format!("{name}.key")));
        if password.is_empty() {
            minisign.arg("-W");
        }
        let mut child = minisign.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(password.repeat(2).as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    fn public(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap().lines().last().unwrap().to_owned()
    }

    fn release(&self, arguments: &[&str]) -> Ended {
        let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/release"));
        script.args(arguments).arg("--previous").arg(self.path("agent")).args(["--no-rehearsal", "--allow-dirty"]);
        for key in ["one", "two", "locked"] {
            script.args(["--trusted-key", &self.public(key)]);
        }
        let ended = script.current_dir(self.directory.path()).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
        for line in std::fs::read_to_string(self.path("one.key")).unwrap().lines().skip(1) {
            assert!(!said.contains(line), "a secret key was printed");
        }
        assert!(!said.contains("open sesame"), "a password was printed");
        Ended { success: ended.status.success(), said: said.into_owned() }
    }

    fn make(&self, more: &[&str]) -> Ended {
        let line = ["--version", TAG, "--out", "out", "--arch", architecture(), "--prebuilt", "prebuilt"];
        self.release(&[&line, more].concat())
    }

    fn names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path("out").join(TAG)) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What is in the directory of releases, hidden or not.
    fn left(&self) -> usize {
        std::fs::read_dir(self.path("out")).map_or(0, Iterator::count)
    }
}

#[test]
fn a_release_has_its_layout_and_one_signature_per_key_that_the_updater_believes() {
    let name = "a_release_has_its_layout_and_one_signature_per_key_that_the_updater_believes";
    let Some(desk) = Desk::new(name) else { return };
    let made = desk.make(&["--key", "one.key"]);
    assert!(made.success, "{}", made.said);
    let names = desk.names();
    let binary = format!("bamf-agent-linux-{}", architecture());
    for file in [
        "bamf-agent.service",
        "bamf-agent.sysusers",
        "bamf-agent-share.tar.gz",
        "sbom-bamf-agent.spdx.json",
        "checksums.txt",
        "checksums.txt.minisig",
        &binary,
    ] {
        assert!(names.iter().any(|name| name == file), "{file} in {names:?}");
    }
    let list = std::fs::read_to_string(desk.path("out/v1.2.0/checksums.txt")).unwrap();
    let mut lines = list.lines();
    assert_eq!(lines.next(), Some("# tag: v1.2.0"));
    let listed: Vec<&str> = lines.map(|line| line.split_once("  ").unwrap().1).collect();
    let others: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| !name.starts_with("checksums.txt")).collect();
    assert_eq!(listed, others, "every file, sorted");

    // Another holder, whose key has a password, and who signs what is finished.
    std::fs::write(desk.path("password"), "open sesame\n").unwrap();
    let signed = desk.release(&["--sign", "out/v1.2.0", "--key", "locked.key", "--password-file", "password"]);
    assert!(signed.success && signed.said.contains("2 signatures"), "{}", signed.said);
    assert_eq!(desk.names().len(), names.len() + 1);
    let again = desk.release(&["--sign", "out/v1.2.0", "--key", "one.key"]);
    again.refused("has signed already");
    assert!(desk.release(&["--verify", "out/v1.2.0"]).success);
    assert_eq!(desk.left(), 1, "nothing but the release");
}

#[test]
fn what_is_not_believed_never_becomes_a_release() {
    let name = "what_is_not_believed_never_becomes_a_release";
    let Some(desk) = Desk::new(name) else { return };
    desk.make(&["--key", "stranger.key"]).refused("does not believe it");
    assert_eq!(desk.left(), 0, "what is unfinished is gone");
    std::fs::write(desk.path("password"), "wrong\n").unwrap();
    desk.make(&["--key", "locked.key", "--password-file", "password"]).refused("does not sign");
    assert_eq!(desk.left(), 0);

    assert!(desk.make(&["--unsigned"]).success);
    desk.make(&["--key", "one.key"]).refused("is there already");
    desk.release(&["--verify", "out/v1.2.0"]).refused("not signed");
    let names = desk.names();
    desk.release(&["--sign", "out/v1.2.0", "--key", "stranger.key"]).refused("does not believe it");
    assert_eq!(desk.names(), names, "a signature that is not believed is not added");

    assert!(desk.release(&["--sign", "out/v1.2.0", "--key", "two.key"]).success);
    let binary = desk.path(&format!("out/v1.2.0/bamf-agent-linux-{}", architecture()));
    std::fs::File::options().append(true).open(binary).unwrap().write_all(b"x").unwrap();
    desk.release(&["--verify", "out/v1.2.0"]).refused("checksums.txt does not hold");
    desk.release(&["--sign", "out/v1.2.0", "--key", "one.key"]).refused("checksums.txt does not hold");
    assert_eq!(desk.left(), 1);
}

#[test]
fn a_file_that_is_not_listed_and_a_tag_that_is_none_are_refused() {
    let name = "a_file_that_is_not_listed_and_a_tag_that_is_none_are_refused";
    let Some(desk) = Desk::new(name) else { return };
    assert!(desk.make(&["--key", "one.key"]).success);
    std::fs::write(desk.path("out/v1.2.0/extra"), "").unwrap();
    desk.release(&["--verify", "out/v1.2.0"]).refused("exactly what is there");
    std::fs::remove_file(desk.path("out/v1.2.0/extra")).unwrap();
    // An old release under a new name.
    std::fs::rename(desk.path("out/v1.2.0"), desk.path("out/v1.3.0")).unwrap();
    desk.release(&["--verify", "out/v1.3.0"]).refused("does not believe it");
    for tag in ["1.2.0", "v1.2", "latest", "v01.2.0", "v1.2.0+build", "../v1.2.0"] {
        let refused = desk.release(&["--version", tag, "--out", "out", "--key", "one.key"]);
        assert!(!refused.success && refused.said.contains("no tag such as"), "{tag}: {refused:?}");
    }
}
