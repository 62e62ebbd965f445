//! Answers as people read them.

use std::{
    io::{self, Write},
    time::SystemTime,
};

use crate::{
    cache::{Checked, Damage, Gone, Intent, Listed, Pinned, Report},
    units::ByteSize,
};

pub(super) fn blobs(to: &mut dyn Write, blobs: &[Listed]) -> io::Result<()> {
    if blobs.is_empty() {
        return writeln!(to, "no blobs");
    }
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let width = digest_width(blobs);
    writeln!(
        to,
        "{:<width$}  {:>8}  {:>6}  REGISTRY",
        "DIGEST", "SIZE", "USED"
    )?;
    for blob in blobs {
        let note = if blob.is_pinned { "  (pinned)" } else { "" };
        writeln!(
            to,
            "{:<width$}  {:>8}  {:>6}  {}{note}",
            blob.key.digest.to_string(),
            size(blob.size),
            age(now, blob.last_use),
            blob.key.registry,
        )?;
    }
    Ok(())
}

fn digest_width(blobs: &[Listed]) -> usize {
    let widths = blobs.iter().map(|blob| blob.key.digest.to_string().len());
    widths.max().unwrap_or(0)
}

pub(super) fn usage(to: &mut dyn Write, report: &Report) -> io::Result<()> {
    let usage = &report.usage;
    let share = match usage.max_bytes {
        0 => 0,
        max => u128::from(usage.used_bytes) * 100 / u128::from(max),
    };
    let partials = match report.partials.count {
        0 => "no unfinished download".to_owned(),
        1 => format!("1 unfinished download has {}", size(report.partials.bytes)),
        many => format!(
            "{many} unfinished downloads have {}",
            size(report.partials.bytes)
        ),
    };
    let line = |to: &mut dyn Write, name: &str, bytes: u64, note: &str| {
        let line = format!("{name:<10} {:>8}  {note}", size(bytes));
        writeln!(to, "{}", line.trim_end())
    };
    writeln!(to, "{}", report.directory.display())?;
    let of_max = format!("{share}% of {}", size(usage.max_bytes));
    line(to, "used", usage.used_bytes, &of_max)?;
    line(to, "  blobs", usage.blob_bytes, &count(usage.blob_count))?;
    line(to, "  reserved", usage.reserved_bytes, &partials)?;
    line(to, "pinned", usage.pinned_bytes, "")?;
    line(to, "disk free", usage.free_bytes, "")?;
    if !report.is_complete {
        writeln!(to, "The server still lists its files: there may be more.")?;
    }
    if usage.registries.is_empty() {
        return Ok(());
    }
    writeln!(to, "\n{:>8}  {:>7}  REGISTRY", "SIZE", "BLOBS")?;
    let mut registries: Vec<_> = usage.registries.iter().collect();
    registries.sort_by_key(|usage| std::cmp::Reverse(usage.bytes));
    for usage in registries {
        let (bytes, blobs) = (size(usage.bytes), usage.blob_count);
        writeln!(to, "{bytes:>8}  {blobs:>7}  {}", usage.registry)?;
    }
    Ok(())
}

pub(super) fn checked(to: &mut dyn Write, checked: &Checked, intent: Intent) -> io::Result<()> {
    let done = match intent {
        Intent::Do => "removed",
        Intent::DryRun => "left alone",
    };
    for damaged in &checked.damaged {
        let what = match damaged.damage {
            Damage::Content => "damaged",
            Damage::File => "its file is gone or of another size",
        };
        let bytes = size(damaged.size);
        writeln!(
            to,
            "{}  {bytes}  {}: {what}; {done}",
            damaged.key.digest, damaged.key.registry
        )?;
    }
    for unread in &checked.unread {
        let (digest, registry) = (unread.key.digest, &unread.key.registry);
        writeln!(to, "{digest}  {registry}: cannot be read: {}", unread.error)?;
    }
    let verdict = match (checked.damaged.len(), checked.unread.len()) {
        (0, 0) => "all are right".to_owned(),
        (damaged, 0) => format!("{damaged} damaged"),
        (damaged, unread) => format!("{damaged} damaged, {unread} not to be read"),
    };
    writeln!(
        to,
        "{}, {}: {verdict}",
        count(checked.count),
        size(checked.bytes)
    )
}

