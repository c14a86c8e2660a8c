//! `state.json`: what the updater is in the middle of, written and synced before every step that may have to be undone.
//!
//! A crash, a power cut or the guard finds here which two files take part, by hash, and how far the change had come;
//! `recover` turns that into the next step. Both an older and a newer agent read it (after a restore the old one reads what
//! the new one wrote), so unknown fields are kept and unknown words are read as `unknown`. A journal that cannot be read
//! is set aside, never obeyed and never in the way: updaters that trusted a broken marker rolled good versions back.
//!
//! There are two writers: while the updater watches a trial, the guard counts the starts. Both go through
//! [`Journal::change`], which reads, changes and writes under a lock of its own, held for that long only. (The updater's
//! lock is held for the whole transaction; a guard that waited for it would keep the service from starting.)

use std::fs::{File, TryLockError};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::digest::Sha256;
use crate::durable::{self, Context};
use crate::exit::Reason;

/// The version that this code writes. Readers go by the fields they know, so it only tells people and tools.
pub const VERSION: u32 = 1;

/// After this many recorded steps a transaction is going in circles.
pub const STEPS_LIMIT: u32 = 32;

/// A start of a version on trial beyond this many restores the old one (contract: "after the third").
pub const STARTS_LIMIT: u32 = 3;

/// A journal is a few kilobytes; whatever is larger is not one.
const SIZE_LIMIT_BYTES: u64 = 1024 * 1024;
/// Enough to see that it happens again and again, few enough to fill no disk.
const SET_ASIDE_LIMIT: u32 = 5;
/// A writer needs milliseconds, on a struggling disk seconds; one that is stopped must not stop the service's start.
const LOCK_TRIES: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Versions rolled back on one machine that are remembered.
const KNOWN_BAD_LIMIT: usize = 32;

/// The whole of `state.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Journal {
    /// The format's version, see [`VERSION`].
    pub version: u32,
    /// The change in progress; none between updates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction: Option<Transaction>,
    /// The version that the operator wants to stay on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// Versions that were rolled back here, oldest first.
    pub known_bad: Vec<KnownBad>,
    /// What a newer updater wrote, kept for it.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// How far a change has come. Each step is recorded before it is done, unless its name says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The release is downloaded and verified; nothing else is touched.
    Fetched,
    /// The staged file, beside the installed one, has passed its own checks.
    Tried,
    /// The files are about to change places.
    Swapping,
    /// The files have changed places.
    Swapped,
    /// The service is about to be restarted.
    Restarting,
    /// The service was restarted and is being watched.
    Trial,
    /// The new version is healthy; history is written and leftovers go.
    Committing,
    /// The old file is about to be put back.
    Restoring,
    /// The old file is back; the service is about to be restarted.
    Restored,
    /// A word of a newer updater: the disk decides.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What is being done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Forward to a release (which may be an older one, if allowed).
    #[default]
    Update,
    /// Back to the kept file, because the operator said so.
    Rollback,
    /// A word of a newer updater; it goes from the old file to the new one, as an update.
    #[serde(other)]
    Unknown,
}

/// How the files change places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// `renameat2(RENAME_EXCHANGE)`.
    Exchange,
    /// Hard link and rename, where the file system does not know the exchange.
    LinkRename,
    /// A word of a newer updater. Nothing is decided by it.
    #[serde(other)]
    Unknown,
}

/// One of the two files of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binary {
    /// Its version; the Go agent's binary does not carry one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its content.
    pub sha256: Sha256,
}

/// Who the agent was before the change, to recognise it after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// The agent's name.
    pub agent_name: String,
    /// The platform's id for it, where it was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// SHA-256 of the certificate, in lower-case hexadecimal.
    pub certificate_sha256: String,
    /// The certificate's `not_before`, RFC 3339: a renewed certificate is a newer one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_not_before: Option<String>,
}

/// The service as it was before the change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceBefore {
    /// The unit's name.
    pub unit: String,
    /// It was running, so it is restarted and watched.
    pub was_running: bool,
    /// The operator wants no restart (`--no-restart`): the trial begins with the next start.
    pub no_restart: bool,
    /// Its main process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub main_pid: Option<u32>,
    /// systemd's count of automatic restarts.
    pub restarts: u32,
    /// Sessions that were open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u64>,
}

