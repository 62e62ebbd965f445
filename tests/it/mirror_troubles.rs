//! Mirrors when something fails on the way: tidegate, the target, the source, or the network between them.

use serde_json::{Value, json};

use crate::support::{
    content::Content,
    docker_registry::{DockerRegistry, Login},
    http::get,
    image::file_digest,
    liar::{Behaviour, Gate, Liar, blob_path},
    mirror_content::{Shelf, fetch_all},
    mirror_scene::{ADA, MirrorScene, PUSHER, passing_faults, text},
    passage::{Kind, Obstacle},
    programs::{require, wait_until},
    small_disk::SmallDisk,
    tidegate::Setup,
};

/// Layers of many images: enough for copies of several at a time to have all of them begun, none done.
const LAYERS: [u64; 10] = [
    400_000, 300_000, 200_000, 500_000, 100_000, 70_000, 250_000, 350_000, 450_000, 150_000,
];

/// At the source, as `acme/app:v1`; returns its digest.
fn image(scene: &MirrorScene, seed: u64) -> (String, String) {
    let shelf = Shelf::new(&scene.source, "acme/app");
    let digest = shelf.image_of("v1", seed, &LAYERS);
    (shelf.reference("v1"), digest)
}

const KEPT: &str = "kept/acme/app";

/// No tag, and no manifest, and every blob that is there is what its name says.
fn assert_nothing_half(scene: &MirrorScene) {
    assert!(scene.target.tags(KEPT).is_empty());
    assert!(scene.target.manifests(KEPT).is_empty());
    for digest in scene.target.blobs(KEPT) {
        assert_eq!(file_digest(&scene.target.stored(&digest)), digest);
    }
}

fn assert_whole(scene: &MirrorScene, digest: &str) {
    assert_eq!(scene.target.tags(KEPT), ["v1"]);
    assert_eq!(scene.target.manifests(KEPT), [digest]);
    // Its layers and its configuration.
    let blobs = scene.target.blobs(KEPT);
    assert_eq!(blobs.len(), LAYERS.len() + 1, "{blobs:?}");
    for digest in blobs {
        assert_eq!(file_digest(&scene.target.stored(&digest)), digest);
    }
}

#[test]
fn a_mirror_goes_on_after_tidegate_was_killed() {
    require!("docker-registry", "skopeo");
    let mut scene = MirrorScene::new();
    let (image, digest) = image(&scene, 1);
    // Three blobs arrive, and then all stands still.
    let gate = Gate::default();
    let halting = Obstacle::Gated(50_000, gate.clone());
    let mut obstacles = vec![Obstacle::Nothing; 3];
    obstacles.extend(vec![halting; 20]);
    scene.passage.put(Kind::Bytes, &obstacles);
    let submitted = scene.mirror(&image);
    scene.passage.wait_for_halted(1);
    assert_eq!(scene.status(&submitted)["status"], "BUILDING");
    scene.tidegate.kill();
    assert_nothing_half(&scene);
    scene.passage.clear();
    gate.open();
    scene.tidegate.restart();
    let before = scene.status(&submitted);
    assert_eq!(text(&before, "mirrorId"), text(&submitted, "buildId"));
    scene.succeeds(&submitted);
    assert_whole(&scene, &digest);
    // Its end is known after one more start, too.
    scene.tidegate.kill();
    scene.tidegate.restart();
    assert_eq!(scene.status(&submitted)["succeeded"], true);
}

#[test]
fn a_mirror_goes_on_after_the_target_was_killed() {
    require!("docker-registry", "skopeo");
    let mut scene = MirrorScene::new();
    let (image, digest) = image(&scene, 2);
    let gate = Gate::default();
    let mut obstacles = vec![Obstacle::Nothing; 2];
    obstacles.extend(vec![Obstacle::Gated(50_000, gate.clone()); 20]);
    scene.passage.put(Kind::Bytes, &obstacles);
    let submitted = scene.mirror(&image);
    scene.passage.wait_for_halted(1);
    scene.target.kill();
    assert_nothing_half(&scene);
    scene.passage.clear();
    gate.open();
    scene.target.restart();
    scene.succeeds(&submitted);
    assert_whole(&scene, &digest);
}

