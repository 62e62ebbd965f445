//! Users of a Seqera Platform pull with the logins of their workspaces, whatever their Platform does meanwhile.

use std::{fs, path::PathBuf, sync::Barrier, thread, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    accounts::Accounts,
    content::Content,
    fake_platform::{self, FakePlatform, Session},
    http::End,
    layer::Layer,
    liar::{Auth, Behaviour, Gate, Liar, LiarImage, blob_path},
    programs::wait_until,
    tidegate::{Grant, Setup, Tidegate},
    token_server::TokenServer,
};

const ENDPOINT: &str = "https://platform.test/api";
const REPOSITORY: &str = "acme/app";
const ADA: &str = "access-token-of-ada";
const BOB: &str = "access-token-of-bob";
const RESEARCH: i64 = 1;
const CLINIC: i64 = 2;

/// A registry with two logins, and a Platform with two workspaces that have one of them each.
struct Scene {
    accounts: Accounts,
    tokens: TokenServer,
    liar: Liar,
    image: LiarImage,
    platform: FakePlatform,
    tidegate: Tidegate,
}

impl Scene {
    fn new(options: &str) -> Self {
        Self::with(options, Setup::new())
    }

    fn with(options: &str, setup: Setup) -> Self {
        let accounts = Accounts::none()
            .with("research", "of research", &[REPOSITORY])
            .with("clinic", "of clinic", &[REPOSITORY])
            .with("ada", "of ada", &[REPOSITORY]);
        let tokens = TokenServer::start(accounts.clone());
        let liar = Liar::start(Auth::Bearer {
            realm: tokens.realm(),
            issued: tokens.issued(),
        });
        let layer = Content::Generated {
            seed: 1,
            size: 3 << 20,
        };
        let image = liar.image(REPOSITORY, "v1", &[layer]);
        let platform = FakePlatform::start();
        let tidegate = setup
            .liar(&liar)
            .section("[upstream]\nretry_count = 0")
            .section(&format!(
                "[platform]\nendpoints = [{ENDPOINT:?}]\nallow_any_pairing_token = true\n{options}"
            ))
            .start();
        let scene = Self {
            accounts,
            tokens,
            liar,
            image,
            platform,
            tidegate,
        };
        scene.introduce();
        scene.platform.paired(scene.tidegate.registry, ENDPOINT, 1);
        scene
    }

    /// To a Platform that knows nothing.
    fn introduce(&self) {
        let name = self.liar.name();
        let registry = name.as_str();
        self.platform.user(ADA, 1, &[RESEARCH, CLINIC]);
        self.platform.user(BOB, 2, &[CLINIC]);
        let research = ["cred-1", registry, "research", "of research"];
        self.platform.workspace_login(RESEARCH, research);
        let clinic = ["cred-2", registry, "clinic", "of clinic"];
        self.platform.workspace_login(CLINIC, clinic);
        self.platform
            .personal_login(1, ["cred-3", registry, "ada", "of ada"]);
    }

    fn request(&self, token: &str, workspace: Option<i64>) -> Value {
        json!({
            "containerImage": self.liar.reference(REPOSITORY, "v1"),
            "towerAccessToken": token,
            "towerWorkspaceId": workspace,
            "towerEndpoint": ENDPOINT,
        })
    }

    fn grant(&self, token: &str, workspace: Option<i64>) -> Grant {
        self.tidegate.grant_of(&self.request(token, workspace))
    }

    fn submit(&self, token: &str, workspace: Option<i64>) -> (u16, Value) {
        self.tidegate.submit(&self.request(token, workspace))
    }

    /// Who asked the realm for a token, in order.
    fn logins(&self) -> Vec<String> {
        let requests = self.tokens.requests();
        requests
            .iter()
            .map(|request| request.basic().map(|(user, _)| user).unwrap_or_default())
            .collect()
    }

    /// A question to the registry that no proof and no cache can answer.
    fn tags(&self, grant: &Grant) -> u16 {
        self.tidegate
            .get(&format!("{}/tags/list", grant.path))
            .status()
    }

    fn assert_pulls(&self, grant: &Grant) {
        let manifest = self.tidegate.get(&grant.manifest(&self.image.manifest));
        assert_eq!(manifest.status(), 200, "{}", manifest.text());
        for layer in &self.image.layers {
            let pulled = self.tidegate.pull(&grant.blob(layer));
            assert_eq!(pulled.digest, *layer);
        }
    }
}

