//! Killed a hundred times among sixteen fills: what has a digest for its name is that digest, the account of the disk is
//! right, and the next pull too.

use std::{
    collections::HashMap,
    env,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::support::{
    content::Content,
    image::file_digest,
    liar::{Behaviour, Liar, blob_path},
    programs::wait_until,
    scene::{REPOSITORY, Scene},
    tidegate::{Setup, Tidegate},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const CLIENTS: u64 = 16;
const BLOBS: u64 = 48;
/// A third of what there is: every round evicts, and every round fills.
const CAP: &str = "32MiB";

/// `TESTS_KILLS` of them; by default as many as a developer waits for, and a hundred where everything is run.
fn kill_count() -> u64 {
    let told = env::var("TESTS_KILLS").ok().map(|count| {
        count
            .parse()
            .unwrap_or_else(|error| panic!("TESTS_KILLS is {count:?}: {error}"))
    });
    let is_real = env::var_os("TIDEGATE_REAL").is_some_and(|value| value == "1");
    told.unwrap_or(if is_real { 100 } else { 30 })
}

/// The same in every run, so that a failure can be had again.
fn scattered(number: u64) -> u64 {
    let mut word = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A blob keeps its inode as long as it has its name, so that only what is new needs to be hashed.
#[derive(Default)]
struct Verified(HashMap<PathBuf, (u64, i64, i64)>);

impl Verified {
    fn assert_every_file_is_what_its_name_says(&mut self, tidegate: &Tidegate) {
        for (path, metadata) in tidegate.blob_files() {
            let file = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
            if self.0.get(&path) == Some(&file) {
                continue;
            }
            let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
            let hex = name(&path).expect("a name");
            assert_eq!(file_digest(&path), format!("sha256:{hex}"), "{path:?}");
            self.0.insert(path, file);
        }
    }
}

/// What is counted is what is there: of blobs their blocks, of partials no more than they may come to.
fn assert_accounts(tidegate: &Tidegate) {
    let blobs: u64 = tidegate
        .blob_files()
        .iter()
        .map(|(_, metadata)| metadata.len().next_multiple_of(4096))
        .sum();
    let fills = tidegate.fill_files();
    if fills.is_empty() {
        wait_until("an account of exactly what is there", || {
            tidegate.metric("tidegate_cache_used_bytes") == blobs
        });
    } else {
        let most: u64 = fills
            .iter()
            .map(|(_, metadata)| {
                let length = metadata.len().next_multiple_of(4096);
                length.max(metadata.blocks() * 512)
            })
            .sum();
        let mut used = 0;
        wait_until("an account of all blobs", || {
            used = tidegate.metric("tidegate_cache_used_bytes");
            used >= blobs
        });
        // A partial may have reserved what it will come to.
        assert!(
            used <= blobs + most.max(fills.len() as u64 * 4 * MIB),
            "{used}"
        );
    }
}

/// Pulls one blob after the other until it is told to stop: whatever happens on the way is right.
fn pull_on(address: SocketAddr, paths: &[String], first: u64, is_over: &AtomicBool) {
    let mut piece = vec![0; 64 << 10];
    for number in first.. {
        if is_over.load(Ordering::SeqCst) {
            return;
        }
        let path = &paths[(scattered(number) % paths.len() as u64) as usize];
        let Ok(mut stream) = TcpStream::connect(address) else {
            return;
        };
        // Some want a part, some leave early.
        let range = match number % 4 {
            0 => format!("Range: bytes={}-\r\n", number % 90_000),
            _ => String::new(),
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{range}\r\n");
        let _ = stream.write_all(request.as_bytes());
        let mut left = if number % 5 == 0 { 300_000 } else { u64::MAX };
        while let Ok(count @ 1..) = stream.read(&mut piece) {
            left = left.saturating_sub(count as u64);
            if left == 0 {
                break;
            }
        }
    }
}

#[test]
fn a_hundred_kills_among_sixteen_fills_leave_nothing_wrong() {
    let options = format!("[cache]\nmax_size = \"{CAP}\"");
    let mut scene = Scene::with(Setup::new().section(&options));
    let blobs: Vec<_> = (0..BLOBS)
        .map(|seed| {
            let size = 100 * KIB + scattered(seed) % (4 * MIB - 100 * KIB);
            scene.blob_of(Content::Generated { seed, size })
        })
        .collect();
    let paths: Vec<String> = blobs
        .iter()
        .map(|blob| scene.grant.blob(&blob.digest))
        .collect();
    let mut verified = Verified::default();
    for round in 0..kill_count() {
        let address = scene.tidegate.registry;
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (paths, is_over) = (&paths, &is_over);
                let first = (round * CLIENTS + client) * 1000;
                scope.spawn(move || pull_on(address, paths, first, is_over));
            }
            // A moment is told by what the upstream has sent: nothing yet, or up to half of the cache.
            let moment = scattered(round ^ 0xff00) % (16 * MIB);
            scene.liar.wait_for_sent(scene.liar.total_sent() + moment);
            scene.tidegate.kill();
            is_over.store(true, Ordering::SeqCst);
        });
        verified.assert_every_file_is_what_its_name_says(&scene.tidegate);
        scene.tidegate.restart();
        assert_accounts(&scene.tidegate);
        let blob = &blobs[(scattered(round ^ 0xf0) % BLOBS) as usize];
        scene.assert_arrives(blob, &format!("after kill {round}"));
        verified.assert_every_file_is_what_its_name_says(&scene.tidegate);
    }
    for blob in &blobs {
        scene.assert_arrives(blob, "in the end");
    }
    Verified::default().assert_every_file_is_what_its_name_says(&scene.tidegate);
    assert_accounts(&scene.tidegate);
    let used = scene.tidegate.metric("tidegate_cache_used_bytes");
    let most = scene.tidegate.metric("tidegate_cache_max_bytes");
    assert!(used <= most, "{used} of {most}");
}

/// The next pull resumes, whichever of sixteen large downloads it was.
#[test]
fn sixteen_large_fills_are_resumed_after_a_kill() {
    let mut scene = Scene::with(Setup::new().section("[upstream]\nbody_timeout = \"10min\""));
    let size = 24 * MIB;
    let received = 20 * MIB;
    let blobs: Vec<_> = (0..CLIENTS).map(|seed| scene.layer(seed, size)).collect();
    for blob in &blobs {
        let stall = Behaviour::StallAfter(received);
        scene.liar.misbehave_in_turn(&blob.path, &[stall]);
    }
    let clients: Vec<_> = blobs
        .iter()
        .map(|blob| {
            let mut client = scene.tidegate.connect();
            client.request("GET", &scene.grant.blob(&blob.digest), &[], b"");
            client
        })
        .collect();
    thread::scope(|scope| {
        for mut client in clients {
            scope.spawn(move || {
                let head = client.head().expect("an answer");
                client
                    .body("GET", &head)
                    .read_exactly((received - MIB) as usize);
            });
        }
    });
    // What was received within the last second may not be written down yet.
    wait_until("a note of each download's progress", || {
        let files = scene.tidegate.fill_files().into_iter();
        let notes = files.filter(|(path, metadata)| {
            metadata.len() > 0 && path.extension().is_some_and(|kind| kind == "extents")
        });
        notes.count() == CLIENTS as usize
    });
    scene.tidegate.kill();
    Verified::default().assert_every_file_is_what_its_name_says(&scene.tidegate);
    scene.tidegate.restart();
    let before = scene.liar.total_sent();
    for blob in &blobs {
        scene.assert_arrives(blob, "after the kill");
        scene.assert_is_a_hit(blob);
    }
    let asked_anew = blobs.iter().filter(|blob| {
        let asked = scene.liar.asked_ranges(&blob.path);
        asked.iter().skip(1).any(String::is_empty)
    });
    let anew = asked_anew.count();
    assert_eq!(anew, 0, "{anew} of {CLIENTS} downloads began again");
    // What no flush had reached by then may be lost, what one had may not.
    let sent = scene.liar.total_sent() - before;
    assert!(sent < CLIENTS * size, "{sent} bytes for what was there");
    assert_accounts(&scene.tidegate);
}

/// The liar and the grant outlive every restart, as the registry and the clients do.
#[test]
fn a_kill_at_each_stage_of_one_fill_leaves_it_right() {
    let liar = Liar::open();
    let content = Content::Generated {
        seed: 3,
        size: 12 * MIB,
    };
    let image = liar.image(REPOSITORY, "v1", std::slice::from_ref(&content));
    let digest = &image.layers[0];
    let path = blob_path(REPOSITORY, digest);
    for received in [
        0,
        1,
        64 * KIB,
        MIB,
        8 * MIB,
        12 * MIB - 64 * KIB,
        12 * MIB - 1,
    ] {
        let mut tidegate = Setup::new().liar(&liar).start();
        let grant = tidegate.grant(&liar.reference(REPOSITORY, "v1"));
        let stall = Behaviour::StallAfter(received);
        liar.misbehave_in_turn(&path, &[stall]);
        let sent = liar.total_sent();
        let mut client = tidegate.connect();
        client.request("GET", &grant.blob(digest), &[], b"");
        let gets = liar.blob_gets(REPOSITORY, digest);
        liar.wait_for_sent(sent + received);
        tidegate.kill();
        Verified::default().assert_every_file_is_what_its_name_says(&tidegate);
        assert!(tidegate.blob_files().is_empty(), "{received}: not verified");
        tidegate.restart();
        assert_accounts(&tidegate);
        let pulled = tidegate.pull(&grant.blob(digest));
        assert_eq!(
            &pulled.digest, digest,
            "killed after {received}, {gets} gets"
        );
        tidegate.wait_until_stored(digest);
        Verified::default().assert_every_file_is_what_its_name_says(&tidegate);
    }
}