pub(super) fn gone(to: &mut dyn Write, gone: &Gone, intent: Intent) -> io::Result<()> {
    for blob in &gone.blobs {
        let (digest, registry) = (blob.key.digest, &blob.key.registry);
        writeln!(to, "{digest}  {:>8}  {registry}", size(blob.size))?;
    }
    let left_out = gone.count.saturating_sub(gone.blobs.len() as u64);
    if left_out > 0 {
        writeln!(to, "… and {left_out} more")?;
    }
    let done = match intent {
        Intent::Do => "removed",
        Intent::DryRun => "would be removed",
    };
    writeln!(to, "{}, {}: {done}", count(gone.count), size(gone.bytes))
}

pub(super) fn pinned(to: &mut dyn Write, pinned: &Pinned, what: &str) -> io::Result<()> {
    let blobs = count(pinned.count as u64);
    writeln!(to, "{} is {what}; {blobs} of it in the cache", pinned.pin)
}

pub(super) fn pins(to: &mut dyn Write, pins: &[Pinned]) -> io::Result<()> {
    if pins.is_empty() {
        return writeln!(to, "nothing is pinned");
    }
    let names: Vec<String> = pins.iter().map(|pinned| pinned.pin.to_string()).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    for (name, pinned) in names.iter().zip(pins) {
        writeln!(to, "{name:<width$}  {}", count(pinned.count as u64))?;
    }
    Ok(())
}

pub(super) fn count(blobs: u64) -> String {
    match blobs {
        1 => "1 blob".to_owned(),
        many => format!("{many} blobs"),
    }
}

pub(super) fn size(bytes: u64) -> String {
    ByteSize(bytes).rounded()
}

/// For how long it has not been used.
fn age(now: u64, last_use: u64) -> String {
    const DAY: u64 = 24 * 3600;
    match now.saturating_sub(last_use) {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..DAY => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{GIB, MIB};
    use crate::{
        cache::{Damaged, Key, Unread},
        oci::Digest,
    };

    fn shown(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> String {
        let mut text = Vec::new();
        write(&mut text).expect("memory takes it");
        String::from_utf8(text).expect("text")
    }

    fn key(content: &[u8]) -> Key {
        Key {
            registry: "quay.io".parse().expect("a registry"),
            digest: Digest::of(content),
        }
    }

    #[test]
    fn ages_are_short() {
        for (since, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3599, "59m"),
            (7200, "2h"),
            (86_400, "1d"),
            (40 * 86_400, "40d"),
        ] {
            assert_eq!(age(1_000_000_000, 1_000_000_000 - since), text);
        }
        assert_eq!(age(0, 5), "0s", "a clock that was set back");
    }

    #[test]
    fn columns_stand_below_each_other() {
        let blob = |content: &[u8], size, is_pinned| Listed {
            key: key(content),
            size,
            last_use: 0,
            frequency: 0,
            is_pinned,
            is_verified: false,
        };
        let text = shown(|to| blobs(to, &[blob(b"1", 5, true), blob(b"2", 10 * GIB, false)]));
        let lines: Vec<&str> = text.lines().collect();
        let column = lines[0].find("REGISTRY").expect("a head");
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[1].find("quay.io"), Some(column), "{text}");
        assert_eq!(lines[2].find("quay.io"), Some(column), "{text}");
        assert!(lines[1].ends_with("quay.io  (pinned)"), "{text}");
        assert_eq!(shown(|to| blobs(to, &[])), "no blobs\n");
    }

    #[test]
    fn what_is_wrong_is_said_with_what_became_of_it() {
        let damaged = |content: &[u8], damage| Damaged {
            key: key(content),
            size: 3 * MIB,
            damage,
        };
        let mut all = Checked {
            count: 3,
            bytes: 9 * MIB,
            ..Checked::default()
        };
        let text = shown(|to| checked(to, &all, Intent::Do));
        assert_eq!(text, "3 blobs, 9.0MiB: all are right\n");
        all.damaged = vec![damaged(b"1", Damage::Content), damaged(b"2", Damage::File)];
        all.unread = vec![Unread {
            key: key(b"3"),
            error: "too many open files".to_owned(),
        }];
        let text = shown(|to| checked(to, &all, Intent::DryRun));
        for said in [
            &format!("{}  3.0MiB  quay.io: damaged; left alone", Digest::of(b"1")),
            "another size; left alone",
            "cannot be read: too many open files",
            "3 blobs, 9.0MiB: 2 damaged, 1 not to be read",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }
}
