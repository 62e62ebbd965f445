//! Needs no server: the cache knows neither network nor HTTP.

use std::{fs, ops::Range, os::unix::fs::FileExt as _, path::Path};

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
    let options = Options {
        max_size: ByteSize(max_size),
        min_free: Some(ByteSize(0)),
        ..Options::default()
    };
    Cache::load(
        directory.to_owned(),
        &options,
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

fn repository() -> Repository {
    "acme/app".parse().expect("a repository")
}

async fn open(cache: &Cache, digest: &Digest) -> Opened {
    cache
        .open(&key(digest), &repository())
        .await
        .expect("the pool answers")
}

async fn claim(cache: &Cache, digest: &Digest) -> Fill {
    match open(cache, digest).await {
        Opened::Missing(fill) => fill,
        _ => panic!("{digest} is not missing"),
    }
}

async fn begin(cache: &Cache, digest: &Digest, size: u64) -> (Reader, Run) {
    let begun = claim(cache, digest).await.begin(Some(size), 0..size).await;
    let Begun { reader, run } = begun.unwrap_or_else(|why| panic!("{digest}: {why:?}"));
    (reader, run.expect("something is missing"))
}

/// Everything that the run fetches, from `bytes`.
async fn write(run: &mut Run, bytes: &[u8]) -> Course {
    loop {
        let part = run.part();
        let place = |position: u64| usize::try_from(position).expect("small").min(bytes.len());
        let end = part.end.min(part.start + 100_000);
        let piece = bytes[place(part.start)..place(end)].to_vec();
        if piece.is_empty() {
            return run.course();
        }
        let (writing, _) = run.write(piece, 0).expect("the pool takes it");
        match writing.done().await.expect("written").1 {
            Course::GoOn | Course::MoveTo(_) => {}
            course => return course,
        }
    }
}

async fn store(cache: &Cache, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let (_reader, mut run) = begin(cache, &digest, bytes.len() as u64).await;
    assert_eq!(write(&mut run, bytes).await, Course::Complete);
    run.finish().await;
    digest
}

async fn stored(cache: &Cache, digest: &Digest) -> Option<Vec<u8>> {
    match open(cache, digest).await {
        Opened::Stored(blob) => {
            let mut bytes = vec![0; usize::try_from(blob.size).expect("small")];
            blob.file.read_exact_at(&mut bytes, 0).expect("read");
            Some(bytes)
        }
        _ => None,
    }
}

async fn released(reader: &Reader, position: u64) -> u64 {
    match reader.next(position).await.expect("no end") {
        Next::Ready(end) => end,
        Next::Fetch(_) => panic!("somebody fetches it already"),
    }
}

fn blob_path(directory: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    directory
        .join("blobs/docker.io/sha256")
        .join(&hex[..2])
        .join(&hex)
}

#[test]
fn a_filled_blob_is_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
        for size in [0, 1, 64 * KIB, 5 * MIB + 17] {
            let bytes = content(size, 1);
            let digest = store(&cache, &bytes).await;
            assert_eq!(stored(&cache, &digest).await.as_deref(), Some(&*bytes));
            assert_eq!(
                fs::read(blob_path(folder.path(), &digest)).expect("committed"),
                bytes
            );
        }
        assert!(
            fs::read_dir(folder.path().join("fills"))
                .expect("a folder")
                .next()
                .is_none()
        );
    });
}

#[test]
fn followers_read_what_is_written_but_not_the_tail_before_it_is_verified() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = content(MIB, 2);
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let digest = Digest::of(&bytes);
        let (first, mut run) = begin(&cache, &digest, MIB).await;
        let Opened::Filling(reader) = open(&cache, &digest).await else {
            panic!("a second asker follows")
        };
        assert_eq!(reader.size().await.expect("known"), Some(MIB));
        let (writing, count) = run.write(bytes[..100_000].to_vec(), 0).expect("sent");
        assert_eq!(count, 100_000);
        assert_eq!(writing.done().await.expect("written").1, Course::GoOn);
        assert_eq!(released(&reader, 0).await, 100_000);
        assert_eq!(write(&mut run, &bytes).await, Course::Complete);
        assert_eq!(released(&reader, 100_000).await, MIB - HELD_BACK);
        run.finish().await;
        assert_eq!(released(&first, MIB - 1).await, MIB);
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
        let (reader, mut run) = begin(&cache, &digest, MIB).await;
        assert_eq!(write(&mut run, &bytes).await, Course::Complete);
        run.finish().await;
        let Err(Ending::Failed(error)) = reader.next(MIB - HELD_BACK).await else {
            panic!("the tail was released")
        };
        assert!(matches!(*error, FillError::Mismatch { .. }), "{error}");
        assert_eq!(cache.presence(&key(&digest)), Presence::Absent);
        assert!(claim(&cache, &digest).await.kept().is_none());
        assert!(!blob_path(folder.path(), &digest).exists());
    });
}

