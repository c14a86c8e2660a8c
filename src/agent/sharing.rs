//! Keeps data directory and Secret of a replica in step: at the start, around a join, and for as long as it runs.
//!
//! The order is always the same: the data directory first, which is at hand, then the Secret. A renewed certificate gets
//! into the Secret only once the platform has accepted a heartbeat with it, so that no other replica adopts one that is
//! refused.

use std::time::Duration;

use super::registration;
use super::renewal;
use super::{Context, Session};
use crate::backoff::Backoff;
use crate::clock;
use crate::http;
use crate::identity::shared::{self, Kept, Look, Over, Shared, Standing, compare};
use crate::identity::{self, Identity, Store};

/// The usual time between two looks; a little more or less, so that replicas do not look in step.
const PERIOD: Duration = Duration::from_secs(60);
/// First wait after a look that failed.
const RETRY_BASE: Duration = Duration::from_secs(5);
/// How long another replica may take to write down what it has joined as.
const OTHERS_LIMIT: Duration = Duration::from_secs(15);
/// Time between two looks then.
const OTHERS_TICK: Duration = Duration::from_millis(500);
/// Attempts to store a fresh identity before the agent begins its work; more follow while it works.
const FIRST_ATTEMPTS: u32 = 3;
/// Time between them.
const FIRST_TICK: Duration = Duration::from_secs(1);

/// What the data directory holds, as far as it could be read.
pub(super) type Stored = Result<Option<Identity>, identity::Error>;

/// What an agent starts with that knows both. The Secret's wins, unless the data directory's is a better one of the same
/// agent; a damaged data directory is no reason to join as long as the Secret has an identity, and one as ever without.
pub(super) fn settle(store: &Store, stored: Stored, theirs: Option<Identity>) -> Stored {
    let Some(theirs) = theirs else { return stored };
    let ours = match stored {
        Ok(ours) => ours,
        Err(error) => {
            tracing::warn!(error = %http::chain(&error), "the Secret's identity replaces what is in the data directory");
            None
        }
    };
    let Some(ours) = ours else { return Ok(Some(mirror(store, theirs))) };
    match compare(&ours, &theirs, clock::now()) {
        Standing::Same | Standing::Worse => Ok(Some(ours)),
        Standing::Better => Ok(Some(mirror(store, theirs))),
        Standing::Foreign => {
            tracing::warn!(
                stored = %ours.name, secret = %theirs.name,
                "the Secret holds the identity of another agent than the data directory, and is the one that counts"
            );
            let theirs = mirror(store, theirs);
            // Never to be gone back to.
            if let Err(error) = store.confirm() {
                tracing::warn!(error = %http::chain(&error), "the other agent's certificate stays on the disk");
            }
            Ok(Some(theirs))
        }
    }
}

/// Copies an identity from the Secret into the data directory. A disk that refuses it does not keep the agent from running.
pub(super) fn mirror(store: &Store, identity: Identity) -> Identity {
    let copied = store.reserve().and_then(|reservation| reservation.commit(identity.material.clone()));
    match copied {
        Ok(_) => {
            tracing::info!(agent = %identity.name, certificate = %identity.sha256, "the identity in the Secret is used")
        }
        Err(error) => {
            tracing::warn!(error = %http::chain(&error), "the Secret's identity is used, but could not be copied into the data directory");
        }
    }
    identity
}

/// After a join was refused: the identity that another replica has joined with, once it has written it down.
pub(super) async fn joined_elsewhere(shared: &Shared) -> Option<Identity> {
    tracing::info!(secret = %shared.place(), "the join was refused; looking whether another replica has joined");
    let look = async {
        loop {
            match shared.read().await {
                Ok(Some(theirs)) => return theirs,
                Ok(None) => {}
                Err(error) => tracing::warn!(error = %http::chain(&error), "looking again"),
            }
            tokio::time::sleep(OTHERS_TICK).await;
        }
    };
    tokio::time::timeout(OTHERS_LIMIT, look).await.ok()
}

/// Stores a fresh identity; the agent goes on without, since it can store it later. Returns what is to be used.
pub(super) async fn keep_first(shared: &Shared, store: &Store, identity: Identity) -> Identity {
    for attempt in 1..=FIRST_ATTEMPTS {
        match keep(shared, &identity, Over::Worse).await {
            Ok(None) => break,
            Ok(Some(theirs)) => return mirror(store, theirs),
            Err(error) if attempt == FIRST_ATTEMPTS || !error.is_unreachable() => {
                tracing::error!(error = %http::chain(&error), "the new identity is kept in the data directory only, until this works");
                break;
            }
            Err(error) => {
                tracing::warn!(error = %http::chain(&error), "the new identity is not in the Secret yet, trying again");
                tokio::time::sleep(FIRST_TICK).await;
            }
        }
    }
    identity
}

