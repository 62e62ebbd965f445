//! A database's file, which is opened again after a failed write. Whoever has tables of other shapes than a `Database` has
//! them in here by himself, and knows the library.

use std::{
    error::Error,
    fmt,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::{Builder, DatabaseError, StorageError, backends::FileBackend};

use crate::seal::{SealError, ensure_private};

pub(super) type Cause = Box<dyn Error + Send + Sync>;

/// Why a database's file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("another process uses {}", path.display())]
    InUse { path: PathBuf },
    #[error(transparent)]
    Exposed(#[from] SealError),
    #[error("{} cannot be used: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
    #[error("{} is no database of this kind, or is damaged: {cause}", path.display())]
    Damaged { path: PathBuf, cause: Cause },
}

pub struct DatabaseFile {
    path: PathBuf,
    /// `None` only while it is broken.
    opened: RwLock<Option<redb::Database>>,
    /// After one failed write, as on a full disk, the library refuses all work until the file is opened again.
    is_broken: AtomicBool,
    open_file: OpenFile,
}

/// Another one in tests only, to make it fail.
type OpenFile = Box<dyn Fn(File) -> Result<redb::Database, DatabaseError> + Send + Sync>;

impl fmt::Debug for DatabaseFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(formatter)
    }
}

impl DatabaseFile {
    /// Creates it if it is missing, private. `create` makes the tables, so that readers find them. `cache_bytes` of pages stay
    /// in memory; the library's own default is 1 GiB.
    pub fn open(
        path: PathBuf,
        cache_bytes: usize,
        create: impl FnOnce(&redb::Database) -> Result<(), redb::Error>,
    ) -> Result<Self, FileError> {
        let open_file = move |file| {
            let mut builder = Builder::new();
            builder.set_cache_size(cache_bytes);
            builder.create_with_backend(FileBackend::new(file)?)
        };
        Self::open_with(path, Box::new(open_file), create)
    }

    fn open_with(
        path: PathBuf,
        open_file: OpenFile,
        create: impl FnOnce(&redb::Database) -> Result<(), redb::Error>,
    ) -> Result<Self, FileError> {
        let opened = open_at(&path, &open_file)?;
        create(&opened).map_err(|cause| FileError::Damaged {
            path: path.clone(),
            cause: cause.into(),
        })?;
        Ok(Self {
            path,
            opened: RwLock::new(Some(opened)),
            is_broken: AtomicBool::new(false),
            open_file,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn run<T>(
        &self,
        errand: impl FnOnce(&redb::Database) -> Result<T, redb::Error>,
    ) -> Result<T, Cause> {
        if self.is_broken.load(Ordering::Acquire) {
            self.reopen()?;
        }
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        // Another has just found it broken; he opens it again, or says why not.
        let database = opened.as_ref().ok_or(redb::Error::DatabaseClosed)?;
        errand(database).map_err(|error| {
            if needs_reopening(&error) {
                // Still under the lock: who reopens it waits for us, so this cannot be about the next one.
                self.is_broken.store(true, Ordering::Release);
            }
            error.into()
        })
    }

    fn reopen(&self) -> Result<(), FileError> {
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        if self.is_broken.load(Ordering::Acquire) {
            // Closed first, because it is locked as long as it is open.
            *opened = None;
            *opened = Some(open_at(&self.path, &self.open_file)?);
            self.is_broken.store(false, Ordering::Release);
        }
        Ok(())
    }
}

fn open_at(path: &Path, open_file: &OpenFile) -> Result<redb::Database, FileError> {
    let failed = |cause| FileError::File {
        path: path.to_owned(),
        cause,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    ensure_private(&file, path)?;
    open_file(file).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => FileError::InUse {
            path: path.to_owned(),
        },
        DatabaseError::Storage(StorageError::Io(cause)) => failed(cause),
        cause => FileError::Damaged {
            path: path.to_owned(),
            cause: cause.into(),
        },
    })
}

fn needs_reopening(error: &redb::Error) -> bool {
    matches!(
        error,
        redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::LockPoisoned(_)
    )
}

/// Disks that fill, for tests of whatever keeps a database.
#[cfg(test)]
pub mod full_disk {
    use std::sync::Arc;

    use redb::StorageBackend;

    use super::*;

    /// A file that cannot grow while `is_full`.
    pub fn open_file(
        path: PathBuf,
        is_full: &Arc<AtomicBool>,
        create: impl FnOnce(&redb::Database) -> Result<(), redb::Error>,
    ) -> Result<DatabaseFile, FileError> {
        let is_full = Arc::clone(is_full);
        let open_file: OpenFile = Box::new(move |file| {
            Builder::new().create_with_backend(Flaky {
                file: FileBackend::new(file)?,
                is_full: Arc::clone(&is_full),
            })
        });
        DatabaseFile::open_with(path, open_file, create)
    }

    /// Refuses to grow, as on a full disk: what the file has already can still be overwritten.
    #[derive(Debug)]
    struct Flaky {
        file: FileBackend,
        is_full: Arc<AtomicBool>,
    }

    impl Flaky {
        fn ensure_room(&self, size: u64) -> io::Result<()> {
            match self.is_full.load(Ordering::SeqCst) && size > self.len()? {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => Ok(()),
            }
        }
    }

    impl StorageBackend for Flaky {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.ensure_room(len)?;
            self.file.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.ensure_room(offset + data.len() as u64)?;
            self.file.write(offset, data)
        }

        fn close(&self) -> io::Result<()> {
            self.file.close()
        }
    }
}
