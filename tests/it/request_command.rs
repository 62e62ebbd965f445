//! `tidegate request`: a name from a shell, of this server or of another one that speaks Wave's API.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    process::{Command, Output},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use crate::support::{
    accounts::Accounts,
    authority::Authority,
    docker_registry::{DockerRegistry, Login},
    image::Image,
    liar::{Auth, Liar},
    programs::{self, require},
    runtimes::umoci_unpack,
    server::{Server, respond},
    tidegate::{BINARY, Directory, Grant, Setup, Tidegate},
};

const ADA: &str = "access-token-of-ada";

/// Nothing of who runs the tests comes in.
fn command(server: &str, name: &str) -> Command {
    let mut command = Command::new(BINARY);
    command.args([name, "--server", server]);
    for variable in [
        "TIDEGATE_TOKEN",
        "TOWER_ACCESS_TOKEN",
        "TIDEGATE_SERVER",
        "WAVE_ENDPOINT",
        "TOWER_WORKSPACE_ID",
        "TOWER_API_ENDPOINT",
    ] {
        command.env_remove(variable);
    }
    command
}

fn url(tidegate: &Tidegate) -> String {
    format!("http://{}", tidegate.registry)
}

/// Exit code, standard output, standard error.
fn said(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = programs::output(command);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let (stdout, stderr) = (text(stdout), text(stderr));
    assert!(
        !stdout.contains(ADA) && !stderr.contains(ADA),
        "{stdout}{stderr}"
    );
    (status.code(), stdout, stderr)
}

struct Scene {
    liar: Liar,
    tidegate: Tidegate,
}

impl Scene {
    /// Only Ada has a login.
    fn new() -> Self {
        let accounts = Accounts::none().with("ada", "hunter2", &["*"]);
        let liar = Liar::start(Auth::Basic(accounts));
        liar.image("acme/app", "v1", &[]);
        let directory =
            Directory::new()
                .user("ada", ADA, &[])
                .user_login(liar.name(), "ada", "hunter2");
        let tidegate = Setup::new().liar(&liar).directory(&directory).start();
        Self { liar, tidegate }
    }

    fn image(&self) -> String {
        self.liar.reference("acme/app", "v1")
    }

    fn request(&self) -> Command {
        let mut command = command(&url(&self.tidegate), "request");
        command.arg(self.image());
        command
    }
}

#[test]
fn a_name_alone_is_printed_and_can_be_pulled() {
    let scene = Scene::new();
    let file = scene.tidegate.home().join("ada.token");
    fs::write(&file, format!("{ADA}\n")).expect("a writable folder");
    let (code, name, told) = said(
        scene
            .request()
            .arg("--token-file")
            .arg(&file)
            .arg("--await"),
    );
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(told, "");
    let target = name.trim_end();
    let prefix = format!("{}/wt/", scene.tidegate.registry);
    assert!(
        target.starts_with(&prefix) && target.ends_with("/acme/app:v1"),
        "{name}"
    );
    let (_, path) = target.split_once('/').expect("a path");
    let (repository, tag) = path.rsplit_once(':').expect("a tag");
    let manifest = scene
        .tidegate
        .get(&format!("/v2/{repository}/manifests/{tag}"));
    assert_eq!(manifest.status(), 200, "{}", manifest.excerpt());
}

