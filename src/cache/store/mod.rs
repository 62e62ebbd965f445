//! The stored blobs: what is there, room for more, and what goes when there is none.
//!
//! The parts know nothing of each other and meet here: `index` (which blobs), `folder` (their files), `open_files` (those
//! that are open), `budget` and `floor` (room), `eviction` (who goes), `pins` (who stays), `stock` (the index made anew from
//! the files), `scrub` (whether the bytes are still right).
//!
//! On a core: `find`, `size_of` and the numbers, without a lock or a system call. All else blocks and is for the pool. Who
//! adds or removes a blob, or opens or closes its file, holds the *desk*, one at a time: for a few renames at most,
//! never while bytes are written, hashed, synced or removed.
//!
//! The order of every change makes the index right after a kill at any moment (index/mod.rs has the table), and the
//! budget never less than what is on disk: bytes are counted before they are written, and given back after they
//! are removed, also if a reader holds a removed file open for long.

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap, hash_map},
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub(super) use super::budget::Reservation;
use super::{
    Blob, Key, Options,
    budget::{Budget, on_disk},
    eviction::{Look, Queues, Shelf},
    floor::Floor,
    folder::{Folder, remove_file},
    index::{
        Condition, Entry, Files, Index, InsertError, Name, Pen, Place, Sighting, Stage, slots_for,
        slots_of,
    },
    manage::{as_instant, as_text},
    open_files::{OpenFiles, OpenOrder},
    pins::Pins,
    scrub::{self, Stop},
    stock,
};
pub use super::{pins::Pin, scrub::Verdict};
use crate::{
    blocking::{Errand, Pool, lock},
    oci::{Registry, Repository},
    sys::coarse_seconds,
    telemetry::metrics::{self, Counter},
};

/// How long the start waits for the files to be listed: small caches are complete at once then.
const STOCK_PATIENCE: Duration = Duration::from_millis(100);
/// A full disk costs this part of the cache: enough for a few fills, little enough to be fetched again.
const FULL_DISK_PART: u64 = 32;
/// Seconds between two such removals: all fills meet a full disk at once, and one of them may speak for all.
const FULL_DISK_PAUSE: u64 = 10;
/// A name found to have changed hands while its file was opened is looked up again, for as long as this.
const MOST_LOOKS: usize = 8;

pub(super) struct Store {
    pub(super) index: Index,
    pub(super) folder: Folder,
    budget: Arc<Budget>,
    open_files: OpenFiles,
    floor: Floor,
    pins: Pins,
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

/// A stored blob, for people and their programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    #[serde(flatten)]
    pub key: Key,
    pub size: u64,
    /// Seconds since 1970.
    #[serde(with = "as_instant")]
    pub last_use: u64,
    /// Uses since it was last looked at for eviction, 3 at most.
    #[serde(rename = "uses")]
    pub frequency: u8,
    #[serde(rename = "pinned")]
    pub is_pinned: bool,
    #[serde(rename = "verified")]
    pub is_verified: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    #[serde(rename = "max_size")]
    pub max_bytes: u64,
    /// Blobs, what is reserved, and what was removed but is still read.
    #[serde(rename = "used")]
    pub used_bytes: u64,
    /// Reserved by fills, written or not.
    #[serde(rename = "reserved")]
    pub reserved_bytes: u64,
    #[serde(rename = "pinned")]
    pub pinned_bytes: u64,
    #[serde(rename = "blobs")]
    pub blob_bytes: u64,
    #[serde(rename = "count")]
    pub blob_count: u64,
    pub registries: Vec<RegistryUsage>,
    /// What the file system has left for us.
    #[serde(rename = "free")]
    pub free_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryUsage {
    #[serde(with = "as_text")]
    pub registry: Registry,
    #[serde(rename = "size")]
    pub bytes: u64,
    #[serde(rename = "count")]
    pub blob_count: u64,
}

/// Whether what is asked for is done, or only told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    Do,
    DryRun,
}

/// What the folder is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    Serve,
    /// To look after it while no server runs. Nothing is removed but what is asked for: the settings may not be those
    /// that the server runs with.
    Visit,
}

