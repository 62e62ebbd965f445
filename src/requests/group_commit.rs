//! Writers who come while another writes go together: the next of them writes for all who wait by then.
//!
//! ```text
//! alone     A: write ─────── fsync ┐
//! meanwhile B, C, D: wait          └ B writes for B, C and D ─ fsync ┐ …
//! ```
//! So there are as many fsyncs as the disk can do, and not as many as there are writers. Nobody waits longer than for the
//! fsync that is under way and the one after it.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
};

/// Of those who want `W` written, and hear `A`.
pub(super) struct GroupCommit<W, A>(Mutex<Line<W, A>>);

struct Line<W, A> {
    waiting: VecDeque<(W, Sender<Word<A>>)>,
    is_led: bool,
}

/// What somebody who waits is told.
enum Word<A> {
    /// It is your turn to write for all who wait.
    Lead,
    Written(A),
}

impl<W, A> Default for GroupCommit<W, A> {
    fn default() -> Self {
        Self(Mutex::new(Line {
            waiting: VecDeque::new(),
            is_led: false,
        }))
    }
}

impl<W, A> GroupCommit<W, A> {
    /// `write` gets what several want and answers each of them, in order. `None`: whoever wrote it was lost to a panic.
    pub(super) fn run(&self, wanted: W, write: impl FnOnce(&[W]) -> Vec<A>) -> Option<A> {
        match self.join(wanted) {
            Ok(turn) => turn.lead(write),
            Err(word) => match word.recv().ok()? {
                Word::Written(answer) => Some(answer),
                Word::Lead => Turn {
                    line: self,
                    own: word,
                }
                .lead(write),
            },
        }
    }

    /// `Err`: somebody else writes now, and this is where to hear from him.
    fn join(&self, wanted: W) -> Result<Turn<'_, W, A>, Receiver<Word<A>>> {
        let (sender, own) = channel();
        let mut line = self.line();
        line.waiting.push_back((wanted, sender));
        match mem::replace(&mut line.is_led, true) {
            false => Ok(Turn { line: self, own }),
            true => Err(own),
        }
    }

    fn line(&self) -> MutexGuard<'_, Line<W, A>> {
        // Each change is one step, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever writes; the next one's turn comes when it is dropped, also by a panic.
struct Turn<'l, W, A> {
    line: &'l GroupCommit<W, A>,
    own: Receiver<Word<A>>,
}

impl<W, A> Turn<'_, W, A> {
    fn lead(self, write: impl FnOnce(&[W]) -> Vec<A>) -> Option<A> {
        let waiting = mem::take(&mut self.line.line().waiting);
        let (wanted, senders): (Vec<W>, Vec<Sender<Word<A>>>) = waiting.into_iter().unzip();
        let answers = write(&wanted);
        assert_eq!(answers.len(), wanted.len(), "each is answered");
        for (sender, answer) in senders.into_iter().zip(answers) {
            // Everybody waits for it.
            let _ = sender.send(Word::Written(answer));
        }
        match self.own.try_recv() {
            Ok(Word::Written(answer)) => Some(answer),
            Ok(Word::Lead) | Err(_) => None,
        }
    }
}

impl<W, A> Drop for Turn<'_, W, A> {
    fn drop(&mut self) {
        let mut line = self.line.line();
        line.is_led = match line.waiting.front() {
            Some((_, next)) => next.send(Word::Lead).is_ok(),
            None => false,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic,
        sync::mpsc,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    /// Until somebody writes and so many stand in line behind him.
    fn wait_for_line(group: &GroupCommit<u32, u32>, count: usize) {
        let until = Instant::now() + Duration::from_secs(60);
        let is_so = || {
            let line = group.line();
            line.is_led && line.waiting.len() == count
        };
        while !is_so() {
            assert!(Instant::now() < until, "{count} never stood in line");
            thread::yield_now();
        }
    }

    fn doubled(wanted: &[u32]) -> Vec<u32> {
        wanted.iter().map(|it| it * 2).collect()
    }

    #[test]
    fn who_comes_while_another_writes_is_written_with_the_others_who_do() {
        let group = GroupCommit::default();
        let (go, gate) = mpsc::channel();
        let writes = Mutex::new(Vec::new());
        let note = |wanted: &[u32]| {
            writes.lock().expect("no panic holds it").push(wanted.len());
            doubled(wanted)
        };
        thread::scope(|scope| {
            let (line, written) = (&group, &note);
            let first = scope.spawn(move || {
                line.run(100, |wanted| {
                    gate.recv().expect("the others have come");
                    written(wanted)
                })
            });
            wait_for_line(&group, 0);
            let others: Vec<_> = (0..5)
                .map(|number| {
                    let (group, note) = (&group, &note);
                    scope.spawn(move || group.run(number, note))
                })
                .collect();
            wait_for_line(&group, 5);
            go.send(()).expect("the first one waits");
            assert_eq!(first.join().expect("no panic"), Some(200));
            for (number, other) in (0..).zip(others) {
                assert_eq!(other.join().expect("no panic"), Some(number * 2));
            }
        });
        assert_eq!(writes.into_inner().expect("no panic holds it"), [1, 5]);
        assert_eq!(group.run(7, doubled), Some(14), "the turn was given back");
    }

    #[test]
    fn a_panic_costs_those_who_were_written_together_and_nobody_after_them() {
        let group = GroupCommit::default();
        let (go, gate) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let line = &group;
            let lost = scope.spawn(move || {
                line.run(1, |_| {
                    gate.recv().expect("the other has come");
                    panic::resume_unwind(Box::new("on purpose"));
                })
            });
            wait_for_line(&group, 0);
            let next = scope.spawn(|| group.run(2, doubled));
            wait_for_line(&group, 1);
            go.send(()).expect("it waits");
            assert!(lost.join().is_err());
            assert_eq!(next.join().expect("no panic"), Some(4));
        });
        assert_eq!(group.run(3, doubled), Some(6));
    }
}
