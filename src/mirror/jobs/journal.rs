//! A job's log: plain lines, for whoever asked for the job. It is shown to everybody who knows the job's id, so errors come
//! into it in the words that are for users, and nothing else does.

use std::{fmt::Write as _, time::SystemTime};

use crate::{
    mirror::{Copied, Item, Progress},
    units::ByteSize,
};

/// Of an image with hundreds of layers, or of a registry that is down for hours. It is kept for weeks, and anybody can have
/// images with more.
const LARGEST: usize = 64 << 10;
/// The rest is for what came of it.
const LARGEST_WITH_ITEMS: usize = 48 << 10;

#[derive(Debug, Default)]
pub(super) struct Journal {
    text: String,
    left_out: usize,
}

impl Journal {
    pub(super) fn of(text: String) -> Self {
        Self { text, left_out: 0 }
    }

    pub(super) fn line(&mut self, line: &str) {
        self.line_within(LARGEST, line);
    }

    fn line_within(&mut self, limit: usize, line: &str) {
        if self.text.len() + line.len() > limit {
            self.left_out += 1;
            return;
        }
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        // A registry's words are no lines of ours.
        let line = line.replace(char::is_control, " ");
        let _ = writeln!(self.text, "{now} {line}");
    }

    /// What became of each manifest and blob.
    pub(super) fn items(&mut self, progress: &Progress) {
        for item in &progress.snapshot().items {
            self.line_within(LARGEST_WITH_ITEMS, &told(item));
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = self.text.clone();
        if self.left_out > 0 {
            let _ = writeln!(text, "({} more lines are left out)", self.left_out);
        }
        text
    }
}

pub(super) fn told(item: &Item) -> String {
    let size = ByteSize(item.size).rounded();
    format!(
        "{} {} ({size}): {}",
        item.kind.as_str(),
        item.digest,
        item.state.as_str()
    )
}

pub(super) fn summary(copied: &Copied) -> String {
    format!(
        "done: {} manifests; of its blobs, {} copied, {} mounted, {} there already; {} sent; the target is {}",
        copied.manifests,
        copied.copied,
        copied.mounted,
        copied.present,
        ByteSize(copied.bytes).rounded(),
        copied.digest
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_and_says_so() {
        let mut journal = Journal::default();
        let line = "x".repeat(10_000);
        for _ in 0..100 {
            journal.line(&line);
        }
        let text = journal.text();
        assert!(text.len() < LARGEST + 100, "{}", text.len());
        assert!(text.ends_with("more lines are left out)\n"));
    }

    #[test]
    fn how_it_ended_is_told_after_any_number_of_items() {
        let progress = Progress::default();
        for number in 0..4096_u32 {
            let digest = crate::oci::Digest::of(&number.to_be_bytes());
            progress.track(digest, crate::mirror::Kind::Layer, 1);
        }
        let mut journal = Journal::default();
        journal.items(&progress);
        journal.line("denied");
        assert!(journal.text().contains(" denied\n"));
    }

    #[test]
    fn nobody_writes_lines_but_us() {
        let mut journal = Journal::default();
        journal.line("it said: no\n2026-01-01T00:00:00Z done\u{1b}[2J");
        assert_eq!(journal.text().lines().count(), 1);
        assert!(!journal.text().contains('\u{1b}'));
    }
}
