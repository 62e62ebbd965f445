//! The stored blobs: what is there, room for more, and what goes when there is none.
//!
//! The parts know nothing of each other and meet here: `index` (which blobs), `folder` (their files), `open_files` (those
//! that are open), `budget` and `floor` (room), `eviction` (who goes), `pins` (who stays), `stock` (the index made anew from
//! the files), `scrub` (whether the bytes are still right). Here a blob is found and opened; how it comes is in `commit`, how
//! it goes in `removal`, what makes room for it in `room`.
//!
//! On a core: `find`, `size_of` and the numbers, without a lock or a system call. All else blocks and is for the pool. Who
//! adds or removes a blob, or opens or closes its file, holds the *desk*, one at a time: for a few renames at most,
//! never while bytes are written, hashed, synced or removed.
//!
//! The order of every change makes the index right after a kill at any moment (index/mod.rs has the table), and the
//! budget never less than what is on disk: bytes are counted before they are written, and given back after they
//! are removed, also if a reader holds a removed file open for long.

mod census;
mod commit;
mod pinned;
mod removal;
mod room;
mod settling;
mod verify;

pub use census::{Listed, RegistryUsage, Usage};

use std::{
    collections::{HashMap, hash_map},
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    Blob, Key, Options,
    budget::Budget,
    eviction::Queues,
    floor::Floor,
    folder::Folder,
    healing::Healing,
    index::{Condition, Index, Name, Pen, Sighting, slots_for, slots_of},
    open_files::{OpenFiles, OpenOrder},
    pins::Pins,
    scrub::{self, Stop},
    stock,
};
use crate::{
    blocking::{Pool, lock},
    oci::{Registry, Repository},
    sys::coarse_seconds,
};
use settling::Settling;

/// How long the start waits for the files to be listed: small caches are complete at once then.
const STOCK_PATIENCE: Duration = Duration::from_millis(100);
/// A name found to have changed hands while its file was opened is looked up again, for as long as this.
const MOST_LOOKS: usize = 8;

pub(super) struct Store {
    pub(super) index: Index,
    pub(super) folder: Folder,
    budget: Arc<Budget>,
    open_files: OpenFiles,
    floor: Floor,
    pins: Pins,
    pub(super) healing: Healing,
    desk: Mutex<Desk>,
    /// By slot: hashed by this process, and not long ago by another.
    verified: Box<[AtomicU64]>,
    high: u64,
    low: u64,
    opening: Opening,
    is_taking_stock: AtomicBool,
    is_evicting: AtomicBool,
    last_full_disk: AtomicU64,
    pub(super) stop: Arc<Stop>,
    pool: Arc<Pool>,
    own: Weak<Self>,
}

/// What one at a time may change.
pub(super) struct Desk {
    pen: Pen,
    /// Names by their hashes, which is all that the index has.
    registries: HashMap<u64, Registry>,
    /// Made when they are first needed.
    queues: Option<Queues>,
    open_order: OpenOrder,
    /// Removed, but still read.
    lingering: Vec<(Arc<File>, u64)>,
}

/// A stored blob, as far as a core can have it without waiting.
pub(super) enum Found {
    Open(Blob),
    /// Its file is to be opened on the pool: `Store::open`.
    Closed,
}

/// What the folder is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    Serve,
    /// To work in it and then remove it. It need not outlive the machine, so nothing waits for the disk: most of what is
    /// removed soon never gets there.
    Scratch,
    /// To look after it while no server runs. Nothing is removed but what is asked for: the settings may not be those
    /// that the server runs with.
    Visit,
}

impl Store {
    /// Creates the folders, takes the lock, and opens the index. Blocks: for start-up.
    pub(super) fn load(
        directory: PathBuf,
        options: &Options,
        pool: Arc<Pool>,
    ) -> io::Result<Arc<Self>> {
        let store = Self::open_folder(directory, options, pool, Opening::Serve)?;
        if !options.scrub_interval.is_zero() {
            scrub::begin(Weak::clone(&store.own), *options.scrub_interval)?;
        }
        Ok(store)
    }

    /// A new one, which is not there any more when the process has ended.
    pub(super) fn scratch(
        directory: PathBuf,
        options: &Options,
        pool: Arc<Pool>,
    ) -> io::Result<Arc<Self>> {
        Self::open_folder(directory, options, pool, Opening::Scratch)
    }

