#![no_main]
//! Followers come, read, change their minds and leave; runs claim, write, stop and meet registries that do not divide:
//! in any order, with writes of one run behind those of another.

use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use tidegate::cache::{
    Extents,
    progress::{Course, FollowerId, HELD_BACK, Progress, RunId, Step},
};

const MIB: u64 = 1 << 20;

struct Scene {
    progress: Progress,
    size: u64,
    is_sealed: bool,
    /// What was claimed, by whomever: never twice.
    claimed: Extents,
    written: Extents,
    followers: Vec<(FollowerId, Range<u64>)>,
    runs: Vec<(RunId, Option<Range<u64>>)>,
}

impl Scene {
    fn new(size: u64, kept: Range<u64>) -> Self {
        let mut kept: Extents = [kept].into_iter().collect();
        let mut progress = Progress::default();
        progress.begin(Some(size), kept.clone(), |size| size / 4);
        let free = size.saturating_sub(HELD_BACK);
        let is_sealed = kept.total() > free;
        if kept.covers(&(0..size)) {
            kept.truncate(free);
        }
        Self {
            progress,
            size,
            is_sealed,
            claimed: kept.clone(),
            written: kept,
            followers: Vec::new(),
            runs: Vec::new(),
        }
    }

    fn step(&mut self, place: usize) {
        let Some((id, wants)) = self.followers.get_mut(place) else {
            return;
        };
        if wants.is_empty() {
            return;
        }
        match self.progress.step(*id, wants.start) {
            Step::Ready(end) => {
                assert!(end > wants.start, "nothing new at {wants:?}");
                assert!(self.written.covers(&(wants.start..end)), "unwritten bytes were released");
                wants.start = end.min(wants.end);
            }
            Step::Claim(run) => {
                let part = self.progress.part(run);
                assert!(!part.is_empty() && part.end <= self.size);
                self.runs.push((run, None));
            }
            Step::Wait => {}
        }
    }

    fn claim(&mut self, place: usize, len: u64) {
        let Some((run, writing)) = self.runs.get_mut(place) else {
            return;
        };
        if writing.is_some() {
            return;
        }
        let range = self.progress.claim(*run, len);
        assert!(range.end <= self.size);
        if !range.is_empty() {
            assert_eq!(self.claimed.gap(range.start, range.end), Some(range.clone()), "claimed twice");
            self.claimed.insert(range.clone());
            *writing = Some(range);
        }
    }

    /// The write arrives, and the run goes on or ends.
    fn land(&mut self, place: usize) {
        let Some((run, writing)) = self.runs.get_mut(place) else {
            return;
        };
        let run = *run;
        if let Some(range) = writing.take() {
            self.written.insert(range.clone());
            self.progress.wrote(range);
        }
        match self.progress.course(run) {
            Course::Done | Course::Complete => self.end(place),
            Course::GoOn | Course::MoveTo(_) => assert!(!self.progress.part(run).is_empty()),
        }
    }

    /// A run that ends has no write on its way.
    fn end(&mut self, place: usize) {
        if self.runs.get(place).is_some_and(|(_, writing)| writing.is_none()) {
            let (run, _) = self.runs.remove(place);
            self.progress.end_run(run);
        }
    }

    fn check(&self) {
        let released: u64 = {
            let mut total = 0;
            let mut position = 0;
            while position < self.size {
                let end = self.written.end_at(position);
                match end {
                    Some(end) => {
                        // Released bytes are counted one extent of written ones at a time.
                        total += (position..end)
                            .step_by(HELD_BACK as usize / 2)
                            .filter(|place| self.progress.is_released(*place))
                            .count() as u64
                            * (HELD_BACK / 2);
                        position = end;
                    }
                    None => {
                        position = self
                            .written
                            .gap(position, self.size)
                            .map_or(self.size, |gap| gap.end);
                    }
                }
            }
            total
        };
        let slack = HELD_BACK / 2 * (1 + self.written.iter().count() as u64);
        assert!(released <= self.size.saturating_sub(HELD_BACK) + slack);
        assert!(!self.is_sealed || released == 0);
        assert_eq!(self.progress.written(), &self.written);
    }

    /// Whoever still wants something gets it, if only somebody works.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            for place in 0..self.followers.len() {
                self.step(place);
            }
            for place in (0..self.runs.len()).rev() {
                self.claim(place, 16 * MIB);
                self.land(place);
            }
            let is_served = self.followers.iter().all(|(_, wants)| wants.is_empty());
            if self.progress.is_complete() || (is_served && self.runs.is_empty()) {
                if self.progress.is_complete() {
                    self.progress.verified();
                }
                for place in 0..self.followers.len() {
                    self.step(place);
                }
                assert!(
                    self.followers.iter().all(|(_, wants)| wants.is_empty()),
                    "somebody waits for ever: {:?}",
                    self.progress
                );
                return;
            }
        }
        panic!("it never settles: {:?}", self.progress);
    }
}

fuzz_target!(|input: &[u8]| {
    let [first, second, third, events @ ..] = input else {
        return;
    };
    let size = 1 + u64::from(*first) * MIB / 2;
    let start = u64::from(*second) * MIB / 2 % size;
    let kept = start..(start + u64::from(*third) * MIB / 2).min(size);
    let mut scene = Scene::new(size, kept);
    for event in events.chunks_exact(3).take(200) {
        let [kind, place, amount] = event else { return };
        let (place, amount) = (usize::from(*place), u64::from(*amount));
        let position = amount * MIB / 2 % size;
        match kind % 8 {
            0 if scene.followers.len() < 16 => {
                let length = 1 + (place as u64) * MIB / 4;
                let wants = position..position.saturating_add(length).min(size);
                let id = scene.progress.follow(wants.clone());
                scene.followers.push((id, wants));
            }
            1 if !scene.followers.is_empty() => {
                let place = place % scene.followers.len();
                let (id, _) = scene.followers.remove(place);
                scene.progress.leave(id);
            }
            2 | 3 if !scene.followers.is_empty() => scene.step(place % scene.followers.len()),
            4 if !scene.runs.is_empty() => scene.claim(place % scene.runs.len(), 1 + amount * 50_000),
            5 | 6 if !scene.runs.is_empty() => scene.land(place % scene.runs.len()),
            7 if !scene.runs.is_empty() && amount < 32 => {
                let place = place % scene.runs.len();
                let (run, writing) = &scene.runs[place];
                if writing.is_none() && amount % 2 == 0 {
                    if let Course::Done = scene.progress.cannot_be_divided(*run) {
                        scene.end(place);
                    }
                } else {
                    scene.end(place);
                }
            }
            _ => {}
        }
        scene.check();
    }
    scene.settle();
});
