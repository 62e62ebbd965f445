//! Blobs as few registries send them, but some do: without a length, with a wrong one, under an encoding, or named by
//! sha512.

use std::{io::Read as _, os::unix::fs::MetadataExt as _, thread};

use serde_json::json;

use crate::support::{
    content::{Content, digest},
    http::End,
    image::file_digest,
    liar::{Behaviour, Gate, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST},
    programs::wait_until,
    scene::{Blob, REPOSITORY, Scene},
    tidegate::Setup,
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 20 * MIB;

fn without_length() -> [Behaviour; 2] {
    [Behaviour::Chunked, Behaviour::UntilClose]
}

/// Right, or visibly broken off, or refused in words.
fn assert_is_never_wrong(scene: &Scene, blob: &Blob, what: &str) {
    let pulled = scene.pull(blob);
    let is_right = pulled.digest == blob.digest && pulled.end == End::Complete;
    let is_refused = pulled.head.status >= 500 && pulled.end == End::Complete;
    assert!(
        is_right || is_refused || pulled.end == End::Cut,
        "{what}: {pulled:?}"
    );
    if !is_right {
        assert_eq!(scene.tidegate.stored(&blob.digest), None, "{what}");
    }
}

#[test]
fn blobs_of_unknown_size_are_streamed_while_they_come_and_kept() {
    let scene = Scene::new();
    for (seed, framing) in (0..).zip(without_length()) {
        let blob = scene.blob(seed, SIZE);
        let gate = Gate::default();
        let halting = Behaviour::Gated(SIZE / 2, gate.clone());
        scene.misbehave(&blob, Behaviour::All(vec![framing, halting]));
        let quarter = SIZE / 4;
        let mut first = scene.tidegate.connect();
        first.request("GET", &scene.grant.blob(&blob.digest), &[], b"");
        let head = first.head().expect("an answer");
        assert_eq!(head.status, 200);
        let mut body = first.body("GET", &head);
        let mut bytes = body.read_exactly(quarter as usize);
        thread::scope(|scope| {
            // Those who come later share the one download.
            let followers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| scene.assert_arrives(&blob, "a follower")))
                .collect();
            wait_until("the followers", || {
                scene.tidegate.metric("tidegate_connections") >= 5
            });
            gate.open();
            body.read_to_end(&mut bytes).expect("a readable body");
            assert_eq!(body.end(), End::Complete);
            assert_eq!(digest(&bytes), blob.digest);
            for follower in followers {
                follower.join().expect("a client that did not panic");
            }
        });
        scene.assert_is_a_hit(&blob);
        assert_eq!(scene.pull(&blob).head.content_length(), Some(SIZE));
        assert_eq!(scene.liar.gets(&blob.path).len(), 1);
    }
}

#[test]
fn blobs_of_unknown_size_are_kept_whatever_their_size_is() {
    let scene = Scene::new();
    let mut seed = 0;
    for framing in without_length() {
        for size in [0, 1, 65_535, 65_536, 65_537, MIB, MIB + 1, 8 * MIB, 9 * MIB] {
            seed += 1;
            let blob = scene.blob(seed, size);
            scene.misbehave(&blob, framing.clone());
            scene.assert_arrives(&blob, &format!("{size} bytes"));
            scene.assert_is_a_hit(&blob);
        }
    }
    wait_until("an end of the fills", || {
        scene.tidegate.fill_files().is_empty()
    });
}

#[test]
fn wrong_blobs_of_unknown_size_never_arrive_whole() {
    let scene = Scene::new();
    let mut seed = 0;
    for framing in without_length() {
        for (size, wrong) in [
            (1, 0),
            (65_537, 0),
            (SIZE, 0),
            (SIZE, SIZE - 1),
            (SIZE, SIZE / 2),
        ] {
            seed += 1;
            let blob = scene.blob(seed, size);
            let behaviours = vec![framing.clone(), Behaviour::WrongByteAt(wrong)];
            scene.misbehave(&blob, Behaviour::All(behaviours));
            let pulled = scene.pull(&blob);
            assert!(
                pulled.head.status == 502 || pulled.end == End::Cut,
                "{size}: {pulled:?}"
            );
            assert!(pulled.head.status == 502 || pulled.size <= size.saturating_sub(65_536));
            assert_eq!(scene.tidegate.stored(&blob.digest), None);
            scene.behave(&blob);
            scene.assert_arrives(&blob, "when the upstream has come to its senses");
        }
    }
}

