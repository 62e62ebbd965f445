//! The embedded database: `requests.redb` in the state folder.
//!
//! ```text
//! requests   token                  → entry (see record.rs)
//! expiries   (expires in ns, token) → nothing      what purging walks, oldest first
//! meta       "key check"            → a known text, sealed with the key of this database
//! ```
//! Both tables of a request change in one transaction. A reader never waits; writers wait for each other, each for
//! one fsync.

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use redb::{
    Builder, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
    backends::FileBackend,
};

use super::{
    OpenError, StoreError, Token,
    seal::{SealingKey, ensure_private},
};
use crate::{secret::Secret, units::MIB};

const REQUESTS: TableDefinition<&str, &[u8]> = TableDefinition::new("requests");
const EXPIRIES: TableDefinition<(u64, &str), ()> = TableDefinition::new("expiries");
const META: TableDefinition<&str, &str> = TableDefinition::new("meta");

pub(super) struct Database {
    database: redb::Database,
    path: PathBuf,
}

impl Database {
    pub(super) fn open(state_directory: &Path) -> Result<Self, OpenError> {
        let path = state_directory.join("requests.redb");
        let failed = |cause| OpenError::File {
            path: path.clone(),
            cause,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        ensure_private(&file, &path)?;
        let database = FileBackend::new(file)
            .and_then(|file| {
                Builder::new()
                    .set_cache_size(CACHE_BYTES)
                    .create_with_backend(file)
            })
            .map_err(|error| match error {
                DatabaseError::DatabaseAlreadyOpen => OpenError::InUse {
                    state_directory: state_directory.to_owned(),
                },
                DatabaseError::Storage(redb::StorageError::Io(cause)) => failed(cause),
                cause => OpenError::Database {
                    path: path.clone(),
                    cause: cause.into(),
                },
            })?;
        let opened = Self { database, path };
        opened
            .create_tables()
            .map_err(|cause| opened.damaged(cause))?;
        Ok(opened)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `key` is the one that this database is used with; a new database takes any, for good.
    pub(super) fn was_written_with(&self, key: &SealingKey) -> Result<bool, OpenError> {
        let outcome = || -> Result<bool, redb::Error> {
            let writing = self.database.begin_write()?;
            let known = {
                let mut meta = writing.open_table(META)?;
                let sealed = meta.get(KEY_CHECK)?.map(|sealed| sealed.value().to_owned());
                match sealed {
                    Some(sealed) => key.unseal(&sealed, KEY_CHECK).is_ok(),
                    None => {
                        let sealed = key.seal(&Secret::new(String::new()), KEY_CHECK);
                        meta.insert(KEY_CHECK, sealed.as_str())?;
                        true
                    }
                }
            };
            writing.commit()?;
            Ok(known)
        };
        outcome().map_err(|cause| self.damaged(cause))
    }

    pub(super) fn read(&self, token: &Token) -> Result<Option<Vec<u8>>, StoreError> {
        let outcome = || -> Result<_, redb::Error> {
            let requests = self.database.begin_read()?.open_table(REQUESTS)?;
            let entry = requests.get(token.as_str())?;
            Ok(entry.map(|entry| entry.value().to_owned()))
        };
        outcome().map_err(failed)
    }

    /// Whether it was inserted: not if there is an entry for this token already.
    pub(super) fn insert(
        &self,
        token: &Token,
        expires: u64,
        entry: &[u8],
    ) -> Result<bool, StoreError> {
        let outcome = || -> Result<bool, redb::Error> {
            let writing = self.database.begin_write()?;
            {
                let mut requests = writing.open_table(REQUESTS)?;
                if requests.get(token.as_str())?.is_some() {
                    return Ok(false);
                }
                requests.insert(token.as_str(), entry)?;
                writing
                    .open_table(EXPIRIES)?
                    .insert((expires, token.as_str()), ())?;
            }
            writing.commit()?;
            Ok(true)
        };
        outcome().map_err(failed)
    }

    /// Replaces an entry by what `change` makes of it, unless that is `None`. Whether it was replaced.
    pub(super) fn update(
        &self,
        token: &Token,
        change: impl FnOnce(&[u8]) -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<bool, StoreError> {
        let writing = self.database.begin_write().map_err(failed)?;
        let Some(entry) = read_in(&writing, token).map_err(failed)? else {
            return Ok(false);
        };
        let Some(changed) = change(&entry)? else {
            return Ok(false);
        };
        let outcome = || -> Result<(), redb::Error> {
            writing
                .open_table(REQUESTS)?
                .insert(token.as_str(), changed.as_slice())?;
            writing.commit()?;
            Ok(())
        };
        outcome().map_err(failed)?;
        Ok(true)
    }

    /// Deletes some of the requests that expired before an instant, and says how many: none when no more are left.
    pub(super) fn purge_some(&self, before: u64) -> Result<usize, StoreError> {
        let outcome = || -> Result<usize, redb::Error> {
            let oldest = self.oldest(before)?;
            if oldest.is_empty() {
                return Ok(0);
            }
            let writing = self.database.begin_write()?;
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
        };
        outcome().map_err(failed)
    }

    fn oldest(&self, before: u64) -> Result<Vec<(u64, String)>, redb::Error> {
        let expiries = self.database.begin_read()?.open_table(EXPIRIES)?;
        let mut oldest = Vec::new();
        for expiry in expiries.range(..(before, ""))?.take(PURGE_COUNT) {
            let (key, ()) = expiry.map(|(key, _)| (key, ()))?;
            let (expires, token) = key.value();
            oldest.push((expires, token.to_owned()));
        }
        Ok(oldest)
    }

    /// So that readers find them.
    fn create_tables(&self) -> Result<(), redb::Error> {
        let writing = self.database.begin_write()?;
        writing.open_table(REQUESTS)?;
        writing.open_table(EXPIRIES)?;
        writing.open_table(META)?;
        writing.commit()?;
        Ok(())
    }

    fn damaged(&self, cause: redb::Error) -> OpenError {
        OpenError::Database {
            path: self.path.clone(),
            cause: cause.into(),
        }
    }
}

/// Guessed: the inner pages of a million requests. The library's own default is 1 GiB.
const CACHE_BYTES: usize = (16 * MIB) as usize;
const KEY_CHECK: &str = "key check";
/// Some milliseconds: new requests wait for the transaction.
const PURGE_COUNT: usize = 1000;

fn read_in(writing: &WriteTransaction, token: &Token) -> Result<Option<Vec<u8>>, redb::Error> {
    let requests = writing.open_table(REQUESTS)?;
    let entry = requests.get(token.as_str())?;
    Ok(entry.map(|entry| entry.value().to_owned()))
}

fn failed(cause: impl Into<redb::Error>) -> StoreError {
    StoreError::Database {
        cause: cause.into().into(),
    }
}
