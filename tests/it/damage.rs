//! Bits rot, operators copy files over one another: what was noticed to be wrong is never served again.

use std::{fs, os::unix::fs::FileExt as _};

use crate::support::{
    damage::{flip, open, open_stored},
    http::End,
    programs::wait_until,
    scene::{Blob, Scene},
    tidegate::{Setup, files_below},
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 9 * MIB;

/// Scrubbing would find the damage before those who are to find it here.
fn stored(seed: u64) -> (Scene, Blob) {
    let scene = Scene::with(Setup::new().section("[cache]\nscrub_interval = \"0s\""));
    let blob = scene.layer(seed, SIZE);
    scene.assert_arrives(&blob, "the first pull");
    scene.tidegate.wait_until_stored(&blob.digest);
    (scene, blob)
}

/// While it is stopped, all that is known of the blob is its file.
fn damaged(damage: impl FnOnce(&fs::File)) -> (Scene, Blob) {
    let (mut scene, blob) = stored(1);
    scene.tidegate.signal("TERM");
    scene.tidegate.wait();
    damage(&open_stored(&scene.tidegate, &blob.digest));
    scene.tidegate.restart();
    (scene, blob)
}

#[test]
fn a_file_of_another_size_is_never_served() {
    for size in [0, 1, SIZE / 2, SIZE - 1, SIZE + 1, 2 * SIZE] {
        let (scene, blob) = damaged(|file| file.set_len(size).expect("a writable file"));
        // From the manifest it knows how long the blob is.
        let manifest = scene.tidegate.get(&scene.grant.manifest("layer-1"));
        assert_eq!(manifest.status(), 200);
        let pulled = scene.pull(&blob);
        assert!(
            pulled.digest == blob.digest || pulled.end == End::Cut || pulled.head.status >= 500,
            "{size} bytes: {pulled:?}"
        );
        scene.assert_arrives(&blob, &format!("{size} bytes"));
        scene.assert_is_a_hit(&blob);
    }
}

#[test]
fn a_file_that_is_gone_is_fetched_again() {
    let (mut scene, blob) = stored(1);
    let remove = |scene: &Scene| {
        let path = scene.tidegate.stored(&blob.digest).expect("its file");
        fs::remove_file(path).expect("a file of the cache");
    };
    scene.tidegate.signal("TERM");
    scene.tidegate.wait();
    remove(&scene);
    scene.tidegate.restart();
    scene.assert_arrives(&blob, "gone while it was stopped");
    scene.assert_is_a_hit(&blob);
    // Whoever still has it open may go on with it.
    remove(&scene);
    scene.assert_arrives(&blob, "gone while it ran");
}

/// An operator who needs room and does not know how to ask for it.
#[test]
fn a_folder_that_was_emptied_by_hand_is_filled_again_and_kept_below_its_cap() {
    let cap = "[cache]\nmax_size = \"64MiB\"\nscrub_interval = \"0s\"";
    let scene = Scene::with(Setup::new().section(cap));
    let first = scene.layer(1, SIZE);
    scene.assert_arrives(&first, "the first pull");
    scene.tidegate.wait_until_stored(&first.digest);
    for part in ["blobs", "fills", "gone"] {
        fs::remove_dir_all(scene.tidegate.cache_folder().join(part)).expect("a folder");
    }
    for seed in 2..16 {
        let blob = scene.layer(seed, SIZE);
        scene.assert_arrives(&blob, "a pull after that");
        scene.tidegate.wait_until_stored(&blob.digest);
        scene.assert_is_a_hit(&blob);
    }
    // Files that are gone are removed behind those who evict.
    let size = || {
        let files = files_below(&scene.tidegate.cache_folder());
        let blobs = files.iter().filter(|(path, _)| !path.ends_with("index"));
        blobs.map(|(_, metadata)| metadata.len()).sum::<u64>()
    };
    wait_until("a cache below its cap", || size() <= 64 * MIB);
}

#[test]
fn what_verify_has_found_wrong_is_fetched_again_and_right() {
    for place in [0, SIZE / 2, SIZE - 1] {
        let (scene, blob) = damaged(|file| flip(file, place));
        let output = scene.tidegate.cache_command(&["verify"]);
        assert!(!output.status.success(), "{output:?}");
        assert_eq!(scene.tidegate.stored(&blob.digest), None);
        for _ in 0..2 {
            scene.assert_arrives(&blob, "after it was found");
        }
        scene.assert_is_a_hit(&blob);
        assert_eq!(scene.liar.gets(&blob.path).len(), 2);
    }
}

/// A client that is in the middle of a blob when it is found wrong keeps what it has begun with; nobody begins anew.
#[test]
fn what_was_found_wrong_is_not_given_to_anybody_who_comes_later() {
    let (scene, blob) = damaged(|file| flip(file, SIZE / 2));
    let mut early = scene.tidegate.connect();
    early.request("GET", &scene.grant.blob(&blob.digest), &[], b"");
    let head = early.head().expect("an answer");
    early.body("GET", &head).read_exactly(1000);
    let output = scene.tidegate.cache_command(&["verify"]);
    assert!(!output.status.success(), "{output:?}");
    scene.assert_arrives(&blob, "somebody later");
    let span = SIZE / 2 - 10..SIZE / 2 + 10;
    scene.assert_part_arrives(&blob, &span);
}

/// The index is a help, the files are the truth.
#[test]
fn a_damaged_index_is_rebuilt_from_the_files() {
    type Damage = fn(&std::path::Path) -> std::io::Result<()>;
    let damages: [(&str, Damage); 6] = [
        ("gone", |path| fs::remove_file(path)),
        ("empty", |path| fs::write(path, b"")),
        ("foreign", |path| fs::write(path, vec![0xa5; 1 << 20])),
        ("cut", |path| {
            let file = open(path);
            file.set_len(file.metadata()?.len() / 2)
        }),
        ("another head", |path| {
            let file = open(path);
            file.write_all_at(&[0xff; 16], 0)
        }),
        ("scribbled over", |path| {
            let file = open(path);
            let length = file.metadata()?.len();
            for place in (4096..length.min(1 << 20)).step_by(1000) {
                file.write_all_at(&[0x5a; 24], place)?;
            }
            Ok(())
        }),
    ];
    for (name, damage) in damages {
        let mut scene = Scene::new();
        let blobs: Vec<_> = (0..20)
            .map(|seed| scene.layer(seed, 1 + seed * 20_000))
            .collect();
        for blob in &blobs {
            scene.assert_arrives(blob, "the first pull");
            scene.tidegate.wait_until_stored(&blob.digest);
        }
        let used = scene.tidegate.metric("tidegate_cache_used_bytes");
        scene.tidegate.kill();
        let cache = scene.tidegate.cache_folder();
        let index = files_below(&cache)
            .into_iter()
            .map(|(path, _)| path)
            .find(|path| path.file_name().is_some_and(|name| name == "index"))
            .expect("an index");
        damage(&index).expect("a writable file");
        scene.tidegate.restart();
        // No sum tells of a single slot: a blob whose slot is hit, which is chance, is forgotten and fetched again.
        let may_forget = name == "scribbled over";
        if !may_forget {
            wait_until("the account of all blobs", || {
                scene.tidegate.metric("tidegate_cache_used_bytes") == used
                    && scene.tidegate.metric("tidegate_cache_blobs") == blobs.len() as u64
            });
        }
        for blob in &blobs {
            scene.assert_arrives(blob, name);
            let gets = scene.liar.gets(&blob.path).len();
            assert!(
                gets == 1 || may_forget,
                "{name}: what was there was fetched again"
            );
        }
        assert_eq!(scene.tidegate.metric("tidegate_panics_total"), 0, "{name}");
    }
}

/// An index of another cache, or of a time before files were removed and added by hand.
#[test]
fn an_index_that_does_not_fit_the_files_is_no_obstacle() {
    let (mut scene, kept) = stored(1);
    let removed = scene.layer(2, SIZE);
    scene.assert_arrives(&removed, "the first pull");
    scene.tidegate.wait_until_stored(&removed.digest);
    scene.tidegate.signal("TERM");
    scene.tidegate.wait();
    let path = scene.tidegate.stored(&removed.digest).expect("its file");
    fs::remove_file(&path).expect("a file of the cache");
    scene.tidegate.restart();
    for blob in [&kept, &removed] {
        scene.assert_arrives(blob, "after the restart");
        scene.assert_is_a_hit(blob);
    }
    assert_eq!(scene.liar.gets(&kept.path).len(), 1);
    assert_eq!(scene.liar.gets(&removed.path).len(), 2);
    let blobs = 2 * SIZE.next_multiple_of(4096);
    wait_until("an account of exactly what is there", || {
        scene.tidegate.metric("tidegate_cache_used_bytes") == blobs
    });
}