    /// The same, without a server: nothing happens by itself, and all is listed when it returns.
    pub(super) fn visit(
        directory: PathBuf,
        options: &Options,
        pool: Arc<Pool>,
    ) -> io::Result<Arc<Self>> {
        Self::open_folder(directory, options, pool, Opening::Visit)
    }

    fn open_folder(
        directory: PathBuf,
        options: &Options,
        pool: Arc<Pool>,
        opening: Opening,
    ) -> io::Result<Arc<Self>> {
        let folder = Folder::load(directory)?;
        let registries = folder.registries()?;
        let max = options.max_size.bytes();
        let path = folder.root().join("index");
        let slots = match opening {
            Opening::Serve | Opening::Scratch => slots_for(max),
            Opening::Visit => slots_of(&path).unwrap_or(0).max(slots_for(max)),
        };
        let (index, pen, condition) = Index::load(
            &path,
            slots,
            &mut Settling {
                folder: &folder,
                registries: &registries,
            },
        );
        let pins = Pins::load(folder.root().join("pins"), &index)?;
        let budget = Budget::new(max);
        budget.add(index.bytes());
        let by_hash = registries
            .iter()
            .map(|registry| (index.registry_hash(registry), registry.clone()))
            .collect();
        let low = options.low_watermark.of(max);
        let high = match opening {
            Opening::Serve | Opening::Scratch => options.high_watermark.of(max),
            Opening::Visit => u64::MAX,
        };
        let store = Arc::new_cyclic(|own| Self {
            floor: Floor::new(folder.root().to_owned(), options),
            open_files: OpenFiles::new(index.slots()),
            verified: (0..index.slots() / 64).map(|_| AtomicU64::new(0)).collect(),
            desk: Mutex::new(Desk {
                pen,
                registries: by_hash,
                queues: None,
                open_order: OpenOrder::default(),
                lingering: Vec::new(),
            }),
            high,
            low: low.min(high),
            opening,
            is_taking_stock: AtomicBool::new(condition == Condition::New),
            is_evicting: AtomicBool::new(false),
            last_full_disk: AtomicU64::new(0),
            stop: Arc::default(),
            own: own.clone(),
            index,
            folder,
            budget,
            pins,
            healing: Healing::default(),
            pool,
        });
        if condition == Condition::New {
            // With nothing to list, all that is waited for is a busy disk, and the first blobs would not be cached.
            let is_patient = opening == Opening::Visit || registries.is_empty();
            let done = stock::begin(Weak::clone(&store.own), registries)?;
            if is_patient {
                let _ = done.recv();
            } else {
                let _ = done.recv_timeout(STOCK_PATIENCE);
            }
        } else {
            store.count_pinned();
            store.keep_the_cap();
        }
        Ok(store)
    }

    // On cores: no lock, no system call.

    /// Counts as a use. `repository` is who uses it: what is pinned is known by it.
    pub(super) fn find(&self, key: &Key, repository: Option<&Repository>) -> Option<Found> {
        let name = self.name(key);
        let seen = self.index.find(&name)?;
        let is_counted = self.index.touch(&seen, coarse_seconds());
        if let Some(repository) = repository
            && (is_counted || !self.pins.is_empty())
        {
            self.note_repository(&seen, &name, repository);
        }
        Some(match self.open_blob(&seen) {
            Some(blob) => Found::Open(blob),
            None => Found::Closed,
        })
    }

    /// Its file, if it is open.
    fn open_blob(&self, seen: &Sighting) -> Option<Blob> {
        let file = self.open_files.get(seen.place.slot)?;
        // The slot may have become another blob's before its file was taken, but then the generation shows it.
        self.index.is_same(seen.place).then_some(Blob {
            file,
            size: seen.size,
        })
    }

    /// Does not count as a use.
    pub(super) fn size_of(&self, key: &Key) -> Option<u64> {
        self.index.find(&self.name(key)).map(|seen| seen.size)
    }

    /// The files are being listed: what is not found may be there all the same (`open` knows), and nothing can be
    /// reserved.
    pub(super) fn is_taking_stock(&self) -> bool {
        self.is_taking_stock.load(Ordering::Acquire)
    }

    /// Blobs, and what is reserved.
    pub(super) fn used_bytes(&self) -> u64 {
        self.budget.used()
    }

