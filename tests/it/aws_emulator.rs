//! Logins for AWS's registries with an emulator of AWS that others wrote, and a real registry in the place of ECR.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    docker_registry::{DockerRegistry, Login},
    fake_platform::{self, FakePlatform},
    image::Image,
    moto::{ACCOUNT, Moto},
    programs::require,
    tidegate::{Directory, Grant, Setup, Tidegate},
};

const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const ACCESS_TOKEN: &str = "ada-access-token";
const OTHER_ACCOUNT: &str = "210987654321";
const JUMP: &str = "arn:aws:iam::123456789012:role/jump";
const PULL: &str = "arn:aws:iam::210987654321:role/pull";

/// bcrypt, at the lowest cost, of the password that moto makes for each account: `123456789012-auth-token`.
const OF_ACCOUNT: &str = "AWS:$2a$04$8P4S47S2HRY15FA5g4NMkebPp3nV4kJ2HhL3KFp7qU2OugdLURJ9.\n";
const OF_OTHER_ACCOUNT: &str = "AWS:$2a$04$c1WQpseSKlAOyIoZz93dcufltWk3Dzm.UPWAFUgn0ekgt91oSvieK\n";

struct Scene {
    registry: DockerRegistry,
    image: Image,
    folder: TempDir,
}

impl Scene {
    /// A registry that takes the password of one account.
    fn of(account: &str) -> Self {
        let line = match account {
            ACCOUNT => OF_ACCOUNT,
            _ => OF_OTHER_ACCOUNT,
        };
        let registry = DockerRegistry::start(&Login::HtpasswdWith(line));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let image = Image::build(&folder.path().join("image"), &[300_000, 1_000]);
        registry.push(&image, "acme/app", "v1");
        Self {
            registry,
            image,
            folder,
        }
    }

    fn setup(&self, moto: &Moto, more: &str) -> Setup {
        let endpoint = format!("endpoint = \"http://{}\"\n{more}", self.registry.address);
        Setup::new()
            .registry_with(ECR, &endpoint)
            .environment("AWS_ENDPOINT_URL", &moto.url())
            .environment("AWS_CONFIG_FILE", "/nowhere/config")
            .environment("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/credentials")
            .environment("AWS_EC2_METADATA_DISABLED", "true")
    }

    fn assert_pulled(&self, tidegate: &Tidegate, access_token: Option<&str>) {
        let reference = format!("{ECR}/acme/app:v1");
        let grant = match access_token {
            Some(token) => tidegate.grant_as(token, &reference),
            None => tidegate.grant(&reference),
        };
        self.assert_pulls(tidegate, &grant);
    }

    fn assert_pulls(&self, tidegate: &Tidegate, grant: &Grant) {
        let manifest = tidegate.get(&grant.manifest("v1"));
        assert_eq!(manifest.status(), 200, "{}", manifest.text());
        assert_eq!(manifest.digest(), self.image.digest);
        for digest in self.image.blobs() {
            assert_eq!(&tidegate.pull(&grant.blob(digest)).digest, digest);
        }
    }
}

fn with_login(username: &str, password: &str) -> Directory {
    Directory::new()
        .user("ada", ACCESS_TOKEN, &[])
        .user_login(ECR, username, password)
}

