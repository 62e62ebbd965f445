//! The secrets of a Platform's users and of AWS.

use std::fs;

use memchr::memmem;
use serde_json::{Value, json};

use super::Run;
use crate::support::{
    accounts::Accounts,
    aws_double::{AwsDouble, CONTAINER_TOKEN, KEY_ID, METADATA_TOKEN, SECRET},
    content::{Content, sha256_hex},
    fake_platform::{self, FakePlatform, PAIRING_TOKEN},
    http,
    liar::{Auth, Liar},
    programs::{self, wait_until},
    secrets::{Secrets, Traces},
    tidegate::{BINARY, Setup},
};

const ENDPOINT: &str = "https://platform.test/api";
const WORKSPACE: i64 = 7;
/// Of the operator, of a role and of a run's keys.
const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const ECR_OF_ROLE: &str = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";
const ECR_OF_RUN: &str = "321098765432.dkr.ecr.eu-west-1.amazonaws.com";
const PUBLIC: &str = "public.ecr.aws";

const ACCESS_TOKEN: &str = "jwt-of-ada.number-1";
const FOLLOWERS: [&str; 2] = ["jwt-of-ada.number-2", "jwt-of-ada.number-3"];
const REFRESH_TOKENS: [&str; 2] = ["refresh+token/of-ada=1", "refresh+token/of-ada=2"];
const STRANGER: &str = "access-token-of-a-stranger";
const OTHER_PAIRING_TOKEN: &str = "license-token-of-another";
const PASSWORD: &str = "password of \"research\"";
const OUTDATED: &str = "password-before-it-was-changed";
const EXTERNAL_ID: &str = "external-id-of-the-tenant";
const OPERATORS_EXTERNAL_ID: &str = "external-id-of-the-operator";
const WEB_IDENTITY: &str = "web-identity-token-of-the-pod";

/// How a private key for RSA begins in PKCS #8, after its length: its kind, and a string of bytes.
const PRIVATE_KEY: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x04\x82";

/// Where tidegate's own identity in AWS comes from.
#[derive(Clone, Copy)]
enum Own {
    Environment,
    WebIdentity,
    Container,
    Metadata,
}

struct World {
    platform: FakePlatform,
    aws: AwsDouble,
    liar: Liar,
    private: Liar,
    public: Liar,
}

impl World {
    fn new() -> Self {
        let aws = AwsDouble::start();
        let accounts = Accounts::none().with("research", PASSWORD, &["*"]);
        let liar = Liar::start(Auth::Basic(accounts));
        let private = Liar::start(Auth::Ecr(aws.passwords()));
        let public = Liar::start(Auth::EcrPublic {
            realm: aws.realm(),
            issued: aws.bearer_tokens(),
        });
        for liar in [&liar, &private, &public] {
            liar.image("acme/app", "v1", &[Content::of("a layer")]);
        }
        let platform = FakePlatform::start();
        let world = Self {
            platform,
            aws,
            liar,
            private,
            public,
        };
        world.introduce(OUTDATED);
        world
    }

    fn introduce(&self, password: &str) {
        self.platform.user(ACCESS_TOKEN, 1, &[WORKSPACE]);
        let registry = self.liar.name();
        let role = "arn:aws:iam::210987654321:role/pull";
        self.platform.order(
            "credentials",
            json!({"workspace": WORKSPACE, "list": [
                {"id": "login", "registry": registry, "userName": "research", "password": password},
                {"id": "role", "registry": ECR_OF_ROLE, "userName": role, "password": EXTERNAL_ID},
                {"id": "keys", "provider": "aws", "secrets":
                    {"discriminator": "aws", "accessKey": KEY_ID, "secretKey": SECRET}},
            ]}),
        );
        let environment = json!({"id": "c", "platform": "aws-batch", "credentialsId": "keys"});
        let run = json!({"id": "run-1", "workspace": WORKSPACE, "computeEnv": environment});
        self.platform.order("workflow", run);
    }

