//! Waits that end, for connections that wait all the time.
//!
//! A timer of the runtime costs more than the wait of a busy connection. So a core's connections share a clock that only
//! ticks: to wait is to note a tick, and each tick looks who has waited too long. A wait ends up to two ticks late.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::pin,
    rc::{Rc, Weak},
    task::{Poll, Waker},
    time::Duration,
};

use monoio::{net::TcpStream, time::timeout};

const TICK: Duration = Duration::from_millis(100);

/// One core's clock.
pub struct Clock {
    tick: Cell<u64>,
    alarms: RefCell<Vec<Weak<Slot>>>,
}

/// A tenth of a second of a core's clock, for what is good for a moment only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tick(u64);

#[cfg(test)]
impl Tick {
    pub(super) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// When a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(u64);

/// One connection's, for one wait at a time.
pub(super) struct Alarm {
    clock: Rc<Clock>,
    slot: Rc<Slot>,
}

struct Slot {
    deadline: Cell<u64>,
    /// Of the connection's task. It stays after a wait: the next one is the same task's.
    waker: RefCell<Option<Waker>>,
}

const NEVER: u64 = u64::MAX;

impl Clock {
    /// On a core, whose runtime then keeps it ticking.
    pub fn start() -> Rc<Self> {
        let clock = Rc::new(Self {
            tick: Cell::new(0),
            alarms: RefCell::default(),
        });
        let ticking = Rc::clone(&clock);
        monoio::spawn(async move {
            loop {
                monoio::time::sleep(TICK).await;
                ticking.tick();
            }
        });
        clock
    }

    pub(super) fn alarm(self: &Rc<Self>) -> Alarm {
        let slot = Rc::new(Slot {
            deadline: Cell::new(NEVER),
            waker: RefCell::default(),
        });
        self.alarms.borrow_mut().push(Rc::downgrade(&slot));
        Alarm {
            clock: Rc::clone(self),
            slot,
        }
    }

    /// A wait of at least `patience` from now.
    pub fn after(&self, patience: Duration) -> Deadline {
        let ticks = patience.as_millis().div_ceil(TICK.as_millis());
        // The present tick is partly over.
        let ticks = u64::try_from(ticks).unwrap_or(NEVER).saturating_add(1);
        Deadline(self.tick.get().saturating_add(ticks))
    }

    pub(super) fn now(&self) -> Tick {
        Tick(self.tick.get())
    }

    fn tick(&self) {
        let now = self.tick.get() + 1;
        self.tick.set(now);
        let mut late = Vec::new();
        self.alarms.borrow_mut().retain(|alarm| {
            let Some(slot) = alarm.upgrade() else {
                return false;
            };
            if slot.deadline.get() <= now {
                slot.deadline.set(NEVER);
                late.extend(slot.waker.borrow().clone());
            }
            true
        });
        late.into_iter().for_each(Waker::wake);
    }
}

impl Alarm {
    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Awaits the future, which is dropped at the deadline.
    pub(super) async fn within<T>(
        &self,
        deadline: Deadline,
        future: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        let mut future = pin!(future);
        let _armed = Armed(&self.slot);
        poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(output);
            }
            if self.clock.tick.get() >= deadline.0 {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.slot.deadline.set(deadline.0);
            let mut kept = self.slot.waker.borrow_mut();
            match &*kept {
                Some(waker) if waker.will_wake(context.waker()) => {}
                _ => *kept = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await
    }
}

/// How long the other side may take no byte at all.
#[derive(Clone, Copy)]
pub(super) struct Patience<'a> {
    side: Side<'a>,
    most: Duration,
}

#[derive(Clone, Copy)]
enum Side<'a> {
    Client(&'a Alarm),
    /// It may answer before it has all of a request. Uploads are few, so a timer of the runtime does.
    Registry,
}

impl<'a> Patience<'a> {
    pub(super) fn with_client(alarm: &'a Alarm, most: Duration) -> Self {
        let side = Side::Client(alarm);
        Self { side, most }
    }

    pub(super) fn with_registry(most: Duration) -> Self {
        let side = Side::Registry;
        Self { side, most }
    }

    /// The next turn: when the socket takes more. A registry that has something to say is heard first (`EarlyAnswer`).
    pub(super) async fn writable(self, socket: &TcpStream) -> io::Result<()> {
        match self.side {
            Side::Client(_) => self.within(socket.writable(false)).await,
            Side::Registry => self.within(writable_or_heard(socket)).await,
        }
    }

    pub(super) async fn within<T>(
        self,
        future: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        match self.side {
            Side::Client(alarm) => {
                let deadline = alarm.clock().after(self.most);
                alarm.within(deadline, future).await
            }
            Side::Registry => match timeout(self.most, future).await {
                Ok(done) => done,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            },
        }
    }

    /// For what is good for a moment only. Whoever has no clock does without.
    pub(super) fn now(self) -> Option<Tick> {
        match self.side {
            Side::Client(alarm) => Some(alarm.clock().now()),
            Side::Registry => None,
        }
    }
}

/// The other side has said something, or gone, before it had all.
#[derive(Debug, thiserror::Error)]
#[error("the answer came before the end of the request")]
pub(super) struct EarlyAnswer;

impl EarlyAnswer {
    pub(super) fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|cause| cause.is::<Self>())
    }
}

async fn writable_or_heard(socket: &TcpStream) -> io::Result<()> {
    let mut heard = pin!(socket.readable(false));
    let mut writable = pin!(socket.writable(false));
    poll_fn(|context| {
        if let Poll::Ready(heard) = heard.as_mut().poll(context) {
            return Poll::Ready(heard.and(Err(io::Error::other(EarlyAnswer))));
        }
        writable.as_mut().poll(context)
    })
    .await
}

/// Ends the wait, however it ended.
struct Armed<'a>(&'a Slot);

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        self.0.deadline.set(NEVER);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn still() -> Rc<Clock> {
        Rc::new(Clock {
            tick: Cell::new(0),
            alarms: RefCell::default(),
        })
    }

    #[test]
    fn a_wait_ends_at_its_deadline_and_not_before() {
        let clock = still();
        let alarm = clock.alarm();
        let mut context = std::task::Context::from_waker(Waker::noop());
        let mut waiting = pin!(alarm.within(
            clock.after(Duration::from_millis(150)),
            pending::<io::Result<()>>()
        ));
        for _ in 0..2 {
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            clock.tick();
        }
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        clock.tick();
        let Poll::Ready(Err(error)) = waiting.as_mut().poll(&mut context) else {
            panic!("the third tick is the end");
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn what_is_ready_is_not_late_and_who_has_gone_is_forgotten() {
        let clock = still();
        let alarm = clock.alarm();
        let mut context = std::task::Context::from_waker(Waker::noop());
        let past = clock.after(Duration::ZERO);
        clock.tick();
        clock.tick();
        let mut waiting = pin!(alarm.within(past, ready(Ok(7))));
        assert!(matches!(
            waiting.as_mut().poll(&mut context),
            Poll::Ready(Ok(7))
        ));
        let gone = clock.alarm();
        drop(gone);
        clock.tick();
        assert_eq!(clock.alarms.borrow().len(), 1);
        assert_eq!(clock.after(Duration::MAX), Deadline(NEVER));
    }
}
