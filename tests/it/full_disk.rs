//! A full disk costs the cache, not the pull.

use std::{os::unix::fs::MetadataExt as _, sync::Barrier, thread};

use crate::support::{
    content::Content,
    http::End,
    image::file_digest,
    liar::{Behaviour, Gate, Liar},
    programs::{self, wait_until},
    scene::{REPOSITORY, Scene},
    small_disk::SmallDisk,
    tidegate::{Setup, Tidegate, files_below},
};

const MIB: u64 = 1 << 20;

fn scene(disk: &SmallDisk, options: &str) -> Scene {
    let setup = Setup::new().section(options);
    Scene::with(setup.cache_folder(disk.cache_folder()))
}

/// Of blobs and of what is growing, or was left to be taken up again.
fn on_disk(tidegate: &Tidegate) -> u64 {
    let files = tidegate.blob_files().into_iter();
    files
        .chain(tidegate.fill_files())
        .map(|(_, metadata)| metadata.blocks() * 512)
        .sum()
}

/// What `/metrics` has under names that say that the disk was full.
fn times_full(tidegate: &Tidegate) -> u64 {
    let metrics = tidegate.metrics();
    let full = metrics.iter().filter(|(name, _)| name.contains("full"));
    full.map(|(_, count)| count).sum()
}

/// Lines by which the operator learns it.
fn lines_about_the_disk(tidegate: &Tidegate) -> usize {
    tidegate.log().count(|line| {
        let line = line.to_lowercase();
        ["no space", "no room", "full", "takes no more", "quota"]
            .iter()
            .any(|words| line.contains(words))
    })
}

#[test]
fn a_full_disk_fails_no_pull() {
    let Some(disk) = SmallDisk::mount("11m") else {
        return;
    };
    let liar = Liar::open();
    let layers: Vec<Content> = (0..4)
        .map(|seed| Content::Generated {
            seed,
            size: 4 * MIB,
        })
        .collect();
    let image = liar.image("acme/app", "v1", &layers);
    // It is told that it may use much more than there is.
    let directory = disk.path().join("cache");
    let tidegate = Setup::new()
        .liar(&liar)
        .section("[cache]\nmax_size = \"1GiB\"\nmin_free = \"0B\"")
        .cache_folder(directory.clone())
        .start();
    let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
    for round in 0..2 {
        for digest in &image.layers {
            let pulled = tidegate.pull(&grant.blob(digest));
            assert_eq!(
                (&pulled.digest, pulled.end),
                (digest, End::Complete),
                "round {round}"
            );
        }
    }
    wait_until("what fits, and nothing half", || {
        (1..=2).contains(&files_below(&directory.join("blobs")).len())
            && files_below(&directory.join("fills")).is_empty()
    });
}

/// 300 MiB through 64: most of it passes, what is kept is within the cap, and nothing is left of the rest.
#[test]
fn an_image_much_larger_than_the_disk_is_pulled_by_many() {
    for (options, cap) in [
        ("[cache]\nmax_size = \"48MiB\"", 48 * MIB),
        // Told that it may use all of the disk, or more than there is.
        ("[cache]\nmax_size = \"64MiB\"", 64 * MIB),
        ("[cache]\nmax_size = \"10GiB\"", 64 * MIB),
    ] {
        let Some(disk) = SmallDisk::mount("64m") else {
            return;
        };
        let scene = scene(&disk, options);
        let layers: Vec<_> = (0..)
            .zip([100, 40, 70, 60, 20, 5, 4, 1])
            .map(|(seed, size)| Content::Generated {
                seed,
                size: size * MIB,
            })
            .collect();
        let image = scene.liar.image(REPOSITORY, "large", &layers);
        let manifest = scene.tidegate.get(&scene.grant.manifest("large"));
        assert_eq!(manifest.status(), 200);
        let together = Barrier::new(4);
        thread::scope(|scope| {
            for client in 0..4 {
                let (scene, image, together) = (&scene, &image, &together);
                scope.spawn(move || {
                    together.wait();
                    for number in 0..image.layers.len() {
                        let digest = &image.layers[(number + client * 2) % image.layers.len()];
                        let pulled = scene.tidegate.pull(&scene.grant.blob(digest));
                        let got = (&pulled.digest, pulled.end);
                        assert_eq!(got, (digest, End::Complete), "{options}");
                        let used = on_disk(&scene.tidegate);
                        assert!(used <= cap, "{used} bytes of {cap}: {options}");
                    }
                });
            }
        });
        wait_until("an end of the fills", || {
            scene.tidegate.fill_files().is_empty()
        });
        let blobs: u64 = scene
            .tidegate
            .blob_files()
            .iter()
            .map(|(_, metadata)| metadata.len().next_multiple_of(4096))
            .sum();
        wait_until("an account of exactly what is there", || {
            scene.tidegate.metric("tidegate_cache_used_bytes") == blobs
        });
        if cap < 64 * MIB {
            // What fits is still kept after all that.
            let blob = scene.layer(1000, 3 * MIB);
            scene.assert_arrives(&blob, "a small one");
            scene.assert_is_a_hit(&blob);
        }
    }
}

