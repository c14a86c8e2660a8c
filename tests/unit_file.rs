//! The unit files stay hardened, correct to systemd's own eye, and explained.

use std::path::{Path, PathBuf};
use std::process::Command;

/// `systemd-analyze security` in tenths: 1.5 of 10. A bare unit has 9.6; what is left of ours is the network itself.
const EXPOSURE_LIMIT: &str = "--threshold=15";

fn unit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/bamf-agent.service")
}

fn text() -> String {
    std::fs::read_to_string(unit()).expect("the unit file is part of the repository")
}

/// Whether the test must be skipped, which it says.
fn without_systemd_analyze(test: &str) -> bool {
    let missing = Command::new("systemd-analyze").arg("--version").output().is_err();
    if missing {
        bamf_lab::machine::report_skipped(test, "needs systemd-analyze");
    }
    missing
}

/// The directives of a unit file, with the section and the place of each: `(line number, section, key, value)`.
fn directives(unit: &str) -> Vec<(usize, &str, &str, &str)> {
    let mut section = "";
    let mut found = Vec::new();
    for (index, line) in unit.lines().enumerate() {
        if line.starts_with('[') {
            section = line;
        } else if let Some((key, value)) = line.split_once('=')
            && !line.starts_with('#')
        {
            found.push((index + 1, section, key, value));
        }
    }
    found
}

#[test]
fn the_exposure_stays_below_the_limit() {
    if without_systemd_analyze("the_exposure_stays_below_the_limit") {
        return;
    }
    let output = Command::new("systemd-analyze")
        .args(["security", "--no-pager", "--offline=true", EXPOSURE_LIMIT])
        .arg(unit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a scratch copy of the unit file")]
fn systemd_finds_nothing_to_complain_about() {
    if without_systemd_analyze("systemd_finds_nothing_to_complain_about") {
        return;
    }
    // The agent need not be installed where this runs; systemd wants the program of ExecStart= to exist.
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bamf-agent.service");
    let this = std::env::current_exe().unwrap();
    let installed = text().replace("ExecStart=/usr/local/bin/bamf-agent", &format!("ExecStart={}", this.display()));
    std::fs::write(&copy, installed).unwrap();
    let output = Command::new("systemd-analyze").arg("verify").arg(&copy).output().unwrap();
    // An unknown key is only a warning to systemd, exit code 0, so any word about this unit counts. Words about units of
    // the host that it depends on do not.
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let about_ours: Vec<_> = said.lines().filter(|line| line.contains("bamf-agent")).collect();
    assert!(about_ours.is_empty(), "{said}");
}

#[test]
fn every_directive_has_its_reason_above_it() {
    let text = text();
    let lines: Vec<_> = text.lines().collect();
    for (number, _, key, _) in directives(&text) {
        // A comment may stand above a group; an empty line or a section ends the group.
        let above = lines[..number - 1].iter().rev().find(|line| line.starts_with('#') || !line.contains('='));
        assert!(above.is_some_and(|line| line.starts_with("# ")), "line {number}: {key} has no reason above it");
    }
}

#[test]
fn what_other_parts_rely_on_is_there() {
    let text = text();
    let has = |wanted: &str| directives(&text).iter().any(|(_, _, key, value)| format!("{key}={value}") == wanted);
    for wanted in [
        // Contract section 5.
        "Type=notify",
        "User=bamf",
        "ExecStart=/usr/local/bin/bamf-agent run",
        // Contract section 1: exit code 78.
        "RestartPreventExitStatus=78",
        // Contract sections 3 and 5: where the identity and the control socket are.
        "StateDirectory=bamf-agent",
        "RuntimeDirectory=bamf-agent",
        // A failed unit loses its stored descriptors.
        "StartLimitIntervalSec=0",
        "Restart=always",
    ] {
        assert!(has(wanted), "{wanted} is missing");
    }
}

#[test]
fn a_stop_waits_longer_than_a_drain() {
    let text = text();
    let stop = directives(&text).iter().find(|(_, _, key, _)| *key == "TimeoutStopSec").map(|found| found.3.to_owned());
    // Contract section 2: update.drain_timeout is 30 s unless configured.
    assert!(stop.unwrap().parse::<u32>().unwrap() > 30);
}

#[test]
fn no_directive_stands_twice_by_accident() {
    // These add up; any other directive given twice hides the first.
    const LISTS: [&str; 2] = ["SystemCallFilter", "Environment"];
    let mut seen = std::collections::BTreeSet::new();
    let text = text();
    for (number, section, key, _) in directives(&text) {
        assert!(LISTS.contains(&key) || seen.insert((section, key)), "line {number}: {key} again");
    }
}
