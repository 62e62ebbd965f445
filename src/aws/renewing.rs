//! A value that AWS lends for a while: taken by many, renewed early by one.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::AwsError;

/// After a renewal failed while the old value still serves.
const PAUSE: Duration = Duration::from_secs(20);
/// A refusal stays one for a while; asking each time would only be throttled.
const REFUSAL_AGE: Duration = Duration::from_secs(30);
/// An outage may be over at any moment, but those who waited for the failed call need not all call again.
const OUTAGE_AGE: Duration = Duration::from_secs(3);
/// Above the longest call with its retries.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A value that was given back right after it was made is not made again at once.
const FORGET_PAUSE: Duration = Duration::from_secs(10);
/// Times of AWS are trusted within this.
const SHORTEST_LIFE: Duration = Duration::from_secs(60);
const LONGEST_LIFE: Duration = Duration::from_secs(36 * 3600);

/// A value and how long it is good for.
#[derive(Clone, Debug)]
pub struct Lease<T> {
    pub value: T,
    /// From here on a new one is asked for, while this one still serves.
    pub renew_from: Instant,
    pub until: Instant,
}

impl<T> Lease<T> {
    /// Renewed when all but `early` of its life is over, or at half of it if that is later.
    pub fn lasting(value: T, life: Duration, early: Duration) -> Self {
        let now = Instant::now();
        // A clock that is wrong must not make a call of every request, nor a value last for ever.
        let life = life.clamp(SHORTEST_LIFE, LONGEST_LIFE);
        Self {
            value,
            renew_from: now + life - early.min(life / 2),
            until: now + life,
        }
    }

    /// A value that was made with another one does not outlive it.
    pub fn within(mut self, other: &Lease<impl Sized>, early: Duration) -> Self {
        if other.until < self.until {
            self.until = other.until;
            let left = other.until.saturating_duration_since(Instant::now());
            let last_chance = other.until - early.min(left / 4);
            self.renew_from = self.renew_from.min(last_chance);
        }
        self
    }
}

pub(super) struct Renewing<T> {
    state: Mutex<State<T>>,
    settled: Condvar,
}

struct State<T> {
    held: Option<Lease<T>>,
    is_renewing: bool,
    /// The last renewal's, until a renewal succeeds.
    failure: Option<Failure>,
    forgotten: Option<Instant>,
}

struct Failure {
    error: AwsError,
    /// Nobody asks again before.
    until: Instant,
}

impl<T> Default for Renewing<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                held: None,
                is_renewing: false,
                failure: None,
                forgotten: None,
            }),
            settled: Condvar::new(),
        }
    }
}

impl<T: Clone + PartialEq> Renewing<T> {
    /// What is held, or why there is nothing; `None`: it is time to call for it. Never waits.
    pub(super) fn known(&self) -> Option<Result<Lease<T>, AwsError>> {
        let state = self.lock();
        let now = Instant::now();
        let failure = state.failure.as_ref().filter(|it| now < it.until);
        match &state.held {
            Some(lease) if now < lease.until => {
                let is_early = now < lease.renew_from || state.is_renewing || failure.is_some();
                is_early.then(|| Ok(lease.clone()))
            }
            _ => failure.map(|it| Err(it.error.clone())),
        }
    }

    /// What is held; else what `renew` brings, by whoever comes first. The others wait for him, or go on with the old
    /// value as long as there is one.
    pub(super) fn current(
        &self,
        renew: impl FnOnce() -> Result<Lease<T>, AwsError>,
    ) -> Result<Lease<T>, AwsError> {
        let deadline = Instant::now() + LONGEST_WAIT;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let is_resting = state.failure.as_ref().is_some_and(|it| now < it.until);
            match &state.held {
                Some(lease) if now < lease.until => {
                    if now < lease.renew_from || state.is_renewing || is_resting {
                        return Ok(lease.clone());
                    }
                }
                _ if state.is_renewing => {
                    if now >= deadline {
                        return Err(AwsError::Late);
                    }
                    let (next, _) = self
                        .settled
                        .wait_timeout(state, deadline - now)
                        .unwrap_or_else(PoisonError::into_inner);
                    state = next;
                    continue;
                }
                _ => {
                    if let Some(failure) = &state.failure
                        && is_resting
                    {
                        return Err(failure.error.clone());
                    }
                }
            }
            state.is_renewing = true;
            drop(state);
            return self.renew(renew);
        }
    }

    fn renew(
        &self,
        renew: impl FnOnce() -> Result<Lease<T>, AwsError>,
    ) -> Result<Lease<T>, AwsError> {
        // Also if `renew` panics.
        let settling = Settling(self);
        let renewed = renew();
        let mut state = self.lock();
        let now = Instant::now();
        let answer = match renewed {
            Ok(lease) => {
                state.failure = None;
                state.held = Some(lease.clone());
                Ok(lease)
            }
            Err(error) => {
                let old = state.held.clone().filter(|lease| now < lease.until);
                let age = match (&old, error.is_outage()) {
                    (Some(_), _) => PAUSE,
                    (None, true) => OUTAGE_AGE,
                    (None, false) => REFUSAL_AGE,
                };
                state.failure = Some(Failure {
                    error: error.clone(),
                    until: now + age,
                });
                match old {
                    Some(lease) => {
                        tracing::warn!(%error, "what AWS gave is not renewed yet; it serves until it ends");
                        Ok(lease)
                    }
                    None => Err(error),
                }
            }
        };
        drop(state);
        drop(settling);
        answer
    }

    /// Somebody was told that this value is no good any more.
    pub(super) fn forget(&self, spent: &T) {
        let mut state = self.lock();
        let now = Instant::now();
        let was_just_made = state
            .forgotten
            .is_some_and(|then| now.duration_since(then) < FORGET_PAUSE);
        if !was_just_made
            && state
                .held
                .as_ref()
                .is_some_and(|lease| lease.value == *spent)
        {
            state.held = None;
            state.forgotten = Some(now);
        }
    }

    /// Nobody would miss it.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        let now = Instant::now();
        !state.is_renewing
            && state.held.as_ref().is_none_or(|lease| lease.until <= now)
            && state.failure.as_ref().is_none_or(|it| it.until <= now)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Settling<'r, T>(&'r Renewing<T>);