/// Nobody could know before how large it would come to be.
#[test]
fn a_disk_that_is_full_in_the_middle_of_a_blob_costs_no_client_anything() {
    let Some(disk) = SmallDisk::mount("16m") else {
        return;
    };
    assert_costs_no_client_anything(&disk);
}

/// There is room on the disk, but not for us.
#[test]
fn a_quota_that_is_used_up_in_the_middle_of_a_blob_costs_no_client_anything() {
    let Some(disk) = SmallDisk::with_quota("16M") else {
        return;
    };
    assert_costs_no_client_anything(&disk);
}

/// It takes less than 24 MiB, and 8.
fn assert_costs_no_client_anything(disk: &SmallDisk) {
    let scene = scene(disk, "[cache]\nmax_size = \"1GiB\"\nmin_free = \"0B\"");
    let blob = scene.blob(1, 24 * MIB);
    let gate = Gate::default();
    let halting = Behaviour::Gated(4 * MIB, gate.clone());
    scene.misbehave(&blob, Behaviour::All(vec![Behaviour::Chunked, halting]));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| scene.assert_arrives(&blob, "the disk is full")))
            .collect();
        scene.liar.wait_for_sent(4 * MIB);
        gate.open();
        for client in clients {
            client.join().expect("a client that did not panic");
        }
    });
    assert_eq!(scene.tidegate.stored(&blob.digest), None);
    wait_until("an end of the fills", || {
        scene.tidegate.fill_files().is_empty()
    });
    assert_eq!(
        lines_about_the_disk(&scene.tidegate),
        1,
        "the operator is told once:\n{}",
        scene.tidegate.log().text()
    );
    let failed = scene.tidegate.metric("tidegate_fills_failed_total");
    assert!(
        failed + times_full(&scene.tidegate) > 0,
        "nothing is counted"
    );
    // Nothing is held that could not be given back.
    let small = scene.layer(2, 8 * MIB);
    scene.assert_arrives(&small, "one that fits");
    scene.assert_is_a_hit(&small);
}

/// Others fill the disk while a fill is running: what was reserved is not always there.
#[test]
fn a_disk_that_others_fill_costs_no_client_anything() {
    for framing in [Behaviour::Honest, Behaviour::Chunked, Behaviour::UntilClose] {
        let Some(disk) = SmallDisk::mount("24m") else {
            return;
        };
        let options = "[cache]\nmax_size = \"1GiB\"\nmin_free = \"0B\"";
        let scene = scene(&disk, options);
        let blob = scene.blob(1, 12 * MIB);
        let gate = Gate::default();
        let halting = Behaviour::Gated(4 * MIB, gate.clone());
        scene.misbehave(&blob, Behaviour::All(vec![framing, halting]));
        let ballast = disk.path().join("ballast");
        thread::scope(|scope| {
            let client = scope.spawn(|| scene.assert_arrives(&blob, "others filled the disk"));
            wait_until("a growing file", || on_disk(&scene.tidegate) > 0);
            let file = std::fs::File::create(&ballast).expect("a writable folder");
            let mut zeros = std::io::repeat(0);
            // To the last byte.
            let _ = std::io::copy(&mut zeros, &mut &file);
            gate.open();
            client.join().expect("a client that did not panic");
        });
        std::fs::remove_file(&ballast).expect("a file of ours");
        scene.behave(&blob);
        scene.assert_arrives(&blob, "when there is room again");
        scene.assert_is_a_hit(&blob);
        let path = scene.tidegate.stored(&blob.digest).expect("its file");
        assert_eq!(file_digest(&path), blob.digest);
    }
}

/// Other programs live on the disk as well.
#[test]
fn some_of_the_disk_is_left_free_if_the_operator_says_so() {
    let Some(disk) = SmallDisk::mount("32m") else {
        return;
    };
    let scene = scene(&disk, "[cache]\nmax_size = \"1GiB\"\nmin_free = \"16MiB\"");
    for seed in 0..12 {
        let blob = scene.layer(seed, 3 * MIB);
        scene.assert_arrives(&blob, "one of many");
        let used = on_disk(&scene.tidegate);
        assert!(
            used <= 16 * MIB,
            "{used} bytes of 32 MiB, 16 of which are to be free"
        );
    }
    assert!(on_disk(&scene.tidegate) >= 3 * MIB, "nothing is kept");
}

