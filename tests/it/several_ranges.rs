//! Several ranges in one request, as podman asks for the missing chunks of a layer: parts that are exactly what was asked
//! for, or the whole, but never one part that stands for all.

use std::{ops::Range, thread};

use crate::support::{
    http::{End, Response},
    liar::Behaviour,
    scene::{Blob, Scene},
};

const MIB: u64 = 1 << 20;
const SIZES: [u64; 3] = [2048, 3 * MIB, 20 * MIB];
/// More than this in one request is answered with the whole.
const MOST_RANGES: u64 = 16;

fn header(spans: &[Range<u64>]) -> String {
    let spans: Vec<String> = spans
        .iter()
        .map(|span| format!("{}-{}", span.start, span.end - 1))
        .collect();
    format!("bytes={}", spans.join(","))
}

fn assert_has_parts(response: &Response, blob: &Blob, spans: &[Range<u64>]) {
    assert_eq!(response.status(), 206, "{spans:?}: {}", response.excerpt());
    assert_eq!(response.end, End::Complete, "{spans:?}");
    assert_eq!(response.header("content-range"), None, "{spans:?}");
    let parts = response.parts();
    let ranges: Vec<_> = parts.iter().map(|part| part.range.bytes.clone()).collect();
    assert_eq!(ranges, spans, "in the order that was asked for");
    for part in parts {
        assert_eq!(part.range.size, blob.size());
        let span = &part.range.bytes;
        assert!(part.bytes == blob.bytes(span), "{span:?} has other bytes");
    }
}

fn assert_is_whole(response: &Response, blob: &Blob, range: &str) {
    assert_eq!(response.status(), 200, "{range}: {}", response.excerpt());
    assert_eq!(response.end, End::Complete, "{range}");
    assert_eq!(response.header("content-range"), None, "{range}");
    assert_eq!(response.digest(), blob.digest, "{range}");
}

/// All within `size`, none next to another.
fn wishes(size: u64) -> Vec<Vec<Range<u64>>> {
    let sixteen = (0..MOST_RANGES)
        .map(|number| size / 16 * number..size / 16 * number + 7)
        .collect();
    vec![
        vec![0..100, 200..300],
        vec![size - 10..size, 0..1, size / 2..size / 2 + 100],
        vec![0..size / 2, size / 2 + 100..size],
        sixteen,
    ]
}

#[test]
fn several_ranges_of_a_cached_blob_come_in_parts() {
    let scene = Scene::new();
    for (seed, size) in (0..).zip(SIZES) {
        let blob = scene.layer(seed, size);
        scene.assert_arrives(&blob, "the first pull");
        scene.tidegate.wait_until_stored(&blob.digest);
        for wish in wishes(size) {
            assert_has_parts(&scene.range(&blob, &header(&wish)), &blob, &wish);
        }
        assert_eq!(scene.liar.gets(&blob.path).len(), 1);
    }
}

#[test]
fn several_ranges_of_a_blob_that_is_not_cached_come_in_parts() {
    let scene = Scene::new();
    for (number, size) in (0..).zip(SIZES) {
        for (wished, wish) in (0..).zip(wishes(size)) {
            let blob = scene.layer(number * 10 + wished, size);
            let response = scene.range(&blob, &header(&wish));
            assert_has_parts(&response, &blob, &wish);
            scene.assert_arrives(&blob, "a part was kept as the whole");
        }
    }
}

#[test]
fn several_ranges_of_a_growing_blob_come_in_parts() {
    let scene = Scene::new();
    for (seed, size) in (0..).zip(SIZES) {
        let blob = scene.layer(seed, size);
        let gate = scene.gate(&blob, size / 2);
        thread::scope(|scope| {
            let first = scope.spawn(|| scene.assert_arrives(&blob, "the fill's own client"));
            scene
                .liar
                .wait_for("the download", |request| request.path() == blob.path);
            let (scene, blob) = (&scene, &blob);
            let clients: Vec<_> = wishes(size)
                .into_iter()
                .map(|wish| {
                    scope.spawn(move || {
                        let response = scene.range(blob, &header(&wish));
                        assert_has_parts(&response, blob, &wish);
                    })
                })
                .collect();
            gate.open();
            for client in clients {
                client.join().expect("a client that did not panic");
            }
            first.join().expect("a client that did not panic");
        });
    }
}

