//! What there is only so much of: descriptors, connections to a registry, patience with clients that do not read.

use crate::support::{
    content::Content,
    http::{self, Connection},
    liar::{Behaviour, Gate, Liar, blob_path},
    programs::{require, wait_until},
    tidegate::{Grant, Setup, Tidegate},
};

const MIB: u64 = 1 << 20;

fn pulled(setup: Setup, layers: &[Content]) -> (Liar, Vec<String>, Tidegate, Grant) {
    let liar = Liar::open();
    let image = liar.image("acme/app", "v1", layers);
    let tidegate = setup.liar(&liar).start();
    let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
    (liar, image.layers, tidegate, grant)
}

/// Clients that ask for a blob and read no more than the head of the answer.
fn stalled(tidegate: &Tidegate, path: &str, count: u64) -> Vec<Connection> {
    let ask = |_| {
        let mut connection = tidegate.connect();
        connection.request("GET", path, &[], b"");
        let head = connection.head().expect("an answer");
        assert_eq!(head.status, 200);
        connection
    };
    (0..count).map(ask).collect()
}

fn metric(tidegate: &Tidegate, name: &str) -> u64 {
    let text = http::get(tidegate.admin, "/metrics").text();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[test]
fn too_few_open_files_are_told_and_cost_connections_not_answers() {
    require!("prlimit");
    let tidegate = Setup::new()
        .launcher(&["prlimit", "--nofile=64:128"])
        .start();
    let log = tidegate.log();
    let line = log.wait_for(|line| line.contains("too few open files"));
    let line = line.unwrap_or_else(|| panic!("no warning: {}", log.text()));
    for part in [
        "listener.max_connections = 16384",
        "ulimit -n",
        "LimitNOFILE",
        "connections=32",
        // The soft limit was raised to the hard one.
        "open_files=128",
    ] {
        assert!(line.contains(part), "no `{part}` in {line}");
    }
    let kept: Vec<Connection> = (0..32)
        .map(|number| {
            let mut connection = tidegate.connect();
            connection.request("GET", "/v2/", &[], b"");
            let response = connection.response("GET");
            assert_eq!(response.status(), 200, "connection {number}");
            connection
        })
        .collect();
    for _ in 0..8 {
        let response = tidegate.get("/v2/");
        assert_eq!(response.status(), 503);
        assert_eq!(response.header("retry-after"), Some("1"));
    }
    drop(kept);
    wait_until("a place", || tidegate.get("/v2/").status() == 200);
}

#[test]
fn a_registry_has_only_so_many_connections_and_the_next_client_is_told_so() {
    let layers: Vec<Content> = (0..3)
        .map(|seed| Content::Generated { seed, size: MIB })
        .collect();
    let setup = Setup::new()
        .top("cores = 1")
        .section("[upstream]\nmax_connections_per_host = 2\nconnect_timeout = \"1s\"");
    let (liar, digests, tidegate, grant) = pulled(setup, &layers);
    let gate = Gate::default();
    let mut waiting = Vec::new();
    for digest in &digests[..2] {
        let path = blob_path("acme/app", digest);
        liar.misbehave(&path, Behaviour::Gated(1_000, gate.clone()));
        let mut connection = tidegate.connect();
        connection.request("GET", &grant.blob(digest), &[], b"");
        liar.wait_for("the fetch", |request| {
            request.method == "GET" && request.target == path
        });
        waiting.push(connection);
    }
    let response = tidegate.get(&grant.blob(&digests[2]));
    assert_eq!(response.status(), 503, "{}", response.text());
    assert!(response.header("retry-after").is_some());
    let text = response.text();
    assert!(text.contains("upstream.max_connections_per_host"), "{text}");
    assert_eq!(liar.blob_gets("acme/app", &digests[2]), 0);
    // Who waits gets the connection that becomes free.
    let mut next = tidegate.connect();
    next.request("GET", &grant.blob(&digests[2]), &[], b"");
    gate.open();
    for (connection, digest) in waiting.iter_mut().zip(&digests) {
        assert_eq!(connection.response("GET").digest(), *digest);
    }
    let response = next.response("GET");
    assert!(matches!(response.status(), 200 | 503));
    let response = tidegate.get(&grant.blob(&digests[2]));
    assert_eq!(response.digest(), digests[2]);
}

#[test]
fn readers_that_stall_cost_no_memory_and_are_cut() {
    const READERS: u64 = 24;
    let layer = Content::Generated {
        seed: 7,
        size: 24 * MIB,
    };
    let setup = Setup::new().section("[listener]\nsend_timeout = \"2s\"");
    let (_liar, digests, tidegate, grant) = pulled(setup, &[layer]);
    let path = grant.blob(&digests[0]);
    assert_eq!(tidegate.pull(&path).digest, digests[0]);
    tidegate.wait_until_stored(&digests[0]);
    assert_eq!(tidegate.pull(&path).digest, digests[0]);
    let before = tidegate.anonymous_memory();
    let mut stalled = stalled(&tidegate, &path, READERS);
    // Others are not kept waiting by them.
    assert_eq!(tidegate.pull(&path).digest, digests[0]);
    let after = tidegate.anonymous_memory();
    assert!(
        after < before + READERS * (64 << 10),
        "{before} bytes before {READERS} stalled readers, {after} with them"
    );
    wait_until("the end of the stalled", || {
        metric(&tidegate, "tidegate_responses_cut_total") == READERS
    });
    for connection in &mut stalled {
        let received = connection.rest();
        assert!((received.len() as u64) < 24 * MIB, "it was not cut");
    }
    assert_eq!(tidegate.pull(&path).digest, digests[0]);
}

/// What does not fit into the cache is in no file that could be sent from.
#[test]
fn readers_that_stall_past_the_cache_hold_a_few_small_pieces_each() {
    const READERS: u64 = 24;
    let layer = Content::Generated {
        seed: 7,
        size: 24 * MIB,
    };
    let setup =
        Setup::new().section("[listener]\nsend_timeout = \"2s\"\n[cache]\nmax_size = \"8MiB\"");
    let (_liar, digests, tidegate, grant) = pulled(setup, &[layer]);
    let path = grant.blob(&digests[0]);
    assert_eq!(tidegate.pull(&path).digest, digests[0]);
    let before = tidegate.anonymous_memory();
    let stalled = stalled(&tidegate, &path, READERS);
    let mut most = 0;
    wait_until("the end of the stalled", || {
        most = most.max(tidegate.anonymous_memory());
        metric(&tidegate, "tidegate_responses_cut_total") == READERS
    });
    assert!(
        most < before + READERS * MIB,
        "{before} bytes before {READERS} stalled readers, {most} with them"
    );
    drop(stalled);
    assert_eq!(tidegate.pull(&path).digest, digests[0]);
}