/// The same twice: a digest, and a folder whose files are as they were, but for their times.
#[test]
fn the_files_of_a_folder_are_in_the_image() {
    require!("docker-registry", "skopeo", "umoci");
    let registry = DockerRegistry::start(&Login::Open);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = Image::build(&folder.path().join("image"), &[3000]);
    registry.push(&image, "acme/app", "v1");
    let tidegate = Setup::new().registry(registry.name()).start();
    let files = folder.path().join("files");
    let tool = files.join("opt/tool");
    fs::create_dir_all(files.join("opt")).expect("a writable folder");
    fs::write(&tool, "a tool").expect("a writable folder");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("our own file");
    symlink("tool", files.join("opt/link")).expect("a writable folder");
    let names = [0, 1].map(|day| {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(day * 24 * 3600);
        let file = fs::File::open(&tool).expect("our own file");
        file.set_modified(time).expect("our own file");
        let mut request = command(&url(&tidegate), "request");
        request.arg(format!("{}/acme/app:v1", registry.name()));
        request
            .arg("--layer")
            .arg(&files)
            .args(["--env", "TOOL=a b"]);
        request.args(["--entrypoint", "/opt/tool", "--workdir", "/opt"]);
        let (code, name, told) = said(&mut request);
        assert_eq!(code, Some(0), "{told}");
        name.trim_end().to_owned()
    });
    let unpacked = umoci_unpack(&names[0]);
    assert_eq!(unpacked.file("opt/tool"), "a tool");
    assert_eq!(unpacked.file("opt/link"), "a tool");
    let mode = fs::metadata(unpacked.root.join("opt/tool")).expect("it is there");
    assert_eq!(mode.permissions().mode() & 0o777, 0o755);
    let process = &unpacked.config["process"];
    assert_eq!(process["cwd"], json!("/opt"));
    assert_eq!(process["args"][0], json!("/opt/tool"));
    assert!(process["env"].to_string().contains("TOOL=a b"), "{process}");
    let [first, second] = names.map(|name| {
        let (_, path) = name.split_once('/').expect("a path");
        let (repository, tag) = path.rsplit_once(':').expect("a tag");
        let manifest = tidegate.get(&format!("/v2/{repository}/manifests/{tag}"));
        assert_eq!(manifest.status(), 200, "{}", manifest.excerpt());
        manifest.digest()
    });
    assert_eq!(first, second);
}

#[test]
fn the_token_comes_from_the_environment_and_tidegates_own_variable_wins() {
    let scene = Scene::new();
    for (tidegate, tower, expected) in [
        (Some(ADA), None, Some(0)),
        (None, Some(ADA), Some(0)),
        (Some(ADA), Some("another"), Some(0)),
        (Some("another"), Some(ADA), Some(1)),
        (Some("null"), Some(ADA), Some(0)),
        (None, None, Some(1)),
    ] {
        let mut request = scene.request();
        for (variable, value) in [("TIDEGATE_TOKEN", tidegate), ("TOWER_ACCESS_TOKEN", tower)] {
            if let Some(value) = value {
                request.env(variable, value);
            }
        }
        let (code, name, told) = said(&mut request);
        assert_eq!(code, expected, "{tidegate:?} {tower:?}: {told}");
        assert_eq!(name.is_empty(), expected == Some(1), "{name}");
    }
}

#[test]
fn the_whole_answer_is_printed_as_json_or_yaml() {
    let scene = Scene::new();
    let (code, text, told) = said(
        scene
            .request()
            .env("TIDEGATE_TOKEN", ADA)
            .args(["-o", "json"]),
    );
    assert_eq!(code, Some(0), "{told}");
    let answer: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(answer["containerImage"], json!(scene.image()));
    assert_eq!(answer["succeeded"], json!(true));
    assert!(Grant::read(&answer).target.contains("/wt/"));
    let (code, text, told) = said(
        scene
            .request()
            .env("TIDEGATE_TOKEN", ADA)
            .args(["-o", "yaml"]),
    );
    assert_eq!(code, Some(0), "{told}");
    let line = format!("containerImage: \"{}\"\n", scene.image());
    assert!(
        text.contains(&line) && text.contains("\nsucceeded: true\n"),
        "{text}"
    );
}

