//! What an operator asks of the cache: what is there, is it right, and away with it. One face for the admin listener of a
//! running server and for the command beside a stopped one, so both say and do the same.
//!
//! Everything here blocks. A million blobs are gone through in turns: each call does a bounded part and says in `next` from
//! where the following one goes on. A blob keeps its place in the index as long as it is stored, so nothing that was there
//! all the time is left out or met twice.

mod answers;

pub use answers::{
    Checked, Damage, Damaged, FolderId, Gone, Intent, Page, Pinned, Report, Selection, Unfinished,
    Unread,
};

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Cache, Key, Listed, Options, Pin, Verdict, budget::on_disk, index::Entry, store::Store,
};
use crate::blocking::Pool;

/// Blobs of one turn: some 250 bytes of JSON each.
const MOST_IN_TURN: usize = 1000;
/// Hashing goes on for this long in one turn; a blob that was begun is finished.
const TURN: Duration = Duration::from_millis(500);

impl Cache {
    /// Opens the folder of a server that is not running. An error of the kind `ResourceBusy`: it is running. `close` it
    /// afterwards: else the next start lists the files.
    pub fn visit(directory: PathBuf, options: &Options, pool: Arc<Pool>) -> io::Result<Self> {
        let store = Store::visit(directory.clone(), options, Arc::clone(&pool))?;
        let count = |store: &Store, bytes| Some(store.count_existing(bytes));
        Self::over(store, &directory, options, pool, count)
    }

    pub fn report(&self) -> io::Result<Report> {
        let store = &self.0.store;
        let directory = store.folder.root().to_owned();
        let (count, bytes) = self.0.partials.usage();
        Ok(Report {
            folder_id: FolderId::of(&directory)?,
            directory,
            usage: store.usage(),
            partials: Unfinished { count, bytes },
            is_complete: !store.is_taking_stock(),
        })
    }

    pub fn list(&self, selection: &Selection, from: usize) -> Page {
        let (entries, next) = self.turn(selection, from);
        Page {
            blobs: self.0.store.listed(entries.into_iter()).collect(),
            next,
        }
    }

    /// Reads and hashes blobs; what is damaged is removed.
    pub fn check(&self, selection: &Selection, from: usize, intent: Intent) -> Checked {
        let begun = Instant::now();
        let (entries, next) = self.turn(selection, from);
        let mut checked = Checked {
            next,
            ..Checked::default()
        };
        for entry in entries {
            let is_over = checked.count > 0 && begun.elapsed() > TURN;
            // The few blobs of one digest are one turn.
            if is_over && selection.digest.is_none() {
                checked.next = Some(entry.place.slot as usize);
                break;
            }
            let Some(key) = self.0.store.key_of(&entry.name) else {
                continue;
            };
            checked.count += 1;
            checked.bytes += on_disk(entry.size);
            let (place, size) = (entry.place, entry.size);
            let verdict = match intent {
                Intent::Do => self.0.store.verify_place(&key, place, size),
                Intent::DryRun => self.0.store.examine(&key, place, size),
            };
            let damage = match verdict {
                Ok(Verdict::Right | Verdict::Absent) => continue,
                Ok(Verdict::Damaged) => Damage::Content,
                Ok(Verdict::Lost) => Damage::File,
                Err(error) => {
                    let error = error.to_string();
                    checked.unread.push(Unread { key, error });
                    continue;
                }
            };
            checked.damaged.push(Damaged { key, size, damage });
        }
        checked
    }

    /// Whoever reads one of them keeps what he has.
    pub fn remove(&self, selection: &Selection, from: usize, intent: Intent) -> Gone {
        let (entries, next) = self.turn(selection, from);
        let mut gone = Gone {
            next,
            ..Gone::default()
        };
        // Described before they go.
        let listed: Vec<Listed> = self.0.store.listed(entries.into_iter()).collect();
        for blob in listed {
            if intent == Intent::DryRun || self.0.store.remove(&blob.key) {
                gone.add(blob);
            }
        }
        gone
    }

    /// Removes what is used least until no more than `target` bytes are used, or `low_watermark`. What is pinned or read
    /// stays.
    pub fn gc(&self, target: Option<u64>, intent: Intent) -> Gone {
        let mut gone = Gone::default();
        if intent == Intent::Do {
            self.0.partials.drop_aged();
        }
        self.0.store.gc(target, intent, |listed| gone.add(listed));
        gone
    }

    pub fn pin(&self, pin: Pin) -> io::Result<Pinned> {
        let count = self.0.store.pin(&pin)?;
        Ok(Pinned { pin, count })
    }

    /// `None`: it was not pinned.
    pub fn unpin(&self, pin: Pin) -> io::Result<Option<Pinned>> {
        let count = self.0.store.unpin(&pin)?;
        Ok(count.map(|count| Pinned { pin, count }))
    }

    pub fn pins(&self) -> Vec<Pinned> {
        let pins = self.0.store.pins();
        pins.into_iter()
            .map(|pin| Pinned {
                count: self.0.store.count_of(&pin),
                pin,
            })
            .collect()
    }

    /// The blobs of one turn, and where the next one begins.
    fn turn(&self, selection: &Selection, from: usize) -> (Vec<Entry>, Option<usize>) {
        let store = &self.0.store;
        let index = &store.index;
        let registry = selection.registry.as_ref();
        let registry = registry.map(|registry| index.registry_hash(registry));
        let repository = selection.repository.as_ref().map(|pin| pin.hash(index));
        let is_meant = |entry: &Entry| {
            registry.is_none_or(|hash| entry.name.registry_hash() == hash)
                && repository.is_none_or(|hash| entry.repository == hash)
        };
        if let Some(digest) = selection.digest {
            let keys = store.registries().into_iter();
            let entries = keys.filter_map(|registry| store.entry(&Key { registry, digest }));
            return (entries.filter(is_meant).collect(), None);
        }
        let mut entries = index.entries_from(from).filter(is_meant);
        let turn: Vec<Entry> = entries.by_ref().take(MOST_IN_TURN).collect();
        let next = entries.next().map(|entry| entry.place.slot as usize);
        (turn, next)
    }
}

#[cfg(test)]
mod tests;
