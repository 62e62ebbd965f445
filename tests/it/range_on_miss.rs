//! Parts of a blob that is not cached: fetched as parts, kept, never fetched twice, and verified when they are all there.

use std::{ops::Range, sync::Barrier, thread};

use crate::support::{
    http::{End, Response},
    liar::{Behaviour, Gate, covered, sent_again},
    programs::wait_until,
    scene::{Blob, Scene},
    tidegate::Setup,
};

const MIB: u64 = 1 << 20;
/// Up to this size a blob is fetched whole, whatever part of it is asked for.
const SMALL: u64 = 8 * MIB;
const SIZE: u64 = 32 * MIB;
/// Large enough to be fetched in parts.
const MEDIUM: u64 = 12 * MIB;
/// What was fetched in parts is not finished for nobody: only clients complete a blob.
const NEVER_FINISHED: &str = "[cache]\nfinish_fill_above = \"100%\"";
/// How far around a part may be fetched: it is kept in pieces of about 1 MiB.
const AROUND: u64 = 2 * MIB;
/// What no client gets before a blob's digest has matched.
const HELD_BACK: u64 = 64 << 10;

/// Only the bytes of `span` and a little around them ever leave the upstream.
fn hold_all_but(scene: &Scene, blob: &Blob, span: &Range<u64>) -> Gate {
    let gate = Gate::default();
    let free = around(span);
    scene.misbehave(blob, Behaviour::GatedOutside(free, gate.clone()));
    gate
}

fn around(span: &Range<u64>) -> Range<u64> {
    span.start.saturating_sub(AROUND)..span.end + AROUND
}

/// First and last byte of a request's range; a range without an end goes to the blob's.
fn span_of(range: &str, size: u64) -> Range<u64> {
    let text = range.strip_prefix("bytes=").expect("a range of bytes");
    let (first, last) = text.split_once('-').expect("one range");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    match (first, last) {
        ("", count) => size - number(count)..size,
        (first, "") => number(first)..size,
        (first, last) => number(first)..number(last) + 1,
    }
}

#[test]
fn a_part_of_a_large_blob_comes_at_once_and_without_the_rest() {
    let scene = Scene::new();
    // With the size known from a manifest, and not.
    for (seed, is_layer) in [(100, true), (200, false)] {
        for (number, (range, span)) in (0..).zip([
            ("bytes=0-999", 0..1000),
            ("bytes=10486000-10490999", 10_486_000..10_491_000),
            ("bytes=8388608-12582911", 8 * MIB..12 * MIB),
            // Lazy pullers read the table of contents first, which is at the end.
            ("bytes=-4096", SIZE - 4096..SIZE),
            ("bytes=33554431-", SIZE - 1..SIZE),
            ("bytes=33000000-99999999", 33_000_000..SIZE),
        ]) {
            let blob = if is_layer {
                scene.layer(seed + number, SIZE)
            } else {
                scene.blob(seed + number, SIZE)
            };
            let gate = hold_all_but(&scene, &blob, &span);
            blob.assert_is_part(&scene.range(&blob, range), &span);
            let asked = scene.liar.asked_ranges(&blob.path);
            assert!(!asked.is_empty(), "{range}");
            for asked in asked {
                let asked = span_of(&asked, SIZE);
                let allowed = around(&span);
                assert!(
                    asked.start >= allowed.start && asked.end <= allowed.end,
                    "{asked:?} was fetched for {range}"
                );
            }
            assert_eq!(scene.tidegate.stored(&blob.digest), None, "{range}");
            gate.open();
        }
    }
}

#[test]
fn a_part_of_a_small_blob_brings_the_whole() {
    let scene = Scene::new();
    for (seed, size) in [(1, MIB), (2, SMALL)] {
        let blob = scene.blob(seed, size);
        scene.assert_part_arrives(&blob, &(size / 2..size / 2 + 1000));
        scene.assert_is_a_hit(&blob);
        assert_eq!(scene.liar.asked_ranges(&blob.path), [""], "{size} bytes");
    }
}

#[test]
fn a_part_that_was_fetched_is_not_fetched_again() {
    let scene = Scene::new();
    for (seed, span) in [
        (1, 10 * MIB..12 * MIB),
        (2, 10 * MIB + 123..10 * MIB + 5123),
        (3, SIZE - 70_000..SIZE),
        (4, 0..1),
    ] {
        let blob = scene.layer(seed, SIZE);
        scene.assert_part_arrives(&blob, &span);
        let before = scene.liar.requests().len();
        let middle = span.start + (span.end - span.start) / 2;
        for again in [span.clone(), span.start..middle + 1, middle..span.end] {
            scene.assert_part_arrives(&blob, &again);
        }
        let asked = scene.liar.requests().split_off(before);
        assert!(asked.is_empty(), "{span:?}: {asked:#?}");
    }
}

