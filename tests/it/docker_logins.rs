//! Logins that the operator has already: Docker's `config.json`, a secret that Kubernetes mounts, credential helpers.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::support::{
    accounts::Accounts,
    docker_registry::{self, DockerRegistry, Login},
    image::Image,
    liar::{Auth, Liar},
    programs::{command, require, run, wait_until},
    registry_double::{Double, Life, PRIVATE, Post, Ways},
    runtimes::skopeo_copy,
    tidegate::{Directory, Setup, Tidegate},
    token_server::TokenServer,
};

const PASSWORD: &str = "hunter2-of-docker";

/// A registry that knows these users, all of them with `PASSWORD`.
fn registry(users: &[&str]) -> Liar {
    let mut accounts = Accounts::none();
    for user in users {
        accounts = accounts.with(user, PASSWORD, &["*"]);
    }
    let liar = Liar::start(Auth::Basic(accounts));
    for repository in ["acme/app", "acme/special/app", "other/app"] {
        liar.image(repository, "v1", &[]);
    }
    liar
}

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(&self, name: &str, content: &Value) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content.to_string()).expect("the folder is ours");
        path
    }

    /// `docker-credential-NAME`, which notes what it was asked for.
    fn helper(&self, name: &str, script: &str) {
        let path = self.path(&format!("docker-credential-{name}"));
        let calls = self.path("calls");
        let text = format!(
            "#!/bin/sh\nserver=$(cat)\necho \"{name} $1 $server\" >> {}\n{script}\n",
            calls.display()
        );
        fs::write(&path, text).expect("the folder is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The product with these files and our helpers.
    fn setup(&self, files: &[&Path]) -> Setup {
        self.setup_with(files, "1s")
    }

    fn setup_with(&self, files: &[&Path], helper_timeout: &str) -> Setup {
        let path = std::env::var("PATH").unwrap_or_default();
        Setup::new()
            .environment("PATH", &format!("{}:{path}", self.0.path().display()))
            .section(&format!(
                "[docker]\nconfig_files = {files:?}\nhelper_timeout = {helper_timeout:?}\n[log]\nlevel = \"debug\""
            ))
    }
}

/// Who came to the registry at last.
fn last_user(liar: &Liar) -> Option<String> {
    let requests = liar.requests();
    let user = requests.last()?.basic()?.0;
    Some(user)
}

fn user_for(tidegate: &Tidegate, liar: &Liar, repository: &str) -> Option<String> {
    liar.forget_requests();
    let image = liar.reference(repository, "v1");
    let (status, _) = tidegate.submit(&json!({"containerImage": image}));
    last_user(liar).filter(|_| status == 200)
}

fn auth(user: &str) -> Value {
    json!({"username": user, "password": PASSWORD})
}

#[test]
fn the_smallest_part_goes_first_then_the_table_then_the_files_in_their_order() {
    let liar = registry(&["table", "first", "second", "special"]);
    let bare = registry(&["table", "first", "second", "special"]);
    let home = Home::new();
    let (name, other) = (liar.name(), bare.name());
    let special = format!("{name}/acme/special");
    let first = home.config(
        "first",
        &json!({"auths": {&name: auth("first"), &other: auth("first")}}),
    );
    let second = home.config(
        "second",
        &json!({"auths": {&name: auth("second"), &other: auth("second"), &special: auth("special")}}),
    );
    let tidegate = home
        .setup(&[&first, &second])
        .registry_with(
            &name,
            &format!("username = \"table\"\npassword = \"{PASSWORD}\""),
        )
        .liar(&bare)
        .start();
    for (liar, repository, expected) in [
        (&liar, "acme/app", "table"),
        (&liar, "acme/special/app", "special"),
        (&bare, "acme/app", "first"),
    ] {
        let user = user_for(&tidegate, liar, repository);
        assert_eq!(user.as_deref(), Some(expected), "{repository}");
    }
}

#[test]
fn users_do_not_borrow_the_logins_of_dockers_files() {
    let liar = registry(&["operator"]);
    let home = Home::new();
    let file = home.config(
        "config.json",
        &json!({"auths": {liar.name(): auth("operator")}}),
    );
    let directory = Directory::new().user("ada", "ada-token", &[]);
    let tidegate = home
        .setup(&[&file])
        .liar(&liar)
        .directory(&directory)
        .start();
    let image = liar.reference("acme/app", "v1");
    let request = json!({"containerImage": image, "towerAccessToken": "ada-token"});
    let (status, body) = tidegate.submit(&request);
    assert_eq!(status, 400, "{body}");
    assert_eq!(
        user_for(&tidegate, &liar, "acme/app").as_deref(),
        Some("operator")
    );
}

#[test]
fn a_mounted_secret_that_is_replaced_serves_without_a_restart() {
    let liar = registry(&["second"]);
    let home = Home::new();
    // As kubelet mounts one.
    let swap = |name: &str, content: &str| {
        fs::create_dir(home.path(name)).expect("the folder is ours");
        fs::write(home.path(name).join("secret"), content).expect("the folder is ours");
        symlink(name, home.path("..data_tmp")).expect("the folder is ours");
        fs::rename(home.path("..data_tmp"), home.path("..data")).expect("the folder is ours");
    };
    let with = |user: &str| json!({"auths": {liar.name(): auth(user)}}).to_string();
    swap("..1", &with("first"));
    let file = home.path(".dockerconfigjson");
    symlink("..data/secret", &file).expect("the folder is ours");
    let tidegate = home.setup(&[&file]).liar(&liar).start();
    assert_eq!(user_for(&tidegate, &liar, "acme/app"), None);
    swap("..2", &with("second"));
    wait_until("the new login", || {
        user_for(&tidegate, &liar, "acme/app").as_deref() == Some("second")
    });
    swap("..3", &format!("{{\"auths\": \"{PASSWORD}\""));
    let is_told = |line: &str| line.contains("used on") && line.contains(".dockerconfigjson");
    assert!(tidegate.log().wait_for(is_told).is_some());
    assert_eq!(
        user_for(&tidegate, &liar, "acme/app").as_deref(),
        Some("second")
    );
    swap("..4", &with("first"));
    wait_until("the end of the old login", || {
        user_for(&tidegate, &liar, "acme/app").is_none()
    });
    assert_eq!(tidegate.log().count(is_told), 1);
    assert!(!tidegate.log().text().contains(PASSWORD));
}

#[test]
fn a_helper_is_asked_once_for_many_pulls() {
    let liar = registry(&["helped"]);
    let home = Home::new();
    home.helper(
        "pass",
        &format!(
            "echo '{{\"ServerURL\":\"x\",\"Username\":\"helped\",\"Secret\":\"{PASSWORD}\"}}'"
        ),
    );
    let file = home.config(
        "config.json",
        &json!({"credHelpers": {liar.name(): "pass"}, "auths": {liar.name(): auth("file")}}),
    );
    let tidegate = home.setup(&[&file]).liar(&liar).start();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let image = liar.reference("acme/app", "v1");
                let (status, body) = tidegate.submit(&json!({"containerImage": image}));
                assert_eq!(status, 200, "{body}");
            });
        }
    });
    assert_eq!(last_user(&liar).as_deref(), Some("helped"));
    assert_eq!(home.calls(), [format!("pass get {}", liar.name())]);
    assert!(!tidegate.log().text().contains(PASSWORD));
}

