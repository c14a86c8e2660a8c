//! The waiting of the two loops that talk to the platform: carries out what [`super::reaction`] decides.

use std::time::Duration;

use super::board::Way;
use super::reaction::{self, Reaction};
use super::{Context, Error, Session};
use crate::backoff::Backoff;
use crate::clock;
use crate::http;
use crate::platform::Failure;

/// However lucky the draw, nobody calls more often than this.
const SHORTEST: Duration = Duration::from_millis(100);

/// The waits of one loop.
pub(super) struct Retry {
    way: Way,
    usual: Backoff,
    patient: Backoff,
    /// The sentence that was last logged, so that a standing trouble is not told every few minutes.
    told: Option<String>,
}

impl Retry {
    pub(super) const fn new(way: Way, base: Duration, cap: Duration) -> Self {
        Self {
            way,
            usual: Backoff::new(base, cap),
            patient: Backoff::new(reaction::PATIENT_BASE, reaction::PATIENT_CAP),
            told: None,
        }
    }

    /// Something has worked for long enough to start over.
    pub(super) fn worked(&mut self) {
        self.usual.reset();
        self.patient.reset();
        self.told = None;
    }

    /// The way ended without a fault of its own, e.g. the platform restarts: how long to wait.
    pub(super) fn ended(&mut self) -> Duration {
        self.usual.next(fastrand::f64()).max(SHORTEST)
    }

    /// Deals with a failure of a call that was made as `session`; returns how long to wait.
    pub(super) fn failed(&mut self, context: &Context, session: &Session, failure: &Failure) -> Duration {
        if context.session().identity.sha256 != session.identity.sha256 {
            // The identity was replaced meanwhile; what the old one was told no longer counts.
            return Duration::ZERO;
        }
        let has_previous = context.store.has_previous();
        match reaction::react(failure, &session.identity, has_previous, &context.anew(), clock::now()) {
            Reaction::Retry => self.soon(context, failure),
            Reaction::Patience(sentence) => self.patiently(context, sentence),
            Reaction::Revert => self.revert(context, session, failure),
            Reaction::Expired => {
                let name = session.identity.name.clone();
                let expired = clock::rfc3339(session.identity.not_after);
                context.give_up(Error::Expired { name, expired, anew: context.anew() });
                reaction::PATIENT_CAP
            }
        }
    }

    fn soon(&mut self, context: &Context, failure: &Failure) -> Duration {
        let wait =
            failure.asked_wait(fastrand::f64()).unwrap_or_else(|| self.usual.next(fastrand::f64())).max(SHORTEST);
        tracing::warn!(error = %failure, wait_ms = wait.as_millis(), "trying again");
        context.board.fails(self.way, Some(failure.to_string()));
        wait
    }

    fn patiently(&mut self, context: &Context, sentence: String) -> Duration {
        context.board.fails(self.way, Some(sentence.clone()));
        if self.told.as_ref() != Some(&sentence) {
            tracing::error!("{sentence}");
            self.told = Some(sentence);
        }
        self.patient.next(fastrand::f64()).max(reaction::PATIENT_BASE / 2)
    }

    fn revert(&mut self, context: &Context, session: &Session, failure: &Failure) -> Duration {
        match context.store.revert() {
            Ok(Some(identity)) => {
                tracing::warn!(error = %failure, certificate = %identity.sha256, "the renewed certificate is refused, going back to the one before");
                context.board.standing_error(Some(format!(
                    "the renewed certificate was refused, the one before is in use again until {}; renewing is tried \
                     again ({failure})",
                    clock::rfc3339(identity.not_after)
                )));
                if let Some(shared) = &context.shared {
                    // Else the next look at the Secret would bring it back.
                    shared.refuse(&session.identity.sha256);
                }
                context.assume(identity);
                Duration::ZERO
            }
            Ok(None) => self.patiently(context, format!("the renewed certificate is refused ({failure})")),
            Err(error) => self.patiently(
                context,
                format!(
                    "the renewed certificate is refused and the one before cannot be restored: {}",
                    http::chain(&error)
                ),
            ),
        }
    }
}
