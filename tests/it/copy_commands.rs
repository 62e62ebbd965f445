//! `tidegate mirror` and `tidegate freeze`: copies made by the command itself, without a server.

use std::{fs, os::unix::process::ExitStatusExt as _, path::PathBuf, process::Command};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    content::{Content, digest},
    docker_registry::{DockerRegistry, Login, PASSWORD, USER},
    image::{Image, file_digest},
    liar::{Behaviour, Gate, Liar, blob_path},
    mirror_content::{Shelf, fetch_all, referrers_tag},
    mirror_scene::{MirrorScene, PUSHER, Registries, passing_faults},
    passage::{Kind, Obstacle},
    programs::{Process, output, require},
    runtimes::{Containerd, podman_unpack_as},
    small_disk::SmallDisk,
    tidegate::{BINARY, files_below},
};

const MIB: u64 = 1 << 20;

/// Where somebody types commands: his logins, and a folder for what lies around meanwhile.
struct Desk {
    home: TempDir,
}

struct Said {
    code: Option<i32>,
    name: String,
    told: String,
}

impl Desk {
    fn at(registries: &Registries) -> Self {
        Self::with(&[
            (&registries.source.name(), (USER, PASSWORD)),
            (&registries.passage.name(), PUSHER),
        ])
    }

    fn with(logins: &[(&str, (&str, &str))]) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        let mut auths = json!({});
        for (registry, (user, password)) in logins {
            auths[*registry] = json!({"username": user, "password": password});
        }
        let text = json!({"auths": auths}).to_string();
        fs::write(home.path().join("config.json"), text).expect("a writable folder");
        fs::create_dir(home.path().join("scratch")).expect("a writable folder");
        Self { home }
    }

    fn scratch(&self) -> PathBuf {
        self.home.path().join("scratch")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(arguments);
        for variable in ["REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"] {
            command.env_remove(variable);
        }
        command
            .env("HOME", self.home.path())
            .env("DOCKER_CONFIG", self.home.path())
            .env("TMPDIR", self.scratch());
        command
    }

    fn run(&self, arguments: &[&str]) -> Said {
        let printed = output(&mut self.command(arguments));
        let text = |bytes| String::from_utf8(bytes).expect("text");
        let said = Said {
            code: printed.status.code(),
            name: text(printed.stdout),
            told: text(printed.stderr),
        };
        for secret in [PUSHER.1, PASSWORD, "_state="] {
            assert!(
                !said.told.contains(secret) && !said.name.contains(secret),
                "{}",
                said.told
            );
        }
        // Nothing is left of what lay around.
        let left = files_below(&self.scratch());
        let left: Vec<_> = left.iter().map(|(path, _)| path).collect();
        assert!(
            left.is_empty(),
            "{arguments:?} {:?}: {left:?} {}",
            printed.status,
            said.told
        );
        said
    }

    /// Must succeed; returns what `-o json` prints.
    fn json(&self, arguments: &[&str]) -> Value {
        let said = self.run(&[arguments, &["-q", "-o", "json"]].concat());
        assert_eq!(said.code, Some(0), "{arguments:?}: {}", said.told);
        assert_eq!(said.told, "", "{arguments:?}");
        serde_json::from_str(&said.name).unwrap_or_else(|error| panic!("{error}: {}", said.name))
    }

    /// Must fail; returns why.
    fn failure(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        assert_eq!(said.code, Some(1), "{arguments:?}: {}", said.told);
        assert_eq!(said.name, "", "{arguments:?}");
        said.told
    }
}

const LAYERS: [u64; 6] = [400_000, 300_000, 200_000, 500_000, 100_000, 350_000];
const KEPT: &str = "kept/acme/app";

fn assert_nothing_half(registries: &Registries) {
    assert!(registries.target.tags(KEPT).is_empty());
    assert!(registries.target.manifests(KEPT).is_empty());
}

fn assert_whole(registries: &Registries, digest: &str) {
    assert_eq!(registries.target.tags(KEPT), ["v1"]);
    assert_eq!(registries.target.manifests(KEPT), [digest]);
    let blobs = registries.target.blobs(KEPT);
    assert_eq!(blobs.len(), LAYERS.len() + 1, "{blobs:?}");
    for digest in blobs {
        assert_eq!(file_digest(&registries.target.stored(&digest)), digest);
    }
}

