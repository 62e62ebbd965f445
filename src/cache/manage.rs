//! What an operator asks of the cache: what is there, is it right, and away with it. One face for the admin listener of a
//! running server and for the command beside a stopped one, so both say and do the same.
//!
//! Everything here blocks. A million blobs are gone through in turns: each call does a bounded part and says in `next` from
//! where the following one goes on. A blob keeps its place in the index as long as it is stored, so nothing that was there
//! all the time is left out or met twice. The types are also the JSON that programs get.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    Cache, Intent, Key, Listed, Options, Pin, Usage, Verdict, budget::on_disk, index::Entry,
    store::Store,
};
use crate::{
    blocking::Pool,
    oci::{Digest, Registry},
};

/// Blobs of one turn: some 250 bytes of JSON each.
const MOST_IN_TURN: usize = 1000;
/// Hashing goes on for this long in one turn; a blob that was begun is finished.
const TURN: Duration = Duration::from_millis(500);
/// `gc` names so many; all are counted.
const MOST_NAMED: usize = 10_000;

/// Which blobs are meant: those that fit everything that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub registry: Option<Registry>,
    /// Those that this repository has used last: which else have used a blob is not known.
    pub repository: Option<Pin>,
    pub digest: Option<Digest>,
}

impl Selection {
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}

/// A part of the list, in no particular order.
#[derive(Debug, Serialize, Deserialize)]
pub struct Page {
    pub blobs: Vec<Listed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}

/// What is used, and what for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub directory: PathBuf,
    pub folder_id: FolderId,
    #[serde(flatten)]
    pub usage: Usage,
    pub partials: Unfinished,
    /// False while the index is made anew from the files: some blobs are not listed yet.
    #[serde(rename = "complete")]
    pub is_complete: bool,
}

/// Downloads that stopped half-way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    pub count: usize,
    #[serde(rename = "size")]
    pub bytes: u64,
}

/// Tells whether two paths are one folder, also where it is mounted under another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderId {
    device: u64,
    inode: u64,
}

