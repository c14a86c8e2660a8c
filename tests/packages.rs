//! The packages on real systemd: installed, upgraded under a crowd of users, refused by the updater, removed and purged.
//!
//! They are built as a release builds them, by scripts/package, from agents in two versions.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bamf_lab::binaries::agent_binary;
use bamf_lab::crowd::{Crowd, Mix, Surroundings};
use bamf_lab::machine::{or_skip, report_skipped};
use bamf_lab::site::{CONFIG, Site, UNIT, architecture};

const BINARY: &str = "/usr/bin/bamf-agent";
const IDENTITY: &str = "/var/lib/bamf-agent/agent.crt";
const LIMIT: Duration = Duration::from_secs(30);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether `program` can be run; says by the test's name if not.
fn has(test: &str, program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        report_skipped(test, &format!("{program} is not installed"));
    }
    found
}

fn can_build(test: &str) -> bool {
    let nfpm = root().join("target/tools/nfpm/bin/nfpm");
    let nfpm = if nfpm.exists() { nfpm.display().to_string() } else { "nfpm".to_owned() };
    has(test, &nfpm) && has(test, "objdump") && has(test, "strip")
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// The packages of one version.
struct Packages {
    directory: tempfile::TempDir,
    version: &'static str,
}

impl Packages {
    fn build(version: &'static str, formats: &str) -> Self {
        Self::labelled(version, version, formats)
    }

    /// The agent of `version` in packages that call themselves `label`.
    fn labelled(version: &str, label: &'static str, formats: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // What a release is; and a tenth of the size.
        let binary = directory.path().join("stripped");
        output(Command::new("strip").arg("-o").args([&binary, &agent_binary(version)]));
        let mut package = Command::new(root().join("scripts/package"));
        package.arg("--binary").arg(binary).args(["--arch", architecture(), "--version", label, "--formats", formats]);
        output(package.arg("--out").arg(directory.path()).env("SOURCE_DATE_EPOCH", "1760000000"));
        Self { directory, version: label }
    }

    fn deb(&self) -> PathBuf {
        self.directory.path().join(format!("bamf-agent_{}_{}.deb", self.version, architecture()))
    }

    fn rpm(&self) -> PathBuf {
        let machine = if architecture() == "arm64" { "aarch64" } else { "x86_64" };
        self.directory.path().join(format!("bamf-agent-{}.{machine}.rpm", self.version))
    }
}

/// A package manager, and what is its own about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manager {
    Dpkg,
    /// On a machine that is Debian's, so dependencies are not looked at.
    Rpm,
}

impl Manager {
    fn install(self, site: &Site, packages: &Packages) -> String {
        let (package, line) = match self {
            Self::Dpkg => (packages.deb(), &["dpkg", "--install", "/package"][..]),
            Self::Rpm => {
                (packages.rpm(), &["rpm", "--force-debian", "--nodeps", "--oldpackage", "--upgrade", "/package"][..])
            }
        };
        site.machine.copy_in(package, "/package", 0o644).unwrap();
        // No input: a package that asks something fails here.
        let done = site.machine.command(line).env("DEBIAN_FRONTEND", "noninteractive").limit(3 * LIMIT).run().unwrap();
        assert!(done.success(), "{done:?}");
        done.stdout + &done.stderr
    }

    fn remove(self, site: &Site) {
        let line = match self {
            Self::Dpkg => &["dpkg", "--remove", "bamf-agent"][..],
            Self::Rpm => &["rpm", "--force-debian", "--nodeps", "--erase", "bamf-agent"][..],
        };
        site.machine.command(line).limit(3 * LIMIT).check().unwrap();
    }

    const fn upgrade_command(self) -> &'static str {
        match self {
            Self::Dpkg => "apt-get install --only-upgrade bamf-agent",
            Self::Rpm => "dnf upgrade bamf-agent",
        }
    }
}

fn exists(site: &Site, path: &str) -> bool {
    site.machine.exec(["test", "-e", path]).unwrap().success()
}

/// How often the unit was started.
fn starts(site: &Site) -> usize {
    site.machine.journal(UNIT).unwrap().lines().filter(|line| line.contains(": Started ")).count()
}

