//! Which policy keeps what will be pulled again? `cargo bench --bench evict`
//!
//! Two months of pulls from registries, made up but of the usual shape: base layers by a Zipf law, applications that are pulled
//! again daily and get a new version now and then, large images that are pulled once, sizes from 1 KiB to 2 GiB by
//! a log-normal law. Each policy sees the same pulls. The ratios are to LRU, the policy before.

#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "all input is the bench's own; a panic is its report"
)]

mod support;

use std::collections::{BTreeSet, HashMap, VecDeque};

use serde_json::json;
use support::report::{Report, size_name};
use tidegate::cache::{
    eviction::{Look, Queues, Shelf},
    index::Place,
};

const DAYS: u64 = 60;
const PULLS_A_DAY: u64 = 1500;
const BASE_LAYERS: usize = 2000;
const APPLICATIONS: usize = 400;
const LAYERS_OF_APPLICATION: usize = 4;
const GIB: u64 = 1 << 30;

#[derive(Clone, Copy)]
struct Pull {
    blob: u32,
    bytes: u64,
}

/// xorshift64*: the same pulls in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Median 200 KiB to 20 MiB by what it is of, a factor of five for each sigma.
    fn size(&mut self, median: f64) -> u64 {
        let normal: f64 = (0..12).map(|_| self.unit()).sum::<f64>() - 6.0;
        let bytes = median * (normal * 1.6).exp();
        (bytes.clamp(1024.0, 2.0 * GIB as f64) as u64).next_multiple_of(4096)
    }
}

struct Trace {
    random: Random,
    sizes: Vec<u64>,
    pulls: Vec<Pull>,
}

impl Trace {
    fn blob(&mut self, median: f64) -> u32 {
        let size = self.random.size(median);
        self.sizes.push(size);
        self.sizes.len() as u32 - 1
    }

    fn pull(&mut self, blob: u32) {
        let bytes = self.sizes[blob as usize];
        self.pulls.push(Pull { blob, bytes });
    }

    fn record() -> Vec<Pull> {
        const KIB: f64 = 1024.0;
        const MIB: f64 = 1024.0 * KIB;
        let mut trace = Self {
            random: Random(0x7469_6465),
            sizes: Vec::new(),
            pulls: Vec::new(),
        };
        let bases: Vec<u32> = (0..BASE_LAYERS).map(|_| trace.blob(8.0 * MIB)).collect();
        let mut sum = 0.0;
        let zipf: Vec<f64> = (1..=BASE_LAYERS)
            .map(|rank| {
                sum += 1.0 / (rank as f64).powf(0.9);
                sum
            })
            .collect();
        let mut applications: Vec<Vec<u32>> = (0..APPLICATIONS)
            .map(|_| {
                (0..LAYERS_OF_APPLICATION)
                    .map(|_| trace.blob(2.0 * MIB))
                    .collect()
            })
            .collect();
        for _ in 0..DAYS {
            for _ in 0..PULLS_A_DAY {
                let kind = trace.random.unit();
                if kind < 0.02 {
                    // Somebody tries a large image, once.
                    for _ in 0..12 {
                        let blob = trace.blob(40.0 * MIB);
                        trace.pull(blob);
                    }
                    continue;
                }
                // An application and the base layers that it stands on. A few are pulled much more than the rest.
                let popular = trace.random.unit().powi(3);
                let number = (popular * APPLICATIONS as f64) as usize;
                if kind < 0.06 {
                    let top = trace.blob(2.0 * MIB);
                    applications[number][LAYERS_OF_APPLICATION - 1] = top;
                }
                for layer in applications[number].clone() {
                    trace.pull(layer);
                }
                for _ in 0..3 {
                    let draw = trace.random.unit() * sum;
                    let rank = zipf.partition_point(|below| *below < draw);
                    trace.pull(bases[rank.min(BASE_LAYERS - 1)]);
                }
                if trace.random.below(4) == 0 {
                    let config = trace.blob(6.0 * KIB);
                    trace.pull(config);
                }
            }
        }
        trace.pulls
    }
}

trait Policy {
    /// Whether it was there.
    fn pull(&mut self, pull: Pull) -> bool;
}

