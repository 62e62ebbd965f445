//! Upstreams that lie, break off, stall and refuse: no client ever has a wrong blob whole, and nothing wrong stays.

use crate::support::{
    content::Content,
    http::{End, Pulled},
    liar::{Behaviour, Liar, OCI_MANIFEST, blob_path, manifest_path},
    tidegate::{Grant, Setup, Tidegate, files_below},
};

const SIZE: u64 = 3_000_000;

struct Scene {
    liar: Liar,
    digest: String,
    manifest: String,
    tidegate: Tidegate,
    grant: Grant,
}

impl Scene {
    fn new() -> Self {
        Self::with(SIZE)
    }

    fn with(size: u64) -> Self {
        let liar = Liar::open();
        let content = Content::Generated { seed: 9, size };
        let image = liar.image("acme/app", "v1", &[content]);
        let tidegate = Setup::new()
            .liar(&liar)
            .section(
                "[upstream]\nbody_timeout = \"1s\"\nresponse_timeout = \"5s\"\nretry_count = 2",
            )
            .start();
        let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
        Self {
            liar,
            digest: image.layers[0].clone(),
            manifest: image.manifest,
            tidegate,
            grant,
        }
    }

    fn upstream_path(&self) -> String {
        blob_path("acme/app", &self.digest)
    }

    fn pull(&self) -> Pulled {
        self.tidegate.pull(&self.grant.blob(&self.digest))
    }

    fn assert_arrives(&self, what: &str) {
        let pulled = self.pull();
        let got = (pulled.head.status, pulled.digest.as_str(), pulled.end);
        assert_eq!(got, (200, self.digest.as_str(), End::Complete), "{what}");
    }

    /// Either an error, or a body that is visibly broken off.
    fn assert_breaks(&self, what: &str) {
        let pulled = self.pull();
        assert!(
            pulled.head.status == 502 || pulled.end == End::Cut,
            "{what}: {pulled:?}"
        );
        assert_ne!(pulled.digest, self.digest, "{what}");
        let kept = files_below(&self.tidegate.cache_folder().join("blobs"));
        assert!(kept.is_empty(), "{what}: {kept:?}");
    }
}

#[test]
fn wrong_bytes_never_arrive_whole_and_are_not_kept() {
    for size in [1, 1_000, 65_536, 65_537, SIZE] {
        let scene = Scene::with(size);
        scene
            .liar
            .misbehave(&scene.upstream_path(), Behaviour::WrongBytes);
        for _ in 0..2 {
            scene.assert_breaks(&format!("{size} bytes"));
        }
        scene.liar.behave(&scene.upstream_path());
        scene.assert_arrives(&format!(
            "{size} bytes, when the upstream has come to its senses"
        ));
    }
}

#[test]
fn bodies_of_another_length_never_arrive_whole() {
    for size in [0, 1, SIZE - 1, SIZE + 1, 2 * SIZE] {
        for behaviour in [None, Some(Behaviour::Chunked), Some(Behaviour::UntilClose)] {
            let scene = Scene::new();
            let other = Content::Generated { seed: 9, size };
            scene.liar.blob_as("acme/app", other, &scene.digest);
            if let Some(behaviour) = behaviour {
                scene.liar.misbehave(&scene.upstream_path(), behaviour);
            }
            scene.assert_breaks(&format!("{size} bytes"));
        }
    }
}

#[test]
fn bodies_without_a_length_arrive() {
    for behaviour in [Behaviour::Chunked, Behaviour::UntilClose] {
        for size in [1, 70_000, SIZE] {
            let scene = Scene::with(size);
            scene
                .liar
                .misbehave(&scene.upstream_path(), behaviour.clone());
            // Only the manifest tells how much room it takes.
            scene.tidegate.get(&scene.grant.manifest("v1"));
            scene.assert_arrives(&format!("{size} bytes"));
            scene.assert_arrives(&format!("{size} bytes again"));
            assert_eq!(scene.liar.blob_gets("acme/app", &scene.digest), 1);
        }
    }
}

