//! Which file a process runs, and since when: asked of the kernel, by inode.
//!
//! After a swap a path says nothing: `/proc/PID/exe` of the old process reads as the kept file's name or as `… (deleted)`,
//! and `current_exe()` of the updater itself is wrong in the same way. Following that link with stat(2) leads to the very
//! inode that is executed, deleted or not.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::durable::{self, Context};

/// The identity of a file: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl FileId {
    /// The file that `path` leads to, links followed.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn of(path: &Path) -> durable::Result<Self> {
        let about = path.metadata().on("look at", path)?;
        Ok(Self { device: about.dev(), inode: about.ino() })
    }

    /// The file that process `pid` executes; `None` where there is no such process.
    ///
    /// # Errors
    /// Where the kernel will not tell, e.g. another user's process without root.
    pub fn of_process(pid: u32) -> durable::Result<Option<Self>> {
        let path = format!("/proc/{pid}/exe");
        match Self::of(Path::new(&path)) {
            Ok(file) => Ok(Some(file)),
            // ESRCH comes from a process that is on its way out.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound || is_gone(pid) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// True where process `pid` executes the file at `path`; false also where there is no such process or file.
///
/// # Errors
/// Where the kernel will not tell.
pub fn runs(pid: u32, path: &Path) -> durable::Result<bool> {
    let Some(process) = FileId::of_process(pid)? else { return Ok(false) };
    match FileId::of(path) {
        Ok(file) => Ok(file == process),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// When process `pid` started, in clock ticks since boot: with the pid it names one process for good (proc_pid_stat(5)).
#[must_use]
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_start_ticks(&stat)
}

/// The boot that this is, for deadlines that must not be compared across boots.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// Field 22. The name in field 2 may hold blanks and parentheses, so counting begins after the last `)`.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_its_own_file_and_no_other() {
        let own = std::process::id();
        assert!(runs(own, &std::env::current_exe().unwrap()).unwrap());
        assert!(!runs(own, Path::new("/bin/sh")).unwrap());
        assert!(!runs(own, Path::new("/nothing/here")).unwrap());
    }

    #[test]
    fn a_process_whose_file_was_replaced_does_not_run_the_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let (path, kept) = (directory.path().join("agent"), directory.path().join("kept"));
        std::fs::copy("/bin/sleep", &path).unwrap();
        let mut child = std::process::Command::new(&path).arg("600").spawn().unwrap();
        assert!(runs(child.id(), &path).unwrap());
        durable::rename(&path, &kept).unwrap();
        std::fs::copy("/bin/sleep", &path).unwrap();
        assert!(!runs(child.id(), &path).unwrap());
        assert!(runs(child.id(), &kept).unwrap());
        durable::remove_file(&kept).unwrap();
        assert!(!runs(child.id(), &path).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!runs(child.id(), &path).unwrap());
    }

    #[test]
    fn start_times_are_read_past_any_name() {
        let tail = "S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(parse_start_ticks(&format!("7 (a) b) c) {tail}")), Some(4242));
        assert_eq!(parse_start_ticks("7 (agent"), None);
        assert!(start_ticks(std::process::id()).is_some());
        assert!(!boot_id().is_empty());
    }
}
