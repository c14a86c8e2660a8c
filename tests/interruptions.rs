//! An update that is cut off, on real systemd with the real binary: whatever dies where, a complete binary is installed,
//! the next command finishes or undoes the rest, and the agent stays who it is.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use bamf_lab::binaries::agent_binary;
use bamf_lab::machine::{Down, Invocation, Running, or_skip, report_skipped};
use bamf_lab::release::builder::sha256_hex;
use bamf_lab::site::{BINARY, Ended, Site, UNIT};

const LIMIT: Duration = Duration::from_secs(30);
const STATE: &str = "/var/lib/bamf-agent-updater/state.json";

/// 1.0.0 runs and is connected, the API is at 1.1.0, and so is the newest release.
fn site() -> Site {
    let site = Site::running("1.1.0").unwrap();
    site.publish(&site.release("1.1.0")).unwrap();
    site
}

/// Starts a command of the agent and returns once the journal says that the version is on trial.
fn until_trial(site: &Site, arguments: &[&str]) -> Running {
    let running = site.agent_command(arguments).spawn().unwrap();
    let on_trial = |_: &_| {
        let journal = site.machine.read(STATE).unwrap_or_default();
        String::from_utf8_lossy(&journal).contains(r#""step": "trial""#)
    };
    site.machine.wait_until("the trial", LIMIT, on_trial).unwrap();
    running
}

/// What moves files and replaces the journal; an update that dies here has done one step more or less than it noted.
const RENAMES: [&str; 3] = ["rename", "renameat", "renameat2"];

#[test]
fn an_update_killed_at_any_rename_is_finished_by_the_next() {
    const NAME: &str = "an_update_killed_at_any_rename_is_finished_by_the_next";
    if or_skip(NAME) || no_strace(NAME) {
        return;
    }
    let site = site();
    site.publish(&site.release("1.0.0")).unwrap();
    let before = Before::of(&site);
    let mut versions = ["1.1.0", "1.0.0"].into_iter().cycle();
    let command = |version| ["update", "--force", "--allow-downgrade", "--json", "--version", version];
    let moments = moments(&site, &command(versions.next().unwrap()));
    assert!((6..16).contains(&moments.len()), "{moments:?}");
    for (moment, version) in moments.iter().zip(versions) {
        kill_at(&site, moment, &command(version));
        before.check_binary(&site, moment);
        let ended = site.agent(&command(version));
        assert_eq!(ended.code, 0, "{moment:?}: {ended:?}");
        before.check_agent(&site, version, moment);
    }
}

#[test]
fn a_rollback_killed_at_any_rename_is_finished_by_the_next() {
    const NAME: &str = "a_rollback_killed_at_any_rename_is_finished_by_the_next";
    if or_skip(NAME) || no_strace(NAME) {
        return;
    }
    let site = site();
    let before = Before::of(&site);
    let update = || assert_eq!(site.agent(&["update", "--force", "--json"]).code, 0);
    update();
    let rollback = ["rollback", "--json"];
    let moments = moments(&site, &rollback);
    assert!((4..12).contains(&moments.len()), "{moments:?}");
    for moment in &moments {
        update();
        kill_at(&site, moment, &rollback);
        before.check_binary(&site, moment);
        let ended = site.agent(&rollback);
        assert_eq!(ended.code, 0, "{moment:?}: {ended:?}");
        before.check_agent(&site, "1.0.0", moment);
    }
}

fn no_strace(name: &str) -> bool {
    let missing = !Path::new("/usr/bin/strace").exists();
    if missing {
        report_skipped(name, "strace is not installed");
    }
    missing
}

/// A system call and how many of its kind come before it, itself included.
type Moment = (&'static str, usize);

/// Runs a command of the agent to its end and tells when it renamed something.
fn moments(site: &Site, command: &[&str]) -> Vec<Moment> {
    const TRACE: &str = "/root/trace";
    let trace = format!("trace={}", RENAMES.join(","));
    let ended = Ended::after(traced(site, &["-o", TRACE, "-e", &trace], command));
    assert_eq!(ended.code, 0, "{ended:?}");
    let text = site.machine.read(TRACE).unwrap();
    let text = String::from_utf8_lossy(&text);
    let count = |call: &str| text.lines().filter(|line| line.starts_with(&format!("{call}("))).count();
    RENAMES.iter().flat_map(|call| (1..=count(call)).map(move |nth| (*call, nth))).collect()
}

/// Runs a command of the agent that dies at this moment, before the system call has done anything.
fn kill_at(site: &Site, (call, nth): &Moment, command: &[&str]) {
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={nth}"));
    let ended = Ended::after(traced(site, &["-o", "/dev/null", "-e", &trace, "-e", &inject], command));
    assert_ne!(ended.code, 0, "it was not killed: {ended:?}");
}

fn traced(site: &Site, options: &[&str], command: &[&str]) -> Invocation {
    site.machine.command([&["strace"], options, &[BINARY], command].concat()).limit(2 * LIMIT)
}

/// What no interruption may change.
struct Before {
    certificate: String,
    complete: [String; 2],
}

impl Before {
    fn of(site: &Site) -> Self {
        let complete = ["1.0.0", "1.1.0"].map(|version| sha256_hex(&agent_binary(version)).unwrap());
        Self { certificate: site.certificate(), complete }
    }

    fn check_binary(&self, site: &Site, moment: &Moment) {
        assert!(self.complete.contains(&site.installed()), "{moment:?}: neither the old binary nor the new one");
    }

    fn check_agent(&self, site: &Site, version: &str, moment: &Moment) {
        let status = site.status();
        assert_eq!((&status["version"], &status["update"]["state"]), (&version.into(), &"idle".into()), "{moment:?}");
        assert_eq!(status["certificate"]["sha256"], *self.certificate, "{moment:?}");
        assert_eq!(site.plane.joins().len(), 1, "{moment:?}");
    }
}

#[test]
fn a_trial_goes_on_after_a_reboot_and_a_lost_journal_stops_no_update() {
    if or_skip("a_trial_goes_on_after_a_reboot_and_a_lost_journal_stops_no_update") {
        return;
    }
    let mut site = site();
    let certificate = site.certificate();
    site.machine.check(["systemctl", "enable", UNIT]).unwrap();

    drop(until_trial(&site, &["update", "--json"]));
    site.machine.reboot(Down::PowerCut).unwrap();
    site.connected().unwrap();
    let resumed = site.agent(&["update", "--json"]);
    assert_eq!((resumed.code, &resumed.json["outcome"]), (0, &"updated".into()), "{resumed:?}");
    assert_eq!((&resumed.json["from"], &resumed.json["to"]), (&"1.0.0".into(), &"1.1.0".into()), "{resumed:?}");
    assert_eq!(site.status()["version"], "1.1.0");

    // Who wants to go back does not have to wait for a verdict first.
    let back = site.agent(&["rollback", "--json"]);
    assert_eq!(back.code, 0, "{back:?}");
    drop(until_trial(&site, &["update", "--force", "--json"]));
    let back = site.agent(&["rollback", "--json"]);
    assert_eq!((back.code, &back.json["outcome"]), (0, &"rolled_back".into()), "{back:?}");
    assert_eq!((&back.json["from"], &back.json["to"]), (&"1.1.0".into(), &"1.0.0".into()), "{back:?}");
    assert_eq!(site.status()["version"], "1.0.0");

    for (number, text) in ["", "{\"version\":", "null", "\0\0\0\0"].into_iter().enumerate() {
        site.machine.write(STATE, text, 0o600, "root").unwrap();
        let ended = site.agent(&["update", "--dry-run", "--json"]);
        assert_eq!(ended.code, 0, "{text:?}: {ended:?}");
        assert!(ended.stderr.contains("set aside"), "{text:?}: {ended:?}");
        let aside = format!("{STATE}.corrupt-{}", number + 1);
        assert_eq!(site.machine.read(aside).unwrap(), text.as_bytes());
    }
    assert_eq!(site.certificate(), certificate);
    assert_eq!(site.plane.joins().len(), 1);
}

#[test]
fn an_api_that_is_away_during_the_trial_is_waited_for_and_the_new_version_not_blamed() {
    if or_skip("an_api_that_is_away_during_the_trial_is_waited_for_and_the_new_version_not_blamed") {
        return;
    }
    let site = site();
    // Shorter than the outage.
    site.edit_config(|text| text.replace("health_timeout: 20s", "health_timeout: 5s")).unwrap();
    let certificate = site.certificate();
    // The restart is asked for after the last request to the source.
    let mut updating = site.agent_command(&["update", "--json"]).spawn().unwrap();
    let swapped = |_: &_| {
        let journal = site.machine.read(STATE).unwrap_or_default();
        String::from_utf8_lossy(&journal).contains(r#""step": "swap"#)
    };
    site.machine.wait_until("the swap", LIMIT, swapped).unwrap();
    site.plane.stop_listening();
    std::thread::sleep(Duration::from_secs(8));
    assert!(updating.is_running(), "{:?}", updating.printed());
    site.plane.resume().unwrap();
    let ended = Ended::from(updating.wait(Duration::from_secs(60)).unwrap());
    assert_eq!((ended.code, &ended.json["outcome"]), (0, &"updated".into()), "{ended:?}");
    assert_eq!(site.status()["version"], "1.1.0");
    assert_eq!(site.certificate(), certificate);
    assert_eq!(site.plane.joins().len(), 1);
}