#[test]
fn a_part_that_is_kept_in_part_is_completed_and_not_fetched_anew() {
    let scene = Scene::with(Setup::new().section(NEVER_FINISHED));
    let blob = scene.layer(1, SIZE);
    for span in [4 * MIB..8 * MIB, 12 * MIB..16 * MIB, 2 * MIB..18 * MIB] {
        scene.assert_part_arrives(&blob, &span);
    }
    let sent = scene.liar.sent(&blob.path);
    let runs = sent.len() as u64;
    assert!(sent_again(&sent) <= (runs - 1) * MIB, "{sent:?}");
    assert!(covered(&sent) < 18 * MIB + AROUND, "{sent:?}");
}

#[test]
fn overlapping_wishes_of_many_clients_are_fetched_once() {
    let scene = Scene::new();
    let blob = scene.layer(1, SIZE);
    let wishes: Vec<Range<u64>> = (0..16)
        .map(|number| number * 2 * MIB..(number * 2 * MIB + 4 * MIB).min(SIZE))
        .collect();
    let together = Barrier::new(wishes.len());
    thread::scope(|scope| {
        for wish in &wishes {
            let (scene, blob, together) = (&scene, &blob, &together);
            scope.spawn(move || {
                together.wait();
                scene.assert_part_arrives(blob, wish);
            });
        }
    });
    let sent = scene.liar.sent(&blob.path);
    let runs = sent.len() as u64;
    assert!(
        sent_again(&sent) <= runs.saturating_sub(1) * MIB,
        "{sent:?}"
    );
    assert_eq!(covered(&sent), SIZE, "{sent:?}");
    scene.assert_is_a_hit(&blob);
}

#[test]
fn one_part_wanted_by_many_clients_is_fetched_once() {
    let scene = Scene::new();
    let blob = scene.layer(1, SIZE);
    let wish = 11 * MIB..15 * MIB;
    let together = Barrier::new(16);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                together.wait();
                scene.assert_part_arrives(&blob, &wish);
            });
        }
    });
    let sent = scene.liar.sent(&blob.path);
    assert!(covered(&sent) <= 4 * MIB + 2 * AROUND, "{sent:?}");
    assert!(
        sent_again(&sent) <= (sent.len() as u64 - 1) * MIB,
        "{sent:?}"
    );
}

/// In an order that is not the blob's.
fn quarters() -> [Range<u64>; 4] {
    [2, 0, 3, 1].map(|number| number * SIZE / 4..(number + 1) * SIZE / 4)
}

#[test]
fn parts_that_complete_a_blob_are_verified_and_committed() {
    let scene = Scene::with(Setup::new().section(NEVER_FINISHED));
    for (seed, is_layer) in [(1, true), (2, false)] {
        let blob = if is_layer {
            scene.layer(seed, SIZE)
        } else {
            scene.blob(seed, SIZE)
        };
        for quarter in quarters() {
            assert_eq!(scene.tidegate.stored(&blob.digest), None);
            scene.assert_part_arrives(&blob, &quarter);
        }
        scene.assert_is_a_hit(&blob);
        let sent = scene.liar.sent(&blob.path);
        assert_eq!(covered(&sent), SIZE);
        assert!(sent_again(&sent) <= 3 * MIB, "{sent:?}");
    }
    wait_until("an end of the fills", || {
        scene.tidegate.fill_files().is_empty()
    });
}

#[test]
fn a_whole_pull_takes_the_parts_that_are_there() {
    let scene = Scene::new();
    let blob = scene.layer(1, SIZE);
    for span in [6 * MIB..14 * MIB, 24 * MIB..SIZE] {
        scene.assert_part_arrives(&blob, &span);
    }
    scene.assert_arrives(&blob, "the whole after two parts");
    scene.assert_is_a_hit(&blob);
    let sent = scene.liar.sent(&blob.path);
    let runs = sent.len() as u64;
    assert!(sent_again(&sent) <= (runs - 1) * MIB, "{sent:?}");
}

/// How much of an answer arrived, and whether as all of it.
fn arrived(response: &Response) -> (u64, bool) {
    let is_whole = response.status() == 206 && response.end == End::Complete;
    (response.body.len() as u64, is_whole)
}

