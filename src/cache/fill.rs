//! Filling one blob: claim, reserve, write, verify, release, commit.
//!
//! Whoever finds a blob missing holds the *claim*, and asks the registry. From its answer on there is a file that grows:
//! *runs* write into it, on the pool, and wake those who follow as soon as bytes are there. The digest is computed behind
//! them (`hash_line.rs`). Whichever run writes the last byte waits for it and commits the blob.

use std::{io, ops::Range, os::unix::fs::FileExt as _, sync::Arc};

use super::{
    Cache, Key, Shared,
    budget::Reservation,
    extents::Extents,
    flight::{Ending, Flight, Reader, Release},
    hash_line,
    partial::{self, Draft, Partial},
    progress::{Course, RunId},
};
use crate::{
    blocking::{self, Errand, PoolError, Receiver},
    oci::{Digest, Repository},
    telemetry::metrics::{self, Counter},
};

/// What a fill of unknown size takes from the budget at a time.
const GROWTH: u64 = 8 << 20;

/// How much of the disk a run claims at a time. A large file in one piece would keep the first byte waiting.
const CLAIMED_AHEAD: u64 = 64 << 20;

/// Why no blob came of a fill.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    #[error("the content is not what {digest} names")]
    Mismatch { digest: Digest },
    #[error("{received} bytes came of {size}")]
    WrongSize { received: u64, size: u64 },
    #[error("there is no room for more of it")]
    NoRoom,
    #[error("the cache's disk is full: {0}")]
    DiskFull(#[source] io::Error),
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

impl FillError {
    fn of_write(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::DiskFull(error),
            _ => Self::Disk(error),
        }
    }

    /// The blob may be good and its registry too, so it is streamed past the cache.
    fn is_ours(&self) -> bool {
        match self {
            Self::NoRoom | Self::DiskFull(_) | Self::Disk(_) | Self::Busy(_) | Self::Dropped => {
                true
            }
            Self::Mismatch { .. } | Self::WrongSize { .. } | Self::Source(_) => false,
        }
    }
}

/// The claim to fill a blob: whoever holds it is the only one to fetch it. Dropping it gives it up.
pub struct Fill {
    cache: Cache,
    flight: Arc<Flight>,
    is_settled: bool,
}

/// A fill that has begun.
pub struct Begun {
    pub reader: Reader,
    /// The first part that is missing of what the reader wants, to be fetched by whoever has begun.
    pub run: Option<Run>,
}

impl Fill {
    pub(super) fn new(cache: Cache, flight: Arc<Flight>) -> Self {
        Self {
            cache,
            flight,
            is_settled: false,
        }
    }

    /// The size of the blob and what there is of it, if an earlier fill stopped half-way.
    pub fn kept(&self) -> Option<(u64, Extents)> {
        self.cache.0.partials.peek(&self.flight.key)
    }

    /// Bytes of it were given out and are forgotten: it is to be fetched as a whole.
    pub fn is_doubtful(&self) -> bool {
        self.cache.0.doubts.has(&self.flight.key)
    }

    /// Something speaks against what is about to come: nothing of it is released before it is verified.
    pub fn doubt(&self) {
        self.flight.progress().seal();
    }

    /// Gives the claim up; those who wait are told why.
    pub fn release(mut self, why: Release) {
        self.settle(Ending::Released(why));
    }

    /// The attempt failed in a way that would be the same for anybody.
    pub fn fail(mut self, error: FillError) {
        self.settle(Ending::Failed(Arc::new(error)));
    }

