//! An embedded database: tables of texts to bytes in one file, which change together and are on disk when a change returns. That
//! it is redb is nobody's business but ours. Everything here blocks; a reader never waits, writers wait for each other.
//!
//! After one failed write, as on a full disk, the library refuses all work until the file is opened again. So it is opened again
//! (`file.rs`).

mod file;

use std::path::{Path, PathBuf};

use redb::{
    ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    WriteTransaction,
};

use self::file::Cause;

#[cfg(test)]
pub use self::file::full_disk;
pub use self::file::{DatabaseFile, FileError};

/// A table's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table(pub &'static str);

impl Table {
    fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(self.0)
    }
}

/// Why a database cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct DatabaseError {
    path: PathBuf,
    cause: Cause,
}

#[derive(Debug)]
pub struct Database(DatabaseFile);

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
    pub fn open(folder: &Path, name: &str, tables: &[Table]) -> Result<Self, FileError> {
        /// Guessed: the inner pages of some hundred thousand rows.
        const CACHE_BYTES: usize = 4 << 20;
        let path = folder.join(format!("{name}.redb"));
        let file = DatabaseFile::open(path, CACHE_BYTES, |database| create(database, tables))?;
        Ok(Self(file))
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
        let ran = self.0.run(|database| errand(database).map_err(|it| it.0));
        ran.map_err(|cause| DatabaseError {
            path: self.0.path().to_owned(),
            cause,
        })
    }
}

impl Reading {
    pub fn get(&self, table: Table, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        let table = self.0.open_table(table.definition())?;
        let value = table.get(key)?;
        Ok(value.map(|value| value.value().to_owned()))
    }

    /// How many rows it has.
    pub fn count(&self, table: Table) -> Result<usize, Failure> {
        let count = self.0.open_table(table.definition())?.len()?;
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
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

fn create(database: &redb::Database, tables: &[Table]) -> Result<(), redb::Error> {
    let writing = database.begin_write()?;
    for table in tables {
        writing.open_table(table.definition())?;
    }
    writing.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::MetadataExt,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

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

    #[test]
    fn a_disk_that_was_full_breaks_nothing_for_good() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let is_full = Arc::new(AtomicBool::new(false));
        let path = folder.path().join("tests.redb");
        let file = full_disk::open_file(path, &is_full, |database| create(database, &[TABLE]));
        let database = Database(file.unwrap_or_else(|error| panic!("{error}")));
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
