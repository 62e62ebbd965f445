//! How blobs come: a verified draft gets its name, or a file is found under its name already.

use std::{fs::File, io, path::Path, sync::Arc};

use super::{
    Desk, Opening, Store,
    removal::{Retired, fingerprint},
};
use crate::{
    cache::{
        Key,
        budget::{Reservation, on_disk},
        folder::remove_file,
        index::{Entry, InsertError, Name, Place, Stage},
    },
    oci::Repository,
    sys::coarse_seconds,
    telemetry::metrics::{self, Counter},
};

impl Store {
    /// Syncs the file and gives it its name. The file stays open for readers. On an error the file is still at `path`, and
    /// no longer counted.
    pub(in crate::cache) fn commit(
        &self,
        key: &Key,
        repository: Option<&Repository>,
        path: &Path,
        file: Arc<File>,
        size: u64,
        mut reservation: Reservation,
    ) -> io::Result<()> {
        if self.opening != Opening::Scratch {
            file.sync_data()?;
        }
        if size > reservation.bytes() && !reservation.grow(size - reservation.bytes()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut desk = self.desk();
        if self.stop.is_set() {
            return Err(io::Error::other("the cache is closed"));
        }
        let registry = desk.register(&self.index, &key.registry)?;
        let name = self.name(key);
        let old = self.index.find(&name);
        let replaced = old.and_then(|seen| self.remove_place(&mut desk, key, seen.place));
        let is_main = desk
            .queues
            .as_mut()
            .is_some_and(|queues| queues.is_remembered(fingerprint(&name)));
        let repository = repository.map_or(0, |repository| {
            let hash = self.index.repository_hash(registry, repository);
            self.healing.note_repository(hash, repository);
            hash
        });
        let entry = Entry {
            repository,
            last_use: coarse_seconds(),
            is_main,
            ..new_entry(name, size)
        };
        let placed = self
            .insert(&mut desk, &entry, Stage::Committing)
            .map_err(|_| io::Error::from(io::ErrorKind::StorageFull))
            .and_then(|place| match self.folder.place(path, key) {
                Ok(()) => Ok(place),
                Err(error) => {
                    self.index.undo_insert(&mut desk.pen, place);
                    Err(error)
                }
            });
        let place = match placed {
            Ok(place) => place,
            Err(error) => {
                drop(desk);
                self.discard(replaced);
                return Err(error);
            }
        };
        self.set_verified(place, true);
        self.open_files.put(place, file, &mut desk.open_order);
        self.index.finish_insert(&mut desk.pen, place);
        self.queue(&mut desk, place, &entry);
        if self.pins.has(entry.repository) {
            self.pins.add_bytes(on_disk(size));
        }
        reservation.hand_over(size);
        drop(desk);
        self.discard(replaced);
        self.mind_watermark();
        Ok(())
    }

    /// Takes a file into the index that stands under its name already. False if there is none.
    pub(in crate::cache) fn adopt(&self, key: &Key, last_use: u64) -> bool {
        let name = self.name(key);
        let mut desk = self.desk();
        if self.index.find(&name).is_some() {
            return true;
        }
        let Some(stored) = self.folder.stored(key).filter(|_| !self.stop.is_set()) else {
            return false;
        };
        if desk.register(&self.index, &key.registry).is_err() {
            return false;
        }
        let entry = Entry {
            last_use: last_use.max(stored.modified.min(coarse_seconds())),
            ..new_entry(name, stored.size)
        };
        match self.insert(&mut desk, &entry, Stage::Live) {
            Ok(place) => {
                self.budget.add(stored.size);
                self.queue(&mut desk, place, &entry);
                true
            }
            Err(_) => {
                // What is not in the index would not be counted.
                let retired = self.folder.retire(key);
                drop(desk);
                if let Some(path) = retired {
                    remove_file(&path);
                }
                metrics::add(Counter::BlobsEvicted, 1);
                false
            }
        }
    }

    /// If its buckets are full, the rival that was used least makes room.
    fn insert(&self, desk: &mut Desk, entry: &Entry, stage: Stage) -> Result<Place, InsertError> {
        let mut inserted = self.index.insert(&mut desk.pen, entry, stage);
        if inserted == Err(InsertError::Full)
            && let Some(retired) = self.evict_rival(desk, &entry.name)
        {
            self.discard(Some(retired));
            metrics::add(Counter::BlobsEvicted, 1);
            inserted = self.index.insert(&mut desk.pen, entry, stage);
        }
        let place = inserted?;
        self.set_verified(place, false);
        Ok(place)
    }

    fn evict_rival(&self, desk: &mut Desk, name: &Name) -> Option<Retired> {
        let rivals = self.index.rivals(name);
        let mut rivals: Vec<Entry> = rivals
            .filter(|entry| !self.pins.has(entry.repository))
            .collect();
        rivals.sort_by_key(|entry| (entry.frequency, entry.last_use));
        rivals
            .iter()
            .find_map(|rival| self.evict_place(desk, rival.place))
            .inspect(|retired| {
                if let Some(queues) = &mut desk.queues {
                    queues.removed(on_disk(retired.entry.size), retired.entry.is_main);
                }
            })
    }
}

pub(super) fn new_entry(name: Name, size: u64) -> Entry {
    Entry {
        place: Place {
            slot: 0,
            generation: 0,
        },
        name,
        size,
        repository: 0,
        last_use: 0,
        frequency: 0,
        is_main: false,
    }
}
