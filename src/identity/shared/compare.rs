//! Which of two identities is to be used. Pure.

use std::time::SystemTime;

use super::super::Identity;

/// How what lies in the Secret stands to what this process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The same certificate.
    Same,
    /// A better one of the same agent: another replica has renewed, or ours has ended.
    Better,
    /// A worse one of the same agent: ours was renewed and did not get there.
    Worse,
    /// One of another agent.
    Foreign,
}

/// Compares `theirs` (the Secret's) with `ours`: a valid one beats one that has ended, then the younger one wins, and where
/// both are of one second, the Secret's, since that one has all replicas.
#[must_use]
pub fn compare(ours: &Identity, theirs: &Identity, now: SystemTime) -> Standing {
    let rank = |identity: &Identity| (!identity.is_expired(now), identity.not_before);
    if ours.sha256 == theirs.sha256 {
        Standing::Same
    } else if ours.name != theirs.name {
        Standing::Foreign
    } else if rank(theirs) >= rank(ours) {
        Standing::Better
    } else {
        Standing::Worse
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::Material;
    use crate::secret::Secret;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn identity(name: &str, sha256: &str, from: u64, to: u64) -> Identity {
        let secret = || Secret::new(String::new());
        Identity {
            material: Material { certificate_pem: secret(), private_key_pem: secret(), ca_pem: String::new() },
            name: name.into(),
            sha256: sha256.into(),
            not_before: at(from),
            not_after: at(to),
        }
    }

    #[test]
    fn the_younger_valid_one_wins_and_the_secret_where_they_are_equal() {
        let ours = identity("edge", "a", 100, 1000);
        let cases = [
            (identity("edge", "a", 100, 1000), Standing::Same),
            (identity("edge", "b", 200, 1000), Standing::Better),
            (identity("edge", "b", 100, 1000), Standing::Better),
            (identity("edge", "b", 99, 1000), Standing::Worse),
            // Younger, but over: somebody has shortened the lifetimes.
            (identity("edge", "b", 200, 300), Standing::Worse),
            (identity("other", "b", 200, 1000), Standing::Foreign),
        ];
        for (theirs, standing) in cases {
            assert_eq!(compare(&ours, &theirs, at(500)), standing, "{theirs:?}");
        }
        let (ended, valid) = (identity("edge", "a", 400, 450), identity("edge", "b", 100, 1000));
        assert_eq!(compare(&ended, &valid, at(500)), Standing::Better, "an older one that is valid");
    }
}