macro_rules! needs_a_platform {
    () => {
        if !fake_platform::is_here() {
            return;
        }
    };
}

#[test]
fn each_workspace_pulls_the_same_image_with_its_own_login() {
    needs_a_platform!();
    let scene = Scene::new("");
    for (token, workspace, login) in [
        (ADA, Some(RESEARCH), "research"),
        (ADA, Some(CLINIC), "clinic"),
        (ADA, None, "ada"),
    ] {
        let grant = scene.grant(token, workspace);
        scene.assert_pulls(&grant);
        assert_eq!(scene.logins().last().map(String::as_str), Some(login));
    }
    // One token of the realm for each of them, and one question of each kind for each workspace.
    assert_eq!(scene.logins(), ["research", "clinic", "ada"]);
    assert_eq!(scene.platform.count("GET /credentials"), 3);
    assert_eq!(scene.platform.count("GET /user-info"), 1);
    // Bob's personal workspace has none, so the registry refuses him.
    let (status, body) = scene.submit(BOB, None);
    assert_eq!(status, 400, "{body}");
    scene.assert_pulls(&scene.grant(BOB, Some(CLINIC)));
}

#[test]
fn who_is_not_known_or_not_allowed_is_told_so() {
    needs_a_platform!();
    let scene = Scene::new("");
    assert_eq!(scene.submit("another", None), (401, Value::Null));
    assert_eq!(scene.submit("not\na header", None), (401, Value::Null));
    let (status, body) = scene.submit(BOB, Some(RESEARCH));
    assert_eq!(status, 403, "{body}");
    for endpoint in [
        "https://platform.test/api/",
        "https://platform.test",
        "https://elsewhere.test/api",
    ] {
        let mut request = scene.request(ADA, None);
        request["towerEndpoint"] = json!(endpoint);
        let (status, body) = scene.tidegate.submit(&request);
        assert_eq!(status, 400, "{endpoint}: {body}");
        let message = body["message"].as_str().unwrap_or_default();
        assert!(message.contains(endpoint), "{message}");
    }
    // The first of the configuration is meant.
    let mut request = scene.request(ADA, None);
    request["towerEndpoint"] = Value::Null;
    scene.assert_pulls(&scene.tidegate.grant_of(&request));
}

#[test]
fn an_endpoint_that_never_paired_is_a_mistake_of_the_request() {
    let setup = Setup::new().section(&format!(
        "[platform]\nendpoints = [{ENDPOINT:?}]\nallow_any_pairing_token = true"
    ));
    let tidegate = setup.start();
    let (status, body) =
        tidegate.submit(&json!({"containerImage": "alpine", "towerAccessToken": ADA}));
    assert_eq!(status, 400, "{body}");
    let message = body["message"].as_str().unwrap_or_default();
    assert!(message.contains("no Platform has paired"), "{message}");
}

#[test]
fn a_revoked_token_opens_nothing_any_more() {
    needs_a_platform!();
    let scene = Scene::new("remember = \"0s\"");
    let grant = scene.grant(ADA, Some(RESEARCH));
    assert_eq!(scene.tags(&grant), 200);
    scene.platform.order("revoke", json!({"token": ADA}));
    assert_eq!(scene.tags(&grant), 403);
    assert_eq!(scene.submit(ADA, Some(RESEARCH)), (401, Value::Null));
    // Nobody else's.
    scene.assert_pulls(&scene.grant(BOB, Some(CLINIC)));
}

#[test]
fn a_refused_token_takes_along_what_was_remembered() {
    needs_a_platform!();
    let scene = Scene::new("");
    let grant = scene.grant(ADA, Some(RESEARCH));
    assert_eq!(scene.tags(&grant), 200);
    scene.platform.order("revoke", json!({"token": ADA}));
    // Remembered, for a while.
    assert_eq!(scene.tags(&grant), 200);
    // What has to be asked shows that the token is no good, and then nothing is used of it.
    assert_eq!(scene.submit(ADA, Some(CLINIC)), (401, Value::Null));
    assert_eq!(scene.tags(&grant), 403);
}