    /// Reserves room and opens the file: a new one, or the one that an earlier fill has left. `Err`: there is no room, or
    /// no disk; the claim has been given up with that answer.
    pub async fn begin(mut self, size: Option<u64>, wanted: Range<u64>) -> Result<Begun, Release> {
        let shared = Arc::clone(&self.cache.0);
        let key = self.flight.key.clone();
        let begun = self
            .cache
            .0
            .pool
            .run(Errand::Disk, move || shared.begin_fill(&key, size))
            .await;
        let (draft, kept) = match begun {
            Ok(Ok(begun)) => begun,
            refused => {
                match refused {
                    Ok(Err(FillError::NoRoom)) | Ok(Ok(_)) => {
                        tracing::debug!(
                            size,
                            "no room in the cache; the blob is streamed uncached"
                        );
                    }
                    Ok(Err(error)) => {
                        if let FillError::DiskFull(_) = &error {
                            self.cache.0.note_full_disk();
                        }
                        tracing::warn!(%error, size, "the cache's disk takes no more; the blob is streamed uncached");
                    }
                    Err(error) => tracing::warn!(%error, "the blob is streamed uncached"),
                }
                self.settle(Ending::Released(Release::NoRoom));
                return Err(Release::NoRoom);
            }
        };
        self.is_settled = true;
        metrics::add(Counter::BlobFills, 1);
        let reader = Reader::new(Arc::clone(&self.cache.0), Arc::clone(&self.flight));
        reader.want(wanted.clone());
        if self.is_doubtful() {
            self.doubt();
        }
        let share = self.cache.0.finish_fill_above;
        let run = self
            .flight
            .begin(draft, size, kept, &wanted, |size| share.of(size))
            .map(|run| Run::new(Arc::clone(&self.cache.0), Arc::clone(&self.flight), run));
        Ok(Begun { reader, run })
    }

    fn settle(&mut self, ending: Ending) {
        if std::mem::replace(&mut self.is_settled, true) {
            return;
        }
        self.cache.0.end(&self.flight, ending);
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.settle(Ending::Released(Release::AskYourself));
    }
}

/// The right and the duty to fetch a part of a blob. Dropping it leaves the part to whoever wants it.
pub struct Run {
    shared: Arc<Shared>,
    flight: Arc<Flight>,
    id: RunId,
    /// Up to there the disk has been claimed.
    claimed_disk: u64,
}

/// A write on its way.
pub struct Writing(Receiver<Result<(Vec<u8>, Course), FillError>>);

impl Writing {
    /// The buffer again, and how the run goes on.
    pub async fn done(self) -> Result<(Vec<u8>, Course), FillError> {
        self.0.receive().await.unwrap_or(Err(FillError::Dropped))
    }
}

impl Run {
    pub(super) fn new(shared: Arc<Shared>, flight: Arc<Flight>, id: RunId) -> Self {
        Self {
            shared,
            flight,
            id,
            claimed_disk: 0,
        }
    }

    pub fn size(&self) -> Option<u64> {
        self.flight.progress().size()
    }

    /// What is to be fetched, from where the run stands. It may become shorter.
    pub fn part(&self) -> Range<u64> {
        self.flight.progress().part(self.id)
    }

    pub fn is_divisible(&self) -> bool {
        self.flight.progress().is_divisible()
    }

    /// Nothing is released before all of it is verified.
    pub fn is_sealed(&self) -> bool {
        self.flight.progress().is_sealed()
    }

    /// The registry sent something else than the part that it was asked for.
    pub fn cannot_be_divided(&self) -> Course {
        let course = self.flight.progress().cannot_be_divided(self.id);
        self.flight.wake();
        course
    }

    /// Takes the bytes of `piece` behind `skip` to the disk and to whoever follows, as far as they are the run's; says how
    /// many are. One at a time.
    pub fn write(&mut self, piece: Vec<u8>, skip: usize) -> Result<(Writing, u64), FillError> {
        let available = piece.len().saturating_sub(skip) as u64;
        let (range, part) = {
            let mut progress = self.flight.progress();
            let range = progress.claim(self.id, available);
            (range, progress.part(self.id))
        };
        let count = range.end - range.start;
        let ahead = if range.end >= self.claimed_disk && part.end != u64::MAX {
            self.claimed_disk = part.end.min(range.end.saturating_add(CLAIMED_AHEAD));
            range.end..self.claimed_disk
        } else {
            0..0
        };
        let (sender, receiver) = blocking::oneshot();
        let (shared, flight, id) = (Arc::clone(&self.shared), Arc::clone(&self.flight), self.id);
        self.shared.pool.send(Errand::Write, move || {
            sender.send(shared.write(&flight, id, piece, skip, range, ahead));
        })?;
        Ok((Writing(receiver), count))
    }