/// Helpers make logins that end, and may have kept one for a while themselves.
#[test]
fn a_helper_is_asked_again_when_its_login_is_refused() {
    let liar = registry(&["second"]);
    let home = Home::new();
    let answer = home.path("answer");
    let say = |user: &str| {
        let text = json!({"Username": user, "Secret": PASSWORD}).to_string();
        fs::write(&answer, text).expect("the folder is ours");
    };
    say("first");
    home.helper("ending", &format!("cat {}", answer.display()));
    let file = home.config(
        "config.json",
        &json!({"credHelpers": {liar.name(): "ending"}}),
    );
    let tidegate = home.setup(&[&file]).liar(&liar).start();
    assert_eq!(user_for(&tidegate, &liar, "acme/app"), None);
    say("second");
    wait_until("the helper's other login", || {
        user_for(&tidegate, &liar, "acme/app").as_deref() == Some("second")
    });
    assert_eq!(home.calls().len(), 2);
}

#[test]
fn a_store_is_asked_for_every_registry_and_by_dockers_name_for_its_hub() {
    let home = Home::new();
    let liar = registry(&["stored"]);
    let hub = registry(&["stored"]);
    home.helper(
        "store",
        &format!(
            "case $server in {name}|https://index.docker.io/v1/) echo '{{\"Username\":\"stored\",\"Secret\":\"{PASSWORD}\"}}';;\n\
             *) echo 'credentials not found in native keychain'; exit 1;; esac",
            name = liar.name()
        ),
    );
    let open = Liar::open();
    open.image("acme/app", "v1", &[]);
    let file = home.config(
        "config.json",
        &json!({"credsStore": "store", "auths": {liar.name(): {}}}),
    );
    let tidegate = home
        .setup(&[&file])
        .liar(&liar)
        .liar(&open)
        .registry_with(
            "docker.io",
            &format!("endpoint = \"http://{}\"", hub.name()),
        )
        .start();
    assert_eq!(
        user_for(&tidegate, &liar, "acme/app").as_deref(),
        Some("stored")
    );
    tidegate.grant("acme/app:v1");
    assert_eq!(last_user(&hub).as_deref(), Some("stored"));
    // It has none for this one, which is no trouble.
    tidegate.grant(&open.reference("acme/app", "v1"));
    tidegate.grant(&open.reference("acme/app", "v1"));
    let expected = [
        format!("store get {}", liar.name()),
        "store get https://index.docker.io/v1/".to_owned(),
        format!("store get {}", open.name()),
    ];
    assert_eq!(home.calls(), expected);
    assert_eq!(
        tidegate.log().count(|line| line.contains("gives no login")),
        0
    );
}

