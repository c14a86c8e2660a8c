//! What the updater must refuse, on real systemd with the real binary: each with the exit code and the word that scripts
//! rely on, a message that helps, and an agent that never notices.
//!
//! One machine for all rows of a table. A row prepares what is wrong, runs one command, and takes it back.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use bamf_lab::binaries::{Defect, agent_binary, defective_binary};
use bamf_lab::machine::or_skip;
use bamf_lab::plane::{Endpoint, Fault as ApiFault};
use bamf_lab::release::{ALWAYS, Damage, Fault, ListFlaw, Release, ReleaseServer, SignatureFlaw, elf};
use bamf_lab::site::{BINARY, CONFIG, Ended, Site, Standing, architecture};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);
const STATE: &str = "/var/lib/bamf-agent-updater";
const UPDATE: &[&str] = &["update", "--json"];

/// 1.0.0 runs and is connected, the API is at 1.1.0.
fn site() -> Site {
    Site::running("1.1.0").unwrap()
}

/// v1.1.0 as it should be, with stand-ins for binaries: enough for whatever is refused before it would run.
fn small(site: &Site) -> Release {
    Release::new("v1.1.0").signed_by(&site.key)
}

fn asset() -> String {
    format!("bamf-agent-linux-{}", architecture())
}

/// One refusal.
struct Row<'a> {
    name: &'static str,
    arguments: &'static [&'static str],
    exit: i32,
    reason: &'static str,
    /// Words that the message must have.
    says: &'static [&'static str],
    prepare: Box<dyn Fn(&Site) + 'a>,
}

fn row<'a>(
    name: &'static str,
    exit: i32,
    reason: &'static str,
    says: &'static [&'static str],
    prepare: impl Fn(&Site) + 'a,
) -> Row<'a> {
    Row { name, arguments: UPDATE, exit, reason, says, prepare: Box::new(prepare) }
}

/// A row whose release is what is wrong.
fn release<'a>(
    name: &'static str,
    (exit, reason): (i32, &'static str),
    says: &'static [&'static str],
    release: impl Fn(Release) -> Release + 'a,
) -> Row<'a> {
    row(name, exit, reason, says, move |site| drop(site.publish(&release(small(site))).unwrap()))
}

/// A row whose release is right and whose server is not.
fn served<'a>(
    name: &'static str,
    (exit, reason): (i32, &'static str),
    says: &'static [&'static str],
    target: &'static str,
    fault: Fault,
) -> Row<'a> {
    row(name, exit, reason, says, move |site| {
        site.publish(&small(site)).unwrap();
        let target = if target == "binary" { asset() } else { target.to_owned() };
        site.releases.inject(&target, fault.clone(), ALWAYS);
    })
}

impl Row<'_> {
    const fn with(mut self, arguments: &'static [&'static str]) -> Self {
        self.arguments = arguments;
        self
    }

    /// What is wrong with the refusal; nothing where it is right.
    fn complaints(&self, site: &Site, before: &Standing) -> Vec<String> {
        (self.prepare)(site);
        let ended = site.agent(self.arguments);
        let complaints = self.judge(&ended);
        site.releases.clear_faults();
        site.plane.clear_faults();
        site.plane.set_version(Some("1.1.0"));
        site.withdraw_all().unwrap();
        let after = site.standing();
        let mut complaints: Vec<String> = complaints.iter().map(|text| format!("{}: {text}", self.name)).collect();
        if *before != after {
            complaints.push(format!("{}: the agent noticed: {before:?}, then {after:?}", self.name));
        }
        complaints
    }

    fn judge(&self, ended: &Ended) -> Vec<String> {
        let (json, mut wrong) = (&ended.json, Vec::new());
        if ended.code != self.exit || json["exit_code"] != self.exit || json["reason"] != self.reason {
            wrong.push(format!("expected {} {}: {ended:?}", self.exit, self.reason));
        }
        let message = json["message"].as_str().unwrap_or_default();
        wrong.extend(
            self.says
                .iter()
                .filter(|word| !message.contains(*word))
                .map(|word| format!("{word:?} is not in {message:?}")),
        );
        if message.is_empty() || ended.stdout.lines().count() != 1 {
            wrong.push(format!("not one object with a message: {:?}", ended.stdout));
        }
        wrong
    }
}

