//! The embedded database: `requests.redb` in the state folder.
//!
//! ```text
//! requests   token                  → entry (see record.rs)
//! expiries   (expires in ns, token) → nothing      what purging walks, oldest first
//! runs       run id                 → run (see runs.rs)
//! meta       "key check"            → a known text, sealed with the key of this database
//! ```
//! Both tables of a request change in one transaction, which those share who write at the same time: see `group_commit`. A
//! reader never waits.

use std::{error::Error, path::Path, slice};

use redb::{ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::{OpenError, StoreError, Token, group_commit::GroupCommit};
use crate::{
    database::{DatabaseFile, FileError},
    seal::SealingKey,
    secret::Secret,
};

const REQUESTS: TableDefinition<&str, &[u8]> = TableDefinition::new("requests");
const EXPIRIES: TableDefinition<(u64, &str), ()> = TableDefinition::new("expiries");
const RUNS: TableDefinition<&str, &[u8]> = TableDefinition::new("runs");
const META: TableDefinition<&str, &str> = TableDefinition::new("meta");

const KEY_CHECK: &str = "key check";

pub(super) struct Database {
    file: DatabaseFile,
    writers: GroupCommit<Change, Result<bool, StoreError>>,
}

/// Of one request.
enum Change {
    /// Unless there is an entry for this token already.
    Insert {
        token: Token,
        expires: u64,
        entry: Vec<u8>,
    },
    /// By what is made of the entry, unless that is `None`.
    Replace { token: Token, by: Replacement },
}

type Replacement = Box<dyn Fn(&[u8]) -> Result<Option<Vec<u8>>, StoreError> + Send>;

impl Database {
    pub(super) fn open(state_directory: &Path) -> Result<Self, OpenError> {
        /// Guessed: the inner pages of a million requests.
        const CACHE_BYTES: usize = 16 << 20;
        let path = state_directory.join("requests.redb");
        let file = DatabaseFile::open(path, CACHE_BYTES, create_tables);
        let file = file.map_err(|error| match error {
            FileError::InUse { .. } => OpenError::InUse {
                state_directory: state_directory.to_owned(),
            },
            FileError::Exposed(error) => OpenError::Seal(error),
            FileError::File { path, cause } => OpenError::File { path, cause },
            FileError::Damaged { path, cause } => OpenError::Database { path, cause },
        })?;
        Ok(Self::over(file))
    }

    fn over(file: DatabaseFile) -> Self {
        Self {
            file,
            writers: GroupCommit::default(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Whether `key` is the one that this database is used with; a new database takes any, for good.
    pub(super) fn was_written_with(&self, key: &SealingKey) -> Result<bool, StoreError> {
        self.run(|database| {
            let writing = database.begin_write()?;
            {
                let mut meta = writing.open_table(META)?;
                if let Some(sealed) = meta.get(KEY_CHECK)? {
                    return Ok(key.unseal(sealed.value(), KEY_CHECK).is_ok());
                }
                let sealed = key.seal(&Secret::default(), KEY_CHECK);
                meta.insert(KEY_CHECK, sealed.as_str())?;
            }
            writing.commit()?;
            Ok(true)
        })
    }

    pub(super) fn read(&self, token: &Token) -> Result<Option<Vec<u8>>, StoreError> {
        self.run(|database| {
            let requests = database.begin_read()?.open_table(REQUESTS)?;
            let entry = requests.get(token.as_str())?;
            Ok(entry.map(|entry| entry.value().to_owned()))
        })
    }

    /// Whether it was inserted: not if there is an entry for this token already.
    pub(super) fn insert(
        &self,
        token: &Token,
        expires: u64,
        entry: Vec<u8>,
    ) -> Result<bool, StoreError> {
        self.change(Change::Insert {
            token: *token,
            expires,
            entry,
        })
    }

    /// Replaces an entry by what `by` makes of it, unless that is `None`. Whether it was replaced.
    pub(super) fn update(
        &self,
        token: &Token,
        by: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, StoreError> + Send + 'static,
    ) -> Result<bool, StoreError> {
        self.change(Change::Replace {
            token: *token,
            by: Box::new(by),
        })
    }

    fn change(&self, change: Change) -> Result<bool, StoreError> {
        let answer = self.writers.run(change, |changes| self.commit(changes));
        answer.unwrap_or_else(|| Err(failed("the thread that wrote it was lost to a bug")))
    }

    /// Whether each of them changed anything.
    fn commit(&self, changes: &[Change]) -> Vec<Result<bool, StoreError>> {
        let made = self.run(|database| {
            let writing = database.begin_write()?;
            let mut made = Vec::with_capacity(changes.len());
            {
                let mut requests = writing.open_table(REQUESTS)?;
                let mut expiries = writing.open_table(EXPIRIES)?;
                for change in changes {
                    made.push(change.make(&mut requests, &mut expiries)?);
                }
            }
            if made.iter().any(|made| matches!(made, Ok(true))) {
                writing.commit()?;
            }
            Ok(made)
        });
        match (made, changes) {
            (Ok(made), _) => made,
            (Err(error), [_]) => vec![Err(error)],
            // What is too much for a full disk is no reason to refuse the others.
            (Err(_), several) => several
                .iter()
                .flat_map(|change| self.commit(slice::from_ref(change)))
                .collect(),
        }
    }

    pub(super) fn runs(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.run(|database| {
            let runs = database.begin_read()?.open_table(RUNS)?;
            let mut all = Vec::new();
            for run in runs.iter()? {
                let (id, run) = run?;
                all.push((id.value().to_owned(), run.value().to_owned()));
            }
            Ok(all)
        })
    }

    /// Replaces or, with `None`, removes each.
    pub(super) fn write_runs<'r>(
        &self,
        changes: impl Iterator<Item = (&'r str, Option<Vec<u8>>)>,
    ) -> Result<(), StoreError> {
        self.run(|database| {
            let writing = database.begin_write()?;
            {
                let mut runs = writing.open_table(RUNS)?;
                for (id, run) in changes {
                    match run {
                        Some(run) => runs.insert(id, run.as_slice())?,
                        None => runs.remove(id)?,
                    };
                }
            }
            writing.commit()?;
            Ok(())
        })
    }

    /// Deletes some of the requests that expired before an instant, and says how many: none when no more are left.
    pub(super) fn purge_some(&self, before: u64) -> Result<usize, StoreError> {
        self.run(|database| {
            let oldest = oldest(database, before)?;
            if oldest.is_empty() {
                return Ok(0);
            }
            let writing = database.begin_write()?;
            {
                let mut requests = writing.open_table(REQUESTS)?;
                let mut expiries = writing.open_table(EXPIRIES)?;
                for (expires, token) in &oldest {
                    requests.remove(token.as_str())?;
                    expiries.remove((*expires, token.as_str()))?;
                }
            }
            writing.commit()?;
            Ok(oldest.len())
        })
    }

    /// Calls `see` with each request that expires after an instant.
    pub(super) fn each_expiring_after(
        &self,
        after: u64,
        mut see: impl FnMut(&str, &[u8]),
    ) -> Result<(), StoreError> {
        self.run(|database| {
            let reading = database.begin_read()?;
            let requests = reading.open_table(REQUESTS)?;
            for expiry in reading.open_table(EXPIRIES)?.range((after, "")..)? {
                let (key, _) = expiry?;
                let (_, token) = key.value();
                if let Some(entry) = requests.get(token)? {
                    see(token, entry.value());
                }
            }
            Ok(())
        })
    }

    fn run<T>(
        &self,
        errand: impl FnOnce(&redb::Database) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.file.run(errand).map_err(failed)
    }
}

impl Change {
    /// Whether anything changed.
    fn make(
        &self,
        requests: &mut Table<'_, &'static str, &'static [u8]>,
        expiries: &mut Table<'_, (u64, &'static str), ()>,
    ) -> Result<Result<bool, StoreError>, redb::Error> {
        match self {
            Self::Insert {
                token,
                expires,
                entry,
            } => {
                if requests.get(token.as_str())?.is_some() {
                    return Ok(Ok(false));
                }
                requests.insert(token.as_str(), entry.as_slice())?;
                expiries.insert((*expires, token.as_str()), ())?;
                Ok(Ok(true))
            }
            Self::Replace { token, by } => {
                let entry = requests.get(token.as_str())?;
                let replaced = match entry.map(|entry| by(entry.value())).transpose() {
                    Ok(replaced) => replaced.flatten(),
                    Err(error) => return Ok(Err(error)),
                };
                let Some(replaced) = replaced else {
                    return Ok(Ok(false));
                };
                requests.insert(token.as_str(), replaced.as_slice())?;
                Ok(Ok(true))
            }
        }
    }
}

fn create_tables(database: &redb::Database) -> Result<(), redb::Error> {
    let writing = database.begin_write()?;
    writing.open_table(REQUESTS)?;
    writing.open_table(EXPIRIES)?;
    writing.open_table(RUNS)?;
    writing.open_table(META)?;
    writing.commit()?;
    Ok(())
}

fn oldest(database: &redb::Database, before: u64) -> Result<Vec<(u64, String)>, redb::Error> {
    /// Some milliseconds: new requests wait for the transaction that deletes them.
    const PURGE_COUNT: usize = if cfg!(test) { 2 } else { 1000 };
    let expiries = database.begin_read()?.open_table(EXPIRIES)?;
    let mut oldest = Vec::new();
    for expiry in expiries.range(..(before, ""))?.take(PURGE_COUNT) {
        let (key, _) = expiry?;
        let (expires, token) = key.value();
        oldest.push((expires, token.to_owned()));
    }
    Ok(oldest)
}

fn failed(cause: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError::Database {
        cause: cause.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;
    use crate::database::full_disk;

    #[test]
    fn a_disk_that_was_full_breaks_nothing_for_good() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let is_full = Arc::new(AtomicBool::new(false));
        let path = folder.path().join("requests.redb");
        let file = full_disk::open_file(path, &is_full, create_tables);
        let database = Database::over(file.unwrap_or_else(|error| panic!("{error}")));
        let [before, during, after] = [Token::random(), Token::random(), Token::random()];
        assert_eq!(
            database.insert(&before, 1, b"before".to_vec()).ok(),
            Some(true)
        );
        is_full.store(true, Ordering::SeqCst);
        let large = vec![b'x'; 16 << 20];
        for _ in 0..3 {
            let refused = database.insert(&during, 1, large.clone());
            let refused = refused.expect_err("there is no room").to_string();
            // What an operator reads who is to find out why.
            let reason = std::io::Error::from(std::io::ErrorKind::StorageFull).to_string();
            assert!(refused.contains(&reason), "{refused}");
            let found = database.read(&before).unwrap_or_else(|e| panic!("{e:?}"));
            assert_eq!(found, Some(b"before".to_vec()));
        }
        is_full.store(false, Ordering::SeqCst);
        assert_eq!(
            database.insert(&after, 1, b"after".to_vec()).ok(),
            Some(true)
        );
        for (token, expected) in [
            (before, Some(b"before".to_vec())),
            (during, None),
            (after, Some(b"after".to_vec())),
        ] {
            assert_eq!(database.read(&token).ok(), Some(expected), "{token}");
        }
    }
}
