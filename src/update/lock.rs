//! One updater at a time: a lock on `<state directory>/lock`, held for a whole transaction, its trial included.
//!
//! The kernel releases it when the holder dies, so there is no stale lock to clear. The file is never deleted: whoever
//! deletes a lock file lets two processes hold two locks of one name. The pid inside is for the message only.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::durable::{self, Context};

const NAME: &str = "lock";
/// A pid has at most ten digits.
const PID_LIMIT_BYTES: u64 = 16;

/// The held lock; dropping it releases it.
#[derive(Debug)]
pub struct Lock {
    /// Invariant: locked for as long as it lives.
    _file: File,
}

/// Why the lock was not acquired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Contract: exit 26, `locked`.
    #[error("another update is running{}; wait for it, or look at `bamf-agent status`", by(*pid))]
    Held {
        /// The holder, where it has written its pid.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error("cannot lock the updater's state")]
    Disk(#[from] durable::Error),
}

impl Lock {
    /// Takes the lock of the updater whose state lies in `directory`, without waiting.
    ///
    /// # Errors
    /// [`Error::Held`] where another process has it.
    pub fn acquire(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(NAME);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .on("open the lock", &path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Held { pid: holder(&file) }),
            Err(TryLockError::Error(error)) => return Err(durable::Error::new("lock", path, error).into()),
        }
        write_pid(&mut file).on("write the pid into", &path)?;
        Ok(Self { _file: file })
    }
}

/// Not synced: after a power cut nobody holds the lock.
fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn holder(file: &File) -> Option<u32> {
    let mut text = String::new();
    file.take(PID_LIMIT_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn by(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_updater_is_refused_and_told_who_holds_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let held = Lock::acquire(directory.path()).unwrap();
        let refused = Lock::acquire(directory.path()).unwrap_err();
        assert!(matches!(refused, Error::Held { pid: Some(pid) } if pid == std::process::id()), "{refused}");
        drop(held);
        Lock::acquire(directory.path()).unwrap();
    }

    #[test]
    fn the_lock_file_stays_and_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        drop(Lock::acquire(directory.path()).unwrap());
        let about = directory.path().join(NAME).metadata().unwrap();
        assert_eq!(about.permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        std::os::unix::fs::symlink(&victim, directory.path().join(NAME)).unwrap();
        let error = Lock::acquire(directory.path()).unwrap_err();
        assert!(matches!(error, Error::Disk(_)), "{error}");
        assert!(!victim.exists());
    }

    #[test]
    fn a_longer_pid_of_an_earlier_holder_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        durable::write(&path, b"99999999999999\n", 0o600).unwrap();
        let _held = Lock::acquire(directory.path()).unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), format!("{}\n", std::process::id()));
    }
}
