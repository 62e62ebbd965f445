//! The byte cap. Bytes are taken before they are written, so the sum on disk never exceeds it.
//!
//! Everything that the cache has on disk is counted here in whole blocks: blobs, fills, partial downloads, and what was
//! removed while somebody still reads it. One number, changed by atomic steps; whoever holds a `Reservation` holds
//! that much of it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The block of nearly every file system; one with larger blocks stores small blobs in a little more than is counted.
const BLOCK: u64 = 4096;

/// What a file of `size` bytes occupies.
pub(super) fn on_disk(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}

pub(super) struct Budget {
    max: u64,
    used: AtomicU64,
}

impl Budget {
    pub(super) fn new(max: u64) -> Arc<Self> {
        Arc::new(Self {
            max,
            used: AtomicU64::new(0),
        })
    }

    pub(super) fn max(&self) -> u64 {
        self.max
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether one blob may take `bytes`. A registry can announce any size, and whoever asks for its blob would sweep
    /// all others out.
    pub(super) fn could_hold(&self, bytes: u64) -> bool {
        on_disk(bytes) <= self.max / 2
    }

    /// How many bytes are missing before `bytes` more fit.
    pub(super) fn missing(&self, bytes: u64) -> u64 {
        self.used()
            .saturating_add(on_disk(bytes))
            .saturating_sub(self.max)
    }

    /// Takes room for `bytes` if there is.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.try_take(on_disk(bytes)).then(|| Reservation {
            budget: Arc::clone(self),
            bytes,
        })
    }

    /// Counts what is on disk already, whether or not it fits.
    pub(super) fn count(self: &Arc<Self>, bytes: u64) -> Reservation {
        self.used.fetch_add(on_disk(bytes), Ordering::Relaxed);
        Reservation {
            budget: Arc::clone(self),
            bytes,
        }
    }

    /// One atomic step, so two fills cannot take the same bytes; nothing else is published with it, so `Relaxed` is
    /// enough.
    fn try_take(&self, blocks: u64) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(blocks).filter(|sum| *sum <= self.max)
            })
            .is_ok()
    }

    /// Counts `bytes` of a blob that is on disk already.
    pub(super) fn add(&self, bytes: u64) {
        self.used.fetch_add(on_disk(bytes), Ordering::Relaxed);
    }

    /// Never below zero: the size of a blob comes from a file, and a file can be anything.
    pub(super) fn give_back(&self, bytes: u64) {
        self.give_back_blocks(on_disk(bytes));
    }

    fn give_back_blocks(&self, blocks: u64) {
        let _ = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                Some(used.saturating_sub(blocks))
            });
    }
}

/// Bytes that may be written. Dropping it gives them back.
pub(super) struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Reservation {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `bytes` more if there is room without removing anything. Never blocks.
    pub(super) fn grow(&mut self, bytes: u64) -> bool {
        let Some(sum) = self.bytes.checked_add(bytes) else {
            return false;
        };
        let more = on_disk(sum).saturating_sub(on_disk(self.bytes));
        let fits = self.budget.could_hold(sum) && self.budget.try_take(more);
        if fits {
            self.bytes = sum;
        }
        fits
    }

    /// Gives back what is beyond `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        let kept = bytes.min(self.bytes);
        let blocks = on_disk(self.bytes).saturating_sub(on_disk(kept));
        self.bytes = kept;
        self.budget.give_back_blocks(blocks);
    }

    /// `size` of the bytes stay counted, as a blob's.
    pub(super) fn hand_over(mut self, size: u64) {
        self.shrink_to(size);
        // What is left when it is dropped is nothing.
        self.bytes = 0;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_is_never_exceeded() {
        let budget = Budget::new(10 * BLOCK);
        let first = budget.reserve(9 * BLOCK - 1).expect("room");
        assert!(budget.reserve(2 * BLOCK).is_none());
        let second = budget.reserve(1).expect("room");
        assert_eq!(budget.used(), 10 * BLOCK);
        assert_eq!(budget.missing(1), BLOCK);
        drop(first);
        assert_eq!(budget.used(), BLOCK);
        second.hand_over(1);
        assert_eq!(budget.used(), BLOCK, "a blob has it now");
        budget.give_back(1);
        assert_eq!(budget.used(), 0);
        assert!(budget.could_hold(5 * BLOCK) && !budget.could_hold(5 * BLOCK + 1));
    }

    #[test]
    fn a_reservation_grows_by_blocks_and_shrinks_again() {
        let budget = Budget::new(8 * BLOCK);
        let mut reservation = budget.reserve(0).expect("nothing always fits");
        assert_eq!(budget.used(), 0);
        assert!(reservation.grow(1) && reservation.grow(BLOCK - 1));
        assert_eq!((reservation.bytes(), budget.used()), (BLOCK, BLOCK));
        assert!(reservation.grow(3 * BLOCK));
        assert!(!reservation.grow(1), "more than half of all");
        let other = budget.count(6 * BLOCK);
        assert_eq!(budget.used(), 10 * BLOCK, "what is there is there");
        reservation.shrink_to(1);
        assert_eq!(budget.used(), 7 * BLOCK);
        reservation.shrink_to(2 * BLOCK);
        assert_eq!(reservation.bytes(), 1, "shrinking does not grow");
        drop((reservation, other));
        assert_eq!(budget.used(), 0);
        assert!(budget.reserve(u64::MAX).is_none());
    }
}
