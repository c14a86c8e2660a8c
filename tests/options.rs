//! What the updater's options and sources do, on real systemd with the real binary: the ways that must work beside the
//! straight one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use bamf_lab::binaries::agent_binary;
use bamf_lab::machine::or_skip;
use bamf_lab::release::{Damage, Fault, ReleaseServer, SigningKey};
use bamf_lab::site::{Ended, Site, UNIT, architecture};
use serde_json::{Value, json};

const STATE: &str = "/var/lib/bamf-agent-updater";

/// 1.0.0 runs and is connected, the API is at 1.1.0, and so is the newest release.
fn site() -> Site {
    let site = Site::running("1.1.0").unwrap();
    site.publish(&site.release("1.1.0")).unwrap();
    site
}

fn asset() -> String {
    format!("bamf-agent-linux-{}", architecture())
}

#[track_caller]
fn expect(ended: &Ended, code: i32, fields: &[(&str, Value)]) {
    assert_eq!(ended.code, code, "{ended:?}");
    for (name, value) in fields {
        assert_eq!(ended.json[*name], *value, "{name} of {ended:?}");
    }
}

/// Everything but the swap.
const DRY: &[&str] = &["update", "--dry-run", "--json"];

#[track_caller]
fn expect_dry(ended: &Ended) {
    expect(ended, 0, &[("outcome", "available".into()), ("from", "1.0.0".into()), ("to", "1.1.0".into())]);
}

/// Forgets what earlier downloads left.
fn empty_staging(site: &Site) {
    site.machine.check(["rm", "-rf", &format!("{STATE}/staging")]).unwrap();
}

#[test]
fn looking_and_trying_change_nothing_wherever_releases_come_from() {
    if or_skip("looking_and_trying_change_nothing_wherever_releases_come_from") {
        return;
    }
    let site = site();
    let before = site.standing();
    let size = agent_binary("1.1.0").metadata().unwrap().len();
    looking_needs_no_root(&site);
    expect_dry(&site.agent(DRY));
    a_broken_download_goes_on(&site, size);
    a_busy_server_is_asked_again(&site, size);
    a_missing_tag_costs_one_listing(&site);
    a_directory_is_a_source(&site);
    a_mirror_needs_no_rest_api(&site);
    an_assumed_version_only_fills_silence(&site);
    two_signatures_where_two_are_required(&site);
    assert_eq!(site.standing(), before);
    assert_eq!(site.agent(&["history", "--json"]).json, json!([]));
    assert_eq!(site.plane.joins().len(), 1);
}

fn looking_needs_no_root(site: &Site) {
    let look = Ended::after(site.agent_command(&["update", "--check", "--json"]).user("bamf"));
    expect(&look, 10, &[("outcome", "available".into()), ("to", "1.1.0".into()), ("api_version", "1.1.0".into())]);
    assert!(!site.machine.path(STATE).exists(), "looking made the updater's directory");
    assert_eq!(site.releases.rest_calls(), 0);
}

fn a_broken_download_goes_on(site: &Site, size: u64) {
    const CUT_AT: u64 = 20 << 20;
    empty_staging(site);
    let (sent, seen) = (site.releases.bytes_sent(), site.releases.requests().len());
    site.releases.inject(&asset(), Fault::CutAfter(CUT_AT), 1);
    let ended = site.agent(DRY);
    expect_dry(&ended);
    expect(&ended, 0, &[("downloaded_bytes", size.into())]);
    let ranges: Vec<_> = site.releases.requests()[seen..].iter().filter_map(|request| request.range.clone()).collect();
    assert!(!ranges.is_empty(), "the rest was not asked for");
    let sent = site.releases.bytes_sent() - sent;
    assert!(sent < size + CUT_AT / 2, "{sent} bytes were sent for a file of {size}");

    let again = site.agent(DRY);
    expect_dry(&again);
    expect(&again, 0, &[("downloaded_bytes", 0.into())]);
}

fn a_busy_server_is_asked_again(site: &Site, size: u64) {
    empty_staging(site);
    site.releases.inject(&asset(), Fault::RetryAfter(503, "1".into()), 1);
    site.releases.inject("checksums.txt", Fault::Status(502), 1);
    let ended = site.agent(DRY);
    expect_dry(&ended);
    expect(&ended, 0, &[("downloaded_bytes", size.into())]);
}

