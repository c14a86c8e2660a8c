//! One identity for all replicas of an agent, in a Secret of their cluster (contract section 3, protocol chapter 13).
//!
//! ```text
//!   start    read ─┬─ an identity ──────────────► mirrored into the data directory, used
//!                  ├─ "there is none" (404) ────► the data directory's, else rehearse the write, then join
//!                  └─ anything else ────────────► the data directory's, else wait: never a join
//!
//!   renew    claim (a write that only one replica can win) ─► platform ─► data directory ─► accepted once ─► Secret
//!   others   look every minute, and before they would renew ─► adopt what is younger
//! ```
//!
//! Every write names the version that it was made from, so that two replicas never overwrite each other: the one that is
//! refused reads again and takes what the other has written. The platform would let two replicas renew at once, and both
//! certificates would work (protocol 4.3), but it records only the one that it gave out last, and a revocation goes by that
//! record (4.4). If the Secret held the other one, the agent would live on. Hence the claim.
//!
//! The data directory is written before the Secret. What is cut off in between is found there by the next start of the
//! container and carried on. If the pod is lost in that moment, the certificate from before a renewal is still good.

#[cfg(not(feature = "kubernetes"))]
mod absent;
mod compare;
#[cfg(feature = "kubernetes")]
mod secret;

#[cfg(not(feature = "kubernetes"))]
pub use self::absent::Shared;
pub use self::compare::{Standing, compare};
#[cfg(feature = "kubernetes")]
pub use self::secret::Shared;

use super::Identity;
use crate::config::Config;
use crate::kubernetes::{Failure, MOUNT, Place, ServiceAccount};

/// Why the Secret is of no use. None of these leads to a join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The cluster's API was not asked, did not answer, or refused.
    #[error(transparent)]
    Cluster(#[from] Failure),
    /// Something is there that is no identity.
    #[error(
        "the Secret {place} holds no usable identity: {flaw}. It was left alone. Restore it from a backup, or delete it: a \
         replica that still runs writes it again. Without either, have an administrator delete the agent on the platform \
         and join anew with a new token"
    )]
    Damaged {
        /// The Secret.
        place: Place,
        /// What is wrong with it.
        flaw: String,
    },
    /// The cluster's API never changes a Secret's type.
    #[error(
        "the Secret {place} is of the type {found}, and only a new one can be of the type kubernetes.io/tls: if it is not \
         somebody else's, save what is in it and delete it, else set BAMF_CERT_SECRET_NAME to another name"
    )]
    WrongType {
        /// The Secret.
        place: Place,
        /// Its type.
        found: String,
    },
    /// Its owner has forbidden all changes.
    #[error(
        "the Secret {place} is marked immutable, so that renewals cannot be kept in it: make it anew without that mark"
    )]
    Immutable {
        /// The Secret.
        place: Place,
    },
    /// Two agents have the same Secret.
    #[error(
        "the Secret {place} holds the identity of agent {theirs}, and this one is {ours}: give each agent a Secret of its own \
         (BAMF_CERT_SECRET_NAME), then restart the pods"
    )]
    Foreign {
        /// The Secret.
        place: Place,
        /// The agent in it.
        theirs: String,
        /// This agent.
        ours: String,
    },
    /// Somebody changes it all the time.
    #[error("the Secret {place} was changed by somebody else each time that it was to be written")]
    Contended {
        /// The Secret.
        place: Place,
    },
}

impl Error {
    /// How long the cluster's API asked to wait.
    #[must_use]
    pub const fn asked_wait(&self) -> Option<std::time::Duration> {
        if let Self::Cluster(failure) = self { failure.asked_wait() } else { None }
    }

    /// True where time may help.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Cluster(Failure::Unanswered { .. } | Failure::Unavailable { .. }) | Self::Contended { .. })
    }
}

/// What a look at the Secret showed.
#[derive(Debug)]
pub enum Look {
    /// Nothing to do.
    Same,
    /// A better identity, to be adopted.
    Better(Box<Identity>),
    /// Nothing, or something older: ours belongs there.
    Behind,
}

/// What came of an attempt to store an identity.
#[derive(Debug)]
pub enum Kept {
    /// It lies in the Secret.
    Stored,
    /// Another replica's, which is better, lies there and stays.
    Better(Box<Identity>),
}

/// What a write may replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Only an older identity of the same agent.
    Worse,
    /// Whatever is there: an operator has asked for it.
    Anything,
}

/// Who renews.
#[derive(Debug)]
pub enum Claim {
    /// This replica.
    Ours,
    /// Another one, at present.
    Elsewhere,
    /// Another one has.
    Better(Box<Identity>),
}

/// Where an agent with this configuration keeps its identity, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In the data directory, as on any machine.
    DataDirectory,
    /// In this Secret, with a copy in the data directory.
    Secret(Place),
    /// In the data directory although this is a pod: the sentence that says so.
    NotShared(String),
}

/// Where the identity is kept.
#[must_use]
pub fn kind(config: &Config) -> Kind {
    if !config.kubernetes {
        Kind::DataDirectory
    } else if cfg!(feature = "kubernetes") {
        Kind::Secret(Place::of(&config.cluster, &ServiceAccount::new(MOUNT)))
    } else {
        Kind::NotShared(format!(
            "this build of bamf-agent has no Kubernetes support (cargo feature `kubernetes`): the identity is kept in {} only \
             and ends with the pod, unless that is a volume that outlives it; other replicas do not find it",
            config.data_dir.display()
        ))
    }
}
