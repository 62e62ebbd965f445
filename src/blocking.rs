//! The door between the cores and everything that blocks.
//!
//! A core hands a whole errand to the pool and awaits its answer. Each kind of errand has threads and a queue
//! of its own, so that a slow token service cannot starve the disk; a full queue is an error at once, never
//! an endless wait. What monoio asks of a waker that crosses threads is known here and in
//! `cache/flight.rs` only: others always wake it, and the waiting side drops it on its own thread.

use std::{
    collections::VecDeque,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    thread,
};

use crossbeam::channel::{self, TrySendError};

use crate::telemetry::metrics::{self, Counter};

/// Kinds of errands, bounded apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Look-ups of host names.
    Names,
    /// Exchanges with token realms.
    Tokens,
    /// Who is the caller, whose credentials serve him, and what the store of requests has.
    Grants,
    /// What is written to the store of requests, which waits for the disk.
    Records,
    /// Logins that a credential helper has to be asked for, which may hang.
    Helpers,
    /// Questions to Seqera Platforms, which may wait for seconds. See `credentials::Desk`.
    Platform,
    /// Calls of AWS, which may take seconds.
    Aws,
    /// Opening, creating and removing files.
    Disk,
    /// Bringing into memory what is to be sent next.
    Pages,
    /// Waiting until a blob's bytes are on disk, which may take seconds.
    Commit,
    /// Digests of what is being filled; manifests and configurations that are large.
    Hash,
    /// Bytes of what is being filled, into the page cache; a disk that cannot keep up makes the writer wait.
    Write,
    /// Unpacking layers that come with container requests, to see whether they are what they say.
    Layers,
    /// What an operator asks of the cache, which may go through all of it.
    Upkeep,
}

struct Lane {
    errand: Errand,
    name: &'static str,
    threads: usize,
    /// Waiting errands; beyond it callers are told to come back.
    queue: usize,
}

// Threads and queues are guesses on the generous side: a thread that waits costs a stack, an errand its closure.
const LANES: [Lane; 14] = [
    Lane {
        errand: Errand::Names,
        name: "names",
        threads: 16,
        queue: 1024,
    },
    Lane {
        errand: Errand::Tokens,
        name: "tokens",
        threads: 32,
        queue: 1024,
    },
    Lane {
        errand: Errand::Grants,
        name: "grants",
        threads: 4,
        queue: 4096,
    },
    // Those who wait together are written together.
    Lane {
        errand: Errand::Records,
        name: "records",
        threads: 32,
        queue: 4096,
    },
    Lane {
        errand: Errand::Helpers,
        name: "helpers",
        threads: 8,
        queue: 1024,
    },
    Lane {
        errand: Errand::Platform,
        name: "platform",
        threads: 48,
        queue: 1024,
    },
    Lane {
        errand: Errand::Aws,
        name: "aws",
        threads: 24,
        queue: 1024,
    },
    Lane {
        errand: Errand::Disk,
        name: "disk",
        threads: 4,
        queue: 8192,
    },
    // A lane of its own: many readers of what is not in memory must not keep others from opening what is.
    Lane {
        errand: Errand::Pages,
        name: "pages",
        threads: 8,
        queue: 4096,
    },
    Lane {
        errand: Errand::Commit,
        name: "commit",
        threads: 4,
        queue: 8192,
    },
    Lane {
        errand: Errand::Hash,
        name: "hash",
        threads: 2,
        queue: 8192,
    },
    Lane {
        errand: Errand::Write,
        name: "write",
        threads: 4,
        queue: 8192,
    },
    // Each that waits holds megabytes.
    Lane {
        errand: Errand::Layers,
        name: "layers",
        threads: 2,
        queue: 16,
    },
    Lane {
        errand: Errand::Upkeep,
        name: "upkeep",
        threads: 2,
        queue: 16,
    },
];

impl Errand {
    /// How many of its kind run at the same time.
    pub fn threads(self) -> usize {
        let lane = LANES.iter().find(|lane| lane.errand == self);
        lane.map_or(0, |lane| lane.threads)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    #[error("too many {0:?} errands are waiting")]
    Full(Errand),
    #[error("a {0:?} errand failed by a bug of ours; the log has the panic")]
    Panicked(Errand),
}

type Job = Box<dyn FnOnce() + Send>;

pub struct Pool {
    lanes: Vec<(Errand, channel::Sender<Job>)>,
}

impl Pool {
    /// Threads that end with the process.
    pub fn start() -> std::io::Result<Arc<Self>> {
        let mut lanes = Vec::new();
        for lane in LANES {
            let (sender, receiver) = channel::bounded::<Job>(lane.queue);
            for number in 0..lane.threads {
                let receiver = receiver.clone();
                thread::Builder::new()
                    .name(format!("{}-{number}", lane.name))
                    .spawn(move || receiver.iter().for_each(|job| job()))?;
            }
            lanes.push((lane.errand, sender));
        }
        Ok(Arc::new(Self { lanes }))
    }

