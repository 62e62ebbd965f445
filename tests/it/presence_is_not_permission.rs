//! The cache is shared by all, what is in it is not: a blob that one user's pull has brought in stays closed to others.

use crate::support::{
    accounts::Accounts,
    content::Content,
    liar::{Auth, Liar, LiarImage, OCI_MANIFEST},
    tidegate::{Directory, Grant, Setup, Tidegate},
};

const ADA: &str = "ada-access-token";
const BOB: &str = "bob-access-token";

/// A private registry that both may log in to, and one of Bob's own. Ada's secret layer is in the cache.
struct Scene {
    accounts: Accounts,
    private: Liar,
    bobs: Liar,
    tidegate: Tidegate,
    secret: LiarImage,
    content: Content,
}

impl Scene {
    fn new() -> Self {
        let accounts = Accounts::none().with("ada", "hunter2", &["acme/app"]).with(
            "bob",
            "sesame",
            &["acme/shared"],
        );
        let private = Liar::start(Auth::Basic(accounts.clone()));
        let bobs = Liar::open();
        let content = Content::Generated {
            seed: 5,
            size: 200_000,
        };
        let secret = private.image("acme/app", "v1", std::slice::from_ref(&content));
        private.image("acme/shared", "v1", &[Content::of("shared")]);
        bobs.image("acme/app", "v1", &[Content::of("bob's own")]);
        let directory = Directory::new()
            .user("ada", ADA, &[])
            .user_login(private.name(), "ada", "hunter2")
            .user("bob", BOB, &[])
            .user_login(private.name(), "bob", "sesame");
        let tidegate = Setup::new()
            .liar(&private)
            .liar(&bobs)
            .directory(&directory)
            .start();
        let scene = Self {
            accounts,
            private,
            bobs,
            tidegate,
            secret,
            content,
        };
        let grant = scene.grant(ADA, &scene.private, "acme/app");
        let layer = &scene.secret.layers[0];
        assert_eq!(&scene.tidegate.pull(&grant.blob(layer)).digest, layer);
        scene
    }

    fn grant(&self, user: &str, registry: &Liar, repository: &str) -> Grant {
        self.tidegate
            .grant_as(user, &registry.reference(repository, "v1"))
    }

    fn assert_refused(&self, path: &str, status: u16, code: &str) {
        for (method, headers) in [
            ("GET", &[][..]),
            ("GET", &[("Range", "bytes=0-9")][..]),
            ("HEAD", &[][..]),
        ] {
            let response = self.tidegate.request(method, path, headers);
            assert_eq!(response.status(), status, "{method}: {}", response.text());
            if method == "GET" {
                assert_eq!(response.error_code(), code);
            }
            let size = self.content.size().to_string();
            assert_ne!(response.header("content-length"), Some(size.as_str()));
            for name in ["docker-content-digest", "etag", "content-range"] {
                assert_eq!(response.header(name), None, "{name}");
            }
        }
    }
}

#[test]
fn the_same_repository_name_at_another_registry_opens_nothing() {
    let scene = Scene::new();
    let grant = scene.grant(BOB, &scene.bobs, "acme/app");
    scene.assert_refused(&grant.blob(&scene.secret.layers[0]), 404, "BLOB_UNKNOWN");
    scene.assert_refused(
        &grant.manifest(&scene.secret.manifest),
        404,
        "MANIFEST_UNKNOWN",
    );
    // Having pulled his own image does not change that.
    assert_eq!(scene.tidegate.get(&grant.manifest("v1")).status(), 200);
    scene.assert_refused(&grant.blob(&scene.secret.layers[0]), 404, "BLOB_UNKNOWN");
}

#[test]
fn another_repository_of_the_same_registry_opens_nothing() {
    let scene = Scene::new();
    let grant = scene.grant(BOB, &scene.private, "acme/shared");
    assert_eq!(scene.tidegate.get(&grant.manifest("v1")).status(), 200);
    scene.assert_refused(&grant.blob(&scene.secret.layers[0]), 404, "BLOB_UNKNOWN");
    let path = format!(
        "/v2/wt/{}/acme/app/blobs/{}",
        grant.token, scene.secret.layers[0]
    );
    scene.assert_refused(&path, 404, "NOT_FOUND");
}

/// Whoever runs a registry can name any digest in a manifest: that proves that he has heard of it, no more.
#[test]
fn a_manifest_of_ones_own_registry_does_not_open_what_it_names() {
    let scene = Scene::new();
    scene
        .bobs
        .manifest("acme/app", "v1", OCI_MANIFEST, &scene.secret.manifest_bytes);
    let grant = scene.grant(BOB, &scene.bobs, "acme/app");
    let response = scene.tidegate.get(&grant.manifest("v1"));
    assert_eq!(response.status(), 200, "{}", response.text());
    scene.assert_refused(&grant.blob(&scene.secret.layers[0]), 404, "BLOB_UNKNOWN");
}

#[test]
fn a_right_that_was_withdrawn_is_not_replaced_by_the_cache() {
    let scene = Scene::new();
    let grant = scene.grant(ADA, &scene.private, "acme/app");
    scene.accounts.withdraw("ada");
    scene.assert_refused(&grant.blob(&scene.secret.config), 403, "DENIED");
}

#[test]
fn a_right_of_ones_own_opens_it_without_another_download() {
    let scene = Scene::new();
    let layer = &scene.secret.layers[0];
    // The same content, in a repository that Bob may pull.
    scene
        .private
        .image("acme/shared", "v1", std::slice::from_ref(&scene.content));
    let grant = scene.grant(BOB, &scene.private, "acme/shared");
    assert_eq!(scene.tidegate.get(&grant.manifest("v1")).status(), 200);
    let pulled = scene.tidegate.pull(&grant.blob(layer));
    assert_eq!((pulled.head.status, &pulled.digest), (200, layer));
    assert_eq!(scene.private.blob_gets("acme/shared", layer), 0);
}

#[test]
fn an_anonymous_stranger_cannot_even_ask() {
    let scene = Scene::new();
    let (status, body) = scene.tidegate.submit(&serde_json::json!({
        "containerImage": scene.private.reference("acme/app", "v1"),
    }));
    assert_eq!(status, 400, "{body}");
    assert!(!body.to_string().contains(&scene.secret.manifest), "{body}");
}
