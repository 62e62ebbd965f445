//! Logins go to their own registry only. `secrets_stay` has where they do not go besides.

use serde_json::json;

use crate::support::{
    accounts::Accounts,
    content::Content,
    liar::{Auth, Liar},
    tidegate::{Directory, Setup},
};

const ACCESS_TOKEN: &str = "ada-access-token-of-some-length";
const PASSWORD: &str = "hunter2-and-a-half";

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
