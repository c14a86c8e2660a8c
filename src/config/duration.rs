//! Durations as the configuration writes them: `300ms`, `1.5s`, `1h30m`, or a bare integer for seconds (protocol 2.3).
//!
//! The result is signed, because `-5` is well-formed and only its meaning is wrong: the message that refuses it should
//! say so, not that it is no duration.

/// Nanoseconds per unit, longest spelling first so that `ms` is not taken for `m`.
const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    // MICRO SIGN and GREEK SMALL LETTER MU look alike and are both in use.
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration as signed nanoseconds; `None` where it is none, or beyond 292 years.
#[must_use]
pub fn parse_nanos(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<i64>() {
        return seconds.checked_mul(1_000_000_000);
    }
    let (negative, magnitude) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let nanos = sum_of_parts(magnitude)?;
    if negative { nanos.checked_neg() } else { Some(nanos) }
}

/// `1h30m`: every part a number and its unit, at least one.
fn sum_of_parts(mut rest: &str) -> Option<i64> {
    let mut total: i64 = 0;
    loop {
        let number_ends = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(number_ends);
        let unit_ends = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_ends);
        let (_, unit_nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(part_nanos(number, *unit_nanos)?)?;
        if after.is_empty() {
            return Some(total);
        }
        rest = after;
    }
}

/// One number with an optional fraction times its unit, without floating point: `0.1s` is exactly 100 ms.
fn part_nanos(number: &str, unit_nanos: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut nanos = whole.checked_mul(unit_nanos)?;
    let mut place = unit_nanos;
    for digit in fraction.bytes() {
        place /= 10;
        nanos = nanos.checked_add(place.checked_mul(i64::from(digit - b'0'))?)?;
    }
    Some(nanos)
}

/// Writes a duration the way it could be read back, e.g. `1h30m`, `90s` → `1m30s`, `500ms`.
#[must_use]
pub fn format(duration: std::time::Duration) -> String {
    let nanos = duration.subsec_nanos();
    let seconds = duration.as_secs();
    let mut text = String::new();
    for (amount, unit) in [
        (seconds / 3600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (u64::from(nanos / 1_000_000), "ms"),
        (u64::from(nanos / 1_000 % 1_000), "us"),
        (u64::from(nanos % 1_000), "ns"),
    ] {
        if amount > 0 {
            text.push_str(&format!("{amount}{unit}"));
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_beyond_the_vectors() {
        for (text, nanos) in [
            ("1ns", Some(1)),
            ("1us", Some(1_000)),
            ("1\u{b5}s", Some(1_000)),
            ("1\u{3bc}s", Some(1_000)),
            (".5s", Some(500_000_000)),
            ("5.s", Some(5_000_000_000)),
            ("0.1s", Some(100_000_000)),
            ("+3s", Some(3_000_000_000)),
            ("-1m30s", Some(-90_000_000_000)),
            ("0.0000000001s", Some(0)),
            (".s", None),
            ("s", None),
            ("1.2.3s", None),
            ("--1s", None),
            ("1s ", None),
            ("1m1", None),
            ("9223372036854775807", None),
            ("2562048h", None),
            ("１s", None),
        ] {
            assert_eq!(parse_nanos(text), nanos, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            let _ = parse_nanos(&text);
        }

        #[test]
        fn what_is_written_is_read_back(nanos in 0_i64..i64::MAX / 4) {
            let text = format(Duration::from_nanos(nanos.unsigned_abs()));
            prop_assert_eq!(parse_nanos(&text), Some(nanos), "{}", text);
        }
    }
}
