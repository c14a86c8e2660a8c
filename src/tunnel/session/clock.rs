//! The deadlines of a session behind one timer, which is made when there is something to wait for.

use std::task::Context;

use tokio::time::{Instant, sleep_until};

use super::{End, Phase, Session};

impl Session {
    /// Deals with deadlines that have passed, and sets the timer for the next one.
    pub(super) fn ring(&mut self, cx: &mut Context<'_>) -> bool {
        if self.pass_deadlines() {
            return true;
        }
        let Some(next) = self.next_deadline() else {
            // It goes when it rings: sessions that talk need one again and again.
            self.alarm.take_if(|alarm| alarm.as_mut().poll(cx).is_ready());
            return false;
        };
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(next)));
        // A timer that rings too early is set again when it rings: cheaper than setting it with every frame.
        if alarm.deadline() > next {
            alarm.as_mut().reset(next);
        }
        while alarm.as_mut().poll(cx).is_ready() {
            if alarm.deadline() >= next {
                return true;
            }
            alarm.as_mut().reset(next);
        }
        false
    }

    fn next_deadline(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Running => None,
            // Without a connection there is nobody to hurry.
            Phase::Finishing { until, .. } => self.link.as_ref().map(|_| until),
            Phase::Delivering { until } | Phase::Lingering { until } => Some(until),
        };
        let ack = self.ack_at.filter(|_| self.may_acknowledge());
        let redial = self.redial_until.filter(|_| !self.is_connecting());
        [ack, redial, self.next_until, phase, self.freeze_by].into_iter().flatten().min()
    }

    fn pass_deadlines(&mut self) -> bool {
        let passed = |deadline: Option<Instant>| deadline.is_some_and(|at| at <= self.now);
        if passed(self.next_until) {
            self.redial_is_late();
            return true;
        }
        if passed(self.redial_until) && !self.is_connecting() {
            self.finished(End::NeverRedialled);
            return true;
        }
        match self.phase {
            Phase::Finishing { until, late } if until <= self.now && self.link.is_some() => {
                if late {
                    self.over = true;
                } else {
                    self.flush_is_late();
                }
            }
            Phase::Delivering { until } if until <= self.now => self.say_goodbye(End::ClientClosed),
            Phase::Lingering { until } if until <= self.now => self.over = true,
            Phase::Running | Phase::Finishing { .. } | Phase::Delivering { .. } | Phase::Lingering { .. } => {
                return false;
            }
        }
        true
    }
}