#[test]
fn a_wrong_part_never_becomes_part_of_a_whole() {
    let scene = Scene::with(Setup::new().section(NEVER_FINISHED));
    let quarter = SIZE / 4;
    // In the part that arrives first, in one between, in the last; at the blob's first and last byte.
    for (seed, wrong) in (0..).zip([20 * MIB + 7, 1, 0, SIZE - 1, 9 * MIB, 16 * MIB - 1]) {
        let blob = scene.layer(seed, SIZE);
        scene.misbehave(&blob, Behaviour::WrongByteAt(wrong));
        let got = quarters().map(|span| arrived(&scene.part(&blob, &span)));
        assert!(
            got[..3].iter().all(|part| *part == (quarter, true)),
            "nothing can be known before the last: {got:?}"
        );
        let (bytes, is_whole) = got[3];
        assert!(!is_whole, "a wrong blob arrived whole: byte {wrong}");
        assert!(bytes <= quarter - HELD_BACK, "{bytes} of {quarter} bytes");
        assert_eq!(scene.tidegate.stored(&blob.digest), None);
        wait_until("an end of what is wrong", || {
            scene.tidegate.fill_files().is_empty()
        });
        scene.behave(&blob);
        scene.assert_arrives(&blob, "when the upstream has come to its senses");
        scene.assert_is_a_hit(&blob);
    }
    assert!(scene.tidegate.metric("tidegate_blob_mismatches_total") >= 6);
}

#[test]
fn a_wrong_part_never_becomes_part_of_a_whole_among_many_clients() {
    let scene = Scene::new();
    let blob = scene.layer(1, SIZE);
    scene.misbehave(&blob, Behaviour::WrongByteAt(20 * MIB));
    let together = Barrier::new(9);
    let whole = 0..SIZE;
    let wishes: Vec<Range<u64>> = (0..8)
        .map(|number| number * SIZE / 8..(number + 1) * SIZE / 8)
        .collect();
    thread::scope(|scope| {
        let clients: Vec<_> = wishes
            .iter()
            .chain([&whole])
            .map(|wish| {
                let (scene, blob, together) = (&scene, &blob, &together);
                scope.spawn(move || {
                    together.wait();
                    arrived(&scene.part(blob, wish))
                })
            })
            .collect();
        let got: Vec<_> = clients
            .into_iter()
            .map(|client| client.join().expect("a client that did not panic"))
            .collect();
        assert!(!got[8].1, "a wrong blob arrived whole");
    });
    assert_eq!(scene.tidegate.stored(&blob.digest), None);
    scene.behave(&blob);
    scene.assert_recovers(&blob);
}

/// What a client does that reads here and there, and then all of it.
fn read_about(scene: &Scene, blob: &Blob, mut judge: impl FnMut(&Response, &Range<u64>)) {
    let size = blob.size();
    for span in [
        size / 8 * 5..size / 8 * 5 + 1000,
        size / 8..size / 4,
        size - 4096..size,
        size / 8 * 7..size,
        0..MIB,
        0..size,
    ] {
        judge(&scene.part(blob, &span), &span);
    }
}

#[test]
fn an_upstream_that_ignores_ranges_is_asked_for_the_whole() {
    let scene = Scene::new();
    let honest = |count| vec![Behaviour::Honest; count];
    for (seed, (first, then)) in (0..).zip([
        (vec![], Behaviour::IgnoreRange),
        // It changes its mind: another of its servers answers.
        (honest(1), Behaviour::IgnoreRange),
        (honest(2), Behaviour::IgnoreRange),
        (vec![Behaviour::IgnoreRange], Behaviour::Honest),
        (
            vec![],
            Behaviour::All(vec![Behaviour::IgnoreRange, Behaviour::Chunked]),
        ),
        (
            honest(1),
            Behaviour::All(vec![Behaviour::IgnoreRange, Behaviour::UntilClose]),
        ),
    ]) {
        let blob = scene.layer(seed, SIZE);
        scene.liar.misbehave_in_the_end(&blob.path, &first, then);
        read_about(&scene, &blob, |response, span| {
            blob.assert_is_part(response, span)
        });
        scene.assert_is_a_hit(&blob);
    }
}

#[test]
fn an_upstream_that_ignores_ranges_of_an_unnamed_blob_spoils_nothing() {
    let scene = Scene::new();
    for (seed, framing) in (0..).zip([Behaviour::Honest, Behaviour::Chunked, Behaviour::UntilClose])
    {
        let blob = scene.blob(seed, SIZE);
        scene.misbehave(&blob, Behaviour::All(vec![Behaviour::IgnoreRange, framing]));
        read_about(&scene, &blob, |response, span| {
            blob.assert_is_not_wrong(response, span);
        });
        scene.assert_arrives(&blob, "the whole");
    }
}

