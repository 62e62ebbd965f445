//! Killed at any moment: what has a digest for its name is that digest, and the next start serves.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    thread,
};

use crate::support::{
    content::Content,
    damage::open_stored,
    http::End,
    image::file_digest,
    liar::{Behaviour, Gate, Liar, blob_path},
    tidegate::{Grant, Setup, Tidegate, files_below},
};

const SIZE: u64 = 8 << 20;

fn assert_every_file_is_what_its_name_says(tidegate: &Tidegate) -> usize {
    let blobs = tidegate.cache_folder().join("blobs");
    let files = files_below(&blobs);
    for (path, _) in &files {
        let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
        let hex = name(path).expect("a name");
        let folder = path.parent().and_then(name).expect("a folder");
        assert_eq!(hex.len(), 64, "{}", path.display());
        assert_eq!(folder, hex[..2], "{}", path.display());
        assert_eq!(
            file_digest(path),
            format!("sha256:{hex}"),
            "{}",
            path.display()
        );
    }
    files.len()
}

fn assert_arrives(tidegate: &Tidegate, grant: &Grant, digest: &str) {
    let arrived = pull(tidegate, grant, digest);
    assert_eq!(arrived, (200, digest.to_owned(), End::Complete));
    tidegate.wait_until_stored(digest);
}

fn pull(tidegate: &Tidegate, grant: &Grant, digest: &str) -> (u16, String, End) {
    let pulled = tidegate.pull(&grant.blob(digest));
    (pulled.head.status, pulled.digest, pulled.end)
}

#[test]
fn a_kill_within_a_download_leaves_nothing_wrong() {
    let liar = Liar::open();
    let layers: Vec<_> = (0..6)
        .map(|seed| Content::Generated { seed, size: SIZE })
        .collect();
    let image = liar.image("acme/app", "v1", &layers);
    let mut tidegate = Setup::new().liar(&liar).start();
    let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
    assert_arrives(&tidegate, &grant, &image.layers[0]);
    for (digest, received) in image.layers[1..]
        .iter()
        .zip([0, 1, SIZE / 2, SIZE - 1, SIZE - 4096])
    {
        let path = blob_path("acme/app", digest);
        let gate = Gate::default();
        liar.misbehave_in_turn(&path, &[Behaviour::Gated(received, gate.clone())]);
        let mut connection = tidegate.connect();
        connection.request("GET", &grant.blob(digest), &[], b"");
        liar.wait_for("the download", |request| {
            request.method == "GET" && request.path() == path
        });
        if received >= SIZE / 2 {
            let head = connection.head().expect("an answer");
            connection
                .body("GET", &head)
                .read_exactly((SIZE / 4) as usize);
        }
        tidegate.kill();
        gate.open();
        assert_every_file_is_what_its_name_says(&tidegate);
        tidegate.restart();
        assert_every_file_is_what_its_name_says(&tidegate);
        assert_arrives(&tidegate, &grant, digest);
    }
    assert_eq!(assert_every_file_is_what_its_name_says(&tidegate), 6);
    // What was complete before the first kill was not fetched again.
    assert_arrives(&tidegate, &grant, &image.layers[0]);
    assert_eq!(liar.blob_gets("acme/app", &image.layers[0]), 1);
}

#[test]
fn kills_among_many_pulls_leave_nothing_wrong() {
    let liar = Liar::open();
    let layers: Vec<_> = (0..60)
        .map(|seed| Content::Generated {
            seed,
            size: 1 + seed * 7_919,
        })
        .collect();
    let image = liar.image("acme/app", "v1", &layers);
    let mut tidegate = Setup::new().liar(&liar).start();
    let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
    for round in 1..=5 {
        let address = tidegate.registry;
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let paths: Vec<_> = image
                    .layers
                    .iter()
                    .map(|digest| grant.blob(digest))
                    .collect();
                thread::spawn(move || {
                    for number in 0..paths.len() {
                        let path = &paths[(number + client * 15) % paths.len()];
                        // The server is about to be killed: whatever happens is right.
                        let Ok(mut stream) = TcpStream::connect(address) else {
                            return;
                        };
                        let request =
                            format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                        let _ = stream.write_all(request.as_bytes());
                        let _ = stream.read_to_end(&mut Vec::new());
                    }
                })
            })
            .collect();
        let enough = liar.requests().len() + round * 3;
        if round < 4 {
            liar.wait_for_count(enough);
        }
        tidegate.kill();
        for client in clients {
            client.join().expect("a client that did not panic");
        }
        assert_every_file_is_what_its_name_says(&tidegate);
        tidegate.restart();
    }
    for digest in &image.layers {
        assert_arrives(&tidegate, &grant, digest);
    }
    assert_eq!(assert_every_file_is_what_its_name_says(&tidegate), 60);
}

#[test]
fn a_damaged_cache_does_not_keep_it_from_starting() {
    let liar = Liar::open();
    let content = Content::Generated {
        seed: 1,
        size: SIZE,
    };
    let image = liar.image("acme/app", "v1", &[content]);
    let mut tidegate = Setup::new().liar(&liar).start();
    let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
    assert_arrives(&tidegate, &grant, &image.layers[0]);
    tidegate.kill();
    let cache = tidegate.cache_folder();
    let blobs = cache.join("blobs");
    for (path, _) in files_below(&cache) {
        if !path.starts_with(&blobs) {
            std::fs::write(&path, b"not what it was").expect("a writable file");
        }
    }
    for stray in [
        "blobs/sha256/ab/short",
        "blobs/stray",
        "fills/stray",
        "stray",
    ] {
        let path = cache.join(stray);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a writable folder");
        std::fs::write(path, b"stray").expect("a writable folder");
    }
    tidegate.restart();
    assert_arrives(&tidegate, &grant, &image.layers[0]);
}

/// Bits rot and operators copy files: what is cut short is noticed before it is promised.
#[test]
fn a_blob_that_was_cut_short_on_disk_is_not_served_as_the_whole() {
    let liar = Liar::open();
    let content = Content::Generated {
        seed: 1,
        size: SIZE,
    };
    let image = liar.image("acme/app", "v1", &[content]);
    let mut tidegate = Setup::new().liar(&liar).start();
    let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
    assert_arrives(&tidegate, &grant, &image.layers[0]);
    tidegate.kill();
    let file = open_stored(&tidegate, &image.layers[0]);
    file.set_len(SIZE / 2).expect("a writable file");
    tidegate.restart();
    // From the manifest it can know how long the blob is.
    assert_eq!(tidegate.get(&grant.manifest("v1")).status(), 200);
    let (status, digest, end) = pull(&tidegate, &grant, &image.layers[0]);
    assert!(
        digest == image.layers[0] || end == End::Cut || status >= 500,
        "{status} {digest} {end:?}"
    );
}
