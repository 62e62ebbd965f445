//! Each registry that people use, with its quirks: what it wants to see, what it says when it does not, and what becomes
//! of a token or a login that has ended. The doubles behave as documented; `private_pull` has the real one.

use std::net::SocketAddr;

use serde_json::json;

use crate::support::{
    accounts::Accounts,
    http::{self, Response},
    registry_double::{
        Anonymous, Bad, Blobs, Challenge, Double, Life, PRIVATE, PUBLIC, Post, Trouble, Ways,
    },
    server::Request,
    tidegate::{Grant, Setup, Tidegate},
};

const PASSWORD: &str = "s3cret+&=%/of the login";

/// As `docker login` at Google stores it.
const JSON_KEY: &str = "{\n  \"type\": \"service_account\",\n  \"private_key\": \"-----BEGIN PRIVATE KEY-----\\nMIIE+/=\\n-----END PRIVATE KEY-----\\n\",\n  \"client_email\": \"a@b.iam\"\n}\n";

fn docker_hub() -> Ways {
    Ways {
        name: "Docker Hub",
        service: "registry.docker.io",
        anonymous: Anonymous::Token,
        token_name: "token access_token",
        bad_login: (401, "UNAUTHORIZED"),
        post_password: Post::Status(405),
        blobs: Blobs::Storage(307),
        ..Ways::default()
    }
}

fn quay() -> Ways {
    Ways {
        name: "Quay",
        realm: "/v2/auth",
        anonymous: Anonymous::Token,
        life: Life::InToken(3600),
        post_password: Post::Status(405),
        blobs: Blobs::Storage(302),
        ..Ways::default()
    }
}

fn ghcr() -> Ways {
    Ways {
        name: "GHCR",
        service: "ghcr.io",
        anonymous: Anonymous::Token,
        life: Life::Unsaid,
        post_password: Post::Status(404),
        bad_login: (403, "DENIED"),
        bad_authorization: Bad::Bare(403),
        blobs: Blobs::Storage(307),
        ..Ways::default()
    }
}

fn azure() -> Ways {
    Ways {
        name: "Azure Container Registry",
        challenge: Challenge::BearerAndBasic,
        realm: "/oauth2/token",
        token_name: "access_token",
        life: Life::InToken(4500),
        post_password: Post::Status(400),
        takes_refresh_tokens: true,
        takes_basic: true,
        blobs: Blobs::Storage(307),
        ..Ways::default()
    }
}

fn google() -> Ways {
    Ways {
        name: "Artifact Registry",
        challenge: Challenge::AtPingOnly,
        realm: "/v2/token",
        service: "",
        life: Life::Seconds(3599),
        post_password: Post::Status(404),
        bad_login: (401, "UNAUTHORIZED"),
        blobs: Blobs::SameHost,
        ..Ways::default()
    }
}

fn gitlab() -> Ways {
    Ways {
        name: "GitLab",
        realm: "/jwt/auth",
        realm_host: Some("127.0.0.2"),
        service: "container_registry",
        anonymous: Anonymous::Token,
        life: Life::InToken(300),
        post_password: Post::Status(404),
        bad_login: (403, "DENIED"),
        ..Ways::default()
    }
}

fn harbor() -> Ways {
    Ways {
        name: "Harbor",
        realm: "/service/token",
        service: "harbor-registry",
        anonymous: Anonymous::Token,
        life: Life::Seconds(1800),
        post_password: Post::Status(405),
        bad_authorization: Bad::Basic("harbor"),
        takes_basic: true,
        ..Ways::default()
    }
}

fn artifactory() -> Ways {
    Ways {
        name: "Artifactory",
        realm: "/artifactory/api/docker/acme/v2/token",
        // It hides what a stranger may not see, and lets him in otherwise.
        anonymous: Anonymous::Open(404),
        is_ping_open: true,
        post_password: Post::Status(401),
        takes_basic: true,
        ..Ways::default()
    }
}

