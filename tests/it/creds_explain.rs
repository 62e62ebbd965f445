//! `tidegate creds explain`: an operator sees whose login an image gets and why, and no secret.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::support::{
    accounts::Accounts,
    fake_platform::{self, FakePlatform},
    http,
    liar::{Auth, Liar},
    programs,
    tidegate::{BINARY, Directory, Setup, Tidegate},
};

const REPOSITORY: &str = "acme/app";
const ADA: &str = "access-token-of-ada";
const BAD: &str = "access-token-of-bad";

/// A registry that lets `research` in, with `of research`.
fn registry() -> Liar {
    let accounts = Accounts::none().with("research", "of research", &[REPOSITORY]);
    let liar = Liar::start(Auth::Basic(accounts));
    liar.image(REPOSITORY, "v1", &[]);
    liar
}

/// Exit code and what it said; no secret of the tests is in that.
fn explain(tidegate: &Tidegate, token: Option<&str>, arguments: &[&str]) -> (Option<i32>, String) {
    let admin = tidegate.admin.to_string();
    let file = tidegate.home().join("a.token");
    let mut command = Command::new(BINARY);
    command.args(["creds", "explain", "--admin", &admin]);
    if let Some(token) = token {
        fs::write(&file, format!("{token}\n")).expect("a writable folder");
        command.arg("--token-file").arg(&file);
    }
    let output = programs::output(command.args(arguments));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = String::from_utf8_lossy(&output.stderr);
    for secret in [ADA, BAD, "of research", "of another"] {
        let is_there = said.contains(secret) || told.contains(secret);
        assert!(!is_there, "{secret} in {said}{told}");
    }
    (output.status.code(), said + &told)
}

fn explain_json(tidegate: &Tidegate, token: Option<&str>, arguments: &[&str]) -> Value {
    let (_, said) = explain(tidegate, token, &[arguments, &["-o", "json"]].concat());
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[test]
fn it_says_which_login_matches_and_what_the_registry_says_to_it() {
    let liar = registry();
    let host = liar.name();
    let directory = Directory::new()
        .user("ada", ADA, &[])
        .user_login(format!("{host}/other"), "other", "of another")
        .user_login(&host, "host", "of another")
        .user_login(format!("{host}/acme"), "research", "of research")
        .user("bad", BAD, &[])
        .user_login(&host, "research", "of another");
    let tidegate = Setup::new().liar(&liar).directory(&directory).start();
    let image = liar.reference(REPOSITORY, "v1");

    let told = explain_json(&tidegate, Some(ADA), &[&image]);
    assert_eq!(told["caller"], "ada");
    assert_eq!(told["username"], "research");
    assert!(told["registry"]["granted"].is_string(), "{told}");
    let entries = told["sources"][1]["entries"].as_array().expect("a list");
    let verdicts: Vec<_> = entries.iter().map(|it| &it["verdict"]).collect();
    assert_eq!(
        verdicts,
        [
            "is for another repository",
            "matches, but another matches closer",
            "matches, and nothing matches closer",
        ]
    );
    let (code, said) = explain(&tidegate, Some(ADA), &[&image]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("registry  has it: sha256:"), "{said}");

    let (code, said) = explain(&tidegate, Some(BAD), &[&image]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("not allowed to pull manifest"), "{said}");

    let told = explain_json(&tidegate, Some("another"), &[&image]);
    assert_eq!(told["caller"], "nobody");
    assert_eq!(told["chosen"], "the access token is not known");
    assert_eq!(told["registry"], Value::Null);

    let told = explain_json(&tidegate, Some(ADA), &[&image, "--workspace", "9"]);
    assert_eq!(told["sources"][0]["said"], "knows the access token");
    assert_eq!(told["chosen"], "workspace 9 is not one of yours");

    let told = explain_json(&tidegate, None, &[&image]);
    assert_eq!(told["caller"], "anonymous");
    assert_eq!(told["sources"][0]["name"], "operator");
    assert!(told["registry"]["refused"].is_string(), "{told}");
}

#[test]
fn it_tells_of_a_platforms_workspace() {
    if !fake_platform::is_here() {
        return;
    }
    const ENDPOINT: &str = "https://platform.test/api";
    let liar = registry();
    let host = liar.name();
    let platform = FakePlatform::start();
    let tidegate = Setup::new()
        .liar(&liar)
        .section(&format!(
            "[platform]\nendpoints = [{ENDPOINT:?}]\nallow_any_pairing_token = true"
        ))
        .start();
    platform.user(ADA, 1, &[1]);
    let entry = |id: &str, status: &str| {
        json!({"id": id, "name": id, "registry": format!("https://{host}/"), "status": status,
            "userName": "research", "password": "of research"})
    };
    let aws = json!({"id": "cloud", "provider": "aws"});
    let list = [entry("old", "INVALID"), entry("prod", "AVAILABLE"), aws];
    platform.order("credentials", json!({"workspace": 1, "list": list}));
    platform.paired(tidegate.registry, ENDPOINT, 1);
    let image = liar.reference(REPOSITORY, "v1");
    let told = explain_json(&tidegate, Some(ADA), &[&image, "--workspace", "1"]);
    let sources = told["sources"].as_array().expect("a list");
    let said: Vec<_> = sources.iter().map(|it| &it["said"]).collect();
    assert_eq!(
        said,
        [
            "not set ([directory] file)",
            "knows the access token",
            "2 registry logins, 1 credential for other things",
            "is for anonymous callers only",
        ]
    );
    let entries = told["sources"][2]["entries"].as_array().expect("a list");
    let verdicts: Vec<_> = entries.iter().map(|it| &it["verdict"]).collect();
    assert_eq!(
        verdicts,
        [
            "skipped: the Platform calls it invalid",
            "matches, and nothing matches closer",
        ]
    );
    assert!(told["registry"]["granted"].is_string(), "{told}");
    let denied = explain_json(&tidegate, Some(ADA), &[&image, "--workspace", "2"]);
    let chosen = denied["chosen"].as_str().expect("a text");
    assert!(chosen.contains("403"), "{chosen}");
    let elsewhere = ["--endpoint", "https://elsewhere.test"];
    let told = explain_json(
        &tidegate,
        Some(ADA),
        &[&[image.as_str()], &elsewhere[..]].concat(),
    );
    assert_eq!(told["caller"], "nobody");
}

#[test]
fn no_web_page_is_told() {
    let tidegate = Setup::new().start();
    let body = json!({"image": "alpine"}).to_string();
    for (fields, status) in [
        (&[][..], 403),
        (&[("X-Tidegate", "cache")], 403),
        (&[("X-Tidegate", "credentials"), ("Origin", "null")], 403),
    ] {
        let path = "/credentials/explain";
        let answer = http::request(tidegate.admin, "POST", path, fields, body.as_bytes());
        assert_eq!(answer.status(), status, "{fields:?}: {}", answer.text());
    }
    let fields = [("X-Tidegate", "credentials")];
    let bad = format!("{{\"image\":\"alpine\",\"token\":\"{ADA}\"}}");
    let path = "/credentials/explain";
    let answer = http::request(tidegate.admin, "POST", path, &fields, bad.as_bytes());
    assert_eq!(answer.status(), 400);
    assert!(!answer.text().contains(ADA), "{}", answer.text());
}

#[test]
fn without_a_server_it_says_where_it_asked() {
    let output = programs::output(Command::new(BINARY).args([
        "creds",
        "explain",
        "alpine",
        "--admin",
        "127.0.0.1:1",
    ]));
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("127.0.0.1:1") && told.contains("--admin"),
        "{told}"
    );
}
