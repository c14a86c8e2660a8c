//! The only place that renames and syncs: what it reports as written is on the disk.
//!
//! A file is written to a temporary name in its own directory, synced, renamed over the target, and the directory is
//! synced. A crash or power cut at any instant leaves the old content or the new, never a mixture and never an empty
//! file (the state that `rename` without `fsync` permits: fsync(2), "does not necessarily ensure that the entry in the
//! directory containing the file has also reached disk").

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A failed disk operation, with what was tried on which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct Error {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Error {
    /// Wraps an I/O error with the operation ("write", "rename", …) and the path that it concerns.
    pub fn new(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self { operation, path: path.into(), source }
    }

    /// The kind of the I/O error underneath.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// True where the disk or a quota is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// True where the file system is mounted read-only or the permission is missing.
    #[must_use]
    pub fn is_not_writable(&self) -> bool {
        matches!(self.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
    }
}

/// Result of a disk operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Attaches the operation and path to an I/O error.
pub trait Context<T> {
    /// Names what was tried, and on which path.
    ///
    /// # Errors
    /// The same failure, with its context.
    fn on(self, operation: &'static str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, operation: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::new(operation, path, source))
    }
}

/// Replaces `path` by `content` with permission bits `mode`, atomically and durably.
///
/// # Errors
/// Whatever the file system says; the old content is then still in place.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let directory = parent(path);
    let mut temporary = tempfile::Builder::new()
        .prefix(".bamf-agent.")
        .suffix(".tmp")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory)
        .on("create a temporary file in", directory)?;
    // The umask narrows what `open` was asked for; the mode is part of the promise.
    temporary.as_file().set_permissions(Permissions::from_mode(mode)).on("set the mode of", path)?;
    temporary.write_all(content).on("write", path)?;
    temporary.as_file().sync_all().on("sync", path)?;
    temporary.persist(path).map_err(|error| Error::new("rename into place", path, error.error))?;
    sync_directory(directory)
}

/// Creates a new file for writing; fails where one exists, and never follows a link.
///
/// # Errors
/// Whatever the file system says.
pub fn create_new(path: &Path, mode: u32) -> Result<File> {
    OpenOptions::new().write(true).read(true).create_new(true).mode(mode).open(path).on("create", path)
}

/// Opens a regular file for reading, links followed; `InvalidInput` for anything else.
///
/// For files in a directory that somebody else can write: opening a FIFO would wait for its other end, opening a device
/// can have effects. It is asked before and after, because what lies there may change in between.
///
/// # Errors
/// Whatever the file system says.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let regular = |about: &std::fs::Metadata| {
        about.is_file().then_some(()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    };
    regular(&path.metadata()?)?;
    let flags = nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

/// Appends one line to a log-like file and syncs it. A missing file is created with `mode`.
///
/// # Errors
/// Whatever the file system says.
pub fn append_line(path: &Path, line: &str, mode: u32) -> Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(mode).open(path).on("open", path)?;
    // One write, so that a crash leaves at most one torn line, at the end, which readers skip.
    file.write_all(format!("{line}\n").as_bytes()).on("append to", path)?;
    file.sync_all().on("sync", path)?;
    sync_directory(parent(path))
}

/// Renames within one file system and makes it durable. Both directories are synced if they differ.
///
/// # Errors
/// Whatever the file system says.
#[expect(clippy::disallowed_methods, reason = "the one place that renames")]
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).on("rename", from)?;
    sync_directory(parent(to))?;
    if parent(from) != parent(to) {
        sync_directory(parent(from))?;
    }
    Ok(())
}

/// Lets two files change places in one step (`renameat2(RENAME_EXCHANGE)`), durably.
///
/// # Errors
/// `Unsupported` or `InvalidInput` where the file system does not know the operation.
pub fn exchange(one: &Path, other: &Path) -> Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)
        .map_err(io::Error::from)
        .on("exchange", one)?;
    sync_directory(parent(one))?;
    if parent(one) != parent(other) {
        sync_directory(parent(other))?;
    }
    Ok(())
}

/// Removes a file durably; a missing one is fine.
///
/// # Errors
/// Whatever the file system says.
pub fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_directory(parent(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::new("remove", path, error)),
    }
}

/// Removes a directory with all it holds, durably; a missing one is fine.
///
/// # Errors
/// Whatever the file system says.
pub fn remove_directory(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => sync_directory(parent(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::new("remove", path, error)),
    }
}

/// Creates a directory and its parents where missing, the last one with `mode`.
///
/// # Errors
/// Whatever the file system says.
pub fn create_directory(path: &Path, mode: u32) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        std::fs::create_dir_all(above).on("create", above)?;
    }
    match std::fs::create_dir(path) {
        Ok(()) => std::fs::set_permissions(path, Permissions::from_mode(mode)).on("set the mode of", path)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        Err(error) => return Err(Error::new("create", path, error)),
    }
    sync_directory(parent(path))
}

/// Flushes a directory's entries to the disk.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|directory| directory.sync_all()).on("sync", path)
}

/// The directory that holds `path`; `.` for a bare name.
#[must_use]
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_content_and_sets_the_mode_whatever_the_umask() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.key");
        write(&path, b"old", 0o600).unwrap();
        write(&path, b"new", 0o644).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_failed_write_names_the_operation_and_leaves_the_old_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing").join("agent.key");
        let error = write(&path, b"new", 0o600).unwrap_err();
        assert!(error.to_string().contains("create a temporary file in"), "{error}");
    }

    #[test]
    fn only_a_regular_file_is_opened_and_a_link_to_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        write(&path("file"), b"text", 0o600).unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        std::fs::create_dir(path("directory")).unwrap();
        let links = ["file", "fifo", "/dev/zero"].map(|target| {
            let link = path(&format!("link to {}", target.trim_start_matches("/dev/")));
            std::os::unix::fs::symlink(target, &link).unwrap();
            link
        });
        for good in [&path("file"), &links[0]] {
            assert_eq!(io::read_to_string(open_regular(good).unwrap()).unwrap(), "text");
        }
        for bad in [&path("fifo"), &path("socket"), &path("directory"), &links[1], &links[2]] {
            assert_eq!(open_regular(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", bad.display());
        }
        assert_eq!(open_regular(&path("missing")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_exchange_swaps_the_two_files() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        write(&one, b"1", 0o600).unwrap();
        write(&other, b"2", 0o600).unwrap();
        exchange(&one, &other).unwrap();
        assert_eq!((std::fs::read(&one).unwrap(), std::fs::read(&other).unwrap()), (b"2".to_vec(), b"1".to_vec()));
    }

    #[test]
    fn what_is_already_gone_can_be_removed() {
        let directory = tempfile::tempdir().unwrap();
        remove_file(&directory.path().join("nothing")).unwrap();
        remove_directory(&directory.path().join("nothing")).unwrap();
    }
}
