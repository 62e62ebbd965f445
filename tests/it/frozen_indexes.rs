//! Images that are frozen for several platforms: an index of them, each with all that was asked for.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    content::digest,
    docker_registry::DockerRegistry,
    image::{Image, archive},
    layer::Layer,
    mirror_scene::{MirrorScene, PUSHER, text},
    programs::require,
    runtimes::{Containerd, podman_unpack_as, podman_unpack_for},
};

const BOTH: &str = "linux/amd64,linux/arm64";
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

fn layer() -> Layer {
    Layer::of(&[("bin/tool", "a tool"), ("etc/settings", "of a tool")])
}

fn request(scene: &MirrorScene, image: &str, platform: &str) -> Value {
    let more = json!({
        "freeze": true, "containerPlatform": platform,
        "containerConfig": {"entrypoint": ["/bin/tool", "-x"], "env": ["A=2"], "layers": [layer().posted()]},
    });
    scene.request(image, &more)
}

/// Pushes an index to the source with an image for each of these, whose files say whose they are: `"a tool, amd64"`. A
/// layer for each list of files.
fn push_told_apart(
    source: &DockerRegistry,
    repository: &str,
    architectures: &[&str],
    layers: &[&[(&str, &str)]],
) -> (Image, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let of = |architecture: &str| {
        let told_apart = |files: &&[(&str, &str)]| {
            let files = files.iter();
            let files: Vec<(&str, String)> = files
                .map(|(name, content)| (*name, format!("{content}, {architecture}")))
                .collect();
            let files = files.iter();
            let files: Vec<(&str, &str)> = files
                .map(|(name, content)| (*name, content.as_str()))
                .collect();
            archive(&files)
        };
        layers.iter().map(told_apart).collect()
    };
    let images: Vec<(&str, Vec<Vec<u8>>)> = architectures
        .iter()
        .map(|architecture| (*architecture, of(architecture)))
        .collect();
    let image = Image::build_of(&folder.path().join("image"), &images);
    source.push(&image, repository, "v1");
    (image, format!("{}/{repository}:v1", source.name()))
}

fn push_base(scene: &MirrorScene) -> (Image, String) {
    let layers: [&[(&str, &str)]; 2] = [
        &[("etc/base", "a base")],
        &[("bin/tool", "of the base"), ("etc/more", "more")],
    ];
    push_told_apart(&scene.source, "acme/app", &ARCHITECTURES, &layers)
}

/// Architecture and digest of each image of an index.
fn entries(bytes: &[u8]) -> Vec<(String, String)> {
    let index: Value = serde_json::from_slice(bytes).expect("an index");
    let entries = index["manifests"].as_array().expect("entries").iter();
    let of = |entry: &Value| {
        (
            text(&entry["platform"], "architecture"),
            text(entry, "digest"),
        )
    };
    entries.map(of).collect()
}

/// Made, and there.
fn made(scene: &MirrorScene, request: &Value) -> (String, Vec<u8>) {
    let submitted = scene.ask(request);
    assert_eq!(submitted["cached"], false, "{submitted}");
    scene.succeeds(&submitted);
    let target = text(&submitted, "targetImage");
    let bytes = scene.frozen(&target).expect("a frozen image");
    (target, bytes)
}

/// By each runtime, for each platform. `look` gets what is in a file, from where it was unpacked.
fn pull_with_each_runtime(
    scene: &MirrorScene,
    target: &str,
    index: &[u8],
    look: impl Fn(&str, &dyn Fn(&str) -> String),
) {
    let target = scene.direct(target);
    let login = format!("{}:{}", PUSHER.0, PUSHER.1);
    for (architecture, manifest) in entries(index) {
        let platform = format!("linux/{architecture}");
        let unpacked = podman_unpack_for(&platform, &target, &login);
        look(&architecture, &|name| unpacked.file(name));
        let containerd = Containerd::start();
        containerd.pull_for(&platform, &target, &login);
        for expected in [digest(index), manifest] {
            assert_eq!(containerd.stored(&expected), expected, "{platform}");
        }
        // A layer's folder has what is below it, too: the last one has all.
        look(&architecture, &|name| containerd.topmost(name));
    }
}

/// The record says which layers are for one platform only.
fn assert_told_with_platforms(scene: &MirrorScene, request: &Value) {
    let id = text(&scene.ask(request), "requestId");
    let record = scene.tidegate.get(&format!("/container-token/{id}"));
    let record = record.json();
    let layers = record["request"]["containerConfig"]["layers"].as_array();
    let layers = layers.unwrap_or_else(|| panic!("no layers in {record}"));
    let told: Vec<&Value> = layers.iter().map(|layer| &layer["platform"]).collect();
    let [amd64, arm64] = ["linux/amd64", "linux/arm64"].map(Value::from);
    let expected = [&Value::Null, &amd64, &amd64, &arm64, &arm64, &amd64, &arm64];
    assert_eq!(told, expected, "{record}");
}

