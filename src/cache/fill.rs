//! Filling one blob: reserve, write, hash beside it, verify, release, commit.
//!
//! The hash never stands between receiving and sending: spans that have been written are read back from the
//! page cache and hashed on the pool, one after the other, while the core goes on. Only the held-back tail
//! waits for it.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Cache, Entry, Key, Reader, Shared, Stored,
    disk::Disk,
    flight::{Ending, Flight, Release, Target},
    room,
};
use crate::{
    blocking::{self, Errand, PoolError, Receiver},
    oci::{Digest, Hasher},
    telemetry::metrics::{self, Counter},
};

/// What the hash takes in one errand: long enough to be worth the trip, short enough to keep up.
const HASHED_AT_ONCE: u64 = 4 << 20;
/// How much of it is in memory at a time.
const HASH_BUFFER: usize = 256 << 10;

/// Why no blob came of a fill.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    #[error("the content is not what {digest} names")]
    Mismatch { digest: Digest },
    #[error("{received} bytes came of {size}")]
    WrongSize { received: u64, size: u64 },
    #[error("the cache's disk failed: {0}")]
    Disk(#[source] io::Error),
    #[error(transparent)]
    Busy(#[from] PoolError),
    /// What went wrong on the other side of the fill.
    #[error("{0}")]
    Source(String),
    #[error("the fill was given up by a bug of ours")]
    Dropped,
}

/// The claim to fill a blob: whoever holds it is the only one to fetch it. Dropping it gives it up.
pub struct Fill {
    cache: Cache,
    key: Key,
    flight: Arc<Flight>,
    is_settled: bool,
}

impl Fill {
    pub(super) fn new(cache: Cache, key: Key, flight: Arc<Flight>) -> Self {
        Self {
            cache,
            key,
            flight,
            is_settled: false,
        }
    }

    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.flight))
    }

    /// Gives the claim up; those who wait are told why.
    pub fn release(mut self, why: Release) {
        self.settle(Ending::Released(why));
    }

    /// The attempt failed in a way that would be the same for anybody.
    pub fn fail(mut self, error: FillError) {
        self.settle(Ending::Failed(Arc::new(error)));
    }

    /// Reserves `size` bytes and creates the file. `Err`: there is no room, or no disk; the claim has been given
    /// up with that answer.
    pub async fn begin(mut self, size: u64) -> Result<FillWriter, Release> {
        let reserved = room::on_disk(size);
        let shared = Arc::clone(&self.cache.0);
        let begun = self
            .cache
            .0
            .pool
            .run(Errand::Disk, move || shared.begin_fill(size))
            .await;
        let (path, file) = match begun {
            Ok(Ok(begun)) => begun,
            refused => {
                match refused {
                    Ok(Err(Some(error))) => {
                        tracing::warn!(%error, size, "the cache's disk takes no more; the blob is streamed uncached");
                    }
                    Err(error) => tracing::warn!(%error, "the blob is streamed uncached"),
                    _ => {
                        tracing::debug!(size, "no room in the cache; the blob is streamed uncached")
                    }
                }
                self.settle(Ending::Released(Release::NoRoom));
                return Err(Release::NoRoom);
            }
        };
        let file = Arc::new(file);
        self.flight.begin(Target {
            file: Arc::clone(&file),
            size,
        });
        metrics::add(Counter::BlobFills, 1);
        let hash = HashState::Idle(Box::new(Hasher::new(self.key.digest.algorithm())));
        Ok(FillWriter {
            draft: Draft {
                shared: Arc::clone(&self.cache.0),
                path,
                reserved,
                is_kept: false,
            },
            fill: self,
            file,
            size,
            written: 0,
            handed: 0,
            hash,
        })
    }

    fn settle(&mut self, ending: Ending) {
        if std::mem::replace(&mut self.is_settled, true) {
            return;
        }
        let mut shard = self.cache.0.entries.lock(&self.key);
        if let Some(Entry::Filling(flight)) = shard.get(&self.key)
            && Arc::ptr_eq(flight, &self.flight)
        {
            shard.remove(&self.key);
        }
        drop(shard);
        if let Ending::Failed(error) = &ending {
            metrics::add(Counter::FillsFailed, 1);
            if matches!(**error, FillError::Mismatch { .. }) {
                metrics::add(Counter::BlobMismatches, 1);
            }
        }
        self.flight.end(ending);
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.settle(Ending::Released(Release::AskYourself));
    }
}

/// A file under `fills/` and the bytes reserved for it; both go when it is dropped, unless it was committed.
struct Draft {
    shared: Arc<Shared>,
    path: PathBuf,
    reserved: u64,
    is_kept: bool,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let (path, reserved, shared) = (
            std::mem::take(&mut self.path),
            self.reserved,
            Arc::clone(&self.shared),
        );
        let discard = {
            let (path, shared) = (path.clone(), Arc::clone(&shared));
            move || {
                Disk::discard_fill(&path);
                shared.room.give_back(reserved);
            }
        };
        if shared.pool.send(Errand::Disk, discard).is_err() {
            // Better a core that waits for one unlink than bytes that nobody gives back.
            Disk::discard_fill(&path);
            shared.room.give_back(reserved);
        }
    }
}

enum HashState {
    Idle(Box<Hasher>),
    Running(Receiver<io::Result<Box<Hasher>>>),
}