#[test]
fn a_password_that_was_changed_is_asked_for_when_the_old_one_is_refused() {
    needs_a_platform!();
    let scene = Scene::new("");
    let grant = scene.grant(ADA, Some(RESEARCH));
    scene.accounts.withdraw("research");
    let _ = scene
        .accounts
        .clone()
        .with("research-2", "new", &[REPOSITORY]);
    scene.tokens.forget_issued();
    let name = scene.liar.name();
    let changed = ["cred-4", name.as_str(), "research-2", "new"];
    scene.platform.workspace_login(RESEARCH, changed);
    assert_eq!(scene.tags(&grant), 200);
    assert_eq!(
        scene.logins().last().map(String::as_str),
        Some("research-2")
    );
}

/// The server of a layer from the web is no registry, and its no says nothing of anybody's login.
#[test]
fn a_web_servers_refusal_throws_no_doubt_on_the_login() {
    needs_a_platform!();
    let web = Liar::open();
    let scene = Scene::with("", Setup::new().liar(&web));
    scene.liar.image(REPOSITORY, "bare", &[]);
    let layer = Layer::of(&[("x", "y")]);
    let path = "/files/x";
    web.misbehave(path, Behaviour::status(403));
    let mut request = scene.request(ADA, Some(RESEARCH));
    request["containerImage"] = json!(scene.liar.reference(REPOSITORY, "bare"));
    let location = format!("http://{}{path}", web.name());
    request["containerConfig"] = json!({"layers": [layer.posted_at(&location)]});
    let grant = scene.tidegate.grant_of(&request);
    let asked_before = scene.platform.calls().len();
    let refused = scene.tidegate.get(&grant.blob(&layer.digest));
    assert_eq!(refused.status(), 403, "{}", refused.text());
    assert_eq!(web.gets(path).len(), 1);
    assert_eq!(scene.tags(&grant), 200);
    let calls = scene.platform.calls();
    assert_eq!(calls.len(), asked_before, "{calls:#?}");
}

#[test]
fn a_new_pairing_key_changes_nothing_for_users() {
    needs_a_platform!();
    let scene = Scene::new("key_lease = \"0s\"");
    let key = scene.platform.sessions()[0].public_key();
    scene.assert_pulls(&scene.grant(ADA, Some(RESEARCH)));
    scene.platform.order("close", json!({}));
    scene
        .platform
        .wait_for_sessions("another key", 1, |session| {
            session.is_paired() && session.public_key() != key
        });
    scene.assert_pulls(&scene.grant(ADA, Some(CLINIC)));
    assert_eq!(scene.logins(), ["research", "clinic"]);
}

#[test]
fn names_survive_a_restart_of_tidegate() {
    needs_a_platform!();
    let mut scene = Scene::new("");
    let grant = scene.grant(ADA, Some(RESEARCH));
    scene.tidegate.restart();
    wait_until("the Platform's next socket", || scene.tags(&grant) == 200);
    scene.assert_pulls(&grant);
}

#[test]
fn a_pull_goes_on_while_the_platform_is_gone_and_after_it() {
    needs_a_platform!();
    let mut scene =
        Scene::new("remember = \"0s\"\nrequest_timeout = \"1s\"\ncall_timeout = \"2s\"");
    let grant = scene.grant(ADA, Some(RESEARCH));
    let layer = scene.image.layers[0].clone();
    let gate = Gate::default();
    let path = blob_path(REPOSITORY, &layer);
    let halting = Behaviour::Gated(1 << 20, gate.clone());
    scene.liar.misbehave_in_turn(&path, &[halting]);
    thread::scope(|scope| {
        let (tidegate, path) = (&scene.tidegate, grant.blob(&layer));
        let pulling = scope.spawn(move || tidegate.pull(&path));
        scene.liar.wait_for_sent(1 << 20);
        scene.platform.order("close", json!({"stay": true}));
        scene
            .platform
            .wait_for_sessions("the end of the session", 1, |it| !it.is_paired());
        gate.open();
        let pulled = pulling.join().expect("no panic");
        assert_eq!((pulled.digest, pulled.end), (layer, End::Complete));
    });
    // What is not fresh any more serves while nobody can be asked.
    assert_eq!(scene.tags(&grant), 200);
    assert!(scene.tidegate.metric("tidegate_platform_stale_total") > 0);
    // Who was not known before waits for the Platform to come back.
    let (status, body) = scene.submit(BOB, Some(CLINIC));
    assert_eq!(status, 503, "{body}");
    scene.platform.restart();
    scene.introduce();
    scene.platform.paired(scene.tidegate.registry, ENDPOINT, 1);
    scene.assert_pulls(&scene.grant(BOB, Some(CLINIC)));
    assert_eq!(scene.tags(&grant), 200);
}

