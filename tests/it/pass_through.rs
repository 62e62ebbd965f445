//! Without a token: `/v2/<registry>/<repository>/…`, only where the operator has opened it.

use crate::support::{
    accounts::Accounts,
    content::Content,
    liar::{Auth, Liar},
    tidegate::Setup,
};

#[test]
fn an_opened_registry_is_pulled_from_by_its_own_name() {
    let accounts = Accounts::none().with("operator", "sesame", &["*"]);
    let liar = Liar::start(Auth::Basic(accounts));
    let image = liar.image("acme/app", "v1", &[Content::of("layer")]);
    let options = "anonymous_pull = true\nusername = \"operator\"\npassword = \"sesame\"";
    let tidegate = Setup::new().registry_with(liar.name(), options).start();
    let path = format!("/v2/{}/acme/app", liar.name());
    let manifest = tidegate.get(&format!("{path}/manifests/v1"));
    assert_eq!(manifest.status(), 200, "{}", manifest.text());
    assert_eq!(manifest.digest(), image.manifest);
    let blob = tidegate.get(&format!("{path}/blobs/{}", image.layers[0]));
    assert_eq!(blob.text(), "layer");
    let tags = tidegate.get(&format!("{path}/tags/list"));
    assert_eq!(tags.status(), 200);
    let unknown = tidegate.get(&format!("{path}/manifests/v2"));
    assert_eq!(
        (unknown.status(), unknown.error_code().as_str()),
        (404, "MANIFEST_UNKNOWN")
    );
}

#[test]
fn other_registries_stay_closed() {
    let liar = Liar::open();
    let image = liar.image("acme/app", "v1", &[]);
    for options in ["", "anonymous_pull = false"] {
        let tidegate = Setup::new().registry_with(liar.name(), options).start();
        let path = format!("/v2/{}/acme/app", liar.name());
        for path in [
            format!("{path}/manifests/v1"),
            format!("{path}/manifests/{}", image.manifest),
            format!("{path}/blobs/{}", image.config),
            format!("{path}/tags/list"),
        ] {
            let response = tidegate.get(&path);
            assert_eq!(response.status(), 403, "{path}: {}", response.text());
            assert_eq!(response.error_code(), "DENIED", "{path}");
        }
    }
    assert!(liar.requests().is_empty(), "{:?}", liar.requests());
}

#[test]
fn keeping_anonymous_requests_out_does_not_close_an_opened_registry() {
    let liar = Liar::open();
    liar.image("acme/app", "v1", &[]);
    let tidegate = Setup::new()
        .top("anonymous = false")
        .registry_with(liar.name(), "anonymous_pull = true")
        .start();
    // The setting of the registry is the more particular one: pulls go on, submits do not.
    let path = format!("/v2/{}/acme/app/manifests/v1", liar.name());
    assert_eq!(tidegate.get(&path).status(), 200);
    let (status, body) =
        tidegate.submit(&serde_json::json!({"containerImage": liar.reference("acme/app", "v1")}));
    assert_eq!(status, 400, "{body}");
}

#[test]
fn nothing_is_pushed_through_us() {
    let liar = Liar::open();
    liar.image("acme/app", "v1", &[]);
    let tidegate = Setup::new()
        .registry_with(liar.name(), "anonymous_pull = true")
        .start();
    let before = liar.requests().len();
    let path = format!("/v2/{}/acme/app", liar.name());
    for (method, path) in [
        ("POST", format!("{path}/blobs/uploads/")),
        ("PUT", format!("{path}/manifests/v1")),
        ("PATCH", format!("{path}/blobs/uploads/1")),
        ("DELETE", format!("{path}/manifests/v1")),
    ] {
        let response = tidegate.request(method, &path, &[("Content-Length", "0")]);
        assert!(
            matches!(response.status(), 404 | 405),
            "{method}: {}",
            response.status()
        );
        response.error_code();
    }
    assert_eq!(liar.requests().len(), before);
}

/// As Docker asks its `registry-mirrors`, and containerd those of its `hosts.toml`.
#[test]
fn mirrors_of_docker_hub_are_asked_without_its_name() {
    let liar = Liar::open();
    let image = liar.image("library/alpine", "3", &[Content::of("layer")]);
    let endpoint = format!("endpoint = \"http://{}\"", liar.name());
    let tidegate = Setup::new().registry_with("docker.io", &endpoint).start();
    for path in [
        "/v2/library/alpine/manifests/3",
        "/v2/alpine/manifests/3",
        "/v2/library/alpine/manifests/3?ns=docker.io",
        "/v2/docker.io/library/alpine/manifests/3",
    ] {
        let response = tidegate.get(path);
        assert_eq!(response.status(), 200, "{path}: {}", response.text());
        assert_eq!(response.digest(), image.manifest, "{path}");
    }
    let blob = format!("/v2/library/alpine/blobs/{}", image.layers[0]);
    assert_eq!(tidegate.get(&blob).text(), "layer");
    // Of another registry there is nothing.
    let other = tidegate.get("/v2/library/alpine/manifests/3?ns=other.example");
    assert_eq!(other.error_code(), "DENIED", "{}", other.text());
}

#[test]
fn docker_hub_can_be_closed() {
    let liar = Liar::open();
    liar.image("library/alpine", "3", &[]);
    let options = format!(
        "endpoint = \"http://{}\"\nanonymous_pull = false",
        liar.name()
    );
    let tidegate = Setup::new().registry_with("docker.io", &options).start();
    let response = tidegate.get("/v2/library/alpine/manifests/3");
    assert_eq!(
        (response.status(), response.error_code().as_str()),
        (403, "DENIED")
    );
    assert!(liar.requests().is_empty(), "{:?}", liar.requests());
}
