//! Every rule of a container request, in the order in which they are looked at, with what is answered to a request that
//! breaks it. Whoever has a request refused reads these words.

use serde_json::{Value, json};

use crate::support::{
    accounts::Accounts,
    liar::{Auth, Liar},
    tidegate::{Directory, Setup, Tidegate},
};

const ACCESS_TOKEN: &str = "ada-access-token";
const V1: &str = "/container-token";
const V2: &str = "/v1alpha2/container";

struct Scene {
    liar: Liar,
    open: Tidegate,
    /// Without anonymous callers.
    closed: Tidegate,
    /// Takes one request from each caller.
    strict: Tidegate,
    /// Has repositories of its own.
    own: Tidegate,
}

impl Scene {
    fn new() -> Self {
        let accounts = Accounts::none().with("ada", "hunter2", &["*"]);
        let liar = Liar::start(Auth::Basic(accounts));
        liar.image("acme/app", "v1", &[]);
        let directory = Directory::new().user("ada", ACCESS_TOKEN, &[]).user_login(
            liar.name(),
            "ada",
            "hunter2",
        );
        let setup = || Setup::new().liar(&liar).directory(&directory);
        let open = setup().start();
        let closed = setup().top("anonymous = false").start();
        let strict = setup()
            .section("[limits]\nanonymous_requests = \"1/1h\"\nuser_requests = \"1/1h\"")
            .start();
        let own = setup()
            .section("[own]\nbuild_repository = \"quay.io/acme/wave\"\npublic_repository = \"quay.io/acme/acme\"")
            .start();
        Self {
            liar,
            open,
            closed,
            strict,
            own,
        }
    }
}

/// `{…}` in a message stands for anything.
fn fits(message: &str, pattern: &str) -> bool {
    match pattern.split_once("{…}") {
        Some((start, end)) => message.starts_with(start) && message.ends_with(end),
        None => message == pattern,
    }
}

fn with(mut request: Value, more: &Value) -> Value {
    let members = more.as_object().expect("an object");
    for (name, value) in members {
        request[name] = value.clone();
    }
    request
}

