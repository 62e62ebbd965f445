//! Manifests in memory, and what tags meant when they were last looked up.
//!
//! A manifest by digest never changes and is shared by all; what a tag means is kept for each holder, since it is
//! an answer to his credentials. That a manifest stands here says nothing about who may have it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{derived::Derivations, proof::Holder};
use crate::{
    augment::AugmentError,
    blocking::lock,
    oci::{Digest, Manifest, Registry, Repository, Tag},
};

/// Bytes of manifests in memory. A manifest has a few KiB, so this is thousands.
const MOST_BYTES: usize = 64 << 20;
const MOST_TAGS: usize = 65_536;
/// A tag is looked up again after that: one question to the registry for all the requests of a pull.
const TAG_AGE: Duration = Duration::from_secs(60);

/// A manifest that has been verified against its digest.
#[derive(Debug)]
pub struct Stored {
    pub digest: Digest,
    pub bytes: Bytes,
    pub manifest: Manifest,
}

impl Stored {
    /// What was made here.
    pub fn made(media_type: &str, bytes: Bytes) -> Result<Self, AugmentError> {
        let manifest = Manifest::parse(Some(media_type), &bytes);
        Ok(Self {
            digest: Digest::of(&bytes),
            manifest: manifest.map_err(|cause| AugmentError::Malformed {
                part: "its manifest",
                cause: cause.to_string(),
            })?,
            bytes,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    pub digest: Digest,
    pub is_fresh: bool,
    pub age: Duration,
}

type Key = (Registry, Repository, Digest);

#[derive(Default)]
pub struct Shelf {
    /// What was made of manifests.
    pub(super) derived: Derivations,
    manifests: Mutex<Manifests>,
    tags: Mutex<HashMap<(Holder, Tag), (Digest, Instant)>>,
}

#[derive(Default)]
struct Manifests {
    stored: HashMap<Key, (Arc<Stored>, u64)>,
    byte_count: usize,
    /// Counts uses, so that recency needs no clock.
    uses: u64,
}

impl Shelf {
    pub fn find(
        &self,
        registry: &Registry,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<Arc<Stored>> {
        let mut manifests = lock(&self.manifests);
        manifests.uses += 1;
        let now = manifests.uses;
        let (stored, last_use) =
            manifests
                .stored
                .get_mut(&(registry.clone(), repository.clone(), *digest))?;
        *last_use = now;
        Some(Arc::clone(stored))
    }

    pub fn put(&self, registry: &Registry, repository: &Repository, stored: Arc<Stored>) {
        let mut manifests = lock(&self.manifests);
        manifests.uses += 1;
        let now = manifests.uses;
        manifests.byte_count += stored.bytes.len();
        let key = (registry.clone(), repository.clone(), stored.digest);
        if let Some((before, _)) = manifests.stored.insert(key, (stored, now)) {
            manifests.byte_count -= before.bytes.len();
        }
        if manifests.byte_count > MOST_BYTES {
            manifests.forget_half();
        }
    }

    pub fn note_tag(&self, holder: &Holder, tag: &Tag, digest: Digest) {
        let mut tags = lock(&self.tags);
        if tags.len() >= MOST_TAGS {
            tags.retain(|_, (_, since)| since.elapsed() < TAG_AGE);
        }
        if tags.len() >= MOST_TAGS {
            tags.clear();
        }
        tags.insert((holder.clone(), tag.clone()), (digest, Instant::now()));
    }

    pub fn find_tag(&self, holder: &Holder, tag: &Tag) -> Option<Resolution> {
        let (digest, since) = *lock(&self.tags).get(&(holder.clone(), tag.clone()))?;
        let age = since.elapsed();
        Some(Resolution {
            digest,
            is_fresh: age < TAG_AGE,
            age,
        })
    }
}

impl Manifests {
    /// Sorting all of it is rare, because half goes at once.
    fn forget_half(&mut self) {
        let mut by_use: Vec<(u64, Key)> = self
            .stored
            .iter()
            .map(|(key, (_, use_))| (*use_, key.clone()))
            .collect();
        by_use.sort_unstable_by_key(|(last_use, _)| *last_use);
        for (_, key) in by_use {
            if self.byte_count <= MOST_BYTES / 2 {
                return;
            }
            if let Some((stored, _)) = self.stored.remove(&key) {
                self.byte_count -= stored.bytes.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_manifests_are_forgotten_first() {
        let shelf = Shelf::default();
        let registry = Registry::docker_hub();
        let repository: Repository = "library/a".parse().expect("a repository");
        let put = |number: usize| {
            let digest = Digest::of(&number.to_le_bytes());
            let manifest = Manifest {
                media_type: String::new(),
                manifests: Vec::new(),
                blobs: Vec::new(),
            };
            let bytes = Bytes::from(vec![0; 4 << 20]);
            shelf.put(
                &registry,
                &repository,
                Arc::new(Stored {
                    digest,
                    bytes,
                    manifest,
                }),
            );
            digest
        };
        let first = put(0);
        let second = put(1);
        for number in 2..16 {
            put(number);
        }
        assert!(shelf.find(&registry, &repository, &first).is_some());
        put(16);
        assert!(
            shelf.find(&registry, &repository, &first).is_some(),
            "it was used since"
        );
        assert!(shelf.find(&registry, &repository, &second).is_none());
        assert!(lock(&shelf.manifests).byte_count <= MOST_BYTES);
    }
}