#[test]
fn long_lists_are_read() {
    needs_a_platform!();
    let scene = Scene::new("remember = \"0s\"");
    for size in [300 << 10, 2 << 20] {
        let order = json!({"path": "/credentials", "bytes": size});
        scene.platform.order("pad", order);
        scene.assert_pulls(&scene.grant(ADA, Some(RESEARCH)));
    }
    let registry = scene.liar.name();
    let mut list: Vec<Value> = (0..8000)
        .map(|id| {
            json!({"id": format!("other-{id}"), "registry": format!("quay.io/team-{id}"),
                "userName": format!("user-{id}"), "password": "of another"})
        })
        .collect();
    list.push(
        json!({"id": "last", "registry": registry, "userName": "clinic", "password": "of clinic"}),
    );
    let order = json!({"workspace": CLINIC, "list": list});
    assert!(order.to_string().len() > 500 << 10);
    scene.platform.order("credentials", order);
    scene.assert_pulls(&scene.grant(BOB, Some(CLINIC)));
}

#[test]
fn expired_tokens_are_refreshed_as_the_platform_answers() {
    needs_a_platform!();
    let mut scene = Scene::new("remember = \"0s\"");
    let tokens = |form: &str| [1, 2, 3].map(|number| format!("jwt-{form}-{number}"));
    for (form, works) in [("both", true), ("jwt", true), ("none", false)] {
        let [first, second, third] = tokens(form);
        for token in [&first, &second, &third] {
            scene.platform.user(token, 1, &[RESEARCH]);
        }
        let refresh = |from: &str, token: &str, next: &str| {
            scene.platform.order(
                "refresh",
                json!({"refresh": from, "token": token, "next": next, "cookies": form}),
            );
        };
        let [r1, r2] = [format!("{form}+r/1="), format!("{form}-r2")];
        refresh(&r1, &second, &r2);
        let mut request = scene.request(&first, Some(RESEARCH));
        request["towerRefreshToken"] = json!(r1);
        scene.platform.order("revoke", json!({"token": first}));
        if !works {
            assert_eq!(scene.tidegate.submit(&request), (401, Value::Null));
            continue;
        }
        let grant = scene.tidegate.grant_of(&request);
        assert_eq!(scene.tags(&grant), 200);
        // The next one, by the refresh token that came along, or by the same once more.
        let from = if form == "both" { &r2 } else { &r1 };
        refresh(from, &third, "");
        scene.platform.order("revoke", json!({"token": second}));
        assert_eq!(scene.tags(&grant), 200);
    }
    assert_eq!(scene.platform.count("POST /oauth/access_token"), 5);
    // What followed is known after a restart, without another refresh.
    let [first, _, _] = tokens("both");
    scene.tidegate.restart();
    scene
        .platform
        .wait_for_sessions("pairing", 1, Session::is_paired);
    wait_until("the next socket", || {
        scene.submit(&first, Some(RESEARCH)).0 == 200
    });
    assert_eq!(scene.platform.count("POST /oauth/access_token"), 5);
    let state = scene.tidegate.home().join("state");
    for (path, _) in crate::support::tidegate::files_below(&state) {
        let content = fs::read(&path).expect("it is ours");
        let text = String::from_utf8_lossy(&content);
        for secret in ["jwt-both-", "both-r2", ADA] {
            assert!(!text.contains(secret), "{secret} in {}", path.display());
        }
    }
}

