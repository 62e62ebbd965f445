//! Two real registries with different logins, a way to one of them that can be spoiled, and a tidegate whose users may
//! copy images between them.

use std::ops::{Deref, DerefMut};

use serde_json::{Value, json};

use super::{
    accounts::Accounts,
    docker_registry::{DockerRegistry, Login, PASSWORD, USER},
    liar::Gate,
    mirror_content::raw_manifest,
    passage::{Kind, Obstacle, Passage},
    programs::wait_until,
    tidegate::{Directory, Setup, Tidegate},
    token_server::TokenServer,
};

/// May read the source, and push below `kept/` and `others/` of the target.
pub const ADA: &str = "access-token-of-ada";
/// The same as Ada, in another workspace.
pub const BOB: &str = "access-token-of-bob";
/// May read both, and push nowhere at the target.
pub const READER: &str = "access-token-of-reader";
/// Has no login for the target.
pub const STRANGER: &str = "access-token-of-stranger";

pub const PUSHER: (&str, &str) = ("pusher", "password-of-the-pusher");
const READER_LOGIN: (&str, &str) = ("reader", "password-of-the-reader");

pub struct Registries {
    /// With `htpasswd`.
    pub source: DockerRegistry,
    pub tokens: TokenServer,
    /// With tokens.
    pub target: DockerRegistry,
    /// To the target: it is only known by this way's name.
    pub passage: Passage,
}

pub struct MirrorScene {
    pub registries: Registries,
    pub tidegate: Tidegate,
}

impl Deref for MirrorScene {
    type Target = Registries;

    fn deref(&self) -> &Registries {
        &self.registries
    }
}

impl DerefMut for MirrorScene {
    fn deref_mut(&mut self) -> &mut Registries {
        &mut self.registries
    }
}

impl Registries {
    pub fn new() -> Self {
        Self::with_target(|tokens| DockerRegistry::start(&Login::Token(tokens)))
    }

    pub fn with_target(target: impl FnOnce(&TokenServer) -> DockerRegistry) -> Self {
        let accounts = Accounts::none()
            .with(PUSHER.0, PUSHER.1, &["kept", "kept/*", "others/*"])
            .with_reader(READER_LOGIN.0, READER_LOGIN.1, &["*"]);
        let tokens = TokenServer::start(accounts);
        let target = target(&tokens);
        Self {
            source: DockerRegistry::start(&Login::Htpasswd),
            passage: Passage::to_with(target.address, &tokens),
            tokens,
            target,
        }
    }

    /// `127.0.0.1:5000/kept`: a place for copies.
    pub fn place(&self) -> String {
        format!("{}/kept", self.passage.name())
    }

    /// The manifest at the target, as the login that pushes gets it.
    pub fn at_target(&self, repository: &str, version: &str) -> Option<Vec<u8>> {
        let reference = reference(&self.target.name(), repository, version);
        raw_manifest(&reference, PUSHER.0, PUSHER.1)
    }

    pub fn at_source(&self, repository: &str, version: &str) -> Option<Vec<u8>> {
        let reference = reference(&self.source.name(), repository, version);
        raw_manifest(&reference, USER, PASSWORD)
    }

    /// The copy, below `kept/`, is what it is a copy of, to the byte.
    pub fn assert_same(&self, repository: &str, version: &str) {
        let there = self.at_source(repository, version).expect("it was pushed");
        let here = self.at_target(&format!("kept/{repository}"), version);
        assert_eq!(
            here.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            Some(String::from_utf8_lossy(&there).into_owned()),
            "{repository} {version}"
        );
    }
}

/// `127.0.0.1:5000/acme/app:v1`
fn reference(registry: &str, repository: &str, version: &str) -> String {
    let separator = if version.contains(':') { '@' } else { ':' };
    format!("{registry}/{repository}{separator}{version}")
}

impl MirrorScene {
    pub fn new() -> Self {
        Self::with(Setup::new())
    }

    pub fn with(setup: Setup) -> Self {
        Self::with_target(setup, |tokens| DockerRegistry::start(&Login::Token(tokens)))
    }

    pub fn with_target(setup: Setup, target: impl FnOnce(&TokenServer) -> DockerRegistry) -> Self {
        let registries = Registries::with_target(target);
        Self {
            tidegate: start(setup, &registries),
            registries,
        }
    }

    /// Another server, with a state and a cache of its own that are empty.
    pub fn replace_server(&mut self) {
        self.tidegate = start(Setup::new(), &self.registries);
    }

    /// What the name that was made for an image means at its registry.
    pub fn frozen(&self, target: &str) -> Option<Vec<u8>> {
        let (_, path) = target.split_once('/').expect("a path");
        let (repository, tag) = path.rsplit_once(':').expect("a tag");
        self.at_target(repository, tag)
    }

    /// The same name without the passage, for runtimes.
    pub fn direct(&self, target: &str) -> String {
        target.replace(&self.passage.name(), &self.target.name())
    }

    /// What clients send: `more` has further fields.
    pub fn request(&self, image: &str, more: &Value) -> Value {
        let mut request = json!({
            "containerImage": image, "buildRepository": self.place(), "towerAccessToken": ADA,
        });
        if let (Value::Object(request), Value::Object(more)) = (&mut request, more) {
            request.extend(more.clone());
        }
        request
    }

    /// Asks for a mirror, which must be taken.
    pub fn mirror(&self, image: &str) -> Value {
        self.ask(&self.request(image, &json!({"mirror": true})))
    }

