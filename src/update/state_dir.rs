//! The updater's own directory, where nobody else may write: `/var/lib/bamf-agent-updater` (contract section 4).
//!
//! Root reads its plans from here and executes what was put beside the installed binary, so a directory that another
//! user can write, or replace by way of a parent, would hand that user root. It is checked at every start, not only when
//! it is made: permissions get changed by hands and by images. The same check of parents guards the installed binary.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::durable::{self, Context};

/// Where the updater keeps its state, unless told otherwise.
pub const DEFAULT: &str = "/var/lib/bamf-agent-updater";

/// Left free on every file system that is written: a journal, a history and the rest of the machine want to live.
pub const RESERVE_BYTES: u64 = 16 * 1024 * 1024;

const GROUP_OR_OTHER_WRITE: u32 = 0o022;
const OTHER_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;
const ROOT: u32 = 0;

/// The checked directory.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// Why a directory is not used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A link, or something else that is no directory.
    #[error("{} is {found}, not a directory of the updater's own; remove it and try again", path.display())]
    NotADirectory {
        /// What was looked at.
        path: PathBuf,
        /// "a link" or "a file".
        found: &'static str,
    },
    /// Owned by somebody who could change what root relies on.
    #[error("{} belongs to user {owner}, who could change what the updater relies on; `chown {expected} {}`", path.display(), path.display())]
    Owner {
        /// What was looked at.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
        /// The uid that may own it.
        expected: u32,
    },
    /// Writable by somebody who could change what root relies on.
    #[error("{} can be written by others (mode {mode:04o}), who could change what the updater relies on; `chmod go-w {}`", path.display(), path.display())]
    Writable {
        /// What was looked at.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Too little free space (contract: exit 74, `no_space`).
    #[error("{} has {free} bytes free and {need} are needed; make room and try again", path.display())]
    NoSpace {
        /// A directory on the file system.
        path: PathBuf,
        /// Bytes that may be used.
        free: u64,
        /// Bytes needed, the reserve included.
        need: u64,
    },
    /// The file system failed.
    #[error("cannot use the updater's directories")]
    Disk(#[from] durable::Error),
}

impl StateDir {
    /// Opens the state directory at `path`, made with mode 0700 where missing, and checks that nobody else can touch it.
    ///
    /// # Errors
    /// The first thing that is wrong with it or with a parent.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if let Some(above) = path.parent()
            && above.exists()
        {
            check_parents(path)?;
        }
        if std::fs::symlink_metadata(path).is_err() {
            durable::create_directory(path, 0o700)?;
        }
        check_own(path)?;
        check_parents(path)?;
        let opened = Self { path: path.to_owned() };
        make_private(&opened.staging())?;
        Ok(opened)
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The journal.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.path.join("state.json")
    }

    /// What was installed when.
    #[must_use]
    pub fn history(&self) -> PathBuf {
        self.path.join("history.jsonl")
    }

    /// Where downloads are put together.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.path.join("staging")
    }
}

/// Checks that every directory above `path` belongs to root or the caller, and that nobody else can write it. A sticky
/// directory such as `/tmp` passes as a parent of a parent: nobody else can rename what lies in it.
///
/// # Errors
/// The first directory that is not safe.
pub fn check_parents(path: &Path) -> Result<(), Error> {
    let above = durable::parent(path);
    let real = above.canonicalize().on("resolve", above)?;
    for directory in real.ancestors() {
        let about = directory.symlink_metadata().on("look at", directory)?;
        check_owner(directory, &about)?;
        let mode = about.mode() & 0o7777;
        if writable_by_others(&about) && mode & STICKY == 0 {
            return Err(Error::Writable { path: directory.to_owned(), mode });
        }
    }
    Ok(())
}

/// Checks that the regular file at `path` and every directory above it belong to root or the caller, and that nobody else
/// can write them: what root goes by must be root's.
///
/// # Errors
/// The first thing that is not safe.
pub fn check_file(path: &Path) -> Result<(), Error> {
    let real = path.canonicalize().on("resolve", path)?;
    check_parents(&real)?;
    let about = real.symlink_metadata().on("look at", &real)?;
    check_owner(&real, &about)?;
    if writable_by_others(&about) {
        return Err(Error::Writable { path: real, mode: about.mode() & 0o7777 });
    }
    Ok(())
}

/// Checks that the file systems have room: `needs` lists a directory and the bytes that will be written there.
///
/// Needs on one file system add up, and [`RESERVE_BYTES`] stays free on each.
///
/// # Errors
/// [`Error::NoSpace`] with both numbers.
pub fn check_space(needs: &[(&Path, u64)]) -> Result<(), Error> {
    let mut by_device: BTreeMap<u64, (&Path, u64)> = BTreeMap::new();
    for (directory, bytes) in needs {
        let device = directory.metadata().on("look at", directory)?.dev();
        let entry = by_device.entry(device).or_insert((directory, RESERVE_BYTES));
        entry.1 = entry.1.saturating_add(*bytes);
    }
    for (path, need) in by_device.into_values() {
        let free = free_bytes(path)?;
        if free < need {
            return Err(Error::NoSpace { path: path.to_owned(), free, need });
        }
    }
    Ok(())
}

