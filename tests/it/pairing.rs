//! A Seqera Platform opens its socket to us, gets its key, and stays; nobody else does.

use serde_json::json;

use crate::support::{
    authority::Authority,
    content::sha256_hex,
    fake_platform::{self, FakePlatform, PAIRING_TOKEN, Session},
    http::{self, Connection},
    programs::wait_until,
    server::{Next, Server, respond},
    tidegate::{Setup, Tidegate},
};

const ENDPOINT: &str = "https://platform.test/api";
const SOCKETS: &str = "tidegate_pairing_sockets";

fn setup(more: &str) -> Setup {
    let hash = sha256_hex(PAIRING_TOKEN);
    Setup::new().section(&format!(
        "[platform]\nendpoints = [{ENDPOINT:?}, \"https://other.test\"]\n\
         pairing_tokens = {{ {ENDPOINT:?} = [{hash:?}] }}\n{more}"
    ))
}

/// The handshake by hand; `endpoint` is percent-encoded.
fn handshake(tidegate: &Tidegate, path: &str) -> Connection {
    let mut connection = tidegate.connect();
    connection.request("GET", path, &UPGRADE, b"");
    connection
}

const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

fn path(token: &str, endpoint: &str) -> String {
    let endpoint = endpoint.replace(':', "%3A").replace('/', "%2F");
    format!("/pairing/tower/token/{token}?endpoint={endpoint}")
}

