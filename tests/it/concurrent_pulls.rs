//! Many clients, one upstream request.

use std::{
    io::{Read, Write},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::support::{
    content::{Content, Hash},
    http::{Connection, End},
    liar::{Behaviour, Gate, Liar, blob_path},
    tidegate::Setup,
};

const MIB: u64 = 1 << 20;
const CLIENTS: usize = 16;

/// All of them are there before the upstream sends its second half: nobody is served by what came earlier.
#[test]
fn sixteen_clients_share_one_download_of_a_large_blob() {
    let content = Content::Generated {
        seed: 16,
        size: 500 * MIB,
    };
    let liar = Liar::open();
    let image = liar.image("acme/app", "v1", std::slice::from_ref(&content));
    let digest = image.layers[0].clone();
    let gate = Gate::default();
    let halting = Behaviour::Gated(250 * MIB, gate.clone());
    liar.misbehave(&blob_path("acme/app", &digest), halting);
    let tidegate = Setup::new().liar(&liar).start();
    let path = tidegate
        .grant(&liar.reference("acme/app", "v1"))
        .blob(&digest);

    let (started, starts) = mpsc::channel();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (address, path, started) = (tidegate.registry, path.clone(), started.clone());
            thread::spawn(move || {
                let mut connection = Connection::open(address);
                connection.request("GET", &path, &[], b"");
                let head = connection.head().expect("an answer");
                assert_eq!(head.status, 200);
                assert_eq!(head.content_length(), Some(500 * MIB));
                let mut body = connection.body("GET", &head);
                let mut hash = Hash::new();
                let mut piece = vec![0; MIB as usize];
                body.read_exact(&mut piece).expect("the first bytes");
                hash.write_all(&piece).expect("hashing succeeds");
                let _ = started.send(());
                loop {
                    let count = body.read(&mut piece).expect("a readable body");
                    if count == 0 {
                        break;
                    }
                    hash.write_all(&piece[..count]).expect("hashing succeeds");
                }
                (hash.digest(), body.end())
            })
        })
        .collect();
    for _ in 0..CLIENTS {
        starts
            .recv_timeout(Duration::from_secs(60))
            .expect("every client is served before the download has ended");
    }
    gate.open();
    for client in clients {
        let (pulled, end) = client.join().expect("a client that did not panic");
        assert_eq!((pulled, end), (digest.clone(), End::Complete));
    }
    assert_eq!(liar.blob_gets("acme/app", &digest), 1);
}

#[test]
fn many_small_blobs_are_each_fetched_once_by_many_clients() {
    let layers: Vec<Content> = (0..12)
        .map(|seed| Content::Generated {
            seed: 100 + seed,
            size: 1 + seed * 30_000,
        })
        .collect();
    let liar = Liar::open();
    let image = liar.image("acme/app", "v1", &layers);
    let tidegate = Setup::new().liar(&liar).start();
    let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (image, tidegate, grant) = (&image, &tidegate, &grant);
            scope.spawn(move || {
                for number in 0..image.layers.len() {
                    let digest = &image.layers[(number + client) % image.layers.len()];
                    let pulled = tidegate.pull(&grant.blob(digest));
                    assert_eq!((&pulled.digest, pulled.end), (digest, End::Complete));
                }
            });
        }
    });
    for digest in &image.layers {
        assert_eq!(liar.blob_gets("acme/app", digest), 1, "{digest}");
    }
}
