//! Room for more: taken from the budget and the file system before anything is written.

use std::{
    cell::Cell,
    collections::BTreeSet,
    sync::{Arc, Weak, atomic::Ordering},
};

use super::{Opening, Store};
use crate::{
    blocking::Errand,
    cache::{
        budget::{Reservation, on_disk},
        index::Place,
    },
    sys::coarse_seconds,
    telemetry::metrics::{self, Counter},
};

/// A full disk costs this part of the blobs, and one at least: enough for a few fills, little enough to be fetched again.
const FULL_DISK_PART: u64 = 32;
/// Seconds between two such removals: all fills meet a full disk at once, and one of them may speak for all.
const FULL_DISK_PAUSE: u64 = 10;

impl Store {
    /// Room for `bytes` more, without removing anything.
    pub(in crate::cache) fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        if !self.may_reserve(bytes) || !self.floor.shortfall(bytes).is_none() {
            return None;
        }
        let reservation = self.budget.reserve(bytes);
        self.mind_watermark();
        reservation
    }

    /// Room for `bytes` more; other blobs make it, if that is enough.
    pub(in crate::cache) fn reserve(&self, bytes: u64) -> Option<Reservation> {
        if !self.could_fit(bytes, 0) || !self.keep_floor(bytes) {
            return None;
        }
        loop {
            if let Some(reservation) = self.budget.reserve(bytes) {
                self.mind_watermark();
                return Some(reservation);
            }
            // Others may take what was freed for us, but only as long as there is something to be freed.
            if !self.make_room(bytes) {
                return None;
            }
        }
    }

    /// As `Reservation::grow`, but other blobs make room. For a blob that comes to be larger than it may be, some went for
    /// nothing: nobody could know.
    pub(in crate::cache) fn grow(&self, reservation: &mut Reservation, bytes: u64) -> bool {
        let sum = reservation.bytes().saturating_add(bytes);
        if !self.may_reserve(sum) || !self.could_fit(bytes, 0) || !self.keep_floor(bytes) {
            return false;
        }
        loop {
            if reservation.grow(bytes) {
                self.mind_watermark();
                return true;
            }
            if !self.make_room(bytes) {
                return false;
            }
        }
    }

    /// Counts what is on disk already: a partial download that survived a restart.
    pub(in crate::cache) fn count_existing(&self, bytes: u64) -> Reservation {
        let reservation = self.budget.count(bytes);
        self.mind_watermark();
        reservation
    }

    /// The disk was full although bytes were reserved: somebody else fills it.
    pub(in crate::cache) fn note_full_disk(&self) {
        metrics::add(Counter::FullDisks, 1);
        let now = coarse_seconds();
        let last = self.last_full_disk.swap(now, Ordering::Relaxed);
        if now.saturating_sub(last) < FULL_DISK_PAUSE {
            return;
        }
        // Not a part of the cap: that may be many times the disk.
        let part = (self.index.bytes() / FULL_DISK_PART).max(1);
        let target = self.budget.used().saturating_sub(part);
        let blobs = self.evict_until(|store| store.budget.used() <= target);
        // Whose fill met it has told of it.
        if blobs > 0 {
            tracing::warn!(blobs, "the cache's disk is full; some blobs were removed");
        }
    }

    fn may_reserve(&self, bytes: u64) -> bool {
        !self.is_taking_stock() && !self.stop.is_set() && self.budget.could_hold(bytes)
    }

    /// Whether there would be room for `bytes` more if all blobs that may go were gone, and `spare` bytes with them. Else
    /// nothing is to go: under the cap and on the disk, for one is of no use without the other.
    pub(in crate::cache) fn could_fit(&self, bytes: u64, spare: u64) -> bool {
        if !self.may_reserve(bytes) {
            return false;
        }
        let shortfall = self.floor.shortfall(bytes);
        if self.budget.missing(bytes) == 0 && shortfall.is_none() {
            return true;
        }
        self.release_lingering();
        let missing = self.budget.missing(bytes).max(shortfall.bytes);
        self.evictable_bytes().saturating_add(spare) >= missing
            && (spare > 0 || self.blob_count() >= shortfall.inodes)
    }

    /// False: it cannot be made. What would not be enough is left alone.
    fn make_room(&self, bytes: u64) -> bool {
        self.release_lingering();
        let missing = self.budget.missing(bytes);
        if missing == 0 {
            return true;
        }
        self.evictable_bytes() >= missing
            && self.evict_until(|store| store.budget.missing(bytes) == 0) > 0
    }

    /// Whether the file system has `bytes` to spare, if need be after blobs of as many bytes have gone. One try: a file
    /// system may show what was freed only later, and all blobs would be gone by then.
    fn keep_floor(&self, bytes: u64) -> bool {
        let shortfall = self.floor.shortfall(bytes);
        if shortfall.is_none() {
            return true;
        }
        let (freed_bytes, freed_inodes) = (Cell::new(0), Cell::new(0));
        self.evict_into(
            |_| freed_bytes.get() >= shortfall.bytes && freed_inodes.get() >= shortfall.inodes,
            |retired| {
                freed_bytes.set(freed_bytes.get() + on_disk(retired.entry.size));
                freed_inodes.set(freed_inodes.get() + 1);
            },
        );
        self.floor.shortfall(bytes).is_none()
    }

    /// At least what is neither pinned nor read.
    fn evictable_bytes(&self) -> u64 {
        let desk = self.desk();
        // A blob that was opened again stands there twice.
        let open: BTreeSet<Place> = desk.open_order.places().collect();
        let read: u64 = open
            .into_iter()
            .filter(|place| self.open_files.is_read(place.slot))
            .filter_map(|place| self.index.entry(place))
            .filter(|entry| !self.pins.has(entry.repository))
            .map(|entry| on_disk(entry.size))
            .sum();
        self.index
            .bytes()
            .saturating_sub(read)
            .saturating_sub(self.pins.bytes())
    }

    /// Above the high watermark, blobs are removed down to the low one before anybody has to wait for it.
    pub(super) fn mind_watermark(&self) {
        if self.budget.used() <= self.high || self.is_evicting.swap(true, Ordering::AcqRel) {
            return;
        }
        let own = Weak::clone(&self.own);
        let pass = move || {
            let Some(store) = own.upgrade() else { return };
            store.release_lingering();
            store.evict_until(|store| store.budget.used() <= store.low);
            store.is_evicting.store(false, Ordering::Release);
        };
        if self.pool.send(Errand::Disk, pass).is_err() {
            self.is_evicting.store(false, Ordering::Release);
        }
    }

    /// What was found may be more than the cap of today.
    pub(super) fn keep_the_cap(&self) {
        if self.opening != Opening::Visit {
            self.evict_until(|store| store.budget.missing(0) == 0);
        }
    }

    pub(super) fn release_lingering(&self) {
        let mut released = Vec::new();
        self.desk().lingering.retain(|(file, bytes)| {
            let is_read = Arc::strong_count(file) > 1;
            if !is_read {
                released.push(*bytes);
            }
            is_read
        });
        for bytes in released {
            self.budget.give_back(bytes);
        }
    }
}
