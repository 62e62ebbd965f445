//! `tidegate mirror` and `tidegate freeze`: copies between real registries, made by the command itself.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    accounts::Accounts,
    content::Content,
    docker_registry::{DockerRegistry, Login, PASSWORD, USER},
    image::Image,
    liar::{Auth, Behaviour, Liar, blob_path, manifest_path},
    programs::{self, Process, require, run, wait_until},
    runtimes::umoci_unpack,
    tidegate::BINARY,
};

const MIB: u64 = 1 << 20;

/// A registry that is open to all, one that wants a login, and a user who has it in a file of Docker's.
struct Scene {
    source: DockerRegistry,
    target: DockerRegistry,
    user: User,
}

/// Somebody's home, and where his temporary files go.
struct User {
    home: TempDir,
}

impl Scene {
    fn new() -> Self {
        let target = DockerRegistry::start(&Login::Htpasswd);
        let user = User::new();
        user.logs_in(&target.name());
        Self {
            source: DockerRegistry::start(&Login::Open),
            target,
            user,
        }
    }

    /// An image for two platforms, at the source.
    fn image(&self, layer_sizes: &[u64]) -> (Image, String) {
        let folder = self.user.home.path().join("image");
        let image = Image::build_for(&folder, &["amd64", "arm64"], layer_sizes);
        self.source.push(&image, "acme/app", "v1");
        (image, format!("{}/acme/app:v1", self.source.name()))
    }

    /// A place at the target.
    fn place(&self, path: &str) -> String {
        format!("{}/{path}", self.target.name())
    }
}

impl User {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(home.path().join("tmp")).expect("a writable folder");
        Self { home }
    }

    fn logs_in(&self, registry: &str) {
        let auth = STANDARD.encode(format!("{USER}:{PASSWORD}"));
        let config = json!({"auths": {registry: {"auth": auth}}}).to_string();
        fs::create_dir(self.home.path().join(".docker")).expect("a writable folder");
        let file = self.home.path().join(".docker/config.json");
        fs::write(&file, config).expect("a writable folder");
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(file, mode).expect("our own file");
    }

    /// Nothing of who runs the tests comes in.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        for variable in [
            "REGISTRY_AUTH_FILE",
            "DOCKER_CONFIG",
            "XDG_CONFIG_HOME",
            "XDG_RUNTIME_DIR",
        ] {
            command.env_remove(variable);
        }
        command.env("HOME", self.home.path());
        command.env("TMPDIR", self.temporary());
        command
    }

    fn says(&self, words: &[&str]) -> Said {
        let mut command = self.command(BINARY);
        Said::of(programs::output(command.args(words)), words)
    }

    fn temporary(&self) -> std::path::PathBuf {
        self.home.path().join("tmp")
    }

    fn has_no_temporary_files(&self) -> bool {
        let mut files = fs::read_dir(self.temporary()).expect("a readable folder");
        files.next().is_none()
    }
}

#[derive(Debug)]
struct Said {
    code: Option<i32>,
    /// What programs read.
    name: String,
    told: String,
}

impl Said {
    fn of(output: Output, words: &[&str]) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let (name, told) = (text(&output.stdout), text(&output.stderr));
        for secret in [PASSWORD, &STANDARD.encode(PASSWORD)] {
            assert!(
                !name.contains(secret) && !told.contains(secret),
                "{words:?}"
            );
        }
        Self {
            code: output.status.code(),
            name: name.trim_end().to_owned(),
            told,
        }
    }

    fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.told);
        self
    }

    fn json(self) -> Value {
        let said = self.done();
        serde_json::from_str(&said.name).unwrap_or_else(|error| panic!("{error}: {said:?}"))
    }
}

/// Byte for byte, as anybody gets it.
fn raw(name: &str) -> Option<Vec<u8>> {
    inspect(name, &["--raw"])
}