impl FolderId {
    pub fn of(directory: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(directory)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

/// What reading and hashing has come to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Checked {
    pub count: u64,
    /// What they occupy.
    #[serde(rename = "size")]
    pub bytes: u64,
    pub damaged: Vec<Damaged>,
    /// Nothing is known of these; they stay.
    pub unread: Vec<Unread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Damaged {
    #[serde(flatten)]
    pub key: Key,
    pub size: u64,
    pub damage: Damage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Damage {
    /// It is not what its name says.
    Content,
    /// Its file is gone, or of another size.
    File,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unread {
    #[serde(flatten)]
    pub key: Key,
    pub error: String,
}

/// What was removed, or would be.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Gone {
    pub count: u64,
    /// What they occupied.
    #[serde(rename = "size")]
    pub bytes: u64,
    pub blobs: Vec<Listed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}

impl Gone {
    fn add(&mut self, listed: Listed) {
        self.count += 1;
        self.bytes += on_disk(listed.size);
        if self.blobs.len() < MOST_NAMED {
            self.blobs.push(listed);
        }
    }
}

/// A repository, and how many of the stored blobs it has used last.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    #[serde(flatten)]
    pub pin: Pin,
    pub count: usize,
}

impl Cache {
    /// Opens the folder of a server that is not running. An error of the kind `ResourceBusy`: it is running. `close` it
    /// afterwards: else the next start lists the files.
    pub fn visit(directory: PathBuf, options: &Options, pool: Arc<Pool>) -> io::Result<Self> {
        let store = Store::visit(directory.clone(), options, Arc::clone(&pool))?;
        let count = |store: &Store, bytes| Some(store.count_existing(bytes));
        Self::over(store, &directory, options, pool, count)
    }

    pub fn report(&self) -> io::Result<Report> {
        let store = &self.0.store;
        let directory = store.folder.root().to_owned();
        let (count, bytes) = self.0.partials.usage();
        Ok(Report {
            folder_id: FolderId::of(&directory)?,
            directory,
            usage: store.usage(),
            partials: Unfinished { count, bytes },
            is_complete: !store.is_taking_stock(),
        })
    }

    pub fn list(&self, selection: &Selection, from: usize) -> Page {
        let (entries, next) = self.turn(selection, from);
        Page {
            blobs: self.0.store.listed(entries.into_iter()).collect(),
            next,
        }
    }

    /// Reads and hashes blobs; what is damaged is removed.
    pub fn check(&self, selection: &Selection, from: usize, intent: Intent) -> Checked {
        let begun = Instant::now();
        let (entries, next) = self.turn(selection, from);
        let mut checked = Checked {
            next,
            ..Checked::default()
        };
        for entry in entries {
            let is_over = checked.count > 0 && begun.elapsed() > TURN;
            // The few blobs of one digest are one turn.
            if is_over && selection.digest.is_none() {
                checked.next = Some(entry.place.slot as usize);
                break;
            }
            let Some(key) = self.0.store.key_of(&entry.name) else {
                continue;
            };
            checked.count += 1;
            checked.bytes += on_disk(entry.size);
            let (place, size) = (entry.place, entry.size);
            let verdict = match intent {
                Intent::Do => self.0.store.verify_place(&key, place, size),
                Intent::DryRun => self.0.store.examine(&key, place, size),
            };
            let damage = match verdict {
                Ok(Verdict::Right | Verdict::Absent) => continue,
                Ok(Verdict::Damaged) => Damage::Content,
                Ok(Verdict::Lost) => Damage::File,
                Err(error) => {
                    let error = error.to_string();
                    checked.unread.push(Unread { key, error });
                    continue;
                }
            };
            checked.damaged.push(Damaged { key, size, damage });
        }
        checked
    }

    /// Whoever reads one of them keeps what he has.
    pub fn remove(&self, selection: &Selection, from: usize, intent: Intent) -> Gone {
        let (entries, next) = self.turn(selection, from);
        let mut gone = Gone {
            next,
            ..Gone::default()
        };
        // Described before they go.
        let listed: Vec<Listed> = self.0.store.listed(entries.into_iter()).collect();
        for blob in listed {
            if intent == Intent::DryRun || self.0.store.remove(&blob.key) {
                gone.add(blob);
            }
        }
        gone
    }

    /// Removes what is used least until no more than `target` bytes are used, or `low_watermark`. What is pinned or read
    /// stays.
    pub fn gc(&self, target: Option<u64>, intent: Intent) -> Gone {
        let mut gone = Gone::default();
        if intent == Intent::Do {
            self.0.partials.drop_aged();
        }
        self.0.store.gc(target, intent, |listed| gone.add(listed));
        gone
    }

    pub fn pin(&self, pin: Pin) -> io::Result<Pinned> {
        let count = self.0.store.pin(&pin)?;
        Ok(Pinned { pin, count })
    }

    /// `None`: it was not pinned.
    pub fn unpin(&self, pin: Pin) -> io::Result<Option<Pinned>> {
        let count = self.0.store.unpin(&pin)?;
        Ok(count.map(|count| Pinned { pin, count }))
    }

    pub fn pins(&self) -> Vec<Pinned> {
        let pins = self.0.store.pins();
        pins.into_iter()
            .map(|pin| Pinned {
                count: self.0.store.count_of(&pin),
                pin,
            })
            .collect()
    }

    /// The blobs of one turn, and where the next one begins.
    fn turn(&self, selection: &Selection, from: usize) -> (Vec<Entry>, Option<usize>) {
        let store = &self.0.store;
        let index = &store.index;
        let registry = selection.registry.as_ref();
        let registry = registry.map(|registry| index.registry_hash(registry));
        let repository = selection.repository.as_ref().map(|pin| pin.hash(index));
        let is_meant = |entry: &Entry| {
            registry.is_none_or(|hash| entry.name.registry_hash() == hash)
                && repository.is_none_or(|hash| entry.repository == hash)
        };
        if let Some(digest) = selection.digest {
            let keys = store.registries().into_iter();
            let entries = keys.filter_map(|registry| store.entry(&Key { registry, digest }));
            return (entries.filter(is_meant).collect(), None);
        }
        let mut entries = index.entries_from(from).filter(is_meant);
        let turn: Vec<Entry> = entries.by_ref().take(MOST_IN_TURN).collect();
        let next = entries.next().map(|entry| entry.place.slot as usize);
        (turn, next)
    }
}

/// Values that are written as people write them.
pub(super) mod as_text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(in crate::cache) fn serialize<S: Serializer>(
        value: &impl Display,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(in crate::cache) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: FromStr<Err: Display>,
    {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Seconds since 1970, written as RFC 3339 has them.
pub(super) mod as_instant {
    use std::time::{Duration, UNIX_EPOCH};

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(in crate::cache) fn serialize<S: Serializer>(
        seconds: &u64,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        // The index has 32 bits for it.
        let seconds = (*seconds).min(u64::from(u32::MAX));
        let instant = UNIX_EPOCH + Duration::from_secs(seconds);
        serializer.collect_str(&humantime::format_rfc3339_seconds(instant))
    }

    pub(in crate::cache) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let instant = humantime::parse_rfc3339(&text).map_err(de::Error::custom)?;
        let since = instant.duration_since(UNIX_EPOCH);
        since
            .map(|since| since.as_secs())
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs::File};

    use super::*;
    use crate::{
        oci::Repository,
        units::{ByteSize, KIB, MIB, Percent},
    };

    fn options(max_size: u64) -> Options {
        Options {
            max_size: ByteSize(max_size),
            min_free: Some(ByteSize(0)),
            min_free_inodes: Percent(0),
            ..Options::default()
        }
    }

    fn visit(directory: &Path, max_size: u64) -> Cache {
        let pool = Pool::start().expect("threads");
        Cache::visit(directory.to_owned(), &options(max_size), pool).expect("a cache")
    }

    fn registry(name: &str) -> Registry {
        name.parse().expect("a registry")
    }

    fn put(cache: &Cache, registry: &Registry, repository: &str, content: &[u8]) -> Key {
        let store = &cache.0.store;
        let repository: Repository = repository.parse().expect("a repository");
        let key = Key {
            registry: registry.clone(),
            digest: Digest::of(content),
        };
        let path = store.folder.root().join("draft");
        fs::write(&path, content).expect("written");
        let file = Arc::new(File::open(&path).expect("opened"));
        let size = content.len() as u64;
        let reservation = store.count_existing(size);
        store
            .commit(&key, Some(&repository), &path, file, size, reservation)
            .expect("stored");
        key
    }

    fn path(cache: &Cache, key: &Key) -> PathBuf {
        cache.0.store.folder.path(key)
    }

    /// Every turn until there is none.
    fn keys(cache: &Cache, selection: &Selection) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut from = Some(0);
        while let Some(start) = from {
            let page = cache.list(selection, start);
            assert!(page.blobs.len() <= MOST_IN_TURN);
            keys.extend(page.blobs.into_iter().map(|blob| blob.key));
            from = page.next;
        }
        keys
    }

    fn of_registry(name: &str) -> Selection {
        Selection {
            registry: Some(registry(name)),
            ..Selection::default()
        }
    }

    #[test]
    fn many_blobs_are_gone_through_in_turns() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut expected = BTreeSet::new();
        for number in 0..2 * MOST_IN_TURN as u64 + 5 {
            let content = number.to_le_bytes();
            let digest = Digest::of(&content);
            let hex = digest.hex();
            let shelf = folder.path().join("blobs/quay.io/sha256").join(&hex[..2]);
            fs::create_dir_all(&shelf).expect("a folder");
            fs::write(shelf.join(hex), content).expect("written");
            expected.insert(digest);
        }
        // There is no index: it is complete all the same.
        let cache = visit(folder.path(), 64 * MIB);
        let listed = keys(&cache, &Selection::default());
        assert_eq!(listed.len(), expected.len(), "none twice");
        let listed: BTreeSet<Digest> = listed.iter().map(|key| key.digest).collect();
        assert_eq!(listed, expected);
        let mut from = Some(0);
        let (mut checked, mut removed) = (0, 0);
        while let Some(start) = from {
            let turn = cache.check(&Selection::default(), start, Intent::Do);
            assert!(turn.damaged.is_empty() && turn.unread.is_empty());
            checked += turn.count;
            from = turn.next;
        }
        from = Some(0);
        while let Some(start) = from {
            let turn = cache.remove(&of_registry("quay.io"), start, Intent::Do);
            removed += turn.count;
            from = turn.next;
        }
        assert_eq!((checked, removed), (expected.len() as u64, checked));
        let usage = cache.report().expect("a report").usage;
        assert_eq!((usage.blob_count, usage.used_bytes), (0, 0));
        cache.close();
    }

    #[test]
    fn only_what_is_meant_is_meant() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = visit(folder.path(), 64 * MIB);
        let (quay, ghcr) = (registry("quay.io"), registry("ghcr.io"));
        let one = put(&cache, &quay, "acme/app", b"one");
        let two = put(&cache, &quay, "acme/base", b"two");
        let other = put(&cache, &ghcr, "acme/app", b"one");
        let repository = |text: &str| Some(text.parse().expect("a repository"));
        let none = Selection::default;
        for (selection, expected) in [
            (none(), vec![&other, &one, &two]),
            (of_registry("quay.io"), vec![&one, &two]),
            (of_registry("docker.io"), vec![]),
            (
                Selection {
                    repository: repository("quay.io/acme/app"),
                    ..none()
                },
                vec![&one],
            ),
            (
                Selection {
                    digest: Some(one.digest),
                    ..none()
                },
                vec![&other, &one],
            ),
            (
                Selection {
                    digest: Some(one.digest),
                    ..of_registry("ghcr.io")
                },
                vec![&other],
            ),
            (
                Selection {
                    digest: Some(two.digest),
                    ..of_registry("ghcr.io")
                },
                vec![],
            ),
        ] {
            let expected: BTreeSet<Key> = expected.into_iter().cloned().collect();
            let listed = keys(&cache, &selection);
            assert_eq!(listed.len(), expected.len(), "{selection:?}");
            let listed: BTreeSet<Key> = listed.into_iter().collect();
            assert_eq!(listed, expected, "{selection:?}");
            let gone = cache.remove(&selection, 0, Intent::DryRun);
            assert_eq!(gone.count, expected.len() as u64, "{selection:?}");
            let checked = cache.check(&selection, 0, Intent::Do);
            assert_eq!(checked.count, expected.len() as u64, "{selection:?}");
        }
        let digest = Some(one.digest);
        let of_ghcr = Selection {
            digest,
            ..of_registry("ghcr.io")
        };
        assert_eq!(cache.remove(&of_ghcr, 0, Intent::Do).count, 1);
        assert!(!path(&cache, &other).exists() && path(&cache, &one).exists());
        cache.close();
    }

