//! Where blobs are that were pushed lately: a registry mounts them from there into another repository of its own, and not a
//! byte is sent.

use std::time::{Duration, Instant};

use crate::{
    oci::{Digest, Registry, Repository},
    sharded::Sharded,
};

/// Registries sweep up what no manifest names any more. That a blob has gone costs one question.
const AGE: Duration = Duration::from_secs(24 * 3600);
/// About 200 bytes each.
const MOST_PER_SHARD: usize = 2048;

type Key = (Registry, String, Digest);

/// Which repositories of a registry have which blobs, as far as this process knows by pushing. One for all cores.
#[derive(Default)]
pub struct Whereabouts(Sharded<Key, (Repository, Instant)>);

impl Whereabouts {
    /// `whose`: the login that saw it there, and for whom. Another's may not look into that repository.
    pub(super) fn note(
        &self,
        registry: &Registry,
        whose: &str,
        digest: Digest,
        repository: &Repository,
    ) {
        let key = (registry.clone(), whose.to_owned(), digest);
        let mut shard = self.0.lock(&key);
        if shard.len() >= MOST_PER_SHARD {
            shard.retain(|_, (_, since)| since.elapsed() < AGE);
        }
        if shard.len() >= MOST_PER_SHARD {
            shard.clear();
        }
        shard.insert(key, (repository.clone(), Instant::now()));
    }

    pub(super) fn find(
        &self,
        registry: &Registry,
        whose: &str,
        digest: Digest,
    ) -> Option<Repository> {
        let key = (registry.clone(), whose.to_owned(), digest);
        let shard = self.0.lock(&key);
        let (repository, since) = shard.get(&key)?;
        (since.elapsed() < AGE).then(|| repository.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_known_to_the_login_that_pushed_there() {
        let known = Whereabouts::default();
        let registry: Registry = "r.example".parse().expect("a registry");
        let repository: Repository = "a/b".parse().expect("a repository");
        let digest = Digest::of(b"blob");
        known.note(&registry, "ada", digest, &repository);
        assert_eq!(known.find(&registry, "ada", digest), Some(repository));
        assert_eq!(known.find(&registry, "bob", digest), None);
        assert_eq!(known.find(&registry, "ada", Digest::of(b"other")), None);
        let other = "s.example".parse().expect("a registry");
        assert_eq!(known.find(&other, "ada", digest), None);
    }
}
