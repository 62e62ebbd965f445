//! The servers that the tests play do what the tests rely on, without the product.

use std::process::Command;

use crate::support::{
    accounts::Accounts,
    authority::Authority,
    content::{Content, digest},
    docker_registry::{DockerRegistry, Login, PASSWORD, USER},
    fake_platform::{self, FakePlatform},
    http::{self, Connection, End},
    image::{Image, file_digest},
    liar::{Auth, Behaviour, Gate, Liar, OCI_INDEX, blob_path, covered, manifest_path, sent_again},
    mirror_content::{Shelf, raw_manifest, referrers_tag},
    passage::{Kind, Obstacle, Passage},
    programs::{output, require, run, wait_until},
    runtimes::{Containerd, podman_pull, skopeo_copy},
    storage::Storage,
    token_server::TokenServer,
};

#[test]
fn generated_content_is_the_same_from_any_offset() {
    let content = Content::Generated {
        seed: 3,
        size: 1001,
    };
    let whole = content.bytes();
    assert_eq!(whole.len(), 1001);
    for (start, end) in [(0, 1), (1, 9), (7, 8), (8, 1001), (13, 700)] {
        let mut part = Vec::new();
        std::io::Read::read_to_end(&mut content.range(start, end), &mut part)
            .expect("content in memory is readable");
        assert_eq!(part, whole[start as usize..end as usize], "{start}..{end}");
    }
    assert_eq!(content.digest(), digest(&whole));
}

#[test]
fn the_liar_serves_and_misbehaves_as_told() {
    let liar = Liar::open();
    let layer = Content::Generated {
        seed: 1,
        size: 300_000,
    };
    let image = liar.image("acme/app", "v1", std::slice::from_ref(&layer));
    let path = blob_path("acme/app", &image.layers[0]);
    let get = || http::pull(liar.address(), &path);
    assert_eq!(get().digest, image.layers[0]);
    let manifest = http::get(liar.address(), &manifest_path("acme/app", "v1"));
    assert_eq!(manifest.digest(), image.manifest);

    for (behaviour, status, size, end) in [
        (Behaviour::WrongBytes, 200, 300_000, End::Complete),
        (Behaviour::CutAfter(1000), 200, 1000, End::Cut),
        (Behaviour::Chunked, 200, 300_000, End::Complete),
        (Behaviour::UntilClose, 200, 300_000, End::Complete),
        (Behaviour::status(503), 503, 0, End::Complete),
    ] {
        liar.misbehave_in_turn(&path, &[behaviour]);
        let pulled = get();
        assert_eq!(
            (pulled.head.status, pulled.size, pulled.end),
            (status, size, end)
        );
        assert_eq!(get().digest, image.layers[0], "only once");
    }

    let gate = Gate::default();
    liar.misbehave(&path, Behaviour::Gated(5, gate.clone()));
    let mut connection = Connection::open(liar.address());
    connection.request("GET", &path, &[], b"");
    let head = connection.head().expect("an answer");
    let mut body = connection.body("GET", &head);
    assert_eq!(body.read_exactly(5), layer.bytes()[..5]);
    gate.open();
    assert_eq!(body.read_exactly(299_995), layer.bytes()[5..]);
    assert_eq!(liar.blob_gets("acme/app", &image.layers[0]), 12);
}

