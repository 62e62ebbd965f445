//! Which bytes of a blob there are, while they arrive in any order.

use std::ops::Range;

/// Ranges of bytes: sorted, apart from each other, none empty. Few: as many as a blob has holes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents(Vec<Range<u64>>);

impl Extents {
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // Those that `range` touches become one with it.
        let first = self.0.partition_point(|extent| extent.end < range.start);
        let last = self.0.partition_point(|extent| extent.start <= range.end);
        let mut merged = range;
        for extent in self.0.drain(first..last.max(first)) {
            merged.start = merged.start.min(extent.start);
            merged.end = merged.end.max(extent.end);
        }
        self.0.insert(first, merged);
    }

    /// Leaves out what is at or behind `end`.
    pub fn truncate(&mut self, end: u64) {
        self.0.retain_mut(|extent| {
            extent.end = extent.end.min(end);
            !extent.is_empty()
        });
    }

    /// Where the extent ends that has the byte at `position`.
    pub fn end_at(&self, position: u64) -> Option<u64> {
        let next = self.0.partition_point(|extent| extent.end <= position);
        let extent = self.0.get(next)?;
        (extent.start <= position).then_some(extent.end)
    }

    /// The first hole at or behind `position` that begins before `end`; it is cut at `end`.
    pub fn gap(&self, position: u64, end: u64) -> Option<Range<u64>> {
        let start = self.end_at(position).unwrap_or(position);
        if start >= end {
            return None;
        }
        let next = self.0.partition_point(|extent| extent.start <= start);
        let stop = self.0.get(next).map_or(end, |extent| extent.start.min(end));
        Some(start..stop)
    }

    pub fn covers(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.end_at(range.start).is_some_and(|end| end >= range.end)
    }

    /// How many bytes there are without a hole from the start.
    pub fn prefix(&self) -> u64 {
        self.end_at(0).unwrap_or(0)
    }

    /// Behind the last byte.
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |extent| extent.end)
    }

    pub fn total(&self) -> u64 {
        self.0.iter().map(|extent| extent.end - extent.start).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }
}

impl FromIterator<Range<u64>> for Extents {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut extents = Self::default();
        for range in ranges {
            extents.insert(range);
        }
        extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same by one flag a byte.
    fn model(ranges: &[Range<u64>]) -> [bool; 32] {
        let mut bytes = [false; 32];
        for range in ranges {
            for byte in range.clone() {
                bytes[usize::try_from(byte).expect("small")] = true;
            }
        }
        bytes
    }

    #[test]
    fn extents_are_what_was_inserted() {
        let mut state = 1_u64;
        let mut draw = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..2_000 {
            let ranges: Vec<Range<u64>> = (0..draw(9))
                .map(|_| {
                    let start = draw(32);
                    start..start + draw(33 - start)
                })
                .collect();
            let extents: Extents = ranges.iter().cloned().collect();
            let bytes = model(&ranges);
            let mut short = extents.clone();
            short.truncate(20);
            assert_eq!(
                short.total(),
                bytes[..20].iter().filter(|byte| **byte).count() as u64,
                "{ranges:?}"
            );
            let has =
                |position: u64| bytes.get(usize::try_from(position).expect("small")) == Some(&true);
            assert_eq!(
                extents.total(),
                bytes.iter().filter(|byte| **byte).count() as u64,
                "{ranges:?}"
            );
            for pair in extents.0.windows(2) {
                assert!(pair[0].end < pair[1].start, "{ranges:?} became {extents:?}");
            }
            for position in 0..32 {
                let end = (position..)
                    .find(|byte| !has(*byte))
                    .filter(|end| *end > position);
                assert_eq!(extents.end_at(position), end, "{ranges:?} at {position}");
                for stop in position..=32 {
                    let start = (position..stop).find(|byte| !has(*byte));
                    let gap = start
                        .map(|start| start..(start..stop).find(|byte| has(*byte)).unwrap_or(stop));
                    assert_eq!(
                        extents.gap(position, stop),
                        gap,
                        "{ranges:?} in {position}..{stop}"
                    );
                    assert_eq!(
                        extents.covers(&(position..stop)),
                        gap.is_none(),
                        "{ranges:?}"
                    );
                }
            }
            assert_eq!(extents.prefix(), extents.end_at(0).unwrap_or(0));
        }
    }
}
