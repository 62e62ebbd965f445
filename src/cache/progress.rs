//! How far a blob has come, who wants which part of it, and who fetches what: the rules, without files, threads or clocks.
//!
//! *Followers* want parts of the blob. *Runs* fetch parts of it, each for itself and in order; no byte is fetched by two.
//! A follower who needs a byte that no run will bring soon is told to start one. So whoever reads on gets on, and what
//! nobody wants is not fetched, unless most of it is there already.
//!
//! ```text
//!   0                    written        claimed                      limit            size
//!   ├── run 1 wrote this ──┤─ on its way ─┤─ run 1 will fetch this ────┤─ hole ─┤─ run 2 ─┤
//! ```
//!
//! **The last part is held back**: before the digest has matched, all but `HELD_BACK` bytes are released, in the order in
//! which they come. Nobody has the whole of a blob that was not verified, by whatever ranges he asked for it.

use std::ops::Range;

use super::extents::Extents;

/// Bytes that no reader gets before the digest has matched. Whoever lacks them has no blob.
pub const HELD_BACK: u64 = 64 << 10;
/// A blob up to this size is fetched as a whole, whichever part is wanted, and to its end, whoever leaves: what is saved
/// otherwise is not worth a request.
pub const SMALL: u64 = 8 << 20;
/// A follower waits for a run that is this near. At a slow 20 MB/s that takes no longer than a few requests.
const NEAR: u64 = 8 << 20;
/// Runs of one blob at a time. Runtimes that fetch a blob in parts use fewer connections.
const MOST_RUNS: usize = 8;

pub type RunId = u32;
pub type FollowerId = u32;

#[derive(Debug, Default)]
pub struct Progress {
    /// `None`: the end will show it. There is one run then, and it cannot be divided.
    size: Option<u64>,
    /// Written, or on its way to the disk.
    taken: Extents,
    written: Extents,
    released: Extents,
    /// Which bytes of it were released before is not known: nothing more is before the end.
    is_sealed: bool,
    is_verified: bool,
    /// The registry answers a request for a part with that part.
    is_divisible: bool,
    /// A blob is finished for the next one who wants it, from this many bytes on.
    worth_finishing: u64,
    runs: Vec<Run>,
    followers: Vec<Follower>,
    next_id: u32,
}

#[derive(Debug)]
struct Run {
    id: RunId,
    /// Everything before it is written or on its way to the disk.
    claimed: u64,
    limit: u64,
    /// It was started for somebody who wants all of the blob, so it goes on behind its limit.
    is_whole: bool,
}

#[derive(Debug)]
struct Follower {
    id: FollowerId,
    /// What it has not read yet.
    wants: Range<u64>,
    is_whole: bool,
}

/// What a follower does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Up to there everything may be read.
    Ready(u64),
    Wait,
    /// Nobody brings it: fetch it.
    Claim(RunId),
}

/// What a run does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    GoOn,
    /// What comes next is there or another's; this is the next hole.
    MoveTo(u64),
    /// There is nothing left to fetch for this run, or nobody who wants it.
    Done,
    /// Every byte is written.
    Complete,
}

impl Progress {
    /// The registry has said what there is to fetch. `kept`: what an earlier attempt has left in the file.
    pub fn begin(
        &mut self,
        size: Option<u64>,
        mut kept: Extents,
        finish_above: impl FnOnce(u64) -> u64,
    ) {
        let free = size.unwrap_or(0).saturating_sub(HELD_BACK);
        self.is_sealed |= !kept.is_empty() && kept.total() > free;
        if size.is_some_and(|size| kept.covers(&(0..size))) {
            // The run that writes the last byte is the one that sees to the rest, so there must be one.
            kept.truncate(free);
        }
        self.size = size;
        self.is_divisible = size.is_some();
        self.worth_finishing = match size {
            Some(size) if size <= SMALL => 0,
            Some(size) => finish_above(size),
            None => u64::MAX,
        };
        if !self.is_sealed {
            self.released = kept.clone();
        }
        self.taken = kept.clone();
        self.written = kept;
    }

