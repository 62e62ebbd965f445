//! Manifests, tags and referrers: byte for byte what the upstream has.

use serde_json::json;

use crate::support::{
    content::Content,
    liar::{Behaviour, Liar, OCI_INDEX, OCI_MANIFEST, manifest_path},
    tidegate::{Grant, Setup, Tidegate},
};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

struct Scene {
    liar: Liar,
    tidegate: Tidegate,
    grant: Grant,
}

impl Scene {
    fn new() -> Self {
        let liar = Liar::open();
        liar.image("acme/app", "v1", &[]);
        let tidegate = Setup::new()
            .liar(&liar)
            .section("[upstream]\nretry_count = 0")
            .start();
        let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
        Self {
            liar,
            tidegate,
            grant,
        }
    }
}

fn image_manifest(media_type: &str) -> String {
    let digest = Content::of("{}").digest();
    json!({
        "schemaVersion": 2, "mediaType": media_type, "layers": [],
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2},
    })
    .to_string()
}

#[test]
fn manifests_arrive_byte_for_byte() {
    let scene = Scene::new();
    let plain = image_manifest(OCI_MANIFEST);
    let spaced = format!("  \n\t{}\r\n \n", plain.replace(',', " ,\n\t"));
    let unlabelled = plain.replace(&format!("\"mediaType\":\"{OCI_MANIFEST}\","), "");
    let odd = plain.replacen('{', "{\"é\\u00e9\":1.0e0,\"a\":-0,", 1);
    let docker = image_manifest(DOCKER_MANIFEST);
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).to_string();
    let list = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": []}).to_string();
    let padding = " ".repeat((4 << 20) - plain.len());
    let largest = format!("{plain}{padding}");
    for (tag, media_type, bytes) in [
        ("plain", OCI_MANIFEST, &plain),
        ("spaced", OCI_MANIFEST, &spaced),
        ("unlabelled", OCI_MANIFEST, &unlabelled),
        ("odd", OCI_MANIFEST, &odd),
        ("docker", DOCKER_MANIFEST, &docker),
        ("index", OCI_INDEX, &index),
        ("list", DOCKER_LIST, &list),
        ("largest", OCI_MANIFEST, &largest),
    ] {
        let digest = scene
            .liar
            .manifest("acme/app", tag, media_type, bytes.as_bytes());
        for version in [tag, &digest] {
            let path = scene.grant.manifest(version);
            for method in ["HEAD", "GET", "GET", "HEAD"] {
                let response = scene.tidegate.request(method, &path, &[]);
                assert_eq!(response.status(), 200, "{tag}: {}", response.text());
                for (name, value) in [
                    ("content-type", media_type),
                    ("content-length", &bytes.len().to_string()),
                    ("docker-content-digest", &digest),
                    ("etag", &format!("\"{digest}\"")),
                ] {
                    assert_eq!(response.head.count(name), 1, "{method} {tag} {name}");
                    assert_eq!(response.header(name), Some(value), "{method} {tag} {name}");
                }
                assert_eq!(response.header("set-cookie"), None);
                if method == "GET" {
                    assert!(response.body == bytes.as_bytes(), "{tag} was changed");
                } else {
                    assert!(response.body.is_empty());
                }
            }
        }
    }
}

#[test]
fn a_manifest_by_digest_is_asked_for_once() {
    let scene = Scene::new();
    let image = scene.liar.image("acme/app", "v2", &[]);
    for _ in 0..3 {
        let response = scene.tidegate.get(&scene.grant.manifest(&image.manifest));
        assert_eq!(response.digest(), image.manifest);
    }
    let path = manifest_path("acme/app", &image.manifest);
    assert_eq!(scene.liar.count("GET", &path), 1);
}