    #[test]
    fn what_is_wrong_is_told_in_a_dry_run_and_removed_otherwise() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = visit(folder.path(), 64 * MIB);
        let quay = registry("quay.io");
        let [rotten, cut, lost] =
            [b"rotten", b"cut!!!", b"lost!!"].map(|text| put(&cache, &quay, "a", text));
        put(&cache, &quay, "a", b"good");
        cache.close();
        drop(cache);
        // Where files stay open they are read as they were.
        let cache = visit(folder.path(), 64 * MIB);
        fs::write(path(&cache, &rotten), b"rotted").expect("written");
        fs::write(path(&cache, &cut), b"c").expect("written");
        fs::remove_file(path(&cache, &lost)).expect("removed");
        let expected = BTreeSet::from([
            (rotten.clone(), "content"),
            (cut.clone(), "file"),
            (lost.clone(), "file"),
        ]);
        for (intent, left) in [(Intent::DryRun, 4), (Intent::Do, 1)] {
            let checked = cache.check(&Selection::default(), 0, intent);
            let damaged: BTreeSet<_> = checked
                .damaged
                .into_iter()
                .map(|damaged| match damaged.damage {
                    Damage::Content => (damaged.key, "content"),
                    Damage::File => (damaged.key, "file"),
                })
                .collect();
            assert_eq!(damaged, expected, "{intent:?}");
            assert_eq!(checked.count, 4, "{intent:?}");
            assert_eq!(cache.blob_count(), left, "{intent:?}");
        }
        assert!(!path(&cache, &rotten).exists());
        let again = cache.check(&Selection::default(), 0, Intent::Do);
        assert_eq!((again.count, again.damaged.len()), (1, 0));
        cache.close();
    }

    /// An operator who forgets --config must not lose what the server's settings allow.
    #[test]
    fn a_visit_removes_nothing_by_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        let quay = registry("quay.io");
        let extents = std::iter::once(0..10 * MIB).collect();
        let unfinished = Key {
            registry: quay.clone(),
            digest: Digest::of(b"a large blob"),
        };
        {
            let cache = visit(folder.path(), 64 * MIB);
            for number in 0..8u8 {
                put(&cache, &quay, "a", &vec![number; 100 * 1024]);
            }
            let partials = &cache.0.partials;
            let draft = partials
                .create(cache.0.store.count_existing(20 * MIB))
                .expect("a file");
            draft.file().set_len(10 * MIB).expect("a file");
            partials.keep(unfinished.clone(), draft, 20 * MIB, extents);
            cache.close();
        }
        for max_size in [100 * KIB, 64 * MIB] {
            let cache = visit(folder.path(), max_size);
            let report = cache.report().expect("a report");
            assert_eq!(report.usage.blob_count, 8, "{max_size}");
            assert_eq!(report.usage.max_bytes, max_size);
            assert_eq!(report.partials.count, 1, "{max_size}");
            assert!(report.is_complete);
            cache.close();
        }
        // But what is asked for is done.
        let cache = visit(folder.path(), 100 * KIB);
        let rehearsed = cache.gc(None, Intent::DryRun);
        assert_eq!((rehearsed.count, cache.blob_count()), (8, 8));
        assert_eq!(cache.gc(None, Intent::Do).count, 8);
        assert_eq!(cache.blob_count(), 0);
        cache.close();
    }

    #[test]
    fn two_do_not_use_one_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = visit(folder.path(), 64 * MIB);
        let pool = Pool::start().expect("threads");
        let second = Cache::visit(folder.path().to_owned(), &options(MIB), pool);
        let kind = second.map(|_| ()).map_err(|error| error.kind());
        assert_eq!(kind, Err(io::ErrorKind::ResourceBusy));
        cache.close();
    }

    #[test]
    fn answers_are_read_back_as_they_were_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = visit(folder.path(), 64 * MIB);
        put(&cache, &registry("localhost:5000"), "acme/app", b"blob");
        let page = cache.list(&Selection::default(), 0);
        let text = serde_json::to_string(&page).expect("JSON");
        let back: Page = serde_json::from_str(&text).expect("the same");
        assert_eq!(back.blobs, page.blobs);
        assert_eq!(back.next, None);
        let listed: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let blob = &listed["blobs"][0];
        assert_eq!(blob["registry"], "localhost:5000");
        assert_eq!(blob["pinned"], false);
        let last_use = blob["last_use"].as_str().expect("a time");
        assert!(
            last_use.starts_with("20") && last_use.ends_with('Z'),
            "{last_use}"
        );
        let report = cache.report().expect("a report");
        let text = serde_json::to_string(&report).expect("JSON");
        let back: Report = serde_json::from_str(&text).expect("the same");
        assert_eq!(back.usage, report.usage);
        assert_eq!(
            back.folder_id,
            FolderId::of(folder.path()).expect("a folder")
        );
        cache.close();
    }
}