/// All that the target has of a repository, by digest.
fn contents(registry: &DockerRegistry, repository: &str) -> (Vec<String>, Vec<String>) {
    let contents = (registry.manifests(repository), registry.blobs(repository));
    for digest in contents.0.iter().chain(&contents.1) {
        let bytes = fs::read(registry.stored(digest)).expect("a stored blob");
        assert_eq!(crate::support::content::digest(&bytes), *digest);
    }
    contents
}

#[test]
fn a_freeze_for_several_platforms_is_an_index_of_them() {
    require!("docker-registry", "skopeo", "podman");
    let scene = MirrorScene::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let architectures = ["arm64", "s390x", "amd64"];
    let image = Image::build_for(&folder.path().join("index"), &architectures, &[3000, 9]);
    scene.source.push(&image, "acme/app", "v1");
    let name = format!("{}/acme/app:v1", scene.source.name());
    // As it is: what the source has, in the source's order.
    let plain = |platforms: &str| {
        let more = json!({"freeze": true, "containerPlatform": platforms});
        scene.request(&name, &more)
    };
    let made = scene.ask(&plain("linux/amd64,linux/arm64"));
    scene.succeeds(&made);
    let bytes = scene.frozen(&text(&made, "targetImage")).expect("an index");
    let expected = [(0, "arm64"), (2, "amd64")];
    let expected = expected.map(|(at, name)| (name.to_owned(), image.manifests[at].digest.clone()));
    assert_eq!(entries(&bytes), expected);
    let kept = scene.target.blobs("kept");
    for digest in &image.manifests[1].layers {
        assert!(!kept.contains(digest), "another platform's: {kept:?}");
    }
    let again = scene.ask(&plain("arm64, amd64"));
    assert_eq!(again["targetImage"], made["targetImage"]);
    assert_eq!(again["cached"], true, "{again}");
    // All that there are is the index itself.
    let all = scene.ask(&plain("s390x,arm64,amd64"));
    scene.succeeds(&all);
    let bytes = scene.frozen(&text(&all, "targetImage")).expect("an index");
    assert_eq!(digest(&bytes), image.digest);

    // With layers and settings, each of them.
    let changed = scene.ask(&request(&scene, &name, "linux/amd64,linux/arm64"));
    scene.succeeds(&changed);
    let target = text(&changed, "targetImage");
    let bytes = scene.frozen(&target).expect("an index");
    let made = entries(&bytes);
    let names: Vec<&str> = made.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["arm64", "amd64"]);
    for ((_, digest), at) in made.iter().zip([0, 2]) {
        let manifest = scene.at_target("kept", digest).expect("it is pushed, too");
        let manifest = String::from_utf8_lossy(&manifest).into_owned();
        assert!(
            manifest.contains(&image.manifests[at].layers[0]),
            "{manifest}"
        );
        assert!(manifest.contains(&layer().digest), "{manifest}");
    }
    // The same manifest as that of a freeze for one platform.
    let single = scene.ask(&request(&scene, &name, "amd64"));
    scene.succeeds(&single);
    let single = scene
        .frozen(&text(&single, "targetImage"))
        .expect("an image");
    assert_eq!(made[1].1, digest(&single));
    let target = scene.direct(&target);
    let unpacked = podman_unpack_as(&target, &format!("{}:{}", PUSHER.0, PUSHER.1));
    assert_eq!(unpacked.file("bin/tool"), "a tool");

    // Images that have not all of them, changed and as they are, and what cannot be.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let alone = Image::build(&folder.path().join("image"), &[3000]);
    scene.source.push(&alone, "acme/app", "alone");
    let of_alone = name.replace(":v1", ":alone");
    let mut elsewhere = plain("amd64,arm64");
    elsewhere["containerImage"] = json!(of_alone);
    for (request, about) in [
        (
            plain("amd64,riscv64,arm64"),
            "no image for linux/riscv64, only for linux/arm64, linux/s390x, linux/amd64",
        ),
        (elsewhere, "no image for linux/arm64, only for linux/amd64"),
        (
            request(&scene, &of_alone, "amd64,arm64"),
            "no image for linux/arm64, only for linux/amd64",
        ),
    ] {
        let (status, body) = scene.tidegate.submit(&request);
        assert_eq!(status, 400, "{request}: {body}");
        assert!(text(&body, "message").contains(about), "{request}: {body}");
    }
}

