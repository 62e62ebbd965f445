//! The folders and files of the cache. Everything here blocks.
//!
//! A file under `blobs/` is whole and right: it got its name only after its digest had matched and its bytes
//! were on disk. So a crash at any moment leaves a blob either there or absent, and `fills/` full of what
//! nobody needs.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::Key;
use crate::oci::{Algorithm, Registry};

pub(super) struct Disk {
    blobs: PathBuf,
    fills: PathBuf,
    next_fill: AtomicU64,
    /// Held for as long as we run: two processes in one folder would delete each other's fills.
    _lock: File,
}

pub(super) struct Found {
    pub(super) key: Key,
    pub(super) size: u64,
}

impl Disk {
    pub(super) fn load(directory: PathBuf) -> io::Result<(Self, Vec<Found>)> {
        create_folder(&directory)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join("lock"))?;
        lock.try_lock().map_err(|_| {
            io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!(
                    "another tidegate uses {}; give each its own [cache] directory",
                    directory.display()
                ),
            )
        })?;
        let disk = Self {
            blobs: directory.join("blobs"),
            fills: directory.join("fills"),
            next_fill: AtomicU64::new(0),
            _lock: lock,
        };
        match fs::remove_dir_all(&disk.fills) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        create_folder(&disk.fills)?;
        create_folder(&disk.blobs)?;
        let mut found = Vec::new();
        for folder in folders(&disk.blobs)? {
            let registry: Option<Registry> = folder
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok());
            let Some(registry) = registry else {
                tracing::warn!(path = %folder.display(), "not a folder of the cache; left alone");
                continue;
            };
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                for folder in folders(&folder.join(algorithm.as_str()))? {
                    take_stock(&folder, &registry, algorithm, &mut found)?;
                }
            }
        }
        // Recency is lost with the process; the order of arrival is the best guess left.
        found.sort_by_key(|(modified, _)| *modified);
        Ok((disk, found.into_iter().map(|(_, blob)| blob).collect()))
    }

    pub(super) fn path(&self, key: &Key) -> PathBuf {
        let hex = key.digest.hex();
        let folder = self
            .blobs
            .join(key.registry.as_str())
            .join(key.digest.algorithm().as_str());
        folder.join(hex.get(..2).unwrap_or_default()).join(&hex)
    }

    /// An error if the file is not of the size that it had when it was committed.
    pub(super) fn open(&self, key: &Key, size: u64) -> io::Result<File> {
        let file = File::open(self.path(key))?;
        if file.metadata()?.len() == size {
            Ok(file)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its size has changed",
            ))
        }
    }

    pub(super) fn remove(&self, key: &Key) {
        remove_file(&self.path(key));
    }

    /// Takes a blob's name away, and says where its file is until it is removed.
    pub(super) fn retire(&self, key: &Key) -> Option<PathBuf> {
        let path = self.next_path();
        match fs::rename(self.path(key), &path) {
            Ok(()) => Some(path),
            Err(_) => {
                self.remove(key);
                None
            }
        }
    }

    fn next_path(&self) -> PathBuf {
        let number = self.next_fill.fetch_add(1, Ordering::Relaxed);
        self.fills.join(number.to_string())
    }

    pub(super) fn create_fill(&self, size: u64) -> io::Result<(PathBuf, File)> {
        let path = self.next_path();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        match crate::sys::preallocate(&file, size) {
            Ok(()) => Ok((path, file)),
            Err(error) => {
                remove_file(&path);
                Err(error)
            }
        }
    }

    /// The blob's bytes reach the disk before its name does; the name itself may be lost, which loses
    /// a blob that can be fetched again.
    pub(super) fn commit(&self, path: &Path, file: &File, key: &Key) -> io::Result<()> {
        file.sync_data()?;
        let name = self.path(key);
        match fs::rename(path, &name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // The first blob of its folder.
                name.parent().map_or(Ok(()), create_folder)?;
                fs::rename(path, &name)
            }
            renamed => renamed,
        }
    }

    pub(super) fn discard_fill(path: &Path) {
        remove_file(path);
    }
}

fn remove_file(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a file of the cache cannot be removed");
    }
}

fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Those below `path`; none if there is no such folder.
fn folders(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn take_stock(
    folder: &Path,
    registry: &Registry,
    algorithm: Algorithm,
    found: &mut Vec<((i64, i64), Found)>,
) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let digest = name
            .to_str()
            .and_then(|hex| format!("{}:{hex}", algorithm.as_str()).parse().ok());
        let metadata = entry.metadata()?;
        match digest {
            Some(digest) if metadata.is_file() => {
                let modified = (metadata.mtime(), metadata.mtime_nsec());
                let key = Key {
                    registry: registry.clone(),
                    digest,
                };
                found.push((
                    modified,
                    Found {
                        key,
                        size: metadata.len(),
                    },
                ));
            }
            _ => {
                tracing::warn!(path = %entry.path().display(), "not a file of the cache; left alone")
            }
        }
    }
    Ok(())
}