/// It answers 500 for what it was writing, until that is written again.
#[test]
fn what_a_killed_target_left_half_written_is_written_again() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let (image, digest) = image(&scene, 9);
    scene.mirrored(&image);
    let hex = |digest: &str| digest.replace("sha256:", "");
    let blobs = scene.target.blobs(KEPT);
    for torn in [
        vec!["_manifests/tags/v1/current".to_owned()],
        vec![
            "_manifests/tags/v1/current".to_owned(),
            format!("_manifests/revisions/sha256/{}", hex(&digest)),
            format!("_layers/sha256/{}", hex(&blobs[0])),
            format!("_layers/sha256/{}", hex(&blobs[3])),
        ],
    ] {
        for what in &torn {
            scene.target.tear(KEPT, what);
        }
        assert_eq!(scene.at_target(KEPT, "v1"), None, "{torn:?}");
        scene.mirrored(&image);
        assert_whole(&scene, &digest);
        scene.assert_same("acme/app", "v1");
        let copy = format!("{}/{KEPT}:v1", scene.target.name());
        fetch_all(&copy, PUSHER.0, PUSHER.1);
    }
}

#[test]
fn faults_of_the_target_that_pass_are_waited_for() {
    require!("docker-registry", "skopeo");
    for (number, (kind, obstacles)) in (10..).zip(passing_faults()) {
        let scene = MirrorScene::new();
        let (image, digest) = image(&scene, number);
        // The first upload is the trial whether its login may push.
        let mut all = match kind {
            Kind::Opening => vec![Obstacle::Nothing],
            _ => Vec::new(),
        };
        all.extend(obstacles.clone());
        scene.passage.put(kind, &all);
        let submitted = scene.mirror(&image);
        scene.succeeds(&submitted);
        assert_eq!(scene.passage.unmet(), 0, "{kind:?} {obstacles:?}");
        assert_whole(&scene, &digest);
    }
}

#[test]
fn a_token_that_ends_within_an_upload_is_renewed() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let (image, digest) = image(&scene, 3);
    let gate = Gate::default();
    scene
        .passage
        .put(Kind::Bytes, &vec![Obstacle::Gated(20_000, gate.clone()); 2]);
    let submitted = scene.mirror(&image);
    scene.passage.wait_for_halted(2);
    // What is on its way gets through; whoever comes next with that token does not.
    let asked = scene.tokens.requests().len();
    scene.tokens.forget_issued();
    gate.open();
    scene.succeeds(&submitted);
    assert!(scene.tokens.requests().len() > asked);
    assert_whole(&scene, &digest);

    // And one that is refused when the bytes have been sent.
    let second = Shelf::new(&scene.source, "acme/second");
    second.image_of("v1", 50, &[200_000]);
    let challenge = format!(
        "Bearer realm=\"{}\",service=\"registry.test\",error=\"invalid_token\"",
        scene.tokens.realm()
    );
    let challenge = ("WWW-Authenticate", challenge);
    let expired = Obstacle::Answer(
        401,
        vec![challenge],
        r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#,
    );
    scene.passage.put(Kind::Bytes, &[expired]);
    scene.mirrored(&second.reference("v1"));
    assert_eq!(scene.target.tags("kept/acme/second"), ["v1"]);
}

#[test]
fn a_full_target_is_said_to_be_full() {
    require!("docker-registry", "skopeo");
    let Some(disk) = SmallDisk::mount("2m") else {
        return;
    };
    let scene = MirrorScene::with_target(Setup::new(), |tokens| {
        DockerRegistry::start_in(&Login::Token(tokens), disk.path())
    });
    let (image, _) = image(&scene, 4);
    let submitted = scene.mirror(&image);
    let reason = scene.fails(&submitted);
    assert!(reason.contains(&scene.passage.name()), "{reason}");
    assert!(
        reason.contains("room") || reason.contains("space"),
        "{reason}"
    );
    assert!(scene.target.tags(KEPT).is_empty());
    assert!(scene.target.manifests(KEPT).is_empty());
    let log = scene.log_of(&submitted);
    assert!(log.contains(&reason), "{log}");
}

#[test]
fn a_target_that_stays_broken_fails_the_job_with_its_words() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let (image, digest) = image(&scene, 5);
    let words = r#"{"errors":[{"code":"UNSUPPORTED","message":"read-only until noon"}]}"#;
    let refusing = Obstacle::Answer(405, Vec::new(), words);
    scene.passage.put_often(Kind::Manifest, &refusing, 100);
    let submitted = scene.mirror(&image);
    let reason = scene.fails(&submitted);
    assert!(reason.contains("read-only until noon"), "{reason}");
    assert!(reason.contains(&scene.passage.name()), "{reason}");
    assert!(scene.target.tags(KEPT).is_empty());
    let details = scene.status(&submitted);
    let id = text(&submitted, "buildId");
    assert!(text(&details, "detailsUri").contains(&id), "{details}");
    // It is not held against the next try for ever.
    scene.passage.clear();
    let mut again = Value::Null;
    wait_until("another try", || {
        again = scene.mirror(&image);
        again["buildId"] != submitted["buildId"]
    });
    scene.succeeds(&again);
    assert_whole(&scene, &digest);
}

