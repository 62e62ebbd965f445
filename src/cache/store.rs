//! The stored blobs.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use super::budget::Reservation;
use super::{Blob, Key, Options};
use crate::{
    blocking::Pool,
    oci::{Registry, Repository},
};

pub struct Store;

/// A stored blob, as far as a core can have it without waiting.
pub enum Found {
    Open(Blob),
    /// Its file is to be opened on the pool: `Store::open`.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Right,
    /// Its content was not what its name says; it has been removed.
    Damaged,
    Absent,
}

/// A stored blob, for people.
#[derive(Clone, Debug)]
pub struct Listed {
    pub key: Key,
    pub size: u64,
    /// Seconds since 1970.
    pub last_use: u64,
    /// Uses since it was last looked at for eviction, 3 at most.
    pub frequency: u8,
    pub is_pinned: bool,
    pub is_verified: bool,
}

#[derive(Clone, Debug)]
pub struct Usage {
    pub max_bytes: u64,
    /// Blobs, and what is reserved.
    pub used_bytes: u64,
    /// Reserved by fills, written or not.
    pub reserved_bytes: u64,
    pub pinned_bytes: u64,
    pub blob_count: u64,
    pub registries: Vec<RegistryUsage>,
    /// What the file system has left for us.
    pub free_bytes: u64,
}

#[derive(Clone, Debug)]
pub struct RegistryUsage {
    pub registry: Registry,
    pub bytes: u64,
    pub blob_count: u64,
}

/// A repository whose blobs are not evicted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin {
    pub registry: Registry,
    pub repository: Repository,
}

#[allow(unused_variables)]
impl Store {
    /// Creates the folders, takes the lock, and opens the index. Blocks: for start-up.
    pub fn load(directory: PathBuf, options: &Options, pool: Arc<Pool>) -> io::Result<Arc<Self>> {
        unimplemented!()
    }

    // On cores: no lock, no system call.

    /// Counts as a use. `repository` is who uses it: what is pinned is known by it.
    pub fn find(&self, key: &Key, repository: Option<&Repository>) -> Option<Found> {
        unimplemented!()
    }
    /// Does not count as a use.
    pub fn size_of(&self, key: &Key) -> Option<u64> {
        unimplemented!()
    }
    pub fn is_verified(&self, key: &Key) -> bool {
        unimplemented!()
    }
    /// The files are being listed: what is not found may be there all the same (`open` knows), and nothing can be reserved.
    pub fn is_taking_stock(&self) -> bool {
        unimplemented!()
    }
    pub fn used_bytes(&self) -> u64 {
        unimplemented!()
    }
    pub fn max_bytes(&self) -> u64 {
        unimplemented!()
    }
    pub fn blob_count(&self) -> u64 {
        unimplemented!()
    }

    // On the pool.

    /// `None`: there is no such blob (any more). An error: the disk, or too many open files; the blob may be good.
    pub fn open(&self, key: &Key) -> io::Result<Option<Blob>> {
        unimplemented!()
    }
    /// Room for `bytes` more, without removing anything.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        unimplemented!()
    }
    /// Room for `bytes` more; other blobs make it, if that is enough.
    pub fn reserve(&self, bytes: u64) -> Option<Reservation> {
        unimplemented!()
    }
    /// As `Reservation::grow`, but other blobs make room.
    pub fn grow(&self, reservation: &mut Reservation, bytes: u64) -> bool {
        unimplemented!()
    }
    /// Counts what is on disk already: a partial download that survived a restart.
    pub fn count_existing(&self, bytes: u64) -> Reservation {
        unimplemented!()
    }
    /// Syncs the file and gives it its name. The file stays open for readers. On an error the file is still at `path`,
    /// and no longer counted.
    pub fn commit(
        &self,
        key: &Key,
        repository: Option<&Repository>,
        path: &Path,
        file: Arc<File>,
        size: u64,
        reservation: Reservation,
    ) -> io::Result<()> {
        unimplemented!()
    }
    /// Reads and hashes a blob; what is damaged is removed at once.
    pub fn verify(&self, key: &Key) -> io::Result<Verdict> {
        unimplemented!()
    }
    pub fn remove(&self, key: &Key) -> bool {
        unimplemented!()
    }
    /// The disk was full although bytes were reserved: somebody else fills it. Evicts a part.
    pub fn note_full_disk(&self) {
        unimplemented!()
    }
    /// Called with each blob that was found damaged and removed.
    pub fn when_damaged(&self, notify: impl Fn(&Key) + Send + Sync + 'static) {
        unimplemented!()
    }

    // For people, on the pool.

    pub fn list(&self) -> Vec<Listed> {
        unimplemented!()
    }
    pub fn usage(&self) -> Usage {
        unimplemented!()
    }
    /// Evicts down to `target` bytes, or to the low watermark; says what went, or would go.
    pub fn gc(&self, target: Option<u64>, mode: GcMode) -> Vec<Listed> {
        unimplemented!()
    }
    /// How many stored blobs it protects.
    pub fn pin(&self, pin: &Pin) -> io::Result<usize> {
        unimplemented!()
    }
    /// How many stored blobs it protected; `None` if it was not pinned.
    pub fn unpin(&self, pin: &Pin) -> io::Result<Option<usize>> {
        unimplemented!()
    }
    pub fn pins(&self) -> Vec<Pin> {
        unimplemented!()
    }
    /// All is on disk, and the next start may trust the index as it is. Nothing may be stored afterwards.
    pub fn close(&self) {
        unimplemented!()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GcMode {
    Evict,
    DryRun,
}