#[test]
fn one_expired_token_is_refreshed_once_however_many_pull_with_it() {
    needs_a_platform!();
    let scene = Scene::new("remember = \"0s\"");
    for token in ["jwt-1", "jwt-2"] {
        scene.platform.user(token, 1, &[RESEARCH]);
    }
    let mut request = scene.request("jwt-1", Some(RESEARCH));
    request["towerRefreshToken"] = json!("r1");
    let grants: Vec<Grant> = (0..8).map(|_| scene.tidegate.grant_of(&request)).collect();
    let order = json!({"refresh": "r1", "token": "jwt-2", "next": "r2"});
    scene.platform.order("refresh", order);
    scene.platform.order("revoke", json!({"token": "jwt-1"}));
    thread::scope(|scope| {
        for grant in &grants {
            scope.spawn(|| assert_eq!(scene.tags(grant), 200));
        }
    });
    assert_eq!(scene.platform.count("POST /oauth/access_token"), 1);
}

#[test]
fn a_short_lived_token_stays_refreshable_while_names_live() {
    needs_a_platform!();
    let setup = Setup::new().section(
        "[tokens]\nrefresh_interval = \"100ms\"\n[accounts]\nadmin = \
         \"1c8bfe8f801d79745c4631d09fff36c82aa37fc4cce4fc946683d7b336b63032\"",
    );
    let mut scene = Scene::with("", setup);
    let token = |number: u64| format!("jwt-{number}");
    for number in 0..4 {
        scene.platform.user(&token(number), 1, &[RESEARCH]);
    }
    let mut request = scene.request(&token(0), Some(RESEARCH));
    request["towerRefreshToken"] = json!("r-0");
    let grants = [0, 1].map(|_| scene.tidegate.grant_of(&request));
    let looks = |scene: &Scene, token: &str| {
        let authorization = format!("Bearer {token}");
        let calls = scene.platform.calls();
        let is_look = |call: &&Value| {
            call["path"] == "/user-info" && call["authorization"] == authorization.as_str()
        };
        calls.iter().filter(is_look).count()
    };
    // Each pair can be traded for the next one and is worth nothing then, and nobody pulls meanwhile.
    let expire = |scene: &Scene, number: u64| {
        let [from, next] = [number, number + 1].map(|number| format!("r-{number}"));
        let order = json!({"refresh": from, "token": token(number + 1), "next": next});
        scene.platform.order("refresh", order);
        let order = json!({"token": token(number)});
        scene.platform.order("revoke", order);
        wait_until("the next token", || looks(scene, &token(number + 1)) > 0);
        let spent = json!({"refresh": from, "status": 401});
        scene.platform.order("refresh", spent);
    };
    expire(&scene, 0);
    expire(&scene, 1);
    scene.tidegate.restart();
    expire(&scene, 2);
    for grant in &grants {
        assert_eq!(scene.tags(grant), 200);
    }
    // None for names that are revoked: another user's looks are the clock.
    let mut request = scene.request(BOB, Some(CLINIC));
    request["towerRefreshToken"] = json!("r-of-bob");
    let other = scene.tidegate.grant_of(&request);
    for grant in &grants {
        let path = format!("/container-token/{}", grant.token);
        let admin = [("Authorization", "Basic YWRtaW46bGV0bWVpbg==")];
        let response = scene.tidegate.request("DELETE", &path, &admin);
        assert_eq!(response.status(), 200, "{}", response.text());
    }
    let [before, of_other] = [token(3).as_str(), BOB].map(|token| looks(&scene, token));
    wait_until("several looks", || looks(&scene, BOB) > of_other + 5);
    // One may have been on its way.
    assert!(looks(&scene, &token(3)) <= before + 1);
    assert_eq!(scene.tags(&other), 200);
}

#[test]
fn a_platform_that_holds_on_to_a_former_key_is_understood() {
    needs_a_platform!();
    let scene = Scene::new("key_lease = \"0s\"");
    let former = scene.platform.sessions()[0].pairing_id();
    scene.platform.order("key", json!({"pairingId": former}));
    scene.platform.order("close", json!({}));
    scene
        .platform
        .wait_for_sessions("another key", 1, |session| {
            session.is_paired() && session.pairing_id() != former
        });
    scene.assert_pulls(&scene.grant(ADA, Some(RESEARCH)));
    assert_eq!(scene.logins(), ["research"]);
    // It was asked with the new one.
    let calls = scene.platform.calls();
    let asked = calls
        .iter()
        .find(|call| call["path"] == "/credentials/cred-1/keys")
        .expect("the keys were asked for");
    let current = scene.platform.sessions()[0].pairing_id();
    assert_eq!(asked["query"]["pairingId"], current.as_str());
}

