//! Images with the layers and settings of their container requests on them.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    accounts::Accounts,
    content::{Content, digest},
    docker_registry::{DockerRegistry, Login},
    http::{End, Response},
    image::Image,
    layer::Layer,
    liar::{Auth, Behaviour, Liar, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, blob_path, manifest_path},
    programs::{find, require},
    runtimes::{Containerd, podman_run, podman_starts, podman_unpack, skopeo_copy, umoci_unpack},
    tidegate::{Directory, Grant, Setup, Tidegate},
};

const REPOSITORY: &str = "acme/app";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const OCI_GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// One image at the liar, with a layer of its own.
struct Base {
    descriptor: Value,
    layer: Layer,
}

fn base(liar: &Liar, repository: &str, tag: &str, architecture: &str, types: [&str; 3]) -> Base {
    let [manifest_type, config_type, layer_type] = types;
    let layer = Layer::of(&[("base", &format!("{tag} for {architecture}"))]);
    liar.blob(repository, Content::of(&layer.bytes));
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2020-02-02T02:02:02Z",
        "config": {"Entrypoint": ["/old"], "Cmd": ["old"], "Env": ["PATH=/bin", "A=1"], "User": "app"},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        "history": [{"created_by": "base"}],
    });
    let config = Content::of(config.to_string());
    let config_digest = liar.blob(repository, config.clone());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest_type,
        "config": {"mediaType": config_type, "digest": config_digest, "size": config.size()},
        "layers": [{"mediaType": layer_type, "digest": layer.digest, "size": layer.bytes.len()}],
    });
    let bytes = manifest.to_string();
    let digest = liar.manifest(repository, tag, manifest_type, bytes.as_bytes());
    Base {
        descriptor: json!({
            "mediaType": manifest_type, "digest": digest, "size": bytes.len(),
            "platform": {"os": "linux", "architecture": architecture},
        }),
        layer,
    }
}

const OCI: [&str; 3] = [OCI_MANIFEST, OCI_CONFIG, OCI_GZIP_LAYER];
const DOCKER: [&str; 3] = [DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER];

/// An index for amd64 and arm64 under the tag.
fn index(liar: &Liar, repository: &str, tag: &str) -> [Base; 2] {
    let images = ["amd64", "arm64"].map(|architecture| {
        base(
            liar,
            repository,
            &format!("{tag}-{architecture}"),
            architecture,
            OCI,
        )
    });
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [images[0].descriptor, images[1].descriptor],
    });
    liar.manifest(repository, tag, OCI_INDEX, index.to_string().as_bytes());
    images
}

fn layers() -> [Layer; 2] {
    [
        Layer::of(&[("bin/tool", "a tool")]),
        Layer::of(&[("etc/settings", "of a tool")]),
    ]
}

fn request(image: &str, layers: &[Layer]) -> Value {
    let [first, second] = layers else {
        panic!("two layers")
    };
    json!({
        "containerImage": image,
        "containerConfig": {
            "entrypoint": ["/bin/tool", "-x"], "env": ["A=2", "B=3"], "workingDir": "/work",
            "layers": [first.posted(), second.posted_packed()],
        },
    })
}

struct Scene {
    liar: Liar,
    tidegate: Tidegate,
}

impl Scene {
    fn new() -> Self {
        let liar = Liar::open();
        let tidegate = Setup::new().liar(&liar).start();
        Self { liar, tidegate }
    }

    fn grant(&self, tag: &str, layers: &[Layer]) -> Grant {
        let image = self.liar.reference(REPOSITORY, tag);
        self.tidegate.grant_of(&request(&image, layers))
    }

    /// All that tokens have on the disk.
    fn remove_belongings(&self) {
        let kept = self.tidegate.home().join("state/overlays");
        std::fs::remove_dir_all(kept).expect("it was made");
    }

    fn refusal(&self, request: &Value) -> String {
        let (status, body) = self.tidegate.submit(request);
        assert_eq!(status, 400, "{body}");
        body["message"].as_str().expect("a message").to_owned()
    }
}

/// What was answered, once its digest and length are found to be right.
fn manifest(tidegate: &Tidegate, grant: &Grant, version: &str) -> (String, Value) {
    let path = grant.manifest(version);
    let (head, got) = (tidegate.head(&path), tidegate.get(&path));
    assert_eq!(
        (head.status(), got.status()),
        (200, 200),
        "{}",
        got.excerpt()
    );
    let digest = digest(&got.body);
    for response in [&head, &got] {
        assert_eq!(
            response.header("docker-content-digest"),
            Some(digest.as_str())
        );
        assert_eq!(response.head.content_length(), Some(got.body.len() as u64));
    }
    assert_eq!(head.header("content-type"), got.header("content-type"));
    (digest, got.json())
}

fn blob(tidegate: &Tidegate, grant: &Grant, digest: &str) -> Response {
    let got = tidegate.get(&grant.blob(digest));
    assert_eq!(got.status(), 200, "{}", got.excerpt());
    assert_eq!(got.digest(), digest);
    let head = tidegate.head(&grant.blob(digest));
    assert_eq!(head.head.content_length(), Some(got.body.len() as u64));
    got
}

