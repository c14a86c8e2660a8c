//! Numbers over time: how far away an edge is, and when to try a lost bridge again. Pure.

use std::time::Duration;

use crate::backoff::Backoff;

/// Weight of a new sample (protocol 5.4).
const ALPHA: f64 = 0.3;

/// The smoothed round-trip time of an edge.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ewma(Option<f64>);

impl Ewma {
    /// Takes a sample; the first as it is.
    pub fn sample(&mut self, took: Duration) {
        let new = took.as_secs_f64() * 1000.0;
        self.0 = Some(self.0.map_or(new, |old| ALPHA.mul_add(new, (1.0 - ALPHA) * old)));
    }

    /// Whole milliseconds, once there was a sample.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates; a time is not negative"
    )]
    pub fn milliseconds(self) -> Option<u64> {
        self.0.map(|value| value.round() as u64)
    }
}

/// A bridge that restarts is back within seconds, and users wait; one that is gone may stay away for ever.
const HOPEFUL: Duration = Duration::from_secs(60);

/// Waiting times for a bridge that cannot be reached: below a second for a minute, then up to 15 s.
#[derive(Clone, Debug)]
pub struct Retry {
    soon: Backoff,
    later: Backoff,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            soon: Backoff::new(Duration::from_millis(200), Duration::from_millis(800)),
            later: Backoff::new(Duration::from_secs(1), Duration::from_secs(15)),
        }
    }
}

impl Retry {
    /// The next wait for a bridge that has been failing for `failing`.
    pub fn next(&mut self, failing: Duration, draw: f64) -> Duration {
        if failing < HOPEFUL { self.soon.next(draw) } else { self.later.next(draw) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smoothed_time_follows_the_protocols_trace() {
        let mut ewma = Ewma::default();
        assert_eq!(ewma.milliseconds(), None);
        for step in crate::relay::vectors()["relay_rtt_ewma"]["trace"].as_array().unwrap() {
            ewma.sample(Duration::from_secs_f64(step["sample_ms"].as_f64().unwrap() / 1000.0));
            assert!((ewma.0.unwrap() - step["ewma_ms"].as_f64().unwrap()).abs() < 1e-6);
        }
        assert_eq!(ewma.milliseconds(), Some(97));
    }

    #[test]
    fn a_bridge_that_restarts_is_found_within_a_second_and_one_that_is_gone_costs_little() {
        let mut retry = Retry::default();
        assert!(retry.next(Duration::ZERO, 1.0) <= Duration::from_millis(200));
        for second in 0..60 {
            assert!(retry.next(Duration::from_secs(second), 1.0) < Duration::from_secs(1));
        }
        let later: Vec<u64> = (0..7).map(|_| retry.next(HOPEFUL, 1.0).as_secs()).collect();
        assert_eq!(later, [1, 2, 4, 8, 15, 15, 15]);
    }
}
