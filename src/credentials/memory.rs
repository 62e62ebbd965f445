//! What a Platform said a moment ago, and one question at a time.
//!
//! Bounded. Who asks what is being asked already waits for that answer. An answer is used as long as it is young; a
//! little longer while its Platform is silent; and not at all once the tokens that it was got with are withdrawn.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    blocking::lock,
    platform::{CallError, Family},
    telemetry::metrics::{self, Counter},
};

/// Answers of each kind.
const MOST: usize = if cfg!(test) { 4 } else { 16_384 };

/// How long an answer is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ages {
    pub fresh: Duration,
    /// While the Platform does not answer.
    pub stale: Duration,
}

pub(super) struct Memory<K, V> {
    slots: Mutex<Slots<K, V>>,
    answered: Condvar,
    /// What all answers together may weigh.
    capacity: usize,
}

struct Slots<K, V> {
    slots: HashMap<K, Slot<V>>,
    weight: usize,
    /// Counts uses, to know the least recent.
    clock: u64,
}

struct Slot<V> {
    is_being_asked: bool,
    answer: Option<Answer<V>>,
    /// How the last question ended, if that was no answer.
    failure: Option<(CallError, Instant)>,
    doubted: Option<Instant>,
    last_use: u64,
}

struct Answer<V> {
    value: Arc<V>,
    family: Arc<Family>,
    at: Instant,
    weight: usize,
}

impl<V> Answer<V> {
    fn is_good(&self, age: Duration, now: Instant) -> bool {
        !self.family.is_withdrawn() && now.saturating_duration_since(self.at) < age
    }
}

impl<V> Slot<V> {
    fn new() -> Self {
        Self {
            is_being_asked: false,
            answer: None,
            failure: None,
            doubted: None,
            last_use: 0,
        }
    }

    /// What there is for somebody who has been waiting since `began`.
    fn outcome(&self, ages: Ages, began: Instant) -> Option<Result<Arc<V>, CallError>> {
        if let Some(answer) = &self.answer
            && (answer.is_good(ages.fresh, began)
                // However short it is fresh.
                || (answer.at >= began && !answer.family.is_withdrawn()))
        {
            return Some(Ok(Arc::clone(&answer.value)));
        }
        let (error, at) = self.failure.as_ref()?;
        (*at >= began).then(|| self.despite(error, ages))
    }

    /// What is not fresh any more serves while the Platform is silent.
    fn despite(&self, error: &CallError, ages: Ages) -> Result<Arc<V>, CallError> {
        match (error, &self.answer) {
            (CallError::Silent { .. }, Some(answer))
                if answer.is_good(ages.stale, Instant::now()) =>
            {
                metrics::add(Counter::PlatformStale, 1);
                Ok(Arc::clone(&answer.value))
            }
            _ => Err(error.clone()),
        }
    }
}

impl<K: Clone + Eq + Hash, V> Memory<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            slots: Mutex::new(Slots {
                slots: HashMap::new(),
                weight: 0,
                clock: 0,
            }),
            answered: Condvar::new(),
            capacity,
        }
    }

    /// Asks nobody and waits for nobody.
    pub(super) fn recall(&self, key: &K, age: Duration, now: Instant) -> Option<Arc<V>> {
        let mut slots = lock(&self.slots);
        slots.clock += 1;
        let clock = slots.clock;
        let slot = slots.slots.get_mut(key)?;
        let answer = slot.answer.as_ref()?;
        if !answer.is_good(age, now) {
            return None;
        }
        slot.last_use = clock;
        Some(Arc::clone(&answer.value))
    }

    /// What is remembered, or else what `ask` says, or what another has just been told. `ask` also says how much its
    /// answer weighs. An answer that is not fresh any more serves if there is no other.
    pub(super) fn obtain(
        &self,
        key: &K,
        family: &Arc<Family>,
        ages: Ages,
        deadline: Instant,
        ask: impl FnOnce() -> Result<(V, usize), CallError>,
    ) -> Result<Arc<V>, CallError> {
        let began = Instant::now();
        {
            let mut slots = lock(&self.slots);
            loop {
                let slot = slots.slots.get(key);
                if let Some(outcome) = slot.and_then(|slot| slot.outcome(ages, began)) {
                    return outcome;
                }
                if !slot.is_some_and(|slot| slot.is_being_asked) {
                    break;
                }
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(CallError::Silent {
                        cause: "the Platform did not answer in time".to_owned(),
                    });
                }
                let woken = self.answered.wait_timeout(slots, left);
                (slots, _) = woken.unwrap_or_else(PoisonError::into_inner);
            }
            let slot = slots.slots.entry(key.clone()).or_insert_with(Slot::new);
            slot.is_being_asked = true;
        }
        let _asking = Asking { memory: self, key };
        let answer = ask().map(|(value, weight)| Answer {
            value: Arc::new(value),
            family: Arc::clone(family),
            at: Instant::now(),
            weight,
        });
        self.settle(key, answer, ages)
    }

    /// Forgets an answer, unless that was done a moment ago. Whether there was one to forget.
    pub(super) fn doubt(&self, key: &K, moment: Duration, now: Instant) -> bool {
        let mut slots = lock(&self.slots);
        let Some(slot) = slots.slots.get_mut(key) else {
            return false;
        };
        let is_early = |doubted| now.saturating_duration_since(doubted) < moment;
        if slot.answer.is_none() || slot.doubted.is_some_and(is_early) {
            return false;
        }
        slot.doubted = Some(now);
        slots.take_answer(key);
        true
    }

    fn settle(
        &self,
        key: &K,
        answer: Result<Answer<V>, CallError>,
        ages: Ages,
    ) -> Result<Arc<V>, CallError> {
        let mut slots = lock(&self.slots);
        slots.clock += 1;
        let clock = slots.clock;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if !matches!(error, CallError::Silent { .. }) {
                    slots.take_answer(key);
                }
                let Some(slot) = slots.slots.get_mut(key) else {
                    return Err(error);
                };
                slot.failure = Some((error.clone(), Instant::now()));
                slot.last_use = clock;
                let outcome = slot.despite(&error, ages);
                slots.make_room(self.capacity);
                return outcome;
            }
        };
        let remembered = Arc::clone(&answer.value);
        slots.take_answer(key);
        slots.weight += answer.weight;
        let slot = slots.slots.entry(key.clone()).or_insert_with(Slot::new);
        slot.answer = Some(answer);
        slot.failure = None;
        slot.last_use = clock;
        slots.make_room(self.capacity);
        Ok(remembered)
    }
}