/// An upstream that is not told every type answers with another manifest, or with none.
#[test]
fn the_upstream_is_always_asked_for_every_type() {
    let scene = Scene::new();
    scene.liar.image("acme/app", "v2", &[]);
    let several = format!(
        "Accept: {OCI_MANIFEST}\r\nAccept: {DOCKER_MANIFEST}\r\nAccept-Encoding: zstd;q=1.0, gzip;q=0.8"
    );
    for accept in [
        String::new(),
        several,
        format!("Accept: {DOCKER_MANIFEST}, {DOCKER_LIST};q=0.5, */*;q=0.1"),
        "Accept: */*".to_owned(),
    ] {
        let mut connection = scene.tidegate.connect();
        let path = scene.grant.manifest("v2");
        let line = if accept.is_empty() {
            String::new()
        } else {
            format!("{accept}\r\n")
        };
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{line}\r\n"));
        let response = connection.response("GET");
        assert_eq!(response.status(), 200, "{accept}: {}", response.text());
        assert_eq!(response.header("content-encoding"), None);
    }
    let requests = scene.liar.requests();
    let manifests: Vec<_> = requests
        .iter()
        .filter(|request| request.path().contains("/manifests/"))
        .collect();
    assert!(!manifests.is_empty());
    for request in manifests {
        let accept = request.joined("accept");
        for media_type in [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST] {
            assert!(accept.contains(media_type), "{media_type} not in {accept}");
        }
        assert!(matches!(
            request.joined("accept-encoding").as_str(),
            "" | "identity"
        ));
    }
}

#[test]
fn a_tag_that_was_seen_is_served_while_the_upstream_is_down() {
    let scene = Scene::new();
    let path = scene.grant.manifest("v1");
    let seen = scene.tidegate.get(&path);
    assert_eq!(seen.status(), 200);
    for outage in [Behaviour::HangUp, Behaviour::status(503)] {
        scene
            .liar
            .misbehave(&manifest_path("acme/app", "v1"), outage);
        for method in ["GET", "HEAD"] {
            let response = scene.tidegate.request(method, &path, &[]);
            assert_eq!(response.status(), 200, "{method}: {}", response.text());
            let digest = response.header("docker-content-digest");
            assert_eq!(digest, Some(seen.digest().as_str()));
        }
    }
}

#[test]
fn an_upstream_that_answers_no_digest_is_no_obstacle() {
    let scene = Scene::new();
    let image = scene.liar.image("acme/app", "v2", &[]);
    scene
        .liar
        .misbehave(&manifest_path("acme/app", "v2"), Behaviour::NoDigest);
    for method in ["HEAD", "GET"] {
        let response = scene
            .tidegate
            .request(method, &scene.grant.manifest("v2"), &[]);
        assert_eq!(response.status(), 200, "{}", response.text());
        let digest = response.header("docker-content-digest");
        assert_eq!(digest, Some(image.manifest.as_str()), "{method}");
    }
}

/// Without a body there is nothing to compare a HEAD with; what follows from it must still hold.
#[test]
fn a_digest_that_only_a_head_claims_is_not_served() {
    let scene = Scene::new();
    let image = scene.liar.image("acme/app", "v2", &[]);
    let claimed = Content::of("something else").digest();
    let path = manifest_path("acme/app", "v2");
    scene.liar.misbehave(&path, Behaviour::ClaimDigest(claimed));
    let response = scene.tidegate.get(&scene.grant.manifest("v2"));
    if response.status() == 200 {
        let digest = response.header("docker-content-digest");
        assert_eq!(digest, Some(image.manifest.as_str()));
    } else {
        assert_eq!(
            (response.status(), response.error_code().as_str()),
            (502, "UNAVAILABLE")
        );
    }
}

#[test]
fn schema_1_is_refused_with_a_reason() {
    let scene = Scene::new();
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let body = json!({"schemaVersion": 1, "name": "acme/app", "fsLayers": []}).to_string();
    scene
        .liar
        .manifest("acme/app", "old", media_type, body.as_bytes());
    let response = scene.tidegate.get(&scene.grant.manifest("old"));
    assert!(
        (400..=502).contains(&response.status()),
        "{}",
        response.status()
    );
    response.error_code();
    assert!(
        response.text().to_lowercase().contains("schema 1"),
        "{}",
        response.text()
    );
}

#[test]
fn a_client_that_knows_the_manifest_is_not_sent_it() {
    let scene = Scene::new();
    let image = scene.liar.image("acme/app", "v2", &[]);
    for version in ["v2", &image.manifest] {
        for tag in [format!("\"{}\"", image.manifest), image.manifest.clone()] {
            let headers = [("If-None-Match", tag.as_str())];
            let path = scene.grant.manifest(version);
            let response = scene.tidegate.request("GET", &path, &headers);
            assert_eq!(
                (response.status(), response.body.len()),
                (304, 0),
                "{version} {tag}"
            );
        }
    }
}

