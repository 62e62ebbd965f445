//! Requests as the clients send them that people have already, byte for byte as far as it matters, and answers read as strictly
//! as those clients read them. See `overlays` for what becomes of the layers.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use crate::support::{
    content::Content,
    docker_registry::{DockerRegistry, Login, PASSWORD, USER},
    http::{self, Response},
    layer::Layer,
    liar::{Behaviour, Gate, Liar, blob_path},
    programs::{require, wait_until},
    tidegate::{Directory, Setup, Tidegate},
};

const ACCESS_TOKEN: &str = "ada-access-token";

struct Scene {
    liar: Liar,
    tidegate: Tidegate,
}

impl Scene {
    fn new() -> Self {
        let liar = Liar::open();
        liar.image("acme/app", "v1", &[]);
        let directory = Directory::new()
            .user("ada", ACCESS_TOKEN, &[7])
            .workspace(7, "research");
        let tidegate = Setup::new().liar(&liar).directory(&directory).start();
        Self { liar, tidegate }
    }

    fn image(&self) -> String {
        self.liar.reference("acme/app", "v1")
    }
}

/// As the Wave CLI 1.8: no nulls, no `Accept`, no `Authorization`.
fn wave_cli(scene: &Scene, more: &Value) -> Response {
    let mut request = json!({
        "containerImage": scene.image(),
        "freeze": false, "dryRun": false, "mirror": false,
        "timestamp": "2026-03-04T05:06:07.123456+01:00",
        "towerEndpoint": "https://api.cloud.seqera.io",
        "towerAccessToken": ACCESS_TOKEN,
        "towerWorkspaceId": 7,
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        request[name] = value.clone();
    }
    post(scene, &[("Content-Type", "application/json")], &request)
}

/// As nf-wave: every field that there is, and a header that is not for us.
fn nf_wave(scene: &Scene, more: &Value) -> Response {
    let mut request = Map::new();
    for name in [
        "towerAccessToken",
        "towerRefreshToken",
        "towerWorkspaceId",
        "towerEndpoint",
        "workflowId",
        "containerImage",
        "containerFile",
        "containerConfig",
        "containerIncludes",
        "containerPlatform",
        "condaFile",
        "packages",
        "buildRepository",
        "cacheRepository",
        "buildContext",
        "buildTemplate",
        "buildCompression",
        "format",
        "nameStrategy",
        "scanMode",
        "scanLevels",
        "timestamp",
        "fingerprint",
        "freeze",
        "mirror",
        "dryRun",
    ] {
        request.insert(name.to_owned(), Value::Null);
    }
    for (name, value) in [
        ("containerImage", json!(scene.image())),
        ("towerAccessToken", json!(ACCESS_TOKEN)),
        ("towerEndpoint", json!("https://api.cloud.seqera.io")),
        ("containerPlatform", json!("linux/amd64")),
        ("timestamp", json!("2026-03-04T05:06+01:00")),
        ("fingerprint", json!("bd2cb4cf6ddd1a4a")),
        ("freeze", json!(false)),
        ("mirror", Value::Null),
    ] {
        request.insert(name.to_owned(), value);
    }
    for (name, value) in more.as_object().into_iter().flatten() {
        request.insert(name.clone(), value.clone());
    }
    let headers = [
        ("Content-Type", "application/json"),
        ("Authorization", "Bearer a-platform-token"),
        (
            "Traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ];
    post(scene, &headers, &Value::Object(request))
}

fn post(scene: &Scene, headers: &[(&str, &str)], request: &Value) -> Response {
    let body = request.to_string();
    let address = scene.tidegate.registry;
    http::request(
        address,
        "POST",
        "/v1alpha2/container",
        headers,
        body.as_bytes(),
    )
}

/// `2026-03-04T05:06:07.123Z`: an instant of ISO 8601, as Java's parser takes it.
fn is_iso_instant(text: &str) -> bool {
    let Some((seconds, fraction)) = text.strip_suffix('Z').map(|text| text.split_at(19)) else {
        return false;
    };
    let shape: String = seconds
        .chars()
        .map(|it| if it.is_ascii_digit() { '0' } else { it })
        .collect();
    let digits = fraction.strip_prefix('.');
    let is_fraction = digits.is_some_and(|digits| {
        (1..=9).contains(&digits.len()) && digits.bytes().all(|it| it.is_ascii_digit())
    });
    shape == "0000-00-00T00:00:00" && (fraction.is_empty() || is_fraction)
}

/// Without a point the CLI takes a number for nanoseconds.
fn is_decimal_seconds(text: &str, field: &str) -> bool {
    let Some((_, rest)) = text.split_once(&format!("\"{field}\":")) else {
        return false;
    };
    let number: String = rest
        .chars()
        .take_while(|it| !matches!(it, ',' | '}'))
        .collect();
    match number.split_once('.') {
        Some((whole, fraction)) => {
            fraction.len() == 9
                && [whole, fraction]
                    .iter()
                    .all(|part| !part.is_empty() && part.bytes().all(|it| it.is_ascii_digit()))
        }
        None => false,
    }
}

/// What the clients do next with an answer.
fn follow(scene: &Scene, response: &Response) -> String {
    assert_eq!(response.status(), 200, "{}", response.text());
    let content_type = response.header("content-type").unwrap_or_default();
    assert!(
        content_type.starts_with("application/json"),
        "{content_type}"
    );
    let answer = response.json();
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    assert!(is_iso_instant(&text("expiration")), "{answer}");
    // Both wait for a build otherwise.
    assert_eq!(answer["succeeded"], json!(true));
    let (target, id) = (text("targetImage"), text("requestId"));
    assert_eq!(id.len(), 12);
    assert!(target.contains(&format!("/wt/{id}/")), "{target}");

    let status = scene
        .tidegate
        .get(&format!("/v1alpha2/container/{id}/status"));
    assert_eq!(status.status(), 200);
    let body = status.json();
    assert_eq!(body["status"], json!("DONE"));
    assert_eq!(body["succeeded"], json!(true));
    let created = body["creationTime"].as_str().unwrap_or_default();
    assert!(is_iso_instant(created), "{created}");
    assert!(
        is_decimal_seconds(&status.text(), "duration"),
        "{}",
        status.text()
    );
    id
}

#[test]
fn the_wave_cli_gets_its_names() {
    let scene = Scene::new();
    follow(&scene, &wave_cli(&scene, &json!({})));
    let anonymous = json!({"towerAccessToken": null, "towerWorkspaceId": null});
    follow(&scene, &wave_cli(&scene, &anonymous));
    let dry = json!({"dryRun": true, "containerPlatform": "amd64"});
    follow(&scene, &wave_cli(&scene, &dry));
}

/// `--layer`: ten of a megabyte, which is what it allows.
#[test]
fn the_wave_cli_posts_layers_of_ten_megabytes() {
    let scene = Scene::new();
    let layers: Vec<Layer> = (0..10u8)
        .map(|number| Layer::of_bytes(&vec![number; (1 << 20) - 1024]))
        .collect();
    let posted: Vec<Value> = layers
        .iter()
        .map(|layer| {
            json!({
                "location": format!("data:{}", STANDARD.encode(&layer.bytes)),
                "gzipDigest": layer.digest, "gzipSize": layer.bytes.len(), "tarDigest": layer.diff_id,
                "skipHashing": true,
            })
        })
        .collect();
    let config = json!({"containerConfig": {"layers": posted, "env": ["A=b"], "cmd": ["x"]}});
    let id = follow(&scene, &wave_cli(&scene, &config));
    let record = scene.tidegate.get(&format!("/container-token/{id}"));
    let described = record.json()["request"]["containerConfig"].clone();
    assert_eq!(described["layers"].as_array().map(Vec::len), Some(10));
    for layer in described["layers"].as_array().into_iter().flatten() {
        assert_eq!(layer["location"], json!("data:DATA+OMITTED"));
    }
    assert!(record.text().len() < 16 << 10, "layers are in the record");
}

#[test]
fn nextflow_gets_its_names() {
    let scene = Scene::new();
    follow(&scene, &nf_wave(&scene, &json!({})));
    let layer = Layer::of(&[("usr/local/bin/tool", "#!/bin/sh\n")]);
    let config = json!({
        "containerConfig": {
            "entrypoint": null, "cmd": null, "workingDir": null, "env": null,
            "layers": [layer.posted()],
        },
    });
    follow(&scene, &nf_wave(&scene, &config));
    let empty = json!({
        "containerConfig": {"entrypoint": null, "cmd": null, "workingDir": null, "env": null, "layers": []},
        "towerAccessToken": null, "scanLevels": [], "containerIncludes": [],
    });
    follow(&scene, &nf_wave(&scene, &empty));
}

/// Source and result of a name that changes its image, once it has been pulled.
#[test]
fn a_record_tells_both_digests_after_the_first_pull() {
    let scene = Scene::new();
    let layer = Layer::of(&[("usr/local/bin/tool", "#!/bin/sh\n")]);
    let config = json!({"containerConfig": {"layers": [layer.posted()]}});
    let id = follow(&scene, &wave_cli(&scene, &config));
    let path = format!("/container-token/{id}");
    let before = scene.tidegate.get(&path).json();
    let source = before["source"]["digest"].clone();
    assert!(source.as_str().is_some_and(|it| it.starts_with("sha256:")));
    assert!(before["wave"].get("digest").is_none(), "{before}");
    let manifest = scene
        .tidegate
        .get(&format!("/v2/wt/{id}/acme/app/manifests/v1"));
    assert_eq!(manifest.status(), 200);
    let served = manifest.header("docker-content-digest").map(str::to_owned);
    crate::support::programs::wait_until("the record", || {
        let record = scene.tidegate.get(&path).json();
        record["source"]["digest"] == source
            && record["wave"]["digest"].as_str() == served.as_deref()
    });
    let flat = scene
        .tidegate
        .get(&format!("/v1alpha2/container/{id}"))
        .json();
    assert_eq!(flat["sourceDigest"], source);
    assert_eq!(flat["waveDigest"].as_str(), served.as_deref());
    assert_ne!(flat["sourceDigest"], flat["waveDigest"]);
}

/// `wave --mirror --await`: it asks for the status until that is `DONE`, and dies of an answer without `succeeded`.
#[test]
fn the_wave_cli_waits_for_its_mirror() {
    require!("docker-registry");
    let target = DockerRegistry::start(&Login::Htpasswd);
    let liar = Liar::open();
    let image = liar.image("acme/app", "v1", &[Content::of("layer")]);
    let directory = Directory::new()
        .user("ada", ACCESS_TOKEN, &[7])
        .workspace(7, "research")
        .workspace_login(target.name(), USER, PASSWORD);
    let tidegate = Setup::new()
        .liar(&liar)
        .registry(target.name())
        .directory(&directory)
        .start();
    let gate = Gate::default();
    let halting = Behaviour::Gated(0, gate.clone());
    liar.misbehave_in_turn(&blob_path("acme/app", &image.layers[0]), &[halting]);
    let scene = Scene { liar, tidegate };
    let repository = format!("{}/kept", target.name());
    let more = json!({"mirror": true, "buildRepository": repository});
    let response = wave_cli(&scene, &more);
    assert_eq!(response.status(), 200, "{}", response.text());
    let answer = response.json();
    assert!(answer["succeeded"].is_null(), "it would not wait: {answer}");
    assert!(!response.text().contains("null"), "{answer}");
    let path = format!(
        "/v1alpha2/container/{}/status",
        answer["requestId"].as_str().unwrap_or_default()
    );
    let first = scene.tidegate.get(&path);
    assert_eq!(first.json()["status"], json!("BUILDING"));
    assert_eq!(first.json()["succeeded"], json!(false));
    assert!(first.json()["duration"].is_null(), "{}", first.text());
    gate.open();
    let mut last = first;
    wait_until("DONE", || {
        last = scene.tidegate.get(&path);
        assert_eq!(last.status(), 200, "{}", last.text());
        last.json()["status"] == json!("DONE")
    });
    assert_eq!(last.json()["succeeded"], json!(true), "{}", last.text());
    let created = last.json()["creationTime"].clone();
    assert!(is_iso_instant(created.as_str().unwrap_or_default()));
    assert!(
        is_decimal_seconds(&last.text(), "duration"),
        "{}",
        last.text()
    );
}
