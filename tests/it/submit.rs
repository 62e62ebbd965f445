//! Container requests: what is taken, what is refused and how, and what becomes of a token.

use serde_json::{Value, json};

use crate::support::{
    accounts::Accounts,
    content::sha256_hex,
    http,
    liar::{Auth, Behaviour, Liar, manifest_path},
    programs::{Process, wait_until},
    tidegate::{Directory, Grant, Setup, Tidegate},
};

const ACCESS_TOKEN: &str = "ada-access-token";

/// One private image, one user who may pull it for herself and in one workspace.
struct Scene {
    liar: Liar,
    tidegate: Tidegate,
    image: String,
}

impl Scene {
    fn new(top: &str, sections: &str) -> Self {
        let accounts =
            Accounts::none()
                .with("ada", "hunter2", &["*"])
                .with("team", "sesame", &["*"]);
        let liar = Liar::start(Auth::Basic(accounts));
        liar.image("acme/app", "v1", &[]);
        let directory = Directory::new()
            .user("ada", ACCESS_TOKEN, &[7])
            .user_login(liar.name(), "ada", "hunter2")
            .workspace(7, "research")
            .workspace_login(liar.name(), "team", "sesame")
            .workspace(8, "others");
        let tidegate = Setup::new()
            .top(top)
            .liar(&liar)
            .directory(&directory)
            .section(sections)
            .start();
        let image = liar.reference("acme/app", "v1");
        Self {
            liar,
            tidegate,
            image,
        }
    }

    fn request(&self) -> Value {
        json!({"containerImage": self.image, "towerAccessToken": ACCESS_TOKEN})
    }

    fn request_with(&self, key: &str, value: Value) -> Value {
        let mut request = self.request();
        request[key] = value;
        request
    }
}

fn message(body: &Value) -> &str {
    body["message"]
        .as_str()
        .unwrap_or_else(|| panic!("no message in {body}"))
}

/// `2026-03-04T05:06:07.123Z`, which is all that the clients' parsers take.
fn assert_instant(value: &Value) {
    let text = value
        .as_str()
        .unwrap_or_else(|| panic!("not a text: {value}"));
    assert!(text.ends_with('Z') && text.as_bytes()[10] == b'T', "{text}");
    assert!(!text.contains('+'), "{text}");
    humantime::parse_rfc3339(text).unwrap_or_else(|error| panic!("{text}: {error}"));
}

fn assert_no_empty_values(value: &Value) {
    match value {
        Value::Null => panic!("a null was not left out"),
        Value::String(text) => assert!(!text.is_empty(), "an empty text was not left out"),
        Value::Array(values) => {
            assert!(!values.is_empty(), "an empty list was not left out");
            values.iter().for_each(assert_no_empty_values);
        }
        Value::Object(fields) => {
            assert!(!fields.is_empty(), "an empty object was not left out");
            fields.values().for_each(assert_no_empty_values);
        }
        Value::Bool(_) | Value::Number(_) => {}
    }
}

#[test]
fn a_plain_request_is_answered_with_an_ephemeral_name() {
    let scene = Scene::new("", "");
    let (status, body) = scene.tidegate.submit(&scene.request());
    assert_eq!(status, 200, "{body}");
    assert_no_empty_values(&body);
    assert_instant(&body["expiration"]);
    let token = body["requestId"].as_str().expect("a request id");
    assert_eq!(token.len(), 12);
    assert!(
        token
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    );
    let target = format!("{}/wt/{token}/acme/app:v1", scene.tidegate.registry);
    for (key, value) in [
        ("containerToken", json!(token)),
        ("targetImage", json!(target)),
        ("containerImage", json!(scene.image)),
        ("freeze", json!(false)),
        ("mirror", json!(false)),
        ("succeeded", json!(true)),
    ] {
        assert_eq!(body[key], value, "{key}");
    }
    for key in ["buildId", "cached", "scanId"] {
        assert!(body.get(key).is_none(), "{key}");
    }
}

