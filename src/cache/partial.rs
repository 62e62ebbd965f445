//! What fills write into, and what is left of those that were not finished, until somebody goes on with them.
//!
//! ```text
//! fills/<number>           the bytes that came, at their places
//! fills/<number>.extents   whose they are, and which there are; written from time to time, and when a fill stops
//! ```
//!
//! A file without its extents is of no use and is removed at the start. So are all of another boot: after a power cut
//! the extents may tell of bytes that never reached the disk. What survives is still proven by its digest in the end.
//! Everything here blocks.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Key, budget::Reservation, doubts::Doubts, extents::Extents, progress::SMALL};
use crate::{blocking::lock, sys};

/// A download that nobody has gone on with for this long is forgotten.
const MOST_AGE: Duration = Duration::from_secs(24 * 3600);
/// Each costs an entry in memory and two files.
const MOST_KEPT: usize = 1024;
/// Less than this is not worth two files.
const LEAST_KEPT: u64 = 256 << 10;
/// What the second file takes, while it is replaced.
const SIDECARS: u64 = 2 * 4096;

/// What the fill of a blob of `size` bytes may come to occupy. A small one is finished or forgotten, never kept.
pub(super) fn room_for(size: u64) -> u64 {
    if size <= SMALL {
        size
    } else {
        size.saturating_add(SIDECARS)
    }
}

/// A file that a fill writes into, and the room for it. Both go when it is dropped, unless it is kept or committed.
pub(super) struct Draft {
    path: PathBuf,
    file: Arc<File>,
    /// `None` once it was handed on.
    reservation: Option<Reservation>,
    is_kept: bool,
}

impl Draft {
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn reservation(&mut self) -> Option<&mut Reservation> {
        self.reservation.as_mut()
    }

    /// The file goes on under another name, with its room.
    pub(super) fn hand_over(mut self) -> Option<Reservation> {
        remove_file(&sidecar(&self.path));
        self.is_kept = true;
        self.reservation.take()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_kept {
            remove_file(&self.path);
            remove_file(&sidecar(&self.path));
        }
    }
}

/// A download that can be gone on with.
pub(super) struct Partial {
    draft: Draft,
    pub(super) size: u64,
    pub(super) extents: Extents,
    since: Instant,
}

impl Partial {
    pub(super) fn into_parts(self) -> (Draft, u64, Extents) {
        (self.draft, self.size, self.extents)
    }
}

/// What is beside a file's bytes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sidecar {
    boot: String,
    registry: String,
    digest: String,
    size: u64,
    extents: Vec<(u64, u64)>,
}

pub(super) struct Partials {
    folder: PathBuf,
    boot: String,
    next: AtomicU64,
    kept: Mutex<HashMap<Key, Partial>>,
    /// What is forgotten here was given out, most likely.
    doubts: Arc<Doubts>,
}

