//! One fill in progress, seen from every core: its file, how far it is, how it ended, and who waits for more.
//!
//! Which part is whose is decided in `progress.rs`; here it is behind a lock that is held for that decision only, and
//! whoever waits is woken. Waking follows the rules of `blocking.rs`: who publishes takes the wakers out and wakes
//! them outside the lock; a reader that gives up removes its own on its own thread.
//!
//! ```text
//! Claimed ──begin(file, size)──▶ Running ──wrote…──▶ all written ──digest matched──▶ Ended(Complete)
//!    └──────────────release / fail──┴─────────────────────┴────────────▶ Ended(Released | Failed)
//! ```

use std::{
    fs::File,
    future::poll_fn,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering, fence},
    },
    task::{Poll, Waker},
};

use super::{
    Key,
    extents::Extents,
    fill::{FillError, Run},
    hash_line::HashLine,
    partial::Draft,
    progress::{Course, FollowerId, Progress, RunId, Step},
};
use crate::{blocking::lock, oci::Repository};

/// Why a claim or a fill was given up in a way that says nothing about the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The claimant was refused, or redirected, or went away: the next one asks for himself.
    AskYourself,
    /// There is no room for it: stream it without the cache.
    NoRoom,
}

/// How a flight ended.
#[derive(Clone, Debug)]
pub enum Ending {
    /// Every byte is there and the digest has matched.
    Complete,
    Released(Release),
    Failed(Arc<FillError>),
}

pub(super) struct Flight {
    pub(super) key: Key,
    /// The one that it was first wanted from.
    repository: Option<Repository>,
    /// Known once the upstream has answered.
    file: OnceLock<Arc<File>>,
    progress: Mutex<Progress>,
    /// A copy of the progress' own, so that who reads in order seldom needs the lock. Only grows.
    released_prefix: AtomicU64,
    pub(super) hash: HashLine,
    ending: OnceLock<Ending>,
    /// The file's name and the room for it. Whoever ends the flight takes it.
    draft: Mutex<Option<Draft>>,
    /// For `tend.rs`: how many bytes the next process would find, and for how many rounds nobody was here.
    pub(super) noted: AtomicU64,
    pub(super) idle_rounds: AtomicUsize,
    /// How many wait, so that publishing to nobody takes no lock.
    waiting: AtomicUsize,
    waiters: Mutex<Waiters>,
}

#[derive(Default)]
struct Waiters {
    next: u64,
    wakers: Vec<(u64, Waker)>,
}

impl Flight {
    pub(super) fn new(key: Key, repository: Option<Repository>) -> Arc<Self> {
        Arc::new(Self {
            repository,
            hash: HashLine::new(key.digest.algorithm()),
            key,
            file: OnceLock::new(),
            progress: Mutex::new(Progress::default()),
            released_prefix: AtomicU64::new(0),
            ending: OnceLock::new(),
            draft: Mutex::default(),
            noted: AtomicU64::new(0),
            idle_rounds: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            waiters: Mutex::default(),
        })
    }

    /// Gives the one who has begun the first part that is missing of what he wants: before anybody else hears that there is
    /// something to follow, or two would fetch it.
    pub(super) fn begin(
        &self,
        draft: Draft,
        size: Option<u64>,
        kept: Extents,
        wanted: &Range<u64>,
        finish_above: impl FnOnce(u64) -> u64,
    ) -> Option<RunId> {
        let file = Arc::clone(draft.file());
        *lock(&self.draft) = Some(draft);
        let run = {
            let mut progress = self.progress();
            progress.begin(size, kept, finish_above);
            self.publish(&progress);
            progress.first_run(wanted)
        };
        if self.file.set(file).is_err() {
            unreachable!("a fill begins once");
        }
        self.wake();
        run
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    pub(super) fn file(&self) -> Option<&Arc<File>> {
        self.file.get()
    }

    pub(super) fn repository(&self) -> Option<&Repository> {
        self.repository.as_ref()
    }

    pub(super) fn draft(&self) -> MutexGuard<'_, Option<Draft>> {
        lock(&self.draft)
    }

    pub(super) fn ending(&self) -> Option<&Ending> {
        self.ending.get()
    }

    pub(super) fn has_begun(&self) -> bool {
        self.file.get().is_some()
    }

    /// A run's bytes are in the file; says how it goes on.
    pub(super) fn wrote(&self, run: RunId, range: Range<u64>) -> Course {
        let course = {
            let mut progress = self.progress();
            progress.wrote(range);
            self.publish(&progress);
            progress.course(run)
        };
        self.wake();
        course
    }

    pub(super) fn end_run(&self, run: RunId) {
        self.progress().end_run(run);
        // What it did not fetch is somebody else's to fetch.
        self.wake();
    }

    /// Once: whoever holds the draft, or the claim before there is one, decides how.
    pub(super) fn end(&self, ending: Ending) {
        if matches!(ending, Ending::Complete) {
            let mut progress = self.progress();
            progress.verified();
            self.publish(&progress);
        }
        let _ = self.ending.set(ending);
        self.wake();
    }

    fn publish(&self, progress: &Progress) {
        // SeqCst against `waiting`: either we see the reader that waits, or it sees this value when it looks again.
        self.released_prefix
            .fetch_max(progress.released_prefix(), Ordering::SeqCst);
    }