/// When something began. The wall clock is for people only; the rest survives its changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Began {
    /// RFC 3339, for display.
    pub at: String,
    /// The boot that `boottime_ms` counts from (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// `CLOCK_BOOTTIME` in milliseconds.
    pub boottime_ms: u64,
}

/// Why the old file is being put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The stable word of contract section 1.
    pub reason: String,
    /// The sentence for people.
    pub message: String,
}

/// One change of the installed file, from the first step to the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transaction {
    /// A random id; the history's record carries it too.
    pub id: String,
    /// What is being done.
    #[serde(default)]
    pub action: Action,
    /// How far it has come.
    #[serde(default)]
    pub step: Step,
    /// How many steps were recorded, see [`STEPS_LIMIT`].
    #[serde(default)]
    pub steps: u32,
    /// The file to fall back on; in a rollback, the one that is returned to.
    pub old: Binary,
    /// The file on trial; in a rollback, the one that is left.
    pub new: Binary,
    /// The installed path with its links resolved.
    pub target: PathBuf,
    /// Where the old file is kept.
    pub kept: PathBuf,
    /// How the files changed places, once they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// The whole change.
    #[serde(default)]
    pub began: Began,
    /// The present trial; replaced when it is resumed after a reboot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Began>,
    /// How long the new version may take, in milliseconds; the guard needs it without the configuration.
    #[serde(default)]
    pub health_timeout_ms: u64,
    /// Starts of the version on trial, counted by the guard, see [`STARTS_LIMIT`].
    #[serde(default)]
    pub starts: u32,
    /// The service before the change.
    #[serde(default)]
    pub service: ServiceBefore,
    /// Who the agent should be afterwards, where it could be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Where the release came from.
    #[serde(default)]
    pub source: String,
    /// Who asked for it.
    #[serde(default)]
    pub by: String,
    /// Why it is being undone, from `restoring` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// What a newer updater wrote, kept for it.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// `bamf-agent pin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The version to stay on.
    pub version: String,
    /// Since when, RFC 3339.
    #[serde(default)]
    pub at: String,
    /// Who pinned it.
    #[serde(default)]
    pub by: String,
}

/// A version that was rolled back here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownBad {
    /// The version.
    pub version: String,
    /// Why, in a sentence.
    #[serde(default)]
    pub reason: String,
    /// When, RFC 3339.
    #[serde(default)]
    pub at: String,
}

/// A journal as found.
#[derive(Debug)]
pub struct Loaded {
    /// What to go by; empty where there was none, or none that could be read.
    pub journal: Journal,
    /// Where an unreadable one was moved to: the disk has to tell the state.
    pub set_aside: Option<PathBuf>,
}

impl Journal {
    /// Reads the journal at `path`; one that cannot be understood is moved to `<path>.corrupt-<n>`.
    ///
    /// # Errors
    /// Only where the disk fails; a missing or broken journal is no error.
    pub fn load(path: &Path) -> durable::Result<Loaded> {
        let Some(text) = read(path)? else {
            return Ok(Loaded { journal: Self::empty(), set_aside: None });
        };
        match Self::parse(&text) {
            Some(journal) => Ok(Loaded { journal, set_aside: None }),
            None => Ok(Loaded { journal: Self::empty(), set_aside: Some(set_aside(path)?) }),
        }
    }

