//! Which blob makes room: S3-FIFO (Yang et al., SOSP 2023), by bytes.
//!
//! ```text
//!                  used again ┌────────────────────────────┐
//! new ──► small (10 %) ───────┴──► main ──► not used again: evicted
//!            │ not used             ▲  └──► used: once more, one use less
//!            ▼                      │
//!          evicted ──► ghosts ──────┘ stored again while it is remembered here
//! ```
//!
//! What is stored for the first time must be used before the small queue has passed it by, so a large image that is
//! pulled once pushes out a tenth of the cache at most. What is pulled every day but for the first time after
//! an eviction is remembered by its ghost, and goes to main at once.
//!
//! Sizes count. The queues' shares are of bytes; a large blob needs one more use for its way to main, and for each stay
//! there, because many others could be kept in its place; a tiny one goes to main unused, because it takes nobody's place.
//! benches/README.md has the figures, beside simpler policies.
//!
//! The queues name blobs by their places and are made anew from the index after a start; uses are counted there, by
//! whoever reads, without asking anybody here. Pinned and open blobs are passed over.

use std::collections::{HashMap, VecDeque};

use super::index::Place;

/// Of the cache's bytes: what the paper found best for nearly all of its traces.
const SMALL_SHARE: u64 = 10;
/// What of the cache a blob must be more than to be large, and less than to be tiny: 80 MiB and 1280 KiB of 20 GiB. Measured
/// (benches/evict.rs): without either, a sixth more blobs are missed, for a hundredth fewer bytes. Asking three uses of
/// large ones would save a tenth of the missed blobs, but is more than a daily pull has to show.
const LARGE_PART: u64 = 256;
const TINY_PART: u64 = 16384;
/// In a small cache nothing is large that is fetched in a second.
const LARGE_AT_LEAST: u64 = 64 << 20;
/// A ghost is some 40 bytes of memory.
const MOST_GHOSTS: usize = 1 << 18;

/// What eviction asks about blobs, and says of them.
pub trait Shelf {
    /// `None`: it is not stored any more.
    fn look(&self, place: Place) -> Option<Look>;
    /// Where it stands from now on.
    fn requeue(&mut self, place: Place, is_main: bool, frequency: u8);
}

#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// What it occupies.
    pub bytes: u64,
    pub frequency: u8,
    /// Pinned, or open.
    pub is_kept: bool,
    /// The same when it comes again.
    pub fingerprint: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    pub place: Place,
    pub bytes: u64,
    pub fingerprint: u64,
    is_main: bool,
}

#[derive(Clone)]
pub struct Queues {
    capacity: u64,
    small: Queue,
    main: Queue,
    ghosts: Ghosts,
}

#[derive(Clone, Default)]
struct Queue {
    places: VecDeque<Place>,
    bytes: u64,
}

impl Queue {
    fn push(&mut self, place: Place, bytes: u64) {
        self.places.push_back(place);
        self.bytes += bytes;
    }

    fn subtract(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Queues {
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity,
            small: Queue::default(),
            main: Queue::default(),
            ghosts: Ghosts::default(),
        }
    }

    /// Without blobs, but with what is remembered of those that have gone.
    pub fn emptied(self) -> Self {
        Self {
            ghosts: self.ghosts,
            ..Self::new(self.capacity)
        }
    }

    /// Says whether a new blob belongs into the main queue at once: its ghost was there.
    pub fn is_remembered(&mut self, fingerprint: u64) -> bool {
        self.ghosts.forget(fingerprint)
    }

    /// Those of one queue come in the order in which they were used.
    pub fn insert(&mut self, place: Place, bytes: u64, is_main: bool) {
        self.queue(is_main).push(place, bytes);
    }

    /// It went without having been chosen here. Its place is passed over when its turn comes.
    pub fn removed(&mut self, bytes: u64, is_main: bool) {
        self.queue(is_main).subtract(bytes);
    }

