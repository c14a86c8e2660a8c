//! A machine that the Go agent serves: its identity and its configuration are kept, its unit makes room, and there is a way
//! back.

use std::time::{Duration, SystemTime};

use bamf_lab::machine::or_skip;
use bamf_lab::site::{BINARY, Ended, UNIT};

use crate::scene::{Scene, assert_same};

/// Stands for the Go agent: it knows `--config` and `--debug` and no other flag, and it runs until it is stopped.
const GO_AGENT: &str = "#!/bin/sh\ncase $* in *version*) echo 'flag provided but not defined: -version' >&2; exit 2 ;; esac\n\
    exec sleep 100000\n";
/// What its Linux packages install (protocol 14).
const PACKAGED_UNIT: &str = "[Unit]\nDescription=BAMF agent\nAfter=network-online.target\n\n[Service]\nUser=bamf\nGroup=bamf\n\
    ExecStart=/usr/bin/bamf-agent --config /etc/bamf/agent.yaml\nRestart=on-failure\nRestartSec=5s\nLimitNOFILE=65536\n\
    StateDirectory=bamf-agent\n\n[Install]\nWantedBy=multi-user.target\n";
const ADD_USER: &str = "useradd --system --user-group --home-dir /var/lib/bamf-agent --no-create-home --shell \
    /usr/sbin/nologin";

/// An identity that the platform has known for long, in the files of `user`. Returns its certificate's fingerprint.
fn identity(scene: &Scene, user: &str) -> String {
    let now = SystemTime::now();
    let identity = scene.site.plane.ca().identity("edge-1", now, now + Duration::from_secs(86_400)).unwrap();
    scene.site.plane.register(&identity);
    let machine = &scene.site.machine;
    machine.check(["install", "-d", "-m", "0700", "-o", user, "-g", user, "/var/lib/bamf-agent"]).unwrap();
    let owner = format!("{user}:{user}");
    for (name, text, mode) in [
        ("agent.crt", &identity.certificate_pem, 0o600),
        ("agent.key", &identity.private_key_pem, 0o600),
        ("ca.crt", &identity.ca_pem, 0o644),
    ] {
        machine.write(format!("/var/lib/bamf-agent/{name}"), text, mode, &owner).unwrap();
    }
    identity.sha256
}

/// The Go agent from a Debian package, at work.
fn packaged(scene: &Scene) -> String {
    let machine = &scene.site.machine;
    let yaml = format!("platform_url: {}\nagent_name: edge-1\nzone: public\n", scene.site.plane.url());
    let control = "Package: bamf-agent\nVersion: 0.11.0\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\n\
        Description: stands for the Go agent\n";
    let preinst = format!("#!/bin/sh\nset -e\ngetent passwd bamf >/dev/null || {ADD_USER} bamf\n");
    let prerm = "#!/bin/sh\nsystemctl stop bamf-agent\nsystemctl disable bamf-agent\n";
    for (path, text, mode) in [
        ("DEBIAN/control", control, 0o644),
        ("DEBIAN/conffiles", "/etc/bamf/agent.yaml\n", 0o644),
        ("DEBIAN/preinst", preinst.as_str(), 0o755),
        ("DEBIAN/prerm", prerm, 0o755),
        ("usr/bin/bamf-agent", GO_AGENT, 0o755),
        ("lib/systemd/system/bamf-agent.service", PACKAGED_UNIT, 0o644),
        ("etc/bamf/agent.yaml", yaml.as_str(), 0o644),
    ] {
        machine.write(format!("/root/package/{path}"), text, mode, "root").unwrap();
    }
    machine.check(["chmod", "-R", "go-w,a+rX", "/root/package"]).unwrap();
    machine.check(["dpkg-deb", "--build", "/root/package", "/root/bamf-agent.deb"]).unwrap();
    machine.check(["dpkg", "--install", "/root/bamf-agent.deb"]).unwrap();
    let certificate = identity(scene, "bamf");
    machine.check(["systemctl", "daemon-reload"]).unwrap();
    machine.check(["systemctl", "enable", "--now", UNIT]).unwrap();
    certificate
}