#[test]
fn what_the_server_says_goes_to_standard_error() {
    let scene = Scene::new();
    let nothing = scene.liar.reference("acme/none", "v1");
    let token = [("TIDEGATE_TOKEN", ADA)];
    for (arguments, environment, part) in [
        (vec![nothing.as_str()], &token[..], "not found"),
        (
            vec!["docker://acme/app"],
            &token[..],
            "says: containerImage",
        ),
        (
            vec!["acme/app", "--platform", "vax"],
            &token[..],
            "containerPlatform",
        ),
        (
            vec!["acme/app"],
            &[("TIDEGATE_TOKEN", "wrong")][..],
            "access token",
        ),
        (
            vec!["acme/app", "--workspace", "9"],
            &token[..],
            "workspace",
        ),
    ] {
        let mut command = command(&url(&scene.tidegate), "request");
        command.args(&arguments).envs(environment.iter().copied());
        let (code, name, told) = said(&mut command);
        assert_eq!(
            (code, name.as_str()),
            (Some(1), ""),
            "{arguments:?}: {told}"
        );
        assert!(told.contains(part), "{arguments:?}: {told}");
    }
}

#[test]
fn what_is_wrong_here_is_told_before_anybody_is_asked() {
    let scene = Scene::new();
    let folder = scene.tidegate.home().join("empty");
    fs::create_dir(&folder).expect("a writable folder");
    let folder = folder.to_string_lossy().into_owned();
    for (arguments, part) in [
        (vec!["--layer", "/no/such/folder"], "/no/such/folder: "),
        (vec!["--layer", &folder], "empty"),
        (vec!["--token-file", "/no/such/file"], "/no/such/file: "),
        (vec!["--ca-file", "/no/such/file"], "/no/such/file"),
        (vec!["--workspace", "1"], "needs an access token"),
        (vec!["--env", "NAME"], "PATH=/bin"),
    ] {
        let (code, name, told) = said(scene.request().args(&arguments));
        assert_eq!(
            (code, name.as_str()),
            (Some(2), ""),
            "{arguments:?}: {told}"
        );
        assert!(told.contains(part), "{arguments:?}: {told}");
    }
    assert_eq!(scene.liar.requests().len(), 0);
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let nobody = format!("http://127.0.0.1:{}", programs::free_port());
    let (code, name, told) = said(command(&nobody, "request").arg("alpine"));
    assert_eq!((code, name.as_str()), (Some(1), ""), "{told}");
    assert!(told.contains(&nobody), "{told}");
    assert!(
        told.contains("--server") && !told.contains("io:"),
        "it says what to do: {told}"
    );
}

#[test]
fn what_is_no_such_server_is_told_apart() {
    let other = Server::start_on("127.0.0.1", |request, stream| {
        respond(request, stream, 404, &[], b"404 page not found\n")
    });
    let (code, _, told) = said(command(&format!("http://{}", other.address), "request").arg("a"));
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("no such API"), "{told}");
    let tidegate = Setup::new().start();
    let secure = format!("https://{}", tidegate.registry);
    let (code, _, told) = said(command(&secure, "request").arg("a"));
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("write http://"), "{told}");
}

#[test]
fn a_private_authority_is_trusted_when_it_is_named() {
    let authority = Authority::new();
    let liar = Liar::open();
    liar.image("acme/app", "v1", &[]);
    let tidegate = Setup::new()
        .liar(&liar)
        .section(&authority.section(""))
        .start();
    let server = format!("https://{}", tidegate.registry);
    let image = liar.reference("acme/app", "v1");
    let (code, _, told) = said(command(&server, "request").arg(&image));
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("--ca-file"), "{told}");
    let trusting = [
        "--ca-file",
        &authority.roots().join("ca.crt").to_string_lossy(),
    ]
    .map(str::to_owned);
    let (code, name, told) = said(command(&server, "request").arg(&image).args(trusting));
    assert_eq!(code, Some(0), "{told}");
    assert!(name.contains("/wt/"), "{name}");
}

/// A server that does what tidegate does not: it makes images, which takes a while.
struct Maker {
    server: Server,
    /// Method, target and body of each request.
    seen: Arc<Mutex<Vec<(String, String, Value)>>>,
}