fn nexus() -> Ways {
    Ways {
        name: "Nexus",
        challenge: Challenge::Basic("BASIC realm=\"Sonatype Nexus Repository Manager\""),
        ..Ways::default()
    }
}

fn nexus_with_tokens() -> Ways {
    Ways {
        name: "Nexus with its token realm",
        realm: "/repository/docker/v2/token",
        anonymous: Anonymous::Token,
        life: Life::Unsaid,
        post_password: Post::Status(405),
        ..Ways::default()
    }
}

fn distribution_with_htpasswd() -> Ways {
    Ways {
        name: "distribution with htpasswd",
        challenge: Challenge::Basic("Basic realm=\"Registry Realm\""),
        ..Ways::default()
    }
}

fn zot() -> Ways {
    Ways {
        name: "zot",
        challenge: Challenge::Basic("Basic realm=\"Authorization Required\""),
        anonymous: Anonymous::Open(401),
        is_ping_open: true,
        ..Ways::default()
    }
}

fn with_a_relative_realm() -> Ways {
    Ways {
        name: "a registry with a relative realm",
        is_realm_relative: true,
        ..Ways::default()
    }
}

fn zot_with_tokens() -> Ways {
    Ways {
        name: "zot with tokens",
        challenge: Challenge::EmptyScope,
        realm: "/zot/auth/token",
        ..Ways::default()
    }
}

fn all() -> [Ways; 15] {
    [
        Ways::default(),
        docker_hub(),
        quay(),
        ghcr(),
        azure(),
        google(),
        gitlab(),
        harbor(),
        artifactory(),
        nexus(),
        nexus_with_tokens(),
        distribution_with_htpasswd(),
        zot(),
        zot_with_tokens(),
        with_a_relative_realm(),
    ]
}

struct Scene {
    double: Double,
    tidegate: Tidegate,
    layer: String,
}

impl Scene {
    /// `right` is the login that the registry knows, `ours` the one that is configured.
    fn new(ways: Ways, right: (&str, &str), ours: Option<(&str, &str)>) -> Self {
        let accounts = Accounts::none().with(right.0, right.1, &[PRIVATE, "acme/library/app"]);
        Self::of(Double::start(ways, accounts), ours)
    }

    fn of(double: Double, ours: Option<(&str, &str)>) -> Self {
        Self::named(double, None, ours)
    }

    /// Under the name that the registry has in the world.
    fn named(double: Double, name: Option<&str>, ours: Option<(&str, &str)>) -> Self {
        let mut more = "realm_hosts = [\"127.0.0.2\"]\n".to_owned();
        if let Some((user, password)) = ours {
            more += &format!("username = {user:?}\npassword = {password:?}\n");
        }
        if name.is_some() {
            more += &format!("endpoint = \"http://{}\"\n", double.name());
        }
        let name = name.map_or_else(|| double.name(), str::to_owned);
        let tidegate = Setup::new()
            .registry_with(name, &more)
            .section("[upstream]\nretry_count = 0\n[log]\nlevel = \"debug\"")
            .start();
        Self {
            layer: double.layer.clone(),
            double,
            tidegate,
        }
    }

    fn submit(&self, repository: &str) -> (u16, String) {
        let image = self.double.reference(repository);
        let (status, body) = self.tidegate.submit(&json!({"containerImage": image}));
        (
            status,
            body["message"].as_str().unwrap_or_default().to_owned(),
        )
    }

    fn grant(&self, repository: &str) -> Grant {
        self.tidegate.grant(&self.double.reference(repository))
    }

