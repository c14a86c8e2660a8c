//! Lets the new and the old binary change places, so that at every instant the installed path is one of them, complete.
//!
//! All names lie in the installed file's own directory, so every move is one rename:
//!
//! ```text
//! bamf-agent              installed; a link to it somewhere else stays as it is
//! .bamf-agent.new         staged release                     ─┐ swap      exchange(new, installed); rename new → previous
//! .bamf-agent.previous    the file before, to fall back on   ─┘ restore   exchange(previous, installed); rename previous → failed
//! .bamf-agent.old         link to the installed file, in the middle of a swap without exchange
//! .bamf-agent.failed      what was restored from, for whoever looks for the reason; gone after the next good update
//! ```
//!
//! Where `renameat2(RENAME_EXCHANGE)` is not supported: hard link the installed file to its next name, then rename over it.
//! After a restore no `.previous` is left: a second `rollback` has nothing to go to, rather than forward to what was bad.
//!
//! The sequences are data ([`Move`]), executed one by one; the tests cut them at every point and let `recover` go on.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::digest::Sha256;
use super::journal::Method;
use super::recover::Disk;
use super::state_dir::{self, check_parents};
use super::trial::Tried;
use crate::durable::{self, Context};
use crate::exit::Reason;

/// As the kernel: more links than this are a loop (path_resolution(7) says 40; an install has one or two).
const LINKS_LIMIT: usize = 8;

/// The names that take part, all but `asked` in one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The path as the unit or the operator names it; it may be a link.
    pub asked: PathBuf,
    /// The file itself, behind all links.
    pub installed: PathBuf,
    /// `.bamf-agent.new`
    pub staged: PathBuf,
    /// `.bamf-agent.old`
    pub aside: PathBuf,
    /// `.bamf-agent.previous`
    pub kept: PathBuf,
    /// `.bamf-agent.failed`
    pub failed: PathBuf,
}

/// Proof: the new file is installed, the old one is kept, and both are on the disk.
#[derive(Debug)]
pub struct Swapped {
    /// How it was done, for the journal.
    pub method: Method,
}

/// Proof: the old file is installed again, and on the disk.
#[derive(Debug)]
pub struct Restored {
    /// How it was done; `None` where only a name was missing.
    pub method: Option<Method>,
}

/// Why files did not change places. After [`Error::Disk`] ask `recover`: the move may have happened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The installed path does not lead to a file.
    #[error("{} is not a regular file; install a release with install.sh", .0.display())]
    NotAFile(PathBuf),
    /// The installed path is a loop or a long chain of links.
    #[error("{} goes through more than {LINKS_LIMIT} links; install the binary at a plain path", .0.display())]
    Links(PathBuf),
    /// Somebody else could change the file or the directory.
    #[error("the installed binary is not safe from other users")]
    Unsafe(#[from] state_dir::Error),
    /// The installed or staged file is not the one that the journal names.
    #[error("{} changed during the update: its SHA-256 is {}, expected {expected}; nothing was replaced", path.display(), shown(*found))]
    Changed {
        /// Which file.
        path: PathBuf,
        /// What the journal says.
        expected: Sha256,
        /// What lies there.
        found: Option<Sha256>,
    },
    /// There is nothing to go back to.
    #[error(
        "no binary with SHA-256 {0} is left beside the installed one to go back to; install a release with install.sh"
    )]
    NoPrevious(Sha256),
    /// The disk failed.
    #[error("cannot exchange the binaries")]
    Disk(#[from] durable::Error),
}

impl Error {
    /// The stable reason word (contract section 1).
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotAFile(_) | Self::Links(_) | Self::Unsafe(_) => Reason::NotWritable,
            Self::Changed { .. } => Reason::Internal,
            Self::NoPrevious(_) => Reason::NoPrevious,
            Self::Disk(error) if error.is_full() => Reason::NoSpace,
            Self::Disk(error) if error.is_not_writable() => Reason::NotWritable,
            Self::Disk(_) => Reason::DiskError,
        }
    }
}

