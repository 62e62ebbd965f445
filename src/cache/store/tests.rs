use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::atomic::AtomicUsize,
    thread,
};

use super::{commit::new_entry, *};
use crate::{
    cache::{Intent, Pin, Verdict, budget::on_disk, index::Stage},
    oci::Digest,
    units::{ByteSize, GIB, HumanDuration, KIB, MIB, Percent},
};

fn options(max_size: u64) -> Options {
    Options {
        max_size: ByteSize(max_size),
        min_free: Some(ByteSize(0)),
        min_free_inodes: Percent(0),
        // The watermark's pass runs whenever it likes; where it matters a test sets it.
        high_watermark: Percent(100),
        low_watermark: Percent(90),
        scrub_interval: HumanDuration::seconds(0),
        ..Options::default()
    }
}

fn load_with(directory: &Path, options: &Options) -> Arc<Store> {
    let pool = Pool::start().expect("threads");
    let store = Store::load(directory.to_owned(), options, pool).expect("a store");
    wait_for(&store, |store| !store.is_taking_stock());
    store
}

fn load(directory: &Path, max_size: u64) -> Arc<Store> {
    load_with(directory, &options(max_size))
}

fn gc(store: &Store, target: u64, intent: Intent) -> Vec<Listed> {
    let mut gone = Vec::new();
    store.gc(Some(target), intent, |listed| gone.push(listed));
    gone
}

/// For what another thread is about to do.
fn wait_for(store: &Store, is_done: impl Fn(&Store) -> bool) {
    while !is_done(store) {
        thread::yield_now();
    }
}

fn content(size: u64, seed: u64) -> Vec<u8> {
    (0..size)
        .map(|index| {
            (index ^ seed)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_le_bytes()[6]
        })
        .collect()
}

fn key(digest: Digest) -> Key {
    Key {
        registry: Registry::docker_hub(),
        digest,
    }
}

fn repository(name: &str) -> Repository {
    name.parse().expect("a repository")
}

fn draft(store: &Store, bytes: &[u8]) -> (PathBuf, Arc<File>) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = store.folder.root().join(format!("draft-{number}"));
    fs::write(&path, bytes).expect("written");
    let file = Arc::new(File::open(&path).expect("opened"));
    (path, file)
}

fn try_put(store: &Store, key: &Key, bytes: &[u8], repository: Option<&Repository>) -> bool {
    let size = bytes.len() as u64;
    let Some(reservation) = store.reserve(size) else {
        return false;
    };
    let (path, file) = draft(store, bytes);
    store
        .commit(key, repository, &path, file, size, reservation)
        .expect("committed");
    true
}

fn put(store: &Store, bytes: &[u8]) -> Key {
    let key = key(Digest::of(bytes));
    assert!(try_put(store, &key, bytes, None), "room");
    key
}

/// By whichever way.
fn get(store: &Store, key: &Key) -> Option<Vec<u8>> {
    let blob = match store.find(key, None) {
        Some(Found::Open(blob)) => Some(blob),
        Some(Found::Closed) | None => store.open(key, &repository("a")).expect("the disk answers"),
    }?;
    let mut bytes = vec![0; usize::try_from(blob.size).expect("small")];
    blob.file.read_exact_at(&mut bytes, 0).expect("read");
    Some(bytes)
}

/// The files under their names, with their sizes.
fn files(directory: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut folders = vec![directory.join("blobs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let entry = entry.expect("an entry");
            let metadata = entry.metadata().expect("its metadata");
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                found.insert(entry.path(), metadata.len());
            }
        }
    }
    found
}

/// The index, the budget and the files say the same.
fn assert_exact(store: &Store) {
    let files = files(store.folder.root());
    let listed: BTreeMap<PathBuf, u64> = store
        .listed(store.index.entries())
        .map(|listed| (store.folder.path(&listed.key), listed.size))
        .collect();
    assert_eq!(listed, files);
    let bytes: u64 = files.values().map(|size| on_disk(*size)).sum();
    assert_eq!(store.index.bytes(), bytes);
    assert_eq!(store.used_bytes(), bytes);
    assert_eq!(store.blob_count(), files.len() as u64);
}

