//! The identity's files, written as a set that no crash can tear (contract section 3).
//!
//! Three plain files under fixed names cannot be replaced in one step, so a whole new set is first completed and synced
//! in a directory of its own; renaming that directory to `.next` is the commit point. What follows, moving the three
//! into place one by one, may be interrupted anywhere: every load sees `.next` and finishes the work before it looks at
//! the rest. Symbolic links to a set directory would be atomic too, but backups, `ls` and the Go agent expect files.
//!
//! `.previous` keeps the set from before a renewal until the new one was used successfully.

mod choose;
mod files;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::choose::{Choice, Slot};
use self::files::NAMES;
use super::inspect::{self, Flaw};
use super::{Identity, Material};
use crate::durable::{self, Context};

const NEXT: &str = ".next";
const STAGING: &str = ".next.tmp";
const PREVIOUS: &str = ".previous";
const PREVIOUS_STAGING: &str = ".previous.tmp";
const LOCK: &str = ".lock";
const JOIN_INTENT: &str = "join.json";

/// Why the identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk said no.
    #[error("the identity in {} cannot be stored or read", directory.display())]
    Disk {
        /// The data directory.
        directory: PathBuf,
        /// What failed.
        source: durable::Error,
    },
    /// The files belong to somebody else, as after a change of the service's user.
    #[error(
        "this user may not use the identity in {} (the owner of the directory and its files should be the user that the \
         agent runs as)",
        directory.display()
    )]
    NotPermitted {
        /// The data directory.
        directory: PathBuf,
        /// What failed.
        source: durable::Error,
    },
    /// The files are there and do not make an identity.
    #[error(
        "the identity in {} is damaged: {flaw}. Put the three files agent.crt, agent.key and ca.crt back from a backup; \
         without one, have an administrator delete this agent on the platform, then run \
         `bamf-agent join --force` with a new token",
        directory.display()
    )]
    Damaged {
        /// The data directory.
        directory: PathBuf,
        /// What is wrong.
        flaw: Flaw,
    },
    /// The platform sent a set that does not fit together.
    #[error("the platform sent an identity that cannot be used: {0}. Nothing was replaced")]
    Unusable(Flaw),
    /// Another process works on this identity.
    #[error("another bamf-agent uses {} (stop it first, or give this one its own data_dir)", directory.display())]
    InUse {
        /// The data directory.
        directory: PathBuf,
    },
}

/// Keeps other processes away from the identity while it lives.
#[derive(Debug)]
pub struct Lock {
    /// Invariant: holds the advisory lock until it is dropped.
    _file: File,
}

/// A join that was begun: written before the request, removed with the set's commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinIntent {
    /// The name that was asked for.
    pub name: String,
    /// When, RFC 3339.
    pub at: String,
}

