//! Which part of an asset is sent: RFC 9110, chapter 14, as far as downloads use it.

/// The part of a representation that answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// 200 and everything.
    Whole,
    /// 206 from this byte on, so many.
    Slice { first: u64, length: u64 },
    /// 416: no byte of the range exists.
    Unsatisfiable,
}

/// Chooses the part of `total` bytes. A range that cannot be read, and one whose `If-Range` is about another entity tag,
/// is ignored, as the RFC asks.
pub(super) fn part(range: Option<&str>, if_range: Option<&str>, etag: &str, total: u64) -> Part {
    if if_range.is_some_and(|tag| tag != etag) {
        return Part::Whole;
    }
    let Some((first, last)) = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
        return Part::Whole;
    };
    let (first, last) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last),
        (Ok(first), Err(_)) if last.is_empty() => (first, u64::MAX),
        // The last so many bytes.
        (Err(_), Ok(length)) if first.is_empty() && length > 0 => (total.saturating_sub(length), u64::MAX),
        _ => return Part::Whole,
    };
    match total.checked_sub(first) {
        None | Some(0) => Part::Unsatisfiable,
        Some(rest) => Part::Slice { first, length: rest.min((last - first).saturating_add(1)) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_gives_its_part_and_a_bad_one_everything() {
        let table = [
            (None, None, Part::Whole),
            (Some("bytes=0-"), None, Part::Slice { first: 0, length: 100 }),
            (Some("bytes=40-"), None, Part::Slice { first: 40, length: 60 }),
            (Some("bytes=40-49"), None, Part::Slice { first: 40, length: 10 }),
            (Some("bytes=40-4000"), None, Part::Slice { first: 40, length: 60 }),
            (Some("bytes=-30"), None, Part::Slice { first: 70, length: 30 }),
            (Some("bytes=-300"), None, Part::Slice { first: 0, length: 100 }),
            (Some("bytes=0-18446744073709551615"), None, Part::Slice { first: 0, length: 100 }),
            (Some("bytes=99-"), None, Part::Slice { first: 99, length: 1 }),
            (Some("bytes=100-"), None, Part::Unsatisfiable),
            (Some("bytes=50-40"), None, Part::Whole),
            (Some("bytes=a-b"), None, Part::Whole),
            (Some("bytes=-"), None, Part::Whole),
            (Some("lines=1-2"), None, Part::Whole),
            (Some("bytes=40-"), Some("\"one\""), Part::Slice { first: 40, length: 60 }),
            (Some("bytes=40-"), Some("\"two\""), Part::Whole),
        ];
        for (range, if_range, expected) in table {
            assert_eq!(part(range, if_range, "\"one\"", 100), expected, "{range:?} {if_range:?}");
        }
    }
}
