//! What registries do to pushes: break off, forget, refuse, answer early, say odd things.

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use tidegate::{
    oci::{Digest, TagOrDigest},
    units::HumanDuration,
    upstream::{Mount, Options, PushError},
};

use crate::support::{
    accounts::Accounts,
    push_target::{Fault, PushTarget},
    pushing::{Pushing, Source},
    token_server::TokenServer,
};

const LARGE: u64 = 20 << 20;
const MIB: usize = 1 << 20;

fn push(pushing: &Pushing, source: &mut Source) -> Result<(), PushError> {
    let (digest, size) = (source.digest, source.size);
    let source = Cell::new(Some(source));
    pushing.on_a_core(async |upstream, target| {
        let source = source.take().expect("it is pushed once");
        upstream
            .push_blob(target, &digest, size, None, source)
            .await
    })
}

/// Pushes a blob to a registry with these faults, and compares.
fn arrives(registry: &PushTarget, source: &mut Source) {
    let pushed = push(&Pushing::to(&registry.name()), source);
    pushed.unwrap_or_else(|error| panic!("{error}: {:?}", registry.told()));
    let blob = registry.blob(&source.digest.to_string());
    assert!(
        blob.as_deref() == Some(&source.bytes()[..]),
        "{:?}",
        registry.told()
    );
    assert_eq!(registry.open_uploads(), 0, "{:?}", registry.told());
}

