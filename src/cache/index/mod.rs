//! The index: which blobs are stored, in a mapped file that all cores share.
//!
//! ```text
//! <cache>/index
//! ┌────────────┬────────┬────────┬─ … ─┬──────────┐
//! │ header     │ slot 0 │ slot 1 │     │ slot n-1 │      header.rs: 4 KiB     slot.rs: 64 bytes each
//! └────────────┴────────┴────────┴─ … ─┴──────────┘      n is a power of two
//! ```
//!
//! The files under `blobs/` are the truth and this is a list of them: whatever stands here, a blob is only served from
//! a file of its name and size. Readers take no lock and make no system call. Writers come one at a time: who writes
//! holds the one `Pen`. A page of the file is only as new as the last sync on disk, but in the page cache at once. So
//! after a kill it has every store; after a crash of the machine it is thrown away and the files are listed.
//!
//! What a kill can leave, and what recovery makes of it:
//!
//! ```text
//! Writing      nothing has been promised                             → free
//! Committing   the file has its name, or not yet                     → Live if it is there in its size, else free
//! Removing     the file is there, or not any more                    → removed, free
//! ```
//!
//! A blob stands in one of two buckets of eight slots, chosen by a keyed hash: in the first as long as that is not more
//! than half full, then in the emptier one, and there in the first free slot from a third choice on. So a search ends after
//! sixteen slots and mostly after one, nothing is ever moved while it is read, and a freed slot leaves no trace. At three
//! quarters of the slots one blob in a hundred finds both of its buckets full; then one of those in them makes room.

mod file;
mod header;
mod siphash;
mod slot;

use std::sync::atomic::{AtomicU64, Ordering};

use super::budget::on_disk;
use crate::{
    oci::{Digest, Registry, Repository},
    sys::MappedWords,
};
use header::{HEADER_WORDS, Header, SLOT_WORDS};
use siphash::SipKeys;
use slot::{Content, Control, Slot, State};

pub use file::slots_of;
pub use header::{FEWEST_SLOTS, MOST_SLOTS};
pub use slot::{HIGHEST_FREQUENCY, LARGEST_SIZE, Name};

/// Slots of one bucket: 512 bytes, which the processor fetches faster than as many slots far apart.
const BUCKET: usize = 8;
/// A blob that was used within this time is not written to again: a hot one would make its line travel between cores.
const USE_GRAIN: u64 = 60;

/// One slot of one generation: a blob, as long as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub slot: u32,
    pub generation: u32,
}

/// What a search found.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    pub place: Place,
    pub size: u64,
    control: Control,
}

/// All that a slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub place: Place,
    pub name: Name,
    pub size: u64,
    pub repository: u64,
    pub last_use: u64,
    pub frequency: u8,
    pub is_main: bool,
}

impl Name {
    /// Of the registry's name.
    pub fn registry_hash(&self) -> u64 {
        self.registry
    }

    pub fn is_sha512(&self) -> bool {
        self.is_sha512
    }

    /// Of a sha512 digest, its first half.
    pub fn digest_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (part, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.digest) {
            *part = word.to_be_bytes();
        }
        bytes
    }
}

/// Whoever has it is the only one to write.
pub struct Pen(());

/// How an index was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// As it was closed.
    Closed,
    /// Its process was killed; it has been settled with the files.
    Recovered,
    /// There was none, or none to be trusted: the files are to be listed.
    New,
}

/// Asked while an index is recovered.
pub trait Files {
    /// The size of the blob's file, if it is there.
    fn size_of(&mut self, index: &Index, name: &Name) -> Option<u64>;
    fn remove(&mut self, index: &Index, name: &Name);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// There is room for it when one of its rivals has gone.
    Full,
    TooLarge,
}

pub struct Index {
    map: MappedWords,
    /// Slots less one.
    mask: usize,
    keys: SipKeys,
    /// Written with the pen, read by anybody.
    blobs: AtomicU64,
    bytes: AtomicU64,
}

/// How many slots a cache of `max_size` gets. Blobs are seldom smaller than this on average; where they are, more of
/// them are evicted than their bytes ask for.
pub fn slots_for(max_size: u64) -> usize {
    const BYTES_PER_SLOT: u64 = 32 << 10;
    usize::try_from(max_size / BYTES_PER_SLOT)
        .unwrap_or(MOST_SLOTS)
        .clamp(FEWEST_SLOTS, MOST_SLOTS)
        .next_power_of_two()
        .min(MOST_SLOTS)
}

impl Index {
    pub fn slots(&self) -> usize {
        self.mask + 1
    }

    pub fn blob_count(&self) -> u64 {
        self.blobs.load(Ordering::Relaxed)
    }

