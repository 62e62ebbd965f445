//! The time of day, cheaply.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970, of the same clock as `coarse_time`.
pub fn coarse_seconds() -> u64 {
    coarse().as_secs()
}

/// As exact as the kernel's last tick, some milliseconds ago, and a fifth of the price of the exact time.
pub fn coarse_time() -> SystemTime {
    UNIX_EPOCH + coarse()
}

fn coarse() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is writable; the clock exists on every kernel that we run on.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn it_is_the_time_of_day() {
        let before = super::coarse_seconds();
        let exact = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_secs();
        // The coarse clock is a tick late, so it may still be in the second before.
        assert!(before <= exact, "{before} {exact}");
        assert!(super::coarse_seconds() + 1 >= exact);
        assert!(super::coarse_time() <= SystemTime::now());
    }
}
