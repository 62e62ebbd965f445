//! Whose job is next. Pure: no clock, no lock, no thread.
//!
//! Of the tenants who wait, the one is served who has the fewest jobs running, and of several the one who has waited longest for
//! a turn. So whoever asks for a thousand copies makes nobody else wait for more than one of them.

use std::collections::{HashMap, VecDeque};

use crate::requests::Tenant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) running: usize,
    pub(super) running_of_one: usize,
    pub(super) waiting: usize,
    pub(super) waiting_of_one: usize,
}

/// Jobs between two turns, in no line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Away {
    /// Of the tenant who asks.
    pub(super) of_one: usize,
    pub(super) of_all: usize,
}

/// Why nobody may stand in line any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error(
        "too many of your mirrors and freezes are waiting (mirror.max_waiting_per_tenant); ask again when some are done"
    )]
    OfOne,
    #[error("too many mirrors and freezes are waiting (mirror.max_waiting); ask again later")]
    OfAll,
}

pub(super) struct Queue<T> {
    limits: Limits,
    lines: HashMap<Tenant, Line<T>>,
    running: usize,
    waiting: usize,
    turns: u64,
}

/// One tenant's.
struct Line<T> {
    waiting: VecDeque<T>,
    running: usize,
    last_turn: u64,
}

