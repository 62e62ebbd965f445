//! Mirrors and freezes that a client asks the server for: asked, waited for, pulled from where they were put.

use std::{net::SocketAddr, process::Command};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::support::{
    accounts::Accounts,
    content::{Content, digest, sha256_hex},
    docker_registry::{DockerRegistry, Login, PASSWORD, USER},
    http::{self, Response},
    layer::Layer,
    liar::{Behaviour, Gate, Liar, LiarImage, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, blob_path},
    programs::{output, require, wait_until},
    tidegate::{BINARY, Directory, Setup, Tidegate},
    token_server::TokenServer,
};

const ADA: &str = "ada-access-token";
const BOB: &str = "bob-access-token";
const EVE: &str = "eve-access-token";
const ACCEPT: &str =
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";

const SHARED: &str = "[mirror]\npush_with_own_logins = true";

struct Scene {
    source: Liar,
    target: DockerRegistry,
    tidegate: Tidegate,
}

impl Scene {
    fn new() -> Self {
        Self::with(DockerRegistry::start(&Login::Htpasswd), USER, PASSWORD, "")
    }

    /// Ada and Bob share a workspace; Eve has one of her own, with the same login in it.
    fn with(target: DockerRegistry, user: &str, password: &str, more: &str) -> Self {
        let source = Liar::open();
        let directory = Directory::new()
            .user("ada", ADA, &[7])
            .user("bob", BOB, &[7])
            .user("eve", EVE, &[8])
            .workspace(7, "research")
            .workspace_login(target.name(), user, password)
            .workspace(8, "elsewhere")
            .workspace_login(target.name(), user, password);
        let accounts = format!("[accounts]\nadmin = \"{}\"", sha256_hex("letmein"));
        let tidegate = Setup::new()
            .liar(&source)
            .registry(target.name())
            .directory(&directory)
            .section(&accounts)
            .section(more)
            .start();
        Self {
            source,
            target,
            tidegate,
        }
    }

    fn image(&self) -> LiarImage {
        let layers = [1, 2].map(|seed| Content::Generated {
            seed,
            size: 300_000,
        });
        self.source.image("acme/app", "v1", &layers)
    }

    /// One whose copy does not end before the gate is open.
    fn slow_image(&self) -> (LiarImage, Gate) {
        let image = self.image();
        let gate = Gate::default();
        let path = blob_path("acme/app", &image.layers[0]);
        let halting = Behaviour::Gated(1000, gate.clone());
        self.source.misbehave_in_turn(&path, &[halting]);
        (image, gate)
    }

    fn mirror_as(&self, access_token: &str, workspace: i64) -> Value {
        json!({
            "containerImage": self.source.reference("acme/app", "v1"), "mirror": true,
            "buildRepository": format!("{}/kept", self.target.name()),
            "towerAccessToken": access_token, "towerWorkspaceId": workspace,
            "timestamp": "2026-03-04T05:06:07+01:00",
        })
    }

    fn mirror(&self) -> Value {
        self.mirror_as(ADA, 7)
    }

    fn submit(&self, request: &Value) -> Value {
        let (status, body) = self.tidegate.submit(request);
        assert_eq!(status, 200, "{request}: {body}");
        body
    }

    fn refused(&self, request: &Value, expected: u16) -> String {
        let (status, body) = self.tidegate.submit(request);
        assert_eq!(status, expected, "{request}: {body}");
        text(&body, "message")
    }

    fn status(&self, submitted: &Value) -> Value {
        let id = text(submitted, "requestId");
        let path = format!("/v1alpha2/container/{id}/status");
        let status = self.tidegate.get(&path);
        assert_eq!(status.status(), 200, "{}", status.text());
        status.json()
    }

    /// As clients wait.
    fn wait(&self, submitted: &Value) -> Value {
        let mut status = Value::Null;
        wait_until("the end of the job", || {
            status = self.status(submitted);
            assert!(status["creationTime"].is_string(), "{status}");
            status["status"] == json!("DONE")
        });
        status
    }

