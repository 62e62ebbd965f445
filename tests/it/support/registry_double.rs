//! The ways of the registries that people use, in front of real content: their challenges, realms, statuses, the lives
//! of their tokens, their redirects. One double, and a table of what each does (`Ways`), as their documentation and their
//! users tell it.
//!
//! It behaves as documented and no better: a header that a registry does not send is not sent here.

use std::{
    collections::HashMap,
    io,
    net::TcpStream,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{
    accounts::Accounts,
    content::{Content, digest},
    liar::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST},
    server::{Next, Request, Server, respond, respond_json},
};

/// What one kind of registry does. `"{host}"` in a text is the double's own host and port, `"{realm}"` where its realm is.
#[derive(Clone)]
pub struct Ways {
    pub name: &'static str,
    pub challenge: Challenge,
    /// The path of the realm, without a query.
    pub realm: &'static str,
    /// Another host than the registry's.
    pub realm_host: Option<&'static str>,
    /// Only its path is said.
    pub is_realm_relative: bool,
    pub service: &'static str,
    pub anonymous: Anonymous,
    /// Of a token: its name in the answer, and what is said of its life.
    pub token_name: &'static str,
    pub life: Life,
    /// To a POST of a password.
    pub post_password: Post,
    /// To every GET, at a realm that knows OAuth2 only.
    pub get_status: Option<u16>,
    /// A POST of a refresh token gives a token.
    pub takes_refresh_tokens: bool,
    /// It is no password for GET.
    pub refuses_refresh_tokens_by_get: bool,
    /// To bad logins at the realm.
    pub bad_login: (u16, &'static str),
    /// To a request whose `Authorization` it does not like.
    pub bad_authorization: Bad,
    /// Basic is good on `/v2/` too.
    pub takes_basic: bool,
    pub blobs: Blobs,
    /// `/v2/` says 200 to everybody.
    pub is_ping_open: bool,
    /// In another place than the repository's own: repository → where it is.
    pub moved: Option<(&'static str, &'static str)>,
    /// What the realm knows the repository by, if not by its path.
    pub scope_name: Option<(&'static str, &'static str)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Challenge {
    /// `Bearer realm="…",service="…",scope="…"`
    Bearer,
    /// The same with an empty scope.
    EmptyScope,
    /// None but on `/v2/`, and there without a scope.
    AtPingOnly,
    /// `Basic` under this realm, in this spelling.
    Basic(&'static str),
    /// First one, then the other, in two lines.
    BearerAndBasic,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    /// Public repositories need a token, and anybody gets one.
    Token,
    /// Public repositories need none. Others say this status to strangers, without a challenge where it is not 401.
    Open(u16),
    None,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Seconds(u64),
    /// Not said but in the token, a JWT.
    InToken(u64),
    Unsaid,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Post {
    Token,
    Status(u16),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// 401 and the challenge, with `error="invalid_token"`.
    Challenge,
    /// This status, and no challenge.
    Bare(u16),
    /// `Basic` under this realm, whatever was sent.
    Basic(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Blobs {
    Inline,
    /// To another host, which does not like an `Authorization`; the status.
    Storage(u16),
    /// To a path outside `/v2/` on the same host, relative.
    SameHost,
}

impl Default for Ways {
    /// The distribution project's own, with a token server on its own host.
    fn default() -> Self {
        Self {
            name: "distribution",
            challenge: Challenge::Bearer,
            realm: "/token",
            realm_host: None,
            is_realm_relative: false,
            service: "{host}",
            anonymous: Anonymous::None,
            token_name: "token",
            life: Life::Seconds(300),
            post_password: Post::Token,
            get_status: None,
            takes_refresh_tokens: false,
            refuses_refresh_tokens_by_get: false,
            bad_login: (401, "UNAUTHORIZED"),
            bad_authorization: Bad::Challenge,
            takes_basic: false,
            blobs: Blobs::Inline,
            is_ping_open: false,
            moved: None,
            scope_name: None,
        }
    }
}

pub const PRIVATE: &str = "acme/app";
pub const PUBLIC: &str = "acme/public";

/// A registry of that kind, with an image in `PRIVATE` and one in `PUBLIC`.
pub struct Double {
    registry: Server,
    /// Where the realm is another host.
    _realm: Option<Server>,
    _storage: Server,
    state: Arc<State>,
    pub layer: String,
}

struct State {
    ways: Ways,
    accounts: Accounts,
    /// Refresh tokens and what they open.
    refresh_tokens: Mutex<Vec<String>>,
    content: HashMap<String, Resource>,
    hosts: Mutex<Hosts>,
    /// Token → repositories.
    tokens: Mutex<HashMap<String, Vec<String>>>,
    serial: AtomicUsize,
    seen: Mutex<Seen>,
    realm_trouble: Mutex<Option<Trouble>>,
}

#[derive(Clone, Default)]
struct Hosts {
    registry: String,
    realm: String,
    storage: String,
}

#[derive(Default)]
struct Seen {
    registry: Vec<Request>,
    realm: Vec<Request>,
    storage: Vec<Request>,
}

/// What a realm answers for a while, whatever it is asked: status, headers, body.
#[derive(Clone)]
pub struct Trouble(
    pub u16,
    pub Vec<(&'static str, &'static str)>,
    pub &'static str,
);

struct Resource {
    media_type: &'static str,
    digest: String,
    bytes: Vec<u8>,
}

impl Double {
    pub fn start(ways: Ways, accounts: Accounts) -> Self {
        let mut content = HashMap::new();
        let mut layer = String::new();
        for repository in [PRIVATE, PUBLIC] {
            layer = put_image(&mut content, repository);
        }
        if let Some((_, place)) = ways.moved {
            put_image(&mut content, place);
        }
        let state = Arc::new(State {
            ways: ways.clone(),
            accounts,
            refresh_tokens: Mutex::default(),
            content,
            hosts: Mutex::default(),
            tokens: Mutex::default(),
            serial: AtomicUsize::new(0),
            seen: Mutex::default(),
            realm_trouble: Mutex::default(),
        });
        let serve = |answer: fn(&State, &Request, &mut TcpStream) -> io::Result<Next>| {
            let state = Arc::clone(&state);
            move |request: &Request, stream: &mut TcpStream| answer(&state, request, stream)
        };
        let registry = Server::start_on("127.0.0.1", serve(State::answer));
        let realm = ways
            .realm_host
            .map(|host| Server::start_on(host, serve(State::answer_at_realm)));
        let storage = Server::start_on("127.0.0.3", serve(State::answer_as_storage));
        *lock(&state.hosts) = Hosts {
            registry: registry.address.to_string(),
            realm: realm.as_ref().unwrap_or(&registry).address.to_string(),
            storage: storage.address.to_string(),
        };
        Self {
            registry,
            _realm: realm,
            _storage: storage,
            state,
            layer,
        }
    }

    pub fn name(&self) -> String {
        self.registry.address.to_string()
    }

    pub fn reference(&self, repository: &str) -> String {
        format!("{}/{repository}:v1", self.name())
    }

    pub fn with_refresh_token(self, token: &str) -> Self {
        lock(&self.state.refresh_tokens).push(token.to_owned());
        self
    }

    pub fn registry_requests(&self) -> Vec<Request> {
        lock(&self.state.seen).registry.clone()
    }

    pub fn realm_requests(&self) -> Vec<Request> {
        lock(&self.state.seen).realm.clone()
    }

    pub fn storage_requests(&self) -> Vec<Request> {
        lock(&self.state.seen).storage.clone()
    }

    /// As if their time had come.
    pub fn expire_tokens(&self) {
        lock(&self.state.tokens).clear();
    }

    pub fn trouble_at_the_realm(&self, trouble: Option<Trouble>) {
        *lock(&self.state.realm_trouble) = trouble;
    }
}

fn put_image(content: &mut HashMap<String, Resource>, repository: &str) -> String {
    let layer = Content::Generated {
        seed: 7,
        size: 20_000,
    };
    let mut layer_bytes = Vec::new();
    io::Read::read_to_end(&mut layer.range(0, layer.size()), &mut layer_bytes)
        .expect("content in memory is readable");
    let config = json!({"architecture": "amd64", "os": "linux", "created_by": repository});
    let config = config.to_string().into_bytes();
    let (layer, config_digest) = (digest(&layer_bytes), digest(&config));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": OCI_LAYER, "digest": layer, "size": layer_bytes.len()}],
    });
    let manifest = manifest.to_string().into_bytes();
    let manifest_digest = digest(&manifest);
    let mut put = |kind: &str, name: &str, media_type, bytes: &[u8]| {
        let resource = Resource {
            media_type,
            digest: digest(bytes),
            bytes: bytes.to_vec(),
        };
        content.insert(format!("/v2/{repository}/{kind}/{name}"), resource);
    };
    put("manifests", "v1", OCI_MANIFEST, &manifest);
    put("manifests", &manifest_digest, OCI_MANIFEST, &manifest);
    put("blobs", &config_digest, "application/octet-stream", &config);
    put("blobs", &layer, "application/octet-stream", &layer_bytes);
    layer
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic holds it")
}

/// Whether a request may go on.
enum Verdict {
    Yes,
    /// Nobody in particular.
    Stranger,
    /// Its `Authorization` is not good.
    Bad,
    /// It is somebody, who may not.
    Forbidden,
}

impl State {
    fn answer(&self, request: &Request, stream: &mut TcpStream) -> io::Result<Next> {
        let is_at_realm = request.path() == self.ways.realm && self.ways.realm_host.is_none();
        if is_at_realm {
            return self.answer_at_realm(request, stream);
        }
        lock(&self.seen).registry.push(request.clone());
        let Some(repository) = repository(request.path()) else {
            return self.answer_elsewhere(request, stream);
        };
        if let Some((from, to)) = self.ways.moved
            && repository == from
        {
            return match self.verdict(request, repository) {
                Verdict::Yes => {
                    let place = request.target.replacen(from, to, 1);
                    respond(request, stream, 301, &[("Location", &place)], b"")
                }
                verdict => self.refuse(request, stream, repository, &verdict),
            };
        }
        match self.verdict(request, repository) {
            Verdict::Yes => {}
            verdict => return self.refuse(request, stream, repository, &verdict),
        }
        let Some(resource) = self.content.get(request.path()) else {
            return error(request, stream, 404, &[], "MANIFEST_UNKNOWN", "unknown");
        };
        let hosts = lock(&self.hosts).clone();
        let is_blob = request.path().contains("/blobs/");
        match self.ways.blobs {
            // Quay and others answer HEAD themselves.
            Blobs::Storage(status) if is_blob && request.method == "GET" => {
                let place = format!(
                    "http://{}{}?X-Signature=of-the-storage&expires=60",
                    hosts.storage,
                    request.path()
                );
                respond(request, stream, status, &[("Location", &place)], b"")
            }
            Blobs::SameHost if is_blob && request.method == "GET" => {
                let place = format!("/artifacts-downloads{}?sig=bound", request.path());
                respond(request, stream, 302, &[("Location", &place)], b"")
            }
            _ => resource.send(request, stream),
        }
    }

    /// `/v2/` and what is outside it.
    fn answer_elsewhere(&self, request: &Request, stream: &mut TcpStream) -> io::Result<Next> {
        if let Some(path) = request.path().strip_prefix("/artifacts-downloads") {
            return match self.content.get(path) {
                Some(resource) => resource.send(request, stream),
                None => error(request, stream, 404, &[], "NAME_UNKNOWN", "unknown"),
            };
        }
        if request.path() != "/v2/" {
            return respond(request, stream, 404, &[], b"<html>not here</html>");
        }
        if self.ways.is_ping_open {
            return respond(request, stream, 200, &[], b"{}");
        }
        let challenges = match self.ways.challenge {
            Challenge::AtPingOnly => vec![self.bearer("")],
            _ => self.challenges("", ""),
        };
        let headers: Vec<(&str, &str)> = challenges
            .iter()
            .map(|line| ("WWW-Authenticate", line.as_str()))
            .collect();
        error(
            request,
            stream,
            401,
            &headers,
            "UNAUTHORIZED",
            "authentication required",
        )
    }

    fn verdict(&self, request: &Request, repository: &str) -> Verdict {
        let is_public = repository == PUBLIC;
        if request.header("authorization").is_none() {
            return match self.ways.anonymous {
                Anonymous::Open(_) if is_public => Verdict::Yes,
                _ => Verdict::Stranger,
            };
        }
        if let Some((user, password)) = request.basic() {
            let takes_basic =
                self.ways.takes_basic || matches!(self.ways.challenge, Challenge::Basic(_));
            return match self.accounts.knows(&user, &password) {
                _ if !takes_basic => Verdict::Bad,
                false => Verdict::Bad,
                true if is_public || self.accounts.permits(&user, &password, repository) => {
                    Verdict::Yes
                }
                true => Verdict::Forbidden,
            };
        }
        let tokens = lock(&self.tokens);
        match request.bearer().and_then(|token| tokens.get(token)) {
            Some(granted) if granted.iter().any(|name| name == repository) => Verdict::Yes,
            Some(_) => Verdict::Forbidden,
            None => Verdict::Bad,
        }
    }

    fn refuse(
        &self,
        request: &Request,
        stream: &mut TcpStream,
        repository: &str,
        verdict: &Verdict,
    ) -> io::Result<Next> {
        let with = |error: &str| match self.ways.challenge {
            Challenge::AtPingOnly => Vec::new(),
            _ => self.challenges(&self.scope(repository), error),
        };
        let (status, challenges) = match (verdict, self.ways.bad_authorization, self.ways.anonymous)
        {
            (Verdict::Stranger, _, Anonymous::Open(status)) if status != 401 => {
                (status, Vec::new())
            }
            (Verdict::Forbidden, Bad::Bare(status), _) => (status, Vec::new()),
            (Verdict::Forbidden, _, _) => (401, with("insufficient_scope")),
            (Verdict::Bad, Bad::Challenge, _) => (401, with("invalid_token")),
            (Verdict::Bad, Bad::Bare(status), _) => (status, Vec::new()),
            (Verdict::Bad, Bad::Basic(realm), _) => (401, vec![format!("Basic realm=\"{realm}\"")]),
            (Verdict::Stranger | Verdict::Yes, _, _) => (401, with("")),
        };
        let headers: Vec<(&str, &str)> = challenges
            .iter()
            .map(|line| ("WWW-Authenticate", line.as_str()))
            .collect();
        let code = match status {
            401 => "UNAUTHORIZED",
            403 => "DENIED",
            _ => "NAME_UNKNOWN",
        };
        error(
            request,
            stream,
            status,
            &headers,
            code,
            "authentication required",
        )
    }

    fn challenges(&self, scope: &str, error: &str) -> Vec<String> {
        let mut bearer = match self.ways.challenge {
            Challenge::EmptyScope => format!("{},scope=\"\"", self.bearer("")),
            _ => self.bearer(scope),
        };
        if !error.is_empty() {
            bearer += &format!(",error=\"{error}\"");
        }
        match self.ways.challenge {
            Challenge::Basic(line) => vec![line.to_owned()],
            Challenge::BearerAndBasic => vec![bearer, "Basic realm=\"registry\"".to_owned()],
            Challenge::Bearer | Challenge::EmptyScope | Challenge::AtPingOnly => vec![bearer],
        }
    }

    fn bearer(&self, scope: &str) -> String {
        let hosts = lock(&self.hosts);
        let service = self.ways.service.replace("{host}", &hosts.registry);
        let realm = match self.ways.is_realm_relative {
            true => self.ways.realm.to_owned(),
            false => format!("http://{}{}", hosts.realm, self.ways.realm),
        };
        let mut line = format!("Bearer realm=\"{realm}\"");
        if !service.is_empty() {
            line += &format!(",service=\"{service}\"");
        }
        if !scope.is_empty() {
            line += &format!(",scope=\"{scope}\"");
        }
        line
    }

    fn scope(&self, repository: &str) -> String {
        let name = match self.ways.scope_name {
            Some((path, name)) if path == repository => name,
            _ => repository,
        };
        format!("repository:{name}:pull")
    }

    fn answer_at_realm(&self, request: &Request, stream: &mut TcpStream) -> io::Result<Next> {
        lock(&self.seen).realm.push(request.clone());
        if let Some(Trouble(status, headers, body)) = lock(&self.realm_trouble).clone() {
            return respond(request, stream, status, &headers, body.as_bytes());
        }
        let (status, body) = match request.method.as_str() {
            "POST" => self.token_by_post(request),
            _ => self.token_by_get(request),
        };
        respond_json(request, stream, status, &[], &body)
    }

    fn token_by_get(&self, request: &Request) -> (u16, Value) {
        let hosts = lock(&self.hosts).clone();
        let service = self.ways.service.replace("{host}", &hosts.registry);
        if request.query("service").unwrap_or_default() != service {
            return (400, json!({"details": "unknown service"}));
        }
        let scopes = request.queries("scope");
        if let Some(status) = self.ways.get_status {
            return (status, json!({"error": "unsupported"}));
        }
        match request.basic() {
            None if request.header("authorization").is_some() => self.bad_login(),
            None if self.ways.anonymous == Anonymous::None => self.bad_login(),
            None => self.token("", &scopes, |name| name == PUBLIC),
            // A refresh token is good as a password too, where there are any.
            Some((_, token))
                if !self.ways.refuses_refresh_tokens_by_get
                    && lock(&self.refresh_tokens).contains(&token) =>
            {
                self.token("", &scopes, |_| true)
            }
            Some((user, password)) if self.accounts.knows(&user, &password) => {
                self.token(&user, &scopes, |name| {
                    name == PUBLIC || self.accounts.permits(&user, &password, name)
                })
            }
            Some(_) => self.bad_login(),
        }
    }

    fn token_by_post(&self, request: &Request) -> (u16, Value) {
        let scopes: Vec<String> = request
            .form("scope")
            .unwrap_or_default()
            .split(' ')
            .map(str::to_owned)
            .collect();
        match request.form("grant_type").as_deref() {
            Some("refresh_token") if self.ways.takes_refresh_tokens => {
                let token = request.form("refresh_token").unwrap_or_default();
                if lock(&self.refresh_tokens).contains(&token) {
                    self.token("", &scopes, |_| true)
                } else {
                    self.bad_login()
                }
            }
            _ => match self.ways.post_password {
                Post::Status(status) => (status, json!({"error": "unsupported"})),
                Post::Token => {
                    let user = request.form("username").unwrap_or_default();
                    let password = request.form("password").unwrap_or_default();
                    if self.accounts.knows(&user, &password) {
                        self.token(&user, &scopes, |name| {
                            self.accounts.permits(&user, &password, name)
                        })
                    } else {
                        self.bad_login()
                    }
                }
            },
        }
    }

    fn bad_login(&self) -> (u16, Value) {
        let (status, code) = self.ways.bad_login;
        (
            status,
            json!({"errors": [{"code": code, "message": "the realm says no"}]}),
        )
    }

    /// For as much of what was asked for as is permitted: less is no error.
    fn token(&self, user: &str, scopes: &[String], permits: impl Fn(&str) -> bool) -> (u16, Value) {
        let names = scopes.iter().filter_map(|scope| {
            let name = scope.strip_prefix("repository:")?.strip_suffix(":pull")?;
            match self.ways.scope_name {
                Some((path, known)) if known == name => Some(path),
                // Under its path it is not known.
                Some((path, _)) if path == name => None,
                _ => Some(name),
            }
        });
        let granted: Vec<String> = names
            .filter(|name| permits(name))
            .map(str::to_owned)
            .collect();
        let serial = self.serial.fetch_add(1, Ordering::SeqCst);
        let token = match self.ways.life {
            Life::InToken(seconds) => {
                let claims = json!({"sub": user, "iat": 1_000_000, "exp": 1_000_000 + seconds, "jti": serial});
                let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
                format!("eyJhbGciOiJSUzI1NiJ9.{claims}.c2lnbmF0dXJl")
            }
            _ => format!("opaque-token-{serial}"),
        };
        lock(&self.tokens).insert(token.clone(), granted);
        let mut body = json!({});
        for name in self.ways.token_name.split(' ') {
            body[name] = json!(token);
        }
        if let Life::Seconds(seconds) = self.ways.life {
            body["expires_in"] = json!(seconds);
        }
        (200, body)
    }

    /// Like S3 and Azure: with an `Authorization` beside the signature it says no.
    fn answer_as_storage(&self, request: &Request, stream: &mut TcpStream) -> io::Result<Next> {
        lock(&self.seen).storage.push(request.clone());
        if request.header("authorization").is_some() {
            return respond(request, stream, 400, &[], b"<Error>InvalidArgument</Error>");
        }
        match self.content.get(request.path()) {
            Some(resource) => resource.send(request, stream),
            None => respond(request, stream, 403, &[], b"<Error>AccessDenied</Error>"),
        }
    }
}

impl Resource {
    fn send(&self, request: &Request, stream: &mut TcpStream) -> io::Result<Next> {
        let headers = [
            ("Content-Type", self.media_type),
            ("Docker-Content-Digest", self.digest.as_str()),
        ];
        respond(request, stream, 200, &headers, &self.bytes)
    }
}

fn error(
    request: &Request,
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&str, &str)],
    code: &str,
    message: &str,
) -> io::Result<Next> {
    let body = json!({"errors": [{"code": code, "message": message}]});
    respond_json(request, stream, status, headers, &body)
}

fn repository(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    let end = rest.find("/manifests/").or_else(|| rest.find("/blobs/"))?;
    rest.get(..end)
}
