//! Requests to a Platform through its pairing sockets: our half in this process, on a real listener, the Platform in its own.

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::{
    http::{accept_websocket, parse_request, percent_decode},
    platform::{KeyRecords, Options, Pairing, Request, Response, Transport, TransportError},
    seal::SealingKey,
    secret::Secret,
};

use crate::support::{
    fake_platform::{self, FakePlatform, PAIRING_TOKEN},
    programs::wait_until,
    server::{Next, Server},
};

const ENDPOINT: &str = "https://platform.test/api";
/// Further away than any test is willing to wait.
const FAR: Duration = Duration::from_secs(100);

struct Scene {
    pairing: Arc<Pairing>,
    keys: Arc<KeyRecords>,
    platform: FakePlatform,
    listener: Server,
    _state: TempDir,
}

impl Scene {
    fn new(change: impl FnOnce(&mut Options)) -> Self {
        let state = tempfile::tempdir().expect("a temporary folder");
        let mut options = Options {
            endpoints: vec![ENDPOINT.to_owned()],
            allow_any_pairing_token: true,
            ..Options::default()
        };
        options.request_timeout.0 = Duration::from_secs(60);
        change(&mut options);
        let sealing = SealingKey::load_or_create(&state.path().join("seal.key"))
            .unwrap_or_else(|error| panic!("{error}"));
        let keys = KeyRecords::open(state.path(), Arc::new(sealing), &options)
            .unwrap_or_else(|error| panic!("{error}"));
        let keys = Arc::new(keys);
        let pairing = Pairing::new(&options, Arc::clone(&keys));
        Self {
            listener: listen(Arc::clone(&pairing)),
            pairing,
            keys,
            platform: FakePlatform::start(),
            _state: state,
        }
    }

    fn paired(self, sessions: usize) -> Self {
        self.platform.user("ada", 1, &[7]);
        self.platform
            .workspace_login(7, ["c1", "quay.io", "robot", "sesame"]);
        self.platform.paired(self.address(), ENDPOINT, sessions);
        self
    }

    fn address(&self) -> SocketAddr {
        self.listener.address
    }

    fn exchange(&self, request: &Request) -> Result<Response, TransportError> {
        self.pairing
            .exchange(ENDPOINT, request, Instant::now() + FAR)
    }

    fn get(&self, path: &str) -> Value {
        let response = self.exchange(&get(path));
        let response = response.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(response.status, 200, "{path}");
        serde_json::from_str(response.body.expose()).expect("JSON")
    }

    fn behave(&self, how: Value) {
        self.platform.order("behave", how);
    }
}

/// What the product's listener does, as far as this is concerned.
fn listen(pairing: Arc<Pairing>) -> Server {
    Server::start_on("127.0.0.1", move |request, stream| {
        let mut text = format!("GET {} HTTP/1.1\r\n", request.target);
        for (name, value) in &request.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let parsed = parse_request(text.as_bytes()).expect("a good head");
        let (head, _) = parsed.expect("a whole head");
        let accept = accept_websocket(&head).expect("a handshake");
        let query = head.query().expect("a query");
        let endpoint = query.strip_prefix("endpoint=").and_then(percent_decode);
        let token = Secret::new(PAIRING_TOKEN.to_owned());
        let admission = pairing
            .admit(&endpoint.expect("an endpoint"), token)
            .unwrap_or_else(|refusal| panic!("{refusal}"));
        write!(
            stream,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )?;
        let own = stream.try_clone()?;
        own.set_nonblocking(true)?;
        admission.open(Box::new(own))?;
        Ok(Next::Close)
    })
}

fn get(path: &str) -> Request {
    Request {
        method: "GET",
        url: format!("{ENDPOINT}{path}"),
        authorization: Some(Secret::new("Bearer ada".to_owned())),
        body: None,
    }
}