#[test]
fn of_two_logins_for_one_host_the_longer_prefix_serves() {
    needs_a_platform!();
    let scene = Scene::new("");
    let host = scene.liar.name();
    let entry = |id: &str, registry: &str, user: &str| json!({"id": id, "registry": registry, "userName": user, "password": format!("of {user}")});
    let mut invalid = entry("invalid", &format!("{host}/acme/app"), "ada");
    invalid["status"] = json!("INVALID");
    let mut deleted = entry("deleted", &format!("{host}/acme/app"), "ada");
    deleted["deleted"] = json!(true);
    let list = [
        invalid,
        deleted,
        entry("other", &format!("http://{host}/"), "clinic"),
        entry("ours", &format!("{host}/acme/"), "research"),
        entry("odd", "*", "ada"),
    ];
    let order = json!({"workspace": RESEARCH, "list": list});
    scene.platform.order("credentials", order);
    scene.assert_pulls(&scene.grant(ADA, Some(RESEARCH)));
    assert_eq!(scene.logins(), ["research"]);
    // Only what is used was asked for.
    assert_eq!(scene.platform.count("GET /credentials/ours/keys"), 1);
    assert_eq!(scene.platform.count("GET /credentials/other/keys"), 0);
}

#[test]
fn five_hundred_first_pulls_ask_each_once() {
    needs_a_platform!();
    const CROWD: usize = 500;
    let mut scene = Scene::new("");
    let grant = scene.grant(ADA, Some(RESEARCH));
    // Forgets everything but the names.
    scene.tidegate.restart();
    wait_until("the Platform's next socket", || {
        scene.submit(BOB, Some(CLINIC)).0 == 200
    });
    scene.platform.order("forget", json!({}));
    let realm = scene.tokens.requests().len();
    let path = grant.manifest(&scene.image.manifest);
    let together = Barrier::new(CROWD);
    thread::scope(|scope| {
        for _ in 0..CROWD {
            scope.spawn(|| {
                let mut connection = scene.tidegate.connect();
                // All of them are open before the first asks.
                together.wait();
                connection.request("GET", &path, &[], b"");
                let manifest = connection.response("GET");
                assert_eq!(manifest.status(), 200, "{}", manifest.text());
            });
        }
    });
    let counts = ["GET /credentials", "GET /credentials/cred-1/keys"];
    assert_eq!(counts.map(|call| scene.platform.count(call)), [1, 1]);
    assert_eq!(scene.tokens.requests().len() - realm, 1);
}

#[test]
fn a_silent_platform_holds_up_nobody_whose_login_is_known() {
    needs_a_platform!();
    let scene = Scene::new("request_timeout = \"1s\"\ncall_timeout = \"2s\"");
    let grant = scene.grant(ADA, Some(RESEARCH));
    scene.assert_pulls(&grant);
    scene.platform.order("hold", json!({"path": "/"}));
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..64)
            .map(|number| {
                let scene = &scene;
                scope.spawn(move || {
                    let body = scene
                        .request(&format!("stranger-{number}"), None)
                        .to_string();
                    scene.tidegate.post_text("/v1alpha2/container", &body)
                })
            })
            .collect();
        wait_until("a question that is not answered", || {
            scene.platform.count("GET /user-info") > 1
        });
        // While they wait, all others go on.
        for _ in 0..20 {
            scene.assert_pulls(&grant);
            assert_eq!(scene.tags(&grant), 200);
        }
        let anonymous = json!({"containerImage": scene.liar.reference(REPOSITORY, "v1")});
        assert_eq!(scene.tidegate.submit(&anonymous).0, 400);
        for answer in waiting {
            let answer = answer.join().expect("no panic");
            assert_eq!(answer.status(), 503, "{}", answer.text());
            let wait = answer
                .header("Retry-After")
                .and_then(|it| it.parse::<u64>().ok());
            assert!(wait.is_some_and(|seconds| seconds > 0), "{}", answer.text());
        }
    });
    scene.platform.order("release", json!({"path": "/"}));
    scene.assert_pulls(&scene.grant(BOB, Some(CLINIC)));
}

