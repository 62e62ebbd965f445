//! The blob cache: complete blobs in files named by their digest, and the fills that become them.
//!
//! ```text
//! <directory>/blobs/<registry>/sha256/ab/<hex>   complete: committed by renaming, after the digest matched
//! <directory>/fills/<number>                     growing; removed at the next start
//! ```
//!
//! A blob is kept under the registry that sent it. Content is the same everywhere, but a registry's word that
//! somebody may have it is worth something only for bytes which that registry has: else a registry of one's
//! own, which says yes to everything, would open everybody's blobs.
//!
//! One question, `open`, has three answers: the blob is stored, somebody is filling it, or it is missing and the
//! asker now holds the claim to fill it. A fill belongs to nobody: whoever wants the blob reads the growing
//! file, the one who began the fill included. The last part of a blob is released only when its digest has
//! matched. Whether the asker *may* have the blob is not known here (`pull/proof.rs`), nor is any network.

mod budget;
mod disk;
#[doc(hidden)]
pub mod eviction;
mod fill;
mod flight;
mod floor;
mod folder;
#[doc(hidden)]
pub mod index;
mod open_files;
mod pins;
mod room;
mod scrub;
mod stock;
mod store;

pub use fill::{Fill, FillError, FillWriter};
pub use flight::{Ending, Reader, Release};
pub use store::{GcMode, Listed, Pin, RegistryUsage, Usage, Verdict};

use std::{
    collections::VecDeque,
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Deserialize;

use crate::{
    blocking::{Errand, Pool, PoolError, lock},
    oci::{Digest, Hasher, Registry},
    sharded::Sharded,
    telemetry::metrics::{self, Counter},
    units::{ByteSize, HumanDuration, Percent},
};
use disk::Disk;
use flight::Flight;
use room::Room;

/// `[cache]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Must be one file system: a blob is committed by renaming it. Default: `$XDG_CACHE_HOME/tidegate`, for root
    /// `/var/cache/tidegate`.
    pub directory: Option<PathBuf>,
    /// Never exceeded, because a fill reserves its bytes first: `"20GiB"`.
    pub max_size: ByteSize,
    /// Above this share of `max_size`, blobs are removed in the background: `"95%"`.
    pub high_watermark: Percent,
    /// …until this share is left: `"90%"`.
    pub low_watermark: Percent,
    /// What stays free of the file system: `"1GiB"`. Default: a twentieth of it, at most 1GiB.
    pub min_free: Option<ByteSize>,
    /// The share of the file system's inodes that stays free: `"1%"`.
    pub min_free_inodes: Percent,
    /// In how long every blob is read and hashed again: `"7days"`. `"0s"`: never.
    pub scrub_interval: HumanDuration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            directory: None,
            max_size: ByteSize::gib(20),
            high_watermark: Percent(95),
            low_watermark: Percent(90),
            min_free: None,
            min_free_inodes: Percent(1),
            scrub_interval: HumanDuration::hours(7 * 24),
        }
    }
}

/// Files kept open. Opening one takes a turn on the pool, an open one none. Half of the smallest limit of open
/// files that systems have.
const OPEN_FILES: usize = 512;

/// A blob of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub registry: Registry,
    pub digest: Digest,
}

/// Shared by all cores. Cloning is cheap.
#[derive(Clone)]
pub struct Cache(Arc<Shared>);

struct Shared {
    disk: Disk,
    room: Room,
    pool: Arc<Pool>,
    entries: Sharded<Key, Entry>,
    /// Counts uses, so that recency needs no clock.
    uses: AtomicU64,
    /// Blobs whose files are open, oldest first.
    open_files: Mutex<VecDeque<Key>>,
}

enum Entry {
    Filling(Arc<Flight>),
    Stored(Stored),
}

struct Stored {
    size: u64,
    last_use: u64,
    /// Kept open while it is among those opened last.
    file: Option<Arc<File>>,
    /// Finds it while readers have it open, also when it is no longer kept. A blob that is read is not evicted: its
    /// bytes would stay on disk uncounted.
    opened: Weak<File>,
    /// Its digest was computed by this process, and not long ago by another.
    is_verified: bool,
}

/// A complete blob, open for reading.
#[derive(Clone, Debug)]
pub struct Blob {
    pub file: Arc<File>,
    pub size: u64,
}

/// Why a stored blob cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Busy(#[from] PoolError),
    #[error("the file cannot be opened: {0}")]
    Disk(#[from] io::Error),
}

