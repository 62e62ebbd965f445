//! HTTP/1.1 as clients, scanners and attackers speak it.

use serde_json::json;

use crate::support::{
    content::Content,
    http::{Connection, End},
    liar::{Liar, LiarImage},
    tidegate::{Grant, Setup, Tidegate},
};

struct Scene {
    image: LiarImage,
    tidegate: Tidegate,
    grant: Grant,
    reference: String,
    _liar: Liar,
}

impl Scene {
    fn new(listener: &str) -> Self {
        let liar = Liar::open();
        let image = liar.image("acme/app", "v1", &[Content::of("layer")]);
        let tidegate = Setup::new()
            .liar(&liar)
            .section(&format!("[listener]\n{listener}"))
            .start();
        let reference = liar.reference("acme/app", "v1");
        let grant = tidegate.grant(&reference);
        Self {
            image,
            tidegate,
            grant,
            reference,
            _liar: liar,
        }
    }

    fn layer(&self) -> String {
        self.grant.blob(&self.image.layers[0])
    }

    fn submit_body(&self) -> String {
        json!({"containerImage": self.reference}).to_string()
    }
}

#[test]
fn one_connection_serves_one_request_after_the_other() {
    let scene = Scene::new("");
    let mut connection = scene.tidegate.connect();
    for (method, path, status) in [
        ("GET", "/v2/".to_owned(), 200),
        ("HEAD", scene.grant.manifest("v1"), 200),
        ("GET", scene.layer(), 200),
        ("HEAD", scene.layer(), 200),
        ("GET", scene.grant.manifest("none"), 404),
        ("HEAD", scene.grant.manifest("none"), 404),
        ("GET", "/nowhere".to_owned(), 404),
        ("HEAD", "/nowhere".to_owned(), 404),
        ("GET", scene.grant.manifest("v1"), 200),
        ("GET", "/health".to_owned(), 200),
    ] {
        connection.request(method, &path, &[], b"");
        let response = connection.response(method);
        assert_eq!(response.status(), status, "{method} {path}");
        assert_eq!(response.end, End::Complete);
        assert!(!response.head.closes(), "{method} {path}");
        if method == "HEAD" {
            assert!(response.head.content_length().is_some(), "{path}");
        }
    }
    let body = scene.submit_body();
    for _ in 0..2 {
        let headers = [("Content-Type", "application/json")];
        connection.request("POST", "/v1alpha2/container", &headers, body.as_bytes());
        assert_eq!(connection.response("POST").status(), 200);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let scene = Scene::new("");
    let mut connection = scene.tidegate.connect();
    let requests: Vec<_> = [
        ("GET", scene.layer()),
        ("HEAD", scene.layer()),
        ("GET", "/nowhere".to_owned()),
        ("GET", scene.grant.manifest("v1")),
        ("GET", scene.layer()),
    ]
    .into_iter()
    .collect();
    let bytes: String = requests
        .iter()
        .map(|(method, path)| format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
        .collect();
    connection.send(bytes);
    let answers: Vec<_> = requests
        .iter()
        .map(|(method, _)| connection.response(method))
        .collect();
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status()).collect();
    assert_eq!(statuses, [200, 200, 404, 200, 200]);
    assert_eq!(answers[0].text(), "layer");
    assert_eq!(answers[1].text(), "");
    assert_eq!(answers[3].digest(), scene.image.manifest);
    assert_eq!(answers[4].text(), "layer");
}

#[test]
fn a_request_may_arrive_in_any_pieces() {
    let scene = Scene::new("");
    let body = scene.submit_body();
    let request = format!(
        "\r\nPOST /v1alpha2/container HTTP/1.1\r\nhost: x\r\ncontent-LENGTH:  {}  \r\n\r\n{body}",
        body.len()
    );
    for size in [1, 7, 40] {
        let mut connection = scene.tidegate.connect();
        for piece in request.as_bytes().chunks(size) {
            connection.send(piece);
        }
        assert_eq!(
            connection.response("POST").status(),
            200,
            "pieces of {size}"
        );
    }
}

#[test]
fn a_chunked_body_is_read() {
    let scene = Scene::new("");
    let body = scene.submit_body();
    let (first, second) = body.split_at(9);
    let mut connection = scene.tidegate.connect();
    connection.send(format!(
        "POST /v1alpha2/container HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x}\r\n{first}\r\n{:X};name=value\r\n{second}\r\n0\r\nTrailer: x\r\n\r\n\
         GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
        first.len(),
        second.len()
    ));
    let response = connection.response("POST");
    assert_eq!(response.status(), 200, "{}", response.text());
    assert_eq!(connection.response("GET").status(), 200);
}

#[test]
fn a_client_that_asks_before_it_sends_is_answered() {
    let scene = Scene::new("");
    let body = scene.submit_body();
    let mut connection = scene.tidegate.connect();
    connection.send(format!(
        "POST /v1alpha2/container HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ));
    let interim = connection.head().expect("an answer before the body");
    assert_eq!(interim.status, 100);
    connection.send(&body);
    assert_eq!(connection.response("POST").status(), 200);
}

#[test]
fn the_old_version_is_served_and_the_connection_closed() {
    let scene = Scene::new("");
    for path in ["/v2/".to_owned(), scene.layer(), scene.grant.manifest("v1")] {
        let mut connection = scene.tidegate.connect();
        connection.send(format!("GET {path} HTTP/1.0\r\n\r\n"));
        let response = connection.response("GET");
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(
            response.head.version, "HTTP/1.1",
            "what we speak, not what we heard"
        );
        assert_eq!(response.header("transfer-encoding"), None);
        assert!(connection.is_closed_by_peer(), "{path}");
    }
}

#[test]
fn a_client_may_end_the_connection_with_its_request() {
    let scene = Scene::new("");
    let mut connection = scene.tidegate.connect();
    connection.request("GET", &scene.layer(), &[("Connection", "close")], b"");
    let response = connection.response("GET");
    assert_eq!(response.text(), "layer");
    assert!(response.head.closes());
    assert!(connection.is_closed_by_peer());
    // Half-closed: it says no more, and still wants its answer.
    let mut connection = scene.tidegate.connect();
    connection.request("GET", &scene.layer(), &[], b"");
    connection.finish_sending();
    assert_eq!(connection.response("GET").text(), "layer");
    assert!(connection.is_closed_by_peer());
}

#[test]
fn a_target_may_be_a_whole_url() {
    let scene = Scene::new("");
    let path = scene.layer();
    let target = format!("http://{}{path}", scene.tidegate.registry);
    let mut connection = scene.tidegate.connect();
    connection.request("GET", &target, &[], b"");
    assert_eq!(connection.response("GET").text(), "layer");
}

#[test]
fn paths_are_not_tidied_up_into_others() {
    let scene = Scene::new("");
    let token = &scene.grant.token;
    let digest = &scene.image.layers[0];
    let shouted = format!("/V2/wt/{token}/acme/app/blobs/{digest}");
    assert_eq!(scene.tidegate.get(&shouted).status(), 404);
    for path in [
        format!("/v2/wt/{token}/acme/other/../app/blobs/{digest}"),
        format!("/v2/wt/{token}/acme//app/blobs/{digest}"),
        format!("/v2//wt/{token}/acme/app/blobs/{digest}"),
        format!("/v2/wt/{token}/acme%2Fapp/blobs/{digest}"),
        format!("/v2/wt/{token}/acme/app/blobs/{digest}/"),
        format!("/v2/wt/{token}/ACME/app/blobs/{digest}"),
        format!("/v2/wt/{token}/acme/app/blobs/"),
        format!("/v2/wt/{token}/acme/app/"),
        format!("/v2/wt/{token}"),
        "/v2/wt/".to_owned(),
    ] {
        let response = scene.tidegate.get(&path);
        assert!(
            matches!(response.status(), 400 | 404),
            "{path}: {}",
            response.status()
        );
        response.error_code();
    }
}

#[test]
fn a_head_may_be_large_but_not_without_end() {
    let scene = Scene::new("");
    let mut connection = scene.tidegate.connect();
    let authorization = format!("Basic {}", "a".repeat(16 << 10));
    connection.request("GET", "/v2/", &[("Authorization", &authorization)], b"");
    assert_eq!(connection.response("GET").status(), 200);
    let long = "a".repeat(64 << 10);
    let many = "a: b\r\n".repeat(20_000);
    for head in [
        format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n"),
        format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{long}: x\r\n\r\n"),
        format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
        format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX: {long}{long}{long}"),
        format!("GET /v2/{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
    ] {
        let mut connection = scene.tidegate.connect();
        connection.send(&head);
        let response = connection.response("GET");
        assert!(
            matches!(response.status(), 431 | 414),
            "{}: {:.60}",
            response.status(),
            head
        );
        assert!(connection.is_closed_by_peer());
    }
}

#[test]
fn a_head_that_comes_too_slowly_is_cut() {
    let scene = Scene::new("head_timeout = \"1s\"");
    let mut connection = scene.tidegate.connect();
    connection.send("GET /v2/ HTTP/1.1\r\nHost: x\r\n");
    let said = connection.rest();
    let text = String::from_utf8_lossy(&said);
    assert!(
        said.is_empty() || text.starts_with("HTTP/1.1 408 "),
        "{text}"
    );
    // Nobody else is held up by it.
    assert_eq!(scene.tidegate.get("/v2/").status(), 200);
}

#[test]
fn a_connection_that_asks_nothing_is_closed() {
    let scene = Scene::new("idle_timeout = \"1s\"");
    let mut silent = scene.tidegate.connect();
    assert!(silent.is_closed_by_peer());
    let mut kept = scene.tidegate.connect();
    kept.request("GET", "/v2/", &[], b"");
    assert_eq!(kept.response("GET").status(), 200);
    assert!(kept.is_closed_by_peer());
}

#[test]
fn a_body_may_not_be_larger_than_the_operator_allows() {
    let scene = Scene::new("max_body_size = \"2KiB\"");
    let large = "x".repeat(3 << 10);
    for head in [
        "Content-Length: 3072\r\n\r\n".to_owned() + &large,
        format!("Transfer-Encoding: chunked\r\n\r\nC00\r\n{large}\r\n0\r\n\r\n"),
        "Content-Length: 99999999999999\r\n\r\n".to_owned(),
    ] {
        let mut connection = scene.tidegate.connect();
        connection.send(format!(
            "POST /v1alpha2/container HTTP/1.1\r\nHost: x\r\n{head}"
        ));
        let response = connection.response("POST");
        assert_eq!(response.status(), 413, "{head:.40}");
        assert!(response.json()["message"].is_string());
        assert!(connection.is_closed_by_peer());
    }
    assert_eq!(
        scene
            .tidegate
            .post_text("/v1alpha2/container", &scene.submit_body())
            .status(),
        200
    );
}

/// A browser or a runtime that was told `https://`: it shows what it receives, if that is text.
#[test]
fn a_tls_hello_is_told_that_this_is_plain_http() {
    let scene = Scene::new("");
    let mut connection = scene.tidegate.connect();
    let mut hello = vec![
        0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03,
    ];
    hello.extend([0x5a; 501]);
    connection.send(hello);
    let response = connection.response("GET");
    assert_eq!(response.status(), 400);
    let content_type = response.header("content-type").unwrap_or_default();
    assert!(content_type.starts_with("text/plain"), "{content_type}");
    assert!(response.text().contains("HTTP"), "{}", response.text());
    assert!(connection.is_closed_by_peer());
}

/// What two parsers may read in two ways is read in none, and whatever follows it is not read at all.
#[test]
fn requests_of_two_meanings_are_refused_and_the_connection_ends() {
    let scene = Scene::new("");
    let smuggled = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let post = "POST /v1alpha2/container HTTP/1.1\r\nHost: x\r\n";
    for request in [
        format!("{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
        format!("{post}Content-Length: 5\r\nContent-Length: 6\r\n\r\n{{}}   "),
        format!("{post}Content-Length: 5, 6\r\n\r\n{{}}   "),
        format!("{post}Content-Length: +2\r\n\r\n{{}}"),
        format!("{post}Content-Length: -2\r\n\r\n{{}}"),
        format!("{post}Content-Length: 0x2\r\n\r\n{{}}"),
        format!("{post}Content-Length: 2 2\r\n\r\n{{}}"),
        format!("{post}Content-Length: \r\n\r\n{{}}"),
        format!("{post}Content-Length: 18446744073709551618\r\n\r\n{{}}"),
        format!("{post}Content-Length : 2\r\n\r\n{{}}"),
        format!("{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        format!("{post} Content-Length: 2\r\n\r\n{{}}"),
        format!("{post}X: y\r\n Content-Length: 2\r\n\r\n{{}}"),
        format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: identity\r\n\r\n"),
        format!("{post}Transfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n"),
        "POST /v1alpha2/container HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        format!("{post}Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n0x2\r\n{{}}\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n-2\r\n{{}}\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}XX0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n\r\n{{}}\r\n0\r\n\r\n"),
        "GET /v2/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n".to_owned(),
        "GET /v2/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET /v2/ HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n".to_owned(),
        "GET /v2/ HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n".to_owned(),
        "GET /v2/ HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n".to_owned(),
        "GET /v2/ HTTP/1.1\r\nHost: x\r\n: empty\r\n\r\n".to_owned(),
        "GET /v2/ HTTP/2.0\r\nHost: x\r\n\r\n".to_owned(),
        "GET /v2/\r\nHost: x\r\n\r\n".to_owned(),
        "GET /v2/ HTTP/1.1 more\r\nHost: x\r\n\r\n".to_owned(),
        "G\u{1}T /v2/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "GET v2/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
    ] {
        let mut connection = scene.tidegate.connect();
        connection.send(format!("{request}{smuggled}"));
        let said = connection.rest();
        let text = String::from_utf8_lossy(&said).into_owned();
        let first = text.lines().next().unwrap_or_default();
        assert!(
            ["HTTP/1.1 400 ", "HTTP/1.1 501 ", "HTTP/1.1 505 "]
                .iter()
                .any(|start| first.starts_with(start)),
            "{request:?}: {text}"
        );
        let answers = text.lines().filter(|line| line.starts_with("HTTP/"));
        assert_eq!(answers.count(), 1, "{request:?}: {text}");
        assert!(!text.contains("\"UP\""), "{request:?} let a second request in: {text}");
    }
}

#[test]
fn a_body_that_nobody_reads_is_not_taken_for_the_next_request() {
    let scene = Scene::new("");
    let smuggled = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    for head in [
        "GET /v2/ HTTP/1.1",
        "POST /nowhere HTTP/1.1",
        "PUT /v2/acme/app/manifests/v1 HTTP/1.1",
        "DELETE /container-token/abcdefghijkl HTTP/1.1",
    ] {
        let mut connection = scene.tidegate.connect();
        let length = smuggled.len();
        connection.send(format!(
            "{head}\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{smuggled}"
        ));
        connection.send("GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let text = String::from_utf8_lossy(&connection.rest()).into_owned();
        assert!(!text.contains("\"UP\""), "{head}: {text}");
    }
}

#[test]
fn errors_have_the_shape_of_their_place() {
    let scene = Scene::new("");
    for (method, path, status) in [
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1alpha2/container", 405),
        ("GET", "/container-token", 405),
        ("TRACE", "/health", 405),
    ] {
        let response = scene.tidegate.request(method, path, &[]);
        assert_eq!(response.status(), status, "{method} {path}");
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert!(
            response.json()["message"].is_string(),
            "{}",
            response.text()
        );
        assert!(
            status != 405 || response.header("allow").is_some(),
            "{path}"
        );
    }
    for (method, path) in [
        ("GET", "/v2/x"),
        ("GET", "/v2/_catalog"),
        ("POST", "/v2/acme/app/blobs/uploads/"),
    ] {
        let response = scene.tidegate.request(method, path, &[]);
        assert!(matches!(response.status(), 404 | 405), "{method} {path}");
        response.error_code();
    }
}

#[test]
fn nothing_tells_a_client_to_log_in() {
    let scene = Scene::new("");
    for path in [
        "/v2/",
        "/v2/wt/abcdefghijkl/acme/app/manifests/v1",
        "/v2/acme/app/manifests/v1",
    ] {
        let headers = [("Authorization", "Basic YWRhOmh1bnRlcjI=")];
        let response = scene.tidegate.request("GET", path, &headers);
        assert_ne!(response.status(), 401, "{path}");
        assert_eq!(response.header("www-authenticate"), None, "{path}");
    }
}

#[test]
fn a_connection_too_many_is_told_so() {
    let scene = Scene::new("max_connections = 4");
    let kept: Vec<Connection> = (0..4)
        .map(|_| {
            let mut connection = scene.tidegate.connect();
            connection.request("GET", "/v2/", &[], b"");
            assert_eq!(connection.response("GET").status(), 200);
            connection
        })
        .collect();
    let mut refused = scene.tidegate.connect();
    refused.request("GET", "/v2/", &[], b"");
    assert_eq!(refused.response("GET").status(), 503);
    assert!(refused.is_closed_by_peer());
    drop(kept);
    crate::support::programs::wait_until("a place", || scene.tidegate.get("/v2/").status() == 200);
}