#[test]
fn a_committed_blob_is_found_and_survives_a_close_and_a_kill() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = content(100_000, 1);
    let key = {
        let store = load(folder.path(), 64 * MIB);
        let key = put(&store, &bytes);
        assert!(matches!(store.find(&key, None), Some(Found::Open(_))));
        assert_eq!(store.size_of(&key), Some(100_000));
        assert!(store.is_verified(&key), "its fill has hashed it");
        assert_exact(&store);
        key
    };
    // Dropped without having been closed: as after a kill.
    {
        let store = load(folder.path(), 64 * MIB);
        assert!(matches!(store.find(&key, None), Some(Found::Closed)));
        assert_eq!(get(&store, &key).as_ref(), Some(&bytes));
        assert!(matches!(store.find(&key, None), Some(Found::Open(_))));
        assert!(!store.is_verified(&key), "not by this process");
        assert_exact(&store);
        store.close();
    }
    let store = load(folder.path(), 64 * MIB);
    assert_eq!(get(&store, &key).as_ref(), Some(&bytes));
    assert_exact(&store);
}

#[test]
fn an_empty_blob_and_a_sha512_one_are_blobs_like_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = content(5000, 9);
    let mut hasher = crate::oci::Hasher::new(crate::oci::Algorithm::Sha512);
    hasher.update(&bytes);
    let long = key(hasher.finish());
    let empty = {
        let store = load(folder.path(), 64 * MIB);
        assert!(try_put(&store, &long, &bytes, None));
        put(&store, b"")
    };
    let store = load(folder.path(), 64 * MIB);
    assert_eq!(get(&store, &long), Some(bytes));
    assert_eq!(get(&store, &empty), Some(Vec::new()));
    assert_exact(&store);
    assert_eq!(store.verify(&long).expect("read"), Verdict::Right);
    let gone = gc(&store, 0, Intent::Do);
    assert!(gone.iter().any(|gone| gone.key == long));
    assert_eq!(store.used_bytes(), 0);
    // It takes no room, so it may have stayed.
    store.remove(&empty);
    assert_eq!(store.blob_count(), 0);
    assert_exact(&store);
}

/// Wherever a kill comes between the index and the files.
#[test]
fn after_a_kill_at_any_step_the_accounting_equals_the_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes: Vec<Vec<u8>> = (0..6).map(|seed| content(10_000 + seed, seed)).collect();
    let keys: Vec<Key> = {
        let store = load(folder.path(), 64 * MIB);
        let keys: Vec<Key> = bytes[..4].iter().map(|bytes| put(&store, bytes)).collect();
        let mut desk = store.desk();
        let place = |key: &Key| store.index.find(&store.name(key)).expect("there").place;
        // 0 is stored. 1: marked for removal. 2: … and renamed. 3: … and removed.
        for key in &keys[1..] {
            store
                .index
                .begin_removal(&mut desk.pen, place(key))
                .expect("there");
        }
        store.folder.retire(&keys[2]).expect("renamed");
        store.folder.remove(&keys[3]);
        // 4: about to get its name. 5: has its name, but is not yet Live.
        let coming: Vec<Key> = bytes[4..]
            .iter()
            .map(|bytes| key(Digest::of(bytes)))
            .collect();
        for (key, bytes) in coming.iter().zip(&bytes[4..]) {
            let entry = new_entry(store.name(key), bytes.len() as u64);
            store
                .index
                .insert(&mut desk.pen, &entry, Stage::Committing)
                .expect("room");
        }
        let (path, _) = draft(&store, &bytes[5]);
        store.folder.place(&path, &coming[1]).expect("renamed");
        drop(desk);
        keys.into_iter().chain(coming).collect()
    };
    let store = load(folder.path(), 64 * MIB);
    assert_exact(&store);
    let found: Vec<usize> = (0..6)
        .filter(|number| store.size_of(&keys[*number]).is_some())
        .collect();
    assert_eq!(found, [0, 5]);
    assert_eq!(get(&store, &keys[5]).as_ref(), Some(&bytes[5]));
    assert_eq!(
        fs::read_dir(folder.path().join("gone"))
            .expect("a folder")
            .count(),
        0
    );
    for bytes in &bytes[1..5] {
        put(&store, bytes);
    }
    assert_exact(&store);
}

#[test]
fn an_index_that_is_lost_is_made_anew_from_the_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys: Vec<Key> = {
        let store = load(folder.path(), 64 * MIB);
        (0..50)
            .map(|seed| put(&store, &content(1000 * seed, seed)))
            .collect()
    };
    for spoil in [
        |path: &Path| fs::remove_file(path).expect("removed"),
        |path: &Path| fs::write(path, b"not an index").expect("written"),
        |path: &Path| {
            // After the power failed another boot finds what had been synced.
            let mut bytes = fs::read(path).expect("read");
            bytes[6 * 8] ^= 1;
            fs::write(path, bytes).expect("written");
        },
    ] {
        spoil(&folder.path().join("index"));
        let stray = folder.path().join("blobs/docker.io/sha256/stray");
        fs::write(&stray, b"not ours").expect("written");
        let store = load(folder.path(), 64 * MIB);
        for (seed, key) in (0..).zip(&keys) {
            assert_eq!(get(&store, key), Some(content(1000 * seed, seed)));
        }
        fs::remove_file(&stray).expect("left alone");
        assert_exact(&store);
    }
}

