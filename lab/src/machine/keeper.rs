//! The process that keeps a machine, and what a machine owns on the host: one directory, one cgroup, one child.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::command::{Entrance, PATH};
use super::{Error, host, tool_exists};

const KEEPER: &str = include_str!("keeper.sh");
const INIT: &str = include_str!("init.sh");

/// Everything of a machine on the host begins with this, so that leftovers can be recognised.
const PREFIX: &str = "bamf-lab-";

/// Killing and reaping takes milliseconds; this is for a host under heavy load.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A killed machine's processes take milliseconds to die. If an owner just died and its keeper is still cleaning up, that
/// is waited for too, in vain at worst.
const SWEEP_LIMIT: Duration = Duration::from_secs(2);

/// What the scripts call, besides what every system has.
const TOOLS: &[&str] = &["unshare", "nsenter", "mount", "pivot_root", "setpriv", "ip"];

/// Tries what booting needs: namespaces, the overlay, a cgroup.
const PROBE: &str =
    r#"mkdir -p upper work root && mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root"#;

/// A machine's keeper.sh, which boots and stops it on request and removes it at the end.
#[derive(Debug)]
pub(super) struct Keeper {
    child: Child,
    /// The machine exists as long as this is open. `None` only while it is being dropped.
    words: Option<ChildStdin>,
    answers: Mutex<Receiver<String>>,
    directory: PathBuf,
    cgroup: PathBuf,
    /// PID 1's number outside; 0 while the machine is off.
    pid: i32,
}

impl Keeper {
    /// Prepares a machine's directory and starts its keeper; nothing boots yet.
    pub(super) fn start<'a>(hostname: &str, masks: impl Iterator<Item = &'a str>) -> Result<Self, Error> {
        sweep();
        let directory = prepare(hostname, masks).map_err(host("prepare a directory for a machine"))?;
        let name = directory.file_name().unwrap_or_default();
        let cgroup = cgroup_root().map_err(Error::Unavailable)?.join(name);
        let mut child = Command::new("unshare")
            .args(["--net", "sh"])
            .arg(directory.join("keeper.sh"))
            .args([&directory, &cgroup])
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::options().append(true).open(directory.join("console.log")).map_err(host("open the console"))?)
            // A terminal's interrupt must reach the lab first; the keeper then cleans up behind it.
            .process_group(0)
            .spawn()
            .map_err(host("start a machine's keeper"))?;
        let (words, output) = (child.stdin.take(), child.stdout.take());
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            let lines = output.into_iter().flat_map(|output| BufReader::new(output).lines());
            for line in lines.map_while(Result::ok) {
                drop(sender.send(line));
            }
        });
        Ok(Self { child, words, answers: Mutex::new(answers), directory, cgroup, pid: 0 })
    }

    /// Starts PID 1; systemd is not up yet when this returns.
    pub(super) fn boot(&mut self, limit: Duration) -> Result<(), Error> {
        let answer = self.ask("boot", "boot", limit)?;
        let pid = answer.strip_prefix("pid ").and_then(|pid| pid.parse().ok());
        self.pid = pid.ok_or_else(|| self.no_progress("boot", limit))?;
        // A leaf of its own: systemd keeps processes out of the machine's root cgroup.
        std::fs::create_dir_all(self.entrance().cgroup).map_err(host("make a cgroup for the lab's commands"))
    }

    /// Kills every process of the machine.
    pub(super) fn stop(&mut self) -> Result<(), Error> {
        self.pid = 0;
        self.ask("stop", "stop", STOP_LIMIT).map(drop)
    }

    /// Waits until PID 1 has ended by itself.
    pub(super) fn wait_for_the_end(&mut self, limit: Duration) -> Result<(), Error> {
        self.ask("wait", "stop", limit)?;
        self.pid = 0;
        Ok(())
    }

    fn ask(&mut self, word: &str, what: &'static str, limit: Duration) -> Result<String, Error> {
        let words = self.words.as_mut().expect("only drop takes it");
        writeln!(words, "{word}").map_err(host("talk to the machine's keeper"))?;
        let answers = self.answers.lock().expect("nothing panics while it is held");
        match answers.recv_timeout(limit) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(self.no_progress(what, limit)),
        }
    }

    /// The error for a machine that hangs, with what it printed.
    pub(super) fn no_progress(&self, what: &'static str, limit: Duration) -> Error {
        let console = std::fs::read_to_string(self.directory.join("console.log")).unwrap_or_default();
        Error::NoProgress { what, limit, console }
    }

    /// How commands get in.
    pub(super) fn entrance(&self) -> Entrance {
        Entrance { pid: self.pid, cgroup: self.cgroup.join("lab.scope") }
    }

    /// The machine's root directory, seen from outside.
    pub(super) fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }

    /// The machine's network, which belongs to the keeper and outlives reboots.
    pub(super) fn network_namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.child.id()))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // End of file: the keeper kills the machine, removes cgroup and directory, and ends.
        drop(self.words.take());
        drop(self.child.wait());
    }
}

