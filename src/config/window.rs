//! The update window: the local times at which an unattended update may begin (contract section 2, `update.window`).
//!
//! `Sat..Sun 02:00-05:00`, several of them separated by `;` or `,`. The days are optional; `Mon,Wed 01:00-02:00` lists
//! them. A span that ends before it begins goes over midnight and belongs to the day on which it begins. The module
//! knows minutes of a week and nothing of clocks or time zones: the caller asks with local time.

use jiff::civil::Weekday;

/// Minutes in a day; also the latest end, written `24:00`.
const DAY_MINUTES: u16 = 24 * 60;

/// All seven days.
const EVERY_DAY: Days = Days(0b0111_1111);

/// When updates may begin. The default has no spans and means any time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    spans: Vec<Span>,
}

/// A set of days, bit 0 being Monday.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Days(u8);

/// One `days begin-end`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    days: Days,
    /// Invariant: below [`DAY_MINUTES`].
    begin: u16,
    /// Invariant: at most [`DAY_MINUTES`], and never equal to `begin`.
    end: u16,
}

/// A text that is no window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{part}\" is no update window: {reason}; write for example \"Sat..Sun 02:00-05:00\"")]
pub struct InvalidWindow {
    part: String,
    reason: &'static str,
}

impl Window {
    /// Reads a window; an empty text means any time.
    ///
    /// # Errors
    /// Names the part that was not understood.
    pub fn parse(text: &str) -> Result<Self, InvalidWindow> {
        let mut spans = Vec::new();
        if text.trim().is_empty() {
            return Ok(Self { spans });
        }
        for group in text.split(';') {
            spans.append(&mut parse_group(group)?);
        }
        Ok(Self { spans })
    }

    /// Whether an update may begin at this local time; `minute` counts from midnight.
    #[must_use]
    pub fn contains(&self, weekday: Weekday, minute: u16) -> bool {
        self.spans.is_empty() || self.spans.iter().any(|span| span.contains(weekday, minute))
    }

    /// True where no time is excluded because none was named.
    #[must_use]
    pub const fn is_any_time(&self) -> bool {
        self.spans.is_empty()
    }
}

impl Span {
    fn contains(&self, weekday: Weekday, minute: u16) -> bool {
        let same_day = self.days.contains(weekday);
        if self.begin < self.end {
            return same_day && (self.begin..self.end).contains(&minute);
        }
        (same_day && (self.begin..DAY_MINUTES).contains(&minute))
            || (self.days.contains(weekday.previous()) && minute < self.end)
    }
}

impl Days {
    const fn of(weekday: Weekday) -> Self {
        Self(1 << weekday.to_monday_zero_offset())
    }