#[test]
fn a_helper_that_fails_is_told_once_and_the_next_login_serves() {
    for (script, reason) in [
        (
            "sleep 1000 & echo $! > \"$0.pid\"; wait",
            "has not answered within 1s",
        ),
        // The other process has its output, and may still print.
        (
            "sleep 1000 & echo $! > \"$0.pid\"; echo no",
            "has not answered within 1s",
        ),
        (
            "echo 'error: hunter2-of-docker is locked' | tee /dev/stderr; exit 3",
            "printed no login",
        ),
        ("head -c 200000 /dev/zero", "printed more than 128 KiB"),
        ("yes hunter2-of-docker", "printed more than 128 KiB"),
        (
            "echo '{\"Username\":\"a:b\",\"Secret\":\"hunter2-of-docker\"}'",
            "cannot be used",
        ),
    ] {
        let liar = registry(&["file"]);
        let home = Home::new();
        home.helper("broken", script);
        let file = home.config(
            "config.json",
            &json!({"credHelpers": {liar.name(): "broken"}, "auths": {liar.name(): auth("file")}}),
        );
        let tidegate = home.setup(&[&file]).liar(&liar).start();
        for _ in 0..3 {
            let user = user_for(&tidegate, &liar, "acme/app");
            assert_eq!(user.as_deref(), Some("file"), "{script}");
        }
        assert_eq!(home.calls().len(), 1, "{script}");
        let log = tidegate.log();
        let told = log.count(|line| line.contains("gives no login") && line.contains(reason));
        assert_eq!(told, 1, "{script}: {}", log.text());
        assert!(!log.text().contains(PASSWORD), "{script}");
        if let Ok(pid) = fs::read_to_string(home.path("docker-credential-broken.pid")) {
            wait_until("the end of what the helper has started", || {
                // Nobody may have waited for it yet.
                let line = fs::read(Path::new("/proc").join(pid.trim()).join("cmdline"));
                line.is_ok_and(|line| line.is_empty())
                    || !Path::new("/proc").join(pid.trim()).exists()
            });
        }
    }
}

#[test]
fn a_helper_that_is_not_there_is_told() {
    let liar = registry(&["file"]);
    let home = Home::new();
    let file = home.config("config.json", &json!({"credsStore": "nowhere-to-be-found"}));
    let tidegate = home.setup(&[&file]).liar(&liar).start();
    assert_eq!(user_for(&tidegate, &liar, "acme/app"), None);
    let is_told = |line: &str| {
        line.contains("docker-credential-nowhere-to-be-found") && line.contains("cannot be started")
    };
    assert!(tidegate.log().wait_for(is_told).is_some());
}

