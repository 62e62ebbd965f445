use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::Path,
};

use super::*;
use crate::{
    oci::{Digest, Registry, Repository},
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