#[test]
fn the_liar_sends_parts_and_lies_about_them_as_told() {
    let liar = Liar::open();
    let content = Content::Generated {
        seed: 1,
        size: 1000,
    };
    let digest = liar.blob("acme/app", content.clone());
    let path = blob_path("acme/app", &digest);
    let whole = content.bytes();
    let all = |behaviours: &[Behaviour]| Behaviour::All(behaviours.to_vec());
    for (behaviour, range, content_range, sent) in [
        (
            Behaviour::Honest,
            "bytes=100-199",
            "bytes 100-199/1000",
            100..200,
        ),
        (
            Behaviour::Honest,
            "bytes=900-",
            "bytes 900-999/1000",
            900..1000,
        ),
        (
            Behaviour::Honest,
            "bytes=900-5000",
            "bytes 900-999/1000",
            900..1000,
        ),
        (
            Behaviour::Honest,
            "bytes=-10",
            "bytes 990-999/1000",
            990..1000,
        ),
        (Behaviour::Honest, "bytes=1-2,5-6", "", 0..1000),
        (Behaviour::IgnoreRange, "bytes=100-199", "", 0..1000),
        (
            Behaviour::PartFromEarlier(50),
            "bytes=100-199",
            "bytes 50-199/1000",
            50..200,
        ),
        (
            Behaviour::ShorterPart(7),
            "bytes=100-199",
            "bytes 100-106/1000",
            100..107,
        ),
        (
            Behaviour::PartOfOther(5),
            "bytes=100-199",
            "bytes 100-199/5",
            100..200,
        ),
        (
            Behaviour::PartOfUnknown,
            "bytes=100-199",
            "bytes 100-199/*",
            100..200,
        ),
        (Behaviour::UnaskedPart(3..9), "", "bytes 3-8/1000", 3..9),
        (
            Behaviour::CutAfter(30),
            "bytes=100-199",
            "bytes 100-199/1000",
            100..130,
        ),
        (
            all(&[Behaviour::Chunked, Behaviour::ShorterPart(7)]),
            "bytes=100-199",
            "bytes 100-106/1000",
            100..107,
        ),
        (
            all(&[Behaviour::UntilClose, Behaviour::CutAfter(30)]),
            "bytes=100-199",
            "bytes 100-199/1000",
            100..130,
        ),
    ] {
        let before = liar.sent(&path).len();
        liar.misbehave_in_turn(&path, std::slice::from_ref(&behaviour));
        let headers = [("Range", range)];
        let response = http::request(liar.address(), "GET", &path, &headers, b"");
        let what = format!("{behaviour:?} {range}");
        let said = response.header("content-range").unwrap_or_default();
        assert_eq!(said, content_range, "{what}");
        let status = if said.is_empty() { 200 } else { 206 };
        assert_eq!(response.status(), status, "{what}");
        let expected = &whole[sent.start as usize..sent.end as usize];
        assert!(response.body == expected, "{what}");
        assert_eq!(liar.sent(&path)[before..], [sent], "{what}");
    }
    let response = http::request(
        liar.address(),
        "GET",
        &path,
        &[("Range", "bytes=1000-")],
        b"",
    );
    let said = response.header("content-range");
    assert_eq!((response.status(), said), (416, Some("bytes */1000")));

    liar.misbehave(&path, Behaviour::WrongByteAt(500));
    for (range, wrong) in [("bytes=0-499", None), ("bytes=400-600", Some(100))] {
        let response = http::request(liar.address(), "GET", &path, &[("Range", range)], b"");
        let start = response.head.content_range().expect("a part").bytes.start;
        let expected = &whole[start as usize..];
        let differs = response.body.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(differs, wrong, "{range}");
    }
}

#[test]
fn the_liar_notices_who_leaves_and_what_was_sent_again() {
    let liar = Liar::open();
    let content = Content::Generated {
        seed: 1,
        size: 1 << 20,
    };
    let digest = liar.blob("acme/app", content);
    let path = blob_path("acme/app", &digest);
    for behaviour in [
        Behaviour::StallAfter(1000),
        Behaviour::Trickling(1000, Gate::default()),
    ] {
        liar.misbehave(&path, behaviour);
        let mut connection = Connection::open(liar.address());
        connection.request("GET", &path, &[], b"");
        let head = connection.head().expect("an answer");
        connection.body("GET", &head).read_exactly(1000);
    }
    liar.wait_for_leavers(&path, 2);
    assert_eq!(
        (
            covered(&[0..10, 5..20, 30..40]),
            sent_again(&[0..10, 5..20, 30..40])
        ),
        (30, 5)
    );
    let spans = liar.sent(&path);
    assert!(
        spans
            .iter()
            .all(|span| span.end >= 1000 && span.end < 1 << 20),
        "{spans:?}"
    );
}

#[test]
fn content_is_packed_and_named_as_other_programs_do_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for size in [0, 1, 65_535, 65_536, 300_000] {
        let content = Content::Generated { seed: 5, size };
        let packed = folder.path().join("packed");
        std::fs::write(&packed, content.gzip().bytes()).expect("a writable folder");
        let unpacked = run(Command::new("gzip").arg("-dc").arg(&packed)).stdout;
        assert!(unpacked == content.bytes(), "{size} bytes");
        let plain = folder.path().join("plain");
        std::fs::write(&plain, &unpacked).expect("a writable folder");
        let sum = run(Command::new("sha512sum").arg(&plain)).stdout;
        let sum = String::from_utf8_lossy(&sum);
        let hex = sum.split(' ').next().expect("a sum");
        assert_eq!(content.sha512(), format!("sha512:{hex}"), "{size} bytes");
    }
}

