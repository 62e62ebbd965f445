//! A table that all cores share, cut into parts with a lock each, so that they seldom meet at one.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash},
    sync::{Mutex, MutexGuard},
};

use crate::blocking::lock;

/// Keys come from outside: nobody shall be able to choose those that meet, so each table has a random seed of its own.
/// Against somebody who could watch it at work this hash is weaker than std's; but every table here is bounded, and with
/// std's a tenth of a hit's work would be hashing.
pub type Keyed = foldhash::quality::RandomState;

/// More than any machine has cores that would meet; an empty part costs next to nothing.
const SHARDS: u64 = 64;

pub struct Sharded<K, V> {
    shards: Vec<Mutex<HashMap<K, V, Keyed>>>,
    hasher: Keyed,
}

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: Keyed::default(),
        }
    }
}

impl<K, V> Sharded<K, V> {
    /// The part in which everything about `about` stands. Held for a look-up only, never across an await.
    pub fn lock(&self, about: &impl Hash) -> MutexGuard<'_, HashMap<K, V, Keyed>> {
        let index = usize::try_from(self.hasher.hash_one(about) % SHARDS).unwrap_or(0);
        lock(
            self.shards
                .get(index)
                .expect("the remainder is below the number of shards"),
        )
    }

    /// One part after the other.
    pub fn iter(&self) -> impl Iterator<Item = MutexGuard<'_, HashMap<K, V, Keyed>>> {
        self.shards.iter().map(lock)
    }
}
