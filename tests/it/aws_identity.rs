//! tidegate's own identity in AWS, from what a machine, a container or a pod lends.

use std::fs;

use serde_json::json;

use crate::support::{
    aws_double::{AwsDouble, CONTAINER_TOKEN, METADATA_TOKEN},
    content::Content,
    liar::{Auth, Liar},
    tidegate::{Setup, Tidegate},
};

const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

struct Scene {
    aws: AwsDouble,
    registry: Liar,
    layer: String,
}

impl Scene {
    fn new() -> Self {
        let aws = AwsDouble::start();
        let registry = Liar::start(Auth::Ecr(aws.passwords()));
        let image = registry.image("acme/app", "v1", &[Content::of("layer")]);
        Self {
            layer: image.layers[0].clone(),
            aws,
            registry,
        }
    }

    fn setup(&self) -> Setup {
        let table = format!(
            "endpoint = \"http://{}\"\nidentity = \"aws\"",
            self.registry.name()
        );
        Setup::new()
            .registry_with(ECR, &table)
            .environment("AWS_ENDPOINT_URL", &self.aws.url())
            .environment("AWS_CONFIG_FILE", "/nowhere/config")
            .environment("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/credentials")
    }

    fn assert_pulled(&self, tidegate: &Tidegate) {
        let grant = tidegate.grant(&format!("{ECR}/acme/app:v1"));
        assert_eq!(tidegate.pull(&grant.blob(&self.layer)).digest, self.layer);
        let asked = &self.aws.requests("ecr")[0];
        assert!(asked.header("x-amz-security-token").is_some(), "{asked:?}");
    }

    /// What the operator is told; anonymous callers are told nothing of it.
    fn assert_told(&self, tidegate: &Tidegate, part: &str) {
        let image = format!("{ECR}/acme/app:v1");
        let (status, body) = tidegate.submit(&json!({"containerImage": image}));
        assert_eq!(status, 400, "{body}");
        assert!(
            body.to_string().contains("the operator's log says why"),
            "{body}"
        );
        let line = tidegate.log().wait_for(|line| line.contains(part));
        assert!(line.is_some(), "{part}: {}", tidegate.log().text());
    }
}

#[test]
fn an_instances_role_is_lent_by_its_metadata() {
    let scene = Scene::new();
    let tidegate = scene
        .setup()
        .environment("AWS_EC2_METADATA_SERVICE_ENDPOINT", &scene.aws.url())
        .environment("http_proxy", "http://127.0.0.1:1")
        .start();
    scene.assert_pulled(&tidegate);
    let asked = scene.aws.requests("metadata");
    assert_eq!(asked[0].method, "PUT", "{asked:?}");
    for request in &asked[1..] {
        assert_eq!(
            request.header("x-aws-ec2-metadata-token"),
            Some(METADATA_TOKEN)
        );
    }
    // One token, the role's name and its keys, for all that came.
    assert_eq!(asked.len(), 3, "{asked:?}");
}

#[test]
fn a_machine_without_metadata_is_told_what_to_look_at() {
    let scene = Scene::new();
    scene.aws.fail("metadata", 403, "");
    let tidegate = scene
        .setup()
        .environment("AWS_EC2_METADATA_SERVICE_ENDPOINT", &scene.aws.url())
        .start();
    scene.assert_told(&tidegate, "environment: AWS_ACCESS_KEY_ID is not set");
    scene.assert_told(&tidegate, "answered 403 to IMDSv2's request for a token");
    // Nobody listens there.
    let tidegate = scene
        .setup()
        .environment("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")
        .start();
    scene.assert_told(&tidegate, "hop limit must be 2");
}

#[test]
fn a_containers_service_lends_with_a_token_that_is_read_anew() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("token");
    fs::write(&file, "outdated").expect("our own folder");
    let url = format!("{}/container", scene.aws.url());
    let tidegate = scene
        .setup()
        .environment("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url)
        .environment(
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            &file.display().to_string(),
        )
        // A source that is set up and fails is the answer; no other is asked.
        .environment("AWS_EC2_METADATA_SERVICE_ENDPOINT", &scene.aws.url())
        .start();
    scene.assert_told(&tidegate, "credentials service at");
    assert_eq!(scene.aws.requests("metadata").len(), 0);

    fs::write(&file, format!("{CONTAINER_TOKEN}\n")).expect("our own folder");
    // Another process, since this one remembers the refusal for a while.
    let tidegate = scene
        .setup()
        .environment("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url)
        .environment(
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            &file.display().to_string(),
        )
        .start();
    scene.assert_pulled(&tidegate);
}

#[test]
fn a_web_identity_whose_token_was_rotated_is_asked_for_once_more() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("token");
    fs::write(&file, "web-identity-token").expect("our own folder");
    let setup = || {
        scene
            .setup()
            .environment("AWS_WEB_IDENTITY_TOKEN_FILE", &file.display().to_string())
            .environment("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pod")
    };
    let tidegate = setup().start();
    scene.assert_pulled(&tidegate);
    let asked = scene.aws.requests("AssumeRoleWithWebIdentity");
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(
        asked[0].form("WebIdentityToken").as_deref(),
        Some("web-identity-token")
    );
    assert_eq!(asked[0].header("authorization"), None);

    let refused =
        "<E><Error><Code>InvalidIdentityToken</Code><Message>not yours</Message></Error></E>";
    scene.aws.fail("AssumeRoleWithWebIdentity", 400, refused);
    let tidegate = setup().start();
    scene.assert_told(&tidegate, "does not take the web identity's token");
    assert_eq!(scene.aws.requests("AssumeRoleWithWebIdentity").len(), 3);
}

#[test]
fn the_operator_chooses_the_source() {
    let scene = Scene::new();
    let setup = |source: &str| {
        scene
            .setup()
            .section(&format!("[aws]\nsource = \"{source}\""))
            .environment("AWS_ACCESS_KEY_ID", "AKIAUNHEARDUNHEARD")
            .environment("AWS_SECRET_ACCESS_KEY", "s")
            .environment("AWS_EC2_METADATA_SERVICE_ENDPOINT", &scene.aws.url())
    };
    scene.assert_told(&setup("auto").start(), "AKIAUNHEARDUNHEARD is unknown");
    let tidegate = setup("imds").start();
    let grant = tidegate.grant(&format!("{ECR}/acme/app:v1"));
    assert_eq!(tidegate.pull(&grant.blob(&scene.layer)).digest, scene.layer);
}
