//! A machine that has the agent: again, upgrade, repair.

use bamf_lab::binaries::{Defect, defective_binary};
use bamf_lab::machine::or_skip;
use bamf_lab::release::Release;
use bamf_lab::site::{BINARY, CONFIG, Ended, UNIT, architecture};

use crate::scene::{Scene, assert_same};

const UNIT_FILE: &str = "/etc/systemd/system/bamf-agent.service";

#[test]
fn again_changes_nothing_and_restarts_nothing() {
    if or_skip("again_changes_nothing_and_restarts_nothing") {
        return;
    }
    let scene = Scene::new();
    scene.install();
    let (before, standing) = (scene.tree(), scene.site.standing());
    // The same words, and none: an operator who comes back has only the address of the script.
    for flags in [scene.first(&[]), scene.script(&[])] {
        let again = Ended::after(flags);
        assert_eq!(again.code, 0, "{again:?}");
        assert!(again.stdout.contains("nothing was to be done"), "{again:?}");
    }
    assert_eq!(scene.site.standing(), standing);
    assert_same(&before, &scene.tree());
}

#[test]
fn an_upgrade_is_the_agents_own_with_its_watch_and_its_way_back() {
    if or_skip("an_upgrade_is_the_agents_own_with_its_watch_and_its_way_back") {
        return;
    }
    let scene = Scene::new();
    scene.install();
    let certificate = scene.site.certificate();
    let unit = include_str!("../../systemd/bamf-agent.service").replace("LimitCORE=0", "LimitCORE=1");
    scene.publish(&scene.site.release("1.1.0").asset(UNIT, unit.as_str()));
    scene.site.plane.set_version(Some("1.1.0"));
    let ended = Ended::after(scene.script(&[]));
    assert_eq!(ended.code, 0, "{ended:?}\n{}", scene.site.machine.journal(UNIT).unwrap());
    assert_eq!(scene.site.status()["version"], "1.1.0");
    assert_eq!(scene.site.certificate(), certificate);
    assert_eq!(scene.site.machine.property(UNIT, "LimitCORE").unwrap(), "1", "the unit of the new release is in use");
    let history = scene.site.agent(&["history", "--json"]);
    assert_eq!(history.json[0]["outcome"], "updated", "{history:?}");
    let back = scene.site.agent(&["rollback", "--json"]);
    assert_eq!(back.code, 0, "{back:?}");
    assert_eq!(scene.site.plane.joins().len(), 1);
}

#[test]
fn an_upgrade_that_fails_leaves_the_old_version_at_work() {
    if or_skip("an_upgrade_that_fails_leaves_the_old_version_at_work") {
        return;
    }
    let scene = Scene::new();
    scene.install();
    scene.site.edit_config(|text| format!("{text}  health_timeout: 6s\n")).unwrap();
    let broken = Release::new("v1.2.0")
        .binary(architecture(), defective_binary("1.2.0", Defect::ExitsAtOnce))
        .asset(UNIT, include_str!("../../systemd/bamf-agent.service"))
        .signed_by(&scene.site.key);
    scene.publish(&broken);
    scene.site.plane.set_version(Some("1.2.0"));
    let ended = Ended::after(scene.script(&[]));
    assert_eq!(ended.code, 23, "{ended:?}");
    assert!(ended.stderr.contains("1.0.0 runs again"), "{ended:?}");
    scene.site.connected().unwrap();
    assert_eq!(scene.site.status()["version"], "1.0.0");
}

#[test]
fn a_unit_that_the_service_does_not_start_with_makes_room_for_the_one_before() {
    if or_skip("a_unit_that_the_service_does_not_start_with_makes_room_for_the_one_before") {
        return;
    }
    let scene = Scene::new();
    scene.install();
    let before = scene.text(UNIT_FILE);
    let unit = before.replace("\nExecStart=", "\nExecStartPre=/bin/false\nExecStart=");
    scene.publish(&scene.site.release("1.0.0").asset(UNIT, unit.as_str()));
    let ended = Ended::after(scene.script(&[]));
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("the unit of before is back, and the service is active"), "{ended:?}");
    assert_eq!(scene.text(UNIT_FILE), before);
    scene.site.connected().unwrap();
}

#[test]
fn what_is_broken_or_missing_is_put_right() {
    if or_skip("what_is_broken_or_missing_is_put_right") {
        return;
    }
    let scene = Scene::new();
    scene.install();
    let (certificate, installed) = (scene.site.certificate(), scene.site.installed());
    let machine = &scene.site.machine;
    let repair = |what: &str| {
        let ended = Ended::after(scene.script(&[]));
        assert_eq!(ended.code, 0, "{what}: {ended:?}\n{}", machine.journal(UNIT).unwrap());
        assert_eq!(scene.site.installed(), installed, "{what}");
        assert_eq!(scene.site.status()["api"]["connected"], true, "{what}");
        assert_eq!(scene.site.certificate(), certificate, "{what}");
        assert_eq!(scene.about(CONFIG), "root:bamf 640", "{what}");
        assert_eq!(machine.property(UNIT, "UnitFileState").unwrap(), "enabled", "{what}");
    };

    machine
        .check([
            "sh",
            "-c",
            &format!("head -c 4096 {BINARY} >{BINARY}.cut; chmod 755 {BINARY}.cut; mv {BINARY}.cut {BINARY}"),
        ])
        .unwrap();
    repair("a binary that was cut off");

    machine
        .check(["sh", "-c", &format!("cp {BINARY} {BINARY}.new; echo tail >>{BINARY}.new; mv {BINARY}.new {BINARY}")])
        .unwrap();
    repair("a binary that works and is not the one that was signed");

    machine.check(["systemctl", "disable", "--now", UNIT]).unwrap();
    scene.remove(&[UNIT_FILE, "/etc/sysusers.d/bamf-agent.conf"]);
    machine.check(["systemctl", "daemon-reload"]).unwrap();
    machine.check(["userdel", "bamf"]).unwrap();
    machine.check(["chown", "12345:12345", CONFIG]).unwrap();
    repair("no unit, no user, and a configuration of somebody else's");

    machine.check(["sh", "-c", &format!("sed -i s/Type=notify/Type=simple/ {UNIT_FILE}")]).unwrap();
    machine.check(["chmod", "0666", CONFIG]).unwrap();
    repair("a changed unit and a configuration that everybody can write");
    assert_eq!(scene.site.plane.joins().len(), 1);
}