    /// Manifest and layer, as a runtime gets them: it follows redirects itself, without a login.
    fn assert_is_pulled(&self, grant: &Grant, what: &str) {
        let manifest = self.tidegate.get(&grant.manifest("v1"));
        assert_eq!(manifest.status(), 200, "{what}: {}", manifest.text());
        let config = manifest.json()["config"]["digest"].clone();
        let config = config.as_str().expect("a digest").to_owned();
        for digest in [&config, &self.layer] {
            let response = self.follow(self.tidegate.get(&grant.blob(digest)));
            assert_eq!(response.status(), 200, "{what}: {}", response.excerpt());
            let got = crate::support::content::digest(&response.body);
            assert_eq!(&got, digest, "{what}");
        }
        for request in self.double.storage_requests() {
            assert_eq!(request.header("authorization"), None, "{what}: {request:?}");
        }
    }

    fn follow(&self, response: Response) -> Response {
        let Some(location) = response.header("location") else {
            return response;
        };
        let rest = location.strip_prefix("http://").expect("a whole URL");
        let (host, path) = rest.split_once('/').expect("a path");
        let host: SocketAddr = host.parse().expect("an address");
        http::get(host, &format!("/{path}"))
    }

    fn realm_count(&self) -> usize {
        self.double.realm_requests().len()
    }
}

fn users(requests: &[Request]) -> Vec<String> {
    let users = requests.iter().filter_map(Request::basic);
    users.map(|(user, _)| user).collect()
}

#[test]
fn private_images_come_from_every_registry_with_a_login() {
    for ways in all() {
        let name = ways.name;
        let login = ("acme+robot", PASSWORD);
        let scene = Scene::new(ways, login, Some(login));
        let grant = scene.grant(PRIVATE);
        scene.assert_is_pulled(&grant, name);
    }
}

#[test]
fn private_images_come_from_no_registry_without_a_login_or_with_a_wrong_one() {
    for ways in all() {
        let name = ways.name;
        let is_hiding = ways.anonymous == Anonymous::Open(404);
        let right = ("acme", PASSWORD);
        for ours in [None, Some(("acme", "outdated"))] {
            let scene = Scene::new(ways.clone(), right, ours);
            let (status, message) = scene.submit(PRIVATE);
            assert_eq!(status, 400, "{name}: {message}");
            let said = match is_hiding && ours.is_none() {
                true => "not found",
                false => "not allowed",
            };
            assert!(message.contains(said), "{name} {ours:?}: {message}");
            assert!(!message.contains("outdated"), "{name}: {message}");
            // Some realms lock accounts.
            assert!(scene.realm_count() <= 2, "{name}: {}", scene.realm_count());
        }
    }
}

#[test]
fn public_images_come_from_every_registry_without_a_login() {
    for ways in all() {
        if ways.anonymous == Anonymous::None {
            continue;
        }
        let name = ways.name;
        let scene = Scene::new(ways, ("acme", PASSWORD), None);
        let grant = scene.grant(PUBLIC);
        scene.assert_is_pulled(&grant, name);
        assert_eq!(users(&scene.double.registry_requests()), [""; 0], "{name}");
    }
}

/// Tokens end sooner than names.
#[test]
fn a_token_that_has_ended_is_renewed_once_at_every_registry() {
    for ways in all() {
        let name = ways.name;
        let login = ("acme", PASSWORD);
        for (repository, ours) in [(PRIVATE, Some(login)), (PUBLIC, None)] {
            if repository == PUBLIC && ways.anonymous != Anonymous::Token {
                continue;
            }
            let scene = Scene::new(ways.clone(), login, ours);
            let grant = scene.grant(repository);
            let before = scene.realm_count();
            scene.double.expire_tokens();
            scene.assert_is_pulled(&grant, name);
            let asked = scene.realm_count() - before;
            assert!(asked <= 1, "{name} {repository}: {asked}");
        }
    }
}

