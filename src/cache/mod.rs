//! The blob cache: complete blobs in files named by their digest, and the fills that become them.
//!
//! ```text
//! <directory>/blobs/<registry>/sha256/ab/<hex>   complete: committed by renaming, after the digest matched
//! <directory>/fills/<number>                     growing, or left half-way for the next who wants it
//! <directory>/gone/                              on its way out
//! <directory>/pins                               repositories whose blobs stay
//! <directory>/index                              which blobs there are; made anew from `blobs/` where it is lost
//! ```
//!
//! `store/` has what is complete, `flight.rs` and `fill.rs` what is coming, `partial.rs` what stopped half-way.
//!
//! A blob is kept under the registry that sent it. Content is the same everywhere, but a registry's word that
//! somebody may have it is worth something only for bytes which that registry has: else a registry of one's
//! own, which says yes to everything, would open everybody's blobs.
//!
//! One question, `open`, has three answers: the blob is stored, somebody is filling it, or it is missing and the
//! asker now holds the claim to fill it. A fill belongs to nobody: whoever wants the blob reads the growing
//! file, the one who began the fill included. The last part of a blob is released only when its digest has
//! matched. Whether the asker *may* have the blob is not known here (`pull/proof.rs`), nor is any network.

mod as_written;
mod budget;
mod doubts;
#[doc(hidden)]
pub mod eviction;
mod extents;
mod fill;
mod flight;
mod floor;
mod folder;
mod hash_line;
mod healing;
#[doc(hidden)]
pub mod index;
mod manage;
mod open_files;
mod partial;
mod pins;
#[doc(hidden)]
pub mod progress;
mod scrub;
mod stock;
mod store;
mod tend;

pub use extents::Extents;
pub use fill::{Begun, Fill, FillError, Run, Writing};
pub use flight::{Ending, Next, Reader, Release};
pub use manage::{
    Checked, Damage, Damaged, FolderId, Gone, Intent, Page, Pinned, Report, Selection, Unfinished,
    Unread,
};
pub use pins::{Pin, PinError};
pub use progress::{Course, HELD_BACK, SMALL};
pub use scrub::Verdict;
pub use store::{Listed, RegistryUsage, Usage};

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    blocking::{Errand, Pool, PoolError},
    oci::{Digest, Registry, Repository},
    sharded::Sharded,
    units::{ByteSize, HumanDuration, Percent},
};
use budget::Reservation;
use doubts::Doubts;
use flight::Flight;
use partial::Partials;
use store::{Found, Store};

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
    /// A download that nobody waits for any more is finished from this share of the blob on: `"25%"`.
    pub finish_fill_above: Percent,
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
            finish_fill_above: Percent(25),
        }
    }
}

/// A blob of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    #[serde(with = "as_written::text")]
    pub registry: Registry,
    #[serde(with = "as_written::text")]
    pub digest: Digest,
}

/// Shared by all cores. Cloning is cheap.
#[derive(Clone)]
pub struct Cache(Arc<Shared>);

struct Shared {
    store: Arc<Store>,
    partials: Partials,
    doubts: Arc<Doubts>,
    /// Fills in progress, and claims to begin one.
    flights: Sharded<Key, Arc<Flight>>,
    finish_fill_above: Percent,
    pool: Arc<Pool>,
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
    /// Creates the folders and opens what is there. Blocks: for start-up.
    pub fn load(directory: PathBuf, options: &Options, pool: Arc<Pool>) -> io::Result<Self> {
        let store = Store::load(directory.clone(), options, Arc::clone(&pool))?;
        Self::at_work(store, &directory, options, pool)
    }

    /// In a new folder, for as long as this process works in it; whoever made the folder removes it.
    pub fn scratch(directory: PathBuf, options: &Options, pool: Arc<Pool>) -> io::Result<Self> {
        let store = Store::scratch(directory.clone(), options, Arc::clone(&pool))?;
        Self::at_work(store, &directory, options, pool)
    }

    fn at_work(
        store: Arc<Store>,
        directory: &Path,
        options: &Options,
        pool: Arc<Pool>,
    ) -> io::Result<Self> {
        let count = |store: &Store, bytes| store.try_reserve(bytes);
        let cache = Self::over(store, directory, options, pool, count)?;
        tend::start(&cache.0)?;
        Ok(cache)
    }