/// One durable change of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// The two files change places in one step.
    Exchange(PathBuf, PathBuf),
    /// The first file gets the second name as well, replacing what is there.
    Link(PathBuf, PathBuf),
    /// The first file takes the place of the second.
    Rename(PathBuf, PathBuf),
}

impl Paths {
    /// Follows the links of an installed path and checks every directory on the way: nobody but root or the caller may
    /// own or write one, nor own the file.
    ///
    /// # Errors
    /// What is wrong with the path.
    pub fn resolve(asked: &Path) -> Result<Self, Error> {
        Ok(Self { asked: asked.to_owned(), ..Self::beside(&follow(asked)?)? })
    }

    /// The names around a target that a journal has recorded; the file itself may be missing.
    ///
    /// # Errors
    /// Where somebody else could change the directory.
    pub fn recorded(target: &Path) -> Result<Self, Error> {
        check_parents(target)?;
        Self::beside(target)
    }

    fn beside(target: &Path) -> Result<Self, Error> {
        let above = durable::parent(target);
        let directory = above.canonicalize().on("resolve", above)?;
        let name = target.file_name().ok_or_else(|| Error::NotAFile(target.to_owned()))?;
        let beside = |suffix: &str| directory.join(format!(".bamf-agent.{suffix}"));
        Ok(Self {
            asked: target.to_owned(),
            installed: directory.join(name),
            staged: beside("new"),
            aside: beside("old"),
            kept: beside("previous"),
            failed: beside("failed"),
        })
    }

    /// What lies at the names, by content, for `recover`.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn look(&self) -> durable::Result<Disk> {
        let hash = |path: &PathBuf| Sha256::of_file(path).on("read", path);
        Ok(Disk {
            installed: hash(&self.installed)?,
            staged: hash(&self.staged)?,
            aside: hash(&self.aside)?,
            kept: hash(&self.kept)?,
        })
    }
}

/// Installs the tried file and keeps the installed one, which must still have the content `old`.
///
/// # Errors
/// [`Error::Changed`] before anything is touched; [`Error::Disk`] in between.
pub fn swap(tried: Tried, old: Sha256, paths: &Paths) -> Result<Swapped, Error> {
    let staged = tried.staged();
    expect_content(&paths.installed, old)?;
    expect_content(staged.path(), staged.sha256())?;
    let method = with_either(|method| forward(paths, method))?;
    Ok(Swapped { method })
}

/// Finishes a swap that was cut off after the new file was installed: the old file gets its name.
///
/// # Errors
/// The disk's, or [`Error::NoPrevious`].
pub fn finish_swap(old: Sha256, paths: &Paths) -> Result<(), Error> {
    let from = find(old, &[&paths.kept, &paths.aside, &paths.staged])?;
    if from != paths.kept {
        Move::Rename(from, paths.kept.clone()).perform()?;
    }
    Ok(())
}

/// Installs the file with the content `old` again, from wherever it is; what was installed becomes `.failed`.
///
/// It can be repeated after a cut: it looks where the files are. It also finishes a restore of which only the last name
/// is missing, and then says so by `method: None`.
///
/// # Errors
/// [`Error::NoPrevious`] where no copy of the old file is left; the disk's.
pub fn restore(old: Sha256, paths: &Paths) -> Result<Restored, Error> {
    if Sha256::of_file(&paths.installed).on("read", &paths.installed)? == Some(old) {
        if Sha256::of_file(&paths.kept).on("read", &paths.kept)?.is_some_and(|kept| kept != old) {
            Move::Rename(paths.kept.clone(), paths.failed.clone()).perform()?;
        }
        return Ok(Restored { method: None });
    }
    finish_swap(old, paths)?;
    if paths.installed.symlink_metadata().is_err() {
        Move::Rename(paths.kept.clone(), paths.installed.clone()).perform()?;
        return Ok(Restored { method: None });
    }
    let method = with_either(|method| back(paths, method))?;
    Ok(Restored { method: Some(method) })
}

/// Removes what a swap that never happened has left.
///
/// # Errors
/// The disk's.
pub fn discard(paths: &Paths) -> durable::Result<()> {
    durable::remove_file(&paths.staged)?;
    durable::remove_file(&paths.aside)
}

