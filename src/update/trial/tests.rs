//! Staged programs of every bad kind, played by shell scripts.

use std::time::Instant;

use super::*;
use crate::durable;

/// A script in a directory that any user can enter.
struct Scene {
    _directory: tempfile::TempDir,
    program: PathBuf,
}

impl Scene {
    fn new(script: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.path().join("bamf-agent.new");
        durable::write(&program, format!("#!/bin/sh\n{script}\n").as_bytes(), 0o755).unwrap();
        Self { _directory: directory, program }
    }

    /// Says the right version, then runs `selftest`.
    fn with_selftest(selftest: &str) -> Self {
        Self::new(&format!(
            "if [ \"$1\" = --version ]; then echo 'bamf-agent 1.2.0 ({}, rustc 1.95.0, commit abc)'; exit 0; fi\n{selftest}",
            machine().platform()
        ))
    }

    async fn try_it(&self, trial: &Trial) -> Result<String, Error> {
        try_program(&self.program, trial).await
    }
}

fn machine() -> Machine {
    Machine::current().unwrap()
}

fn trial() -> Trial {
    Trial {
        user: None,
        environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        config: None,
        version: semver::Version::new(1, 2, 0),
        machine: machine(),
        time_limit: TIME_LIMIT,
    }
}

#[test]
fn version_lines_are_read_and_others_are_not() {
    let line = "bamf-agent 1.2.0-rc.1 (linux/arm64, rustc 1.95.0 (abc 2026-01-01), commit f00)";
    let (version, platform) = parse_version_line(line).unwrap();
    assert_eq!((version.to_string().as_str(), platform.as_str()), ("1.2.0-rc.1", "linux/arm64"));
    for line in
        ["", "bamf-agent 1.2.0", "bamf 1.2.0 (linux/amd64)", "bamf-agent v1.2.0 (linux/amd64)", "bamf-agent  (x)"]
    {
        assert_eq!(parse_version_line(line), None, "{line}");
    }
}

#[tokio::test]
async fn the_right_version_and_a_good_selftest_pass_with_the_live_configuration() {
    let scene = Scene::with_selftest("echo \"$1 $2 $3 in $(pwd) as $BAMF_X\"; [ -z \"$HOME\" ]");
    let mut trial = trial();
    trial.config = Some("/etc/bamf/agent.yaml".into());
    trial.environment.push(("BAMF_X".into(), "y".into()));
    let tried = scene.try_it(&trial).await.unwrap();
    assert_eq!(tried, "selftest --config /etc/bamf/agent.yaml in / as y");
}

#[tokio::test]
async fn a_failing_selftest_is_quoted() {
    let scene = Scene::with_selftest("echo 'line 3: unknown key' >&2; exit 78");
    let error = scene.try_it(&trial()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::SelftestFailed);
    assert!(error.to_string().contains("line 3: unknown key"), "{error}");
    assert!(error.to_string().contains("78"), "{error}");
}

#[tokio::test]
async fn another_version_or_platform_than_signed_is_refused() {
    let scene = Scene::with_selftest("exit 0");
    let mut other = trial();
    other.version = semver::Version::new(1, 3, 0);
    assert_eq!(scene.try_it(&other).await.unwrap_err().reason(), Reason::WrongVersion);
    let mut other = trial();
    other.machine = if machine() == Machine::Amd64 { Machine::Arm64 } else { Machine::Amd64 };
    assert_eq!(scene.try_it(&other).await.unwrap_err().reason(), Reason::WrongPlatform);
}

#[tokio::test]
async fn a_program_that_says_nothing_or_fails_after_saying_it_is_refused() {
    for script in ["exit 0", "echo hello", "kill -9 $$", "echo 'bamf-agent 1.2.0 (linux/amd64)'; exit 1"] {
        let error = Scene::new(script).try_it(&trial()).await.unwrap_err();
        assert!(matches!(error, Error::NoVersion { .. }), "{script}: {error}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_executed_is_named() {
    let scene = Scene::new("exit 0");
    durable::write(&scene.program, b"no program", 0o755).unwrap();
    assert!(matches!(scene.try_it(&trial()).await.unwrap_err(), Error::Execute { .. }));
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_with_its_children() {
    let scene = Scene::with_selftest("sleep 600 & echo \"child $!\"; wait");
    let mut trial = trial();
    trial.time_limit = Duration::from_millis(400);
    let began = Instant::now();
    let error = scene.try_it(&trial).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(10));
    let text = error.to_string();
    let child: i32 = text.rsplit("child ").next().unwrap().trim().parse().unwrap_or_else(|_| panic!("{text}"));
    wait_until_gone(child).await;
}

#[tokio::test]
async fn children_that_outlive_a_good_selftest_are_killed_and_do_not_hold_it_up() {
    let scene = Scene::with_selftest("sleep 600 & echo \"child $!\"; exit 0");
    let tried = scene.try_it(&trial()).await.unwrap();
    let child = tried.trim_start_matches("child ").parse().unwrap();
    wait_until_gone(child).await;
}

/// Killed, and reaped or a zombie that waits for its new parent.
async fn wait_until_gone(pid: i32) {
    for _ in 0..500 {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if state.is_empty() || state.contains(") Z ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("process {pid} still runs");
}

#[tokio::test]
async fn endless_output_is_bounded_and_does_not_block() {
    let scene =
        Scene::with_selftest("head -c 3000000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero | tr '\\0' e >&2");
    let tried = scene.try_it(&trial()).await.unwrap();
    assert_eq!(tried.chars().count(), MESSAGE_LIMIT_CHARS);
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    assert_eq!(shown(b"\x1b[31mred\x07\n\n two \r\n", b""), "[31mred | two");
    assert_eq!(shown(b"", b" \n"), "nothing");
}

#[tokio::test]
async fn another_user_means_no_groups_and_no_way_back() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let scene = Scene::with_selftest("grep -E '^(Uid|Gid|Groups|CapEff|CapPrm):' /proc/self/status");
    let mut trial = trial();
    trial.user = Some(User { uid: 65534, gid: 65534 });
    let said = scene.try_it(&trial).await.unwrap();
    let plain: Vec<&str> = said.split(" | ").map(str::trim).collect();
    assert_eq!(plain[0].matches("65534").count(), 4, "{said}");
    assert_eq!(plain[1].matches("65534").count(), 4, "{said}");
    assert_eq!(plain[2], "Groups:", "{said}");
    assert!(plain[3..].iter().all(|line| line.ends_with("0000000000000000")), "{said}");
}