/// Whatever they say of their parts, nobody is told that he has what he has not.
#[test]
fn upstreams_with_other_parts_than_asked_for_spoil_nothing() {
    let options = "[upstream]\nretry_count = 1\nbody_timeout = \"2s\"";
    let scene = Scene::with(Setup::new().section(options));
    for (seed, behaviour) in (0..).step_by(10).zip([
        Behaviour::PartFromEarlier(1),
        Behaviour::PartFromEarlier(3 * MIB),
        Behaviour::ShorterPart(1),
        Behaviour::ShorterPart(500),
        Behaviour::ShorterPart(3 * MIB),
        Behaviour::PartOfOther(MEDIUM + 1),
        Behaviour::PartOfOther(MEDIUM / 2),
        Behaviour::PartOfUnknown,
        Behaviour::UnnamedPart,
        Behaviour::UnaskedPart(5 * MIB..MEDIUM),
        Behaviour::UnaskedPart(0..5 * MIB),
        Behaviour::All(vec![Behaviour::ShorterPart(MIB), Behaviour::Chunked]),
        Behaviour::All(vec![Behaviour::CutAfter(10_000), Behaviour::UntilClose]),
        Behaviour::CutAfter(700),
        Behaviour::StatedLength(10),
        Behaviour::Labelled("gzip"),
        Behaviour::unsatisfiable(MEDIUM / 2),
        Behaviour::unsatisfiable(0),
    ]) {
        for (number, honest) in (0..).zip([0, 1]) {
            eprintln!("{behaviour:?}, honest {honest} times");
            let blob = scene.layer(seed + number, MEDIUM);
            let first = vec![Behaviour::Honest; honest];
            scene
                .liar
                .misbehave_in_the_end(&blob.path, &first, behaviour.clone());
            read_about(&scene, &blob, |response, span| {
                blob.assert_is_not_wrong(response, span);
            });
            scene.behave(&blob);
            read_about(&scene, &blob, |response, span| {
                blob.assert_is_part(response, span)
            });
            scene.assert_arrives(&blob, "when the upstream has come to its senses");
            scene.assert_is_a_hit(&blob);
        }
    }
}

#[test]
fn a_part_beyond_the_end_is_told_so() {
    let scene = Scene::new();
    for (seed, is_layer) in [(1, true), (2, false)] {
        let blob = if is_layer {
            scene.layer(seed, SIZE)
        } else {
            scene.blob(seed, SIZE)
        };
        for range in ["bytes=33554432-", "bytes=99999999-999999999", "bytes=-0"] {
            let response = scene.range(&blob, range);
            assert_eq!(response.status(), 416, "{range}: {}", response.excerpt());
            let content_range = format!("bytes */{SIZE}");
            assert_eq!(
                response.header("content-range"),
                Some(content_range.as_str()),
                "{range}"
            );
        }
        scene.assert_arrives(&blob, "after impossible wishes");
    }
}

#[test]
fn an_unknown_blob_is_unknown_in_part_as_well() {
    let scene = Scene::new();
    let digest = format!("sha256:{}", "1".repeat(64));
    let path = scene.grant.blob(&digest);
    for range in ["bytes=0-9", "bytes=9999999-", "bytes=-9", "bytes=0-9,20-29"] {
        let response = scene.tidegate.request("GET", &path, &[("Range", range)]);
        assert_eq!(response.status(), 404, "{range}: {}", response.excerpt());
        assert_eq!(response.error_code(), "BLOB_UNKNOWN", "{range}");
    }
}

#[test]
fn what_a_running_fill_has_written_is_served_at_once() {
    let scene = Scene::new();
    let blob = scene.layer(1, SIZE);
    let gate = scene.gate(&blob, SIZE / 2);
    let mut first = scene.tidegate.connect();
    first.request("GET", &scene.grant.blob(&blob.digest), &[], b"");
    let head = first.head().expect("an answer");
    let mut body = first.body("GET", &head);
    let read = SIZE / 2 - MIB;
    body.read_exactly(read as usize);
    for span in [
        4 * MIB..6 * MIB,
        0..1,
        10 * MIB + 5..10 * MIB + 6,
        14 * MIB..read,
    ] {
        scene.assert_part_arrives(&blob, &span);
    }
    assert_eq!(scene.liar.asked_ranges(&blob.path), [""]);
    gate.open();
    body.read_exactly((SIZE - read) as usize);
    scene.assert_is_a_hit(&blob);
}