    fn start(&self, own: Own, log_format: &str) -> Run {
        let home = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str, content: &str| {
            let path = home.path().join(name);
            fs::write(&path, content).expect("the folder is ours");
            path.display().to_string()
        };
        let external_id = file("external-id", OPERATORS_EXTERNAL_ID);
        let at = |liar: &Liar, more: &str| format!("endpoint = \"http://{}\"\n{more}", liar.name());
        let role = "assume_role = \"arn:aws:iam::123456789012:role/pull\"";
        let setup = Setup::new()
            .liar(&self.liar)
            .registry_with(
                ECR,
                &at(
                    &self.private,
                    &format!("identity = \"aws\"\n{role}\nexternal_id_file = {external_id:?}"),
                ),
            )
            .registry_with(ECR_OF_ROLE, &at(&self.private, ""))
            .registry_with(ECR_OF_RUN, &at(&self.private, ""))
            .registry_with(PUBLIC, &at(&self.public, "identity = \"aws\""))
            .section(&format!(
                "[platform]\nendpoints = [{ENDPOINT:?}]\nremember = \"0s\"\n\
                 pairing_tokens = {{ {ENDPOINT:?} = [\"{}\"] }}\n\
                 [log]\nlevel = \"debug\"\nformat = \"{log_format}\"\n[upstream]\nretry_count = 0",
                sha256_hex(PAIRING_TOKEN)
            ))
            .environment("AWS_ENDPOINT_URL", &self.aws.url())
            .environment("AWS_CONFIG_FILE", "/nowhere/config")
            .environment("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/credentials");
        let setup = match own {
            Own::Environment => setup
                .environment("AWS_ACCESS_KEY_ID", KEY_ID)
                .environment("AWS_SECRET_ACCESS_KEY", SECRET),
            Own::WebIdentity => setup
                .environment("AWS_WEB_IDENTITY_TOKEN_FILE", &file("pod", WEB_IDENTITY))
                .environment("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pod"),
            Own::Container => setup
                .environment(
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                    &format!("{}/container", self.aws.url()),
                )
                .environment("AWS_CONTAINER_AUTHORIZATION_TOKEN", CONTAINER_TOKEN),
            Own::Metadata => {
                setup.environment("AWS_EC2_METADATA_SERVICE_ENDPOINT", &self.aws.url())
            }
        };
        let mut run = Run {
            secrets: Secrets::default(),
            traces: Traces::default(),
            tidegate: setup.start(),
            _home: home,
        };
        for (name, secret) in [
            ("the access token", ACCESS_TOKEN),
            ("a token that followed", FOLLOWERS[0]),
            ("the last token", FOLLOWERS[1]),
            ("a refresh token", REFRESH_TOKENS[0]),
            ("the next refresh token", REFRESH_TOKENS[1]),
            ("a stranger's access token", STRANGER),
            ("the pairing token", PAIRING_TOKEN),
            ("another pairing token", OTHER_PAIRING_TOKEN),
            ("a login's password", PASSWORD),
            ("an outdated password", OUTDATED),
            ("a tenant's external id", EXTERNAL_ID),
            ("the operator's external id", OPERATORS_EXTERNAL_ID),
            ("the web identity's token", WEB_IDENTITY),
            ("AWS's secret key", SECRET),
            ("the token for metadata", METADATA_TOKEN),
            ("the token for the container's service", CONTAINER_TOKEN),
        ] {
            run.secrets.add(name, secret);
        }
        self.pair(&mut run);
        run
    }

    fn run(&self, own: Own, log_format: &str) -> Run {
        let mut run = self.start(own, log_format);
        self.go_well(&mut run);
        self.refresh(&mut run);
        self.go_wrong(&mut run);
        for secret in self.aws.secrets() {
            run.secrets.add("what AWS lent", &secret);
        }
        let asked = self.private.requests();
        assert!(asked.iter().any(|request| request.basic().is_some()));
        let packet_keys = self.platform.packet_keys();
        assert!(packet_keys.len() > 2, "{packet_keys:?}");
        for key in packet_keys {
            run.secrets.add("a packet's key", &key);
        }
        run
    }

    fn pair(&self, run: &mut Run) {
        let registry = run.tidegate.registry;
        for (endpoint, token) in [
            (ENDPOINT, OTHER_PAIRING_TOKEN),
            ("https://elsewhere.test/api", OTHER_PAIRING_TOKEN),
        ] {
            self.platform.order(
                "pair",
                json!({"url": format!("ws://{registry}"), "endpoint": endpoint, "token": token}),
            );
        }
        let refused = |session: &fake_platform::Session| session.number("refused") > 0;
        self.platform.wait_for_sessions("refusals", 2, refused);
        self.platform.order("close", json!({"stay": true}));
        self.platform.pair(registry, ENDPOINT, 1);
        self.platform
            .wait_for_sessions("pairing", 1, fake_platform::Session::is_paired);
        for path in [
            format!("/pairing/tower/token/{OTHER_PAIRING_TOKEN}"),
            format!("/pairing/elsewhere/token/{OTHER_PAIRING_TOKEN}?endpoint={ENDPOINT}"),
            format!("/pairing/tower/token/{OTHER_PAIRING_TOKEN}/more"),
            format!("/nowhere/token/{OTHER_PAIRING_TOKEN}"),
        ] {
            // Not `Run::get`: the path is what failures would show.
            let response = run.tidegate.get(&path);
            run.keep("an odd pairing", &response);
        }
    }