/// What it will come to is not known, so it takes room as it grows, and goes on without when there is none.
#[test]
fn blobs_of_unknown_size_keep_to_the_cap() {
    const CAP: u64 = 16 * MIB;
    let scene = Scene::with(Setup::new().section("[cache]\nmax_size = \"16MiB\""));
    let on_disk = || -> u64 {
        let tidegate = &scene.tidegate;
        let files = tidegate
            .blob_files()
            .into_iter()
            .chain(tidegate.fill_files());
        files.map(|(_, metadata)| metadata.blocks() * 512).sum()
    };
    for (seed, size) in (0..).zip([3, 40, 5, 17, 15, 7, 2].map(|size| size * MIB)) {
        for (number, framing) in (0..).zip(without_length()) {
            let blob = scene.blob(seed * 10 + number, size);
            scene.misbehave(&blob, framing);
            let mut client = scene.tidegate.connect();
            client.request("GET", &scene.grant.blob(&blob.digest), &[], b"");
            let head = client.head().expect("an answer");
            let mut body = client.body("GET", &head);
            let mut bytes = Vec::new();
            while (bytes.len() as u64) < size {
                let count = (size - bytes.len() as u64).min(MIB);
                bytes.extend(body.read_exactly(count as usize));
                let used = on_disk();
                assert!(used <= CAP, "{used} bytes on disk");
            }
            assert_eq!(body.read(&mut [0]).expect("a readable body"), 0);
            assert_eq!(body.end(), End::Complete);
            assert_eq!(digest(&bytes), blob.digest);
        }
    }
    let blob = scene.blob(1000, 3 * MIB);
    scene.misbehave(&blob, Behaviour::Chunked);
    scene.assert_arrives(&blob, "one that fits");
    scene.assert_is_a_hit(&blob);
}

#[test]
fn many_blobs_of_unknown_size_at_once_keep_to_the_cap() {
    const CAP: u64 = 16 * MIB;
    let scene = Scene::with(Setup::new().section("[cache]\nmax_size = \"16MiB\""));
    let gates: Vec<_> = (0..8)
        .map(|seed| {
            let blob = scene.blob(seed, 6 * MIB);
            let gate = Gate::default();
            let halting = Behaviour::Gated(4 * MIB, gate.clone());
            scene.misbehave(&blob, Behaviour::All(vec![Behaviour::Chunked, halting]));
            (blob, gate)
        })
        .collect();
    thread::scope(|scope| {
        let clients: Vec<_> = gates
            .iter()
            .map(|(blob, _)| scope.spawn(|| scene.assert_arrives(blob, "one of many")))
            .collect();
        scene.liar.wait_for_sent(8 * 4 * MIB);
        let counted = scene.tidegate.metric("tidegate_cache_used_bytes");
        assert!(counted <= CAP, "{counted}");
        for (_, gate) in &gates {
            gate.open();
        }
        for client in clients {
            client.join().expect("a client that did not panic");
        }
    });
    let counted = scene.tidegate.metric("tidegate_cache_used_bytes");
    assert!(counted <= CAP, "{counted}");
}

#[test]
fn the_upstream_is_asked_for_the_bytes_as_they_are() {
    let scene = Scene::new();
    for (seed, range) in (0..).zip(["", "bytes=10-19", "bytes=0-9,20-29"]) {
        let blob = scene.layer(seed, SIZE);
        let mut headers = vec![("Accept-Encoding", "zstd, gzip;q=0.8")];
        if !range.is_empty() {
            headers.push(("Range", range));
        }
        scene.get(&blob, &headers);
        for request in scene.liar.gets(&blob.path) {
            assert_eq!(request.joined("accept-encoding"), "identity", "{range}");
        }
    }
}