impl Partials {
    /// `count`: takes what a file occupies out of the budget, if there is room.
    pub(super) fn load(
        folder: PathBuf,
        doubts: Arc<Doubts>,
        count: impl Fn(u64) -> Option<Reservation>,
    ) -> io::Result<Self> {
        create_folder(&folder)?;
        let partials = Self {
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .map(|text| text.trim().to_owned())
                .unwrap_or_default(),
            next: AtomicU64::new(0),
            kept: Mutex::default(),
            doubts,
            folder,
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(&partials.folder)? {
            names.push(entry?.path());
        }
        for path in &names {
            if let Some((key, partial)) = partials.revive(path, &count) {
                lock(&partials.kept).insert(key, partial);
            }
        }
        let used: Vec<PathBuf> = lock(&partials.kept)
            .values()
            .flat_map(|partial| [partial.draft.path.clone(), sidecar(&partial.draft.path)])
            .collect();
        for path in names.iter().filter(|path| !used.contains(path)) {
            if path.is_dir() {
                tracing::warn!(path = %path.display(), "not a file of the cache; left alone");
            } else {
                remove_file(path);
            }
        }
        Ok(partials)
    }

    fn revive(
        &self,
        path: &Path,
        count: impl Fn(u64) -> Option<Reservation>,
    ) -> Option<(Key, Partial)> {
        let number = path.file_name()?.to_str()?.strip_suffix(".extents")?;
        let number: u64 = number.parse().ok()?;
        self.next
            .fetch_max(number.saturating_add(1), Ordering::Relaxed);
        let sidecar: Sidecar = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        if sidecar.boot != self.boot || self.boot.is_empty() {
            return None;
        }
        let key = Key {
            registry: sidecar.registry.parse().ok()?,
            digest: sidecar.digest.parse().ok()?,
        };
        let path = path.with_extension("");
        let file = open(&path, false).ok()?;
        let metadata = file.metadata().ok()?;
        let extents: Extents = sidecar
            .extents
            .into_iter()
            .map(|(start, end)| start..end)
            .collect();
        if extents.end() > sidecar.size.min(metadata.len()) {
            return None;
        }
        let mut draft = Draft {
            path,
            file: Arc::new(file),
            reservation: None,
            is_kept: true,
        };
        cut(&draft.file, &extents).ok()?;
        let occupied = occupied(&draft.file).ok()?;
        draft.reservation = Some(count(occupied + SIDECARS)?);
        draft.is_kept = false;
        let partial = Partial {
            draft,
            size: sidecar.size,
            extents,
            since: Instant::now(),
        };
        Some((key, partial))
    }

    pub(super) fn create(&self, reservation: Reservation) -> io::Result<Draft> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(number.to_string());
        let file = match open(&path, true) {
            // Somebody has emptied the cache's folder by hand.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_folder(&self.folder)?;
                open(&path, true)?
            }
            opened => opened?,
        };
        Ok(Draft {
            path,
            file: Arc::new(file),
            reservation: Some(reservation),
            is_kept: false,
        })
    }

    /// Writes down what is there, for a start after a kill.
    pub(super) fn note(
        &self,
        path: &Path,
        key: &Key,
        size: u64,
        extents: &Extents,
    ) -> io::Result<()> {
        let sidecar_text = Sidecar {
            boot: self.boot.clone(),
            registry: key.registry.to_string(),
            digest: key.digest.to_string(),
            size,
            extents: extents
                .iter()
                .map(|extent| (extent.start, extent.end))
                .collect(),
        };
        let path = sidecar(path);
        let fresh = path.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(&sidecar_text)?)?;
        fs::rename(fresh, path)
    }

    pub(super) fn forget_note(&self, path: &Path) {
        remove_file(&sidecar(path));
    }

    /// Takes the unfinished fill over. What is not worth it, or cannot be written down, goes.
    pub(super) fn keep(&self, key: Key, mut draft: Draft, size: u64, extents: Extents) {
        if size <= SMALL || extents.total() < LEAST_KEPT {
            self.doubts.add(&key, Some(size));
            return;
        }
        let kept = self
            .note(&draft.path, &key, size, &extents)
            .and_then(|()| cut(&draft.file, &extents))
            .and_then(|()| occupied(&draft.file));
        let Ok(occupied) = kept else {
            self.doubts.add(&key, Some(size));
            return;
        };
        if let Some(reservation) = draft.reservation() {
            reservation.shrink_to(occupied + SIDECARS);
        }
        let partial = Partial {
            draft,
            size,
            extents,
            since: Instant::now(),
        };
        let crowded = {
            let mut kept = lock(&self.kept);
            let before = kept.insert(key, partial);
            let crowded = (kept.len() > MOST_KEPT).then(|| oldest(&kept)).flatten();
            (before, crowded.and_then(|key| self.forget(&mut kept, &key)))
        };
        drop(crowded);
    }

    /// Size of the blob, and what there is of it.
    pub(super) fn peek(&self, key: &Key) -> Option<(u64, Extents)> {
        lock(&self.kept)
            .get(key)
            .map(|partial| (partial.size, partial.extents.clone()))
    }

    pub(super) fn take(&self, key: &Key) -> Option<Partial> {
        lock(&self.kept).remove(key)
    }

    /// Removes the one kept for longest; whether there was any.
    pub(super) fn drop_oldest(&self) -> bool {
        let oldest = {
            let mut kept = lock(&self.kept);
            oldest(&kept).and_then(|key| self.forget(&mut kept, &key))
        };
        oldest.is_some()
    }

    pub(super) fn drop_aged(&self) {
        let aged: Vec<Partial> = {
            let mut kept = lock(&self.kept);
            let keys: Vec<Key> = kept
                .iter()
                .filter(|(_, partial)| partial.since.elapsed() > MOST_AGE)
                .map(|(key, _)| key.clone())
                .collect();
            keys.iter()
                .filter_map(|key| self.forget(&mut kept, key))
                .collect()
        };
        drop(aged);
    }

    fn forget(&self, kept: &mut HashMap<Key, Partial>, key: &Key) -> Option<Partial> {
        let partial = kept.remove(key)?;
        self.doubts.add(key, Some(partial.size));
        Some(partial)
    }

    /// Count, and bytes on disk.
    pub(super) fn usage(&self) -> (usize, u64) {
        let kept = lock(&self.kept);
        let bytes = kept
            .values()
            .filter_map(|partial| partial.draft.reservation.as_ref())
            .map(Reservation::bytes)
            .sum();
        (kept.len(), bytes)
    }

    /// For the end: the files stay for the next process.
    pub(super) fn leave_to_successor(&self) {
        for partial in lock(&self.kept).values_mut() {
            partial.draft.is_kept = true;
        }
    }
}

fn oldest(kept: &HashMap<Key, Partial>) -> Option<Key> {
    kept.iter()
        .min_by_key(|(_, partial)| partial.since)
        .map(|(key, _)| key.clone())
}

fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn open(path: &Path, is_new: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(is_new)
        .mode(0o600)
        .open(path)
}

/// Claims the disk for a part ahead of its bytes. A small one is not worth the call.
pub(super) fn preallocate(file: &File, part: Range<u64>) -> io::Result<()> {
    const WORTH_IT: u64 = 1 << 20;
    if part.end.saturating_sub(part.start) < WORTH_IT {
        return Ok(());
    }
    sys::preallocate(file, part)
}

/// Gives back what was claimed ahead and not written. Nothing that anybody may read is cut off.
fn cut(file: &File, extents: &Extents) -> io::Result<()> {
    file.set_len(extents.end())
}

fn occupied(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks() * 512)
}

fn sidecar(path: &Path) -> PathBuf {
    path.with_extension("extents")
}

fn remove_file(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a file of the cache cannot be removed");
    }
}
