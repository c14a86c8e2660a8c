//! What a failed call means for the agent. Pure: failure and certificate in, reaction out (protocol 3.6).

use std::time::{Duration, SystemTime};

use crate::clock;
use crate::identity::Identity;
use crate::kubernetes::Place;
use crate::platform::{Failure, Kind};

/// Ceiling of the wait where a person has to act first; the platform limits callers of its own kind too.
pub(super) const PATIENT_CAP: Duration = Duration::from_secs(300);
/// First wait of that kind.
pub(super) const PATIENT_BASE: Duration = Duration::from_secs(30);

/// How a person registers the agent anew, in the words of where it runs: a sentence goes on with "with a new token".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anew {
    /// On a machine.
    Command,
    /// In a cluster, where this Secret is.
    Secret(Place),
}

impl std::fmt::Display for Anew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Command => f.write_str("run `bamf-agent join --force`"),
            Self::Secret(place) => write!(f, "stop all replicas, delete the Secret {place} and start them again"),
        }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Try again with the usual back-off, or after the wait that the failure asks for.
    Retry,
    /// Stay up, but wait in minutes: somebody has to act, and the sentence says what.
    Patience(String),
    /// A renewed certificate is refused: go back to the one before.
    Revert,
    /// It is over; the platform and the clock agree that the certificate has ended.
    Expired,
}

/// Decides. `has_previous` says that the certificate from before a renewal is still kept.
pub(super) fn react(
    failure: &Failure,
    identity: &Identity,
    has_previous: bool,
    anew: &Anew,
    now: SystemTime,
) -> Reaction {
    let name = &identity.name;
    match failure.kind {
        Kind::Unauthorized if has_previous => Reaction::Revert,
        Kind::Unauthorized if identity.is_expired(now) => Reaction::Expired,
        Kind::Unauthorized if now < identity.not_before => Reaction::Patience(format!(
            "the platform refuses the certificate, which is valid from {} on: this machine's clock is behind",
            clock::rfc3339(identity.not_before)
        )),
        Kind::Unauthorized => Reaction::Patience(format!(
            "the platform refuses the certificate of agent {name}, which is valid until {}: it was revoked, or the \
             platform has a new certificate authority. To register anew, have an administrator delete the agent there, \
             then {anew} with a new token ({failure})",
            clock::rfc3339(identity.not_after)
        )),
        Kind::Forbidden => Reaction::Patience(format!(
            "the platform says that the certificate is not agent {name}'s: check platform_url and data_dir ({failure})"
        )),
        Kind::NotFound => Reaction::Patience(format!(
            "the platform does not know agent {name}: it was deleted there, or platform_url points elsewhere. If it was \
             deleted, {anew} with a new token ({failure})"
        )),
        Kind::Unreachable
        | Kind::Unanswered
        | Kind::Conflict
        | Kind::Invalid
        | Kind::RateLimited
        | Kind::Server
        | Kind::Unexpected => Reaction::Retry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Material;
    use crate::secret::Secret;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn identity() -> Identity {
        let secret = || Secret::new(String::new());
        Identity {
            material: Material { certificate_pem: secret(), private_key_pem: secret(), ca_pem: String::new() },
            name: "edge".into(),
            sha256: String::new(),
            not_before: at(1000),
            not_after: at(2000),
        }
    }

    fn reaction(kind: Kind, has_previous: bool, now: u64) -> Reaction {
        let failure = Failure { call: "heartbeat", kind, detail: "401 no".into(), retry_after: None };
        react(&failure, &identity(), has_previous, &Anew::Command, at(now))
    }

    #[test]
    fn only_a_refused_and_expired_certificate_ends_the_agent() {
        assert_eq!(reaction(Kind::Unauthorized, false, 2001), Reaction::Expired);
        for kind in [Kind::Unreachable, Kind::Server, Kind::NotFound, Kind::Forbidden, Kind::Unexpected] {
            assert_ne!(reaction(kind, false, 2001), Reaction::Expired, "{kind:?}");
        }
        assert!(matches!(reaction(Kind::Unauthorized, false, 1500), Reaction::Patience(_)));
    }

    #[test]
    fn a_renewed_certificate_that_is_refused_gives_way_to_the_one_before() {
        assert_eq!(reaction(Kind::Unauthorized, true, 1500), Reaction::Revert);
        assert_eq!(reaction(Kind::Server, true, 1500), Reaction::Retry);
    }

    #[test]
    fn in_a_cluster_the_secret_is_named_instead_of_a_command() {
        let failure = Failure { call: "heartbeat", kind: Kind::NotFound, detail: "404 no".into(), retry_after: None };
        let anew = Anew::Secret(Place { namespace: "bamf".into(), name: "certs".into() });
        let Reaction::Patience(text) = react(&failure, &identity(), false, &anew, at(1500)) else { panic!() };
        assert!(text.contains("delete the Secret bamf/certs") && !text.contains("join --force"), "{text}");
    }

    #[test]
    fn each_standing_trouble_says_what_to_do() {
        let cases = [
            (Kind::Unauthorized, 1500, "join --force"),
            (Kind::Unauthorized, 900, "clock is behind"),
            (Kind::Forbidden, 1500, "data_dir"),
            (Kind::NotFound, 1500, "deleted"),
        ];
        for (kind, now, expected) in cases {
            let Reaction::Patience(text) = reaction(kind, false, now) else { panic!("{kind:?}") };
            assert!(text.contains(expected), "{text}");
        }
    }
}