impl Maker {
    /// Answers in turn, the last one for ever.
    fn start(answers: Vec<(u16, Value)>) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let server = Server::start_on("127.0.0.1", move |request, stream| {
            let body = serde_json::from_slice(&request.body).unwrap_or_default();
            let mut noted = noted.lock().expect("no test has panicked with it");
            let (status, answer) = &answers[noted.len().min(answers.len() - 1)];
            noted.push((request.method.clone(), request.target.clone(), body));
            let headers = [("Content-Type", "application/json")];
            respond(
                request,
                stream,
                *status,
                &headers,
                answer.to_string().as_bytes(),
            )
        });
        Self { server, seen }
    }

    fn command(&self, name: &str) -> Command {
        command(&format!("http://{}", self.server.address), name)
    }

    fn seen(&self) -> Vec<(String, String, Value)> {
        self.seen
            .lock()
            .expect("no test has panicked with it")
            .clone()
    }
}

fn started() -> Value {
    json!({"requestId": "0123456789ab", "targetImage": "quay.io/acme/kept:1", "buildId": "bd-1", "freeze": true})
}

fn status(state: &str, succeeded: bool) -> Value {
    json!({"id": "0123456789ab", "status": state, "succeeded": succeeded,
        "creationTime": "2026-03-04T05:06:07.123Z"})
}

#[test]
fn an_image_that_is_being_made_is_waited_for() {
    let maker = Maker::start(vec![
        (200, started()),
        (200, status("BUILDING", false)),
        (200, status("DONE", true)),
    ]);
    let (code, name, told) = said(maker.command("request").args([
        "alpine",
        "--freeze",
        "--to",
        "quay.io/acme/kept",
        "--await=1m",
    ]));
    assert_eq!(
        (code, name.as_str()),
        (Some(0), "quay.io/acme/kept:1\n"),
        "{told}"
    );
    let page = format!("BUILDING: http://{}/view/builds/bd-1", maker.server.address);
    assert!(told.contains(&page), "{told}");
    let seen = maker.seen();
    let targets: Vec<_> = seen.iter().map(|(_, target, _)| target.as_str()).collect();
    let status = "/v1alpha2/container/0123456789ab/status";
    assert_eq!(targets, ["/v1alpha2/container", status, status]);
    let (_, _, body) = &seen[0];
    assert_eq!(body["buildRepository"], json!("quay.io/acme/kept"));
    assert_eq!(
        (&body["freeze"], &body["mirror"]),
        (&json!(true), &json!(false))
    );
}

#[test]
fn without_await_nothing_is_waited_for() {
    let maker = Maker::start(vec![(200, started()), (500, json!({}))]);
    let arguments = ["alpine", "--mirror", "--to", "quay.io/acme"];
    let (code, name, told) = said(maker.command("request").args(arguments));
    assert_eq!(
        (code, name.as_str()),
        (Some(0), "quay.io/acme/kept:1\n"),
        "{told}"
    );
    assert_eq!(maker.seen().len(), 1);
}

#[test]
fn an_image_that_was_not_made_is_no_name() {
    let mut failed = status("DONE", false);
    failed["reason"] = json!("the build failed");
    failed["detailsUri"] = json!("https://wave.example.com/view/builds/bd-1");
    let maker = Maker::start(vec![(200, started()), (200, failed)]);
    let (code, name, told) = said(maker.command("request").args(["alpine", "--await"]));
    assert_eq!((code, name.as_str()), (Some(1), ""), "{told}");
    for part in [
        "the build failed",
        "https://wave.example.com/view/builds/bd-1",
    ] {
        assert!(told.contains(part), "{told}");
    }
    let maker = Maker::start(vec![(200, started()), (200, status("BUILDING", false))]);
    let (code, name, told) = said(maker.command("request").args(["alpine", "--await=100ms"]));
    assert_eq!((code, name.as_str()), (Some(1), ""), "{told}");
    assert!(told.contains("still BUILDING"), "{told}");
}