/// A helper that hangs holds up those who need it, and nobody else.
#[test]
fn others_are_served_while_a_helper_hangs() {
    let helped = registry(&["file"]);
    let other = registry(&["file"]);
    let home = Home::new();
    let gate = home.path("gate");
    home.helper(
        "slow",
        &format!("until [ -e {} ]; do sleep 0.05; done", gate.display()),
    );
    let file = home.config(
        "config.json",
        &json!({"credHelpers": {helped.name(): "slow"}, "auths": {other.name(): auth("file")}}),
    );
    let tidegate = home
        .setup_with(&[&file], "60s")
        .liar(&helped)
        .liar(&other)
        .start();
    std::thread::scope(|scope| {
        for _ in 0..30 {
            scope.spawn(|| {
                let image = helped.reference("acme/app", "v1");
                tidegate.submit(&json!({"containerImage": image}));
            });
        }
        wait_until("the helper's start", || !home.calls().is_empty());
        let user = user_for(&tidegate, &other, "acme/app");
        assert_eq!(user.as_deref(), Some("file"));
        assert!(helped.requests().is_empty(), "the helper has answered");
        fs::write(&gate, "").expect("the folder is ours");
    });
}

/// `docker login` at Azure, and helpers under the user name `<token>`.
#[test]
fn identity_tokens_are_exchanged_by_post() {
    let azure = Ways {
        realm: "/oauth2/token",
        token_name: "access_token",
        life: Life::InToken(4500),
        post_password: Post::Status(400),
        takes_refresh_tokens: true,
        ..Ways::default()
    };
    let home = Home::new();
    home.helper(
        "azure",
        "echo '{\"Username\":\"<token>\",\"Secret\":\"identity-token-of-azure\"}'",
    );
    for is_helped in [false, true] {
        let double = Double::start(azure.clone(), Accounts::none())
            .with_refresh_token("identity-token-of-azure");
        let content = match is_helped {
            true => json!({"credHelpers": {double.name(): "azure"}}),
            false => json!({"auths": {double.name(): {
                "auth": "MDAwMDAwMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDAwOg==",
                "identitytoken": "identity-token-of-azure",
            }}}),
        };
        let file = home.config("config.json", &content);
        let tidegate = home.setup(&[&file]).registry(double.name()).start();
        let grant = tidegate.grant(&double.reference(PRIVATE));
        assert_eq!(
            tidegate.pull(&grant.blob(&double.layer)).digest,
            double.layer
        );
        let asked = double.realm_requests();
        assert_eq!(asked.len(), 1, "{asked:#?}");
        assert_eq!(asked[0].method, "POST");
        assert_eq!(
            asked[0].form("grant_type").as_deref(),
            Some("refresh_token")
        );
        assert!(!tidegate.log().text().contains("identity-token-of-azure"));
    }
}

#[test]
fn files_that_cannot_be_used_are_reported_before_the_start() {
    let home = Home::new();
    let broken = home.path("broken");
    fs::write(&broken, format!("{{\"auths\": \"{PASSWORD}\"}}")).expect("the folder is ours");
    let missing = home.path("missing");
    let (code, log) = home.setup(&[&broken, &missing]).fails_to_start();
    assert_eq!(code, Some(2), "{log}");
    for expected in [
        "docker.config_files",
        "not what Docker has here",
        "missing cannot be read",
    ] {
        assert!(log.contains(expected), "{log}");
    }
    assert!(!log.contains(PASSWORD), "{log}");
}

/// Real registries, and the file as a real login writes it: for a registry, and for a part of one.
#[test]
fn what_a_real_login_wrote_opens_a_real_registry() {
    require!("docker-registry", "skopeo");
    let (user, password) = (docker_registry::USER, docker_registry::PASSWORD);
    let tokens = TokenServer::start(Accounts::none().with(user, password, &["acme/app"]));
    let home = Home::new();
    let image = Image::build(&home.path("image"), &[100_000, 1_000]);
    let file = home.path("auth.json");
    let mut names = Vec::new();
    let mut running = Vec::new();
    for (login, part) in [(Login::Htpasswd, ""), (Login::Token(&tokens), "/acme")] {
        let registry = DockerRegistry::start(&login);
        registry.push(&image, "acme/app", "v1");
        let name = registry.name();
        run(command("skopeo")
            .args(["login", "--tls-verify=false", "--username", user])
            .args(["--password", password, "--authfile"])
            .arg(&file)
            .arg(format!("{name}{part}")));
        names.push(name);
        running.push(registry);
    }
    let mut setup = home.setup(&[&file]);
    for name in &names {
        setup = setup.registry(name);
    }
    let tidegate = setup.start();
    for name in &names {
        let grant = tidegate.grant(&format!("{name}/acme/app:v1"));
        assert_eq!(skopeo_copy(&grant.target)[0], image.digest, "{name}");
    }
}
