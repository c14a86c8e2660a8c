//! The script as a text: cut off anywhere it runs nothing, the shells of others read it, and it has what others fill in.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::scene::SCRIPT;

/// The shells that are `sh` somewhere, as far as they are here.
fn shells() -> Vec<Vec<&'static str>> {
    let known = [vec!["dash"], vec!["bash", "--posix"], vec!["busybox", "sh"], vec!["sh"]];
    known.into_iter().filter(|shell| Command::new(shell[0]).arg("--help").output().is_ok()).collect()
}

/// Reads `script` from a pipe on a machine where every program only writes down that it was called.
fn run(shell: &[&str], script: &[u8], programs: &Path) -> Output {
    use std::io::Write as _;
    let mut child = Command::new(which(shell[0]))
        .args(&shell[1..])
        .args(["-s", "--", "--yes"])
        .env_clear()
        .env("PATH", programs)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A shell that has given up does not read to the end.
    let _ = child.stdin.take().unwrap().write_all(script);
    child.wait_with_output().unwrap()
}

fn which(program: &str) -> String {
    let output = Command::new("sh").args(["-c", "command -v \"$0\"", program]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "scratch programs")]
fn a_script_that_was_cut_off_runs_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let (programs, log) = (directory.path().join("programs"), directory.path().join("log"));
    std::fs::create_dir(&programs).unwrap();
    let program = format!("#!/bin/sh\necho \"${{0##*/}}\" >>'{}'\nexit 1\n", log.display());
    let words: std::collections::BTreeSet<&str> = SCRIPT
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_')
        .filter(|word| word.len() > 1)
        .collect();
    for word in words.into_iter().filter(|word| word.len() < 30 && !word.starts_with('-')) {
        let path = programs.join(word);
        std::fs::write(&path, &program).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let whole = SCRIPT.len();
    // Most cuts fall anywhere; the end, where the call stands, is cut at each byte.
    let cuts: Vec<usize> = (0..whole).step_by(199).chain(whole - 60..whole - 1).collect();
    for shell in shells() {
        for &cut in &cuts {
            let output = run(&shell, &SCRIPT.as_bytes()[..cut], &programs);
            assert!(output.stdout.is_empty(), "{shell:?} cut at {cut}: {output:?}");
            assert!(!log.exists(), "{shell:?} cut at {cut} ran {}", std::fs::read_to_string(&log).unwrap());
        }
        // The harness would see it.
        let output = run(&shell, SCRIPT.as_bytes(), &programs);
        assert!(log.exists() && !output.status.success(), "{shell:?}: {output:?}");
        std::fs::remove_file(&log).unwrap();
    }
}

#[test]
fn every_shell_that_is_here_reads_it() {
    for shell in shells() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/install.sh");
        let output = Command::new(shell[0]).args(&shell[1..]).args(["-n", path]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{shell:?}: {output:?}");
    }
}

#[test]
fn the_release_fills_in_exactly_one_line() {
    assert_eq!(SCRIPT.lines().filter(|line| *line == "TRUSTED_KEYS=''").count(), 1);
    assert_eq!(SCRIPT.lines().last(), Some("{ bamf_agent_install \"$@\"; }"));
}

#[test]
fn its_user_is_the_one_that_is_shipped() {
    let (_, rest) = SCRIPT.split_once("<<'SYSUSERS'\n").unwrap();
    assert_eq!(rest.split_once("SYSUSERS\n").unwrap().0, include_str!("../../systemd/bamf-agent.sysusers"));
}

#[test]
fn help_lists_every_flag_of_the_contract_and_needs_no_root() {
    let output = run(
        &["sh"],
        SCRIPT.replace("{ bamf_agent_install \"$@\"; }", "bamf_agent_install --help\n").as_bytes(),
        Path::new("/usr/bin:/bin"),
    );
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    for flag in
        ["--version", "--source", "--platform-url", "--token", "--trusted-key", "--prefix", "--no-start", "--yes"]
    {
        assert!(said.contains(flag), "{flag}");
    }
}