#[test]
fn user_names_of_all_kinds_reach_their_registry() {
    for (ways, user, password) in [
        (docker_hub(), "acme", "dckr_pat_abc"),
        (quay(), "acme+robot", "ROBOT"),
        (quay(), "$oauthtoken", "oauth/token+"),
        (quay(), "$app", "application"),
        (ghcr(), "anybody", "ghp_abc"),
        (azure(), "myregistry", "admin+password="),
        (azure(), "6f1ab2c3-0000-4000-8000-000000000001", "sp~secret"),
        (azure(), "pull-token", "scoped"),
        (google(), "_json_key", JSON_KEY),
        (google(), "_json_key_base64", "ewogICJ0eXBlIjo="),
        (google(), "oauth2accesstoken", "ya29.abc-_"),
        (gitlab(), "gitlab+deploy-token-1", "gldt-abc"),
        (gitlab(), "gitlab-ci-token", "glcbt-abc"),
        (harbor(), "robot$ci", "r"),
        (harbor(), "robot$acme+ci", "r"),
        (artifactory(), "acme", "eyJ-identity-token"),
        (nexus(), "name-code", "pass-code"),
        (zot(), "ada", "zak_abc"),
    ] {
        let login = (user, password);
        let scene = Scene::new(ways, login, Some(login));
        let (status, message) = scene.submit(PRIVATE);
        assert_eq!(status, 200, "{user}: {message}");
        let sent = [
            scene.double.realm_requests(),
            scene.double.registry_requests(),
        ]
        .concat();
        let logins: Vec<_> = sent.iter().filter_map(Request::basic).collect();
        assert!(
            logins.contains(&(user.to_owned(), password.to_owned())),
            "{user}: {logins:?}"
        );
    }
}

#[test]
fn docker_hub_is_found_under_all_its_names_and_official_images_in_its_library() {
    let accounts = Accounts::none().with("acme", PASSWORD, &[PRIVATE]);
    let double = Double::start(docker_hub(), accounts);
    let scene = Scene::named(double, Some("docker.io"), Some(("acme", PASSWORD)));
    for image in [
        "acme/app:v1",
        "docker.io/acme/app:v1",
        "index.docker.io/acme/app:v1",
        "registry-1.docker.io/acme/app:v1",
    ] {
        let grant = scene.tidegate.grant(image);
        scene.assert_is_pulled(&grant, image);
    }
    assert_eq!(scene.realm_count(), 1);
    // There is none; but it is asked for by its whole name, in the path and in the scope.
    let (status, body) = scene.tidegate.submit(&json!({"containerImage": "alpine"}));
    assert_eq!(status, 400, "{body}");
    let last = scene.double.realm_requests().pop().expect("a request");
    assert_eq!(
        last.query("scope").as_deref(),
        Some("repository:library/alpine:pull")
    );
}

#[test]
fn docker_hubs_limits_are_told_as_limits() {
    let login = Some(("acme", PASSWORD));
    for (trouble, said) in [
        (
            Trouble(
                429,
                vec![("Content-Type", "text/plain"), ("Retry-After", "900")],
                "too many failed login attempts",
            ),
            "too many failed login attempts",
        ),
        (Trouble(429, vec![], "Too Many Requests"), "rate limit"),
    ] {
        let scene = Scene::new(docker_hub(), ("acme", PASSWORD), login);
        scene.double.trouble_at_the_realm(Some(trouble));
        for _ in 0..3 {
            let (status, message) = scene.submit(PRIVATE);
            assert_eq!(status, 400, "{message}");
            assert!(message.contains("token service"), "{message}");
            assert!(message.contains("rate limit"), "{message}");
            assert!(message.contains(said), "{message}");
        }
        // It is not asked again before it may be.
        assert_eq!(scene.realm_count(), 1);
    }
}

