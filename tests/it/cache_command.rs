//! `tidegate cache`: what is in the cache, is it right, and away with it; beside the running server or on a stopped one.

use std::{
    fs,
    io::Read as _,
    net::TcpStream,
    process::{Command, Output},
};

use serde_json::Value;

use crate::support::{
    content::{Content, digest},
    damage,
    http::Connection,
    programs::{self, wait_until},
    scene::{Blob, REPOSITORY, Scene},
    tidegate::{BINARY, Setup},
};

const MIB: u64 = 1 << 20;

/// Whom the command talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Running,
    Stopped,
}

const EITHER: [Server; 2] = [Server::Running, Server::Stopped];

/// Three blobs, all in the cache. What is wrong with them is found by the command, or by nobody.
fn filled(server: Server) -> (Scene, Vec<Blob>) {
    let scene = Scene::with(Setup::new().section("[cache]\nscrub_interval = \"0s\""));
    let blobs: Vec<_> = (0..)
        .zip([1000, 70_000, 3 * MIB])
        .map(|(seed, size)| scene.layer(seed, size))
        .collect();
    for blob in &blobs {
        scene.assert_arrives(blob, "the first pull");
        scene.tidegate.wait_until_stored(&blob.digest);
    }
    if server == Server::Stopped {
        stop(&scene);
    }
    (scene, blobs)
}

fn stop(scene: &Scene) {
    scene.tidegate.signal("TERM");
    wait_until("the end of the server", || {
        TcpStream::connect(scene.tidegate.admin).is_err()
    });
    scene.tidegate.log().wait_for_end();
}