/// Not only unpacked: what a layer brought is started as the image's entrypoint, with the settings of the request.
#[test]
fn a_container_starts_with_what_its_overlay_brought() {
    require!("docker-registry", "skopeo", "podman", "runc", "busybox");
    let busybox = find("busybox").expect("it is required");
    if let Err(problem) = podman_starts(&busybox, &["true"]) {
        eprintln!("left out: podman starts no container here: {problem}");
        return;
    }
    let registry = DockerRegistry::start(&Login::Open);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let index = Image::build_for(&folder.path().join("index"), &["amd64", "arm64"], &[3000]);
    registry.push(&index, "acme/index", "v1");
    let docker = ["--format=v2s2", "--dest-compress-format=gzip"];
    let image = Image::build(&folder.path().join("docker"), &[4000]);
    registry.push_as(&image, "acme/docker", "v1", &docker);
    let tool = folder.path().join("tool");
    fs::create_dir_all(tool.join("opt/bin")).expect("a writable folder");
    fs::create_dir_all(tool.join("work")).expect("a writable folder");
    fs::copy(&busybox, tool.join("opt/bin/busybox")).expect("a program");
    let tool = Layer::of_folder(&tool);
    let settings = Layer::of(&[("etc/settings", "of a tool")]);
    let tidegate = Setup::new().registry(registry.name()).start();
    for repository in ["acme/index", "acme/docker"] {
        let grant = tidegate.grant_of(&json!({
            "containerImage": format!("{}/{repository}:v1", registry.name()),
            "containerConfig": {
                "entrypoint": ["/opt/bin/busybox", "sh", "-c"],
                "cmd": ["echo \"$GREETING from $PWD\"; /opt/bin/busybox cat /etc/settings; /opt/bin/busybox ls /layer-0"],
                "env": ["GREETING=good morning"],
                "workingDir": "/work",
                "layers": [tool.posted(), settings.posted()],
            },
        }));
        let printed = podman_run(&grant.target);
        assert_eq!(
            printed, "good morning from /work\nof a tool/layer-0\n",
            "{repository}"
        );
    }
}

