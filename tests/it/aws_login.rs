//! Logins for AWS's registries: whose they are, how often they are asked for, and what happens when they end.

use std::thread;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::support::{
    aws_double::{AwsDouble, KEY_ID, OTHER_KEY_ID, SECRET},
    content::Content,
    http::Response,
    liar::{Auth, Behaviour, Liar, LiarImage, blob_path},
    programs::free_port,
    server::Request,
    tidegate::{Directory, Setup, Tidegate, files_below},
};

const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const PUBLIC: &str = "public.ecr.aws";
const ADA: &str = "ada-access-token";
const BOB: &str = "bob-access-token";

/// A registry of AWS and AWS behind it.
struct Scene {
    aws: AwsDouble,
    registry: Liar,
    image: LiarImage,
    name: &'static str,
}

impl Scene {
    fn private() -> Self {
        let aws = AwsDouble::start();
        let registry = Liar::start(Auth::Ecr(aws.passwords()));
        Self::of(aws, registry, ECR)
    }

    fn public() -> Self {
        let aws = AwsDouble::start();
        let registry = Liar::start(Auth::EcrPublic {
            realm: aws.realm(),
            issued: aws.bearer_tokens(),
        });
        Self::of(aws, registry, PUBLIC)
    }

    fn of(aws: AwsDouble, registry: Liar, name: &'static str) -> Self {
        let layers: Vec<_> = (0..6)
            .map(|seed| Content::Generated { seed, size: 1000 })
            .collect();
        let image = registry.image("acme/app", "v1", &layers);
        Self {
            aws,
            registry,
            image,
            name,
        }
    }

    fn setup(&self, more: &str) -> Setup {
        let table = format!("endpoint = \"http://{}\"\n{more}", self.registry.name());
        Setup::new()
            .registry_with(self.name, &table)
            .section("[upstream]\nretry_count = 0\n[log]\nlevel = \"debug\"")
            .environment("AWS_ENDPOINT_URL", &self.aws.url())
            .environment("AWS_CONFIG_FILE", "/nowhere/config")
            .environment("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/credentials")
            .environment("AWS_EC2_METADATA_DISABLED", "true")
    }

    /// Ada has a key of AWS.
    fn with_key(&self) -> Tidegate {
        let directory = Directory::new()
            .user("ada", ADA, &[])
            .user_login(self.name, KEY_ID, SECRET);
        self.setup("").directory(&directory).start()
    }

    fn reference(&self) -> String {
        format!("{}/acme/app:v1", self.name)
    }

    fn submit(&self, tidegate: &Tidegate, access_token: &str) -> (u16, Value) {
        tidegate
            .submit(&json!({"containerImage": self.reference(), "towerAccessToken": access_token}))
    }

    /// Ada's request.
    fn submit_text(&self, tidegate: &Tidegate) -> Response {
        let request = json!({"containerImage": self.reference(), "towerAccessToken": ADA});
        tidegate.post_text("/v1alpha2/container", &request.to_string())
    }

    fn refusal(&self, tidegate: &Tidegate, access_token: &str) -> String {
        let (status, body) = self.submit(tidegate, access_token);
        assert_eq!(status, 400, "{body}");
        body["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// The access key ids that passwords in these requests were made for.
fn owners(requests: &[Request]) -> Vec<String> {
    let pairs = requests.iter().filter_map(Request::basic);
    let mut owners: Vec<String> = pairs
        .filter_map(|(_, password)| Some(password.split_once("-of-")?.1.to_owned()))
        .collect();
    owners.sort();
    owners.dedup();
    owners
}

#[test]
fn many_first_pulls_at_once_ask_aws_once() {
    let scene = Scene::private();
    let tidegate = scene.with_key();
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                let (status, body) = scene.submit(&tidegate, ADA);
                assert_eq!(status, 200, "{body}");
            });
        }
    });
    assert_eq!(scene.aws.requests("ecr").len(), 1);
}

