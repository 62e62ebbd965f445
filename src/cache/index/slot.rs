//! One slot of the index: eight words, one line of the processor's cache.
//!
//! ```text
//! word  63                    32 31                   8 7  6 5  4  3  2   0
//!   0   last use, s since 1970  | generation           |  |f|  m |  s| state      control
//!   1   0 (16 bits)             | size, bytes (48 bits)
//!   2   keyed hash of the registry's name
//!   3   keyed hash of the repository that used it last; a pinned one stays
//!  4–7  the digest's first 32 bytes
//!
//! f  frequency: uses since eviction looked at it, 3 at most       m  in the main queue, else in the small one
//! s  a sha512 digest, else sha256
//! ```
//!
//! Words 1, 2 and 4 to 7 change only while the state is `Writing`, and a new generation begins there. So a reader
//! that saw one `Live` generation before and after reading them has read what belongs together:
//!
//! ```text
//! writer   control = Writing, g+1 (Relaxed); fence(Release); words (Relaxed); control = … (Release)
//! reader   control (Acquire); words (Relaxed); fence(Acquire); control (Relaxed) has the same generation
//! ```
//!
//! If the reader saw any word of generation g+1, the two fences order the writer's first store before the reader's
//! last load, which then sees g+1 as well. Word 3 and the control word's upper bits may change at any time and belong
//! to nobody else's generation: the former is a hint, the latter change by compare-and-swap only.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// What a slot is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    pub(super) registry: u64,
    pub(super) digest: [u64; 4],
    pub(super) is_sha512: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Free.
    Empty,
    Live,
    /// Its file is about to be removed. Readers that have it open may go on.
    Removing,
    /// The words are being written.
    Writing,
    /// Its file is about to get its name.
    Committing,
    /// What no version of ours has written.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control(pub(super) u64);

const STATE: u64 = 0b111;
const SHA512: u64 = 1 << 3;
const MAIN: u64 = 1 << 4;
const FREQUENCY_SHIFT: u32 = 5;
const FREQUENCY: u64 = 0b11 << FREQUENCY_SHIFT;
const GENERATION_SHIFT: u32 = 8;
const GENERATION_BITS: u64 = (1 << 24) - 1;
const LAST_USE_SHIFT: u32 = 32;
const SIZE_BITS: u64 = (1 << 48) - 1;

pub const LARGEST_SIZE: u64 = SIZE_BITS;
pub const HIGHEST_FREQUENCY: u8 = 3;

impl Control {
    pub(super) fn state(self) -> State {
        match self.0 & STATE {
            0 => State::Empty,
            1 => State::Live,
            2 => State::Removing,
            3 => State::Writing,
            4 => State::Committing,
            _ => State::Unknown,
        }
    }

    pub(super) fn with_state(self, state: State) -> Self {
        let bits = match state {
            State::Empty => 0,
            State::Live => 1,
            State::Removing => 2,
            State::Writing => 3,
            State::Committing => 4,
            State::Unknown => 7,
        };
        Self(self.0 & !STATE | bits)
    }

    pub(super) fn is_sha512(self) -> bool {
        self.0 & SHA512 != 0
    }

    pub(super) fn is_main(self) -> bool {
        self.0 & MAIN != 0
    }

    pub(super) fn with_main(self, is_main: bool) -> Self {
        Self(if is_main {
            self.0 | MAIN
        } else {
            self.0 & !MAIN
        })
    }

    pub(super) fn frequency(self) -> u8 {
        // Two bits.
        ((self.0 & FREQUENCY) >> FREQUENCY_SHIFT).to_le_bytes()[0]
    }

    pub(super) fn with_frequency(self, frequency: u8) -> Self {
        let bits = u64::from(frequency.min(HIGHEST_FREQUENCY)) << FREQUENCY_SHIFT;
        Self(self.0 & !FREQUENCY | bits)
    }

    pub(super) fn generation(self) -> u32 {
        let bits = self.0 >> GENERATION_SHIFT & GENERATION_BITS;
        u32::try_from(bits).unwrap_or(0)
    }

    pub(super) fn last_use(self) -> u64 {
        self.0 >> LAST_USE_SHIFT
    }

    pub(super) fn with_last_use(self, seconds: u64) -> Self {
        let seconds = seconds.min(u64::from(u32::MAX));
        Self(self.0 & ((1 << LAST_USE_SHIFT) - 1) | seconds << LAST_USE_SHIFT)
    }

