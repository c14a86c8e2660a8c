//! Gathers the [`Facts`] about this machine: marker files, package managers with a time limit, a write that is undone.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::{Facts, Owner, Writable};

/// A package manager waits for its lock; the updater does not wait for a package manager.
const QUERY_LIMIT: Duration = Duration::from_secs(5);
/// A marker file holds a word.
const MARKER_LIMIT_CHARS: usize = 64;

/// Where to look; tests put a tree of their own under it.
#[derive(Clone, Debug)]
pub struct Probe {
    /// `/`, or a test's directory.
    pub root: PathBuf,
    /// The programs that know who owns a file, `dpkg-query` and `rpm`.
    pub dpkg_query: PathBuf,
    /// See `dpkg_query`.
    pub rpm: PathBuf,
}

impl Default for Probe {
    fn default() -> Self {
        Self { root: "/".into(), dpkg_query: "dpkg-query".into(), rpm: "rpm".into() }
    }
}

impl Probe {
    /// Finds out what there is to know about `installed` (links resolved). `kubernetes` comes from the configuration's
    /// detection, which reads the environment.
    pub async fn gather(&self, installed: &Path, kubernetes: bool) -> Facts {
        Facts {
            kubernetes,
            container: self.container(),
            systemd: self.root.join("run/systemd/system").is_dir(),
            owner: self.owner(installed).await,
            installed: installed.to_owned(),
            directory: try_write(installed),
            euid: nix::unistd::geteuid().as_raw(),
        }
    }

    /// The files by which container engines mark what they run; systemd notes the rest in `/run/systemd/container`.
    fn container(&self) -> Option<String> {
        let marker = [".dockerenv", "run/.containerenv"].iter().find(|name| self.root.join(name).exists());
        let marker = marker.map(|name| format!("/{name}"));
        marker.or_else(|| read_word(&self.root.join("run/systemd/container")))
    }

    /// Who owns a file, without a try to write beside it.
    pub async fn owner(&self, installed: &Path) -> Owner {
        if let Some(owner) = self.marked() {
            return owner;
        }
        if ["/nix/store", "/gnu/store"].iter().any(|store| installed.starts_with(store)) {
            return Owner::Store;
        }
        if let Some(package) = self.dpkg_owner(installed).await {
            return Owner::Dpkg(package);
        }
        self.rpm_owner(installed).await.map_or(Owner::Nobody, Owner::Rpm)
    }

    /// Packages and images of ours say what they are; `script` is install.sh, whose files no package owns.
    fn marked(&self) -> Option<Owner> {
        let word = read_word(&self.root.join("usr/lib/bamf-agent/install-method"))?;
        match word.as_str() {
            "script" => None,
            "deb" | "apt" => Some(Owner::Dpkg("bamf-agent".to_owned())),
            "rpm" | "dnf" => Some(Owner::Rpm("bamf-agent".to_owned())),
            "image" | "helm" => Some(Owner::Image),
            _ => Some(Owner::Other(word)),
        }
    }

    /// `dpkg-query -S` prints `package: /path`, or `package:amd64: /path`, and fails where no package owns it.
    async fn dpkg_owner(&self, installed: &Path) -> Option<String> {
        let output = query(&self.dpkg_query, "-S", installed).await?;
        let line = output.lines().find(|line| !line.starts_with("diversion "))?;
        let (packages, _) = line.rsplit_once(": ")?;
        let package = packages.split([',', ':']).next()?.trim();
        Some(package.to_owned()).filter(|package| !package.is_empty())
    }

    async fn rpm_owner(&self, installed: &Path) -> Option<String> {
        let output = query(&self.rpm, "-qf", installed).await?;
        output.lines().next().map(|line| line.trim().to_owned()).filter(|package| !package.is_empty())
    }
}

/// The output of a successful query; `None` where it failed, is not installed, or takes too long.
async fn query(program: &Path, option: &str, installed: &Path) -> Option<String> {
    let mut command = Command::new(program);
    command.arg(option).args(["--"]).arg(installed).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(QUERY_LIMIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(_)) => None,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Ok(Err(error)) => {
            tracing::warn!(program = %program.display(), %error, "cannot ask the package manager who owns the binary");
            None
        }
        Err(_elapsed) => {
            tracing::warn!(program = %program.display(), "the package manager does not answer; taken as not its file");
            None
        }
    }
}