#[test]
fn a_command_mirrors_images_of_every_kind_there_and_back() {
    require!("docker-registry", "skopeo");
    let registries = Registries::new();
    let desk = Desk::at(&registries);
    let signed = Shelf::new(&registries.source, "acme/app").signed("v1");
    Shelf::new(&registries.source, "acme/many").image_of("v1", 100, &[3000; 40]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let zstd = Image::build(&folder.path().join("zstd"), &[50_000, 20_000]);
    let how = ["--format=oci", "--dest-compress-format=zstd"];
    registries.source.push_as(&zstd, "acme/zstd", "v1", &how);
    let place = registries.place();
    for repository in ["acme/app", "acme/many", "acme/zstd"] {
        let image = Shelf::new(&registries.source, repository).reference("v1");
        let said = desk.run(&["mirror", &image, &place]);
        assert_eq!(said.code, Some(0), "{}", said.told);
        assert_eq!(said.name, format!("{place}/{repository}:v1\n"));
        registries.assert_same(repository, "v1");
        let target = format!("{}/kept/{repository}:v1", registries.target.name());
        fetch_all(&target, PUSHER.0, PUSHER.1);
    }
    assert_eq!(registries.target.blobs("kept/acme/many").len(), 41);
    for version in signed.platforms.iter().chain([
        &signed.index,
        &signed.signature,
        &signed.bill,
        &signed.tags[3],
    ]) {
        registries.assert_same("acme/app", version);
    }
    for (subject, referrer) in [
        (&signed.index, &signed.signature),
        (&signed.platforms[0], &signed.bill),
    ] {
        let listed = registries.at_target(KEPT, &referrers_tag(subject));
        let listed = listed.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let listed = listed.expect("a list of referrers");
        assert!(listed.contains(referrer.as_str()), "{listed}");
        assert!(listed.contains("artifactType"), "{listed}");
    }
    for scope in registries.tokens.scopes() {
        assert!(scope.starts_with("repository:kept/acme/"), "{scope}");
    }

    // Once more: all is there.
    let before = registries.target.writes();
    let image = Shelf::new(&registries.source, "acme/app").reference("v1");
    let again = desk.json(&["mirror", &image, &place]);
    assert_eq!(again["digest"], signed.index);
    assert_eq!(again["bytes"].as_u64().unwrap_or(0), 0, "{again}");
    assert_eq!(registries.target.writes(), before);

    // And back, to where plain passwords are taken.
    let back = format!("{}/back", registries.source.name());
    let said = desk.run(&["mirror", &format!("{place}/acme/app:v1"), &back, "-q"]);
    assert_eq!((said.code, said.told.as_str()), (Some(0), ""));
    for version in ["v1", &signed.platforms[1], &signed.signature] {
        assert_eq!(
            registries.at_source("back/kept/acme/app", version),
            registries.at_source("acme/app", version),
            "{version}"
        );
    }
}

#[test]
fn a_part_of_an_image_is_mirrored_if_that_is_what_is_wanted() {
    require!("docker-registry", "skopeo");
    let registries = Registries::new();
    let desk = Desk::at(&registries);
    let shelf = Shelf::new(&registries.source, "acme/app");
    let signed = shelf.signed("v1");
    let (image, place) = (shelf.reference("v1"), registries.place());
    let rehearsed = desk.json(&["mirror", &image, &place, "--dry-run"]);
    assert_eq!(
        (&rehearsed["dryRun"], &rehearsed["cached"]),
        (&json!(true), &json!(false))
    );
    assert!(
        registries
            .target
            .writes()
            .iter()
            .all(|write| write.status != 201)
    );

    let made = desk.json(&[
        "mirror",
        &image,
        &place,
        "--platform",
        "arm64",
        "--no-referrers",
    ]);
    assert_eq!(made["digest"], signed.platforms[1]);
    assert_eq!(registries.target.tags(KEPT), ["v1"]);
    assert_eq!(
        registries.target.manifests(KEPT),
        [signed.platforms[1].clone()]
    );
    let told = desk.failure(&["mirror", &image, &place, "--platform", "linux/s390x"]);
    assert!(told.contains("s390x") && told.contains("arm64"), "{told}");

    // All of it, but for what refers to it.
    desk.json(&["mirror", &image, &place, "--no-referrers"]);
    let mut all = vec![signed.index.clone()];
    all.extend(signed.platforms.clone());
    all.sort();
    assert_eq!(registries.target.manifests(KEPT), all);
    assert_eq!(registries.target.tags(KEPT), ["v1"]);
    registries.assert_same("acme/app", "v1");
    // The rest may follow.
    desk.json(&["mirror", &image, &place]);
    registries.assert_same("acme/app", &signed.signature);
    let listed = registries.at_target(KEPT, &referrers_tag(&signed.index));
    assert!(listed.is_some());
}

#[test]
fn within_a_registry_nothing_is_sent() {
    require!("docker-registry", "skopeo");
    let registries = Registries::new();
    let desk = Desk::at(&registries);
    let shelf = Shelf::new(&registries.source, "acme/app");
    shelf.image_of("v1", 1, &LAYERS);
    desk.json(&["mirror", &shelf.reference("v1"), &registries.place()]);
    let sent = registries.passage.count(Kind::Bytes);
    let there = format!("{}/{KEPT}:v1", registries.passage.name());
    let others = format!("{}/others", registries.passage.name());
    let made = desk.json(&["mirror", &there, &others]);
    assert_eq!(made["mounted"], LAYERS.len() as u64 + 1, "{made}");
    assert_eq!((&made["copied"], &made["bytes"]), (&json!(0), &json!(0)));
    assert_eq!(registries.passage.count(Kind::Bytes), sent);
    assert_eq!(
        registries.at_target("others/kept/acme/app", "v1"),
        registries.at_source("acme/app", "v1")
    );
    let scopes = registries.tokens.scopes();
    assert!(
        scopes.contains(&"repository:others/kept/acme/app:pull,push".to_owned()),
        "{scopes:?}"
    );
}

#[test]
fn faults_that_pass_fail_no_command() {
    require!("docker-registry", "skopeo");
    for (number, (kind, obstacles)) in (10..).zip(passing_faults()) {
        let registries = Registries::new();
        let desk = Desk::at(&registries);
        let shelf = Shelf::new(&registries.source, "acme/app");
        let digest = shelf.image_of("v1", number, &LAYERS);
        // The first upload is the trial whether its login may push.
        let mut all = match kind {
            Kind::Opening => vec![Obstacle::Nothing],
            _ => Vec::new(),
        };
        all.extend(obstacles.clone());
        registries.passage.put(kind, &all);
        let said = desk.run(&["mirror", &shelf.reference("v1"), &registries.place()]);
        assert_eq!(said.code, Some(0), "{kind:?} {obstacles:?}: {}", said.told);
        assert_eq!(registries.passage.unmet(), 0, "{kind:?} {obstacles:?}");
        assert_whole(&registries, &digest);
    }
}

/// Debian's registry forgets an upload whose request broke off: all of it is sent again, and nothing is fetched again.
#[test]
fn a_large_upload_that_breaks_is_sent_again_from_the_cache() {
    require!("docker-registry", "skopeo");
    let registries = Registries::new();
    let desk = Desk::at(&registries);
    let shelf = Shelf::new(&registries.source, "acme/large");
    let size = 48 * MIB;
    let layers = shelf.layers(1, &[size]);
    shelf.image(Some("v1"), "amd64", &layers);
    let cuts = vec![Obstacle::CutAfter(20 * MIB); 3];
    registries.passage.put(Kind::Bytes, &cuts);
    desk.json(&["mirror", &shelf.reference("v1"), &registries.place()]);
    assert_eq!(registries.passage.unmet(), 0);
    registries.assert_same("acme/large", "v1");
    let layer = layers[0]["digest"].as_str().expect("a digest");
    assert_eq!(file_digest(&registries.target.stored(layer)), layer);
    assert!(registries.passage.carried() >= size + 20 * MIB);
    // In parts that add up to one, perhaps, but not by a second download.
    let fetched = registries.source.answered();
    let fetched = fetched
        .iter()
        .filter(|request| request.method == "GET" && request.path.ends_with(layer));
    assert_eq!(fetched.count(), 1);
}

#[test]
fn a_token_that_ends_within_an_upload_is_renewed_by_the_command() {
    require!("docker-registry", "skopeo");
    let registries = Registries::new();
    let desk = Desk::at(&registries);
    let shelf = Shelf::new(&registries.source, "acme/app");
    let digest = shelf.image_of("v1", 3, &LAYERS);
    let gate = Gate::default();
    let halting = Obstacle::Gated(20_000, gate.clone());
    registries.passage.put_often(Kind::Bytes, &halting, 2);
    let (image, place) = (shelf.reference("v1"), registries.place());
    let mut command = Process::spawn("tidegate", &mut desk.command(&["mirror", &image, &place]));
    registries.passage.wait_for_halted(2);
    let asked = registries.tokens.requests().len();
    registries.tokens.forget_issued();
    gate.open();
    assert!(command.wait().success(), "{}", command.log.text());
    assert!(registries.tokens.requests().len() > asked);
    assert_whole(&registries, &digest);

    // And one that is refused when all bytes have been sent.
    let challenge = format!(
        "Bearer realm=\"{}\",service=\"registry.test\",error=\"invalid_token\"",
        registries.tokens.realm()
    );
    let challenge = ("WWW-Authenticate", challenge);
    let expired = Obstacle::Answer(
        401,
        vec![challenge],
        r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#,
    );
    for (number, size) in [(0, 200_000), (1, 20 * MIB)] {
        let repository = format!("acme/expired-{number}");
        let shelf = Shelf::new(&registries.source, &repository);
        shelf.image_of("v1", 50 + number, &[size]);
        registries.passage.put_often(Kind::Bytes, &expired, 1);
        desk.json(&["mirror", &shelf.reference("v1"), &place]);
        registries.assert_same(&repository, "v1");
    }
}

#[test]
fn a_killed_command_leaves_nothing_half_and_its_work_to_the_next() {
    require!("docker-registry", "skopeo");
    let registries = Registries::new();
    let desk = Desk::at(&registries);
    let shelf = Shelf::new(&registries.source, "acme/app");
    let digest = shelf.image_of("v1", 4, &LAYERS);
    let (image, place) = (shelf.reference("v1"), registries.place());
    for signal in ["KILL", "TERM"] {
        let gate = Gate::default();
        let mut obstacles = vec![Obstacle::Nothing];
        obstacles.extend(vec![Obstacle::Gated(50_000, gate.clone()); 20]);
        registries.passage.put(Kind::Bytes, &obstacles);
        let mut command =
            Process::spawn("tidegate", &mut desk.command(&["mirror", &image, &place]));
        registries.passage.wait_for_halted(1);
        command.signal(signal);
        let status = command.wait();
        match signal {
            "KILL" => assert_eq!(status.signal(), Some(9)),
            _ => assert_eq!(status.code(), Some(143), "{status} {}", command.log.text()),
        }
        assert_nothing_half(&registries);
        registries.passage.clear();
        gate.open();
    }
    // Each has tried whether it may push; the second has also taken back what the target did not take.
    let requests = registries.passage.requests();
    let deleted = requests.iter().filter(|request| request.method == "DELETE");
    assert!(deleted.count() > 2);
    let there = registries.target.blobs(KEPT).len();
    assert!(there > 0);
    // Somebody else's scratch may be left by the kill: this one's is not.
    let _ = fs::remove_dir_all(desk.scratch());
    fs::create_dir(desk.scratch()).expect("a writable folder");
    let made = desk.json(&["mirror", &image, &place]);
    assert!(made["present"].as_u64() >= Some(there as u64), "{made}");
    assert_whole(&registries, &digest);
}

#[test]
fn a_command_waits_for_a_target_that_was_killed() {
    require!("docker-registry", "skopeo");
    let mut registries = Registries::new();
    let desk = Desk::at(&registries);
    let shelf = Shelf::new(&registries.source, "acme/app");
    let digest = shelf.image_of("v1", 5, &LAYERS);
    let gate = Gate::default();
    let mut obstacles = vec![Obstacle::Nothing];
    obstacles.extend(vec![Obstacle::Gated(50_000, gate.clone()); 20]);
    registries.passage.put(Kind::Bytes, &obstacles);
    let (image, place) = (shelf.reference("v1"), registries.place());
    let mut command = Process::spawn("tidegate", &mut desk.command(&["mirror", &image, &place]));
    registries.passage.wait_for_halted(1);
    registries.target.kill();
    assert_nothing_half(&registries);
    registries.passage.clear();
    gate.open();
    registries.target.restart();
    assert!(command.wait().success(), "{}", command.log.text());
    assert_whole(&registries, &digest);
}

#[test]
fn commands_that_fail_say_what_to_do() {
    require!("docker-registry", "skopeo");
    // No room at the target.
    if let Some(disk) = SmallDisk::mount("1m") {
        let registries = Registries::with_target(|tokens| {
            DockerRegistry::start_in(&Login::Token(tokens), disk.path())
        });
        let desk = Desk::at(&registries);
        let shelf = Shelf::new(&registries.source, "acme/app");
        shelf.image_of("v1", 6, &LAYERS);
        let told = desk.failure(&["mirror", &shelf.reference("v1"), &registries.place()]);
        assert!(told.contains(&registries.passage.name()), "{told}");
        assert!(told.contains("has no room"), "{told}");
        assert_nothing_half(&registries);
    }
    let registries = Registries::new();
    let shelf = Shelf::new(&registries.source, "acme/app");
    shelf.image_of("v1", 7, &LAYERS);
    let (image, place) = (shelf.reference("v1"), registries.place());
    let target = registries.passage.name();
    // A login that reads only, one for elsewhere, and none.
    let source = registries.source.name();
    for (desk, to, about) in [
        (
            Desk::with(&[
                (&source, (USER, PASSWORD)),
                (&target, ("reader", "password-of-the-reader")),
            ]),
            &place,
            "kept/acme/app",
        ),
        (
            Desk::at(&registries),
            &format!("{target}/foreign"),
            "foreign/acme/app",
        ),
        (
            Desk::with(&[(&source, (USER, PASSWORD))]),
            &place,
            "kept/acme/app",
        ),
    ] {
        let told = desk.failure(&["mirror", &image, to]);
        assert!(
            told.contains(&target) && told.contains(about) && told.contains("push"),
            "{told}"
        );
    }
    // And none to read with.
    let told = Desk::with(&[(&target, PUSHER)]).failure(&["mirror", &image, &place]);
    assert!(told.contains(&source), "{told}");
    // A manifest that the target does not take.
    let desk = Desk::at(&registries);
    let words = r#"{"errors":[{"code":"MANIFEST_INVALID","message":"no images on Sundays"}]}"#;
    let refusing = Obstacle::Answer(400, Vec::new(), words);
    registries.passage.put_often(Kind::Manifest, &refusing, 20);
    let told = desk.failure(&["mirror", &image, &place]);
    assert!(told.contains("no images on Sundays"), "{told}");
    assert_nothing_half(&registries);
    registries.passage.clear();
    // A place that is none, and an image that is not there.
    for to in [format!("https://{place}"), format!("{place}:v1")] {
        assert_eq!(desk.run(&["mirror", &image, &to]).code, Some(2), "{to}");
    }
    let none = format!("{source}/acme/none:v1");
    assert!(
        desk.failure(&["mirror", &none, &place])
            .contains("acme/none")
    );
}

#[test]
fn a_lying_source_gets_nothing_wrong_into_the_target_by_a_command() {
    require!("docker-registry", "skopeo");
    let registries = Registries::new();
    let desk = Desk::at(&registries);
    let liar = Liar::open();
    for (number, size) in [(0, 300_000), (1, 40 * MIB)] {
        let layers: Vec<_> = (0..3)
            .map(|seed| Content::Generated {
                seed: 700 + seed + number,
                size,
            })
            .collect();
        for (case, behaviour) in (0..).zip([
            Behaviour::WrongBytes,
            Behaviour::WrongByteAt(1000),
            Behaviour::error(404, "BLOB_UNKNOWN"),
        ]) {
            let repository = format!("acme/lie-{number}-{case}");
            let image = liar.image(&repository, "v1", &layers);
            liar.misbehave(&blob_path(&repository, &image.layers[1]), behaviour.clone());
            let name = liar.reference(&repository, "v1");
            let told = desk.failure(&["mirror", &name, &registries.place()]);
            assert!(
                told.contains(&liar.name()) || told.contains(&image.layers[1]),
                "{behaviour:?}: {told}"
            );
            let kept = format!("kept/{repository}");
            assert!(registries.target.tags(&kept).is_empty(), "{behaviour:?}");
            assert!(
                registries.target.manifests(&kept).is_empty(),
                "{behaviour:?}"
            );
            assert!(!registries.target.blobs(&kept).contains(&image.layers[1]));
        }
    }
    // A connection that breaks off is taken up again.
    let content = Content::Generated {
        seed: 800,
        size: 30 * MIB,
    };
    let image = liar.image("acme/broken", "v1", &[content]);
    let path = blob_path("acme/broken", &image.layers[0]);
    let cut = Behaviour::CutAfter(10 * MIB);
    liar.misbehave_in_turn(&path, &[cut.clone(), Behaviour::HangUp, cut]);
    desk.json(&[
        "mirror",
        &liar.reference("acme/broken", "v1"),
        &registries.place(),
    ]);
    assert_eq!(registries.target.tags("kept/acme/broken"), ["v1"]);
    let stored = registries.target.stored(&image.layers[0]);
    assert_eq!(file_digest(&stored), image.layers[0]);
}

#[test]
fn a_command_freezes_an_image_the_same_way_each_time() {
    require!("docker-registry", "skopeo", "podman", "containerd", "ctr");
    let registries = Registries::new();
    let desk = Desk::at(&registries);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = Image::build_for(
        &folder.path().join("index"),
        &["amd64", "arm64"],
        &[3000, 9],
    );
    registries.source.push(&image, "acme/app", "v1");
    let files = folder.path().join("files");
    fs::create_dir_all(files.join("bin")).expect("a writable folder");
    fs::write(files.join("bin/tool"), "a tool").expect("a writable folder");
    let (name, place) = (
        format!("{}/acme/app:v1", registries.source.name()),
        registries.place(),
    );
    let files = files.display().to_string();
    let freeze = |place: &str, more: &[&str]| {
        let given = [
            "freeze",
            &name,
            place,
            "--layer",
            &files,
            "--env",
            "A=with blanks",
            "--entrypoint",
            "/bin/tool",
        ];
        desk.json(&[&given[..], more].concat())
    };
    let made = freeze(&place, &[]);
    let target = made["targetImage"].as_str().expect("a name");
    let (repository, tag) = target.rsplit_once(':').expect("a tag");
    assert_eq!(repository, place);
    let bytes = registries.at_target("kept", tag).expect("a frozen image");
    assert_eq!(made["digest"], digest(&bytes));
    let login = format!("{}:{}", PUSHER.0, PUSHER.1);
    let pulled = target.replace(&registries.passage.name(), &registries.target.name());
    let unpacked = podman_unpack_as(&pulled, &login);
    assert_eq!(unpacked.file("bin/tool"), "a tool");
    assert!(unpacked.root.join("layer-0").is_file(), "the image's own");
    assert_eq!(unpacked.config["Entrypoint"], json!(["/bin/tool"]));
    let containerd = Containerd::start();
    containerd.pull_as(&pulled, &login);
    assert_eq!(containerd.unpacked("bin/tool"), ["a tool"]);

    let before = registries.target.writes();
    let again = freeze(&place, &[]);
    assert_eq!(again["targetImage"], made["targetImage"]);
    assert_eq!(again["cached"], true, "{again}");
    assert_eq!(registries.target.writes(), before);
    let arm = freeze(&place, &["--platform", "linux/arm64"]);
    assert_ne!(arm["targetImage"], made["targetImage"]);
    // For several, each is the image of a freeze for it alone.
    let both = freeze(&place, &["--platform", "linux/arm64,linux/amd64"]);
    let target = both["targetImage"].as_str().expect("a name");
    let (_, tag) = target.rsplit_once(':').expect("a tag");
    let bytes = registries.at_target("kept", tag).expect("an index");
    let index: Value = serde_json::from_slice(&bytes).expect("an index");
    let named = [
        &index["manifests"][0]["digest"],
        &index["manifests"][1]["digest"],
    ];
    assert_eq!(named, [&made["digest"], &arm["digest"]]);
    let again = freeze(&place, &["--platform", "amd64", "--platform", "arm64"]);
    assert_eq!(again["targetImage"], both["targetImage"]);
    assert_eq!(again["cached"], true, "{again}");
    for (command, platforms, code, about) in [
        (
            "freeze",
            "amd64,s390x",
            1,
            "no image for linux/s390x, only for linux/amd64, linux/arm64; choose of these with --platform",
        ),
        ("freeze", "s390x", 1, "choose of these with --platform"),
        ("mirror", "amd64,arm64", 2, "no mirror of it"),
        ("mirror", "s390x", 1, "choose of these with --platform"),
    ] {
        let given = [command, &name, &place, "--platform", platforms];
        let said = desk.run(&given);
        assert_eq!(said.code, Some(code), "{given:?}: {}", said.told);
        assert!(said.told.contains(about), "{given:?}: {}", said.told);
        assert!(!said.told.contains("containerPlatform"), "{}", said.told);
    }
    // To another repository, of a registry that has nothing of it: the same image.
    let there = format!("{}/frozen", registries.source.name());
    let there = freeze(&there, &[]);
    assert_eq!(there["digest"], made["digest"]);
    assert_eq!(there["cached"], false, "{there}");
}

#[test]
fn a_command_and_a_server_give_one_name_to_a_freeze() {
    require!("docker-registry", "skopeo");
    let scene = MirrorScene::new();
    let desk = Desk::at(&scene);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let push = |repository: &str, architectures: &[&str], sizes: &[u64]| {
        let image = Image::build_for(&folder.path().join(repository), architectures, sizes);
        scene.source.push(&image, repository, "v1");
        format!("{}/{repository}:v1", scene.source.name())
    };
    let name = push("acme/app", &["amd64", "arm64"], &[3000, 9]);
    let tools = push("acme/tools", &["arm64", "s390x", "amd64"], &[500]);
    let more = push("acme/more", &["amd64", "arm64"], &[700, 20]);
    for platforms in ["linux/amd64", "linux/arm64,linux/amd64"] {
        let asked = json!({
            "freeze": true, "containerPlatform": platforms, "containerIncludes": [tools, more],
            "containerConfig": {"env": ["A=with blanks"], "cmd": ["run"]},
        });
        let submitted = scene.ask(&scene.request(&name, &asked));
        scene.succeeds(&submitted);
        let found = desk.json(&[
            "freeze",
            &name,
            &scene.place(),
            "--platform",
            platforms,
            "--include",
            &tools,
            "--include",
            &more,
            "--env",
            "A=with blanks",
            "--cmd",
            "run",
        ]);
        assert_eq!(
            found["targetImage"], submitted["targetImage"],
            "{platforms}"
        );
        assert_eq!(found["cached"], true, "{found}");
    }
    // What an included image has not is told with the image's name.
    let part = push("acme/part", &["amd64", "s390x"], &[500]);
    let alone = push("acme/alone", &["amd64"], &[500]);
    for (include, has) in [(&part, "linux/amd64, linux/s390x"), (&alone, "linux/amd64")] {
        let said = desk.failure(&[
            "freeze",
            &name,
            &scene.place(),
            "--platform",
            "amd64,arm64",
            "--include",
            include,
        ]);
        let expected = format!(
            "--include {include}: it has no image for linux/arm64, only for {has}; choose of these with --platform"
        );
        assert!(said.contains(&expected), "{expected}: {said}");
    }
}