/// The data directory as a store of one identity.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// A store in `directory`, which need not exist yet.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The data directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Creates the data directory (0700) where it is missing.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn prepare(&self) -> Result<(), Error> {
        self.disk(durable::create_directory(&self.directory, 0o700))
    }

    /// Takes the identity for this process: a second agent on the same directory would share its commands.
    ///
    /// # Errors
    /// [`Error::InUse`], or [`Error::Disk`].
    pub fn lock(&self) -> Result<Lock, Error> {
        let path = self.directory.join(LOCK);
        let file = self.disk(self.open_lock(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::InUse { directory: self.directory.clone() }),
            Err(TryLockError::Error(error)) => self.disk(Err(durable::Error::new("lock", path, error))),
        }
    }

    /// On a full or read-only disk what is there is locked: an agent that can read its identity can run.
    fn open_lock(&self, path: &Path) -> durable::Result<File> {
        let created = File::options().create(true).append(true).open(path).on("open", path);
        match created {
            Err(error) if error.is_full() || error.is_not_writable() => {
                File::open(path).or_else(|_| File::open(&self.directory)).map_err(|_| error)
            }
            other => other,
        }
    }

    /// The identity that [`Self::load`] would return, without touching anything.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Disk`].
    pub fn peek(&self) -> Result<Option<Identity>, Error> {
        Ok(match self.choose()? {
            Choice::None => None,
            Choice::Current(identity) | Choice::Next(identity) | Choice::Previous(identity) => Some(*identity),
        })
    }

    /// The stored identity, after finishing what an interruption left half done; `None` if the agent never joined.
    ///
    /// A disk that is full or read-only does not keep the agent from running with what it could read.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Disk`] (unreadable).
    pub fn load(&self) -> Result<Option<Identity>, Error> {
        let (identity, finished) = match self.choose()? {
            Choice::None => return Ok(None),
            Choice::Current(identity) => (identity, self.clean()),
            Choice::Next(identity) => (identity, self.install(NEXT)),
            Choice::Previous(identity) => (identity, self.install(PREVIOUS)),
        };
        if let Err(error) = finished {
            tracing::warn!(error = %crate::http::chain(&error), "the stored identity is used, but could not be tidied");
        }
        Ok(Some(*identity))
    }

    /// Holds the space for a new set, so that what the platform answers can be stored.
    ///
    /// # Errors
    /// [`Error::Disk`]: nothing should be asked of the platform then.
    pub fn reserve(&self) -> Result<Reservation, Error> {
        let staging = self.directory.join(STAGING);
        self.disk(files::reserve(&staging))?;
        Ok(Reservation { store: self.clone() })
    }

    /// Records that a join is about to be asked for.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn begin_join(&self, intent: &JoinIntent) -> Result<(), Error> {
        let text = serde_json::to_vec(intent).expect("two strings serialise");
        self.disk(durable::write(&self.directory.join(JOIN_INTENT), &text, 0o600))
    }

    /// The join that was begun and of which no outcome is stored.
    #[must_use]
    pub fn unfinished_join(&self) -> Option<JoinIntent> {
        serde_json::from_slice(&std::fs::read(self.directory.join(JOIN_INTENT)).ok()?).ok()
    }

    /// Forgets a join that the platform refused.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn end_join(&self) -> Result<(), Error> {
        self.disk(durable::remove_file(&self.directory.join(JOIN_INTENT)))
    }

    /// True while the set from before a renewal is kept.
    #[must_use]
    pub fn has_previous(&self) -> bool {
        self.directory.join(PREVIOUS).is_dir()
    }

    /// The present set was used successfully: the one before it is no longer needed.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn confirm(&self) -> Result<(), Error> {
        if self.has_previous() {
            self.disk(durable::remove_directory(&self.directory.join(PREVIOUS)))?;
        }
        Ok(())
    }

    /// The present set was refused: brings back the one before it, if there is one that is sound.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn revert(&self) -> Result<Option<Identity>, Error> {
        let Slot::Sound(identity) = self.slot(&self.directory.join(PREVIOUS))? else { return Ok(None) };
        self.disk(self.install(PREVIOUS))?;
        Ok(Some(*identity))
    }

    fn choose(&self) -> Result<Choice, Error> {
        let slots = [self.slot(&self.directory.join(NEXT))?, self.slot(&self.directory)?];
        let [next, current] = slots;
        let previous = match current {
            Slot::Sound(_) => Slot::Absent,
            Slot::Absent | Slot::Flawed(_) => self.slot(&self.directory.join(PREVIOUS))?,
        };
        choose::choose(next, current, previous)
            .map_err(|flaw| Error::Damaged { directory: self.directory.clone(), flaw })
    }

    fn slot(&self, directory: &Path) -> Result<Slot, Error> {
        Ok(match self.disk(files::read(directory))? {
            files::Read::Nothing => Slot::Absent,
            files::Read::Partial(missing) => Slot::Flawed(Flaw::Missing { file: missing }),
            files::Read::NotAFile(file) => Slot::Flawed(Flaw::Malformed { file, expected: "a file" }),
            files::Read::Whole(material) => match inspect::inspect(material) {
                Ok(identity) => Slot::Sound(Box::new(identity)),
                Err(flaw) => Slot::Flawed(flaw),
            },
        })
    }

    /// Moves the set in `from` into place. Every step can be repeated; `from` goes last.
    fn install(&self, from: &str) -> durable::Result<()> {
        let source = self.directory.join(from);
        for name in NAMES {
            files::move_into_place(&source.join(name), &self.directory.join(name))?;
        }
        durable::remove_file(&self.directory.join(JOIN_INTENT))?;
        durable::remove_directory(&source)
    }

    fn clean(&self) -> durable::Result<()> {
        for leftover in [NEXT, STAGING, PREVIOUS_STAGING] {
            if self.directory.join(leftover).exists() {
                durable::remove_directory(&self.directory.join(leftover))?;
            }
        }
        if self.directory.join(JOIN_INTENT).exists() {
            durable::remove_file(&self.directory.join(JOIN_INTENT))?;
        }
        Ok(())
    }

    /// Keeps the present set aside. An older one that was proven stays instead: the present one was never used. One that
    /// is damaged is not worth keeping, and must not be what fails a forced join after the platform has registered it.
    fn keep_present(&self) -> durable::Result<()> {
        let kept = self.directory.join(PREVIOUS);
        if kept.exists() || !matches!(self.slot(&self.directory), Ok(Slot::Sound(_))) {
            return Ok(());
        }
        let staging = self.directory.join(PREVIOUS_STAGING);
        durable::remove_directory(&staging)?;
        durable::create_directory(&staging, 0o700)?;
        for name in NAMES {
            // Copies, not links: the Go agent writes in place and would change both.
            files::copy(&self.directory.join(name), &staging.join(name))?;
        }
        durable::rename(&staging, &kept)
    }

    fn disk<T>(&self, result: durable::Result<T>) -> Result<T, Error> {
        result.map_err(|source| {
            let directory = self.directory.clone();
            if source.kind() == std::io::ErrorKind::PermissionDenied {
                Error::NotPermitted { directory, source }
            } else {
                Error::Disk { directory, source }
            }
        })
    }
}

/// Space on the disk, held for one identity. Dropping it gives the space back at the next load.
#[derive(Debug)]
pub struct Reservation {
    store: Store,
}

impl Reservation {
    /// Stores a set that the platform sent, keeping the present one as the previous.
    ///
    /// # Errors
    /// [`Error::Unusable`] if the texts do not belong together, [`Error::Disk`]; the old set is then untouched.
    pub fn commit(self, material: Material) -> Result<Identity, Error> {
        let identity = inspect::inspect(material).map_err(Error::Unusable)?;
        let store = &self.store;
        let staging = store.directory.join(STAGING);
        store.disk(files::fill(&staging, &identity.material))?;
        store.disk(store.keep_present())?;
        // The commit point: from here on every load finds the whole new set.
        store.disk(durable::rename(&staging, &store.directory.join(NEXT)))?;
        if let Err(error) = store.install(NEXT) {
            tracing::warn!(error = %crate::http::chain(&error), "the new identity is stored; moving it into place goes on at the next start");
        }
        Ok(identity)
    }
}

#[cfg(test)]
mod tests;