    pub(super) fn max_bytes(&self) -> u64 {
        self.budget.max()
    }

    pub(super) fn blob_count(&self) -> u64 {
        self.index.blob_count()
    }

    fn name(&self, key: &Key) -> Name {
        self.index.name(&key.registry, &key.digest)
    }

    // On the pool: opening.

    /// `repository`: who wants it. `None`: there is no such blob (any more). An error: the disk, or too many open files; the blob may be good.
    pub(super) fn open(&self, key: &Key, repository: &Repository) -> io::Result<Option<Blob>> {
        let name = self.name(key);
        let hash = self.index.repository_hash(name.registry_hash(), repository);
        self.healing.note_repository(hash, repository);
        for _ in 0..MOST_LOOKS {
            let Some(seen) = self.index.find(&name) else {
                if self.is_taking_stock() && self.adopt(key, coarse_seconds()) {
                    continue;
                }
                return Ok(None);
            };
            if let Some(blob) = self.open_blob(&seen) {
                return Ok(Some(blob));
            }
            let opened = self.folder.open(key, seen.size);
            let mut desk = self.desk();
            match self.index.find(&name) {
                Some(now) if now.place == seen.place => {}
                _ => continue,
            }
            // Another has been faster: one open file for all readers, so that they can be counted.
            if let Some(blob) = self.open_blob(&seen) {
                return Ok(Some(blob));
            }
            match opened {
                Ok(file) => {
                    let file = Arc::new(file);
                    self.open_files
                        .put(seen.place, Arc::clone(&file), &mut desk.open_order);
                    let size = seen.size;
                    return Ok(Some(Blob { file, size }));
                }
                Err(error) if is_lost(&error) => {
                    tracing::warn!(digest = %key.digest, registry = %key.registry, %error, "a cached blob is gone; it will be fetched again");
                    let retired = self.remove_place(&mut desk, key, seen.place);
                    drop(desk);
                    self.discard(retired);
                    return Ok(None);
                }
                // Out of descriptors, for one: the blob is as good as before.
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// All is on disk, and the next start may trust the index as it is. Nothing is stored or removed afterwards.
    pub(super) fn close(&self) {
        self.stop.set();
        let mut desk = self.desk();
        // What has not been listed would be missing at the next start.
        if self.is_taking_stock() {
            return;
        }
        // Else blobs whose removal was lost with the power would not be in an index that is trusted.
        let closed = self
            .folder
            .sync()
            .and_then(|()| self.index.close(&mut desk.pen));
        if let Err(error) = closed {
            tracing::warn!(%error, "the cache's index cannot be written; the next start looks through it");
        }
    }

    /// All files have been listed.
    pub(super) fn stock_is_taken(&self) {
        let mut desk = self.desk();
        if self.stop.is_set() {
            return;
        }
        self.index.complete(&mut desk.pen);
        drop(desk);
        self.count_pinned();
        self.keep_the_cap();
        self.is_taking_stock.store(false, Ordering::Release);
    }

    /// What the blob in a slot is called.
    pub(super) fn key_of(&self, name: &Name) -> Option<Key> {
        key(&self.desk().registries, &self.folder, name)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        lock(&self.desk)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop.set();
    }
}

impl Desk {
    /// Two names with one hash would be taken for each other, so the second is not cached. The hash is keyed: nobody
    /// can look for such a name.
    fn register(&mut self, index: &Index, registry: &Registry) -> io::Result<u64> {
        let hash = index.registry_hash(registry);
        match self.registries.entry(hash) {
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(registry.clone());
                Ok(hash)
            }
            hash_map::Entry::Occupied(taken) if taken.get() == registry => Ok(hash),
            hash_map::Entry::Occupied(taken) => Err(io::Error::other(format!(
                "{registry} cannot be told from {} in the index",
                taken.get()
            ))),
        }
    }
}

fn key(registries: &HashMap<u64, Registry>, folder: &Folder, name: &Name) -> Option<Key> {
    let registry = registries.get(&name.registry_hash())?;
    Some(Key {
        digest: folder.digest(registry, name)?,
        registry: registry.clone(),
    })
}

/// The file is not there, or not what it was. Other errors say nothing about it.
fn is_lost(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidData
    )
}

#[cfg(test)]
mod tests;