/// What would cost more than the whole, or is asked for only to cost much (RFC 9110 §17.15).
#[test]
fn too_many_or_overlapping_ranges_are_answered_with_the_whole() {
    let scene = Scene::new();
    let size = 100_000;
    let many: Vec<_> = (0..MOST_RANGES + 1)
        .map(|number| number * 100..number * 100 + 10)
        .collect();
    let hundreds: Vec<_> = (0..400)
        .map(|number| number * 100..number * 100 + 1)
        .collect();
    let mut seed = 0;
    for range in [
        header(&many),
        header(&hundreds),
        "bytes=0-99,50-149".to_owned(),
        "bytes=0-,0-,0-,0-".to_owned(),
        "bytes=500-599,0-999".to_owned(),
        "bytes=0-9,-100000".to_owned(),
    ] {
        for is_cached in [false, true] {
            seed += 1;
            let blob = scene.layer(seed, size);
            if is_cached {
                scene.assert_arrives(&blob, "the first pull");
            }
            assert_is_whole(&scene.range(&blob, &range), &blob, &range);
        }
    }
}

/// RFC 9110 §14.2: what lies outside is left out; what is left may be one range.
#[test]
fn ranges_outside_the_blob_are_left_out() {
    let scene = Scene::new();
    let size = 100_000;
    let blob = scene.layer(1, size);
    for _ in 0..2 {
        let response = scene.range(&blob, "bytes=0-99,200-299,100000-");
        assert_has_parts(&response, &blob, &[0..100, 200..300]);
        let response = scene.range(&blob, "bytes=500-599,100000-100001");
        match response.header("content-range") {
            Some(_) => blob.assert_is_part(&response, &(500..600)),
            None => assert_has_parts(&response, &blob, std::slice::from_ref(&(500..600))),
        }
        let response = scene.range(&blob, "bytes=0-9, 99990-200000, -5");
        if response.status() == 200 {
            assert_is_whole(&response, &blob, "the last two overlap");
        } else {
            assert_has_parts(&response, &blob, &[0..10, 99_990..size, size - 5..size]);
        }
        let response = scene.range(&blob, "bytes=100000-,200000-300000");
        assert_eq!(response.status(), 416, "{}", response.excerpt());
        assert_eq!(response.header("content-range"), Some("bytes */100000"));
        for range in ["bytes=0-9,x", "bytes=0-9,9-0", "bytes=,"] {
            let response = scene.range(&blob, range);
            if response.status() != 416 {
                assert_is_whole(&response, &blob, range);
            }
        }
        scene.assert_arrives(&blob, "the whole");
    }
}

#[test]
fn several_ranges_from_an_upstream_that_ignores_or_garbles_them_are_never_wrong() {
    let scene = Scene::new();
    let size = 20 * MIB;
    for (seed, behaviour) in (0..).zip([
        Behaviour::IgnoreRange,
        Behaviour::All(vec![Behaviour::IgnoreRange, Behaviour::Chunked]),
        Behaviour::ShorterPart(50),
        Behaviour::PartFromEarlier(10),
        Behaviour::PartOfOther(size - 1),
        Behaviour::CutAfter(70),
    ]) {
        let blob = scene.layer(seed, size);
        let wish = [MIB..MIB + 100, 12 * MIB..12 * MIB + 100, size - 100..size];
        scene.misbehave(&blob, behaviour.clone());
        let response = scene.range(&blob, &header(&wish));
        let is_parts = response.status() == 206 && response.end == End::Complete;
        if is_parts || matches!(behaviour, Behaviour::IgnoreRange | Behaviour::All(_)) {
            assert_has_parts(&response, &blob, &wish);
        } else if response.status() == 200 {
            blob.assert_is_not_wrong(&response, &(0..size));
        } else {
            assert!(
                response.status() == 206 || response.status() >= 500,
                "{behaviour:?}: {}",
                response.status()
            );
        }
        scene.behave(&blob);
        assert_has_parts(&scene.range(&blob, &header(&wish)), &blob, &wish);
        scene.assert_arrives(&blob, "when the upstream has come to its senses");
    }
}

#[test]
fn the_upstream_is_never_asked_for_several_ranges() {
    let scene = Scene::new();
    let blob = scene.layer(1, 20 * MIB);
    scene.range(&blob, "bytes=0-99,200-299,15000000-15000099");
    for asked in scene.liar.asked_ranges(&blob.path) {
        assert!(!asked.contains(','), "{asked}");
    }
}

/// Small parts of a large blob do not bring all of it.
#[test]
fn several_parts_of_a_large_blob_are_fetched_without_the_rest() {
    let scene = Scene::new();
    let blob = scene.layer(1, 64 * MIB);
    let wish = [MIB..MIB + 100, 30 * MIB..31 * MIB, 64 * MIB - 100..64 * MIB];
    assert_has_parts(&scene.range(&blob, &header(&wish)), &blob, &wish);
    let fetched = scene.tidegate.fetched();
    assert!(fetched <= 16 * MIB, "{fetched} bytes for three small parts");
    let before = scene.liar.requests().len();
    assert_has_parts(&scene.range(&blob, &header(&wish)), &blob, &wish);
    assert_eq!(
        scene.liar.requests().len(),
        before,
        "the parts were not kept"
    );
}
