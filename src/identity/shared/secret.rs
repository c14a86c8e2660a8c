//! The identity in its Secret: what is read from it, and writes that lose against nobody and overwrite nobody.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Claim, Error, Kept, Look, Over, Standing, compare};
use crate::clock;
use crate::config::Config;
use crate::identity::Identity;
use crate::identity::inspect::{Flaw, inspect};
use crate::kubernetes::api::{Api, Mode};
use crate::kubernetes::object::{Object, TYPE};
use crate::kubernetes::{Failure, MOUNT, Place, ServiceAccount};

/// Writes that may be refused because somebody else was faster. A handful of replicas make one or two.
const ATTEMPTS: u32 = 8;
/// A claim that does not change for so long is a dead replica's. Far above the 30 s that the platform's answer may take.
const CLAIM_LIMIT: Duration = Duration::from_secs(120);
/// Certificates of minutes exist in tests and in cautious installations: a claim may hold for this part of a life at most.
const CLAIMS_PER_LIFETIME: u32 = 16;

/// The Secret that all replicas of this agent share.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    api: Api,
    /// Names this process in claims.
    claimant: String,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    /// Fingerprint of a certificate that the platform gave out and then refused: not to be adopted again.
    refused: Option<String>,
    /// Another replica's claim, and since when it has been seen. By this process's own clock: those of nodes differ.
    seen: Option<(String, Instant)>,
}

impl Shared {
    /// The Secret of an agent with this configuration; `None` outside a cluster.
    #[must_use]
    pub fn of(config: &Config, version: &str) -> Option<Self> {
        if !config.kubernetes {
            return None;
        }
        let host = nix::unistd::gethostname().unwrap_or_default();
        let inner = Inner {
            api: Api::new(&config.cluster, ServiceAccount::new(MOUNT), version),
            // The pod's name, for people; the number tells two processes of one pod apart.
            claimant: format!("{} {}", host.to_string_lossy(), uuid::Uuid::new_v4()),
            notes: Mutex::default(),
        };
        Some(Self(Arc::new(inner)))
    }

    /// Where it lies.
    #[must_use]
    pub fn place(&self) -> &Place {
        self.0.api.place()
    }

    /// The identity in the Secret; `None` only where it is certain that there is none.
    ///
    /// # Errors
    /// [`Error`]; nothing follows from one but trying again.
    pub async fn read(&self) -> Result<Option<Identity>, Error> {
        match self.0.api.get().await? {
            Some(object) => self.identity_in(&object),
            None => Ok(None),
        }
    }

    /// Before a join, which can be done only once: as [`Self::read`], and where there is none, whether one could be stored.
    ///
    /// # Errors
    /// [`Error`]; a join should not be asked for then.
    pub async fn rehearse(&self) -> Result<Option<Identity>, Error> {
        let api = &self.0.api;
        let rehearsed = match api.get().await? {
            None => api.create(&Object::empty(self.place()), Mode::Rehearsal).await,
            Some(object) => match self.identity_in(&object)? {
                Some(identity) => return Ok(Some(identity)),
                None => {
                    self.check_writable(&object)?;
                    api.replace(&object, Mode::Rehearsal).await
                }
            },
        };
        rehearsed?;
        Ok(None)
    }