/// Neither for what is larger than a blob may be, nor for what the disk could never hold, nor for what would fit on the
/// disk but not under the cap.
#[test]
fn nothing_is_removed_for_what_will_not_fit_all_the_same() {
    for (what, options, read, wanted) in [
        (
            "more than half of the cap",
            "max_size = \"72MiB\"\nmin_free = \"0B\"",
            0,
            40,
        ),
        (
            "more than the disk",
            "max_size = \"1GiB\"\nmin_free = \"0B\"",
            0,
            200,
        ),
        (
            "more than can be freed of the disk",
            "max_size = \"1GiB\"\nmin_free = \"32MiB\"",
            2,
            44,
        ),
        // Of the disk 2 MiB are missing and of the cap 26; 8 MiB could be freed.
        (
            "more than can be freed under the cap",
            "max_size = \"72MiB\"\nmin_free = \"32MiB\"",
            2,
            34,
        ),
    ] {
        let Some(disk) = SmallDisk::mount("128m") else {
            return;
        };
        let scene = scene(&disk, &format!("[cache]\n{options}"));
        let kept = scene.layer(1, 8 * MIB);
        scene.assert_arrives(&kept, what);
        scene.tidegate.wait_until_stored(&kept.digest);
        // What is read stays.
        let readers: Vec<_> = (0..read)
            .map(|seed| {
                let blob = scene.layer(10 + seed, 28 * MIB);
                scene.assert_arrives(&blob, what);
                scene.tidegate.wait_until_stored(&blob.digest);
                let mut reader = scene.tidegate.connect();
                reader.request("GET", &scene.grant.blob(&blob.digest), &[], b"");
                let head = reader.head().expect("an answer");
                reader.body("GET", &head).read_exactly(1000);
                reader
            })
            .collect();
        let wanted = scene.layer(100, wanted * MIB);
        for _ in 0..2 {
            scene.assert_arrives(&wanted, what);
        }
        assert_eq!(scene.tidegate.stored(&wanted.digest), None, "{what}");
        assert_eq!(
            scene.tidegate.metric("tidegate_blobs_evicted_total"),
            0,
            "{what}"
        );
        scene.assert_is_a_hit(&kept);
        drop(readers);
    }
}

/// The index is mapped, and a file system that never writes in place needs room for every change of it: what is noted of a
/// hit must not end the process.
#[test]
fn hits_are_served_from_a_disk_that_takes_nothing_more() {
    let Some(disk) = SmallDisk::with_quota("24M") else {
        return;
    };
    let scene = scene(&disk, "[cache]\nmax_size = \"1GiB\"\nmin_free = \"0B\"");
    let blobs: Vec<_> = (0..3).map(|seed| scene.layer(seed, 3 * MIB)).collect();
    for blob in &blobs {
        scene.assert_arrives(blob, "the first pull");
        scene.tidegate.wait_until_stored(&blob.digest);
    }
    let ballast = disk.cache_folder().join("ballast");
    let file = std::fs::File::create(&ballast).expect("a writable folder");
    let _ = std::io::copy(&mut std::io::repeat(0), &mut &file);
    // From now on no page of the index is one that may be written without asking the file system.
    disk.sync();
    for _ in 0..4 {
        for blob in &blobs {
            scene.assert_is_a_hit(blob);
            disk.sync();
        }
    }
    let another = scene.layer(10, 3 * MIB);
    scene.assert_arrives(&another, "what does not fit");
    for blob in &blobs {
        scene.assert_arrives(blob, "whether it was removed or not");
    }
}

/// `ulimit -f`, or a file system of small files: the kernel's signal for that would end the process.
#[test]
fn a_file_that_may_grow_no_further_costs_no_client_anything() {
    if !programs::are_here(&["prlimit"]) {
        return;
    }
    let limit = format!("--fsize={}", 12 * MIB);
    let setup = Setup::new()
        .section("[cache]\nmax_size = \"256MiB\"")
        .launcher(&["prlimit", &limit]);
    let scene = Scene::with(setup);
    for framing in [Behaviour::Honest, Behaviour::Chunked] {
        let blob = scene.blob(1, 24 * MIB);
        scene.misbehave(&blob, framing);
        for _ in 0..2 {
            scene.assert_arrives(&blob, "larger than a file may be");
        }
        assert_eq!(scene.tidegate.stored(&blob.digest), None);
    }
    wait_until("an end of the fills", || {
        scene.tidegate.fill_files().is_empty()
    });
    let small = scene.layer(2, 8 * MIB);
    scene.assert_arrives(&small, "one that fits");
    scene.assert_is_a_hit(&small);
}
