//! Needs no server: the cache knows neither network nor HTTP.

use std::{fs, os::unix::fs::FileExt as _, path::Path};

use super::*;
use crate::units::{KIB, MIB};

fn run<T>(future: impl Future<Output = T>) -> T {
    monoio::RuntimeBuilder::<monoio::LegacyDriver>::new()
        .enable_timer()
        .build()
        .expect("a runtime")
        .block_on(future)
}

fn cache(directory: &Path, max_size: u64) -> Cache {
    Cache::load(
        directory.to_owned(),
        ByteSize(max_size),
        Pool::start().expect("threads"),
    )
    .expect("a cache")
}

fn content(size: u64, seed: u8) -> Vec<u8> {
    (0..size)
        .map(|index| index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[5] ^ seed)
        .collect()
}

fn key(digest: &Digest) -> Key {
    Key {
        registry: Registry::docker_hub(),
        digest: *digest,
    }
}

async fn claim(cache: &Cache, digest: &Digest) -> Fill {
    match cache.open(&key(digest)).await.expect("the pool answers") {
        Opened::Missing(fill) => fill,
        _ => panic!("{digest} is not missing"),
    }
}

async fn store(cache: &Cache, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let mut writer = claim(cache, &digest)
        .await
        .begin(bytes.len() as u64)
        .await
        .expect("room");
    for piece in bytes.chunks(100_000) {
        writer.write(piece).await.expect("written");
    }
    writer.finish().await;
    digest
}

async fn stored(cache: &Cache, digest: &Digest) -> Option<Vec<u8>> {
    match cache.open(&key(digest)).await.expect("the pool answers") {
        Opened::Stored(blob) => {
            let mut bytes = vec![0; usize::try_from(blob.size).expect("small")];
            blob.file.read_exact_at(&mut bytes, 0).expect("read");
            Some(bytes)
        }
        _ => None,
    }
}

#[test]
fn a_filled_blob_is_stored_and_survives_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = content(5 * MIB + 17, 1);
    let digest = run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let digest = store(&cache, &bytes).await;
        assert_eq!(stored(&cache, &digest).await.as_deref(), Some(&*bytes));
        digest
    });
    // The first cache's threads still hold its lock file; a new folder lock needs them gone, so look at the files.
    let hex = digest.hex();
    let path = folder
        .path()
        .join("blobs/docker.io/sha256")
        .join(&hex[..2])
        .join(&hex);
    assert_eq!(fs::read(path).expect("committed"), bytes);
    let (_, found) = {
        fs::remove_file(folder.path().join("lock")).expect("unlocked");
        Disk::load(folder.path().to_owned()).expect("loaded")
    };
    assert_eq!(
        found
            .iter()
            .map(|blob| (blob.key.digest, blob.size))
            .collect::<Vec<_>>(),
        [(digest, bytes.len() as u64)]
    );
}

#[test]
fn followers_read_what_is_written_but_not_the_tail_before_it_is_verified() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = content(MIB, 2);
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let digest = Digest::of(&bytes);
        let fill = claim(&cache, &digest).await;
        let Opened::Filling(reader) = cache.open(&key(&digest)).await.expect("answered") else {
            panic!("a second asker follows")
        };
        let mut writer = fill.begin(MIB).await.expect("room");
        assert_eq!(reader.size().await.expect("known"), MIB);
        writer.write(&bytes[..100_000]).await.expect("written");
        assert_eq!(reader.released_past(0).await.expect("released"), 100_000);
        writer.write(&bytes[100_000..]).await.expect("written");
        assert_eq!(
            reader.released_past(100_000).await.expect("released"),
            MIB - flight::HELD_BACK
        );
        writer.finish().await;
        assert_eq!(reader.released_past(MIB - 1).await.expect("released"), MIB);
        assert!(matches!(reader.ended().await, Ending::Complete));
    });
}

#[test]
fn wrong_content_is_never_released_whole_nor_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bytes = content(MIB, 3);
    let digest = Digest::of(&bytes);
    bytes[500_000] ^= 1;
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let fill = claim(&cache, &digest).await;
        let reader = fill.reader();
        let mut writer = fill.begin(MIB).await.expect("room");
        writer.write(&bytes).await.expect("written");
        writer.finish().await;
        let Err(Ending::Failed(error)) = reader.released_past(MIB - flight::HELD_BACK).await else {
            panic!("the tail was released")
        };
        assert!(matches!(*error, FillError::Mismatch { .. }), "{error}");
        assert_eq!(cache.presence(&key(&digest)), Presence::Absent);
        drop(claim(&cache, &digest).await);
    });
    let hex = digest.hex();
    assert!(
        !folder
            .path()
            .join("blobs/docker.io/sha256")
            .join(&hex[..2])
            .join(&hex)
            .exists()
    );
}

