//! Puts the verified release beside the installed binary, as `.bamf-agent.new`, and proves that it is the verified one.
//!
//! The copy is made in the target's own directory, because only there the swap is one rename, and the label and the file
//! system are those that the binary will be executed from. Bytes come from the open file that was verified, never by a
//! path, and are hashed again while they are copied: what is staged is what was signed, whatever happened to the download
//! in between.

use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::Digest;

use super::digest::Sha256;
use super::elf::{self, Machine};
use super::swap::Paths;
use crate::durable::{self, Context};
use crate::exit::Reason;

const SELINUX_LABEL: &str = "security.selinux";
/// No label is longer than a page.
const LABEL_LIMIT_BYTES: usize = 4096;
const COPY_BUFFER_BYTES: usize = 128 * 1024;
/// The old file's mode counts, but no set-user-id, set-group-id or sticky bit, and nobody but the owner writes a program
/// that root runs.
const PERMISSION_BITS: u32 = 0o755;
/// Where there is no old binary to copy them from.
const DEFAULT_MODE: u32 = 0o755;

/// What the signed list says about the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The signed hash.
    pub sha256: Sha256,
    /// The length in bytes, as downloaded and verified.
    pub size: u64,
    /// The machine that it must be for.
    pub machine: Machine,
}

/// Proof: the file beside the installed binary has the signed content and is on the disk.
#[derive(Debug)]
pub struct Staged {
    /// Invariant: written, hashed and synced by [`stage`], the only constructor.
    path: PathBuf,
    sha256: Sha256,
}

/// Why a file was not staged; nothing stays on the disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not the signed ones.
    #[error("the downloaded file changed after it was verified: its SHA-256 is {found}, signed is {expected}")]
    Changed {
        /// What the list says.
        expected: Sha256,
        /// What was read.
        found: Sha256,
    },
    /// Longer or shorter than what was verified.
    #[error("the downloaded file changed after it was verified: it has {found} bytes instead of {expected}")]
    Size {
        /// What was verified.
        expected: u64,
        /// What was read; reading stops soon after the expected size.
        found: u64,
    },
    /// Not a program for this machine.
    #[error("the release has the wrong file in it")]
    Platform(#[from] elf::Wrong),
    /// The disk failed or is full.
    #[error("cannot stage the new binary")]
    Disk(#[from] durable::Error),
}

impl Error {
    /// The stable reason word (contract section 1).
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Changed { .. } | Self::Size { .. } => Reason::BadChecksum,
            Self::Platform(_) => Reason::WrongPlatform,
            Self::Disk(error) if error.is_full() => Reason::NoSpace,
            Self::Disk(error) if error.is_not_writable() => Reason::NotWritable,
            Self::Disk(_) => Reason::DiskError,
        }
    }
}

impl Staged {
    /// The file beside the installed binary.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its content.
    #[must_use]
    pub const fn sha256(&self) -> Sha256 {
        self.sha256
    }
}

/// Copies the verified `source` to `.bamf-agent.new` beside the installed binary, with that binary's mode, owner and label.
///
/// # Errors
/// Anything wrong with the bytes or the disk; the staged file is removed again.
pub fn stage(mut source: &File, expected: &Expected, paths: &Paths) -> Result<Staged, Error> {
    durable::remove_file(&paths.staged)?;
    let written = source.rewind().on("rewind", &paths.staged).map_err(Error::from);
    let written = written.and_then(|()| write(source, expected, paths));
    if written.is_err() {
        // The first failure is the one to report; `recover` removes what is left.
        let _ = durable::remove_file(&paths.staged);
    }
    written?;
    Ok(Staged { path: paths.staged.clone(), sha256: expected.sha256 })
}

fn write(source: &File, expected: &Expected, paths: &Paths) -> Result<(), Error> {
    // O_CREAT|O_EXCL: a link or file planted in between makes this fail rather than be followed.
    let mut target = durable::create_new(&paths.staged, 0o600)?;
    copy(source, &mut target, expected, &paths.staged)?;
    dress(&target, &paths.installed, &paths.staged)?;
    target.sync_all().on("sync", &paths.staged)?;
    durable::sync_directory(durable::parent(&paths.staged))?;
    Ok(())
}

fn copy(source: &File, target: &mut File, expected: &Expected, path: &Path) -> Result<(), Error> {
    // One byte more than expected is read, so that a longer file is noticed and an endless one is not copied.
    let mut source = source.take(expected.size.saturating_add(1));
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    let mut found: u64 = 0;
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(durable::Error::new("read the download for", path, error).into()),
        };
        let bytes = &buffer[..count];
        if found == 0 {
            elf::check(bytes, expected.machine)?;
        }
        hasher.update(bytes);
        target.write_all(bytes).on("write", path)?;
        found = found.saturating_add(count as u64);
    }
    if found == 0 && expected.size == 0 {
        elf::check(&[], expected.machine)?;
    }
    if found != expected.size {
        return Err(Error::Size { expected: expected.size, found });
    }
    let digest = Sha256::new(hasher.finalize().into());
    if digest != expected.sha256 {
        return Err(Error::Changed { expected: expected.sha256, found: digest });
    }
    Ok(())
}

/// Gives the new file the old one's owner, mode and SELinux label. The mode comes last: chown(2) clears bits.
fn dress(target: &File, installed: &Path, path: &Path) -> durable::Result<()> {
    let mode = match installed.metadata() {
        Ok(old) => {
            let new = target.metadata().on("look at", path)?;
            if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
                std::os::unix::fs::fchown(target, Some(old.uid()), Some(old.gid())).on("set the owner of", path)?;
            }
            copy_label(installed, target).on("set the SELinux label of", path)?;
            old.mode() & PERMISSION_BITS
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => DEFAULT_MODE,
        Err(error) => return Err(durable::Error::new("look at", installed, error)),
    };
    target.set_permissions(Permissions::from_mode(mode)).on("set the mode of", path)
}

/// A wrong label makes systemd fail with 203/EXEC. No label to copy, no support for labels, or the right label already
/// (the directory's policy gave it) is fine.
fn copy_label(from: &Path, to: &File) -> io::Result<()> {
    let mut wanted = vec![0_u8; LABEL_LIMIT_BYTES];
    let length = match rustix::fs::getxattr(from, SELINUX_LABEL, &mut wanted[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut present = vec![0_u8; LABEL_LIMIT_BYTES];
    if rustix::fs::fgetxattr(to, SELINUX_LABEL, &mut present[..])
        .is_ok_and(|found| present[..found] == wanted[..length])
    {
        return Ok(());
    }
    Ok(rustix::fs::fsetxattr(to, SELINUX_LABEL, &wanted[..length], rustix::fs::XattrFlags::empty())?)
}

#[cfg(test)]
mod tests;