    /// `count`: how what is left of unfinished downloads is taken into account.
    fn over(
        store: Arc<Store>,
        directory: &Path,
        options: &Options,
        pool: Arc<Pool>,
        count: impl Fn(&Store, u64) -> Option<Reservation>,
    ) -> io::Result<Self> {
        let doubts = Arc::new(Doubts::default());
        let partials = Partials::load(directory.join("fills"), Arc::clone(&doubts), |bytes| {
            count(&store, bytes)
        })?;
        Ok(Self(Arc::new(Shared {
            store,
            partials,
            doubts,
            flights: Sharded::default(),
            finish_fill_above: options.finish_fill_above,
            pool,
        })))
    }

    /// Bytes on disk, fills included.
    pub fn used_bytes(&self) -> u64 {
        self.0.store.used_bytes()
    }

    pub fn max_bytes(&self) -> u64 {
        self.0.store.max_bytes()
    }

    pub fn blob_count(&self) -> u64 {
        self.0.store.blob_count()
    }

    pub fn presence(&self, key: &Key) -> Presence {
        if let Some(size) = self.0.store.size_of(key) {
            return Presence::Stored { size };
        }
        if self.0.flights.lock(key).contains_key(key) {
            return Presence::Filling;
        }
        // It may have been committed between the two looks.
        match self.0.store.size_of(key) {
            Some(size) => Presence::Stored { size },
            None => Presence::Absent,
        }
    }

    /// The blob, if it is stored and its file is open: without a lock and without waiting. `repository` as for `open`.
    pub fn open_at_once(&self, key: &Key, repository: &Repository) -> Option<Blob> {
        match self.0.store.find(key, Some(repository))? {
            Found::Open(blob) => Some(blob),
            Found::Closed => None,
        }
    }

    /// `repository`: where the asker has it from, so that what is pinned is known.
    pub async fn open(&self, key: &Key, repository: &Repository) -> Result<Opened, OpenError> {
        // A file that has vanished is out of the store after one look; the second finds the blob missing.
        loop {
            match self.0.store.find(key, Some(repository)) {
                Some(Found::Open(blob)) => return Ok(Opened::Stored(blob)),
                Some(Found::Closed) => {}
                // Taking stock: only the disk knows.
                None if self.0.store.is_taking_stock() => {}
                None => match self.join(key, repository) {
                    Some(opened) => return Ok(opened),
                    None => continue,
                },
            }
            let (shared, wanted) = (Arc::clone(&self.0), key.clone());
            let asker = repository.clone();
            let blob = self
                .0
                .pool
                .run(Errand::Disk, move || shared.store.open(&wanted, &asker))
                .await??;
            if let Some(blob) = blob {
                return Ok(Opened::Stored(blob));
            }
            if let Some(opened) = self.join(key, repository) {
                return Ok(opened);
            }
        }
    }

    /// Follows the fill, or takes the claim. `None`: the blob has been stored meanwhile.
    fn join(&self, key: &Key, repository: &Repository) -> Option<Opened> {
        let mut shard = self.0.flights.lock(key);
        if let Some(flight) = shard.get(key) {
            let reader = Reader::new(Arc::clone(&self.0), Arc::clone(flight));
            return Some(Opened::Filling(reader));
        }
        // A fill is in the store before it leaves the table.
        if self.0.store.size_of(key).is_some() {
            return None;
        }
        let flight = Flight::new(key.clone(), Some(repository.clone()));
        shard.insert(key.clone(), Arc::clone(&flight));
        Some(Opened::Missing(Fill::new(self.clone(), flight)))
    }

    /// Whether a stored blob is what its name says: computed once for those that were found at the start. What is not
    /// is dropped. For when something speaks against it; it costs reading the blob.
    pub async fn verify(&self, key: &Key) -> Result<bool, PoolError> {
        if self.0.store.is_verified(key) {
            return Ok(true);
        }
        let (shared, key) = (Arc::clone(&self.0), key.clone());
        let verdict = self
            .0
            .pool
            .run(Errand::Commit, move || shared.store.verify(&key))
            .await?;
        Ok(matches!(verdict, Ok(Verdict::Right)))
    }

    /// A blob that was found damaged and removed since this was asked last, and who used it last: fetched again, it costs
    /// nobody a wait. Each is said once.
    pub fn next_damaged(&self) -> Option<(Key, Repository)> {
        self.0.store.healing.next()
    }

    /// Leaves everything as the next process likes to find it. Blocks: for the end.
    pub fn close(&self) {
        self.0.note_all();
        self.0.partials.leave_to_successor();
        self.0.store.close();
    }
}

#[cfg(test)]
mod tests;
