//! Which of the stored blobs are pinned, and how much that is.

use std::io;

use super::Store;
use crate::{
    cache::{
        budget::on_disk,
        index::{Entry, Name, Sighting},
        pins::Pin,
    },
    oci::Repository,
};

impl Store {
    pub(super) fn note_repository(&self, seen: &Sighting, name: &Name, repository: &Repository) {
        let hash = self.index.repository_hash(name.registry_hash(), repository);
        let changed = self
            .index
            .note_repository(seen, hash, |before| self.pins.has(before));
        if changed.is_some() && self.pins.has(hash) {
            self.pins.add_bytes(on_disk(seen.size));
        }
    }

    pub(super) fn forget_pinned(&self, entry: &Entry) {
        if self.pins.has(entry.repository) {
            self.pins.subtract_bytes(on_disk(entry.size));
        }
    }

    /// How many stored blobs it protects.
    pub(in crate::cache) fn pin(&self, pin: &Pin) -> io::Result<usize> {
        self.pins.add(pin, &self.index)?;
        self.count_pinned();
        Ok(self.count_of(pin))
    }

    /// How many stored blobs it protected; `None` if it was not pinned.
    pub(in crate::cache) fn unpin(&self, pin: &Pin) -> io::Result<Option<usize>> {
        let was_pinned = self.pins.remove(pin, &self.index)?;
        self.count_pinned();
        Ok(was_pinned.then(|| self.count_of(pin)))
    }

    pub(in crate::cache) fn pins(&self) -> Vec<Pin> {
        self.pins.all()
    }

    pub(in crate::cache) fn count_of(&self, pin: &Pin) -> usize {
        let hash = pin.hash(&self.index);
        self.index
            .entries()
            .filter(|entry| entry.repository == hash)
            .count()
    }

    pub(super) fn count_pinned(&self) {
        if self.pins.is_empty() {
            self.pins.set_bytes(0);
            return;
        }
        let pinned = self
            .index
            .entries()
            .filter(|entry| self.pins.has(entry.repository))
            .map(|entry| on_disk(entry.size));
        self.pins.set_bytes(pinned.sum());
    }
}
