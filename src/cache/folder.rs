//! The folders and files of stored blobs. Everything here blocks.
//!
//! ```text
//! <directory>/lock                               held while a process uses the folder
//! <directory>/blobs/<registry>/sha256/ab/<hex>   complete: named when the digest had matched and the bytes were synced
//! <directory>/gone/<number>                      about to be removed; emptied at the next start
//! ```
//!
//! What holds after the power has failed: a file under its name is complete and right. Its bytes and its size are on
//! disk before it is renamed, because fdatasync writes the metadata that is needed to read them back; a rename is one
//! transaction of ext4's and XFS's journals, which is there whole or not at all. Whether it is there is not promised: that
//! would take a sync of the folder, and all that is lost without it is a blob that can be fetched again. The same holds of
//! removals: a removed blob may be back, complete and right, and is listed again because the index is not trusted then.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Key, index::Name};
use crate::{
    oci::{Algorithm, Digest, Registry},
    sys,
};

pub(super) struct Folder {
    root: PathBuf,
    blobs: PathBuf,
    gone: PathBuf,
    next_gone: AtomicU64,
    /// Held for as long as we run: two processes in one folder would not know of each other's blobs.
    lock: File,
}

/// A file under its name.
pub(super) struct Stored {
    pub(super) size: u64,
    /// Seconds since 1970.
    pub(super) modified: u64,
}

impl Folder {
    pub(super) fn load(root: PathBuf) -> io::Result<Self> {
        create_folder(&root)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(root.join("lock"))?;
        lock.try_lock().map_err(|_| {
            io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!(
                    "another tidegate uses {}; give each its own [cache] directory",
                    root.display()
                ),
            )
        })?;
        let folder = Self {
            blobs: root.join("blobs"),
            gone: root.join("gone"),
            next_gone: AtomicU64::new(0),
            root,
            lock,
        };
        match fs::remove_dir_all(&folder.gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        create_folder(&folder.gone)?;
        create_folder(&folder.blobs)?;
        Ok(folder)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// All that was renamed and removed stays so, whatever happens to the machine.
    pub(super) fn sync(&self) -> io::Result<()> {
        sys::sync_file_system(&self.lock)
    }

    /// Those that have a folder.
    pub(super) fn registries(&self) -> io::Result<Vec<Registry>> {
        let mut registries = Vec::new();
        for folder in folders(&self.blobs)? {
            let name = folder.file_name().and_then(|name| name.to_str());
            match name.and_then(|name| name.parse::<Registry>().ok()) {
                // Under another spelling it would be another folder.
                Some(registry) if name == Some(registry.as_str()) => registries.push(registry),
                _ => {
                    tracing::warn!(path = %folder.display(), "not a folder of the cache; left alone")
                }
            }
        }
        Ok(registries)
    }

    /// A registry's folders that have files in them.
    pub(super) fn shelves(&self, registry: &Registry) -> io::Result<Vec<(PathBuf, Algorithm)>> {
        let mut shelves = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let folder = self.blobs.join(registry.as_str()).join(algorithm.as_str());
            let found = folders(&folder)?;
            shelves.extend(found.into_iter().map(|folder| (folder, algorithm)));
        }
        Ok(shelves)
    }