#[test]
fn each_tenant_comes_with_a_password_of_his_own_key() {
    let scene = Scene::private();
    let directory = Directory::new()
        .user("ada", ADA, &[])
        .user_login(ECR, KEY_ID, SECRET)
        .user("bob", BOB, &[])
        .user_login(ECR, OTHER_KEY_ID, SECRET)
        .user("cyd", "cyd-access-token", &[]);
    let tidegate = scene
        .setup("identity = \"aws\"")
        .environment("AWS_ACCESS_KEY_ID", KEY_ID)
        .environment("AWS_SECRET_ACCESS_KEY", SECRET)
        .directory(&directory)
        .start();
    for (access_token, key_id) in [(ADA, KEY_ID), (BOB, OTHER_KEY_ID), (ADA, KEY_ID)] {
        scene.registry.forget_requests();
        let grant = tidegate.grant_as(access_token, &scene.reference());
        let layer = &scene.image.layers[0];
        assert_eq!(&tidegate.pull(&grant.blob(layer)).digest, layer);
        assert_eq!(owners(&scene.registry.requests()), [key_id]);
    }
    // Whoever has no login of his own does not get tidegate's, nor anybody else's.
    scene.registry.forget_requests();
    assert!(
        scene
            .refusal(&tidegate, "cyd-access-token")
            .contains("not allowed")
    );
    assert_eq!(owners(&scene.registry.requests()), [""; 0]);
    // The operator's key is the same as Ada's here, but another source.
    assert_eq!(
        tidegate
            .submit(&json!({"containerImage": scene.reference()}))
            .0,
        200
    );
    assert_eq!(scene.aws.requests("ecr").len(), 3);
}

#[test]
fn a_password_that_has_ended_is_replaced_once_and_the_pull_goes_on() {
    let scene = Scene::private();
    let tidegate = scene.with_key();
    let grant = tidegate.grant_as(ADA, &scene.reference());
    let [first, second, ..] = &scene.image.layers[..] else {
        panic!("there are layers");
    };
    assert_eq!(&tidegate.pull(&grant.blob(first)).digest, first);
    scene.aws.passwords().end_all();
    assert_eq!(&tidegate.pull(&grant.blob(second)).digest, second);
    assert_eq!(scene.aws.requests("ecr").len(), 2);
    assert_eq!(tidegate.metric("tidegate_login_renewals_total"), 1);
    // What was proved before is still proved: the new password is the same login's.
    let path = blob_path("acme/app", first);
    let asked = || {
        scene
            .registry
            .requests()
            .iter()
            .filter(|it| it.path() == path)
            .count()
    };
    let before = asked();
    assert_eq!(&tidegate.pull(&grant.blob(first)).digest, first);
    assert_eq!(asked(), before);
}

/// The cache has it; what is asked is only whether he may have it, and a refusal of that has no words.
#[test]
fn a_password_that_has_ended_is_replaced_for_a_question_without_a_body() {
    for scene in [Scene::private(), Scene::public()] {
        let tidegate = scene.with_key();
        let layer = &scene.image.layers[0];
        let first = tidegate.grant_as(ADA, &scene.reference());
        assert_eq!(&tidegate.pull(&first.blob(layer)).digest, layer);
        let second = tidegate.grant_as(ADA, &scene.reference());
        scene.aws.passwords().end_all();
        scene.aws.bearer_tokens().end_all();
        let gets = || scene.registry.gets(&blob_path("acme/app", layer)).len();
        let before = gets();
        assert_eq!(tidegate.head(&second.blob(layer)).status(), 200);
        assert_eq!(gets(), before);
        assert_eq!(tidegate.metric("tidegate_login_renewals_total"), 1);
    }
}

#[test]
fn a_right_that_is_missing_makes_no_new_password() {
    let scene = Scene::private();
    let tidegate = scene.with_key();
    let grant = tidegate.grant_as(ADA, &scene.reference());
    let layer = &scene.image.layers[0];
    let denied = Behaviour::error(403, "DENIED");
    scene
        .registry
        .misbehave(&blob_path("acme/app", layer), denied);
    for _ in 0..3 {
        let response = tidegate.get(&grant.blob(layer));
        assert_eq!(
            (response.status(), response.error_code().as_str()),
            (403, "DENIED")
        );
    }
    assert_eq!(scene.aws.requests("ecr").len(), 1);
}