fn check_all(site: &Site, rows: &[Row<'_>]) {
    let before = site.standing();
    let complaints: Vec<String> = rows.iter().flat_map(|row| row.complaints(site, &before)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn what_must_not_be_installed_is_refused_with_its_word_and_the_agent_never_notices() {
    if or_skip("what_must_not_be_installed_is_refused_with_its_word_and_the_agent_never_notices") {
        return;
    }
    let site = site();
    check_all(&site, &newer_or_unknown());
    check_all(&site, &not_authentic());
    check_all(&site, &badly_served());
    check_all(&site, &unfit());
    check_all(&site, &held_back());
    assert_eq!(site.plane.joins().len(), 1);
    let history = site.agent(&["history", "--json"]);
    assert_eq!(history.json, Value::Array(Vec::new()), "a refusal changes nothing, so it is no history: {history:?}");
}

/// "Never guess", and never beyond the API.
fn newer_or_unknown<'a>() -> Vec<Row<'a>> {
    let newer: &[&str] = &["1.2.0", "1.1.0", "API → agents → CLI"];
    let exists = |site: &Site| drop(site.publish(&Release::new("v1.2.0").signed_by(&site.key)).unwrap());
    let unknown: &[&str] = &["assume_api_version", "--assume-api-version"];
    let api = |fault: ApiFault| {
        move |site: &Site| {
            for place in [Endpoint::Version, Endpoint::Health, Endpoint::OpenApi] {
                site.plane.inject(place, fault.clone(), u32::MAX);
            }
        }
    };
    vec![
        row("newer than the API", 20, "newer_than_api", newer, |_| {}).with(&[
            "update",
            "--json",
            "--version",
            "1.2.0",
        ]),
        row("newer, forced", 20, "newer_than_api", newer, |_| {}).with(&[
            "update",
            "--json",
            "--version",
            "1.2.0",
            "--force",
            "--allow-downgrade",
            "--allow-prerelease",
        ]),
        row("newer, signed and there", 20, "newer_than_api", newer, exists).with(&[
            "update",
            "--json",
            "--version",
            "v1.2.0",
            "--force",
        ]),
        row("newer, and assumed", 20, "newer_than_api", newer, exists).with(&[
            "update",
            "--json",
            "--version",
            "1.2.0",
            "--assume-api-version",
            "1.2.0",
        ]),
        row("newer, only looked for", 20, "newer_than_api", newer, exists).with(&[
            "update",
            "--json",
            "--check",
            "--version",
            "1.2.0",
        ]),
        row("the constant 0.1.0 only", 20, "api_version_unknown", unknown, |site| site.plane.set_version(None)),
        row("unknown, forced", 20, "api_version_unknown", unknown, |site| site.plane.set_version(None)).with(&[
            "update",
            "--json",
            "--force",
            "--version",
            "1.1.0",
        ]),
        row("the API is down", 69, "api_unreachable", &["500", "try again"], api(ApiFault::Status(500))),
        row("assumed while the API is down", 69, "api_unreachable", &["503"], api(ApiFault::Status(503))).with(&[
            "update",
            "--json",
            "--assume-api-version",
            "1.1.0",
        ]),
        row("web pages instead of the API", 20, "api_version_unknown", unknown, api(ApiFault::Html(200))),
        row("garbage instead of the API", 20, "api_version_unknown", unknown, api(ApiFault::Garbage)),
        row("no such release", 69, "not_found", &["v1.0.9"], |_| {}).with(&["update", "--json", "--version", "1.0.9"]),
    ]
}

/// Exit 21: signature, checksum, tag.
fn not_authentic<'a>() -> Vec<Row<'a>> {
    let flaw = |flaw: SignatureFlaw| move |release: Release| release.signature_flaw(flaw.clone());
    let list = |flaw: ListFlaw| move |release: Release| release.list_flaw(flaw.clone());
    let damage = |file: &str, damage: Damage| {
        let file = file.to_owned();
        move |release: Release| release.damaged(&file, damage.clone())
    };
    let version = &["update", "--json", "--version", "1.1.0"];
    vec![
        release("unsigned", (21, "bad_signature"), &["not signed"], flaw(SignatureFlaw::Unsigned)).with(version),
        release("by a stranger", (21, "untrusted_key"), &["trusted are only"], flaw(SignatureFlaw::ByStranger)),
        release("by an impostor", (21, "bad_signature"), &["did not sign"], flaw(SignatureFlaw::ByImpostor)),
        release("legacy form", (21, "bad_signature"), &["legacy form"], flaw(SignatureFlaw::LegacyForm)),
        release(
            "another signed tag",
            (21, "tag_mismatch"),
            &["v1.1.0", "v1.0.5"],
            list(ListFlaw::TagLine("v1.0.5".into())),
        ),
        release("no tag line", (21, "bad_checksum"), &["# tag:"], list(ListFlaw::NoTagLine)),
        release(
            "another trusted comment",
            (21, "tag_mismatch"),
            &["trusted comment", "v1.0.5"],
            flaw(SignatureFlaw::TrustedTag("v1.0.5".into())),
        ),
        release("no trusted comment", (21, "tag_mismatch"), &["trusted comment"], flaw(SignatureFlaw::NoTrustedTag)),
        release(
            "altered trusted comment",
            (21, "bad_signature"),
            &["trusted comment was changed"],
            flaw(SignatureFlaw::AlteredTrustedTag("v9.9.9".into())),
        ),
        release("altered list", (21, "bad_signature"), &["was changed"], flaw(SignatureFlaw::AlteredList)),
        row("an old release under a new tag", 21, "tag_mismatch", &["v1.1.0", "v1.0.5", "old release"], |site| {
            site.publish(&Release::new("v1.0.5").signed_by(&site.key).published_as("v1.1.0")).unwrap();
        }),
        release("path in a name", (21, "bad_checksum"), &["plain file name"], list(ListFlaw::Name("../agent".into()))),
        release("a name twice", (21, "bad_checksum"), &["again"], list(ListFlaw::Duplicate(asset()))),
        release(
            "not for this machine",
            (21, "wrong_platform"),
            &["v1.1.0", "not built for"],
            list(ListFlaw::Unlisted(asset())),
        ),
        release("a flipped bit", (21, "bad_checksum"), &["SHA-256"], damage(&asset(), Damage::FlippedBit)),
        release("half a binary", (21, "bad_checksum"), &["SHA-256"], damage(&asset(), Damage::Truncated)),
        release("an empty binary", (21, "bad_checksum"), &["SHA-256"], damage(&asset(), Damage::Emptied)),
        release("half a list", (21, "bad_signature"), &["was changed"], damage("checksums.txt", Damage::Truncated)),
        release("half a signature", (21, "bad_signature"), &[], damage("checksums.txt.minisig", Damage::Truncated)),
        release(
            "an endless list",
            (21, "too_large"),
            &["checksums.txt"],
            damage("checksums.txt", Damage::GrownTo(2 << 20)),
        ),
        release(
            "an endless signature",
            (21, "too_large"),
            &["checksums.txt.minisig"],
            damage("checksums.txt.minisig", Damage::GrownTo(1 << 20)),
        ),
        release("the binary is not there", (69, "not_found"), &["some minutes"], damage(&asset(), Damage::Missing)),
        release(
            "the list is not there",
            (69, "not_found"),
            &["checksums.txt"],
            damage("checksums.txt", Damage::Missing),
        ),
    ]
}

/// Servers, proxies and portals.
fn badly_served<'a>() -> Vec<Row<'a>> {
    let unreachable = (69, "source_unreachable");
    let portal: &[&str] = &["captive portal", "web page"];
    vec![
        served("a portal for the signature", unreachable, portal, "checksums.txt.minisig", Fault::Html),
        served("a portal for the list", unreachable, portal, "checksums.txt", Fault::Html),
        served("a portal for the binary", unreachable, portal, "binary", Fault::Html),
        release("a saved web page as the list", unreachable, portal, |release| {
            release.damaged("checksums.txt", Damage::Html)
        }),
        release("a saved web page as the binary", unreachable, portal, |release| {
            release.damaged(&asset(), Damage::Html)
        }),
        served("too large, announced", (21, "too_large"), &["268435456"], "binary", Fault::ContentLength(300 << 20)),
        served("too large, without an end", (21, "too_large"), &["268435456"], "binary", Fault::Endless),
        served(
            "sent to plain HTTP",
            unreachable,
            &["redirect"],
            "binary",
            Fault::RedirectTo("http://releases.example/agent".into()),
        ),
        served("sent in circles", unreachable, &["redirect"], "binary", Fault::RedirectLoop),
        served("busy", unreachable, &["503", "600 s"], "binary", Fault::RetryAfter(503, "600".into())),
        served(
            "too many requests",
            unreachable,
            &["429", "600 s"],
            "checksums.txt",
            Fault::RetryAfter(429, "600".into()),
        ),
        served("forbidden", unreachable, &["403"], "binary", Fault::Status(403)),
        served("gone", (69, "not_found"), &["does not exist"], "binary", Fault::Status(404)),
    ]
}

/// Authentic, and yet not for this machine or not what it says.
fn unfit<'a>() -> Vec<Row<'a>> {
    let other = if architecture() == "amd64" { "arm64" } else { "amd64" };
    let binary = |site: &Site, binary: &Path| {
        drop(site.publish(&small(site).binary(architecture(), binary)).unwrap());
    };
    vec![
        release("another architecture", (21, "wrong_platform"), &["linux/arm64", "linux/amd64"], move |release| {
            release.binary(architecture(), elf(other))
        }),
        release("a script", (21, "wrong_platform"), &[], |release| {
            release.binary(architecture(), "#!/bin/sh\nexit 0\n")
        }),
        release("an empty file, signed", (21, "wrong_platform"), &["not a Linux program"], |release| {
            release.binary(architecture(), "")
        }),
        release("a header only", (21, "wrong_platform"), &["no program in it"], |release| release),
        row("another version than signed", 21, "wrong_version", &["1.1.0", "1.0.5"], move |site| {
            binary(site, &agent_binary("1.0.5"));
        }),
        row("a failing selftest", 1, "selftest_failed", &["selftest", "nothing was changed"], move |site| {
            binary(site, &defective_binary("1.1.0", Defect::FailsSelftest));
        }),
    ]
}

/// Exit 25.
fn held_back<'a>() -> Vec<Row<'a>> {
    vec![
        row("older", 25, "older_than_installed", &["0.9.0", "1.0.0", "--allow-downgrade"], |_| {}).with(&[
            "update",
            "--json",
            "--version",
            "0.9.0",
        ]),
        row("the API went back", 25, "older_than_installed", &["1.0.0", "0.9.0", "--allow-downgrade"], |site| {
            site.plane.set_version(Some("0.9.0"));
        }),
        row("a pre-release", 25, "prerelease", &["1.1.0-rc.1", "--allow-prerelease"], |_| {}).with(&[
            "update",
            "--json",
            "--version",
            "1.1.0-rc.1",
        ]),
    ]
}

#[test]
fn a_machine_that_does_not_let_itself_be_updated_says_why_and_keeps_its_agent() {
    if or_skip("a_machine_that_does_not_let_itself_be_updated_says_why_and_keeps_its_agent") {
        return;
    }
    let site = site();
    let before = site.standing();
    site.publish(&small(&site)).unwrap();
    let refused = |what: &str, exit: i32, reason: &str, says: &[&str]| {
        let ended = site.agent(UPDATE);
        assert_eq!((ended.code, &ended.json["reason"]), (exit, &reason.into()), "{what}: {ended:?}");
        let message = ended.json["message"].as_str().unwrap();
        says.iter().for_each(|word| assert!(message.contains(word), "{what}: {word:?} is not in {message:?}"));
    };

    for (user, arguments) in [("nobody", UPDATE), ("bamf", UPDATE), ("bamf", &["rollback", "--json"])] {
        let ended = Ended::after(site.agent_command(arguments).user(user));
        assert_eq!((ended.code, &ended.json["reason"]), (77, &"not_permitted".into()), "{user}: {ended:?}");
    }

    let usage = site.agent(&["update", "--json", "--version", "banana"]);
    assert_eq!((usage.code, &usage.json["outcome"], &usage.json["exit_code"]), (2, &"refused".into(), &2.into()));
    let message = usage.json["message"].as_str().unwrap();
    assert!(message.contains("banana") && message.contains("1.2.0"), "{usage:?}");

    site.machine.check(["mkdir", "-p", "-m", "0700", STATE]).unwrap();
    let lock = format!("{STATE}/lock");
    let held = site.machine.spawn(["flock", lock.as_str(), "sleep", "600"]).unwrap();
    let is_held = |_: &_| !site.machine.exec(["flock", "-n", lock.as_str(), "true"]).unwrap().success();
    site.machine.wait_until("the lock", LIMIT, is_held).unwrap();
    refused("locked", 26, "locked", &["another update is running"]);
    drop(held);
    site.machine.wait_until("the lock's end", LIMIT, |machine| !is_held(machine)).unwrap();

    let text = site.agent(&["pin"]);
    assert_eq!(text.code, 0, "{text:?}");
    refused("pinned", 25, "pinned", &["1.0.0", "1.1.0", "unpin", "--force"]);
    assert_eq!(site.agent(&["unpin"]).code, 0);
    let bad = r#"{"version":1,"known_bad":[{"version":"1.1.0"}]}"#;
    site.machine.write(format!("{STATE}/state.json"), bad, 0o600, "root").unwrap();
    refused("known bad", 25, "known_bad", &["1.1.0", "history", "--force"]);
    site.machine.check(["rm", &format!("{STATE}/state.json")]).unwrap();

    for (make, says, undo) in [
        (["chmod", "0777", "/usr/local/bin"], "chmod go-w /usr/local/bin", ["chmod", "0755", "/usr/local/bin"]),
        (["chown", "bamf", BINARY], "chown 0 /usr/local/bin/bamf-agent", ["chown", "root", BINARY]),
        (["chmod", "0770", STATE], "chmod go-w /var/lib/bamf-agent-updater", ["chmod", "0700", STATE]),
        (["chown", "bamf", STATE], "chown 0 /var/lib/bamf-agent-updater", ["chown", "root", STATE]),
    ] {
        site.machine.check(make).unwrap();
        refused(says, 22, "not_writable", &[says]);
        site.machine.check(undo).unwrap();
    }

    let status = "/var/lib/dpkg/status";
    let packages = site.machine.read(status).unwrap();
    let entry = "\nPackage: bamf-agent\nStatus: install ok installed\nMaintainer: lab\nArchitecture: all\nVersion: 1.0.0\nDescription: agent\n";
    site.machine.write(status, [&packages, entry.as_bytes()].concat(), 0o644, "root").unwrap();
    site.machine.write("/var/lib/dpkg/info/bamf-agent.list", format!("{BINARY}\n"), 0o644, "root").unwrap();
    refused("a package", 22, "package_managed", &["bamf-agent", "apt-get install --only-upgrade bamf-agent"]);
    site.machine.write(status, packages, 0o644, "root").unwrap();
    site.machine.check(["rm", "/var/lib/dpkg/info/bamf-agent.list"]).unwrap();

    site.machine.remount_read_only("/usr/local/bin").unwrap();
    refused("read-only", 22, "not_writable", &["/usr/local/bin", "read-only"]);
    site.machine.unmount("/usr/local/bin").unwrap();

    site.machine.mount_small_tmpfs(STATE, 1 << 20).unwrap();
    refused("no room for the download", 74, "no_space", &[STATE, "make room"]);
    site.machine.unmount(STATE).unwrap();
    site.machine.mount_small_tmpfs(STATE, 52 << 20).unwrap();
    site.publish(&small(&site).binary(architecture(), vec![7; 60 << 20])).unwrap();
    refused("no room for this download", 74, "no_space", &[STATE]);
    assert_eq!(site.machine.check(["ls", "-A", &format!("{STATE}/staging")]).unwrap(), "", "a full disk is given back");
    site.machine.unmount(STATE).unwrap();
    site.publish(&small(&site)).unwrap();

    let binary = agent_binary("1.0.0");
    let room = binary.metadata().unwrap().len() + (4 << 20);
    site.machine.mount_small_tmpfs("/usr/local/bin", room).unwrap();
    site.machine.copy_in(&binary, BINARY, 0o755).unwrap();
    refused("no room beside the binary", 74, "no_space", &["/usr/local/bin", "make room"]);
    assert!(site.standing().beside.is_empty());
    site.machine.unmount("/usr/local/bin").unwrap();

    for (edit, says) in [
        ((site.key.public_key(), "banana".to_owned()), "trusted_keys"),
        (("platform_url: https".to_owned(), "platform_url: gopher".to_owned()), "platform_url"),
        (("health_timeout: 20s".to_owned(), "health_timeout: soon".to_owned()), "health_timeout"),
        (("platform_url:".to_owned(), "{[".to_owned()), CONFIG),
    ] {
        let good = site.edit_config(|text| text.replace(&edit.0, &edit.1)).unwrap();
        refused("a broken configuration", 78, "config_invalid", &[says]);
        site.edit_config(|_| good).unwrap();
    }

    site.plane.stop_listening();
    refused("the API is away", 69, "api_unreachable", &["platform_url", "try again"]);
    site.plane.resume().unwrap();
    site.connected().unwrap();

    let mut after = site.standing();
    assert!(after.streams_opened > before.streams_opened, "the API was away");
    after.streams_opened = before.streams_opened;
    assert_eq!(after, before);
    assert_eq!(site.plane.joins().len(), 1);
}

/// The patience of the updater is what takes the time here, so its three rows run side by side: looking needs no lock.
#[test]
fn a_source_that_stays_broken_is_given_up_after_some_tries() {
    if or_skip("a_source_that_stays_broken_is_given_up_after_some_tries") {
        return;
    }
    let site = site();
    let before = site.standing();
    site.publish(&small(&site)).unwrap();
    site.releases.inject(&asset(), Fault::CutAfter(10), ALWAYS);
    let broken = ReleaseServer::start(&site.machine.network(), None, Path::new("/nowhere")).unwrap();
    broken.inject("checksums.txt.minisig", Fault::Status(500), ALWAYS);
    let broken_source = broken.source_url();
    // Nobody has listened on port 1 for decades.
    let nobody = "http://127.0.0.1:1/a/b";
    let rows: [(&[&str], i32, &str, &str); 3] = [
        (UPDATE, 21, "truncated", "again and again"),
        (&["update", "--check", "--json", "--source", &broken_source], 69, "source_unreachable", "500"),
        (&["update", "--check", "--json", "--source", nobody], 69, "source_unreachable", nobody),
    ];
    let running = rows.map(|(arguments, ..)| site.agent_command(arguments).spawn().unwrap());
    for ((arguments, exit, reason, says), running) in rows.into_iter().zip(running) {
        let ended = Ended::from(running.wait(2 * LIMIT).unwrap());
        assert_eq!((ended.code, &ended.json["reason"]), (exit, &reason.into()), "{arguments:?}: {ended:?}");
        assert!(ended.json["message"].as_str().unwrap().contains(says), "{arguments:?}: {ended:?}");
    }
    let tried = broken.requests().len();
    assert!((3..=10).contains(&tried), "{tried} tries");
    assert_eq!(site.standing(), before);
}