#[test]
fn runtimes_unpack_images_with_their_overlays() {
    require!(
        "docker-registry",
        "skopeo",
        "podman",
        "containerd",
        "ctr",
        "umoci"
    );
    let registry = DockerRegistry::start(&Login::Open);
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Other layers in each, so that none is there already when it is unpacked.
    let index = Image::build_for(&folder.path().join("index"), &["amd64", "arm64"], &[3000]);
    registry.push(&index, "acme/index", "v1");
    for (repository, size, how) in [
        (
            "acme/docker",
            4000,
            ["--format=v2s2", "--dest-compress-format=gzip"],
        ),
        (
            "acme/zstd",
            5000,
            ["--format=oci", "--dest-compress-format=zstd"],
        ),
    ] {
        let image = Image::build(&folder.path().join(repository), &[size]);
        registry.push_as(&image, repository, "v1", &how);
    }

    let tidegate = Setup::new().registry(registry.name()).start();
    let layers = layers();
    let containerd = Containerd::start();
    for repository in ["acme/index", "acme/docker", "acme/zstd"] {
        let request = request(&format!("{}/{repository}:v1", registry.name()), &layers);
        let grant = tidegate.grant_of(&request);
        let (top, found) = manifest(&tidegate, &grant, "v1");
        let found = found.to_string();
        let is_as_pushed = match repository {
            "acme/index" => found.contains(OCI_INDEX),
            "acme/docker" => found.contains(DOCKER_LAYER),
            _ => found.contains("tar+zstd"),
        };
        assert!(is_as_pushed, "{repository}: {found}");

        let copied = skopeo_copy(&grant.target);
        for layer in &layers {
            assert!(copied.contains(&layer.digest), "{repository}: {copied:?}");
        }
        let unpacked = podman_unpack(&grant.target);
        assert_eq!(
            unpacked.config["Entrypoint"],
            json!(["/bin/tool", "-x"]),
            "{repository}"
        );
        assert_eq!(unpacked.config["Cmd"], json!(["/bin/true"]), "{repository}");
        assert_eq!(unpacked.config["WorkingDir"], "/work", "{repository}");
        let env = unpacked.config["Env"].to_string();
        assert!(
            env.contains("A=2") && env.contains("B=3"),
            "{repository}: {env}"
        );
        let mut all = vec![unpacked];
        if repository != "acme/zstd" {
            let unpacked = umoci_unpack(&grant.target);
            assert_eq!(unpacked.config["process"]["cwd"], "/work", "{repository}");
            let args = &unpacked.config["process"]["args"];
            assert_eq!(
                *args,
                json!(["/bin/tool", "-x", "/bin/true"]),
                "{repository}"
            );
            all.push(unpacked);
        }
        for unpacked in &all {
            assert_eq!(unpacked.file("bin/tool"), "a tool", "{repository}");
            assert_eq!(unpacked.file("etc/settings"), "of a tool", "{repository}");
            assert!(
                unpacked.root.join("layer-0").is_file(),
                "{repository}: the image's own"
            );
        }
        let before = containerd.unpacked("bin/tool").len();
        containerd.pull(&grant.target);
        assert_eq!(containerd.stored(&top), top, "{repository}");
        assert!(
            containerd.unpacked("bin/tool").len() > before,
            "{repository}"
        );
    }
    assert!(
        containerd
            .unpacked("etc/settings")
            .iter()
            .all(|text| text == "of a tool")
    );
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

/// One image with all that it names, and with what `request` asked for.
fn assert_is_changed(
    scene: &Scene,
    grant: &Grant,
    image: &Value,
    base: &Base,
    layers: &[Layer],
    layer_type: &str,
) {
    let config: Value = blob(&scene.tidegate, grant, text(image, "/config/digest")).json();
    assert_eq!(
        config["config"],
        json!({
            "Entrypoint": ["/bin/tool", "-x"], "Cmd": ["old"], "User": "app", "WorkingDir": "/work",
            "Env": ["PATH=/bin", "A=2", "B=3", "WAVE_ENTRY_CHAIN=/old"],
        })
    );
    let all: Vec<&Layer> = [&base.layer].into_iter().chain(layers).collect();
    let diff_ids: Vec<&String> = all.iter().map(|layer| &layer.diff_id).collect();
    assert_eq!(config["rootfs"]["diff_ids"], json!(diff_ids));
    assert_eq!(
        config["history"].as_array().map(Vec::len),
        Some(all.len() + 1)
    );
    let named: Vec<Value> = all
        .iter()
        .map(|layer| json!({"mediaType": layer_type, "digest": layer.digest, "size": layer.bytes.len()}))
        .collect();
    assert_eq!(image["layers"], json!(named));
    for layer in all {
        assert_eq!(
            blob(&scene.tidegate, grant, &layer.digest).body,
            layer.bytes
        );
    }
}

#[test]
fn of_an_index_the_wanted_image_is_changed_and_all_else_is_not() {
    let scene = Scene::new();
    let images = index(&scene.liar, REPOSITORY, "v1");
    let layers = layers();
    let grant = scene.grant("v1", &layers);
    let (_, changed) = manifest(&scene.tidegate, &grant, "v1");
    assert_eq!(changed["manifests"][1], images[1].descriptor);
    let image = text(&changed, "/manifests/0/digest");
    assert_ne!(image, text(&images[0].descriptor, "/digest"));
    let (digest, image) = manifest(&scene.tidegate, &grant, image);
    assert_eq!(changed["manifests"][0]["digest"], digest);
    assert_is_changed(&scene, &grant, &image, &images[0], &layers, OCI_GZIP_LAYER);

    let other = text(&images[1].descriptor, "/digest");
    let (_, other) = manifest(&scene.tidegate, &grant, other);
    blob(&scene.tidegate, &grant, text(&other, "/config/digest"));
    blob(&scene.tidegate, &grant, &images[1].layer.digest);

    let mut arm = request(&scene.liar.reference(REPOSITORY, "v1"), &layers);
    arm["containerPlatform"] = json!("linux/arm64/v8");
    let grant = scene.tidegate.grant_of(&arm);
    let (_, changed) = manifest(&scene.tidegate, &grant, "v1");
    assert_eq!(changed["manifests"][0], images[0].descriptor);
    let (_, image) = manifest(
        &scene.tidegate,
        &grant,
        text(&changed, "/manifests/1/digest"),
    );
    assert_is_changed(&scene, &grant, &image, &images[1], &layers, OCI_GZIP_LAYER);
}

#[test]
fn a_docker_image_stays_one() {
    let scene = Scene::new();
    let base = base(&scene.liar, REPOSITORY, "v1", "amd64", DOCKER);
    let layers = layers();
    let grant = scene.grant("v1", &layers);
    let (_, image) = manifest(&scene.tidegate, &grant, "v1");
    assert_eq!(image["mediaType"], DOCKER_MANIFEST);
    assert_eq!(image["config"]["mediaType"], DOCKER_CONFIG);
    assert_is_changed(&scene, &grant, &image, &base, &layers, DOCKER_LAYER);
}

#[test]
fn the_first_pull_asks_the_registry_nothing_that_it_was_asked_before() {
    let scene = Scene::new();
    index(&scene.liar, REPOSITORY, "v1");
    let layers = layers();
    let grant = scene.grant("v1", &layers);
    scene.liar.forget_requests();
    let (_, changed) = manifest(&scene.tidegate, &grant, "v1");
    let (_, image) = manifest(
        &scene.tidegate,
        &grant,
        text(&changed, "/manifests/0/digest"),
    );
    blob(&scene.tidegate, &grant, text(&image, "/config/digest"));
    blob(&scene.tidegate, &grant, &layers[0].digest);
    let asked = scene.liar.requests();
    assert!(asked.is_empty(), "{asked:#?}");
}

#[test]
fn parts_of_a_layer_that_came_along_can_be_had() {
    let scene = Scene::new();
    base(&scene.liar, REPOSITORY, "v1", "amd64", OCI);
    let layers = layers();
    let grant = scene.grant("v1", &layers);
    let path = grant.blob(&layers[0].digest);
    let part = scene
        .tidegate
        .request("GET", &path, &[("Range", "bytes=3-9")]);
    assert_eq!(part.status(), 206);
    assert_eq!(part.body, layers[0].bytes[3..10]);
    let parts = scene
        .tidegate
        .request("GET", &path, &[("Range", "bytes=0-1,5-6")]);
    let parts = parts.parts();
    assert_eq!(parts.len(), 2);
}

#[test]
fn a_layer_of_ten_mebibytes_comes_along() {
    let scene = Scene::new();
    base(&scene.liar, REPOSITORY, "v1", "amd64", OCI);
    let size = 10 << 20;
    let content = Content::Generated {
        seed: 7,
        size: size - 2000,
    };
    let layer = Layer::of_bytes(&content.bytes());
    assert!(layer.bytes.len() as u64 <= size);
    let image = scene.liar.reference(REPOSITORY, "v1");
    let grant = scene.tidegate.grant_of(&with_layer(&image, layer.posted()));
    assert_eq!(
        blob(&scene.tidegate, &grant, &layer.digest).body,
        layer.bytes
    );
}

#[test]
fn every_server_makes_the_same_at_any_time() {
    let liar = Liar::open();
    index(&liar, REPOSITORY, "v1");
    base(&liar, REPOSITORY, "docker", "amd64", DOCKER);
    let layers = layers();
    let mut servers = [
        Setup::new().liar(&liar).start(),
        Setup::new().liar(&liar).start(),
    ];
    for tag in ["v1", "docker"] {
        let request = request(&liar.reference(REPOSITORY, tag), &layers);
        let mut digests = Vec::new();
        let grants = [0, 1].map(|server| servers[server].grant_of(&request));
        for (server, grant) in servers.iter().zip(&grants) {
            digests.push(manifest(server, grant, tag).0);
        }
        std::fs::remove_dir_all(servers[0].cache_folder()).expect("it was made");
        servers[0].restart();
        digests.push(manifest(&servers[0], &grants[0], tag).0);
        digests.push(manifest(&servers[0], &servers[0].grant_of(&request), tag).0);
        digests.dedup();
        assert_eq!(digests.len(), 1, "{digests:?}");
        // What one server has not made itself it makes when it is asked for it.
        let fresh = servers[1].grant_of(&request);
        manifest(&servers[1], &fresh, &digests[0]);
    }
}

#[test]
fn what_was_pulled_by_tag_can_be_had_by_digest_whatever_becomes_of_the_tag() {
    let mut scene = Scene::new();
    let images = index(&scene.liar, REPOSITORY, "v1");
    let layers = layers();
    let grant = scene.grant("v1", &layers);
    let (top, changed) = manifest(&scene.tidegate, &grant, "v1");
    let child = text(&changed, "/manifests/0/digest").to_owned();

    base(&scene.liar, REPOSITORY, "v1", "amd64", OCI);
    std::fs::remove_dir_all(scene.tidegate.cache_folder()).expect("it was made");
    scene.tidegate.restart();
    assert_eq!(manifest(&scene.tidegate, &grant, &top).1, changed);
    let (_, image) = manifest(&scene.tidegate, &grant, &child);
    assert_is_changed(&scene, &grant, &image, &images[0], &layers, OCI_GZIP_LAYER);
    let (moved, _) = manifest(&scene.tidegate, &grant, "v1");
    assert_ne!(moved, top, "the tag means another image now");
}

#[test]
fn what_was_made_of_an_image_is_served_from_memory() {
    let scene = Scene::new();
    base(&scene.liar, REPOSITORY, "v1", "amd64", OCI);
    let layers = layers();
    let grant = scene.grant("v1", &layers);
    let (digest, image) = manifest(&scene.tidegate, &grant, "v1");
    scene.remove_belongings();
    assert_eq!(manifest(&scene.tidegate, &grant, &digest).1, image);
    let config = text(&image, "/config/digest");
    let whole = blob(&scene.tidegate, &grant, config).body;
    let path = grant.blob(config);
    let ranges = [("Range", "bytes=3-9,20-29")];
    let parts = scene.tidegate.request("GET", &path, &ranges).parts();
    let parts: Vec<&[u8]> = parts.iter().map(|part| part.bytes.as_slice()).collect();
    assert_eq!(parts, [&whole[3..10], &whole[20..30]]);
    let layer = scene.tidegate.get(&grant.blob(&layers[0].digest));
    assert_eq!(layer.status(), 404, "a layer is on the disk only");
}

#[test]
fn after_a_restart_a_manifest_is_read_from_the_disk_once() {
    let mut scene = Scene::new();
    base(&scene.liar, REPOSITORY, "v1", "amd64", OCI);
    let grant = scene.grant("v1", &layers());
    let (digest, image) = manifest(&scene.tidegate, &grant, "v1");
    // So that it could not be made again.
    base(&scene.liar, REPOSITORY, "v1", "arm64", OCI);
    scene.tidegate.restart();
    assert_eq!(manifest(&scene.tidegate, &grant, &digest).1, image);
    scene.remove_belongings();
    assert_eq!(manifest(&scene.tidegate, &grant, &digest).1, image);
}

#[test]
fn a_layer_that_lies_is_refused_by_its_number() {
    let scene = Scene::new();
    base(&scene.liar, REPOSITORY, "v1", "amd64", OCI);
    let layers = layers();
    let image = scene.liar.reference(REPOSITORY, "v1");
    let other = digest(b"other");
    for (field, value, expected) in [
        ("gzipDigest", json!(other), "layer 2: its gzipDigest is"),
        ("gzipSize", json!(7), "layer 2: its gzipSize is 7"),
        ("tarDigest", json!(other), "layer 2: its tarDigest is"),
        ("location", json!("data:AAAA"), "layer 2: its gzipDigest is"),
        (
            "location",
            json!("data:?"),
            "layer 2: its location is not base64",
        ),
        (
            "location",
            json!("oras://x"),
            "layer 2: its location starts with none of",
        ),
    ] {
        let mut request = request(&image, &layers);
        request["containerConfig"]["layers"][1][field] = value;
        let message = scene.refusal(&request);
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn what_no_overlay_can_be_put_on_is_told_at_once() {
    let scene = Scene::new();
    let images = index(&scene.liar, REPOSITORY, "v1");
    let chart = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest(b"{}"), "size": 2},
        "layers": [],
    });
    scene.liar.manifest(
        REPOSITORY,
        "chart",
        OCI_MANIFEST,
        chart.to_string().as_bytes(),
    );
    let layers = layers();
    let named = request(&scene.liar.reference(REPOSITORY, "chart"), &layers);
    let message = scene.refusal(&named);
    assert!(
        message.contains("artifact (application/vnd.cncf.helm.config.v1+json)"),
        "{message}"
    );
    let mut named = request(&scene.liar.reference(REPOSITORY, "v1"), &layers);
    named["containerPlatform"] = json!("linux/s390x");
    let message = scene.refusal(&named);
    assert!(
        message.contains("only for linux/amd64, linux/arm64"),
        "{message}"
    );
    let by_digest = scene
        .liar
        .reference(REPOSITORY, text(&images[0].descriptor, "/digest"));
    let message = scene.refusal(&request(&by_digest, &layers));
    assert!(message.contains("its digest would change"), "{message}");

    // A tag that comes to mean one later.
    let grant = scene.grant("v1-amd64", &layers);
    scene.liar.manifest(
        REPOSITORY,
        "v1-amd64",
        OCI_MANIFEST,
        chart.to_string().as_bytes(),
    );
    let other = scene.liar.reference(REPOSITORY, "v1-amd64");
    let message = scene.refusal(&request(&other, &layers));
    assert!(message.contains("artifact"), "{message}");
    assert_eq!(scene.tidegate.get(&grant.manifest("chart")).status(), 400);
}

