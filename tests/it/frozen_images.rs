//! Images that are frozen: what a container request makes of an image, pushed to stay.

use serde_json::{Value, json};

use crate::support::{
    content::digest,
    docker_registry::{DockerRegistry, Login},
    image::Image,
    layer::Layer,
    mirror_scene::{ADA, MirrorScene, PUSHER, READER, STRANGER, text},
    programs::require,
    runtimes::{Containerd, podman_unpack_as},
    tidegate::Setup,
};

fn layer() -> Layer {
    Layer::of(&[("bin/tool", "a tool"), ("etc/settings", "of a tool")])
}

fn request(scene: &MirrorScene, image: &str, platform: &str) -> Value {
    let more = json!({
        "freeze": true, "containerPlatform": platform,
        "containerConfig": {
            "entrypoint": ["/bin/tool", "-x"], "env": ["A=2", "B=with blanks"], "workingDir": "/work",
            "layers": [layer().posted()],
        },
    });
    scene.request(image, &more)
}

/// At the source, for two platforms.
fn image(scene: &MirrorScene) -> (Image, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = Image::build_for(
        &folder.path().join("index"),
        &["amd64", "arm64"],
        &[3000, 9],
    );
    scene.source.push(&image, "acme/app", "v1");
    (image, format!("{}/acme/app:v1", scene.source.name()))
}

#[test]
fn a_frozen_image_is_pulled_from_its_registry_as_it_was_made() {
    require!("docker-registry", "skopeo", "podman", "containerd", "ctr");
    let scene = MirrorScene::new();
    let (image, name) = image(&scene);
    let submitted = scene.ask(&request(&scene, &name, "linux/amd64"));
    for (key, value) in [("freeze", true), ("mirror", false), ("cached", false)] {
        assert_eq!(submitted[key], value, "{submitted}");
    }
    assert!(submitted["succeeded"].is_null(), "{submitted}");
    assert!(submitted["containerToken"].is_null(), "{submitted}");
    let build = text(&submitted, "buildId");
    let target = text(&submitted, "targetImage");
    let (repository, _) = target.rsplit_once(':').expect("a tag");
    assert_eq!(repository, scene.place());
    assert!(build.starts_with("bd-") && build.ends_with("_1"), "{build}");
    let status = scene.succeeds(&submitted);
    assert_eq!(text(&status, "buildId"), build);

    let bytes = scene.frozen(&target).expect("a frozen image");
    // All that it needs is there: nothing of it is served by tidegate.
    let login = format!("{}:{}", PUSHER.0, PUSHER.1);
    let target = scene.direct(&target);
    let unpacked = podman_unpack_as(&target, &login);
    assert_eq!(unpacked.file("bin/tool"), "a tool");
    assert_eq!(unpacked.file("etc/settings"), "of a tool");
    assert!(unpacked.root.join("layer-0").is_file(), "the image's own");
    assert_eq!(unpacked.config["Entrypoint"], json!(["/bin/tool", "-x"]));
    assert_eq!(unpacked.config["WorkingDir"], "/work");
    let env = unpacked.config["Env"].to_string();
    assert!(
        env.contains("A=2") && env.contains("B=with blanks"),
        "{env}"
    );
    let containerd = Containerd::start();
    containerd.pull_as(&target, &login);
    let top = digest(&bytes);
    assert_eq!(containerd.stored(&top), top);
    assert_eq!(containerd.unpacked("bin/tool"), ["a tool"]);

    // Its layers are the image's, and the request's.
    let kept = scene.target.blobs("kept");
    assert!(kept.contains(&layer().digest), "{kept:?}");
    for digest in &image.manifests[0].layers {
        assert!(kept.contains(digest), "{kept:?}");
    }
    for digest in &image.manifests[1].layers {
        assert!(!kept.contains(digest), "another platform's: {kept:?}");
    }
}

