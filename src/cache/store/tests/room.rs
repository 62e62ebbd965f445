//! What makes room and what stays.

use super::*;

#[test]
fn the_cap_may_be_lowered() {
    let folder = tempfile::tempdir().expect("a folder");
    {
        let store = load(folder.path(), 512 * MIB);
        for seed in 0..8 {
            put(&store, &content(MIB, seed));
        }
        store.close();
    }
    {
        let store = load(folder.path(), 4 * MIB);
        assert!(store.used_bytes() <= 4 * MIB && store.blob_count() > 0);
        assert_exact(&store);
    }
    fs::remove_file(folder.path().join("index")).expect("removed");
    let store = load(folder.path(), 2 * MIB);
    assert!(store.used_bytes() <= 2 * MIB && store.blob_count() > 0);
    assert_exact(&store);
}

#[test]
fn a_blob_that_is_read_is_not_evicted() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = load(folder.path(), 8 * MIB);
    let mut held = Vec::new();
    for seed in 0..2 {
        let key = put(&store, &content(3 * MIB, seed));
        let Some(Found::Open(blob)) = store.find(&key, None) else {
            panic!("it was just written")
        };
        held.push((key, blob));
    }
    let other = put(&store, &content(MIB, 9));
    assert!(store.reserve(3 * MIB).is_none());
    assert!(
        store.size_of(&other).is_some(),
        "removing it would not have been enough"
    );
    drop(store.reserve(2 * MIB).expect("that is enough"));
    assert_eq!(store.size_of(&other), None);
    assert!(gc(&store, 0, Intent::Do).is_empty());
    for (key, blob) in held.drain(..) {
        assert_eq!(store.size_of(&key), Some(3 * MIB));
        drop(blob);
    }
    assert!(store.reserve(3 * MIB).is_some());
    assert_exact(&store);
}

#[test]
fn what_is_removed_while_it_is_read_stays_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = load(folder.path(), 8 * MIB);
    let bytes = content(3 * MIB, 1);
    let key = put(&store, &bytes);
    let Some(Found::Open(blob)) = store.find(&key, None) else {
        panic!("it was just written")
    };
    assert!(store.remove(&key));
    assert!(!store.remove(&key));
    assert_eq!(get(&store, &key), None);
    assert_eq!((store.blob_count(), store.used_bytes()), (0, 3 * MIB));
    put(&store, &content(4 * MIB, 2));
    assert!(store.reserve(4 * MIB).is_some(), "the other one goes");
    let again = put(&store, &bytes);
    assert_eq!(again, key);
    assert_eq!(store.used_bytes(), 6 * MIB);
    let mut begin = [0; 100];
    blob.file.read_exact_at(&mut begin, 0).expect("still there");
    assert_eq!(begin, bytes[..100]);
    drop(blob);
    assert!(store.reserve(4 * MIB).is_some());
    assert_exact(&store);
}

#[test]
fn pinned_repositories_keep_their_blobs() {
    let folder = tempfile::tempdir().expect("a folder");
    let pin = Pin {
        registry: Registry::docker_hub(),
        repository: repository("acme/base"),
    };
    let (base, shared, other) = {
        let store = load(folder.path(), 8 * MIB);
        let of = |seed, name| {
            let bytes = content(MIB, seed);
            let key = key(Digest::of(&bytes));
            assert!(try_put(&store, &key, &bytes, Some(&repository(name))));
            key
        };
        let (base, shared, other) = (of(1, "acme/base"), of(2, "acme/app"), of(3, "acme/app"));
        assert_eq!(store.pin(&pin).expect("written"), 1);
        assert_eq!(store.usage().pinned_bytes, MIB);
        // Its own use pins the second one, and the other's does not take that away.
        store.find(&shared, Some(&repository("acme/base")));
        store.find(&shared, Some(&repository("acme/app")));
        assert_eq!(store.usage().pinned_bytes, 2 * MIB);
        (base, shared, other)
    };
    let store = load(folder.path(), 8 * MIB);
    assert_eq!(store.pins(), std::slice::from_ref(&pin));
    assert_eq!(store.usage().pinned_bytes, 2 * MIB);
    let pinned: BTreeSet<Key> = store
        .listed(store.index.entries())
        .filter(|listed| listed.is_pinned)
        .map(|listed| listed.key)
        .collect();
    assert_eq!(pinned, BTreeSet::from([base.clone(), shared.clone()]));
    let gone = gc(&store, 0, Intent::Do);
    assert_eq!(
        gone.iter().map(|gone| &gone.key).collect::<Vec<_>>(),
        [&other]
    );
    assert!(store.reserve(4 * MIB).is_some());
    for seed in 10..30 {
        put(&store, &content(MIB, seed));
    }
    assert!(store.size_of(&base).is_some() && store.size_of(&shared).is_some());
    assert_eq!(store.unpin(&pin).expect("written"), Some(2));
    assert_eq!(store.unpin(&pin).expect("written"), None);
    assert_eq!(store.usage().pinned_bytes, 0);
    gc(&store, 0, Intent::Do);
    assert_eq!(store.blob_count(), 0);
    assert_exact(&store);
}

#[test]
fn one_large_image_does_not_push_out_what_is_pulled_daily() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = load(folder.path(), 8 * MIB);
    let daily: Vec<Key> = (0..60)
        .map(|seed| put(&store, &content(100 * KIB, seed)))
        .collect();
    for key in &daily {
        assert!(store.find(key, None).is_some());
    }
    for seed in 1000..1200 {
        put(&store, &content(100 * KIB, seed));
        assert!(store.used_bytes() <= 8 * MIB);
    }
    let kept = daily
        .iter()
        .filter(|key| store.size_of(key).is_some())
        .count();
    assert_eq!(kept, daily.len());
    assert_exact(&store);
}

