//! What makes room and what stays: pulled often beats pulled once, pinned beats all, and what is being read is spared.

use crate::support::{
    content::Content,
    http::End,
    image::file_digest,
    liar::{LiarImage, blob_path},
    programs::wait_until,
    scene::Scene,
    tidegate::{Grant, Setup},
};

const MIB: u64 = 1 << 20;

fn scene() -> Scene {
    Scene::with(Setup::new().section("[cache]\nmax_size = \"32MiB\""))
}

struct Pushed {
    repository: String,
    image: LiarImage,
    grant: Grant,
}

/// An image of its own content, in a repository of its own.
fn push(scene: &Scene, name: &str, seed: u64, layers: u64, size: u64) -> Pushed {
    let layers: Vec<_> = (0..layers)
        .map(|layer| Content::Generated {
            seed: seed * 1000 + layer,
            size,
        })
        .collect();
    let repository = format!("acme/{name}");
    let image = scene.liar.image(&repository, "v1", &layers);
    let grant = scene
        .tidegate
        .grant(&scene.liar.reference(&repository, "v1"));
    Pushed {
        repository,
        image,
        grant,
    }
}

/// As a runtime does: the manifest, then every blob.
fn pull(scene: &Scene, pushed: &Pushed) {
    let manifest = scene.tidegate.get(&pushed.grant.manifest("v1"));
    assert_eq!(manifest.digest(), pushed.image.manifest);
    for digest in pushed.image.layers.iter().chain([&pushed.image.config]) {
        let pulled = scene.tidegate.pull(&pushed.grant.blob(digest));
        assert_eq!((&pulled.digest, pulled.end), (digest, End::Complete));
        // Evictable from now on, not at some time after the next pull.
        if scene.liar.blob_gets(&pushed.repository, digest) == 1 {
            wait_until("the end of its fill", || {
                scene.tidegate.fill_files().is_empty()
            });
        }
    }
}

/// How often each layer was fetched.
fn fetches(scene: &Scene, pushed: &Pushed) -> Vec<usize> {
    let layers = pushed.image.layers.iter();
    layers
        .map(|digest| {
            scene
                .liar
                .count("GET", &blob_path(&pushed.repository, digest))
        })
        .collect()
}

#[test]
fn an_image_that_is_pulled_daily_survives_a_large_one_that_is_pulled_once() {
    let scene = scene();
    let daily = push(&scene, "daily", 1, 3, 2 * MIB);
    for _ in 0..3 {
        pull(&scene, &daily);
    }
    let large = push(&scene, "once", 2, 20, 2 * MIB);
    pull(&scene, &large);
    pull(&scene, &daily);
    assert_eq!(fetches(&scene, &daily), [1, 1, 1]);
    assert!(scene.tidegate.metric("tidegate_blobs_evicted_total") > 0);
}

/// The same after a restart: how often something was pulled is not forgotten.
#[test]
fn what_is_pulled_daily_is_known_after_a_restart() {
    let mut scene = scene();
    let daily = push(&scene, "daily", 1, 3, 2 * MIB);
    let other = push(&scene, "other", 3, 4, 2 * MIB);
    for _ in 0..3 {
        pull(&scene, &daily);
    }
    pull(&scene, &other);
    scene.tidegate.signal("TERM");
    scene.tidegate.wait();
    scene.tidegate.restart();
    let large = push(&scene, "once", 2, 20, 2 * MIB);
    pull(&scene, &large);
    pull(&scene, &daily);
    assert_eq!(fetches(&scene, &daily), [1, 1, 1]);
}

/// Resistance is no petrification: what nobody pulls any more goes in the end.
#[test]
fn what_was_pulled_daily_makes_room_for_what_is_pulled_now() {
    let scene = scene();
    let then = push(&scene, "then", 1, 6, 4 * MIB);
    for _ in 0..5 {
        pull(&scene, &then);
    }
    let now = push(&scene, "now", 2, 6, 4 * MIB);
    for _ in 0..12 {
        pull(&scene, &now);
    }
    let before = fetches(&scene, &now);
    pull(&scene, &now);
    assert_eq!(
        fetches(&scene, &now),
        before,
        "it was never let in: {before:?}"
    );
}

#[test]
fn a_pinned_repository_survives_what_evicts_the_rest() {
    let scene = scene();
    let name = |pushed: &Pushed| format!("{}/{}", scene.liar.name(), pushed.repository);
    let pinned = push(&scene, "pinned", 1, 3, 2 * MIB);
    let other = push(&scene, "other", 2, 3, 2 * MIB);
    let output = scene.tidegate.cache_command(&["pin", &name(&pinned)]);
    assert!(output.status.success(), "{output:?}");
    pull(&scene, &pinned);
    pull(&scene, &other);
    for seed in 3..6 {
        let flood = push(&scene, &format!("flood-{seed}"), seed, 16, 2 * MIB);
        pull(&scene, &flood);
        pull(&scene, &flood);
    }
    for digest in &pinned.image.layers {
        assert!(scene.tidegate.stored(digest).is_some(), "{digest} is gone");
    }
    pull(&scene, &pinned);
    assert_eq!(fetches(&scene, &pinned), [1, 1, 1]);
    let kept = other.image.layers.iter();
    let kept = kept.filter(|digest| scene.tidegate.stored(digest).is_some());
    assert_eq!(kept.count(), 0, "nothing was under pressure");

    let output = scene.tidegate.cache_command(&["unpin", &name(&pinned)]);
    assert!(output.status.success(), "{output:?}");
    for seed in 6..9 {
        let flood = push(&scene, &format!("flood-{seed}"), seed, 16, 2 * MIB);
        for _ in 0..3 {
            pull(&scene, &flood);
        }
    }
    let kept = pinned.image.layers.iter();
    let kept = kept.filter(|digest| scene.tidegate.stored(digest).is_some());
    assert!(kept.count() < 3, "it is still pinned");
}

/// Pins are no way past the cap: what does not fit beside them is streamed.
#[test]
fn pins_that_fill_the_cache_fail_no_pull() {
    let scene = scene();
    let pinned = push(&scene, "pinned", 1, 12, 2 * MIB);
    let name = format!("{}/{}", scene.liar.name(), pinned.repository);
    let output = scene.tidegate.cache_command(&["pin", &name]);
    assert!(output.status.success(), "{output:?}");
    pull(&scene, &pinned);
    let other = push(&scene, "other", 2, 4, 4 * MIB);
    for _ in 0..2 {
        for digest in &other.image.layers {
            let pulled = scene.tidegate.pull(&other.grant.blob(digest));
            assert_eq!((&pulled.digest, pulled.end), (digest, End::Complete));
        }
    }
    let used = scene.tidegate.metric("tidegate_cache_used_bytes");
    assert!(used <= 32 * MIB, "{used}");
    for digest in &pinned.image.layers {
        let path = scene.tidegate.stored(digest).expect("a pinned blob");
        assert_eq!(&file_digest(&path), digest);
    }
}
