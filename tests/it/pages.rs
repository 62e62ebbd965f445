//! The pages for people, by requests and in a browser: they tell what there is, keep what is secret, and bring all that
//! they need.

use std::{fs, path::Path};

use serde_json::json;

use crate::support::{
    accounts::Accounts,
    content::{Content, sha256_hex},
    docker_registry::{DockerRegistry, Login},
    http::Response,
    image::Image,
    layer::Layer,
    liar::{Auth, Liar, OCI_CONFIG, OCI_MANIFEST},
    programs::{command, output, require},
    tidegate::{Directory, Setup, Tidegate},
};

const ADA: &str = "access-token-of-ada";
/// `operator:sesame`
const OPERATOR: [(&str, &str); 1] = [("Authorization", "Basic b3BlcmF0b3I6c2VzYW1l")];

struct Scene {
    liar: Liar,
    tidegate: Tidegate,
}

impl Scene {
    fn new() -> Self {
        let accounts = Accounts::none().with("ada", "hunter2", &["*"]);
        let liar = Liar::start(Auth::Basic(accounts));
        liar.image("acme/app", "v1", &[Content::of(b"layer")]);
        let directory = Directory::new()
            .user("ada", ADA, &[7])
            .user_login(liar.name(), "ada", "hunter2")
            .workspace(7, "research")
            .workspace_login(liar.name(), "ada", "hunter2");
        let tidegate = Setup::new()
            .liar(&liar)
            .directory(&directory)
            .section(&format!(
                "[accounts]\noperator = \"{}\"",
                sha256_hex("sesame")
            ))
            .start();
        Self { liar, tidegate }
    }

    fn token(&self) -> String {
        let image = self.liar.reference("acme/app", "v1");
        let request =
            json!({"containerImage": image, "towerAccessToken": ADA, "towerWorkspaceId": 7});
        self.tidegate.grant_of(&request).token
    }

    fn container_page(&self, token: &str) -> Response {
        self.tidegate.get(&format!("/view/containers/{token}"))
    }
}

/// What every page must have and must not have.
fn assert_self_contained(page: &Response) -> String {
    let text = page.text();
    let field = |name: &str| page.header(name).unwrap_or_default().to_owned();
    assert_eq!(field("content-type"), "text/html; charset=utf-8");
    let policy = field("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; style-src 'sha256-"),
        "{policy}"
    );
    // Its path is a key.
    assert_eq!(field("referrer-policy"), "no-referrer");
    assert_eq!(field("cache-control"), "no-store");
    assert_eq!(field("x-content-type-options"), "nosniff");
    for part in [
        "<script", "http://", "https://", "src=", "url(", "@import", " style=", "<link",
    ] {
        assert!(!text.contains(part), "{part} is in {text}");
    }
    for secret in [ADA, "hunter2"] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
    text
}

