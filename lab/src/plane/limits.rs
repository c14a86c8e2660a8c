//! The API's rate limiter: fixed 60-second buckets for each address (protocol 3.3).

use std::collections::HashMap;
use std::time::{Duration, Instant};

const BUCKET_SECS: u64 = 60;

/// Addresses that are remembered; a lab has a handful.
const ADDRESSES: usize = 1024;

/// Requests that one address may send in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// Without `Authorization` and `X-Bamf-Client-Cert`; this includes join.
    pub anonymous: u32,
    /// With either of them, whatever they contain.
    pub identified: u32,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self { anonymous: 100, identified: 1000 }
    }
}

/// What the limiter says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowance {
    pub(crate) limit: u32,
    pub(crate) remaining: u32,
    /// Set when the request is one too many: whole seconds, 1 to 60.
    pub(crate) retry_after_secs: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Limiter {
    pub(crate) limits: RateLimits,
    started: Instant,
    bucket: u64,
    used: HashMap<(String, bool), u32>,
}

impl Limiter {
    pub(crate) fn new(limits: RateLimits, started: Instant) -> Self {
        Self { limits, started, bucket: 0, used: HashMap::new() }
    }

    pub(crate) fn take(&mut self, address: &str, identified: bool, now: Instant) -> Allowance {
        let elapsed = now.saturating_duration_since(self.started);
        let bucket = elapsed.as_secs() / BUCKET_SECS;
        if bucket != self.bucket || self.used.len() >= ADDRESSES {
            (self.bucket, self.used) = (bucket, HashMap::new());
        }
        let limit = if identified { self.limits.identified } else { self.limits.anonymous };
        let used = self.used.entry((address.to_owned(), identified)).or_default();
        *used = used.saturating_add(1);
        let retry_after =
            (*used > limit).then(|| Duration::from_secs((bucket + 1) * BUCKET_SECS).saturating_sub(elapsed));
        Allowance {
            limit,
            remaining: limit.saturating_sub(*used),
            retry_after_secs: retry_after.map(|wait| wait.as_secs().clamp(1, BUCKET_SECS)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_after_the_last_allowed_one_waits_for_the_next_bucket() {
        let start = Instant::now();
        let mut limiter = Limiter::new(RateLimits { anonymous: 2, identified: 3 }, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(limiter.take("a", false, at(0)).remaining, 1);
        assert_eq!(limiter.take("a", false, at(1)).retry_after_secs, None);
        let refused = Allowance { limit: 2, remaining: 0, retry_after_secs: Some(50) };
        assert_eq!(limiter.take("a", false, at(10)), refused);
        assert_eq!(limiter.take("a", true, at(10)).remaining, 2, "a header of either kind has its own bucket");
        assert_eq!(limiter.take("b", false, at(10)).remaining, 1, "so has every address");
        assert_eq!(limiter.take("a", false, at(59)).retry_after_secs, Some(1));
        assert_eq!(limiter.take("a", false, at(60)).retry_after_secs, None);
    }
}
