//! `POST /v1alpha1/inspect`: what there is to know of an image, for whoever may pull it.

use serde_json::{Value, json};

use crate::support::{
    accounts::Accounts,
    content::{Content, digest},
    liar::{Auth, Behaviour, Liar, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, manifest_path},
    tidegate::{Directory, Setup, Tidegate},
};

const ACCESS_TOKEN: &str = "ada-access-token";
const REPOSITORY: &str = "acme/app";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

struct Scene {
    liar: Liar,
    tidegate: Tidegate,
}

/// An image for an architecture: its descriptor in an index.
fn image(liar: &Liar, tag: &str, architecture: &str) -> Value {
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2026-03-04T06:06:07.5+01:00",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], "Labels": {"a": "", "b": "c"}, "WorkingDir": ""},
        "rootfs": {"type": "layers", "diff_ids": [digest(b"tar")]},
    });
    let config = Content::of(config.to_string());
    let config_digest = liar.blob(REPOSITORY, config.clone());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config.size()},
        "layers": [{"mediaType": LAYER, "digest": digest(b"gz"), "size": 2}],
    });
    let bytes = manifest.to_string();
    let digest = liar.manifest(REPOSITORY, tag, OCI_MANIFEST, bytes.as_bytes());
    json!({
        "mediaType": OCI_MANIFEST, "digest": digest, "size": bytes.len(),
        "platform": {"os": "linux", "architecture": architecture},
    })
}

impl Scene {
    fn new() -> Self {
        let accounts = Accounts::none().with("ada", "hunter2", &["*"]);
        let liar = Liar::start(Auth::Basic(accounts));
        let images = ["amd64", "arm64"].map(|it| image(&liar, it, it));
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": images});
        liar.manifest(REPOSITORY, "both", OCI_INDEX, index.to_string().as_bytes());
        let directory = Directory::new()
            .user("ada", ACCESS_TOKEN, &[7])
            .user_login(liar.name(), "ada", "hunter2")
            .workspace(7, "research");
        let tidegate = Setup::new().liar(&liar).directory(&directory).start();
        Self { liar, tidegate }
    }

    fn inspect(&self, tag: &str, query: &str) -> (u16, Value) {
        let request = json!({
            "containerImage": self.liar.reference(REPOSITORY, tag),
            "towerAccessToken": ACCESS_TOKEN,
            "towerEndpoint": null,
            "towerWorkspaceId": null,
        });
        let path = format!("/v1alpha1/inspect{query}");
        self.tidegate.post(&path, &request)
    }
}

#[test]
fn an_image_is_shown_with_its_configuration() {
    let scene = Scene::new();
    let (status, body) = scene.inspect("arm64", "");
    assert_eq!(status, 200, "{body}");
    let container = &body["container"];
    for (key, value) in [
        ("registry", json!(scene.liar.name())),
        ("hostName", json!(format!("http://{}", scene.liar.name()))),
        ("imageName", json!(REPOSITORY)),
        ("reference", json!("arm64")),
        ("v1", json!(false)),
        ("v2", json!(false)),
        ("oci", json!(true)),
    ] {
        assert_eq!(container[key], value, "{key}");
    }
    assert_eq!(
        container["config"],
        json!({
            "architecture": "arm64",
            "created": "2026-03-04T05:06:07.500000000Z",
            "config": {"env": ["PATH=/bin"], "cmd": ["sh"], "labels": {"a": "", "b": "c"}},
            "rootfs": {"type": "layers", "diff_ids": [digest(b"tar")]},
        })
    );
    let manifest = &container["manifest"];
    assert_eq!(manifest["config"]["mediaType"], json!(OCI_CONFIG));
    assert_eq!(
        manifest["layers"],
        json!([{"mediaType": LAYER, "digest": digest(b"gz"), "size": 2}])
    );
    assert!(body.get("index").is_none(), "{body}");
}

#[test]
fn an_index_is_shown_or_the_image_that_is_wanted_of_it() {
    let scene = Scene::new();
    let (status, body) = scene.inspect("both", "");
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["index"]["mediaType"], json!(OCI_INDEX));
    assert_eq!(
        body["index"]["manifests"][1]["platform"],
        json!({"os": "linux", "architecture": "arm64"})
    );
    assert!(body.get("container").is_none(), "{body}");
    for (query, architecture) in [
        ("?platform=linux/arm64", "arm64"),
        ("?platform=linux%2Famd64", "amd64"),
    ] {
        let (status, body) = scene.inspect("both", query);
        assert_eq!(status, 200, "{query}: {body}");
        let found = &body["container"]["config"]["architecture"];
        assert_eq!(*found, json!(architecture), "{query}");
        assert_eq!(body["container"]["reference"], json!("both"));
    }
    let (status, body) = scene.inspect("both", "?platform=linux/s390x");
    assert_eq!(status, 404, "{body}");
    let (status, body) = scene.inspect("both", "?platform=linux/amd64,linux/arm64");
    assert_eq!(status, 400, "{body}");
}