    /// Before it begins: nothing is released before all of it is verified.
    pub fn seal(&mut self) {
        self.is_sealed = true;
    }

    pub fn is_sealed(&self) -> bool {
        self.is_sealed
    }

    pub fn size(&self) -> Option<u64> {
        self.size
    }

    pub fn written(&self) -> &Extents {
        &self.written
    }

    /// How many bytes from the start may be read.
    pub fn released_prefix(&self) -> u64 {
        self.released.prefix()
    }

    pub fn is_released(&self, position: u64) -> bool {
        self.released.end_at(position).is_some()
    }

    pub fn is_idle(&self) -> bool {
        self.runs.is_empty() && self.followers.is_empty()
    }

    pub fn has_runs(&self) -> bool {
        !self.runs.is_empty()
    }

    pub fn is_complete(&self) -> bool {
        self.size
            .is_some_and(|size| self.written.covers(&(0..size)))
    }

    /// What is missing of `wanted`, for whoever has begun the fill. Of an empty blob too: its digest must be right as well.
    pub fn first_run(&mut self, wanted: &Range<u64>) -> Option<RunId> {
        let end = self.end();
        let within = wanted.start..wanted.end.min(end);
        let gap = if self.size == Some(0) {
            Some(0..0)
        } else {
            self.unclaimed(within)
        };
        let is_whole = self.is_whole(wanted);
        gap.map(|gap| self.start(gap, is_whole))
    }

    pub fn follow(&mut self, wants: Range<u64>) -> FollowerId {
        let id = self.draw_id();
        self.followers.push(Follower {
            id,
            is_whole: self.is_whole(&wants),
            wants,
        });
        id
    }

    pub fn want(&mut self, follower: FollowerId, wants: Range<u64>) {
        let is_whole = self.is_whole(&wants);
        if let Some(follower) = self.followers.iter_mut().find(|other| other.id == follower) {
            follower.wants = wants;
            follower.is_whole = is_whole;
        }
    }

    pub fn leave(&mut self, follower: FollowerId) {
        self.followers.retain(|other| other.id != follower);
    }

    /// The follower has read up to `position` and wants what comes next.
    pub fn step(&mut self, follower: FollowerId, position: u64) -> Step {
        let end = self.end();
        let Some(follower) = self.followers.iter_mut().find(|other| other.id == follower) else {
            return Step::Wait;
        };
        follower.wants.start = follower.wants.start.max(position);
        let (wanted, is_whole) = (follower.wants.end.min(end), follower.is_whole);
        if let Some(end) = self.released.end_at(position) {
            return Step::Ready(end);
        }
        if self.is_verified {
            return Step::Ready(end);
        }
        if position >= end {
            // A blob of unknown size has ended here; whether rightly so, its digest will tell.
            return Step::Wait;
        }
        if self.written.end_at(position).is_some() {
            // It is held back: once everything is there, it can be verified.
            return self.step_to_the_end();
        }
        if self.taken.end_at(position).is_some() {
            // On its way to the disk.
            return Step::Wait;
        }
        if !self.is_divisible {
            return self.step_to_the_end();
        }
        let is_full = self.runs.len() >= MOST_RUNS;
        let coming = self
            .runs
            .iter_mut()
            .find(|run| run.claimed <= position && position < run.limit);
        if let Some(run) = coming {
            if position - run.claimed <= NEAR || is_full {
                return Step::Wait;
            }
            let limit = std::mem::replace(&mut run.limit, position).min(wanted);
            return Step::Claim(self.start(position..limit, is_whole));
        }
        if is_full {
            return Step::Wait;
        }
        match self.unclaimed(position..wanted.max(position + 1).min(end)) {
            Some(gap) => Step::Claim(self.start(gap, is_whole)),
            None => Step::Wait,
        }
    }