#[test]
fn an_api_call_goes_through_the_socket_and_its_secrets_are_decrypted() {
    if !fake_platform::is_here() {
        return;
    }
    let scene = Scene::new(|_| {}).paired(1);
    assert_eq!(scene.get("/user-info")["user"]["id"], 1);
    let calls = scene.platform.calls();
    assert_eq!(calls[0]["authorization"], "Bearer ada", "{calls:?}");
    let registry = |path: &str| scene.get(path)["credentials"][0]["keys"]["registry"].clone();
    scene
        .platform
        .personal_login(1, ["c2", "ghcr.io", "ada", "of her own"]);
    assert_eq!(registry("/credentials?workspaceId=7"), "quay.io");
    assert_eq!(registry("/credentials"), "ghcr.io");
    let pairing_id = scene.keys.pairing_id(ENDPOINT).expect("it has paired");
    let keys = scene.get(&format!(
        "/credentials/c1/keys?pairingId={pairing_id}&workspaceId=7"
    ));
    let packet = keys["keys"].as_str().expect("a packet");
    let plain = scene.keys.decrypt(ENDPOINT, packet).expect("our packet");
    let login: Value = serde_json::from_str(plain.expose()).expect("JSON");
    assert_eq!(login["userName"], "robot");
    assert_eq!(login["password"], "sesame");

    let mut stranger = get("/user-info");
    stranger.authorization = Some(Secret::new("Bearer eve".to_owned()));
    assert_eq!(
        scene.exchange(&stranger).map(|response| response.status),
        Ok(401)
    );

    scene.platform.order(
        "refresh",
        json!({"refresh": "r & 1", "token": "new", "next": "r2"}),
    );
    let refresh = Request {
        method: "POST",
        url: format!("{ENDPOINT}/oauth/access_token"),
        authorization: None,
        body: Some((
            "application/x-www-form-urlencoded",
            Secret::new("grant_type=refresh_token&refresh_token=r+%26+1".to_owned()),
        )),
    };
    let response = scene.exchange(&refresh).expect("an answer");
    let cookies: Vec<_> = response.field("set-cookie").map(Secret::expose).collect();
    assert!(
        cookies.iter().any(|cookie| cookie.starts_with("JWT=new;")),
        "{cookies:?}"
    );
    assert!(
        cookies
            .iter()
            .any(|cookie| cookie.starts_with("JWT_REFRESH_TOKEN=r2;")),
        "{cookies:?}"
    );
}

#[test]
fn large_and_fragmented_answers_arrive_whole() {
    if !fake_platform::is_here() {
        return;
    }
    let scene = Scene::new(|_| {}).paired(1);
    for (size, fragment) in [
        (300 << 10, 0),
        (2 << 20, 0),
        (300 << 10, 1000),
        (2 << 20, 65_536),
    ] {
        scene.behave(json!({"fragment": fragment}));
        scene
            .platform
            .order("pad", json!({"path": "/credentials", "bytes": size}));
        let padding = scene.get("/credentials?workspaceId=7")["padding"].clone();
        let padding = padding.as_str().expect("it is padded");
        assert_eq!(padding.len(), size, "{fragment}");
        assert!(padding.bytes().all(|byte| byte == b'x'));
    }
    assert_eq!(scene.platform.sessions()[0].number("opened"), 1);
}

#[test]
fn an_answer_above_the_bound_ends_the_session_and_the_call() {
    if !fake_platform::is_here() {
        return;
    }
    let bound = |options: &mut Options| {
        options.max_message_size = tidegate::units::ByteSize(64 << 10);
    };
    let scene = Scene::new(bound).paired(1);
    scene
        .platform
        .order("pad", json!({"path": "/credentials", "bytes": 65_536}));
    // Not asked again: it would only end another session.
    let outcome = scene.exchange(&get("/credentials?workspaceId=7"));
    let Err(TransportError::Unreachable { cause, .. }) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(cause.contains("max_message_size"), "{cause}");
    scene
        .platform
        .wait_for_sessions("its return", 1, |session| {
            session.is_paired() && session.number("opened") == 2
        });
    assert_eq!(scene.platform.sessions()[0].number("closeCode"), 1009);
    assert_eq!(scene.get("/user-info")["user"]["id"], 1);
}

#[test]
fn answers_find_their_requests_in_any_order_and_through_any_session() {
    if !fake_platform::is_here() {
        return;
    }
    const CALLERS: u64 = 24;
    let scene = Scene::new(|_| {}).paired(3);
    for caller in 100..100 + CALLERS {
        scene.platform.user(&format!("token-{caller}"), caller, &[]);
    }
    // Eight each, by turns; and each session answers the last first.
    scene.behave(json!({"batch": CALLERS / 3, "noise": true}));
    let start = Barrier::new(CALLERS as usize);
    thread::scope(|scope| {
        for caller in 100..100 + CALLERS {
            let (scene, start) = (&scene, &start);
            scope.spawn(move || {
                let mut request = get("/user-info");
                request.authorization = Some(Secret::new(format!("Bearer token-{caller}")));
                start.wait();
                let response = scene.exchange(&request).expect("an answer");
                let body: Value = serde_json::from_str(response.body.expose()).expect("JSON");
                assert_eq!(body["user"]["id"], caller);
            });
        }
    });
    for session in scene.platform.sessions() {
        assert_eq!(session.number("requests"), CALLERS / 3);
    }
}

