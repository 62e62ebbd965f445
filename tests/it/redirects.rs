//! Registries that keep their blobs elsewhere: the client is sent there, or tidegate goes, as the operator likes.

use crate::support::{
    accounts::Accounts,
    content::Content,
    http,
    liar::{Auth, Behaviour, Liar, LiarImage, blob_path},
    programs::require,
    runtimes::skopeo_copy,
    storage::Storage,
    tidegate::{Directory, Grant, Setup, Tidegate, files_below},
};

const ACCESS_TOKEN: &str = "ada-access-token";

struct Scene {
    liar: Liar,
    image: LiarImage,
    content: Content,
    tidegate: Tidegate,
    grant: Grant,
}

impl Scene {
    fn new(registry_options: &str, more: &str) -> Self {
        let liar = Liar::start(Auth::Basic(Accounts::none().with("ada", "hunter2", &["*"])));
        let content = Content::Generated {
            seed: 1,
            size: 300_000,
        };
        let image = liar.image("acme/app", "v1", std::slice::from_ref(&content));
        let directory = Directory::new().user("ada", ACCESS_TOKEN, &[]).user_login(
            liar.name(),
            "ada",
            "hunter2",
        );
        let tidegate = Setup::new()
            .registry_with(liar.name(), registry_options)
            .section(more)
            .directory(&directory)
            .start();
        let grant = tidegate.grant_as(ACCESS_TOKEN, &liar.reference("acme/app", "v1"));
        Self {
            liar,
            image,
            content,
            tidegate,
            grant,
        }
    }

    fn layer(&self) -> &str {
        &self.image.layers[0]
    }

    fn upstream_path(&self) -> String {
        blob_path("acme/app", self.layer())
    }

    fn path(&self) -> String {
        self.grant.blob(self.layer())
    }
}

#[test]
fn a_redirect_reaches_the_client_byte_for_byte() {
    let scene = Scene::new("", "");
    let base = format!("http://{}", scene.liar.name());
    for status in [301, 302, 303, 307, 308] {
        for (location, expected) in [
            (
                "http://storage.test/b?X-Sig=a%2Fb+c~&d=%7e".to_owned(),
                "http://storage.test/b?X-Sig=a%2Fb+c~&d=%7e".to_owned(),
            ),
            (
                "/elsewhere/b?X-Sig=a%2Fb+c~".to_owned(),
                format!("{base}/elsewhere/b?X-Sig=a%2Fb+c~"),
            ),
            (
                "../../../../other?X-Sig=%2f".to_owned(),
                format!("{base}/other?X-Sig=%2f"),
            ),
        ] {
            let behaviour = Behaviour::redirect(status, &location);
            scene.liar.misbehave(&scene.upstream_path(), behaviour);
            let response = scene.tidegate.get(&scene.path());
            assert!(
                matches!(response.status(), 301 | 302 | 303 | 307 | 308),
                "{location}: {}",
                response.status()
            );
            assert_eq!(response.header("location"), Some(expected.as_str()));
            // Docker hangs without it.
            assert_eq!(response.header("content-length"), Some("0"));
            assert!(response.body.is_empty());
            assert_eq!(response.header("www-authenticate"), None);
        }
    }
}

/// Harbor's proxy projects do so: it is the registry's own affair, and needs the login.
#[test]
fn a_redirect_within_the_registry_is_followed() {
    let scene = Scene::new("", "");
    scene
        .liar
        .image("acme/moved", "v1", std::slice::from_ref(&scene.content));
    let moved = blob_path("acme/moved", scene.layer());
    let behaviour = Behaviour::redirect(301, &moved);
    scene.liar.misbehave(&scene.upstream_path(), behaviour);
    let pulled = scene.tidegate.pull(&scene.path());
    let got = (pulled.head.status, pulled.digest.as_str());
    assert_eq!(got, (200, scene.layer()));
    assert_eq!(scene.liar.count("GET", &moved), 1);
}

#[test]
fn a_redirect_is_never_remembered() {
    let scene = Scene::new("", "");
    for location in ["http://storage.test/1", "http://storage.test/2"] {
        let behaviour = Behaviour::redirect(307, location);
        scene.liar.misbehave(&scene.upstream_path(), behaviour);
        let response = scene.tidegate.get(&scene.path());
        assert_eq!(response.header("location"), Some(location));
    }
    scene.liar.behave(&scene.upstream_path());
    assert_eq!(scene.tidegate.pull(&scene.path()).digest, scene.layer());
}