#[test]
fn a_configuration_is_verified_however_large() {
    let scene = Scene::new();
    for (tag, comment) in [("small", String::new()), ("large", "x".repeat(1 << 20))] {
        let config = json!({
            "architecture": "amd64", "os": "linux", "comment": comment,
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        let config = Content::of(config.to_string());
        let config_digest = scene.liar.blob(REPOSITORY, config.clone());
        let manifest_of_it = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "annotations": {"comment": comment},
            "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config.size()},
            "layers": [],
        });
        let bytes = manifest_of_it.to_string();
        scene
            .liar
            .manifest(REPOSITORY, tag, OCI_MANIFEST, bytes.as_bytes());
        let layers = layers();
        let asked = request(&scene.liar.reference(REPOSITORY, tag), &layers);
        let path = blob_path(REPOSITORY, &config_digest);
        scene.liar.misbehave(&path, Behaviour::WrongBytes);
        let message = scene.refusal(&asked);
        let expected = format!("content that is not {config_digest}");
        assert!(message.contains(&expected), "{tag}: {message}");
        scene.liar.behave(&path);
        let grant = scene.tidegate.grant_of(&asked);
        let (_, image) = manifest(&scene.tidegate, &grant, tag);
        assert_eq!(image["annotations"]["comment"], comment, "{tag}");
        let config = blob(&scene.tidegate, &grant, text(&image, "/config/digest"));
        assert_eq!(config.json()["comment"], comment, "{tag}");
    }
}