fn inspect(name: &str, how: &[&str]) -> Option<Vec<u8>> {
    let mut skopeo = programs::command("skopeo");
    skopeo
        .args(["inspect", "--tls-verify=false", "--creds"])
        .arg(format!("{USER}:{PASSWORD}"))
        .args(how)
        .arg(format!("docker://{name}"));
    let output = programs::output(&mut skopeo);
    output.status.success().then_some(output.stdout)
}

fn config_of(name: &str) -> Value {
    let config = inspect(name, &["--config", "--raw"]).expect("it was frozen");
    serde_json::from_slice(&config).expect("JSON")
}

#[test]
fn an_image_is_copied_as_it_is() {
    require!("docker-registry", "skopeo");
    let scene = Scene::new();
    let (image, source) = scene.image(&[3000, 2 * MIB]);
    let place = scene.place("kept");
    let said = scene.user.says(&["mirror", &source, &place]).done();
    let target = format!("{place}/acme/app:v1");
    assert_eq!(said.name, target);
    for digest in image.blobs() {
        let short = &digest["sha256:".len()..][..12];
        let line = said.told.lines().find(|line| line.contains(short));
        assert!(
            line.is_some_and(|line| line.ends_with("copied")),
            "{short}: {}",
            said.told
        );
    }
    assert!(!said.told.contains('\x1b'), "it is no terminal: {said:?}");
    assert!(raw(&source).is_some());
    assert_eq!(raw(&target), raw(&source));
    for manifest in &image.manifests {
        let at = |name: &str| raw(&format!("{name}@{}", manifest.digest));
        let (kept, own) = (format!("{place}/acme/app"), source.replace(":v1", ""));
        assert_eq!(at(&kept), at(&own), "{}", manifest.digest);
    }
    assert!(scene.user.has_no_temporary_files());

    let again = ["mirror", &source, &place, "-o", "json"];
    let again = scene.user.says(&again).json();
    assert_eq!(again["targetImage"], target, "{again}");
    assert_eq!(again["sourceImage"], source, "{again}");
    assert_eq!(again["digest"], image.digest, "{again}");
    assert_eq!(again["cached"], true, "{again}");
    assert_eq!(again["bytes"], 0, "{again}");
}

