//! Secrets go where they belong: not to another registry, not into a log, an error, a metric or a file.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::support::{
    accounts::Accounts,
    content::Content,
    http,
    liar::{Auth, Behaviour, Liar, blob_path},
    tidegate::{Directory, Setup, files_below},
    token_server::TokenServer,
};

const ACCESS_TOKEN: &str = "ada-access-token-of-some-length";
const PASSWORD: &str = "hunter2-and-a-half";
const WRONG: &str = "outdated-password";

#[test]
fn each_registry_sees_its_own_login_only() {
    let logins = Accounts::none()
        .with("ada", PASSWORD, &["*"])
        .with("robot", "sesame", &["*"]);
    let first = Liar::start(Auth::Basic(logins.clone()));
    let second = Liar::start(Auth::Basic(logins));
    let open = Liar::open();
    for liar in [&first, &second, &open] {
        liar.image("acme/app", "v1", &[Content::of("layer")]);
        liar.image("acme/special/app", "v1", &[]);
    }
    let directory = Directory::new()
        .user("ada", ACCESS_TOKEN, &[])
        .user_login(first.name(), "ada", PASSWORD)
        .user_login(format!("{}/acme/special", first.name()), "robot", "sesame")
        .user_login(second.name(), "robot", "sesame");
    let tidegate = Setup::new()
        .liar(&first)
        .liar(&second)
        .liar(&open)
        .directory(&directory)
        .start();
    for (liar, repository, user) in [
        (&first, "acme/app", Some("ada")),
        // The longest prefix wins.
        (&first, "acme/special/app", Some("robot")),
        (&second, "acme/app", Some("robot")),
        (&open, "acme/app", None),
    ] {
        liar.forget_requests();
        let grant = tidegate.grant_as(ACCESS_TOKEN, &liar.reference(repository, "v1"));
        let headers = [
            ("Authorization", "Basic Y2xpZW50OmNsaWVudA=="),
            ("Cookie", "client=1"),
        ];
        let response = tidegate.request("GET", &grant.manifest("v1"), &headers);
        assert_eq!(response.status(), 200, "{}", response.text());
        for request in liar.requests() {
            let seen = request.basic().map(|(user, _)| user);
            // The first request may come before the challenge.
            assert!(seen.is_none() || seen.as_deref() == user, "{request:?}");
            assert_eq!(request.header("cookie"), None, "{request:?}");
        }
    }
}

#[test]
fn a_user_without_a_login_does_not_borrow_the_operators() {
    let logins = Accounts::none().with("operator", PASSWORD, &["*"]);
    let liar = Liar::start(Auth::Basic(logins));
    liar.image("acme/app", "v1", &[]);
    let directory = Directory::new().user("ada", ACCESS_TOKEN, &[]);
    let tidegate = Setup::new()
        .registry_with(
            liar.name(),
            &format!("username = \"operator\"\npassword = \"{PASSWORD}\""),
        )
        .directory(&directory)
        .start();
    let image = liar.reference("acme/app", "v1");
    assert_eq!(tidegate.submit(&json!({"containerImage": image})).0, 200);
    let (status, body) =
        tidegate.submit(&json!({"containerImage": image, "towerAccessToken": ACCESS_TOKEN}));
    assert_eq!(status, 400, "{body}");
}

#[test]
fn passwords_come_from_a_file_or_the_environment_as_well() {
    let logins = Accounts::none().with("operator", PASSWORD, &["*"]);
    let liar = Liar::start(Auth::Basic(logins));
    liar.image("acme/app", "v1", &[]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).expect("a writable folder");
    for password in [
        format!("password_file = \"{}\"", file.display()),
        "password_env = \"TESTS_PASSWORD\"".to_owned(),
    ] {
        let tidegate = Setup::new()
            .registry_with(liar.name(), &format!("username = \"operator\"\n{password}"))
            .environment("TESTS_PASSWORD", PASSWORD)
            .start();
        tidegate.grant(&liar.reference("acme/app", "v1"));
    }
}