/// Least recently used, or first in, first out.
struct Ordered {
    capacity: u64,
    used: u64,
    turn: u64,
    is_lru: bool,
    turns: HashMap<u32, (u64, u64)>,
    order: BTreeSet<(u64, u32)>,
}

impl Ordered {
    fn new(capacity: u64, is_lru: bool) -> Self {
        Self {
            capacity,
            used: 0,
            turn: 0,
            is_lru,
            turns: HashMap::new(),
            order: BTreeSet::new(),
        }
    }
}

impl Policy for Ordered {
    fn pull(&mut self, pull: Pull) -> bool {
        self.turn += 1;
        if let Some((turn, _)) = self.turns.get_mut(&pull.blob) {
            if self.is_lru {
                self.order.remove(&(*turn, pull.blob));
                *turn = self.turn;
                self.order.insert((self.turn, pull.blob));
            }
            return true;
        }
        while self.used + pull.bytes > self.capacity {
            let (_, oldest) = self.order.pop_first().expect("something is there");
            self.used -= self.turns.remove(&oldest).expect("both have it").1;
        }
        self.turns.insert(pull.blob, (self.turn, pull.bytes));
        self.order.insert((self.turn, pull.blob));
        self.used += pull.bytes;
        false
    }
}

/// Frequency over size, with ageing (GDSF): best for hits by number, by what is written about it.
struct Gdsf {
    capacity: u64,
    used: u64,
    age: f64,
    blobs: HashMap<u32, (f64, u64, u64)>,
    order: BTreeSet<(u64, u32)>,
}

impl Gdsf {
    fn rank(&mut self, pull: Pull, uses: u64) {
        let rank = self.age + uses as f64 / pull.bytes as f64;
        self.blobs.insert(pull.blob, (rank, pull.bytes, uses));
        // Positive floats are ordered as their bits.
        self.order.insert((rank.to_bits(), pull.blob));
    }
}

impl Policy for Gdsf {
    fn pull(&mut self, pull: Pull) -> bool {
        if let Some((rank, _, uses)) = self.blobs.get(&pull.blob).copied() {
            self.order.remove(&(rank.to_bits(), pull.blob));
            self.rank(pull, uses + 1);
            return true;
        }
        while self.used + pull.bytes > self.capacity {
            let (rank, oldest) = self.order.pop_first().expect("something is there");
            self.age = f64::from_bits(rank);
            self.used -= self.blobs.remove(&oldest).expect("both have it").1;
        }
        self.used += pull.bytes;
        self.rank(pull, 1);
        false
    }
}

/// LRU for what has been seen twice; the rest waits in a tenth of the bytes (2Q without its ghosts).
struct TwoQueues {
    capacity: u64,
    first: VecDeque<Pull>,
    first_bytes: u64,
    is_first: HashMap<u32, bool>,
    rest: Ordered,
}

impl Policy for TwoQueues {
    fn pull(&mut self, pull: Pull) -> bool {
        if self.rest.turns.contains_key(&pull.blob) {
            return self.rest.pull(pull);
        }
        if let Some(is_used) = self.is_first.get_mut(&pull.blob) {
            *is_used = true;
            return true;
        }
        self.first.push_back(pull);
        self.first_bytes += pull.bytes;
        self.is_first.insert(pull.blob, false);
        while self.first_bytes > self.capacity / 10 {
            let oldest = self.first.pop_front().expect("something is there");
            self.first_bytes -= oldest.bytes;
            if self.is_first.remove(&oldest.blob) == Some(true) {
                self.rest.pull(oldest);
            }
        }
        false
    }
}

/// The cache's own.
struct Own {
    capacity: u64,
    used: u64,
    queues: Queues,
    shelf: Model,
}

#[derive(Default)]
struct Model(HashMap<u32, Look>);

impl Shelf for Model {
    fn look(&self, place: Place) -> Option<Look> {
        self.0.get(&place.slot).copied()
    }

    fn requeue(&mut self, place: Place, _is_main: bool, frequency: u8) {
        if let Some(look) = self.0.get_mut(&place.slot) {
            look.frequency = frequency;
        }
    }
}