/// The Go agent as its documentation installs it by hand, with a user, a configuration and variables of its own.
pub(crate) fn by_hand(scene: &Scene) -> String {
    let machine = &scene.site.machine;
    machine.check(["sh", "-c", &format!("{ADD_USER} bamf-agent")]).unwrap();
    machine.write(BINARY, GO_AGENT, 0o755, "root").unwrap();
    let unit = PACKAGED_UNIT
        .replace("=bamf\n", "=bamf-agent\n")
        .replace(
            "/usr/bin/bamf-agent --config /etc/bamf/agent.yaml",
            "/usr/local/bin/bamf-agent -config /etc/bamf-agent/a.yaml",
        )
        .replace(
            "StateDirectory",
            &format!(
                "Environment=BAMF_PLATFORM_URL={} OTHER=x\nEnvironmentFile=-/etc/default/bamf-agent\nStateDirectory",
                scene.site.plane.url()
            ),
        );
    machine.write(format!("/etc/systemd/system/{UNIT}"), unit, 0o644, "root").unwrap();
    machine.write("/etc/default/bamf-agent", "BAMF_ZONE=\"internal\"\n", 0o644, "root").unwrap();
    machine
        .write("/etc/bamf-agent/a.yaml", "agent_name: edge-1\nlabels: {site: ams}\n", 0o600, "bamf-agent:bamf-agent")
        .unwrap();
    let certificate = identity(scene, "bamf-agent");
    machine.check(["systemctl", "daemon-reload"]).unwrap();
    machine.check(["systemctl", "enable", "--now", UNIT]).unwrap();
    certificate
}

/// What the installer printed as the way back, done.
fn go_back(scene: &Scene, ended: &Ended) {
    let (_, way) = ended.stdout.split_once("The way back:\n").unwrap_or_else(|| panic!("{ended:?}"));
    let commands: Vec<String> = way
        .lines()
        .take_while(|line| line.starts_with("  sudo "))
        .map(|line| line.trim().replace("sudo ", ""))
        .collect();
    assert!(!commands.is_empty(), "{ended:?}");
    scene.site.machine.check(["sh", "-ec", &commands.join("\n")]).unwrap();
}

fn runs(scene: &Scene) -> String {
    let pid = scene.site.machine.main_pid(UNIT).unwrap().expect("the service runs");
    scene.site.machine.check(["readlink", &format!("/proc/{pid}/exe")]).unwrap().trim().to_owned()
}

#[test]
fn the_go_agents_package_makes_room_and_can_come_back() {
    if or_skip("the_go_agents_package_makes_room_and_can_come_back") {
        return;
    }
    let scene = Scene::new();
    let certificate = packaged(&scene);
    let config = scene.text("/etc/bamf/agent.yaml");
    let ended = Ended::after(scene.first(&[]));
    assert_eq!(ended.code, 0, "{ended:?}\n{}", scene.site.machine.journal(UNIT).unwrap());
    assert_eq!(scene.site.certificate(), certificate);
    assert_eq!(scene.site.status()["api"]["connected"], true);
    assert_eq!((scene.site.plane.join_attempts(), runs(&scene)), (0, BINARY.to_owned()));
    assert_eq!(scene.text("/etc/bamf/agent.yaml"), config);
    assert!(ended.stdout.contains("The package bamf-agent is still installed"), "{ended:?}");
    // What the kept configuration does not say.
    let update = scene.site.agent(&["update", "--check", "--json"]);
    assert_eq!((update.code, &update.json["outcome"]), (0, &"up_to_date".into()), "{update:?}");

    go_back(&scene, &ended);
    assert!(runs(&scene).ends_with("/sleep"), "{}", runs(&scene));
    // Once more, to a later release, with a binary of ours that nothing runs.
    scene.offer("1.1.0");
    let again = Ended::after(scene.first(&[]));
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!((scene.site.certificate(), &scene.site.status()["version"]), (certificate.clone(), &"1.1.0".into()));
    // The package takes the service down with it; the same command brings it back.
    scene.site.machine.check(["dpkg", "--remove", "bamf-agent"]).unwrap();
    let last = Ended::after(scene.script(&[]));
    assert_eq!(last.code, 0, "{last:?}");
    assert_eq!(scene.site.certificate(), certificate);
    assert_eq!(scene.site.machine.property(UNIT, "UnitFileState").unwrap(), "enabled");
}