/// A machine where the package of 1.0.0 is installed, and serves a crowd.
fn installed(manager: Manager, packages: &Packages) -> (Site, Crowd) {
    let site = Site::bare_for(BINARY).unwrap();
    site.plane.set_version(Some("1.0.0"));
    // Where the host is a container, its image forbids packages to start services; these machines are none.
    site.machine.check(["rm", "-f", "/usr/sbin/policy-rc.d"]).unwrap();
    let said = manager.install(&site, packages);
    assert!(said.contains("set platform_url in /etc/bamf/agent.yaml"), "{said}");
    let state = |property: &str| site.machine.property(UNIT, property).unwrap();
    assert_eq!(state("ActiveState"), "inactive", "not without a platform\n{said}");
    // /lib is /usr/lib.
    let unit = state("FragmentPath");
    assert!(unit.ends_with(&format!("/lib/systemd/system/{UNIT}")) && !unit.starts_with("/etc"), "{unit}");
    assert_eq!(state("UnitFileState"), "enabled");
    let owned = |path: &str| site.machine.check(["stat", "-c", "%U:%G:%a", path]).unwrap().trim().to_owned();
    assert_eq!(owned(CONFIG), "root:bamf:640");
    assert_eq!(owned("/var/lib/bamf-agent"), "bamf:bamf:700");
    assert_eq!(owned(BINARY), "root:root:755");
    let page = site.machine.check(["man", "--path", "8", "bamf-agent-update"]).unwrap();
    assert_eq!(page.trim(), "/usr/share/man/man8/bamf-agent-update.8.gz");

    let surroundings = Surroundings::set_up(&site).unwrap();
    site.start().unwrap();
    let crowd = surroundings.gather(Mix::sessions(20));
    let crowd = crowd.unwrap_or_else(|why| panic!("{why}\n{}", site.machine.journal(UNIT).unwrap()));
    (site, crowd)
}

/// The life of a package up to its removal; the site is as it leaves it.
fn lives(manager: Manager, old: &Packages, new: &Packages) -> Site {
    let (site, crowd) = installed(manager, old);
    let (certificate, configuration) = (site.certificate(), site.machine.read(CONFIG).unwrap());
    assert_eq!(starts(&site), 1);

    let said = manager.install(&site, new);
    site.connected().unwrap();
    let log = || site.machine.journal(UNIT).unwrap();
    crowd.goes_on(LIMIT).unwrap_or_else(|who| panic!("stand still: {who:#?}\n{said}\n{}", log()));
    assert_eq!(crowd.faults(), [""; 0], "{}", log());
    assert_eq!(crowd.dialled_again(), [""; 0], "{}", log());
    let status = site.status();
    assert_eq!(status["version"], new.version, "{said}");
    assert_eq!((&status["sessions"]["adopted"], &status["sessions"]["lost"]), (&20.into(), &0.into()), "{}", log());
    assert_eq!(starts(&site), 2, "one restart\n{}", log());
    assert_eq!((site.plane.drains().len(), site.plane.offlines().len()), (0, 0));
    assert_eq!(site.certificate(), certificate);
    assert_eq!(site.machine.read(CONFIG).unwrap(), configuration, "an administrator's configuration");

    // An upgrade that cannot start the service leaves it as it is.
    site.edit_config(|text| format!("{text}zone: [not, a, zone]\n")).unwrap();
    let pid = site.status()["pid"].clone();
    manager.install(&site, old);
    assert_eq!(site.status()["pid"], pid, "{}", log());
    site.machine.write(CONFIG, configuration.clone(), 0o640, "root:bamf").unwrap();
    manager.install(&site, new);
    crowd.goes_on(LIMIT).unwrap();

    refuses_to_update_itself(&site, manager);
    let farewell = crowd.leave();
    assert_eq!(farewell.faults, [""; 0], "{}", log());

    manager.remove(&site);
    assert_eq!(site.machine.property(UNIT, "ActiveState").unwrap(), "inactive");
    assert!(!exists(&site, BINARY));
    assert!(exists(&site, IDENTITY), "the identity outlives the package");
    assert_eq!(site.plane.offlines().len(), 1, "the platform was told");
    site
}

fn refuses_to_update_itself(site: &Site, manager: Manager) {
    site.plane.set_version(Some("1.2.0"));
    let installed = site.installed();
    let ended = site.agent(&["update", "--json"]);
    assert_eq!((ended.code, &ended.json["reason"]), (22, &"package_managed".into()), "{ended:?}");
    let message = ended.json["message"].as_str().unwrap();
    assert!(message.contains(manager.upgrade_command()), "{message}");
    assert_eq!(site.agent(&["rollback", "--json"]).code, 22);
    assert_eq!(site.installed(), installed);
}

/// Two versions, one after the other.
fn pair(formats: &str) -> (Packages, Packages) {
    (Packages::build("1.0.0", formats), Packages::build("1.1.0", formats))
}