/// What the cache has of a blob.
pub enum Opened {
    Stored(Blob),
    /// Somebody fills it; the reader follows.
    Filling(Reader),
    /// Nobody has it. The claim to fill it is the asker's; dropping it gives it up.
    Missing(Fill),
}

/// What the cache has of a blob, asked without a wish to fill it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Stored { size: u64 },
    Filling,
    Absent,
}

impl Cache {
    /// Creates the folders and takes stock. Blocks: for start-up.
    pub fn load(directory: PathBuf, max_size: ByteSize, pool: Arc<Pool>) -> std::io::Result<Self> {
        let (disk, found) = Disk::load(directory)?;
        let room = Room::new(max_size.bytes());
        let cache = Self(Arc::new(Shared {
            disk,
            room,
            pool,
            entries: Sharded::default(),
            uses: AtomicU64::new(1),
            open_files: Mutex::default(),
        }));
        for blob in found {
            cache.0.room.take(room::on_disk(blob.size));
            let stored = Stored {
                size: blob.size,
                last_use: cache.0.uses.fetch_add(1, Ordering::Relaxed),
                file: None,
                opened: Weak::new(),
                is_verified: false,
            };
            cache
                .0
                .entries
                .lock(&blob.key)
                .insert(blob.key, Entry::Stored(stored));
        }
        // The cap may have been lowered since.
        cache.0.evict(0);
        Ok(cache)
    }

    /// Bytes on disk, fills included.
    pub fn used_bytes(&self) -> u64 {
        self.0.room.used()
    }

    pub fn max_bytes(&self) -> u64 {
        self.0.room.max()
    }

    pub fn blob_count(&self) -> usize {
        self.0.entries.iter().map(|shard| shard.len()).sum()
    }

    pub fn presence(&self, key: &Key) -> Presence {
        match self.0.entries.lock(key).get(key) {
            Some(Entry::Stored(stored)) => Presence::Stored { size: stored.size },
            Some(Entry::Filling(_)) => Presence::Filling,
            None => Presence::Absent,
        }
    }

    pub async fn open(&self, key: &Key) -> Result<Opened, OpenError> {
        // A file that has vanished leaves its entry once; the second look finds it missing.
        loop {
            let size = match self.look_up(key) {
                LookUp::Opened(opened) => return Ok(opened),
                LookUp::Closed { size } => size,
            };
            let (shared, key) = (Arc::clone(&self.0), key.clone());
            let file = self
                .0
                .pool
                .run(Errand::Disk, move || shared.open_file(&key, size))
                .await??;
            if let Some(file) = file {
                return Ok(Opened::Stored(Blob { file, size }));
            }
        }
    }

    fn look_up(&self, key: &Key) -> LookUp {
        let mut shard = self.0.entries.lock(key);
        match shard.get_mut(key) {
            Some(Entry::Stored(stored)) => {
                stored.last_use = self.0.uses.fetch_add(1, Ordering::Relaxed);
                let size = stored.size;
                match stored.opened.upgrade() {
                    Some(file) => LookUp::Opened(Opened::Stored(Blob { file, size })),
                    None => LookUp::Closed { size },
                }
            }
            Some(Entry::Filling(flight)) => {
                LookUp::Opened(Opened::Filling(Reader::new(Arc::clone(flight))))
            }
            None => {
                let flight = Flight::new();
                shard.insert(key.clone(), Entry::Filling(Arc::clone(&flight)));
                LookUp::Opened(Opened::Missing(Fill::new(
                    self.clone(),
                    key.clone(),
                    flight,
                )))
            }
        }
    }

    /// Whether a stored blob is what its name says: computed once for those that were found at the start. What is not
    /// is dropped. For when something speaks against it; it costs reading the blob.
    pub async fn verify(&self, key: &Key, blob: Blob) -> Result<bool, PoolError> {
        if let Some(Entry::Stored(stored)) = self.0.entries.lock(key).get(key)
            && stored.is_verified
        {
            return Ok(true);
        }
        let (cache, key) = (self.clone(), key.clone());
        let verified = self.0.pool.run(Errand::Commit, move || {
            let hasher = Box::new(Hasher::new(key.digest.algorithm()));
            let hashed = fill::hash_span(hasher, &blob.file, 0..blob.size);
            let is_right = hashed.is_ok_and(|hasher| hasher.finish() == key.digest);
            if is_right {
                if let Some(Entry::Stored(stored)) = cache.0.entries.lock(&key).get_mut(&key) {
                    stored.is_verified = true;
                }
            } else {
                tracing::warn!(digest = %key.digest, registry = %key.registry, "a cached blob is damaged; it will be fetched again");
                cache.remove(&key);
            }
            is_right
        });
        verified.await
    }

