//! `bamf-agent uninstall` undoes what install.sh did.

use bamf_lab::machine::or_skip;
use bamf_lab::site::{BINARY, CONFIG, Ended, UNIT};

use crate::go_agent;
use crate::scene::{Scene, assert_same, timeless};

#[test]
fn what_was_purged_leaves_the_machine_as_it_was() {
    if or_skip("what_was_purged_leaves_the_machine_as_it_was") {
        return;
    }
    let scene = Scene::new();
    let before = timeless(scene.tree());
    scene.install();
    // An updated agent leaves more: the updater's state, the kept binary.
    scene.offer("1.1.0");
    let updated = scene.site.agent(&["update", "--json"]);
    assert_eq!(updated.code, 0, "{updated:?}");
    let unsure = scene.site.agent(&["uninstall", "--purge"]);
    assert_eq!(unsure.code, 2, "{unsure:?}");
    assert!(unsure.stderr.contains("--yes"), "{unsure:?}");
    scene.site.connected().unwrap();

    let ended = scene.site.agent(&["uninstall", "--purge", "--yes"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("The platform still lists the agent"), "{ended:?}");
    assert_same(&before, &timeless(scene.tree()));
    assert_eq!(scene.site.machine.property(UNIT, "LoadState").unwrap(), "not-found");
    assert!(scene.site.machine.exec(["id", "bamf"]).unwrap().code() != Some(0));
}

#[test]
fn configuration_and_identity_stay_and_the_next_installation_goes_on_with_them() {
    if or_skip("configuration_and_identity_stay_and_the_next_installation_goes_on_with_them") {
        return;
    }
    let scene = Scene::new();
    scene.install();
    let (certificate, config) = (scene.site.certificate(), scene.text(CONFIG));
    let ended = scene.site.agent(&["uninstall"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("kept: /etc/bamf/agent.yaml, /var/lib/bamf-agent"), "{ended:?}");
    assert!(!scene.exists(BINARY) && !scene.exists("/etc/systemd/system/bamf-agent.service"));
    assert!(!scene.exists("/etc/systemd/system/multi-user.target.wants/bamf-agent.service"));
    assert_eq!(scene.about("/var/lib/bamf-agent/agent.key"), "bamf:bamf 600");

    let again = Ended::after(scene.script(&[]));
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!((scene.site.certificate(), scene.text(CONFIG)), (certificate, config));
    assert_eq!(scene.site.plane.joins().len(), 1);
}

#[test]
fn a_removal_that_was_cut_off_anywhere_goes_on_when_it_is_asked_again() {
    if or_skip("a_removal_that_was_cut_off_anywhere_goes_on_when_it_is_asked_again") {
        return;
    }
    let scene = Scene::new();
    let before = timeless(scene.tree());
    let mut cuts = 0;
    for nth in (1..).step_by(2) {
        let first = scene.first(&[]).env("BAMF_INSTALL_TOKEN", scene.site.plane.issue_token(1));
        let installed = Ended::after(first);
        assert_eq!(installed.code, 0, "{installed:?}");
        let inject = format!("inject=unlink,unlinkat,rmdir:signal=SIGKILL:when={nth}");
        let words = ["strace", "-o", "/dev/null", "-e", &inject, BINARY, "uninstall", "--purge", "--yes"];
        let cut = Ended::after(scene.site.machine.command(words));
        if scene.exists(BINARY) {
            let again = scene.site.agent(&["uninstall", "--purge", "--yes"]);
            assert_eq!(again.code, 0, "after a cut at {nth}: {again:?}");
        }
        assert_same(&before, &timeless(scene.tree()));
        scene.site.plane.delete_agent("machine");
        if cut.code == 0 {
            break;
        }
        cuts += 1;
    }
    assert!(cuts >= 4, "only {cuts} cuts");
}

#[test]
fn a_go_agent_that_made_room_is_put_back() {
    if or_skip("a_go_agent_that_made_room_is_put_back") {
        return;
    }
    let scene = Scene::new();
    go_agent::by_hand(&scene);
    let (binary, unit) = (scene.text(BINARY), scene.text("/etc/systemd/system/bamf-agent.service"));
    let (source, key) = (scene.site.releases.source_url(), scene.site.key.public_key());
    let installed = Ended::after(scene.script(&["--source", &source, "--trusted-key", &key]));
    assert_eq!(installed.code, 0, "{installed:?}");
    let ended = scene.site.agent(&["uninstall"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!((scene.text(BINARY), scene.text("/etc/systemd/system/bamf-agent.service")), (binary, unit));
    for path in [format!("{BINARY}.go-agent"), format!("/etc/systemd/system/{UNIT}.go-agent")] {
        assert!(!scene.exists(&path), "{path}");
    }
    assert_eq!(scene.site.machine.property(UNIT, "ActiveState").unwrap(), "inactive");
    assert!(scene.exists("/var/lib/bamf-agent/agent.key"));
}

#[test]
fn what_belongs_to_others_and_who_is_not_root_are_told_so_and_nothing_is_removed() {
    if or_skip("what_belongs_to_others_and_who_is_not_root_are_told_so_and_nothing_is_removed") {
        return;
    }
    let scene = Scene::new();
    scene.install();
    let standing = scene.site.standing();
    let before = scene.tree();
    let stranger = Ended::after(scene.site.agent_command(&["uninstall"]).user("nobody"));
    assert_eq!(stranger.code, 77, "{stranger:?}");
    let machine = &scene.site.machine;
    machine.write("/usr/lib/bamf-agent/install-method", "deb\n", 0o644, "root").unwrap();
    let packaged = scene.site.agent(&["uninstall"]);
    assert_eq!(packaged.code, 22, "{packaged:?}");
    assert!(packaged.stderr.contains("apt-get remove bamf-agent"), "{packaged:?}");
    scene.remove(&["/usr/lib/bamf-agent"]);
    machine.check(["install", "-d", "-m", "0700", "/var/lib/bamf-agent-updater"]).unwrap();
    let held = machine.spawn(["flock", "/var/lib/bamf-agent-updater/lock", "sleep", "600"]).unwrap();
    let locked =
        |_: &_| machine.exec(["flock", "-n", "/var/lib/bamf-agent-updater/lock", "true"]).unwrap().code() == Some(1);
    machine.wait_until("the lock is held", std::time::Duration::from_secs(20), locked).unwrap();
    let busy = scene.site.agent(&["uninstall"]);
    assert_eq!(busy.code, 26, "{busy:?}");
    drop(held);
    assert_eq!(scene.site.standing(), standing);
    let ours = |tree: crate::scene::Tree| -> crate::scene::Tree {
        tree.into_iter().filter(|(path, _)| !path.contains("/bamf-agent-updater")).collect()
    };
    assert_same(&ours(before), &ours(scene.tree()));
}
