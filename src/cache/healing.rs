//! Blobs that scrubbing has found damaged and removed, to be fetched again before anybody has to wait for them.
//!
//! The cache knows no registry: it says what is missing, and whoever can fetch takes it from here. The index has only a
//! hash of the repository that used a blob last, so names are noted when a blob is stored or opened. Of a repository that
//! nobody has used since the start nothing is fetched by itself: who wants it fetches it. Bounded; what does not fit is
//! fetched by the next pull, as is all that cannot be fetched from here.

use std::{
    collections::{HashMap, VecDeque},
    sync::Mutex,
};

use super::Key;
use crate::{blocking::lock, oci::Repository};

/// Scrubbing takes its time, so more than a few mean that the disk is dying.
const MOST_DAMAGED: usize = 64;
/// About 100 bytes each.
const MOST_REPOSITORIES: usize = 4096;

#[derive(Default)]
pub(super) struct Healing {
    damaged: Mutex<VecDeque<(Key, Repository)>>,
    /// By their hashes in the index.
    repositories: Mutex<HashMap<u64, Repository>>,
}

impl Healing {
    /// Blocks for a moment: for the pool.
    pub(super) fn note_repository(&self, hash: u64, repository: &Repository) {
        let mut repositories = lock(&self.repositories);
        if repositories.len() >= MOST_REPOSITORIES && !repositories.contains_key(&hash) {
            // Those that are still in use come back.
            repositories.clear();
        }
        repositories
            .entry(hash)
            .or_insert_with(|| repository.clone());
    }

    /// `repository`: the hash of the one that used it last.
    pub(super) fn add(&self, key: Key, repository: u64) {
        let Some(repository) = lock(&self.repositories).get(&repository).cloned() else {
            return;
        };
        let mut damaged = lock(&self.damaged);
        if damaged.len() < MOST_DAMAGED {
            damaged.push_back((key, repository));
        }
    }

    pub(super) fn next(&self) -> Option<(Key, Repository)> {
        lock(&self.damaged).pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Digest, Registry};

    fn key(number: usize) -> Key {
        Key {
            registry: Registry::docker_hub(),
            digest: Digest::of(&number.to_le_bytes()),
        }
    }

    fn repository(number: usize) -> Repository {
        format!("acme/app-{number}").parse().expect("a repository")
    }

    #[test]
    fn what_was_damaged_comes_with_its_repository_once() {
        let healing = Healing::default();
        healing.note_repository(1, &repository(1));
        healing.add(key(0), 2);
        assert_eq!(healing.next(), None, "nobody knows whose it is");
        healing.add(key(1), 1);
        assert_eq!(healing.next(), Some((key(1), repository(1))));
        assert_eq!(healing.next(), None);
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let healing = Healing::default();
        for number in 0..=MOST_REPOSITORIES {
            healing.note_repository(number as u64, &repository(number));
        }
        healing.add(key(0), 0);
        assert_eq!(healing.next(), None, "forgotten");
        for number in 0..=MOST_DAMAGED {
            healing.add(key(number), MOST_REPOSITORIES as u64);
        }
        let damaged = std::iter::from_fn(|| healing.next()).count();
        assert_eq!(damaged, MOST_DAMAGED);
    }
}
