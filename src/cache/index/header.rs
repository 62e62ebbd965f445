//! The index file's first page: whether what follows is ours, and whether it can be trusted.
//!
//! ```text
//! word  0  magic                              ┐
//!       1  version (high half), slot size     │ constant; the magic also tells a foreign byte order
//!       2  slot count, a power of two         │
//!      3,4 keys of the hashes                 ┘
//!       5  checksum of 0 to 4
//!      6,7 id of the boot of the kernel whose page cache has the stores
//!       8  1: closed, 2: the files are being listed, 0: in use
//!       9  blobs        ┐
//!      10  their bytes  │ as of the close
//!      11  checksum of 6 to 10, as of the close
//!      12  the next slot to be scrubbed
//! ```

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

use super::siphash::SipKeys;

/// A page, so that it can be synced by itself and slots are aligned to lines.
pub(super) const HEADER_WORDS: usize = 512;
pub(super) const SLOT_WORDS: usize = 8;

const MAGIC: u64 = u64::from_be_bytes(*b"tideidx\n");
const VERSION: u64 = 1;
const IN_USE: u64 = 0;
const CLOSED: u64 = 1;
const TAKING_STOCK: u64 = 2;

const BOOT: usize = 6;
const STATE: usize = 8;
const BLOBS: usize = 9;
const BYTES: usize = 10;
const CLOSE_SUM: usize = 11;
const SCRUBBED: usize = 12;

pub const FEWEST_SLOTS: usize = 1 << 12;
pub const MOST_SLOTS: usize = 1 << 21;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) blobs: u64,
    pub(super) bytes: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// It was closed, and nothing has been stored since.
    Closed(Totals),
    /// Its process ended without closing it, but the kernel has kept each of its stores.
    Killed,
    /// Something else, or pages may be missing.
    None,
}

/// The kernel's boot: after another one, stores that were not synced are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Boot(pub(super) [u64; 2]);

impl Boot {
    /// Where the kernel does not say it is zero, which is never the same boot.
    pub(super) fn current() -> Self {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let half = |part: Option<&str>| {
            part.and_then(|digits| u64::from_str_radix(digits, 16).ok())
                .unwrap_or(0)
        };
        Self([half(digits.get(..16)), half(digits.get(16..32))])
    }
}

#[derive(Clone, Copy)]
pub(super) struct Header<'i>(pub(super) &'i [AtomicU64; HEADER_WORDS]);

impl Header<'_> {
    fn load(self, word: usize) -> u64 {
        self.0
            .get(word)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn store(self, word: usize, value: u64) {
        if let Some(word) = self.0.get(word) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Not a secret's hash: it tells accidents, and whoever can write the file can also write the blobs.
    fn sum(self, first: usize, count: usize) -> u64 {
        let bytes: Vec<u8> = (first..first + count)
            .flat_map(|word| self.load(word).to_le_bytes())
            .collect();
        SipKeys([MAGIC, VERSION]).hash(&bytes)
    }

    pub(super) fn begin(self, slot_count: usize, keys: SipKeys, boot: Boot) {
        let [one, other] = keys.0;
        let kind = VERSION << 32 | (SLOT_WORDS * 8) as u64;
        let words = [MAGIC, kind, slot_count as u64, one, other];
        for (word, value) in words.into_iter().enumerate() {
            self.store(word, value);
        }
        self.store(5, self.sum(0, 5));
        self.open(boot, false);
    }

    /// How many slots follow, if this is an index of ours in a file of `file_words`.
    pub(super) fn slot_count(self, file_words: usize) -> Option<usize> {
        let is_ours = self.load(0) == MAGIC
            && self.load(1) == VERSION << 32 | (SLOT_WORDS * 8) as u64
            && self.load(5) == self.sum(0, 5);
        let count = usize::try_from(self.load(2)).ok()?;
        let fits = count.is_power_of_two()
            && (FEWEST_SLOTS..=MOST_SLOTS).contains(&count)
            && file_words == HEADER_WORDS + count * SLOT_WORDS;
        (is_ours && fits).then_some(count)
    }

    pub(super) fn keys(self) -> SipKeys {
        SipKeys([self.load(3), self.load(4)])
    }

    pub(super) fn trust(self, boot: Boot) -> Trust {
        let [high, low] = boot.0;
        match self.load(STATE) {
            CLOSED if self.load(CLOSE_SUM) == self.sum(BOOT, 5) => Trust::Closed(Totals {
                blobs: self.load(BLOBS),
                bytes: self.load(BYTES),
            }),
            IN_USE
                if boot != Boot([0, 0])
                    && self.load(BOOT) == high
                    && self.load(BOOT + 1) == low =>
            {
                Trust::Killed
            }
            _ => Trust::None,
        }
    }

    pub(super) fn open(self, boot: Boot, is_complete: bool) {
        let [high, low] = boot.0;
        self.store(BOOT, high);
        self.store(BOOT + 1, low);
        self.store(STATE, if is_complete { IN_USE } else { TAKING_STOCK });
    }

    pub(super) fn close(self, totals: Totals) {
        self.store(BLOBS, totals.blobs);
        self.store(BYTES, totals.bytes);
        self.store(STATE, CLOSED);
        self.store(CLOSE_SUM, self.sum(BOOT, 5));
    }

    pub(super) fn scrubbed(self) -> u64 {
        self.load(SCRUBBED)
    }

    pub(super) fn set_scrubbed(self, slot: u64) {
        self.store(SCRUBBED, slot);
    }
}
