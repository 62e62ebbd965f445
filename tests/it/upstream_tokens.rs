//! How a registry is proved to: challenges in every shape that is met, and tokens asked for no more often than needed.

use std::thread;

use serde_json::{Value, json};

use crate::support::{
    accounts::Accounts,
    content::Content,
    liar::{Auth, Behaviour, Liar, LiarImage, manifest_path},
    tidegate::{Directory, Grant, Setup, Tidegate},
    token_server::TokenServer,
};

const ACCESS_TOKEN: &str = "ada-access-token";
const SCOPE: &str = "repository:acme/app:pull";

struct Scene {
    accounts: Accounts,
    tokens: TokenServer,
    liar: Liar,
    image: LiarImage,
    tidegate: Tidegate,
}

impl Scene {
    fn new(password: &str) -> Self {
        let accounts = Accounts::none().with("ada", "hunter2", &["acme/app"]);
        let tokens = TokenServer::start(accounts.clone());
        let liar = Liar::start(Auth::Bearer {
            realm: tokens.realm(),
            issued: tokens.issued(),
        });
        let layers: Vec<_> = (0..20)
            .map(|seed| Content::Generated { seed, size: 1000 })
            .collect();
        let image = liar.image("acme/app", "v1", &layers);
        let tidegate = start(&liar, "ada", password);
        Self {
            accounts,
            tokens,
            liar,
            image,
            tidegate,
        }
    }

    fn grant(&self) -> Grant {
        self.tidegate
            .grant_as(ACCESS_TOKEN, &self.liar.reference("acme/app", "v1"))
    }

    fn token_requests(&self) -> usize {
        self.tokens.requests().len()
    }
}

fn start(liar: &Liar, user: &str, password: &str) -> Tidegate {
    let directory =
        Directory::new()
            .user("ada", ACCESS_TOKEN, &[])
            .user_login(liar.name(), user, password);
    Setup::new()
        .liar(liar)
        .directory(&directory)
        .section("[upstream]\nretry_count = 0")
        .start()
}

fn submit(tidegate: &Tidegate, liar: &Liar) -> (u16, Value) {
    tidegate.submit(&json!({
        "containerImage": liar.reference("acme/app", "v1"), "towerAccessToken": ACCESS_TOKEN,
    }))
}

#[test]
fn many_pulls_at_once_share_one_token() {
    let scene = Scene::new("hunter2");
    let grant = scene.grant();
    thread::scope(|scope| {
        for digest in &scene.image.layers {
            let (tidegate, path) = (&scene.tidegate, grant.blob(digest));
            scope.spawn(move || assert_eq!(&tidegate.pull(&path).digest, digest));
        }
    });
    let requests = scene.tokens.requests();
    assert_eq!(requests.len(), 1, "{requests:#?}");
    assert_eq!(requests[0].query("scope").as_deref(), Some(SCOPE));
    assert_eq!(
        requests[0].query("service").as_deref(),
        Some("registry.test")
    );
}

#[test]
fn a_token_that_is_refused_is_renewed_once() {
    let scene = Scene::new("hunter2");
    let grant = scene.grant();
    scene.tokens.forget_issued();
    let pulled = scene.tidegate.pull(&grant.blob(&scene.image.layers[0]));
    assert_eq!(pulled.digest, scene.image.layers[0]);
    assert_eq!(scene.token_requests(), 2);
    scene.accounts.withdraw("ada");
    scene.tokens.forget_issued();
    let response = scene.tidegate.get(&grant.blob(&scene.image.layers[1]));
    assert_eq!(
        (response.status(), response.error_code().as_str()),
        (403, "DENIED")
    );
    assert!(scene.token_requests() <= 4, "{}", scene.token_requests());
}

/// A token server that says less than a minute still means a minute (registry-auth: `expires_in`).
#[test]
fn a_short_life_is_at_least_a_minute() {
    let scene = Scene::new("hunter2");
    scene.tokens.expires_in(1);
    let grant = scene.grant();
    for digest in &scene.image.layers {
        assert_eq!(&scene.tidegate.pull(&grant.blob(digest)).digest, digest);
    }
    assert_eq!(scene.token_requests(), 1);
}

/// Token servers lock accounts after a few wrong passwords.
#[test]
fn a_wrong_password_is_not_tried_again_and_again() {
    let scene = Scene::new("outdated");
    for _ in 0..5 {
        let (status, body) = submit(&scene.tidegate, &scene.liar);
        assert_eq!(status, 400, "{body}");
        let message = body["message"].as_str().unwrap_or_default();
        assert!(message.contains("not allowed"), "{body}");
        assert!(!message.contains("outdated"), "{body}");
    }
    assert!(scene.token_requests() <= 2, "{}", scene.token_requests());
}