#[test]
fn one_platform_can_be_copied_alone() {
    require!("docker-registry", "skopeo");
    let scene = Scene::new();
    let (image, source) = scene.image(&[3000]);
    let place = scene.place("kept");
    let words = [
        "mirror",
        &source,
        &place,
        "--platform",
        "arm64",
        "-q",
        "-o",
        "json",
    ];
    let said = scene.user.says(&words).json();
    let arm = &image.manifests[1].digest;
    assert_eq!(said["digest"], *arm, "{said}");
    assert_eq!(said["cached"], false, "{said}");
    let again = scene.user.says(&words).json();
    assert_eq!(again["cached"], true, "{again}");
    let own = format!("{}@{arm}", source.replace(":v1", ""));
    assert_eq!(raw(&format!("{place}/acme/app:v1")), raw(&own));
    let missing = ["mirror", &source, &place, "--platform", "riscv64"];
    let missing = scene.user.says(&missing);
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.told.contains("linux/riscv64"), "{missing:?}");
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    require!("docker-registry", "skopeo");
    let scene = Scene::new();
    let (_, source) = scene.image(&[3000]);
    let place = scene.place("kept");
    let said = scene.user.says(&["mirror", &source, &place, "--dry-run"]);
    let said = said.done();
    assert_eq!(said.name, format!("{place}/acme/app:v1"));
    assert!(said.told.contains("nothing was done"), "{said:?}");
    assert_eq!(raw(&said.name), None);
    // It finds out whether it could be done.
    let stranger = User::new();
    let said = stranger.says(&["mirror", &source, &place, "--dry-run"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_eq!(said.name, "");
    assert!(said.told.contains(&scene.target.name()), "{said:?}");
}

#[test]
fn quiet_means_the_name_and_nothing_else() {
    require!("docker-registry", "skopeo");
    let scene = Scene::new();
    let (_, source) = scene.image(&[3000]);
    let place = scene.place("kept");
    let said = scene
        .user
        .says(&["mirror", "--quiet", &source, &place])
        .done();
    assert_eq!(said.told, "");
    let frozen = ["freeze", "-q", &source, &place, "--env", "A=b"];
    assert_eq!(scene.user.says(&frozen).done().told, "");
}

#[test]
fn a_frozen_image_has_what_was_put_on_it() {
    require!("docker-registry", "skopeo", "umoci");
    let scene = Scene::new();
    let (_, source) = scene.image(&[3000]);
    let other = Image::build(&scene.user.home.path().join("other"), &[5000]);
    scene.source.push(&other, "acme/other", "v1");
    let other = format!("{}/acme/other:v1", scene.source.name());
    let files = scene.user.home.path().join("files");
    fs::create_dir_all(files.join("opt")).expect("a writable folder");
    fs::write(files.join("opt/tool"), "a tool").expect("a writable folder");
    // Where runtimes need no login.
    let place = format!("{}/kept", scene.source.name());
    let folder = files.display().to_string();
    let words = [
        "freeze",
        &source,
        &place,
        "--layer",
        &folder,
        "--include",
        &other,
        "--env",
        "TOOL=a b",
        "--cmd",
        r#"["sh", "-c", "echo hi"]"#,
        "--workdir",
        "/opt",
    ];
    let mut rehearsal = words.to_vec();
    rehearsal.extend(["--dry-run", "-o", "json"]);
    let rehearsed = scene.user.says(&rehearsal).json();
    assert_eq!(rehearsed["dryRun"], true, "{rehearsed}");
    assert_eq!(rehearsed["cached"], false, "{rehearsed}");
    assert_eq!(scene.source.tags("kept"), [""; 0]);
    let first = scene.user.says(&words).done();
    assert_eq!(rehearsed["targetImage"], first.name);
    let (repository, tag) = first.name.rsplit_once(':').expect("a tag");
    assert_eq!(repository, place);
    assert_eq!(tag.len(), 16, "{tag}");
    let config = config_of(&first.name);
    let settings = &config["config"];
    assert_eq!(settings["WorkingDir"], "/opt", "{config}");
    assert_eq!(settings["Cmd"], json!(["sh", "-c", "echo hi"]), "{config}");
    let variables = settings["Env"].to_string();
    assert!(variables.contains(r#""TOOL=a b""#), "{config}");
    let layers = config["rootfs"]["diff_ids"].as_array().map(Vec::len);
    assert_eq!(layers, Some(3), "its own, ours and the other's: {config}");
    let unpacked = umoci_unpack(&first.name);
    let tool = fs::read_to_string(unpacked.root.join("opt/tool"));
    assert_eq!(tool.expect("the layer's file"), "a tool");

    let mut again = words.to_vec();
    again.extend(["-o", "json"]);
    let again = scene.user.says(&again).json();
    assert_eq!(again["targetImage"], first.name, "{again}");
    assert_eq!(again["cached"], true, "{again}");
    fs::write(files.join("opt/tool"), "another tool").expect("a writable folder");
    let changed = scene.user.says(&words).done();
    assert_ne!(changed.name, first.name);
    assert!(scene.user.has_no_temporary_files());
}

#[test]
fn a_kept_cache_serves_the_next_copy() {
    require!("docker-registry", "skopeo");
    let scene = Scene::new();
    let (image, source) = scene.image(&[3000, 2 * MIB]);
    let cache = scene.user.home.path().join("cache").display().to_string();
    for path in ["one", "two"] {
        let place = scene.place(path);
        let words = ["mirror", &source, &place, "--cache-dir", &cache];
        let said = scene.user.says(&words).done();
        assert_eq!(raw(&said.name), raw(&source));
    }
    for layer in image.manifests.iter().flat_map(|it| &it.layers) {
        assert_eq!(scene.source.blob_gets("acme/app", layer), 1, "{layer}");
    }
    let freed = ["cache", "ls", "--cache-dir", &cache, "-o", "json"];
    let kept = scene.user.says(&freed).json();
    assert!(kept.as_array().is_some_and(|it| !it.is_empty()), "{kept}");
}

#[test]
fn a_terminal_shows_what_moves() {
    require!("docker-registry", "skopeo", "script");
    let scene = Scene::new();
    let (image, source) = scene.image(&[3000, 8 * MIB]);
    let record = scene.user.home.path().join("record");
    let line = format!("{BINARY} mirror {source} {}", scene.place("kept"));
    let mut script = scene.user.command("script");
    run(script.args(["-qec", &line]).arg(&record));
    let shown = fs::read_to_string(record).expect("what was shown");
    assert!(shown.contains("\x1b[") && shown.contains("%"), "{shown}");
    assert!(shown.contains(" of 9, "), "{shown}");
    for digest in image.blobs() {
        let short = &digest["sha256:".len()..][..12];
        let last = shown.lines().rfind(|line| line.contains(short));
        let last = last.unwrap_or_else(|| panic!("no {short} in {shown}"));
        assert!(last.trim_end().ends_with("copied"), "{last}");
    }
}

/// A source that has stopped in the middle of a blob.
#[test]
fn an_interrupted_copy_leaves_nothing_behind() {
    require!("docker-registry", "skopeo");
    let target = DockerRegistry::start(&Login::Htpasswd);
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let user = User::new();
        user.logs_in(&target.name());
        let liar = Liar::start(Auth::Open);
        let image = liar.image(
            "acme/app",
            "v1",
            &[Content::Generated {
                seed: 1,
                size: 3 * MIB,
            }],
        );
        let layer = blob_path("acme/app", &image.layers[0]);
        liar.misbehave(&layer, Behaviour::StallAfter(MIB));
        let mut command = user.command(BINARY);
        command.args(["mirror", &liar.reference("acme/app", "v1")]);
        command.arg(format!("{}/{}", target.name(), signal.to_lowercase()));
        let mut process = Process::spawn("tidegate", &mut command);
        liar.wait_for_sent(MIB);
        process.signal(signal);
        let status = process.wait();
        process.log.wait_for_end();
        assert_eq!(status.code(), Some(code), "{}", process.log.text());
        assert!(process.log.text().contains("cancelled"), "{signal}");
        assert!(user.has_no_temporary_files(), "{signal}");
        let name = format!("{}/{}/acme/app:v1", target.name(), signal.to_lowercase());
        assert_eq!(raw(&name), None);
        // Whatever was opened was ended, or asked to be forgotten. This registry does not always do so: it knows an upload by
        // how much it had before the part that was cut.
        let place = format!("/v2/{}/acme/app/blobs/uploads/", signal.to_lowercase());
        wait_until("the end of all uploads", || {
            let log = target.log();
            let count = |method: &str| {
                let request = format!("\"{method} {place}");
                log.lines().filter(|line| line.contains(&request)).count()
            };
            // One of each was the look whether he may push.
            count("POST") > 1 && count("DELETE") > 1
        });
    }
}

#[test]
fn a_certificate_is_checked_unless_somebody_says_otherwise() {
    require!("docker-registry", "skopeo");
    let source = DockerRegistry::start_tls(&Login::Open);
    let scene = Scene::new();
    let (_, image) = scene.image(&[3000]);
    let place = source.name();
    let user = &scene.user;
    let plain = user.says(&["mirror", &image, &place]);
    assert_eq!(plain.code, Some(1), "{plain:?}");
    let insecure = ["mirror", &image, &place, "--insecure", &place];
    assert_eq!(raw(&user.says(&insecure).done().name), raw(&image));
    let settings = user.home.path().join("tidegate.toml");
    let ca_file = source.ca_file().display();
    let table = format!(
        "[registry.\"{place}\"]\nca_file = \"{ca_file}\"\nendpoint = \"https://{place}\"\n"
    );
    fs::write(&settings, table).expect("a writable folder");
    let settings = settings.display().to_string();
    let again = ["mirror", &image, &place, "--config", &settings];
    user.says(&again).done();
}

#[test]
fn what_is_wrong_is_said_before_anything_is_done() {
    let user = User::new();
    let broken = user.home.path().join("broken.toml");
    fs::write(&broken, "cores = \"many\"\n").expect("a writable folder");
    let broken = broken.display().to_string();
    let login = user.home.path().join("auth.json");
    fs::write(&login, "{").expect("a writable folder");
    let login = login.display().to_string();
    let nothing = user.home.path().join("nothing").display().to_string();
    for (words, code, reason) in [
        (
            &["mirror", "quay.io/a/b:v1", "quay.io"][..],
            2,
            "the image itself",
        ),
        (&["mirror", "quay.io/a/b:v1", "quay.io/a:v1"], 2, "a tag"),
        (&["mirror", "A", "quay.io/a"], 2, "not a repository"),
        (
            &["mirror", "alpine", "quay.io/a", "--config", &broken],
            2,
            "cores",
        ),
        (
            &["mirror", "alpine", "quay.io/a", "--authfile", &login],
            1,
            &login,
        ),
        (
            &["mirror", "alpine", "quay.io/a", "--authfile", &nothing],
            2,
            &nothing,
        ),
        (&["freeze", "alpine", "quay.io"], 2, "is a registry"),
        (&["freeze", "alpine", "docker.io/acme"], 2, "organization"),
        (
            &["freeze", "alpine", "quay.io/a", "--layer", &nothing],
            2,
            &nothing,
        ),
        (
            &["freeze", "alpine", "quay.io/a", "--include", "A"],
            2,
            "--include A",
        ),
    ] {
        let said = user.says(words);
        assert_eq!(said.code, Some(code), "{words:?}: {said:?}");
        assert!(said.told.contains(reason), "{words:?}: {said:?}");
        assert_eq!(said.name, "", "{words:?}");
        assert!(user.has_no_temporary_files(), "{words:?}");
    }
}

#[test]
fn a_registry_that_says_nothing_can_be_given_up() {
    let user = User::new();
    let liar = Liar::start(Auth::Open);
    liar.image("acme/app", "v1", &[]);
    let manifest = manifest_path("acme/app", "v1");
    let silence = [Behaviour::NoDigest, Behaviour::StallAfter(0)];
    liar.misbehave_in_turn(&manifest, &silence);
    let mut command = user.command(BINARY);
    command.args(["freeze", &liar.reference("acme/app", "v1")]);
    command.args(["127.0.0.1:1/kept", "--env", "A=b"]);
    let mut process = Process::spawn("tidegate", &mut command);
    liar.wait_for("the question", |request| {
        request.method == "GET" && request.path() == manifest
    });
    process.signal("INT");
    assert_eq!(process.wait().code(), Some(130), "{}", process.log.text());
    assert!(user.has_no_temporary_files());
}

/// The file belongs to somebody who was killed.
#[test]
fn what_a_killed_command_left_is_removed_by_the_next() {
    let user = User::new();
    let left = user.temporary().join("tidegate-left");
    fs::create_dir(&left).expect("a writable folder");
    fs::write(left.join("in-use"), "").expect("a writable folder");
    let liar = Liar::start(Auth::Open);
    user.says(&["mirror", &liar.reference("a/b", "v1"), "127.0.0.1:1"]);
    assert!(!Path::new(&left).exists());
    assert!(user.has_no_temporary_files());
}

#[test]
fn who_has_no_login_is_told_how_to_get_one() {
    let accounts = Accounts::none().with(USER, "another password", &["*"]);
    let liar = Liar::start(Auth::Basic(accounts));
    liar.image("acme/app", "v1", &[]);
    let user = User::new();
    let image = liar.reference("acme/app", "v1");
    let place = format!("{}/kept", liar.name());
    let said = user.says(&["mirror", &image, &place]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let hint = format!("docker login {}", liar.name());
    assert!(said.told.contains(&hint), "{said:?}");
    // One that is wrong is another matter.
    user.logs_in(&liar.name());
    let said = user.says(&["mirror", &image, &place]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(!said.told.contains("docker login"), "{said:?}");
}
