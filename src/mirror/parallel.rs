//! Doing the same for many, some at a time, on one core.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

/// After the first error no more is begun. What is under way is awaited all the same: it may have things to put in order
/// where it was.
pub(super) async fn for_each<T, E, F>(
    items: impl IntoIterator<Item = T>,
    most: usize,
    work: impl Fn(T) -> F,
) -> Result<(), E>
where
    F: Future<Output = Result<(), E>>,
{
    let mut items = items.into_iter();
    let mut running: Vec<Pin<Box<F>>> = Vec::new();
    let mut failure = None;
    poll_fn(|context| {
        loop {
            while failure.is_none() && running.len() < most.max(1) {
                let Some(item) = items.next() else {
                    break;
                };
                running.push(Box::pin(work(item)));
            }
            if running.is_empty() {
                return Poll::Ready(());
            }
            if !poll_all(&mut running, context, &mut failure) {
                return Poll::Pending;
            }
        }
    })
    .await;
    match failure {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Whether any of them has ended.
fn poll_all<E, F: Future<Output = Result<(), E>>>(
    running: &mut Vec<Pin<Box<F>>>,
    context: &mut Context<'_>,
    failure: &mut Option<E>,
) -> bool {
    let before = running.len();
    running.retain_mut(|one| match one.as_mut().poll(context) {
        Poll::Pending => true,
        Poll::Ready(Ok(())) => false,
        Poll::Ready(Err(error)) => {
            failure.get_or_insert(error);
            false
        }
    });
    running.len() < before
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        task::Waker,
    };

    use super::*;

    fn to_its_end<F: Future>(future: F) -> F::Output {
        let mut future = Box::pin(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..1000 {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
        }
        panic!("it does not end");
    }

    /// Pending for as many polls.
    async fn after(mut polls: u32) {
        poll_fn(|_| {
            let is_over = polls == 0;
            polls = polls.saturating_sub(1);
            if is_over {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    #[test]
    fn all_are_done_and_never_more_than_allowed_at_once() {
        let (running, most, done) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let outcome: Result<(), ()> = to_its_end(for_each(0..20, 3, |polls| {
            let (running, most, done) = (&running, &most, &done);
            async move {
                running.set(running.get() + 1);
                most.set(most.get().max(running.get()));
                after(polls % 4).await;
                running.set(running.get() - 1);
                done.set(done.get() + 1);
                Ok(())
            }
        }));
        assert_eq!((outcome, most.get(), done.get()), (Ok(()), 3, 20));
    }

    #[test]
    fn after_an_error_what_is_under_way_ends_and_nothing_begins() {
        let (begun, ended) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let outcome = to_its_end(for_each([1, 2, 3, 4], 2, |number| {
            let (begun, ended) = (&begun, &ended);
            async move {
                begun.borrow_mut().push(number);
                after(if number == 2 { 5 } else { 0 }).await;
                ended.borrow_mut().push(number);
                if number == 1 { Err("one") } else { Ok(()) }
            }
        }));
        assert_eq!(outcome, Err("one"));
        assert_eq!(*begun.borrow(), [1, 2]);
        assert_eq!(*ended.borrow(), [1, 2]);
    }
}