/// Past the handshake and the pairing response.
fn open_socket(tidegate: &Tidegate) -> Connection {
    let mut connection = handshake(tidegate, &path(PAIRING_TOKEN, ENDPOINT));
    let head = connection.head().expect("an answer");
    assert_eq!(head.status, 101);
    assert_eq!(
        head.header("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert_eq!(head.header("content-length"), None);
    connection
}

/// One frame as a client sends it; a mask of zeros changes nothing.
fn frame(first: u8, announced: u64, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 0x80 | 127];
    frame.extend(announced.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

#[test]
fn a_platform_pairs_and_its_heartbeats_are_answered() {
    if !fake_platform::is_here() {
        return;
    }
    let tidegate = setup("").start();
    let platform = FakePlatform::start();
    platform.paired(tidegate.registry, ENDPOINT, 2);
    let sessions = platform.sessions();
    assert_eq!(sessions[0].pairing_id(), sessions[1].pairing_id());
    assert_eq!(sessions[0].public_key(), sessions[1].public_key());
    platform.order("heartbeat", json!({}));
    platform.wait_for_sessions("replies", 2, |session| session.number("heartbeats") == 1);
    assert_eq!(tidegate.metric(SOCKETS), 2);
    // What it does not know, it passes over.
    platform.order("send", json!({"text": "{not json"}));
    platform.order("send", json!({"text": r#"{"@type":"of-tomorrow"}"#}));
    platform.order("send", json!({"binary": "AAEC"}));
    platform.order(
        "send",
        json!({"pieces": [r#"{"@type":"pairing-"#, r#"heartbeat"}"#]}),
    );
    platform.wait_for_sessions("replies", 2, |session| session.number("heartbeats") == 2);
    platform.order("close", json!({"stay": true}));
    wait_until("the end of the sockets", || tidegate.metric(SOCKETS) == 0);
    assert_eq!(platform.sessions()[0].number("opened"), 1);
    let log = tidegate.log().text();
    assert!(!log.contains(PAIRING_TOKEN), "{log}");
}

#[test]
fn only_a_listed_endpoint_with_its_own_token_is_paired() {
    let tidegate = setup("").start();
    let refused = |path: &str, status: u16| {
        let mut connection = handshake(&tidegate, path);
        let response = connection.response("GET");
        assert_eq!(response.status(), status, "{path}: {}", response.text());
        response.text()
    };
    refused(&path("another-token", ENDPOINT), 403);
    refused(&path(PAIRING_TOKEN, &format!("{ENDPOINT}/")), 403);
    refused(&path(PAIRING_TOKEN, "https://platform.test"), 403);
    // Another Platform's token is another's.
    refused(&path(PAIRING_TOKEN, "https://other.test"), 403);
    refused("/pairing/tower/token/x", 400);
    refused("/pairing/tower/token/?endpoint=x", 405);
    refused("/pairing/other/token/x?endpoint=x", 404);
    let good = path(PAIRING_TOKEN, ENDPOINT);
    for (method, index, value, status) in [
        ("GET", 0, "close", 426),
        ("GET", 1, "h2c", 426),
        ("GET", 2, "8", 426),
        ("GET", 3, "short", 400),
        ("POST", 0, "Upgrade", 405),
        ("HEAD", 0, "Upgrade", 405),
    ] {
        let mut fields = UPGRADE;
        fields[index].1 = value;
        let response = http::request(tidegate.registry, method, &good, &fields, b"");
        assert_eq!(response.status(), status, "{method} {:?}", fields[index]);
    }
    assert_eq!(tidegate.metric(SOCKETS), 0);
    assert_eq!(tidegate.metric("tidegate_pairings_refused_total"), 4);
    // The operator sees what would let it in, and nobody sees the token.
    let hash = sha256_hex("another-token");
    let line = format!("pairing_tokens = {{ {ENDPOINT:?} = [{hash:?}] }}");
    let log = tidegate.log();
    assert!(log.wait_for(|logged| logged.contains(&line)).is_some());
    for token in ["another-token", PAIRING_TOKEN] {
        assert_eq!(log.count(|logged| logged.contains(token)), 0, "{token}");
    }
}

#[test]
fn guessing_tokens_is_slowed_down() {
    let tidegate = setup("").start();
    let mut connection = tidegate.connect();
    let statuses: Vec<u16> = (0..70)
        .map(|number| {
            connection.request(
                "GET",
                &path(&format!("guess-{number}"), ENDPOINT),
                &UPGRADE,
                b"",
            );
            connection.response("GET").status()
        })
        .collect();
    assert_eq!(statuses[0], 403);
    assert!(statuses.contains(&429), "{statuses:?}");
    open_socket(&tidegate);
}

#[test]
fn the_key_survives_restarts_of_both_sides() {
    if !fake_platform::is_here() {
        return;
    }
    let mut tidegate = setup("").start();
    let mut platform = FakePlatform::start();
    platform.paired(tidegate.registry, ENDPOINT, 1);
    let before = platform.sessions().remove(0);
    tidegate.restart();
    platform.wait_for_sessions("pairing again", 1, |session| {
        session.is_paired() && session.number("opened") == 2
    });
    platform.restart();
    platform.paired(tidegate.registry, ENDPOINT, 1);
    let after = platform.sessions().remove(0);
    assert_eq!(after.pairing_id(), before.pairing_id());
    assert_eq!(after.public_key(), before.public_key());
    let file = tidegate.home().join("state/pairing.keys");
    let kept = std::fs::read_to_string(file).expect("it was written");
    assert!(kept.contains(&before.pairing_id()) && !kept.contains(PAIRING_TOKEN));
}

#[test]
fn a_platform_that_comes_again_after_the_lease_gets_a_new_key() {
    if !fake_platform::is_here() {
        return;
    }
    let tidegate = setup("key_lease = \"0s\"").start();
    let platform = FakePlatform::start();
    platform.paired(tidegate.registry, ENDPOINT, 1);
    let before = platform.sessions().remove(0);
    platform.order("drop", json!({}));
    platform.wait_for_sessions("another key", 1, |session| {
        session.is_paired() && session.pairing_id() != before.pairing_id()
    });
    let after = platform.sessions().remove(0);
    assert_ne!(after.public_key(), before.public_key());
}

#[test]
fn a_heartbeat_without_a_key_sends_the_platform_for_a_new_one() {
    if !fake_platform::is_here() {
        return;
    }
    let tidegate = setup("key_lease = \"1s\"\nkey_retention = \"1s\"").start();
    let platform = FakePlatform::start();
    platform.paired(tidegate.registry, ENDPOINT, 1);
    let first = platform.sessions().remove(0);
    wait_until("another session", || {
        platform.order("heartbeat", json!({}));
        platform.sessions()[0].number("opened") > 1
    });
    platform.wait_for_sessions("another key", 1, |session| {
        session.is_paired() && session.pairing_id() != first.pairing_id()
    });
    assert_eq!(platform.sessions()[0].number("closeCode"), 1001);
}

#[test]
fn a_silent_socket_is_closed() {
    if !fake_platform::is_here() {
        return;
    }
    let tidegate = setup("session_timeout = \"1s\"").start();
    let platform = FakePlatform::start();
    platform.paired(tidegate.registry, ENDPOINT, 1);
    platform.wait_for_sessions("its end", 1, |session| session.number("closeCode") == 1001);
    assert!(
        tidegate
            .log()
            .wait_for(|line| line.contains("session_timeout"))
            .is_some()
    );
}

#[test]
fn a_platform_pairs_through_tls() {
    if !fake_platform::is_here() {
        return;
    }
    let authority = Authority::new();
    let tidegate = setup(&authority.section("")).start();
    let platform = FakePlatform::start();
    platform.order(
        "pair",
        json!({"url": format!("wss://{}", tidegate.registry), "endpoint": ENDPOINT, "token": PAIRING_TOKEN,
            "ca": authority.roots().join("ca.crt")}),
    );
    platform.wait_for_sessions("pairing", 1, Session::is_paired);
    // More than one record of TLS, and more than one read.
    let padding = "x".repeat(300 << 10);
    let long = json!({"padding": padding, "@type": "pairing-heartbeat"}).to_string();
    platform.order("send", json!({"text": long}));
    platform.wait_for_sessions("a reply", 1, |session| session.number("heartbeats") == 1);
    platform.order("close", json!({"stay": true}));
    wait_until("the end of the socket", || tidegate.metric(SOCKETS) == 0);
    // The next request on the listener is none of its business.
    let mut connection =
        Connection::open_tls(tidegate.registry, &authority.client).expect("a session");
    connection.request("GET", "/health", &[], b"");
    assert_eq!(connection.response("GET").status(), 200);
}

#[test]
fn there_are_only_so_many_sockets() {
    if !fake_platform::is_here() {
        return;
    }
    let tidegate = setup("max_sessions = 2").start();
    let platform = FakePlatform::start();
    platform.pair(tidegate.registry, ENDPOINT, 3);
    platform.wait_for_sessions("two sessions", 2, Session::is_paired);
    platform.wait_for_sessions("a refusal", 1, |session| {
        session.number("refusedStatus") == 503
    });
    assert_eq!(tidegate.metric(SOCKETS), 2);
    let open = platform.sessions();
    let open = open.iter().find(|session| session.is_paired());
    let id = open.expect("two are").0["id"].clone();
    platform.order("close", json!({"id": id, "stay": true}));
    platform.wait_for_sessions("all three", 3, |session| session.number("opened") == 1);
}

#[test]
fn a_hostile_peer_costs_only_itself() {
    if !fake_platform::is_here() {
        return;
    }
    let tidegate = setup("max_message_size = \"64KiB\"\nmax_sessions = 4").start();
    let platform = FakePlatform::start();
    platform.paired(tidegate.registry, ENDPOINT, 1);
    let (text, more, last) = (0x01, 0x00, 0x80);
    let mut unmasked = frame(0x81, 2, b"{}");
    unmasked[1] &= 0x7f;
    let mut masked_only_in_name = b"\x81\xfe".to_vec();
    masked_only_in_name.extend([0xff; 64]);
    for (what, bytes) in [
        ("no WebSocket", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("an unmasked frame", unmasked),
        ("a giant frame", frame(0x81, 1 << 62, b"{")),
        ("a frame above the bound", frame(0x81, 65_537, b"{")),
        ("a length of 2^64-1", frame(0x81, u64::MAX, b"")),
        ("reserved bits", frame(0xf1, 2, b"{}")),
        ("an unknown opcode", frame(0x8b, 2, b"{}")),
        ("a long ping", frame(0x89, 126, &[b'x'; 126])),
        ("a continuation of nothing", frame(last, 2, b"{}")),
        ("no UTF-8", frame(0x81, 2, b"\xff\xfe")),
        (
            "endless fragments",
            [
                frame(text, 1, b"{"),
                frame(more, 40_000, &[b' '; 40_000]).repeat(2),
            ]
            .concat(),
        ),
    ] {
        let mut connection = open_socket(&tidegate);
        connection.send(&bytes);
        wait_until(what, || tidegate.metric(SOCKETS) == 1);
    }
    // Who says no more, or goes away in the middle of something, is not waited for by others.
    let mut half = open_socket(&tidegate);
    half.send(b"\x81");
    let mut gone = open_socket(&tidegate);
    gone.send(frame(0x81, 60_000, b"{"));
    drop(gone);
    // A flood that reads no answer.
    let mut flood = open_socket(&tidegate);
    flood.send(frame(0x89, 100, &[b'x'; 100]).repeat(2000));
    platform.order("heartbeat", json!({}));
    platform.wait_for_sessions("a reply", 1, |session| session.number("heartbeats") == 1);
    drop((half, flood));
    wait_until("the end of the others", || tidegate.metric(SOCKETS) == 1);
    assert_eq!(platform.sessions()[0].number("opened"), 1);
    assert_eq!(tidegate.metric("tidegate_panics_total"), 0);
}

#[test]
fn an_idle_socket_takes_no_time() {
    let tidegate = setup("").start();
    let _socket = open_socket(&tidegate);
    let turns = || tidegate.turns_of_thread("pairing");
    let mut before = 0;
    wait_until("the session to sleep", || {
        let now = turns();
        std::mem::replace(&mut before, now) == now && now > 0
    });
    for _ in 0..100 {
        assert_eq!(tidegate.get("/health").status(), 200);
    }
    assert_eq!(turns(), before);
}

#[test]
fn a_license_server_is_asked_and_refuses_only_where_it_may() {
    if !fake_platform::is_here() {
        return;
    }
    let server = Server::start_on("127.0.0.1", |request, stream| {
        assert_eq!(
            request.query("product").as_deref(),
            Some("tower-enterprise")
        );
        let (status, body) = match request.query("token").as_deref() {
            Some("known") => (200, r#"{"id":"1","expiration":"2096-01-02T03:04:05Z"}"#),
            Some("expired") => (200, r#"{"id":"1","expiration":"2016-01-02T03:04:05Z"}"#),
            Some("broken") => (500, ""),
            _ => (404, ""),
        };
        respond(request, stream, status, &[], body.as_bytes())?;
        Ok(Next::Keep)
    });
    let url = format!("http://{}", server.address);
    for (strict, token, is_paired, logged) in [
        (true, "known", true, "has paired"),
        (true, "expired", true, "has expired"),
        (true, "broken", true, "cannot be asked"),
        (true, "unknown", false, "does not know"),
        (false, "unknown", true, "has paired"),
    ] {
        let hash = sha256_hex(token);
        let tidegate = Setup::new()
            .section(&format!(
                "[platform]\nendpoints = [{ENDPOINT:?}]\npairing_tokens = {{ {ENDPOINT:?} = [{hash:?}] }}\n\
                 license = {{ url = {url:?}, strict = {strict} }}"
            ))
            .start();
        let platform = FakePlatform::start();
        platform.order(
            "pair",
            json!({"url": format!("ws://{}", tidegate.registry), "endpoint": ENDPOINT, "token": token}),
        );
        platform.wait_for_sessions(token, 1, |session| match is_paired {
            true => session.is_paired(),
            false => session.number("closeCode") == 1008,
        });
        let log = tidegate.log();
        assert!(
            log.wait_for(|line| line.contains(logged)).is_some(),
            "{token}"
        );
    }
}

#[test]
fn without_a_token_list_nobody_pairs() {
    let section = format!("[platform]\nendpoints = [{ENDPOINT:?}]");
    let tidegate = Setup::new().section(&section).start();
    let mut connection = handshake(&tidegate, &path(PAIRING_TOKEN, ENDPOINT));
    assert_eq!(connection.response("GET").status(), 403);
    assert!(
        tidegate
            .log()
            .wait_for(|line| line.contains("no Platform can pair"))
            .is_some()
    );
    let tidegate = Setup::new()
        .section(&format!("{section}\nallow_any_pairing_token = true"))
        .start();
    open_socket(&tidegate);
}