#[test]
fn what_belongs_to_a_token_is_no_others() {
    let scene = Scene::new();
    index(&scene.liar, REPOSITORY, "v1");
    let layers = layers();
    let image = scene.liar.reference(REPOSITORY, "v1");
    let grant = scene.grant("v1", &layers);
    let (top, changed) = manifest(&scene.tidegate, &grant, "v1");
    let child = text(&changed, "/manifests/0/digest").to_owned();
    let config = text(
        &manifest(&scene.tidegate, &grant, &child).1,
        "/config/digest",
    )
    .to_owned();
    blob(&scene.tidegate, &grant, &config);

    let plain = scene.tidegate.grant(&image);
    let other = json!({"containerImage": image, "containerConfig": {"cmd": ["other"]}});
    let other = scene.tidegate.grant_of(&other);
    for stranger in [&plain, &other] {
        assert_eq!(scene.tidegate.get(&stranger.manifest("v1")).status(), 200);
        for version in [&top, &child] {
            assert_eq!(
                scene.tidegate.get(&stranger.manifest(version)).status(),
                404
            );
            assert_eq!(
                scene.tidegate.head(&stranger.manifest(version)).status(),
                404
            );
        }
        for digest in [&config, &layers[0].digest, &layers[1].digest] {
            assert_eq!(scene.tidegate.get(&stranger.blob(digest)).status(), 404);
            assert_eq!(scene.tidegate.head(&stranger.blob(digest)).status(), 404);
        }
    }
}

