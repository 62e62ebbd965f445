//! Blobs: from the upstream once, then from the cache, whole or in parts, and as soon as there is something to send.

use std::thread;

use crate::support::{
    content::Content,
    http::{Connection, End, Response},
    liar::{Behaviour, Gate, Liar, blob_path},
    tidegate::{Grant, Setup, Tidegate},
};

/// The size that the conformance suite uses.
const SMALL: u64 = 2048;
const LARGE: u64 = 8 << 20;

struct Scene {
    liar: Liar,
    tidegate: Tidegate,
    grant: Grant,
}

impl Scene {
    fn new() -> Self {
        let liar = Liar::open();
        liar.image("acme/app", "v1", &[]);
        let tidegate = Setup::new().liar(&liar).start();
        let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
        Self {
            liar,
            tidegate,
            grant,
        }
    }

    fn blob(&self, seed: u64, size: u64) -> (Content, String) {
        let content = Content::Generated { seed, size };
        let digest = self.liar.blob("acme/app", content.clone());
        (content, digest)
    }

    /// A blob of which half arrives before the gate is opened.
    fn gated_blob(&self, seed: u64, size: u64) -> (Content, String, Gate) {
        let (content, digest) = self.blob(seed, size);
        let gate = Gate::default();
        let halting = Behaviour::Gated(size / 2, gate.clone());
        self.liar
            .misbehave(&blob_path("acme/app", &digest), halting);
        (content, digest, gate)
    }

    fn get(&self, digest: &str, headers: &[(&str, &str)]) -> Response {
        self.tidegate
            .request("GET", &self.grant.blob(digest), headers)
    }
}

#[test]
fn a_second_pull_does_not_reach_the_upstream() {
    let scene = Scene::new();
    for (seed, size) in [(1, 1), (2, 65_536), (3, 65_537), (4, LARGE)] {
        let (_, digest) = scene.blob(seed, size);
        for _ in 0..3 {
            let pulled = scene.tidegate.pull(&scene.grant.blob(&digest));
            assert_eq!(
                (pulled.digest.as_str(), pulled.end),
                (digest.as_str(), End::Complete)
            );
        }
        let asked: Vec<_> = scene
            .liar
            .requests()
            .into_iter()
            .filter(|request| request.path().ends_with(&digest))
            .collect();
        let gets = asked
            .iter()
            .filter(|request| request.method == "GET")
            .count();
        assert_eq!(gets, 1, "{size} bytes: {asked:#?}");
    }
    let before = scene.liar.requests().len();
    let (_, digest) = scene.blob(4, LARGE);
    assert_eq!(
        scene.tidegate.pull(&scene.grant.blob(&digest)).digest,
        digest
    );
    assert_eq!(
        scene.liar.requests().len(),
        before,
        "a warm hit asked the upstream"
    );
}

#[test]
fn another_repository_shares_the_content_after_asking_for_itself() {
    let scene = Scene::new();
    let (content, digest) = scene.blob(1, LARGE);
    scene.tidegate.pull(&scene.grant.blob(&digest));
    scene.liar.image("acme/other", "v1", &[content]);
    let grant = scene
        .tidegate
        .grant(&scene.liar.reference("acme/other", "v1"));
    assert_eq!(scene.tidegate.pull(&grant.blob(&digest)).digest, digest);
}

#[test]
fn heads_say_what_clients_need() {
    let scene = Scene::new();
    let (_, cold) = scene.blob(1, LARGE);
    let (_, hot) = scene.blob(2, LARGE);
    scene.tidegate.pull(&scene.grant.blob(&hot));
    for (method, digest) in [
        ("HEAD", &cold),
        ("HEAD", &hot),
        ("GET", &cold),
        ("GET", &hot),
    ] {
        let response = scene
            .tidegate
            .request(method, &scene.grant.blob(digest), &[]);
        let etag = format!("\"{digest}\"");
        assert_eq!(response.status(), 200, "{method}: {}", response.text());
        for (name, value) in [
            ("content-length", LARGE.to_string()),
            ("content-type", "application/octet-stream".to_owned()),
            ("docker-content-digest", digest.clone()),
            ("accept-ranges", "bytes".to_owned()),
            ("etag", etag),
        ] {
            assert_eq!(response.head.count(name), 1, "{method} {name}");
            assert_eq!(
                response.header(name),
                Some(value.as_str()),
                "{method} {name}"
            );
        }
        // The upstream's own: none of a client's business.
        for name in [
            "set-cookie",
            "keep-alive",
            "transfer-encoding",
            "content-encoding",
        ] {
            assert_eq!(response.header(name), None, "{method} {name}");
        }
    }
}

