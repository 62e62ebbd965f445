//! How many connections one place may have in use, and who waits for one.
//!
//! A crowd at one registry must not take the descriptors and the memory of all others. Who finds no seat waits in line
//! for a bounded time; a seat that becomes free goes to the first who still waits.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    hash::Hash,
    rc::Rc,
    time::Duration,
};

use monoio::time::timeout;

use crate::blocking::{Sender, oneshot};

/// All seats at this place stayed taken for as long as one may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crowded;

/// One core's lines, by place.
pub(super) struct Crowd<Place> {
    seat_count: usize,
    lines: RefCell<HashMap<Place, Rc<Line>>>,
}

#[derive(Default)]
struct Line {
    taken: Cell<usize>,
    waiting: RefCell<VecDeque<Sender<Seat>>>,
}

/// The right to use one connection, given back when it is dropped.
pub(super) struct Seat(Rc<Line>);

impl<Place: Clone + Eq + Hash> Crowd<Place> {
    pub(super) fn new(seat_count: usize) -> Self {
        Self {
            seat_count,
            lines: RefCell::default(),
        }
    }

    pub(super) async fn enter(&self, place: &Place, patience: Duration) -> Result<Seat, Crowded> {
        let line = match self.lines.borrow().get(place) {
            Some(line) => Rc::clone(line),
            None => Rc::default(),
        };
        if line.taken.get() < self.seat_count {
            if line.taken.get() == 0 {
                self.lines
                    .borrow_mut()
                    .insert(place.clone(), Rc::clone(&line));
            }
            line.taken.set(line.taken.get() + 1);
            return Ok(Seat(line));
        }
        let (sender, receiver) = oneshot();
        line.waiting.borrow_mut().push_back(sender);
        match timeout(patience, receiver.receive()).await {
            Ok(Some(seat)) => Ok(seat),
            Ok(None) | Err(_) => Err(Crowded),
        }
    }

    /// Forgets the places where nobody is.
    pub(super) fn forget_empty(&self) {
        self.lines
            .borrow_mut()
            .retain(|_, line| line.taken.get() > 0);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        loop {
            let next = self.0.waiting.borrow_mut().pop_front();
            match next {
                None => {
                    self.0.taken.set(self.0.taken.get() - 1);
                    return;
                }
                Some(next) if next.is_abandoned() => {}
                Some(next) => return next.send(Self(Rc::clone(&self.0))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn with_timers(test: impl Future<Output = ()>) {
        monoio::RuntimeBuilder::<monoio::LegacyDriver>::new()
            .enable_timer()
            .build()
            .expect("epoll is everywhere")
            .block_on(test);
    }

    #[test]
    fn seats_go_to_those_who_wait_in_their_order() {
        with_timers(async {
            let crowd = Crowd::new(2);
            let first = crowd.enter(&'a', PATIENCE).await.expect("a seat");
            let _second = crowd.enter(&'a', PATIENCE).await.expect("another");
            let _elsewhere = crowd.enter(&'b', PATIENCE).await.expect("one there");
            let mut context = Context::from_waker(Waker::noop());
            let mut third = pin!(crowd.enter(&'a', PATIENCE));
            let mut fourth = Box::pin(crowd.enter(&'a', PATIENCE));
            let mut fifth = pin!(crowd.enter(&'a', PATIENCE));
            assert!(third.as_mut().poll(&mut context).is_pending());
            assert!(fourth.as_mut().poll(&mut context).is_pending());
            assert!(fifth.as_mut().poll(&mut context).is_pending());
            // Who leaves the line is passed over.
            drop(fourth);
            drop(first);
            let Poll::Ready(Ok(third)) = third.as_mut().poll(&mut context) else {
                panic!("the first in line has the seat");
            };
            assert!(fifth.as_mut().poll(&mut context).is_pending());
            drop(third);
            assert!(fifth.as_mut().poll(&mut context).is_ready());
        });
    }

    #[test]
    fn a_line_that_does_not_move_ends_in_an_error() {
        with_timers(async {
            let crowd = Crowd::new(1);
            let seat = crowd.enter(&'a', PATIENCE).await.expect("a seat");
            let refused = crowd.enter(&'a', Duration::from_millis(1)).await.err();
            assert_eq!(refused, Some(Crowded));
            drop(seat);
            crowd.forget_empty();
            assert!(crowd.lines.borrow().is_empty());
            crowd.enter(&'a', PATIENCE).await.expect("a seat again");
        });
    }

    #[test]
    fn a_seat_that_is_handed_to_someone_who_left_is_not_lost() {
        with_timers(async {
            let crowd = Crowd::new(1);
            let seat = crowd.enter(&'a', PATIENCE).await.expect("a seat");
            let mut context = Context::from_waker(Waker::noop());
            let mut next = Box::pin(crowd.enter(&'a', PATIENCE));
            assert!(next.as_mut().poll(&mut context).is_pending());
            drop(seat);
            // The seat is on its way to it.
            drop(next);
            crowd.enter(&'a', PATIENCE).await.expect("a seat");
        });
    }
}
