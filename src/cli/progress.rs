//! How far it is, on a terminal, for what takes long: a bar, a pace, and how long it will be.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use crate::units::ByteSize;

/// What is done sooner needs no bar.
const PATIENCE: Duration = Duration::from_millis(400);
const BETWEEN: Duration = Duration::from_millis(100);
const WIDTH: usize = 20;

/// One line on standard error, which is gone when this is dropped.
pub(super) struct Progress {
    what: &'static str,
    of: Amount,
    done: Amount,
    begun: Instant,
    drawn: Option<Instant>,
    is_shown: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    count: u64,
    bytes: u64,
}

impl Progress {
    /// Zero: nobody knows how much it will be.
    pub(super) fn new(what: &'static str, of_count: u64, of_bytes: u64) -> Self {
        Self {
            what,
            of: Amount {
                count: of_count,
                bytes: of_bytes,
            },
            done: Amount::default(),
            begun: Instant::now(),
            drawn: None,
            is_shown: std::io::stderr().is_terminal(),
        }
    }

    pub(super) fn add(&mut self, count: u64, bytes: u64) {
        self.done.count += count;
        self.done.bytes += bytes;
        let elapsed = self.begun.elapsed();
        let is_due = self.drawn.is_none_or(|drawn| drawn.elapsed() >= BETWEEN);
        if self.is_shown && is_due && elapsed >= PATIENCE {
            self.drawn = Some(Instant::now());
            let line = line(self.what, self.done, self.of, elapsed);
            let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, done: Amount, of: Amount, elapsed: Duration) -> String {
    let (part, whole) = match of {
        Amount { bytes: 0, count } => (done.count, count),
        Amount { bytes, .. } => (done.bytes, bytes),
    };
    let mut line = format!("{what} ");
    if whole > 0 {
        let _ = write!(line, "{} ", bar(part, whole));
    }
    let _ = match done.count {
        1 => write!(line, "1 blob"),
        many => write!(line, "{many} blobs"),
    };
    if done.bytes > 0 {
        let rate = pace(done.bytes, elapsed);
        let size = ByteSize(done.bytes).rounded();
        let _ = write!(line, ", {size}, {}/s", ByteSize(rate).rounded());
    }
    if part > 0 && part < whole {
        let left = elapsed.as_secs_f64() * (ratio(whole) / ratio(part) - 1.0);
        let left = Duration::try_from_secs_f64(left).unwrap_or_default();
        let _ = write!(line, ", {} left", minutes(left));
    }
    line
}

/// Of something: more of it may come and go meanwhile.
pub(super) fn bar(part: u64, whole: u64) -> String {
    let part = part.min(whole);
    let share = |of: u64| u128::from(part) * u128::from(of) / u128::from(whole.max(1));
    let filled = usize::try_from(share(WIDTH as u64)).unwrap_or(WIDTH);
    format!("[{:<WIDTH$}] {:>3}%", "#".repeat(filled), share(100))
}

/// Bytes in a second.
pub(super) fn pace(bytes: u64, time: Duration) -> u64 {
    let rate = u128::from(bytes) * 1000 / time.as_millis().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

pub(super) fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn ratio(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{GIB, MIB};

    #[test]
    fn a_line_says_how_far_it_is() {
        let amount = |count, bytes| Amount { count, bytes };
        for (done, of, line_expected) in [
            (
                amount(1, GIB),
                amount(4, 4 * GIB),
                "verifying [#####               ]  25% 1 blob, 1.0GiB, 102MiB/s, 0:30 left",
            ),
            (
                amount(4, 5 * GIB),
                amount(4, 4 * GIB),
                "verifying [####################] 100% 4 blobs, 5.0GiB, 512MiB/s",
            ),
            (
                amount(1000, 0),
                amount(3000, 0),
                "verifying [######              ]  33% 1000 blobs, 0:20 left",
            ),
            (
                amount(7, 20 * MIB),
                amount(0, 0),
                "verifying 7 blobs, 20MiB, 2.0MiB/s",
            ),
            (amount(0, 0), amount(0, 0), "verifying 0 blobs"),
            (
                amount(0, 0),
                amount(9, GIB),
                "verifying [                    ]   0% 0 blobs",
            ),
        ] {
            let line = line("verifying", done, of, Duration::from_secs(10));
            assert_eq!(line, line_expected);
            assert!(line.len() < 80, "{line}");
        }
    }
}
