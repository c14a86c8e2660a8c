//! Reading, filling and moving the three files of a set.

use std::io::{self, Read as _, Write};
use std::path::Path;

use super::super::Material;
use crate::durable::{self, Context};
use crate::secret::Secret;

/// Names that the Go agent uses too (protocol 4.2).
pub(super) const CERTIFICATE: &str = "agent.crt";
pub(super) const KEY: &str = "agent.key";
pub(super) const AUTHORITY: &str = "ca.crt";

/// In the order in which they are moved into place: the key first, as protocol 4.2 advises.
pub(super) const NAMES: [&str; 3] = [KEY, CERTIFICATE, AUTHORITY];

/// Held for each file before the platform is asked; certificates are below 2 KiB today.
const RESERVED_BYTES: usize = 16 * 1024;
/// No honest file is larger; a larger one is refused unread.
const MAX_BYTES: u64 = 1024 * 1024;

/// What a directory holds of a set.
pub(super) enum Read {
    /// Neither certificate nor key.
    Nothing,
    /// Some files; the named one is missing.
    Partial(&'static str),
    /// Something else lies where the named file should; container engines make a directory where a mounted file is
    /// missing.
    NotAFile(&'static str),
    /// All three.
    Whole(Material),
}

pub(super) fn read(directory: &Path) -> durable::Result<Read> {
    let is_odd = |name: &&str| directory.join(name).metadata().is_ok_and(|about| !about.is_file());
    if let Some(name) = NAMES.into_iter().find(is_odd) {
        return Ok(Read::NotAFile(name));
    }
    let certificate = read_one(&directory.join(CERTIFICATE))?;
    let key = read_one(&directory.join(KEY))?;
    Ok(match (certificate, key) {
        (None, None) => Read::Nothing,
        (None, Some(_)) => Read::Partial(CERTIFICATE),
        (Some(_), None) => Read::Partial(KEY),
        (Some(certificate_pem), Some(private_key_pem)) => match read_one(&directory.join(AUTHORITY))? {
            None => Read::Partial(AUTHORITY),
            Some(ca) => Read::Whole(Material { certificate_pem, private_key_pem, ca_pem: ca.expose().to_owned() }),
        },
    })
}

fn read_one(path: &Path) -> durable::Result<Option<Secret>> {
    let file = match durable::open_regular(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(durable::Error::new("read", path, error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).on("read", path)?;
    // What is not text is not PEM; the check that follows says so by the file's name.
    Ok(Some(Secret::new(String::from_utf8(bytes).unwrap_or_default())))
}

pub(super) fn reserve(staging: &Path) -> durable::Result<()> {
    durable::remove_directory(staging)?;
    durable::create_directory(staging, 0o700)?;
    for name in NAMES {
        let path = staging.join(name);
        let mut file = durable::create_new(&path, mode(name))?;
        file.write_all(&[b'\n'; RESERVED_BYTES]).on("reserve space for", &path)?;
        file.sync_all().on("reserve space for", &path)?;
    }
    durable::sync_directory(staging)
}

/// Writes the texts over the reserved space, so that a full disk cannot refuse them.
pub(super) fn fill(staging: &Path, material: &Material) -> durable::Result<()> {
    let texts = [
        (KEY, material.private_key_pem.expose()),
        (CERTIFICATE, material.certificate_pem.expose()),
        (AUTHORITY, material.ca_pem.as_str()),
    ];
    for (name, text) in texts {
        let path = staging.join(name);
        let mut file = std::fs::OpenOptions::new().write(true).open(&path).on("open", &path)?;
        file.write_all(text.as_bytes()).on("write", &path)?;
        file.set_len(text.len() as u64).on("write", &path)?;
        file.sync_all().on("sync", &path)?;
    }
    durable::sync_directory(staging)
}

/// Lets `to` be the file at `from`, which stays where it is: repeating it changes nothing.
pub(super) fn move_into_place(from: &Path, to: &Path) -> durable::Result<()> {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let link = to.with_file_name(format!(".{name}.new"));
    durable::remove_file(&link)?;
    if to.is_dir() {
        // Only an empty one goes; what somebody put into it is not ours to delete.
        std::fs::remove_dir(to).on("remove the directory", to)?;
    }
    // A link needs no space; where the file system has none, a copy does.
    if std::fs::hard_link(from, &link).is_err() {
        copy(from, &link)?;
    }
    durable::rename(&link, to)?;
    // rename(2) does nothing at all when both names are links to one file.
    durable::remove_file(&link)
}

pub(super) fn copy(from: &Path, to: &Path) -> durable::Result<()> {
    let content = std::fs::read(from).on("read", from)?;
    let name = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
    durable::write(to, &content, mode(&name))
}

fn mode(name: &str) -> u32 {
    if name == AUTHORITY { 0o644 } else { 0o600 }
}