    /// Awaits the answer of `work`, which runs on a thread that may block. If the caller stops waiting before
    /// the errand's turn comes, it is not run.
    pub async fn run<T, F>(&self, errand: Errand, work: F) -> Result<T, PoolError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (sender, receiver) = oneshot();
        self.send(errand, move || {
            if !sender.is_abandoned() {
                sender.send(work());
            }
        })?;
        receiver.receive().await.ok_or(PoolError::Panicked(errand))
    }

    /// Runs `work` whether or not anybody waits for it.
    pub fn send(
        &self,
        errand: Errand,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), PoolError> {
        let job = Box::new(move || {
            // The panic's own message has been printed by then; the caller sees that no answer came.
            let _ = catch_unwind(AssertUnwindSafe(work));
        });
        let lane = self.lanes.iter().find(|(kind, _)| *kind == errand);
        let (_, queue) = lane.expect("each kind of errand has a lane");
        queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => {
                metrics::add(Counter::ErrandsRefused, 1);
                PoolError::Full(errand)
            }
            TrySendError::Disconnected(_) => PoolError::Panicked(errand),
        })
    }
}

/// A bug costs the task in which it is, not the core with all the others.
pub fn without_panic(
    task: &'static str,
    future: impl Future<Output = ()>,
) -> impl Future<Output = ()> {
    // As an argument that is then pinned it would lie in the task twice, and an idle connection is mostly its task.
    let mut future = Box::pin(future);
    async move {
        let ended = poll_fn(|context| {
            match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
                Ok(poll) => poll.map(|()| true),
                Err(_) => Poll::Ready(false),
            }
        });
        if !ended.await {
            metrics::add(Counter::Panics, 1);
            tracing::error!("{task} was lost to a bug of tidegate; the panic's message is above");
        }
    }
}

/// One value, from any thread to a core.
pub fn oneshot<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(Mutex::new(Slot {
        value: None,
        waker: None,
        is_over: false,
    }));
    (Sender(Arc::clone(&slot)), Receiver(slot))
}

struct Slot<T> {
    value: Option<T>,
    waker: Option<Waker>,
    /// One side has gone.
    is_over: bool,
}

pub struct Sender<T>(Arc<Mutex<Slot<T>>>);

impl<T> Sender<T> {
    /// Dropping the sender wakes the other side.
    pub fn send(self, value: T) {
        lock(&self.0).value = Some(value);
    }

    pub fn is_abandoned(&self) -> bool {
        lock(&self.0).is_over
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut slot = lock(&self.0);
            slot.is_over = true;
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

pub struct Receiver<T>(Arc<Mutex<Slot<T>>>);

impl<T> Receiver<T> {
    /// `None`: the sender has gone without sending.
    pub async fn receive(self) -> Option<T> {
        poll_fn(|context| {
            let mut slot = lock(&self.0);
            if let Some(value) = slot.value.take() {
                return Poll::Ready(Some(value));
            }
            if slot.is_over {
                return Poll::Ready(None);
            }
            slot.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let waker = {
            let mut slot = lock(&self.0);
            slot.is_over = true;
            slot.waker.take()
        };
        drop(waker);
    }
}

/// Values from any thread to one core, in order.
pub struct Inbox<T>(Mutex<Waiting<T>>);

struct Waiting<T> {
    values: VecDeque<T>,
    waker: Option<Waker>,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Self(Mutex::new(Waiting {
            values: VecDeque::new(),
            waker: None,
        }))
    }
}

impl<T> Inbox<T> {
    pub fn put(&self, value: T) {
        let waker = {
            let mut waiting = lock(&self.0);
            waiting.values.push_back(value);
            waiting.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits for the next one. Always on the same core, and one at a time.
    pub async fn take(&self) -> T {
        struct Wait<'a, T>(&'a Inbox<T>);
        impl<T> Drop for Wait<'_, T> {
            fn drop(&mut self) {
                let waker = lock(&self.0.0).waker.take();
                drop(waker);
            }
        }
        let wait = Wait(self);
        poll_fn(|context| {
            let mut waiting = lock(&wait.0.0);
            match waiting.values.pop_front() {
                Some(value) => Poll::Ready(value),
                None => {
                    waiting.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// A poisoned lock only says that somebody panicked; every value behind ours is whole between statements.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
