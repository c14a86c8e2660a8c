//! Fetches a release's file into staging: resumed where it broke off, hashed on the way, within its limits.
//!
//! What has arrived lies in `<tag>-<asset>-<hash>.part`. Its name contains the signed hash, so that it never belongs to
//! another file, and the validator of the answer that it came from lies beside it, so that `If-Range` (RFC 9110, 13.1.5)
//! joins only bytes of one file. Should a source join the wrong bytes all the same, the hash tells, and the file is
//! fetched once more from its first byte.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{Response, StatusCode};
use sha2::Digest;
use url::Url;

use super::Error;
use super::request::{self, Failure, Tries, Web};
use crate::durable::{self, Context};
use crate::http;
use crate::update::digest::Sha256;
use crate::update::trust::MAX_ASSET_BYTES;

/// An attempt that brought this much was worth it.
const PROGRESS_BYTES: u64 = 64 << 10;
const READ_CHUNK_BYTES: usize = 128 << 10;
/// Longer ones are not kept.
const MAX_VALIDATOR_BYTES: u64 = 256;

/// What to fetch.
#[derive(Clone, Copy, Debug)]
pub struct Asset<'a> {
    /// The release, `vX.Y.Z`.
    pub tag: &'a str,
    /// The file's name, as the signed checksums list it.
    pub name: &'a str,
    /// The signed hash.
    pub sha256: Sha256,
}

/// Called with the bytes so far, and those in all where that is known.
pub type Progress<'a> = dyn FnMut(u64, Option<u64>) + 'a;

/// A file that arrived.
#[derive(Debug)]
pub struct Download {
    /// The open file, hashed while it was written, for [`crate::update::trust::SignedChecksums::accept`].
    pub file: File,
    /// What came from the source this time: less than the file's size where an earlier attempt had left some.
    pub fetched_bytes: u64,
}

/// Fetches `asset` from `url`.
pub(super) async fn fetch(
    web: &Web,
    url: &Url,
    asset: &Asset<'_>,
    staging: &Path,
    progress: &mut Progress<'_>,
) -> Result<Download, Error> {
    let mut part = Part::open(staging, asset)?;
    if part.hash() == asset.sha256 {
        progress(part.length(), Some(part.length()));
        return Ok(Download { file: part.file, fetched_bytes: 0 });
    }
    let mut tries = Tries::new(web.patience);
    let mut fetched_bytes = 0_u64;
    let mut restarted = false;
    loop {
        let outcome = attempt(web, url, &mut part, progress, &mut fetched_bytes).await;
        if let Err((failure, got)) = outcome {
            if got >= PROGRESS_BYTES {
                tries.progressed();
            }
            part.make_room(&failure);
            tries.after(failure).await?;
            continue;
        }
        let found = part.hash();
        if found == asset.sha256 {
            return Ok(Download { file: part.file, fetched_bytes });
        }
        // Bytes of two files may have been joined; bytes of one were not.
        let joined = part.joined;
        part.restart()?;
        if !joined || restarted {
            part.remove()?;
            return Err(Error::Hash { what: http::shown(url), expected: asset.sha256, found });
        }
        restarted = true;
    }
}

/// One request. On failure also says how many bytes it brought before.
async fn attempt(
    web: &Web,
    url: &Url,
    part: &mut Part,
    progress: &mut Progress<'_>,
    fetched_bytes: &mut u64,
) -> Result<(), (Failure, u64)> {
    let before = *fetched_bytes;
    let outcome = match ask(web, url, part).await {
        Ok(response) => receive(response, url, part, progress, fetched_bytes).await,
        Err(failure) => Err(failure),
    };
    outcome.map_err(|failure| (failure, fetched_bytes.saturating_sub(before)))
}

async fn ask(web: &Web, url: &Url, part: &Part) -> Result<Response, Failure> {
    // A compressed answer would be another file.
    let mut request = web.client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
    if let (Some(validator), 1..) = (&part.validator, part.length()) {
        request = request.header(RANGE, format!("bytes={}-", part.length())).header(IF_RANGE, validator);
    }
    request.send().await.map_err(|error| request::transport(url, error))
}

async fn receive(
    mut response: Response,
    url: &Url,
    part: &mut Part,
    progress: &mut Progress<'_>,
    fetched_bytes: &mut u64,
) -> Result<(), Failure> {
    if response.status().is_success() && request::is_web_page(response.headers()) {
        let begin = response.chunk().await.ok().flatten().unwrap_or_default();
        return Err(request::web_page(url, &begin).into());
    }
    let total = begin(&response, url, part)?;
    while let Some(chunk) = response.chunk().await.map_err(|error| cut_off(url, part, total, error))? {
        if part.length() == 0 && request::begins_like_a_web_page(&chunk) {
            return Err(request::web_page(url, &chunk).into());
        }
        part.append(&chunk, &http::shown(url))?;
        *fetched_bytes = fetched_bytes.saturating_add(chunk.len() as u64);
        progress(part.length(), total);
    }
    match total {
        Some(announced) if part.length() < announced => Err(truncated(url, part, announced)),
        _ => Ok(()),
    }
}