    /// Compares what lies in the Secret with `ours`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn look(&self, ours: &Identity) -> Result<Look, Error> {
        let Some(theirs) = self.read().await? else { return Ok(Look::Behind) };
        Ok(match compare(ours, &theirs, clock::now()) {
            Standing::Same => Look::Same,
            // The agent has gone back to the one before and renews again, which will replace it.
            Standing::Better if self.is_refused(&theirs) => Look::Same,
            Standing::Better => Look::Better(Box::new(theirs)),
            Standing::Worse => Look::Behind,
            Standing::Foreign => return Err(self.foreign(ours, &theirs)),
        })
    }

    /// Stores `ours`, unless something better is there.
    ///
    /// # Errors
    /// [`Error`]; whether it was stored shows the next look.
    pub async fn keep(&self, ours: &Identity, over: Over) -> Result<Kept, Error> {
        for _ in 0..ATTEMPTS {
            let written = match self.0.api.get().await? {
                None => self.0.api.create(&Object::empty(self.place()).holding(&ours.material), Mode::Real).await,
                Some(object) => {
                    if over == Over::Worse
                        && let Some(theirs) = self.identity_in(&object)?
                    {
                        match compare(ours, &theirs, clock::now()) {
                            Standing::Same => return Ok(Kept::Stored),
                            Standing::Better if !self.is_refused(&theirs) => {
                                return Ok(Kept::Better(Box::new(theirs)));
                            }
                            Standing::Better | Standing::Worse => {}
                            Standing::Foreign => return Err(self.foreign(ours, &theirs)),
                        }
                    }
                    self.check_writable(&object)?;
                    self.0.api.replace(&object.holding(&ours.material), Mode::Real).await
                }
            };
            match written {
                Ok(()) => return Ok(Kept::Stored),
                Err(Failure::Conflict { .. }) => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        Err(Error::Contended { place: self.place().clone() })
    }

    /// Before a renewal: lets one replica do it. The write shows as well that the result could be stored.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn claim(&self, ours: &Identity) -> Result<Claim, Error> {
        // With the certificate in it, the claim on the next one is another claim.
        let claim = format!("{} {}", self.0.claimant, ours.sha256.get(..16).unwrap_or_default());
        let written = match self.0.api.get().await? {
            None => {
                let object = Object::empty(self.place()).holding(&ours.material).claimed_by(&claim);
                self.0.api.create(&object, Mode::Real).await
            }
            Some(object) => {
                if let Some(theirs) = self.identity_in(&object)? {
                    match compare(ours, &theirs, clock::now()) {
                        Standing::Better if !self.is_refused(&theirs) => return Ok(Claim::Better(Box::new(theirs))),
                        Standing::Foreign => return Err(self.foreign(ours, &theirs)),
                        Standing::Same | Standing::Better | Standing::Worse => {}
                    }
                }
                match object.claim() {
                    Some(held) if held == claim => return Ok(Claim::Ours),
                    Some(held) if !self.is_stale(held, ours) => return Ok(Claim::Elsewhere),
                    Some(_) | None => {}
                }
                self.check_writable(&object)?;
                self.0.api.replace(&object.claimed_by(&claim), Mode::Real).await
            }
        };
        match written {
            Ok(()) => Ok(Claim::Ours),
            Err(Failure::Conflict { .. }) => Ok(Claim::Elsewhere),
            Err(failure) => Err(failure.into()),
        }
    }

    /// The platform does not accept this certificate, although it gave it out.
    pub fn refuse(&self, sha256: &str) {
        self.notes().refused = Some(sha256.to_owned());
    }

    fn is_refused(&self, theirs: &Identity) -> bool {
        self.notes().refused.as_ref() == Some(&theirs.sha256)
    }

    fn is_stale(&self, held: &str, ours: &Identity) -> bool {
        let lifetime = ours.not_after.duration_since(ours.not_before).unwrap_or_default();
        let limit = CLAIM_LIMIT.min(lifetime / CLAIMS_PER_LIFETIME);
        let mut notes = self.notes();
        match &notes.seen {
            Some((seen, since)) if seen == held => since.elapsed() > limit,
            _ => {
                notes.seen = Some((held.to_owned(), Instant::now()));
                false
            }
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn identity_in(&self, object: &Object) -> Result<Option<Identity>, Error> {
        let place = || self.place().clone();
        let damaged = |flaw: Flaw| Error::Damaged { place: place(), flaw: in_secret(&flaw) };
        match object.material() {
            Ok(Some(material)) => inspect(material).map(Some).map_err(damaged),
            Ok(None) => Ok(None),
            Err(flaw) => Err(damaged(flaw)),
        }
    }

    fn check_writable(&self, object: &Object) -> Result<(), Error> {
        let place = self.place().clone();
        if object.object_type() != TYPE {
            // Its type says that it was made for something else. It might be somebody else's.
            return Err(Error::WrongType { place, found: object.object_type().to_owned() });
        }
        if object.is_immutable() { Err(Error::Immutable { place }) } else { Ok(()) }
    }

    fn foreign(&self, ours: &Identity, theirs: &Identity) -> Error {
        Error::Foreign { place: self.place().clone(), theirs: theirs.name.clone(), ours: ours.name.clone() }
    }
}

/// A flaw in the words of the Secret's keys.
fn in_secret(flaw: &Flaw) -> String {
    flaw.to_string().replace("agent.crt", "tls.crt").replace("agent.key", "tls.key")
}