    fn made(&self, submitted: &Value) {
        let status = self.wait(submitted);
        let log = self.log(submitted);
        assert_eq!(status["succeeded"], json!(true), "{status}\n{log}");
    }

    fn record(&self, submitted: &Value) -> Response {
        let id = text(submitted, "buildId");
        let kind = if id.starts_with("mr-") {
            "mirrors"
        } else {
            "builds"
        };
        self.tidegate.get(&format!("/v1alpha1/{kind}/{id}"))
    }

    fn log(&self, submitted: &Value) -> String {
        let id = text(submitted, "buildId");
        let kind = if id.starts_with("mr-") {
            "mirrors"
        } else {
            "builds"
        };
        let log = self.tidegate.get(&format!("/v1alpha1/{kind}/{id}/logs"));
        assert_eq!(log.status(), 200, "{}", log.text());
        log.text()
    }

    fn at_target(&self, path: &str) -> Response {
        at(self.target.address, path)
    }

    /// Requests that change something.
    fn uploads(&self) -> usize {
        let log = self.target.log();
        log.lines()
            .filter(|line| line.contains("\"PUT /v2/"))
            .count()
    }
}

fn at(registry: SocketAddr, path: &str) -> Response {
    let login = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let headers = [
        ("Authorization", format!("Basic {login}")),
        ("Accept", ACCEPT.to_owned()),
    ];
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    http::request(registry, "GET", path, &headers, b"")
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_mirror_is_asked_for_waited_for_and_there() {
    require!("docker-registry");
    let scene = Scene::new();
    let image = scene.image();
    let submitted = scene.submit(&scene.mirror());
    let target = format!("{}/kept/acme/app:v1", scene.target.name());
    assert_eq!(submitted["targetImage"], json!(target));
    assert_eq!(submitted["containerImage"], json!(target));
    assert_eq!(submitted["mirror"], json!(true));
    assert_eq!(submitted["freeze"], json!(false));
    assert_eq!(submitted["cached"], json!(false));
    for absent in ["containerToken", "expiration", "succeeded"] {
        assert!(submitted[absent].is_null(), "{submitted}");
    }
    let status = scene.wait(&submitted);
    assert_eq!(
        status["succeeded"],
        json!(true),
        "{}",
        scene.log(&submitted)
    );
    assert_eq!(status["mirrorId"], submitted["buildId"]);
    let manifest = scene.at_target("/v2/kept/acme/app/manifests/v1");
    assert_eq!(manifest.body, image.manifest_bytes);
    for blob in image.layers.iter().chain([&image.config]) {
        let got = scene.at_target(&format!("/v2/kept/acme/app/blobs/{blob}"));
        assert_eq!(digest(&got.body), *blob);
    }
    let record = scene.record(&submitted).json();
    assert_eq!(record["status"], json!("COMPLETED"));
    assert_eq!(record["exitCode"], json!(0));
    assert_eq!(record["digest"], json!(image.manifest));
    assert_eq!(record["targetImage"], json!(target));
    assert_eq!(record["offsetId"], json!("+01:00"));
    assert_eq!(record["userName"], json!("ada"));
    let log = scene.log(&submitted);
    assert!(
        log.contains(&image.layers[0]) && log.contains("done: "),
        "{log}"
    );
    for secret in [
        PASSWORD,
        ADA,
        &STANDARD.encode(format!("{USER}:{PASSWORD}")),
    ] {
        assert!(!log.contains(secret) && !record.to_string().contains(secret));
    }
    // It is no name.
    let token = text(&submitted, "requestId");
    let pulled = scene
        .tidegate
        .get(&format!("/v2/wt/{token}/acme/app/manifests/v1"));
    assert_eq!(pulled.status(), 404);
    let request = scene
        .tidegate
        .get(&format!("/v1alpha2/container/{token}"))
        .json();
    assert_eq!(request["mirror"], json!(true));
    assert_eq!(request["waveImage"], json!(target));
    assert_eq!(request["buildId"], submitted["buildId"]);
}

#[test]
fn what_is_there_is_not_copied_again() {
    require!("docker-registry");
    let scene = Scene::new();
    scene.image();
    let first = scene.submit(&scene.mirror());
    scene.made(&first);
    let uploads = scene.uploads();
    assert!(uploads > 0);
    let again = scene.submit(&scene.mirror_as(BOB, 7));
    assert_eq!(again["cached"], json!(true));
    assert_eq!(again["succeeded"], json!(true));
    assert_eq!(again["buildId"], first["buildId"]);
    assert_eq!(scene.wait(&again)["succeeded"], json!(true));
    // Who has nothing to do with the first is not told of it.
    let other = scene.submit(&scene.mirror_as(EVE, 8));
    assert_eq!(other["succeeded"], json!(true));
    assert!(
        other["buildId"].is_null() && other["cached"].is_null(),
        "{other}"
    );
    let status = scene.wait(&other);
    assert_eq!(status["succeeded"], json!(true));
    assert!(status["mirrorId"].is_null(), "{status}");
    assert_eq!(scene.uploads(), uploads);
    // A tag that has moved is copied anew.
    let moved = scene
        .source
        .image("acme/app", "v1", &[Content::of("moved")]);
    let anew = scene.submit(&scene.mirror());
    assert_eq!(anew["cached"], json!(false), "{anew}");
    assert_ne!(anew["buildId"], first["buildId"]);
    scene.made(&anew);
    let manifest = scene.at_target("/v2/kept/acme/app/manifests/v1");
    assert_eq!(manifest.body, moved.manifest_bytes);
}

#[test]
fn asked_twice_it_is_one_job_and_nobody_elses() {
    require!("docker-registry");
    let scene = Scene::new();
    let (_, gate) = scene.slow_image();
    let first = scene.submit(&scene.mirror());
    assert_eq!(scene.status(&first)["status"], json!("BUILDING"));
    assert_eq!(scene.status(&first)["succeeded"], json!(false));
    let second = scene.submit(&scene.mirror_as(BOB, 7));
    assert_eq!(second["buildId"], first["buildId"]);
    assert_eq!(second["cached"], json!(false));
    assert!(second["succeeded"].is_null());
    assert_ne!(second["requestId"], first["requestId"]);
    let other = scene.submit(&scene.mirror_as(EVE, 8));
    assert_ne!(other["buildId"], first["buildId"]);
    gate.open();
    for submitted in [&first, &second, &other] {
        scene.made(submitted);
    }
}

#[test]
fn a_dry_run_makes_nothing() {
    require!("docker-registry");
    let scene = Scene::new();
    let image = scene.image();
    let mut request = scene.mirror();
    request["dryRun"] = json!(true);
    let submitted = scene.submit(&request);
    assert!(text(&submitted, "buildId").starts_with("mr-"));
    assert!(text(&submitted, "buildId").ends_with("_0"));
    assert_eq!(submitted["cached"], json!(false));
    assert_eq!(submitted["succeeded"], json!(true));
    let id = text(&submitted, "requestId");
    let status = scene
        .tidegate
        .get(&format!("/v1alpha2/container/{id}/status"));
    assert_eq!(status.status(), 404);
    assert_eq!(scene.source.blob_gets("acme/app", &image.layers[0]), 0);
    assert_eq!(scene.uploads(), 0);
    scene.made(&scene.submit(&scene.mirror()));
    assert_eq!(scene.submit(&request)["cached"], json!(true));
}

#[test]
fn who_may_not_push_is_told_before_anything_is_copied() {
    require!("docker-registry");
    let accounts = Accounts::none().with_reader("reader", "hunter2", &["*"]);
    let tokens = TokenServer::start(accounts);
    let target = DockerRegistry::start(&Login::Token(&tokens));
    let name = target.name();
    let scene = Scene::with(target, "reader", "hunter2", "");
    let image = scene.image();
    let message = scene.refused(&scene.mirror(), 400);
    assert!(message.contains(&name), "{message}");
    assert!(!message.contains("hunter2"), "{message}");
    // Nor has she a login of her own.
    let mut personal = scene.mirror();
    personal["towerWorkspaceId"] = Value::Null;
    let message = scene.refused(&personal, 400);
    assert!(
        message.contains(&name) && message.contains("no login"),
        "{message}"
    );
    assert_eq!(scene.source.blob_gets("acme/app", &image.layers[0]), 0);
    assert_eq!(scene.tidegate.metric("tidegate_jobs_failed_total"), 0);
}

#[test]
fn the_operators_login_is_not_for_everybody_to_push_with() {
    require!("docker-registry");
    let target = DockerRegistry::start(&Login::Htpasswd);
    let source = Liar::open();
    source.image("acme/app", "v1", &[Content::of("layer")]);
    let login = format!("username = \"{USER}\"\npassword = \"{PASSWORD}\"");
    let setup = || {
        Setup::new()
            .liar(&source)
            .registry_with(target.name(), &login)
    };
    let request = json!({
        "containerImage": source.reference("acme/app", "v1"), "freeze": true,
        "buildRepository": format!("{}/kept/app", target.name()),
    });
    let tidegate = setup().start();
    let (status, body) = tidegate.submit(&request);
    assert_eq!(status, 400, "{body}");
    let message = text(&body, "message");
    assert!(message.contains("mirror.push_with_own_logins"), "{message}");
    let is_told = |line: &str| {
        line.contains("a container request was refused")
            && line.contains("mirror.push_with_own_logins")
    };
    let told = tidegate.log().wait_for(is_told);
    assert!(told.is_some(), "{}", tidegate.log().text());
    let generous = setup().section(SHARED);
    let scene = Scene {
        tidegate: generous.start(),
        source,
        target,
    };
    scene.made(&scene.submit(&request));
}

#[test]
fn a_job_whose_login_has_gone_has_nobody_elses() {
    require!("docker-registry");
    let target = DockerRegistry::start(&Login::Htpasswd);
    let source = Liar::open();
    let own = format!("[own]\nbuild_repository = \"{}/own\"", target.name());
    let login = format!("username = \"{USER}\"\npassword = \"{PASSWORD}\"");
    let nothing = Directory::new()
        .user("ada", ADA, &[7])
        .workspace(7, "research");
    let directory = nothing
        .clone()
        .workspace_login(target.name(), USER, PASSWORD);
    let tidegate = Setup::new()
        .liar(&source)
        .registry_with(target.name(), &login)
        .directory(&directory)
        .section(&own)
        .start();
    let mut scene = Scene {
        source,
        target,
        tidegate,
    };
    let (_, gate) = scene.slow_image();
    let submitted = scene.submit(&scene.mirror());
    scene.tidegate.change_directory(&nothing);
    scene.tidegate.restart();
    gate.open();
    let status = scene.wait(&submitted);
    assert_eq!(status["succeeded"], json!(false), "{status}");
    let reason = text(&status, "reason");
    assert!(reason.contains("mirror.push_with_own_logins"), "{reason}");
    let manifest = scene.at_target("/v2/kept/acme/app/manifests/v1");
    assert_eq!(manifest.status(), 404);
}

#[test]
fn what_one_tenant_put_there_with_the_operators_login_is_not_mounted_for_another() {
    require!("docker-registry");
    let target = DockerRegistry::start(&Login::Htpasswd);
    let source = Liar::open();
    let login = format!("username = \"{USER}\"\npassword = \"{PASSWORD}\"");
    let own = format!("[own]\nbuild_repository = \"{}/own\"", target.name());
    let directory = Directory::new()
        .user("ada", ADA, &[7])
        .user("eve", EVE, &[8])
        .workspace(7, "research")
        .workspace(8, "elsewhere");
    let tidegate = Setup::new()
        .liar(&source)
        .registry_with(target.name(), &login)
        .directory(&directory)
        .section(&own)
        .section(SHARED)
        .start();
    let scene = Scene {
        source,
        target,
        tidegate,
    };
    let image = scene.image();
    scene.made(&scene.submit(&scene.mirror()));
    // Eve knows the digests and has none of the bytes.
    scene
        .source
        .manifest("eve/guess", "v1", OCI_MANIFEST, &image.manifest_bytes);
    let mut guess = scene.mirror_as(EVE, 8);
    guess["containerImage"] = json!(scene.source.reference("eve/guess", "v1"));
    let status = scene.wait(&scene.submit(&guess));
    assert_eq!(status["succeeded"], json!(false), "{status}");
    let layer = format!("/v2/kept/eve/guess/blobs/{}", image.layers[0]);
    assert_eq!(scene.at_target(&layer).status(), 404);
}

#[test]
fn a_job_that_runs_out_of_time_leaves_no_upload_open() {
    require!("docker-registry");
    let target = DockerRegistry::start(&Login::Htpasswd);
    let scene = Scene::with(target, USER, PASSWORD, "[mirror]\njob_timeout = \"1s\"");
    let (_, gate) = scene.slow_image();
    let status = scene.wait(&scene.submit(&scene.mirror()));
    gate.open();
    let reason = text(&status, "reason");
    assert!(reason.contains("mirror.job_timeout"), "{status}");
    wait_until("the upload to be cancelled", || {
        let log = scene.target.log();
        let cancelled = log
            .lines()
            .filter(|line| line.contains("\"DELETE /v2/kept/acme/app/blobs/uploads/"));
        // The first was the trial.
        cancelled.count() == 2
    });
}

#[test]
fn a_source_cannot_list_without_end_what_refers_to_an_image() {
    require!("docker-registry");
    let scene = Scene::new();
    let image = scene.image();
    let listed: Vec<Value> = (0..2049)
        .map(|number: u32| {
            let digest = digest(&number.to_be_bytes());
            json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 4})
        })
        .collect();
    let path = format!("/v2/acme/app/referrers/{}", image.manifest);
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed});
    scene.source.page(&path, OCI_INDEX, &index.to_string());
    let status = scene.wait(&scene.submit(&scene.mirror()));
    assert_eq!(status["succeeded"], json!(false), "{status}");
    let reason = text(&status, "reason");
    assert!(reason.contains("more than 2048 things refer"), "{reason}");
}