#[test]
fn while_stock_is_taken_blobs_are_served_and_nothing_is_reserved() {
    let folder = tempfile::tempdir().expect("a folder");
    let (bytes, key) = {
        let store = load(folder.path(), 64 * MIB);
        let bytes = content(10_000, 1);
        let key = put(&store, &bytes);
        (bytes, key)
    };
    fs::remove_file(folder.path().join("index")).expect("removed");
    let store = load(folder.path(), 64 * MIB);
    // As it was before the listing came to it.
    let place = store.index.find(&store.name(&key)).expect("listed").place;
    {
        let mut desk = store.desk();
        store
            .index
            .begin_removal(&mut desk.pen, place)
            .expect("there");
        store.open_files.take(place.slot);
        store.index.finish_removal(&mut desk.pen, place);
        store.budget.give_back(10_000);
    }
    assert!(
        store
            .open(&key, &repository("a"))
            .expect("answered")
            .is_none(),
        "the index knows"
    );
    store.is_taking_stock.store(true, Ordering::Release);
    assert!(store.find(&key, None).is_none());
    assert!(store.reserve(1).is_none() && store.try_reserve(1).is_none());
    let absent = self::key(Digest::of(b"absent"));
    assert!(
        store
            .open(&absent, &repository("a"))
            .expect("answered")
            .is_none()
    );
    assert_eq!(get(&store, &key), Some(bytes));
    assert!(store.adopt(&key, 0), "it is there already");
    store.stock_is_taken();
    assert!(store.reserve(1).is_some());
    assert_exact(&store);
}

#[test]
fn what_was_not_listed_to_its_end_is_listed_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = {
        let store = load(folder.path(), 64 * MIB);
        let key = put(&store, b"blob");
        store.index.close(&mut store.desk().pen).expect("closed");
        key
    };
    fs::remove_file(folder.path().join("index")).expect("removed");
    {
        let store = load(folder.path(), 64 * MIB);
        store.is_taking_stock.store(true, Ordering::Release);
        store.close();
    }
    let store = load(folder.path(), 64 * MIB);
    assert_eq!(store.size_of(&key), Some(4));
    assert_exact(&store);
}

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
fn a_blob_that_is_stored_twice_is_there_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = load(folder.path(), 8 * MIB);
    let bytes = content(MIB, 1);
    let key = put(&store, &bytes);
    store.find(&key, None);
    put(&store, &bytes);
    assert_exact(&store);
    assert_eq!(get(&store, &key), Some(bytes));
    // A damaged file of another size is replaced as well.
    fs::write(store.folder.path(&key), b"cut").expect("written");
    put(&store, &content(MIB, 1));
    assert_eq!(get(&store, &key), Some(content(MIB, 1)));
    assert_exact(&store);
}

#[test]
fn a_commit_that_fails_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = load(folder.path(), 8 * MIB);
    let bytes = content(MIB, 1);
    let key = key(Digest::of(&bytes));
    let (path, file) = draft(&store, &bytes);
    fs::remove_file(&path).expect("removed");
    let reservation = store.reserve(MIB).expect("room");
    assert!(
        store
            .commit(&key, None, &path, file, MIB, reservation)
            .is_err()
    );
    assert_eq!(store.size_of(&key), None);
    assert_exact(&store);
    // More than was reserved, and more than there is.
    let (path, file) = draft(&store, &bytes);
    let most = store.reserve(4 * MIB).expect("room");
    let rest = store.reserve(4 * MIB - 4096).expect("room");
    let reservation = store.reserve(1).expect("room");
    assert!(
        store
            .commit(&key, None, &path, file, MIB, reservation)
            .is_err()
    );
    assert!(path.exists(), "the caller's");
    drop((most, rest));
    fs::remove_file(path).expect("removed");
    assert_exact(&store);
}