#[test]
fn the_first_version_answers_without_what_it_never_had() {
    let scene = Scene::new("", "");
    let (status, body) = scene.tidegate.post("/container-token", &scene.request());
    assert_eq!(status, 200, "{body}");
    assert_no_empty_values(&body);
    assert_instant(&body["expiration"]);
    assert_eq!(body["containerToken"], body["requestId"]);
    assert_eq!(body["containerImage"], json!(scene.image));
    for key in ["freeze", "mirror", "succeeded", "buildId", "cached"] {
        assert!(body.get(key).is_none(), "{key}");
    }
}

#[test]
fn a_digest_stays_in_the_name() {
    let scene = Scene::new("", "");
    let image = scene.liar.image("acme/app", "v1", &[]);
    let reference = scene.liar.reference("acme/app", &image.manifest);
    let request = scene.request_with("containerImage", json!(reference));
    let (status, body) = scene.tidegate.submit(&request);
    assert_eq!(status, 200, "{body}");
    let target = body["targetImage"].as_str().expect("a target");
    assert!(
        target.ends_with(&format!("/acme/app@{}", image.manifest)),
        "{target}"
    );
    assert_eq!(body["containerImage"], json!(reference));
}

/// nf-wave sends every field it knows, and a header with its Platform token.
#[test]
fn explicit_nulls_unknown_fields_and_a_stray_header_do_no_harm() {
    let scene = Scene::new("", "");
    let mut request = scene.request();
    for key in [
        "towerRefreshToken",
        "towerEndpoint",
        "towerWorkspaceId",
        "workflowId",
        "containerFile",
        "containerConfig",
        "containerIncludes",
        "containerPlatform",
        "packages",
        "condaFile",
        "buildRepository",
        "cacheRepository",
        "buildContext",
        "freeze",
        "mirror",
        "dryRun",
        "format",
        "nameStrategy",
        "buildTemplate",
        "buildCompression",
        "scanMode",
        "scanLevels",
        "timestamp",
        "fingerprint",
    ] {
        request[key] = Value::Null;
    }
    request["neverHeardOf"] = json!({"a": [1]});
    let headers = [
        ("Content-Type", "application/json"),
        ("Authorization", "Bearer a-platform-token"),
        (
            "Traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ];
    let body = request.to_string();
    let response = http::request(
        scene.tidegate.registry,
        "POST",
        "/v1alpha2/container",
        &headers,
        body.as_bytes(),
    );
    assert_eq!(response.status(), 200, "{}", response.text());
    for (key, value) in [
        (
            "containerConfig",
            json!({"env": [], "cmd": null, "layers": []}),
        ),
        ("containerIncludes", json!([])),
        ("timestamp", json!("2026-03-04T05:06Z")),
        ("towerEndpoint", json!("https://api.cloud.seqera.io")),
        ("fingerprint", json!("abc")),
        ("containerPlatform", json!("linux/arm64")),
        ("containerPlatform", json!("arm64")),
    ] {
        let (status, body) = scene.tidegate.submit(&scene.request_with(key, value));
        assert_eq!(status, 200, "{key}: {body}");
    }
}

#[test]
fn what_is_no_request_is_refused_with_a_reason() {
    let scene = Scene::new("", "");
    let image = &scene.image;
    for (request, reason) in [
        (json!({}), ""),
        (json!({"containerImage": ""}), ""),
        (json!({"containerImage": format!("docker://{image}")}), ""),
        (json!({"containerImage": format!("oras://{image}")}), ""),
        (json!({"containerImage": "acme/a pp"}), ""),
        (json!({"containerImage": "localhost:port/app"}), ""),
        (json!({"containerImage": 7}), ""),
        (
            json!({"containerImage": image, "containerPlatform": "linux/vax"}),
            "vax",
        ),
        (json!({"containerImage": image, "format": "sif"}), ""),
        (
            json!({"containerImage": image, "towerWorkspaceId": "seven", "towerAccessToken": ACCESS_TOKEN}),
            "",
        ),
        (json!([]), ""),
        (json!("text"), ""),
    ] {
        for path in ["/v1alpha2/container", "/container-token"] {
            let (status, body) = scene.tidegate.post(path, &request);
            assert_eq!(status, 400, "{path} {request}: {body}");
            assert!(message(&body).contains(reason), "{path} {request}: {body}");
        }
    }
    for text in ["", "{", "{\"containerImage\":", "\0", "<xml/>"] {
        let response = scene.tidegate.post_text("/v1alpha2/container", text);
        assert_eq!(response.status(), 400, "{text:?}");
        message(&response.json());
    }
    assert!(
        scene.liar.requests().is_empty(),
        "bad requests reached the registry"
    );
}

#[test]
fn services_that_are_not_there_are_said_to_be_so() {
    let scene = Scene::new("", "");
    for (key, value) in [
        ("containerFile", json!("RlJPTSBhbHBpbmU=")),
        ("packages", json!({"type": "CONDA", "entries": ["bwa"]})),
    ] {
        let (status, body) = scene.tidegate.submit(&json!({key: value}));
        assert_eq!(status, 501, "{key}: {body}");
        message(&body);
    }
}

#[test]
fn callers_are_who_their_token_says_or_nobody() {
    let scene = Scene::new("", "");
    // The clients refresh their token on a 401, and expect no body.
    let request = scene.request_with("towerAccessToken", json!("unheard of"));
    let response = scene
        .tidegate
        .post_text("/v1alpha2/container", &request.to_string());
    assert_eq!((response.status(), response.text()), (401, String::new()));
    for workspace in [8, 9, 0, -1] {
        let request = scene.request_with("towerWorkspaceId", json!(workspace));
        let (status, body) = scene.tidegate.submit(&request);
        assert_eq!(status, 403, "{workspace}: {body}");
        message(&body);
    }
    assert!(
        scene.liar.requests().is_empty(),
        "strangers reached the registry"
    );
    let request = scene.request_with("towerWorkspaceId", json!(7));
    let (status, body) = scene.tidegate.submit(&request);
    assert_eq!(status, 200, "{body}");
    let users: Vec<_> = scene
        .liar
        .requests()
        .iter()
        .filter_map(|request| Some(request.basic()?.0))
        .collect();
    assert!(users.iter().all(|user| user == "team"), "{users:?}");
    // Without a token a workspace means nothing, and private images are out of reach.
    let (status, body) = scene
        .tidegate
        .submit(&json!({"containerImage": scene.image, "towerWorkspaceId": 7}));
    assert_eq!(status, 400, "{body}");
    assert!(message(&body).contains("not allowed"), "{body}");
}

#[test]
fn anonymous_callers_can_be_kept_out() {
    let scene = Scene::new("anonymous = false", "");
    let (status, body) = scene
        .tidegate
        .submit(&json!({"containerImage": scene.image}));
    assert_eq!(status, 400, "{body}");
    message(&body);
    assert_eq!(scene.tidegate.submit(&scene.request()).0, 200);
}

#[test]
fn a_token_without_a_directory_is_not_taken_for_anonymous() {
    let liar = Liar::open();
    liar.image("acme/app", "v1", &[]);
    let tidegate = Setup::new().liar(&liar).start();
    let image = liar.reference("acme/app", "v1");
    let (status, body) =
        tidegate.submit(&json!({"containerImage": image, "towerAccessToken": "any"}));
    assert_eq!(status, 400, "{body}");
    assert!(message(&body).contains("directory"), "{body}");
    let (status, body) = tidegate.submit(&json!({"containerImage": image, "towerAccessToken": ""}));
    assert_eq!(status, 200, "an empty token is none: {body}");
}

#[test]
fn reasons_why_an_image_cannot_be_had_are_told_apart() {
    let accounts = Accounts::none().with("ada", "hunter2", &["acme/app"]);
    let liar = Liar::start(Auth::Basic(accounts));
    for repository in ["acme/app", "acme/secret"] {
        liar.image(repository, "v1", &[]);
    }
    let silent = Liar::open();
    let limited = Liar::open();
    silent.misbehave(&manifest_path("acme/app", "v1"), Behaviour::HangUp);
    let busy = vec![("Retry-After".to_owned(), "1".to_owned())];
    limited.misbehave(
        &manifest_path("acme/app", "v1"),
        Behaviour::Answer(429, busy, String::new()),
    );
    let directory =
        Directory::new()
            .user("ada", ACCESS_TOKEN, &[])
            .user_login(liar.name(), "ada", "hunter2");
    let tidegate = Setup::new()
        .liar(&liar)
        .liar(&silent)
        .liar(&limited)
        .registry("127.0.0.1:1")
        .directory(&directory)
        .section("[upstream]\nretry_count = 0")
        .start();
    for (image, reason) in [
        (liar.reference("acme/app", "v2"), "not found"),
        (liar.reference("acme/secret", "v1"), "not allowed"),
        (silent.reference("acme/app", "v1"), "cannot be reached"),
        ("127.0.0.1:1/acme/app:v1".to_owned(), "cannot be reached"),
        (limited.reference("acme/app", "v1"), "rate limit"),
    ] {
        let request = json!({"containerImage": image, "towerAccessToken": ACCESS_TOKEN});
        let (status, body) = tidegate.submit(&request);
        assert_eq!(status, 400, "{image}: {body}");
        for other in [
            "not found",
            "not allowed",
            "cannot be reached",
            "rate limit",
        ] {
            let is_told = message(&body).contains(other);
            assert_eq!(is_told, other == reason, "{image}: {body}");
        }
        assert!(!body.to_string().contains("hunter2"), "{body}");
    }
}

#[test]
fn a_request_can_be_described_followed_and_revoked() {
    let password = sha256_hex("letmein");
    let scene = Scene::new("", &format!("[accounts]\nadmin = \"{password}\""));
    let tidegate = &scene.tidegate;
    let (_, body) = tidegate.submit(&scene.request_with("fingerprint", json!("print")));
    let grant = Grant::read(&body);
    let described = format!("/container-token/{}", grant.token);

    let response = tidegate.get(&described);
    assert_eq!(response.status(), 200, "{}", response.text());
    let record = response.json();
    assert_no_empty_values(&record);
    assert_eq!(record["token"], json!(grant.token));
    assert_instant(&record["expiration"]);
    assert_eq!(record["request"]["fingerprint"], json!("print"));
    assert_eq!(record["source"]["image"], json!(scene.image));
    assert_eq!(record["wave"]["image"], json!(grant.target));
    assert!(!response.text().contains(ACCESS_TOKEN), "{record}");

    let response = tidegate.get(&format!("/v1alpha2/container/{}", grant.token));
    assert_eq!(response.status(), 200, "{}", response.text());
    let record = response.json();
    assert_no_empty_values(&record);
    assert_eq!(record["id"], json!(grant.token));
    assert_eq!(record["sourceImage"], json!(scene.image));
    assert_eq!(record["waveImage"], json!(grant.target));
    assert!(!response.text().contains(ACCESS_TOKEN), "{record}");

    let status_path = format!("/v1alpha2/container/{}/status", grant.token);
    let response = tidegate.get(&status_path);
    assert_eq!(response.status(), 200, "{}", response.text());
    let status = response.json();
    assert_eq!(status["id"], json!(grant.token));
    assert_eq!(status["status"], "DONE");
    assert_eq!(status["succeeded"], true);
    assert_instant(&status["creationTime"]);
    // Without a fraction the clients read nanoseconds.
    let text = response.text();
    let (_, duration) = text.split_once("\"duration\":").expect("a duration");
    let number: String = duration
        .chars()
        .take_while(|character| character.is_ascii_digit() || *character == '.')
        .collect();
    assert!(number.contains('.'), "{text}");

    assert_eq!(tidegate.head(&grant.manifest("v1")).status(), 200);
    for (authorization, status) in [
        (None, 401),
        (Some("Basic YWRtaW46d3Jvbmc="), 401), // admin:wrong
        (Some("Basic YWRtaW46bGV0bWVpbg=="), 200), // admin:letmein
        (Some("Basic YWRtaW46bGV0bWVpbg=="), 404),
    ] {
        let headers: Vec<_> = authorization
            .map(|value| ("Authorization", value))
            .into_iter()
            .collect();
        let response = tidegate.request("DELETE", &described, &headers);
        assert_eq!(response.status(), status, "{authorization:?}");
        match status {
            401 => {
                let challenge = response.header("www-authenticate").unwrap_or_default();
                assert!(challenge.starts_with("Basic realm="), "{challenge}");
                assert!(response.body.is_empty());
                assert_eq!(tidegate.head(&grant.manifest("v1")).status(), 200);
            }
            404 => {
                message(&response.json());
            }
            _ => {}
        }
    }
    let response = tidegate.get(&grant.manifest("v1"));
    assert_eq!(
        (response.status(), response.error_code().as_str()),
        (404, "NOT_FOUND")
    );
    assert_eq!(tidegate.get(&status_path).status(), 404);
}

#[test]
fn requests_that_were_never_made_are_not_found() {
    let scene = Scene::new("", "");
    for path in [
        "/container-token/abcdefghijkl",
        "/container-token/x",
        "/v1alpha2/container/abcdefghijkl",
        "/v1alpha2/container/abcdefghijkl/status",
        "/nowhere",
    ] {
        assert_eq!(scene.tidegate.get(path).status(), 404, "{path}");
    }
}

#[test]
fn a_name_expires() {
    let scene = Scene::new("", "[tokens]\nlifetime = \"1s\"");
    let grant = scene.tidegate.grant_of(&scene.request());
    let manifest = grant.manifest("v1");
    wait_until("the end of the token's life", || {
        scene.tidegate.head(&manifest).status() == 404
    });
    let response = scene.tidegate.get(&manifest);
    assert_eq!(response.error_code(), "NOT_FOUND");
    let status = format!("/v1alpha2/container/{}/status", grant.token);
    assert_eq!(scene.tidegate.get(&status).status(), 404);
    // The record outlives the token.
    let described = format!("/container-token/{}", grant.token);
    assert_eq!(scene.tidegate.get(&described).status(), 200);
}

#[test]
fn a_name_survives_a_restart() {
    let mut scene = Scene::new("", "");
    let grant = scene.tidegate.grant_of(&scene.request());
    scene.tidegate.restart();
    let response = scene.tidegate.get(&grant.manifest("v1"));
    assert_eq!(response.status(), 200, "{}", response.text());
    let described = format!("/container-token/{}", grant.token);
    assert_eq!(scene.tidegate.get(&described).status(), 200);
}

#[test]
fn the_service_says_what_it_is() {
    let liar = Liar::open();
    let tidegate = Setup::new().liar(&liar).start();
    let info = tidegate.get("/service-info").json();
    let version = info["serviceInfo"]["version"].as_str().expect("a version");
    // The official client parses it, and gives up on anything but plain numbers.
    let numbers: Vec<Result<u32, _>> = version.split('.').map(str::parse).collect();
    assert!(
        numbers.len() == 3 && numbers.iter().all(Result::is_ok),
        "{version}"
    );
    let health = tidegate.get("/health");
    assert_eq!(
        (health.status(), health.json()),
        (200, json!({"status": "UP"}))
    );
    for (path, status) in [("/livez", 200), ("/readyz", 200), ("/metrics", 200)] {
        assert_eq!(http::get(tidegate.admin, path).status(), status, "{path}");
        assert_eq!(tidegate.get(path).status(), 404, "{path} is not public");
    }
}

#[test]
fn an_access_token_can_be_hashed_for_the_directory_file() {
    let script = format!("printf %s {ACCESS_TOKEN} | \"$0\" directory hash-token");
    let mut hashing = Process::spawn(
        "tidegate directory hash-token",
        std::process::Command::new("sh").args(["-c", &script, crate::support::tidegate::BINARY]),
    );
    assert!(hashing.wait().success());
    hashing.log.wait_for_end();
    let line = format!("token_sha256 = \"{}\"", sha256_hex(ACCESS_TOKEN));
    assert!(hashing.log.text().contains(&line), "{}", hashing.log.text());
}
