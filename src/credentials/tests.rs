use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use std::time::Instant;

use super::*;
use crate::{oci::Reference, requests::Caller};

const ADA: &str = "token-of-ada";
const BOB: &str = "token-of-bob";

/// Ada is in both workspaces, Bob in the second.
fn directory_text() -> String {
    format!(
        r#"
[[user]]
name = "ada"
token_sha256 = "{}"
workspaces = [1, 2]
[[user.credentials]]
registry = "quay.io/ada"
username = "ada"
password = "of ada"

[[user]]
name = "bob"
token_sha256 = "{}"
workspaces = [2]

[[workspace]]
id = 1
name = "research"
[[workspace.credentials]]
registry = "quay.io"
username = "research"
password = "of research"
[[workspace.credentials]]
registry = "https://quay.io/acme/"
username = "acme+robot"
password = "of acme"

[[workspace]]
id = 2
name = "clinic"
"#,
        hash_access_token(ADA),
        hash_access_token(BOB).to_uppercase(),
    )
}

fn load(text: &str) -> Result<(Directory, Vec<String>), DirectoryError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("directory.toml");
    fs::write(&path, text).expect("the folder is ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    fs::write(folder.path().join("exposed"), "hunter2\n").expect("the folder is ours");
    let exposed = folder.path().join("exposed");
    fs::set_permissions(exposed, fs::Permissions::from_mode(0o644)).expect("it is ours");
    Directory::load(&path)
}