#[test]
fn files_that_vanished_or_were_cut_are_forgotten() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys: Vec<Key> = {
        let store = load(folder.path(), 8 * MIB);
        (0..3)
            .map(|seed| put(&store, &content(50_000, seed)))
            .collect()
    };
    let store = load(folder.path(), 8 * MIB);
    fs::remove_file(store.folder.path(&keys[0])).expect("removed");
    fs::write(store.folder.path(&keys[1]), b"cut").expect("written");
    for key in &keys[..2] {
        assert!(matches!(store.find(key, None), Some(Found::Closed)));
        assert!(
            store
                .open(key, &repository("a"))
                .expect("answered")
                .is_none()
        );
        assert!(store.find(key, None).is_none());
    }
    assert_eq!(get(&store, &keys[2]), Some(content(50_000, 2)));
    assert_exact(&store);
}

#[test]
fn damage_is_found_and_never_served_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = load(folder.path(), 8 * MIB);
    let good = put(&store, &content(600_000, 1));
    let bad = put(&store, &content(600_000, 2));
    let path = store.folder.path(&bad);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("opened");
    file.write_all_at(b"!", 599_999).expect("written");
    let Some(Found::Open(reader)) = store.find(&bad, None) else {
        panic!("it was just written")
    };
    assert_eq!(store.verify(&good).expect("read"), Verdict::Right);
    assert_eq!(store.verify(&bad).expect("read"), Verdict::Damaged);
    assert_eq!(store.verify(&bad).expect("read"), Verdict::Absent);
    assert!(
        store.find(&bad, None).is_none()
            && store
                .open(&bad, &repository("a"))
                .expect("answered")
                .is_none()
    );
    drop(reader);
    store.release_lingering();
    assert_exact(&store);
    put(&store, &content(600_000, 2));
    assert_eq!(store.verify(&bad).expect("read"), Verdict::Right);
}

#[test]
fn scrubbing_looks_at_every_blob() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys: Vec<Key> = {
        let store = load(folder.path(), 8 * MIB);
        (0..20)
            .map(|seed| put(&store, &content(5000, seed)))
            .collect()
    };
    let spoiled = {
        let store = load(folder.path(), 8 * MIB);
        let path = store.folder.path(&keys[7]);
        fs::write(path, content(5000, 99)).expect("written");
        store.close();
        &keys[7]
    };
    let quick = Options {
        scrub_interval: HumanDuration(Duration::from_millis(1)),
        ..options(8 * MIB)
    };
    let store = load_with(folder.path(), &quick);
    wait_for(&store, |store| {
        keys.iter()
            .all(|key| key == spoiled || store.is_verified(key))
            && store.size_of(spoiled).is_none()
    });
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

#[test]
fn a_closed_store_changes_nothing_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = load(folder.path(), 8 * MIB);
    let kept = put(&store, &content(MIB, 1));
    let reservation = store.reserve(MIB).expect("room");
    store.close();
    let (path, file) = draft(&store, &content(MIB, 2));
    let late = key(Digest::of(&content(MIB, 2)));
    assert!(
        store
            .commit(&late, None, &path, file, MIB, reservation)
            .is_err()
    );
    assert!(!store.remove(&kept) && store.reserve(1).is_none());
    assert!(gc(&store, 0, Intent::Do).is_empty());
    assert_eq!(get(&store, &kept), Some(content(MIB, 1)));
    fs::remove_file(path).expect("removed");
    drop(store);
    let store = load(folder.path(), 8 * MIB);
    assert_eq!(get(&store, &kept), Some(content(MIB, 1)));
    assert_exact(&store);
}

#[test]
fn two_stores_do_not_share_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = load(folder.path(), MIB);
    let pool = Pool::start().expect("threads");
    let second = Store::load(folder.path().to_owned(), &options(MIB), pool);
    assert_eq!(
        second.err().map(|error| error.kind()),
        Some(io::ErrorKind::ResourceBusy)
    );
    drop(first);
    load(folder.path(), MIB);
}

#[test]
fn a_registry_that_cannot_be_told_from_another_is_not_cached() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = load(folder.path(), 8 * MIB);
    let other: Registry = "quay.io".parse().expect("a registry");
    let hash = store.index.registry_hash(&Registry::docker_hub());
    store.desk().registries.insert(hash, other);
    let (path, file) = draft(&store, b"blob");
    let reservation = store.reserve(4).expect("room");
    let key = key(Digest::of(b"blob"));
    assert!(
        store
            .commit(&key, None, &path, file, 4, reservation)
            .is_err()
    );
    assert!(store.find(&key, None).is_none());
    assert_eq!((store.blob_count(), store.used_bytes()), (0, 0));
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
