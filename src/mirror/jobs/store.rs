//! Jobs across restarts, in a database of their own in the state folder.
//!
//! ```text
//! jobs        id                       → entry (see job.rs)
//! logs        id                       → lines
//! latest      key                      → id         the last job of equal wishes
//! unfinished  id                       → nothing    what a start takes up again
//! ends        <ended in ns, 20 digits> <id> → nothing   what purging walks, oldest first
//! ```
//! What belongs together changes in one transaction, and is on disk when the call returns.

use std::path::Path;

use super::{
    Job, JobId, JobKey,
    job::{Entry, EntryError},
};
use crate::{
    database::{Database, DatabaseError, FileError, Table},
    requests::unix_nanoseconds,
};

const JOBS: Table = Table("jobs");
const LOGS: Table = Table("logs");
const LATEST: Table = Table("latest");
const UNFINISHED: Table = Table("unfinished");
const ENDS: Table = Table("ends");

#[derive(Debug, thiserror::Error)]
#[error("mirrors and freezes cannot be kept: {0}")]
pub struct OpenError(#[from] FileError);

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database of mirrors and freezes failed: {0}")]
    Database(#[from] DatabaseError),
    #[error("the record of {id} cannot be used: {cause}")]
    Record { id: String, cause: EntryError },
}

pub(super) struct Store(Database);

impl Store {
    pub(super) fn open(state_directory: &Path) -> Result<Self, OpenError> {
        let tables = [JOBS, LOGS, LATEST, UNFINISHED, ENDS];
        Ok(Self(Database::open(state_directory, "jobs", &tables)?))
    }

    /// A new one, for which others are to end: none of them is taken up again beside it.
    pub(super) fn insert(
        &self,
        job: &Job,
        log: &str,
        superseded: &[JobId],
    ) -> Result<(), StoreError> {
        let entry = Entry::new(job.clone()).encode();
        let id = job.id.as_str();
        self.0.write(|writing| {
            for other in superseded {
                let other = other.as_str();
                let bytes = writing.get(JOBS, other)?;
                let Some(Ok(mut entry)) = bytes.map(|bytes| Entry::decode(&bytes)) else {
                    continue;
                };
                entry.superseded_by = Some(job.id.clone());
                writing.put(JOBS, other, &entry.encode())?;
            }
            writing.put(JOBS, id, &entry)?;
            writing.put(LOGS, id, log.as_bytes())?;
            writing.put(LATEST, job.key.as_str(), id.as_bytes())?;
            writing.put(UNFINISHED, id, &[])?;
            Ok(Some(()))
        })?;
        Ok(())
    }

    pub(super) fn read(&self, id: &JobId) -> Result<Option<Entry>, StoreError> {
        let bytes = self.0.read(|reading| reading.get(JOBS, id.as_str()))?;
        let entry = bytes.map(|bytes| Entry::decode(&bytes)).transpose();
        entry.map_err(unusable(id.as_str()))
    }

    pub(super) fn log(&self, id: &JobId) -> Result<Option<String>, StoreError> {
        let log = self.0.read(|reading| reading.get(LOGS, id.as_str()))?;
        Ok(log.map(text))
    }

    /// The last job of equal wishes.
    pub(super) fn latest(&self, key: &JobKey) -> Result<Option<Entry>, StoreError> {
        let id = self.0.read(|reading| reading.get(LATEST, key.as_str()))?;
        match id.and_then(|id| text(id).parse::<JobId>().ok()) {
            Some(id) => self.read(&id),
            None => Ok(None),
        }
    }

    /// What an entry became; `None`: there is none.
    pub(super) fn change(
        &self,
        id: &JobId,
        log: Option<&str>,
        change: impl FnOnce(&mut Entry),
    ) -> Result<Option<Entry>, StoreError> {
        let id = id.as_str();
        let changed = self.0.write(|writing| {
            let Some(bytes) = writing.get(JOBS, id)? else {
                return Ok(None);
            };
            let mut entry = match Entry::decode(&bytes) {
                Ok(entry) => entry,
                Err(error) => return Ok(Some(Err(error))),
            };
            change(&mut entry);
            writing.put(JOBS, id, &entry.encode())?;
            if let Some(log) = log {
                writing.put(LOGS, id, log.as_bytes())?;
            }
            if let Some(ended) = &entry.ended {
                writing.remove(UNFINISHED, id)?;
                let at = unix_nanoseconds::from_time(ended.at);
                writing.put(ENDS, &end_key(at, id), &[])?;
            }
            Ok(Some(Ok(entry)))
        })?;
        changed.transpose().map_err(unusable(id))
    }

    /// With their logs, oldest first. What cannot be read is left, and told.
    pub(super) fn unfinished(&self) -> Result<Vec<(Entry, String)>, StoreError> {
        let found = self.0.read(|reading| {
            let mut found = Vec::new();
            for id in reading.keys(UNFINISHED, None, usize::MAX)? {
                if let Some(entry) = reading.get(JOBS, &id)? {
                    let log = reading.get(LOGS, &id)?.map(text).unwrap_or_default();
                    found.push((id, entry, log));
                }
            }
            Ok(found)
        })?;
        let mut unfinished = Vec::new();
        for (id, bytes, log) in found {
            match Entry::decode(&bytes) {
                Ok(entry) => unfinished.push((entry, log)),
                Err(error) => {
                    tracing::warn!(job = id, %error, "a job cannot be taken up again; ask for it anew");
                }
            }
        }
        unfinished.sort_by_key(|(entry, _)| entry.job.created);
        Ok(unfinished)
    }

    /// How many are over.
    pub(super) fn ended(&self) -> Result<usize, StoreError> {
        Ok(self.0.read(|reading| reading.count(ENDS))?)
    }

    /// Deletes some of the `excess` that ended first, else of those that ended before an instant, and says how many: none when no
    /// more are left.
    pub(super) fn purge_some(&self, before: u64, excess: usize) -> Result<usize, StoreError> {
        /// Some milliseconds: whoever asks for a job meanwhile waits for the transaction.
        const PURGE_COUNT: usize = if cfg!(test) { 2 } else { 500 };
        let end = end_key(before, "");
        let oldest = self.0.read(|reading| match excess {
            0 => reading.keys(ENDS, Some(&end), PURGE_COUNT),
            _ => reading.keys(ENDS, None, PURGE_COUNT.min(excess)),
        })?;
        if oldest.is_empty() {
            return Ok(0);
        }
        self.0.write(|writing| {
            for end in &oldest {
                writing.remove(ENDS, end)?;
                let (_, id) = end.split_once(' ').unwrap_or_default();
                writing.remove(LOGS, id)?;
                let entry = writing.get(JOBS, id)?;
                writing.remove(JOBS, id)?;
                let Some(Ok(entry)) = entry.map(|bytes| Entry::decode(&bytes)) else {
                    continue;
                };
                let key = entry.job.key.as_str();
                if writing.get(LATEST, key)?.as_deref() == Some(id.as_bytes()) {
                    writing.remove(LATEST, key)?;
                }
            }
            Ok(Some(()))
        })?;
        Ok(oldest.len())
    }
}

/// In the order of time.
fn end_key(nanoseconds: u64, id: &str) -> String {
    format!("{nanoseconds:020} {id}")
}

/// What we wrote is text.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

fn unusable(id: &str) -> impl FnOnce(EntryError) -> StoreError {
    let id = id.to_owned();
    move |cause| StoreError::Record { id, cause }
}