#[test]
fn parts_are_told_apart() {
    let mut headers = vec![(
        "Content-Type".to_owned(),
        "multipart/byteranges; boundary=x--y".to_owned(),
    )];
    let body = "--x--y\r\nContent-Range: bytes 0-2/10\r\n\r\nabc\r\n--x--y\r\n\
                content-type: a/b\r\ncontent-range: bytes 8-9/10\r\n\r\n\r\n\r\n--x--y--\r\n";
    let mut answer = |body: &str| http::Response {
        head: http::Head {
            version: "HTTP/1.1".to_owned(),
            status: 206,
            headers: std::mem::take(&mut headers),
        },
        body: body.as_bytes().to_vec(),
        end: End::Complete,
    };
    let parts = answer(body).parts();
    let got: Vec<_> = parts
        .iter()
        .map(|part| {
            (
                part.range.bytes.clone(),
                part.range.size,
                part.bytes.as_slice(),
            )
        })
        .collect();
    assert_eq!(got, [(0..3, 10, &b"abc"[..]), (8..10, 10, &b"\r\n"[..])]);
}

#[test]
fn the_liar_pages_its_tags() {
    let liar = Liar::open();
    for tag in ["a", "b", "c"] {
        liar.image("acme/app", tag, &[]);
    }
    let page = http::get(liar.address(), "/v2/acme/app/tags/list?n=2");
    assert_eq!(page.json()["tags"], serde_json::json!(["a", "b"]));
    assert_eq!(
        page.header("link"),
        Some("</v2/acme/app/tags/list?n=2&last=b>; rel=\"next\"")
    );
    let page = http::get(liar.address(), "/v2/acme/app/tags/list?n=2&last=b");
    assert_eq!(page.json()["tags"], serde_json::json!(["c"]));
    assert_eq!(page.header("link"), None);
}

#[test]
fn the_liar_tells_strangers_from_friends() {
    let accounts = Accounts::none()
        .with("ada", "secret", &["acme/app"])
        .with("bob", "hidden", &[]);
    let tokens = TokenServer::start(accounts.clone());
    let basic = Liar::start(Auth::Basic(accounts));
    basic.image("acme/app", "v1", &[]);
    let path = manifest_path("acme/app", "v1");
    for (authorization, status) in [
        ("Basic YWRhOnNlY3JldA==", 200),
        ("Basic Ym9iOmhpZGRlbg==", 403),
        ("Basic Ym9iOnNlY3JldA==", 401),
        ("Bearer x", 401),
    ] {
        let headers = [("Authorization", authorization)];
        let response = http::request(basic.address(), "GET", &path, &headers, b"");
        assert_eq!(response.status(), status, "{authorization}");
    }
    let bearer = Liar::start(Auth::Bearer {
        realm: tokens.realm(),
        issued: tokens.issued(),
    });
    bearer.image("acme/app", "v1", &[]);
    assert_eq!(http::get(bearer.address(), &path).status(), 401);
    for (login, status) in [("YWRhOnNlY3JldA==", 200), ("Ym9iOmhpZGRlbg==", 401)] {
        let login = format!("Basic {login}");
        let target = "/token?service=registry.test&scope=repository%3Aacme/app%3Apull";
        let token = http::request(
            tokens.address(),
            "GET",
            target,
            &[("Authorization", &login)],
            b"",
        );
        let token = token.json()["token"].as_str().expect("a token").to_owned();
        let headers = [("Authorization", &*format!("Bearer {token}"))];
        let response = http::request(bearer.address(), "GET", &path, &headers, b"");
        assert_eq!(response.status(), status);
    }
}

#[test]
fn debians_registry_takes_every_kind_of_login() {
    require!("docker-registry", "skopeo");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = Image::build_for(
        &folder.path().join("image"),
        &["amd64", "arm64"],
        &[10_000, 100_000],
    );
    let tokens = TokenServer::start(Accounts::none().with(USER, PASSWORD, &["acme/app"]));
    for (login, refusal, token_requests) in [
        (Login::Open, 200, false),
        (Login::Htpasswd, 401, false),
        (Login::Token(&tokens), 401, true),
    ] {
        let registry = DockerRegistry::start(&login);
        registry.push(&image, "acme/app", "v1");
        let copy = tempfile::tempdir().expect("a temporary folder");
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--src-tls-verify=false"])
            .arg(format!("--src-creds={USER}:{PASSWORD}"))
            .arg(format!("docker://{}/acme/app:v1", registry.name()))
            .arg(format!("dir:{}", copy.path().display())));
        let layer = &image.manifest().layers[1];
        let file = copy.path().join(layer.trim_start_matches("sha256:"));
        assert_eq!(&file_digest(&file), layer);
        assert_eq!(
            registry.blob_gets("acme/app", layer),
            1,
            "{}",
            registry.log()
        );
        let stranger = http::get(registry.address, "/v2/");
        assert_eq!(stranger.status(), refusal);
        assert_eq!(!tokens.requests().is_empty(), token_requests);
    }
}

