//! When to renew: at half of the lifetime, then again and again until it works (contract section 3). Pure.
//!
//! Decided from the wall clock at every tick rather than by one long timer, so that a laptop lid, a paused VM or a
//! corrected clock cannot make the agent sleep through the second half.

use std::time::{Duration, SystemTime};

use super::Identity;

/// Longest wait between two attempts at a renewal that keeps failing.
pub const RETRY_CAP: Duration = Duration::from_secs(3600);
/// First wait after a failed attempt.
pub const RETRY_BASE: Duration = Duration::from_secs(30);

/// What the dates say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before `not_before`: the clock of this machine is behind the platform's.
    NotYetValid,
    /// Nothing to do.
    Fresh,
    /// Past half of the lifetime: renew.
    Due,
    /// Past the end: the platform renews no more (protocol 4.3).
    Expired,
}

/// Judges the certificate's dates.
#[must_use]
pub fn phase(identity: &Identity, now: SystemTime) -> Phase {
    if now > identity.not_after {
        Phase::Expired
    } else if now >= renew_at(identity) {
        Phase::Due
    } else if now < identity.not_before {
        Phase::NotYetValid
    } else {
        Phase::Fresh
    }
}

/// The instant from which on renewal is tried: half of the lifetime.
#[must_use]
pub fn renew_at(identity: &Identity) -> SystemTime {
    let lifetime = identity.not_after.duration_since(identity.not_before).unwrap_or_default();
    identity.not_before + lifetime / 2
}

/// Past three quarters of the lifetime: a renewal no longer waits for anything that only makes it tidier.
#[must_use]
pub fn is_urgent(identity: &Identity, now: SystemTime) -> bool {
    let lifetime = identity.not_after.duration_since(identity.not_before).unwrap_or_default();
    now >= identity.not_before + lifetime / 4 * 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Material;
    use crate::secret::Secret;

    fn valid(from: u64, to: u64) -> Identity {
        let secret = || Secret::new(String::new());
        Identity {
            material: Material { certificate_pem: secret(), private_key_pem: secret(), ca_pem: String::new() },
            name: "edge".into(),
            sha256: String::new(),
            not_before: at(from),
            not_after: at(to),
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_renewal_is_due_from_half_of_the_lifetime_to_its_end() {
        let identity = valid(1000, 2000);
        let cases = [
            (999, Phase::NotYetValid),
            (1000, Phase::Fresh),
            (1499, Phase::Fresh),
            (1500, Phase::Due),
            (2000, Phase::Due),
            (2001, Phase::Expired),
        ];
        for (now, expected) in cases {
            assert_eq!(phase(&identity, at(now)), expected, "at {now}");
        }
    }

    #[test]
    fn the_half_of_a_year_falls_where_the_platform_says() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../../tests/vectors.json")).unwrap();
        for case in vectors["renewal"]["cases"].as_array().unwrap() {
            let time =
                |key: &str| -> SystemTime { case[key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().into() };
            let mut identity = valid(0, 0);
            (identity.not_before, identity.not_after) = (time("not_before"), time("not_after"));
            assert_eq!(renew_at(&identity), time("half"));
        }
    }

    #[test]
    fn dates_in_the_wrong_order_are_expired_and_do_not_panic() {
        assert_eq!(phase(&valid(2000, 1000), at(1500)), Phase::Expired);
    }
}