#[test]
fn a_range_of_a_manifest_is_ignored() {
    let scene = Scene::new();
    let path = scene.grant.manifest("v1");
    let response = scene
        .tidegate
        .request("GET", &path, &[("Range", "bytes=0-")]);
    // containerd asks for `bytes=0-` of everything; both answers are the whole.
    assert_eq!(response.status(), 200);
    let whole = scene.tidegate.get(&path);
    assert_eq!(response.body, whole.body);
}

#[test]
fn tags_are_listed_page_by_page_without_leaving_us() {
    let scene = Scene::new();
    for tag in ["v2", "v3", "v4", "v5"] {
        scene.liar.image("acme/app", tag, &[]);
    }
    let list = format!("{}/tags/list", scene.grant.path);
    let response = scene.tidegate.get(&list);
    assert_eq!(response.status(), 200, "{}", response.text());
    assert_eq!(
        response.json()["tags"],
        json!(["v1", "v2", "v3", "v4", "v5"])
    );
    assert_eq!(response.header("link"), None);

    let mut tags = Vec::new();
    let mut next = Some(format!("{list}?n=2"));
    while let Some(page) = next.take() {
        let response = scene.tidegate.get(&page);
        assert_eq!(response.status(), 200, "{page}: {}", response.text());
        tags.extend(response.json()["tags"].as_array().expect("tags").clone());
        next = response.header("link").map(|link| {
            let (target, relation) = link
                .strip_prefix('<')
                .and_then(|link| link.split_once('>'))
                .expect("a link");
            assert_eq!(relation.trim_start_matches([';', ' ']), "rel=\"next\"");
            let base = format!("http://{}", scene.tidegate.registry);
            let path = target.strip_prefix(&base).unwrap_or(target);
            assert!(path.starts_with(&list), "{link} leaves the proxy");
            assert!(!link.contains(&scene.liar.name()), "{link}");
            path.to_owned()
        });
        assert!(tags.len() < 20, "pages without end");
    }
    assert_eq!(json!(tags), json!(["v1", "v2", "v3", "v4", "v5"]));
}

#[test]
fn referrers_are_passed_on() {
    let scene = Scene::new();
    let image = scene.liar.image("acme/app", "v1", &[]);
    let path = format!("/v2/acme/app/referrers/{}", image.manifest);
    let ours = format!("{}/referrers/{}", scene.grant.path, image.manifest);
    // An upstream without that API: the client falls back to a tag.
    let response = scene.tidegate.get(&ours);
    assert_eq!(response.status(), 404, "{}", response.text());
    response.error_code();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).to_string();
    scene.liar.page(&path, OCI_INDEX, &index);
    let response = scene.tidegate.get(&format!("{ours}?artifactType=a%2Fb"));
    assert_eq!(response.status(), 200, "{}", response.text());
    assert_eq!(response.header("content-type"), Some(OCI_INDEX));
    assert_eq!(response.text(), index);
    let asked = scene.liar.requests();
    let asked = asked.last().expect("a request");
    assert_eq!(asked.query("artifactType").as_deref(), Some("a/b"));
}

#[test]
fn repositories_may_be_named_like_parts_of_the_path() {
    let scene = Scene::new();
    for repository in [
        "manifests/blobs",
        "blobs",
        "tags/list",
        "v2/wt",
        "x",
        "a/b/c/d/e",
    ] {
        let image = scene
            .liar
            .image(repository, "blobs", &[Content::of(repository)]);
        let grant = scene
            .tidegate
            .grant(&scene.liar.reference(repository, "blobs"));
        let response = scene.tidegate.get(&grant.manifest("blobs"));
        assert_eq!(response.digest(), image.manifest, "{repository}");
        let response = scene.tidegate.get(&grant.blob(&image.layers[0]));
        assert_eq!(response.text(), repository);
        let tags = scene.tidegate.get(&format!("{}/tags/list", grant.path));
        assert_eq!(tags.status(), 200, "{repository}");
    }
}

#[test]
fn a_mirrors_query_is_no_part_of_the_name() {
    let scene = Scene::new();
    let path = format!("{}?ns=private.example", scene.grant.manifest("v1"));
    assert_eq!(scene.tidegate.get(&path).status(), 200);
}