#[test]
fn a_containers_page_says_what_the_name_stands_for() {
    let scene = Scene::new();
    let token = scene.token();
    let page = scene.container_page(&token);
    assert_eq!(page.status(), 200);
    let text = assert_self_contained(&page);
    let image = scene.liar.reference("acme/app", "v1");
    let pull = format!(
        "docker pull {}/wt/{token}/acme/app:v1",
        scene.tidegate.registry
    );
    for part in [
        "can be pulled",
        &image,
        &pull,
        "<dd>ada</dd>",
        "<dd>7</dd>",
        "linux/amd64",
        "sha256:",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let path = format!("/view/containers/{token}");
    let head = scene.tidegate.head(&path);
    assert_eq!((head.status(), head.body.len()), (200, 0));
    // The log has no more than the beginning of it.
    let log = scene.tidegate.log();
    let beginning = format!("path=/view/containers/{}…", &token[..4]);
    assert!(log.wait_for(|line| line.contains(&beginning)).is_some());
    assert!(!log.text().contains(&token), "{}", log.text());
}

#[test]
fn what_is_put_on_an_image_is_shown_without_what_is_secret() {
    require!("docker-registry", "skopeo");
    let registry = DockerRegistry::start(&Login::Open);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = Image::build(&folder.path().join("image"), &[3000]);
    registry.push(&image, "acme/app", "v1");
    let tidegate = Setup::new().registry(registry.name()).start();
    let layer = Layer::of(&[("opt/tool", "a tool")]);
    let posted = layer.posted();
    let grant = tidegate.grant_of(&json!({
        "containerImage": format!("{}/acme/app:v1", registry.name()),
        "containerConfig": {
            "entrypoint": ["/opt/tool", "<script>alert(1)</script>"], "env": ["PASSWORD=hunter2"],
            "workingDir": "/<b>", "layers": [posted],
        },
    }));
    let text = assert_self_contained(&tidegate.get(&format!("/view/containers/{}", grant.token)));
    let location = posted["location"].as_str().expect("a location");
    for hidden in [&location[..40], "hunter2", "<b>"] {
        assert!(!text.contains(hidden), "{hidden} is in {text}");
    }
    for part in [
        "PASSWORD",
        "&lt;script&gt;",
        "/&lt;b&gt;",
        &layer.digest,
        "sent with the request",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn a_name_that_ended_has_a_page_without_a_way_to_pull() {
    let scene = Scene::new();
    let token = scene.token();
    let path = format!("/container-token/{token}");
    let response = scene.tidegate.request("DELETE", &path, &OPERATOR);
    assert_eq!(response.status(), 200, "{}", response.text());
    let page = scene.container_page(&token);
    assert_eq!(page.status(), 200);
    let text = assert_self_contained(&page);
    assert!(
        text.contains("revoked") && !text.contains("docker pull"),
        "{text}"
    );
}

#[test]
fn an_unknown_token_has_a_friendly_page_and_its_guesses_are_counted() {
    let scene = Scene::new();
    let token = scene.token();
    let page = scene.container_page("000000000000");
    assert_eq!(page.status(), 404);
    let text = assert_self_contained(&page);
    assert!(
        text.contains("There is nothing here") && text.contains("expired"),
        "{text}"
    );
    let page = scene.container_page("no-token");
    assert_eq!(page.status(), 404);
    assert_eq!(
        assert_self_contained(&page),
        text,
        "what can be no token looks alike"
    );
    // 60 at once, then one a second.
    let refused = (0..200)
        .map(|_| scene.container_page("000000000000"))
        .find(|page| page.status() == 429)
        .expect("who guesses is slowed down");
    assert_self_contained(&refused);
    assert!(refused.header("retry-after").is_some());
    // Not even a right guess is answered then.
    assert_eq!(scene.container_page(&token).status(), 429);
}

#[test]
fn other_errors_below_view_are_pages_too() {
    let scene = Scene::new();
    for (method, path, status) in [
        ("GET", "/view/nothing", 404),
        ("GET", "/view/", 404),
        ("POST", "/view/containers/000000000000", 405),
        ("DELETE", "/view/containers/000000000000", 405),
    ] {
        let page = scene.tidegate.request(method, path, &[]);
        assert_eq!(page.status(), status, "{method} {path}");
        assert_self_contained(&page);
    }
}

#[test]
fn an_image_is_shown_with_its_layers_and_an_index_with_its_platforms() {
    require!("docker-registry", "skopeo");
    let registry = DockerRegistry::start(&Login::Open);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let index = Image::build_for(folder.path(), &["amd64", "arm64"], &[3000]);
    registry.push(&index, "acme/app", "v1");
    let tidegate = Setup::new().registry(registry.name()).start();
    let image = format!("{}/acme/app:v1", registry.name());
    let encoded = image.replace(':', "%3A").replace('/', "%2F");
    let page = tidegate.get(&format!("/view/inspect?image={encoded}"));
    assert_eq!(page.status(), 200, "{}", page.text());
    let text = assert_self_contained(&page);
    let link = format!("href=\"/view/inspect?image={encoded}&amp;platform=linux%2Farm64\"");
    for part in [&image, "linux/amd64", &link] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let page = tidegate.get(&format!(
        "/view/inspect?image={encoded}&platform=linux%2Farm64"
    ));
    assert_eq!(page.status(), 200, "{}", page.text());
    let text = assert_self_contained(&page);
    for part in [&image, "linux/arm64", "Layers, ", "sha256:", "What runs"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

/// What is written in a manifest is whatever its author likes.
#[test]
fn layers_that_claim_to_be_larger_than_anything_are_shown() {
    let liar = Liar::open();
    let config = liar.blob("acme/app", Content::of("{}"));
    let layer = json!({"digest": config, "size": u64::MAX});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config, "size": 2},
        "layers": [layer, layer],
    });
    liar.manifest(
        "acme/app",
        "v1",
        OCI_MANIFEST,
        manifest.to_string().as_bytes(),
    );
    let tidegate = Setup::new().liar(&liar).start();
    let image = liar.reference("acme/app", "v1");
    let page = tidegate.get(&format!("/view/inspect?image={image}"));
    assert_eq!(page.status(), 200, "{}", page.text());
    let text = assert_self_contained(&page);
    assert!(text.contains("<h2>Layers, 16777215TiB</h2>"), "{text}");
}

#[test]
fn what_cannot_be_inspected_is_said_beside_the_form() {
    let scene = Scene::new();
    let page = scene.tidegate.get("/view/inspect");
    assert_eq!(page.status(), 200);
    assert!(
        assert_self_contained(&page).contains("<form action=\"/view/inspect\" method=\"get\">")
    );
    let private = scene.liar.reference("acme/app", "v1");
    for (image, part) in [
        (private.as_str(), "not allowed"),
        ("%22%3E%3Cscript%3E", "&quot;&gt;&lt;script&gt;"),
    ] {
        let page = scene.tidegate.get(&format!("/view/inspect?image={image}"));
        assert!((400..500).contains(&page.status()), "{}", page.status());
        let text = assert_self_contained(&page);
        assert!(
            text.contains(part) && text.contains("<form"),
            "{part} is not in {text}"
        );
    }
}

/// A screenshot.
fn look(url: &str, folder: &Path, scheme: &str) -> Vec<u8> {
    let picture = folder.join("picture.png");
    let looked = output(
        command("chromium-headless-shell")
            .args(["--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
            .arg("--window-size=1000,1000")
            // Nothing but the page.
            .arg("--disable-background-networking")
            .arg("--disable-component-update")
            .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
            // What it has to complain of.
            .arg("--enable-logging=stderr")
            .arg(format!("--user-data-dir={}", folder.join(scheme).display()))
            .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
            .arg(format!("--screenshot={}", picture.display()))
            .arg(url),
    );
    let told = String::from_utf8_lossy(&looked.stderr).into_owned();
    assert!(looked.status.success(), "{told}");
    assert!(!told.contains("Content Security Policy"), "{told}");
    let picture = fs::read(picture).unwrap_or_else(|error| panic!("{error}: {told}"));
    assert!(picture.starts_with(b"\x89PNG"), "{told}");
    picture
}

/// If the policy did not fit the style, neither scheme would have one.
#[test]
fn a_browser_shows_pages_dark_and_light_without_a_complaint() {
    require!("chromium-headless-shell");
    const DARK: &str = "0";
    const LIGHT: &str = "1";
    let scene = Scene::new();
    let token = scene.token();
    let folder = tempfile::tempdir().expect("a temporary folder");
    for path in [
        format!("/view/containers/{token}"),
        "/view/inspect".to_owned(),
        "/view/no".to_owned(),
    ] {
        let url = format!("http://{}{path}", scene.tidegate.registry);
        let [dark, light] = [DARK, LIGHT].map(|scheme| look(&url, folder.path(), scheme));
        assert!(dark != light, "{path} looks the same");
    }
}