    const fn contains(self, weekday: Weekday) -> bool {
        self.0 & Self::of(weekday).0 != 0
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Spans separated by commas; a part that has days only joins them to the next (`Mon,Wed 01:00-02:00`).
fn parse_group(group: &str) -> Result<Vec<Span>, InvalidWindow> {
    let mut spans = Vec::new();
    let mut waiting: Option<Days> = None;
    for part in group.split(',') {
        let fault = |reason| InvalidWindow { part: part.trim().to_owned(), reason };
        let words: Vec<&str> = part.split_whitespace().collect();
        let (days, times) = match words.as_slice() {
            [] => return Err(fault("a part is empty")),
            [only] if only.contains(':') => (None, Some(*only)),
            [only] => (Some(parse_days(only).ok_or_else(|| fault("no such day"))?), None),
            [days, times] => (Some(parse_days(days).ok_or_else(|| fault("no such day"))?), Some(*times)),
            _ => return Err(fault("too many words")),
        };
        let days = match (waiting, days) {
            (Some(_), None) => return Err(fault("a day stands before a comma and a time after it")),
            (Some(before), Some(now)) => Some(before.and(now)),
            (None, now) => now,
        };
        let Some(times) = times else {
            waiting = days;
            continue;
        };
        waiting = None;
        let (begin, end) = parse_times(times).ok_or_else(|| fault("the times are not HH:MM-HH:MM"))?;
        if begin == end {
            return Err(fault("it begins when it ends"));
        }
        spans.push(Span { days: days.unwrap_or(EVERY_DAY), begin, end });
    }
    match waiting {
        None => Ok(spans),
        Some(_) => Err(InvalidWindow { part: group.trim().to_owned(), reason: "days without times" }),
    }
}

/// `Sat`, `saturday` or `Fri..Mon`.
fn parse_days(text: &str) -> Option<Days> {
    let Some((first, last)) = text.split_once("..").or_else(|| text.split_once('-')) else {
        return parse_day(text).map(Days::of);
    };
    let (mut day, last) = (parse_day(first)?, parse_day(last)?);
    let mut days = Days::of(day);
    while day != last {
        day = day.next();
        days = days.and(Days::of(day));
    }
    Some(days)
}

fn parse_day(text: &str) -> Option<Weekday> {
    let name = text.to_ascii_lowercase();
    Some(match name.as_str() {
        "mon" | "monday" => Weekday::Monday,
        "tue" | "tuesday" => Weekday::Tuesday,
        "wed" | "wednesday" => Weekday::Wednesday,
        "thu" | "thursday" => Weekday::Thursday,
        "fri" | "friday" => Weekday::Friday,
        "sat" | "saturday" => Weekday::Saturday,
        "sun" | "sunday" => Weekday::Sunday,
        _ => return None,
    })
}

/// `02:00-05:00` as minutes of the day.
fn parse_times(text: &str) -> Option<(u16, u16)> {
    let (begin, end) = text.split_once('-')?;
    let (begin, end) = (parse_time(begin)?, parse_time(end)?);
    (begin < DAY_MINUTES).then_some((begin, end))
}

/// `02:00`, `2:00` or `24:00`.
fn parse_time(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !matches!(hours.len(), 1 | 2) || minutes.len() != 2 || !digits(hours) || !digits(minutes) {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    let minute = hours * 60 + minutes;
    (minutes < 60 && minute <= DAY_MINUTES).then_some(minute)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(hour: u16, minute: u16) -> u16 {
        hour * 60 + minute
    }

    #[test]
    fn a_window_contains_the_times_it_names_and_no_others() {
        use Weekday::{Friday, Monday, Saturday, Sunday, Tuesday, Wednesday};
        for (window, weekday, minute, inside) in [
            ("", Monday, at(12, 0), true),
            ("  ", Monday, at(12, 0), true),
            ("Sat..Sun 02:00-05:00", Saturday, at(2, 0), true),
            ("Sat..Sun 02:00-05:00", Sunday, at(4, 59), true),
            ("Sat..Sun 02:00-05:00", Sunday, at(5, 0), false),
            ("Sat..Sun 02:00-05:00", Saturday, at(1, 59), false),
            ("Sat..Sun 02:00-05:00", Friday, at(3, 0), false),
            ("02:00-05:00", Wednesday, at(3, 0), true),
            ("fri 22:00-02:00", Friday, at(23, 0), true),
            ("fri 22:00-02:00", Saturday, at(1, 59), true),
            ("fri 22:00-02:00", Saturday, at(2, 0), false),
            ("fri 22:00-02:00", Friday, at(1, 0), false),
            ("Sun 23:00-01:00", Monday, at(0, 30), true),
            ("22:00-24:00", Monday, at(23, 59), true),
            ("22:00-24:00", Monday, at(0, 0), false),
            ("22:00-00:00", Monday, at(23, 59), true),
            ("22:00-00:00", Monday, at(0, 0), false),
            ("Fri..Mon 01:00-02:00", Sunday, at(1, 0), true),
            ("Fri..Mon 01:00-02:00", Tuesday, at(1, 0), false),
            ("Mon,Wed 01:00-02:00", Monday, at(1, 0), true),
            ("Mon, Wed 01:00-02:00", Wednesday, at(1, 0), true),
            ("Mon,Wed 01:00-02:00", Tuesday, at(1, 0), false),
            ("Mon 01:00-02:00, Tue 03:00-04:00", Tuesday, at(3, 0), true),
            ("Mon 01:00-02:00; 03:00-04:00", Sunday, at(3, 0), true),
            ("MONDAY-tuesday 1:00-2:00", Tuesday, at(1, 30), true),
        ] {
            let parsed = Window::parse(window).unwrap();
            assert_eq!(parsed.contains(weekday, minute), inside, "{window:?} {weekday:?} {minute}");
        }
    }

    #[test]
    fn what_is_no_window_is_refused_with_the_part_and_an_example() {
        for text in [
            "always",
            "Sat",
            "Sat;02:00-03:00",
            "Sat,02:00-03:00",
            "Sat..Son 02:00-03:00",
            "Sat 02:00",
            "Sat 02:00-25:00",
            "Sat 24:00-02:00",
            "Sat 02:60-03:00",
            "Sat 02:00-02:00",
            "Sat 02:00-03:00,",
            ";",
            "Sat 2-3",
            "Sat 02:00 - 03:00",
            "Sat +2:00-03:00",
            "Sat 002:00-03:00",
        ] {
            let error = Window::parse(text).unwrap_err().to_string();
            assert!(error.contains("Sat..Sun 02:00-05:00"), "{text}: {error}");
        }
    }

    #[test]
    fn a_window_without_spans_says_so() {
        assert!(Window::parse("").unwrap().is_any_time());
        assert!(!Window::parse("00:00-24:00").unwrap().is_any_time());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-zA-Z.,; :0-9-]{0,40}|\\PC{0,40}") {
            if let Ok(window) = Window::parse(&text) {
                let _ = window.contains(Weekday::Sunday, u16::MAX);
            }
        }
    }
}