#[test]
fn a_part_far_ahead_of_a_fill_does_not_wait_for_it() {
    let scene = Scene::new();
    for (seed, is_layer) in [(1, true), (2, false)] {
        let blob = if is_layer {
            scene.layer(seed, 2 * SIZE)
        } else {
            scene.blob(seed, 2 * SIZE)
        };
        let before = scene.tidegate.fetched();
        let gate = scene.gate(&blob, MIB);
        thread::scope(|scope| {
            let first = scope.spawn(|| scene.assert_arrives(&blob, "the fill's own client"));
            scene
                .liar
                .wait_for("the download", |request| request.path() == blob.path);
            for span in [40 * MIB..41 * MIB, 2 * SIZE - 4096..2 * SIZE] {
                scene.assert_part_arrives(&blob, &span);
            }
            let asked = scene.liar.asked_ranges(&blob.path);
            assert_eq!(asked[0], "");
            let starts: Vec<u64> = asked[1..]
                .iter()
                .map(|range| span_of(range, 2 * SIZE).start)
                .collect();
            for wanted in [40 * MIB, 2 * SIZE - 4096] {
                let near = wanted - AROUND..wanted + 1;
                let has_own = starts.iter().any(|start| near.contains(start));
                assert!(has_own, "no fetch of its own for {wanted}: {asked:?}");
            }
            gate.open();
            first.join().expect("a client that did not panic");
        });
        scene.assert_is_a_hit(&blob);
        let fetched = scene.tidegate.fetched() - before;
        assert!(fetched <= 2 * SIZE + 2 * AROUND + 2 * MIB, "{fetched}");
    }
}

/// containerd asks for the rest of the blob from the start of each chunk, reads the chunk, and closes.
fn read_chunk(scene: &Scene, blob: &Blob, start: u64, length: u64) {
    let range = format!("bytes={start}-");
    let mut connection = scene.tidegate.connect();
    connection.request(
        "GET",
        &scene.grant.blob(&blob.digest),
        &[("Range", &range)],
        b"",
    );
    let head = connection.head().expect("an answer");
    assert_eq!(head.status, 206, "{range}");
    let said = head.content_range().expect("a Content-Range");
    assert_eq!((said.bytes, said.size), (start..blob.size(), blob.size()));
    let end = (start + length).min(blob.size());
    let got = connection
        .body("GET", &head)
        .read_exactly((end - start) as usize);
    assert!(got == blob.bytes(&(start..end)), "{range} has other bytes");
}

#[test]
fn parallel_chunks_as_containerd_fetches_them_are_right_and_cheap() {
    let scene = Scene::new();
    let size = 64 * MIB;
    for (seed, chunk, parallel) in [(1, 8 * MIB, 4), (2, 3 * MIB, 3), (3, 5_000_000, 8)] {
        let blob = scene.layer(seed, size);
        let before = scene.tidegate.fetched();
        read_chunk(&scene, &blob, 0, chunk);
        let starts: Vec<u64> = (1..)
            .map(|number| number * chunk)
            .take_while(|start| *start < size)
            .collect();
        for group in starts.chunks(parallel) {
            thread::scope(|scope| {
                for start in group {
                    let (scene, blob) = (&scene, &blob);
                    scope.spawn(move || read_chunk(scene, blob, *start, chunk));
                }
            });
        }
        scene.assert_arrives(&blob, "the whole");
        scene.assert_is_a_hit(&blob);
        let fetched = scene.tidegate.fetched() - before;
        assert!(fetched >= size, "{fetched}");
        assert!(
            fetched <= size + size / 2,
            "{fetched} bytes were fetched for a blob of {size} in chunks of {chunk}"
        );
    }
}

#[test]
fn parts_that_nobody_completes_keep_to_the_cap() {
    let scene = Scene::with(Setup::new().section("[cache]\nmax_size = \"64MiB\""));
    for seed in 0..8 {
        let blob = scene.layer(seed, 24 * MIB);
        for span in [0..4 * MIB, 12 * MIB..16 * MIB] {
            scene.assert_part_arrives(&blob, &span);
        }
        let used: u64 = scene
            .tidegate
            .fill_files()
            .iter()
            .map(|(_, metadata)| std::os::unix::fs::MetadataExt::blocks(metadata) * 512)
            .sum();
        assert!(used <= 64 * MIB, "{used} bytes in parts");
        let counted = scene.tidegate.metric("tidegate_cache_used_bytes");
        assert!(counted <= 64 * MIB, "{counted} bytes");
    }
    let blob = scene.layer(100, 24 * MIB);
    scene.assert_arrives(&blob, "abandoned parts make room");
    scene.assert_is_a_hit(&blob);
}
