//! Scrubbing: every stored blob is read and hashed again within a while, and what has changed is removed,
//! to be fetched again (`healing.rs`).
//!
//! One thread that reads when nobody else wants the disk, at a pace that spreads one turn over the whole interval. It goes
//! on after a restart where it was. What it reads does not stay in memory unless it was there already.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{Condvar, Mutex, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use super::{Key, budget::on_disk, index::Entry, store::Store};
use crate::{
    blocking::lock,
    oci::Hasher,
    sys,
    telemetry::metrics::{self, Counter},
};

/// How much is in memory at a time.
const BUFFER: usize = 256 << 10;
/// How long it waits when there is nothing to read, or nothing can be read.
const REST: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Right,
    /// Its content was not what its name says; it has been removed.
    Damaged,
    /// Its file was gone, or of another size; it has been removed.
    Lost,
    Absent,
}

/// Ends what runs in the background.
#[derive(Default)]
pub(super) struct Stop {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub(super) fn set(&self) {
        *lock(&self.is_set) = true;
        self.changed.notify_all();
    }

    pub(super) fn is_set(&self) -> bool {
        *lock(&self.is_set)
    }

    /// True if it was set meanwhile.
    fn wait(&self, time: Duration) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(lock(&self.is_set), time, |is_set| !*is_set)
            .unwrap_or_else(PoisonError::into_inner);
        *waited.0
    }
}

pub(super) fn begin(store: Weak<Store>, interval: Duration) -> io::Result<()> {
    thread::Builder::new()
        .name("scrub".to_owned())
        .spawn(move || {
            sys::lower_priority();
            scrub(&store, interval);
        })
        .map(drop)
}

fn scrub(store: &Weak<Store>, interval: Duration) {
    // Not a while loop over one store: it must not be kept by who waits.
    loop {
        let Some(held) = store.upgrade() else { return };
        let (stop, begun) = (held.stop.clone(), Instant::now());
        let share = scrub_next(&held);
        drop(held);
        let pause = share.map_or(REST.min(interval), |share| {
            interval.mul_f64(share).saturating_sub(begun.elapsed())
        });
        if stop.wait(pause) {
            return;
        }
    }
}

/// Which part of all bytes the next blob was; `None` if there was none to be read.
fn scrub_next(store: &Store) -> Option<f64> {
    if store.is_taking_stock() {
        return None;
    }
    let entry = next(store)?;
    store.index.set_scrubbed(entry.place.slot.wrapping_add(1));
    let key = store.key_of(&entry.name)?;
    let verdict = store.verify_place(&key, entry.place, entry.size).ok()?;
    if matches!(verdict, Verdict::Damaged | Verdict::Lost) {
        store.healing.add(key, entry.repository);
    }
    metrics::add(Counter::BlobsScrubbed, 1);
    let whole = store.index.bytes().max(on_disk(entry.size)).max(1);
    #[expect(clippy::cast_precision_loss, reason = "a pause may be a little off")]
    Some(on_disk(entry.size) as f64 / whole as f64)
}

fn next(store: &Store) -> Option<Entry> {
    /// In a large index that has few blobs it is far from one to the next.
    const FAR: usize = 1 << 14;
    if store.index.blob_count() == 0 {
        return None;
    }
    let first = store.index.scrubbed();
    let entry = store.index.entries_from(first).next();
    let is_near = entry
        .as_ref()
        .is_some_and(|entry| (entry.place.slot as usize).saturating_sub(first) < FAR);
    let entry = entry.or_else(|| store.index.entries().next());
    if !is_near {
        store.index.give_pages_back();
    }
    entry
}

/// Whether the content is what its name says. A disk that cannot read it is as bad as one that reads it wrongly. An error:
/// it was not to be finished.
pub(super) fn hash(file: &File, size: u64, key: &Key, stop: &Stop) -> io::Result<Verdict> {
    let mut hasher = Hasher::new(key.digest.algorithm());
    let mut buffer = vec![0; BUFFER];
    let mut offset = 0;
    while offset < size {
        if stop.is_set() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let was_cached = sys::is_cached(file, offset);
        let wanted = usize::try_from(size - offset).map_or(BUFFER, |left| left.min(BUFFER));
        let piece = buffer.get_mut(..wanted).unwrap_or_default();
        if let Err(error) = file.read_exact_at(piece, offset) {
            tracing::warn!(digest = %key.digest, %error, "a cached blob cannot be read");
            return Ok(Verdict::Damaged);
        }
        hasher.update(piece);
        if !was_cached {
            sys::forget(file, offset, piece.len() as u64);
        }
        offset += piece.len() as u64;
    }
    Ok(match hasher.finish() == key.digest {
        true => Verdict::Right,
        false => Verdict::Damaged,
    })
}