    /// Asks for what must be taken.
    pub fn ask(&self, request: &Value) -> Value {
        let (status, body) = self.tidegate.submit(request);
        assert_eq!(status, 200, "{request}: {body}");
        body
    }

    /// Asks, waits for the end, and it must be a good one.
    pub fn mirrored(&self, image: &str) -> Value {
        let submitted = self.mirror(image);
        self.succeeds(&submitted);
        submitted
    }

    /// Asks for a freeze, kills tidegate while its bytes stand still, and starts it again; the end must be a good one.
    pub fn frozen_across_a_kill(&mut self, request: &Value) -> Value {
        let gate = Gate::default();
        let halting = Obstacle::Gated(0, gate.clone());
        self.passage.put_often(Kind::Bytes, &halting, 20);
        let submitted = self.ask(request);
        self.passage.wait_for_halted(1);
        self.tidegate.kill();
        assert!(self.target.tags("kept").is_empty());
        self.passage.clear();
        gate.open();
        self.tidegate.restart();
        self.succeeds(&submitted);
        submitted
    }

    pub fn succeeds(&self, submitted: &Value) -> Value {
        let status = self.finished(submitted);
        assert_eq!(
            status["succeeded"],
            true,
            "{status}\n{}",
            self.log_of(submitted)
        );
        status
    }

    /// Asks, waits for the end, and it must be a bad one; returns the reason.
    pub fn fails(&self, submitted: &Value) -> String {
        let status = self.finished(submitted);
        assert_eq!(status["succeeded"], false, "{status}");
        let reason = status["reason"].as_str();
        reason
            .unwrap_or_else(|| panic!("no reason in {status}"))
            .to_owned()
    }

    /// As clients with `--await`: what has its outcome already is not asked about.
    pub fn finished(&self, submitted: &Value) -> Value {
        if !submitted["succeeded"].is_null() {
            return submitted.clone();
        }
        let mut status = Value::Null;
        wait_until("the end of the job", || {
            status = self.status(submitted);
            status["status"] == "DONE"
        });
        status
    }

    pub fn status(&self, submitted: &Value) -> Value {
        let id = text(submitted, "requestId");
        let response = self
            .tidegate
            .get(&format!("/v1alpha2/container/{id}/status"));
        assert_eq!(response.status(), 200, "{}", response.text());
        response.json()
    }

    pub fn log_of(&self, submitted: &Value) -> String {
        let Some(path) = job_path(submitted) else {
            return String::new();
        };
        self.tidegate.get(&format!("{path}/logs")).text()
    }

    /// Of the job that was made for it.
    pub fn record(&self, submitted: &Value) -> Value {
        let path = job_path(submitted).expect("a job was made");
        self.tidegate.get(&path).json()
    }
}

fn job_path(submitted: &Value) -> Option<String> {
    let id = submitted["buildId"].as_str()?;
    let family = match id.starts_with("mr-") {
        true => "mirrors",
        false => "builds",
    };
    Some(format!("/v1alpha1/{family}/{id}"))
}

/// What a target may do once or twice to an upload, by the kind of request that meets it.
pub fn passing_faults() -> Vec<(Kind, Vec<Obstacle>)> {
    let status = Obstacle::status;
    let later = |status| Obstacle::later(status, 1);
    vec![
        (
            Kind::Opening,
            vec![status(500), Obstacle::Nothing, status(503)],
        ),
        (Kind::Bytes, vec![status(500)]),
        (Kind::Closing, vec![status(502)]),
        (Kind::Manifest, vec![status(500)]),
        (Kind::Opening, vec![later(429)]),
        (Kind::Bytes, vec![later(429), later(503)]),
        (Kind::Manifest, vec![later(429)]),
        (
            Kind::Bytes,
            vec![Obstacle::CutAfter(30_000), Obstacle::CutAfter(0)],
        ),
        (Kind::Closing, vec![Obstacle::Unanswered]),
        (Kind::Manifest, vec![Obstacle::Unanswered]),
    ]
}

fn start(setup: Setup, registries: &Registries) -> Tidegate {
    let (source, passage) = (registries.source.name(), registries.passage.name());
    setup
        // They ask again and again.
        .section("[limits]\nanonymous_requests = \"off\"\nuser_requests = \"off\"")
        .registry(&source)
        .registry(&passage)
        .directory(&directory(&source, &passage))
        .start()
}

/// Users by access token, each with a workspace, and the same logins at the two registries for both.
fn directory(source: &str, target: &str) -> Directory {
    let mut directory = Directory::new();
    let users = [
        ("ada", ADA, 1, Some(PUSHER)),
        ("bob", BOB, 2, Some(PUSHER)),
        ("reader", READER, 3, Some(READER_LOGIN)),
        ("stranger", STRANGER, 4, None),
    ];
    for (name, token, workspace, login) in users {
        directory = directory
            .user(name, token, &[workspace])
            .user_login(source, USER, PASSWORD);
        if let Some((user, password)) = login {
            directory = directory.user_login(target, user, password);
        }
    }
    for (name, _, workspace, login) in users {
        directory = directory
            .workspace(workspace, &format!("of {name}"))
            .workspace_login(source, USER, PASSWORD);
        if let Some((user, password)) = login {
            directory = directory.workspace_login(target, user, password);
        }
    }
    directory
}

pub fn text(value: &Value, key: &str) -> String {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("no {key} in {value}"))
        .to_owned()
}
