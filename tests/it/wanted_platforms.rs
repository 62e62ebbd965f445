//! Platforms that an image has not: whoever asks for a copy that stays hears of it at once, and not from a job.

use serde_json::{Value, json};

use crate::support::{
    content::Content,
    liar::{Liar, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST},
    tidegate::{Directory, Setup, Tidegate},
};

const ADA: &str = "ada-access-token";

struct Scene {
    source: Liar,
    target: Liar,
    tidegate: Tidegate,
}

impl Scene {
    /// With an index for two platforms as `acme/app:both`, and its images as `:amd64` and `:arm64`.
    fn new() -> Self {
        let (source, target) = (Liar::open(), Liar::open());
        let directory =
            Directory::new()
                .user("ada", ADA, &[])
                .user_login(target.name(), "ada", "hunter2");
        let manifests = ["amd64", "arm64"].map(|architecture| {
            let config = json!({"architecture": architecture, "os": "linux"});
            let (digest, size) = image(&source, architecture, OCI_CONFIG, &config);
            json!({
                "mediaType": OCI_MANIFEST, "digest": digest, "size": size,
                "platform": {"os": "linux", "architecture": architecture},
            })
        });
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        source.manifest("acme/app", "both", OCI_INDEX, index.to_string().as_bytes());
        let tidegate = Setup::new()
            .liar(&source)
            .liar(&target)
            .directory(&directory)
            .start();
        Self {
            source,
            target,
            tidegate,
        }
    }

    /// Only asks what would be: so nothing is pushed.
    fn ask(&self, tag: &str, kind: &str, platform: Option<&str>) -> (u16, Value) {
        let request = json!({
            "containerImage": self.source.reference("acme/app", tag), kind: true,
            "buildRepository": format!("{}/kept/app", self.target.name()),
            "towerAccessToken": ADA, "containerPlatform": platform, "dryRun": true,
        });
        self.tidegate.submit(&request)
    }
}

fn image(liar: &Liar, tag: &str, config_type: &str, config: &Value) -> (String, usize) {
    let config = Content::of(config.to_string());
    let config_digest = liar.blob("acme/app", config.clone());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
        "config": {"mediaType": config_type, "digest": config_digest, "size": config.size()},
    });
    let bytes = manifest.to_string();
    let digest = liar.manifest("acme/app", tag, OCI_MANIFEST, bytes.as_bytes());
    (digest, bytes.len())
}

#[test]
fn a_platform_that_an_image_has_not_is_refused_with_those_that_it_has() {
    let scene = Scene::new();
    for (tag, kind, platform, wanted, present) in [
        (
            "both",
            "freeze",
            Some("s390x"),
            "linux/s390x",
            "linux/amd64, linux/arm64",
        ),
        (
            "both",
            "mirror",
            Some("s390x"),
            "linux/s390x",
            "linux/amd64, linux/arm64",
        ),
        (
            "arm64",
            "freeze",
            Some("amd64"),
            "linux/amd64",
            "linux/arm64",
        ),
        (
            "arm64",
            "mirror",
            Some("amd64"),
            "linux/amd64",
            "linux/arm64",
        ),
        // The usual one, which a freeze is for if it says nothing.
        ("arm64", "freeze", None, "linux/amd64", "linux/arm64"),
    ] {
        let (status, body) = scene.ask(tag, kind, platform);
        assert_eq!(status, 400, "{tag} {kind} {platform:?}: {body}");
        let message = body["message"].as_str().unwrap_or_default();
        let expected = format!(
            "made of this image: it has no image for {wanted}, only for {present}; ask for one of these"
        );
        assert!(
            message.contains(&expected),
            "{tag} {kind} {platform:?}: {message}"
        );
    }
    assert_eq!(scene.tidegate.metric("tidegate_jobs_failed_total"), 0);
}

#[test]
fn what_an_image_has_or_does_not_say_is_taken() {
    let scene = Scene::new();
    image(
        &scene.source,
        "silent",
        OCI_CONFIG,
        &json!({"rootfs": {"type": "layers"}}),
    );
    let chart = "application/vnd.cncf.helm.config.v1+json";
    image(&scene.source, "chart", chart, &json!({"name": "chart"}));
    for (tag, kind, platform) in [
        ("both", "freeze", Some("arm64")),
        ("both", "mirror", Some("arm64")),
        ("arm64", "freeze", Some("arm64")),
        ("arm64", "mirror", Some("arm64")),
        // Nobody asked for one.
        ("arm64", "mirror", None),
        ("silent", "freeze", Some("arm64")),
        ("chart", "mirror", Some("arm64")),
        ("chart", "freeze", None),
    ] {
        let (status, body) = scene.ask(tag, kind, platform);
        assert_eq!(status, 200, "{tag} {kind} {platform:?}: {body}");
    }
}

#[test]
fn no_configuration_is_fetched_where_an_index_says_it() {
    let scene = Scene::new();
    assert_eq!(scene.ask("both", "freeze", Some("arm64")).0, 200);
    assert_eq!(scene.ask("both", "mirror", Some("arm64")).0, 200);
    let fetched = |path: &str| path.contains("/blobs/");
    let requests = scene.source.requests();
    let blobs = requests.iter().filter(|request| fetched(request.path()));
    assert_eq!(blobs.count(), 0);
}