#[test]
fn every_rule_has_its_status_and_its_words() {
    let scene = Scene::new();
    let image = scene.liar.reference("acme/app", "v1");
    let by_digest = {
        let digest = format!("sha256:{}", "0".repeat(64));
        scene.liar.reference("acme/app", &digest)
    };
    let missing = scene.liar.reference("acme/app", "v2");
    let registry = scene.liar.name();
    let unsupported = |what: &str| {
        format!(
            "{what} is not supported by this server; it serves, mirrors and freezes a containerImage, with a \
             containerConfig and containerIncludes if you like, and builds nothing"
        )
    };
    // A mirror that breaks no rule but the one that is added.
    let mirror = json!({
        "mirror": true, "containerImage": image, "towerAccessToken": ACCESS_TOKEN, "buildRepository": "quay.io/acme/copies",
    });
    let plain = json!({"containerImage": image, "towerAccessToken": ACCESS_TOKEN});
    let long = |size: usize| "x".repeat(size + 1);
    let rows: Vec<(&str, &Tidegate, &str, Value, u16, String)> = vec![
        // Sizes and names.
        ("A1", &scene.open, V1, json!({"condaFile": long(50_000)}), 400, "condaFile is longer than 50000 characters".into()),
        ("A2", &scene.open, V2, json!({"containerFile": long(10_000)}), 400, "containerFile is longer than 10000 characters".into()),
        ("A3", &scene.open, V2, with(plain.clone(), &json!({"containerConfig": {"layers": [{"location": "data:"}, {"location": long(14_000_000)}]}})), 400, "layer 2 is longer than 14000000 characters".into()),
        ("A4 scheme", &scene.open, V2, json!({"containerImage": "docker://alpine"}), 400, "containerImage: `docker://alpine` is a URL; an image is named without a scheme, as in quay.io/acme/app:v1".into()),
        ("A4 oras", &scene.open, V2, json!({"containerImage": "oras://quay.io/a/b"}), 400, "containerImage: `oras://quay.io/a/b` is a URL; {…}".into()),
        ("A4 blank", &scene.open, V2, json!({"containerImage": "acme/a pp"}), 400, "containerImage: `acme/a pp` is not a repository; {…}".into()),
        ("A4 port", &scene.open, V2, json!({"containerImage": "quay.io:port/app"}), 400, "containerImage: `quay.io:port` is not a registry's host name".into()),
        ("A5 scheme", &scene.open, V2, with(plain.clone(), &json!({"buildRepository": "https://quay.io/a"})), 400, "buildRepository: `https://quay.io/a` is a URL; {…}".into()),
        ("A5 registry", &scene.open, V2, with(plain.clone(), &json!({"buildRepository": "quay.io"})), 400, "buildRepository: `quay.io` is a registry without a repository".into()),
        ("A5 tag", &scene.open, V2, with(plain.clone(), &json!({"buildRepository": "quay.io/a/b:v1"})), 400, "buildRepository: `quay.io/a/b:v1` ends with a tag or digest, which is made up for what is pushed there".into()),
        ("A6", &scene.open, V2, with(plain.clone(), &json!({"cacheRepository": "s3://bucket/cache"})), 400, "cacheRepository: `s3://bucket/cache` is a URL; {…}".into()),
        // Mirrors.
        ("B v1", &scene.open, V1, mirror.clone(), 400, "mirror needs the endpoint /v1alpha2/container".into()),
        ("B image", &scene.open, V2, with(mirror.clone(), &json!({"containerImage": null})), 400, "mirror needs a containerImage".into()),
        ("B token", &scene.open, V2, with(mirror.clone(), &json!({"towerAccessToken": ""})), 400, "mirror needs a towerAccessToken".into()),
        ("B freeze", &scene.open, V2, with(mirror.clone(), &json!({"freeze": true})), 400, "mirror and freeze exclude each other".into()),
        ("B file", &scene.open, V2, with(mirror.clone(), &json!({"containerFile": "Zg=="})), 400, "mirror and containerFile exclude each other".into()),
        ("B includes", &scene.open, V2, with(mirror.clone(), &json!({"containerIncludes": ["b"]})), 400, "mirror and containerIncludes exclude each other".into()),
        ("B config", &scene.open, V2, with(mirror.clone(), &json!({"containerConfig": {"cmd": ["b"]}})), 400, "mirror and containerConfig exclude each other".into()),
        ("B repository", &scene.open, V2, with(mirror.clone(), &json!({"buildRepository": null})), 400, "mirror needs a buildRepository".into()),
        ("B same registry", &scene.open, V2, with(mirror.clone(), &json!({"buildRepository": format!("{registry}/copies")})), 400, format!("mirror copies from one registry to another, and both images are at {registry}")),
        ("B scheme", &scene.open, V2, with(mirror.clone(), &json!({"buildRepository": "https://quay.io/a"})), 400, "buildRepository: `https://quay.io/a` is a URL; {…}".into()),
        ("B tag", &scene.open, V2, with(mirror.clone(), &json!({"buildRepository": "quay.io/a:v1"})), 400, "buildRepository: `quay.io/a:v1` has a tag or a digest of its own; {…}".into()),
        // Who asks. C1: without a token the rest of one's identity is ignored, so this is a stranger.
        ("C1", &scene.open, V2, json!({"containerImage": image, "towerWorkspaceId": 7, "workflowId": "x"}), 400, format!("{registry}: not allowed to pull manifest acme/app:v1 with anonymous access; {{…}}")),
        ("C4", &scene.open, V2, json!({"containerImage": image, "towerAccessToken": "unheard of"}), 401, String::new()),
        // What excludes what.
        ("D1", &scene.closed, V2, json!({"containerImage": image}), 400, "container requests without an access token are turned off here".into()),
        ("D2", &scene.open, V2, json!({"containerFile": "Zg==", "packages": {"type": "CONDA"}}), 400, "containerFile and packages exclude each other".into()),
        ("D3", &scene.open, V2, json!({"condaFile": "Zg=="}), 400, "condaFile belongs to the endpoint /container-token; use packages here".into()),
        ("D4 packages", &scene.open, V1, json!({"packages": {"type": "CRAN"}}), 400, "packages need the endpoint /v1alpha2/container".into()),
        ("D4 names", &scene.open, V1, with(plain.clone(), &json!({"nameStrategy": "none"})), 400, "nameStrategy needs the endpoint /v1alpha2/container".into()),
        ("D5", &scene.open, V2, json!({"containerFile": "Zg==", "freeze": true}), 400, "freeze needs a buildRepository to push to".into()),
        ("D6", &scene.open, V2, with(plain.clone(), &json!({"freeze": true})), 400, "freeze needs a buildRepository to push to".into()),
        ("D7", &scene.open, V2, json!({"packages": {"type": "CONDA"}, "freeze": true}), 400, "freeze needs a buildRepository to push to".into()),
        ("D8 unknown", &scene.open, V2, with(plain.clone(), &json!({"containerPlatform": "linux/vax"})), 400, "containerPlatform: `linux/vax` is not a platform we know; {…}".into()),
        ("D8 other", &scene.open, V2, json!({"containerFile": "Zg==", "containerPlatform": "linux/amd64,linux/arm/v7"}), 400, "containerPlatform: of several platforms, only linux/amd64,linux/arm64 can be asked for".into()),
        ("D8 image", &scene.open, V2, with(plain.clone(), &json!({"containerPlatform": "amd64,arm64"})), 400, "containerPlatform: several platforms are for builds and freezes; {…}".into()),
        ("D8 sif", &scene.open, V2, json!({"containerFile": "Zg==", "containerPlatform": "amd64,arm64", "format": "sif"}), 400, "containerPlatform: several platforms do not go into one sif file".into()),
        ("D8 absent", &scene.open, V2, json!({"containerFile": "Zg==", "containerPlatform": "arm64,amd64"}), 501, unsupported("building for several platforms")),
        // How often.
        ("E first", &scene.strict, V2, plain.clone(), 200, String::new()),
        ("E", &scene.strict, V2, plain.clone(), 429, "too many container requests in a short time; wait a little".into()),
        // What it comes to.
        ("F1", &scene.open, V2, json!({}), 400, "containerImage is missing".into()),
        ("F2", &scene.open, V2, with(plain.clone(), &json!({"containerFile": "Zg=="})), 400, "containerImage and containerFile exclude each other".into()),
        ("F2 packages", &scene.open, V2, with(plain.clone(), &json!({"packages": {"type": "CONDA"}})), 400, "containerImage excludes packages and condaFile: an image is built of them".into()),
        ("F3", &scene.open, V2, json!({"containerImage": by_digest, "containerConfig": {"env": ["A=b"]}}), 400, "an image named by digest cannot have a containerConfig or containerIncludes: its digest would change".into()),
        ("F4", &scene.open, V2, with(plain.clone(), &json!({"format": "sif"})), 400, "format sif needs freeze".into()),
        ("F5", &scene.open, V2, with(plain.clone(), &json!({"scanMode": "none"})), 501, unsupported("scanMode")),
        ("F6 count", &scene.open, V2, with(plain.clone(), &json!({"containerIncludes": vec!["b"; 11]})), 400, "containerIncludes has 11 images; 10 is the most".into()),
        ("F6 missing", &scene.open, V2, with(plain.clone(), &json!({"containerIncludes": [missing]})), 400, format!("containerIncludes: {registry}: manifest acme/app:v2 not found{{…}}")),
        ("F7 sif", &scene.open, V2, with(plain.clone(), &json!({"freeze": true, "format": "sif", "buildRepository": "quay.io/a/b"})), 501, unsupported("building for Singularity (format sif)")),
        ("F7 organization", &scene.open, V2, with(plain.clone(), &json!({"freeze": true, "buildRepository": "acme"})), 400, "buildRepository: docker.io/acme is a user or an organization of Docker Hub; {…}".into()),
        ("F7 own", &scene.own, V2, with(plain.clone(), &json!({"freeze": true, "buildRepository": "quay.io/acme/wave/x"})), 400, "quay.io/acme/wave/x is a repository of this server itself; name one of your own as buildRepository".into()),
        ("F8", &scene.open, V2, with(plain.clone(), &json!({"containerImage": missing})), 400, format!("{registry}: manifest acme/app:v2 not found{{…}}")),
        ("F9 build", &scene.open, V2, json!({"containerFile": "Zg=="}), 501, unsupported("building (containerFile, packages, condaFile)")),
        ("F9 packages", &scene.open, V2, json!({"packages": {"type": "CONDA", "entries": ["bwa"]}}), 501, unsupported("building (containerFile, packages, condaFile)")),
        ("F9 conda", &scene.open, V1, json!({"condaFile": "Zg=="}), 501, unsupported("building (containerFile, packages, condaFile)")),
        ("F9 mirror", &scene.own, V2, with(mirror.clone(), &json!({"buildRepository": "quay.io/acme"})), 400, "quay.io/acme/acme/app is a repository of this server itself; name one of your own as buildRepository".into()),
        ("F9 context", &scene.open, V2, with(plain.clone(), &json!({"buildContext": {"location": "data:"}})), 501, unsupported("buildContext")),
    ];
    for (row, tidegate, path, request, status, words) in &rows {
        let response = tidegate.post_text(path, &request.to_string());
        assert_eq!(response.status(), *status, "{row}: {}", response.text());
        match status {
            200 => {}
            401 => assert!(response.body.is_empty(), "{row}: {}", response.text()),
            _ => {
                let body = response.json();
                let message = body["message"].as_str().unwrap_or_default();
                assert!(fits(message, words), "{row}: {message}");
            }
        }
        if *status == 429 {
            let wait: u64 = response
                .header("retry-after")
                .and_then(|it| it.parse().ok())
                .unwrap_or(0);
            assert!(wait > 0, "{row}: {wait}");
        }
    }
}