/// Everything that can go right or wrong, at the most talkative level.
#[test]
fn no_secret_is_written_down_anywhere() {
    let accounts = Accounts::none().with("ada", PASSWORD, &["acme/app"]);
    let tokens = TokenServer::start(accounts);
    let liar = Liar::start(Auth::Bearer {
        realm: tokens.realm(),
        issued: tokens.issued(),
    });
    let basic = Liar::start(Auth::Basic(Accounts::none()));
    let image = liar.image(
        "acme/app",
        "v1",
        &[Content::of("a"), Content::of("b"), Content::of("c")],
    );
    let directory = Directory::new()
        .user("ada", ACCESS_TOKEN, &[])
        .user_login(liar.name(), "ada", PASSWORD)
        .user_login(basic.name(), "ada", WRONG);
    let tidegate = Setup::new()
        .liar(&liar)
        .liar(&basic)
        .directory(&directory)
        .section("[log]\nlevel = \"debug\"\n[upstream]\nretry_count = 0")
        .start();
    let mut told = String::new();
    let grant = tidegate.grant_as(ACCESS_TOKEN, &liar.reference("acme/app", "v1"));
    told += &tidegate.get(&grant.manifest("v1")).text();
    let [first, second, third] = [0, 1, 2].map(|number| image.layers[number].as_str());
    told += &tidegate.get(&grant.blob(first)).text();
    liar.misbehave(&blob_path("acme/app", second), Behaviour::HangUp);
    told += &tidegate.get(&grant.blob(second)).text();
    let signed = "http://storage.test/b?X-Sig=signed-query";
    liar.misbehave(
        &blob_path("acme/app", third),
        Behaviour::redirect(307, signed),
    );
    tidegate.get(&grant.blob(third));
    tokens.forget_issued();
    told += &tidegate.get(&grant.manifest("v2")).text();
    for image in [
        liar.reference("acme/other", "v1"),
        basic.reference("acme/app", "v1"),
        "127.0.0.1:1/acme/app".to_owned(),
    ] {
        let request = json!({"containerImage": image, "towerAccessToken": ACCESS_TOKEN});
        let (status, body) = tidegate.submit(&request);
        assert_eq!(status, 400, "{body}");
        told += &body.to_string();
    }
    let request = json!({"containerImage": "x", "towerAccessToken": "guessed-access-token"});
    told += &tidegate.submit(&request).1.to_string();
    told += &tidegate
        .post_text(
            "/v1alpha2/container",
            &format!("{{\"towerAccessToken\":\"{ACCESS_TOKEN}\",,"),
        )
        .text();
    told += &http::get(tidegate.admin, "/metrics").text();
    for path in [
        format!("/container-token/{}", grant.token),
        format!("/v1alpha2/container/{}", grant.token),
        format!("/v1alpha2/container/{}/status", grant.token),
    ] {
        told += &tidegate.get(&path).text();
    }
    let bearers = liar.requests();
    let bearers = bearers.iter().filter_map(|request| request.bearer());
    let mut secrets: Vec<String> = bearers.map(str::to_owned).collect();
    assert!(!secrets.is_empty(), "no token was used");
    for password in [PASSWORD, WRONG] {
        secrets.push(password.to_owned());
        secrets.push(STANDARD.encode(format!("ada:{password}")));
    }
    secrets.extend([ACCESS_TOKEN, "guessed-access-token", "signed-query"].map(str::to_owned));

    tidegate.signal("TERM");
    tidegate.log().wait_for_end();
    let log = tidegate.log().text();
    let mut files = String::new();
    for (path, _) in files_below(tidegate.home()) {
        let is_ours = path.starts_with(tidegate.home().join("state"))
            || path.starts_with(tidegate.cache_folder());
        if is_ours {
            let bytes = std::fs::read(&path).unwrap_or_default();
            files += &String::from_utf8_lossy(&bytes);
        }
    }
    for secret in &secrets {
        assert!(!log.contains(secret), "the log has {secret}");
        assert!(!told.contains(secret), "a client was told {secret}");
        assert!(!files.contains(secret), "a file has {secret}");
    }
    // Whoever has it may pull.
    assert!(
        !log.contains(&grant.token),
        "the log has the ephemeral token"
    );
    assert!(
        log.lines().count() > 5,
        "the log says nothing at all:\n{log}"
    );
}