fn refusal(tidegate: &Tidegate) -> String {
    let image = format!("{ECR}/acme/app:v1");
    let (status, body) =
        tidegate.submit(&json!({"containerImage": image, "towerAccessToken": ACCESS_TOKEN}));
    assert_eq!(status, 400, "{body}");
    body["message"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn an_access_key_becomes_a_login_by_a_signature_that_is_checked() {
    require!("docker-registry", "skopeo", "moto_server");
    let moto = Moto::checking_after(3);
    let user = moto.user("puller", Some("ecr%3AGetAuthorizationToken"));
    let scene = Scene::of(ACCOUNT);
    let tidegate = scene
        .setup(&moto, "")
        .directory(&with_login(&user.key_id, &user.secret))
        .start();
    let before = moto.calls();
    scene.assert_pulled(&tidegate, Some(ACCESS_TOKEN));
    assert_eq!(
        moto.calls() - before,
        1,
        "one password serves all of a pull"
    );
}

#[test]
fn what_aws_says_no_to_is_said_in_words() {
    require!("docker-registry", "skopeo", "moto_server");
    let moto = Moto::checking_after(3);
    let user = moto.user("nobody", Some("s3%3AGetObject"));
    let scene = Scene::of(ACCOUNT);
    for (key_id, secret, expected) in [
        (
            user.key_id.as_str(),
            "another/secret",
            "the secret key does not belong to the access key",
        ),
        (
            &user.key_id,
            &user.secret,
            "lacks the permission ecr:GetAuthorizationToken",
        ),
        (
            "AKIAUNHEARDUNHEARD",
            &user.secret,
            "AKIAUNHEARDUNHEARD is unknown or inactive",
        ),
    ] {
        let tidegate = scene
            .setup(&moto, "")
            .directory(&with_login(key_id, secret))
            .start();
        let message = refusal(&tidegate);
        assert!(message.contains(expected), "{message}");
        for text in [&message, &tidegate.log().text()] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[test]
fn a_role_of_another_account_is_assumed_with_the_own_identity() {
    require!("docker-registry", "skopeo", "moto_server");
    let moto = Moto::start();
    let scene = Scene::of(OTHER_ACCOUNT);
    for jump in ["", "jump_role"] {
        let section = match jump {
            "" => "[aws]\nregion = \"eu-west-1\"".to_owned(),
            _ => format!("[aws]\njump_role = \"{JUMP}\""),
        };
        let tidegate = scene
            .setup(&moto, "")
            .section(&section)
            .environment("AWS_ACCESS_KEY_ID", "AKIAOWNOWNOWNOWN")
            .environment("AWS_SECRET_ACCESS_KEY", "own/secret")
            .directory(&with_login(PULL, "agreed-between-us"))
            .start();
        let before = moto.calls();
        scene.assert_pulled(&tidegate, Some(ACCESS_TOKEN));
        // The role, the one before it, and the password.
        let expected = if jump.is_empty() { 2 } else { 3 };
        assert_eq!(moto.calls() - before, expected, "{jump}");
    }
}

#[test]
fn a_pods_web_identity_serves_anonymous_callers() {
    require!("docker-registry", "skopeo", "moto_server");
    let moto = Moto::start();
    let scene = Scene::of(OTHER_ACCOUNT);
    let token = scene.folder.path().join("web-identity-token");
    fs::write(&token, "header.claims.signature\n").expect("our own folder");
    let setup = || {
        scene
            .setup(&moto, "identity = \"aws\"")
            .environment("AWS_WEB_IDENTITY_TOKEN_FILE", &token.display().to_string())
            .environment("AWS_ROLE_ARN", PULL)
    };
    let tidegate = setup().start();
    scene.assert_pulled(&tidegate, None);
    let said = tidegate
        .log()
        .wait_for(|line| line.contains("the own identity in AWS"));
    assert!(said.is_some_and(|line| line.contains(OTHER_ACCOUNT)));
    assert!(!tidegate.log().text().contains("header.claims"));

    // Not for users, who have logins of their own.
    let directory = Directory::new().user("ada", ACCESS_TOKEN, &[]);
    let tidegate = setup().directory(&directory).start();
    assert!(refusal(&tidegate).contains("not allowed"));
}

#[test]
fn a_profile_leads_to_a_role() {
    require!("docker-registry", "skopeo", "moto_server");
    let moto = Moto::start();
    let scene = Scene::of(OTHER_ACCOUNT);
    let config = scene.folder.path().join("config");
    let text = format!(
        "[profile pull]\nrole_arn = {PULL}\nsource_profile = base\nregion = eu-west-1\n\
         [profile base]\naws_access_key_id = AKIABASEBASEBASE\naws_secret_access_key = s\n"
    );
    fs::write(&config, text).expect("our own folder");
    let tidegate = scene
        .setup(&moto, "identity = \"aws\"")
        .section("[aws]\nsource = \"profile\"\nprofile = \"pull\"")
        .environment("AWS_CONFIG_FILE", &config.display().to_string())
        .start();
    scene.assert_pulled(&tidegate, None);
}

const ENDPOINT: &str = "https://platform.test/api";
const WORKSPACE: i64 = 7;
const OTHER_WORKSPACE: i64 = 8;
const STRANGER: &str = "stranger-access-token";

/// A Platform with a run, which is computed with these credentials of AWS.
fn platform_with(secrets: &Value) -> FakePlatform {
    let platform = FakePlatform::start();
    platform.user(ACCESS_TOKEN, 1, &[WORKSPACE]);
    platform.user(STRANGER, 2, &[OTHER_WORKSPACE]);
    let list = json!([
        {"id": "quay", "registry": "quay.io", "userName": "ada", "password": "of quay"},
        {"id": "batch", "provider": "aws", "secrets": secrets},
    ]);
    platform.order("credentials", json!({"workspace": WORKSPACE, "list": list}));
    let environment = json!({"id": "ce", "platform": "aws-batch", "credentialsId": "batch"});
    platform.order(
        "workflow",
        json!({"id": "run-1", "workspace": WORKSPACE, "computeEnv": environment}),
    );
    platform
}

fn paired(setup: Setup, platform: &FakePlatform) -> Tidegate {
    let tidegate = setup
        .section(&format!(
            "[platform]\nendpoints = [{ENDPOINT:?}]\nallow_any_pairing_token = true\n\
             [log]\nlevel = \"debug\""
        ))
        .start();
    platform.paired(tidegate.registry, ENDPOINT, 1);
    tidegate
}

fn in_run(access_token: &str, workspace: i64, run: Option<&str>) -> Value {
    json!({
        "containerImage": format!("{ECR}/acme/app:v1"), "towerAccessToken": access_token,
        "towerWorkspaceId": workspace, "workflowId": run,
    })
}

#[test]
fn a_run_pulls_from_ecr_with_the_keys_of_its_compute_environment() {
    require!("docker-registry", "skopeo", "moto_server");
    if !fake_platform::is_here() {
        return;
    }
    let moto = Moto::checking_after(3);
    let user = moto.user("batch", Some("ecr%3AGetAuthorizationToken"));
    let scene = Scene::of(ACCOUNT);
    let platform = platform_with(&json!({
        "discriminator": "aws", "accessKey": user.key_id, "secretKey": user.secret, "mode": "keys",
    }));
    let tidegate = paired(scene.setup(&moto, ""), &platform);
    let before = moto.calls();
    for _ in 0..2 {
        let grant = tidegate.grant_of(&in_run(ACCESS_TOKEN, WORKSPACE, Some("run-1")));
        scene.assert_pulls(&tidegate, &grant);
    }
    assert_eq!(moto.calls() - before, 1, "one password serves all of a run");
    for call in ["GET /workflow/run-1/launch", "GET /credentials/batch/keys"] {
        assert_eq!(platform.count(call), 1, "{call}");
    }
    // They are the run's, and nobody else's.
    for (access_token, workspace, run) in [
        (ACCESS_TOKEN, WORKSPACE, None),
        (ACCESS_TOKEN, WORKSPACE, Some("run-2")),
        (STRANGER, OTHER_WORKSPACE, Some("run-1")),
    ] {
        let (status, body) = tidegate.submit(&in_run(access_token, workspace, run));
        assert_eq!(status, 400, "{access_token} {run:?}: {body}");
    }
    assert_eq!(moto.calls() - before, 1);
    let log = tidegate.log().text();
    assert!(
        log.contains("the compute environment of run run-1"),
        "{log}"
    );
    assert!(!log.contains(&user.secret), "{log}");
}

#[test]
fn a_run_pulls_from_ecr_with_the_role_of_its_compute_environment() {
    require!("docker-registry", "skopeo", "moto_server");
    if !fake_platform::is_here() {
        return;
    }
    let moto = Moto::start();
    let scene = Scene::of(OTHER_ACCOUNT);
    let role = |external_id: &str| {
        json!({
            "discriminator": "aws", "mode": "role", "assumeRoleArn": PULL, "externalId": external_id,
        })
    };
    let setup = || {
        scene
            .setup(&moto, "")
            .environment("AWS_ACCESS_KEY_ID", "AKIAOWNOWNOWNOWN")
            .environment("AWS_SECRET_ACCESS_KEY", "own/secret")
    };
    let platform = platform_with(&role("agreed-between-us"));
    let tidegate = paired(setup(), &platform);
    let before = moto.calls();
    let grant = tidegate.grant_of(&in_run(ACCESS_TOKEN, WORKSPACE, Some("run-1")));
    scene.assert_pulls(&tidegate, &grant);
    // The role and the password.
    assert_eq!(moto.calls() - before, 2);
    assert!(!tidegate.log().text().contains("agreed-between-us"));

    // A role is not assumed for whoever knows its name.
    let platform = platform_with(&role(""));
    let tidegate = paired(setup(), &platform);
    let (status, body) = tidegate.submit(&in_run(ACCESS_TOKEN, WORKSPACE, Some("run-1")));
    assert_eq!(status, 400, "{body}");
    let message = body["message"].as_str().unwrap_or_default();
    assert!(message.contains("without an external id"), "{message}");
    assert_eq!(moto.calls() - before, 2);
}
