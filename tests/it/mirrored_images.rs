//! Images copied from one registry to another, byte for byte, with all that belongs to them.

use serde_json::{Value, json};

use crate::support::{
    content::digest,
    image::{Image, file_digest},
    liar::Gate,
    mirror_content::{Shelf, fetch_all, referrers_tag},
    mirror_scene::{ADA, BOB, MirrorScene, PUSHER, READER, STRANGER, text},
    passage::{Kind, Obstacle},
    programs::require,
    tidegate::Setup,
};

const MIB: u64 = 1 << 20;

#[test]
fn images_of_every_kind_are_mirrored_there_and_back() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let signed = Shelf::new(&scene.source, "acme/app").signed("v1");
    Shelf::new(&scene.source, "acme/many").image_of("v1", 100, &[3000; 40]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let zstd = Image::build(&folder.path().join("zstd"), &[50_000, 20_000]);
    let how = ["--format=oci", "--dest-compress-format=zstd"];
    scene.source.push_as(&zstd, "acme/zstd", "v1", &how);

    for repository in ["acme/app", "acme/many", "acme/zstd"] {
        let image = Shelf::new(&scene.source, repository).reference("v1");
        let submitted = scene.mirrored(&image);
        assert_eq!(
            text(&submitted, "targetImage"),
            format!("{}/{repository}:v1", scene.place())
        );
        scene.assert_same(repository, "v1");
        let target = format!("{}/kept/{repository}:v1", scene.target.name());
        fetch_all(&target, PUSHER.0, PUSHER.1);
    }
    assert_eq!(scene.target.blobs("kept/acme/many").len(), 41);
    for version in signed.platforms.iter().chain([
        &signed.index,
        &signed.signature,
        &signed.bill,
        &signed.tags[3],
    ]) {
        scene.assert_same("acme/app", version);
    }
    // What refers to it is found there as at the source.
    for (subject, referrer) in [
        (&signed.index, &signed.signature),
        (&signed.platforms[0], &signed.bill),
    ] {
        let listed = scene.at_target("kept/acme/app", &referrers_tag(subject));
        let listed = listed.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let listed = listed.expect("a list of referrers");
        assert!(listed.contains(referrer.as_str()), "{listed}");
        assert!(listed.contains("artifactType"), "{listed}");
    }
    // Its login asked for no more than it takes.
    for scope in scene.tokens.scopes() {
        assert!(scope.starts_with("repository:kept/acme/"), "{scope}");
    }

    // And back, to where plain passwords are taken.
    let image = format!("{}/acme/app:v1", scene.place());
    let request = json!({
        "containerImage": image, "buildRepository": format!("{}/back", scene.source.name()),
        "towerAccessToken": ADA, "mirror": true,
    });
    let submitted = scene.ask(&request);
    scene.succeeds(&submitted);
    let back = "back/kept/acme/app";
    for version in ["v1", &signed.platforms[1], &signed.signature] {
        assert_eq!(
            scene.at_source(back, version),
            scene.at_source("acme/app", version),
            "{version}"
        );
    }
    let listed = scene.at_source(back, &referrers_tag(&signed.index));
    let listed = String::from_utf8_lossy(&listed.expect("a list of referrers")).into_owned();
    assert!(listed.contains(&signed.signature), "{listed}");
}