/// The source is a liar; only what is what it is called gets to the target.
#[test]
fn a_source_that_lies_gets_nothing_wrong_into_the_target() {
    require!("docker-registry", "skopeo");
    let liar = Liar::open();
    let scene = MirrorScene::with(Setup::new().liar(&liar));
    let layers: Vec<_> = (0..3)
        .map(|seed| Content::Generated {
            seed: 700 + seed,
            size: 300_000,
        })
        .collect();
    for (number, behaviour) in (0..).zip([
        Behaviour::WrongBytes,
        Behaviour::WrongByteAt(1000),
        Behaviour::StatedLength(299_999),
        Behaviour::error(404, "BLOB_UNKNOWN"),
        Behaviour::error(403, "DENIED"),
    ]) {
        let repository = format!("acme/lie-{number}");
        let image = liar.image(&repository, "v1", &layers);
        liar.misbehave(&blob_path(&repository, &image.layers[1]), behaviour.clone());
        let submitted = scene.mirror(&liar.reference(&repository, "v1"));
        let reason = scene.fails(&submitted);
        assert!(
            reason.contains(&liar.name()) || reason.contains(&image.layers[1]),
            "{behaviour:?}: {reason}"
        );
        let kept = format!("kept/{repository}");
        assert!(scene.target.tags(&kept).is_empty(), "{behaviour:?}");
        assert!(scene.target.manifests(&kept).is_empty(), "{behaviour:?}");
        assert!(!scene.target.blobs(&kept).contains(&image.layers[1]));
    }
    // A manifest that is another than its digest says.
    let image = liar.image("acme/other", "v1", &layers);
    let path = format!("/v2/acme/other/manifests/{}", image.manifest);
    liar.page(&path, "application/vnd.oci.image.manifest.v1+json", "{}");
    let submitted = scene.tidegate.submit(&scene.request(
        &liar.reference("acme/other", &image.manifest),
        &json!({"mirror": true}),
    ));
    if submitted.0 == 200 {
        scene.fails(&submitted.1);
    }
    assert!(scene.target.manifests("kept/acme/other").is_empty());
}

#[test]
fn a_source_that_vanishes_is_named_and_waited_for() {
    require!("docker-registry", "skopeo");
    let mut scene = MirrorScene::new();
    let (image, digest) = image(&scene, 6);
    let gate = Gate::default();
    scene
        .passage
        .put_often(Kind::Bytes, &Obstacle::Gated(10_000, gate.clone()), 1);
    let submitted = scene.mirror(&image);
    scene.passage.wait_for_halted(1);
    scene.source.kill();
    gate.open();
    let status = scene.finished(&submitted);
    if status["succeeded"] == false {
        let reason = text(&status, "reason");
        assert!(reason.contains(&scene.source.name()), "{reason}");
        assert!(scene.target.tags(KEPT).is_empty());
    }
    scene.source.restart();
    let mut again = Value::Null;
    wait_until("another try", || {
        again = scene.mirror(&image);
        again["buildId"] != submitted["buildId"] || again["succeeded"] == true
    });
    scene.succeeds(&again);
    assert_whole(&scene, &digest);
}

/// Those who wait for one and the same are one job; who asks for something else does not wait behind it.
#[test]
fn the_same_mirror_asked_for_by_many_is_one_job() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let (image, digest) = image(&scene, 8);
    let gate = Gate::default();
    scene
        .passage
        .put_often(Kind::Bytes, &Obstacle::Gated(10_000, gate.clone()), 1);
    let first = scene.mirror(&image);
    scene.passage.wait_for_halted(1);
    let second = scene.mirror(&image);
    assert_eq!(second["buildId"], first["buildId"], "{second}");
    assert_eq!(second["cached"], false, "{second}");
    assert_ne!(second["requestId"], first["requestId"]);
    gate.open();
    for submitted in [&first, &second] {
        scene.succeeds(submitted);
    }
    assert_whole(&scene, &digest);
    assert_eq!(scene.passage.count(Kind::Manifest), 1);
    // The operator sees no trace of the caller's token.
    assert!(!scene.tidegate.log().text().contains(ADA));
    assert_eq!(get(scene.tidegate.admin, "/readyz").status(), 200);
}