#[test]
fn a_short_or_long_body_is_no_blob() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = content(10_000, 4);
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let digest = Digest::of(&bytes);
        let fill = claim(&cache, &digest).await;
        let reader = fill.reader();
        let mut writer = fill.begin(10_000).await.expect("room");
        writer.write(&bytes[..9_999]).await.expect("written");
        assert!(matches!(
            writer.write(&[0, 0]).await,
            Err(FillError::WrongSize { .. })
        ));
        writer.finish().await;
        assert!(matches!(reader.ended().await, Ending::Failed(_)));
        assert_eq!(cache.presence(&key(&digest)), Presence::Absent);
    });
}

#[test]
fn a_dropped_claim_lets_the_next_one_ask() {
    let folder = tempfile::tempdir().expect("a folder");
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let digest = Digest::of(b"x");
        let fill = claim(&cache, &digest).await;
        let reader = fill.reader();
        drop(fill);
        assert!(matches!(
            reader.size().await,
            Err(Ending::Released(Release::AskYourself))
        ));
        let writer = claim(&cache, &digest).await.begin(1).await.expect("room");
        drop(writer);
        drop(claim(&cache, &digest).await);
    });
}

#[test]
fn the_cap_holds_and_the_least_recently_used_goes_first() {
    let folder = tempfile::tempdir().expect("a folder");
    run(async {
        let cache = cache(folder.path(), 8 * MIB);
        let blobs: Vec<Vec<u8>> = (0..3).map(|seed| content(2 * MIB, seed)).collect();
        let mut digests = Vec::new();
        for blob in &blobs {
            digests.push(store(&cache, blob).await);
        }
        assert!(stored(&cache, &digests[0]).await.is_some());
        let newest = store(&cache, &content(3 * MIB, 9)).await;
        assert!(cache.used_bytes() <= 8 * MIB);
        assert!(
            stored(&cache, &digests[0]).await.is_some(),
            "it was used last"
        );
        assert!(stored(&cache, &newest).await.is_some());
        assert_eq!(cache.presence(&key(&digests[1])), Presence::Absent);
        let too_large = claim(&cache, &Digest::of(b"large")).await;
        assert_eq!(too_large.begin(9 * MIB).await.err(), Some(Release::NoRoom));
    });
}

#[test]
fn a_blob_that_is_being_read_is_not_evicted() {
    let folder = tempfile::tempdir().expect("a folder");
    run(async {
        let cache = cache(folder.path(), 8 * MIB);
        let mut held = Vec::new();
        for seed in 0..2 {
            let digest = store(&cache, &content(3 * MIB, seed)).await;
            let Opened::Stored(blob) = cache.open(&key(&digest)).await.expect("answered") else {
                panic!("stored")
            };
            held.push(blob);
        }
        let other = store(&cache, &content(MIB, 9)).await;
        let wanted = Digest::of(b"wanted");
        let refused = claim(&cache, &wanted).await.begin(3 * MIB).await;
        assert_eq!(refused.err(), Some(Release::NoRoom));
        let kept = cache.presence(&key(&other));
        assert_eq!(
            kept,
            Presence::Stored { size: MIB },
            "removing it would not have been enough"
        );
        drop(held);
        drop(
            claim(&cache, &wanted)
                .await
                .begin(3 * MIB)
                .await
                .expect("room now"),
        );
    });
}

#[test]
fn a_file_that_vanished_is_fetched_again() {
    let folder = tempfile::tempdir().expect("a folder");
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let digest = store(&cache, &content(64 * KIB, 1)).await;
        if let Some(Entry::Stored(stored)) =
            cache.0.entries.lock(&key(&digest)).get_mut(&key(&digest))
        {
            stored.file = None;
        }
        cache.0.disk.remove(&key(&digest));
        drop(claim(&cache, &digest).await);
        assert_eq!(cache.blob_count(), 0);
    });
}

#[test]
fn two_caches_do_not_share_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let _first = cache(folder.path(), MIB);
    let second = Cache::load(
        folder.path().to_owned(),
        ByteSize::mib(1),
        Pool::start().expect("threads"),
    );
    assert_eq!(
        second.err().map(|error| error.kind()),
        Some(std::io::ErrorKind::ResourceBusy)
    );
}

#[test]
fn a_blob_of_one_registry_is_not_there_for_another() {
    let folder = tempfile::tempdir().expect("a folder");
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let digest = store(&cache, &content(MIB, 1)).await;
        let elsewhere = Key {
            registry: "evil.example.com".parse().expect("a registry"),
            digest,
        };
        assert_eq!(cache.presence(&elsewhere), Presence::Absent);
        assert_eq!(
            cache.presence(&key(&digest)),
            Presence::Stored { size: MIB }
        );
    });
}