/// Removes what is of no use once a version has been found healthy. The kept file stays.
///
/// # Errors
/// The disk's.
pub fn tidy(paths: &Paths) -> durable::Result<()> {
    discard(paths)?;
    durable::remove_file(&paths.failed)
}

/// The moves of a swap.
#[must_use]
pub fn forward(paths: &Paths, method: Method) -> Vec<Move> {
    let Paths { installed, staged, aside, kept, .. } = paths.clone();
    match method {
        Method::Exchange => vec![Move::Exchange(staged.clone(), installed), Move::Rename(staged, kept)],
        // Not straight to `kept`: until the swap has happened the version before is still the one to go back to.
        Method::LinkRename | Method::Unknown => vec![
            Move::Link(installed.clone(), aside.clone()),
            Move::Rename(staged, installed),
            Move::Rename(aside, kept),
        ],
    }
}

/// The moves of a restore, from the kept file.
#[must_use]
pub fn back(paths: &Paths, method: Method) -> Vec<Move> {
    let Paths { installed, kept, failed, .. } = paths.clone();
    match method {
        Method::Exchange => vec![Move::Exchange(kept.clone(), installed), Move::Rename(kept, failed)],
        Method::LinkRename | Method::Unknown => {
            vec![Move::Link(installed.clone(), failed), Move::Rename(kept, installed)]
        }
    }
}

impl Move {
    /// Does it, durably.
    ///
    /// # Errors
    /// The disk's.
    pub fn perform(&self) -> durable::Result<()> {
        match self {
            Self::Exchange(one, other) => durable::exchange(one, other),
            Self::Link(from, to) => {
                durable::remove_file(to)?;
                std::fs::hard_link(from, to).on("link", from)?;
                durable::sync_directory(durable::parent(to))
            }
            Self::Rename(from, to) => {
                durable::rename(from, to)?;
                // rename(2): two names of one file are both left, and success is reported.
                durable::remove_file(from)
            }
        }
    }
}

/// By exchange, or by link and rename where the very first move says that exchange is not supported.
fn with_either(moves: impl Fn(Method) -> Vec<Move>) -> durable::Result<Method> {
    for (position, step) in moves(Method::Exchange).iter().enumerate() {
        match step.perform() {
            Ok(()) => {}
            Err(error) if position == 0 && is_unsupported(&error) => {
                moves(Method::LinkRename).iter().try_for_each(Move::perform)?;
                return Ok(Method::LinkRename);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Method::Exchange)
}

/// renameat2(2): `EINVAL` from file systems, `ENOSYS` from kernels without it.
fn is_unsupported(error: &durable::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

fn find(wanted: Sha256, places: &[&PathBuf]) -> Result<PathBuf, Error> {
    for path in places {
        if Sha256::of_file(path).on("read", path)? == Some(wanted) {
            return Ok((*path).clone());
        }
    }
    Err(Error::NoPrevious(wanted))
}

fn expect_content(path: &Path, expected: Sha256) -> Result<(), Error> {
    let found = Sha256::of_file(path).on("read", path)?;
    if found == Some(expected) { Ok(()) } else { Err(Error::Changed { path: path.to_owned(), expected, found }) }
}

fn follow(asked: &Path) -> Result<PathBuf, Error> {
    let mut path = asked.to_owned();
    for _ in 0..LINKS_LIMIT {
        check_parents(&path)?;
        let about = path.symlink_metadata().on("look at", &path)?;
        if about.is_file() {
            check_file_owner(&path, about.uid())?;
            return Ok(path);
        }
        if !about.is_symlink() {
            return Err(Error::NotAFile(path));
        }
        let to = path.read_link().on("read the link", &path)?;
        path = durable::parent(&path).join(to);
    }
    Err(Error::Links(asked.to_owned()))
}

fn check_file_owner(path: &Path, owner: u32) -> Result<(), state_dir::Error> {
    if owner == 0 || owner == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err(state_dir::Error::Owner { path: path.to_owned(), owner, expected: 0 })
}

fn shown(digest: Option<Sha256>) -> String {
    digest.map_or_else(|| "none (there is no file)".to_owned(), |digest| digest.to_string())
}

#[cfg(test)]
mod tests;