#[test]
fn a_mirror_keeps_the_platform_that_is_named() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let shelf = Shelf::new(&scene.source, "acme/app");
    let signed = shelf.signed("v1");
    let [amd64, arm64] = &signed.platforms;
    let for_arm = |version: &str| {
        let more = json!({"mirror": true, "containerPlatform": "linux/arm64"});
        scene.request(&shelf.reference(version), &more)
    };
    let first = scene.ask(&for_arm("v1"));
    scene.succeeds(&first);
    let kept = "kept/acme/app";
    let copy = scene.at_target(kept, "v1").expect("it is mirrored");
    assert_eq!(&digest(&copy), arm64);
    assert_eq!(scene.target.manifests(kept), [arm64.as_str()]);
    // Configuration, the shared layer and its own.
    assert_eq!(scene.target.blobs(kept).len(), 3);
    assert_eq!(scene.record(&first)["platform"], "linux/arm64");
    let before = scene.target.writes();
    let again = scene.ask(&for_arm("v1"));
    assert_eq!(again["succeeded"], true, "{again}");
    assert_eq!(again["cached"], true, "{again}");
    assert_eq!(again["buildId"], first["buildId"], "{again}");
    assert_eq!(scene.target.writes(), before);

    // A name that is a digest can be that image's only.
    let (status, refused) = scene.tidegate.submit(&for_arm(&signed.index));
    assert_eq!(status, 400, "{refused}");
    assert!(text(&refused, "message").contains(arm64), "{refused}");
    scene.succeeds(&scene.ask(&for_arm(arm64)));
    let (status, refused) = scene.tidegate.submit(&for_arm(amd64));
    assert_eq!(status, 400, "{refused}");
    assert!(
        text(&refused, "message").contains("linux/amd64"),
        "{refused}"
    );

    // Whoever names none has all, by the same name.
    scene.mirrored(&shelf.reference("v1"));
    scene.assert_same("acme/app", "v1");
    scene.assert_same("acme/app", amd64);
}

#[test]
fn a_second_mirror_transfers_nothing() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let shelf = Shelf::new(&scene.source, "acme/app");
    let signed = shelf.signed("v1");
    let first = scene.mirrored(&shelf.reference("v1"));
    let before = scene.target.writes();
    assert!(!before.is_empty());

    let again = scene.mirror(&shelf.reference("v1"));
    assert_eq!(again["succeeded"], true, "{again}");
    assert_eq!(again["cached"], true, "{again}");
    assert_eq!(again["buildId"], first["buildId"], "{again}");
    assert_eq!(again["targetImage"], first["targetImage"]);
    assert_eq!(scene.target.writes(), before);

    // Under its digest all is there, too: nothing but what is asked.
    let by_digest = scene.mirrored(&shelf.reference(&signed.index));
    assert!(
        text(&by_digest, "targetImage").ends_with(&signed.index),
        "{by_digest}"
    );
    let sent = scene.target.writes().split_off(before.len());
    let is_blob = |path: &str| path.contains("/blobs/uploads/") && !path.ends_with("/uploads/");
    assert!(
        !sent.iter().any(|request| is_blob(&request.path)),
        "{sent:?}"
    );

    // The tag moves: what is new is sent, what both have is not.
    let layers = shelf.layers(900, &[4000]);
    let image = shelf.image(None, "amd64", &layers);
    shelf.index("v1", &[image]);
    let bytes_before = scene.passage.count(Kind::Bytes);
    let moved = scene.mirrored(&shelf.reference("v1"));
    assert_ne!(moved["buildId"], first["buildId"], "{moved}");
    scene.assert_same("acme/app", "v1");
    assert!(scene.passage.count(Kind::Bytes) > bytes_before);
}

#[test]
fn signatures_stay_where_they_are_if_the_operator_says_so() {
    require!("docker-registry", "skopeo");
    let setup = Setup::new().section("[mirror]\nmirror_referrers = false");
    let scene = MirrorScene::with(setup);
    let shelf = Shelf::new(&scene.source, "acme/app");
    let signed = shelf.signed("v1");
    scene.mirrored(&shelf.reference("v1"));
    scene.assert_same("acme/app", "v1");
    let kept = "kept/acme/app";
    assert_eq!(scene.target.tags(kept), ["v1"]);
    let mut all = vec![signed.index.clone()];
    all.extend(signed.platforms.clone());
    all.sort();
    assert_eq!(scene.target.manifests(kept), all);
}

/// More than any buffer, and than one request should carry through a proxy.
#[test]
fn a_layer_of_600_mib_is_mirrored() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let shelf = Shelf::new(&scene.source, "acme/large");
    let layers = shelf.layers(7, &[600 * MIB]);
    shelf.image(Some("v1"), "amd64", &layers);
    scene.mirrored(&shelf.reference("v1"));
    scene.assert_same("acme/large", "v1");
    let layer = text(&layers[0], "digest");
    assert_eq!(file_digest(&scene.target.stored(&layer)), layer);
}

