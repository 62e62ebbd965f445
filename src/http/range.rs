//! Byte ranges (RFC 9110 §14): what a client wishes, and what an upstream says it sends.

use std::ops::Range;

use super::headers::trim_blanks;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RangeWish {
    /// Answer 200: no range, or one that may be ignored.
    Whole,
    /// Answer 206. Never empty, always inside the size.
    Part(Range<u64>),
    /// Answer 416.
    Unsatisfiable,
}

/// Reads a `Range` field against a body of `size` bytes.
///
/// Several ranges in one field get the whole: every client that sends them takes that, and none takes one
/// part for several. A malformed range is unsatisfiable, where RFC 9110 would ignore it: the OCI
/// conformance suite expects 416, and a client that wants a part should hear that it asked wrongly.
pub fn parse_range(value: &str, size: u64) -> RangeWish {
    let Some((unit, ranges)) = value.split_once('=') else {
        return RangeWish::Whole;
    };
    if !unit.eq_ignore_ascii_case("bytes") || ranges.contains(',') {
        return RangeWish::Whole;
    }
    let wished = match trim_blanks(ranges).split_once('-') {
        Some(("", suffix)) => decimal(suffix).map(|count| size.saturating_sub(count)..size),
        Some((first, "")) => decimal(first).map(|first| first..size),
        Some((first, last)) => match (decimal(first), decimal(last)) {
            (Some(first), Some(last)) => Some(first..last.saturating_add(1).min(size)),
            _ => None,
        },
        None => None,
    };
    match wished {
        Some(part) if !part.is_empty() => RangeWish::Part(part),
        _ => RangeWish::Unsatisfiable,
    }
}

/// What a 206 carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContentRange {
    pub start: u64,
    /// Exclusive.
    pub end: u64,
    /// Of the whole, if the sender knows it.
    pub size: Option<u64>,
}

/// Reads `bytes 0-9/100` and `bytes 0-9/*`.
pub fn parse_content_range(value: &str) -> Option<ContentRange> {
    let (unit, rest) = value.split_once(' ')?;
    let (range, size) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (start, end) = (exact(first)?, exact(last)?.checked_add(1)?);
    let size = match size {
        "*" => None,
        size => Some(exact(size)?),
    };
    let is_sound =
        unit.eq_ignore_ascii_case("bytes") && start < end && size.is_none_or(|size| end <= size);
    is_sound.then_some(ContentRange { start, end, size })
}

/// `1*DIGIT`. What no `u64` holds lies behind the end of every body, so the largest stands for it.
fn decimal(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// `1*DIGIT` that fits.
fn exact(text: &str) -> Option<u64> {
    decimal(text).filter(|_| text.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read_as_the_clients_mean_them() {
        use RangeWish::{Part, Unsatisfiable, Whole};
        for (value, size, wish) in [
            ("bytes=0-0", 10, Part(0..1)),
            ("bytes=2-5", 10, Part(2..6)),
            ("bytes=0-", 10, Part(0..10)),
            ("bytes=9-", 10, Part(9..10)),
            ("bytes=5-9", 10, Part(5..10)),
            ("bytes=5-10", 10, Part(5..10)),
            ("bytes=5-99999999999999999999", 10, Part(5..10)),
            ("bytes=0-18446744073709551615", 10, Part(0..10)),
            ("bytes=-3", 10, Part(7..10)),
            ("bytes=-30", 10, Part(0..10)),
            ("bytes=-99999999999999999999", 10, Part(0..10)),
            ("Bytes=1-2", 10, Part(1..3)),
            ("bytes= 1-2\t", 10, Part(1..3)),
            ("bytes=500-1499", 2048, Part(500..1500)),
            ("bytes=2000-5000", 2048, Part(2000..2048)),
            ("bytes=10-", 10, Unsatisfiable),
            ("bytes=10-11", 10, Unsatisfiable),
            ("bytes=99999999999999999999-", 10, Unsatisfiable),
            ("bytes=-0", 10, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-5", 0, Unsatisfiable),
            ("bytes=5-4", 10, Unsatisfiable),
            ("bytes=a-b", 10, Unsatisfiable),
            ("bytes=", 10, Unsatisfiable),
            ("bytes=-", 10, Unsatisfiable),
            ("bytes=5", 10, Unsatisfiable),
            ("bytes=--5", 10, Unsatisfiable),
            ("bytes=+1-2", 10, Unsatisfiable),
            ("bytes=1 - 2", 10, Unsatisfiable),
            ("bytes=0-1,3-4", 10, Whole),
            ("bytes=0-1,", 10, Whole),
            ("items=0-1", 10, Whole),
            ("bytes 0-1", 10, Whole),
            ("", 10, Whole),
        ] {
            assert_eq!(parse_range(value, size), wish, "{value} of {size}");
        }
    }

    #[test]
    fn content_ranges_are_read_or_refused() {
        for (value, range) in [
            ("bytes 0-9/100", Some((0, 10, Some(100)))),
            ("BYTES 5-5/6", Some((5, 6, Some(6)))),
            ("bytes 0-9/*", Some((0, 10, None))),
            ("bytes 0-9/9", None),
            ("bytes 9-8/100", None),
            ("bytes */100", None),
            ("bytes=0-9/100", None),
            ("bytes 0-9", None),
            ("bytes  0-9/100", None),
            ("bytes -9/100", None),
            ("bytes 0-/100", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes 0-1/99999999999999999999", None),
            ("items 0-9/100", None),
            ("", None),
        ] {
            let parsed =
                parse_content_range(value).map(|range| (range.start, range.end, range.size));
            assert_eq!(parsed, range, "{value}");
        }
    }
}