impl<T> Drop for Settling<'_, T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_renewing = false;
        drop(state);
        self.0.settled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn lease(value: u32, renew_in: Duration, life: Duration) -> Lease<u32> {
        let now = Instant::now();
        Lease {
            value,
            renew_from: now + renew_in,
            until: now + life,
        }
    }

    fn outage() -> AwsError {
        AwsError::Unreachable {
            host: "sts".to_owned(),
            cause: "it is down".to_owned(),
        }
    }

    fn value(answer: Result<Lease<u32>, AwsError>) -> Result<u32, AwsError> {
        answer.map(|lease| lease.value)
    }

    #[test]
    fn a_hundred_who_wait_are_one_call() {
        let renewing = Renewing::default();
        let calls = AtomicUsize::new(0);
        let start = Barrier::new(100);
        thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|| {
                    start.wait();
                    let answer = renewing.current(|| {
                        calls.fetch_add(1, Ordering::SeqCst);
                        Ok(lease(7, HOUR, HOUR))
                    });
                    assert_eq!(value(answer), Ok(7));
                });
            }
        });
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_old_value_serves_while_it_cannot_be_renewed() {
        let renewing = Renewing::default();
        assert!(renewing.known().is_none());
        let early = lease(1, Duration::ZERO, HOUR);
        assert_eq!(value(renewing.current(|| Ok(early))), Ok(1));
        assert!(renewing.known().is_none());
        // It is time to renew it, and that fails; the next does not even try.
        assert_eq!(value(renewing.current(|| Err(outage()))), Ok(1));
        assert_eq!(value(renewing.current(|| panic!("it rests"))), Ok(1));
        assert_eq!(renewing.known().map(value), Some(Ok(1)));
    }

    #[test]
    fn who_comes_while_another_renews_goes_on_with_the_old_value() {
        let renewing = Renewing::default();
        let early = lease(1, Duration::ZERO, HOUR);
        assert_eq!(value(renewing.current(|| Ok(early))), Ok(1));
        let answer = renewing.current(|| {
            let other = renewing.current(|| panic!("one renewal at a time"));
            assert_eq!(value(other), Ok(1));
            Ok(lease(2, HOUR, HOUR))
        });
        assert_eq!(value(answer), Ok(2));
    }

    #[test]
    fn what_has_ended_is_an_error_for_all_who_come_soon() {
        let renewing = Renewing::default();
        let ended = lease(1, Duration::ZERO, Duration::ZERO);
        assert_eq!(value(renewing.current(|| Ok(ended))), Ok(1));
        assert_eq!(value(renewing.current(|| Err(outage()))), Err(outage()));
        assert_eq!(
            value(renewing.current(|| panic!("it rests"))),
            Err(outage())
        );
        assert_eq!(renewing.known().map(value), Some(Err(outage())));
    }

    #[test]
    fn only_the_spent_value_is_forgotten_and_not_again_and_again() {
        let renewing = Renewing::default();
        assert_eq!(value(renewing.current(|| Ok(lease(1, HOUR, HOUR)))), Ok(1));
        renewing.forget(&9);
        assert_eq!(value(renewing.current(|| panic!("it is held"))), Ok(1));
        renewing.forget(&1);
        assert_eq!(value(renewing.current(|| Ok(lease(2, HOUR, HOUR)))), Ok(2));
        renewing.forget(&2);
        assert_eq!(value(renewing.current(|| panic!("it is held"))), Ok(2));
    }

    #[test]
    fn a_renewal_that_panics_leaves_the_way_free() {
        let renewing: Renewing<u32> = Renewing::default();
        let ended = thread::scope(|scope| {
            scope
                .spawn(|| {
                    renewing
                        .current(|| panic!("a bug"))
                        .map(|lease| lease.value)
                })
                .join()
        });
        assert!(ended.is_err());
        assert_eq!(value(renewing.current(|| Ok(lease(3, HOUR, HOUR)))), Ok(3));
    }

    #[test]
    fn what_is_made_with_a_session_ends_with_it() {
        let token = Lease::lasting((), 12 * HOUR, 6 * HOUR);
        let session = Lease::lasting((), HOUR, HOUR / 4);
        let bound = token.within(&session, HOUR / 6);
        assert_eq!(bound.until, session.until);
        assert!(bound.renew_from < session.until - HOUR / 7);
    }
}