#[test]
fn what_may_not_be_pushed_is_refused_at_once() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let shelf = Shelf::new(&scene.source, "acme/app");
    shelf.image_of("v1", 1, &[3000]);
    let image = shelf.reference("v1");
    let refused = |token: &str, place: &str| {
        let request = json!({
            "containerImage": image, "buildRepository": place, "towerAccessToken": token, "mirror": true,
        });
        let (status, body) = scene.tidegate.submit(&request);
        assert_eq!(status, 400, "{token} {place}: {body}");
        text(&body, "message")
    };
    let registry = scene.passage.name();
    for (token, place, repository) in [
        // Her login may read there.
        (READER, scene.place(), "kept/acme/app"),
        // Her login may push, elsewhere.
        (ADA, format!("{registry}/foreign"), "foreign/acme/app"),
    ] {
        let message = refused(token, &place);
        for word in [registry.as_str(), repository, "push"] {
            assert!(message.contains(word), "{token} {place}: {message}");
        }
        assert!(!message.contains("password-of"), "{message}");
    }
    let message = refused(STRANGER, &scene.place());
    assert!(message.contains(&registry), "{message}");
    assert!(
        message.contains("login") || message.contains("credentials"),
        "{message}"
    );
    // Nobody at all may not have it done.
    let request =
        json!({"containerImage": image, "buildRepository": scene.place(), "mirror": true});
    let (status, body) = scene.tidegate.submit(&request);
    assert_eq!(status, 400, "{body}");
    for repository in ["kept/acme/app", "foreign/acme/app"] {
        assert!(scene.target.blobs(repository).is_empty(), "{repository}");
        assert!(
            scene.target.manifests(repository).is_empty(),
            "{repository}"
        );
    }
    assert!(
        !scene
            .target
            .writes()
            .iter()
            .any(|write| write.status == 201)
    );
}

/// What the official command line sends, and how it waits (wave-api §14).
#[test]
fn the_requests_of_waves_command_line_are_answered_as_it_waits_for_it() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let shelf = Shelf::new(&scene.source, "acme/app");
    shelf.image_of("v1", 1, &[3000, 4000]);
    let as_cli = |more: Value| {
        let mut request = json!({
            "freeze": false, "dryRun": false, "mirror": true,
            "timestamp": "2026-03-04T05:06:07.123456789+01:00",
            "towerEndpoint": "https://api.cloud.seqera.io",
            "towerAccessToken": ADA, "towerWorkspaceId": 1,
            "containerImage": shelf.reference("v1"), "buildRepository": scene.place(),
        });
        for (key, value) in more.as_object().expect("fields") {
            request[key] = value.clone();
        }
        request
    };
    let dry = scene.ask(&as_cli(json!({"dryRun": true})));
    assert_eq!(dry["succeeded"], true, "{dry}");
    assert_eq!(dry["cached"], false, "{dry}");
    assert!(
        !scene
            .target
            .writes()
            .iter()
            .any(|write| write.status == 201)
    );

    let submitted = scene.ask(&as_cli(json!({})));
    assert!(submitted["succeeded"].is_null(), "{submitted}");
    for (key, value) in [("freeze", false), ("mirror", true), ("cached", false)] {
        assert_eq!(submitted[key], value, "{submitted}");
    }
    let target = text(&submitted, "targetImage");
    assert_eq!(text(&submitted, "containerImage"), target);
    let id = text(&submitted, "buildId");
    assert!(id.starts_with("mr-"), "{id}");
    assert!(submitted["containerToken"].is_null(), "{submitted}");
    assert!(submitted["expiration"].is_null(), "{submitted}");
    let status = scene.finished(&submitted);
    assert_eq!(status["succeeded"], true, "{status}");
    assert_eq!(text(&status, "mirrorId"), id);
    assert!(status["buildId"].is_null(), "{status}");
    for key in ["id", "creationTime"] {
        text(&status, key);
    }
    assert!(text(&status, "creationTime").ends_with('Z'), "{status}");
    // Without a fraction it would be nanoseconds to that client.
    assert!(status["duration"].is_f64(), "{status}");
    assert!(status["reason"].is_null(), "{status}");

    let dry = scene.ask(&as_cli(json!({"dryRun": true})));
    assert_eq!(
        (&dry["cached"], &dry["succeeded"]),
        (&json!(true), &json!(true))
    );
    let again = scene.ask(&as_cli(json!({})));
    assert_eq!(
        (&again["cached"], &again["succeeded"], &again["buildId"]),
        (&json!(true), &json!(true), &json!(id))
    );

    // What it cannot mean.
    let digest = digest(b"nothing");
    for (more, about) in [
        (json!({"freeze": true}), "freeze"),
        (
            json!({"containerFile": "RlJPTSBhbHBpbmU="}),
            "containerFile",
        ),
        (
            json!({"containerIncludes": ["alpine"]}),
            "containerIncludes",
        ),
        (
            json!({"containerConfig": {"env": ["A=1"]}}),
            "containerConfig",
        ),
        (json!({"buildRepository": null}), "buildRepository"),
        (
            json!({"buildRepository": format!("https://{}", scene.place())}),
            "buildRepository",
        ),
        (
            json!({"buildRepository": format!("{}/other", scene.source.name())}),
            "one registry",
        ),
        (
            json!({"buildRepository": format!("{}:v1", scene.place())}),
            "buildRepository",
        ),
        (json!({"containerImage": null}), "containerImage"),
        (json!({"containerImage": shelf.reference(&digest)}), &digest),
        (json!({"towerAccessToken": null}), "oken"),
    ] {
        let (status, body) = scene.tidegate.submit(&as_cli(more.clone()));
        assert_eq!(status, 400, "{more}: {body}");
        assert!(text(&body, "message").contains(about), "{more}: {body}");
    }
    let old = scene.tidegate.post("/container-token", &as_cli(json!({})));
    assert_eq!(old.0, 400, "{}", old.1);
}