#[test]
fn nobody_pushes_without_a_login_into_the_operators_network() {
    require!("docker-registry");
    let target = DockerRegistry::start(&Login::Open);
    let scene = Scene::with(target, USER, PASSWORD, "");
    scene.image();
    let mut personal = scene.mirror();
    personal["towerWorkspaceId"] = Value::Null;
    let message = scene.refused(&personal, 400);
    assert!(message.contains("mirror.push_with_own_logins"), "{message}");
    assert_eq!(scene.uploads(), 0);
    scene.made(&scene.submit(&scene.mirror()));
}

#[test]
fn a_job_outlives_the_process() {
    require!("docker-registry");
    let mut scene = Scene::new();
    let (image, gate) = scene.slow_image();
    let submitted = scene.submit(&scene.mirror());
    let path = blob_path("acme/app", &image.layers[0]);
    scene
        .source
        .wait_for("the copy", |request| request.path() == path);
    scene.tidegate.restart();
    gate.open();
    scene.made(&submitted);
    let log = scene.log(&submitted);
    assert!(log.contains("started again"), "{log}");
    let manifest = scene.at_target("/v2/kept/acme/app/manifests/v1");
    assert_eq!(manifest.body, image.manifest_bytes);
    // What is over stays over.
    scene.tidegate.restart();
    scene.made(&submitted);
}

