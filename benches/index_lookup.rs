//! What does a hit cost in the index? `cargo bench --bench index_lookup`
//!
//! A million blobs. A look-up with the count of the use, of a few hot blobs and of all in random order, by one thread and
//! by two; beside it the table before: a map behind locks, cut into 64 parts. Then how long a start takes with them.

#![expect(
    clippy::indexing_slicing,
    reason = "all input is the bench's own; a panic is its report"
)]

mod support;

use std::{
    collections::HashMap,
    fs,
    hash::{BuildHasher as _, RandomState},
    hint::black_box,
    sync::Mutex,
    thread,
    time::Instant,
};

use serde_json::json;
use support::report::Report;
use tidegate::{
    cache::{
        Key,
        index::{Condition, Entry, Files, Index, MOST_SLOTS, Name, Pen, Place, Stage},
    },
    oci::{Digest, Registry},
};

const BLOBS: usize = 1_000_000;
const LOOK_UPS: usize = 1_000_000;
/// The best of them counts: others use the machine, too.
const ROUNDS: usize = 5;
const SHARDS: u64 = 64;

struct Before {
    shards: Vec<Mutex<HashMap<Key, (u64, u64)>>>,
    hasher: RandomState,
}

impl Before {
    fn shard(&self, key: &Key) -> &Mutex<HashMap<Key, (u64, u64)>> {
        &self.shards[(self.hasher.hash_one(key) % SHARDS) as usize]
    }

    fn find(&self, key: &Key, now: u64) -> Option<u64> {
        let mut shard = self.shard(key).lock().expect("nobody panics");
        let (size, last_use) = shard.get_mut(key)?;
        *last_use = now;
        Some(*size)
    }
}

fn find(index: &Index, key: &Key, now: u64) -> Option<u64> {
    let name = index.name(&key.registry, &key.digest);
    let seen = index.find(&name)?;
    index.touch(&seen, now);
    Some(seen.size)
}

/// Nanoseconds for each look-up of `keys`, by `threads` at once.
fn time(threads: usize, keys: &[&Key], find: impl Fn(&Key, u64) -> Option<u64> + Sync) -> f64 {
    let begun = Instant::now();
    thread::scope(|scope| {
        for number in 0..threads {
            let find = &find;
            scope.spawn(move || {
                let keys = keys.iter().cycle().skip(number * keys.len() / threads);
                for (count, key) in keys.take(LOOK_UPS).enumerate() {
                    // A second passes every hundred thousand uses.
                    let now = 1_800_000_000 + count as u64 / 100_000;
                    assert!(black_box(find(black_box(key), now)).is_some());
                }
            });
        }
    });
    begun.elapsed().as_nanos() as f64 / LOOK_UPS as f64
}

struct AllThere;

impl Files for AllThere {
    fn size_of(&mut self, _: &Index, _: &Name) -> Option<u64> {
        None
    }

    fn remove(&mut self, _: &Index, _: &Name) {}
}

fn fill(index: &Index, pen: &mut Pen, keys: &[Key]) {
    for (number, key) in keys.iter().enumerate() {
        let entry = Entry {
            place: Place {
                slot: 0,
                generation: 0,
            },
            name: index.name(&key.registry, &key.digest),
            size: number as u64,
            repository: 0,
            last_use: 1_700_000_000,
            frequency: 0,
            is_main: false,
        };
        index.insert(pen, &entry, Stage::Live).expect("room");
    }
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

fn main() {
    let mut report = Report::start_without_servers("index_lookup", "a million blobs in the index");
    let registry = Registry::docker_hub();
    let keys: Vec<Key> = (0..BLOBS)
        .map(|number| Key {
            registry: registry.clone(),
            digest: Digest::of(&number.to_le_bytes()),
        })
        .collect();

    // Starts first: what the process holds by then is the keys.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("index");
    let start = format!("start with {BLOBS} blobs");
    report.head(1, &[&start, "ms", "MiB more in memory"]);
    for (what, expected) in [
        ("new, then filled", Condition::New),
        ("killed", Condition::Recovered),
        ("closed", Condition::Closed),
    ] {
        let (memory, begun) = (resident(), Instant::now());
        let (index, mut pen, condition) = Index::load(&path, MOST_SLOTS, &mut AllThere);
        assert_eq!(condition, expected);
        if condition == Condition::New {
            fill(&index, &mut pen, &keys);
            index.complete(&mut pen);
        }
        assert!(find(&index, &keys[BLOBS / 2], 1_700_000_001).is_some());
        let seconds = begun.elapsed().as_secs_f64();
        let more = resident().saturating_sub(memory);
        report.row(&[
            what.to_owned(),
            format!("{:.1}", seconds * 1000.0),
            format!("{}", more >> 20),
        ]);
        report.record(json!({
            "row": format!("start, {what}"), "blobs": BLOBS, "seconds": seconds, "resident_bytes": more,
        }));
        if condition == Condition::Recovered {
            index.close(&mut pen).expect("synced");
        }
    }

    let (index, mut pen) = Index::in_memory(MOST_SLOTS);
    fill(&index, &mut pen, &keys);
    let before = Before {
        shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        hasher: RandomState::new(),
    };
    for (number, key) in keys.iter().enumerate() {
        let mut shard = before.shard(key).lock().expect("nobody panics");
        shard.insert(key.clone(), (number as u64, 0));
    }
    report.head(
        1,
        &[
            "blobs",
            "threads",
            "ns, index",
            "ns, locked map",
            "index ÷ map",
        ],
    );
    let hot: Vec<&Key> = keys.iter().take(16).collect();
    // By a step that shares no factor with the number of blobs.
    let all: Vec<&Key> = (0..BLOBS).map(|step| &keys[step * 7919 % BLOBS]).collect();
    for (what, keys) in [("16 hot", &hot), ("all, random", &all)] {
        for threads in [1, 2] {
            let (mut own, mut map) = (f64::MAX, f64::MAX);
            for _ in 0..ROUNDS {
                own = own.min(time(threads, keys, |key, now| find(&index, key, now)));
                map = map.min(time(threads, keys, |key, now| before.find(key, now)));
            }
            report.row(&[
                what.to_owned(),
                threads.to_string(),
                format!("{own:.0}"),
                format!("{map:.0}"),
                format!("{:.2}", own / map),
            ]);
            report.record(json!({
                "row": format!("look-up, {what}"), "threads": threads, "index_seconds": own * 1e-9,
                "map_seconds": map * 1e-9, "index_to_map": own / map,
            }));
        }
    }
}