/// Storage that was told `Content-Encoding: gzip` when a layer in gzip was put there sends the layer as it is.
#[test]
fn a_label_on_the_right_bytes_does_no_harm() {
    let scene = Scene::new();
    let mut seed = 0;
    for label in ["gzip", "zstd", "x-unheard-of", "identity"] {
        for size in [1000, SIZE] {
            seed += 1;
            let content = Content::Generated { seed, size }.gzip();
            let blob = scene.blob_of(content);
            scene.misbehave(&blob, Behaviour::Labelled(label));
            for _ in 0..2 {
                let pulled = scene.pull(&blob);
                let got = (pulled.head.status, pulled.digest.as_str(), pulled.end);
                assert_eq!(got, (200, blob.digest.as_str(), End::Complete), "{label}");
                // A client would decode what has the right digest, and then refuse it.
                let encoding = pulled.head.header("content-encoding");
                assert!(matches!(encoding, None | Some("identity")), "{encoding:?}");
            }
            scene.assert_is_a_hit(&blob);
            assert_eq!(scene.liar.gets(&blob.path).len(), 1, "{label}");
        }
    }
}

#[test]
fn bytes_that_are_encoded_on_the_way_are_decoded_or_refused() {
    let scene = Scene::new();
    let mut seed = 0;
    for framing in [Behaviour::Honest, Behaviour::Chunked, Behaviour::UntilClose] {
        for size in [1000, 3 * MIB, SIZE] {
            for is_layer in [true, false] {
                seed += 1;
                let blob = if is_layer {
                    scene.layer(seed, size)
                } else {
                    scene.blob(seed, size)
                };
                let encoded = Behaviour::Encoded("gzip", blob.content.gzip());
                scene.misbehave(&blob, Behaviour::All(vec![framing.clone(), encoded]));
                assert_is_never_wrong(&scene, &blob, &format!("{size} bytes, {framing:?}"));
                let span = size / 2..size / 2 + 100;
                let part = scene.part(&blob, &span);
                if part.status() == 206 && part.end == End::Complete {
                    // A part of the encoded bytes shows it only by its size.
                    let range = part.head.content_range().expect("a Content-Range");
                    assert!(
                        range.size != size || part.body == blob.bytes(&span),
                        "encoded bytes as a part of the blob"
                    );
                }
                // Nothing of it goes on after this.
                assert_is_never_wrong(&scene, &blob, "the end of what was begun");
                scene.behave(&blob);
                scene.assert_recovers(&blob);
            }
        }
    }
}

/// The manifest says one size, the upstream's length another, and the bytes a third.
#[test]
fn a_wrong_length_is_never_believed_against_the_digest() {
    for size in [1000, 3 * MIB, SIZE] {
        let options = "[upstream]\nretry_count = 1\nbody_timeout = \"2s\"";
        let scene = Scene::with(Setup::new().section(options));
        for (seed, stated) in (0..)
            .step_by(2)
            .zip([0, 1, size - 1, size + 1, 2 * size, 1 << 50])
        {
            for (number, is_layer) in (0..).zip([true, false]) {
                let blob = if is_layer {
                    scene.layer(seed + number, size)
                } else {
                    scene.blob(seed + number, size)
                };
                let what = format!("{stated} for {size}");
                scene.misbehave(&blob, Behaviour::StatedLength(stated));
                for _ in 0..2 {
                    let pulled = scene.pull(&blob);
                    let is_right = pulled.digest == blob.digest && pulled.end == End::Complete;
                    let is_refused = pulled.head.status >= 500;
                    assert!(
                        is_right || is_refused || pulled.end == End::Cut,
                        "{what}: {pulled:?}"
                    );
                }
                scene.behave(&blob);
                scene.assert_arrives(&blob, "when the upstream has come to its senses");
                scene.assert_is_a_hit(&blob);
            }
        }
    }
}

/// A manifest that is wrong about a blob's size: the digest decides, and nothing else is stored.
#[test]
fn a_manifest_with_a_wrong_size_spoils_nothing() {
    let scene = Scene::new();
    let mut seed = 0;
    for size in [1000, 3 * MIB, SIZE] {
        for stated in [0, 1, size - 1, size + 1, 3 * size] {
            seed += 1;
            let blob = scene.blob(seed, size);
            let manifest = json!({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST,
                "config": {"mediaType": OCI_CONFIG, "digest": blob.digest, "size": stated},
                "layers": [{"mediaType": OCI_LAYER, "digest": blob.digest, "size": stated}],
            });
            let bytes = manifest.to_string().into_bytes();
            let media_type = OCI_MANIFEST;
            let tag = format!("wrong-{seed}");
            let digest = scene.liar.manifest(REPOSITORY, &tag, media_type, &bytes);
            let response = scene.tidegate.get(&scene.grant.manifest(&digest));
            assert_eq!(response.status(), 200, "{}", response.text());
            for _ in 0..2 {
                assert_is_never_wrong(&scene, &blob, &format!("{stated} for {size}"));
            }
            // Kept or not, what is on disk is right.
            if let Some(path) = scene.tidegate.stored(&blob.digest) {
                assert_eq!(file_digest(&path), blob.digest);
            }
        }
    }
}