/// However many stand in line when the first of them turns out to be wrong.
#[test]
fn who_guesses_access_tokens_has_the_platform_asked_for_few_of_them() {
    needs_a_platform!();
    const GUESSES: usize = 300;
    let scene = Scene::new("");
    scene.platform.order("hold", json!({"path": "/"}));
    let statuses = thread::scope(|scope| {
        let guesses: Vec<_> = (0..GUESSES)
            .map(|number| {
                let body = scene.request(&format!("guess-{number}"), None).to_string();
                let tidegate = &scene.tidegate;
                scope.spawn(move || tidegate.post_text("/v1alpha2/container", &body).status())
            })
            .collect();
        wait_until("a line of guesses", || {
            scene.tidegate.metric("tidegate_connections") as usize >= GUESSES
        });
        scene.platform.order("release", json!({"path": "/"}));
        let statuses = guesses.into_iter().map(|it| it.join().expect("no panic"));
        statuses.collect::<Vec<_>>()
    });
    assert!(
        statuses.iter().all(|status| [401, 429].contains(status)),
        "{statuses:?}"
    );
    // 60 at once and one each second, and those that are asked about at the same time.
    let asked = scene.platform.count("GET /user-info");
    assert!(asked < 150, "{asked}");
}

#[test]
fn one_silent_platform_leaves_another_alone() {
    needs_a_platform!();
    const OTHER: &str = "https://other.test/api";
    let setup = Setup::new();
    let platforms = [FakePlatform::start(), FakePlatform::start()];
    let tidegate = setup
        .section(&format!(
            "[platform]\nendpoints = [{ENDPOINT:?}, {OTHER:?}]\nallow_any_pairing_token = true"
        ))
        .start();
    for (platform, endpoint) in platforms.iter().zip([ENDPOINT, OTHER]) {
        platform.user(ADA, 1, &[]);
        platform.paired(tidegate.registry, endpoint, 1);
    }
    let [silent, other] = &platforms;
    silent.order("hold", json!({"path": "/"}));
    let submit = |token: &str, endpoint: &str| {
        let request = json!({
            "containerImage": "127.0.0.1:1/a/b", "towerAccessToken": token, "towerEndpoint": endpoint,
        });
        tidegate.post_text("/v1alpha2/container", &request.to_string())
    };
    thread::scope(|scope| {
        // More than there are threads for all Platforms together.
        let waiting: Vec<_> = (0..100)
            .map(|number| {
                let submit = &submit;
                scope.spawn(move || submit(&format!("stranger-{number}"), ENDPOINT))
            })
            .collect();
        wait_until("questions that are not answered", || {
            silent.count("GET /user-info") >= 4
        });
        // The image cannot be reached, and so its caller was recognized and is not the one who waits.
        let answer = submit(ADA, OTHER);
        assert_eq!(answer.status(), 400, "{}", answer.text());
        assert_eq!(other.count("GET /user-info"), 1);
        assert!(
            waiting.iter().all(|it| !it.is_finished()),
            "it was not first"
        );
        silent.order("release", json!({"path": "/"}));
        for answer in waiting {
            let status = answer.join().expect("no panic").status();
            // Guesses are counted.
            assert!([401, 429].contains(&status), "{status}");
        }
    });
}

#[test]
fn a_platform_is_asked_straight_where_the_operator_says_so() {
    needs_a_platform!();
    let authority = Authority::new();
    let platform = FakePlatform::start_tls(&authority.certificate, &authority.key);
    let accounts = Accounts::none().with("research", "of research", &[REPOSITORY]);
    let liar = Liar::start(Auth::Basic(accounts));
    liar.image(REPOSITORY, "v1", &[]);
    let endpoint = format!("https://{}/api", platform.api);
    let tidegate = Setup::new()
        .liar(&liar)
        .section(&format!(
            "[platform]\nendpoints = [{endpoint:?}]\nallow_any_pairing_token = true\ntransport = \"https\""
        ))
        .environment("SSL_CERT_FILE", &authority.certificate.display().to_string())
        .start();
    platform.user(ADA, 1, &[RESEARCH]);
    let name = liar.name();
    platform.workspace_login(RESEARCH, ["c", &name, "research", "of research"]);
    platform.paired(tidegate.registry, &endpoint, 1);
    tidegate.grant_of(&json!({
        "containerImage": liar.reference(REPOSITORY, "v1"), "towerAccessToken": ADA,
        "towerWorkspaceId": RESEARCH, "towerEndpoint": endpoint,
    }));
    assert_eq!(platform.count("GET /credentials/c/keys"), 1);
    assert_eq!(platform.sessions()[0].number("requests"), 0);
    // The redirect of somebody in between does not get the access token.
    let order = json!({"path": "/user-info", "status": 302, "body": "", "count": 1});
    platform.order("answer", order);
    platform.user(BOB, 2, &[RESEARCH]);
    let (status, body) = tidegate.submit(&json!({
        "containerImage": liar.reference(REPOSITORY, "v1"), "towerAccessToken": BOB,
        "towerWorkspaceId": RESEARCH,
    }));
    assert_eq!(status, 503, "{body}");
}

