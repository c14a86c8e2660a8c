//! A machine without an agent, a platform, a release, and the script.

use std::collections::BTreeMap;
use std::time::Duration;

use bamf_lab::machine::Invocation;
use bamf_lab::release::Release;
use bamf_lab::site::{Ended, Site, UNIT};

/// The script under test.
pub(crate) const SCRIPT: &str = include_str!("../../packaging/install.sh");
/// Only a failure takes this long.
const LIMIT: Duration = Duration::from_secs(200);

/// What lies on a machine: by path, everything about it that a stranger could see.
pub(crate) type Tree = BTreeMap<String, String>;

/// A bare site whose platform runs 1.0.0, with the release of it.
pub(crate) struct Scene {
    pub(crate) site: Site,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let scene = Self { site: Site::bare().unwrap() };
        scene.site.plane.set_rate_limits(bamf_lab::plane::RateLimits { anonymous: u32::MAX, identified: u32::MAX });
        scene.offer("1.0.0");
        scene
    }

    /// Publishes a release, and the platform runs its version.
    pub(crate) fn offer(&self, version: &str) {
        self.publish(&self.site.release(version));
        self.site.plane.set_version(Some(version));
    }

    pub(crate) fn publish(&self, release: &Release) {
        self.site.publish(release).unwrap();
    }

    /// The script through a pipe, as root, with these flags.
    pub(crate) fn script(&self, flags: &[&str]) -> Invocation {
        self.site.machine.command([&["sh", "-s", "--"], flags].concat()).input(SCRIPT).limit(LIMIT)
    }

    /// The same with all that a first installation has to be told, but the token.
    pub(crate) fn first(&self, more: &[&str]) -> Invocation {
        let (url, source, key) = (self.site.plane.url(), self.site.releases.source_url(), self.site.key.public_key());
        let flags = ["--platform-url", &url, "--source", &source, "--trusted-key", &key];
        self.script(&[&flags, more].concat())
    }

    /// Installs and joins; the agent is connected then.
    pub(crate) fn install(&self) -> Ended {
        let ended = Ended::after(self.first(&[]).env("BAMF_INSTALL_TOKEN", &self.site.token));
        assert_eq!(ended.code, 0, "{ended:?}\n{}", self.site.machine.journal(UNIT).unwrap());
        ended
    }

    /// Everything in the places where an agent, its units and their users leave something.
    pub(crate) fn tree(&self) -> Tree {
        // Of systemd, the package manager and the logs there is always something new.
        const FIND: &str = "find /etc /usr/local /opt /srv /var/lib /usr/lib/systemd /usr/lib/sysusers.d /usr/lib/bamf-agent \
            /run/bamf-agent /root -maxdepth 7 \\( -path /var/lib/systemd -o -path /var/lib/dpkg -o -path '/root/.*' \\) -prune \
            -o -type f -printf '%p\\t%M %u:%g %s %T@\\n' -o -printf '%p\\t%M %u:%g %l\\n' 2>/dev/null; \
            for file in passwd group shadow gshadow; do printf \"%s\\t%s\\n\" $file \"$(md5sum </etc/$file)\"; done";
        let listed = self.site.machine.check(["sh", "-c", FIND]).unwrap();
        let lines = listed.lines().filter_map(|line| line.split_once('\t'));
        // The files of accounts are compared by content above; their back-ups and lock differ after every change.
        let accounts = ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/.pwd.lock", "/etc/subuid"];
        lines
            .filter(|(path, _)| !accounts.iter().any(|account| path.trim_end_matches('-') == *account))
            .map(|(path, about)| (path.to_owned(), about.to_owned()))
            .collect()
    }

    /// The text of a file of the machine.
    pub(crate) fn text(&self, path: &str) -> String {
        String::from_utf8(self.site.machine.read(path).unwrap()).unwrap()
    }

    /// `user:group mode` of a path of the machine.
    pub(crate) fn about(&self, path: &str) -> String {
        self.site.machine.check(["stat", "-c", "%U:%G %a", path]).unwrap().trim().to_owned()
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.site.machine.path(path).symlink_metadata().is_ok()
    }

    pub(crate) fn remove(&self, paths: &[&str]) {
        self.site.machine.check([&["rm", "-rf"], paths].concat()).unwrap();
    }
}

/// Fails with what differs, not with both trees.
#[track_caller]
pub(crate) fn assert_same(before: &Tree, after: &Tree) {
    let gone: Vec<_> = before.iter().filter(|(path, _)| !after.contains_key(*path)).collect();
    let new: Vec<_> = after.iter().filter(|(path, _)| !before.contains_key(*path)).collect();
    let changed: Vec<_> =
        before.iter().filter(|(path, about)| after.get(*path).is_some_and(|now| now != *about)).collect();
    assert!(gone.is_empty() && new.is_empty() && changed.is_empty(), "gone {gone:?}\nnew {new:?}\nchanged {changed:?}");
}

/// The tree without modification times and sizes of directories' neighbours: what an undo can bring back.
pub(crate) fn timeless(tree: Tree) -> Tree {
    let without_time = |about: String| about.split(' ').take(3).collect::<Vec<_>>().join(" ");
    tree.into_iter().map(|(path, about)| (path, without_time(about))).collect()
}