    fn request(&self, image: &str) -> Value {
        json!({
            "containerImage": image,
            "towerAccessToken": ACCESS_TOKEN,
            "towerRefreshToken": REFRESH_TOKENS[0],
            "towerWorkspaceId": WORKSPACE,
            "towerEndpoint": ENDPOINT,
            "workflowId": "run-1",
        })
    }

    fn images(&self) -> [String; 3] {
        [
            self.liar.reference("acme/app", "v1"),
            format!("{ECR_OF_ROLE}/acme/app:v1"),
            format!("{ECR_OF_RUN}/acme/app:v1"),
        ]
    }

    fn ask(&self, run: &mut Run, request: &Value) -> u16 {
        let (status, body) = run.tidegate.submit(request);
        let place = format!("the answer for {}", request["containerImage"]);
        run.traces.others.push((place, body.to_string().into()));
        if status == 200 {
            let grant = crate::support::tidegate::Grant::read(&body);
            run.secrets.add_for_logs("an ephemeral token", &grant.token);
            run.get(&grant.manifest("v1"));
            run.get(&format!("{}/tags/list", grant.path));
        }
        status
    }

    fn go_well(&self, run: &mut Run) {
        // What the registry refuses is asked for anew.
        let [image, ..] = self.images();
        let mut request = self.request(&image);
        request["workflowId"] = Value::Null;
        assert_eq!(self.ask(run, &request), 400);
        self.introduce(PASSWORD);
        wait_until("the new password", || {
            run.tidegate.submit(&request).0 == 200
        });
        for image in self.images() {
            assert_eq!(self.ask(run, &self.request(&image)), 200, "{image}");
        }
        for host in [ECR, PUBLIC] {
            let image = format!("{host}/acme/app:v1");
            let request = json!({"containerImage": image});
            assert_eq!(self.ask(run, &request), 200, "{image}");
        }
        self.aws.passwords().end_all();
        self.aws.bearer_tokens().end_all();
        for host in [ECR, PUBLIC] {
            let request = json!({"containerImage": format!("{host}/acme/app:v1")});
            assert_eq!(self.ask(run, &request), 200, "{host}");
        }
    }

    fn refresh(&self, run: &mut Run) {
        for (number, form) in [(0, "both"), (1, "jwt")] {
            self.platform.user(FOLLOWERS[number], 1, &[WORKSPACE]);
            let next = REFRESH_TOKENS.get(number + 1);
            self.platform.order(
                "refresh",
                json!({"refresh": REFRESH_TOKENS[number], "token": FOLLOWERS[number], "next": next, "cookies": form}),
            );
            let expired = [ACCESS_TOKEN, FOLLOWERS[0]][number];
            self.platform.order("revoke", json!({"token": expired}));
            // A grant that nothing is remembered for.
            self.explain(run, &self.images()[0], ACCESS_TOKEN);
            let mut request = self.request(&self.images()[0]);
            request["workflowId"] = Value::Null;
            assert_eq!(self.ask(run, &request), 200, "{form}");
        }
        assert_eq!(self.platform.count("POST /oauth/access_token"), 2);
    }

    /// Everybody's answers tell what he knows.
    fn go_wrong(&self, run: &mut Run) {
        let [image, of_role, _] = self.images();
        let mut stranger = self.request(&image);
        stranger["towerAccessToken"] = json!(STRANGER);
        assert_eq!(self.ask(run, &stranger), 401);
        let mut elsewhere = self.request(&image);
        elsewhere["towerEndpoint"] = json!("https://elsewhere.test");
        assert_eq!(self.ask(run, &elsewhere), 400);
        let mut fresh = self.request(&image);
        fresh["workflowId"] = Value::Null;
        let echo = format!("{{\"echo\": \"{} {PASSWORD}\"", FOLLOWERS[1]);
        let keys = format!("{{\"keys\": \"1\\\\P\\\\{OUTDATED}\\\\{OUTDATED}\"}}");
        for (path, status, body) in [
            ("/credentials", 500, echo.as_str()),
            ("/credentials", 403, &echo),
            ("/credentials", 200, &echo),
            ("/credentials", 200, "{\"credentials\": [{\"id\": 1}]}"),
            ("/credentials/login/keys", 404, &echo),
            ("/credentials/login/keys", 200, &echo),
            ("/credentials/login/keys", 200, &keys),
            ("/user-info", 302, &echo),
        ] {
            let order = json!({"path": path, "status": status, "body": body});
            self.platform.order("answer", order);
            self.ask(run, &fresh);
            self.explain(run, &image, ACCESS_TOKEN);
        }
        self.explain(run, &of_role, ACCESS_TOKEN);
        self.explain(run, &image, STRANGER);
        // No token is good any more.
        self.platform
            .order("revoke", json!({"token": FOLLOWERS[1]}));
        self.ask(run, &fresh);
        self.platform.order("drop", json!({}));
        for path in ["/metrics", "/readyz"] {
            let response = http::get(run.tidegate.admin, path);
            run.keep(path, &response);
        }
    }

