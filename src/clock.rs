//! The clocks, read in one place.
//!
//! Certificates and logs go by the wall clock; waiting goes by tokio's monotonic clock; a trial of a new version goes by
//! [`boottime`], which neither a clock change nor a suspend can bend (contract section 4: "timing of a trial survives
//! clock changes"). Pure rooms take `now` as an argument and never come here.

use std::time::{Duration, SystemTime};

use jiff::civil::Weekday;
use jiff::{Timestamp, Zoned};

/// The wall clock.
#[must_use]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Time since boot, suspend included (`CLOCK_BOOTTIME`, clock_gettime(2)).
#[must_use]
pub fn boottime() -> Duration {
    // The clock exists since Linux 2.6.39; zero would only make a deadline come late.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// RFC 3339 in UTC with whole seconds and a trailing `Z`, as the platform writes times.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    Timestamp::try_from(time)
        .map_or_else(|_| "out of range".to_owned(), |stamp| stamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// The day of the week and the minute of the day in the machine's time zone, which `update.window` goes by.
#[must_use]
pub fn local_moment() -> (Weekday, u16) {
    let now = Zoned::now();
    let minute = i32::from(now.hour()) * 60 + i32::from(now.minute());
    (now.weekday(), u16::try_from(minute).expect("a day has 1440 minutes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc_with_whole_seconds() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_783_936_800_999);
        assert_eq!(rfc3339(time), "2026-07-13T10:00:00Z");
    }
}