/// Bytes that an unprivileged writer may still use on the file system of `path` (statvfs(3), `f_bavail`): the blocks
/// that only root may take are not ours to take.
fn free_bytes(path: &Path) -> durable::Result<u64> {
    let about = nix::sys::statvfs::statvfs(path).map_err(std::io::Error::from).on("ask for the free space of", path)?;
    Ok(about.blocks_available().saturating_mul(about.fragment_size()))
}

fn make_private(path: &Path) -> Result<(), Error> {
    if std::fs::symlink_metadata(path).is_err() {
        durable::create_directory(path, 0o700)?;
    }
    check_own(path)
}

/// A directory of the updater's own: no link, the caller's, and for nobody else to write.
fn check_own(path: &Path) -> Result<(), Error> {
    let about = path.symlink_metadata().on("look at", path)?;
    if !about.is_dir() {
        let found = if about.is_symlink() { "a link" } else { "a file" };
        return Err(Error::NotADirectory { path: path.to_owned(), found });
    }
    let caller = nix::unistd::geteuid().as_raw();
    if about.uid() != caller {
        return Err(Error::Owner { path: path.to_owned(), owner: about.uid(), expected: caller });
    }
    let mode = about.mode() & 0o7777;
    if mode & GROUP_OR_OTHER_WRITE != 0 {
        return Err(Error::Writable { path: path.to_owned(), mode });
    }
    Ok(())
}

fn check_owner(path: &Path, about: &Metadata) -> Result<(), Error> {
    let caller = nix::unistd::geteuid().as_raw();
    if about.uid() == ROOT || about.uid() == caller {
        return Ok(());
    }
    Err(Error::Owner { path: path.to_owned(), owner: about.uid(), expected: ROOT })
}

/// A directory that the group of root may write is as good as one that root may write.
fn writable_by_others(about: &Metadata) -> bool {
    let refused = if about.gid() == ROOT { OTHER_WRITE } else { GROUP_OR_OTHER_WRITE };
    about.mode() & refused != 0
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_missing_directory_is_made_for_its_owner_only() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("state");
        let state = StateDir::open(&path).unwrap();
        for made in [state.path().to_owned(), state.staging()] {
            assert_eq!(made.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
        }
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_link_in_its_place_is_refused() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("state");
        std::os::unix::fs::symlink(above.path(), &path).unwrap();
        let error = StateDir::open(&path).unwrap_err();
        assert!(matches!(error, Error::NotADirectory { found: "a link", .. }), "{error}");
    }

    #[test]
    fn a_dangling_link_in_its_place_is_refused_and_nothing_is_made_behind_it() {
        let above = tempfile::tempdir().unwrap();
        let (path, behind) = (above.path().join("state"), above.path().join("behind"));
        std::os::unix::fs::symlink(&behind, &path).unwrap();
        assert!(StateDir::open(&path).is_err());
        assert!(!behind.exists());
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("state");
        StateDir::open(&path).unwrap();
        for bits in [0o770, 0o777, 0o1777] {
            mode(&path, bits);
            let error = StateDir::open(&path).unwrap_err();
            assert!(matches!(error, Error::Writable { .. }), "{bits:o}: {error}");
        }
        mode(&path, 0o755);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_parent_that_others_can_write_is_refused_before_anything_is_made_in_it() {
        let above = tempfile::tempdir().unwrap();
        mode(above.path(), 0o777);
        let path = above.path().join("state");
        let error = StateDir::open(&path).unwrap_err();
        assert!(error.to_string().contains("chmod go-w"), "{error}");
        assert!(!path.exists());
        mode(above.path(), 0o1777);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("state");
        StateDir::open(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        assert!(matches!(StateDir::open(&path).unwrap_err(), Error::Owner { owner: 65534, .. }));
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        std::os::unix::fs::chown(above.path(), Some(65534), None).unwrap();
        assert!(matches!(StateDir::open(&path).unwrap_err(), Error::Owner { owner: 65534, .. }));
    }

    #[test]
    fn needs_on_one_file_system_add_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        check_space(&[(path, 1), (path, 1)]).unwrap();
        let free = free_bytes(path).unwrap();
        let half = free / 2 + 1;
        let error = check_space(&[(path, half), (path, half)]).unwrap_err();
        assert!(matches!(error, Error::NoSpace { need, .. } if need >= half * 2), "{error}");
        assert!(check_space(&[(path, u64::MAX), (path, u64::MAX)]).is_err());
    }
}