    /// The blobs in one of those folders. What is none is left alone.
    pub(super) fn blobs(shelf: &Path, algorithm: Algorithm) -> io::Result<Vec<Digest>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(shelf)? {
            let entry = entry?;
            let name = entry.file_name();
            let digest: Option<Digest> = name
                .to_str()
                .and_then(|hex| format!("{}:{hex}", algorithm.as_str()).parse().ok());
            match digest {
                Some(digest) if entry.file_type()?.is_file() && is_of_shelf(&digest, shelf) => {
                    found.push(digest);
                }
                _ => {
                    tracing::warn!(path = %entry.path().display(), "not a file of the cache; left alone")
                }
            }
        }
        Ok(found)
    }

    pub(super) fn path(&self, key: &Key) -> PathBuf {
        let algorithm = key.digest.algorithm();
        self.path_of(&key.registry, algorithm, &key.digest.hex())
    }

    fn path_of(&self, registry: &Registry, algorithm: Algorithm, hex: &str) -> PathBuf {
        self.blobs
            .join(registry.as_str())
            .join(algorithm.as_str())
            .join(hex.get(..2).unwrap_or_default())
            .join(hex)
    }

    /// The whole digest of a blob of which the index knows the beginning. `None`: it has no file.
    pub(super) fn digest(&self, registry: &Registry, name: &Name) -> Option<Digest> {
        let begin = name.digest_bytes();
        if !name.is_sha512() {
            return Some(Digest::Sha256(begin));
        }
        let hex = Digest::Sha256(begin).hex();
        let path = self.path_of(registry, Algorithm::Sha512, &hex);
        fs::read_dir(path.parent()?).ok()?.find_map(|entry| {
            let name = entry.ok()?.file_name();
            let name = name.to_str()?;
            name.starts_with(&hex)
                .then(|| format!("sha512:{name}").parse().ok())?
        })
    }

    pub(super) fn stored(&self, key: &Key) -> Option<Stored> {
        let metadata = fs::symlink_metadata(self.path(key)).ok()?;
        metadata.is_file().then(|| Stored {
            size: metadata.len(),
            modified: u64::try_from(metadata.mtime()).unwrap_or(0),
        })
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

    /// Gives a file its name. Its bytes are on disk by then.
    pub(super) fn place(&self, path: &Path, key: &Key) -> io::Result<()> {
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

    /// Takes a blob's name away, and says where its file is until it is removed: that takes long for a large one.
    pub(super) fn retire(&self, key: &Key) -> Option<PathBuf> {
        let number = self.next_gone.fetch_add(1, Ordering::Relaxed);
        let path = self.gone.join(number.to_string());
        let renamed = match fs::rename(self.path(key), &path) {
            // The blob, or the folder for what is gone, if somebody has emptied the cache's by hand.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_folder(&self.gone).and_then(|()| fs::rename(self.path(key), &path))
            }
            renamed => renamed,
        };
        match renamed {
            Ok(()) => {
                self.tidy(key);
                Some(path)
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    remove_file(&self.path(key));
                }
                None
            }
        }
    }

    pub(super) fn remove(&self, key: &Key) {
        remove_file(&self.path(key));
        self.tidy(key);
    }

    /// Registries are few and come again. Made-up ones have one blob each, and some never again.
    fn tidy(&self, key: &Key) {
        if !key.registry.is_made_up() {
            return;
        }
        let path = self.path(key);
        let folders = path.ancestors().skip(1);
        for folder in folders.take_while(|folder| *folder != self.blobs) {
            if fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }
}

pub(super) fn remove_file(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a file of the cache cannot be removed");
    }
}

fn is_of_shelf(digest: &Digest, shelf: &Path) -> bool {
    let name = shelf.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.len() == 2 && digest.hex().starts_with(name))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stays_of_a_made_up_registry() {
        let home = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::load(home.path().join("cache")).unwrap_or_else(|e| panic!("{e}"));
        for (registry, stays) in [
            (Registry::docker_hub(), true),
            (Registry::made_up("0123456789abcdef"), false),
        ] {
            assert_eq!(
                registry.as_str().parse::<Registry>().ok().as_ref(),
                Some(&registry),
                "its folder is found again"
            );
            let key = Key {
                registry: registry.clone(),
                digest: Digest::of(b"blob"),
            };
            for _ in 0..2 {
                let new = home.path().join("new");
                fs::write(&new, "blob").expect("a writable folder");
                let placed = folder.place(&new, &key);
                placed.unwrap_or_else(|error| panic!("{registry}: {error}"));
                assert!(folder.stored(&key).is_some());
                assert!(folder.retire(&key).is_some());
            }
            let there = folder.registries().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(there.contains(&registry), stays, "{registry}");
        }
    }
}
