//! Fills that are interrupted: by the upstream, by clients who all leave, by a stop or a kill of tidegate. What was
//! received is not fetched again, and what comes of it is right.

use std::{fs, thread};

use serde_json::Value;

use crate::support::{
    damage,
    http::{Connection, End},
    liar::{Behaviour, Gate, sent_again},
    programs::wait_until,
    scene::{Blob, Scene},
    tidegate::Setup,
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// Of what was received, what may be lost by an end in good order and by a kill after the last note.
const LOST_BY_A_STOP: u64 = 8 * MIB;
const LOST_BY_A_KILL: u64 = 5 * MIB;

/// The upstream's patience is longer than the test's: a download that ends has been ended by us.
fn patient() -> Setup {
    Setup::new().section("[upstream]\nbody_timeout = \"10min\"")
}

/// A client that has read so much of a blob and goes no further, as long as it is kept.
fn read_some(scene: &Scene, blob: &Blob, count: u64) -> Connection {
    let mut connection = scene.tidegate.connect();
    connection.request("GET", &scene.grant.blob(&blob.digest), &[], b"");
    let head = connection.head().expect("an answer");
    assert_eq!(head.status, 200);
    let got = connection.body("GET", &head).read_exactly(count as usize);
    assert!(got == blob.bytes(&(0..count)), "other bytes");
    connection
}

/// All clients leave a download that goes on slowly from there, which is then ended. Says how much had been sent.
fn abandon(scene: &Scene, blob: &Blob, received: u64, then: Option<Behaviour>) -> u64 {
    let slow = [Behaviour::Trickling(received, Gate::default())];
    match then {
        Some(then) => scene.liar.misbehave_in_the_end(&blob.path, &slow, then),
        None => scene.liar.misbehave_in_turn(&blob.path, &slow),
    }
    drop(read_some(scene, blob, received - MIB));
    scene.liar.wait_for_leavers(&blob.path, 1);
    assert_eq!(scene.tidegate.stored(&blob.digest), None);
    let sent = scene.liar.sent(&blob.path);
    sent.first().expect("the first answer").end
}

/// The next download asks for the rest only.
fn assert_resumes(scene: &Scene, blob: &Blob, received: u64, may_be_lost: u64) {
    let before = scene.liar.gets(&blob.path).len();
    scene.assert_arrives(blob, "the resumed download");
    let asked = scene.liar.asked_ranges(&blob.path).split_off(before);
    let first = asked.first().expect("a request for the rest");
    let start: u64 = first
        .strip_prefix("bytes=")
        .and_then(|range| range.split('-').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{received} bytes were there, and {asked:?} was asked for"));
    assert!(start > 0 && start <= received, "{start} of {received}");
    assert!(
        start >= received.saturating_sub(may_be_lost),
        "{start} of {received}"
    );
    scene.assert_is_a_hit(blob);
}

/// How much of a running fill the next process would find.
fn noted(scene: &Scene) -> u64 {
    let files = scene.tidegate.fill_files().into_iter();
    files
        .filter(|(path, _)| path.extension().is_some_and(|kind| kind == "extents"))
        .filter_map(|(path, _)| serde_json::from_slice::<Value>(&fs::read(path).ok()?).ok())
        .filter_map(|note| note["extents"].as_array()?.last()?[1].as_u64())
        .sum()
}

/// Until tidegate has noticed.
fn leave(scene: &Scene, client: Connection) {
    let cut = scene.tidegate.metric("tidegate_responses_cut_total");
    drop(client);
    wait_until("the end of a cut answer", || {
        scene.tidegate.metric("tidegate_responses_cut_total") > cut
    });
}

#[test]
fn a_fill_that_everybody_left_early_is_stopped_and_resumed_by_the_next_pull() {
    let scene = Scene::with(patient());
    for (seed, is_layer) in [(1, true), (2, false)] {
        let blob = if is_layer {
            scene.layer(seed, SIZE)
        } else {
            scene.blob(seed, SIZE)
        };
        let received = abandon(&scene, &blob, 10 * MIB, None);
        assert!(!scene.tidegate.fill_files().is_empty(), "nothing was kept");
        assert_resumes(&scene, &blob, received, LOST_BY_A_STOP);
        wait_until("an end of the fills", || {
            scene.tidegate.fill_files().is_empty()
        });
    }
}

#[test]
fn as_long_as_one_client_stays_a_fill_goes_on() {
    let scene = Scene::with(patient());
    let blob = scene.layer(1, SIZE);
    let gate = scene.trickle(&blob, 4 * MIB);
    let leaver = read_some(&scene, &blob, MIB);
    let followers = || scene.tidegate.metric("tidegate_blob_follows_total");
    let before = followers();
    thread::scope(|scope| {
        let stayer = scope.spawn(|| scene.assert_arrives(&blob, "the client that stays"));
        wait_until("the second client", || followers() > before);
        leave(&scene, leaver);
        gate.open();
        stayer.join().expect("a client that did not panic");
    });
    scene.assert_is_a_hit(&blob);
    assert_eq!(scene.liar.asked_ranges(&blob.path), [""]);
}

#[test]
fn a_fill_that_is_well_on_its_way_or_small_is_finished_for_nobody() {
    for (options, size, received) in [
        // By default from a quarter on.
        ("", SIZE, 18 * MIB),
        ("[cache]\nfinish_fill_above = \"5%\"", SIZE, 4 * MIB),
        ("[cache]\nfinish_fill_above = \"0%\"", SIZE, 100_000),
        ("", 8 * MIB - 1, 100_000),
        (
            "[cache]\nfinish_fill_above = \"100%\"",
            8 * MIB - 1,
            100_000,
        ),
    ] {
        let scene = Scene::with(patient().section(options));
        let blob = scene.layer(1, size);
        let gate = scene.trickle(&blob, received + MIB);
        leave(&scene, read_some(&scene, &blob, received));
        gate.open();
        scene.tidegate.wait_until_stored(&blob.digest);
        assert_eq!(
            scene.liar.asked_ranges(&blob.path),
            [""],
            "{options} {size}"
        );
        scene.assert_is_a_hit(&blob);
    }
}

#[test]
fn how_much_makes_a_fill_worth_finishing_is_the_operators_word() {
    for (share, received) in [("100%", 40 * MIB), ("50%", 20 * MIB), ("25%", 12 * MIB)] {
        let options = format!("[cache]\nfinish_fill_above = \"{share}\"");
        let scene = Scene::with(patient().section(&options));
        let blob = scene.layer(1, SIZE);
        let received = abandon(&scene, &blob, received, None);
        assert_resumes(&scene, &blob, received, LOST_BY_A_STOP);
    }
}

#[test]
fn a_share_that_is_none_is_refused() {
    for share in ["101%", "-1%", "x%", ""] {
        let options = format!("[cache]\nfinish_fill_above = \"{share}\"");
        let (status, log) = Setup::new().section(&options).fails_to_start();
        assert_eq!(status, Some(2), "{share}: {log}");
        assert!(log.contains("finish_fill_above"), "{share}: {log}");
        assert!(!log.contains("unknown"), "{share}: {log}");
    }
}

#[test]
fn a_stopped_fill_survives_a_restart() {
    let mut scene = Scene::with(patient());
    let blob = scene.layer(1, SIZE);
    let received = abandon(&scene, &blob, 12 * MIB, None);
    scene.tidegate.signal("TERM");
    scene.tidegate.wait();
    scene.tidegate.restart();
    assert_resumes(&scene, &blob, received, LOST_BY_A_STOP);
}

#[test]
fn a_running_fill_survives_a_stop_and_a_restart() {
    let mut scene = Scene::with(patient().section("[listener]\nshutdown_grace = \"100ms\""));
    let blob = scene.layer(1, SIZE);
    let received = 40 * MIB;
    scene
        .liar
        .misbehave_in_turn(&blob.path, &[Behaviour::StallAfter(received)]);
    let client = read_some(&scene, &blob, received - MIB);
    scene.tidegate.signal("TERM");
    scene.tidegate.wait();
    drop(client);
    scene.tidegate.restart();
    assert_resumes(&scene, &blob, received, LOST_BY_A_STOP);
}

#[test]
fn a_running_fill_survives_a_kill_and_a_restart() {
    let mut scene = Scene::with(patient());
    let blob = scene.layer(1, SIZE);
    let received = 48 * MIB;
    scene
        .liar
        .misbehave_in_turn(&blob.path, &[Behaviour::StallAfter(received)]);
    let client = read_some(&scene, &blob, received - MIB);
    // What was received within the last second may not be written down yet.
    wait_until("a note of its progress", || {
        noted(&scene) + LOST_BY_A_KILL >= received
    });
    scene.tidegate.kill();
    drop(client);
    scene.tidegate.restart();
    assert_resumes(&scene, &blob, received, LOST_BY_A_KILL);
}

/// The parts of several clients too, not only the start.
#[test]
fn parts_survive_a_restart() {
    let mut scene = Scene::with(patient());
    let blob = scene.layer(1, SIZE);
    for span in [8 * MIB..16 * MIB, 40 * MIB..SIZE] {
        scene.assert_part_arrives(&blob, &span);
    }
    scene.tidegate.signal("TERM");
    scene.tidegate.wait();
    scene.tidegate.restart();
    // It may have forgotten who may read, never what it has.
    scene.assert_part_arrives(&blob, &(44 * MIB..50 * MIB));
    scene.assert_arrives(&blob, "the rest");
    scene.assert_is_a_hit(&blob);
    let sent = scene.liar.sent(&blob.path);
    assert!(sent_again(&sent) <= LOST_BY_A_STOP, "{sent:?}");
}

/// What a power cut or a failing disk makes of a file that was growing.
#[test]
fn a_partial_that_was_damaged_while_it_lay_there_never_becomes_a_whole() {
    for place in [0, 1, 5 * MIB, 9 * MIB] {
        let mut scene = Scene::with(patient());
        let blob = scene.layer(1, SIZE);
        abandon(&scene, &blob, 12 * MIB, None);
        scene.tidegate.signal("TERM");
        scene.tidegate.wait();
        let largest = scene
            .tidegate
            .fill_files()
            .into_iter()
            .max_by_key(|(_, metadata)| metadata.len());
        let (path, _) = largest.expect("a partial");
        damage::flip(&damage::open(&path), place);
        scene.tidegate.restart();
        let pulled = scene.pull(&blob);
        if pulled.digest != blob.digest {
            assert_ne!(pulled.end, End::Complete, "a wrong blob arrived whole");
            assert_eq!(scene.tidegate.stored(&blob.digest), None);
        }
        scene.assert_arrives(&blob, "what was damaged is not taken up twice");
        scene.assert_is_a_hit(&blob);
    }
}

/// Everything below `fills/` is foreign after a crash.
#[test]
fn partials_that_are_cut_short_or_garbage_are_no_obstacle() {
    for damage in ["empty", "half", "garbage", "gone"] {
        let mut scene = Scene::with(patient());
        let blob = scene.layer(1, SIZE);
        abandon(&scene, &blob, 12 * MIB, None);
        scene.tidegate.kill();
        for (path, metadata) in scene.tidegate.fill_files() {
            let cut = |length| damage::open(&path).set_len(length);
            match damage {
                "empty" => cut(0),
                "half" => cut(metadata.len() / 2),
                "garbage" => fs::write(&path, b"not what it was"),
                _ => fs::remove_file(&path),
            }
            .expect("a writable folder");
        }
        scene.tidegate.restart();
        let pulled = scene.pull(&blob);
        if pulled.digest != blob.digest {
            let is_whole = pulled.end == End::Complete;
            assert!(
                !is_whole || pulled.head.status >= 500,
                "{damage}: {pulled:?}"
            );
        }
        scene.assert_arrives(&blob, damage);
        scene.assert_is_a_hit(&blob);
    }
}

#[test]
fn a_resumed_fill_whose_upstream_ignores_ranges_is_right() {
    for then in [
        Behaviour::IgnoreRange,
        Behaviour::All(vec![Behaviour::IgnoreRange, Behaviour::Chunked]),
        Behaviour::All(vec![Behaviour::IgnoreRange, Behaviour::UntilClose]),
    ] {
        let scene = Scene::with(patient());
        let blob = scene.layer(1, SIZE);
        abandon(&scene, &blob, 10 * MIB, Some(then));
        scene.assert_arrives(&blob, "a 200 to a range");
        scene.assert_is_a_hit(&blob);
    }
}

#[test]
fn a_resumed_fill_whose_upstream_has_other_bytes_now_is_never_a_whole() {
    let scene = Scene::with(patient().section("[cache]\nmax_size = \"1GiB\""));
    for (seed, then) in (0..).zip([
        Behaviour::WrongByteAt(SIZE - 1),
        Behaviour::WrongByteAt(SIZE / 2),
        Behaviour::PartOfOther(SIZE - 1),
        Behaviour::PartOfOther(SIZE + MIB),
        Behaviour::PartFromEarlier(MIB),
        Behaviour::ShorterPart(MIB),
        Behaviour::unsatisfiable(10 * MIB),
        Behaviour::status(404),
    ]) {
        let blob = scene.layer(seed, SIZE);
        abandon(&scene, &blob, 10 * MIB, Some(then.clone()));
        let pulled = scene.pull(&blob);
        if pulled.digest != blob.digest {
            let is_whole = pulled.end == End::Complete;
            assert!(
                !is_whole || pulled.head.status >= 400,
                "{then:?}: {pulled:?}"
            );
            assert_eq!(scene.tidegate.stored(&blob.digest), None, "{then:?}");
        }
        scene.behave(&blob);
        scene.assert_arrives(&blob, "when the upstream has come to its senses");
        scene.assert_is_a_hit(&blob);
    }
}

#[test]
fn a_cut_download_without_a_length_goes_on_where_it_was_cut() {
    let scene = Scene::new();
    let size = 20 * MIB;
    for (seed, is_layer) in [(0, true), (10, false)] {
        for (number, after) in (0..).zip([100_000, 3 * MIB + 1, 12 * MIB]) {
            let blob = if is_layer {
                scene.layer(seed + number, size)
            } else {
                scene.blob(seed + number, size)
            };
            let cut = Behaviour::All(vec![Behaviour::Chunked, Behaviour::CutAfter(after)]);
            scene.liar.misbehave_in_turn(&blob.path, &[cut]);
            scene.assert_arrives(&blob, "chunks that broke off");
            let asked = scene.liar.asked_ranges(&blob.path);
            assert_eq!(asked.len(), 2, "{asked:?}");
            assert!(asked[1].starts_with("bytes="), "{asked:?}");
            scene.assert_is_a_hit(&blob);
        }
    }
}

/// A length that is known from the manifest shows that an end is none.
#[test]
fn a_cut_download_that_ends_with_its_connection_goes_on_if_its_size_is_known() {
    let scene = Scene::new();
    let blob = scene.layer(1, 20 * MIB);
    let cut = Behaviour::All(vec![Behaviour::UntilClose, Behaviour::CutAfter(5 * MIB)]);
    scene.liar.misbehave_in_turn(&blob.path, &[cut]);
    let pulled = scene.pull(&blob);
    assert!(
        pulled.digest == blob.digest || pulled.end == End::Cut,
        "{pulled:?}"
    );
    scene.assert_arrives(&blob, "the next pull");
    scene.assert_is_a_hit(&blob);
}

/// Only the digest tells.
#[test]
fn a_cut_download_that_ends_with_its_connection_is_never_taken_for_the_whole() {
    let scene = Scene::new();
    for (seed, after) in (0..).zip([0, 1, 70_000, 5 * MIB, 20 * MIB - 1]) {
        let blob = scene.blob(seed, 20 * MIB);
        let cut = Behaviour::All(vec![Behaviour::UntilClose, Behaviour::CutAfter(after)]);
        scene.misbehave(&blob, cut);
        let pulled = scene.pull(&blob);
        assert_ne!(pulled.digest, blob.digest);
        assert!(
            pulled.head.status == 502 || pulled.end == End::Cut,
            "after {after}: {pulled:?}"
        );
        assert_eq!(scene.tidegate.stored(&blob.digest), None);
        scene.behave(&blob);
        scene.assert_arrives(&blob, "when the upstream has come to its senses");
        scene.assert_is_a_hit(&blob);
    }
}