fn a_missing_tag_costs_one_listing(site: &Site) {
    site.plane.set_version(Some("1.1.7"));
    let before = site.releases.rest_calls();
    let seen = site.releases.requests().len();
    for _ in 0..2 {
        let ended = site.agent(DRY);
        expect_dry(&ended);
        expect(&ended, 0, &[("api_version", "1.1.7".into())]);
    }
    let listings: Vec<_> =
        site.releases.requests().into_iter().skip(seen).filter(|request| request.path.starts_with("/api/")).collect();
    assert_eq!(site.releases.rest_calls() - before, 2, "{listings:?}");
    assert_eq!(listings.iter().map(|request| request.if_none_match.is_some()).collect::<Vec<_>>(), [false, true]);
    site.plane.set_version(Some("1.1.0"));
}

fn a_directory_is_a_source(site: &Site) {
    empty_staging(site);
    let requests = site.releases.requests().len();
    let release = tempfile::tempdir().unwrap();
    let written = site.release("1.1.0").write(release.path()).unwrap();
    for entry in written.read_dir().unwrap() {
        let path = entry.unwrap().path();
        site.machine.copy_in(&path, Path::new("/srv/releases/v1.1.0").join(path.file_name().unwrap()), 0o644).unwrap();
    }
    let ended = site.agent(&["update", "--dry-run", "--json", "--source", "/srv/releases"]);
    expect_dry(&ended);
    expect(&ended, 0, &[("source", "/srv/releases".into())]);
    assert_eq!(site.releases.requests().len(), requests, "the server was asked all the same");

    let listed = "/srv/releases/v1.1.0/checksums.txt";
    let binary = format!("/srv/releases/v1.1.0/{}", asset());
    let verify = |rest: &[&str]| site.agent(&[&["verify", "--checksums", listed], rest].concat());
    let good = verify(&["--tag", "v1.1.0", &binary]);
    assert_eq!(good.code, 0, "{good:?}");
    assert!(good.stdout.contains("authentic, of release v1.1.0"), "{good:?}");
    let other_tag = verify(&["--tag", "1.0.5", &binary]);
    assert_eq!(other_tag.code, 21, "{other_tag:?}");
    assert!(other_tag.stderr.contains("v1.0.5") && other_tag.stderr.contains("v1.1.0"), "{other_tag:?}");
    site.machine.check(["sh", "-c", "printf x >>\"$0\"", &binary]).unwrap();
    let corrupted = verify(&[&binary]);
    assert_eq!((corrupted.code, corrupted.stdout.as_str()), (21, ""), "{corrupted:?}");
    let ended = site.agent(&["update", "--dry-run", "--json", "--source", "/srv/releases"]);
    expect(&ended, 21, &[("reason", "bad_checksum".into())]);
}

fn a_mirror_needs_no_rest_api(site: &Site) {
    let directory = tempfile::tempdir().unwrap();
    site.release("1.1.0").write(directory.path()).unwrap();
    let mirror = ReleaseServer::mirror(&site.machine.network(), None, directory.path()).unwrap();
    let source = mirror.source_url();
    let dry = ["update", "--dry-run", "--json", "--source", source.as_str()];
    expect_dry(&site.agent(&dry));
    site.plane.set_version(Some("1.1.7"));
    let ended = site.agent(&dry);
    assert_eq!(ended.code, 69, "{ended:?}");
    assert!(ended.json["message"].as_str().unwrap().contains("--version"), "{ended:?}");
    expect_dry(&site.agent(&[&dry[..], &["--version", "1.1.0"]].concat()));
    site.plane.set_version(Some("1.1.0"));
}

fn an_assumed_version_only_fills_silence(site: &Site) {
    let look = ["update", "--check", "--json", "--assume-api-version"];
    let conflict = site.agent(&[&look[..], &["1.0.0"]].concat());
    expect(&conflict, 10, &[("api_version", "1.1.0".into()), ("to", "1.1.0".into())]);
    assert!(conflict.stderr.contains("1.0.0 is ignored"), "{conflict:?}");
    site.plane.set_version(None);
    let assumed = site.agent(&[&look[..], &["1.1.0"]].concat());
    expect(&assumed, 10, &[("api_version", "1.1.0".into()), ("to", "1.1.0".into())]);
    let good = site.edit_config(|text| format!("{text}  assume_api_version: 1.0.0\n")).unwrap();
    let configured = site.agent(&["update", "--check", "--json"]);
    assert_ne!(configured.json["to"], "1.1.0", "{configured:?}");
    site.edit_config(|_| good).unwrap();
    site.plane.set_version(Some("1.1.0"));
}

