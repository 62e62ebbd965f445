//! HTTPS without a server in front: sessions, files through TLS, certificates that are renewed while it runs.

use std::{fs, io::Read as _, path::Path};

use serde_json::json;

use crate::support::{
    authority::Authority,
    content::{Content, digest},
    damage::open_stored,
    http::{Connection, End, Response},
    liar::Liar,
    programs::{command, output, require, run, wait_until},
    runtimes::skopeo_copy_trusting,
    tidegate::{Grant, Setup, Tidegate},
};

const MIB: u64 = 1 << 20;

struct Scene {
    authority: Authority,
    liar: Liar,
    tidegate: Tidegate,
    grant: Grant,
    layers: Vec<String>,
}

impl Scene {
    fn new(layers: &[Content], more: &str) -> Self {
        let authority = Authority::new();
        let liar = Liar::open();
        let image = liar.image("acme/app", "v1", layers);
        let tidegate = Setup::new()
            .liar(&liar)
            .section(&authority.section(more))
            .start();
        let mut connection = connect(&tidegate, &authority);
        let body = json!({"containerImage": liar.reference("acme/app", "v1")}).to_string();
        let headers = [("Content-Type", "application/json")];
        connection.request("POST", "/v1alpha2/container", &headers, body.as_bytes());
        let response = connection.response("POST");
        assert_eq!(response.status(), 200, "{}", response.text());
        let grant = Grant::read(&response.json());
        Self {
            authority,
            liar,
            tidegate,
            grant,
            layers: image.layers,
        }
    }

    fn connect(&self) -> Connection {
        connect(&self.tidegate, &self.authority)
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut connection = self.connect();
        connection.request(method, path, headers, b"");
        connection.response(method)
    }

    /// The certificate that a new connection is shown.
    fn certificate(&self) -> Vec<u8> {
        self.connect().certificate()
    }

    fn wait_for_log(&self, text: &str) {
        let line = self.tidegate.log().wait_for(|line| line.contains(text));
        line.unwrap_or_else(|| panic!("no `{text}` in the log"));
    }
}

fn connect(tidegate: &Tidegate, authority: &Authority) -> Connection {
    Connection::open_tls(tidegate.registry, &authority.client)
        .unwrap_or_else(|error| panic!("no TLS session: {error}"))
}

fn blobs(sizes: &[u64]) -> Vec<Content> {
    sizes
        .iter()
        .map(|&size| Content::Generated { seed: size, size })
        .collect()
}

#[test]
fn skopeo_and_curl_pull_over_tls() {
    require!("skopeo", "curl");
    let scene = Scene::new(&blobs(&[2_000, 3 * MIB + 1]), "");
    let copied = skopeo_copy_trusting(&scene.grant.target, &scene.authority.roots());
    for digest in &scene.layers {
        assert!(copied.contains(digest), "{digest} in {copied:?}");
    }
    let authority = scene.grant.target.split('/').next().expect("a first part");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let curl = |roots: &Path, more: &[&str]| {
        let path = scene.grant.blob(&scene.layers[1]);
        let mut curl = command("curl");
        curl.args(["--silent", "--show-error", "--fail", "--cacert"])
            .arg(roots)
            .args(more)
            .arg(format!("https://{authority}{path}"));
        curl
    };
    let root = scene.authority.roots().join("ca.crt");
    for version in [&["--tlsv1.3"][..], &["--tls-max", "1.2"]] {
        let body = run(&mut curl(&root, version)).stdout;
        assert_eq!(digest(&body), scene.layers[1], "{version:?}");
    }
    // Interrupted, and taken up again.
    let part = folder.path().join("part");
    let whole = run(&mut curl(&root, &[])).stdout;
    fs::write(&part, &whole[..1_000_000]).expect("a writable folder");
    let part = part.to_str().expect("a path in UTF-8");
    run(&mut curl(&root, &["--continue-at", "-", "--output", part]));
    assert_eq!(digest(&fs::read(part).expect("a file")), scene.layers[1]);

    let stranger = Authority::new();
    let refused = output(&mut curl(&stranger.roots().join("ca.crt"), &[]));
    assert!(!refused.status.success(), "whom it does not trust");
}