impl<K: Clone + Eq + Hash, V> Slots<K, V> {
    fn take_answer(&mut self, key: &K) {
        let answer = self.slots.get_mut(key).and_then(|slot| slot.answer.take());
        let weight = answer.map_or(0, |answer| answer.weight);
        self.weight = self.weight.saturating_sub(weight);
    }

    fn make_room(&mut self, capacity: usize) {
        while self.weight > capacity || self.slots.len() > MOST {
            // Looks at all of them, but a new answer comes seldom, and from another machine. Those who wait for one
            // that is forgotten at once ask for themselves.
            let least_recent = self
                .slots
                .iter()
                .min_by_key(|(_, slot)| (slot.answer.is_some(), slot.last_use));
            let Some(key) = least_recent.map(|(key, _)| key.clone()) else {
                return;
            };
            self.take_answer(&key);
            self.slots.remove(&key);
        }
    }
}

/// Whoever waits is let go, also after a panic.
struct Asking<'m, K: Clone + Eq + Hash, V> {
    memory: &'m Memory<K, V>,
    key: &'m K,
}

impl<K: Clone + Eq + Hash, V> Drop for Asking<'_, K, V> {
    fn drop(&mut self) {
        if let Some(slot) = lock(&self.memory.slots).slots.get_mut(self.key) {
            slot.is_being_asked = false;
        }
        self.memory.answered.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const AGES: Ages = Ages {
        fresh: MINUTE,
        stale: Duration::from_secs(3600),
    };
    const NEVER_FRESH: Ages = Ages {
        fresh: Duration::ZERO,
        ..AGES
    };

    fn silent() -> CallError {
        CallError::Silent {
            cause: "nothing came".to_owned(),
        }
    }

    fn denied() -> CallError {
        CallError::Denied {
            endpoint: "https://platform.example.com".to_owned(),
            what: "something",
            status: 404,
        }
    }

    fn obtain(
        memory: &Memory<u8, u32>,
        key: u8,
        family: &Arc<Family>,
        ages: Ages,
        answer: Result<u32, CallError>,
    ) -> Result<u32, CallError> {
        let deadline = Instant::now() + MINUTE;
        let obtained = memory.obtain(&key, family, ages, deadline, || answer.map(|it| (it, 1)));
        obtained.map(|value| *value)
    }

    #[test]
    fn an_answer_is_used_while_it_is_young_and_its_tokens_are_good() {
        let memory = Memory::new(100);
        let family = Family::of_nobody();
        assert_eq!(obtain(&memory, 1, &family, AGES, Ok(7)), Ok(7));
        assert_eq!(obtain(&memory, 1, &family, AGES, Ok(8)), Ok(7));
        assert_eq!(obtain(&memory, 2, &family, AGES, Ok(9)), Ok(9));
        let later = Instant::now() + MINUTE;
        assert_eq!(memory.recall(&1, MINUTE, later), None);
        assert_eq!(obtain(&memory, 1, &family, NEVER_FRESH, Ok(8)), Ok(8));
        family.withdraw_for_tests();
        assert_eq!(memory.recall(&1, MINUTE, Instant::now()), None);
        let successor = Family::of_nobody();
        assert_eq!(obtain(&memory, 1, &successor, AGES, Ok(6)), Ok(6));
    }

    #[test]
    fn an_answer_that_was_asked_for_before_a_withdrawal_does_not_outlive_it() {
        let memory: Memory<u8, u32> = Memory::new(100);
        let family = Family::of_nobody();
        let deadline = Instant::now() + MINUTE;
        let asked = memory.obtain(&1, &family, AGES, deadline, || {
            family.withdraw_for_tests();
            Ok((7, 1))
        });
        assert!(asked.is_ok());
        assert_eq!(memory.recall(&1, MINUTE, Instant::now()), None);
    }

    #[test]
    fn what_is_not_fresh_serves_while_the_platform_is_silent_and_only_then() {
        let memory = Memory::new(100);
        let family = Family::of_nobody();
        let ask = |ages, answer| obtain(&memory, 1, &family, ages, answer);
        assert_eq!(ask(NEVER_FRESH, Err(silent())), Err(silent()));
        assert_eq!(ask(NEVER_FRESH, Ok(7)), Ok(7));
        assert_eq!(ask(NEVER_FRESH, Err(silent())), Ok(7));
        let nothing_stale = Ages {
            fresh: Duration::ZERO,
            stale: Duration::ZERO,
        };
        assert_eq!(ask(nothing_stale, Err(silent())), Err(silent()));
        assert_eq!(ask(NEVER_FRESH, Err(denied())), Err(denied()));
        assert_eq!(ask(NEVER_FRESH, Err(silent())), Err(silent()));
    }

    #[test]
    fn those_who_want_the_same_have_it_asked_once() {
        const CROWD: usize = 16;
        for answer in [Ok(7), Err(denied()), Err(silent())] {
            let memory: Memory<u8, u32> = Memory::new(100);
            let family = Family::of_nobody();
            let (asked, here) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let deadline = Instant::now() + MINUTE;
            thread::scope(|scope| {
                for _ in 0..CROWD {
                    scope.spawn(|| {
                        let ages = Ages {
                            // Whoever comes late is given it, too: how many are in line cannot be seen from here.
                            fresh: if answer.is_ok() {
                                MINUTE
                            } else {
                                Duration::ZERO
                            },
                            stale: Duration::ZERO,
                        };
                        here.fetch_add(1, Ordering::SeqCst);
                        let obtained = memory.obtain(&1, &family, ages, deadline, || {
                            asked.fetch_add(1, Ordering::SeqCst);
                            while here.load(Ordering::SeqCst) < CROWD {
                                thread::yield_now();
                            }
                            answer.clone().map(|it| (it, 1))
                        });
                        assert_eq!(obtained.map(|it| *it), answer);
                    });
                }
            });
            if answer.is_ok() {
                assert_eq!(asked.load(Ordering::SeqCst), 1);
            }
        }
    }

    #[test]
    fn a_doubted_answer_is_asked_for_anew_but_not_all_the_time() {
        let memory = Memory::new(100);
        let family = Family::of_nobody();
        let start = Instant::now();
        assert!(!memory.doubt(&1, MINUTE, start));
        assert_eq!(obtain(&memory, 1, &family, AGES, Ok(7)), Ok(7));
        assert!(memory.doubt(&1, MINUTE, start));
        assert_eq!(obtain(&memory, 1, &family, AGES, Ok(8)), Ok(8));
        assert!(!memory.doubt(&1, MINUTE, start));
        assert_eq!(obtain(&memory, 1, &family, AGES, Ok(9)), Ok(8));
        assert!(memory.doubt(&1, MINUTE, start + MINUTE));
    }

    #[test]
    fn memory_is_bounded_by_count_and_weight() {
        let family = Family::of_nobody();
        let memory = Memory::new(100);
        for key in 0..20 {
            assert!(obtain(&memory, key, &family, AGES, Ok(1)).is_ok());
            assert!(lock(&memory.slots).slots.len() <= MOST);
        }
        let memory: Memory<u8, u32> = Memory::new(100);
        let deadline = Instant::now() + MINUTE;
        for (key, weight) in [(1, 40), (2, 40), (3, 40), (4, 101)] {
            let obtained = memory.obtain(&key, &family, AGES, deadline, || Ok((1, weight)));
            assert!(obtained.is_ok(), "{key}");
            assert!(lock(&memory.slots).weight <= 100, "{key}");
        }
    }

    #[test]
    fn a_panic_lets_those_who_wait_go_on() {
        let memory: Memory<u8, u32> = Memory::new(100);
        let family = Family::of_nobody();
        let asking = std::panic::AssertUnwindSafe(|| {
            let deadline = Instant::now() + MINUTE;
            let _ = memory.obtain(&1, &family, AGES, deadline, || panic!("a bug"));
        });
        assert!(std::panic::catch_unwind(asking).is_err());
        assert_eq!(obtain(&memory, 1, &family, AGES, Ok(7)), Ok(7));
    }
}