/// Where machines live: on a real disk, because an overlay's upper directory cannot lie on another overlay and a fault
/// test should not fill memory. `BAMF_LAB_DIR` names another place.
fn home() -> PathBuf {
    std::env::var_os("BAMF_LAB_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

fn prepare<'a>(hostname: &str, masks: impl Iterator<Item = &'a str>) -> io::Result<PathBuf> {
    // `keep`: from here on the keeper removes it, and the sweep if that was killed.
    let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(home())?.keep();
    std::fs::write(directory.join("owner"), owner(std::process::id())?)?;
    for name in ["upper", "work", "var-tmp"] {
        std::fs::create_dir(directory.join(name))?;
    }
    // The overlay's root takes its mode from here, and a private one would lock every user but root out of the machine.
    for (name, mode) in [("upper", 0o755), ("var-tmp", 0o1777)] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(directory.join(name), mode)?;
    }
    let masks: String = masks.map(|unit| format!("{unit}\n")).collect();
    for (name, content) in
        [("keeper.sh", KEEPER), ("init.sh", INIT), ("name", hostname), ("masks", &masks), ("console.log", "")]
    {
        std::fs::write(directory.join(name), content)?;
    }
    Ok(directory)
}

/// A process that cannot be mistaken for a later one with the same number: `PID START-TIME PID-NAMESPACE`.
fn owner(pid: u32) -> io::Result<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // proc_pid_stat(5): the second field may hold spaces and parentheses; the start time is the 20th after it.
    let start = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    Ok(format!("{pid} {} {}", start.unwrap_or_default(), pid_namespace()?))
}

/// The namespace that our process numbers belong to.
fn pid_namespace() -> io::Result<String> {
    Ok(std::fs::read_link("/proc/self/ns/pid")?.to_string_lossy().into_owned())
}

/// Removes what machines left behind whose keeper was killed too: their processes die with it (parent-death signals),
/// directory and cgroup remain. What cannot be removed yet is left, as a whole, to the next sweep.
fn sweep() {
    let (Ok(entries), Ok(cgroups)) = (std::fs::read_dir(home()), cgroup_root()) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !is_abandoned(&entry.path()) {
            continue;
        }
        if empty_cgroup(&cgroups.join(entry.file_name())) {
            // Another process may sweep at the same time; what it removed first is gone all the same.
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
}

/// Waits for a dead machine's last processes to be gone, then removes their cgroup; whether it is gone.
fn empty_cgroup(cgroup: &Path) -> bool {
    let deadline = Instant::now() + SWEEP_LIMIT;
    loop {
        remove_cgroup(cgroup);
        if !cgroup.exists() || Instant::now() >= deadline {
            return !cgroup.exists();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_abandoned(directory: &Path) -> bool {
    // A directory without a complete owner line is just being made.
    let Ok(line) = std::fs::read_to_string(directory.join("owner")) else { return false };
    // A container may share this directory with its host; whether its processes live cannot be seen from here.
    if !pid_namespace().is_ok_and(|ours| line.ends_with(&ours)) {
        return false;
    }
    let Some(pid) = line.split_once(' ').and_then(|(pid, _)| pid.parse().ok()) else { return false };
    owner(pid).map_or(true, |now| now != line)
}

fn remove_cgroup(directory: &Path) {
    for child in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&child.path());
        }
    }
    drop(std::fs::remove_dir(directory));
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid hosts.
fn cgroup_root() -> Result<PathBuf, String> {
    let mounts =
        std::fs::read_to_string("/proc/self/mounts").map_err(|error| format!("cannot read mounts: {error}"))?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(point))
        })
        .find(|point| point.join("cgroup.procs").exists())
        .ok_or_else(|| "cgroup2 is not mounted".to_owned())
}

/// See [`super::Machine::available`].
pub(super) fn probe() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    if !["/usr/lib/systemd/systemd", "/lib/systemd/systemd"].iter().any(|path| Path::new(path).exists()) {
        return Err("needs systemd, which is not installed".to_owned());
    }
    if let Some(missing) = TOOLS.iter().find(|tool| !tool_exists(tool)) {
        return Err(format!("needs the program `{missing}`, which is not installed"));
    }
    probe_cgroup()?;
    probe_namespaces()
}

fn probe_cgroup() -> Result<(), String> {
    let root = cgroup_root()?;
    let name = root.join(format!("{PREFIX}probe-{}", std::process::id()));
    std::fs::create_dir(&name).map_err(|error| format!("cannot make a cgroup in {}: {error}", root.display()))?;
    drop(std::fs::remove_dir(&name));
    Ok(())
}

fn probe_namespaces() -> Result<(), String> {
    let directory =
        tempfile::tempdir_in(home()).map_err(|error| format!("cannot write to {}: {error}", home().display()))?;
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--uts", "--ipc", "--time", "--cgroup", "--net", "--fork", "sh", "-c", PROBE])
        .current_dir(directory.path())
        .env("PATH", PATH)
        .output()
        .map_err(|error| format!("cannot run unshare: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(format!("namespaces or the overlay file system are refused here: {said}"))
}
