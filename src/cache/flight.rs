//! One fill in progress, seen from every core: how far it is, how it ended, and who waits for more.
//!
//! The writer publishes, readers on any core wait. Waking follows the rules of `blocking.rs`: the writer takes
//! wakers out and wakes them outside the lock; a reader that gives up removes its own on its own thread.
//!
//! ```text
//! Claimed ──begin(size, file)──▶ Running ──publish(n)──▶ Running ──finish──▶ Ended(Complete)
//!    └──────────────release / fail──┴────────────────────────────────────▶ Ended(Released | Failed)
//! ```

use std::{
    fs::File,
    future::poll_fn,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering, fence},
    },
    task::{Poll, Waker},
};

use super::fill::FillError;
use crate::blocking::lock;

/// Bytes at the end of a blob that no reader gets before the digest has matched. Whoever lacks them has no blob.
pub(super) const HELD_BACK: u64 = 64 << 10;

/// Why a claim was given up without an attempt that would concern anybody else.
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

/// What a fill writes into, known once the upstream has answered.
pub(super) struct Target {
    pub(super) file: Arc<File>,
    pub(super) size: u64,
}

pub(super) struct Flight {
    target: OnceLock<Target>,
    /// Bytes that readers may have. Only grows.
    released: AtomicU64,
    ending: OnceLock<Ending>,
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
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            target: OnceLock::new(),
            released: AtomicU64::new(0),
            ending: OnceLock::new(),
            waiting: AtomicUsize::new(0),
            waiters: Mutex::default(),
        })
    }

    /// Besides the table and the fill only readers hold a flight.
    pub(super) fn is_followed(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 2
    }

    pub(super) fn begin(&self, target: Target) {
        if self.target.set(target).is_err() {
            unreachable!("a fill begins once");
        }
        self.wake();
    }

    /// `written` bytes are in the file.
    pub(super) fn publish(&self, written: u64) {
        let size = self.target.get().map_or(0, |target| target.size);
        let free = written.min(size.saturating_sub(HELD_BACK));
        // SeqCst against `waiting`: either we see the reader that waits, or it sees this value when it looks again.
        if self.released.fetch_max(free, Ordering::SeqCst) < free {
            self.wake();
        }
    }

    pub(super) fn end(&self, ending: Ending) {
        if matches!(ending, Ending::Complete) {
            let size = self.target.get().map_or(0, |target| target.size);
            self.released.store(size, Ordering::SeqCst);
        }
        // The first ending stands: a writer that fails and is then dropped ends it twice.
        let _ = self.ending.set(ending);
        self.wake();
    }

    fn wake(&self) {
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
    async fn wait_for<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
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

/// Follows a fill.
#[derive(Clone)]
pub struct Reader(Arc<Flight>);

impl Reader {
    pub(super) fn new(flight: Arc<Flight>) -> Self {
        Self(flight)
    }

    /// Waits until the size is known, or the fill has ended before that.
    pub async fn size(&self) -> Result<u64, Ending> {
        let flight = &self.0;
        flight
            .wait_for(|flight| match (flight.target.get(), flight.ending.get()) {
                (Some(target), _) => Some(Ok(target.size)),
                (None, Some(ending)) => Some(Err(ending.clone())),
                (None, None) => None,
            })
            .await
    }

    /// Waits until more than `position` bytes may be read, and says how many may.
    pub async fn released_past(&self, position: u64) -> Result<u64, Ending> {
        self.0
            .wait_for(|flight| {
                let released = flight.released.load(Ordering::SeqCst);
                if released > position {
                    return Some(Ok(released));
                }
                flight.ending.get().map(|ending| match ending {
                    Ending::Complete => Ok(flight.released.load(Ordering::SeqCst)),
                    other => Err(other.clone()),
                })
            })
            .await
    }

    /// Whether `released_past` would answer at once, with bytes.
    pub fn has_past(&self, position: u64) -> bool {
        self.0.released.load(Ordering::SeqCst) > position
    }

    /// Waits until the fill is over.
    pub async fn ended(&self) -> Ending {
        self.0.wait_for(|flight| flight.ending.get().cloned()).await
    }

    /// The growing file, once the size is known.
    pub fn file(&self) -> Option<&Arc<File>> {
        self.0.target.get().map(|target| &target.file)
    }
}
