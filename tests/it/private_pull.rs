//! Real runtimes pull private images from a real registry by an ephemeral name, with no login of their own.

use serde_json::json;

use crate::support::{
    accounts::Accounts,
    docker_registry::{DockerRegistry, Login, PASSWORD, USER},
    http::Response,
    image::Image,
    programs::{require, wait_until},
    runtimes::{Containerd, podman_pull, skopeo_copy, skopeo_refusal},
    tidegate::{Directory, Setup, Tidegate},
    token_server::TokenServer,
};

const MIB: u64 = 1 << 20;
const ACCESS_TOKEN: &str = "ada-access-token";

struct Scene {
    registry: DockerRegistry,
    image: Image,
    tidegate: Tidegate,
    reference: String,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(login: &Login<'_>, layer_sizes: &[u64]) -> Self {
        Self::start(DockerRegistry::start(login), Setup::new(), layer_sizes)
    }

    fn start(registry: DockerRegistry, setup: Setup, layer_sizes: &[u64]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let image = Image::build(&folder.path().join("image"), layer_sizes);
        registry.push(&image, "acme/app", "v1");
        let directory = Directory::new().user("ada", ACCESS_TOKEN, &[]).user_login(
            registry.name(),
            USER,
            PASSWORD,
        );
        let tidegate = setup
            .registry(registry.name())
            .directory(&directory)
            .start();
        let reference = format!("{}/acme/app:v1", registry.name());
        Self {
            registry,
            image,
            tidegate,
            reference,
            _folder: folder,
        }
    }

    fn target(&self) -> String {
        self.tidegate.grant_as(ACCESS_TOKEN, &self.reference).target
    }

    /// What every runtime must have: the manifest and all blobs.
    fn digests(&self) -> Vec<String> {
        let blobs = self.image.blobs().into_iter().cloned();
        let mut digests: Vec<_> = blobs.chain([self.image.digest.clone()]).collect();
        digests.sort();
        digests
    }

    fn assert_each_blob_was_fetched_once(&self) {
        for digest in self.image.blobs() {
            let count = self.registry.blob_gets("acme/app", digest);
            assert_eq!(count, 1, "{digest}: {}", self.registry.log());
        }
    }
}

/// One pull by each runtime, and then what the registry's log says of all of them.
fn assert_runtimes_pull(scene: &Scene) {
    let target = scene.target();
    let mut copied = skopeo_copy(&target);
    copied.sort();
    assert_eq!(copied, scene.digests());

    let containerd = Containerd::start();
    containerd.pull(&target);
    for digest in scene.digests() {
        assert_eq!(containerd.stored(&digest), digest);
    }

    assert_eq!(podman_pull(&target), scene.image.digest);
    scene.assert_each_blob_was_fetched_once();
}

#[test]
fn runtimes_pull_a_private_image_and_the_registry_sends_each_blob_once() {
    require!(
        "docker-registry",
        "skopeo",
        "podman",
        "containerd",
        "ctr",
        "runc"
    );
    let scene = Scene::new(&Login::Htpasswd, &[200 * MIB, 3 * MIB, 20_000]);
    assert_runtimes_pull(&scene);
}

#[test]
fn a_registry_with_a_token_realm_is_asked_with_one_token_for_all() {
    require!(
        "docker-registry",
        "skopeo",
        "podman",
        "containerd",
        "ctr",
        "runc"
    );
    let tokens = TokenServer::start(Accounts::none().with(USER, PASSWORD, &["acme/app"]));
    let scene = Scene::new(&Login::Token(&tokens), &[200 * MIB, 70_000, 1_000]);
    let before = tokens.requests().len();
    assert_runtimes_pull(&scene);
    let ours = &tokens.requests()[before..];
    assert_eq!(ours.len(), 1, "{ours:#?}");
    assert_eq!(
        ours[0].query("scope").as_deref(),
        Some("repository:acme/app:pull")
    );
}

#[test]
fn a_private_image_comes_over_tls_from_a_registry_with_its_own_authority() {
    require!("docker-registry", "skopeo");
    let registry = DockerRegistry::start_tls(&Login::Htpasswd);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = Image::build(&folder.path().join("image"), &[3 * MIB, 1_000]);
    registry.push(&image, "acme/app", "v1");
    let directory =
        Directory::new()
            .user("ada", ACCESS_TOKEN, &[])
            .user_login(registry.name(), USER, PASSWORD);
    let name = registry.name();
    // Registries on this machine are plain HTTP by default.
    let table =
        format!("[registry.\"{name}\"]\nendpoint = \"https://{name}\"\nallow_private = true\n");
    let trusting = Setup::new()
        .section(&format!(
            "{table}ca_file = \"{}\"",
            registry.ca_file().display()
        ))
        .directory(&directory)
        .start();
    let reference = format!("{name}/acme/app:v1");
    let target = trusting.grant_as(ACCESS_TOKEN, &reference).target;
    let copied = skopeo_copy(&target);
    assert_eq!(copied[0], image.digest);
    assert_eq!(copied.len(), 1 + image.blobs().len());
    let gets = registry.blob_gets("acme/app", &image.manifest().layers[0]);
    assert_eq!(gets, 1);

    // Without the authority the password does not leave.
    let doubting = Setup::new().section(&table).directory(&directory).start();
    let (status, body) =
        doubting.submit(&json!({"containerImage": reference, "towerAccessToken": ACCESS_TOKEN}));
    assert_eq!(status, 400, "{body}");
    assert!(
        body["message"]
            .as_str()
            .is_some_and(|text| text.contains("cannot be reached")),
        "{body}"
    );
}

