//! How blobs go: evicted because others need the room, or removed because somebody says so.

use std::{collections::HashMap, fs::File, path::PathBuf, sync::Arc};

use super::{Desk, Listed, Store, key};
use crate::{
    cache::{
        Intent, Key,
        budget::on_disk,
        eviction::{Look, Queues, Shelf},
        folder::remove_file,
        index::{Entry, Name, Place},
    },
    telemetry::metrics::{self, Counter},
};

/// A removed blob, whose file has lost its name but not yet its bytes.
pub(super) struct Retired {
    pub(super) entry: Entry,
    key: Option<Key>,
    path: Option<PathBuf>,
    /// Whether its bytes are to be given back when the file is removed: a reader may hold them for longer.
    is_read: bool,
}

impl Store {
    pub(in crate::cache) fn remove(&self, key: &Key) -> bool {
        let mut desk = self.desk();
        let seen = self.index.find(&self.name(key));
        let retired = seen.and_then(|seen| self.remove_place(&mut desk, key, seen.place));
        drop(desk);
        let is_removed = retired.is_some();
        self.discard(retired);
        is_removed
    }

    /// Evicts down to `target` bytes, or to the low watermark; tells each that went, or would go.
    pub(in crate::cache) fn gc(
        &self,
        target: Option<u64>,
        intent: Intent,
        mut each: impl FnMut(Listed),
    ) {
        let target = target.unwrap_or(self.low);
        if intent == Intent::DryRun {
            return self
                .listed(self.would_go(target).into_iter())
                .for_each(each);
        }
        self.release_lingering();
        self.evict_into(
            |store| store.budget.used() <= target,
            |retired| {
                if let Some(key) = retired.key.clone() {
                    each(self.describe(key, &retired.entry));
                }
            },
        );
    }

    fn would_go(&self, target: u64) -> Vec<Entry> {
        let mut desk = self.desk();
        let queues = self.take_queues(&mut desk);
        let mut rehearsal = queues.clone();
        desk.queues = Some(queues);
        let mut shelf = Rehearsal {
            store: self,
            frequencies: HashMap::new(),
        };
        let mut used = self.budget.used();
        let mut victims = Vec::new();
        while used > target
            && let Some(victim) = rehearsal.victim(&mut shelf)
        {
            used = used.saturating_sub(victim.bytes);
            victims.extend(self.index.entry(victim.place));
        }
        victims
    }

    /// How many blobs went.
    pub(super) fn evict_until(&self, is_enough: impl FnMut(&Self) -> bool) -> usize {
        self.evict_into(is_enough, |_| {})
    }

    pub(super) fn evict_into(
        &self,
        mut is_enough: impl FnMut(&Self) -> bool,
        mut each: impl FnMut(&Retired),
    ) -> usize {
        let mut count = 0;
        while !is_enough(self) {
            let retired = self.evict_one(&mut self.desk());
            let Some(retired) = retired else { break };
            each(&retired);
            self.discard(Some(retired));
            metrics::add(Counter::BlobsEvicted, 1);
            count += 1;
        }
        count
    }

    fn evict_one(&self, desk: &mut Desk) -> Option<Retired> {
        if self.stop.is_set() {
            return None;
        }
        let mut queues = self.take_queues(desk);
        let mut evicted = None;
        // One that was opened between the look and the removal is put back; that happens to each once at most.
        for _ in 0..=queues.len() {
            let mut shelf = StoreShelf { store: self, desk };
            let Some(victim) = queues.victim(&mut shelf) else {
                break;
            };
            evicted = self.evict_place(desk, victim.place);
            if evicted.is_some() {
                break;
            }
            if self.index.entry(victim.place).is_some() {
                queues.put_back(victim);
            }
        }
        desk.queues = Some(queues);
        evicted
    }

    /// `None`: it is read, or not there any more.
    pub(super) fn evict_place(&self, desk: &mut Desk, place: Place) -> Option<Retired> {
        let entry = self.index.begin_removal(&mut desk.pen, place)?;
        if self.open_files.take_unread(place.slot).is_err() {
            self.index.undo_removal(&mut desk.pen, place);
            return None;
        }
        let key = key(&desk.registries, &self.folder, &entry.name);
        let path = key.as_ref().and_then(|key| self.folder.retire(key));
        self.index.finish_removal(&mut desk.pen, place);
        self.forget_pinned(&entry);
        Some(Retired {
            entry,
            key,
            path,
            is_read: false,
        })
    }

