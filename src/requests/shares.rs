//! How much each tenant has of the belongings, so that none has all of the room. Content counts once for each tenant who has it,
//! however many of his tokens it belongs to, and whoever else has it.
//!
//! It is in memory: a start and each purge count anew what is on disk, in *rounds*. What comes during a round stays counted.

use std::{collections::HashMap, sync::Mutex};

use super::Tenant;
use crate::{blocking::lock, oci::Digest};

pub(super) struct Shares {
    most: u64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    round: u64,
    of_each: HashMap<Tenant, Share>,
}

#[derive(Default)]
struct Share {
    used: u64,
    contents: HashMap<Digest, Content>,
}

struct Content {
    size: u64,
    /// When it was last seen.
    round: u64,
}

/// All that the tenant may have is in use.
#[derive(Debug)]
pub(super) struct UsedUp;

impl Shares {
    pub(super) fn new(most: u64) -> Self {
        Self {
            most,
            table: Mutex::default(),
        }
    }

    /// Room for what is about to be kept: all of it or none. Says what of it is new.
    pub(super) fn take(
        &self,
        tenant: &Tenant,
        contents: impl Iterator<Item = (Digest, u64)>,
    ) -> Result<Vec<Digest>, UsedUp> {
        let mut table = lock(&self.table);
        let round = table.round;
        let share = table.of_each.entry(tenant.clone()).or_default();
        let mut new = Vec::new();
        for (digest, size) in contents {
            if share.see(digest, size, round) {
                new.push(digest);
            }
        }
        if share.used > self.most && !new.is_empty() {
            share.forget(&new);
            return Err(UsedUp);
        }
        Ok(new)
    }

    /// What was taken and came to nothing.
    pub(super) fn give_back(&self, tenant: &Tenant, taken: &[Digest]) {
        if let Some(share) = lock(&self.table).of_each.get_mut(tenant) {
            share.forget(taken);
        }
    }

    pub(super) fn begin_round(&self) {
        lock(&self.table).round += 1;
    }

    /// It is on disk, however much there is.
    pub(super) fn note(&self, tenant: &Tenant, digest: Digest, size: u64) {
        let mut table = lock(&self.table);
        let round = table.round;
        let share = table.of_each.entry(tenant.clone()).or_default();
        share.see(digest, size, round);
    }

    /// What was not seen since its beginning has gone.
    pub(super) fn end_round(&self) {
        let mut table = lock(&self.table);
        let round = table.round;
        table.of_each.retain(|_, share| {
            share.contents.retain(|_, content| content.round == round);
            share.used = share.contents.values().map(|content| content.size).sum();
            !share.contents.is_empty()
        });
    }
}

impl Share {
    /// Whether it is new.
    fn see(&mut self, digest: Digest, size: u64, round: u64) -> bool {
        let known = self.contents.insert(digest, Content { size, round });
        if known.is_none() {
            self.used += size;
        }
        known.is_none()
    }

    fn forget(&mut self, contents: &[Digest]) {
        for digest in contents {
            if let Some(content) = self.contents.remove(digest) {
                self.used = self.used.saturating_sub(content.size);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants() -> [Tenant; 2] {
        ["ada", "bob"].map(|name| Tenant::of_user(name, None, None))
    }

    fn take(shares: &Shares, tenant: &Tenant, contents: &[(&str, u64)]) -> bool {
        let contents = contents.iter();
        let contents = contents.map(|(name, size)| (Digest::of(name.as_bytes()), *size));
        shares.take(tenant, contents).is_ok()
    }

    #[test]
    fn each_has_a_share_and_what_is_equal_counts_once() {
        let [ada, bob] = tenants();
        let shares = Shares::new(100);
        assert!(take(
            &shares,
            &ada,
            &[("one", 60), ("one", 60), ("two", 40)]
        ));
        assert!(take(&shares, &ada, &[("one", 60)]), "she has it");
        assert!(!take(&shares, &ada, &[("three", 1)]));
        assert!(take(&shares, &bob, &[("one", 60)]), "it is nothing to him");
        assert!(
            !take(&shares, &bob, &[("three", 1), ("four", 40)]),
            "all or none"
        );
        assert!(take(&shares, &bob, &[("four", 40)]));
    }

    #[test]
    fn what_came_to_nothing_is_given_back() {
        let [ada, _] = tenants();
        let shares = Shares::new(100);
        let one = Digest::of(b"one");
        let taken = shares.take(&ada, [(one, 100)].into_iter());
        let taken = taken.unwrap_or_default();
        assert_eq!(taken, [one]);
        shares.give_back(&ada, &taken);
        assert!(take(&shares, &ada, &[("two", 100)]));
    }

    #[test]
    fn a_round_forgets_what_has_gone_and_nothing_that_came_meanwhile() {
        let [ada, bob] = tenants();
        let shares = Shares::new(100);
        assert!(take(
            &shares,
            &ada,
            &[("gone", 30), ("stays", 30), ("again", 30)]
        ));
        assert!(take(&shares, &bob, &[("gone", 30)]));
        shares.begin_round();
        shares.note(&ada, Digest::of(b"stays"), 30);
        assert!(take(&shares, &ada, &[("again", 30), ("new", 10)]));
        shares.end_round();
        assert!(!take(&shares, &ada, &[("more", 31)]));
        assert!(take(&shares, &ada, &[("more", 30)]));
        let table = lock(&shares.table);
        assert!(
            !table.of_each.contains_key(&bob),
            "who has nothing costs nothing"
        );
    }
}
