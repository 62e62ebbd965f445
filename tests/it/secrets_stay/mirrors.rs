//! The secrets of those who copy images: the logins that push, the tokens that were made of them, and the addresses of
//! uploads, with which anybody could go on with them.

use serde_json::{Value, json};

use super::Run;
use crate::support::{
    docker_registry::{PASSWORD, USER},
    http,
    layer::Layer,
    mirror_content::Shelf,
    mirror_scene::{ADA, BOB, MirrorScene, PUSHER, READER, text},
    passage::{Kind, Obstacle},
    programs::require,
    secrets::{Secrets, Traces},
    server::Request,
    tidegate::Setup,
};

const ECHO: &str =
    r#"{"errors":[{"code":"DENIED","message":"password-of-the-pusher opens nothing"}]}"#;

fn run(log_format: &str) -> Run {
    let setup = Setup::new().section(&format!(
        "[log]\nlevel = \"debug\"\nformat = \"{log_format}\"\n[upstream]\nretry_count = 1"
    ));
    let scene = MirrorScene::with(setup);
    let mut secrets = Secrets::default();
    for (name, secret) in [
        ("Ada's access token", ADA),
        ("the reader's access token", READER),
        ("the login that pushes", PUSHER.1),
        ("the login that reads", PASSWORD),
    ] {
        secrets.add(name, secret);
    }
    let both = |(user, password)| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    };
    secrets.add("the header of the login that pushes", &both(PUSHER));
    secrets.add(
        "the header of the login that reads",
        &both((USER, PASSWORD)),
    );
    let mut traces = Traces::default();
    let mut keep = |place: &str, text: String| {
        traces.others.push((place.to_owned(), text.into_bytes()));
    };

    let shelf = Shelf::new(&scene.source, "acme/app");
    shelf.signed("v1");
    let layer = Layer::of(&[("bin/tool", "a tool")]);
    let freeze = json!({"freeze": true, "containerConfig": {"layers": [layer.posted()]}});
    let image = shelf.reference("v1");
    let mut jobs = Vec::new();
    // Two that end well, and two that do not: what was said of the login is not repeated.
    for more in [json!({"mirror": true}), freeze] {
        let submitted = scene.ask(&scene.request(&image, &more));
        scene.succeeds(&submitted);
        jobs.push(submitted);
    }
    for (number, kind) in [Kind::Bytes, Kind::Manifest].into_iter().enumerate() {
        let shelf = Shelf::new(&scene.source, ["acme/one", "acme/two"][number]);
        shelf.image_of("v1", number as u64, &[100_000]);
        let refused = Obstacle::Answer(403, Vec::new(), ECHO);
        scene.passage.put_often(kind, &refused, 10);
        let submitted = scene.mirror(&shelf.reference("v1"));
        scene.fails(&submitted);
        scene.passage.clear();
        jobs.push(submitted);
    }
    // Refused at once.
    for token in [READER, "access-token-of-nobody"] {
        let mut request = scene.request(&image, &json!({"mirror": true}));
        request["towerAccessToken"] = json!(token);
        request["buildRepository"] = json!(format!("{}/elsewhere", scene.passage.name()));
        let (status, body) = scene.tidegate.submit(&request);
        assert!(matches!(status, 400 | 401), "{status}: {body}");
        keep("a refusal", body.to_string());
    }
    for job in &jobs {
        keep("an answer", job.to_string());
        keep("a status", scene.status(job).to_string());
        keep("a log", scene.log_of(job));
        let (request, id) = (text(job, "requestId"), text(job, "buildId"));
        for path in [
            format!("/v1alpha1/mirrors/{id}"),
            format!("/v1alpha1/builds/{id}"),
            format!("/v1alpha1/builds/{id}/status"),
            format!("/v1alpha2/container/{request}"),
            format!("/container-token/{request}"),
            format!("/view/mirrors/{id}"),
            format!("/view/builds/{id}"),
        ] {
            for token in [ADA, BOB] {
                let bearer = format!("Bearer {token}");
                let headers = [("Authorization", bearer.as_str())];
                let response = scene.tidegate.request("GET", &path, &headers);
                keep(&path, response.text());
            }
        }
    }
    for path in ["/metrics", "/readyz", "/mirrors", "/jobs"] {
        keep(path, http::get(scene.tidegate.admin, path).text());
    }

    let requests = scene.passage.requests();
    let bearers: Vec<&str> = requests.iter().filter_map(Request::bearer).collect();
    assert!(bearers.len() > 10, "{bearers:?}");
    for bearer in bearers {
        secrets.add("a bearer token", bearer);
    }
    let uploads: Vec<String> = requests
        .iter()
        .filter_map(|request| request.query("_state"))
        .collect();
    assert!(uploads.len() > 3, "{uploads:?}");
    for upload in uploads {
        secrets.add("an upload's address", &upload);
    }
    assert_ne!(jobs[0]["buildId"], Value::Null);
    let MirrorScene { tidegate, .. } = scene;
    Run {
        secrets,
        traces,
        tidegate,
        _home: tempfile::tempdir().expect("a temporary folder"),
    }
}

#[test]
fn no_secret_of_copies_is_written_down_anywhere() {
    require!("docker-registry", "skopeo");
    for log_format in ["text", "json"] {
        run(log_format).end();
    }
}
