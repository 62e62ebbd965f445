//! The grants that are in use, in memory: what a core asks first for every request.
//!
//! A bounded copy of what is on disk. A revoked grant never comes back: who loads one from disk takes a `Ticket`
//! before he reads, and a revocation, which writes the disk first, makes the tickets of its shard worthless.
//!
//! ```text
//! find    ticket ──────── read disk ──────────────── remember(ticket): refused
//! revoke             └ write disk ── forget ┘   else: remember ── forget removes it
//! ```

use std::{
    collections::HashMap,
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use super::{Grant, Token};
use crate::sharded::Keyed;

/// Enough that cores seldom wait for each other.
const SHARD_COUNT: usize = 64;
/// 65,536 grants in all, about 32 MiB.
const GRANTS_PER_SHARD: usize = if cfg!(test) { 16 } else { 1024 };

pub(super) struct Recent {
    shards: [Mutex<Shard>; SHARD_COUNT],
    hasher: Keyed,
}

#[derive(Default)]
struct Shard {
    grants: HashMap<Token, Remembered, Keyed>,
    /// Counts uses, to know the least recent.
    clock: u64,
    revocation_count: u64,
}

struct Remembered {
    grant: Arc<Grant>,
    last_use: u64,
    /// Its first pull has been written down, or is about to be.
    is_pulled: bool,
}

/// Says that no grant of its shard has been revoked since it was taken.
pub(super) struct Ticket {
    token: Token,
    revocation_count: u64,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: Keyed::default(),
        }
    }

    pub(super) fn find(&self, token: &Token, now: SystemTime) -> Option<Arc<Grant>> {
        let mut shard = self.shard_of(token);
        shard.clock += 1;
        let clock = shard.clock;
        let remembered = shard.grants.get_mut(token)?;
        if remembered.grant.is_expired(now) {
            return None;
        }
        remembered.last_use = clock;
        Some(Arc::clone(&remembered.grant))
    }

    /// To be taken before the disk is read or written.
    pub(super) fn ticket(&self, token: Token) -> Ticket {
        Ticket {
            token,
            revocation_count: self.shard_of(&token).revocation_count,
        }
    }

    /// Whether the grant is now remembered. If not, it may have been revoked since the ticket was taken.
    #[must_use]
    pub(super) fn remember(&self, ticket: &Ticket, grant: &Arc<Grant>) -> bool {
        assert_eq!(ticket.token, grant.token, "a ticket is for one grant");
        let mut shard = self.shard_of(&grant.token);
        if shard.revocation_count != ticket.revocation_count {
            return false;
        }
        if shard.grants.len() >= GRANTS_PER_SHARD {
            shard.evict();
        }
        shard.clock += 1;
        let remembered = Remembered {
            grant: Arc::clone(grant),
            last_use: shard.clock,
            is_pulled: false,
        };
        shard.grants.insert(grant.token, remembered);
        true
    }

    /// Whether it was not pulled before, as far as is remembered here.
    pub(super) fn mark_pulled(&self, token: &Token) -> bool {
        let mut shard = self.shard_of(token);
        let remembered = shard.grants.get_mut(token);
        remembered.is_none_or(|it| !std::mem::replace(&mut it.is_pulled, true))
    }

    pub(super) fn unmark_pulled(&self, token: &Token) {
        if let Some(remembered) = self.shard_of(token).grants.get_mut(token) {
            remembered.is_pulled = false;
        }
    }

    /// To be called after the disk was written.
    pub(super) fn forget_revoked(&self, token: &Token) {
        let mut shard = self.shard_of(token);
        shard.revocation_count += 1;
        shard.grants.remove(token);
    }

    pub(super) fn forget_expired(&self, now: SystemTime) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.grants.retain(|_, it| !it.grant.is_expired(now));
        }
    }

    fn shard_of(&self, token: &Token) -> MutexGuard<'_, Shard> {
        let hash = self.hasher.hash_one(token).to_le_bytes();
        let index = usize::from(u16::from_le_bytes([hash[0], hash[1]])) % SHARD_COUNT;
        lock(self.shards.get(index).expect("a remainder is in range"))
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // Each change is one insertion or removal, so a panic elsewhere leaves nothing half done.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    /// Looks at every grant of the shard: some microseconds, and only when one was not in memory.
    fn evict(&mut self) {
        let least_recent = self.grants.iter().min_by_key(|(_, it)| it.last_use);
        if let Some(token) = least_recent.map(|(token, _)| *token) {
            self.grants.remove(&token);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::requests::Caller;

    fn grant(expires: SystemTime) -> Arc<Grant> {
        Arc::new(Grant {
            token: Token::random(),
            image: "alpine".parse().expect("it is an image"),
            caller: Arc::new(Caller::Anonymous),
            overlay: None,
            durable: None,
            created: SystemTime::UNIX_EPOCH,
            expires,
            lease: None,
        })
    }

    #[test]
    fn only_one_pull_of_a_grant_is_the_first() {
        let recent = Recent::new();
        let grant = grant(SystemTime::now() + Duration::from_secs(60));
        assert!(recent.mark_pulled(&grant.token), "nothing is known of it");
        assert!(recent.remember(&recent.ticket(grant.token), &grant));
        assert!(recent.mark_pulled(&grant.token));
        assert!(!recent.mark_pulled(&grant.token));
        recent.unmark_pulled(&grant.token);
        assert!(recent.mark_pulled(&grant.token));
    }

    #[test]
    fn a_grant_read_before_its_revocation_is_not_remembered_after_it() {
        let recent = Recent::new();
        let now = SystemTime::now();
        let grant = grant(now + Duration::from_secs(60));
        let before = recent.ticket(grant.token);
        recent.forget_revoked(&grant.token);
        assert!(!recent.remember(&before, &grant));
        assert_eq!(recent.find(&grant.token, now), None);
        assert!(recent.remember(&recent.ticket(grant.token), &grant));
        recent.forget_revoked(&grant.token);
        assert_eq!(recent.find(&grant.token, now), None);
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let recent = Recent::new();
        let now = SystemTime::now();
        let expires = now + Duration::from_secs(60);
        let used = grant(expires);
        assert!(recent.remember(&recent.ticket(used.token), &used));
        for _ in 0..4 * SHARD_COUNT * GRANTS_PER_SHARD {
            let other = grant(expires);
            assert!(recent.remember(&recent.ticket(other.token), &other));
            assert!(recent.find(&used.token, now).is_some());
        }
        let kept: usize = recent.shards.iter().map(|it| lock(it).grants.len()).sum();
        assert_eq!(kept, SHARD_COUNT * GRANTS_PER_SHARD);
        recent.forget_expired(expires);
        let kept: usize = recent.shards.iter().map(|it| lock(it).grants.len()).sum();
        assert_eq!(kept, 0);
    }
}