/// The part that a 206 must have, or the other status.
type Expected = Result<(u64, u64), u16>;

const RANGES: [(&str, Expected); 17] = [
    ("bytes=0-0", Ok((0, 1))),
    ("bytes=500-1499", Ok((500, 1500))),
    ("bytes=500-", Ok((500, SMALL))),
    ("bytes=0-", Ok((0, SMALL))),
    ("bytes=-500", Ok((SMALL - 500, SMALL))),
    ("bytes=-5000", Ok((0, SMALL))),
    ("bytes=2000-5000", Ok((2000, SMALL))),
    ("bytes=2000-2048", Ok((2000, SMALL))),
    ("bytes=2047-", Ok((2047, SMALL))),
    ("bytes=2048-", Err(416)),
    ("bytes=5000-10000", Err(416)),
    ("bytes=-0", Err(416)),
    ("bytes=99999999999999999999-", Err(416)),
    ("bytes=500-0", Err(416)),
    ("bytes=a-b", Err(416)),
    ("lines=1-2", Err(200)),
    ("bytes", Err(200)),
];

fn assert_range(range: &str, expected: Expected, content: &Content, response: &Response) {
    let whole = content.bytes();
    let status = response.status();
    match expected {
        Ok((start, end)) => {
            assert_eq!(status, 206, "{range}: {}", response.text());
            assert_eq!(
                response.body,
                whole[start as usize..end as usize],
                "{range}"
            );
            let content_range = format!("bytes {start}-{}/{SMALL}", end - 1);
            assert_eq!(
                response.header("content-range"),
                Some(content_range.as_str()),
                "{range}"
            );
        }
        // What is no range may be ignored or refused (RFC 9110 §14.2); a wrong part is neither.
        Err(416) if status == 200 && (range.contains("500-0") || range.contains("a-b")) => {
            assert_eq!(response.body, whole, "{range}");
        }
        Err(expected) => {
            assert_eq!(status, expected, "{range}");
            if expected == 416 {
                let content_range = format!("bytes */{SMALL}");
                assert_eq!(
                    response.header("content-range"),
                    Some(content_range.as_str()),
                    "{range}"
                );
            } else {
                assert_eq!(response.body, whole, "{range}");
            }
        }
    }
}

#[test]
fn ranges_of_a_cached_blob_are_served() {
    let scene = Scene::new();
    let (content, digest) = scene.blob(1, SMALL);
    scene.tidegate.pull(&scene.grant.blob(&digest));
    for (range, expected) in RANGES {
        let response = scene.get(&digest, &[("Range", range)]);
        assert_range(range, expected, &content, &response);
    }
    assert_eq!(scene.liar.blob_gets("acme/app", &digest), 1);
}

#[test]
fn ranges_of_a_blob_that_is_not_cached_yet_are_served_alike() {
    let scene = Scene::new();
    for (seed, (range, expected)) in (10..).zip(RANGES) {
        let (content, digest) = scene.blob(seed, SMALL);
        let response = scene.get(&digest, &[("Range", range)]);
        assert_range(range, expected, &content, &response);
        let pulled = scene.tidegate.pull(&scene.grant.blob(&digest));
        assert_eq!(
            pulled.digest, digest,
            "a part was kept as the whole: {range}"
        );
    }
}