#[test]
fn trouble_at_the_realm_is_not_called_a_refusal() {
    for (behaviour, reason) in [
        (Behaviour::status(500), "cannot be reached"),
        (Behaviour::HangUp, "cannot be reached"),
        (Behaviour::status(429), "rate limit"),
        (Behaviour::status(401), "not allowed"),
        (Behaviour::status(403), "not allowed"),
    ] {
        let realm = Liar::open();
        realm.misbehave("/token", behaviour);
        let liar = Liar::start(Auth::Bearer {
            realm: format!("http://{}/token", realm.name()),
            issued: TokenServer::start(Accounts::none()).issued(),
        });
        liar.image("acme/app", "v1", &[]);
        let tidegate = start(&liar, "ada", "hunter2");
        let (status, body) = submit(&tidegate, &liar);
        assert_eq!(status, 400, "{body}");
        let message = body["message"].as_str().unwrap_or_default();
        assert!(message.contains(reason), "{reason}: {body}");
    }
}

#[test]
fn answers_of_the_realm_are_read_as_they_are_met() {
    for (body, is_enough) in [
        (json!({"token": "t"}), true),
        (json!({"access_token": "t"}), true),
        (
            json!({"token": "t", "access_token": "t", "expires_in": 0, "issued_at": "yesterday"}),
            true,
        ),
        (
            json!({"token": "t", "expires_in": 300, "issued_at": "2099-01-01T00:00:00Z"}),
            true,
        ),
        (json!({"expires_in": 300}), false),
        (json!({"token": ""}), false),
        (json!([]), false),
    ] {
        let realm = Liar::open();
        // Some answer with a type that is not JSON's.
        realm.page("/token", "text/html", &body.to_string());
        let liar = Liar::open();
        liar.image("acme/app", "v1", &[]);
        let challenge = format!("Bearer realm=\"http://{}/token\"", realm.name());
        let refusal = Behaviour::Answer(
            401,
            vec![("WWW-Authenticate".to_owned(), challenge)],
            String::new(),
        );
        let path = manifest_path("acme/app", "v1");
        liar.misbehave_in_turn(&path, &[refusal]);
        let tidegate = start(&liar, "ada", "hunter2");
        let (status, answer) = submit(&tidegate, &liar);
        assert_eq!(
            status,
            if is_enough { 200 } else { 400 },
            "{body}: {answer}"
        );
        let requests = liar.requests();
        let last = requests.last().expect("a request");
        if is_enough {
            assert_eq!(last.bearer(), Some("t"), "{body}");
        }
    }
}

#[test]
fn challenges_are_understood_in_every_shape() {
    let realm = Liar::open();
    realm.page("/token", "application/json", "{\"token\":\"t\"}");
    let url = format!("http://{}/token", realm.name());
    let scope = "repository:acme/app:pull";
    for (lines, scheme) in [
        (vec!["Basic realm=\"x\"".to_owned()], "basic"),
        (
            vec!["BASIC realm=\"Sonatype Nexus Repository Manager\"".to_owned()],
            "basic",
        ),
        (vec!["basic realm=x, charset=\"UTF-8\"".to_owned()], "basic"),
        (
            vec!["Negotiate".to_owned(), "Basic realm=\"x\"".to_owned()],
            "basic",
        ),
        (vec!["Negotiate, Basic realm=\"x\"".to_owned()], "basic"),
        (
            vec!["Digest realm=\"x, Bearer realm=y\", nonce=\"1\", Basic realm=\"x\"".to_owned()],
            "basic",
        ),
        (
            vec![format!(
                "Bearer realm=\"{url}\",service=\"s\",scope=\"{scope}\""
            )],
            "bearer",
        ),
        (
            vec![format!(
                "bearer  scope=\"{scope}\" , service=\"s\" ,realm=\"{url}\""
            )],
            "bearer",
        ),
        (
            vec![format!("BEARER Realm = \"{url}\", Service = s")],
            "bearer",
        ),
        (
            vec![format!("Bearer realm=\"{url}?account=x\",scope=\"\"")],
            "bearer",
        ),
        (
            vec![format!("Basic realm=\"x\", Bearer realm=\"{url}\"")],
            "bearer",
        ),
        (
            vec![
                "Basic realm=\"x\"".to_owned(),
                format!("Bearer realm=\"{url}\""),
            ],
            "bearer",
        ),
        (
            vec![format!(
                "Bearer realm=\"{url}\",error=\"invalid_token\",error_description=\"a \\\"b\\\", c\""
            )],
            "bearer",
        ),
    ] {
        let liar = Liar::open();
        liar.image("acme/app", "v1", &[]);
        let headers = lines
            .iter()
            .map(|line| ("WWW-Authenticate".to_owned(), line.clone()))
            .collect();
        let refusal = Behaviour::Answer(401, headers, String::new());
        liar.misbehave_in_turn(&manifest_path("acme/app", "v1"), &[refusal]);
        realm.forget_requests();
        let tidegate = start(&liar, "ada", "hunter2");
        let (status, body) = submit(&tidegate, &liar);
        assert_eq!(status, 200, "{lines:?}: {body}");
        let requests = liar.requests();
        let last = requests.last().expect("a request");
        match scheme {
            "basic" => {
                let login = Some(("ada".to_owned(), "hunter2".to_owned()));
                assert_eq!(last.basic(), login, "{lines:?}");
            }
            _ => {
                assert_eq!(last.bearer(), Some("t"), "{lines:?}");
                let asked = realm.requests();
                assert_eq!(asked[0].query("scope").as_deref(), Some(scope), "{lines:?}");
                assert_eq!(
                    asked[0].basic().map(|login| login.0).as_deref(),
                    Some("ada")
                );
                if lines[0].contains("?account=x") {
                    assert_eq!(asked[0].query("account").as_deref(), Some("x"));
                    assert_eq!(
                        asked[0].target.matches('?').count(),
                        1,
                        "{}",
                        asked[0].target
                    );
                }
            }
        }
    }
}