/// Takes the answer's head: puts the part in the state that the body continues, and says how long the whole file is.
fn begin(response: &Response, url: &Url, part: &mut Part) -> Result<Option<u64>, Failure> {
    let status = response.status();
    let restart = |part: &mut Part, error: Error| match part.restart() {
        Ok(()) => Failure::Again { error, after: None },
        Err(error) => error.into(),
    };
    let unexpected = || Error::Status { url: http::shown(url), status, retry_after_seconds: None };
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        return Err(restart(part, unexpected()));
    }
    request::check(response, url)?;
    let total = if status == StatusCode::PARTIAL_CONTENT {
        match content_range(response.headers()) {
            Some((first, total)) if first == part.length() && first > 0 => {
                part.joined = true;
                Some(total)
            }
            _ => return Err(restart(part, unexpected())),
        }
    } else {
        part.restart()?;
        part.set_validator(validator(response.headers()))?;
        response.content_length()
    };
    if let Some(total) = total {
        if total > MAX_ASSET_BYTES {
            return Err(Error::TooLarge { what: http::shown(url), cap_bytes: MAX_ASSET_BYTES }.into());
        }
        part.reserve(total)?;
    }
    Ok(total)
}

/// A body that broke off: too short, unless it was the waiting that ended it.
fn cut_off(url: &Url, part: &Part, total: Option<u64>, error: reqwest::Error) -> Failure {
    match total {
        Some(announced) if !error.is_timeout() && part.length() < announced => truncated(url, part, announced),
        _ => request::transport(url, error),
    }
}

fn truncated(url: &Url, part: &Part, announced_bytes: u64) -> Failure {
    let error = Error::Truncated { url: http::shown(url), got_bytes: part.length(), announced_bytes };
    Failure::Again { error, after: None }
}

/// First byte and length of the whole, from `bytes 5-9/10`.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total) = (first.parse().ok()?, last.parse::<u64>().ok()?, total.parse().ok()?);
    // Anything but the rest of the file was not asked for.
    (first <= last && last.checked_add(1) == Some(total)).then_some((first, total))
}

/// What `If-Range` may carry: a strong entity tag, else the time of the last change.
fn validator(headers: &HeaderMap) -> Option<HeaderValue> {
    let strong = headers.get(ETAG).filter(|etag| etag.as_bytes().starts_with(b"\""));
    strong
        .or_else(|| headers.get(LAST_MODIFIED))
        .filter(|value| value.len() as u64 <= MAX_VALIDATOR_BYTES && value.to_str().is_ok())
        .cloned()
}

/// A file that is arriving.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    /// Invariant: its position is at the end, and `hasher` has seen all of it.
    file: File,
    hasher: sha2::Sha256,
    length: u64,
    /// What the answer was identified by that the bytes came from.
    validator: Option<HeaderValue>,
    /// The bytes came from more than one answer.
    joined: bool,
}

impl Part {
    /// Opens what an earlier attempt left in `staging`, or begins.
    pub(super) fn open(staging: &Path, asset: &Asset<'_>) -> Result<Self, Error> {
        let hash = asset.sha256.to_string();
        let path = staging.join(format!("{}-{}-{}.part", asset.tag, asset.name, &hash[..16]));
        let file = match reopen(&path)? {
            Some(file) => file,
            None => durable::create_new(&path, 0o600)?,
        };
        let mut part = Self { path, file, hasher: sha2::Sha256::new(), length: 0, validator: None, joined: false };
        part.take_in()?;
        part.validator = part.read_validator();
        Ok(part)
    }

    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    fn hash(&self) -> Sha256 {
        Sha256::new(self.hasher.clone().finalize().into())
    }