/// A web server with this layer; what the layer's request names.
fn on_the_web(layer: &Layer) -> (Liar, String, String) {
    let web = Liar::open();
    web.blob("files/x", Content::of(&layer.bytes));
    let path = blob_path("files/x", &layer.digest);
    let url = format!("http://{}{path}?sig=secret", web.name());
    (web, path, url)
}

fn with_layer(image: &str, layer: Value) -> Value {
    json!({"containerImage": image, "containerConfig": {"layers": [layer]}})
}

#[test]
fn a_layer_on_the_web_is_fetched_once_and_verified() {
    let liar = Liar::open();
    base(&liar, REPOSITORY, "v1", "amd64", OCI);
    let layer = Layer::of(&[("large", &"text ".repeat(1 << 20))]);
    let (web, path, url) = on_the_web(&layer);
    let tidegate = Setup::new().liar(&liar).liar(&web).start();
    let request = with_layer(&liar.reference(REPOSITORY, "v1"), layer.posted_at(&url));
    let grant = tidegate.grant_of(&request);
    assert!(web.requests().is_empty(), "not at submit");
    let (_, image) = manifest(&tidegate, &grant, "v1");
    assert_eq!(image["layers"][1]["digest"], layer.digest);
    blob(&tidegate, &grant, &layer.digest);
    tidegate.wait_until_stored(&layer.digest);
    let path_of = grant.blob(&layer.digest);
    let part = tidegate.request("GET", &path_of, &[("Range", "bytes=10-19")]);
    assert_eq!(
        (part.status(), part.body.as_slice()),
        (206, &layer.bytes[10..20])
    );
    blob(&tidegate, &tidegate.grant_of(&request), &layer.digest);
    assert_eq!(web.gets(&path).len(), 1);
    let sent = web.requests();
    assert!(
        sent.iter()
            .all(|request| request.target.ends_with("?sig=secret"))
    );
    assert!(
        sent.iter()
            .all(|request| request.header("authorization").is_none())
    );
    assert!(
        !tidegate.log().text().contains("sig=secret"),
        "it may be a signature"
    );
}

#[test]
fn a_web_server_that_lies_is_cut_off() {
    let liar = Liar::open();
    base(&liar, REPOSITORY, "v1", "amd64", OCI);
    let noise = Content::Generated {
        seed: 7,
        size: 300_000,
    }
    .bytes();
    let noise: String = noise
        .iter()
        .map(|byte| char::from(b'a' + byte % 26))
        .collect();
    let layer = Layer::of(&[("noise", &noise)]);
    assert!(layer.bytes.len() > 100_000, "more than is held back");
    let (web, path, url) = on_the_web(&layer);
    let tidegate = Setup::new().liar(&liar).liar(&web).start();
    let image = liar.reference(REPOSITORY, "v1");
    let grant = tidegate.grant_of(&with_layer(&image, layer.posted_at(&url)));
    web.misbehave(&path, Behaviour::WrongBytes);
    let got = tidegate.get(&grant.blob(&layer.digest));
    assert!(
        got.status() >= 500 || got.end == End::Cut,
        "{}",
        got.excerpt()
    );
    assert!(tidegate.stored(&layer.digest).is_none());
    web.misbehave(&path, Behaviour::status(404));
    assert_eq!(tidegate.get(&grant.blob(&layer.digest)).status(), 404);
    web.behave(&path);
    blob(&tidegate, &grant, &layer.digest);

    let mut posted = layer.posted_at(&format!("{url}&other"));
    posted["gzipSize"] = json!(5);
    let grant = tidegate.grant_of(&with_layer(&image, posted));
    let got = tidegate.get(&grant.blob(&layer.digest));
    assert_eq!(got.status(), 502, "{}", got.excerpt());
    assert!(
        got.text()
            .contains("of which the container request says that it has 5"),
        "{}",
        got.text()
    );
}

#[test]
fn a_web_server_is_reached_by_the_rules_for_addresses() {
    let liar = Liar::open();
    base(&liar, REPOSITORY, "v1", "amd64", OCI);
    let layer = Layer::of(&[("x", "y")]);
    let (web, _, url) = on_the_web(&layer);
    let tidegate = Setup::new().liar(&liar).start();
    let grant = tidegate.grant_of(&with_layer(
        &liar.reference(REPOSITORY, "v1"),
        layer.posted_at(&url),
    ));
    let got = tidegate.get(&grant.blob(&layer.digest));
    assert_eq!(got.status(), 403, "{}", got.excerpt());
    assert!(got.text().contains("allow_private"), "{}", got.text());
    assert!(web.requests().is_empty());
}

#[test]
fn a_layer_on_the_web_is_left_to_the_client_if_the_operator_says_so() {
    let liar = Liar::open();
    base(&liar, REPOSITORY, "v1", "amd64", OCI);
    let layer = Layer::of(&[("x", "y")]);
    let (web, _, url) = on_the_web(&layer);
    let tidegate = Setup::new()
        .liar(&liar)
        .section("[overlays]\nweb_layers = \"redirect\"\n")
        .start();
    let grant = tidegate.grant_of(&with_layer(
        &liar.reference(REPOSITORY, "v1"),
        layer.posted_at(&url),
    ));
    for method in ["GET", "HEAD"] {
        let response = tidegate.request(method, &grant.blob(&layer.digest), &[]);
        assert_eq!(response.status(), 307);
        assert_eq!(response.header("location"), Some(url.as_str()));
    }
    assert!(web.requests().is_empty());
}

