//! What AWS lends, by what it was made with.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex},
};

use super::renewing::Renewing;
use crate::blocking::lock;

/// More sources than any server has; forgetting one costs a call.
const MOST: usize = 4096;

pub(super) struct Table<K, T>(Mutex<HashMap<K, Arc<Renewing<T>>>>);

impl<K, T> Default for Table<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, T: Clone + PartialEq> Table<K, T> {
    /// The same for the same key, as long as somebody uses it.
    pub(super) fn of(&self, key: K) -> Arc<Renewing<T>> {
        let mut kept = lock(&self.0);
        if kept.len() >= MOST && !kept.contains_key(&key) {
            kept.retain(|_, renewing| !renewing.is_idle());
            if kept.len() >= MOST {
                kept.clear();
            }
        }
        Arc::clone(kept.entry(key).or_default())
    }
}