#[test]
fn ranges_of_a_growing_blob_are_served_alike() {
    let scene = Scene::new();
    let (content, digest, gate) = scene.gated_blob(1, SMALL);
    thread::scope(|scope| {
        let first = scope.spawn(|| scene.get(&digest, &[]));
        scene.liar.wait_for("the download", |request| {
            request.method == "GET" && request.path().ends_with(&digest)
        });
        let clients: Vec<_> = RANGES
            .iter()
            .map(|(range, expected)| {
                let (scene, digest) = (&scene, &digest);
                let client = scope.spawn(move || scene.get(digest, &[("Range", range)]));
                (range, expected, client)
            })
            .collect();
        gate.open();
        for (range, expected, client) in clients {
            let response = client.join().expect("a client that did not panic");
            assert_range(range, *expected, &content, &response);
        }
        assert_eq!(
            first.join().expect("a client that did not panic").digest(),
            digest
        );
    });
    assert_eq!(scene.liar.blob_gets("acme/app", &digest), 1);
}

#[test]
fn a_range_counts_only_for_the_content_that_was_meant() {
    let scene = Scene::new();
    let (_, digest) = scene.blob(1, SMALL);
    for (if_range, status) in [
        (format!("\"{digest}\""), 206),
        ("\"other\"".to_owned(), 200),
        (format!("W/\"{digest}\""), 200),
        ("Wed, 21 Oct 2015 07:28:00 GMT".to_owned(), 200),
    ] {
        let headers = [("Range", "bytes=1-2"), ("If-Range", if_range.as_str())];
        let response = scene.get(&digest, &headers);
        assert_eq!(response.status(), status, "{if_range}");
    }
}

#[test]
fn what_a_client_has_already_is_not_sent() {
    let scene = Scene::new();
    let (_, digest) = scene.blob(1, SMALL);
    scene.tidegate.pull(&scene.grant.blob(&digest));
    for (if_none_match, status) in [
        (format!("\"{digest}\""), 304),
        (digest.clone(), 304),
        (format!("W/\"{digest}\""), 304),
        (format!("\"a\", \"{digest}\""), 304),
        ("*".to_owned(), 304),
        ("\"a\"".to_owned(), 200),
    ] {
        for method in ["GET", "HEAD"] {
            let headers = [("If-None-Match", if_none_match.as_str())];
            let response = scene
                .tidegate
                .request(method, &scene.grant.blob(&digest), &headers);
            assert_eq!(response.status(), status, "{method} {if_none_match}");
            if status == 304 {
                assert!(response.body.is_empty());
                let etag = format!("\"{digest}\"");
                assert_eq!(response.header("etag"), Some(etag.as_str()));
            }
        }
    }
}

#[test]
fn a_range_of_a_head_request_is_ignored() {
    let scene = Scene::new();
    let (_, digest) = scene.blob(1, SMALL);
    let headers = [("Range", "bytes=0-9")];
    let response = scene
        .tidegate
        .request("HEAD", &scene.grant.blob(&digest), &headers);
    assert_eq!(
        (response.status(), response.head.content_length()),
        (200, Some(SMALL))
    );
}

#[test]
fn an_empty_blob_is_a_blob() {
    let scene = Scene::new();
    let digest = scene.liar.blob("acme/app", Content::of(""));
    for _ in 0..2 {
        let response = scene.get(&digest, &[]);
        assert_eq!(
            (response.status(), response.head.content_length()),
            (200, Some(0))
        );
        assert_eq!(response.end, End::Complete);
        let response = scene.get(&digest, &[("Range", "bytes=0-")]);
        assert_eq!(response.status(), 416);
        assert_eq!(response.header("content-range"), Some("bytes */0"));
    }
}

#[test]
fn the_first_bytes_arrive_before_the_upstream_has_sent_the_last() {
    let scene = Scene::new();
    let (content, digest, gate) = scene.gated_blob(1, LARGE);
    let quarter = (LARGE / 4) as usize;
    let mut connection = scene.tidegate.connect();
    connection.request("GET", &scene.grant.blob(&digest), &[], b"");
    let head = connection.head().expect("an answer");
    assert_eq!((head.status, head.content_length()), (200, Some(LARGE)));
    let mut body = connection.body("GET", &head);
    let whole = content.bytes();
    assert_eq!(body.read_exactly(quarter), whole[..quarter]);
    // A follower too.
    let mut follower = scene.tidegate.connect();
    follower.request(
        "GET",
        &scene.grant.blob(&digest),
        &[("Range", "bytes=100-")],
        b"",
    );
    let head = follower.head().expect("an answer");
    assert_eq!(head.status, 206);
    let mut followed = follower.body("GET", &head);
    assert_eq!(followed.read_exactly(quarter), whole[100..100 + quarter]);
    gate.open();
    assert_eq!(body.read_exactly(whole.len() - quarter), whole[quarter..]);
    let rest = whole.len() - 100 - quarter;
    assert_eq!(followed.read_exactly(rest), whole[100 + quarter..]);
    assert_eq!(scene.liar.blob_gets("acme/app", &digest), 1);
}