/// On the miss and on the hit, of every way to send: in one piece, from a mapping, over several windows.
#[test]
fn every_size_arrives_as_it_is_on_one_connection() {
    let sizes = [
        0,
        1,
        2_048,
        16_384,
        16_385,
        65_536,
        262_143,
        MIB,
        MIB + 1,
        5 * MIB + 4_097,
    ];
    let contents = blobs(&sizes);
    let scene = Scene::new(&contents, "");
    let mut connection = scene.connect();
    assert_eq!(connection.alpn(), Some(&b"http/1.1"[..]));
    for _ in ["miss", "hit"] {
        for (layer, size) in scene.layers.iter().zip(sizes) {
            let path = scene.grant.blob(layer);
            connection.request("GET", &path, &[], b"");
            let response = connection.response("GET");
            assert_eq!(response.status(), 200, "{size}: {}", response.text());
            assert_eq!(response.digest(), *layer, "{size}");
            scene.tidegate.wait_until_stored(layer);
        }
    }
    let (layer, content) = (&scene.layers[9], contents[9].bytes());
    let path = scene.grant.blob(layer);
    let size = content.len();
    for (from, to) in [
        (0, 0),
        (1, 4_096),
        (4_095, 8_192),
        (100_000, 3_000_000),
        (size - 1, size - 1),
    ] {
        let range = format!("bytes={from}-{to}");
        connection.request("GET", &path, &[("Range", &range)], b"");
        let response = connection.response("GET");
        assert_eq!(response.status(), 206, "{range}");
        assert!(response.body == content[from..=to], "{range}");
    }
    connection.request("HEAD", &path, &[], b"");
    let response = connection.response("HEAD");
    assert_eq!(response.status(), 200);
    assert_eq!(response.head.content_length(), Some(size as u64));
    connection.request("GET", &path, &[("Connection", "close")], b"");
    assert_eq!(connection.response("GET").digest(), *layer);
    assert!(connection.is_closed_by_peer());
    let gets = scene.liar.blob_gets("acme/app", layer);
    assert_eq!(gets, 1, "the second time came from the cache");
}

#[test]
fn a_session_is_taken_up_again_on_whichever_core() {
    let scene = Scene::new(&[], "");
    // The tickets come with the first answer.
    assert_eq!(scene.request("GET", "/v2/", &[]).status(), 200);
    for _ in 0..8 {
        let mut connection = scene.connect();
        assert!(connection.is_resumed());
        connection.request("GET", "/v2/", &[], b"");
        assert_eq!(connection.response("GET").status(), 200);
    }
}

#[test]
fn a_renewed_certificate_is_taken_up_without_a_restart() {
    let scene = Scene::new(&blobs(&[MIB]), "");
    let old = scene.certificate();
    let mut open = scene.connect();
    let new = scene.authority.issue();
    wait_until("the new certificate", || scene.certificate() == new);
    assert_ne!(old, new);
    // What was open goes on.
    open.request("GET", &scene.grant.blob(&scene.layers[0]), &[], b"");
    assert_eq!(open.response("GET").digest(), scene.layers[0]);
}

#[test]
fn a_bad_pair_leaves_the_old_one_in_use() {
    let scene = Scene::new(&[], "");
    let old = scene.certificate();
    let (certificate, other_key, _) = scene.authority.pair();
    for (content, told) in [
        (certificate.as_str(), "does not belong to"),
        ("garbage", "holds no certificate"),
    ] {
        fs::write(scene.authority.certificate_file(), content).expect("a writable folder");
        scene.wait_for_log(told);
        assert_eq!(scene.certificate(), old, "{told}");
    }
    fs::remove_file(scene.authority.key_file()).expect("it was there");
    scene.wait_for_log("cannot read");
    assert_eq!(scene.certificate(), old);
    // Each was told once, with what to do.
    let told = |line: &str| line.contains("the old one stays") && line.contains("listener.tls");
    assert_eq!(scene.tidegate.log().count(told), 3);
    assert!(!scene.tidegate.log().text().contains("PRIVATE KEY"));

    fs::write(scene.authority.certificate_file(), certificate).expect("a writable folder");
    fs::write(scene.authority.key_file(), other_key).expect("a writable folder");
    wait_until("the pair that is whole again", || {
        scene.certificate() != old
    });
}

#[test]
fn a_handshake_that_stalls_is_cut() {
    let scene = Scene::new(&[], "head_timeout = \"1s\"");
    let mut silent = scene.tidegate.connect();
    let mut half = scene.tidegate.connect();
    half.send([0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00]);
    let mut trickling = scene.tidegate.connect();
    trickling.send([0x16]);
    assert!(silent.is_closed_by_peer());
    assert!(half.is_closed_by_peer());
    assert!(trickling.is_closed_by_peer());
    assert_eq!(scene.request("GET", "/v2/", &[]).status(), 200);
    let metrics = crate::support::http::get(scene.tidegate.admin, "/metrics").text();
    let failed = metrics
        .lines()
        .find_map(|line| line.strip_prefix("tidegate_tls_handshakes_failed_total "));
    assert_eq!(failed, Some("3"));
}

#[test]
fn a_reader_that_stalls_is_cut() {
    let size = 24 * MIB;
    let scene = Scene::new(&blobs(&[size]), "send_timeout = \"1s\"");
    let path = scene.grant.blob(&scene.layers[0]);
    assert_eq!(scene.request("GET", &path, &[]).digest(), scene.layers[0]);
    scene.tidegate.wait_until_stored(&scene.layers[0]);
    let mut connection = scene.connect();
    connection.request("GET", &path, &[], b"");
    assert_eq!(connection.head().expect("an answer").status, 200);
    let cut = "tidegate_responses_cut_total 1\n";
    wait_until("the end of the stalled", || {
        let metrics = crate::support::http::get(scene.tidegate.admin, "/metrics");
        metrics.text().contains(cut)
    });
    let received = connection.rest();
    assert!((received.len() as u64) < size, "it was not cut");
    assert_eq!(scene.request("GET", &path, &[]).digest(), scene.layers[0]);
}