    pub(super) fn wake(&self) {
        // What was published must be seen by a reader whose waiting is not seen here.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let wakers = {
            let mut waiters = lock(&self.waiters);
            self.waiting.store(0, Ordering::SeqCst);
            std::mem::take(&mut waiters.wakers)
        };
        for (_, waker) in wakers {
            waker.wake();
        }
    }

    /// Waits until `look` sees what it wants.
    pub(super) async fn wait_for<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let mut place = Place {
            flight: self,
            ticket: None,
        };
        poll_fn(move |context| {
            place.leave();
            if let Some(seen) = look(place.flight) {
                return Poll::Ready(seen);
            }
            place.enter(context.waker());
            // What was published before we were in the list woke nobody.
            match look(place.flight) {
                Some(seen) => {
                    place.leave();
                    Poll::Ready(seen)
                }
                None => Poll::Pending,
            }
        })
        .await
    }
}

/// A reader's place in the list of waiters. Dropping it on the reader's own thread takes the waker out.
struct Place<'a> {
    flight: &'a Flight,
    ticket: Option<u64>,
}

impl Place<'_> {
    fn enter(&mut self, waker: &Waker) {
        let mut waiters = lock(&self.flight.waiters);
        let ticket = waiters.next;
        waiters.next += 1;
        waiters.wakers.push((ticket, waker.clone()));
        self.flight
            .waiting
            .store(waiters.wakers.len(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.ticket = Some(ticket);
    }

    fn leave(&mut self) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let waker = {
            let mut waiters = lock(&self.flight.waiters);
            let position = waiters
                .wakers
                .iter()
                .position(|(other, _)| *other == ticket);
            let waker = position.map(|position| waiters.wakers.swap_remove(position));
            self.flight
                .waiting
                .store(waiters.wakers.len(), Ordering::SeqCst);
            waker
        };
        drop(waker);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// What a reader finds at its position.
pub enum Next {
    /// Everything up to there may be read from the file.
    Ready(u64),
    /// Nobody fetches it: it is the reader's to see to that.
    Fetch(Run),
}

/// Follows a fill. What it wants is fetched for as long as it lives.
pub struct Reader {
    flight: Arc<Flight>,
    shared: Arc<super::Shared>,
    id: FollowerId,
}

impl Reader {
    /// Of the whole blob, until it says what it wants.
    pub(super) fn new(shared: Arc<super::Shared>, flight: Arc<Flight>) -> Self {
        let id = flight.progress().follow(0..u64::MAX);
        Self { flight, shared, id }
    }

    /// One more of the same blob, for another part.
    pub fn another(&self, part: Range<u64>) -> Self {
        let reader = Self::new(Arc::clone(&self.shared), Arc::clone(&self.flight));
        reader.want(part);
        reader
    }

    pub fn want(&self, part: Range<u64>) {
        self.flight.progress().want(self.id, part);
    }

    /// Waits until the registry has said how large the blob is (`None`: its end will show it), or the fill has ended
    /// before that.
    pub async fn size(&self) -> Result<Option<u64>, Ending> {
        self.flight
            .wait_for(|flight| match (flight.file.get(), flight.ending.get()) {
                (Some(_), _) => Some(Ok(flight.progress().size())),
                (None, Some(ending)) => Some(Err(ending.clone())),
                (None, None) => None,
            })
            .await
    }

    /// Waits until more than `position` bytes may be read, or somebody has to fetch them.
    pub async fn next(&self, position: u64) -> Result<Next, Ending> {
        self.flight
            .wait_for(|flight| {
                let released = flight.released_prefix.load(Ordering::SeqCst);
                if released > position {
                    return Some(Ok(Next::Ready(released)));
                }
                match flight.ending.get() {
                    Some(Ending::Complete) => {
                        return Some(Ok(Next::Ready(flight.progress().released_prefix())));
                    }
                    Some(other) => return Some(Err(other.clone())),
                    None => {}
                }
                match flight.progress().step(self.id, position) {
                    Step::Ready(end) => Some(Ok(Next::Ready(end))),
                    Step::Wait => None,
                    Step::Claim(run) => Some(Ok(Next::Fetch(Run::new(
                        Arc::clone(&self.shared),
                        Arc::clone(&self.flight),
                        run,
                    )))),
                }
            })
            .await
    }

    /// The run that somebody has to make, if nobody brings what the reader wants first. It is the reader's then.
    pub fn claim(&self, position: u64) -> Option<Run> {
        if self.flight.ending.get().is_some() {
            return None;
        }
        match self.flight.progress().step(self.id, position) {
            Step::Claim(run) => Some(Run::new(
                Arc::clone(&self.shared),
                Arc::clone(&self.flight),
                run,
            )),
            Step::Ready(_) | Step::Wait => None,
        }
    }

    /// Whether `next` would answer at once, with bytes.
    pub fn has_past(&self, position: u64) -> bool {
        self.flight.released_prefix.load(Ordering::SeqCst) > position
            || self.flight.progress().is_released(position)
    }

    /// Waits until the fill is over.
    pub async fn ended(&self) -> Ending {
        self.flight
            .wait_for(|flight| flight.ending.get().cloned())
            .await
    }

    /// The growing file, once the size is known.
    pub fn file(&self) -> Option<&Arc<File>> {
        self.flight.file()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.flight.progress().leave(self.id);
        // A run may have lost the last one who wanted its bytes.
        self.flight.wake();
    }
}