#[test]
fn logins_of_all_kinds_survive_the_way() {
    let long = "p".repeat(8 << 10);
    for (user, password) in [
        ("$oauthtoken", "a b+c&d=e%20"),
        ("robot$team+ci", "x:y:z"),
        (
            "_json_key",
            "{\n  \"private_key\": \"-----BEGIN\\nEND-----\"\n}",
        ),
        ("AWS", long.as_str()),
    ] {
        let liar = Liar::start(Auth::Basic(Accounts::none().with(user, password, &["*"])));
        liar.image("acme/app", "v1", &[]);
        let tidegate = start(&liar, user, password);
        let (status, body) = submit(&tidegate, &liar);
        assert_eq!(status, 200, "{user}: {body}");
    }
}

#[test]
fn two_users_of_one_repository_do_not_share_a_token() {
    let accounts =
        Accounts::none()
            .with("ada", "hunter2", &["acme/app"])
            .with("bob", "sesame", &[]);
    let tokens = TokenServer::start(accounts);
    let liar = Liar::start(Auth::Bearer {
        realm: tokens.realm(),
        issued: tokens.issued(),
    });
    liar.image("acme/app", "v1", &[]);
    let directory = Directory::new()
        .user("ada", ACCESS_TOKEN, &[])
        .user_login(liar.name(), "ada", "hunter2")
        .user("bob", "bob-access-token", &[])
        .user_login(liar.name(), "bob", "sesame")
        .user("eve", "eve-access-token", &[]);
    let tidegate = Setup::new().liar(&liar).directory(&directory).start();
    let image = liar.reference("acme/app", "v1");
    tidegate.grant_as(ACCESS_TOKEN, &image);
    for token in ["bob-access-token", "eve-access-token", ""] {
        let request = json!({"containerImage": image, "towerAccessToken": token});
        let (status, body) = tidegate.submit(&request);
        assert_eq!(status, 400, "{token}: {body}");
        assert!(
            body["message"]
                .as_str()
                .is_some_and(|text| text.contains("not allowed")),
            "{body}"
        );
    }
}

/// Each repository may have a realm of its own, and one of them may be wrong.
#[test]
fn one_repositorys_realm_does_not_spoil_the_others() {
    let scene = Scene::new("hunter2");
    let (status, _) = submit(&scene.tidegate, &scene.liar);
    assert_eq!(status, 200);
    let challenge = "Bearer realm=\"http://127.0.0.2:9/token\",service=\"x\"";
    let header = ("WWW-Authenticate".to_owned(), challenge.to_owned());
    let refusal = Behaviour::Answer(401, vec![header], String::new());
    scene
        .liar
        .misbehave(&manifest_path("other/app", "v1"), refusal);
    let other = scene.liar.reference("other/app", "v1");
    let body = json!({"containerImage": other, "towerAccessToken": ACCESS_TOKEN});
    let (status, body) = scene.tidegate.submit(&body);
    assert_eq!(status, 400, "{body}");
    let (status, body) = submit(&scene.tidegate, &scene.liar);
    assert_eq!(status, 200, "{body}");
}