    /// How many places are here, those of blobs that have gone included.
    pub fn len(&self) -> usize {
        self.small.places.len() + self.main.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next to go, taken out of its queue. `None`: all that is left must stay.
    pub fn victim(&mut self, shelf: &mut impl Shelf) -> Option<Victim> {
        // Each blob's uses are taken away once before all have been seen; then only those that must stay are left.
        let mut small_left = self.small.places.len();
        let mut main_left = (self.main.places.len() + small_left) * 5;
        let small_capacity = self.capacity / 100 * SMALL_SHARE;
        loop {
            let is_over = self.small.bytes > small_capacity || main_left == 0;
            if small_left > 0 && (is_over || self.main.places.is_empty()) {
                small_left -= 1;
                if let Some(victim) = self.next_of_small(shelf) {
                    return Some(victim);
                }
            } else if main_left > 0 && !self.main.places.is_empty() {
                main_left -= 1;
                if let Some(victim) = self.next_of_main(shelf) {
                    return Some(victim);
                }
            } else {
                return None;
            }
        }
    }

    /// It could not be removed, or has been used in the last moment.
    pub fn put_back(&mut self, victim: Victim) {
        self.ghosts.forget(victim.fingerprint);
        self.queue(victim.is_main).push(victim.place, victim.bytes);
    }

    fn next_of_small(&mut self, shelf: &mut impl Shelf) -> Option<Victim> {
        let place = self.small.places.pop_front()?;
        let look = shelf.look(place)?;
        if look.is_kept {
            self.small.places.push_back(place);
            return None;
        }
        self.small.subtract(look.bytes);
        if self.is_tiny(look.bytes) || look.frequency >= self.uses_to_stay(look.bytes) {
            shelf.requeue(place, true, 0);
            self.main.push(place, look.bytes);
            return None;
        }
        self.ghosts
            .remember(look.fingerprint, look.bytes, self.capacity);
        Some(Victim {
            place,
            bytes: look.bytes,
            fingerprint: look.fingerprint,
            is_main: false,
        })
    }

    fn next_of_main(&mut self, shelf: &mut impl Shelf) -> Option<Victim> {
        let place = self.main.places.pop_front()?;
        let look = shelf.look(place)?;
        if look.is_kept {
            self.main.places.push_back(place);
            return None;
        }
        let needed = self.uses_to_stay(look.bytes);
        if look.frequency >= needed {
            shelf.requeue(place, true, look.frequency - needed);
            self.main.places.push_back(place);
            return None;
        }
        self.main.subtract(look.bytes);
        Some(Victim {
            place,
            bytes: look.bytes,
            fingerprint: look.fingerprint,
            is_main: true,
        })
    }

    fn uses_to_stay(&self, bytes: u64) -> u8 {
        let is_large = bytes > (self.capacity / LARGE_PART).max(LARGE_AT_LEAST);
        if is_large { 2 } else { 1 }
    }

    fn is_tiny(&self, bytes: u64) -> bool {
        bytes < self.capacity / TINY_PART
    }

    fn queue(&mut self, is_main: bool) -> &mut Queue {
        if is_main {
            &mut self.main
        } else {
            &mut self.small
        }
    }
}

/// What was evicted from the small queue, as far back as main would have kept it.
#[derive(Clone, Default)]
struct Ghosts {
    /// When each was evicted: a fingerprint that came again has an older turn in the queue, which says nothing.
    turns: HashMap<u64, u64>,
    queue: VecDeque<(u64, u64, u64)>,
    bytes: u64,
    turn: u64,
}

impl Ghosts {
    fn remember(&mut self, fingerprint: u64, bytes: u64, capacity: u64) {
        self.turn += 1;
        self.turns.insert(fingerprint, self.turn);
        self.queue.push_back((fingerprint, self.turn, bytes));
        self.bytes += bytes;
        while self.bytes > capacity || self.queue.len() > MOST_GHOSTS {
            let Some((fingerprint, turn, bytes)) = self.queue.pop_front() else {
                return;
            };
            self.bytes = self.bytes.saturating_sub(bytes);
            if self.turns.get(&fingerprint) == Some(&turn) {
                self.turns.remove(&fingerprint);
            }
        }
    }