/// Permissions, mount options, attributes and sandboxes all have a say: only trying tells.
fn try_write(installed: &Path) -> Writable {
    let directory = crate::durable::parent(installed);
    match tempfile::Builder::new().prefix(".bamf-agent.").suffix(".probe").tempfile_in(directory) {
        Ok(_removed_when_dropped) => Writable::Yes,
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Writable::ReadOnly,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Writable::Denied,
        Err(_) => Writable::Failed,
    }
}

fn read_word(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let word: String = text.trim().chars().filter(|c| !c.is_control()).take(MARKER_LIMIT_CHARS).collect();
    Some(word).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable;

    /// A machine in a directory, with played package managers.
    struct Machine {
        root: tempfile::TempDir,
        probe: Probe,
    }

    impl Machine {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let probe =
                Probe { root: root.path().into(), dpkg_query: "/nothing/dpkg".into(), rpm: "/nothing/rpm".into() };
            let machine = Self { root, probe };
            machine.file("bin/bamf-agent", "agent");
            machine
        }

        fn file(&self, name: &str, content: &str) -> PathBuf {
            let path = self.root.path().join(name);
            durable::create_directory(durable::parent(&path), 0o755).unwrap();
            durable::write(&path, content.as_bytes(), 0o755).unwrap();
            path
        }

        fn installed(&self) -> PathBuf {
            self.root.path().join("bin/bamf-agent")
        }

        async fn gather(&self) -> Facts {
            self.probe.gather(&self.installed(), false).await
        }
    }

    #[tokio::test]
    async fn a_plain_machine_has_no_owner_and_leaves_no_probe_behind() {
        let machine = Machine::new();
        let facts = machine.gather().await;
        assert_eq!(
            (facts.owner, facts.directory, facts.container, facts.systemd),
            (Owner::Nobody, Writable::Yes, None, false)
        );
        assert_eq!(std::fs::read_dir(machine.root.path().join("bin")).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn markers_tell_containers_and_systemd() {
        let machine = Machine::new();
        machine.file("run/systemd/container", "lxc\n");
        durable::create_directory(&machine.root.path().join("run/systemd/system"), 0o755).unwrap();
        let facts = machine.gather().await;
        assert_eq!((facts.container.as_deref(), facts.systemd), (Some("lxc"), true));
        machine.file("run/.containerenv", "");
        assert_eq!(machine.gather().await.container.as_deref(), Some("/run/.containerenv"));
    }

    #[tokio::test]
    async fn install_methods_name_the_owner() {
        let machine = Machine::new();
        for (word, owner) in [
            ("script\n", Owner::Nobody),
            ("deb\n", Owner::Dpkg("bamf-agent".into())),
            ("rpm", Owner::Rpm("bamf-agent".into())),
            ("helm", Owner::Image),
            ("pac\u{1b}man", Owner::Other("pacman".into())),
            ("  \n", Owner::Nobody),
        ] {
            machine.file("usr/lib/bamf-agent/install-method", word);
            assert_eq!(machine.gather().await.owner, owner, "{word:?}");
        }
    }

    #[tokio::test]
    async fn a_missing_directory_cannot_be_written() {
        assert_eq!(try_write(Path::new("/nothing/here/bamf-agent")), Writable::Failed);
        assert_eq!(try_write(Path::new("/proc/self/bamf-agent")), Writable::Failed);
    }

    #[tokio::test]
    async fn the_real_dpkg_knows_its_own_files_and_not_ours() {
        let probe = Probe::default();
        if query(Path::new("dpkg-query"), "-S", Path::new("/usr/bin/dpkg-query")).await.is_none() {
            return;
        }
        assert_eq!(probe.dpkg_owner(Path::new("/usr/bin/dpkg-query")).await.as_deref(), Some("dpkg"));
        assert_eq!(probe.dpkg_owner(Path::new("/nothing/bamf-agent")).await, None);
    }
}
