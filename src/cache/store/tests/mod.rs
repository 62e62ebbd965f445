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

mod room;

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
            // It goes from the index first and from the account a moment later.
            && store.used_bytes() == store.index.bytes()
    });
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