    /// How it goes on after the registry has sent all that it wants to send.
    pub fn course(&self) -> Course {
        self.flight.progress().course(self.id)
    }

    /// Waits until nobody wants what the run fetches, or the fill is over.
    pub async fn unwanted(&self) {
        self.flight
            .wait_for(|flight| {
                let is_wanted =
                    flight.ending().is_none() && flight.progress().is_run_wanted(self.id);
                (!is_wanted).then_some(())
            })
            .await;
    }

    /// The registry's connection ended, and with it a blob whose size nobody had said.
    pub fn learn_size(&self, size: u64) {
        self.flight.progress().learn_size(size);
        self.flight.wake();
    }

    /// Every byte is written: verifies, releases the rest to the followers, and commits.
    pub async fn finish(self) {
        match self.verify().await {
            Ok(()) => self.commit().await,
            Err(error) => self.fail(error),
        }
    }

    async fn verify(&self) -> Result<(), FillError> {
        hash_line::advance(&self.flight, &self.shared.pool)?;
        let outcome = self
            .flight
            .wait_for(|flight| {
                let ended = flight.ending().map(|_| Err(FillError::Dropped));
                let hashed = flight.hash.outcome();
                hashed
                    .map(|outcome| outcome.map_err(|error| FillError::Disk(copy(&error))))
                    .or(ended)
            })
            .await;
        let digest = self.flight.key.digest;
        if outcome? == digest {
            Ok(())
        } else {
            Err(FillError::Mismatch { digest })
        }
    }

    pub fn fail(self, error: FillError) {
        // Whoever has the draft decides how it ends.
        let Some(draft) = self.flight.draft().take() else {
            return;
        };
        let digest = self.flight.key.digest;
        tracing::warn!(%digest, %error, "a blob could not be cached");
        metrics::add(Counter::FillsFailed, 1);
        match &error {
            FillError::Mismatch { .. } => metrics::add(Counter::BlobMismatches, 1),
            FillError::DiskFull(_) => self.shared.note_full_disk(),
            _ => {}
        }
        let is_worth_keeping = matches!(error, FillError::Source(_));
        let ending = if error.is_ours() {
            Ending::Released(Release::NoRoom)
        } else {
            Ending::Failed(Arc::new(error))
        };
        self.flight.progress().end_run(self.id);
        let (shared, flight) = (Arc::clone(&self.shared), Arc::clone(&self.flight));
        let last_words = ending.clone();
        let put_away = move || {
            if is_worth_keeping {
                shared.keep(&flight, draft);
            } else {
                shared.doubts.add(&flight.key, flight.progress().size());
                drop(draft);
            }
            // Now, so that the next one who asks finds what was kept.
            shared.end(&flight, ending);
        };
        if self.shared.pool.send(Errand::Disk, put_away).is_err() {
            self.shared.end(&self.flight, last_words);
        }
    }

    /// The digest has matched: followers get the rest at once, the disk takes its time.
    async fn commit(self) {
        let Some(draft) = self.flight.draft().take() else {
            return;
        };
        self.flight.end(Ending::Complete);
        let (shared, flight) = (Arc::clone(&self.shared), Arc::clone(&self.flight));
        let committed = self
            .shared
            .pool
            .run(Errand::Commit, move || shared.commit(&flight, draft))
            .await;
        let digest = self.flight.key.digest;
        let problem = match committed {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        self.shared.doubts.clear(&self.flight.key);
        // Whoever asks from now on finds it in the store, or nowhere.
        self.shared.forget(&self.flight);
        if let Some(problem) = problem {
            tracing::warn!(%digest, %problem, "a blob was served but could not be kept");
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.flight.end_run(self.id);
    }
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error.kind().into(),
    }
}

impl Shared {
    fn begin_fill(&self, key: &Key, size: Option<u64>) -> Result<(Draft, Extents), FillError> {
        let room = partial::room_for(size.unwrap_or(GROWTH));
        let kept = self
            .partials
            .take(key)
            .filter(|kept| Some(kept.size) == size)
            .map(Partial::into_parts);
        if let Some((mut draft, _, extents)) = kept {
            metrics::add(Counter::FillsResumed, 1);
            if let Some(reservation) = draft.reservation() {
                let more = room.saturating_sub(reservation.bytes());
                if !self.store.grow(reservation, more) {
                    return Err(FillError::NoRoom);
                }
            }
            return Ok((draft, extents));
        }
        let reservation = self.reserve(room).ok_or(FillError::NoRoom)?;
        let draft = self
            .partials
            .create(reservation)
            .map_err(FillError::of_write)?;
        Ok((draft, Extents::default()))
    }