#[test]
fn a_broken_download_goes_on_where_it_broke_and_no_client_notices() {
    for count in [0, 1, 100_000, SIZE - 1] {
        let scene = Scene::new();
        let path = scene.upstream_path();
        scene
            .liar
            .misbehave_in_turn(&path, &[Behaviour::CutAfter(count)]);
        scene.assert_arrives(&format!("cut after {count}"));
        let gets = scene
            .liar
            .requests()
            .into_iter()
            .filter(|request| request.method == "GET" && request.path() == path);
        let ranges: Vec<_> = gets
            .map(|request| request.header("range").map(str::to_owned))
            .collect();
        assert_eq!(ranges.len(), 2, "{ranges:?}");
        if count > 0 {
            assert_eq!(ranges[1], Some(format!("bytes={count}-")));
        }
    }
}

#[test]
fn a_resumed_download_that_starts_anew_is_not_glued_to_the_old() {
    let scene = Scene::new();
    scene.liar.misbehave_in_turn(
        &scene.upstream_path(),
        &[Behaviour::CutAfter(1_000_000), Behaviour::IgnoreRange],
    );
    scene.assert_arrives("a 200 to a range");
}

#[test]
fn a_resumed_download_that_differs_is_not_glued_to_the_old() {
    let scene = Scene::new();
    scene.liar.misbehave_in_turn(
        &scene.upstream_path(),
        &[Behaviour::CutAfter(1_000_000), Behaviour::WrongBytes],
    );
    scene.assert_breaks("wrong bytes after a right start");
    scene.assert_arrives("the next pull");
}

#[test]
fn a_stalled_download_is_given_up_and_resumed() {
    let scene = Scene::new();
    scene
        .liar
        .misbehave_in_turn(&scene.upstream_path(), &[Behaviour::StallAfter(1_000_000)]);
    scene.assert_arrives("after one stall");
}

#[test]
fn an_upstream_that_only_breaks_is_not_asked_for_ever() {
    for behaviour in [
        Behaviour::CutAfter(0),
        Behaviour::StallAfter(0),
        Behaviour::HangUp,
    ] {
        let scene = Scene::new();
        scene.liar.misbehave(&scene.upstream_path(), behaviour);
        scene.assert_breaks("no byte at all");
        let gets = scene.liar.blob_gets("acme/app", &scene.digest);
        assert!(gets <= 5, "asked {gets} times");
    }
}

/// Whoever sends a byte now and then would hold a connection, and room in the cache, for as long as he likes.
#[test]
fn an_upstream_that_sends_next_to_nothing_is_given_up() {
    for size in [10_000, SIZE] {
        let scene = Scene::with(size);
        let path = scene.upstream_path();
        scene.liar.misbehave(&path, Behaviour::Dripping(1_000));
        scene.assert_breaks(&format!("{size} bytes"));
        scene.liar.wait_for_leavers(&path, 3);
        scene.liar.behave(&path);
        scene.assert_arrives("when the upstream has come to its senses");
    }
    let scene = Scene::new();
    let by_digest = scene.grant.manifest(&scene.manifest);
    let path = manifest_path("acme/app", &scene.manifest);
    scene.liar.misbehave(&path, Behaviour::Dripping(10));
    assert_eq!(scene.tidegate.get(&by_digest).status(), 502);
    scene.liar.wait_for_leavers(&path, 1);
    scene.liar.behave(&path);
    assert_eq!(scene.tidegate.get(&by_digest).status(), 200);
}