#[test]
fn each_runtime_pulls_each_platform_of_a_frozen_index() {
    require!("docker-registry", "skopeo", "podman", "containerd", "ctr");
    let scene = MirrorScene::new();
    let (_, name) = push_base(&scene);
    let (target, index) = made(&scene, &request(&scene, &name, BOTH));
    pull_with_each_runtime(&scene, &target, &index, |architecture, file| {
        assert_eq!(file("etc/base"), format!("a base, {architecture}"));
        assert_eq!(file("etc/more"), format!("more, {architecture}"));
        assert_eq!(file("bin/tool"), "a tool");
        assert_eq!(file("etc/settings"), "of a tool");
    });
}

#[test]
fn a_frozen_index_is_the_same_to_the_bit_whenever_it_is_made() {
    require!("docker-registry", "skopeo");
    let mut scene = MirrorScene::new();
    let (_, name) = push_base(&scene);
    let asked = request(&scene, &name, BOTH);
    let (target, index) = made(&scene, &asked);
    let first = contents(&scene.target, "kept");
    assert_eq!(first.0.len(), 3, "an index and two images: {first:?}");

    // Into another repository.
    let mut elsewhere = asked.clone();
    elsewhere["buildRepository"] = json!(format!("{}/others/frozen", scene.passage.name()));
    let (other, bytes) = made(&scene, &elsewhere);
    assert_ne!(other, target);
    assert_eq!(bytes, index);
    assert_eq!(contents(&scene.target, "others/frozen"), first);

    // When all of it has been deleted: by the server that knows it, and by one that does not.
    for is_another_server in [false, true] {
        scene.registries.target.restart_empty();
        assert_eq!(scene.frozen(&target), None);
        if is_another_server {
            scene.replace_server();
        }
        let (again, bytes) = made(&scene, &asked);
        assert_eq!(again, target);
        assert_eq!(bytes, index);
        assert_eq!(contents(&scene.target, "kept"), first);
    }

    // By another server, where it is.
    scene.replace_server();
    let before = scene.target.writes();
    let found = scene.ask(&asked);
    assert_eq!(found["targetImage"], target);
    assert_eq!(found["succeeded"], true, "{found}");
    assert_eq!(scene.target.writes(), before);
}