#[test]
fn a_rehearsal_names_those_that_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = load(folder.path(), 8 * MIB);
    for seed in 0..40 {
        let key = put(&store, &content(100 * KIB, seed));
        for _ in 0..seed % 4 {
            store.find(&key, None);
        }
    }
    let names = |listed: Vec<Listed>| {
        listed
            .into_iter()
            .map(|listed| listed.key)
            .collect::<Vec<_>>()
    };
    let rehearsed = names(gc(&store, MIB, Intent::DryRun));
    assert_eq!(store.blob_count(), 40);
    assert_eq!(names(gc(&store, MIB, Intent::DryRun)), rehearsed);
    assert_eq!(names(gc(&store, MIB, Intent::Do)), rehearsed);
    assert!(store.used_bytes() <= MIB && store.used_bytes() > 800 * KIB);
    assert_exact(&store);
}

#[test]
fn above_the_high_watermark_blobs_are_removed_down_to_the_low_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let watermarks = Options {
        high_watermark: Percent(80),
        low_watermark: Percent(50),
        ..options(8 * MIB)
    };
    let store = load_with(folder.path(), &watermarks);
    for seed in 0..6 {
        put(&store, &content(MIB, seed));
    }
    assert_eq!(store.used_bytes(), 6 * MIB, "75 %");
    put(&store, &content(MIB, 6));
    wait_for(&store, |store| store.used_bytes() <= 4 * MIB);
    assert_eq!(store.used_bytes(), 4 * MIB);
}

#[test]
fn the_file_systems_floor_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let free = crate::sys::FileSystem::of(folder.path()).expect("a file system");
    {
        let store = load(folder.path(), 8 * MIB);
        put(&store, &content(MIB, 1));
    }
    let greedy = Options {
        min_free: Some(ByteSize(free.total_bytes)),
        ..options(8 * MIB)
    };
    let store = load_with(folder.path(), &greedy);
    assert!(store.reserve(1).is_none() && store.try_reserve(1).is_none());
    assert_eq!(
        store.blob_count(),
        1,
        "all of it would not have been enough"
    );
    assert_exact(&store);
}

#[test]
fn a_full_disk_costs_some_blobs_once_and_not_for_each_fill() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = load(folder.path(), 8 * MIB);
    for seed in 0..60 {
        put(&store, &content(100 * KIB, seed));
    }
    for _ in 0..5 {
        store.note_full_disk();
    }
    assert_eq!(
        store.blob_count(),
        58,
        "a thirty-second of sixty are two blobs"
    );
    assert_exact(&store);
}

/// An operator may allow more than there is.
#[test]
fn a_full_disk_that_is_much_smaller_than_the_cap_keeps_most_blobs() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = load(folder.path(), 64 * GIB);
    for seed in 0..8 {
        put(&store, &content(100 * KIB, seed));
    }
    store.note_full_disk();
    assert_eq!(store.blob_count(), 7);
    assert_exact(&store);
}

/// Fills, reads, removals and eviction all at once: the cap holds at every moment, nobody reads another's bytes, and
/// in the end all accounts agree.
#[test]
fn the_cap_holds_and_readers_get_their_blob_whatever_happens_at_once() {
    const BLOBS: u64 = 64;
    const ROUNDS: u64 = 300;
    let folder = tempfile::tempdir().expect("a folder");
    let store = load(folder.path(), 2 * MIB);
    let blobs: Vec<(Key, Vec<u8>)> = (0..BLOBS)
        .map(|seed| {
            let bytes = content(20 * KIB + seed * 2 * KIB, seed);
            (key(Digest::of(&bytes)), bytes)
        })
        .collect();
    let done = AtomicUsize::new(0);
    let (fills, hits) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for filler in 0..3_u64 {
            let (store, blobs, done, fills) = (&store, &blobs, &done, &fills);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    // Each fills its own third: one fill of a blob at a time is the flights' promise.
                    let number = (round * 7 + filler) % (BLOBS / 3) * 3 + filler;
                    let (key, bytes) = &blobs[usize::try_from(number).expect("small")];
                    if round % 11 == 0 {
                        store.remove(key);
                    } else if store.find(key, None).is_none() && try_put(store, key, bytes, None) {
                        fills.fetch_add(1, Ordering::Relaxed);
                    }
                    assert!(store.used_bytes() <= store.max_bytes());
                }
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        for reader in 0..2 {
            let (store, blobs, done, hits) = (&store, &blobs, &done, &hits);
            scope.spawn(move || {
                let mut step = reader;
                while done.load(Ordering::Relaxed) < 3 {
                    step = (step + 5) % blobs.len();
                    let (key, bytes) = &blobs[step];
                    if let Some(read) = get(store, key) {
                        assert_eq!(&read, bytes);
                        hits.fetch_add(1, Ordering::Relaxed);
                    }
                    assert!(store.used_bytes() <= store.max_bytes());
                }
            });
        }
    });
    assert!(fills.into_inner() > 0 && hits.into_inner() > 0);
    store.release_lingering();
    assert!(store.blob_count() > 0);
    assert_exact(&store);
    for (key, _) in &blobs {
        assert_ne!(store.verify(key).expect("read"), Verdict::Damaged);
    }
}