fn fails(registry: &PushTarget, size: u64) -> PushError {
    let pushing = Pushing::to(&registry.name()).with_login("ada", "hunter2");
    let error = push(&pushing, &mut Source::of(size)).expect_err("a fault");
    for text in [error.to_string(), format!("{error:?}")] {
        for secret in ["hunter2", "hidden", "YWRhOmh1bnRlcjI"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    error
}

#[test]
fn what_broke_off_goes_on_where_the_registry_has_it() {
    let registry = PushTarget::open();
    registry.fault("PATCH", Fault::CutAfter(9 * MIB));
    registry.fault("PATCH", Fault::CutAfter(2 * MIB));
    let mut source = Source::of(LARGE);
    arrives(&registry, &mut source);
    let (first, second, end) = (9 * MIB, 11 * MIB, LARGE - 1);
    assert_eq!(
        registry.told(),
        [
            "POST".to_owned(),
            "PATCH".to_owned(),
            "GET".to_owned(),
            format!("PATCH {first}-{end}"),
            "GET".to_owned(),
            format!("PATCH {second}-{end}"),
            "PUT".to_owned()
        ]
    );
    assert_eq!(source.seeks, [0, first as u64, second as u64]);
}

#[test]
fn a_small_blob_that_broke_off_goes_on_too() {
    let registry = PushTarget::open();
    registry.fault("PUT", Fault::CutAfter(MIB));
    arrives(&registry, &mut Source::of(3 << 20));
    let told = registry.told();
    assert_eq!(told[..3], ["POST", "PUT", "GET"], "{told:?}");
    assert_eq!(told[3], format!("PATCH {MIB}-{}", (3 << 20) - 1));
}

#[test]
fn an_upload_that_is_not_known_any_more_begins_anew() {
    for fault in [
        Fault::status(404),
        Fault::says(404, "BLOB_UPLOAD_UNKNOWN", "gone"),
        Fault::says(400, "BLOB_UPLOAD_INVALID", "no"),
    ] {
        let registry = PushTarget::open();
        registry.fault("PATCH", fault);
        let pushed = push(&Pushing::to(&registry.name()), &mut Source::of(LARGE));
        pushed.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            registry.told(),
            ["POST", "PATCH", "HEAD", "POST", "PATCH", "PUT"]
        );
    }
}

#[test]
fn one_that_says_not_how_much_it_has_begins_anew_and_the_old_upload_is_cancelled() {
    for fault in [
        Fault::status(400),
        Fault::status(405),
        Fault::Say(204, vec![("Range".to_owned(), "0-0".to_owned())]),
        Fault::Say(204, vec![("Range".to_owned(), String::new())]),
    ] {
        let registry = PushTarget::open();
        registry.fault("PATCH", Fault::CutAfter(MIB));
        registry.fault("GET", fault);
        arrives(&registry, &mut Source::of(LARGE));
        let told = registry.told();
        assert!(told.contains(&"DELETE".to_owned()), "{told:?}");
        assert_eq!(
            told.iter().filter(|it| *it == "POST").count(),
            2,
            "{told:?}"
        );
    }
}

#[test]
fn a_blob_whose_answer_was_lost_is_not_sent_again() {
    let registry = PushTarget::open();
    registry.fault("PUT", Fault::CutBeforeAnswer);
    arrives(&registry, &mut Source::of(LARGE));
    assert_eq!(registry.told(), ["POST", "PATCH", "PUT", "GET", "HEAD"]);
}

#[test]
fn a_registry_that_breaks_off_each_time_is_given_up() {
    let registry = PushTarget::open();
    for _ in 0..10 {
        registry.fault("PATCH", Fault::CutAfter(0));
    }
    let error = fails(&registry, LARGE);
    assert!(matches!(error, PushError::Unreachable { .. }), "{error}");
    assert!(error.is_transient());
    let told = registry.told();
    assert_eq!(
        told.iter().filter(|it| *it == "PATCH").count(),
        3,
        "{told:?}"
    );
    assert_eq!(registry.open_uploads(), 0, "{told:?}");
}

#[test]
fn who_moves_on_is_not_given_up() {
    let registry = PushTarget::open();
    for _ in 0..10 {
        registry.fault("PATCH", Fault::CutAfter(MIB));
    }
    arrives(&registry, &mut Source::of(LARGE));
}

#[test]
fn a_token_that_ends_in_the_middle_is_renewed() {
    let accounts = Accounts::none().with("ada", "hunter2", &["acme/app"]);
    let tokens = Rc::new(TokenServer::start(accounts));
    let registry = PushTarget::start(tokens.realm(), tokens.issued());
    // Before the first part is asked for, and while it is on its way: the request that ends the upload is late then.
    let ending = Rc::clone(&tokens);
    let mut ends = vec![18 << 20, 0];
    let mut source = Source::of(LARGE).before_next(move |place| {
        if ends.last() == Some(&place) {
            ends.pop();
            ending.forget_issued();
        }
    });
    let pushing = Pushing::to(&registry.name()).with_login("ada", "hunter2");
    pushing.on_a_core(async |upstream, target| upstream.try_push(target).await.expect("a push"));
    push(&pushing, &mut source).unwrap_or_else(|error| panic!("{error}"));
    let blob = registry.blob(&source.digest.to_string());
    assert!(
        blob.as_deref() == Some(&source.bytes()[..]),
        "{:?}",
        registry.told()
    );
    let scopes: Vec<_> = tokens
        .requests()
        .iter()
        .filter_map(|request| request.query("scope"))
        .collect();
    assert!(scopes.len() >= 3, "{scopes:?}");
}

#[test]
fn an_answer_that_comes_early_is_read() {
    for (size, early) in [
        (LARGE, Fault::says(403, "DENIED", "not yours").early()),
        (1000, Fault::says(403, "DENIED", "not yours").early()),
        (8 << 20, Fault::says(403, "DENIED", "not yours").early()),
    ] {
        let registry = PushTarget::open();
        let method = if size == LARGE { "PATCH" } else { "PUT" };
        registry.fault(method, early.clone());
        registry.fault(method, early);
        let error = fails(&registry, size);
        assert!(
            matches!(error, PushError::Refused { .. }),
            "{size}: {error}"
        );
        assert!(error.to_string().contains("not yours"), "{error}");
        assert_eq!(registry.open_uploads(), 0, "{:?}", registry.told());
    }
}

#[test]
fn through_tls_an_early_answer_is_read_and_what_broke_off_goes_on() {
    let registry = PushTarget::open_tls();
    let refusal = Fault::says(405, "UNSUPPORTED", "not now").early();
    registry.fault("PATCH", refusal);
    let pushing = Pushing::to(&registry.name()).trusting(registry.ca_file());
    let error = push(&pushing, &mut Source::of(LARGE)).expect_err("a fault");
    assert!(matches!(error, PushError::ReadOnly { .. }), "{error}");
    assert!(error.to_string().contains("not now"), "{error}");
    registry.fault("PATCH", Fault::CutAfter(9 * MIB));
    let mut source = Source::of(LARGE);
    push(&pushing, &mut source).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(source.seeks, [0, 9 << 20]);
    let blob = registry.blob(&source.digest.to_string());
    assert!(
        blob.as_deref() == Some(&source.bytes()[..]),
        "{:?}",
        registry.told()
    );
}

#[test]
fn of_a_part_that_is_answered_early_only_what_is_said_is_there() {
    let registry = PushTarget::open();
    let early = |location: &str| Fault::status(202).early().with("Location", location);
    registry.fault(
        "PATCH",
        early("/v2/acme/app/blobs/uploads/u1?_state=hidden%2b0%2Fx"),
    );
    let mut source = Source::of(LARGE);
    push(&Pushing::to(&registry.name()), &mut source).unwrap_or_else(|error| panic!("{error}"));
    let blob = registry.blob(&source.digest.to_string());
    assert!(
        blob.as_deref() == Some(&source.bytes()[..]),
        "{:?}",
        registry.told()
    );
}

#[test]
fn a_busy_registry_is_waited_for_and_who_is_to_come_back_late_is_told() {
    for method in ["POST", "PATCH", "PUT"] {
        let registry = PushTarget::open();
        registry.fault(method, Fault::status(429).with("Retry-After", "0"));
        registry.fault(method, Fault::status(503));
        let pushed = push(&Pushing::to(&registry.name()), &mut Source::of(LARGE));
        pushed.unwrap_or_else(|error| panic!("{method}: {error}: {:?}", registry.told()));
        for status in [429, 503] {
            let registry = PushTarget::open();
            registry.fault(method, Fault::status(status).with("Retry-After", "3600"));
            let error = fails(&registry, LARGE);
            assert!(error.is_transient(), "{method}: {error}");
            assert_eq!(
                error.retry_after(),
                Some(Duration::from_secs(3600)),
                "{error}"
            );
            assert_eq!(registry.open_uploads(), 0, "{:?}", registry.told());
        }
    }
}

#[test]
fn a_full_registry_is_told_from_a_broken_one() {
    for fault in [
        Fault::status(507),
        Fault::says(500, "UNKNOWN", "write /data/x: no space left on device"),
        Fault::says(403, "DENIED", "Quota has been exceeded on namespace"),
    ] {
        for method in ["POST", "PATCH", "PUT"] {
            let registry = PushTarget::open();
            // To whoever has shown no login 403 may mean that.
            registry.fault(method, fault.clone());
            registry.fault(method, fault.clone());
            let error = fails(&registry, LARGE);
            assert!(matches!(error, PushError::Full { .. }), "{method}: {error}");
            assert!(error.to_string().contains("free space"), "{error}");
            assert!(!error.is_transient());
        }
    }
}

#[test]
fn words_that_repeat_an_uploads_state_are_left_out() {
    for words in ["no: _state=hidden%2b0%2Fx", "no: hidden+0/x is old"] {
        let registry = PushTarget::open();
        registry.fault("PATCH", Fault::says(409, "CONFLICT", words));
        let error = fails(&registry, LARGE);
        assert!(
            matches!(error, PushError::Failed { status: 409, .. }),
            "{error}"
        );
    }
}

#[test]
fn a_manifests_type_cannot_add_to_the_head() {
    let registry = PushTarget::open();
    Pushing::to(&registry.name()).on_a_core(async |upstream, target| {
        let version: TagOrDigest = "v1".parse().expect("a tag");
        let bytes = Bytes::from_static(b"{}");
        for media_type in ["", "a/b\r\nX: y"] {
            let pushed = upstream
                .push_manifest(target, &version, &Digest::of(&bytes), media_type, &bytes)
                .await;
            assert!(matches!(pushed, Err(PushError::Source(_))), "{media_type}");
        }
    });
    assert!(registry.told().is_empty());
}

#[test]
fn what_is_missing_is_named() {
    for (fault, part) in [
        (Fault::says(405, "UNSUPPORTED", "mirror"), "read-only"),
        (Fault::says(403, "DENIED", "pull only"), "right to push"),
        (
            Fault::says(404, "NAME_UNKNOWN", "no such repository"),
            "create it there",
        ),
        (Fault::status(404), "create it there"),
        (Fault::status(413), "raise the limit"),
    ] {
        let registry = PushTarget::open();
        registry.fault("POST", fault.clone());
        registry.fault("POST", fault);
        let error = fails(&registry, 1000);
        let text = error.to_string();
        assert!(
            text.contains(part) && text.contains(&registry.name()),
            "{text}"
        );
        assert!(!error.is_transient(), "{text}");
    }
}

#[test]
fn a_registry_that_takes_no_large_bodies_gets_parts() {
    let registry = PushTarget::open();
    registry.limit_bodies(40 << 20);
    arrives(&registry, &mut Source::of(70 << 20));
    let told = registry.told();
    let parts: Vec<_> = told.iter().filter(|it| it.starts_with("PATCH ")).collect();
    assert_eq!(
        parts,
        [
            "PATCH 0-33554431",
            "PATCH 33554432-67108863",
            "PATCH 67108864-73400319"
        ],
        "{told:?}"
    );
}

#[test]
fn parts_are_as_large_as_the_registry_wants_them() {
    let registry = PushTarget::open();
    registry.limit_bodies(36 << 20);
    let least = |status| {
        Fault::Say(
            status,
            vec![("OCI-Chunk-Min-Length".to_owned(), "36700160".to_owned())],
        )
    };
    registry.fault("POST", least(202));
    registry.fault("POST", least(202));
    arrives(&registry, &mut Source::of(60 << 20));
    let told = registry.told();
    assert!(told.contains(&"PATCH 0-36700159".to_owned()), "{told:?}");
}

#[test]
fn a_registry_that_has_something_else_is_not_believed() {
    let other = format!("sha256:{}", "0".repeat(64));
    let says = || {
        Fault::Say(
            201,
            vec![("Docker-Content-Digest".to_owned(), other.clone())],
        )
    };
    for size in [1000, LARGE] {
        let registry = PushTarget::open();
        registry.fault("PUT", says());
        let error = fails(&registry, size);
        assert!(matches!(error, PushError::Mismatch { .. }), "{error}");
        let registry = PushTarget::open();
        registry.fault("PUT", Fault::says(400, "DIGEST_INVALID", "it is another"));
        let error = fails(&registry, size);
        assert!(matches!(error, PushError::Mismatch { .. }), "{error}");
    }
    let registry = PushTarget::open();
    registry.fault("PUT", says());
    Pushing::to(&registry.name()).on_a_core(async |upstream, target| {
        let version: TagOrDigest = "v1".parse().expect("a tag");
        let bytes = Bytes::from_static(b"{}");
        let pushed = upstream
            .push_manifest(
                target,
                &version,
                &Digest::of(&bytes),
                "application/json",
                &bytes,
            )
            .await;
        assert!(matches!(pushed, Err(PushError::Mismatch { .. })));
    });
}

#[test]
fn odd_answers_to_a_part_are_taken_for_what_they_are() {
    let range =
        |status, range: &str| Fault::Say(status, vec![("Range".to_owned(), range.to_owned())]);
    for (fault, expected) in [
        (range(202, "0-0"), vec!["POST", "PATCH", "PUT"]),
        (range(202, ""), vec!["POST", "PATCH", "PUT"]),
        (range(202, "0-20971520"), vec!["POST", "PATCH", "PUT"]),
        (range(202, "bytes=0-20971519"), vec!["POST", "PATCH", "PUT"]),
        (range(204, "0-20971519"), vec!["POST", "PATCH", "PUT"]),
        // As Amazon's; and this one has no blob yet.
        (range(201, ""), vec!["POST", "PATCH", "HEAD", "PUT"]),
    ] {
        let registry = PushTarget::open();
        registry.fault("PATCH", fault);
        arrives(&registry, &mut Source::of(LARGE));
        assert_eq!(registry.told(), expected);
    }
}

#[test]
fn an_upload_elsewhere_sees_no_login() {
    let storage = PushTarget::open();
    let registry = PushTarget::open();
    // The storage knows this upload, and the registry only names it.
    storage.fault("POST", Fault::status(202));
    let pushing = Pushing::to(&registry.name())
        .and(&storage.name())
        .with_login("ada", "hunter2");
    registry.fault(
        "POST",
        Fault::status(401).with("WWW-Authenticate", "Basic realm=\"x\""),
    );
    registry.uploads_at(&format!("http://{}", storage.name()));
    let error = push(&pushing, &mut Source::of(LARGE)).expect_err("the storage has no such upload");
    assert!(error.is_transient(), "{error}");
    let shown = |target: &PushTarget| {
        let requests = target.requests();
        requests
            .iter()
            .filter(|it| it.header("authorization").is_some())
            .count()
    };
    assert!(shown(&registry) > 0, "{:?}", registry.told());
    assert!(
        storage.told().contains(&"PATCH".to_owned()),
        "{:?}",
        storage.told()
    );
    assert_eq!(shown(&storage), 0, "{:?}", storage.told());
}

#[test]
fn a_part_follows_a_redirect_with_its_body() {
    for (method, status) in [("PATCH", 307), ("PUT", 308)] {
        let registry = PushTarget::open();
        let source = &mut Source::of(LARGE);
        let next = match method {
            "PATCH" => "/v2/acme/app/blobs/uploads/u1?_state=hidden%2b0%2Fx".to_owned(),
            _ => format!(
                "/v2/acme/app/blobs/uploads/u1?_state=hidden%2b1%2Fx&digest={}",
                source.digest
            ),
        };
        registry.fault(method, Fault::status(status).with("Location", next));
        arrives(&registry, source);
    }
}

#[test]
fn a_redirect_of_a_post_is_not_followed_by_anything_but_a_post() {
    let registry = PushTarget::open();
    registry.fault("POST", Fault::status(303).with("Location", "/login"));
    let error = fails(&registry, 1000);
    assert!(matches!(error, PushError::Malformed { .. }), "{error}");
    assert_eq!(registry.told(), ["POST"]);
}

#[test]
fn a_source_that_ends_early_is_not_the_registrys_fault() {
    let registry = PushTarget::open();
    for size in [1000, LARGE] {
        let mut source = Source::of(size).claiming(size + 1);
        let error = push(&Pushing::to(&registry.name()), &mut source).expect_err("a short source");
        assert!(matches!(error, PushError::Source(_)), "{error}");
    }
    assert_eq!(registry.open_uploads(), 0, "{:?}", registry.told());
}

#[test]
fn a_registry_that_takes_no_byte_is_given_up() {
    let registry = PushTarget::open();
    registry.fault("PATCH", Fault::Stall);
    let mut pushing = Pushing::to(&registry.name());
    pushing.options = Options {
        body_timeout: HumanDuration(Duration::from_millis(300)),
        retry_count: 0,
        ..Options::default()
    };
    let error = push(&pushing, &mut Source::of(64 << 20)).expect_err("a stalled registry");
    assert!(matches!(error, PushError::Unreachable { .. }), "{error}");
}

/// In the middle of a piece, and with nothing of it taken, and while it is silent after the last byte.
#[test]
fn what_is_given_up_ends_at_once_and_is_cancelled() {
    for (size, method) in [(64 << 20, "PATCH"), (8 << 20, "PUT"), (1000, "PUT")] {
        let registry = Rc::new(PushTarget::open());
        registry.fault(method, Fault::Stall);
        let seen = Rc::clone(&registry);
        let mut source =
            Source::of(size).given_up_when(move || seen.told().iter().any(|told| told == method));
        let mut pushing = Pushing::to(&registry.name());
        let patience = HumanDuration(Duration::from_secs(3600));
        pushing.options = Options {
            body_timeout: patience,
            response_timeout: patience,
            ..Options::default()
        };
        let error = push(&pushing, &mut source).expect_err("it was given up");
        assert!(matches!(error, PushError::Source(_)), "{size}: {error}");
        assert_eq!(registry.told(), ["POST", method, "DELETE"], "{size}");
        assert_eq!(registry.open_uploads(), 0, "{size}");
    }
}

#[test]
fn a_mount_that_is_not_to_be_had_becomes_an_upload() {
    for fault in [
        Fault::status(404),
        Fault::status(405),
        Fault::says(400, "UNSUPPORTED", "no mounts"),
        Fault::says(403, "DENIED", "not from there"),
    ] {
        let registry = PushTarget::open();
        registry.fault("POST", fault);
        Pushing::to(&registry.name()).on_a_core(async |upstream, target| {
            let mut source = Source::of(1000);
            let digest = source.digest;
            let from = "acme/base".parse().expect("a repository");
            let mount = upstream.mount_blob(target, &digest, &from).await;
            let Ok(Mount::Opened(session)) = mount else {
                panic!("there is nothing to mount");
            };
            let pushed = upstream.push_blob(target, &digest, 1000, Some(session), &mut source);
            pushed.await.unwrap_or_else(|error| panic!("{error}"));
            // Now it is there, and a registry that mounts says so without an address.
            let mount = upstream.mount_blob(target, &digest, &from).await;
            assert!(matches!(mount, Ok(Mount::Mounted)));
        });
        assert_eq!(registry.told(), ["POST", "POST", "PUT", "POST"]);
    }
}

#[test]
fn a_challenge_cannot_talk_a_push_into_another_repository() {
    let accounts = Accounts::none().with("ada", "hunter2", &["*"]);
    let tokens = TokenServer::start(accounts);
    for scope in [
        "repository:victim/app:pull,push",
        "repository:acme/app:*",
        "registry:catalog:*",
        "repository:acme/app:pull,push repository:victim/app:push",
    ] {
        let registry = PushTarget::open();
        let challenge = format!(
            r#"Bearer realm="{}",service="registry.test",scope="{scope}""#,
            tokens.realm()
        );
        registry.fault(
            "POST",
            Fault::status(401).with("WWW-Authenticate", challenge),
        );
        let pushing = Pushing::to(&registry.name()).with_login("ada", "hunter2");
        push(&pushing, &mut Source::of(1000)).unwrap_or_else(|error| panic!("{error}"));
        let asked = tokens.requests().pop().expect("a token was asked for");
        assert_eq!(
            asked.queries("scope"),
            ["repository:acme/app:pull,push"],
            "{scope}"
        );
    }
}