#[test]
fn a_dropped_claim_lets_the_next_one_ask() {
    let folder = tempfile::tempdir().expect("a folder");
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let digest = Digest::of(b"x");
        let fill = claim(&cache, &digest).await;
        let Opened::Filling(reader) = open(&cache, &digest).await else {
            panic!("there is a claim")
        };
        drop(fill);
        assert!(matches!(
            reader.size().await,
            Err(Ending::Released(Release::AskYourself))
        ));
        drop(claim(&cache, &digest).await);
    });
}

#[test]
fn a_part_is_fetched_for_itself_and_the_rest_by_whoever_wants_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = content(20 * MIB, 5);
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let digest = Digest::of(&bytes);
        let fill = claim(&cache, &digest).await;
        let part = 15 * MIB..16 * MIB;
        let Ok(Begun { reader, run }) = fill.begin(Some(20 * MIB), part.clone()).await else {
            panic!("there is room")
        };
        let mut run = run.expect("nothing is there");
        assert_eq!(run.part(), part);
        assert_eq!(write(&mut run, &bytes).await, Course::Done);
        drop(run);
        assert_eq!(released(&reader, part.start).await, part.end);
        let Opened::Filling(whole) = open(&cache, &digest).await else {
            panic!("it is still there")
        };
        whole.want(0..20 * MIB);
        let mut runs: Vec<Range<u64>> = Vec::new();
        while let Some(mut run) = whole.claim(runs.last().map_or(0, |part| part.end)) {
            runs.push(run.part());
            let course = write(&mut run, &bytes).await;
            if course == Course::Complete {
                run.finish().await;
                break;
            }
        }
        let first = 0..part.start;
        assert_eq!(
            runs,
            vec![first],
            "the run goes on behind the part that is there"
        );
        assert_eq!(stored(&cache, &digest).await.as_deref(), Some(&*bytes));
    });
}

#[test]
fn what_stopped_half_way_is_gone_on_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = content(20 * MIB, 6);
    let digest = Digest::of(&bytes);
    let size = bytes.len() as u64;
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let (reader, mut run) = begin(&cache, &digest, size).await;
        let (writing, _) = run.write(bytes[..3_000_000].to_vec(), 0).expect("sent");
        writing.done().await.expect("written");
        run.fail(FillError::Source("it broke".to_owned()));
        assert!(matches!(reader.ended().await, Ending::Failed(_)));
        assert!(
            cache.used_bytes() < 4 * MIB,
            "only what is there is counted"
        );
        let fill = claim(&cache, &digest).await;
        let (kept_size, extents) = fill.kept().expect("kept");
        assert_eq!((kept_size, extents.prefix()), (size, 3_000_000));
        let Ok(Begun {
            reader: _reader,
            run,
        }) = fill.begin(Some(size), 0..size).await
        else {
            panic!("there is room")
        };
        let mut run = run.expect("most is missing");
        assert_eq!(run.part(), 3_000_000..size);
        assert_eq!(write(&mut run, &bytes).await, Course::Complete);
        run.finish().await;
        assert_eq!(stored(&cache, &digest).await.as_deref(), Some(&*bytes));
        assert_eq!(cache.used_bytes(), 20 * MIB);
    });
}

#[test]
fn what_stopped_half_way_stays_when_what_is_wanted_will_not_fit_all_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let unfinished = Digest::of(b"unfinished");
    let wanted = Digest::of(b"wanted");
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let (reader, mut run) = begin(&cache, &unfinished, 20 * MIB).await;
        let piece = content(3 * MIB, 1);
        let (writing, _) = run.write(piece, 0).expect("sent");
        writing.done().await.expect("written");
        run.fail(FillError::Source("it broke".to_owned()));
        reader.ended().await;
        for size in [33 * MIB, u64::MAX] {
            let refused = claim(&cache, &wanted)
                .await
                .begin(Some(size), 0..size)
                .await;
            assert!(matches!(refused, Err(Release::NoRoom)), "{size}");
        }
        let kept = claim(&cache, &unfinished).await.kept();
        assert_eq!(kept.map(|(_, extents)| extents.prefix()), Some(3 * MIB));
    });
}

#[test]
fn a_later_process_finds_what_was_written_down() {
    let folder = tempfile::tempdir().expect("a folder");
    let fills = folder.path().join("fills");
    let key = key(&Digest::of(b"some large blob"));
    let extents: Extents = [0..MIB, 3 * MIB..4 * MIB].into_iter().collect();
    let budget = budget::Budget::new(64 * MIB);
    let load = || {
        Partials::load(fills.clone(), Arc::default(), |bytes| budget.reserve(bytes))
            .expect("loaded")
    };
    {
        let partials = load();
        let draft = partials
            .create(budget.reserve(20 * MIB).expect("room"))
            .expect("a file");
        draft
            .file()
            .write_all_at(&content(4 * MIB, 1), 0)
            .expect("written");
        partials.keep(key.clone(), draft, 20 * MIB, extents.clone());
        partials.leave_to_successor();
        // Another file that nobody knows, and one that is no file of ours.
        fs::write(fills.join("77"), b"x").expect("written");
    }
    let partials = load();
    assert_eq!(partials.peek(&key), Some((20 * MIB, extents)));
    assert!(!fills.join("77").exists());
    let used = budget.used();
    assert!((4 * MIB..5 * MIB).contains(&used), "{used}");
    drop(partials.take(&key));
    assert_eq!(budget.used(), 0);
    assert!(fs::read_dir(&fills).expect("a folder").next().is_none());
}

