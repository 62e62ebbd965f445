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
    /// A token, in a repository that is included in its image. Another registry's yes to it says nothing about the
    /// token's own.
    Included(Token, Registry, Repository),
}

/// What is remembered about a blob, and of whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum About {
    Holder(Holder),
    /// The repository has it: it sent the bytes, or said so.
    Content(Registry, Repository),
    /// It was made for the token and is kept for it.
    Own(Token),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    /// A manifest served to the holder names it.
    named: Option<Memory>,
    /// The registry said yes to the holder, or has it in the repository.
    allowed: Option<Memory>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    /// What a manifest or the registry says of its size.
    size: Option<u64>,
    until: Instant,
}

/// How a holder stands to a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub may_have: bool,
    /// What is said of its size to him.
    pub size: Option<u64>,
}

/// Shared by all cores: the connections of one pull arrive on all of them.
#[derive(Default)]
pub struct Proofs(Sharded<(Digest, About), Known>);

impl Proofs {
    /// A manifest that `holder` was served names it.
    pub fn note_named(&self, holder: &Holder, digest: Digest, size: u64) {
        self.note(About::Holder(holder.clone()), digest, |known| {
            remember(&mut known.named, Some(size), AGE);
        });
    }

    /// The registry let the holder of `access` have it.
    pub fn note_allowed(&self, access: &Access, digest: Digest, size: Option<u64>) {
        self.note(About::Holder(access.holder.clone()), digest, |known| {
            remember(&mut known.allowed, size, AGE);
        });
        let content = About::Content(access.registry.clone(), access.repository.clone());
        self.note(content, digest, |known| {
            remember(&mut known.allowed, size, CONTENT_AGE);
        });
    }

    /// It is on disk among the token's belongings.
    pub fn note_kept(&self, token: Token, digest: Digest) {
        self.note(About::Own(token), digest, |known| {
            remember(&mut known.allowed, None, AGE);
        });
    }

    pub fn is_kept(&self, token: Token, digest: &Digest) -> bool {
        self.recall(About::Own(token), digest).allowed.is_some()
    }

    /// One look for whoever was let have it himself.
    pub fn standing(&self, access: &Access, digest: &Digest) -> Standing {
        let known = self.recall(About::Holder(access.holder.clone()), digest);
        let is_contained = || {
            let content = About::Content(access.registry.clone(), access.repository.clone());
            self.recall(content, digest).allowed.is_some()
        };
        let said = |memory: Option<Memory>| memory.and_then(|memory| memory.size);
        Standing {
            may_have: known.allowed.is_some() || (known.named.is_some() && is_contained()),
            size: said(known.named).or(said(known.allowed)),
        }
    }

    pub fn may_have(&self, access: &Access, digest: &Digest) -> bool {
        self.standing(access, digest).may_have
    }

    /// What is said of its size to this holder.
    pub fn size(&self, access: &Access, digest: &Digest) -> Option<u64> {
        self.standing(access, digest).size
    }

    /// Whether a manifest served to the holder names it: what an index names are manifests of its own repository.
    pub fn is_named(&self, access: &Access, digest: &Digest) -> bool {
        let known = self.recall(About::Holder(access.holder.clone()), digest);
        known.named.is_some()
    }

    fn note(&self, about: About, digest: Digest, change: impl FnOnce(&mut Known)) {
        let mut shard = self.0.lock(&digest);
        if shard.len() >= MOST_PER_SHARD {
            let now = Instant::now();
            shard.retain(|_, known| known.at(now) != Known::default());
        }
        if shard.len() >= MOST_PER_SHARD {
            // Forgetting costs a question to the registry, nothing else.
            shard.clear();
        }
        change(shard.entry((digest, about)).or_default());
    }

    /// What holds of it still.
    fn recall(&self, about: About, digest: &Digest) -> Known {
        let known = self.0.lock(digest).get(&(*digest, about)).copied();
        known.map_or_else(Known::default, |known| known.at(Instant::now()))
    }
}

impl Known {
    fn at(self, now: Instant) -> Self {
        let holds = |memory: &Memory| now < memory.until;
        Self {
            named: self.named.filter(holds),
            allowed: self.allowed.filter(holds),
        }
    }
}

fn remember(memory: &mut Option<Memory>, size: Option<u64>, age: Duration) {
    *memory = Some(Memory {
        size: size.or(memory.and_then(|before| before.size)),
        until: Instant::now() + age,
    });
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