    /// Reads the journal at `path` and changes nothing on disk; `None` where it is missing or broken. For `status`.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn peek(path: &Path) -> durable::Result<Option<Self>> {
        Ok(read(path)?.and_then(|text| Self::parse(&text)))
    }

    /// Changes the journal at `path` in one go: what another writer has written meanwhile is kept. On the disk when this
    /// returns; returns what was written.
    ///
    /// # Errors
    /// The disk's, or `TimedOut` where another writer hangs; the old journal is then still in place.
    pub fn change(path: &Path, change: impl FnOnce(&mut Self)) -> durable::Result<Self> {
        let _locked = lock(path)?;
        let mut journal = Self::load(path)?.journal;
        change(&mut journal);
        journal.store(path)?;
        Ok(journal)
    }

    /// Changes the transaction in progress, if there is one, as [`Journal::change`] does.
    ///
    /// # Errors
    /// As [`Journal::change`].
    pub fn change_transaction(path: &Path, change: impl FnOnce(&mut Transaction)) -> durable::Result<Self> {
        Self::change(path, |journal| {
            if let Some(transaction) = &mut journal.transaction {
                change(transaction);
            }
        })
    }

    /// Writes the journal, on the disk when this returns.
    ///
    /// # Errors
    /// The disk's; the old journal is then still in place.
    fn store(&self, path: &Path) -> durable::Result<()> {
        let written = Self { version: VERSION.max(self.version), ..self.clone() };
        let mut text = serde_json::to_vec_pretty(&written).map_err(std::io::Error::other).on("encode", path)?;
        text.push(b'\n');
        durable::write(path, &text, 0o600)
    }

    /// Remembers a version as bad; the same one again moves to the end, and the oldest go beyond the limit.
    pub fn mark_bad(&mut self, bad: KnownBad) {
        self.known_bad.retain(|known| known.version != bad.version);
        self.known_bad.push(bad);
        let excess = self.known_bad.len().saturating_sub(KNOWN_BAD_LIMIT);
        self.known_bad.drain(..excess);
    }

    /// Forgets that a version was bad, after it was installed on demand and became healthy.
    pub fn clear_bad(&mut self, version: &str) {
        self.known_bad.retain(|known| known.version != version);
    }

    /// The entry of a version that was rolled back here.
    #[must_use]
    pub fn bad(&self, version: &str) -> Option<&KnownBad> {
        self.known_bad.iter().find(|known| known.version == version)
    }

    fn empty() -> Self {
        Self { version: VERSION, transaction: None, pin: None, known_bad: Vec::new(), unknown: Map::new() }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(text).ok().filter(|journal| journal.version > 0)
    }
}

impl Transaction {
    /// Goes to `step`. The journal is written before the step is done.
    pub const fn enter(&mut self, step: Step) {
        self.step = step;
        self.steps = self.steps.saturating_add(1);
    }

    /// Goes to `restoring`, with the reason for people and for the history.
    pub fn enter_restore(&mut self, reason: Reason, message: String) {
        self.cause = Some(Cause { reason: reason.word().to_owned(), message });
        self.enter(Step::Restoring);
    }

    /// Where the agent comes from, in the direction of the action.
    #[must_use]
    pub const fn from(&self) -> &Binary {
        match self.action {
            Action::Update | Action::Unknown => &self.old,
            Action::Rollback => &self.new,
        }
    }

    /// Where it goes.
    #[must_use]
    pub const fn to(&self) -> &Binary {
        match self.action {
            Action::Update | Action::Unknown => &self.new,
            Action::Rollback => &self.old,
        }
    }
}

/// Taken for a read and a write; released when the file is dropped, or by the kernel.
fn lock(path: &Path) -> durable::Result<File> {
    let path = &with_suffix(path, ".lock");
    let no_follow = nix::fcntl::OFlag::O_NOFOLLOW.bits();
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(false).mode(0o600).custom_flags(no_follow);
    let file = options.open(path).on("open", path)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(durable::Error::new("lock", path, error)),
        }
    }
    Err(durable::Error::new("lock", path, std::io::ErrorKind::TimedOut.into()))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn read(path: &Path) -> durable::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(durable::Error::new("open", path, error)),
    };
    let mut text = Vec::new();
    file.take(SIZE_LIMIT_BYTES).read_to_end(&mut text).on("read", path)?;
    Ok(Some(text))
}

fn set_aside(path: &Path) -> durable::Result<PathBuf> {
    let name = |n: u32| with_suffix(path, &format!(".corrupt-{n}"));
    let free = (1..SET_ASIDE_LIMIT).map(name).find(|candidate| candidate.symlink_metadata().is_err());
    let to = free.unwrap_or_else(|| name(SET_ASIDE_LIMIT));
    durable::rename(path, &to)?;
    Ok(to)
}

#[cfg(test)]
mod tests;
