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
    let mut backoff = Backoff::new(schedule::RETRY_BASE, schedule::RETRY_CAP);
    let mut not_before: Option<SystemTime> = None;
    loop {
        let session = context.session();
        let due = matches!(schedule::phase(&session.identity, clock::now()), Phase::Due | Phase::Expired);
        if due && not_before.is_none_or(|instant| clock::now() >= instant) {
            let renewed = tokio::select! {
                renewed = renew(&context, &session) => renewed,
                () = stop.cancelled() => return,
            };
            not_before = report(&context, &session, renewed, &mut backoff);
        }
        tokio::select! {
            () = tokio::time::sleep(tick(&session.identity)) => {}
            () = stop.cancelled() => return,
        }
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

/// Puts a new identity to use, or says why there is none. Returns before when not to try again.
fn report(
    context: &Context,
    session: &Session,
    renewed: Result<Identity, Error>,
    backoff: &mut Backoff,
) -> Option<SystemTime> {
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
            backoff.reset();
            context.assume(identity);
            None
        }
        Err(error) => {
            renewals.with_label_values(&["failed"]).inc();
            let asked = if let Error::Platform(failure) = &error { failure.retry_after() } else { None };
            let lifetime_left = session.identity.not_after.duration_since(clock::now()).unwrap_or_default();
            // Never wait longer than a tenth of what is left: short-lived certificates have less patience.
            let wait =
                asked.unwrap_or_else(|| backoff.next(fastrand::f64()).min(lifetime_left / 10).max(SHORTEST_TICK));
            let text = format!(
                "the certificate, valid until {}, cannot be renewed: {}",
                clock::rfc3339(session.identity.not_after),
                http::chain(&error)
            );
            tracing::warn!(error = %text, wait_ms = wait.as_millis(), "trying again");
            context.board.standing_error(Some(text));
            Some(clock::now() + wait)
        }
    }
}