/// It has been asked for all of the blob, so there is nothing else to ask it for.
#[test]
fn an_upstream_that_has_but_a_part_of_the_blob_is_not_asked_for_ever() {
    for size in [3_000, SIZE, 20_000_000] {
        for unasked in [1..size, 500..size] {
            let scene = Scene::with(size);
            scene.liar.misbehave(
                &scene.upstream_path(),
                Behaviour::UnaskedPart(unasked.clone()),
            );
            scene.assert_breaks(&format!("{unasked:?} of {size} bytes"));
            let gets = scene.liar.blob_gets("acme/app", &scene.digest);
            assert!(gets <= 5, "asked {gets} times for {size} bytes");
            scene.liar.behave(&scene.upstream_path());
            scene.assert_arrives("when the upstream has come to its senses");
        }
    }
}

/// Of a blob whose size nobody has said, the rest is asked for where it broke.
#[test]
fn an_upstream_that_leaves_out_some_of_the_rest_is_not_asked_for_ever() {
    let scene = Scene::new();
    let broken = vec![Behaviour::Chunked, Behaviour::CutAfter(1_000_000)];
    scene.liar.misbehave_in_the_end(
        &scene.upstream_path(),
        &[Behaviour::All(broken)],
        Behaviour::PartFromLater(500),
    );
    let pulled = scene.tidegate.pull(&scene.grant.blob(&scene.digest));
    assert!(
        pulled.head.status == 502 || pulled.end == End::Cut,
        "{pulled:?}"
    );
    let gets = scene.liar.blob_gets("acme/app", &scene.digest);
    assert!(gets <= 5, "asked {gets} times");
}

#[test]
fn a_passing_outage_is_absorbed() {
    let busy = vec![("Retry-After".to_owned(), "0".to_owned())];
    for behaviour in [
        Behaviour::status(500),
        Behaviour::status(502),
        Behaviour::status(503),
        Behaviour::status(504),
        Behaviour::HangUp,
        Behaviour::Answer(429, busy, String::new()),
    ] {
        let scene = Scene::new();
        let twice = [behaviour.clone(), behaviour];
        scene.liar.misbehave_in_turn(&scene.upstream_path(), &twice);
        scene.assert_arrives("after two failures");
    }
}

#[test]
fn refusals_are_told_in_our_words() {
    let html = || vec![("Content-Type".to_owned(), "text/html".to_owned())];
    let challenge = vec![(
        "WWW-Authenticate".to_owned(),
        "Basic realm=\"x\"".to_owned(),
    )];
    let page = "<html><h1>secret-host-7 says no</h1></html>".to_owned();
    let scene = Scene::with(1000);
    for (behaviour, status, blob_code, manifest_code) in [
        (
            Behaviour::error(404, "BLOB_UNKNOWN"),
            404,
            "BLOB_UNKNOWN",
            "MANIFEST_UNKNOWN",
        ),
        (
            Behaviour::Answer(404, html(), page.clone()),
            404,
            "BLOB_UNKNOWN",
            "MANIFEST_UNKNOWN",
        ),
        (Behaviour::error(403, "DENIED"), 403, "DENIED", "DENIED"),
        (
            Behaviour::Answer(401, challenge, page.clone()),
            403,
            "DENIED",
            "DENIED",
        ),
        (
            Behaviour::Answer(500, html(), page.clone()),
            502,
            "UNAVAILABLE",
            "UNAVAILABLE",
        ),
        (
            Behaviour::Answer(503, html(), page.clone()),
            502,
            "UNAVAILABLE",
            "UNAVAILABLE",
        ),
        (
            Behaviour::Answer(418, html(), page.clone()),
            502,
            "UNAVAILABLE",
            "UNAVAILABLE",
        ),
        (Behaviour::HangUp, 502, "UNAVAILABLE", "UNAVAILABLE"),
    ] {
        let fresh = scene
            .liar
            .image("acme/app", "v2", &[Content::of(status.to_string())]);
        let blob = &fresh.layers[0];
        let manifest = &fresh.manifest;
        scene
            .liar
            .misbehave(&blob_path("acme/app", blob), behaviour.clone());
        scene
            .liar
            .misbehave(&manifest_path("acme/app", manifest), behaviour);
        for (path, code) in [
            (scene.grant.blob(blob), blob_code),
            (scene.grant.manifest(manifest), manifest_code),
        ] {
            for method in ["GET", "HEAD"] {
                let response = scene.tidegate.request(method, &path, &[]);
                let got = response.status();
                let is_outage = status == 502 && matches!(got, 502..=504);
                assert!(got == status || is_outage, "{method} {path}: {got}");
                assert_eq!(response.header("www-authenticate"), None);
                if method == "GET" {
                    assert_eq!(response.error_code(), code, "{path}");
                    assert!(
                        !response.text().contains("secret-host"),
                        "{}",
                        response.text()
                    );
                } else {
                    assert!(response.body.is_empty());
                }
            }
        }
    }
}