    /// One run brings all that is missing, in order.
    fn step_to_the_end(&mut self) -> Step {
        match self.taken.gap(0, self.end()) {
            Some(gap) if self.runs.is_empty() => Step::Claim(self.start(gap, true)),
            _ => Step::Wait,
        }
    }

    /// A part of `len` bytes that the run takes to the disk, from where it stands. Shorter at its limit, and empty there.
    pub fn claim(&mut self, run: RunId, len: u64) -> Range<u64> {
        match self.runs.iter_mut().find(|other| other.id == run) {
            Some(run) => {
                let start = run.claimed;
                run.claimed = run.limit.min(start.saturating_add(len));
                self.taken.insert(start..run.claimed);
                start..run.claimed
            }
            None => 0..0,
        }
    }

    /// Where the run stands, and up to where it fetches.
    pub fn part(&self, run: RunId) -> Range<u64> {
        self.runs
            .iter()
            .find(|other| other.id == run)
            .map_or(0..0, |run| run.claimed..run.limit)
    }

    /// What was claimed is in the file.
    pub fn wrote(&mut self, range: Range<u64>) {
        self.written.insert(range.clone());
        if self.is_sealed || self.is_verified {
            return;
        }
        match self.size {
            Some(size) => {
                let free = size.saturating_sub(HELD_BACK);
                let left = free.saturating_sub(self.released.total());
                let count = left.min(range.end - range.start);
                self.released.insert(range.start..range.start + count);
            }
            None => {
                let free = self.written.prefix().saturating_sub(HELD_BACK);
                self.released.insert(0..free);
            }
        }
    }

    /// Where the run goes on. At its limit it looks for the next hole that is worth filling.
    pub fn course(&mut self, run: RunId) -> Course {
        if self.is_complete() {
            return Course::Complete;
        }
        let Some(place) = self.runs.iter().position(|other| other.id == run) else {
            return Course::Done;
        };
        let Some(this) = self.runs.get(place) else {
            return Course::Done;
        };
        let (claimed, limit, is_whole) = (this.claimed, this.limit, this.is_whole);
        if claimed < limit {
            return if self.is_wanted(claimed..limit) {
                Course::GoOn
            } else {
                Course::Done
            };
        }
        let end = self.end();
        let next = [limit..end, 0..limit]
            .into_iter()
            .filter(|_| is_whole || !self.is_divisible)
            .find_map(|part| self.wanted_gap(part));
        match (next, self.runs.get_mut(place)) {
            (Some(gap), Some(run)) => {
                run.claimed = gap.start;
                run.limit = gap.end;
                Course::MoveTo(gap.start)
            }
            _ => Course::Done,
        }
    }

    /// Whether anybody wants what the run fetches.
    pub fn is_run_wanted(&self, run: RunId) -> bool {
        self.runs
            .iter()
            .find(|other| other.id == run)
            .is_some_and(|run| self.is_wanted(run.claimed..run.limit))
    }

    pub fn end_run(&mut self, run: RunId) {
        self.runs.retain(|other| other.id != run);
    }

    /// The registry sends something else than the part that it is asked for. Another run brings everything, or this one
    /// does, from the first hole on.
    pub fn cannot_be_divided(&mut self, run: RunId) -> Course {
        self.is_divisible = false;
        let first = self.taken.gap(0, self.end());
        let is_alone = self.runs.iter().all(|other| other.id == run);
        match (self.runs.iter_mut().find(|other| other.id == run), first) {
            (Some(run), Some(gap)) if is_alone => {
                run.claimed = gap.start;
                run.limit = gap.end;
                run.is_whole = true;
                Course::MoveTo(gap.start)
            }
            _ => Course::Done,
        }
    }

    pub fn is_divisible(&self) -> bool {
        self.is_divisible
    }

    /// The end of a blob of unknown size.
    pub fn learn_size(&mut self, size: u64) {
        self.size.get_or_insert(size);
    }

    /// The digest has matched: there is nothing to hold back.
    pub fn verified(&mut self) {
        self.is_verified = true;
        self.released.insert(0..self.end());
    }