#[test]
fn a_job_ends_with_the_last_request_for_it() {
    require!("docker-registry");
    let scene = Scene::new();
    let (_, gate) = scene.slow_image();
    let first = scene.submit(&scene.mirror());
    let second = scene.submit(&scene.mirror());
    let login = STANDARD.encode("admin:letmein");
    let login = format!("Basic {login}");
    let revoke = |submitted: &Value| {
        let path = format!("/container-token/{}", text(submitted, "requestId"));
        let response = scene
            .tidegate
            .request("DELETE", &path, &[("Authorization", &login)]);
        assert_eq!(response.status(), 200, "{}", response.text());
    };
    revoke(&first);
    assert_eq!(scene.record(&first).json()["status"], json!("PENDING"));
    revoke(&second);
    wait_until("the end of the job", || {
        scene.record(&first).json()["status"] == json!("COMPLETED")
    });
    let record = scene.record(&first).json();
    assert!(record["exitCode"].is_null(), "{record}");
    assert!(text(&record, "logs").contains("cancelled"), "{record}");
    gate.open();
    assert_eq!(
        scene.at_target("/v2/kept/acme/app/manifests/v1").status(),
        404
    );
}

#[test]
fn an_operator_sees_jobs_and_ends_them() {
    require!("docker-registry");
    let scene = Scene::new();
    let (_, gate) = scene.slow_image();
    let submitted = scene.submit(&scene.mirror());
    let id = text(&submitted, "buildId");
    let jobs = http::get(scene.tidegate.admin, "/jobs").json();
    assert_eq!(jobs[0]["id"], json!(id), "{jobs}");
    assert_eq!(jobs[0]["target"], submitted["targetImage"]);
    assert_eq!(scene.tidegate.metric("tidegate_jobs_running"), 1);
    let cancel = |headers: &[(&str, &str)]| {
        let path = format!("/jobs/{id}");
        let answer = http::request(scene.tidegate.admin, "DELETE", &path, headers, b"");
        answer.status()
    };
    assert_eq!(cancel(&[]), 403, "a page could have sent it");
    let told = |arguments: &[&str]| {
        let admin = scene.tidegate.admin.to_string();
        let mut command = Command::new(BINARY);
        let output = output(
            command
                .arg("jobs")
                .args(arguments)
                .args(["--admin", &admin]),
        );
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let (code, list) = told(&["ls"]);
    assert_eq!(code, Some(0), "{list}");
    assert!(list.contains(&id), "{list}");
    assert!(list.contains(&text(&submitted, "targetImage")), "{list}");
    let (code, json) = told(&["ls", "-o", "json"]);
    assert_eq!(code, Some(0), "{json}");
    assert!(json.contains(&format!("\"id\":\"{id}\"")), "{json}");
    let (code, said) = told(&["end", "mr-000000000000", &id]);
    assert_eq!(code, Some(1), "one of them is unknown: {said}");
    assert!(said.contains(&format!("{id} is ended")), "{said}");
    let status = scene.wait(&submitted);
    assert_eq!(status["succeeded"], json!(false));
    assert!(text(&status, "reason").contains("cancelled"), "{status}");
    let page = text(&status, "detailsUri");
    let path = page
        .split_once("/view/")
        .map(|(_, rest)| format!("/view/{rest}"));
    let page = scene.tidegate.get(&path.unwrap_or_default());
    assert_eq!(page.status(), 200, "{}", page.text());
    assert!(
        page.text().contains("did not come about"),
        "{}",
        page.text()
    );
    assert!(page.text().contains(&text(&submitted, "targetImage")));
    assert_eq!(cancel(&[("X-Tidegate", "jobs")]), 404, "it is over");
    assert_eq!(http::get(scene.tidegate.admin, "/jobs").json(), json!([]));
    assert_eq!(told(&["ls"]), (Some(0), "no jobs\n".to_owned()));
    gate.open();
}

/// An index for two platforms with a layer each.
fn index(liar: &Liar) -> [Layer; 2] {
    let layers = ["amd64", "arm64"].map(|architecture| Layer::of(&[("base", architecture)]));
    let mut manifests = Vec::new();
    for (architecture, layer) in ["amd64", "arm64"].iter().zip(&layers) {
        liar.blob("acme/app", Content::of(&layer.bytes));
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Entrypoint": ["/old"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        });
        let config = Content::of(config.to_string());
        let config_digest = liar.blob("acme/app", config.clone());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config.size()},
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": layer.digest, "size": layer.bytes.len(),
            }],
        });
        let bytes = manifest.to_string();
        let digest = liar.manifest("acme/app", architecture, OCI_MANIFEST, bytes.as_bytes());
        manifests.push(json!({
            "mediaType": OCI_MANIFEST, "digest": digest, "size": bytes.len(),
            "platform": {"os": "linux", "architecture": architecture},
        }));
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    liar.manifest("acme/app", "v1", OCI_INDEX, index.to_string().as_bytes());
    layers
}

