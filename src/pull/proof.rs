//! Who may have which content.
//!
//! A holder may have a blob if its registry said yes to his own credentials for it; or if a manifest that he was
//! served names it *and* its repository is known to have it. A manifest's naming alone proves nothing: whoever may
//! push can write any digest into one, and registries do not look whether foreign layers are theirs. All of
//! this is remembered for a while, so that a warm hit asks nobody, and is not kept across restarts, where
//! the registry is simply asked again.

use std::time::{Duration, Instant};

use super::Access;
use crate::{
    oci::{Digest, Registry, Repository},
    requests::Token,
    sharded::Sharded,
};

/// How long a registry's yes to somebody is good for: a revocation there is noticed after that.
const AGE: Duration = Duration::from_secs(15 * 60);
/// How long a repository is taken to have what it had. Who may read the repository is another question.
const CONTENT_AGE: Duration = Duration::from_secs(24 * 3600);
/// About 200 bytes each.
const MOST_PER_SHARD: usize = 8_192;

/// Who holds a proof: a token, or everybody where a repository is open to all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    Token(Token),
    Anyone(Registry, Repository),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Fact {
    /// A manifest served to the holder names it.
    Named(Holder),
    /// The registry said yes to the holder.
    Allowed(Holder),
    /// The repository has it: it sent the bytes, or said so.
    Contained(Registry, Repository),
}

#[derive(Clone, Copy, Debug)]
struct Memory {
    /// What a manifest or the registry says of its size.
    size: Option<u64>,
    until: Instant,
}

/// Shared by all cores: the connections of one pull arrive on all of them.
#[derive(Default)]
pub struct Proofs(Sharded<(Digest, Fact), Memory>);

impl Proofs {
    /// A manifest that `holder` was served names it.
    pub fn note_named(&self, holder: &Holder, digest: Digest, size: u64) {
        self.note(Fact::Named(holder.clone()), digest, Some(size), AGE);
    }

    /// The registry let the holder of `access` have it.
    pub fn note_allowed(&self, access: &Access, digest: Digest, size: Option<u64>) {
        self.note(Fact::Allowed(access.holder.clone()), digest, size, AGE);
        let contained = Fact::Contained(access.registry.clone(), access.repository.clone());
        self.note(contained, digest, size, CONTENT_AGE);
    }

    pub fn may_have(&self, access: &Access, digest: &Digest) -> bool {
        self.recall(Fact::Allowed(access.holder.clone()), digest)
            .is_some()
            || (self
                .recall(Fact::Named(access.holder.clone()), digest)
                .is_some()
                && self
                    .recall(
                        Fact::Contained(access.registry.clone(), access.repository.clone()),
                        digest,
                    )
                    .is_some())
    }

    /// Whether a manifest served to the holder names it: what an index names are manifests of its own repository.
    pub fn is_named(&self, access: &Access, digest: &Digest) -> bool {
        self.recall(Fact::Named(access.holder.clone()), digest)
            .is_some()
    }

    /// What is said of its size to this holder.
    pub fn size(&self, access: &Access, digest: &Digest) -> Option<u64> {
        let named = self.recall(Fact::Named(access.holder.clone()), digest);
        let allowed = || self.recall(Fact::Allowed(access.holder.clone()), digest);
        named
            .and_then(|memory| memory.size)
            .or_else(|| allowed()?.size)
    }

    fn note(&self, fact: Fact, digest: Digest, size: Option<u64>, age: Duration) {
        let now = Instant::now();
        let mut shard = self.0.lock(&digest);
        if shard.len() >= MOST_PER_SHARD {
            shard.retain(|_, memory| now < memory.until);
        }
        if shard.len() >= MOST_PER_SHARD {
            // Forgetting costs a question to the registry, nothing else.
            shard.clear();
        }
        let memory = shard
            .entry((digest, fact))
            .or_insert(Memory { size, until: now });
        memory.until = now + age;
        memory.size = size.or(memory.size);
    }

    fn recall(&self, fact: Fact, digest: &Digest) -> Option<Memory> {
        let memory = *self.0.lock(digest).get(&(*digest, fact))?;
        (Instant::now() < memory.until).then_some(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(repository: &str) -> Access {
        Access {
            holder: Holder::Token(Token::random()),
            ..Access::anonymous(
                Registry::docker_hub(),
                repository.parse().expect("a repository"),
            )
        }
    }

    #[test]
    fn a_yes_is_its_holders_alone() {
        let proofs = Proofs::default();
        let (mine, other) = (access("a/b"), access("a/b"));
        let digest = Digest::of(b"blob");
        proofs.note_allowed(&mine, digest, Some(4));
        proofs.note_allowed(&mine, digest, None);
        assert!(proofs.may_have(&mine, &digest));
        assert_eq!(proofs.size(&mine, &digest), Some(4));
        assert!(!proofs.may_have(&other, &digest));
        assert!(!proofs.may_have(&mine, &Digest::of(b"other")));
    }

    #[test]
    fn naming_proves_only_what_the_repository_has() {
        let proofs = Proofs::default();
        let digest = Digest::of(b"blob");
        let (ada, ada_later, bob) = (
            access("ada/private"),
            access("ada/private"),
            access("bob/own"),
        );
        proofs.note_allowed(&ada, digest, Some(4));
        proofs.note_named(&bob.holder, digest, 4);
        assert!(
            !proofs.may_have(&bob, &digest),
            "bob wrote the digest into a manifest of his own"
        );
        proofs.note_named(&ada_later.holder, digest, 4);
        assert!(
            proofs.may_have(&ada_later, &digest),
            "the same repository is known to have it"
        );
    }

    #[test]
    fn memory_is_bounded() {
        let proofs = Proofs::default();
        let digest = Digest::of(b"blob");
        for _ in 0..MOST_PER_SHARD + 10 {
            proofs.note_named(&Holder::Token(Token::random()), digest, 1);
        }
        let mine = access("a/b");
        proofs.note_allowed(&mine, digest, None);
        assert!(proofs.may_have(&mine, &digest));
        assert!(proofs.0.lock(&digest).len() <= MOST_PER_SHARD);
    }
}