/// Tenants who want the same have a job each, and nothing that one is told leads to the other's. A record is read by whoever
/// has its id, as everywhere else, so there is nothing in it that others might not know.
#[test]
fn a_tenant_learns_nothing_of_the_jobs_of_another() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let shelf = Shelf::new(&scene.source, "acme/app");
    shelf.image_of("v1", 1, &[300_000, 400_000]);
    let gate = Gate::default();
    scene
        .passage
        .put_often(Kind::Bytes, &Obstacle::Gated(1000, gate.clone()), 20);
    let image = shelf.reference("v1");
    let of_ada = scene.mirror(&image);
    scene.passage.wait_for_halted(1);
    let mut request = scene.request(&image, &json!({"mirror": true}));
    request["towerAccessToken"] = json!(BOB);
    let of_bob = scene.ask(&request);
    let ids = [&of_ada, &of_bob].map(|submitted| text(submitted, "buildId"));
    assert_ne!(ids[0], ids[1]);
    let seen_by_bob = [
        of_bob.to_string(),
        scene.status(&of_bob).to_string(),
        scene.log_of(&of_bob),
    ];
    for seen in seen_by_bob {
        for foreign in [ids[0].as_str(), &text(&of_ada, "requestId"), "ada", ADA] {
            assert!(!seen.contains(foreign), "{foreign} in {seen}");
        }
    }
    gate.open();
    for submitted in [&of_ada, &of_bob] {
        scene.succeeds(submitted);
    }
    scene.assert_same("acme/app", "v1");
    // What is done already is told to both, and is each one's own.
    for (request, id) in [
        (scene.request(&image, &json!({"mirror": true})), &ids[0]),
        (request, &ids[1]),
    ] {
        let again = scene.ask(&request);
        assert_eq!(
            (&again["buildId"], &again["cached"]),
            (&json!(id), &json!(true))
        );
    }
    for id in &ids {
        let record = scene.tidegate.get(&format!("/v1alpha1/mirrors/{id}"));
        assert_eq!(record.status(), 200, "{}", record.text());
        for hidden in ["access-token", "password-of", "127.0.0.1\"", "mail"] {
            assert!(!record.text().contains(hidden), "{}", record.text());
        }
    }
    // Neither a name of another kind nor one that was guessed.
    for path in [
        format!("/v1alpha1/builds/{}", ids[0]),
        "/v1alpha1/mirrors/mr-0123456789ab".to_owned(),
        "/v1alpha1/mirrors/mr-0123456789ab/logs".to_owned(),
    ] {
        let answer = scene.tidegate.get(&path);
        assert_eq!(answer.status(), 404, "{path}: {}", answer.text());
    }
}
