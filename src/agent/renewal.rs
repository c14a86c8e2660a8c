//! Renews the certificate from half of its lifetime on, until it works (contract section 3).

use std::time::{Duration, SystemTime};

use super::registration::remember_agent_id;
use super::sharing;
use super::{Context, Session};
use crate::backoff::Backoff;
use crate::clock;
use crate::http;
use crate::identity::schedule::{self, Phase};
use crate::identity::shared::{self, Claim};
use crate::identity::{self, Identity};
use crate::platform::Failure;

/// The dates are looked at no less often than this, so that a suspend or a corrected clock is noticed soon.
const LONGEST_TICK: Duration = Duration::from_secs(30);
/// Certificates of minutes exist in tests and in cautious installations.
const SHORTEST_TICK: Duration = Duration::from_millis(500);
/// A tick is this small a part of the lifetime at most.
const TICKS_PER_LIFETIME: u32 = 40;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the platform did not renew it")]
    Platform(#[from] Failure),
    #[error("it cannot be stored")]
    Store(#[from] identity::Error),
    #[error("it could not be kept for the other replicas")]
    Shared(#[from] shared::Error),
}

/// What came of an attempt.
enum Outcome {
    /// A new certificate.
    Renewed(Identity),
    /// The one that another replica has renewed to.
    Better(Identity),
    /// Another replica is at it.
    Elsewhere,
}

pub(super) async fn run(context: Context) {
    let stop = context.tasks.stop_token();
    let mut attempts = Attempts::none();
    loop {
        let session = context.session();
        let now = clock::now();
        if matches!(schedule::phase(&session.identity, now), Phase::Due | Phase::Expired)
            && attempts.may(&session.identity, now)
        {
            let renewed = tokio::select! {
                renewed = renew(&context, &session) => renewed,
                () = stop.cancelled() => return,
            };
            match renewed {
                Ok(Outcome::Renewed(identity)) => report(&context, &session, Ok(identity), &mut attempts),
                Ok(Outcome::Better(theirs)) => sharing::adopt(&context, theirs).await,
                Ok(Outcome::Elsewhere) => tracing::debug!("another replica renews the certificate"),
                Err(error) => report(&context, &session, Err(error), &mut attempts),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(tick(&session.identity)) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// The attempts to replace one certificate.
///
/// They go on being counted when an attempt succeeds, because the platform may refuse what it gave out: the agent then goes
/// back to the old certificate, which is due at once.
struct Attempts {
    backoff: Backoff,
    /// Fingerprint of the certificate that is to be replaced.
    of: String,
    not_before: Option<SystemTime>,
}

impl Attempts {
    const fn none() -> Self {
        let backoff = Backoff::new(schedule::RETRY_BASE, schedule::RETRY_CAP);
        Self { backoff, of: String::new(), not_before: None }
    }

    /// Whether the next one may be made.
    fn may(&mut self, identity: &Identity, now: SystemTime) -> bool {
        if self.of != identity.sha256 {
            *self = Self { of: identity.sha256.clone(), ..Self::none() };
        }
        self.not_before.is_none_or(|instant| now >= instant)
    }

    /// Notes one; returns how long to wait until the next: what was asked for, else `draw` (0 to 1) of the back-off.
    fn made(&mut self, identity: &Identity, asked: Option<Duration>, now: SystemTime, draw: f64) -> Duration {
        let left = identity.not_after.duration_since(now).unwrap_or_default();
        // Never wait longer than a tenth of what is left: short-lived certificates have less patience. After the end there
        // is nothing to hurry for.
        let limit = if left.is_zero() { schedule::RETRY_CAP } else { left / 10 };
        let usual = self.backoff.next(draw).min(limit).max(SHORTEST_TICK);
        let wait = asked.unwrap_or(usual);
        self.not_before = Some(now + wait);
        wait
    }
}

/// How often to look at the dates.
pub(super) fn tick(identity: &Identity) -> Duration {
    let lifetime = identity.not_after.duration_since(identity.not_before).unwrap_or_default();
    (lifetime / TICKS_PER_LIFETIME).clamp(SHORTEST_TICK, LONGEST_TICK)
}

async fn renew(context: &Context, session: &Session) -> Result<Outcome, Error> {
    if let Some(shared) = &context.shared {
        let urgent = schedule::is_urgent(&session.identity, clock::now());
        match shared.claim(&session.identity).await {
            Ok(Claim::Ours) => {}
            Ok(Claim::Better(theirs)) => return Ok(Outcome::Better(*theirs)),
            Ok(Claim::Elsewhere) if !urgent => return Ok(Outcome::Elsewhere),
            Err(error) if !urgent => return Err(error.into()),
            // A certificate too many is better than none. It gets into the Secret when that can be written again.
            Ok(Claim::Elsewhere) => tracing::warn!("renewing although another replica said that it would"),
            Err(error) => {
                tracing::warn!(error = %http::chain(&error), "renewing although it cannot be shared at present")
            }
        }
    }
    let _turn = context.identity_turn.lock().await;
    // The space first: what the platform answers should not be thrown away.
    let reservation = context.store.reserve()?;
    let issued = session.client.renew().await?;
    let identity = reservation.commit(issued.material)?;
    remember_agent_id(&context.store, issued.agent_id);
    Ok(Outcome::Renewed(identity))
}

/// Puts a new identity to use, or says why there is none.
fn report(context: &Context, session: &Session, renewed: Result<Identity, Error>, attempts: &mut Attempts) {
    let renewals = &context.board.metrics.renewals;
    match renewed {
        Ok(identity) => {
            renewals.with_label_values(&["renewed"]).inc();
            tracing::info!(
                certificate = %identity.sha256,
                valid_until = %clock::rfc3339(identity.not_after),
                "the certificate was renewed"
            );
            context.board.standing_error(None);
            attempts.made(&session.identity, None, clock::now(), fastrand::f64());
            context.assume(identity);
        }
        Err(error) => {
            renewals.with_label_values(&["failed"]).inc();
            let asked = if let Error::Platform(failure) = &error { failure.asked_wait(fastrand::f64()) } else { None };
            let wait = attempts.made(&session.identity, asked, clock::now(), fastrand::f64());
            let text = format!(
                "the certificate, valid until {}, cannot be renewed: {}",
                clock::rfc3339(session.identity.not_after),
                http::chain(&error)
            );
            tracing::warn!(error = %text, wait_ms = wait.as_millis(), "trying again");
            context.board.standing_error(Some(text));
        }
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

    fn until(seconds: u64, sha256: &str) -> Identity {
        let secret = || Secret::new(String::new());
        Identity {
            material: Material { certificate_pem: secret(), private_key_pem: secret(), ca_pem: String::new() },
            name: "edge".into(),
            sha256: sha256.into(),
            not_before: at(0),
            not_after: at(seconds),
        }
    }

    /// The waits of `count` attempts, each made as soon as it may be.
    fn waits(attempts: &mut Attempts, identity: &Identity, mut now: SystemTime, count: usize) -> Vec<u64> {
        let mut waits = Vec::new();
        for _ in 0..count {
            assert!(attempts.may(identity, now));
            let wait = attempts.made(identity, None, now, 1.0);
            assert!(!attempts.may(identity, now + wait - Duration::from_millis(1)));
            now += wait;
            waits.push(wait.as_secs());
        }
        waits
    }

    #[test]
    fn attempts_at_one_certificate_grow_rarer_whether_they_failed_or_were_taken_back() {
        let (mut attempts, year) = (Attempts::none(), until(31_536_000, "old"));
        assert_eq!(waits(&mut attempts, &year, at(16_000_000), 9), [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
        assert_eq!(waits(&mut attempts, &until(31_536_000, "new"), at(16_000_000), 1), [30], "another starts over");
    }

    #[test]
    fn a_certificate_that_ends_soon_is_renewed_with_less_patience_and_an_ended_one_with_more() {
        let mut attempts = Attempts::none();
        assert_eq!(waits(&mut attempts, &until(200, "short"), at(100), 3), [10, 9, 8]);
        assert_eq!(waits(&mut attempts, &until(100, "ended"), at(101), 3), [30, 60, 120]);
    }

    #[test]
    fn the_wait_that_the_platform_asks_for_wins() {
        let (mut attempts, asked) = (Attempts::none(), Duration::from_secs(45));
        assert!(attempts.may(&until(200, "short"), at(100)));
        assert_eq!(attempts.made(&until(200, "short"), Some(asked), at(100), 0.0), asked);
        assert!(!attempts.may(&until(200, "short"), at(144)) && attempts.may(&until(200, "short"), at(145)));
    }
}
