//! A machine that never had an agent.

use bamf_lab::machine::or_skip;
use bamf_lab::site::{BINARY, CONFIG, Ended, UNIT};

use crate::scene::{Scene, assert_same, timeless};

#[test]
fn a_fresh_machine_is_connected_by_one_command() {
    if or_skip("a_fresh_machine_is_connected_by_one_command") {
        return;
    }
    let scene = Scene::new();
    let ended = scene.install();
    let status = scene.site.status();
    assert_eq!((&status["version"], &status["api"]["connected"]), (&"1.0.0".into(), &true.into()), "{status}");
    assert_eq!(scene.site.plane.joins().len(), 1);
    assert_eq!(scene.about(BINARY), "root:root 755");
    assert_eq!(scene.about(CONFIG), "root:bamf 640");
    assert_eq!(scene.about("/etc/systemd/system/bamf-agent.service"), "root:root 644");
    assert_eq!(scene.about("/var/lib/bamf-agent"), "bamf:bamf 700");
    assert_eq!(scene.site.machine.property(UNIT, "UnitFileState").unwrap(), "enabled");
    for word in ["verified", "/etc/bamf/agent.yaml", "is connected to https://localhost", "Next:", "uninstall"] {
        assert!(ended.stdout.replace("checked", "verified").contains(word), "{word} is not in {}", ended.stdout);
    }
    // Later updates come from the same place under the same trust.
    scene.offer("1.1.0");
    let updated = scene.site.agent(&["update", "--json"]);
    assert_eq!((updated.code, &updated.json["to"]), (0, &"1.1.0".into()), "{updated:?}");
}

#[test]
fn the_token_is_seen_by_nobody_and_stays_nowhere() {
    if or_skip("the_token_is_seen_by_nobody_and_stays_nowhere") {
        return;
    }
    let scene = Scene::new();
    let (url, source, key) = (scene.site.plane.url(), scene.site.releases.source_url(), scene.site.key.public_key());
    scene.site.machine.write("/root/install.sh", crate::scene::SCRIPT, 0o755, "root").unwrap();
    let flags = ["/root/install.sh", "--platform-url", &url, "--source", &source, "--trusted-key", &key];
    let strace = ["strace", "-f", "-v", "-s", "65536", "-e", "trace=execve", "-o", "/root/trace", "sh"];
    let traced = scene.site.machine.command([&strace[..], &flags].concat());
    let ended =
        Ended::after(traced.env("BAMF_INSTALL_TOKEN", &scene.site.token).limit(std::time::Duration::from_secs(300)));
    assert_eq!(ended.code, 0, "{ended:?}");
    let trace = scene.text("/root/trace");
    // The first line is the script itself, which has it in its environment.
    let others: Vec<&str> = trace.lines().skip(1).collect();
    assert!(trace.lines().next().unwrap().contains(&scene.site.token) && others.len() > 50, "{trace}");
    assert!(!others.iter().any(|line| line.contains(&scene.site.token)), "a command line or an environment has it");
    let places = ["grep", "-rl", &scene.site.token, "/etc", "/var/lib", "/usr/local", "/tmp", "/run/bamf-agent"];
    assert_eq!(scene.site.machine.exec(places).unwrap().stdout, "", "a file has it");
    assert!(!ended.stdout.contains(&scene.site.token) && !ended.stderr.contains(&scene.site.token));
}

#[test]
fn without_a_token_it_says_how_to_join_and_the_next_run_starts_it() {
    if or_skip("without_a_token_it_says_how_to_join_and_the_next_run_starts_it") {
        return;
    }
    let scene = Scene::new();
    let ended = Ended::after(scene.first(&[]));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("neither a certificate nor a join token"), "{ended:?}");
    assert!(ended.stdout.contains("bamf-agent join --token-file"), "{ended:?}");
    assert_eq!(scene.site.machine.property(UNIT, "ActiveState").unwrap(), "inactive");

    let refused = Ended::after(scene.script(&["--token", "bamf_00000000000000000000000000000000"]));
    assert_eq!(refused.code, 78, "{refused:?}");
    assert!(refused.stderr.contains("does not accept the join token"), "{refused:?}");

    let joined = Ended::after(scene.script(&["--token", &scene.site.token]));
    assert_eq!(joined.code, 0, "{joined:?}");
    assert_eq!(scene.site.status()["api"]["connected"], true);
}

#[test]
fn an_image_is_prepared_without_a_start_and_joins_at_its_first_boot() {
    if or_skip("an_image_is_prepared_without_a_start_and_joins_at_its_first_boot") {
        return;
    }
    let mut scene = Scene::new();
    let ended = Ended::after(scene.first(&["--no-start", "--token", &scene.site.token]));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(scene.site.machine.property(UNIT, "ActiveState").unwrap(), "inactive");
    assert_eq!(scene.site.plane.join_attempts(), 0);
    assert_eq!(scene.about("/etc/bamf/agent.env"), "root:root 600");

    scene.site.machine.reboot(bamf_lab::machine::Down::Clean).unwrap();
    scene.site.connected().unwrap();
    assert_eq!(scene.site.plane.joins().len(), 1);
    // Not needed any more, so it does not stay.
    let again = Ended::after(scene.script(&[]));
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.stdout.contains("took the join token out"), "{again:?}");
    assert!(!scene.exists("/etc/bamf/agent.env"));
}

