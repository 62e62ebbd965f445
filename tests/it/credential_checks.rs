//! `POST /validate-creds`: whether a registry takes a login, asked by anybody about any host.

use serde_json::{Value, json};

use crate::support::{
    accounts::Accounts,
    http,
    liar::{Auth, Behaviour, Liar},
    tidegate::{Setup, Tidegate},
    token_server::TokenServer,
};

const V1: &str = "/validate-creds";
const V2: &str = "/v1alpha2/validate-creds";

fn login(registry: &str, password: &str) -> Value {
    json!({"userName": "ada", "password": password, "registry": registry})
}

fn check(tidegate: &Tidegate, registry: &str, password: &str) -> (u16, String) {
    let body = login(registry, password).to_string();
    let response = tidegate.post_text(V2, &body);
    (response.status(), response.text())
}

fn accounts() -> Accounts {
    Accounts::none().with("ada", "hunter2", &["*"])
}

#[test]
fn a_login_is_checked_as_the_registry_wants_it() {
    let basic = Liar::start(Auth::Basic(accounts()));
    let tokens = TokenServer::start(accounts());
    let bearer = Liar::start(Auth::Bearer {
        realm: tokens.realm(),
        issued: tokens.issued(),
    });
    let tidegate = Setup::new().liar(&basic).liar(&bearer).start();
    for registry in [basic.name(), bearer.name()] {
        for (password, is_good) in [("hunter2", true), ("hunter3", false), ("hunter2", true)] {
            let answer = check(&tidegate, &registry, password);
            assert_eq!(answer, (200, is_good.to_string()), "{registry} {password}");
            let nested = json!({"request": login(&registry, password)});
            let response = tidegate.post_text(V1, &nested.to_string());
            assert_eq!(
                (response.status(), response.text()),
                (200, is_good.to_string()),
                "{registry} {password}"
            );
        }
    }
    // At the door: no repository is asked for, and no scope.
    assert!(
        tokens
            .requests()
            .iter()
            .all(|it| !it.target.contains("scope="))
    );
    let log = tidegate.log().text();
    assert!(!log.contains("hunter"), "{log}");
}

#[test]
fn a_registry_that_does_not_work_takes_no_login() {
    let broken = Liar::open();
    broken.misbehave("/v2/", Behaviour::status(500));
    let elsewhere = Liar::start(Auth::Bearer {
        realm: "http://198.51.100.1/token".to_owned(),
        issued: TokenServer::start(accounts()).issued(),
    });
    let tidegate = Setup::new()
        .liar(&broken)
        .liar(&elsewhere)
        .registry("127.0.0.1:1")
        .start();
    for registry in [broken.name(), elsewhere.name(), "127.0.0.1:1".to_owned()] {
        let answer = check(&tidegate, &registry, "hunter2");
        assert_eq!(answer, (200, "false".to_owned()), "{registry}");
    }
}

/// Whoever asks could otherwise look around in the operator's network.
#[test]
fn private_addresses_are_not_asked() {
    let liar = Liar::start(Auth::Basic(accounts()));
    // Not vouched for.
    let tidegate = Setup::new().start();
    let local = format!("localhost:{}", liar.address().port());
    for registry in [
        liar.name().as_str(),
        local.as_str(),
        "10.0.0.1",
        "169.254.169.254",
        "192.168.0.1:8080",
        "[::1]:80",
        "[fd00:ec2::254]",
        "registry.invalid",
    ] {
        let (status, text) = check(&tidegate, registry, "hunter2");
        assert_eq!(status, 400, "{registry}: {text}");
        assert!(text.contains("registry: "), "{registry}: {text}");
    }
    assert!(liar.requests().is_empty(), "a private address was asked");
}

#[test]
fn what_is_missing_is_told() {
    let tidegate = Setup::new().start();
    for (path, body, words) in [
        (V2, json!({}), "userName is missing"),
        (
            V2,
            json!({"userName": " ", "password": "b", "registry": "c"}),
            "userName is missing",
        ),
        (
            V2,
            json!({"userName": "a", "registry": "c"}),
            "password is missing",
        ),
        (
            V2,
            json!({"userName": "a", "password": "b", "registry": null}),
            "registry is missing",
        ),
        (
            V2,
            json!({"userName": "a", "password": "b", "registry": "c d"}),
            "registry: ",
        ),
        // The shape of the other one.
        (V1, login("quay.io", "hunter2"), "request is missing"),
        (
            V2,
            json!({"request": login("quay.io", "hunter2")}),
            "userName is missing",
        ),
        (V1, json!(7), "is not a login to check"),
    ] {
        let (status, answer) = tidegate.post(path, &body);
        assert_eq!(status, 400, "{path} {body}: {answer}");
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(message.contains(words), "{path} {body}: {message}");
    }
}

#[test]
fn whoever_checks_too_often_has_to_wait() {
    let liar = Liar::start(Auth::Basic(accounts()));
    let tidegate = Setup::new()
        .liar(&liar)
        .section("[limits]\ncredential_checks = \"3/1h\"")
        .start();
    for _ in 0..3 {
        assert_eq!(check(&tidegate, &liar.name(), "wrong").0, 200);
    }
    liar.forget_requests();
    let body = login(&liar.name(), "hunter2").to_string();
    let headers = [("Content-Type", "application/json")];
    let response = http::request(tidegate.registry, "POST", V2, &headers, body.as_bytes());
    assert_eq!(response.status(), 429, "{}", response.text());
    assert!(response.header("retry-after").is_some());
    assert!(
        liar.requests().is_empty(),
        "a password was tried all the same"
    );
}