#[test]
fn each_platform_gets_the_layers_of_the_included_images_for_it() {
    require!("docker-registry", "skopeo", "podman", "containerd", "ctr");
    let mut scene = MirrorScene::new();
    let (base, name) = push_base(&scene);
    let order = ["s390x", "arm64", "amd64"];
    let layers: [&[(&str, &str)]; 2] = [
        &[("bin/tool", "tools"), ("etc/shared", "tools")],
        &[("etc/tools", "second of tools")],
    ];
    let (tools, tools_name) = push_told_apart(&scene.source, "acme/tools", &order, &layers);
    let layers: [&[(&str, &str)]; 1] = [&[("etc/shared", "last"), ("etc/last", "last")]];
    let (last, last_name) = push_told_apart(&scene.source, "acme/last", &ARCHITECTURES, &layers);
    let asked = |platform: &str| {
        let mut request = request(&scene, &name, platform);
        request["containerIncludes"] = json!([tools_name, last_name]);
        request
    };
    let both = asked(BOTH);
    let (target, index) = made(&scene, &both);
    assert_told_with_platforms(&scene, &both);
    let images = entries(&index);
    let names: Vec<&str> = images.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ARCHITECTURES, "in the image's order");
    for ((architecture, digest_of_both), (at, tools_at)) in images.iter().zip([(0, 2), (1, 1)]) {
        let manifest = scene.at_target("kept", digest_of_both).expect("an image");
        let manifest: Value = serde_json::from_slice(&manifest).expect("a manifest");
        let put = manifest["layers"].as_array().expect("layers").iter();
        let put: Vec<String> = put.map(|layer| text(layer, "digest")).collect();
        let own = [layer().digest];
        let expected = [
            &base.manifests[at].layers[..],
            &own,
            &tools.manifests[tools_at].layers,
            &last.manifests[at].layers,
        ];
        assert_eq!(put, expected.concat(), "{architecture}");
        // The same image as that of a freeze for it alone.
        let (alone, bytes) = made(&scene, &asked(architecture));
        assert_eq!(digest(&bytes), *digest_of_both, "{architecture}");
        assert_ne!(alone, target);
    }
    pull_with_each_runtime(&scene, &target, &index, |architecture, file| {
        for (name, content) in [
            ("etc/base", "a base"),
            ("etc/more", "more"),
            ("bin/tool", "tools"),
            ("etc/tools", "second of tools"),
            ("etc/shared", "last"),
            ("etc/last", "last"),
        ] {
            assert_eq!(file(name), format!("{content}, {architecture}"), "{name}");
        }
        assert_eq!(file("etc/settings"), "of a tool");
    });

    // The same request finds it, here and at another server, which has no build to tell of; another order of the images is another one.
    let reversed = asked("arm64, amd64");
    let mut other_order = both.clone();
    other_order["containerIncludes"] = json!([last_name, tools_name]);
    let alone = asked("amd64");
    let before = scene.target.writes();
    for is_another_server in [false, true] {
        if is_another_server {
            scene.replace_server();
        }
        for request in [&both, &reversed] {
            let found = scene.ask(request);
            assert_eq!(found["targetImage"], target, "{found}");
            assert_eq!(found["succeeded"], true, "{found}");
            if !is_another_server {
                assert_eq!(found["cached"], true, "{found}");
            }
        }
    }
    assert_eq!(scene.target.writes(), before);
    let (other, _) = made(&scene, &other_order);
    assert_ne!(other, target);

    // An included image that has become another one for one of the platforms.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let images = [
        (
            "amd64",
            vec![archive(&[
                ("etc/shared", "last, amd64"),
                ("etc/last", "last, amd64"),
            ])],
        ),
        ("arm64", vec![archive(&[("etc/last", "new, arm64")])]),
    ];
    let moved = Image::build_of(&folder.path().join("image"), &images);
    assert_eq!(moved.manifests[0].digest, last.manifests[0].digest);
    scene.source.push(&moved, "acme/last", "v1");
    let unmoved = scene.ask(&alone);
    assert_eq!(unmoved["succeeded"], true, "{unmoved}");
    let (renamed, bytes) = made(&scene, &both);
    assert_ne!(renamed, target);
    let renewed = entries(&bytes);
    assert_eq!(renewed[0], entries(&index)[0]);
    assert_ne!(renewed[1], entries(&index)[1]);
}

#[test]
fn an_included_image_has_all_platforms_that_are_asked_for() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let (_, name) = push_base(&scene);
    let layers: [&[(&str, &str)]; 1] = [&[("bin/tool", "tools")]];
    let push = |repository: &str, architectures: &[&str]| {
        push_told_apart(&scene.source, repository, architectures, &layers).1
    };
    let whole = push("acme/whole", &ARCHITECTURES);
    let part = push("acme/part", &["amd64", "s390x"]);
    let alone = push("acme/alone", &["arm64"]);
    for (includes, about) in [
        (
            vec![&whole, &part],
            format!(
                "containerIncludes: {part}: it has no image for linux/arm64, only for linux/amd64, linux/s390x"
            ),
        ),
        (
            vec![&alone, &whole],
            format!(
                "containerIncludes: {alone}: it has no image for linux/amd64, only for linux/arm64"
            ),
        ),
    ] {
        for is_dry_run in [false, true] {
            let mut request = request(&scene, &name, BOTH);
            request["containerIncludes"] = json!(includes);
            request["dryRun"] = json!(is_dry_run);
            let (status, body) = scene.tidegate.submit(&request);
            assert_eq!(status, 400, "{request}: {body}");
            let message = text(&body, "message");
            assert!(message.contains(&about), "{about}: {message}");
        }
    }
    assert!(scene.target.tags("kept").is_empty());
    // Alone it goes with a freeze for the one that it has.
    let mut good = request(&scene, &name, "arm64");
    good["containerIncludes"] = json!([alone]);
    made(&scene, &good);
}

#[test]
fn a_frozen_index_survives_a_kill_with_what_it_includes() {
    require!("docker-registry", "skopeo");
    let mut scene = MirrorScene::new();
    let (_, name) = push_base(&scene);
    let layers: [&[(&str, &str)]; 1] = [&[("bin/tool", "tools")]];
    let (_, tools) = push_told_apart(&scene.source, "acme/tools", &ARCHITECTURES, &layers);
    let mut asked = request(&scene, &name, BOTH);
    asked["containerIncludes"] = json!([tools]);
    let (target, index) = made(&scene, &asked);
    scene.registries.target.restart_empty();

    scene.replace_server();
    scene.frozen_across_a_kill(&asked);
    assert_eq!(scene.frozen(&target), Some(index));
}