#[test]
fn the_same_freeze_is_the_same_image_wherever_it_is_made() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let (image, name) = image(&scene);
    let first = scene.ask(&request(&scene, &name, "linux/amd64"));
    scene.succeeds(&first);
    let target = text(&first, "targetImage");
    let bytes = scene.frozen(&target).expect("a frozen image");

    let before = scene.target.writes();
    let again = scene.ask(&request(&scene, &name, "linux/amd64"));
    assert_eq!(again["targetImage"], first["targetImage"]);
    assert_eq!(
        (&again["succeeded"], &again["cached"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(scene.target.writes(), before);

    // For another platform, or with other settings, it is another image.
    let arm = scene.ask(&request(&scene, &name, "linux/arm64"));
    scene.succeeds(&arm);
    assert_ne!(arm["targetImage"], first["targetImage"]);
    let of_arm = scene
        .frozen(&text(&arm, "targetImage"))
        .expect("a frozen image");
    assert_ne!(of_arm, bytes);
    assert!(String::from_utf8_lossy(&of_arm).contains(&image.manifests[1].layers[0]));
    let mut other = request(&scene, &name, "linux/amd64");
    other["containerConfig"]["env"] = json!(["A=3"]);
    let other = scene.ask(&other);
    scene.succeeds(&other);
    assert_ne!(other["targetImage"], first["targetImage"]);

    // On another server, which knows nothing of the first, and for a registry that is empty.
    let elsewhere = MirrorScene::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let same = Image::build_for(
        &folder.path().join("index"),
        &["amd64", "arm64"],
        &[3000, 9],
    );
    assert_eq!(same.digest, image.digest);
    elsewhere.source.push(&same, "acme/app", "v1");
    let name = format!("{}/acme/app:v1", elsewhere.source.name());
    let second = elsewhere.ask(&request(&elsewhere, &name, "linux/amd64"));
    elsewhere.succeeds(&second);
    let there = elsewhere
        .frozen(&text(&second, "targetImage"))
        .expect("a frozen image");
    assert_eq!(
        String::from_utf8_lossy(&there),
        String::from_utf8_lossy(&bytes)
    );
}

#[test]
fn a_freeze_survives_a_kill_with_its_layers() {
    require!("docker-registry", "skopeo", "podman");
    let mut scene = MirrorScene::new();
    let (_, name) = image(&scene);
    let asked = request(&scene, &name, "linux/amd64");
    let submitted = scene.frozen_across_a_kill(&asked);
    let target = text(&submitted, "targetImage");
    let target = scene.direct(&target);
    let unpacked = podman_unpack_as(&target, &format!("{}:{}", PUSHER.0, PUSHER.1));
    assert_eq!(unpacked.file("bin/tool"), "a tool");
}

/// As the official command line sends it, and what it cannot mean.
#[test]
fn freezes_that_cannot_be_are_refused_at_once() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let (_, name) = image(&scene);
    let good = request(&scene, &name, "linux/amd64");
    for (key, value, about) in [
        ("buildRepository", Value::Null, "buildRepository"),
        ("buildRepository", json!(scene.passage.name()), "repository"),
        (
            "buildRepository",
            json!(format!("{}/foreign", scene.passage.name())),
            "push",
        ),
        (
            "containerPlatform",
            json!("linux/amd64,linux/riscv64"),
            "no image for linux/riscv64, only for linux/amd64, linux/arm64; ask for one of these by containerPlatform",
        ),
        ("containerPlatform", json!("linux/riscv64"), "latform"),
        (
            "containerImage",
            json!(format!("{}/acme/none:v1", scene.source.name())),
            "acme/none",
        ),
        ("towerAccessToken", json!(READER), "push"),
        ("towerAccessToken", json!(STRANGER), "login"),
    ] {
        let mut request = good.clone();
        request[key] = value.clone();
        let (status, body) = scene.tidegate.submit(&request);
        assert_eq!(status, 400, "{key} {value}: {body}");
        let message = text(&body, "message");
        assert!(
            message.contains(about) || about == "login" && message.contains("credentials"),
            "{key} {value}: {message}"
        );
    }
    let mut dry = good.clone();
    dry["dryRun"] = json!(true);
    let dry = scene.ask(&dry);
    assert_eq!(
        (&dry["cached"], &dry["succeeded"]),
        (&json!(false), &json!(true))
    );
    assert!(scene.target.manifests("kept").is_empty());
    let submitted = scene.ask(&good);
    assert_eq!(submitted["targetImage"], dry["targetImage"]);
    scene.succeeds(&submitted);
    assert!(!scene.tidegate.log().text().contains(ADA));
}

/// An open registry, and nobody who asks: allowed where anonymous callers are.
#[test]
fn an_anonymous_freeze_goes_where_everybody_may_push() {
    require!("docker-registry", "skopeo");
    // It is one that only the server can reach.
    let setup = Setup::new().section("[mirror]\npush_with_own_logins = true");
    let scene = MirrorScene::with_target(setup, |_| DockerRegistry::start(&Login::Open));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = Image::build(&folder.path().join("image"), &[3000]);
    scene.target.push(&image, "acme/app", "v1");
    let mut request = request(
        &scene,
        &format!("{}/acme/app:v1", scene.passage.name()),
        "linux/amd64",
    );
    request["towerAccessToken"] = Value::Null;
    let submitted = scene.ask(&request);
    scene.succeeds(&submitted);
    assert_eq!(scene.target.tags("kept").len(), 1);
}