    fn end(&self) -> u64 {
        self.size.unwrap_or(u64::MAX)
    }

    fn draw_id(&mut self) -> u32 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    fn start(&mut self, part: Range<u64>, is_whole: bool) -> RunId {
        let id = self.draw_id();
        self.runs.push(Run {
            id,
            claimed: part.start,
            limit: part.end,
            is_whole,
        });
        id
    }

    fn is_whole(&self, wants: &Range<u64>) -> bool {
        wants.start == 0 && wants.end >= self.end()
    }

    fn is_wanted(&self, part: Range<u64>) -> bool {
        // What does not divide is read up to the part that is wanted.
        let part = if self.is_divisible {
            part
        } else {
            part.start..self.end()
        };
        self.written.total() >= self.worth_finishing
            || self
                .followers
                .iter()
                .any(|other| other.wants.start < part.end && part.start < other.wants.end)
    }

    /// The first part of `within` that is neither taken nor some run's to take.
    fn unclaimed(&self, within: Range<u64>) -> Option<Range<u64>> {
        let mut position = within.start;
        while let Some(gap) = self.taken.gap(position, within.end) {
            let inside = self
                .runs
                .iter()
                .find(|run| run.claimed <= gap.start && gap.start < run.limit);
            if let Some(run) = inside {
                position = run.limit;
                continue;
            }
            let next_run = self
                .runs
                .iter()
                .map(|run| run.claimed)
                .filter(|claimed| *claimed > gap.start)
                .min();
            return Some(gap.start..next_run.map_or(gap.end, |next| next.min(gap.end)));
        }
        None
    }

