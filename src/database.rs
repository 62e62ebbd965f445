//! An embedded database: tables of texts to bytes in one file, which change together and are on disk when a change returns. That
//! it is redb is nobody's business but ours. Everything here blocks; a reader never waits, writers wait for each other.
//!
//! After one failed write, as on a full disk, the library refuses all work until the file is opened again. So it is opened again.

use std::{
    error::Error,
    fmt,
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::{
    Builder, DatabaseError as LibraryError, ReadTransaction, ReadableDatabase, ReadableTable,
    TableDefinition, WriteTransaction, backends::FileBackend,
};

use crate::seal::ensure_private;

type Cause = Box<dyn Error + Send + Sync>;

/// A table's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table(pub &'static str);

impl Table {
    fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(self.0)
    }
}

/// Why a database cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct DatabaseError {
    path: PathBuf,
    cause: Cause,
}

pub struct Database {
    path: PathBuf,
    /// `None` only while it is broken.
    opened: RwLock<Option<redb::Database>>,
    is_broken: AtomicBool,
    open_file: OpenFile,
}

/// Another one in tests only, to make it fail.
type OpenFile = Box<dyn Fn(File) -> Result<redb::Database, LibraryError> + Send + Sync>;

impl fmt::Debug for Database {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(formatter)
    }
}

/// A look at all tables at one moment.
pub struct Reading(ReadTransaction);

/// A change of any of them, of which all becomes true or nothing.
pub struct Writing(WriteTransaction);

/// What a closure may fail with, too.
#[derive(Debug)]
pub struct Failure(redb::Error);

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl Database {
    /// Creates what is missing: the file `<name>.redb`, private, and the tables.
    pub fn open(folder: &Path, name: &str, tables: &[Table]) -> Result<Self, DatabaseError> {
        Self::open_with(
            folder,
            name,
            tables,
            Box::new(|file| builder().create_with_backend(FileBackend::new(file)?)),
        )
    }

    fn open_with(
        folder: &Path,
        name: &str,
        tables: &[Table],
        open_file: OpenFile,
    ) -> Result<Self, DatabaseError> {
        let path = folder.join(format!("{name}.redb"));
        let opened = open_file_at(&path, &open_file).and_then(|database| {
            create(&database, tables)?;
            Ok(database)
        });
        match opened {
            Ok(opened) => Ok(Self {
                path,
                opened: RwLock::new(Some(opened)),
                is_broken: AtomicBool::new(false),
                open_file,
            }),
            Err(cause) => Err(DatabaseError { path, cause }),
        }
    }

    pub fn read<T>(
        &self,
        look: impl FnOnce(&Reading) -> Result<T, Failure>,
    ) -> Result<T, DatabaseError> {
        self.run(|database| look(&Reading(database.begin_read()?)))
    }

    /// `change` says with `None` that nothing is to be changed after all.
    pub fn write<T>(
        &self,
        change: impl FnOnce(&Writing) -> Result<Option<T>, Failure>,
    ) -> Result<Option<T>, DatabaseError> {
        self.run(|database| {
            let writing = Writing(database.begin_write()?);
            let changed = change(&writing)?;
            if changed.is_some() {
                writing.0.commit()?;
            }
            Ok(changed)
        })
    }

    fn run<T>(
        &self,
        errand: impl FnOnce(&redb::Database) -> Result<T, Failure>,
    ) -> Result<T, DatabaseError> {
        if self.is_broken.load(Ordering::Acquire) {
            self.reopen().map_err(|cause| self.failed(cause))?;
        }
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        // Another has just found it broken; he opens it again, or says why not.
        let Some(database) = opened.as_ref() else {
            return Err(self.failed(redb::Error::DatabaseClosed.into()));
        };
        errand(database).map_err(|Failure(error)| {
            if needs_reopening(&error) {
                // Still under the lock: who reopens it waits for us, so this cannot be about the next one.
                self.is_broken.store(true, Ordering::Release);
            }
            self.failed(error.into())
        })
    }

    fn reopen(&self) -> Result<(), Cause> {
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        if self.is_broken.load(Ordering::Acquire) {
            // Closed first, because it is locked as long as it is open.
            *opened = None;
            *opened = Some(open_file_at(&self.path, &self.open_file)?);
            self.is_broken.store(false, Ordering::Release);
        }
        Ok(())
    }

    fn failed(&self, cause: Cause) -> DatabaseError {
        DatabaseError {
            path: self.path.clone(),
            cause,
        }
    }
}

impl Reading {
    pub fn get(&self, table: Table, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        let table = self.0.open_table(table.definition())?;
        let value = table.get(key)?;
        Ok(value.map(|value| value.value().to_owned()))
    }

    /// Keys below `end`, in order and no more than `most`; without an end, all of them.
    pub fn keys(
        &self,
        table: Table,
        end: Option<&str>,
        most: usize,
    ) -> Result<Vec<String>, Failure> {
        let table = self.0.open_table(table.definition())?;
        let range = match end {
            Some(end) => table.range::<&str>(..end)?,
            None => table.range::<&str>(..)?,
        };
        let mut keys = Vec::new();
        for row in range.take(most) {
            let (key, _) = row?;
            keys.push(key.value().to_owned());
        }
        Ok(keys)
    }
}

