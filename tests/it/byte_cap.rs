//! The cache keeps to its size, whatever is pulled.

use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::SystemTime,
};

use crate::support::{
    content::Content,
    http::End,
    liar::Liar,
    tidegate::{Grant, Setup, Tidegate, files_below},
};

const MIB: u64 = 1 << 20;
const CAP: u64 = 8 * MIB;

fn start(layers: &[Content]) -> (Liar, Vec<String>, Tidegate, Grant) {
    let liar = Liar::open();
    let image = liar.image("acme/app", "v1", layers);
    let tidegate = Setup::new()
        .liar(&liar)
        .section("[cache]\nmax_size = \"8MiB\"")
        .start();
    let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
    (liar, image.layers, tidegate, grant)
}

fn blobs(count: u64, size: u64) -> Vec<Content> {
    (0..count)
        .map(|seed| Content::Generated { seed, size })
        .collect()
}

/// On disk, the index and the list of pins aside: they are small, and no blobs. Files come, go and are renamed while they are
/// listed; those that are in two listings were all there between the two, and their sum is no guess.
fn used(tidegate: &Tidegate) -> u64 {
    let first = listing(tidegate);
    let second = listing(tidegate);
    first
        .iter()
        .filter(|(file, _)| second.contains_key(file))
        .map(|(_, size)| size)
        .sum()
}

/// A file is told by its inode and the time it was made: inodes are used again.
fn listing(tidegate: &Tidegate) -> HashMap<(u64, Option<SystemTime>), u64> {
    files_below(&tidegate.cache_folder())
        .into_iter()
        .filter(|(path, _)| !path.ends_with("index") && !path.ends_with("pins"))
        .map(|(_, metadata)| {
            let file = (metadata.ino(), metadata.created().ok());
            (file, metadata.blocks() * 512)
        })
        .collect()
}

#[test]
fn the_cache_never_grows_above_its_cap_and_every_pull_is_right() {
    let (_liar, digests, tidegate, grant) = start(&blobs(24, 3 * MIB));
    let is_over = AtomicBool::new(false);
    let most = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                most.fetch_max(used(&tidegate), Ordering::SeqCst);
            }
        });
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let (digests, tidegate, grant) = (&digests, &tidegate, &grant);
                scope.spawn(move || {
                    for number in 0..digests.len() {
                        let digest = &digests[(number + client * 6) % digests.len()];
                        let pulled = tidegate.pull(&grant.blob(digest));
                        assert_eq!((&pulled.digest, pulled.end), (digest, End::Complete));
                    }
                })
            })
            .collect();
        let results: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        is_over.store(true, Ordering::SeqCst);
        assert!(results.iter().all(Result::is_ok));
    });
    let most = most.load(Ordering::SeqCst);
    assert!(most <= CAP, "{most} bytes of {CAP}");
    assert!(most >= 3 * MIB, "nothing was ever kept");
}

#[test]
fn a_blob_larger_than_the_cache_passes_through() {
    let (liar, digests, tidegate, grant) = start(&blobs(1, 20 * MIB));
    for pull in 1..=2 {
        let pulled = tidegate.pull(&grant.blob(&digests[0]));
        assert_eq!((&pulled.digest, pulled.end), (&digests[0], End::Complete));
        assert!(used(&tidegate) <= CAP);
        assert_eq!(liar.blob_gets("acme/app", &digests[0]), pull);
    }
}

#[test]
fn what_a_client_is_reading_is_not_taken_away() {
    let (_liar, digests, tidegate, grant) = start(&blobs(8, 3 * MIB));
    tidegate.pull(&grant.blob(&digests[0]));
    let mut slow = tidegate.connect();
    slow.request("GET", &grant.blob(&digests[0]), &[], b"");
    let head = slow.head().expect("an answer");
    let mut body = slow.body("GET", &head);
    let mut bytes = body.read_exactly(1000);
    for digest in &digests[1..] {
        assert_eq!(&tidegate.pull(&grant.blob(digest)).digest, digest);
    }
    std::io::Read::read_to_end(&mut body, &mut bytes).expect("a readable body");
    assert_eq!(body.end(), End::Complete);
    assert_eq!(crate::support::content::digest(&bytes), digests[0]);
}

#[test]
fn a_smaller_cap_holds_from_the_start() {
    let (_liar, digests, mut tidegate, grant) = start(&blobs(2, 3 * MIB));
    for digest in &digests {
        tidegate.pull(&grant.blob(digest));
    }
    tidegate.change(
        "[cache]\nmax_size = \"8MiB\"",
        "[cache]\nmax_size = \"4MiB\"",
    );
    tidegate.restart();
    for digest in &digests {
        assert_eq!(&tidegate.pull(&grant.blob(digest)).digest, digest);
        assert!(used(&tidegate) <= CAP / 2);
    }
}