    fn forget(&mut self, fingerprint: u64) -> bool {
        self.turns.remove(&fingerprint).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    #[derive(Default)]
    struct Model {
        blobs: HashMap<u32, Look>,
    }

    impl Shelf for Model {
        fn look(&self, place: Place) -> Option<Look> {
            self.blobs.get(&place.slot).copied()
        }

        fn requeue(&mut self, place: Place, _is_main: bool, frequency: u8) {
            if let Some(blob) = self.blobs.get_mut(&place.slot) {
                blob.frequency = frequency;
            }
        }
    }

    struct Cache {
        model: Model,
        queues: Queues,
        used: u64,
    }

    impl Cache {
        fn new(capacity: u64) -> Self {
            Self {
                model: Model::default(),
                queues: Queues::new(capacity),
                used: 0,
            }
        }

        fn has(&self, number: u32) -> bool {
            self.model.blobs.contains_key(&number)
        }

        /// A pull: a use if it is there, else it is stored.
        fn pull(&mut self, number: u32, bytes: u64) -> bool {
            if let Some(blob) = self.model.blobs.get_mut(&number) {
                blob.frequency = (blob.frequency + 1).min(3);
                return true;
            }
            while self.used + bytes > self.queues.capacity {
                let victim = self.queues.victim(&mut self.model).expect("a victim");
                self.model.blobs.remove(&victim.place.slot);
                self.used -= victim.bytes;
            }
            let look = Look {
                bytes,
                frequency: 0,
                is_kept: false,
                fingerprint: u64::from(number),
            };
            let is_main = self.queues.is_remembered(look.fingerprint);
            self.queues.insert(place(number), bytes, is_main);
            self.model.blobs.insert(number, look);
            self.used += bytes;
            false
        }
    }

    fn place(slot: u32) -> Place {
        Place {
            slot,
            generation: 0,
        }
    }

    #[test]
    fn one_large_image_does_not_push_out_what_is_pulled_daily() {
        let mut cache = Cache::new(1000);
        for _ in 0..2 {
            for daily in 0..80 {
                cache.pull(daily, 10);
            }
        }
        // Three times the cache, each layer once.
        for layer in 1000..1300 {
            cache.pull(layer, 10);
        }
        let kept = (0..80).filter(|daily| cache.has(*daily)).count();
        assert_eq!(kept, 80, "of the 80 that are pulled daily");
    }

    #[test]
    fn what_comes_again_soon_after_it_went_is_kept() {
        let mut cache = Cache::new(1000);
        for number in 0..200 {
            cache.pull(number, 10);
        }
        let gone = (0..200)
            .rfind(|number| !cache.has(*number))
            .expect("some went");
        assert!(!cache.pull(gone, 10));
        for number in 1000..1300 {
            cache.pull(number, 10);
        }
        assert!(cache.has(gone), "its ghost was remembered");
    }

    #[test]
    fn what_must_stay_stays_and_the_search_for_a_victim_ends() {
        let mut cache = Cache::new(1000);
        for number in 0..100 {
            cache.pull(number, 10);
            cache.pull(number, 10);
        }
        for (number, blob) in &mut cache.model.blobs {
            blob.is_kept = *number != 42;
            blob.frequency = 3;
        }
        let victim = cache.queues.victim(&mut cache.model).expect("one may go");
        assert_eq!(victim.place, place(42));
        assert_eq!(cache.queues.victim(&mut cache.model), None);
        cache.queues.put_back(victim);
        let again = cache.queues.victim(&mut cache.model).expect("it is back");
        assert_eq!(again.place, place(42));
        cache.model.blobs.clear();
        assert_eq!(cache.queues.victim(&mut cache.model), None);
        assert!(cache.queues.is_empty(), "what is gone is forgotten");
    }

    #[test]
    fn what_was_not_used_again_goes_in_the_order_in_which_it_came() {
        let mut cache = Cache::new(1000);
        for number in 0..100 {
            cache.pull(number, 10);
        }
        cache.pull(0, 10);
        let order: Vec<u32> = iter::from_fn(|| cache.queues.victim(&mut cache.model))
            .map(|victim| victim.place.slot)
            .take(80)
            .collect();
        assert_eq!(order, (1..=80).collect::<Vec<_>>());
    }

    #[test]
    fn a_large_blob_must_be_used_more_to_stay_and_a_tiny_one_less() {
        const MIB: u64 = 1 << 20;
        for (bytes, uses, stays) in [
            (100 * MIB, 0, false),
            (100 * MIB, 1, true),
            (101 * MIB, 1, false),
            (101 * MIB, 2, true),
            (2 * MIB, 0, false),
            (MIB, 0, true),
        ] {
            let mut cache = Cache::new(256 * 100 * MIB);
            cache.pull(0, bytes);
            for _ in 0..uses {
                cache.pull(0, bytes);
            }
            for number in 1..600 {
                cache.pull(number, 100 * MIB);
            }
            assert_eq!(cache.has(0), stays, "{bytes} bytes, used {uses} times");
        }
    }
}