#[test]
fn a_rate_limit_is_passed_on_with_its_time() {
    let scene = Scene::new();
    let busy = vec![("Retry-After".to_owned(), "3600".to_owned())];
    let behaviour = Behaviour::Answer(429, busy, String::new());
    scene.liar.misbehave(&scene.upstream_path(), behaviour);
    let response = scene.tidegate.get(&scene.grant.blob(&scene.digest));
    assert_eq!(response.status(), 429, "{}", response.text());
    assert_eq!(response.error_code(), "TOOMANYREQUESTS");
    assert_eq!(response.header("retry-after"), Some("3600"));
}

#[test]
fn manifests_are_not_taken_at_their_word() {
    let scene = Scene::with(1000);
    let other = scene.liar.image("acme/other", "v1", &[]);
    // Another manifest under a digest: right in itself, not what was asked for.
    let wanted = scene.liar.image("acme/app", "v2", &[Content::of("x")]);
    let path = manifest_path("acme/app", &wanted.manifest);
    let headers = |digest: &str| {
        vec![
            ("Content-Type".to_owned(), OCI_MANIFEST.to_owned()),
            ("Docker-Content-Digest".to_owned(), digest.to_owned()),
        ]
    };
    let bytes = String::from_utf8(other.manifest_bytes.clone()).expect("JSON is text");
    for claimed in [&wanted.manifest, &other.manifest] {
        let behaviour = Behaviour::Answer(200, headers(claimed), bytes.clone());
        scene.liar.misbehave(&path, behaviour);
        let response = scene.tidegate.get(&scene.grant.manifest(&wanted.manifest));
        assert_eq!(response.status(), 502, "{}", response.text());
        assert_eq!(response.error_code(), "UNAVAILABLE");
    }
    scene.liar.behave(&path);
    let response = scene.tidegate.get(&scene.grant.manifest(&wanted.manifest));
    assert_eq!(response.digest(), wanted.manifest);

    // Under a tag: whatever is served has the digest that it is said to have.
    let behaviour = Behaviour::Answer(200, headers(&wanted.manifest), bytes);
    scene
        .liar
        .misbehave(&manifest_path("acme/app", "v2"), behaviour);
    let response = scene.tidegate.get(&scene.grant.manifest("v2"));
    if response.status() == 200 {
        assert_eq!(
            response.header("docker-content-digest"),
            Some(response.digest().as_str())
        );
    } else {
        assert_eq!(
            (response.status(), response.error_code().as_str()),
            (502, "UNAVAILABLE")
        );
    }
    for body in ["", "{", "<html/>", "[]", "null"] {
        let content_type = vec![("Content-Type".to_owned(), OCI_MANIFEST.to_owned())];
        let behaviour = Behaviour::Answer(200, content_type, body.to_owned());
        scene
            .liar
            .misbehave(&manifest_path("acme/app", "v3"), behaviour);
        let response = scene.tidegate.get(&scene.grant.manifest("v3"));
        assert_eq!(response.status(), 502, "{body:?}: {}", response.text());
        assert_eq!(response.error_code(), "UNAVAILABLE", "{body:?}");
    }
}
