//! The index as a file: made, opened, found half done after a kill, and closed.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    BUCKET, Condition, Files, Index, Pen, Stage,
    header::{Boot, FEWEST_SLOTS, HEADER_WORDS, MOST_SLOTS, SLOT_WORDS, Totals, Trust},
    header_of,
    siphash::SipKeys,
    slot::{Name, State},
};
use crate::{cache::budget::on_disk, sys::MappedWords};

const LARGEST_FILE: usize = (HEADER_WORDS + MOST_SLOTS * SLOT_WORDS) * 8;
const BOOT_OF_BYTES: Boot = Boot([1, 1]);

#[derive(Debug, thiserror::Error)]
enum CreateError {
    #[error(transparent)]
    Disk(io::Error),
    #[error("not all of it fits")]
    DoesNotFit,
}

/// How many slots the index at `path` has. `None`: there is none, or it is none.
pub fn slots_of(path: &Path) -> Option<usize> {
    let words = usize::try_from(fs::metadata(path).ok()?.len() / 8).ok()?;
    let slots = words.checked_sub(HEADER_WORDS)? / SLOT_WORDS;
    (slots.is_power_of_two() && slots <= MOST_SLOTS).then_some(slots)
}

impl Index {
    /// Opens the index at `path`, or makes a new one of `slots`. Where the disk has no room for it, it is kept in memory
    /// and ends with the process.
    pub fn load(path: &Path, slots: usize, files: &mut impl Files) -> (Self, Pen, Condition) {
        let mut pen = Pen(());
        let boot = Boot::current();
        let old = Self::open(path, boot, &mut pen, files).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "the cache's index cannot be read");
            None
        });
        let Some((old, condition)) = old else {
            return (Self::create_anyhow(path, slots, boot), pen, Condition::New);
        };
        if old.slots() == slots {
            old.begin_use(boot, true);
            return (old, pen, condition);
        }
        match Self::create(path, slots, old.keys, boot, |new| {
            old.copy_to(new, &mut pen)
        }) {
            Ok(new) => {
                new.begin_use(boot, true);
                (new, pen, condition)
            }
            Err(CreateError::Disk(error)) => {
                tracing::warn!(path = %path.display(), %error, "the cache's index keeps its old size");
                old.begin_use(boot, true);
                (old, pen, condition)
            }
            Err(CreateError::DoesNotFit) => {
                (Self::create_anyhow(path, slots, boot), pen, Condition::New)
            }
        }
    }

    /// An index that ends with this value.
    pub fn in_memory(slots: usize) -> (Self, Pen) {
        let slots = slots.clamp(FEWEST_SLOTS, MOST_SLOTS).next_power_of_two();
        let map = MappedWords::anonymous(HEADER_WORDS + slots * SLOT_WORDS)
            .expect("there is memory for the index");
        header_of(map.words()).begin(slots, SipKeys::random(), Boot([0, 0]));
        (Self::over(map, slots), Pen(()))
    }

    /// What `bytes` are as an index file whose process was killed during this boot, or that was closed: foreign bytes
    /// take the same way as a file's.
    pub fn from_bytes(
        bytes: &[u8],
        files: &mut impl Files,
    ) -> io::Result<Option<(Self, Pen, Condition)>> {
        if bytes.len() < HEADER_WORDS * 8 {
            return Ok(None);
        }
        let map = MappedWords::anonymous(bytes.len() / 8)?;
        for (word, value) in map.words().iter().zip(bytes.as_chunks::<8>().0) {
            word.store(u64::from_ne_bytes(*value), Ordering::Relaxed);
        }
        let mut pen = Pen(());
        let found = Self::trusted(map, BOOT_OF_BYTES, &mut pen, files);
        Ok(found.map(|(index, condition)| (index, pen, condition)))
    }

    /// What `from_bytes` takes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.header().open(BOOT_OF_BYTES, true);
        let words = self.map.words().iter();
        words
            .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
            .collect()
    }

    fn open(
        path: &Path,
        boot: Boot,
        pen: &mut Pen,
        files: &mut impl Files,
    ) -> io::Result<Option<(Self, Condition)>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        if !(HEADER_WORDS * 8..=LARGEST_FILE).contains(&size) {
            return Ok(None);
        }
        let map = MappedWords::of_file(&file, size / 8)?;
        Ok(Self::trusted(map, boot, pen, files))
    }

    fn trusted(
        map: MappedWords,
        boot: Boot,
        pen: &mut Pen,
        files: &mut impl Files,
    ) -> Option<(Self, Condition)> {
        let header = header_of(map.words());
        let slots = header.slot_count(map.words().len())?;
        let trust = header.trust(boot);
        let index = Self::over(map, slots);
        match trust {
            Trust::Closed(totals) => {
                index.blobs.store(totals.blobs, Ordering::Relaxed);
                index.bytes.store(totals.bytes, Ordering::Relaxed);
                Some((index, Condition::Closed))
            }
            Trust::Killed => {
                index.recover(pen, files);
                Some((index, Condition::Recovered))
            }
            Trust::None => None,
        }
    }

    fn over(map: MappedWords, slots: usize) -> Self {
        let keys = header_of(map.words()).keys();
        Self {
            map,
            mask: slots - 1,
            keys,
            blobs: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// In memory if the disk does not take it.
    fn create_anyhow(path: &Path, slots: usize, boot: Boot) -> Self {
        match Self::create(path, slots, SipKeys::random(), boot, |_| true) {
            Ok(index) => index,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the cache's index is kept in memory; the next start will list the files");
                // An old one would be believed then.
                let _ = fs::remove_file(path);
                Self::in_memory(slots).0
            }
        }
    }

    /// Takes the old one's place when `fill` has filled it.
    fn create(
        path: &Path,
        slots: usize,
        keys: SipKeys,
        boot: Boot,
        fill: impl FnOnce(&Self) -> bool,
    ) -> Result<Self, CreateError> {
        let draft = path.with_extension("new");
        let created = create_file(&draft).and_then(|file| {
            let map = MappedWords::of_file(&file, HEADER_WORDS + slots * SLOT_WORDS)?;
            header_of(map.words()).begin(slots, keys, boot);
            Ok(Self::over(map, slots))
        });
        let index = match created {
            Ok(index) if fill(&index) => Ok(index),
            Ok(_) => Err(CreateError::DoesNotFit),
            Err(error) => Err(CreateError::Disk(error)),
        };
        let placed = index.and_then(|index| {
            index.sync_header();
            fs::rename(&draft, path).map_err(CreateError::Disk)?;
            Ok(index)
        });
        if placed.is_err() {
            let _ = fs::remove_file(&draft);
        }
        placed
    }

    /// False if not all of it fits.
    fn copy_to(&self, new: &Self, pen: &mut Pen) -> bool {
        self.entries()
            .all(|entry| new.insert(pen, &entry, Stage::Live).is_ok())
    }

    /// Another boot than this must not trust what is stored from now on.
    fn begin_use(&self, boot: Boot, is_complete: bool) {
        self.header().open(boot, is_complete);
        self.sync_header();
    }

    /// All files have been listed.
    pub fn complete(&self, _: &mut Pen) {
        self.begin_use(Boot::current(), true);
    }

    /// The next start may trust it, whatever happens to the machine. Nothing may be inserted or removed afterwards.
    pub fn close(&self, _: &mut Pen) -> io::Result<()> {
        self.map.sync(self.map.words().len())?;
        self.header().close(Totals {
            blobs: self.blob_count(),
            bytes: self.bytes(),
        });
        self.map.sync(HEADER_WORDS)
    }

    fn sync_header(&self) {
        if let Err(error) = self.map.sync(HEADER_WORDS) {
            tracing::warn!(%error, "the head of the cache's index cannot be written");
        }
    }

    /// One look at each slot: what was in between is settled, what stands where no search would find it is freed, and all
    /// is counted anew.
    fn recover(&self, _: &mut Pen, files: &mut impl Files) {
        let mut totals = Totals::default();
        for number in 0..self.slots() {
            let slot = self.slot(number);
            let Some(content) = slot.read() else {
                slot.free();
                continue;
            };
            let stays = match content.control.state() {
                State::Empty => continue,
                State::Live => self.is_reachable(number, &content.name),
                State::Committing if self.is_alone(number, &content.name) => {
                    let is_there = files.size_of(self, &content.name) == Some(content.size);
                    if !is_there {
                        files.remove(self, &content.name);
                    }
                    is_there
                }
                State::Removing if self.is_alone(number, &content.name) => {
                    files.remove(self, &content.name);
                    false
                }
                _ => false,
            };
            if stays {
                if content.control.state() != State::Live {
                    slot.change_control(|control| Some(control.with_state(State::Live)));
                }
                totals.blobs += 1;
                totals.bytes = totals.bytes.saturating_add(on_disk(content.size));
            } else {
                slot.free();
            }
        }
        self.blobs.store(totals.blobs, Ordering::Relaxed);
        self.bytes.store(totals.bytes, Ordering::Relaxed);
    }

    fn is_reachable(&self, number: usize, name: &Name) -> bool {
        let bucket = number / BUCKET * BUCKET;
        self.buckets(name).iter().any(|one| one.first == bucket)
    }

    /// Reachable, and no other slot has the same blob.
    fn is_alone(&self, number: usize, name: &Name) -> bool {
        let states = [State::Live, State::Committing, State::Removing];
        self.is_reachable(number, name)
            && self.search(name).all(|other| {
                let slot = self.slot(other);
                let control = slot.control();
                other == number
                    || !states.contains(&control.state())
                    || !slot.is_named(control, name)
            })
    }
}

fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}