    /// Drops a stored blob, on disk too. Blocks.
    fn remove(&self, key: &Key) {
        let (size, retired) = {
            let mut shard = self.0.entries.lock(key);
            let Some(Entry::Stored(stored)) = shard.get(key) else {
                return;
            };
            let size = stored.size;
            shard.remove(key);
            (size, self.0.disk.retire(key))
        };
        if let Some(path) = retired {
            Disk::discard_fill(&path);
        }
        self.0.room.give_back(room::on_disk(size));
    }
}

enum LookUp {
    Opened(Opened),
    Closed { size: u64 },
}

impl Shared {
    /// `None`: the entry is gone, because its file is, or is not what it was.
    fn open_file(&self, key: &Key, size: u64) -> io::Result<Option<Arc<File>>> {
        let opened = self.disk.open(key, size);
        let mut shard = self.entries.lock(key);
        let Some(Entry::Stored(stored)) = shard.get_mut(key) else {
            return Ok(None);
        };
        // Another has been faster: one open file for all readers, so that they can be counted.
        if let Some(file) = stored.opened.upgrade() {
            return Ok(Some(file));
        }
        match opened {
            Ok(file) => {
                let file = Arc::new(file);
                stored.opened = Arc::downgrade(&file);
                stored.file = Some(Arc::clone(&file));
                drop(shard);
                self.remember_open(key.clone());
                Ok(Some(file))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidData
                ) =>
            {
                tracing::warn!(digest = %key.digest, %error, "a cached blob is gone; it will be fetched again");
                shard.remove(key);
                drop(shard);
                self.disk.remove(key);
                self.room.give_back(room::on_disk(size));
                Ok(None)
            }
            // Out of descriptors, for one: the blob is as good as before.
            Err(error) => Err(error),
        }
    }

    /// Keeps the number of open files bounded: the one opened longest ago is closed.
    fn remember_open(&self, key: Key) {
        let oldest = {
            let mut open = lock(&self.open_files);
            open.push_back(key);
            if open.len() > OPEN_FILES {
                open.pop_front()
            } else {
                None
            }
        };
        let Some(oldest) = oldest else { return };
        let closed = match self.entries.lock(&oldest).get_mut(&oldest) {
            Some(Entry::Stored(stored)) => stored.file.take(),
            _ => None,
        };
        drop(closed);
    }

    /// Makes room for `wanted` more bytes: the blobs used longest ago go first, those being read stay. Blocks.
    fn evict(&self, wanted: u64) {
        let Some(target) = self.room.excess(wanted) else {
            return;
        };
        let mut candidates = Vec::new();
        let mut evictable = 0;
        for shard in self.entries.iter() {
            for (key, entry) in shard.iter() {
                if let Entry::Stored(stored) = entry
                    && !stored.is_read()
                {
                    evictable += room::on_disk(stored.size);
                    candidates.push((stored.last_use, key.clone()));
                }
            }
        }
        // What would not be enough is left alone.
        if evictable < self.room.missing(wanted) {
            return;
        }
        candidates.sort_unstable();
        let mut freed = 0;
        for (last_use, key) in candidates {
            if freed >= target {
                break;
            }
            freed += self.evict_one(&key, last_use);
        }
    }

    fn evict_one(&self, key: &Key, last_use: u64) -> u64 {
        let (size, retired) = {
            let mut shard = self.entries.lock(key);
            let Some(Entry::Stored(stored)) = shard.get(key) else {
                return 0;
            };
            if stored.is_read() || stored.last_use != last_use {
                return 0;
            }
            let size = room::on_disk(stored.size);
            shard.remove(key);
            // Renamed under the lock, so that a new fill of the same blob cannot commit in between and lose its file;
            // removing a large one takes long, and cores ask for this lock.
            (size, self.disk.retire(key))
        };
        if let Some(path) = retired {
            Disk::discard_fill(&path);
        }
        self.room.give_back(size);
        metrics::add(Counter::BlobsEvicted, 1);
        size
    }
}

impl Stored {
    fn is_read(&self) -> bool {
        self.opened.strong_count() > usize::from(self.file.is_some())
    }
}

#[cfg(test)]
mod tests;