    /// Downloads that nobody goes on with make room before any blob does.
    fn reserve(&self, bytes: u64) -> Option<Reservation> {
        if let Some(reservation) = self.store.try_reserve(bytes) {
            return Some(reservation);
        }
        self.put_idle_away();
        let (_, idle) = self.partials.usage();
        if !self.store.could_fit(bytes, idle) {
            return None;
        }
        loop {
            if let Some(reservation) = self.store.try_reserve(bytes) {
                return Some(reservation);
            }
            if !self.partials.drop_oldest() {
                return self.store.reserve(bytes);
            }
        }
    }

    fn write(
        &self,
        flight: &Arc<Flight>,
        run: RunId,
        piece: Vec<u8>,
        skip: usize,
        range: Range<u64>,
        ahead: Range<u64>,
    ) -> Result<(Vec<u8>, Course), FillError> {
        if flight.ending().is_some() {
            return Ok((piece, Course::Done));
        }
        let file = flight.file().ok_or(FillError::Dropped)?;
        if flight.progress().size().is_none() {
            self.grow(flight, range.end)?;
        }
        let count = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let bytes = piece
            .get(skip..skip.saturating_add(count))
            .ok_or(FillError::Dropped)?;
        file.write_all_at(bytes, range.start)
            .map_err(FillError::of_write)?;
        let course = flight.wrote(run, range);
        hash_line::advance(flight, &self.pool)?;
        // Behind the bytes: claiming the disk takes its time, and followers wait for them.
        partial::preallocate(file, ahead).map_err(FillError::of_write)?;
        Ok((piece, course))
    }

    /// Room for a blob of unknown size, as it comes.
    fn grow(&self, flight: &Flight, end: u64) -> Result<(), FillError> {
        let mut draft = flight.draft();
        let reservation = draft.as_mut().and_then(Draft::reservation);
        let reservation = reservation.ok_or(FillError::Dropped)?;
        if end > reservation.bytes()
            && !self
                .store
                .grow(reservation, GROWTH.max(end - reservation.bytes()))
        {
            return Err(FillError::NoRoom);
        }
        Ok(())
    }

    fn commit(&self, flight: &Flight, draft: Draft) -> io::Result<()> {
        let (file, path) = (Arc::clone(draft.file()), draft.path().to_owned());
        let size = flight.progress().size().unwrap_or(0);
        let repository: Option<&Repository> = flight.repository();
        let Some(reservation) = draft.hand_over() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let committed = self
            .store
            .commit(&flight.key, repository, &path, file, size, reservation);
        if committed.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        committed
    }

    /// Leaves what there is of a blob to the next attempt, unless some run may still write into the file.
    pub(super) fn keep(&self, flight: &Flight, draft: Draft) {
        let (size, extents, has_runs) = {
            let progress = flight.progress();
            (
                progress.size(),
                progress.written().clone(),
                progress.has_runs(),
            )
        };
        if let Some(size) = size
            && !has_runs
        {
            self.partials.keep(flight.key.clone(), draft, size, extents);
        }
    }

    /// Who is told of the end and asks again finds no trace of the flight.
    fn end(&self, flight: &Arc<Flight>, ending: Ending) {
        self.forget(flight);
        flight.end(ending);
    }

    fn forget(&self, flight: &Arc<Flight>) {
        let mut shard = self.flights.lock(&flight.key);
        if shard
            .get(&flight.key)
            .is_some_and(|other| Arc::ptr_eq(other, flight))
        {
            shard.remove(&flight.key);
        }
    }

    fn note_full_disk(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        let _ = self
            .pool
            .send(Errand::Disk, move || shared.store.note_full_disk());
    }
}
