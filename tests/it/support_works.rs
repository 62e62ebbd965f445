//! The servers that the tests play do what the tests rely on, without the product.

use std::process::Command;

use crate::support::{
    accounts::Accounts,
    content::{Content, digest},
    docker_registry::{DockerRegistry, Login, PASSWORD, USER},
    http::{self, Connection, End},
    image::{Image, file_digest},
    liar::{Auth, Behaviour, Gate, Liar, blob_path, manifest_path},
    programs::{require, run},
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