#[test]
fn a_runtime_follows_to_the_storage_without_any_secret() {
    require!("nginx", "skopeo");
    let scene = Scene::new("", "");
    let storage = Storage::start();
    let url = storage.put("blob", &scene.content);
    scene
        .liar
        .misbehave(&scene.upstream_path(), Behaviour::redirect(307, &url));
    let copied = skopeo_copy(&scene.grant.target);
    assert!(copied.contains(&scene.image.layers[0]), "{copied:?}");
    assert_visits(&storage, 1);
}

#[test]
fn tidegate_follows_for_the_client_where_the_operator_says_so() {
    require!("nginx");
    let storage = Storage::start();
    let name = storage.address;
    let scene = Scene::new(
        "redirect = \"follow\"",
        &format!("[registry.\"{name}\"]\ninsecure = true\nallow_private = true"),
    );
    let url = storage.put("blob", &scene.content);
    scene
        .liar
        .misbehave(&scene.upstream_path(), Behaviour::redirect(307, &url));
    for _ in 0..2 {
        let pulled = scene.tidegate.pull(&scene.path());
        assert_eq!(
            (pulled.head.status, pulled.digest.as_str()),
            (200, scene.layer())
        );
        assert_eq!(pulled.head.header("location"), None);
    }
    assert_eq!(scene.liar.blob_gets("acme/app", scene.layer()), 1);
    assert_visits(&storage, 1);
}

/// Storage refuses a signed URL that comes with a login, and must not see one anyway.
fn assert_visits(storage: &Storage, count: usize) {
    let visits = storage.visits(count);
    assert_eq!(visits.len(), count, "{visits:?}");
    for visit in visits {
        assert!(
            visit.request_line.contains("?X-Sig=a%2Fb+c~&X-Expires=60 "),
            "{visit:?}"
        );
        assert_eq!(visit.authorization, "-", "{visit:?}");
        assert_eq!(visit.cookie, "-", "{visit:?}");
    }
}

#[test]
fn a_followed_redirect_that_leads_nowhere_is_an_outage() {
    let scene = Scene::new("redirect = \"follow\"", "[upstream]\nretry_count = 0");
    let loops = scene.upstream_path();
    for location in [loops.as_str(), "ftp://storage.test/b", "http://[", ""] {
        let behaviour = Behaviour::redirect(307, location);
        scene.liar.misbehave(&scene.upstream_path(), behaviour);
        let response = scene.tidegate.get(&scene.path());
        assert_eq!(response.status(), 502, "{location}: {}", response.text());
        assert_eq!(response.error_code(), "UNAVAILABLE", "{location}");
    }
    assert!(
        scene.liar.requests().len() < 60,
        "a loop was followed without end"
    );
    scene.liar.behave(&scene.upstream_path());
    assert_eq!(scene.tidegate.pull(&scene.path()).digest, scene.layer());
}

/// What the storage says is as little believed as what the registry says.
#[test]
fn a_followed_redirect_to_other_bytes_is_not_served() {
    let scene = Scene::new("redirect = \"follow\"", "");
    let wrong = Content::Generated {
        seed: 2,
        size: 300_000,
    };
    scene.liar.blob_as("acme/other", wrong, "sha256:0");
    let behaviour = Behaviour::redirect(302, &blob_path("acme/other", "sha256:0"));
    scene.liar.misbehave(&scene.upstream_path(), behaviour);
    let pulled = scene.tidegate.pull(&scene.path());
    assert!(
        pulled.head.status == 502 || pulled.end == http::End::Cut,
        "{pulled:?}"
    );
    assert!(files_below(&scene.tidegate.cache_folder().join("blobs")).is_empty());
}

/// That the operator vouches for a registry's private address does not open every private address to it.
#[test]
fn a_followed_redirect_reaches_no_private_host_that_nobody_listed() {
    let scene = Scene::new("redirect = \"follow\"", "");
    let elsewhere = Liar::start_on("127.0.0.2", Auth::Open);
    let url = format!("http://{}/internal", elsewhere.name());
    let behaviour = Behaviour::redirect(307, &url);
    scene.liar.misbehave(&scene.upstream_path(), behaviour);
    let response = scene.tidegate.get(&scene.path());
    assert_eq!(response.status(), 403);
    assert!(
        response.text().contains("not allowed to connect"),
        "{}",
        response.text()
    );
    assert_eq!(elsewhere.requests().len(), 0);
}