/// Writes one blob, in order.
pub struct FillWriter {
    fill: Fill,
    draft: Draft,
    file: Arc<File>,
    size: u64,
    written: u64,
    /// Bytes given to the hash so far.
    handed: u64,
    hash: HashState,
}

impl FillWriter {
    pub fn reader(&self) -> Reader {
        self.fill.reader()
    }

    /// Whether anybody follows.
    pub fn is_followed(&self) -> bool {
        self.fill.flight.is_followed()
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Into the page cache, and from there to whoever follows.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), FillError> {
        let received = self.written + piece.len() as u64;
        if received > self.size {
            return Err(FillError::WrongSize {
                received,
                size: self.size,
            });
        }
        self.file
            .write_all_at(piece, self.written)
            .map_err(FillError::Disk)?;
        self.written = received;
        self.fill.flight.publish(self.written);
        if self.written - self.handed >= HASHED_AT_ONCE {
            self.hand_over().await?;
        }
        Ok(())
    }

    /// Gives what has been written to the hash, once it is through with what it had.
    async fn hand_over(&mut self) -> Result<(), FillError> {
        let hasher = self.hasher().await?;
        let span = self.handed..self.written;
        self.handed = self.written;
        let (sender, receiver) = blocking::oneshot();
        let file = Arc::clone(&self.file);
        self.fill.cache.0.pool.send(Errand::Hash, move || {
            sender.send(hash_span(hasher, &file, span))
        })?;
        self.hash = HashState::Running(receiver);
        Ok(())
    }

    /// The hasher, when it has taken all that was handed to it.
    async fn hasher(&mut self) -> Result<Box<Hasher>, FillError> {
        let nothing = HashState::Idle(Box::new(Hasher::new(self.fill.key.digest.algorithm())));
        let state = std::mem::replace(&mut self.hash, nothing);
        match state {
            HashState::Idle(hasher) => Ok(hasher),
            HashState::Running(receiver) => match receiver.receive().await {
                Some(hashed) => hashed.map_err(FillError::Disk),
                None => Err(FillError::Dropped),
            },
        }
    }

    /// Verifies, releases the tail to the followers, and commits.
    pub async fn finish(mut self) {
        match self.verify().await {
            Ok(()) => self.commit().await,
            Err(error) => self.fail(error),
        }
    }

    async fn verify(&mut self) -> Result<(), FillError> {
        if self.written != self.size {
            return Err(FillError::WrongSize {
                received: self.written,
                size: self.size,
            });
        }
        self.hand_over().await?;
        let digest = self.hasher().await?.finish();
        if digest == self.fill.key.digest {
            Ok(())
        } else {
            Err(FillError::Mismatch {
                digest: self.fill.key.digest,
            })
        }
    }

    pub fn fail(mut self, error: FillError) {
        tracing::warn!(digest = %self.fill.key.digest, %error, "a blob could not be cached");
        self.fill.settle(Ending::Failed(Arc::new(error)));
    }

    /// The digest has matched: followers get the rest at once, the disk takes its time.
    async fn commit(self) {
        let Self {
            mut fill,
            draft,
            file,
            size,
            ..
        } = self;
        fill.flight.end(Ending::Complete);
        let (shared, key) = (Arc::clone(&fill.cache.0), fill.key.clone());
        let digest = key.digest;
        let committed = fill.cache.0.pool.run(Errand::Commit, move || {
            let mut draft = draft;
            let committed = shared.commit(&draft.path, file, size, &key);
            draft.is_kept = committed.is_ok();
            committed
        });
        match committed.await {
            // The entry says `Stored` by now; there is no claim left to settle.
            Ok(Ok(())) => fill.is_settled = true,
            Ok(Err(error)) => {
                tracing::warn!(%digest, %error, "a blob was served but could not be kept")
            }
            Err(error) => {
                tracing::warn!(%digest, %error, "a blob was served but could not be kept")
            }
        }
    }
}

impl Shared {
    /// `Err(None)`: no room.
    fn begin_fill(&self, size: u64) -> Result<(PathBuf, File), Option<io::Error>> {
        let reserved = room::on_disk(size);
        if !self.room.could_hold(reserved) {
            return Err(None);
        }
        if !self.room.try_take(reserved) {
            self.evict(reserved);
            if !self.room.try_take(reserved) {
                return Err(None);
            }
        }
        self.disk.create_fill(size).map_err(|error| {
            self.room.give_back(reserved);
            Some(error)
        })
    }

    fn commit(&self, path: &Path, file: Arc<File>, size: u64, key: &Key) -> io::Result<()> {
        self.disk.commit(path, &file, key)?;
        let stored = Stored {
            size,
            last_use: self.uses.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            opened: Arc::downgrade(&file),
            file: Some(file),
            is_verified: true,
        };
        self.entries
            .lock(key)
            .insert(key.clone(), Entry::Stored(stored));
        self.remember_open(key.clone());
        Ok(())
    }
}

pub(super) fn hash_span(
    mut hasher: Box<Hasher>,
    file: &File,
    span: Range<u64>,
) -> io::Result<Box<Hasher>> {
    let mut buffer = vec![0; HASH_BUFFER];
    let mut offset = span.start;
    while offset < span.end {
        let wanted =
            usize::try_from(span.end - offset).map_or(HASH_BUFFER, |left| left.min(HASH_BUFFER));
        let piece = buffer.get_mut(..wanted).unwrap_or_default();
        file.read_exact_at(piece, offset)?;
        hasher.update(piece);
        offset += piece.len() as u64;
    }
    Ok(hasher)
}