/// A removed blob, whose file has lost its name but not yet its bytes.
struct Retired {
    entry: Entry,
    key: Option<Key>,
    path: Option<PathBuf>,
    /// Whether its bytes are to be given back when the file is removed: a reader may hold them for longer.
    is_read: bool,
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
            Opening::Serve => slots_for(max),
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
            Opening::Serve => options.high_watermark.of(max),
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

    fn note_repository(&self, seen: &Sighting, name: &Name, repository: &Repository) {
        let hash = self.index.repository_hash(name.registry_hash(), repository);
        let changed = self
            .index
            .note_repository(seen, hash, |before| self.pins.has(before));
        if changed.is_some() && self.pins.has(hash) {
            self.pins.add_bytes(on_disk(seen.size));
        }
    }

    /// Does not count as a use.
    pub(super) fn size_of(&self, key: &Key) -> Option<u64> {
        self.index.find(&self.name(key)).map(|seen| seen.size)
    }

    /// Whether its digest was computed by this process.
    pub(super) fn is_verified(&self, key: &Key) -> bool {
        self.index
            .find(&self.name(key))
            .is_some_and(|seen| self.is_place_verified(seen.place))
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

    /// `None`: there is no such blob (any more). An error: the disk, or too many open files; the blob may be good.
    pub(super) fn open(&self, key: &Key) -> io::Result<Option<Blob>> {
        let name = self.name(key);
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

    /// Takes a file into the index that stands under its name already. False if there is none.
    pub(super) fn adopt(&self, key: &Key, last_use: u64) -> bool {
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

    // On the pool: room.

    /// Room for `bytes` more, without removing anything.
    pub(super) fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        if !self.may_reserve(bytes) || !self.floor.shortfall(bytes).is_none() {
            return None;
        }
        let reservation = self.budget.reserve(bytes);
        self.mind_watermark();
        reservation
    }

    /// Room for `bytes` more; other blobs make it, if that is enough.
    pub(super) fn reserve(&self, bytes: u64) -> Option<Reservation> {
        if !self.may_reserve(bytes) || !self.keep_floor(bytes) {
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

    /// As `Reservation::grow`, but other blobs make room.
    pub(super) fn grow(&self, reservation: &mut Reservation, bytes: u64) -> bool {
        let sum = reservation.bytes().saturating_add(bytes);
        if !self.may_reserve(sum) || !self.keep_floor(bytes) {
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
    pub(super) fn count_existing(&self, bytes: u64) -> Reservation {
        let reservation = self.budget.count(bytes);
        self.mind_watermark();
        reservation
    }

    /// The disk was full although bytes were reserved: somebody else fills it.
    pub(super) fn note_full_disk(&self) {
        metrics::add(Counter::FullDisks, 1);
        let now = coarse_seconds();
        let last = self.last_full_disk.swap(now, Ordering::Relaxed);
        if now.saturating_sub(last) < FULL_DISK_PAUSE {
            return;
        }
        tracing::warn!("the cache's disk is full; some blobs are removed");
        let used = self.budget.used();
        let target = used.saturating_sub(self.budget.max() / FULL_DISK_PART);
        self.evict_until(|store| store.budget.used() <= target);
    }

    fn may_reserve(&self, bytes: u64) -> bool {
        !self.is_taking_stock() && !self.stop.is_set() && self.budget.could_hold(bytes)
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
        if self.evictable_bytes() < shortfall.bytes || self.blob_count() < shortfall.inodes {
            return false;
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
    fn mind_watermark(&self) {
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

    fn release_lingering(&self) {
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

    // On the pool: eviction.

    /// How many blobs went.
    fn evict_until(&self, is_enough: impl FnMut(&Self) -> bool) -> usize {
        self.evict_into(is_enough, |_| {})
    }

    fn evict_into(
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
    fn evict_place(&self, desk: &mut Desk, place: Place) -> Option<Retired> {
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
    fn remove_place(&self, desk: &mut Desk, key: &Key, place: Place) -> Option<Retired> {
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

    fn discard(&self, retired: Option<Retired>) {
        let Some(retired) = retired else { return };
        if let Some(path) = retired.path {
            remove_file(&path);
        }
        if !retired.is_read {
            self.budget.give_back(retired.entry.size);
        }
    }

    fn forget_pinned(&self, entry: &Entry) {
        if self.pins.has(entry.repository) {
            self.pins.subtract_bytes(on_disk(entry.size));
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

    fn queue(&self, desk: &mut Desk, place: Place, entry: &Entry) {
        if let Some(queues) = &mut desk.queues {
            queues.insert(place, on_disk(entry.size), entry.is_main);
        }
    }

    // On the pool: storing and removing.

    /// Syncs the file and gives it its name. The file stays open for readers. On an error the file is still at `path`, and
    /// no longer counted.
    pub(super) fn commit(
        &self,
        key: &Key,
        repository: Option<&Repository>,
        path: &Path,
        file: Arc<File>,
        size: u64,
        mut reservation: Reservation,
    ) -> io::Result<()> {
        file.sync_data()?;
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
        let entry = Entry {
            repository: repository.map_or(0, |repository| {
                self.index.repository_hash(registry, repository)
            }),
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

    /// Reads and hashes a blob; what is damaged is removed at once.
    pub(super) fn verify(&self, key: &Key) -> io::Result<Verdict> {
        let Some(seen) = self.index.find(&self.name(key)) else {
            return Ok(Verdict::Absent);
        };
        self.verify_place(key, seen.place, seen.size)
    }

    /// Reads and hashes a blob, and leaves it as it is. An error: it could not be read at this time.
    pub(super) fn examine(&self, key: &Key, place: Place, size: u64) -> io::Result<Verdict> {
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
    pub(super) fn verify_place(&self, key: &Key, place: Place, size: u64) -> io::Result<Verdict> {
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

    pub(super) fn remove(&self, key: &Key) -> bool {
        let mut desk = self.desk();
        let seen = self.index.find(&self.name(key));
        let retired = seen.and_then(|seen| self.remove_place(&mut desk, key, seen.place));
        drop(desk);
        let is_removed = retired.is_some();
        self.discard(retired);
        is_removed
    }

    // For people, on the pool.

    pub(super) fn listed<'s>(
        &'s self,
        entries: impl Iterator<Item = Entry> + 's,
    ) -> impl Iterator<Item = Listed> + 's {
        let registries = self.desk().registries.clone();
        entries.filter_map(move |entry| {
            let key = key(&registries, &self.folder, &entry.name)?;
            Some(self.describe(key, &entry))
        })
    }

    /// Those that have had blobs here.
    pub(super) fn registries(&self) -> Vec<Registry> {
        self.desk().registries.values().cloned().collect()
    }

    /// The blob, as the index has it.
    pub(super) fn entry(&self, key: &Key) -> Option<Entry> {
        let seen = self.index.find(&self.name(key))?;
        self.index.entry(seen.place)
    }

    fn describe(&self, key: Key, entry: &Entry) -> Listed {
        Listed {
            key,
            size: entry.size,
            last_use: entry.last_use,
            frequency: entry.frequency,
            is_pinned: self.pins.has(entry.repository),
            is_verified: self.is_place_verified(entry.place),
        }
    }

    pub(super) fn usage(&self) -> Usage {
        let mut registries: HashMap<u64, RegistryUsage> = self
            .desk()
            .registries
            .iter()
            .map(|(hash, registry)| {
                let usage = RegistryUsage {
                    registry: registry.clone(),
                    bytes: 0,
                    blob_count: 0,
                };
                (*hash, usage)
            })
            .collect();
        for entry in self.index.entries() {
            if let Some(usage) = registries.get_mut(&entry.name.registry_hash()) {
                usage.bytes += on_disk(entry.size);
                usage.blob_count += 1;
            }
        }
        let mut registries: Vec<RegistryUsage> = registries
            .into_values()
            .filter(|usage| usage.blob_count > 0)
            .collect();
        registries.sort_by(|one, other| one.registry.cmp(&other.registry));
        Usage {
            max_bytes: self.max_bytes(),
            used_bytes: self.used_bytes(),
            reserved_bytes: self.used_bytes().saturating_sub(self.index.bytes()),
            pinned_bytes: self.pins.bytes(),
            blob_bytes: self.index.bytes(),
            blob_count: self.blob_count(),
            registries,
            free_bytes: self.floor.free_bytes(),
        }
    }

    /// Evicts down to `target` bytes, or to the low watermark; tells each that went, or would go.
    pub(super) fn gc(&self, target: Option<u64>, intent: Intent, mut each: impl FnMut(Listed)) {
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

    /// How many stored blobs it protects.
    pub(super) fn pin(&self, pin: &Pin) -> io::Result<usize> {
        self.pins.add(pin, &self.index)?;
        self.count_pinned();
        Ok(self.count_of(pin))
    }

    /// How many stored blobs it protected; `None` if it was not pinned.
    pub(super) fn unpin(&self, pin: &Pin) -> io::Result<Option<usize>> {
        let was_pinned = self.pins.remove(pin, &self.index)?;
        self.count_pinned();
        Ok(was_pinned.then(|| self.count_of(pin)))
    }

    pub(super) fn pins(&self) -> Vec<Pin> {
        self.pins.all()
    }

    pub(super) fn count_of(&self, pin: &Pin) -> usize {
        let hash = pin.hash(&self.index);
        self.index
            .entries()
            .filter(|entry| entry.repository == hash)
            .count()
    }

    fn count_pinned(&self) {
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

    /// What was found may be more than the cap of today.
    fn keep_the_cap(&self) {
        if self.opening == Opening::Serve {
            self.evict_until(|store| store.budget.missing(0) == 0);
        }
    }

    /// What the blob in a slot is called.
    pub(super) fn key_of(&self, name: &Name) -> Option<Key> {
        key(&self.desk().registries, &self.folder, name)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        lock(&self.desk)
    }

    fn is_place_verified(&self, place: Place) -> bool {
        let (word, bit) = (place.slot as usize / 64, place.slot % 64);
        self.verified
            .get(word)
            .is_some_and(|word| word.load(Ordering::Relaxed) >> bit & 1 == 1)
    }

    fn set_verified(&self, place: Place, is_verified: bool) {
        let (word, bit) = (place.slot as usize / 64, 1 << (place.slot % 64));
        if let Some(word) = self.verified.get(word) {
            match is_verified {
                true => word.fetch_or(bit, Ordering::Relaxed),
                false => word.fetch_and(!bit, Ordering::Relaxed),
            };
        }
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

fn key(registries: &HashMap<u64, Registry>, folder: &Folder, name: &Name) -> Option<Key> {
    let registry = registries.get(&name.registry_hash())?;
    Some(Key {
        digest: folder.digest(registry, name)?,
        registry: registry.clone(),
    })
}

fn new_entry(name: Name, size: u64) -> Entry {
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

/// The same for the same blob, as long as the index keeps its keys.
fn fingerprint(name: &Name) -> u64 {
    let [first, ..] = *name.digest_bytes().as_chunks::<8>().0 else {
        return 0;
    };
    u64::from_be_bytes(first) ^ name.registry_hash()
}

/// The file is not there, or not what it was. Other errors say nothing about it.
fn is_lost(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidData
    )
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

impl Store {
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

/// What a kill left half done.
struct Settling<'f> {
    folder: &'f Folder,
    registries: &'f [Registry],
}

impl Settling<'_> {
    fn key(&self, index: &Index, name: &Name) -> Option<Key> {
        let registry = self
            .registries
            .iter()
            .find(|registry| index.registry_hash(registry) == name.registry_hash())?;
        Some(Key {
            digest: self.folder.digest(registry, name)?,
            registry: registry.clone(),
        })
    }
}

impl Files for Settling<'_> {
    fn size_of(&mut self, index: &Index, name: &Name) -> Option<u64> {
        let key = self.key(index, name)?;
        self.folder.stored(&key).map(|stored| stored.size)
    }

    fn remove(&mut self, index: &Index, name: &Name) {
        if let Some(key) = self.key(index, name) {
            self.folder.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests;
