//! No secret of a run gets out: not into the log at its most talkative, an answer, a metric, a debug print, what a command
//! prints, or a file of the product's own. A feature that comes with a new secret is used in `Run::new`, and has one more
//! line there: `secrets.add(…)`. `secrets_stay/clouds.rs` has those of Platforms and AWS, `secrets_stay/mirrors.rs` those of
//! copies.

mod clouds;
mod mirrors;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::config::Config;

use crate::support::{
    accounts::Accounts,
    content::{Content, sha256_hex},
    http::{self, Response},
    liar::{Auth, Behaviour, Liar, blob_path},
    programs,
    registry_double::{Double, Life, PRIVATE, Post, Trouble, Ways},
    secrets::{Secrets, Traces},
    tidegate::{BINARY, Directory, Setup, Tidegate, files_below},
    token_server::TokenServer,
};

const ACCESS_TOKEN: &str = "access-token-of-ada";
const GUESSED: &str = "access-token-of-nobody";
const OPERATOR_PASSWORD: &str = "operator+pass/word=\"1\"";
const USER_PASSWORD: &str = "user-pass&word of ada";
const OUTDATED: &str = "outdated-password-of-ada";
const DOCKER_PASSWORD: &str = "docker-config-password";
const HELPER_PASSWORD: &str = "credential-helper-password";
const IDENTITY_TOKEN: &str = "identity-token-of-azure";
const ACCOUNT_PASSWORD: &str = "account-password-of-admin";
const SIGNATURE: &str = "signature-of-the-storage";
const CLIENT_COOKIE: &str = "cookie-of-the-client";
const MISPLACED: &str = "password-in-a-wrong-place";

/// Everything that can go right or wrong.
struct Run {
    secrets: Secrets,
    traces: Traces,
    tidegate: Tidegate,
    /// Of the files that the operator has.
    _home: TempDir,
}