#[test]
fn readers_that_stall_hold_a_batch_each_at_most() {
    const READERS: u64 = 24;
    let scene = Scene::new(&blobs(&[24 * MIB]), "");
    let path = scene.grant.blob(&scene.layers[0]);
    assert_eq!(scene.request("GET", &path, &[]).digest(), scene.layers[0]);
    scene.tidegate.wait_until_stored(&scene.layers[0]);
    let mut connections: Vec<Connection> = (0..READERS).map(|_| scene.connect()).collect();
    assert_eq!(scene.request("GET", &path, &[]).digest(), scene.layers[0]);
    let before = scene.tidegate.resident_memory();
    for connection in &mut connections {
        connection.request("GET", &path, &[], b"");
        assert_eq!(connection.head().expect("an answer").status, 200);
    }
    // Others are not kept waiting by them.
    assert_eq!(scene.request("GET", &path, &[]).digest(), scene.layers[0]);
    let after = scene.tidegate.resident_memory();
    assert!(
        after < before + READERS * (192 << 10),
        "{before} bytes before {READERS} stalled readers, {after} with them"
    );
}

/// Parts that are in memory and parts that are not, in one answer.
#[test]
fn a_blob_that_has_left_memory_is_read_from_disk() {
    require!("dd");
    let scene = Scene::new(&blobs(&[8 * MIB + 5]), "");
    let path = scene.grant.blob(&scene.layers[0]);
    assert_eq!(scene.request("GET", &path, &[]).digest(), scene.layers[0]);
    scene.tidegate.wait_until_stored(&scene.layers[0]);
    let file = scene.tidegate.stored(&scene.layers[0]).expect("stored");
    let dd = |more: &[&str]| {
        let mut dd = command("dd");
        dd.arg(format!("if={}", file.display())).args(more);
        run(&mut dd);
    };
    let drop_all = ["of=/dev/null", "iflag=nocache", "count=0"];
    dd(&drop_all);
    assert_eq!(scene.request("GET", &path, &[]).digest(), scene.layers[0]);
    dd(&drop_all);
    dd(&["of=/dev/null", "bs=68K", "skip=40", "count=1"]);
    assert_eq!(scene.request("GET", &path, &[]).digest(), scene.layers[0]);
}

/// What it tells people to type works.
#[test]
fn the_first_page_has_the_scheme_in_its_example() {
    let scene = Scene::new(&[], "");
    let page = scene.request("GET", "/", &[]).text();
    let example = format!(
        "curl -s https://{}/v1alpha2/container",
        scene.tidegate.registry
    );
    assert!(page.contains(&example), "{page}");
}

#[test]
fn plain_http_is_told_to_use_https_and_garbage_is_cut() {
    let scene = Scene::new(&[], "");
    let mut connection = scene.tidegate.connect();
    connection.request("GET", "/v2/", &[], b"");
    let response = connection.response("GET");
    assert_eq!(response.status(), 400);
    assert!(response.text().contains("https://"), "{}", response.text());
    assert!(connection.is_closed_by_peer());
    scene.wait_for_log("plain HTTP on a listener with TLS");

    let mut connection = scene.tidegate.connect();
    connection.send([0x00; 64]);
    let alert = connection.rest();
    assert_eq!(alert.first(), Some(&0x15), "a TLS alert: {alert:?}");

    let admin = crate::support::http::get(scene.tidegate.admin, "/livez");
    assert_eq!(admin.status(), 200, "the admin listener stays plain");
}

/// Half a blob must not look whole, and the others must notice nothing.
#[test]
fn a_blob_that_was_cut_short_on_disk_costs_its_connection_only() {
    let scene = Scene::new(&blobs(&[8 * MIB]), "");
    let path = scene.grant.blob(&scene.layers[0]);
    assert_eq!(scene.request("GET", &path, &[]).digest(), scene.layers[0]);
    scene.tidegate.wait_until_stored(&scene.layers[0]);
    let mut connection = scene.connect();
    connection.request("GET", &path, &[], b"");
    let head = connection.head().expect("an answer");
    let mut body = connection.body("GET", &head);
    let start = body.read_exactly(100_000);
    let file = open_stored(&scene.tidegate, &scene.layers[0]);
    file.set_len(3 * MIB).expect("shortened");
    let mut rest = Vec::new();
    body.read_to_end(&mut rest).expect("a readable body");
    let end = body.end();
    let whole = [start, rest].concat();
    assert!(
        end == End::Cut || digest(&whole) == scene.layers[0],
        "a whole answer with other bytes"
    );
    assert_eq!(scene.request("GET", "/v2/", &[]).status(), 200);
}

#[test]
fn a_server_without_a_usable_pair_does_not_start() {
    let authority = Authority::new();
    fs::write(authority.certificate_file(), authority.pair().0).expect("a writable folder");
    let (code, log) = Setup::new()
        .section(&authority.section(""))
        .fails_to_start();
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("does not belong to"), "{log}");
    assert!(log.contains("listener.tls.key_file"), "{log}");
}