/// A certificate for this machine that nobody else trusts.
struct Authority {
    certificate: PathBuf,
    key: PathBuf,
    _folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names = vec!["127.0.0.1".to_owned()];
        let signed = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let (certificate, key) = (folder.path().join("it.crt"), folder.path().join("it.key"));
        fs::write(&certificate, signed.cert.pem()).expect("a writable folder");
        fs::write(&key, signed.signing_key.serialize_pem()).expect("a writable folder");
        Self {
            certificate,
            key,
            _folder: folder,
        }
    }
}

#[test]
fn a_pull_that_needs_a_silent_platform_is_told_to_come_back() {
    needs_a_platform!();
    let mut scene = Scene::new("request_timeout = \"1s\"\ncall_timeout = \"2s\"");
    let grant = scene.grant(ADA, Some(RESEARCH));
    scene
        .platform
        .order("hold", json!({"path": "/credentials"}));
    scene.tidegate.restart();
    let answer = scene.tidegate.get(&format!("{}/tags/list", grant.path));
    assert_eq!(answer.status(), 503, "{}", answer.text());
    assert_eq!(answer.error_code(), "UNAVAILABLE");
    assert!(answer.header("Retry-After").is_some());
    scene
        .platform
        .order("release", json!({"path": "/credentials"}));
    wait_until("the Platform's answer", || scene.tags(&grant) == 200);
}

#[test]
fn names_of_a_run_live_with_it_and_through_an_outage() {
    needs_a_platform!();
    let setup = Setup::new().section("[tokens]\nrun_interval = \"200ms\"");
    let scene = Scene::with("request_timeout = \"1s\"\ncall_timeout = \"1s\"", setup);
    let run = json!({"id": "run-1", "workspace": RESEARCH, "status": "RUNNING"});
    scene.platform.order("workflow", run);
    let mut request = scene.request(ADA, Some(RESEARCH));
    request["workflowId"] = json!("run-1");
    let (status, body) = scene.tidegate.submit(&request);
    assert_eq!(status, 200, "{body}");
    let expiration = body["expiration"].as_str().expect("an instant");
    let expiration = humantime::parse_rfc3339(expiration).expect("an instant");
    let left = expiration.duration_since(std::time::SystemTime::now());
    let left = left.expect("it is to come");
    let day = Duration::from_secs(24 * 3600);
    assert!(left > day && left <= 2 * day, "{left:?}");
    let grant = Grant::read(&body);
    let looks = || scene.platform.count("GET /workflow/run-1");
    wait_until("several looks at the run", || looks() > 2);
    // An outage is said once and ends nothing.
    scene.platform.order("hold", json!({"path": "/workflow"}));
    let unasked = || scene.tidegate.metric("tidegate_runs_unasked_total");
    wait_until("several looks without an answer", || unasked() > 2);
    let said = |line: &str| line.contains("does not say whether workflow runs go on");
    assert_eq!(scene.tidegate.log().count(said), 1);
    assert_eq!(scene.tags(&grant), 200);
    scene
        .platform
        .order("release", json!({"path": "/workflow"}));
    let before = looks();
    wait_until("another look", || looks() > before + 1);
    assert_eq!(scene.tidegate.metric("tidegate_runs_ended_total"), 0);
    let run = json!({"id": "run-1", "workspace": RESEARCH, "status": "SUCCEEDED"});
    scene.platform.order("workflow", run);
    wait_until("the end of the run", || {
        scene.tidegate.metric("tidegate_runs_ended_total") == 1
    });
    // It lapses later: requests/tests.rs knows when.
    assert_eq!(scene.tags(&grant), 200);
}