fn start_again(scene: &mut Scene, server: Server) {
    if server == Server::Stopped {
        scene.tidegate.restart();
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn assert_done(output: &Output, what: &str) {
    assert!(output.status.success(), "{what}: {}", text(output));
}

fn number(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no {key} in {value}"))
}

fn listed(scene: &Scene) -> Vec<Value> {
    let list = scene.tidegate.cache_json(&["ls"]);
    list.as_array().expect("an array").clone()
}

fn listed_digests(scene: &Scene) -> Vec<String> {
    let mut digests: Vec<_> = listed(scene)
        .iter()
        .map(|blob| blob["digest"].as_str().expect("a digest").to_owned())
        .collect();
    digests.sort();
    digests
}

fn sorted(blobs: &[Blob]) -> Vec<String> {
    let mut digests: Vec<_> = blobs.iter().map(|blob| blob.digest.clone()).collect();
    digests.sort();
    digests
}

/// One byte in the middle, as a failing disk changes it: neither the size nor the time tells.
fn rot(scene: &Scene, blob: &Blob) {
    let file = damage::open_stored(&scene.tidegate, &blob.digest);
    let modified = file
        .metadata()
        .and_then(|metadata| metadata.modified())
        .expect("a time");
    damage::flip(&file, blob.size() / 2);
    file.set_modified(modified).expect("a writable file");
}

#[test]
fn ls_lists_what_is_there() {
    for server in EITHER {
        let (scene, blobs) = filled(server);
        assert_eq!(listed_digests(&scene), sorted(&blobs), "{server:?}");
        for entry in listed(&scene) {
            let blob = blobs
                .iter()
                .find(|blob| entry["digest"] == blob.digest)
                .expect("one of ours");
            assert_eq!(entry["registry"], scene.liar.name(), "{entry}");
            assert_eq!(number(&entry, "size"), blob.size(), "{entry}");
            assert_eq!(entry["pinned"], false, "{entry}");
        }
        let output = scene.tidegate.cache_command(&["ls"]);
        assert_done(&output, "ls");
        for blob in &blobs {
            assert!(text(&output).contains(&blob.digest), "{}", text(&output));
        }
    }
}

#[test]
fn an_empty_cache_has_nothing_to_list() {
    let scene = Scene::new();
    assert_eq!(listed(&scene), Vec::<Value>::new());
    assert_eq!(number(&scene.tidegate.cache_json(&["du"]), "count"), 0);
}

#[test]
fn du_says_how_much_is_used() {
    for server in EITHER {
        let (scene, blobs) = filled(server);
        let du = scene.tidegate.cache_json(&["du"]);
        let used: u64 = blobs
            .iter()
            .map(|blob| blob.size().next_multiple_of(4096))
            .sum();
        assert_eq!(number(&du, "count"), blobs.len() as u64, "{server:?}: {du}");
        assert_eq!(number(&du, "used"), used, "{server:?}: {du}");
        assert_eq!(number(&du, "max_size"), 20 << 30, "{server:?}: {du}");
        assert!(du.get("blobs").is_some(), "{server:?}: {du}");
        assert_done(&scene.tidegate.cache_command(&["du"]), "du");
    }
}

#[test]
fn verify_finds_nothing_where_nothing_is_wrong() {
    for server in EITHER {
        let (scene, blobs) = filled(server);
        assert_done(&scene.tidegate.cache_command(&["verify"]), "verify");
        assert_eq!(listed_digests(&scene), sorted(&blobs), "{server:?}");
    }
}

/// Bits rot. What verify has found is gone, and is fetched again by whoever wants it.
#[test]
fn verify_removes_what_has_rotted() {
    for server in EITHER {
        let (mut scene, blobs) = filled(server);
        for blob in &blobs[1..] {
            rot(&scene, blob);
        }
        let output = scene.tidegate.cache_command(&["verify"]);
        assert!(!output.status.success(), "{server:?}: {}", text(&output));
        for blob in &blobs[1..] {
            assert!(text(&output).contains(&blob.digest), "{}", text(&output));
            assert_eq!(scene.tidegate.stored(&blob.digest), None, "{server:?}");
        }
        assert!(
            !text(&output).contains(&blobs[0].digest),
            "{}",
            text(&output)
        );
        assert_eq!(listed_digests(&scene), [blobs[0].digest.clone()]);
        assert_done(&scene.tidegate.cache_command(&["verify"]), "verify again");
        start_again(&mut scene, server);
        for blob in &blobs {
            scene.assert_arrives(blob, "after verify");
            scene.assert_is_a_hit(blob);
        }
        let gets: Vec<_> = blobs
            .iter()
            .map(|blob| scene.liar.gets(&blob.path).len())
            .collect();
        assert_eq!(gets, [1, 2, 2], "{server:?}");
        assert_done(
            &scene.tidegate.cache_command(&["verify"]),
            "the last verify",
        );
    }
}

#[test]
fn a_dry_run_changes_nothing() {
    for server in EITHER {
        let (scene, blobs) = filled(server);
        rot(&scene, &blobs[1]);
        let digest = blobs[0].digest.as_str();
        for arguments in [
            vec!["rm", digest, "--dry-run"],
            vec!["gc", "--dry-run"],
            vec!["verify", "--dry-run"],
        ] {
            let output = scene.tidegate.cache_command(&arguments);
            // What is wrong is said all the same.
            let is_right = arguments[0] != "verify";
            assert_eq!(output.status.success(), is_right, "{}", text(&output));
            assert_eq!(
                listed_digests(&scene),
                sorted(&blobs),
                "{server:?} {arguments:?}"
            );
            for blob in &blobs {
                assert!(
                    scene.tidegate.stored(&blob.digest).is_some(),
                    "{arguments:?}"
                );
            }
        }
    }
}

#[test]
fn rm_removes_one_blob() {
    for server in EITHER {
        let (mut scene, blobs) = filled(server);
        let output = scene.tidegate.cache_command(&["rm", &blobs[0].digest]);
        assert_done(&output, "rm");
        assert_eq!(scene.tidegate.stored(&blobs[0].digest), None);
        assert_eq!(listed_digests(&scene), sorted(&blobs[1..]), "{server:?}");
        let output = scene.tidegate.cache_command(&["rm", &blobs[0].digest]);
        assert!(!output.status.success(), "it is gone: {}", text(&output));
        start_again(&mut scene, server);
        scene.assert_arrives(&blobs[0], "after rm");
        scene.assert_is_a_hit(&blobs[0]);
        assert_eq!(scene.liar.gets(&blobs[0].path).len(), 2, "{server:?}");
        assert_eq!(scene.liar.gets(&blobs[1].path).len(), 1, "{server:?}");
    }
}

#[test]
fn gc_leaves_what_is_good() {
    for server in EITHER {
        let (scene, blobs) = filled(server);
        assert_done(&scene.tidegate.cache_command(&["gc"]), "gc");
        assert_eq!(listed_digests(&scene), sorted(&blobs), "{server:?}");
    }
}

#[test]
fn pinned_repositories_are_shown_and_stay_so_after_a_restart() {
    for server in EITHER {
        let (mut scene, blobs) = filled(server);
        let name = format!("{}/{REPOSITORY}", scene.liar.name());
        assert_done(&scene.tidegate.cache_command(&["pin", &name]), "pin");
        start_again(&mut scene, server);
        for tag in ["layer-0", "layer-1", "layer-2"] {
            assert_eq!(scene.tidegate.get(&scene.grant.manifest(tag)).status(), 200);
        }
        for blob in &blobs {
            scene.assert_arrives(blob, "a pinned blob");
        }
        let pinned = |scene: &Scene| -> Vec<bool> {
            let listed = listed(scene);
            listed.iter().map(|blob| blob["pinned"] == true).collect()
        };
        assert_eq!(pinned(&scene), [true; 3], "{server:?}");
        scene.tidegate.restart();
        assert_eq!(pinned(&scene), [true; 3], "{server:?} after a restart");
        assert_done(&scene.tidegate.cache_command(&["unpin", &name]), "unpin");
        assert_eq!(pinned(&scene), [false; 3], "{server:?}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (scene, _) = filled(Server::Running);
    assert_done(&scene.tidegate.cache_command(&["ls"]), "what makes sense");
    for arguments in [
        vec!["rm"],
        vec!["rm", "sha256:abc"],
        vec!["rm", "../../etc/passwd"],
        vec!["pin"],
        vec!["pin", ""],
        vec!["ls", "-o", "xml"],
        vec!["burn"],
    ] {
        let output = scene.tidegate.cache_command(&arguments);
        assert!(!output.status.success(), "{arguments:?}: {}", text(&output));
        assert!(
            !output.stderr.is_empty(),
            "{arguments:?}: not a word of why"
        );
        assert!(!text(&output).contains("panicked"), "{}", text(&output));
    }
}

/// A blob that somebody reads while it is removed arrives all the same.
#[test]
fn what_a_client_is_reading_is_removed_after_it() {
    let scene = Scene::with(Setup::new());
    let blob = scene.blob_of(Content::Generated {
        seed: 1,
        size: 16 * MIB,
    });
    scene.assert_arrives(&blob, "the first pull");
    scene.tidegate.wait_until_stored(&blob.digest);
    let mut slow = scene.tidegate.connect();
    slow.request("GET", &scene.grant.blob(&blob.digest), &[], b"");
    let head = slow.head().expect("an answer");
    let mut body = slow.body("GET", &head);
    let mut bytes = body.read_exactly(1000);
    assert_done(&scene.tidegate.cache_command(&["rm", &blob.digest]), "rm");
    body.read_to_end(&mut bytes).expect("a readable body");
    assert_eq!(digest(&bytes), blob.digest);
}

/// Several servers may run on one machine: what is asked of one must not be done by another.
#[test]
fn the_server_that_is_asked_must_have_the_folder() {
    let (one, blobs) = filled(Server::Running);
    let (other, _) = filled(Server::Running);
    let folder = other.tidegate.cache_folder().display().to_string();
    let digest = blobs[0].digest.as_str();
    for arguments in [vec!["ls"], vec!["rm", digest], vec!["gc", "--to", "0B"]] {
        let arguments = [&arguments[..], &["--cache-dir", &folder]].concat();
        let output = one.tidegate.cache_command(&arguments);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(
            text(&output).contains("listener.admin"),
            "{}",
            text(&output)
        );
    }
    assert_eq!(listed_digests(&one), sorted(&blobs));
    assert_eq!(listed_digests(&other), sorted(&blobs));
    // Who names a server means that one.
    let admin = other.tidegate.admin.to_string();
    let output = one
        .tidegate
        .cache_command(&["rm", digest, "--admin", &admin]);
    assert_done(&output, "rm on another server");
    assert_eq!(listed_digests(&one), sorted(&blobs));
    assert_eq!(listed_digests(&other), sorted(&blobs[1..]));
}

/// Nobody named a folder, so the one by default is looked at; a server that was told another is more likely meant.
#[test]
fn a_server_with_another_folder_than_the_default_is_told_of() {
    let (scene, _) = filled(Server::Running);
    let home = tempfile::tempdir().expect("a temporary folder");
    let config = home.path().join("tidegate.toml");
    let admin = scene.tidegate.admin;
    fs::write(&config, format!("[listener]\nadmin = \"{admin}\"\n")).expect("a writable folder");
    let output = programs::output(
        Command::new(BINARY)
            .args(["cache", "du", "--config"])
            .arg(&config)
            .env("XDG_CACHE_HOME", home.path()),
    );
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("warning: the server at"), "{told}");
    assert!(told.contains(&format!("--admin {admin}")), "{told}");
    // Whoever names a folder means it.
    let output = scene.tidegate.cache_command(&["du"]);
    assert_done(&output, "du");
    assert!(output.stderr.is_empty(), "{}", text(&output));
}

#[test]
fn it_is_said_what_is_missing_where_there_is_no_cache() {
    let (scene, _) = filled(Server::Running);
    let empty = scene.tidegate.home().join("empty");
    let folder = empty.display().to_string();
    let output = scene
        .tidegate
        .cache_command(&["ls", "--cache-dir", &folder]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains(&folder), "{}", text(&output));
    assert!(text(&output).contains("--cache-dir"), "{}", text(&output));
    assert!(!empty.exists(), "looking makes no folder");
    // A port where nobody listens.
    let output = scene
        .tidegate
        .cache_command(&["ls", "--admin", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("127.0.0.1:1"), "{}", text(&output));
}

#[test]
fn what_is_named_is_removed_or_verified_alone() {
    for server in EITHER {
        let (scene, blobs) = filled(server);
        rot(&scene, &blobs[1]);
        let verify = |digest: &str| scene.tidegate.cache_command(&["verify", digest]);
        assert_done(&verify(&blobs[0].digest), "verify a good one");
        assert_eq!(verify(&blobs[1].digest).status.code(), Some(1));
        let missing = verify(&blobs[1].digest);
        assert_eq!(missing.status.code(), Some(1), "it is gone");
        assert!(
            text(&missing).contains("not in the cache"),
            "{}",
            text(&missing)
        );
        let mut left = [blobs[0].digest.clone(), blobs[2].digest.clone()];
        left.sort();
        assert_eq!(listed_digests(&scene), left, "{server:?}");
        let name = scene.liar.name().to_string();
        let registry = |registry: &str, more: &[&str]| {
            let arguments = [&["rm", "--registry", registry], more].concat();
            assert_done(&scene.tidegate.cache_command(&arguments), "rm --registry");
        };
        registry("quay.io", &[]);
        registry(&name, &["--dry-run"]);
        assert_eq!(listed_digests(&scene), left, "{server:?}");
        registry(&name, &[]);
        assert_eq!(listed_digests(&scene), Vec::<String>::new(), "{server:?}");
        assert_eq!(scene.tidegate.blob_files().len(), 0, "{server:?}");
    }
}

#[test]
fn gc_goes_down_to_what_is_asked_for() {
    for server in EITHER {
        let (scene, blobs) = filled(server);
        let gc = |more: &[&str]| {
            scene
                .tidegate
                .cache_json(&[&["gc", "--to", "100KiB"], more].concat())
        };
        let rehearsed = gc(&["--dry-run"]);
        assert_eq!(listed_digests(&scene), sorted(&blobs), "{server:?}");
        let gone = gc(&[]);
        assert_eq!(gone["blobs"], rehearsed["blobs"], "{server:?}");
        assert!(number(&scene.tidegate.cache_json(&["du"]), "used") <= 100 << 10);
        assert_eq!(
            number(&gone, "count") as usize + listed(&scene).len(),
            blobs.len(),
            "{server:?}"
        );
    }
}

#[test]
fn pins_are_listed_and_taken_back() {
    for server in EITHER {
        let (scene, _) = filled(server);
        let command = |arguments: &[&str]| scene.tidegate.cache_command(arguments);
        assert_eq!(scene.tidegate.cache_json(&["pins"]), serde_json::json!([]));
        assert_done(&command(&["pin", "quay.io/acme/base"]), "pin");
        assert_done(&command(&["pin", "quay.io/acme/base"]), "pin again");
        let pins = scene.tidegate.cache_json(&["pins"]);
        let expected = serde_json::json!([
            {"registry": "quay.io", "repository": "acme/base", "count": 0}
        ]);
        assert_eq!(pins, expected, "{server:?}");
        assert_done(&command(&["unpin", "quay.io/acme/base"]), "unpin");
        let output = command(&["unpin", "quay.io/acme/base"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains("not pinned"), "{}", text(&output));
        assert_eq!(scene.tidegate.cache_json(&["pins"]), serde_json::json!([]));
    }
}

/// What a kill has left is looked after like everything else, and the next start trusts what comes of it.
#[test]
fn a_killed_server_can_be_looked_after() {
    let (mut scene, blobs) = filled(Server::Running);
    scene.tidegate.kill();
    assert_eq!(listed_digests(&scene), sorted(&blobs));
    assert_done(
        &scene.tidegate.cache_command(&["rm", &blobs[0].digest]),
        "rm",
    );
    scene.tidegate.restart();
    for blob in &blobs {
        scene.assert_arrives(blob, "after the restart");
    }
    let gets: Vec<_> = blobs
        .iter()
        .map(|blob| scene.liar.gets(&blob.path).len())
        .collect();
    assert_eq!(gets, [2, 1, 1]);
}

/// A browser on the operator's machine reaches the admin listener, and what runs in it may be anybody's.
#[test]
fn a_web_page_cannot_look_after_the_cache() {
    let (scene, blobs) = filled(Server::Running);
    let admin = scene.tidegate.admin.to_string();
    let path = format!("/cache/blobs?digest={}", blobs[0].digest);
    let ask = |method: &str, target: &str, headers: &[(&str, &str)]| {
        let mut lines = format!("{method} {target} HTTP/1.1\r\n");
        for (name, value) in headers {
            lines.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut connection = Connection::open(scene.tidegate.admin);
        connection.send(format!("{lines}\r\n"));
        connection.head().expect("an answer").status
    };
    let guard = ("X-Tidegate", "cache");
    for (headers, status) in [
        (vec![("Host", admin.as_str())], 403),
        (vec![("Host", "rebound.example:5001"), guard], 403),
        (
            vec![
                ("Host", admin.as_str()),
                ("Origin", "http://a.example"),
                guard,
            ],
            403,
        ),
    ] {
        assert_eq!(ask("DELETE", &path, &headers), status, "{headers:?}");
    }
    assert_eq!(ask("GET", &path, &[("Host", "rebound.example")]), 403);
    assert_eq!(ask("OPTIONS", &path, &[("Host", &admin)]), 405);
    assert_eq!(ask("POST", "/cache/gc?to=0B", &[("Host", &admin)]), 403);
    assert_eq!(listed_digests(&scene), sorted(&blobs));
    // Nor is a wish that was misspelt, or that names nothing, taken for all.
    let all = [("Host", admin.as_str()), guard];
    for target in [
        "/cache/blobs",
        "/cache/blobs?digset=x",
        "/cache/blobs?from=0",
    ] {
        assert_eq!(ask("DELETE", target, &all), 400, "{target}");
    }
    assert_eq!(listed_digests(&scene), sorted(&blobs));
    assert_eq!(ask("DELETE", &path, &all), 200);
    assert_eq!(listed_digests(&scene), sorted(&blobs[1..]));
}
