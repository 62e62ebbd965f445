//! The byte cap. Bytes are taken before they are written, so the sum on disk never exceeds it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Eviction makes room for a little more than was asked for, so that the next fill need not ask again.
const SLACK_DIVISOR: u64 = 64;
const BLOCK: u64 = 4096;

pub(super) struct Room {
    max: u64,
    used: AtomicU64,
}

/// What a file of `size` bytes occupies.
pub(super) fn on_disk(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK).unwrap_or(size)
}

impl Room {
    pub(super) fn new(max: u64) -> Self {
        Self {
            max,
            used: AtomicU64::new(0),
        }
    }

    pub(super) fn max(&self) -> u64 {
        self.max
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether one blob may take `size` bytes. A registry can announce any size, and whoever asks for its blob would
    /// sweep all others out.
    pub(super) fn could_hold(&self, size: u64) -> bool {
        size <= self.max / 2
    }

    /// Takes `size` bytes if they are free. One atomic step, so two fills cannot take the same bytes; nothing
    /// else is published with it, so `Relaxed` is enough.
    pub(super) fn try_take(&self, size: u64) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(size).filter(|sum| *sum <= self.max)
            })
            .is_ok()
    }

    /// Counts what is on disk already.
    pub(super) fn take(&self, size: u64) {
        self.used.fetch_add(size, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, size: u64) {
        let before = self.used.fetch_sub(size, Ordering::Relaxed);
        assert!(
            before >= size,
            "{size} bytes given back, only {before} were taken"
        );
    }

    /// How many bytes are missing before `wanted` more fit.
    pub(super) fn missing(&self, wanted: u64) -> u64 {
        self.used().saturating_add(wanted).saturating_sub(self.max)
    }

    /// How many bytes are to go then: a little more.
    pub(super) fn excess(&self, wanted: u64) -> Option<u64> {
        match self.missing(wanted) {
            0 => None,
            missing => Some(missing.saturating_add(self.max / SLACK_DIVISOR)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_is_never_exceeded() {
        let room = Room::new(10 * BLOCK);
        assert!(room.try_take(on_disk(9 * BLOCK - 1)));
        assert!(!room.try_take(2 * BLOCK));
        assert!(room.try_take(BLOCK));
        assert_eq!(room.used(), 10 * BLOCK);
        assert!(room.excess(0).is_none());
        assert!(room.excess(1).is_some_and(|excess| excess >= 1));
        room.give_back(BLOCK);
        assert!(room.try_take(on_disk(1)));
        assert!(room.could_hold(5 * BLOCK) && !room.could_hold(6 * BLOCK));
    }
}