#[test]
fn a_freeze_has_what_the_request_puts_on_the_image() {
    require!("docker-registry");
    let scene = Scene::new();
    let [_, base] = index(&scene.source);
    let tool = Layer::of(&[("bin/tool", "a tool")]);
    let mut request = json!({
        "containerImage": scene.source.reference("acme/app", "v1"), "freeze": true,
        "buildRepository": format!("{}/kept/frozen", scene.target.name()),
        "towerAccessToken": ADA, "towerWorkspaceId": 7, "containerPlatform": "arm64",
        "containerConfig": {"env": ["A=1"], "layers": [tool.posted()]},
    });
    let submitted = scene.submit(&request);
    assert!(
        text(&submitted, "buildId").starts_with("bd-"),
        "{submitted}"
    );
    assert_eq!(submitted["freeze"], json!(true));
    assert_eq!(submitted["mirror"], json!(false));
    scene.made(&submitted);
    assert_eq!(scene.status(&submitted)["buildId"], submitted["buildId"]);
    let target = text(&submitted, "targetImage");
    let (_, tag) = target.rsplit_once(':').expect("a tag");
    let manifest = scene.at_target(&format!("/v2/kept/frozen/manifests/{tag}"));
    let made = digest(&manifest.body);
    let manifest = manifest.json();
    let layers: Vec<String> = manifest["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|layer| text(layer, "digest"))
        .collect();
    assert_eq!(
        layers,
        [base.digest.clone(), tool.digest.clone()],
        "{manifest}"
    );
    for layer in [&base, &tool] {
        let got = scene.at_target(&format!("/v2/kept/frozen/blobs/{}", layer.digest));
        assert_eq!(got.body, layer.bytes);
    }
    let config = text(&manifest["config"], "digest");
    let config = scene
        .at_target(&format!("/v2/kept/frozen/blobs/{config}"))
        .json();
    assert_eq!(config["config"]["Env"][0], json!("A=1"), "{config}");
    assert_eq!(config["architecture"], json!("arm64"));
    let record = scene.record(&submitted).json();
    assert_eq!(record["digest"], json!(made));
    assert_eq!(record["exitStatus"], json!(0));
    assert_eq!(record["platform"], json!("linux/arm64"));
    assert_eq!(record["format"], json!("DOCKER"));
    let id = text(&submitted, "buildId");
    let status = scene
        .tidegate
        .get(&format!("/v1alpha1/builds/{id}/status"))
        .json();
    assert_eq!(status["succeeded"], json!(true), "{status}");

    let again = scene.submit(&request);
    assert_eq!(again["targetImage"], submitted["targetImage"]);
    assert_eq!(again["buildId"], submitted["buildId"]);
    assert_eq!(again["cached"], json!(true));
    assert_eq!(again["succeeded"], json!(true));
    // The other endpoint's shape.
    let (status, first_version) = scene.tidegate.post("/container-token", &request);
    assert_eq!(status, 200, "{first_version}");
    assert_eq!(first_version["targetImage"], submitted["targetImage"]);
    assert!(first_version["buildId"].is_null() && first_version["freeze"].is_null());
    assert!(first_version["containerToken"].is_string());
    // Other inputs, another name: of the request, and of the image behind the tag.
    request["containerConfig"]["env"] = json!(["A=2"]);
    let other = scene.submit(&request);
    assert_ne!(other["targetImage"], submitted["targetImage"]);
    scene.source.image("acme/app", "v1", &[]);
    request["containerConfig"]["env"] = json!(["A=1"]);
    request["containerPlatform"] = Value::Null;
    request["dryRun"] = json!(true);
    let moved = scene.submit(&request);
    assert_ne!(moved["targetImage"], submitted["targetImage"]);
    scene.made(&other);
}

#[test]
fn a_freeze_by_digest_is_changed_too_and_needs_no_identity() {
    require!("docker-registry");
    let target = DockerRegistry::start(&Login::Open);
    let scene = Scene::with(target, USER, PASSWORD, SHARED);
    let image = scene.image();
    let plain = json!({
        "containerImage": scene.source.reference("acme/app", "v1"), "freeze": true,
        "buildRepository": format!("{}/kept/plain", scene.target.name()),
    });
    let submitted = scene.submit(&plain);
    scene.made(&submitted);
    let (_, tag) = text(&submitted, "targetImage")
        .rsplit_once(':')
        .map(|(name, tag)| (name.to_owned(), tag.to_owned()))
        .expect("a tag");
    let manifest = scene.at_target(&format!("/v2/kept/plain/manifests/{tag}"));
    assert_eq!(manifest.body, image.manifest_bytes, "nothing is put on it");
    let layer = Layer::of(&[("bin/tool", "a tool")]);
    scene.source.blob("acme/base", Content::of(&layer.bytes));
    let config = Content::of(
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}})
            .to_string(),
    );
    let config_digest = scene.source.blob("acme/base", config.clone());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config.size()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer.digest, "size": layer.bytes.len()}],
    });
    let base = scene.source.manifest(
        "acme/base",
        "v1",
        OCI_MANIFEST,
        manifest.to_string().as_bytes(),
    );
    let by_digest = json!({
        "containerImage": scene.source.reference("acme/base", &base), "freeze": true,
        "buildRepository": format!("{}/kept/changed", scene.target.name()),
        "containerConfig": {"cmd": ["/bin/tool"]},
    });
    let submitted = scene.submit(&by_digest);
    scene.made(&submitted);
    let target = text(&submitted, "targetImage");
    let (_, tag) = target.rsplit_once(':').expect("a tag");
    let manifest = scene
        .at_target(&format!("/v2/kept/changed/manifests/{tag}"))
        .json();
    let config = text(&manifest["config"], "digest");
    let config = scene
        .at_target(&format!("/v2/kept/changed/blobs/{config}"))
        .json();
    assert_eq!(config["config"]["Cmd"], json!(["/bin/tool"]), "{config}");
}

