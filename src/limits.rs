//! Token buckets: how often something may happen, by client.
//!
//! A bucket is kept as one instant, the one at which it will be full again; taking from it moves that instant
//! forward. So a full bucket needs no memory, and the table of the others is bounded.

use std::{
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::{BuildHasher, Hash},
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Deserializer, de};

/// How often, as people write it: `"100/1min"`, or `"off"` for as often as one likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    Unlimited,
    /// So many at once, and so many again in each period.
    Limited {
        count: u32,
        period: Duration,
    },
}

#[derive(Debug, thiserror::Error)]
#[error(
    "`{text}` is not a rate; write a number and a duration, as in \"100/1min\", or \"off\" for no limit"
)]
pub struct RateError {
    text: String,
}

impl Rate {
    pub const fn per_minute(count: u32) -> Self {
        Self::Limited {
            count,
            period: Duration::from_secs(60),
        }
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let malformed = || RateError {
            text: text.to_owned(),
        };
        if text == "off" {
            return Ok(Self::Unlimited);
        }
        let (count, period) = text.split_once('/').ok_or_else(malformed)?;
        let count: u32 = count.trim().parse().map_err(|_| malformed())?;
        let period = humantime::parse_duration(period.trim()).map_err(|_| malformed())?;
        match count == 0 || period.is_zero() {
            true => Err(malformed()),
            false => Ok(Self::Limited { count, period }),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => formatter.write_str("off"),
            Self::Limited { count, period } => {
                write!(formatter, "{count}/{}", humantime::format_duration(*period))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Enough that cores seldom wait for each other.
const SHARD_COUNT: usize = 16;
/// 65,536 keys in all: guessed. Their memory is below 8 MiB, and full buckets, most of them, are not kept.
const KEYS_PER_SHARD: usize = if cfg!(test) { 64 } else { 4096 };

/// Allows `capacity` events at once for each key, and one more every `refill_interval`.
pub struct Budget<K> {
    /// What a bucket holds, as the time that it takes to fill.
    depth: Duration,
    refill_interval: Duration,
    shards: [Mutex<HashMap<K, FullAt>>; SHARD_COUNT],
    hasher: RandomState,
}

type FullAt = Instant;

impl<K: Copy + Eq + Hash> Budget<K> {
    pub fn new(capacity: u32, refill_interval: Duration) -> Self {
        // A year is never for a process, and any count of them can be added to an instant.
        const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
        let refill_interval = refill_interval.min(NEVER);
        Self {
            depth: refill_interval.saturating_mul(capacity),
            refill_interval,
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
        }
    }

    /// `None`: no limit, and nothing to be kept for one.
    pub fn at(rate: Rate) -> Option<Self> {
        match rate {
            Rate::Unlimited => None,
            Rate::Limited { count, period } => Some(Self::new(count, period / count)),
        }
    }

    /// Takes one; the error says after how long there is one again.
    pub fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets_of(&key);
        let full_at = self.full_at_after_one(buckets.get(&key), now)?;
        if buckets.len() >= KEYS_PER_SHARD && !buckets.contains_key(&key) {
            make_room(&mut buckets, now);
        }
        buckets.insert(key, full_at);
        Ok(())
    }

    /// Whether `take` would succeed, for what is paid for only when it has failed.
    pub fn peek(&self, key: K, now: Instant) -> Result<(), Duration> {
        let buckets = self.buckets_of(&key);
        self.full_at_after_one(buckets.get(&key), now).map(drop)
    }

    fn full_at_after_one(
        &self,
        full_at: Option<&FullAt>,
        now: Instant,
    ) -> Result<FullAt, Duration> {
        let missing = full_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let missing = missing.saturating_add(self.refill_interval);
        match missing.checked_sub(self.depth) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => Ok(now + missing),
        }
    }

    fn buckets_of(&self, key: &K) -> MutexGuard<'_, HashMap<K, FullAt>> {
        let hash = self.hasher.hash_one(key).to_le_bytes();
        let shard = usize::from(u16::from_le_bytes([hash[0], hash[1]])) % SHARD_COUNT;
        let shard = self.shards.get(shard).expect("a remainder is in range");
        // Each change is one insertion or removal, so a panic elsewhere leaves nothing half done.
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops what is full again; if nothing is, the bucket that soonest would be, which forgives the least.
fn make_room<K: Copy + Eq + Hash>(buckets: &mut HashMap<K, FullAt>, now: Instant) {
    buckets.retain(|_, full_at| *full_at > now);
    if buckets.len() < KEYS_PER_SHARD {
        return;
    }
    let soonest = buckets.iter().min_by_key(|(_, full_at)| **full_at);
    if let Some(key) = soonest.map(|(key, _)| *key) {
        buckets.remove(&key);
    }
}

/// What counts as one client: an IPv4 address, or the /64 that an IPv6 host picks its addresses from.
pub fn client_key(address: IpAddr) -> IpAddr {
    /// The network half of an address (RFC 4291, section 2.5.1).
    const NETWORK: u128 = !0 << 64;
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & NETWORK)),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_budget_gives_its_capacity_and_then_one_for_each_interval() {
        let budget = Budget::new(3, SECOND);
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(budget.peek('a', start), Ok(()));
            assert_eq!(budget.take('a', start), Ok(()));
        }
        assert_eq!(budget.peek('a', start), Err(SECOND));
        assert_eq!(budget.take('a', start), Err(SECOND));
        assert_eq!(budget.take('b', start), Ok(()), "others have their own");
        let half = SECOND / 2;
        assert_eq!(budget.take('a', start + half), Err(half));
        assert_eq!(budget.take('a', start + SECOND), Ok(()));
        assert_eq!(budget.take('a', start + SECOND), Err(SECOND));
        let rested = start + 100 * SECOND;
        for _ in 0..3 {
            assert_eq!(budget.take('a', rested), Ok(()));
        }
        assert_eq!(
            budget.take('a', rested),
            Err(SECOND),
            "never above its capacity"
        );
    }