/// For the `join` command: see [`keep_first`]; here an error is one.
pub(super) async fn keep_joined(shared: &Shared, identity: &Identity, over: Over) -> Result<(), shared::Error> {
    keep(shared, identity, over).await.map(drop)
}

/// Stores `ours`; returns another replica's where that is better.
async fn keep(shared: &Shared, ours: &Identity, over: Over) -> Result<Option<Identity>, shared::Error> {
    Ok(match shared.keep(ours, over).await? {
        Kept::Stored => {
            tracing::info!(secret = %shared.place(), certificate = %ours.sha256, "the identity is kept in the Secret");
            None
        }
        Kept::Better(theirs) => Some(*theirs),
    })
}

/// Looks at the Secret for as long as the agent runs.
pub(super) async fn run(context: Context, shared: Shared) {
    let stop = context.tasks.stop_token();
    let mut accepted = context.accepted.subscribe();
    let mut backoff = Backoff::new(RETRY_BASE, PERIOD);
    loop {
        accepted.borrow_and_update();
        let session = context.session();
        let looked = tokio::select! {
            looked = step(&context, &shared, &session) => looked,
            () = stop.cancelled() => return,
        };
        let wait = match looked {
            Ok(()) => {
                backoff.reset();
                context.board.sharing_error(None);
                period(&session.identity, fastrand::f64())
            }
            Err(error) => {
                let wait = error.asked_wait().unwrap_or_else(|| backoff.next(fastrand::f64())).max(RETRY_BASE / 10);
                let sentence = http::chain(&error);
                if context.board.sharing_error(Some(sentence.clone())) {
                    tracing::error!("{sentence}");
                }
                wait
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // The platform has accepted another certificate than before: it may be one to be stored.
            Ok(()) = accepted.changed() => {}
            () = stop.cancelled() => return,
        }
    }
}

fn period(identity: &Identity, draw: f64) -> Duration {
    (renewal::tick(identity) * 2).min(PERIOD).mul_f64(0.75 + draw / 2.0)
}

async fn step(context: &Context, shared: &Shared, session: &Session) -> Result<(), shared::Error> {
    let ours = &session.identity;
    let theirs = match shared.look(ours).await? {
        Look::Same => return Ok(()),
        Look::Better(theirs) => *theirs,
        Look::Behind if *context.accepted.borrow() != ours.sha256 => return Ok(()),
        Look::Behind => match keep(shared, ours, Over::Worse).await? {
            None => return Ok(()),
            Some(theirs) => theirs,
        },
    };
    adopt(context, theirs).await;
    Ok(())
}

/// Goes on with the certificate that another replica has renewed to.
pub(super) async fn adopt(context: &Context, theirs: Identity) {
    // A renewal of our own that is under way holds space in the data directory.
    let _turn = context.identity_turn.lock().await;
    if compare(&context.session().identity, &theirs, clock::now()) != Standing::Better {
        return;
    }
    context.board.metrics.renewals.with_label_values(&["adopted"]).inc();
    context.board.standing_error(None);
    context.assume(mirror(&context.store, theirs));
}

/// What a start goes on with, waiting until the Secret has said whether there is an identity.
///
/// `None` in the outer option if the agent is leaving.
pub(super) async fn start(
    shared: &Shared,
    store: &Store,
    stored: Stored,
    waiting: &mut registration::Waiting<'_>,
) -> Option<Stored> {
    loop {
        match (shared.read().await, &stored) {
            (Ok(theirs), _) => return Some(settle(store, stored, theirs)),
            (Err(error), Ok(Some(_))) => {
                // People are waiting, and this identity is as good as it was when it was stored.
                tracing::warn!(error = %http::chain(&error), "going on with the identity in the data directory");
                return Some(stored);
            }
            (Err(error), _) => {
                if !waiting.pause(&http::chain(&error), error.asked_wait()).await {
                    return None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::identity::Material;
    use crate::secret::Secret;

    #[test]
    fn replicas_look_about_once_a_minute_and_more_often_where_lives_are_short() {
        let secret = || Secret::new(String::new());
        let mut identity = Identity {
            material: Material { certificate_pem: secret(), private_key_pem: secret(), ca_pem: String::new() },
            name: "edge".into(),
            sha256: String::new(),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(31_536_000),
        };
        assert_eq!(period(&identity, 0.0), Duration::from_secs(45));
        assert_eq!(period(&identity, 1.0), Duration::from_secs(75));
        identity.not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(40);
        assert_eq!(period(&identity, 0.5), Duration::from_secs(2));
    }
}