    fn wanted_gap(&self, within: Range<u64>) -> Option<Range<u64>> {
        let mut position = within.start;
        while let Some(gap) = self.unclaimed(position..within.end) {
            if self.is_wanted(gap.clone()) {
                return Some(gap);
            }
            position = gap.end;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;

    const SIZE: u64 = 100 * MIB;

    fn begun(kept: Extents) -> Progress {
        let mut progress = Progress::default();
        progress.begin(Some(SIZE), kept, |size| size / 4);
        progress
    }

    fn fresh() -> Progress {
        begun(Extents::default())
    }

    fn claimed(step: Step) -> RunId {
        match step {
            Step::Claim(run) => run,
            other => panic!("nothing to claim: {other:?}"),
        }
    }

    fn write(progress: &mut Progress, run: RunId, len: u64) -> Course {
        let range = progress.claim(run, len);
        progress.wrote(range);
        progress.course(run)
    }

    #[test]
    fn a_sequential_fill_holds_its_tail_back() {
        let mut progress = fresh();
        let follower = progress.follow(0..SIZE);
        let run = claimed(progress.step(follower, 0));
        assert_eq!(progress.part(run), 0..SIZE);
        assert_eq!(progress.step(follower, 0), Step::Wait);
        assert_eq!(write(&mut progress, run, MIB), Course::GoOn);
        assert_eq!(progress.step(follower, 0), Step::Ready(MIB));
        assert_eq!(write(&mut progress, run, SIZE), Course::Complete);
        assert_eq!(progress.step(follower, MIB), Step::Ready(SIZE - HELD_BACK));
        assert_eq!(progress.step(follower, SIZE - HELD_BACK), Step::Wait);
        progress.verified();
        assert_eq!(progress.step(follower, SIZE - HELD_BACK), Step::Ready(SIZE));
    }

    #[test]
    fn a_part_far_ahead_is_fetched_for_itself_and_not_again() {
        let mut progress = fresh();
        let whole = progress.follow(0..SIZE);
        let first = claimed(progress.step(whole, 0));
        let part = progress.follow(50 * MIB..51 * MIB);
        let second = claimed(progress.step(part, 50 * MIB));
        assert_eq!(progress.part(second), 50 * MIB..51 * MIB);
        assert_eq!(progress.part(first), 0..50 * MIB);
        let near = progress.follow(4 * MIB..5 * MIB);
        assert_eq!(progress.step(near, 4 * MIB), Step::Wait);
        assert_eq!(
            write(&mut progress, second, MIB),
            Course::Done,
            "another run comes by"
        );
        progress.end_run(second);
        assert_eq!(progress.step(part, 50 * MIB), Step::Ready(51 * MIB));
        assert_eq!(
            write(&mut progress, first, 50 * MIB),
            Course::MoveTo(51 * MIB)
        );
        assert_eq!(write(&mut progress, first, SIZE), Course::Complete);
    }

    #[test]
    fn the_last_bytes_to_come_are_held_back_wherever_they_are() {
        let mut progress = fresh();
        let tail = progress.follow(SIZE - MIB..SIZE);
        let run = claimed(progress.step(tail, SIZE - MIB));
        assert_eq!(progress.part(run), SIZE - MIB..SIZE);
        progress.claim(run, MIB);
        progress.wrote(SIZE - MIB..SIZE);
        progress.end_run(run);
        assert_eq!(progress.step(tail, SIZE - MIB), Step::Ready(SIZE));
        progress.leave(tail);
        let head = progress.follow(0..SIZE - MIB);
        let run = claimed(progress.step(head, 0));
        assert_eq!(write(&mut progress, run, SIZE), Course::Complete);
        let free = SIZE - MIB - HELD_BACK;
        assert_eq!(progress.step(head, 0), Step::Ready(free));
        assert_eq!(progress.step(head, free), Step::Wait);
    }

    #[test]
    fn what_nobody_wants_is_fetched_only_to_finish_what_is_well_on_its_way() {
        for (written, course) in [(MIB, Course::Done), (30 * MIB, Course::GoOn)] {
            let mut progress = fresh();
            let follower = progress.follow(0..SIZE);
            let run = claimed(progress.step(follower, 0));
            assert_eq!(write(&mut progress, run, written), Course::GoOn);
            progress.leave(follower);
            assert_eq!(progress.course(run), course, "after {written}");
        }
    }

    #[test]
    fn a_registry_that_does_not_divide_is_read_by_one_run() {
        let mut progress = fresh();
        let whole = progress.follow(0..SIZE);
        let first = claimed(progress.step(whole, 0));
        let part = progress.follow(50 * MIB..51 * MIB);
        let second = claimed(progress.step(part, 50 * MIB));
        assert_eq!(progress.cannot_be_divided(second), Course::Done);
        progress.end_run(second);
        assert_eq!(progress.step(part, 50 * MIB), Step::Wait);
        assert_eq!(
            write(&mut progress, first, 50 * MIB),
            Course::MoveTo(50 * MIB)
        );
        assert_eq!(write(&mut progress, first, SIZE), Course::Complete);
        let mut progress = fresh();
        let part = progress.follow(50 * MIB..51 * MIB);
        let run = claimed(progress.step(part, 50 * MIB));
        assert_eq!(progress.cannot_be_divided(run), Course::MoveTo(0));
        assert_eq!(progress.part(run), 0..SIZE);
    }

    #[test]
    fn what_an_earlier_process_left_is_released_unless_it_may_be_all_but_the_tail() {
        let kept = |range: Range<u64>| [range].into_iter().collect::<Extents>();
        let mut progress = begun(kept(0..MIB));
        let follower = progress.follow(0..SIZE);
        assert_eq!(progress.step(follower, 0), Step::Ready(MIB));
        let run = claimed(progress.step(follower, MIB));
        assert_eq!(progress.part(run), MIB..SIZE);
        let mut progress = begun(kept(0..SIZE));
        let follower = progress.follow(0..SIZE);
        let run = claimed(progress.step(follower, 0));
        assert_eq!(progress.part(run), SIZE - HELD_BACK..SIZE);
        assert_eq!(write(&mut progress, run, SIZE), Course::Complete);
        assert_eq!(progress.step(follower, 0), Step::Wait);
    }
}