    /// What the blobs occupy.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn name(&self, registry: &Registry, digest: &Digest) -> Name {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(digest.as_bytes().as_chunks::<8>().0) {
            *word = u64::from_be_bytes(*bytes);
        }
        Name {
            registry: self.registry_hash(registry),
            digest: words,
            is_sha512: matches!(digest, Digest::Sha512(_)),
        }
    }

    pub fn registry_hash(&self, registry: &Registry) -> u64 {
        self.keys.hash(registry.as_str().as_bytes())
    }

    /// Of a repository within its registry.
    pub fn repository_hash(&self, registry: u64, repository: &Repository) -> u64 {
        let SipKeys([one, other]) = self.keys;
        SipKeys([one ^ registry, other]).hash(repository.as_str().as_bytes())
    }

    /// Also what is about to be removed: whether that succeeds is known with the pen only.
    pub fn find(&self, name: &Name) -> Option<Sighting> {
        self.find_in(name, &[State::Live, State::Removing])
    }

    fn find_in(&self, name: &Name, states: &[State]) -> Option<Sighting> {
        for number in self.search(name) {
            let slot = self.slot(number);
            let mut control = slot.control();
            // What is written at this moment was not there a moment ago, and is not before the writing is done.
            while states.contains(&control.state()) && slot.is_named(control, name) {
                let size = slot.size();
                let after = slot.control_afterwards();
                let is_whole = after.generation() == control.generation();
                if is_whole && states.contains(&after.state()) {
                    return Some(Sighting {
                        place: self.place(number, after),
                        size,
                        control: after,
                    });
                }
                control = slot.control();
            }
        }
        None
    }

    /// Counts a use. False if there was nothing to count: it has just been used, and often.
    pub fn touch(&self, sighting: &Sighting, now: u64) -> bool {
        let control = sighting.control;
        let frequency = control.frequency();
        let is_recent = now.saturating_sub(control.last_use()) < USE_GRAIN;
        if frequency == HIGHEST_FREQUENCY && is_recent {
            return false;
        }
        let used = control.with_frequency(frequency + 1).with_last_use(now);
        self.slot(self.number(sighting.place.slot))
            .replace_control(control, used)
    }

    /// Who uses it; `keeps` says of the one before whether he stays. The answer: who it was, if he has changed.
    pub fn note_repository(
        &self,
        sighting: &Sighting,
        repository: u64,
        keeps: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let slot = self.slot(self.number(sighting.place.slot));
        let before = slot.repository();
        let changes = before != repository
            && !keeps(before)
            && slot.control().generation() == sighting.place.generation;
        (changes && slot.set_repository(before, repository)).then_some(before)
    }

    /// Whether the slot has not been freed for another. After everything that the caller read before.
    pub fn is_same(&self, place: Place) -> bool {
        let control = self.slot(self.number(place.slot)).control_afterwards();
        control.generation() == place.generation
            && matches!(control.state(), State::Live | State::Removing)
    }

    /// A blob that is stored.
    pub fn entry(&self, place: Place) -> Option<Entry> {
        let content = self.slot(self.number(place.slot)).read()?;
        let is_it = content.control.generation() == place.generation
            && matches!(content.control.state(), State::Live | State::Removing);
        is_it.then_some(Entry {
            place,
            name: content.name,
            size: content.size,
            repository: content.repository,
            last_use: content.control.last_use(),
            frequency: content.control.frequency(),
            is_main: content.control.is_main(),
        })
    }

    /// The blobs, from this slot on.
    pub fn entries_from(&self, first: usize) -> impl Iterator<Item = Entry> {
        (first..self.slots()).filter_map(|number| {
            let control = self.slot(number).control();
            match control.state() {
                State::Live => self.entry(self.place(number, control)),
                _ => None,
            }
        })
    }

    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        self.entries_from(0)
    }

    /// Writes a blob that is not there yet. Its place, size and what is noted about it are `entry`'s, but for the place.
    pub fn insert(&self, pen: &mut Pen, entry: &Entry, stage: Stage) -> Result<Place, InsertError> {
        if entry.size > LARGEST_SIZE {
            return Err(InsertError::TooLarge);
        }
        let Some(number) = self.free_slot(&entry.name) else {
            return Err(InsertError::Full);
        };
        let slot = self.slot(number);
        let control = slot.write(Content {
            control: Control(0)
                .with_state(State::Committing)
                .with_main(entry.is_main)
                .with_frequency(entry.frequency)
                .with_last_use(entry.last_use),
            size: entry.size,
            repository: entry.repository,
            name: entry.name,
        });
        let place = self.place(number, control);
        if stage == Stage::Live {
            self.finish_insert(pen, place);
        }
        Ok(place)
    }

    /// Its file has its name.
    pub fn finish_insert(&self, _: &mut Pen, place: Place) {
        let slot = self.slot(self.number(place.slot));
        slot.change_control(|control| Some(control.with_state(State::Live)));
        self.blobs.fetch_add(1, Ordering::Relaxed);
        self.bytes
            .fetch_add(on_disk(slot.size()), Ordering::Relaxed);
    }

    /// Its file did not get its name.
    pub fn undo_insert(&self, _: &mut Pen, place: Place) {
        self.slot(self.number(place.slot)).free();
    }

    /// Its file is about to be removed. `None`: it is not there any more.
    pub fn begin_removal(&self, _: &mut Pen, place: Place) -> Option<Entry> {
        let entry = self.entry(place)?;
        self.slot(self.number(place.slot))
            .change_control(|control| Some(control.with_state(State::Removing)))?;
        Some(entry)
    }

    /// It stays after all.
    pub fn undo_removal(&self, _: &mut Pen, place: Place) {
        self.slot(self.number(place.slot))
            .change_control(|control| Some(control.with_state(State::Live)));
    }

    /// Its file is gone.
    pub fn finish_removal(&self, _: &mut Pen, place: Place) {
        let slot = self.slot(self.number(place.slot));
        subtract(&self.blobs, 1);
        subtract(&self.bytes, on_disk(slot.size()));
        slot.free();
    }

    /// For eviction: where it stands in the queues.
    pub fn requeue(&self, _: &mut Pen, place: Place, is_main: bool, frequency: u8) {
        self.slot(self.number(place.slot))
            .change_control(|control| {
                (control.generation() == place.generation)
                    .then(|| control.with_main(is_main).with_frequency(frequency))
            });
    }

    /// Where scrubbing goes on.
    pub fn scrubbed(&self) -> usize {
        usize::try_from(self.header().scrubbed()).unwrap_or(0) & self.mask
    }

    /// After a walk through many slots: those that nobody uses need not stay in memory.
    pub fn give_pages_back(&self) {
        self.map.give_pages_back();
    }

    pub fn set_scrubbed(&self, slot: u32) {
        self.header().set_scrubbed(u64::from(slot));
    }

    /// The blobs in whose place this one could stand.
    pub fn rivals(&self, name: &Name) -> impl Iterator<Item = Entry> {
        self.search(name).filter_map(|number| {
            let control = self.slot(number).control();
            self.entry(self.place(number, control))
        })
    }

    fn free_slot(&self, name: &Name) -> Option<usize> {
        let is_free = |number: &usize| self.slot(*number).control().state() == State::Empty;
        let [first, second] = self.buckets(name);
        let free = |bucket: &Bucket| bucket.slots().filter(is_free).count();
        let (free_first, free_second) = (free(&first), free(&second));
        let chosen = match free_first >= BUCKET / 2 || free_first >= free_second {
            true => first,
            false => second,
        };
        chosen.slots().find(is_free)
    }

    /// The slots at which a blob may be, in the order in which they are tried.
    fn search(&self, name: &Name) -> impl Iterator<Item = usize> + use<> {
        self.buckets(name)
            .into_iter()
            .flat_map(|bucket| bucket.slots())
    }

    fn buckets(&self, name: &Name) -> [Bucket; 2] {
        let [first, second, ..] = name.digest;
        let SipKeys([one, other]) = self.keys;
        // Digests are as good as random, but whoever makes the blobs has some choice. He does not know the keys.
        let product = u128::from(first ^ one) * u128::from((second ^ name.registry ^ other) | 1);
        let bytes = (product ^ (product >> 64)).to_le_bytes();
        let [a, b, c, d, e, f, g, ..] = bytes.map(usize::from);
        let first_slot = |bucket: usize| (bucket * BUCKET) & self.mask;
        // The table has at most 2^18 buckets.
        let home = a | b << 8 | c << 16;
        let step = d | e << 8 | f << 16 | 1;
        [home, home ^ step].map(|bucket| Bucket {
            first: first_slot(bucket),
            preferred: g,
        })
    }

    fn place(&self, number: usize, control: Control) -> Place {
        Place {
            slot: u32::try_from(number).expect("there are at most 2^21 slots"),
            generation: control.generation(),
        }
    }

    fn number(&self, slot: u32) -> usize {
        slot as usize & self.mask
    }

    fn slot(&self, number: usize) -> Slot<'_> {
        let first = HEADER_WORDS + (number & self.mask) * SLOT_WORDS;
        let words = self.map.words().get(first..);
        Slot(
            words
                .and_then(|words| words.first_chunk())
                .expect("the map has as many slots as the mask says"),
        )
    }

    fn header(&self) -> Header<'_> {
        header_of(self.map.words())
    }
}

#[derive(Clone, Copy)]
struct Bucket {
    first: usize,
    /// Where its slots are begun with.
    preferred: usize,
}

impl Bucket {
    fn slots(self) -> impl Iterator<Item = usize> {
        (0..BUCKET).map(move |step| self.first + (self.preferred + step) % BUCKET)
    }
}

/// How far an insertion goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its file is about to get its name: `finish_insert` or `undo_insert` follows.
    Committing,
    /// Its file is there.
    Live,
}

fn header_of(words: &[AtomicU64]) -> Header<'_> {
    Header(words.first_chunk().expect("every map has a header"))
}

/// Never below zero: the totals of a closed index come from a file.
fn subtract(count: &AtomicU64, amount: u64) {
    let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
        Some(count.saturating_sub(amount))
    });
}

#[cfg(test)]
mod tests;