impl Policy for Own {
    fn pull(&mut self, pull: Pull) -> bool {
        if let Some(look) = self.shelf.0.get_mut(&pull.blob) {
            look.frequency = (look.frequency + 1).min(3);
            return true;
        }
        while self.used + pull.bytes > self.capacity {
            let victim = self
                .queues
                .victim(&mut self.shelf)
                .expect("something is there");
            self.shelf.0.remove(&victim.place.slot);
            self.used -= victim.bytes;
        }
        let look = Look {
            bytes: pull.bytes,
            frequency: 0,
            is_kept: false,
            fingerprint: u64::from(pull.blob),
        };
        let is_main = self.queues.is_remembered(look.fingerprint);
        let place = Place {
            slot: pull.blob,
            generation: 0,
        };
        self.queues.insert(place, pull.bytes, is_main);
        self.shelf.0.insert(pull.blob, look);
        self.used += pull.bytes;
        false
    }
}

#[derive(Clone, Copy)]
struct Ratios {
    blobs: f64,
    bytes: f64,
}

fn play(pulls: &[Pull], policy: &mut dyn Policy) -> Ratios {
    let (mut hits, mut hit_bytes, mut bytes) = (0_u64, 0_u64, 0_u64);
    for pull in pulls {
        bytes += pull.bytes;
        if policy.pull(*pull) {
            hits += 1;
            hit_bytes += pull.bytes;
        }
    }
    Ratios {
        blobs: hits as f64 / pulls.len() as f64,
        bytes: hit_bytes as f64 / bytes as f64,
    }
}

fn main() {
    let mut report =
        Report::start_without_servers("evict", "what is there when it is pulled again");
    let pulls = Trace::record();
    let mut sizes: HashMap<u32, u64> = HashMap::new();
    for pull in &pulls {
        sizes.insert(pull.blob, pull.bytes);
    }
    let all: u64 = sizes.values().sum();
    report.note(&format!(
        "{} pulls of {} blobs, {:.0} GiB of different bytes",
        pulls.len(),
        sizes.len(),
        all as f64 / GIB as f64
    ));
    report.head(
        2,
        &[
            "cache",
            "policy",
            "hits",
            "hit bytes",
            "misses ÷ LRU",
            "missed bytes ÷ LRU",
        ],
    );
    for capacity in [8 * GIB, 20 * GIB, 60 * GIB] {
        // As in the cache: one blob takes at most half.
        let fitting: Vec<Pull> = pulls
            .iter()
            .filter(|pull| pull.bytes <= capacity / 2)
            .copied()
            .collect();
        let policies: [(&str, Box<dyn Policy>); 5] = [
            ("LRU", Box::new(Ordered::new(capacity, true))),
            ("FIFO", Box::new(Ordered::new(capacity, false))),
            (
                "2Q",
                Box::new(TwoQueues {
                    capacity,
                    first: VecDeque::new(),
                    first_bytes: 0,
                    is_first: HashMap::new(),
                    rest: Ordered::new(capacity - capacity / 10, true),
                }),
            ),
            (
                "GDSF",
                Box::new(Gdsf {
                    capacity,
                    used: 0,
                    age: 0.0,
                    blobs: HashMap::new(),
                    order: BTreeSet::new(),
                }),
            ),
            (
                "tidegate",
                Box::new(Own {
                    capacity,
                    used: 0,
                    queues: Queues::new(capacity),
                    shelf: Model::default(),
                }),
            ),
        ];
        let mut lru = None;
        for (name, mut policy) in policies {
            let ratios = play(&fitting, policy.as_mut());
            let lru = *lru.get_or_insert(ratios);
            let misses = (1.0 - ratios.blobs) / (1.0 - lru.blobs);
            let missed_bytes = (1.0 - ratios.bytes) / (1.0 - lru.bytes);
            report.row(&[
                size_name(capacity),
                name.to_owned(),
                format!("{:.3}", ratios.blobs),
                format!("{:.3}", ratios.bytes),
                format!("{misses:.2}"),
                format!("{missed_bytes:.2}"),
            ]);
            report.record(json!({
                "row": size_name(capacity), "policy": name, "hits": ratios.blobs, "hit_bytes": ratios.bytes,
                "misses_to_lru": misses, "missed_bytes_to_lru": missed_bytes,
            }));
        }
    }
}