/// Without a directory that knows the token, and with Platforms of which this is none.
#[test]
fn a_token_of_an_unpaired_platform_is_told_so() {
    let liar = Liar::open();
    liar.image("acme/app", "v1", &[]);
    let tidegate = Setup::new()
        .liar(&liar)
        .section("[platform]\nendpoints = [\"https://platform.example.com\"]")
        .start();
    let request = |endpoint: &str| {
        json!({
            "containerImage": liar.reference("acme/app", "v1"),
            "towerAccessToken": "any",
            "towerEndpoint": endpoint,
        })
    };
    for endpoint in ["https://other.example.com", "https://platform.example.com"] {
        let (status, body) = tidegate.submit(&request(endpoint));
        assert_eq!(status, 400, "C2 {endpoint}: {body}");
        let message = body["message"].as_str().unwrap_or_default();
        assert!(message.contains(endpoint), "C2: {message}");
    }
}

/// The sizes that are ours to set, since all of it is kept.
#[test]
fn nothing_is_longer_than_it_may_be() {
    let scene = Scene::new();
    let image = scene.liar.reference("acme/app", "v1");
    for (name, size) in [
        ("workflowId", 256),
        ("towerEndpoint", 2048),
        ("towerRefreshToken", 64 << 10),
        ("towerAccessToken", 64 << 10),
    ] {
        let request = json!({"containerImage": image, name: "x".repeat(size + 1)});
        let (status, body) = scene.open.submit(&request);
        assert_eq!(status, 400, "{name}: {body}");
        let expected = format!("{name} is longer than {size} characters");
        assert_eq!(body["message"], json!(expected));
    }
}

/// `dryRun` is about builds and copies: a plain request has nothing to try.
#[test]
fn a_dry_run_of_a_plain_request_is_a_plain_request() {
    let scene = Scene::new();
    let image = scene.liar.reference("acme/app", "v1");
    let request =
        json!({"containerImage": image, "towerAccessToken": ACCESS_TOKEN, "dryRun": true});
    let grant = scene.open.grant_of(&request);
    assert_eq!(scene.open.get(&grant.manifest("v1")).status(), 200);
}