#[test]
fn the_first_client_leaves_and_the_others_go_on() {
    let scene = Scene::new();
    let (_, digest, gate) = scene.gated_blob(1, LARGE);
    let open = || -> (Connection, _) {
        let mut connection = scene.tidegate.connect();
        connection.request("GET", &scene.grant.blob(&digest), &[], b"");
        let head = connection.head().expect("an answer");
        assert_eq!(head.status, 200);
        (connection, head)
    };
    let (mut first, head) = open();
    first.body("GET", &head).read_exactly(1000);
    let (mut second, head) = open();
    let mut body = second.body("GET", &head);
    let start = body.read_exactly(1000);
    drop(first);
    gate.open();
    let mut all = start;
    std::io::Read::read_to_end(&mut body, &mut all).expect("a readable body");
    assert_eq!(body.end(), End::Complete);
    assert_eq!(crate::support::content::digest(&all), digest);
    assert_eq!(scene.liar.blob_gets("acme/app", &digest), 1);
}

#[test]
fn a_download_that_nobody_waits_for_any_more_is_not_started_again() {
    let scene = Scene::new();
    let (_, digest, gate) = scene.gated_blob(1, LARGE);
    let mut only = scene.tidegate.connect();
    only.request("GET", &scene.grant.blob(&digest), &[], b"");
    let head = only.head().expect("an answer");
    only.body("GET", &head).read_exactly(1000);
    drop(only);
    gate.open();
    assert_eq!(
        scene.tidegate.pull(&scene.grant.blob(&digest)).digest,
        digest
    );
    assert_eq!(scene.liar.blob_gets("acme/app", &digest), 1);
}

/// containerd reads a chunk of each open-ended range, then closes.
#[test]
fn clients_that_leave_early_as_a_routine_do_no_harm() {
    let scene = Scene::new();
    let (content, digest) = scene.blob(1, LARGE);
    let whole = content.bytes();
    for part in 0..8 {
        let start = part * (1 << 20);
        let range = format!("bytes={start}-");
        let mut connection = scene.tidegate.connect();
        connection.request("GET", &scene.grant.blob(&digest), &[("Range", &range)], b"");
        let head = connection.head().expect("an answer");
        assert_eq!(head.status, 206, "{range}");
        let piece = connection.body("GET", &head).read_exactly(1 << 20);
        assert_eq!(piece, whole[start..start + (1 << 20)], "{range}");
    }
    assert_eq!(
        scene.tidegate.pull(&scene.grant.blob(&digest)).digest,
        digest
    );
    assert_eq!(scene.liar.blob_gets("acme/app", &digest), 1);
}

#[test]
fn an_encoding_is_not_asked_for_nor_given() {
    let scene = Scene::new();
    let (content, digest) = scene.blob(1, SMALL);
    let headers = [("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")];
    let response = scene.get(&digest, &headers);
    assert_eq!(response.header("content-encoding"), None);
    assert_eq!(response.body, content.bytes());
    for request in scene.liar.requests() {
        let encoding = request.joined("accept-encoding");
        assert!(matches!(encoding.as_str(), "" | "identity"), "{request:?}");
    }
}

#[test]
fn digests_that_are_none_are_refused_without_asking() {
    let scene = Scene::new();
    let before = scene.liar.requests().len();
    for digest in [
        "sha256:abc",
        "sha256:",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        "latest",
        &format!("sha256:{}", "A".repeat(64)),
        &format!("sha256:{}", "g".repeat(64)),
        "sha256:..%2f..%2fetc%2fpasswd",
    ] {
        let response = scene.get(digest, &[]);
        assert!(
            matches!(response.status(), 400 | 404),
            "{digest}: {}",
            response.status()
        );
        response.error_code();
    }
    assert_eq!(scene.liar.requests().len(), before);
}