impl Run {
    fn new(log_format: &str) -> Self {
        let mut secrets = Secrets::default();
        for (name, secret) in [
            ("the access token", ACCESS_TOKEN),
            ("a guessed access token", GUESSED),
            ("the operator's password", OPERATOR_PASSWORD),
            ("the user's password", USER_PASSWORD),
            ("an outdated password", OUTDATED),
            ("the password in Docker's file", DOCKER_PASSWORD),
            ("the helper's password", HELPER_PASSWORD),
            ("the identity token", IDENTITY_TOKEN),
            ("the account's password", ACCOUNT_PASSWORD),
            ("a signature", SIGNATURE),
            ("a client's cookie", CLIENT_COOKIE),
        ] {
            secrets.add(name, secret);
        }

        let tokens = TokenServer::start(
            Accounts::none()
                .with("ada", USER_PASSWORD, &["acme/app"])
                .with("operator", OPERATOR_PASSWORD, &["acme/app"]),
        );
        let with_tokens = Liar::start(Auth::Bearer {
            realm: tokens.realm(),
            issued: tokens.issued(),
        });
        let layers: Vec<_> = (0..6)
            .map(|seed| Content::Generated { seed, size: 90_000 })
            .collect();
        let image = with_tokens.image("acme/app", "v1", &layers);
        let basic = |user: &str, password: &str| {
            let accounts = Accounts::none().with(user, password, &["*"]);
            let liar = Liar::start(Auth::Basic(accounts));
            liar.image("acme/app", "v1", &[Content::of("a layer")]);
            liar
        };
        let with_basic = basic("ada", USER_PASSWORD);
        let in_docker = basic("docker", DOCKER_PASSWORD);
        let helped = basic("helper", HELPER_PASSWORD);
        let azure = Ways {
            token_name: "access_token",
            life: Life::InToken(4500),
            post_password: Post::Status(400),
            takes_refresh_tokens: true,
            ..Ways::default()
        };
        let azure = Double::start(azure, Accounts::none()).with_refresh_token(IDENTITY_TOKEN);
        let home = tempfile::tempdir().expect("a temporary folder");
        let helper = home.path().join("docker-credential-tests");
        let answer = json!({"Username": "helper", "Secret": HELPER_PASSWORD});
        let helper_text = format!("#!/bin/sh\necho '{answer}' | tee /dev/stderr\n");
        fs::write(&helper, helper_text).expect("the folder is ours");
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let docker = home.path().join("config.json");
        let docker_text = json!({
            "auths": {
                in_docker.name(): {"username": "docker", "password": DOCKER_PASSWORD},
                azure.name(): {"auth": "", "identitytoken": IDENTITY_TOKEN},
                "nonsense": {"auth": DOCKER_PASSWORD},
            },
            "credHelpers": {helped.name(): "tests"},
        });
        fs::write(&docker, docker_text.to_string()).expect("the folder is ours");
        let directory = Directory::new()
            .user("ada", ACCESS_TOKEN, &[])
            .user_login(with_tokens.name(), "ada", USER_PASSWORD)
            .user_login(with_basic.name(), "ada", OUTDATED);
        let path = std::env::var("PATH").unwrap_or_default();
        let tidegate = Setup::new()
            .environment("PATH", &format!("{}:{path}", home.path().display()))
            .registry_with(
                with_tokens.name(),
                &format!("username = \"operator\"\npassword = {OPERATOR_PASSWORD:?}"),
            )
            .liar(&with_basic)
            .liar(&in_docker)
            .liar(&helped)
            .registry(azure.name())
            .directory(&directory)
            .section(&format!(
                "[docker]\nconfig_files = [{docker:?}]\n[accounts]\nadmin = \"{}\"\n\
                 [log]\nlevel = \"debug\"\nformat = \"{log_format}\"\n[upstream]\nretry_count = 1",
                sha256_hex(ACCOUNT_PASSWORD)
            ))
            .start();
        let mut run = Self {
            secrets,
            traces: Traces::default(),
            tidegate,
            _home: home,
        };

        // What goes well.
        let image_name = with_tokens.reference("acme/app", "v1");
        let of_ada = run.tidegate.grant_as(ACCESS_TOKEN, &image_name);
        let of_nobody = run.tidegate.grant(&image_name);
        for grant in [&of_ada, &of_nobody] {
            run.secrets.add_for_logs("an ephemeral token", &grant.token);
            run.get(&grant.manifest("v1"));
            run.get(&grant.blob(&image.layers[0]));
        }
        for (reference, expected) in [
            (in_docker.reference("acme/app", "v1"), 200),
            (helped.reference("acme/app", "v1"), 200),
            (azure.reference(PRIVATE), 200),
        ] {
            assert_eq!(run.submit("", &reference), expected, "{reference}");
        }

        // What does not: logins that are refused, and answers that tell of them.
        for reference in [
            with_tokens.reference("acme/other", "v1"),
            with_basic.reference("acme/app", "v1"),
            "127.0.0.1:1/acme/app".to_owned(),
        ] {
            assert_eq!(run.submit(ACCESS_TOKEN, &reference), 400, "{reference}");
        }
        assert_eq!(run.submit(GUESSED, &image_name), 401);
        azure.expire_tokens();
        azure.trouble_at_the_realm(Some(Trouble(503, vec![], "no")));
        assert_eq!(run.submit("", &azure.reference("acme/other")), 400);
        let echo = "{\"details\": \"no identity-token-of-azure here\"}";
        azure.trouble_at_the_realm(Some(Trouble(401, vec![], echo)));
        assert_eq!(run.submit("", &azure.reference("acme/other")), 400);
        // Registries that break off, redirect, and forget tokens.
        let path = |number: usize| blob_path("acme/app", &image.layers[number]);
        with_tokens.misbehave(&path(1), Behaviour::HangUp);
        with_tokens.misbehave(&path(2), Behaviour::CutAfter(10_000));
        let signed = format!("http://storage.test/b?X-Signature={SIGNATURE}");
        with_tokens.misbehave(&path(3), Behaviour::redirect(307, &signed));
        let echo =
            json!({"errors": [{"code": "DENIED", "message": format!("{USER_PASSWORD} is wrong")}]});
        let echo = Behaviour::Answer(403, Vec::new(), echo.to_string());
        with_tokens.misbehave(&path(4), echo);
        for layer in &image.layers[1..5] {
            run.get(&of_ada.blob(layer));
        }
        tokens.forget_issued();
        run.get(&of_ada.blob(&image.layers[5]));
        run.get(&of_ada.manifest("v2"));
        // Clients that put secrets where they should not be.
        let malformed = format!("{{\"towerAccessToken\":\"{ACCESS_TOKEN}\",,");
        let response = run.tidegate.post_text("/v1alpha2/container", &malformed);
        run.keep("a malformed request", &response);
        for path in [
            format!("/v2/?access_token={ACCESS_TOKEN}"),
            format!("/nowhere?access_token={ACCESS_TOKEN}"),
            format!("{}?token={ACCESS_TOKEN}", of_ada.manifest("v1")),
            format!("/container-token/{}", of_ada.token),
            format!("/v1alpha2/container/{}", of_ada.token),
            format!("/v1alpha2/container/{}/status", of_ada.token),
            "/service-info".to_owned(),
        ] {
            run.get(&path);
        }
        let bearer = format!("Bearer {ACCESS_TOKEN}");
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Cookie", CLIENT_COOKIE),
        ];
        let response = run
            .tidegate
            .request("GET", &of_ada.manifest("v1"), &headers);
        run.keep("an answer to a client with a cookie", &response);
        for password in [ACCOUNT_PASSWORD, OUTDATED] {
            use base64::Engine as _;
            let pair = format!("admin:{password}");
            let login = base64::engine::general_purpose::STANDARD.encode(pair);
            let path = format!("/container-token/{}", of_nobody.token);
            let headers = [("Authorization", format!("Basic {login}"))];
            let headers = [(headers[0].0, headers[0].1.as_str())];
            let response = run.tidegate.request("DELETE", &path, &headers);
            run.keep("an answer to an account", &response);
        }
        // What an operator looks at.
        for path in [
            "/metrics",
            "/livez",
            "/readyz",
            "/cache",
            "/cache/blobs",
            "/nowhere",
        ] {
            let response = http::get(run.tidegate.admin, path);
            run.keep(path, &response);
        }
        run.command(run.tidegate.cache_command(&["ls"]), "cache ls");
        run.command(run.tidegate.cache_command(&["du"]), "cache du");
        run.command(run.tidegate.cache_command(&["verify"]), "cache verify");
        let config = run.tidegate.home().join("tidegate.toml");
        run.command(check_config(&config), "check-config");
        let loaded = Config::load(&config).expect("it was good enough to start");
        let printed = format!("{loaded:?} {loaded:#?}");
        run.traces
            .logs
            .push(("a debug print".to_owned(), printed.into()));