fn directory(text: &str) -> Directory {
    let (directory, warnings) = load(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(warnings, Vec::<String>::new());
    directory
}

fn operator() -> Vec<OperatorLogin> {
    let login = |registry: &str, username: &str| OperatorLogin {
        registry: registry
            .parse()
            .unwrap_or_else(|error| panic!("{registry}: {error}")),
        prefix: None,
        credentials: Credentials {
            username: username.to_owned(),
            password: secret("of the operator"),
        },
    };
    vec![login("docker.io", "operator"), login("quay.io", "operator")]
}

fn keyring(directory: Option<Directory>) -> Keyring {
    Keyring::new(operator(), directory, true)
}

fn secret(text: &str) -> Secret<String> {
    Secret::new(text.to_owned())
}

fn user(name: &str, workspace: Option<i64>, access_token: &str) -> Caller {
    Caller::User {
        name: name.to_owned(),
        workspace,
        access_token: secret(access_token),
        platform: None,
    }
}

fn find(keyring: &Keyring, caller: &Caller, image: &str) -> Result<Login, FindError> {
    let image: Reference = image
        .parse()
        .unwrap_or_else(|error| panic!("{image}: {error}"));
    keyring.find(caller, &image.registry, &image.repository, Instant::now())
}

/// No Platform is there to be asked.
fn authenticate(
    keyring: &Keyring,
    access_token: Option<&Secret<String>>,
    workspace: Option<i64>,
) -> Result<Caller, IdentityError> {
    let claim = Claim {
        access_token: access_token.cloned(),
        workspace,
        ..Claim::default()
    };
    keyring.authenticate(&claim, Instant::now())
}

#[test]
fn callers_are_known_by_their_access_token() {
    let keyring = keyring(Some(directory(&directory_text())));
    let denied = |workspace| Err(IdentityError::WorkspaceDenied { workspace });
    for (token, workspace, expected) in [
        (None, None, Ok(Caller::Anonymous)),
        (None, Some(1), Ok(Caller::Anonymous)),
        (Some(""), Some(1), Ok(Caller::Anonymous)),
        (Some(ADA), None, Ok(user("ada", None, ADA))),
        (Some(ADA), Some(1), Ok(user("ada", Some(1), ADA))),
        (Some(BOB), Some(2), Ok(user("bob", Some(2), BOB))),
        (Some(BOB), Some(1), denied(1)),
        (Some(BOB), Some(3), denied(3)),
        (Some(BOB), Some(0), denied(0)),
        (Some("another"), None, Err(IdentityError::UnknownToken)),
        (
            Some(" token-of-ada"),
            None,
            Err(IdentityError::UnknownToken),
        ),
        (Some("ada"), None, Err(IdentityError::UnknownToken)),
        // The hash opens nothing: it is what a thief of the file has.
        (
            Some(&*hash_access_token(ADA)),
            None,
            Err(IdentityError::UnknownToken),
        ),
    ] {
        let token = token.map(secret);
        let caller = authenticate(&keyring, token.as_ref(), workspace);
        assert_eq!(caller, expected, "{workspace:?}");
    }
}

#[test]
fn what_is_turned_off_is_said() {
    let token = secret(ADA);
    let without_directory = authenticate(&keyring(None), Some(&token), None);
    assert_eq!(without_directory, Err(IdentityError::NoDirectory));
    let message = IdentityError::NoDirectory.to_string();
    assert!(message.contains("[directory] file"), "{message}");

    let directory = directory(&directory_text());
    let keyring = Keyring::new(Vec::new(), Some(directory), false);
    for token in [None, Some(&secret(""))] {
        let caller = authenticate(&keyring, token, None);
        assert_eq!(caller, Err(IdentityError::AnonymousOff));
    }
    assert!(authenticate(&keyring, Some(&token), None).is_ok());
}

#[test]
fn each_caller_has_the_logins_of_his_own_workspace_and_no_others() {
    let keyring = keyring(Some(directory(&directory_text())));
    for (caller, image, username, description) in [
        (
            Caller::Anonymous,
            "quay.io/acme/app",
            Some("operator"),
            "operator: quay.io as operator",
        ),
        (
            Caller::Anonymous,
            "alpine",
            Some("operator"),
            "operator: docker.io as operator",
        ),
        (
            Caller::Anonymous,
            "ghcr.io/acme/app",
            None,
            "operator: no login for ghcr.io/acme/app, so anonymous",
        ),
        (
            user("ada", None, ADA),
            "quay.io/ada/app",
            Some("ada"),
            "user ada: quay.io/ada as ada",
        ),
        (
            user("ada", None, ADA),
            "quay.io/acme/app",
            None,
            "user ada: no login for quay.io/acme/app, so anonymous",
        ),
        (
            user("ada", Some(1), ADA),
            "quay.io/acme/app",
            Some("acme+robot"),
            "workspace 1 (research): quay.io/acme as acme+robot",
        ),
        (
            user("ada", Some(1), ADA),
            "quay.io/ada/app",
            Some("research"),
            "workspace 1 (research): quay.io as research",
        ),
        // The operator has a login for it, which is not for her.
        (
            user("ada", Some(1), ADA),
            "alpine",
            None,
            "workspace 1 (research): no login for docker.io/library/alpine, so anonymous",
        ),
        (
            user("bob", Some(2), BOB),
            "quay.io/acme/app",
            None,
            "workspace 2 (clinic): no login for quay.io/acme/app, so anonymous",
        ),
        (
            user("bob", None, BOB),
            "quay.io/ada/app",
            None,
            "user bob: no login for quay.io/ada/app, so anonymous",
        ),
    ] {
        let login = find(&keyring, &caller, image).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(login.description, description);
        let credentials = login.credentials.as_ref();
        assert_eq!(
            credentials.map(|it| it.username.as_str()),
            username,
            "{description}"
        );
        assert_eq!(
            login.identity == "anonymous",
            username.is_none(),
            "{description}"
        );
        assert!(!format!("{login:?}").contains("of "), "{login:?}");
    }
}

#[test]
fn at_the_registries_of_our_own_repositories_the_operator_serves_who_has_none() {
    let own = OwnOptions {
        build_repository: Some("docker.io/acme/wave".parse().expect("a scope")),
        ..OwnOptions::default()
    };
    let keyring = keyring(Some(directory(&directory_text()))).with_own(&own);
    let ada = user("ada", Some(1), ADA);
    for (image, username) in [
        ("docker.io/acme/wave:1", Some("operator")),
        ("quay.io/acme/app", Some("acme+robot")),
        ("ghcr.io/acme/app", None),
    ] {
        let login = find(&keyring, &ada, image).unwrap_or_else(|error| panic!("{error}"));
        let found = login.credentials.map(|it| it.username);
        assert_eq!(found.as_deref(), username, "{image}");
    }
    let bob = user("bob", Some(2), BOB);
    let login = find(&keyring, &bob, "quay.io/acme/app");
    assert_eq!(login.map(|it| it.credentials), Ok(None));
}

#[test]
fn one_login_has_one_identity() {
    let first = keyring(Some(directory(&directory_text())));
    let changed = directory_text().replace("of acme", "of acme, new");
    let second = keyring(Some(directory(&changed)));
    let identity = |keyring: &Keyring, image| {
        find(keyring, &user("ada", Some(1), ADA), image)
            .unwrap_or_else(|error| panic!("{error}"))
            .identity
    };
    let acme = identity(&first, "quay.io/acme/app");
    assert_eq!(identity(&first, "quay.io/acme/tool"), acme);
    assert_ne!(identity(&first, "quay.io/other"), acme);
    assert_eq!(
        identity(&second, "quay.io/other"),
        identity(&first, "quay.io/other")
    );
    assert_ne!(
        identity(&second, "quay.io/acme/app"),
        acme,
        "the password is another"
    );
}

#[test]
fn who_was_removed_pulls_no_more() {
    let text = directory_text();
    let ada = user("ada", Some(1), ADA);
    for (case, changed) in [
        (
            "token",
            text.replace(&hash_access_token(ADA), &hash_access_token("new")),
        ),
        ("membership", text.replace("[1, 2]", "[2]")),
    ] {
        let keyring = keyring(Some(directory(&changed)));
        for image in ["quay.io/acme/app", "alpine"] {
            let error = find(&keyring, &ada, image).expect_err(case);
            let name = "ada".to_owned();
            assert_eq!(error, FindError::CallerRevoked { name }, "{case}");
        }
    }
    assert!(
        find(&keyring(None), &ada, "alpine").is_err(),
        "no directory"
    );
    assert!(find(&keyring(Some(directory(&text))), &ada, "alpine").is_ok());
}

#[test]
fn the_files_problems_are_told_all_at_once_by_line() {
    let hash = hash_access_token(ADA);
    let empty = hash_access_token("");
    let text = format!(
        r#"[[user]]
name = "ada"
token_sha256 = "{hash}"
workspace = [1]
workspaces = [7, 8, "8"]

[[user]]
name = "ada"
token_sha256 = "{hash}"

[[user]]
name = " "
token_sha256 = "abc"

[[user]]
name = "eve"
token_sha256 = "{empty}"

[[user]]
tokn_sha256 = 5
[[user.credentials]]
registry = "acme"
username = "u"
password = "hunter2"
password_env = "PATH"
[[user.credentials]]
registry = "quay.io/Acme"
username = "u"
[[user.credentials]]
regisrty = "quay.io"
username = 5
password_file = "missing"
[[user.credentials]]
registry = "quay.io"
username = "u"
password_file = "missing"

[[workspace]]
id = 1
name = "research"
[[workspace]]
id = 1
name = "clinic"
credentials = {{}}
[[workspace]]
id = "two"
[[workspace]]
id = 8

[workspaces]
"#
    );
    let Err(DirectoryError::Problems { problems }) = load(&text) else {
        panic!("the file is full of problems");
    };
    let expected = [
        "4: user.workspace: there is no such key; did you mean `workspaces`?",
        "5: user.workspaces: there is no workspace 7",
        "5: user.workspaces: this has to be a whole number of 64 bits",
        "8: user.name: another user has the name `ada`",
        "9: user.token_sha256: ada has the same access token",
        "12: user.name: this is empty",
        "13: user.token_sha256: this is no SHA-256",
        "17: user.token_sha256: this is the hash of no token",
        "19: user.name: this is missing",
        "19: user.token_sha256: this is missing",
        "20: user.tokn_sha256: there is no such key; did you mean `token_sha256`?",
        "22: user.credentials.registry: `acme` names no registry",
        "25: user.credentials.password_env: u has several passwords",
        "27: user.credentials.registry: `Acme` is not a repository",
        "28: user.credentials.password: there is no password for u",
        "29: user.credentials.registry: this is missing",
        "30: user.credentials.regisrty: there is no such key; did you mean `registry`?",
        "31: user.credentials.username: this has to be a text in quotes",
        "36: user.credentials.password_file: ",
        "42: workspace.id: another workspace has the id 1",
        "44: workspace.credentials: this has to be a list: write [[workspace.credentials]]",
        "45: workspace.name: this is missing",
        "46: workspace.id: this has to be a whole number of 64 bits",
        "47: workspace.name: this is missing",
        "50: workspaces: there is no such key; did you mean `workspace`?",
    ];
    for (problem, expected) in problems.iter().map(ToString::to_string).zip(expected) {
        let (_, rest) = problem
            .split_once("/directory.toml:")
            .unwrap_or_else(|| panic!("{problem}: names no file"));
        assert!(rest.starts_with(expected), "{problem}\n  is not {expected}");
        assert!(!problem.contains("hunter2"), "{problem}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn errors_of_syntax_are_told_by_line_and_without_what_is_there() {
    let text = "[[user]]\nname = \"ada\nx = hunter2\n[[user.credentials]\n";
    let error = load(text).expect_err("this is not TOML").to_string();
    for line in error.lines() {
        assert!(line.contains("/directory.toml:"), "{error}");
    }
    assert!(error.contains("directory.toml:2: "), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let error = Directory::load(Path::new("/nowhere/directory.toml"))
        .expect_err("there is none")
        .to_string();
    assert!(error.contains("/nowhere/directory.toml"), "{error}");
}

#[test]
fn an_empty_directory_knows_nobody() {
    let keyring = keyring(Some(directory("")));
    let caller = authenticate(&keyring, Some(&secret(ADA)), None);
    assert_eq!(caller, Err(IdentityError::UnknownToken));
}

#[test]
fn passwords_that_others_can_read_are_warned_of() {
    let text =
        directory_text() + "[[workspace.credentials]]\nregistry = \"ghcr.io\"\nusername = \"u\"\n";
    let (directory, warnings) =
        load(&(text + "password_file = \"exposed\"\n")).unwrap_or_else(|error| panic!("{error}"));
    let [warning] = warnings.as_slice() else {
        panic!("{warnings:?}");
    };
    assert!(warning.contains("/exposed"), "{warning}");
    let login = find(
        &keyring(Some(directory)),
        &user("bob", Some(2), BOB),
        "ghcr.io/a/b",
    );
    let credentials = login.map(|it| it.credentials);
    let password = credentials.ok().flatten().map(|it| it.password);
    assert_eq!(password, Some(secret("hunter2")));
}

#[test]
fn the_shipped_example_loads() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/directory.toml");
    let (directory, _) = Directory::load(&path).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(directory.users.len(), 1);
    assert_eq!(directory.workspaces.len(), 1);
}