#[test]
fn naming_a_layer_opens_no_other_registrys_blob() {
    let accounts = Accounts::none().with("ada", "hunter2", &["*"]);
    let private = Liar::start(Auth::Basic(accounts));
    let secret = base(&private, "ada/secret", "v1", "amd64", OCI);
    let public = Liar::open();
    base(&public, REPOSITORY, "open", "amd64", OCI);
    let directory = crate::support::tidegate::Directory::new()
        .user("ada", "ada-token", &[])
        .user_login(private.name(), "ada", "hunter2");
    let tidegate = Setup::new()
        .liar(&private)
        .liar(&public)
        .directory(&directory)
        .start();
    let ada = tidegate.grant_as("ada-token", &private.reference("ada/secret", "v1"));
    manifest(&tidegate, &ada, "v1");
    blob(&tidegate, &ada, &secret.layer.digest);
    tidegate.wait_until_stored(&secret.layer.digest);

    let image = public.reference(REPOSITORY, "open");
    for (location, status) in [
        (
            format!(
                "docker://{}/v2/ada/secret/blobs/{}",
                private.name(),
                secret.layer.digest
            ),
            403,
        ),
        (format!("http://{}/nowhere", private.name()), 403),
        (format!("http://{}/nowhere", public.name()), 404),
        (
            format!(
                "docker://{}/v2/{REPOSITORY}/blobs/{}",
                public.name(),
                secret.layer.digest
            ),
            404,
        ),
    ] {
        let request = with_layer(&image, secret.layer.posted_at(&location));
        let grant = tidegate.grant_of(&request);
        manifest(&tidegate, &grant, "open");
        let got = tidegate.get(&grant.blob(&secret.layer.digest));
        assert_eq!(got.status(), status, "{location}: {}", got.excerpt());
    }
}

#[test]
fn included_images_give_their_layers() {
    let accounts = Accounts::none().with("ada", "hunter2", &["*"]);
    let other = Liar::start(Auth::Basic(accounts));
    let tools = index(&other, "ada/tools", "v2");
    let liar = Liar::open();
    let own = base(&liar, REPOSITORY, "v1", "arm64", DOCKER);
    let directory = crate::support::tidegate::Directory::new()
        .user("ada", "ada-token", &[])
        .user_login(other.name(), "ada", "hunter2");
    let tidegate = Setup::new()
        .liar(&liar)
        .liar(&other)
        .directory(&directory)
        .start();
    let request = json!({
        "containerImage": liar.reference(REPOSITORY, "v1"), "containerPlatform": "arm64",
        "containerIncludes": [other.reference("ada/tools", "v2")],
    });
    let (status, body) = tidegate.submit(&request);
    assert_eq!(status, 400, "{body}");
    assert!(
        text(&body, "/message").starts_with("containerIncludes: "),
        "{body}"
    );

    let mut request = request;
    request["towerAccessToken"] = json!("ada-token");
    let grant = tidegate.grant_of(&request);
    let (_, image) = manifest(&tidegate, &grant, "v1");
    let layers = [&own.layer, &tools[1].layer];
    let named = layers.map(|layer| {
        json!({"mediaType": DOCKER_LAYER, "digest": layer.digest, "size": layer.bytes.len()})
    });
    assert_eq!(image["layers"], json!(named));
    let config: Value = blob(&tidegate, &grant, text(&image, "/config/digest")).json();
    assert_eq!(
        config["rootfs"]["diff_ids"],
        json!(layers.map(|layer| &layer.diff_id))
    );
    assert_eq!(
        config["config"]["Entrypoint"],
        json!(["/old"]),
        "settings are not taken over"
    );
    for layer in layers {
        blob(&tidegate, &grant, &layer.digest);
    }
    // Who names no platform wants the usual one.
    let mut usual = request.clone();
    usual["containerPlatform"] = Value::Null;
    let grant = tidegate.grant_of(&usual);
    let (_, image) = manifest(&tidegate, &grant, "v1");
    assert_eq!(
        [0, 1].map(|at| text(&image, &format!("/layers/{at}/digest")).to_owned()),
        [&own.layer, &tools[0].layer].map(|layer| layer.digest.clone())
    );
    request["containerIncludes"] = json!([other.reference("ada/nothing", "v2")]);
    let (status, body) = tidegate.submit(&request);
    assert_eq!(status, 400, "{body}");
    assert!(text(&body, "/message").contains("not found"), "{body}");
}