    /// AWS says no to everything, and repeats all that it was told.
    fn be_refused(&self, run: &mut Run) {
        let told = format!("{SECRET} {EXTERNAL_ID} {OPERATORS_EXTERNAL_ID} {WEB_IDENTITY}");
        let denied = json!({"__type": "SignatureDoesNotMatch", "message": told}).to_string();
        let refused = |code: &str| {
            format!("<E><Error><Code>{code}</Code><Message>{told}</Message></Error></E>")
        };
        for operation in ["ecr", "ecr-public", "realm"] {
            self.aws.fail(operation, 403, &denied);
        }
        let images = [
            format!("{ECR}/acme/app:v1"),
            format!("{PUBLIC}/acme/app:v1"),
        ];
        for image in &images {
            assert_ne!(self.ask(run, &json!({"containerImage": image})), 200);
        }
        for image in &self.images()[1..] {
            assert_ne!(self.ask(run, &self.request(image)), 200, "{image}");
            self.explain(run, image, ACCESS_TOKEN);
        }
        let log = run.tidegate.log().text();
        assert!(log.contains("AWS gave no login"), "{log}");
        for secret in self.aws.secrets() {
            run.secrets.add("what AWS lent", &secret);
        }
        let log = ("the log before".to_owned(), log.into());
        run.traces.logs.push(log);
        // Before there is anything to ask ECR with.
        run.tidegate.restart();
        self.aws.fail("AssumeRole", 403, &refused("AccessDenied"));
        let web = "AssumeRoleWithWebIdentity";
        self.aws.fail(web, 403, &refused("ValidationError"));
        self.aws.fail("container", 403, &denied);
        self.aws.fail("metadata", 403, &denied);
        wait_until("the Platform's next socket", || {
            self.ask(run, &self.request(&self.images()[1])) == 400
        });
        for image in &images {
            assert_ne!(self.ask(run, &json!({"containerImage": image})), 200);
        }
        for image in &self.images()[1..] {
            assert_ne!(self.ask(run, &self.request(image)), 200, "{image}");
            self.explain(run, image, ACCESS_TOKEN);
        }
    }

    fn explain(&self, run: &mut Run, image: &str, access_token: &str) {
        let file = run.tidegate.home().join("a.token");
        fs::write(&file, access_token).expect("a writable folder");
        let mut command = std::process::Command::new(BINARY);
        command
            .args(["creds", "explain", image, "--workspace", "7", "--admin"])
            .arg(run.tidegate.admin.to_string())
            .arg("--token-file")
            .arg(file);
        let output = programs::output(&mut command);
        run.command(output, "creds explain");
    }
}

#[test]
fn no_secret_of_a_platform_or_of_aws_is_written_down_anywhere() {
    if !fake_platform::is_here() {
        return;
    }
    for (own, log_format) in [
        (Own::Environment, "text"),
        (Own::WebIdentity, "json"),
        (Own::Container, "text"),
        (Own::Metadata, "json"),
    ] {
        let world = World::new();
        let traces = world.run(own, log_format).end();
        for (place, bytes) in traces.logs.iter().chain(&traces.others) {
            let found = memmem::find(bytes, PRIVATE_KEY);
            assert_eq!(found, None, "a private key in {place}");
        }
    }
}

#[test]
fn refusals_of_aws_tell_no_secret() {
    if !fake_platform::is_here() {
        return;
    }
    for (own, log_format) in [
        (Own::Environment, "json"),
        (Own::WebIdentity, "text"),
        (Own::Container, "json"),
        (Own::Metadata, "text"),
    ] {
        let world = World::new();
        let mut run = world.start(own, log_format);
        world.be_refused(&mut run);
        run.end();
    }
}
