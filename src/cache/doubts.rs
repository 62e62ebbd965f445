//! Blobs of which bytes were given out that nobody had verified, and whose fills are gone.
//!
//! Each fill holds back the last part of what it fetches, but what one held back another may give out: a client that goes
//! on where a wrong blob was cut would get the rest from a new fill. So blobs in doubt are fetched as a whole, and nothing
//! of them is released before it is verified. Bounded, and not kept across restarts.

use std::{
    collections::{HashSet, VecDeque},
    sync::Mutex,
};

use super::{Key, progress::HELD_BACK};
use crate::blocking::lock;

/// About 200 bytes each.
const MOST: usize = 4096;

#[derive(Default)]
pub(super) struct Doubts(Mutex<Noted>);

#[derive(Default)]
struct Noted {
    keys: HashSet<Key>,
    order: VecDeque<Key>,
}

impl Doubts {
    /// Nothing is ever released of a blob that is all held back.
    pub(super) fn add(&self, key: &Key, size: Option<u64>) {
        if size.is_some_and(|size| size <= HELD_BACK) {
            return;
        }
        let mut noted = lock(&self.0);
        if noted.keys.insert(key.clone()) {
            noted.order.push_back(key.clone());
        }
        while noted.order.len() > MOST {
            if let Some(oldest) = noted.order.pop_front() {
                noted.keys.remove(&oldest);
            }
        }
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        lock(&self.0).keys.contains(key)
    }

    /// A right one has been stored.
    pub(super) fn clear(&self, key: &Key) {
        let mut noted = lock(&self.0);
        if noted.keys.remove(key) {
            noted.order.retain(|other| other != key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Digest, Registry};

    fn key(number: usize) -> Key {
        Key {
            registry: Registry::docker_hub(),
            digest: Digest::of(&number.to_le_bytes()),
        }
    }

    #[test]
    fn doubts_are_remembered_until_they_are_settled_or_too_many() {
        let doubts = Doubts::default();
        doubts.add(&key(0), Some(HELD_BACK));
        assert!(!doubts.has(&key(0)));
        doubts.add(&key(0), Some(HELD_BACK + 1));
        doubts.add(&key(1), None);
        doubts.clear(&key(0));
        assert!(!doubts.has(&key(0)) && doubts.has(&key(1)));
        for number in 2..MOST + 2 {
            doubts.add(&key(number), None);
        }
        assert!(!doubts.has(&key(1)) && doubts.has(&key(2)));
    }
}