#[test]
fn a_deb_upgrade_keeps_every_session_and_a_purge_leaves_nothing() {
    let name = "a_deb_upgrade_keeps_every_session_and_a_purge_leaves_nothing";
    if or_skip(name) || !has(name, "dpkg") || !can_build(name) {
        return;
    }
    let (old, new) = pair("deb");
    let site = lives(Manager::Dpkg, &old, &new);
    assert!(exists(&site, CONFIG), "a configuration outlives the package until it is purged");

    // Back again, with what was kept.
    Manager::Dpkg.install(&site, &new);
    site.connected().unwrap();
    assert_eq!(site.plane.joins().len(), 1, "the same agent");

    site.machine.command(["dpkg", "--purge", "bamf-agent"]).limit(3 * LIMIT).check().unwrap();
    let gone = ["/etc/bamf", "/var/lib/bamf-agent", "/var/lib/bamf-agent-updater", BINARY, "/usr/lib/bamf-agent"];
    for path in gone {
        assert!(!exists(&site, path), "{path} is left");
    }
    let units = "find /etc/systemd /usr/lib/systemd -name '*bamf*'";
    assert_eq!(site.machine.check(["sh", "-c", units]).unwrap(), "");
}

#[test]
fn an_rpm_upgrade_keeps_every_session() {
    let name = "an_rpm_upgrade_keeps_every_session";
    if or_skip(name) || !has(name, "rpm") || !can_build(name) {
        return;
    }
    let (old, new) = pair("rpm");
    let site = lives(Manager::Rpm, &old, &new);
    // rpm keeps a changed configuration under another name.
    assert!(exists(&site, &format!("{CONFIG}.rpmsave")));
}

#[test]
fn a_deb_package_has_no_mistakes_that_lintian_knows() {
    let name = "a_deb_package_has_no_mistakes_that_lintian_knows";
    if !can_build(name) || !has(name, "lintian") {
        return;
    }
    let packages = Packages::build("1.0.0", "deb");
    let mut lintian = Command::new("lintian");
    // Root is no danger to it here, and it says so on standard error.
    let said = output(lintian.args(["--allow-root", "--fail-on", "error,warning"]).arg(packages.deb()));
    assert_eq!(said, "");
}

#[test]
fn packages_are_the_same_bytes_each_time_and_sort_before_their_release_when_they_should() {
    let name = "packages_are_the_same_bytes_each_time_and_sort_before_their_release_when_they_should";
    if !can_build(name) || !has(name, "dpkg-deb") {
        return;
    }
    let [one, two] = [0, 1].map(|_| Packages::labelled("1.0.0", "1.2.0-rc.1", "deb rpm"));
    assert_eq!(std::fs::read(one.deb()).unwrap(), std::fs::read(two.deb()).unwrap());
    assert_eq!(std::fs::read(one.rpm()).unwrap(), std::fs::read(two.rpm()).unwrap());
    let field = |field: &str| output(Command::new("dpkg-deb").arg("--field").arg(one.deb()).arg(field));
    assert_eq!(field("Version").trim(), "1.2.0~rc.1");
    let needs = field("Depends");
    assert!(needs.contains("libc6 (>= 2.") && needs.contains("libgcc-s1"), "{needs}");
}

#[test]
fn an_rpm_names_its_configuration_its_needs_and_its_version() {
    let name = "an_rpm_names_its_configuration_its_needs_and_its_version";
    if !can_build(name) || !has(name, "rpm") {
        return;
    }
    let packages = Packages::labelled("1.0.0", "1.2.0-rc.1", "rpm");
    let query = |arguments: &[&str]| output(Command::new("rpm").arg("-qp").args(arguments).arg(packages.rpm()));
    assert_eq!(query(&["--queryformat", "%{NAME} %{VERSION} %{LICENSE}"]), "bamf-agent 1.2.0~rc.1 MPL-2.0");
    assert_eq!(query(&["--configfiles"]).trim(), CONFIG);
    let needs = query(&["--requires"]);
    assert!(needs.contains("libc.so.6(GLIBC_2.") && needs.contains("libgcc_s.so.1()(64bit)"), "{needs}");
    let files = query(&["--queryformat", "[%{FILENAMES} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILEMODES:perms}\n]"]);
    assert!(files.contains("/etc/bamf/agent.yaml root:bamf -rw-r-----\n"), "{files}");
    assert!(files.contains("/usr/bin/bamf-agent root:root -rwxr-xr-x\n"), "{files}");
}