#[test]
fn debians_registry_speaks_tls() {
    require!("docker-registry", "skopeo");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = Image::build(&folder.path().join("image"), &[100_000]);
    let registry = DockerRegistry::start_tls(&Login::Open);
    registry.push(&image, "acme/app", "v1");
    assert!(registry.ca_file().is_file());
    let copied = skopeo_copy(&format!("{}/acme/app:v1", registry.name()));
    assert_eq!(copied[0], image.digest);
    let layer = &image.manifest().layers[0];
    assert_eq!(registry.blob_gets("acme/app", layer), 1);
    // In the clear it says no.
    assert_eq!(http::get(registry.address, "/v2/").status(), 400);
}

#[test]
fn runtimes_pull_from_debians_registry() {
    require!(
        "docker-registry",
        "skopeo",
        "podman",
        "containerd",
        "ctr",
        "runc"
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = Image::build(&folder.path().join("image"), &[100_000, 1_000]);
    let registry = DockerRegistry::start(&Login::Open);
    registry.push(&image, "acme/app", "v1");
    let target = format!("{}/acme/app:v1", registry.name());
    assert_eq!(skopeo_copy(&target)[0], image.digest);
    assert_eq!(podman_pull(&target), image.digest);
    let containerd = Containerd::start();
    containerd.pull(&target);
    let fresh = Containerd::start();
    let mirror = format!("http://{}/v2", registry.name());
    fresh.pull_through_mirror("private.example", &mirror, "private.example/acme/app:v1");
    for digest in image.blobs() {
        assert_eq!(&containerd.stored(digest), digest);
        assert_eq!(&fresh.stored(digest), digest);
    }
}

#[test]
fn the_storage_logs_the_secrets_that_reach_it() {
    require!("nginx");
    let storage = Storage::start();
    let url = storage.put("blob", &Content::of("content"));
    let target = &url[url.find("/blob").expect("its path")..];
    let headers = [("Authorization", "Basic x"), ("Connection", "close")];
    let response = http::request(storage.address, "GET", target, &headers, b"");
    assert_eq!(response.text(), "content");
    let visits = storage.visits(1);
    assert_eq!(visits.len(), 1);
    assert_eq!(visits[0].authorization, "Basic x");
    assert_eq!(visits[0].cookie, "-");
    assert!(visits[0].request_line.contains("?X-Sig=a%2Fb+c~"));
}

#[test]
fn the_fake_platform_knows_its_users_over_https_too() {
    if !fake_platform::is_here() {
        return;
    }
    let authority = Authority::new();
    let platform = FakePlatform::start_tls(&authority.certificate_file(), &authority.key_file());
    platform.user("ada", 1, &[]);
    for (token, status) in [("ada", 200), ("eve", 401)] {
        let mut connection =
            Connection::open_tls(platform.api, &authority.client).expect("a session");
        let authorization = format!("Bearer {token}");
        let fields = [("Authorization", authorization.as_str())];
        connection.request("GET", "/api/user-info", &fields, b"");
        assert_eq!(connection.response("GET").status(), status, "{token}");
    }
    assert_eq!(platform.count("GET /user-info"), 2);
}

/// What is pushed with `POST` and `PUT`, straight or through a passage.
fn upload(address: std::net::SocketAddr, content: &Content) -> Option<u16> {
    let mut connection = Connection::open(address);
    connection.request("POST", "/v2/acme/app/blobs/uploads/", &[], b"");
    let opened = connection.head()?;
    if opened.status != 202 {
        return Some(opened.status);
    }
    let location = opened.header("location").expect("where to send it to");
    let (_, path) = location.split_once("/v2/").expect("a path of the registry");
    let path = format!("/v2/{path}&digest={}", content.digest());
    let mut connection = Connection::open(address);
    connection.request("PUT", &path, &[], &content.bytes());
    connection.head().map(|head| head.status)
}

#[test]
fn requests_pass_or_are_spoiled_on_their_way() {
    require!("docker-registry");
    let registry = DockerRegistry::start(&Login::Open);
    let passage = Passage::to(registry.address);
    let address = passage.name().parse().expect("an address");
    let content = |seed| Content::Generated { seed, size: 50_000 };

    assert_eq!(upload(address, &content(1)), Some(201));
    assert!(file_digest(&registry.stored(&content(1).digest())) == content(1).digest());
    passage.put(Kind::Opening, &[Obstacle::Nothing, Obstacle::later(429, 7)]);
    assert_eq!(upload(address, &content(2)), Some(201));
    assert_eq!(upload(address, &content(3)), Some(429));
    passage.put(
        Kind::Closing,
        &[Obstacle::CutAfter(1000), Obstacle::Unanswered],
    );
    assert_eq!(upload(address, &content(4)), None);
    assert_eq!(upload(address, &content(5)), None);
    wait_until("what was done without an answer", || {
        registry.blobs("acme/app").contains(&content(5).digest())
    });
    assert!(!registry.blobs("acme/app").contains(&content(4).digest()));
    assert_eq!(passage.count(Kind::Closing), 4);

    let gate = Gate::default();
    passage.put(Kind::Closing, &[Obstacle::Gated(20_000, gate.clone())]);
    std::thread::scope(|scope| {
        let uploading = scope.spawn(|| upload(address, &content(6)));
        passage.wait_for_halted(1);
        assert!(!registry.blobs("acme/app").contains(&content(6).digest()));
        gate.open();
        assert_eq!(uploading.join().expect("no panic"), Some(201));
    });
    // A body whose length nobody knows before its end.
    passage.put(Kind::Bytes, &[Obstacle::status(500)]);
    let mut connection = Connection::open(address);
    let chunked = "PATCH /v2/acme/app/blobs/uploads/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
                   5\r\nhello\r\n0\r\n\r\n";
    for expected in [500, 404] {
        connection.send(chunked);
        assert_eq!(connection.response("PATCH").status(), expected);
    }
}

#[test]
fn content_to_be_mirrored_is_taken_by_those_who_may_push() {
    require!("docker-registry", "skopeo");
    let source = DockerRegistry::start(&Login::Htpasswd);
    let shelf = Shelf::new(&source, "acme/app");
    let signed = shelf.signed("v1");
    let mut tags = signed.tags.clone();
    tags.sort();
    assert_eq!(source.tags("acme/app"), tags);
    let raw = raw_manifest(&shelf.reference("v1"), USER, PASSWORD).expect("what was pushed");
    assert_eq!(digest(&raw), signed.index);
    let listed = shelf.reference(&referrers_tag(&signed.index));
    let listed = raw_manifest(&listed, USER, PASSWORD).expect("its referrers");
    assert!(String::from_utf8_lossy(&listed).contains(&signed.signature));

    let accounts = Accounts::none()
        .with("pusher", "password-of-pusher", &["acme/*"])
        .with_reader("reader", "password-of-reader", &["*"]);
    let tokens = TokenServer::start(accounts);
    let target = DockerRegistry::start(&Login::Token(&tokens));
    let passage = Passage::to_with(target.address, &tokens);
    let copy = |login: &str, repository: &str| {
        let mut skopeo = Command::new("skopeo");
        skopeo
            .args(["--insecure-policy", "copy", "--all", "--preserve-digests"])
            .args(["--src-tls-verify=false", "--dest-tls-verify=false"])
            .args(["--src-creds", &format!("{USER}:{PASSWORD}")])
            .args(["--dest-creds", login])
            .arg(format!("docker://{}", shelf.reference("v1")))
            .arg(format!("docker://{}/{repository}:v1", passage.name()));
        output(&mut skopeo).status.success()
    };
    assert!(copy("pusher:password-of-pusher", "acme/app"));
    assert!(!copy("pusher:password-of-pusher", "others/app"));
    assert!(!copy("reader:password-of-reader", "acme/other"));
    assert_eq!(target.tags("acme/app"), ["v1"]);
    assert_eq!(target.manifests("acme/app").len(), 3);
    assert!(target.manifests("acme/other").is_empty());
    let scopes = tokens.scopes();
    assert!(
        scopes.contains(&"repository:acme/app:pull,push".to_owned()),
        "{scopes:?}"
    );
    assert!(passage.count(Kind::Manifest) >= 3);
    assert!(target.writes().iter().any(|request| request.status == 201));
    assert!(String::from_utf8_lossy(&raw).contains(OCI_INDEX));
    // Who comes with a token of yesterday is sent for another.
    let token = passage.requests();
    let token = token.iter().rev().find_map(|request| request.bearer());
    let bearer = format!("Bearer {}", token.expect("a token"));
    tokens.forget_issued();
    let address = passage.name().parse().expect("an address");
    let headers = [("Authorization", bearer.as_str())];
    let refused = http::request(address, "GET", "/v2/", &headers, b"");
    assert_eq!(refused.status(), 401);
    let challenge = refused.header("www-authenticate").expect("a challenge");
    assert!(challenge.contains(&tokens.realm()), "{challenge}");
}