#[test]
fn a_blob_of_unknown_size_takes_room_as_it_grows() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = content(9 * MIB, 7);
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let digest = Digest::of(&bytes);
        let fill = claim(&cache, &digest).await;
        let Ok(Begun { reader, run }) = fill.begin(None, 0..u64::MAX).await else {
            panic!("there is room")
        };
        let mut run = run.expect("all is missing");
        for piece in bytes.chunks(1_000_000) {
            let (writing, _) = run.write(piece.to_vec(), 0).expect("sent");
            assert_eq!(writing.done().await.expect("written").1, Course::GoOn);
        }
        assert_eq!(released(&reader, 0).await, 9 * MIB - HELD_BACK);
        run.learn_size(9 * MIB);
        assert_eq!(run.course(), Course::Complete);
        run.finish().await;
        assert_eq!(stored(&cache, &digest).await.as_deref(), Some(&*bytes));
        assert_eq!(cache.used_bytes(), 9 * MIB);
    });
}

#[test]
fn the_cap_holds_for_a_blob_of_unknown_size() {
    let folder = tempfile::tempdir().expect("a folder");
    run(async {
        let cache = cache(folder.path(), 32 * MIB);
        let digest = Digest::of(b"endless");
        let fill = claim(&cache, &digest).await;
        let Ok(Begun { reader, run }) = fill.begin(None, 0..u64::MAX).await else {
            panic!("there is room")
        };
        let mut run = run.expect("all is missing");
        let error = loop {
            let (writing, _) = run.write(vec![7; 1 << 20], 0).expect("sent");
            assert!(cache.used_bytes() <= 32 * MIB);
            if let Err(error) = writing.done().await {
                break error;
            }
        };
        assert!(matches!(error, FillError::NoRoom), "{error}");
        run.fail(error);
        assert!(matches!(
            reader.ended().await,
            Ending::Released(Release::NoRoom)
        ));
        drop(reader);
        drop(claim(&cache, &digest).await);
        assert_eq!(cache.used_bytes(), 0);
    });
}

#[test]
fn the_cap_holds_and_what_is_used_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    run(async {
        let cache = cache(folder.path(), 8 * MIB);
        let blobs: Vec<Vec<u8>> = (0..3).map(|seed| content(2 * MIB, seed)).collect();
        let mut digests = Vec::new();
        for blob in &blobs {
            digests.push(store(&cache, blob).await);
        }
        for _ in 0..2 {
            assert!(stored(&cache, &digests[0]).await.is_some());
        }
        let newest = store(&cache, &content(3 * MIB, 9)).await;
        assert!(cache.used_bytes() <= 8 * MIB);
        assert!(stored(&cache, &digests[0]).await.is_some(), "it is used");
        assert!(stored(&cache, &newest).await.is_some());
        // Both were last used in the same second.
        let is_gone = |digest| cache.presence(&key(digest)) == Presence::Absent;
        assert!(
            is_gone(&digests[1]) != is_gone(&digests[2]),
            "one had to go"
        );
        let too_large = claim(&cache, &Digest::of(b"large")).await;
        let refused = too_large.begin(Some(9 * MIB), 0..9 * MIB).await;
        assert_eq!(refused.err(), Some(Release::NoRoom));
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
            let Opened::Stored(blob) = open(&cache, &digest).await else {
                panic!("stored")
            };
            held.push(blob);
        }
        let wanted = Digest::of(b"wanted");
        let refused = claim(&cache, &wanted).await;
        let refused = refused.begin(Some(3 * MIB), 0..3 * MIB).await;
        assert_eq!(refused.err(), Some(Release::NoRoom));
        drop(held);
        drop(begin(&cache, &wanted, 3 * MIB).await);
    });
}

#[test]
fn a_file_that_vanished_is_fetched_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let digest = run(async {
        let cache = cache(folder.path(), 64 * MIB);
        let digest = store(&cache, &content(64 * KIB, 1)).await;
        cache.close();
        digest
    });
    fs::remove_file(folder.path().join("lock")).expect("unlocked");
    fs::remove_file(blob_path(folder.path(), &digest)).expect("it was there");
    run(async {
        let cache = cache(folder.path(), 64 * MIB);
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
        &Options::default(),
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
