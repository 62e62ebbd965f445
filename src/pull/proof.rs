//! Who may have which content.
//!
//! A holder has a proof for a digest if a manifest that he was served names it, or if the registry said yes to his
//! own credentials for it. Proofs are remembered for a while, so that a warm hit asks nobody; they are not
//! kept across restarts, where the registry is simply asked again.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{
    blocking::lock,
    oci::{Digest, Registry, Repository},
    requests::Token,
};

/// How long a registry's yes is good for: a revocation there is noticed after that.
const AGE: Duration = Duration::from_secs(15 * 60);
const SHARDS: usize = 32;
/// About 150 bytes each.
const MOST_PER_SHARD: usize = 16_384;

/// Who holds a proof: a token, or everybody where a repository is open to all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    Token(Token),
    Anyone(Registry, Repository),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// What the manifest says of its size.
    pub size: Option<u64>,
    until: Instant,
}

/// Shared by all cores: the connections of one pull arrive on all of them.
pub struct Proofs {
    shards: Vec<Mutex<HashMap<(Holder, Digest), Proof>>>,
}

impl Default for Proofs {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl Proofs {
    pub fn add(&self, holder: &Holder, digest: Digest, size: Option<u64>) {
        let now = Instant::now();
        let mut shard = lock(self.shard(&digest));
        if shard.len() >= MOST_PER_SHARD {
            shard.retain(|_, proof| now < proof.until);
        }
        if shard.len() >= MOST_PER_SHARD {
            // Forgetting costs a question to the registry, nothing else.
            shard.clear();
        }
        let proof = shard
            .entry((holder.clone(), digest))
            .or_insert(Proof { size, until: now });
        proof.until = now + AGE;
        proof.size = size.or(proof.size);
    }

    pub fn find(&self, holder: &Holder, digest: &Digest) -> Option<Proof> {
        let key = (holder.clone(), *digest);
        let proof = *lock(self.shard(digest)).get(&key)?;
        (Instant::now() < proof.until).then_some(proof)
    }

    fn shard(&self, digest: &Digest) -> &Mutex<HashMap<(Holder, Digest), Proof>> {
        let mut hasher = DefaultHasher::new();
        digest.hash(&mut hasher);
        let index = hasher.finish() as usize % SHARDS;
        self.shards
            .get(index)
            .expect("the remainder is below the number of shards")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_its_holders_alone() {
        let proofs = Proofs::default();
        let (mine, other) = (
            Holder::Token(Token::random()),
            Holder::Token(Token::random()),
        );
        let digest = Digest::of(b"blob");
        proofs.add(&mine, digest, Some(4));
        proofs.add(&mine, digest, None);
        assert_eq!(
            proofs.find(&mine, &digest).and_then(|proof| proof.size),
            Some(4)
        );
        assert_eq!(proofs.find(&other, &digest), None);
        assert_eq!(proofs.find(&mine, &Digest::of(b"other")), None);
    }

    #[test]
    fn proofs_are_bounded() {
        let proofs = Proofs::default();
        let holder = Holder::Token(Token::random());
        let digest = Digest::of(b"blob");
        for _ in 0..MOST_PER_SHARD + 10 {
            proofs.add(&Holder::Token(Token::random()), digest, None);
        }
        proofs.add(&holder, digest, None);
        assert!(proofs.find(&holder, &digest).is_some());
        assert!(lock(proofs.shard(&digest)).len() <= MOST_PER_SHARD);
    }
}
