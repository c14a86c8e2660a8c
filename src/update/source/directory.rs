//! Releases in a directory: `<dir>/<tag>/<asset>`, for machines without a way out.
//!
//! The directory may belong to anybody (a USB stick, a share): its files are copied into the private staging directory
//! before they are judged, as if they came over the network.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use semver::Version;

use super::Error;
use super::download::{Asset, Download, Part, Progress};
use crate::durable::{self, Context};
use crate::update::trust::MAX_ASSET_BYTES;

/// More entries are not looked at.
const MAX_ENTRIES: usize = 10_000;
const COPY_CHUNK_BYTES: usize = 128 << 10;

/// A directory with a directory per tag.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn small(&self, tag: &str, asset: &str, cap: usize) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path.join(tag).join(asset);
        let Some(file) = open(&path)? else { return Ok(None) };
        let mut content = Vec::new();
        file.take((cap as u64).saturating_add(1)).read_to_end(&mut content).on("read", &path)?;
        if content.len() > cap {
            return Err(Error::TooLarge { what: path.display().to_string(), cap_bytes: cap as u64 });
        }
        Ok(Some(content))
    }

    /// Every directory whose name is a version's tag.
    pub(super) fn releases(&self) -> Result<Vec<Version>, Error> {
        let entries = match std::fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if is_missing(&error) => {
                return Err(Error::NotFound { what: format!("the directory {}", self.path.display()) });
            }
            Err(error) => return Err(durable::Error::new("list", &self.path, error).into()),
        };
        let names = entries.flatten().take(MAX_ENTRIES).map(|entry| entry.file_name());
        Ok(names.filter_map(|name| super::github::tagged(name.to_str()?)).collect())
    }

    pub(super) fn copy(
        &self,
        asset: &Asset<'_>,
        staging: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<Download, Error> {
        let path = self.path.join(asset.tag).join(asset.name);
        let what = || path.display().to_string();
        let Some(mut file) = open(&path)? else { return Err(Error::NotFound { what: what() }) };
        let total = file.metadata().on("look at", &path)?.len();
        if total > MAX_ASSET_BYTES {
            return Err(Error::TooLarge { what: what(), cap_bytes: MAX_ASSET_BYTES });
        }
        let mut part = Part::open(staging, asset)?;
        part.restart()?;
        part.reserve(total)?;
        let mut buffer = vec![0; COPY_CHUNK_BYTES];
        loop {
            let read = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(durable::Error::new("read", &path, error).into()),
            };
            part.append(&buffer[..read], &what())?;
            progress(part.length(), Some(total));
        }
        let copied_bytes = part.length();
        match part.finish(asset.sha256) {
            Ok(file) => Ok(Download { file, fetched_bytes: copied_bytes }),
            Err(found) => Err(Error::Hash { what: what(), expected: asset.sha256, found }),
        }
    }
}

/// Opens a regular file; a pipe or a device would keep the updater waiting.
fn open(path: &Path) -> Result<Option<File>, Error> {
    let opened = File::options().read(true).custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits()).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(durable::Error::new("open", path, error).into()),
    };
    if !file.metadata().on("look at", path)?.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(durable::Error::new("read", path, error).into());
    }
    Ok(Some(file))
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