#[test]
fn a_server_that_is_busy_is_asked_again_and_one_that_says_no_is_not() {
    let busy = json!({"message": "busy"});
    let good = json!({"targetImage": "a/wt/0123456789ab/b:c", "succeeded": true});
    let maker = Maker::start(vec![(503, busy.clone()), (502, busy), (200, good)]);
    let (code, name, told) = said(maker.command("request").arg("alpine"));
    assert_eq!(
        (code, name.as_str()),
        (Some(0), "a/wt/0123456789ab/b:c\n"),
        "{told}"
    );
    assert_eq!(maker.seen().len(), 3);
    for final_status in [400, 429, 500] {
        let maker = Maker::start(vec![(final_status, json!({"message": "not so"}))]);
        let (code, _, told) = said(maker.command("request").arg("alpine"));
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains("not so"), "{told}");
        assert_eq!(maker.seen().len(), 1, "{final_status}");
    }
}

/// `docker pull $(…)` must not get more than one name.
#[test]
fn what_is_no_name_is_not_printed() {
    for target in [
        json!("a b"),
        json!("--all"),
        json!("a\nb"),
        json!(7),
        Value::Null,
    ] {
        let maker = Maker::start(vec![(
            200,
            json!({"targetImage": target, "succeeded": true}),
        )]);
        let (code, name, told) = said(maker.command("request").arg("alpine"));
        assert_eq!((code, name.as_str()), (Some(1), ""), "{told}");
    }
}

#[test]
fn all_that_is_asked_for_is_sent() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("tool"), "content").expect("a writable folder");
    let layer = folder.path().to_string_lossy().into_owned();
    let good = json!({"targetImage": "a/b:c", "succeeded": true});
    let maker = Maker::start(vec![(200, good)]);
    let arguments = [
        "alpine",
        "--layer",
        &layer,
        "--layer",
        &layer,
        "--env",
        "A=b=c",
        "--env",
        "D=",
        "--entrypoint",
        "/bin/sh",
        "--entrypoint",
        "-c",
        "--cmd",
        r#"["a", "b c"]"#,
        "--workdir",
        "/w",
        "--platform",
        "linux/arm64",
        "--include",
        "busybox",
        "--workspace",
        "7",
        "--workflow-id",
        "run",
        "--tower-endpoint",
        "https://platform.example.com",
    ];
    let (code, _, told) = said(
        maker
            .command("request")
            .args(arguments)
            .env("TIDEGATE_TOKEN", ADA),
    );
    assert_eq!(code, Some(0), "{told}");
    let (method, _, body) = &maker.seen()[0];
    assert_eq!(method, "POST");
    let config = &body["containerConfig"];
    for (value, expected) in [
        (&body["containerImage"], json!("alpine")),
        (&body["containerPlatform"], json!("linux/arm64")),
        (&body["containerIncludes"], json!(["busybox"])),
        (&body["towerAccessToken"], json!(ADA)),
        (&body["towerWorkspaceId"], json!(7)),
        (
            &body["towerEndpoint"],
            json!("https://platform.example.com"),
        ),
        (&body["workflowId"], json!("run")),
        (&body["dryRun"], json!(false)),
        (&config["env"], json!(["A=b=c", "D="])),
        (&config["entrypoint"], json!(["/bin/sh", "-c"])),
        (&config["cmd"], json!(["a", "b c"])),
        (&config["workingDir"], json!("/w")),
    ] {
        assert_eq!(*value, expected);
    }
    let layers = config["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 2);
    assert_eq!(layers[0], layers[1]);
    let location = layers[0]["location"].as_str().expect("a location");
    assert!(
        location.starts_with("data:H4sI"),
        "a gzip in base64: {location}"
    );
    // A plain request has none of that, and no null.
    let good = json!({"targetImage": "a/b:c", "succeeded": true});
    let maker = Maker::start(vec![(200, good)]);
    let (code, _, told) = said(maker.command("request").arg("alpine"));
    assert_eq!(code, Some(0), "{told}");
    let (_, _, body) = &maker.seen()[0];
    let fields: Vec<&str> = body
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        fields,
        ["containerImage", "dryRun", "freeze", "mirror", "timestamp"]
    );
}