    /// Hashes what is there already.
    fn take_in(&mut self) -> Result<(), Error> {
        self.file.seek(SeekFrom::Start(0)).on("read", &self.path)?;
        let mut buffer = vec![0; READ_CHUNK_BYTES];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    self.hasher.update(&buffer[..read]);
                    self.length = self.length.saturating_add(read as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(durable::Error::new("read", &self.path, error).into()),
            }
        }
        if self.length > MAX_ASSET_BYTES { self.restart() } else { Ok(()) }
    }

    /// Forgets all bytes.
    pub(super) fn restart(&mut self) -> Result<(), Error> {
        self.file.set_len(0).on("empty", &self.path)?;
        self.file.seek(SeekFrom::Start(0)).on("empty", &self.path)?;
        self.hasher = sha2::Sha256::new();
        self.length = 0;
        self.joined = false;
        self.set_validator(None)
    }

    /// Adds bytes, as long as the file stays within its limit.
    pub(super) fn append(&mut self, bytes: &[u8], what: &str) -> Result<(), Error> {
        let length = self.length.saturating_add(bytes.len() as u64);
        if length > MAX_ASSET_BYTES {
            self.remove()?;
            return Err(Error::TooLarge { what: what.to_owned(), cap_bytes: MAX_ASSET_BYTES });
        }
        self.file.write_all(bytes).on("write", &self.path)?;
        self.hasher.update(bytes);
        self.length = length;
        Ok(())
    }

    /// Asks the file system for the room, so that a full disk is known before the download and not at its end.
    pub(super) fn reserve(&self, total: u64) -> Result<(), Error> {
        let Ok(length) = i64::try_from(total) else { return Ok(()) };
        if length == 0 {
            return Ok(());
        }
        match nix::fcntl::fallocate(self.file.as_fd(), FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
            Err(error @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) => {
                Err(durable::Error::new("reserve room for", &self.path, error.into()).into())
            }
            // Not every file system can; writing will tell.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The open file if it is the expected one; otherwise it is removed, and its hash returned.
    pub(super) fn finish(self, expected: Sha256) -> Result<File, Sha256> {
        let found = self.hash();
        if found == expected {
            return Ok(self.file);
        }
        // What cannot be removed now is restarted from zero by the next attempt.
        drop(self.remove());
        Err(found)
    }

    /// A full disk troubles more than this update: what was fetched goes first.
    fn make_room(&self, failure: &Failure) {
        if let Failure::Never(Error::Disk(error)) = failure
            && error.is_full()
        {
            drop(self.remove());
        }
    }

    fn remove(&self) -> Result<(), Error> {
        durable::remove_file(&self.validator_path())?;
        Ok(durable::remove_file(&self.path)?)
    }

    fn validator_path(&self) -> PathBuf {
        self.path.with_extension("validator")
    }

    fn set_validator(&mut self, validator: Option<HeaderValue>) -> Result<(), Error> {
        match &validator {
            Some(value) => durable::write(&self.validator_path(), value.as_bytes(), 0o600)?,
            None => durable::remove_file(&self.validator_path())?,
        }
        self.validator = validator;
        Ok(())
    }

    fn read_validator(&self) -> Option<HeaderValue> {
        let file = reopen(&self.validator_path()).ok()??;
        let mut text = Vec::new();
        file.take(MAX_VALIDATOR_BYTES).read_to_end(&mut text).ok()?;
        HeaderValue::from_bytes(&text).ok().filter(|value| !value.is_empty())
    }
}

/// Opens an existing file of ours. Anything else under its name is removed: it was not put there by this program.
fn reopen(path: &Path) -> Result<Option<File>, Error> {
    let opened = File::options()
        .read(true)
        .write(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(path);
    match opened {
        Ok(file) => {
            let about = file.metadata().on("look at", path)?;
            let ours = about.is_file()
                && about.nlink() == 1
                && about.uid() == nix::unistd::geteuid().as_raw()
                && about.mode() & 0o077 == 0;
            if ours {
                return Ok(Some(file));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // A link, a directory, a socket: the removal below says what is the matter if it cannot help.
        Err(_) => {}
    }
    durable::remove_file(path)?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(reqwest::header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_the_rest_of_the_file_counts_as_its_continuation() {
        for (text, expected) in [
            ("bytes 5-9/10", Some((5, 10))),
            ("bytes 0-9/10", Some((0, 10))),
            ("bytes 5-8/10", None),
            ("bytes 9-5/10", None),
            ("bytes 5-9/*", None),
            ("bytes */10", None),
            ("items 5-9/10", None),
            ("bytes 5-18446744073709551615/0", None),
            ("bytes -5-9/10", None),
        ] {
            assert_eq!(content_range(&headers(&[(CONTENT_RANGE, text)])), expected, "{text}");
        }
    }

    #[test]
    fn a_file_does_not_grow_beyond_its_limit_and_is_gone_then() {
        let staging = tempfile::tempdir().unwrap();
        let mut part =
            Part::open(staging.path(), &Asset { tag: "v1.2.0", name: "a", sha256: Sha256::new([7; 32]) }).unwrap();
        part.length = MAX_ASSET_BYTES - 1;
        part.append(b"x", "a").unwrap();
        assert!(matches!(part.append(b"x", "a").unwrap_err(), Error::TooLarge { .. }));
        assert_eq!(std::fs::read_dir(staging.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_weak_tag_does_not_identify_bytes() {
        let date = "Wed, 21 Oct 2015 07:28:00 GMT";
        assert_eq!(validator(&headers(&[(ETAG, "\"a\""), (LAST_MODIFIED, date)])).unwrap(), "\"a\"");
        assert_eq!(validator(&headers(&[(ETAG, "W/\"a\""), (LAST_MODIFIED, date)])).unwrap(), date);
        assert_eq!(validator(&headers(&[(ETAG, "W/\"a\"")])), None);
        assert_eq!(validator(&headers(&[(ETAG, &format!("\"{}\"", "a".repeat(300)))])), None);
    }
}
