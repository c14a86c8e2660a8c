//! Renews the certificate from half of its lifetime on, until it works (contract section 3).

use std::time::{Duration, SystemTime};

use super::registration::remember_agent_id;
use super::{Context, Session};
use crate::backoff::Backoff;
use crate::clock;
use crate::http;
use crate::identity::schedule::{self, Phase};
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
}

pub(super) async fn run(context: Context) {
    let stop = context.tasks.stop_token();
    let mut attempts = Attempts::none();
    loop {
        let session = context.session();
        let now = clock::now();
        if matches!(schedule::phase(&session.identity, now), Phase::Due | Phase::Expired) && attempts.may(&session, now)
        {
            let renewed = tokio::select! {
                renewed = renew(&context, &session) => renewed,
                () = stop.cancelled() => return,
            };
            report(&context, &session, renewed, &mut attempts);
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
    fn may(&mut self, session: &Session, now: SystemTime) -> bool {
        if self.of != session.identity.sha256 {
            *self = Self { of: session.identity.sha256.clone(), ..Self::none() };
        }
        self.not_before.is_none_or(|instant| now >= instant)
    }

    /// Notes one; returns how long to wait until the next.
    fn made(&mut self, session: &Session, asked: Option<Duration>) -> Duration {
        let now = clock::now();
        let lifetime_left = session.identity.not_after.duration_since(now).unwrap_or_default();
        let usual = self.backoff.next(fastrand::f64());
        // Never wait longer than a tenth of what is left: short-lived certificates have less patience. After the end there
        // is nothing to hurry for.
        let limit = if lifetime_left.is_zero() { schedule::RETRY_CAP } else { lifetime_left / 10 };
        let wait = asked.unwrap_or_else(|| usual.min(limit).max(SHORTEST_TICK));
        self.not_before = Some(now + wait);
        wait
    }
}

/// How often to look at the dates.
fn tick(identity: &Identity) -> Duration {
    let lifetime = identity.not_after.duration_since(identity.not_before).unwrap_or_default();
    (lifetime / TICKS_PER_LIFETIME).clamp(SHORTEST_TICK, LONGEST_TICK)
}

async fn renew(context: &Context, session: &Session) -> Result<Identity, Error> {
    // The space first: what the platform answers should not be thrown away.
    let reservation = context.store.reserve()?;
    let issued = session.client.renew().await?;
    let identity = reservation.commit(issued.material)?;
    remember_agent_id(&context.store, issued.agent_id);
    Ok(identity)
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
            attempts.made(session, None);
            context.assume(identity);
        }
        Err(error) => {
            renewals.with_label_values(&["failed"]).inc();
            let asked = if let Error::Platform(failure) = &error { failure.asked_wait(fastrand::f64()) } else { None };
            let wait = attempts.made(session, asked);
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
