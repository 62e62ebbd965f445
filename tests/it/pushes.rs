//! Blobs and manifests reach a registry as they are, by the client that mirrors use.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use bytes::Bytes;
use serde_json::json;
use tidegate::{
    oci::{Digest, Repository, TagOrDigest},
    upstream::{Mount, PushError, Target, Upstream},
};

use crate::support::{
    accounts::Accounts,
    docker_registry::{DockerRegistry, Login, PASSWORD, USER},
    programs::require,
    push_target::PushTarget,
    pushing::{Pushing, Source},
    token_server::TokenServer,
};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Around the size up to which a blob goes in one request.
const SIZES: [u64; 5] = [0, 1, 100_000, 16 << 20, (16 << 20) + 1];

/// Pushes an image of these blobs, and reads it back.
async fn push_image(upstream: &Upstream, target: Target<'_>, sizes: &[u64]) {
    let mut layers = Vec::new();
    for &size in sizes {
        let mut source = Source::of(size);
        let digest = source.digest;
        assert!(!upstream.has_blob(target, &digest).await.expect("an answer"));
        upstream
            .push_blob(target, &digest, size, None, &mut source)
            .await
            .unwrap_or_else(|error| panic!("{size}: {error}"));
        assert!(upstream.has_blob(target, &digest).await.expect("an answer"));
        layers.push(json!({"mediaType": LAYER, "digest": digest.to_string(), "size": size}));
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
        "config": {"mediaType": CONFIG, "digest": layers[0]["digest"], "size": layers[0]["size"]},
    });
    let bytes = Bytes::from(manifest.to_string());
    let digest = Digest::of(&bytes);
    for version in ["v1".to_owned(), digest.to_string()] {
        let version: TagOrDigest = version.parse().expect("a version");
        let pushed = upstream
            .push_manifest(target, &version, &digest, MANIFEST, &bytes)
            .await
            .unwrap_or_else(|error| panic!("{version}: {error}"));
        assert_eq!(pushed.subject, None);
    }
    let source = tidegate::upstream::Source {
        registry: target.registry,
        repository: target.repository,
        login: target.login,
    };
    let read = upstream
        .manifest(source, &"v1".parse().expect("a tag"))
        .await;
    assert_eq!(read.expect("it was pushed").body, bytes);
    for &size in sizes {
        let digest = Source::of(size).digest;
        let read = upstream.whole_blob(source, &digest, 20 << 20).await;
        assert_eq!(read.expect("it was pushed").len() as u64, size);
    }
}

#[test]
fn an_image_reaches_a_real_registry() {
    require!("docker-registry");
    let registry = DockerRegistry::start(&Login::Htpasswd);
    let pushing = Pushing::to(&registry.name()).with_login(USER, PASSWORD);
    pushing.on_a_core(async |upstream, target| push_image(upstream, target, &SIZES).await);
    assert_eq!(registry.open_uploads("acme/app"), 0, "{}", registry.log());
}

#[test]
fn an_image_reaches_a_real_registry_through_tls() {
    require!("docker-registry");
    let registry = DockerRegistry::start_tls(&Login::Htpasswd);
    let pushing = Pushing::to(&registry.name())
        .trusting(registry.ca_file())
        .with_login(USER, PASSWORD);
    pushing.on_a_core(async |upstream, target| push_image(upstream, target, &SIZES).await);
}

#[test]
fn an_image_reaches_a_real_registry_from_either_kind_of_core() {
    require!("docker-registry");
    let first = AtomicU64::new(20_000_000);
    let registry = DockerRegistry::start(&Login::Open);
    Pushing::to(&registry.name()).on_each_driver(async |upstream, target| {
        let size = first.fetch_add(1, Ordering::Relaxed);
        let mut source = Source::of(size);
        let digest = source.digest;
        let pushed = upstream
            .push_blob(target, &digest, size, None, &mut source)
            .await;
        pushed.unwrap_or_else(|error| panic!("{error}"));
        assert!(upstream.has_blob(target, &digest).await.expect("an answer"));
    });
}

#[test]
fn tokens_are_asked_for_by_what_is_done_with_them() {
    require!("docker-registry");
    let accounts = Accounts::none().with("ada", "hunter2", &["acme/app", "acme/base"]);
    let tokens = TokenServer::start(accounts);
    let registry = DockerRegistry::start(&Login::Token(&tokens));
    let pushing = Pushing::to(&registry.name()).with_login("ada", "hunter2");
    pushing.on_a_core(async |upstream, target| {
        upstream
            .try_push(target)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        push_image(upstream, target, &[10]).await;
    });
    assert_eq!(registry.open_uploads("acme/app"), 0, "{}", registry.log());
    let scopes: Vec<_> = tokens
        .requests()
        .iter()
        .map(|request| request.queries("scope").join(" "))
        .collect();
    // To push, to cancel, and to read back.
    assert_eq!(
        scopes,
        [
            "repository:acme/app:pull,push",
            "repository:acme/app:delete",
            "repository:acme/app:pull"
        ]
    );
}

