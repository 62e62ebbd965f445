//! A table that all cores share, cut into parts with a lock each, so that they seldom meet at one.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Mutex, MutexGuard},
};

use crate::blocking::lock;

/// More than any machine has cores that would meet; an empty part costs next to nothing.
const SHARDS: u64 = 64;

pub struct Sharded<K, V> {
    shards: Vec<Mutex<HashMap<K, V>>>,
    /// Keys come from outside: nobody shall be able to choose those of one part.
    hasher: RandomState,
}

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
        }
    }
}

impl<K, V> Sharded<K, V> {
    /// The part in which everything about `about` stands. Held for a look-up only, never across an await.
    pub fn lock(&self, about: &impl Hash) -> MutexGuard<'_, HashMap<K, V>> {
        let index = usize::try_from(self.hasher.hash_one(about) % SHARDS).unwrap_or(0);
        lock(
            self.shards
                .get(index)
                .expect("the remainder is below the number of shards"),
        )
    }

    /// One part after the other.
    pub fn iter(&self) -> impl Iterator<Item = MutexGuard<'_, HashMap<K, V>>> {
        self.shards.iter().map(lock)
    }
}