    /// Also if it is read: those who read it keep what they have.
    pub(super) fn remove_place(&self, desk: &mut Desk, key: &Key, place: Place) -> Option<Retired> {
        if self.stop.is_set() {
            return None;
        }
        let entry = self.index.begin_removal(&mut desk.pen, place)?;
        let file = self.open_files.take(place.slot);
        let path = self.folder.retire(key);
        self.index.finish_removal(&mut desk.pen, place);
        self.forget_pinned(&entry);
        if let Some(queues) = &mut desk.queues {
            queues.removed(on_disk(entry.size), entry.is_main);
        }
        let is_read = desk.keep_lingering(file, entry.size);
        Some(Retired {
            entry,
            key: Some(key.clone()),
            path,
            is_read,
        })
    }

    pub(super) fn discard(&self, retired: Option<Retired>) {
        let Some(retired) = retired else { return };
        if let Some(path) = retired.path {
            remove_file(&path);
        }
        if !retired.is_read {
            self.budget.give_back(retired.entry.size);
        }
    }

    fn take_queues(&self, desk: &mut Desk) -> Queues {
        match desk.queues.take() {
            // Blobs that were removed otherwise leave their places behind.
            Some(queues) if queues.len() as u64 <= 2 * self.blob_count() + 1024 => queues,
            outgrown => self.restore_queues(outgrown),
        }
    }

    fn restore_queues(&self, old: Option<Queues>) -> Queues {
        let mut entries: Vec<(u64, Place, u64, bool)> = self
            .index
            .entries()
            .map(|entry| {
                (
                    entry.last_use,
                    entry.place,
                    on_disk(entry.size),
                    entry.is_main,
                )
            })
            .collect();
        entries.sort_unstable();
        let mut queues = old.map_or_else(|| Queues::new(self.budget.max()), Queues::emptied);
        for (_, place, bytes, is_main) in entries {
            queues.insert(place, bytes, is_main);
        }
        queues
    }

    pub(super) fn queue(&self, desk: &mut Desk, place: Place, entry: &Entry) {
        if let Some(queues) = &mut desk.queues {
            queues.insert(place, on_disk(entry.size), entry.is_main);
        }
    }

    fn look(&self, place: Place) -> Option<Look> {
        let entry = self.index.entry(place)?;
        Some(Look {
            bytes: on_disk(entry.size),
            frequency: entry.frequency,
            is_kept: self.pins.has(entry.repository) || self.open_files.is_read(place.slot),
            fingerprint: fingerprint(&entry.name),
        })
    }
}

/// The same for the same blob, as long as the index keeps its keys.
pub(super) fn fingerprint(name: &Name) -> u64 {
    let [first, ..] = *name.digest_bytes().as_chunks::<8>().0 else {
        return 0;
    };
    u64::from_be_bytes(first) ^ name.registry_hash()
}

/// The index as eviction sees it.
struct StoreShelf<'s> {
    store: &'s Store,
    desk: &'s mut Desk,
}

impl Shelf for StoreShelf<'_> {
    fn look(&self, place: Place) -> Option<Look> {
        self.store.look(place)
    }

    fn requeue(&mut self, place: Place, is_main: bool, frequency: u8) {
        self.store
            .index
            .requeue(&mut self.desk.pen, place, is_main, frequency);
    }
}

/// The same, but what changes is only remembered.
struct Rehearsal<'s> {
    store: &'s Store,
    frequencies: HashMap<Place, u8>,
}

impl Shelf for Rehearsal<'_> {
    fn look(&self, place: Place) -> Option<Look> {
        let mut look = self.store.look(place)?;
        if let Some(frequency) = self.frequencies.get(&place) {
            look.frequency = *frequency;
        }
        Some(look)
    }

    fn requeue(&mut self, place: Place, _is_main: bool, frequency: u8) {
        self.frequencies.insert(place, frequency);
    }
}

impl Desk {
    /// Whether somebody reads it. Then its bytes stay counted until he is done.
    fn keep_lingering(&mut self, file: Option<Arc<File>>, size: u64) -> bool {
        match file {
            Some(file) if Arc::strong_count(&file) > 1 => {
                self.lingering.push((file, size));
                true
            }
            _ => false,
        }
    }
}
