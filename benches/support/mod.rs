//! What the benches share: an origin, the servers under comparison, clients that do not limit them, and the report.
//!
//! Everything is on loopback, and only what was started here is ended here. `sys.rs` is the one place for `unsafe`.

#![allow(
    dead_code,
    reason = "compiled into every bench, and each uses its part"
)]
#![allow(
    unreachable_pub,
    reason = "the same items are reached from every bench's root"
)]

pub mod client;
pub mod origin;
pub mod platform;
pub mod report;
pub mod servers;
pub mod sys;
pub mod tls;

use std::{
    thread,
    time::{Duration, Instant},
};

/// 2^30, for figures per GiB.
pub const GIB: f64 = (1_u64 << 30) as f64;

/// Longer than anything here takes on a slow machine; whatever is not there by then will not come.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Sleeps for all of it, whatever wakes the thread.
pub fn pause(length: Duration) {
    let until = Instant::now() + length;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::park_timeout(left);
    }
}

/// Asks again and again until it is so; `false` if it never was.
pub fn comes_true(mut is_so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() >= until {
            return false;
        }
        pause(Duration::from_millis(5));
    }
    true
}

/// `q` between 0 and 1; zero for nothing.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let place = (last as f64 * q).round();
    let mut index = 0_usize;
    while (index as f64) < place {
        index += 1;
    }
    sorted.get(index).copied().unwrap_or_default()
}