impl<T> Queue<T> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            lines: HashMap::new(),
            running: 0,
            waiting: 0,
            turns: 0,
        }
    }

    /// Whether one more may be pushed beside those that are `away`, and come back without asking. Nor need those ask that were
    /// waiting before a restart.
    pub(super) fn admit(&self, tenant: &Tenant, away: Away) -> Result<(), Full> {
        let own = self.lines.get(tenant).map_or(0, |line| line.waiting.len());
        if own + away.of_one >= self.limits.waiting_of_one {
            return Err(Full::OfOne);
        }
        match self.waiting + away.of_all >= self.limits.waiting {
            true => Err(Full::OfAll),
            false => Ok(()),
        }
    }

    pub(super) fn push(&mut self, tenant: &Tenant, job: T) {
        let turns = self.turns;
        let line = self.lines.entry(tenant.clone()).or_insert_with(|| Line {
            waiting: VecDeque::new(),
            running: 0,
            last_turn: turns,
        });
        line.waiting.push_back(job);
        self.waiting += 1;
    }

    /// The next one, which runs from now on.
    pub(super) fn take(&mut self) -> Option<T> {
        if self.running >= self.limits.running {
            return None;
        }
        let most = self.limits.running_of_one;
        let lines = self.lines.values_mut();
        let line = lines
            .filter(|line| !line.waiting.is_empty() && line.running < most)
            .min_by_key(|line| (line.running, line.last_turn))?;
        let job = line.waiting.pop_front()?;
        self.turns += 1;
        line.last_turn = self.turns;
        line.running += 1;
        self.waiting -= 1;
        self.running += 1;
        Some(job)
    }

    /// One that was taken runs no more.
    pub(super) fn end(&mut self, tenant: &Tenant) {
        let Some(line) = self.lines.get_mut(tenant) else {
            return;
        };
        line.running = line.running.saturating_sub(1);
        self.running = self.running.saturating_sub(1);
        self.forget_if_idle(tenant);
    }

    /// Whether it was waiting.
    pub(super) fn remove(&mut self, tenant: &Tenant, is_it: impl Fn(&T) -> bool) -> bool {
        let Some(line) = self.lines.get_mut(tenant) else {
            return false;
        };
        let before = line.waiting.len();
        line.waiting.retain(|job| !is_it(job));
        let removed = before - line.waiting.len();
        self.waiting -= removed;
        self.forget_if_idle(tenant);
        removed > 0
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    fn forget_if_idle(&mut self, tenant: &Tenant) {
        let is_idle = |line: &Line<T>| line.waiting.is_empty() && line.running == 0;
        if self.lines.get(tenant).is_some_and(is_idle) {
            self.lines.remove(tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        running: 4,
        running_of_one: 3,
        waiting: 10,
        waiting_of_one: 8,
    };

    fn tenant(name: &str) -> Tenant {
        let Ok(tenant) = name.parse();
        tenant
    }

    fn queue(jobs: &[(&str, usize)]) -> Queue<String> {
        let mut queue = Queue::new(LIMITS);
        for &(name, count) in jobs {
            for number in 1..=count {
                queue.push(&tenant(name), format!("{name}{number}"));
            }
        }
        queue
    }

    fn take_all(queue: &mut Queue<String>) -> Vec<String> {
        std::iter::from_fn(|| queue.take()).collect()
    }

    #[test]
    fn nobody_waits_for_anothers_whole_line() {
        for (jobs, expected) in [
            (&[("a", 2)][..], &["a1", "a2"][..]),
            (&[("a", 5)], &["a1", "a2", "a3"]),
            (&[("a", 5), ("b", 1)], &["a1", "b1", "a2", "a3"]),
            (&[("a", 5), ("b", 5)], &["a1", "b1", "a2", "b2"]),
        ] {
            let taken = take_all(&mut queue(jobs));
            // Who of two that have never had a turn comes first is open.
            let mut sorted: Vec<&str> = taken.iter().map(String::as_str).collect();
            sorted.sort_unstable();
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            assert_eq!(sorted, expected, "{jobs:?}");
        }
        let taken = take_all(&mut queue(&[("a", 2), ("b", 2), ("c", 2)]));
        let firsts: Vec<_> = taken.iter().take(3).map(|job| job.get(1..)).collect();
        assert_eq!(firsts, [Some("1"); 3], "{taken:?}");
    }

    #[test]
    fn a_newcomer_is_next_when_somebody_is_done() {
        let mut queue = queue(&[("a", 6), ("b", 1)]);
        let taken = take_all(&mut queue);
        assert_eq!(taken.len(), 4, "{taken:?}");
        queue.push(&tenant("c"), "c1".to_owned());
        assert_eq!(queue.take(), None);
        queue.end(&tenant("a"));
        assert_eq!(queue.take().as_deref(), Some("c1"));
        queue.end(&tenant("c"));
        assert_eq!(queue.take().as_deref(), Some("a4"));
    }

    #[test]
    fn turns_go_round_among_those_who_have_as_many_running() {
        let mut queue: Queue<String> = Queue::new(Limits {
            running: 1,
            ..LIMITS
        });
        for name in ["a", "a", "a", "b", "b"] {
            queue.push(&tenant(name), name.to_owned());
        }
        let mut order = Vec::new();
        while let Some(name) = queue.take() {
            queue.end(&tenant(&name));
            order.push(name);
        }
        let alternates = order
            .windows(2)
            .take(3)
            .all(|two| two.first() != two.get(1));
        assert!(alternates, "{order:?}");
        assert_eq!(order.len(), 5);
    }

    fn admit(queue: &Queue<String>, name: &str) -> Result<(), Full> {
        queue.admit(&tenant(name), Away::default())
    }

    #[test]
    fn lines_are_bounded() {
        let mut queue = queue(&[("a", 8)]);
        assert_eq!(admit(&queue, "a"), Err(Full::OfOne));
        assert_eq!(admit(&queue, "b"), Ok(()));
        queue.push(&tenant("b"), "b1".to_owned());
        queue.push(&tenant("b"), "b2".to_owned());
        assert_eq!(admit(&queue, "b"), Err(Full::OfAll));
        assert!(queue.take().is_some(), "what runs does not wait");
        assert_eq!(admit(&queue, "c"), Ok(()));
    }

    #[test]
    fn what_is_removed_is_not_taken() {
        let mut queue = queue(&[("a", 2)]);
        assert!(queue.remove(&tenant("a"), |job| job == "a1"));
        assert!(!queue.remove(&tenant("a"), |job| job == "a1"));
        assert!(!queue.remove(&tenant("b"), |job| job == "a2"));
        assert_eq!(take_all(&mut queue), ["a2"]);
        assert_eq!((queue.running(), queue.waiting()), (1, 0));
        queue.end(&tenant("a"));
        assert!(queue.lines.is_empty(), "who wants nothing costs nothing");
    }
}