        // The tokens that realms have made of the logins.
        let used = [with_tokens.requests(), azure.registry_requests()].concat();
        let bearers: Vec<&str> = used.iter().filter_map(|request| request.bearer()).collect();
        assert!(bearers.len() > 3, "{bearers:?}");
        for bearer in bearers {
            run.secrets.add("a bearer token", bearer);
        }
        run
    }

    fn get(&mut self, path: &str) {
        let response = self.tidegate.get(path);
        self.keep(path, &response);
    }

    fn submit(&mut self, access_token: &str, image: &str) -> u16 {
        let request = json!({"containerImage": image, "towerAccessToken": access_token});
        let (status, body) = self.tidegate.submit(&request);
        let place = format!("the answer for {image}");
        self.traces.others.push((place, body.to_string().into()));
        if let Some(token) = body.get("containerToken").and_then(Value::as_str) {
            self.secrets.add_for_logs("an ephemeral token", token);
        }
        status
    }

    fn keep(&mut self, place: &str, response: &Response) {
        self.traces
            .others
            .push((format!("the answer to {place}"), response.body.clone()));
    }

    fn command(&mut self, output: Output, name: &str) {
        for printed in [output.stdout, output.stderr] {
            self.traces.logs.push((name.to_owned(), printed));
        }
    }

    fn end(mut self) -> Traces {
        self.tidegate.signal("TERM");
        self.tidegate.log().wait_for_end();
        let log = self.tidegate.log().text();
        assert!(
            log.lines().count() > 30,
            "the log says hardly anything:\n{log}"
        );
        self.traces.logs.push(("the log".to_owned(), log.into()));
        let mut count = 0;
        for (path, _) in files_below(self.tidegate.home()) {
            let is_ours = path.starts_with(self.tidegate.home().join("state"))
                || path.starts_with(self.tidegate.cache_folder());
            if is_ours {
                let mut bytes = fs::read(&path).unwrap_or_default();
                // Much of an index is empty.
                bytes.dedup_by(|next, byte| *next == 0 && *byte == 0);
                self.traces.others.push((path.display().to_string(), bytes));
                count += 1;
            }
        }
        assert!(count > 3, "the run has left {count} files");
        self.secrets.assert_are_nowhere(&self.traces);
        self.traces
    }
}