#[test]
fn a_go_agent_by_hand_keeps_its_variables_and_its_own_configuration_file() {
    if or_skip("a_go_agent_by_hand_keeps_its_variables_and_its_own_configuration_file") {
        return;
    }
    let scene = Scene::new();
    let certificate = by_hand(&scene);
    let (source, key) = (scene.site.releases.source_url(), scene.site.key.public_key());
    // The platform is known to this machine already.
    let ended = Ended::after(scene.script(&["--source", &source, "--trusted-key", &key]));
    assert_eq!(ended.code, 0, "{ended:?}\n{}", scene.site.machine.journal(UNIT).unwrap());
    assert_eq!(runs(&scene), BINARY);
    assert_eq!(scene.site.certificate(), certificate);
    assert_eq!(scene.text("/etc/bamf-agent/a.yaml"), "agent_name: edge-1\nlabels: {site: ams}\n");
    let environment = scene.text("/etc/bamf/agent.env");
    for line in ["BAMF_CONFIG_FILE=/etc/bamf-agent/a.yaml", "BAMF_ZONE=internal", "BAMF_PLATFORM_URL=https://localhost"]
    {
        assert!(environment.contains(line), "{line} is not in {environment}");
    }
    assert!(!scene.exists("/etc/bamf/agent.yaml"));

    go_back(&scene, &ended);
    assert!(runs(&scene).ends_with("/sleep"), "{}", runs(&scene));
    assert_eq!(scene.about("/etc/bamf-agent/a.yaml"), "bamf-agent:bamf-agent 640");
    assert_eq!(scene.about("/var/lib/bamf-agent/agent.key"), "bamf-agent:bamf-agent 600");
}

#[test]
fn a_configuration_that_only_the_go_agent_accepts_leaves_the_go_agent_at_work() {
    if or_skip("a_configuration_that_only_the_go_agent_accepts_leaves_the_go_agent_at_work") {
        return;
    }
    let scene = Scene::new();
    packaged(&scene);
    let machine = &scene.site.machine;
    machine.check(["sh", "-c", "echo 'listen: somewhere' >>/etc/bamf/agent.yaml"]).unwrap();
    let (before, pid) = (scene.tree(), machine.main_pid(UNIT).unwrap());
    let ended = Ended::after(scene.first(&[]));
    assert_eq!(ended.code, 78, "{ended:?}");
    assert!(ended.stderr.contains("agent.yaml:4") && ended.stderr.contains("listen"), "{ended:?}");
    assert_same(&before, &scene.tree());
    assert_eq!(machine.main_pid(UNIT).unwrap(), pid);
}

#[test]
fn an_agent_that_does_not_connect_is_told_with_its_log_and_the_way_back() {
    if or_skip("an_agent_that_does_not_connect_is_told_with_its_log_and_the_way_back") {
        return;
    }
    let scene = Scene::new();
    packaged(&scene);
    scene.site.machine.write("/var/lib/bamf-agent/agent.key", "no key", 0o600, "bamf:bamf").unwrap();
    let ended = Ended::after(scene.first(&[]));
    assert_eq!(ended.code, 78, "{ended:?}");
    assert!(ended.stderr.contains("it is not connected to https://localhost"), "{ended:?}");
    assert!(ended.stderr.contains("agent.key") && ended.stderr.contains("journalctl -u bamf-agent"), "{ended:?}");
    assert!(ended.stderr.contains("The way back:\n  sudo "), "{ended:?}");
}