#[test]
fn inspect_tells_what_the_server_says() {
    let answer = json!({"container": {"registry": "docker.io", "imageName": "library/alpine", "reference": "latest",
        "digest": "sha256:aa", "config": {"architecture": "arm64"}, "manifest": {"layers": [{"digest": "sha256:bb",
        "size": 2048}]}}});
    let maker = Maker::start(vec![(200, answer.clone())]);
    let arguments = ["alpine", "--platform", "linux/arm64"];
    let (code, text, told) = said(maker.command("inspect").args(arguments));
    assert_eq!(code, Some(0), "{told}");
    for part in [
        "docker.io/library/alpine:latest",
        "sha256:aa",
        "linux/arm64",
        "2.0KiB  sha256:bb",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let (_, target, body) = &maker.seen()[0];
    assert_eq!(target, "/v1alpha1/inspect?platform=linux%2Farm64");
    assert_eq!(*body, json!({"containerImage": "alpine"}));
    let (_, text, _) = said(maker.command("inspect").args(["alpine", "-o", "json"]));
    assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), answer);
    let (_, text, _) = said(maker.command("inspect").args(["alpine", "-o", "yaml"]));
    assert!(
        text.starts_with("container:\n  config:\n    architecture: arm64\n"),
        "{text}"
    );
}

#[test]
fn inspect_shows_an_image_of_a_real_registry() {
    require!("docker-registry", "skopeo");
    let registry = DockerRegistry::start(&Login::Open);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let index = Image::build_for(folder.path(), &["amd64", "arm64"], &[3000]);
    registry.push(&index, "acme/app", "v1");
    let tidegate = Setup::new().registry(registry.name()).start();
    let image = format!("{}/acme/app:v1", registry.name());
    let inspect = |arguments: &[&str]| {
        let mut command = command(&url(&tidegate), "inspect");
        let (code, text, told) = said(command.arg(&image).args(arguments));
        assert_eq!(code, Some(0), "{told}");
        text
    };
    let text = inspect(&[]);
    for part in ["linux/amd64", "linux/arm64", "sha256:"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let text = inspect(&["--platform", "linux/arm64"]);
    for part in [&image, "linux/arm64", "sha256:"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("amd64"), "{text}");
    let answer: Value = serde_json::from_str(&inspect(&["--platform", "arm64", "-o", "json"]))
        .expect("the server's answer");
    let layers = &answer["container"]["manifest"]["layers"];
    assert_eq!(layers.as_array().map(Vec::len), Some(1), "{answer}");
}

#[test]
fn inspect_comes_with_the_callers_login_and_says_why_an_image_is_not_shown() {
    let scene = Scene::new();
    let file = scene.tidegate.home().join("ada.token");
    fs::write(&file, format!("{ADA}\n")).expect("a writable folder");
    let inspect = || {
        let mut command = command(&url(&scene.tidegate), "inspect");
        command.arg(scene.image());
        command
    };
    let (code, text, told) = said(inspect().arg("--token-file").arg(&file));
    assert_eq!(code, Some(0), "{told}");
    assert!(text.contains(&scene.image()), "{text}");
    let (code, text, told) = said(&mut inspect());
    assert_eq!((code, text.as_str()), (Some(1), ""));
    assert!(
        told.contains("403") && told.contains("not allowed"),
        "{told}"
    );
}

/// A shell that is started anew takes it without a word, and knows the commands.
#[test]
fn bash_completes_commands() {
    let script = "source <(\"$0\" completion bash) && COMP_WORDS=(tidegate che) COMP_CWORD=1 && \
                  _tidegate tidegate che tidegate && echo \"${COMPREPLY[@]}\"";
    let output = programs::run(Command::new("bash").args(["-c", script, BINARY]));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "check-config\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// Both commands teach by example.
#[test]
fn help_has_examples() {
    for name in ["request", "inspect"] {
        let output = programs::output(Command::new(BINARY).args([name, "--help"]));
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(help.contains("Examples:\n"), "{help}");
        assert!(help.contains("Exit codes: 0"), "{help}");
        let output = programs::run(Command::new(BINARY).args(["help", name]));
        let again = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(again, help);
    }
}