#[test]
fn a_realm_that_is_out_of_order_for_a_moment_is_asked_again() {
    let login = ("acme", PASSWORD);
    let scene = Scene::new(Ways::default(), login, Some(login));
    scene
        .double
        .trouble_at_the_realm(Some(Trouble(503, vec![], "")));
    let (status, message) = scene.submit(PRIVATE);
    assert_eq!(status, 400, "{message}");
    assert!(message.contains("token service answered 503"), "{message}");
    assert_eq!(scene.realm_count(), 3);
    scene.double.trouble_at_the_realm(None);
    let grant = scene.grant(PRIVATE);
    // Pulls get a status that a runtime tries again at.
    scene.double.expire_tokens();
    // A limit is remembered, so it comes last.
    for (trouble, status) in [(503, 502), (400, 502), (429, 429)] {
        scene
            .double
            .trouble_at_the_realm(Some(Trouble(trouble, vec![], "")));
        let response = scene.tidegate.get(&grant.blob(&scene.layer));
        assert_eq!(response.status(), status, "{trouble}: {}", response.text());
        assert_eq!(
            response.header("retry-after").is_some(),
            status == 429,
            "{trouble}"
        );
    }
}

/// `docker login` there stores a refresh token under a user name of zeros.
#[test]
fn azures_refresh_token_is_exchanged() {
    const ZEROS: &str = "00000000-0000-0000-0000-000000000000";
    let double =
        Double::start(azure(), Accounts::none()).with_refresh_token("refresh-token-of-azure");
    let scene = Scene::of(double, Some((ZEROS, "refresh-token-of-azure")));
    let grant = scene.grant(PRIVATE);
    scene.assert_is_pulled(&grant, "by GET");
    // Its life is said in the token only: one is enough.
    assert_eq!(scene.realm_count(), 1);

    // As a realm that takes it by POST only.
    let double = Double::start(
        Ways {
            refuses_refresh_tokens_by_get: true,
            ..azure()
        },
        Accounts::none(),
    )
    .with_refresh_token("refresh-token-of-azure");
    let scene = Scene::of(double, Some((ZEROS, "refresh-token-of-azure")));
    let grant = scene.grant(PRIVATE);
    scene.assert_is_pulled(&grant, "by POST");
    let asked = scene.double.realm_requests();
    let last = asked.last().expect("a request");
    assert_eq!(last.method, "POST");
    assert_eq!(last.form("grant_type").as_deref(), Some("refresh_token"));
    assert_eq!(
        last.form("service").as_deref(),
        Some(scene.double.name().as_str())
    );
}

#[test]
fn a_realm_that_knows_oauth2_only_is_asked_by_post() {
    let login = ("acme", PASSWORD);
    for status in [401, 404, 405] {
        let ways = Ways {
            get_status: Some(status),
            ..Ways::default()
        };
        let scene = Scene::new(ways, login, Some(login));
        let (answered, message) = scene.submit(PRIVATE);
        assert_eq!(answered, 200, "{status}: {message}");
        let methods: Vec<String> = scene
            .double
            .realm_requests()
            .into_iter()
            .map(|request| request.method)
            .collect();
        assert_eq!(methods, ["GET", "POST"], "{status}");
    }
}

#[test]
fn googles_blobs_are_on_its_own_host_and_named_by_a_whole_url() {
    let login = ("_json_key", JSON_KEY);
    let scene = Scene::new(google(), login, Some(login));
    let grant = scene.grant(PRIVATE);
    let response = scene.tidegate.get(&grant.blob(&scene.layer));
    assert_eq!(response.status(), 302);
    let location = response.header("location").expect("a redirect");
    let start = format!("http://{}/artifacts-downloads/", scene.double.name());
    assert!(location.starts_with(&start), "{location}");
    // The challenge was on `/v2/` only.
    let asked = scene.double.registry_requests();
    let pings = asked.iter().filter(|request| request.path() == "/v2/");
    assert_eq!(pings.count(), 1);
}