#[test]
fn a_password_that_aws_will_not_replace_is_a_refusal() {
    let scene = Scene::private();
    let tidegate = scene.with_key();
    let grant = tidegate.grant_as(ADA, &scene.reference());
    scene.aws.passwords().end_all();
    let denied = r#"{"__type":"UnrecognizedClientException","message":"The security token included in the request is invalid."}"#;
    scene.aws.fail("ecr", 400, denied);
    let layer = &scene.image.layers[0];
    let response = tidegate.get(&grant.blob(layer));
    assert_eq!(response.status(), 403, "{}", response.text());
    // Whoever holds the name only is not told whose keys these are.
    let response = tidegate.get(&grant.blob(layer));
    assert_eq!(response.status(), 403, "{}", response.text());
    assert!(!response.text().contains(KEY_ID), "{}", response.text());
    let line = tidegate
        .log()
        .wait_for(|line| line.contains("is unknown or inactive"));
    assert!(line.is_some_and(|line| line.contains(KEY_ID)));
    let message = scene.refusal(&tidegate, ADA);
    assert!(
        message.contains(&format!("{KEY_ID} is unknown or inactive")),
        "{message}"
    );
}

#[test]
fn trouble_at_aws_is_not_called_a_refusal_and_what_is_cached_is_served() {
    for (status, body, said) in [
        (
            500,
            r#"{"__type":"ServerException"}"#,
            "says nothing about the credentials",
        ),
        (400, r#"{"__type":"ThrottlingException"}"#, "throttles"),
        (429, "", "throttles"),
    ] {
        let scene = Scene::private();
        let tidegate = scene.with_key();
        let grant = tidegate.grant_as(ADA, &scene.reference());
        let [first, second, ..] = &scene.image.layers[..] else {
            panic!("there are layers");
        };
        assert_eq!(&tidegate.pull(&grant.blob(first)).digest, first);
        scene.aws.passwords().end_all();
        scene.aws.fail("ecr", status, body);
        // The registry's own word is all that is known at first.
        assert_eq!(tidegate.get(&grant.blob(second)).status(), 403);
        let response = tidegate.get(&grant.blob(second));
        assert_is_told_to_come_back(&response);
        assert_eq!(response.error_code(), "UNAVAILABLE");
        assert_eq!(&tidegate.pull(&grant.blob(first)).digest, first);
        let response = scene.submit_text(&tidegate);
        assert_is_told_to_come_back(&response);
        assert!(response.text().contains(said), "{}", response.text());
    }
}

fn assert_is_told_to_come_back(response: &Response) {
    assert_eq!(response.status(), 503, "{}", response.text());
    let wait = response.header("Retry-After");
    let wait = wait.and_then(|it| it.parse::<u64>().ok());
    assert!(wait.is_some_and(|seconds| seconds > 0), "{response:?}");
}

#[test]
fn who_needs_aws_while_it_cannot_be_reached_is_told_to_come_back() {
    let scene = Scene::private();
    let directory = Directory::new()
        .user("ada", ADA, &[])
        .user_login(scene.name, KEY_ID, SECRET);
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let tidegate = scene
        .setup("")
        .environment("AWS_ENDPOINT_URL", &nobody)
        .directory(&directory)
        .start();
    let response = scene.submit_text(&tidegate);
    assert_is_told_to_come_back(&response);
    let text = response.text();
    assert!(text.contains("cannot be reached"), "{text}");
    assert!(!text.contains(SECRET), "{text}");
}

#[test]
fn the_public_registry_sees_no_password_and_its_ended_tokens_are_replaced() {
    let scene = Scene::public();
    let tidegate = scene.with_key();
    let grant = tidegate.grant_as(ADA, &scene.reference());
    let [first, second, third, ..] = &scene.image.layers[..] else {
        panic!("there are layers");
    };
    assert_eq!(&tidegate.pull(&grant.blob(first)).digest, first);
    assert_eq!(scene.aws.requests("ecr-public").len(), 1);
    // Its API is in one region, whatever one's own.
    let asked = &scene.aws.requests("ecr-public")[0];
    let scope = asked.header("authorization").unwrap_or_default();
    assert!(scope.contains("/us-east-1/ecr-public/"), "{scope}");

    // 400, without a challenge: the realm is known, and asked again.
    scene.aws.bearer_tokens().end_all();
    assert_eq!(&tidegate.pull(&grant.blob(second)).digest, second);
    assert_eq!(scene.aws.requests("ecr-public").len(), 1);

    // The realm itself refuses the password.
    scene.aws.bearer_tokens().end_all();
    scene.aws.passwords().end_all();
    assert_eq!(&tidegate.pull(&grant.blob(third)).digest, third);
    assert_eq!(scene.aws.requests("ecr-public").len(), 2);

    for request in scene.aws.requests("realm") {
        assert_eq!(request.query("scope").as_deref(), Some("aws"));
        assert_eq!(
            request.basic().map(|(user, _)| user).as_deref(),
            Some("AWS")
        );
    }
    for request in scene.registry.requests() {
        assert_eq!(request.basic(), None, "{request:?}");
    }
}

#[test]
fn the_missing_permission_is_named() {
    let scene = Scene::public();
    let denied = r#"{"__type":"AccessDeniedException","Message":"User: arn:aws:iam::123456789012:user/ada is not authorized to perform: sts:GetServiceBearerToken on resource: *"}"#;
    scene.aws.fail("ecr-public", 400, denied);
    let message = scene.refusal(&scene.with_key(), ADA);
    for part in [
        "ecr-public:GetAuthorizationToken",
        "sts:GetServiceBearerToken",
        "user/ada",
    ] {
        assert!(message.contains(part), "{message}");
    }
    // The operator's own is for his log, not for anonymous callers.
    let tidegate = scene
        .setup("identity = \"aws\"\nanonymous_pull = true")
        .environment("AWS_ACCESS_KEY_ID", KEY_ID)
        .environment("AWS_SECRET_ACCESS_KEY", SECRET)
        .start();
    let (status, body) = tidegate.submit(&json!({"containerImage": scene.reference()}));
    assert_eq!(status, 400, "{body}");
    assert!(!body.to_string().contains("user/ada"), "{body}");
    let line = tidegate
        .log()
        .wait_for(|line| line.contains("sts:GetServiceBearerToken"));
    assert!(line.is_some());
}

#[test]
fn a_role_is_assumed_with_the_external_id_and_never_without() {
    let scene = Scene::private();
    let role = "arn:aws:iam::210987654321:role/pull";
    let own = "arn:aws:iam::123456789012:role/operator";
    let directory = Directory::new()
        .user("ada", ADA, &[])
        .user_login(ECR, role, "agreed-between-us")
        .user("bob", BOB, &[])
        .user_login(ECR, own, "guessed");
    let tidegate = scene
        .setup(&format!("identity = \"aws\"\nassume_role = \"{own}\""))
        .environment("AWS_ACCESS_KEY_ID", KEY_ID)
        .environment("AWS_SECRET_ACCESS_KEY", SECRET)
        .directory(&directory)
        .start();
    let grant = tidegate.grant_as(ADA, &scene.reference());
    let layer = &scene.image.layers[0];
    assert_eq!(&tidegate.pull(&grant.blob(layer)).digest, layer);
    let roles = |role: &str| {
        let mut assumed = scene.aws.requests("AssumeRole");
        assumed.retain(|it| it.form("RoleArn").as_deref() == Some(role));
        assumed
    };
    assert_eq!(roles(role).len(), 1);
    assert_eq!(
        roles(role)[0].form("ExternalId").as_deref(),
        Some("agreed-between-us")
    );
    assert_eq!(
        roles(role)[0].form("DurationSeconds").as_deref(),
        Some("3600")
    );
    // A role that trusts tidegate for the operator's sake is not a tenant's to name.
    assert!(
        scene
            .refusal(&tidegate, BOB)
            .contains("is for the operator")
    );
    assert!(roles(own).iter().all(|it| it.form("ExternalId").is_none()));

    // A session that is over before its time is made anew, with the password that needs it.
    scene.aws.end_sessions();
    scene.aws.passwords().end_all();
    let other = &scene.image.layers[1];
    assert_eq!(&tidegate.pull(&grant.blob(other)).digest, other);
    assert_eq!(roles(role).len(), 2);
}

/// As the account's CloudTrail shows it.
#[test]
fn each_tenant_uses_a_role_under_a_name_of_his_own() {
    const CYD: &str = "cyd-access-token";
    let scene = Scene::private();
    let role = "arn:aws:iam::210987654321:role/pull";
    let own = "arn:aws:iam::123456789012:role/operator";
    let directory = Directory::new()
        .user("ada", ADA, &[7])
        .user_login(ECR, role, "agreed-between-us")
        .user("Bob B.", BOB, &[])
        .user_login(ECR, role, "agreed-between-us")
        .user("cyd", CYD, &[7])
        .workspace(7, "research")
        .workspace_login(ECR, role, "agreed-between-us");
    let tidegate = scene
        .setup(&format!("identity = \"aws\"\nassume_role = \"{own}\""))
        .environment("AWS_ACCESS_KEY_ID", KEY_ID)
        .environment("AWS_SECRET_ACCESS_KEY", SECRET)
        .directory(&directory)
        .start();
    for (access_token, workspace) in [
        (Some(ADA), None),
        (Some(BOB), None),
        (Some(ADA), Some(7)),
        // The same workspace, and so the same session.
        (Some(CYD), Some(7)),
        (Some(ADA), None),
        (None, None),
    ] {
        let (status, body) = tidegate.submit(&json!({
            "containerImage": scene.reference(), "towerAccessToken": access_token,
            "towerWorkspaceId": workspace,
        }));
        assert_eq!(status, 200, "{body}");
    }
    let sessions: Vec<_> = scene
        .aws
        .requests("AssumeRole")
        .iter()
        .map(|it| [it.form("RoleArn"), it.form("RoleSessionName")].map(Option::unwrap_or_default))
        .collect();
    let expected = [
        [role, "tidegate-ada"],
        [role, "tidegate-Bob-B."],
        [role, "tidegate-workspace=7"],
        [own, "tidegate"],
    ];
    assert_eq!(sessions, expected);
}

#[test]
fn a_host_in_front_of_ecr_is_named_by_the_operator() {
    let scene = Scene::private();
    let name = scene.registry.name();
    let directory = Directory::new()
        .user("ada", ADA, &[])
        .user_login(&name, KEY_ID, SECRET);
    let tidegate = scene
        .setup("")
        .registry_with(
            &name,
            "ecr = \"123456789012.dkr.ecr.us-gov-west-1.amazonaws.com\"",
        )
        .directory(&directory)
        .start();
    let grant = tidegate.grant_as(ADA, &scene.registry.reference("acme/app", "v1"));
    let layer = &scene.image.layers[0];
    assert_eq!(&tidegate.pull(&grant.blob(layer)).digest, layer);
    let asked = &scene.aws.requests("ecr")[0];
    let scope = asked.header("authorization").unwrap_or_default();
    assert!(scope.contains("/us-gov-west-1/ecr/"), "{scope}");
}

#[test]
fn nothing_that_aws_lent_is_told() {
    for scene in [Scene::private(), Scene::public()] {
        let role = "arn:aws:iam::210987654321:role/pull";
        let directory = Directory::new()
            .user("ada", ADA, &[])
            .user_login(scene.name, KEY_ID, SECRET)
            .user("bob", BOB, &[])
            .user_login(scene.name, role, "agreed-between-us");
        let tidegate = scene
            .setup("identity = \"aws\"")
            .environment("AWS_ACCESS_KEY_ID", KEY_ID)
            .environment("AWS_SECRET_ACCESS_KEY", SECRET)
            .directory(&directory)
            .start();
        let mut told = String::new();
        for access_token in [ADA, BOB] {
            let grant = tidegate.grant_as(access_token, &scene.reference());
            let layer = &scene.image.layers[0];
            assert_eq!(&tidegate.pull(&grant.blob(layer)).digest, layer);
            scene.aws.passwords().end_all();
            scene.aws.bearer_tokens().end_all();
            let response = tidegate.get(&grant.blob(&scene.image.layers[1]));
            assert_eq!(response.status(), 200, "{}", response.text());
        }
        let denied = r#"{"__type":"SignatureDoesNotMatch","message":"The canonical string should have been x-amz-security-token:session-token-0"}"#;
        for operation in ["ecr", "ecr-public"] {
            scene.aws.fail(operation, 403, denied);
        }
        scene.aws.passwords().end_all();
        scene.aws.bearer_tokens().end_all();
        for access_token in [ADA, BOB] {
            told.push_str(&scene.submit(&tidegate, access_token).1.to_string());
        }
        told.push_str(
            &tidegate
                .metrics()
                .iter()
                .map(|(name, _)| name.as_str())
                .collect::<String>(),
        );
        told.push_str(&tidegate.log().text());
        for (path, _) in files_below(&tidegate.home().join("state")) {
            told.push_str(&String::from_utf8_lossy(
                &std::fs::read(path).expect("our own file"),
            ));
        }
        let mut secrets = scene.aws.secrets();
        assert!(secrets.len() > 2, "{secrets:?}");
        secrets.extend([SECRET.to_owned(), "agreed-between-us".to_owned()]);
        for secret in &secrets {
            let pair = STANDARD.encode(format!("AWS:{secret}"));
            for form in [secret.as_str(), &STANDARD.encode(secret), &pair] {
                assert!(!told.contains(form), "{form} in {told}");
            }
        }
    }
}
