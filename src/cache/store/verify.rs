//! Whether the bytes are still what their name says.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use super::{Store, is_lost};
use crate::{
    cache::{
        Key,
        index::Place,
        scrub::{self, Verdict},
    },
    telemetry::metrics::{self, Counter},
};

impl Store {
    /// Whether its digest was computed by this process.
    pub(in crate::cache) fn is_verified(&self, key: &Key) -> bool {
        self.index
            .find(&self.name(key))
            .is_some_and(|seen| self.is_place_verified(seen.place))
    }

    /// Reads and hashes a blob; what is damaged is removed at once.
    pub(in crate::cache) fn verify(&self, key: &Key) -> io::Result<Verdict> {
        let Some(seen) = self.index.find(&self.name(key)) else {
            return Ok(Verdict::Absent);
        };
        self.verify_place(key, seen.place, seen.size)
    }

    /// Reads and hashes a blob, and leaves it as it is. An error: it could not be read at this time.
    pub(in crate::cache) fn examine(
        &self,
        key: &Key,
        place: Place,
        size: u64,
    ) -> io::Result<Verdict> {
        let file = match self.open_files.get(place.slot) {
            Some(file) => Ok(file),
            None => self.folder.open(key, size).map(Arc::new),
        };
        let verdict = match file {
            Ok(file) => scrub::hash(&file, size, key, &self.stop)?,
            Err(error) if is_lost(&error) => Verdict::Lost,
            Err(error) => return Err(error),
        };
        // It may have been evicted meanwhile, and its file with it; with the desk held, neither is half done.
        let _desk = self.desk();
        if !self.index.is_same(place) {
            return Ok(Verdict::Absent);
        }
        if verdict == Verdict::Right {
            self.set_verified(place, true);
        }
        Ok(verdict)
    }

    /// The same; what is damaged or lost is removed.
    pub(in crate::cache) fn verify_place(
        &self,
        key: &Key,
        place: Place,
        size: u64,
    ) -> io::Result<Verdict> {
        let verdict = self.examine(key, place, size)?;
        if matches!(verdict, Verdict::Right | Verdict::Absent) {
            return Ok(verdict);
        }
        // Another may have stored it anew meanwhile, or the slot may be another's: `place` says which one was read.
        let retired = self.remove_place(&mut self.desk(), key, place);
        if retired.is_none() {
            return Ok(Verdict::Absent);
        }
        self.discard(retired);
        if verdict == Verdict::Damaged {
            metrics::add(Counter::BlobsDamaged, 1);
            tracing::warn!(digest = %key.digest, registry = %key.registry, "a cached blob is damaged; it will be fetched again");
        }
        Ok(verdict)
    }

    pub(super) fn is_place_verified(&self, place: Place) -> bool {
        let (word, bit) = (place.slot as usize / 64, place.slot % 64);
        self.verified
            .get(word)
            .is_some_and(|word| word.load(Ordering::Relaxed) >> bit & 1 == 1)
    }

    pub(super) fn set_verified(&self, place: Place, is_verified: bool) {
        let (word, bit) = (place.slot as usize / 64, 1 << (place.slot % 64));
        if let Some(word) = self.verified.get(word) {
            match is_verified {
                true => word.fetch_or(bit, Ordering::Relaxed),
                false => word.fetch_and(!bit, Ordering::Relaxed),
            };
        }
    }
}
