//! Byte ranges (RFC 9110 §14): what a client wishes, and what an upstream says it sends.

use std::ops::Range;

use super::headers::trim_blanks;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RangeWish {
    /// Answer 200: no range, or one that may be ignored.
    Whole,
    /// Answer 206. Never empty, always inside the size.
    Part(Range<u64>),
    /// Answer 206 with `multipart/byteranges`, in this order, even if there is one: who asked for several takes one part for
    /// all of them otherwise. None is empty, none overlaps another.
    Parts(Vec<Range<u64>>),
    /// Answer 416.
    Unsatisfiable,
}

/// More ranges than this get the whole, which bounds the work; runtimes that want parts ask for a few.
const MOST_PARTS: usize = 16;

/// Reads a `Range` field against a body of `size` bytes.
///
/// A malformed range is unsatisfiable, where RFC 9110 would ignore it: the OCI conformance suite expects 416, and a
/// client that wants a part should hear that it asked wrongly. Of several ranges, a malformed one, too many or overlapping
/// ones get the whole.
pub fn parse_range(value: &str, size: u64) -> RangeWish {
    let Some((unit, ranges)) = value.split_once('=') else {
        return RangeWish::Whole;
    };
    if !unit.eq_ignore_ascii_case("bytes") {
        return RangeWish::Whole;
    }
    if ranges.contains(',') {
        return parse_several(ranges, size);
    }
    match parse_one(ranges, size) {
        Some(part) if !part.is_empty() => RangeWish::Part(part),
        _ => RangeWish::Unsatisfiable,
    }
}

fn parse_several(ranges: &str, size: u64) -> RangeWish {
    let mut parts: Vec<Range<u64>> = Vec::new();
    for (index, range) in ranges.split(',').enumerate() {
        let Some(part) = parse_one(range, size).filter(|_| index < MOST_PARTS) else {
            return RangeWish::Whole;
        };
        // RFC 9110 §14.1.1: those that lie outside are left out.
        if part.is_empty() {
            continue;
        }
        let overlaps = |other: &Range<u64>| other.start < part.end && part.start < other.end;
        if parts.iter().any(overlaps) {
            return RangeWish::Whole;
        }
        parts.push(part);
    }
    if parts.is_empty() {
        RangeWish::Unsatisfiable
    } else {
        RangeWish::Parts(parts)
    }
}

/// `None`: not a range. Empty: outside of the body.
fn parse_one(range: &str, size: u64) -> Option<Range<u64>> {
    match trim_blanks(range).split_once('-')? {
        ("", suffix) => decimal(suffix).map(|count| size.saturating_sub(count)..size),
        (first, "") => decimal(first).map(|first| first..size),
        (first, last) => {
            let (first, last) = (decimal(first)?, decimal(last)?);
            (first <= last).then(|| first..last.saturating_add(1).min(size))
        }
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
        use RangeWish::{Part, Parts, Unsatisfiable, Whole};
        let alone = Parts(std::iter::once(0..2).collect());
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
            ("bytes=0-1,3-4", 10, Parts(vec![0..2, 3..5])),
            ("bytes=-2, 0-0", 10, Parts(vec![8..10, 0..1])),
            ("bytes=0-1,20-30", 10, alone),
            ("bytes=20-,30-", 10, Unsatisfiable),
            ("bytes=0-1,1-2", 10, Whole),
            ("bytes=0-1,x", 10, Whole),
            ("bytes=0-1,5-4", 10, Whole),
            ("bytes=0-1,", 10, Whole),
            ("items=0-1", 10, Whole),
            ("bytes 0-1", 10, Whole),
            ("", 10, Whole),
        ] {
            assert_eq!(parse_range(value, size), wish, "{value} of {size}");
        }
        let many = |count: u64| {
            let ranges: Vec<String> = (0..count)
                .map(|place| format!("{0}-{0}", 2 * place))
                .collect();
            parse_range(&format!("bytes={}", ranges.join(",")), 100)
        };
        assert!(matches!(many(16), Parts(parts) if parts.len() == 16));
        assert_eq!(many(17), Whole);
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