#[test]
fn another_prefix_is_served_by_the_unit_and_found_again() {
    if or_skip("another_prefix_is_served_by_the_unit_and_found_again") {
        return;
    }
    let scene = Scene::new();
    let first = scene.first(&["--prefix", "/opt/bamf"]).env("BAMF_INSTALL_TOKEN", &scene.site.token);
    let ended = Ended::after(first);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(scene.exists("/opt/bamf/bin/bamf-agent") && !scene.exists(BINARY));
    scene.offer("1.1.0");
    let again = Ended::after(scene.script(&[]));
    assert_eq!(again.code, 0, "{again:?}");
    let version = scene.site.machine.check(["/opt/bamf/bin/bamf-agent", "--version"]).unwrap();
    assert!(version.starts_with("bamf-agent 1.1.0 "), "{version}");
    assert!(!scene.exists(BINARY));
}

#[test]
fn a_directory_is_a_source_and_flags_are_variables() {
    if or_skip("a_directory_is_a_source_and_flags_are_variables") {
        return;
    }
    let scene = Scene::new();
    let tag = scene.site.machine.path("/srv/media/it's here/v1.0.0");
    std::fs::create_dir_all(&tag).unwrap();
    for entry in std::fs::read_dir(scene.site.published().join("v1.0.0")).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, tag.join(from.file_name().unwrap())).unwrap();
    }
    let asked = scene.site.releases.requests().len();
    let script = scene
        .script(&[])
        .env("BAMF_INSTALL_PLATFORM_URL", scene.site.plane.url())
        .env("BAMF_INSTALL_SOURCE", "/srv/media/it's here/")
        .env("BAMF_INSTALL_TRUSTED_KEY", scene.site.key.public_key())
        .env("BAMF_INSTALL_TOKEN", &scene.site.token);
    let ended = Ended::after(script);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(scene.site.releases.requests().len(), asked);
    let shown = scene.site.agent(&["config", "show"]);
    assert!(shown.stdout.contains("/srv/media/it's here "), "{shown:?}");
}

#[test]
fn a_machine_that_is_told_no_platform_is_prepared_and_told_what_is_missing() {
    if or_skip("a_machine_that_is_told_no_platform_is_prepared_and_told_what_is_missing") {
        return;
    }
    let scene = Scene::new();
    let (source, key) = (scene.site.releases.source_url(), scene.site.key.public_key());
    let flags = ["--source", &source, "--trusted-key", &key];
    let which = Ended::after(scene.script(&flags));
    assert_eq!(which.code, 2, "{which:?}");
    assert!(which.stderr.contains("which platform?"), "{which:?}");
    let ended = Ended::after(scene.script(&[&flags[..], &["--version", "1.0.0"]].concat()));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("Next: set platform_url in /etc/bamf/agent.yaml"), "{ended:?}");
    let url = scene.site.plane.url();
    scene
        .site
        .edit_config(|text| text.replace("#platform_url: https://bamf.example.com", &format!("platform_url: {url}")))
        .unwrap();
    let joined = Ended::after(scene.script(&["--token", &scene.site.token]));
    assert_eq!(joined.code, 0, "{joined:?}");
}

#[test]
fn a_person_is_asked_and_may_say_no_and_a_pipe_is_not_asked() {
    if or_skip("a_person_is_asked_and_may_say_no_and_a_pipe_is_not_asked") {
        return;
    }
    let scene = Scene::new();
    let machine = &scene.site.machine;
    machine.write("/root/install.sh", crate::scene::SCRIPT, 0o755, "root").unwrap();
    let before = scene.tree();
    // The script comes through a pipe and the answer from the terminal, which script(1) plays; it is typed ahead.
    let answered = |answer: &str, flags: &str| {
        let (url, source) = (scene.site.plane.url(), scene.site.releases.source_url());
        let line = format!(
            "cat /root/install.sh | sh -s -- --platform-url {url} --source {source} --trusted-key {} --no-start {flags}",
            scene.site.key.public_key()
        );
        let play = format!("printf '{answer}\\n' | script -qec '{line}' /dev/null");
        Ended::after(machine.command(["sh", "-c", &play]))
    };
    let no = answered("n", "");
    assert_eq!(no.code, 1, "{no:?}");
    assert!(no.stdout.contains("Go on? [Y/n]") && no.stdout.contains("nothing was changed"), "{no:?}");
    assert_same(&before, &scene.tree());
    let unasked = answered("n", "--yes");
    assert_eq!(unasked.code, 0, "{unasked:?}");
    assert!(!unasked.stdout.contains("Go on?"), "{unasked:?}");
}

#[test]
fn every_sh_does_the_same() {
    if or_skip("every_sh_does_the_same") {
        return;
    }
    let scene = Scene::new();
    let (url, source, key) = (scene.site.plane.url(), scene.site.releases.source_url(), scene.site.key.public_key());
    let flags = ["-s", "--", "--platform-url", &url, "--source", &source, "--trusted-key", &key, "--no-start"];
    let mut trees = Vec::new();
    for shell in [&["dash"][..], &["bash", "--posix"], &["busybox", "sh"]] {
        if !scene.exists(&format!("/usr/bin/{}", shell[0])) {
            continue;
        }
        let command = scene.site.machine.command([shell, &flags].concat()).input(crate::scene::SCRIPT);
        let ended = Ended::after(command.limit(std::time::Duration::from_secs(120)));
        assert_eq!(ended.code, 0, "{shell:?}: {ended:?}");
        assert_eq!(ended.stderr, "", "{shell:?}");
        trees.push(timeless(scene.tree()));
        let removed = scene.site.agent(&["uninstall", "--purge", "--yes"]);
        assert_eq!(removed.code, 0, "{removed:?}");
    }
    assert!(trees.len() >= 2 && trees.windows(2).all(|pair| pair[0] == pair[1]), "{trees:?}");
}