#[test]
fn gitlabs_realm_is_another_host_and_has_to_be_trusted() {
    let login = ("gitlab-ci-token", PASSWORD);
    let double = Double::start(
        gitlab(),
        Accounts::none().with(login.0, login.1, &[PRIVATE]),
    );
    let doubting = Setup::new()
        .registry_with(
            double.name(),
            &format!("username = {:?}\npassword = {:?}", login.0, login.1),
        )
        .start();
    let image = double.reference(PRIVATE);
    let (status, body) = doubting.submit(&json!({"containerImage": image}));
    assert_eq!(status, 400, "{body}");
    let message = body["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("realm_hosts = [\"127.0.0.2\"]"),
        "{message}"
    );
    assert!(double.realm_requests().is_empty());
    let scene = Scene::of(double, Some(login));
    let grant = scene.grant(PRIVATE);
    scene.assert_is_pulled(&grant, "with realm_hosts");
}

/// A registry that offers both still gets its own password when its realm must not see it.
#[test]
fn basic_is_the_way_where_the_realm_is_not_trusted() {
    let login = ("acme", PASSWORD);
    let ways = Ways {
        realm_host: Some("127.0.0.4"),
        ..azure()
    };
    let scene = Scene::new(ways, login, Some(login));
    let grant = scene.grant(PRIVATE);
    scene.assert_is_pulled(&grant, "with Basic");
    assert_eq!(scene.realm_count(), 0);
}

/// Proxies of Docker Hub have official images one level deeper.
#[test]
fn harbors_redirect_to_the_library_is_followed() {
    let login = ("robot$acme", PASSWORD);
    let ways = Ways {
        moved: Some((PRIVATE, "acme/library/app")),
        ..harbor()
    };
    let scene = Scene::new(ways, login, Some(login));
    let grant = scene.grant(PRIVATE);
    scene.assert_is_pulled(&grant, "moved");
    let asked = scene.double.realm_requests();
    let last = asked.last().expect("a request");
    assert_eq!(
        last.queries("scope"),
        [
            "repository:acme/app:pull",
            "repository:acme/library/app:pull"
        ]
    );
}

/// Artifactory's paths have its repository's key, its scopes may not.
#[test]
fn the_scope_is_what_the_registry_says() {
    let login = ("acme", PASSWORD);
    let ways = Ways {
        name: "Artifactory with tokens",
        anonymous: Anonymous::None,
        is_ping_open: false,
        takes_basic: false,
        scope_name: Some((PRIVATE, "app")),
        ..artifactory()
    };
    let scene = Scene::new(ways, login, Some(login));
    // The challenge of another repository has been learnt.
    let (status, message) = scene.submit(PUBLIC);
    assert_eq!(status, 200, "{message}");
    let grant = scene.grant(PRIVATE);
    scene.assert_is_pulled(&grant, "its own scope");
}

#[test]
fn a_bad_token_at_ghcr_does_not_make_public_images_private_for_others() {
    let scene = Scene::new(ghcr(), ("acme", "good"), Some(("acme", "expired")));
    let (status, message) = scene.submit(PUBLIC);
    // Whoever has a login is not anonymous behind the operator's back.
    assert_eq!(status, 400, "{message}");
    assert!(message.contains("DENIED: the realm says no"), "{message}");
    let scene = Scene::new(ghcr(), ("acme", "good"), None);
    let grant = scene.grant(PUBLIC);
    scene.assert_is_pulled(&grant, "anonymous");
}

#[test]
fn a_login_that_was_withdrawn_pulls_no_more() {
    // Basic has no token that would live on.
    let accounts = Accounts::none().with("acme", PASSWORD, &[PRIVATE]);
    let double = Double::start(distribution_with_htpasswd(), accounts.clone());
    let scene = Scene::of(double, Some(("acme", PASSWORD)));
    let grant = scene.grant(PRIVATE);
    accounts.withdraw("acme");
    let response = scene.tidegate.get(&grant.blob(&scene.layer));
    assert_eq!(
        (response.status(), response.error_code().as_str()),
        (403, "DENIED"),
        "{}",
        response.text()
    );
}
