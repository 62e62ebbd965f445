//! How far a copy is, on standard error: lines that stay for what is over, and on a terminal below them lines that change
//! for what is under way.

use std::{
    collections::{HashSet, VecDeque},
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use crate::{
    cli::progress::{bar, minutes, pace},
    mirror::{Item, Snapshot, State},
    oci::Digest,
    sys::{TerminalSize, terminal_size},
    units::ByteSize,
};

/// Between lines about the whole, where they stay.
const BETWEEN: Duration = Duration::from_secs(10);
/// What the pace is told of.
const WINDOW: Duration = Duration::from_secs(5);
/// Where nobody knows better (POSIX's default).
const USUAL: TerminalSize = TerminalSize {
    rows: 24,
    columns: 80,
};

pub(super) struct Display {
    kind: Kind,
    /// What has its last line.
    told: HashSet<Digest>,
    samples: VecDeque<(Instant, u64)>,
}

enum Kind {
    Quiet,
    Lines {
        last: Instant,
    },
    /// The lines that change, as they were written.
    Live {
        drawn: Vec<String>,
    },
}

impl Display {
    pub(super) fn new(is_quiet: bool) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self {
            kind: match (is_quiet, is_terminal) {
                (true, _) => Kind::Quiet,
                (false, true) => Kind::Live { drawn: Vec::new() },
                (false, false) => Kind::Lines {
                    last: Instant::now(),
                },
            },
            told: HashSet::new(),
            samples: VecDeque::new(),
        }
    }

    pub(super) fn show(&mut self, snapshot: &Snapshot) {
        let pace = self.pace(snapshot);
        let over = self.newly_over(snapshot);
        let text = match &mut self.kind {
            Kind::Quiet => return,
            Kind::Lines { last } => {
                let mut lines = over;
                let is_busy = snapshot.totals.items_over < snapshot.totals.items;
                if is_busy && last.elapsed() >= BETWEEN {
                    *last = Instant::now();
                    lines.push(whole(snapshot, pace));
                }
                lines.iter().map(|line| format!("{line}\n")).collect()
            }
            Kind::Live { drawn } => {
                let size = terminal_size(std::io::stderr()).unwrap_or(USUAL);
                let lines = under_way(snapshot, pace, size);
                if over.is_empty() && lines == *drawn {
                    return;
                }
                let mut text = erased(drawn.len());
                for line in over.iter().chain(&lines) {
                    text.push_str(line);
                    text.push('\n');
                }
                *drawn = lines;
                text
            }
        };
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    /// Leaves only the lines that stay.
    pub(super) fn end(&mut self) {
        if let Kind::Live { drawn } = &mut self.kind {
            let text = erased(drawn.len());
            drawn.clear();
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
    }

    fn newly_over(&mut self, snapshot: &Snapshot) -> Vec<String> {
        let mut lines = Vec::new();
        for item in &snapshot.items {
            if !item.state.is_over() {
                // It is tried again.
                self.told.remove(&item.digest);
            } else if self.told.insert(item.digest) {
                lines.push(line(item, item.state.as_str()));
            }
        }
        lines
    }

    /// Of what is sent, in bytes for each second of late.
    fn pace(&mut self, snapshot: &Snapshot) -> u64 {
        let items = snapshot.items.iter();
        let sent = items.filter(|item| matches!(item.state, State::Copying | State::Copied));
        let sent = sent.map(|item| item.done).sum();
        let now = Instant::now();
        self.samples.push_back((now, sent));
        while self.samples.len() > 2
            && self
                .samples
                .front()
                .is_some_and(|(at, _)| now.duration_since(*at) > WINDOW)
        {
            self.samples.pop_front();
        }
        match self.samples.front() {
            Some((at, before)) => pace(sent.saturating_sub(*before), now.duration_since(*at)),
            None => 0,
        }
    }
}

/// Goes back over the lines that change.
fn erased(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!("\x1b[{count}A\r\x1b[J"),
    }
}

fn line(item: &Item, said: &str) -> String {
    /// As Docker shows it.
    const DIGITS: usize = 12;
    let hex = item.digest.hex();
    let short = hex.get(..DIGITS).unwrap_or(&hex);
    let size = ByteSize(item.size).rounded();
    format!("{short} {:<8} {size:>8}  {said}", item.kind.as_str())
}

/// As many as there is room for; what moves, and the whole. A line that is too long for the terminal would be two.
fn under_way(snapshot: &Snapshot, pace: u64, size: TerminalSize) -> Vec<String> {
    if snapshot.totals.items == 0 {
        return Vec::new();
    }
    let copying = snapshot.items.iter();
    let copying = copying.filter(|item| item.state == State::Copying);
    let room = size.rows.saturating_sub(2);
    let mut lines: Vec<String> = copying
        .take(room)
        .map(|item| line(item, &bar(item.done, item.size)))
        .collect();
    lines.push(whole(snapshot, pace));
    for line in &mut lines {
        line.truncate(size.columns.saturating_sub(1));
    }
    lines
}

fn whole(snapshot: &Snapshot, pace: u64) -> String {
    let totals = &snapshot.totals;
    let bar = bar(totals.bytes_done, totals.bytes);
    let (over, items) = (totals.items_over, totals.items);
    let (done, bytes) = (ByteSize(totals.bytes_done), ByteSize(totals.bytes));
    let mut line = format!(
        "{bar}  {over} of {items}, {} of {}",
        done.rounded(),
        bytes.rounded()
    );
    let left = totals.bytes.saturating_sub(totals.bytes_done);
    if pace > 0 && left > 0 {
        line.push_str(&format!(
            ", {}/s, {} left",
            ByteSize(pace).rounded(),
            minutes(Duration::from_secs(left / pace))
        ));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        mirror::{self, Totals},
        units::MIB,
    };

    fn item(number: u8, state: State, done: u64, size: u64) -> Item {
        Item {
            digest: Digest::of(&[number]),
            kind: mirror::Kind::Layer,
            size,
            done,
            state,
        }
    }

    fn snapshot(items: Vec<Item>) -> Snapshot {
        Snapshot {
            totals: Totals {
                items: items.len() as u64,
                items_over: items.iter().filter(|item| item.state.is_over()).count() as u64,
                bytes: items.iter().map(|item| item.size).sum(),
                bytes_done: items.iter().map(|item| item.done).sum(),
            },
            items,
        }
    }

    #[test]
    fn what_moves_and_the_whole_are_seen() {
        let snapshot = snapshot(vec![
            item(0, State::Present, MIB, MIB),
            item(1, State::Copying, 5 * MIB, 20 * MIB),
            item(2, State::Copying, 0, MIB),
            item(3, State::Waiting, 0, 2 * MIB),
        ]);
        let lines = under_way(&snapshot, MIB, USUAL);
        assert_eq!(
            lines,
            [
                "4bf5122f3445 layer       20MiB  [#####               ]  25%",
                "dbc1b4c900ff layer      1.0MiB  [                    ]   0%",
                "[#####               ]  25%  1 of 4, 6.0MiB of 24MiB, 1.0MiB/s, 0:18 left",
            ]
        );
        let small = TerminalSize {
            rows: 3,
            columns: 20,
        };
        let lines = under_way(&snapshot, MIB, small);
        assert_eq!(lines, ["4bf5122f3445 layer ", "[#####             "]);
        assert!(under_way(&Snapshot::default(), 0, USUAL).is_empty());
    }

    #[test]
    fn what_is_over_is_told_once_and_again_if_it_is_tried_again() {
        let mut display = Display::new(true);
        let mut told = |state| {
            let snapshot = snapshot(vec![item(0, state, 0, 1000)]);
            display.newly_over(&snapshot)
        };
        assert_eq!(told(State::Waiting), [""; 0]);
        assert_eq!(
            told(State::Failed),
            ["6e340b9cffb3 layer       1000B  failed"]
        );
        assert_eq!(told(State::Failed), [""; 0]);
        assert_eq!(told(State::Copying), [""; 0]);
        assert_eq!(
            told(State::Copied),
            ["6e340b9cffb3 layer       1000B  copied"]
        );
    }
}