#[test]
fn an_index_is_pulled_with_all_its_platforms() {
    require!("docker-registry", "containerd", "ctr", "skopeo");
    let registry = DockerRegistry::start(&Login::Htpasswd);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = Image::build_for(folder.path(), &["amd64", "arm64"], &[100_000, 1_000]);
    registry.push(&image, "acme/multi", "v1");
    let directory =
        Directory::new()
            .user("ada", ACCESS_TOKEN, &[])
            .user_login(registry.name(), USER, PASSWORD);
    let tidegate = Setup::new()
        .registry(registry.name())
        .directory(&directory)
        .start();
    let reference = format!("{}/acme/multi:v1", registry.name());
    let grant = tidegate.grant_as(ACCESS_TOKEN, &reference);
    let containerd = Containerd::start();
    containerd.pull(&grant.target);
    assert_eq!(containerd.stored(&image.digest), image.digest);
    for manifest in &image.manifests {
        let response = tidegate.get(&grant.manifest(&manifest.digest));
        assert_eq!(response.status(), 200, "{}", response.text());
        assert_eq!(response.digest(), manifest.digest);
        for layer in &manifest.layers {
            assert_eq!(&tidegate.pull(&grant.blob(layer)).digest, layer);
        }
    }
}

/// hosts.toml with `override_path`: the image keeps its own name, the way goes through the ephemeral one.
#[test]
fn containerd_takes_an_ephemeral_name_as_a_mirror() {
    require!("docker-registry", "containerd", "ctr", "skopeo");
    let scene = Scene::new(&Login::Htpasswd, &[100_000]);
    let grant = scene.tidegate.grant_as(ACCESS_TOKEN, &scene.reference);
    let mirror = format!("http://{}/v2/wt/{}", scene.tidegate.registry, grant.token);
    let containerd = Containerd::start();
    containerd.pull_through_mirror("private.example", &mirror, "private.example/acme/app:v1");
    for digest in scene.digests() {
        assert_eq!(containerd.stored(&digest), digest);
    }
}

/// A refusal must not tell a stranger what it is that is refused.
fn assert_says_nothing(scene: &Scene, response: &Response) {
    let text = response.text();
    let secrets = [&scene.registry.name(), &scene.image.digest, USER, PASSWORD];
    for secret in secrets {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    for name in ["www-authenticate", "docker-content-digest", "etag"] {
        assert_eq!(response.header(name), None, "{text}");
    }
}

#[test]
fn nobody_pulls_without_the_right_token() {
    require!("docker-registry", "skopeo");
    let scene = Scene::start(
        DockerRegistry::start(&Login::Htpasswd),
        Setup::new().section("[tokens]\nlifetime = \"5s\""),
        &[1_000],
    );
    let tidegate = &scene.tidegate;
    let grant = tidegate.grant_as(ACCESS_TOKEN, &scene.reference);
    let layer = &scene.image.manifest().layers[0];
    // All is in the cache: nothing of it may help a stranger.
    assert_eq!(&tidegate.pull(&grant.blob(layer)).digest, layer);

    let other = |path: String| {
        let response = tidegate.get(&path);
        assert_eq!(response.status(), 404, "{path}: {}", response.text());
        assert_eq!(response.error_code(), "NOT_FOUND", "{path}");
        assert_says_nothing(&scene, &response);
        let response = tidegate.head(&path);
        assert_eq!((response.status(), response.body.len()), (404, 0), "{path}");
        assert_says_nothing(&scene, &response);
    };
    let token = &grant.token;
    for path in [
        "/v2/wt/abcdefghijkl/acme/app".to_owned(),
        format!("/v2/wt/{}/acme/app", token.to_uppercase()),
        format!("/v2/wt/{token}x/acme/app"),
        format!("/v2/wt/{token}/acme/other"),
        format!("/v2/wt/{token}/acme/app/more"),
        format!("/v2/wt/{token}/app"),
    ] {
        other(format!("{path}/manifests/v1"));
        other(format!("{path}/manifests/{}", scene.image.digest));
        other(format!("{path}/blobs/{layer}"));
    }
    let refusal = skopeo_refusal(&format!(
        "{}/wt/abcdefghijkl/acme/app:v1",
        tidegate.registry
    ));
    assert!(!refusal.contains(&scene.registry.name()), "{refusal}");

    // Neither a stranger's own request nor a wrong workspace opens it.
    for (request, status) in [
        (json!({"containerImage": scene.reference}), 400),
        (
            json!({"containerImage": scene.reference, "towerAccessToken": "guessed"}),
            401,
        ),
        (
            json!({"containerImage": scene.reference, "towerAccessToken": ACCESS_TOKEN, "towerWorkspaceId": 5}),
            403,
        ),
    ] {
        let (answered, body) = tidegate.submit(&request);
        assert_eq!(answered, status, "{request}: {body}");
        assert!(!body.to_string().contains(&scene.image.digest), "{body}");
    }
    wait_until("the end of the token's life", || {
        tidegate.head(&grant.blob(layer)).status() == 404
    });
    other(grant.blob(layer));
    other(grant.manifest("v1"));
}

#[test]
fn a_client_needs_no_login_to_begin() {
    let tidegate = Setup::new().start();
    for method in ["GET", "HEAD"] {
        let response = tidegate.request(method, "/v2/", &[]);
        assert_eq!(response.status(), 200);
        assert_eq!(
            response.header("docker-distribution-api-version"),
            Some("registry/2.0")
        );
        assert_eq!(response.header("www-authenticate"), None);
    }
}