/// A blob of the liar that is asked for by sha512.
fn sha512_blob(scene: &Scene, seed: u64, size: u64) -> Blob {
    let content = Content::Generated { seed, size };
    let digest = content.sha512();
    scene.blob_as(content, &digest)
}

fn assert_arrives_by_sha512(scene: &Scene, blob: &Blob) {
    let pulled = scene.pull(blob);
    let got = (pulled.head.status, pulled.digest.as_str(), pulled.end);
    let sha256 = blob.content.digest();
    assert_eq!(got, (200, sha256.as_str(), End::Complete));
    let claimed = pulled.head.header("docker-content-digest");
    assert_eq!(claimed, Some(blob.digest.as_str()));
}

fn assert_is_a_hit_by_sha512(scene: &Scene, blob: &Blob) {
    scene.tidegate.wait_until_stored(&blob.digest);
    let before = scene.liar.requests().len();
    assert_arrives_by_sha512(scene, blob);
    blob.assert_is_part(&scene.part(blob, &(10..20)), &(10..20));
    assert_eq!(scene.liar.requests().len(), before);
}

#[test]
fn blobs_named_by_sha512_are_pulled_kept_and_found_after_a_restart() {
    let mut scene = Scene::new();
    let blobs: Vec<_> = (0..)
        .zip([1000, 3 * MIB, SIZE])
        .map(|(seed, size)| sha512_blob(&scene, seed, size))
        .collect();
    for blob in &blobs {
        assert_arrives_by_sha512(&scene, blob);
        assert_is_a_hit_by_sha512(&scene, blob);
    }
    let kept = scene.tidegate.metric("tidegate_cache_used_bytes");
    scene.tidegate.signal("TERM");
    scene.tidegate.wait();
    scene.tidegate.restart();
    wait_until("the account of what is on disk", || {
        scene.tidegate.metric("tidegate_cache_used_bytes") == kept
    });
    for blob in &blobs {
        // Who may read is asked again after a restart, what is there is not fetched again.
        assert_arrives_by_sha512(&scene, blob);
        assert_eq!(scene.liar.gets(&blob.path).len(), 1);
    }
}

#[test]
fn parts_of_blobs_named_by_sha512_are_fetched_and_verified() {
    // What is half there is not finished for nobody.
    let options = "[cache]\nfinish_fill_above = \"100%\"";
    let scene = Scene::with(Setup::new().section(options));
    let blob = sha512_blob(&scene, 1, SIZE);
    let halves = [SIZE / 2..SIZE, 0..SIZE / 2];
    for half in &halves {
        assert_eq!(scene.tidegate.stored(&blob.digest), None);
        scene.assert_part_arrives(&blob, half);
    }
    assert_is_a_hit_by_sha512(&scene, &blob);

    let wrong = sha512_blob(&scene, 2, SIZE);
    scene.misbehave(&wrong, Behaviour::WrongByteAt(5));
    scene.assert_part_arrives(&wrong, &halves[0]);
    let last = scene.part(&wrong, &halves[1]);
    assert!(
        last.status() >= 500 || last.end == End::Cut,
        "a wrong blob arrived whole"
    );
    assert_eq!(scene.tidegate.stored(&wrong.digest), None);
}

#[test]
fn wrong_blobs_named_by_sha512_never_arrive_whole() {
    let scene = Scene::new();
    for (seed, size) in (0..).zip([1000, 70_000, 3 * MIB, SIZE]) {
        let blob = sha512_blob(&scene, seed, size);
        scene.misbehave(&blob, Behaviour::WrongBytes);
        let pulled = scene.pull(&blob);
        assert!(
            pulled.head.status == 502 || pulled.end == End::Cut,
            "{size}: {pulled:?}"
        );
        assert_eq!(scene.tidegate.stored(&blob.digest), None);
        scene.behave(&blob);
        assert_arrives_by_sha512(&scene, &blob);
        assert_is_a_hit_by_sha512(&scene, &blob);
    }
}