    fn next_generation(self) -> Self {
        let next = (u64::from(self.generation()) + 1) & GENERATION_BITS;
        Self(next << GENERATION_SHIFT)
    }
}

/// The words of a slot, read as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) control: Control,
    pub(super) size: u64,
    pub(super) repository: u64,
    pub(super) name: Name,
}

#[derive(Clone, Copy)]
pub(super) struct Slot<'i>(pub(super) &'i [AtomicU64; 8]);

impl Slot<'_> {
    pub(super) fn control(self) -> Control {
        Control(self.0[0].load(Ordering::Acquire))
    }

    /// `None`: it was being written.
    pub(super) fn read(self) -> Option<Content> {
        let control = self.control();
        let [_, size, registry, repository, digest @ ..] = self.0;
        let content = Content {
            control,
            size: size.load(Ordering::Relaxed) & SIZE_BITS,
            repository: repository.load(Ordering::Relaxed),
            name: Name {
                registry: registry.load(Ordering::Relaxed),
                digest: digest.each_ref().map(|word| word.load(Ordering::Relaxed)),
                is_sha512: control.is_sha512(),
            },
        };
        fence(Ordering::Acquire);
        let after = Control(self.0[0].load(Ordering::Relaxed));
        let is_whole =
            after.generation() == control.generation() && control.state() != State::Writing;
        is_whole.then_some(content)
    }

    /// Whether its words are `name`'s; they are whole only if the generation is the same afterwards.
    pub(super) fn is_named(self, control: Control, name: &Name) -> bool {
        let [_, _, registry, _, digest @ ..] = self.0;
        digest
            .iter()
            .zip(name.digest)
            .all(|(word, wanted)| word.load(Ordering::Relaxed) == wanted)
            && registry.load(Ordering::Relaxed) == name.registry
            && control.is_sha512() == name.is_sha512
    }

    pub(super) fn size(self) -> u64 {
        self.0[1].load(Ordering::Relaxed) & SIZE_BITS
    }

    /// The control word, after everything that was read before.
    pub(super) fn control_afterwards(self) -> Control {
        fence(Ordering::Acquire);
        Control(self.0[0].load(Ordering::Relaxed))
    }

    pub(super) fn repository(self) -> u64 {
        self.0[3].load(Ordering::Relaxed)
    }

    pub(super) fn set_repository(self, before: u64, repository: u64) -> bool {
        self.0[3]
            .compare_exchange(before, repository, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// One try: who meets another that counts at the same moment need not count.
    pub(super) fn replace_control(self, before: Control, after: Control) -> bool {
        self.0[0]
            .compare_exchange(before.0, after.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Until it succeeds; only touches come in between, and they are few. `None` from `change` leaves it alone.
    pub(super) fn change_control(
        self,
        mut change: impl FnMut(Control) -> Option<Control>,
    ) -> Option<Control> {
        self.0[0]
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
                change(Control(bits)).map(|control| control.0)
            })
            .ok()
            .map(Control)
    }

    /// Begins a new generation. For the one writer, and a slot that is free.
    pub(super) fn write(self, content: Content) -> Control {
        let begun = self.control().next_generation();
        self.0[0].store(begun.with_state(State::Writing).0, Ordering::Relaxed);
        fence(Ordering::Release);
        let [control, size, registry, repository, digest @ ..] = self.0;
        size.store(content.size & SIZE_BITS, Ordering::Relaxed);
        registry.store(content.name.registry, Ordering::Relaxed);
        repository.store(content.repository, Ordering::Relaxed);
        for (word, value) in digest.iter().zip(content.name.digest) {
            word.store(value, Ordering::Relaxed);
        }
        let sha512 = if content.name.is_sha512 { SHA512 } else { 0 };
        let written = Control(begun.0 | sha512)
            .with_main(content.control.is_main())
            .with_frequency(content.control.frequency())
            .with_last_use(content.control.last_use())
            .with_state(content.control.state());
        control.store(written.0, Ordering::Release);
        written
    }

    /// Frees it, and keeps its generation for the next one to count on.
    pub(super) fn free(self) {
        let kept = Control(self.control().0 & GENERATION_BITS << GENERATION_SHIFT);
        self.0[0].store(kept.with_state(State::Empty).0, Ordering::Release);
    }
}