    #[test]
    fn a_budget_of_nothing_and_one_without_refill_hold() {
        let start = Instant::now();
        assert!(Budget::new(0, SECOND).take('a', start).is_err());
        let single = Budget::new(1, Duration::MAX);
        assert_eq!(single.take('a', start), Ok(()));
        assert!(single.take('a', start + 1000 * SECOND).is_err());
    }

    #[test]
    fn keys_are_bounded_and_the_most_indebted_stay() {
        let budget = Budget::new(2, SECOND);
        let start = Instant::now();
        let debtor = u32::MAX;
        assert_eq!(budget.take(debtor, start), Ok(()));
        assert_eq!(budget.take(debtor, start), Ok(()));
        let bound = SHARD_COUNT * KEYS_PER_SHARD;
        for key in 0..5_000 {
            assert_eq!(budget.take(key, start), Ok(()), "{key}");
        }
        let kept = |budget: &Budget<u32>| -> usize {
            let shards = budget.shards.iter();
            shards
                .map(|shard| shard.lock().map_or(0, |keys| keys.len()))
                .sum()
        };
        assert!(kept(&budget) <= bound, "{} keys", kept(&budget));
        assert!(
            budget.take(debtor, start).is_err(),
            "forgotten by a flood of others"
        );
    }

    #[test]
    fn rates_are_read() {
        let limited = |count, seconds| {
            Some(Rate::Limited {
                count,
                period: Duration::from_secs(seconds),
            })
        };
        for (text, expected) in [
            ("100/1min", limited(100, 60)),
            ("2000 / 1h", limited(2000, 3600)),
            ("1/30s", limited(1, 30)),
            ("off", Some(Rate::Unlimited)),
            ("100", None),
            ("100/min", None),
            ("0/1min", None),
            ("1/0s", None),
            ("-1/1s", None),
            ("", None),
        ] {
            let rate = text.parse::<Rate>().ok();
            assert_eq!(rate, expected, "{text}");
            if let Some(rate) = rate {
                assert_eq!(rate.to_string().parse::<Rate>().ok(), Some(rate), "{text}");
            }
        }
    }

    #[test]
    fn a_client_is_an_address_or_a_network_of_64_bits() {
        for (address, key) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("::1", "::"),
        ] {
            let parse = |text: &str| -> IpAddr {
                text.parse()
                    .unwrap_or_else(|error| panic!("{text}: {error}"))
            };
            assert_eq!(client_key(parse(address)), parse(key), "{address}");
        }
    }
}