#[test]
fn an_artifact_is_shown_without_a_configuration() {
    let scene = Scene::new();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.acme.chart",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2},
        "layers": [],
    });
    let bytes = manifest.to_string();
    scene
        .liar
        .manifest(REPOSITORY, "chart", OCI_MANIFEST, bytes.as_bytes());
    let (status, body) = scene.inspect("chart", "");
    assert_eq!(status, 200, "{body}");
    assert!(body["container"].get("config").is_none(), "{body}");
    let kind = &body["container"]["manifest"]["artifactType"];
    assert_eq!(*kind, json!("application/vnd.acme.chart"));
}

#[test]
fn what_cannot_be_inspected_is_told_why() {
    let scene = Scene::new();
    let image = scene.liar.reference(REPOSITORY, "amd64");
    for (request, status, words) in [
        (json!({}), 400, "containerImage is missing"),
        (
            json!({"containerImage": 7}),
            400,
            "containerImage must be a text",
        ),
        (json!({"containerImage": "docker://a"}), 400, "is a URL"),
        (json!([]), 400, "it is a list"),
        // A stranger.
        (json!({"containerImage": image}), 403, "not allowed"),
        (
            json!({"containerImage": image, "towerAccessToken": ACCESS_TOKEN, "towerWorkspaceId": 8}),
            403,
            "workspace",
        ),
        (
            json!({"containerImage": scene.liar.reference(REPOSITORY, "none"), "towerAccessToken": ACCESS_TOKEN}),
            404,
            "not found",
        ),
    ] {
        let (found, body) = scene.tidegate.post("/v1alpha1/inspect", &request);
        assert_eq!(found, status, "{request}: {body}");
        let message = body["message"].as_str().unwrap_or_default();
        assert!(message.contains(words), "{request}: {message}");
    }
    let request = json!({"containerImage": image, "towerAccessToken": "unheard of"});
    let response = scene
        .tidegate
        .post_text("/v1alpha1/inspect", &request.to_string());
    assert_eq!((response.status(), response.text()), (401, String::new()));
    scene.liar.misbehave(
        &manifest_path(REPOSITORY, "amd64"),
        Behaviour::Answer(200, Vec::new(), "no JSON".to_owned()),
    );
    let (status, body) = scene.inspect("amd64", "");
    assert_eq!(status, 502, "{body}");
}

/// Whoever looks has not shown that he may pull: that is asked anew.
#[test]
fn an_inspection_proves_nothing() {
    let scene = Scene::new();
    assert_eq!(scene.inspect("amd64", "").0, 200);
    let request = json!({"containerImage": scene.liar.reference(REPOSITORY, "amd64")});
    let (status, body) = scene.tidegate.submit(&request);
    assert_eq!(status, 400, "{body}");
    let (status, body) = scene.tidegate.post("/v1alpha1/inspect", &request);
    assert_eq!(status, 403, "{body}");
}

#[test]
fn nothing_has_been_built_copied_or_scanned() {
    let scene = Scene::new();
    for path in [
        "/v1alpha1/builds/bd-0123456789abcdef_1",
        "/v1alpha1/builds/bd-0123456789abcdef_1/status",
        "/v1alpha1/builds/bd-0123456789abcdef_1/logs",
        "/v1alpha1/builds/bd-0123456789abcdef_1/condalock",
        "/v1alpha1/mirrors/mr-0123456789ab",
        "/v1alpha1/mirrors/mr-0123456789ab/logs",
        "/v1alpha1/scans/sc-0123456789ab",
        "/v1alpha1/scans/sc-0123456789ab/spdx",
        "/v1alpha1/scans/sc-0123456789ab/logs",
    ] {
        let response = scene.tidegate.get(path);
        assert_eq!(response.status(), 404, "{path}");
        let message = response.json()["message"].clone();
        let message = message.as_str().unwrap_or_default();
        assert!(message.contains("with this id"), "{path}: {message}");
        assert_eq!(scene.tidegate.request("DELETE", path, &[]).status(), 405);
    }
}