fn check_config(file: &Path) -> Output {
    let mut command = Command::new(BINARY);
    programs::output(command.arg("check-config").arg("--config").arg(file))
}

#[test]
fn no_secret_of_a_full_run_is_written_down_anywhere() {
    for log_format in ["text", "json"] {
        Run::new(log_format).end();
    }
}

/// People paste passwords where they do not belong, and send the complaint to a colleague.
#[test]
fn complaints_about_a_configuration_do_not_repeat_its_secrets() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut secrets = Secrets::default();
    secrets.add("a misplaced password", MISPLACED);
    let mut traces = Traces::default();
    let registry = "[registry.\"quay.io\"]\nusername = \"ada\"\n";
    for (number, text) in [
        format!("{registry}pasword = \"{MISPLACED}\"\n"),
        format!("{registry}password = [\"{MISPLACED}\"]\n"),
        format!("{registry}password = \"{MISPLACED}\n"),
        format!("{registry}password = {MISPLACED}\n"),
        format!("{registry}password = \"{MISPLACED}\"\npassword_env = \"PATH\"\n"),
        format!("{registry}password = \"{MISPLACED}\"\nendpoint = \"no url\"\n"),
        format!("{registry}password = \"x\"\nendpoint = \"https://ada:{MISPLACED}@quay.io\"\n"),
        format!("password = \"{MISPLACED}\"\n"),
        format!("url = \"http://ada:{MISPLACED}@localhost\"\n"),
        format!("[accounts]\nadmin = \"{MISPLACED}\"\n"),
        format!("[accounts]\nadmin = {{ password = \"{MISPLACED}\" }}\n"),
        "[directory]\nfile = \"directory.toml\"\n".to_owned(),
        "[docker]\nconfig_files = [\"config.json\"]\n".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        let file = folder.path().join("tidegate.toml");
        fs::write(&file, &text).expect("the folder is ours");
        let directory = format!("[[user]]\nname = \"ada\"\ntoken_sha256 = \"{MISPLACED}\"\n");
        fs::write(folder.path().join("directory.toml"), directory).expect("the folder is ours");
        let docker = format!("{{\"auths\": {{\"quay.io\": \"{MISPLACED}\"}}}}");
        fs::write(folder.path().join("config.json"), docker).expect("the folder is ours");
        let output = check_config(&file);
        assert!(!output.status.success(), "{text}");
        let place = format!("check-config {number} of {text}");
        for printed in [output.stdout, output.stderr] {
            traces.logs.push((place.clone(), printed));
        }
    }
    secrets.assert_are_nowhere(&traces);
}