#[test]
fn without_a_session_the_answer_is_there_at_once() {
    if !fake_platform::is_here() {
        return;
    }
    let mut scene = Scene::new(|_| {});
    let not_paired = || {
        Err(TransportError::NotPaired {
            endpoint: ENDPOINT.to_owned(),
        })
    };
    let status = |scene: &Scene| {
        scene
            .exchange(&get("/user-info"))
            .map(|response| response.status)
    };
    let started = Instant::now();
    assert_eq!(status(&scene), not_paired());
    scene = scene.paired(1);
    assert_eq!(status(&scene), Ok(200));
    // Another endpoint is another Platform, even with a slash more.
    let with_slash = format!("{ENDPOINT}/");
    let outcome = scene
        .pairing
        .exchange(&with_slash, &get("/user-info"), started + FAR);
    assert!(
        matches!(outcome, Err(TransportError::NotPaired { .. })),
        "{outcome:?}"
    );
    scene.platform.order("close", json!({"stay": true}));
    wait_until("the end of the session", || status(&scene) == not_paired());
    scene.platform.kill();
    scene.platform.restart();
    assert_eq!(status(&scene), not_paired());
    scene = scene.paired(1);
    assert_eq!(status(&scene), Ok(200));
}

#[test]
fn a_session_that_breaks_is_replaced_by_another() {
    if !fake_platform::is_here() {
        return;
    }
    let scene = Scene::new(|_| {}).paired(2);
    let request = get("/user-info");
    // Whichever is asked breaks; the other one has the answer.
    scene.behave(json!({"id": 0, "cut": 1}));
    for _ in 0..2 {
        assert_eq!(scene.get("/user-info")["user"]["id"], 1);
    }
    scene
        .platform
        .wait_for_sessions("both again", 2, |session| session.is_paired());
    // All break: the first that comes again has it.
    scene.behave(json!({"cut": 1}));
    assert_eq!(
        scene.exchange(&request).map(|response| response.status),
        Ok(200)
    );
    assert_eq!(scene.platform.count("GET /user-info"), 3);
}

#[test]
fn what_may_have_been_done_is_not_sent_again() {
    if !fake_platform::is_here() {
        return;
    }
    let scene = Scene::new(|_| {}).paired(2);
    scene.behave(json!({"cut": 1}));
    let refresh = Request {
        method: "POST",
        url: format!("{ENDPOINT}/oauth/access_token"),
        authorization: None,
        body: None,
    };
    let outcome = scene.exchange(&refresh);
    assert!(
        matches!(outcome, Err(TransportError::Unreachable { .. })),
        "{outcome:?}"
    );
    let sent: u64 = scene
        .platform
        .sessions()
        .iter()
        .map(|session| session.number("requests"))
        .sum();
    assert_eq!(sent, 1);
}

#[test]
fn a_silent_session_is_left_for_another_and_asked_last() {
    if !fake_platform::is_here() {
        return;
    }
    let short = |options: &mut Options| options.request_timeout.0 = Duration::from_millis(300);
    let scene = Scene::new(short).paired(2);
    scene.behave(json!({"id": 0, "swallow": 1000}));
    for _ in 0..6 {
        assert_eq!(scene.get("/user-info")["user"]["id"], 1);
    }
    let of_silent = scene.platform.sessions()[0].number("requests");
    assert!(
        of_silent <= 1,
        "{of_silent} requests went to a session that does not answer"
    );
    // With nobody else it is asked all the same, and the deadline ends it.
    scene.behave(json!({"swallow": 1000}));
    let deadline = Instant::now() + Duration::from_secs(1);
    let outcome = scene
        .pairing
        .exchange(ENDPOINT, &get("/user-info"), deadline);
    assert!(
        matches!(outcome, Err(TransportError::TimedOut { .. })),
        "{outcome:?}"
    );
}

#[test]
fn an_answer_that_comes_too_late_is_nobodys() {
    if !fake_platform::is_here() {
        return;
    }
    let scene = Scene::new(|_| {}).paired(1);
    scene.platform.user("bob", 2, &[]);
    scene.platform.order("hold", json!({"path": "/user-info"}));
    let deadline = Instant::now() + Duration::from_millis(300);
    let outcome = scene
        .pairing
        .exchange(ENDPOINT, &get("/user-info"), deadline);
    assert!(
        matches!(outcome, Err(TransportError::TimedOut { .. })),
        "{outcome:?}"
    );
    let mut of_bob = get("/user-info");
    of_bob.authorization = Some(Secret::new("Bearer bob".to_owned()));
    thread::scope(|scope| {
        let asking = scope.spawn(|| scene.exchange(&of_bob).expect("an answer"));
        wait_until("bob's call", || scene.platform.count("GET /user-info") == 2);
        scene
            .platform
            .order("release", json!({"path": "/user-info"}));
        let response = asking.join().expect("no panic");
        let body: Value = serde_json::from_str(response.body.expose()).expect("JSON");
        assert_eq!(body["user"]["id"], 2);
    });
}