#[test]
fn a_request_is_described_without_its_layers() {
    let scene = Scene::new();
    index(&scene.liar, REPOSITORY, "v1");
    let [first, second] = layers();
    let image = scene.liar.reference(REPOSITORY, "v1");
    let mut asked = request(&image, &[first.clone(), second.clone()]);
    asked["containerConfig"]["layers"][1] =
        second.posted_at("https://files.example.com/x?sig=secret");
    let grant = scene.tidegate.grant_of(&asked);
    let describe = || {
        scene
            .tidegate
            .get(&format!("/container-token/{}", grant.token))
            .json()
    };
    let before = describe();
    let config = &before["request"]["containerConfig"];
    assert_eq!(config["entrypoint"], json!(["/bin/tool", "-x"]));
    assert_eq!(config["env"], json!(["A=2", "B=3"]));
    assert_eq!(config["workingDir"], "/work");
    assert!(config.get("cmd").is_none());
    assert_eq!(config["layers"][0]["location"], "data:DATA+OMITTED");
    assert_eq!(config["layers"][0]["gzipDigest"], first.digest);
    assert_eq!(config["layers"][0]["gzipSize"], first.bytes.len());
    assert_eq!(config["layers"][0]["tarDigest"], first.diff_id);
    assert_eq!(
        config["layers"][1]["location"],
        "https://files.example.com/x?OMITTED"
    );
    assert!(
        before["wave"].get("digest").is_none(),
        "nobody has pulled it"
    );

    let (served, _) = manifest(&scene.tidegate, &grant, "v1");
    crate::support::programs::wait_until("the first pull in the record", || {
        describe()["wave"]["digest"] == json!(served)
    });
    let source = scene.liar.requests();
    let source = source.iter().find_map(|request| {
        let prefix = manifest_path(REPOSITORY, "sha256:");
        request
            .target
            .strip_prefix(&prefix)
            .map(|hex| format!("sha256:{hex}"))
    });
    assert_eq!(describe()["source"]["digest"], json!(source));
    let record = scene
        .tidegate
        .get(&format!("/v1alpha2/container/{}", grant.token))
        .json();
    assert_eq!(record["waveDigest"], json!(served));
    assert_eq!(record["sourceDigest"], json!(source));
    assert_eq!(
        record["containerConfig"],
        describe()["request"]["containerConfig"]
    );
}

#[test]
fn layers_have_a_room_of_their_own_and_it_is_counted() {
    let liar = Liar::open();
    base(&liar, REPOSITORY, "v1", "amd64", OCI);
    let tidegate = Setup::new()
        .liar(&liar)
        .section("[tokens]\nmax_layers_size = \"64KiB\"\nmax_layers_size_per_tenant = \"64KiB\"\n")
        .start();
    let noise = Content::Generated {
        seed: 7,
        size: 200_000,
    }
    .bytes();
    let noise: String = noise
        .iter()
        .map(|byte| char::from(b' ' + byte % 64))
        .collect();
    let image = liar.reference(REPOSITORY, "v1");
    let (status, body) = tidegate.submit(&with_layer(&image, Layer::of(&[("x", &noise)]).posted()));
    assert_eq!(status, 503, "{body}");
    assert!(
        text(&body, "/message").contains("tokens.max_layers_size"),
        "{body}"
    );
    let small = Layer::of(&[("x", "y")]);
    let grants = [0; 3].map(|_| tidegate.grant_of(&with_layer(&image, small.posted())));
    assert_eq!(
        tidegate.metric("tidegate_layers_used_bytes"),
        small.bytes.len() as u64
    );
    for grant in &grants {
        blob(&tidegate, grant, &small.digest);
    }
}

#[test]
fn one_tenants_layers_leave_room_for_others() {
    let liar = Liar::open();
    base(&liar, REPOSITORY, "v1", "amd64", OCI);
    let directory = Directory::new()
        .user("ada", "ada-access-token", &[7])
        .user("bob", "bob-access-token", &[7])
        .user("eve", "eve-access-token", &[])
        .workspace(7, "research");
    let mut tidegate = Setup::new()
        .liar(&liar)
        .directory(&directory)
        .section("[tokens]\nmax_layers_size = \"512B\"\n")
        .start();
    let image = liar.reference(REPOSITORY, "v1");
    let ask = |tidegate: &Tidegate, text: &str, who: &str, workspace: Option<i64>| {
        let layer = Layer::of(&[("x", text)]);
        let size = layer.bytes.len();
        assert!(
            (65..=128).contains(&size),
            "one goes into a share, and no two: {size}"
        );
        let mut request = with_layer(&image, layer.posted());
        request["towerAccessToken"] = json!(format!("{who}-access-token"));
        request["towerWorkspaceId"] = json!(workspace);
        tidegate.submit(&request)
    };
    let refused = |(status, body): (u16, Value)| {
        assert_eq!(status, 429, "{body}");
        let message = text(&body, "/message");
        assert!(
            message.contains("tokens.max_layers_size_per_tenant"),
            "{message}"
        );
    };
    assert_eq!(ask(&tidegate, "one", "ada", Some(7)).0, 200);
    refused(ask(&tidegate, "two", "ada", Some(7)));
    refused(ask(&tidegate, "two", "bob", Some(7)));
    assert_eq!(ask(&tidegate, "one", "bob", Some(7)).0, 200, "they have it");
    // Herself she is another tenant than her workspace, and Eve has nothing to do with either.
    assert_eq!(ask(&tidegate, "two", "ada", None).0, 200);
    assert_eq!(ask(&tidegate, "three", "eve", None).0, 200);
    tidegate.restart();
    refused(ask(&tidegate, "two", "ada", Some(7)));
}