impl Writing {
    pub fn get(&self, table: Table, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        let table = self.0.open_table(table.definition())?;
        let value = table.get(key)?;
        Ok(value.map(|value| value.value().to_owned()))
    }

    pub fn put(&self, table: Table, key: &str, value: &[u8]) -> Result<(), Failure> {
        self.0.open_table(table.definition())?.insert(key, value)?;
        Ok(())
    }

    pub fn remove(&self, table: Table, key: &str) -> Result<(), Failure> {
        self.0.open_table(table.definition())?.remove(key)?;
        Ok(())
    }
}

fn open_file_at(path: &Path, open_file: &OpenFile) -> Result<redb::Database, Cause> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    ensure_private(&file, path)?;
    Ok(open_file(file)?)
}

fn builder() -> Builder {
    /// Guessed: the inner pages of some hundred thousand rows. The library's own default is 1 GiB.
    const CACHE_BYTES: usize = 4 << 20;
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// So that readers find them.
fn create(database: &redb::Database, tables: &[Table]) -> Result<(), redb::Error> {
    let writing = database.begin_write()?;
    for table in tables {
        writing.open_table(table.definition())?;
    }
    writing.commit()?;
    Ok(())
}

fn needs_reopening(error: &redb::Error) -> bool {
    matches!(
        error,
        redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::LockPoisoned(_)
    )
}

#[cfg(test)]
mod tests {
    use std::{io, os::unix::fs::MetadataExt, sync::Arc};

    use redb::StorageBackend;

    use super::*;

    const TABLE: Table = Table("table");

    fn open(folder: &Path) -> Database {
        Database::open(folder, "tests", &[TABLE]).unwrap_or_else(|error| panic!("{error}"))
    }

    fn get(database: &Database, key: &str) -> Option<Vec<u8>> {
        let value = database.read(|reading| reading.get(TABLE, key));
        value.unwrap_or_else(|error| panic!("{key}: {error}"))
    }

    fn put(database: &Database, key: &str, value: &[u8]) -> Result<(), DatabaseError> {
        database.write(|writing| {
            writing.put(TABLE, key, value)?;
            Ok(Some(()))
        })?;
        Ok(())
    }

    #[test]
    fn what_is_written_is_there_after_a_restart_and_private() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database = open(folder.path());
        for key in ["b", "a", "c"] {
            assert!(put(&database, key, key.as_bytes()).is_ok());
        }
        let removed = database.write(|writing| {
            writing.remove(TABLE, "a")?;
            Ok(Some(writing.get(TABLE, "a")?))
        });
        assert_eq!(removed.ok(), Some(Some(None)));
        let given_up = database.write(|writing| {
            writing.put(TABLE, "d", b"d")?;
            Ok(None::<()>)
        });
        assert_eq!(given_up.ok(), Some(None));
        drop(database);
        let database = open(folder.path());
        assert_eq!(get(&database, "b"), Some(b"b".to_vec()));
        for absent in ["a", "d"] {
            assert_eq!(get(&database, absent), None, "{absent}");
        }
        let keys = |end, most| database.read(|it| it.keys(TABLE, end, most)).ok();
        assert_eq!(keys(None, 9), Some(vec!["b".to_owned(), "c".to_owned()]));
        assert_eq!(keys(Some("c"), 9), Some(vec!["b".to_owned()]));
        assert_eq!(keys(None, 1), Some(vec!["b".to_owned()]));
        let metadata = folder.path().join("tests.redb").metadata();
        assert_eq!(metadata.expect("it was created").mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_database_or_in_use_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let _opened = open(folder.path());
        assert!(Database::open(folder.path(), "tests", &[TABLE]).is_err());
        std::fs::write(folder.path().join("other.redb"), "text").expect("it is ours");
        let error = Database::open(folder.path(), "other", &[TABLE]).expect_err("no database");
        assert!(error.to_string().contains("other.redb"), "{error}");
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

    #[test]
    fn a_disk_that_was_full_breaks_nothing_for_good() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let is_full = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&is_full);
        let open_file: OpenFile = Box::new(move |file| {
            builder().create_with_backend(Flaky {
                file: FileBackend::new(file)?,
                is_full: Arc::clone(&shared),
            })
        });
        let database = Database::open_with(folder.path(), "tests", &[TABLE], open_file);
        let database = database.unwrap_or_else(|error| panic!("{error}"));
        assert!(put(&database, "before", b"before").is_ok());
        is_full.store(true, Ordering::SeqCst);
        let large = vec![b'x'; 16 << 20];
        for _ in 0..3 {
            assert!(put(&database, "during", &large).is_err());
            assert_eq!(get(&database, "before"), Some(b"before".to_vec()));
        }
        is_full.store(false, Ordering::SeqCst);
        assert!(put(&database, "after", b"after").is_ok());
        assert_eq!(get(&database, "during"), None);
        assert_eq!(get(&database, "after"), Some(b"after".to_vec()));
    }
}