fn two_signatures_where_two_are_required(site: &Site) {
    let second = SigningKey::generate();
    let (one, two) = (site.key.public_key(), second.public_key());
    let both = |text: &str| format!("{}  required_signatures: 2\n", text.replace(&one, &format!("{one}, {two}")));
    let good = site.edit_config(both).unwrap();
    let ended = site.agent(DRY);
    expect(&ended, 21, &[("reason", "bad_signature".into())]);
    assert!(ended.json["message"].as_str().unwrap().contains("1 of the 2"), "{ended:?}");
    site.publish(&site.release("1.1.0").signed_by(&second)).unwrap();
    expect_dry(&site.agent(DRY));
    let name = format!("checksums.txt.{}.minisig", second.key_id_hex());
    site.publish(&site.release("1.1.0").signed_by(&second).damaged(&name, Damage::FlippedBit)).unwrap();
    expect(&site.agent(DRY), 21, &[("reason", "bad_signature".into())]);
    site.edit_config(|_| good).unwrap();
}

#[test]
fn the_operator_may_restart_later_step_down_and_go_back_and_history_tells_all_of_it() {
    if or_skip("the_operator_may_restart_later_step_down_and_go_back_and_history_tells_all_of_it") {
        return;
    }
    let site = site();
    let (first, pid, certificate) = (site.installed(), site.status()["pid"].clone(), site.certificate());

    // Installed, running on, and taken back again before anybody started it.
    let later = ["update", "--no-restart", "--json"];
    let ended = site.agent(&later);
    expect(&ended, 0, &[("outcome", "updated".into()), ("to", "1.1.0".into())]);
    assert!(ended.json["message"].as_str().unwrap().contains("systemctl restart bamf-agent.service"), "{ended:?}");
    assert_ne!(site.installed(), first);
    let status = site.status();
    assert_eq!((&status["pid"], &status["version"]), (&pid, &"1.0.0".into()));
    assert_ne!(status["update"]["state"], "idle", "{status}");
    let back = site.agent(&["rollback", "--no-restart", "--json"]);
    expect(&back, 0, &[("outcome", "rolled_back".into()), ("from", "1.1.0".into()), ("to", "1.0.0".into())]);
    assert_eq!((site.installed(), &site.status()["pid"]), (first.clone(), &pid));

    // Installed, started by the operator, and confirmed by the next update.
    expect(&site.agent(&[&later[..], &["--force"]].concat()), 0, &[("outcome", "updated".into())]);
    expect(&site.agent(&["update", "--json"]), 0, &[("outcome", "updated".into())]);
    assert_eq!(site.status()["version"], "1.0.0", "nobody restarted it");
    site.machine.check(["systemctl", "restart", UNIT]).unwrap();
    site.connected().unwrap();
    let confirmed = site.agent(&["update", "--json"]);
    expect(&confirmed, 0, &[("outcome", "updated".into()), ("from", "1.0.0".into()), ("to", "1.1.0".into())]);
    let status = site.status();
    assert_eq!((&status["version"], &status["update"]["state"]), (&"1.1.0".into(), &"idle".into()), "{status}");
    assert_eq!(status["update"]["last"]["outcome"], "updated", "{status}");
    expect(&site.agent(&["update", "--json"]), 0, &[("outcome", "up_to_date".into())]);

    // The API went back, and the agent follows when it is told to.
    site.plane.set_version(Some("1.0.5"));
    site.publish(&site.release("1.0.5")).unwrap();
    expect(&site.agent(&["update", "--json"]), 25, &[("reason", "older_than_installed".into())]);
    let down = site.agent(&["update", "--allow-downgrade", "--json"]);
    expect(&down, 0, &[("outcome", "updated".into()), ("from", "1.1.0".into()), ("to", "1.0.5".into())]);
    assert_eq!(site.status()["version"], "1.0.5");

    let history = site.agent(&["history", "--json"]);
    let told: Vec<_> = history.json.as_array().unwrap().iter().map(line).collect();
    assert_eq!(
        told,
        ["rollback 1.1.0 1.0.0 rolled_back", "update 1.0.0 1.1.0 updated", "update 1.1.0 1.0.5 updated",],
        "{history:?}"
    );
    assert!(history.json.as_array().unwrap().iter().all(|record| record["by"] == "root" && record["at"] != ""));
    let text = site.agent(&["history"]);
    assert!(text.stdout.contains("1.1.0 -> 1.0.5"), "{text:?}");
    let refused = Ended::after(site.agent_command(&["history", "--json"]).user("bamf"));
    assert_eq!(refused.code, 77, "{refused:?}");
    assert_eq!(site.certificate(), certificate);
    assert_eq!(site.plane.joins().len(), 1);
    assert_eq!(site.standing().beside, [".bamf-agent.previous"]);
    assert!(site.machine.check(["ls", &format!("{STATE}/staging")]).unwrap().is_empty());
}

fn line(record: &Value) -> String {
    let word = |name: &str| record[name].as_str().unwrap_or("?").to_owned();
    format!("{} {} {} {}", word("action"), word("from"), word("to"), word("outcome"))
}
