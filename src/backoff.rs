//! How long to wait before trying again: exponential, full jitter, capped.
//!
//! Full jitter (a uniform draw between zero and the exponential ceiling) spreads a fleet that lost its control plane at
//! one instant better than a fixed delay with a little noise. The draw comes in as a number so that the sequence is a
//! pure function; drivers pass `fastrand::f64()`.
//!
//! ```
//! # use std::time::Duration;
//! # use bamf_agent::backoff::Backoff;
//! let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
//! assert_eq!(backoff.next(1.0), Duration::from_secs(1));
//! assert_eq!(backoff.next(1.0), Duration::from_secs(2));
//! backoff.reset();
//! assert_eq!(backoff.next(0.5), Duration::from_millis(500));
//! ```

use std::time::Duration;

/// A growing series of waiting times.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    /// Failures since the last reset. Saturates: the ceiling is capped long before.
    failures: u32,
}

impl Backoff {
    /// A series whose ceiling starts at `base`, doubles with every failure and stops at `cap`.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// The next wait: `draw` (0 to 1) of the present ceiling. Values outside are clamped.
    pub fn next(&mut self, draw: f64) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(draw.clamp(0.0, 1.0))
    }

    /// The longest the next wait can be.
    #[must_use]
    pub fn ceiling(&self) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.cap)
    }

    /// Starts over, after something has worked for long enough to call it stable.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_cap_and_never_overflows() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        let waits: Vec<u64> = (0..12).map(|_| backoff.next(1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        for _ in 0..100 {
            assert_eq!(backoff.next(1.0), Duration::from_secs(300));
        }
    }

    #[test]
    fn a_draw_outside_zero_to_one_is_clamped() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(4));
        assert_eq!(backoff.next(-3.0), Duration::ZERO);
        assert_eq!(backoff.next(7.0), Duration::from_secs(2));
    }
}
