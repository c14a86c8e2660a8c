//! From one command on a fresh machine to nothing left on it, by releases that the release script has made.

use bamf_lab::machine::{Machine, or_skip};
use bamf_lab::site::Ended;

use super::scene::{Scene, assert_same, timeless};
use super::{Desk, architecture};

/// Copies a release into the machine.
fn carry(machine: &Machine, desk: &Desk, tag: &str) {
    for entry in std::fs::read_dir(desk.path("out").join(tag)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        machine.copy_in(&path, format!("/mnt/releases/{tag}/{name}"), 0o644).unwrap();
    }
}

#[test]
fn a_machine_is_installed_from_one_release_updated_to_the_next_and_left_without_a_trace() {
    let name = "a_machine_is_installed_from_one_release_updated_to_the_next_and_left_without_a_trace";
    if or_skip(name) {
        return;
    }
    let Some(desk) = Desk::new(name) else { return };
    for version in ["1.2.0", "1.3.0"] {
        desk.prebuild(version);
        let tag = format!("v{version}");
        let line = ["--version", &tag, "--out", "out", "--arch", architecture(), "--prebuilt", "prebuilt"];
        let made = desk.release(&[&line[..], &["--key", "one.key"]].concat());
        assert!(made.success, "{}", made.said);
    }
    let scene = Scene::new();
    let machine = &scene.site.machine;
    carry(machine, &desk, "v1.2.0");
    scene.site.plane.set_version(Some("1.2.0"));
    let before = scene.tree();

    let (url, key) = (scene.site.plane.url(), desk.public("one"));
    let line = format!(
        "sh </mnt/releases/v1.2.0/install.sh -s -- --platform-url {url} --source /mnt/releases --trusted-key {key}"
    );
    let installing = machine.command(["sh", "-c", &line]).env("BAMF_INSTALL_TOKEN", &scene.site.token);
    let ended = Ended::after(installing.limit(std::time::Duration::from_secs(200)));
    assert_eq!(ended.code, 0, "{ended:?}");
    let status = scene.site.status();
    assert_eq!((&status["version"], &status["api"]["connected"]), (&"1.2.0".into(), &true.into()), "{status}");

    carry(machine, &desk, "v1.3.0");
    scene.site.plane.set_version(Some("1.3.0"));
    let ended = scene.site.agent(&["update", "--json"]);
    assert_eq!((ended.code, &ended.json["outcome"]), (0, &"updated".into()), "{ended:?}");
    let status = scene.site.status();
    assert_eq!((&status["version"], &status["api"]["connected"]), (&"1.3.0".into(), &true.into()), "{status}");
    assert_eq!(scene.site.plane.joins().len(), 1);

    let ended = scene.site.agent(&["uninstall", "--purge", "--yes"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_same(&timeless(before), &timeless(scene.tree()));
}
