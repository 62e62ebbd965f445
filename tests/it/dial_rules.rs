//! Where tidegate connects to, and whom it shows a password, is the operator's choice and nobody else's.

use serde_json::json;

use crate::support::{
    accounts::Accounts,
    liar::{Auth, Behaviour, Liar},
    server::Request,
    tidegate::{Directory, Setup, Tidegate},
    token_server::TokenServer,
};

const ACCESS_TOKEN: &str = "ada-access-token";

#[test]
fn private_addresses_are_refused_however_they_are_written() {
    let liar = Liar::open();
    liar.image("acme/app", "v1", &[]);
    let port = liar.address().port();
    let tidegate = Setup::new().start();
    for host in ["127.0.0.1", "localhost", "0.0.0.0", "127.0.0.2"] {
        let image = format!("{host}:{port}/acme/app:v1");
        let (status, body) = tidegate.submit(&json!({"containerImage": image}));
        assert_eq!(status, 400, "{image}: {body}");
        let message = body["message"].as_str().unwrap_or_default();
        assert!(
            message.contains("not allowed to connect"),
            "{image}: {body}"
        );
        assert!(message.contains("allow_private"), "{image}: {body}");
    }
    // Some of these are no names at all; none of them may be a way in.
    for host in [
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::]",
        "LOCALHOST",
        "localhost.",
    ] {
        let image = format!("{host}:{port}/acme/app:v1");
        let (status, body) = tidegate.submit(&json!({"containerImage": image}));
        assert_eq!(status, 400, "{image}: {body}");
    }
    assert!(liar.requests().is_empty(), "{:?}", liar.requests());
}

#[test]
fn what_is_allowed_for_one_port_is_not_allowed_for_another() {
    let allowed = Liar::open();
    let other = Liar::open();
    for liar in [&allowed, &other] {
        liar.image("acme/app", "v1", &[]);
    }
    let tidegate = Setup::new().liar(&allowed).start();
    tidegate.grant(&allowed.reference("acme/app", "v1"));
    let image = other.reference("acme/app", "v1");
    let (status, body) = tidegate.submit(&json!({"containerImage": image}));
    assert_eq!(status, 400, "{body}");
    assert!(other.requests().is_empty(), "{:?}", other.requests());
}

fn submit(registry: &Liar, more: &str) -> (Tidegate, u16, serde_json::Value) {
    let directory = Directory::new().user("ada", ACCESS_TOKEN, &[]).user_login(
        registry.name(),
        "ada",
        "hunter2",
    );
    let tidegate = Setup::new()
        .registry_with(registry.name(), more)
        .section("[upstream]\nretry_count = 0")
        .directory(&directory)
        .start();
    let (status, body) = tidegate.submit(&json!({
        "containerImage": registry.reference("acme/app", "v1"), "towerAccessToken": ACCESS_TOKEN,
    }));
    (tidegate, status, body)
}

fn with_authorization(requests: &[Request]) -> usize {
    requests
        .iter()
        .filter(|request| request.header("authorization").is_some())
        .count()
}

/// A hostile registry names a realm of its choice and waits for the password.
#[test]
fn a_realm_elsewhere_is_not_sent_the_password() {
    let accounts = Accounts::none().with("ada", "hunter2", &["*"]);
    let harvester = TokenServer::start_on("127.0.0.2", accounts);
    let port = harvester.address().port();
    for realm in [
        harvester.realm(),
        format!("http://127.0.0.1:80@127.0.0.2:{port}/token"),
        format!("http://127.0.0.1@127.0.0.2:{port}/token"),
        format!("http://127.0.0.2:{port}\\@127.0.0.1/token"),
        format!("//127.0.0.2:{port}/token"),
        format!("HTTP://127.0.0.2:{port}/token?x=127.0.0.1"),
        format!("http://127.0.0.2:{port}#@127.0.0.1/"),
    ] {
        let registry = Liar::start(Auth::Bearer {
            realm: realm.clone(),
            issued: harvester.issued(),
        });
        registry.image("acme/app", "v1", &[]);
        let (tidegate, status, body) = submit(&registry, "");
        assert_eq!(status, 400, "{realm}: {body}");
        assert!(!body.to_string().contains("hunter2"), "{body}");
        assert!(!tidegate.log().text().contains("hunter2"));
        assert_eq!(with_authorization(&harvester.requests()), 0, "{realm}");
        assert_eq!(with_authorization(&registry.requests()), 0, "{realm}");
    }
}

#[test]
fn a_realm_that_the_operator_knows_is_sent_the_password() {
    let accounts = Accounts::none().with("ada", "hunter2", &["*"]);
    let tokens = TokenServer::start_on("127.0.0.2", accounts);
    let registry = Liar::start(Auth::Bearer {
        realm: tokens.realm(),
        issued: tokens.issued(),
    });
    registry.image("acme/app", "v1", &[]);
    let (_, status, body) = submit(&registry, "realm_hosts = [\"127.0.0.2\"]");
    assert_eq!(status, 200, "{body}");
    assert_eq!(with_authorization(&tokens.requests()), 1);
}

#[test]
fn a_realm_that_redirects_does_not_take_the_password_along() {
    let harvester = Liar::start_on("127.0.0.2", Auth::Open);
    let realm = Liar::open();
    let location = format!("http://{}/token", harvester.name());
    let tokens = TokenServer::start(Accounts::none());
    for status in [301, 302, 307, 308] {
        realm.misbehave("/token", Behaviour::redirect(status, &location));
        let registry = Liar::start(Auth::Bearer {
            realm: format!("http://{}/token", realm.name()),
            issued: tokens.issued(),
        });
        registry.image("acme/app", "v1", &[]);
        let (_, status, body) = submit(&registry, "");
        assert_eq!(status, 400, "{body}");
        assert_eq!(with_authorization(&harvester.requests()), 0);
    }
}

#[test]
fn a_registry_that_redirects_does_not_take_the_password_along() {
    let harvester = Liar::start_on("127.0.0.2", Auth::Open);
    harvester.image("acme/app", "v1", &[]);
    let accounts = Accounts::none().with("ada", "hunter2", &["*"]);
    let registry = Liar::start(Auth::Basic(accounts));
    let path = "/v2/acme/app/manifests/v1";
    let location = format!("http://{}{path}", harvester.name());
    registry.misbehave(path, Behaviour::redirect(307, &location));
    submit(&registry, "redirect = \"follow\"");
    assert_eq!(with_authorization(&harvester.requests()), 0);
}