#[test]
fn what_fails_says_why() {
    require!("docker-registry");
    let scene = Scene::with(
        DockerRegistry::start(&Login::Htpasswd),
        USER,
        PASSWORD,
        "[mirror]\nattempts = 1",
    );
    let image = scene.image();
    let path = blob_path("acme/app", &image.layers[0]);
    scene.source.misbehave(&path, Behaviour::status(404));
    let submitted = scene.submit(&scene.mirror());
    let status = scene.wait(&submitted);
    assert_eq!(status["succeeded"], json!(false));
    let reason = text(&status, "reason");
    assert!(reason.contains(&image.layers[0]), "{reason}");
    assert!(
        text(&status, "detailsUri").contains("/view/mirrors/mr-"),
        "{status}"
    );
    // Asked at once again, it is the same failure.
    let again = scene.submit(&scene.mirror());
    assert_eq!(again["buildId"], submitted["buildId"]);
    assert_eq!(again["succeeded"], json!(false));
}

#[test]
fn records_are_only_for_who_knows_their_ids() {
    let liar = Liar::open();
    let tidegate = Setup::new().liar(&liar).start();
    for path in [
        "/v1alpha1/mirrors/mr-0123456789ab",
        "/v1alpha1/mirrors/mr-0123456789ab/logs",
        "/v1alpha1/mirrors/bd-0123456789abcdef_1",
        "/v1alpha1/builds/bd-0123456789abcdef_1",
        "/v1alpha1/builds/bd-0123456789abcdef_1/status",
        "/v1alpha1/builds/bd-0123456789abcdef_1/logs",
        "/view/mirrors/mr-0123456789ab",
        "/view/builds/none",
    ] {
        assert_eq!(tidegate.get(path).status(), 404, "{path}");
    }
    let mut last = 404;
    for number in 0..200 {
        let path = format!("/v1alpha1/mirrors/mr-{number:012x}");
        last = tidegate.get(&path).status();
    }
    assert_eq!(last, 429, "a guesser is slowed down");
}