#[test]
fn a_blob_is_mounted_from_where_this_login_may_pull() {
    require!("docker-registry");
    let accounts = Accounts::none()
        .with("ada", "hunter2", &["acme/app", "acme/base", "acme/other"])
        .with("bob", "hunter3", &["acme/app"]);
    let tokens = TokenServer::start(accounts);
    let registry = DockerRegistry::start(&Login::Token(&tokens));
    let base: Repository = "acme/base".parse().expect("a repository");
    let other: Repository = "acme/other".parse().expect("a repository");
    let ada = Pushing::to(&registry.name()).with_login("ada", "hunter2");
    ada.on_a_core(async |upstream, target| {
        let mut source = Source::of(1000);
        let digest = source.digest;
        let into_base = Target {
            repository: &base,
            ..target
        };
        let pushed = upstream.push_blob(into_base, &digest, 1000, None, &mut source);
        pushed.await.expect("a push");
        assert!(!upstream.has_blob(target, &digest).await.expect("an answer"));
        let mounted = upstream
            .mount_blob(target, &digest, &base)
            .await
            .expect("an answer");
        assert!(matches!(mounted, Mount::Mounted));
        assert!(upstream.has_blob(target, &digest).await.expect("an answer"));
    });
    let bob = Pushing::to(&registry.name()).with_login("bob", "hunter3");
    bob.on_a_core(async |upstream, target| {
        let mut source = Source::of(2000);
        let digest = source.digest;
        for from in [&base, &other] {
            let mount = upstream.mount_blob(target, &digest, from).await;
            let Ok(Mount::Opened(session)) = mount else {
                panic!("there is nothing to mount, for him");
            };
            let pushed = upstream.push_blob(target, &digest, 2000, Some(session), &mut source);
            pushed
                .await
                .unwrap_or_else(|error| panic!("{from}: {error}"));
        }
    });
}

#[test]
fn who_may_not_push_is_told_so_and_what_is_missing() {
    require!("docker-registry");
    let registry = DockerRegistry::start(&Login::Htpasswd);
    for pushing in [
        Pushing::to(&registry.name()),
        Pushing::to(&registry.name()).with_login(USER, "wrong horse"),
    ] {
        let error = pushing.on_a_core(async |upstream, target| upstream.try_push(target).await);
        let error = error.expect_err("nobody may push there");
        assert!(matches!(error, PushError::Refused { .. }), "{error}");
        assert!(!error.is_transient());
        let text = error.to_string();
        for part in [registry.name().as_str(), "acme/app", "right to push"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("horse"), "{text}");
    }
}

/// A wire that breaks once, after so many bytes on their way to the registry.
fn breaking_wire(to: SocketAddr, after: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound address");
    let left = Arc::new(AtomicU64::new(after));
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(to) else {
                return;
            };
            let left = Arc::clone(&left);
            let (mut from, mut back) = (client.try_clone(), server.try_clone());
            thread::spawn(move || {
                if let (Ok(from), Ok(back)) = (&mut from, &mut back) {
                    let _ = std::io::copy(back, from);
                }
            });
            thread::spawn(move || {
                let (mut client, mut server) = (client, server);
                let mut buffer = vec![0; 64 << 10];
                while let Ok(count @ 1..) = client.read(&mut buffer) {
                    let before = left.load(Ordering::SeqCst);
                    let after = before.saturating_sub(count as u64);
                    left.store(after, Ordering::SeqCst);
                    if server.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                    if before > 0 && after == 0 {
                        break;
                    }
                }
                let _ = client.shutdown(std::net::Shutdown::Both);
                let _ = server.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    address
}

#[test]
fn a_blob_gets_to_a_real_registry_over_a_wire_that_breaks() {
    require!("docker-registry");
    let registry = DockerRegistry::start(&Login::Open);
    for (size, after) in [(10_000_000, 5_000_000), (40_000_000, 20_000_000)] {
        let wire = breaking_wire(registry.address, after).to_string();
        Pushing::to(&wire).on_a_core(async |upstream, target| {
            let mut source = Source::of(size);
            let digest = source.digest;
            let pushed = upstream
                .push_blob(target, &digest, size, None, &mut source)
                .await;
            pushed.unwrap_or_else(|error| panic!("{error}: {}", registry.log()));
            assert!(upstream.has_blob(target, &digest).await.expect("an answer"));
            assert!(source.seeks.len() > 1, "{:?}", source.seeks);
        });
    }
}

#[test]
fn a_large_blob_is_streamed_in_one_request_and_a_small_one_needs_no_other() {
    let registry = PushTarget::open();
    Pushing::to(&registry.name()).on_a_core(async |upstream, target| {
        for size in [1000, 17 << 20] {
            let mut source = Source::of(size);
            let digest = source.digest;
            let pushed = upstream
                .push_blob(target, &digest, size, None, &mut source)
                .await;
            pushed.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(
                registry.blob(&digest.to_string()).as_deref(),
                Some(&source.bytes()[..])
            );
        }
    });
    assert_eq!(registry.told(), ["POST", "PUT", "POST", "PATCH", "PUT"]);
}
