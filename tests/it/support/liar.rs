//! A registry held in memory that does what it is told: lies, stalls, cuts, redirects, refuses. It keeps every
//! request, so that a test can say what must not have been asked or sent.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    accounts::Accounts,
    content::{Content, digest},
    server::{Next, Request, Server, head, respond},
    token_server::{Issued, SERVICE},
};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A gate that a test never opens ends a wait with an error instead of a hung suite.
const PATIENCE: Duration = Duration::from_secs(90);

/// What goes wrong. The bodies are those of GET; HEAD knows only the last four.
#[derive(Clone)]
pub enum Behaviour {
    /// The last byte differs; the length is right.
    WrongBytes,
    /// All is promised, this much is sent, then the connection ends.
    CutAfter(u64),
    /// All is promised, this much is sent, then nothing until the client leaves.
    StallAfter(u64),
    /// This much is sent, the rest once the gate is open.
    Gated(u64, Gate),
    /// No length: chunks.
    Chunked,
    /// No length: the end is the connection's.
    UntilClose,
    /// The whole, whatever part was asked for.
    IgnoreRange,
    /// The connection ends without an answer.
    HangUp,
    /// Any other answer: status, headers, body.
    Answer(u16, Vec<(String, String)>, String),
    /// The right content under this `Docker-Content-Digest`.
    ClaimDigest(String),
    NoDigest,
}

impl Behaviour {
    pub fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), String::new())
    }

    pub fn redirect(status: u16, location: &str) -> Self {
        let location = ("Location".to_owned(), location.to_owned());
        Self::Answer(status, vec![location], "<a href=\"…\">moved</a>".to_owned())
    }

    pub fn error(status: u16, code: &str) -> Self {
        let content_type = ("Content-Type".to_owned(), "application/json".to_owned());
        let body = json!({"errors": [{"code": code, "message": "no"}]});
        Self::Answer(status, vec![content_type], body.to_string())
    }
}

/// Held shut until a test has seen what it wants to see.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().expect("no panic holds it") = true;
        self.0.1.notify_all();
    }

    fn wait(&self) -> io::Result<()> {
        let open = self.0.0.lock().expect("no panic holds it");
        let (_open, waited) = self
            .0
            .1
            .wait_timeout_while(open, PATIENCE, |open| !*open)
            .expect("no panic holds it");
        if waited.timed_out() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

pub enum Auth {
    Open,
    /// 401 with a Basic challenge for strangers, 403 for known users without a right to the repository.
    Basic(Accounts),
    /// Tokens of that server count, whatever realm the challenge names.
    Bearer {
        realm: String,
        issued: Issued,
    },
}

pub struct Liar {
    server: Server,
    state: Arc<State>,
}

struct State {
    auth: Auth,
    resources: Mutex<HashMap<String, Resource>>,
    /// By repository.
    tags: Mutex<BTreeMap<String, Vec<String>>>,
    behaviours: Mutex<HashMap<String, Script>>,
    requests: Mutex<Vec<Request>>,
    arrived: Condvar,
}

#[derive(Clone)]
struct Resource {
    content: Content,
    content_type: String,
    digest: String,
}

/// One behaviour for each request, in this order, then for ever the last or good manners.
struct Script {
    first: VecDeque<Behaviour>,
    then: Option<Behaviour>,
}

/// What `Liar::image` has put there.
pub struct LiarImage {
    pub manifest: String,
    pub manifest_bytes: Vec<u8>,
    pub config: String,
    pub layers: Vec<String>,
}

impl Liar {
    pub fn open() -> Self {
        Self::start(Auth::Open)
    }

    pub fn start(auth: Auth) -> Self {
        Self::start_on("127.0.0.1", auth)
    }

    pub fn start_on(host: &str, auth: Auth) -> Self {
        let state = Arc::new(State {
            auth,
            resources: Mutex::default(),
            tags: Mutex::default(),
            behaviours: Mutex::default(),
            requests: Mutex::default(),
            arrived: Condvar::new(),
        });
        let shared = Arc::clone(&state);
        let server = Server::start_on(host, move |request, stream| shared.answer(request, stream));
        Self { server, state }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// As a registry's name: `127.0.0.1:41234`.
    pub fn name(&self) -> String {
        self.server.address.to_string()
    }

    /// `127.0.0.1:41234/acme/app:v1`
    pub fn reference(&self, repository: &str, version: &str) -> String {
        let separator = if version.contains(':') { '@' } else { ':' };
        format!("{}/{repository}{separator}{version}", self.server.address)
    }

    pub fn blob(&self, repository: &str, content: Content) -> String {
        let digest = content.digest();
        self.blob_as(repository, content, &digest);
        digest
    }

    /// A blob whose digest the test has already, or that is not what its digest says.
    pub fn blob_as(&self, repository: &str, content: Content, digest: &str) {
        self.put(
            blob_path(repository, digest),
            content,
            "application/octet-stream",
            digest,
        );
    }

    /// Under its digest and under the tag.
    pub fn manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        for version in [tag, &digest] {
            let path = manifest_path(repository, version);
            self.put(path, Content::of(bytes), media_type, &digest);
        }
        let mut tags = self.state.tags.lock().expect("no panic holds it");
        let tags = tags.entry(repository.to_owned()).or_default();
        if !tags.iter().any(|known| known == tag) {
            tags.push(tag.to_owned());
            tags.sort();
        }
        digest
    }

    /// Any other answer, by path without a query.
    pub fn page(&self, path: &str, media_type: &str, body: &str) {
        self.put(
            path.to_owned(),
            Content::of(body),
            media_type,
            &digest(body.as_bytes()),
        );
    }

    /// An image of these layers, whose content is not looked into.
    pub fn image(&self, repository: &str, tag: &str, layers: &[Content]) -> LiarImage {
        let config = json!({
            "architecture": "amd64", "os": "linux", "created_by": format!("{repository}:{tag}"),
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        let config = Content::of(config.to_string());
        let config_digest = self.blob(repository, config.clone());
        let mut descriptors = Vec::new();
        let mut digests = Vec::new();
        for layer in layers {
            let digest = self.blob(repository, layer.clone());
            descriptors
                .push(json!({"mediaType": OCI_LAYER, "digest": digest, "size": layer.size()}));
            digests.push(digest);
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config.size()},
            "layers": descriptors,
        });
        let manifest_bytes = manifest.to_string().into_bytes();
        LiarImage {
            manifest: self.manifest(repository, tag, OCI_MANIFEST, &manifest_bytes),
            manifest_bytes,
            config: config_digest,
            layers: digests,
        }
    }

    pub fn misbehave(&self, path: &str, behaviour: Behaviour) {
        self.script(path, &[], Some(behaviour));
    }

    pub fn misbehave_in_turn(&self, path: &str, behaviours: &[Behaviour]) {
        self.script(path, behaviours, None);
    }

    pub fn behave(&self, path: &str) {
        self.state
            .behaviours
            .lock()
            .expect("no panic holds it")
            .remove(path);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state
            .requests
            .lock()
            .expect("no panic holds it")
            .clone()
    }

    /// How often this was asked for and not refused for lack of credentials.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.method == method && request.path() == path)
            .filter(|request| self.state.refusal(request).is_none())
            .count()
    }

    pub fn blob_gets(&self, repository: &str, digest: &str) -> usize {
        self.count("GET", &blob_path(repository, digest))
    }

    pub fn forget_requests(&self) {
        self.state
            .requests
            .lock()
            .expect("no panic holds it")
            .clear();
    }

    /// Waits until a request has arrived that the test waits for.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Request) -> bool) {
        self.wait_while(what, |requests| !requests.iter().any(&wanted));
    }

    pub fn wait_for_count(&self, count: usize) {
        self.wait_while("enough requests", |requests| requests.len() < count);
    }

    fn wait_while(&self, what: &str, is_missing: impl Fn(&[Request]) -> bool) {
        let until = Instant::now() + PATIENCE;
        let mut requests = self.state.requests.lock().expect("no panic holds it");
        while is_missing(&requests) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} never arrived");
            (requests, _) = self
                .state
                .arrived
                .wait_timeout(requests, left)
                .expect("no panic holds it");
        }
    }

    fn put(&self, path: String, content: Content, content_type: &str, digest: &str) {
        let resource = Resource {
            content,
            content_type: content_type.to_owned(),
            digest: digest.to_owned(),
        };
        self.state
            .resources
            .lock()
            .expect("no panic holds it")
            .insert(path, resource);
    }

    fn script(&self, path: &str, first: &[Behaviour], then: Option<Behaviour>) {
        let first = first.to_vec().into();
        self.state
            .behaviours
            .lock()
            .expect("no panic holds it")
            .insert(path.to_owned(), Script { first, then });
    }
}

pub fn blob_path(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

pub fn manifest_path(repository: &str, version: &str) -> String {
    format!("/v2/{repository}/manifests/{version}")
}

struct Refusal {
    status: u16,
    challenge: Option<String>,
}

impl State {
    fn answer(&self, request: &Request, stream: &mut TcpStream) -> io::Result<Next> {
        self.requests
            .lock()
            .expect("no panic holds it")
            .push(request.clone());
        self.arrived.notify_all();
        if let Some(refusal) = self.refusal(request) {
            let mut headers = vec![("Content-Type", "application/json")];
            if let Some(challenge) = &refusal.challenge {
                headers.push(("WWW-Authenticate", challenge));
            }
            let body =
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
            return respond(request, stream, refusal.status, &headers, body.as_bytes());
        }
        if request.path() == "/v2/" {
            return respond(request, stream, 200, &[], b"{}");
        }
        let behaviour = self.next_behaviour(request);
        match behaviour {
            Some(Behaviour::HangUp) => return Ok(Next::Close),
            Some(Behaviour::Answer(status, headers, body)) => {
                let headers: Vec<(&str, &str)> = headers
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_str()))
                    .collect();
                return respond(request, stream, status, &headers, body.as_bytes());
            }
            _ => {}
        }
        if let Some(repository) = tag_list(request.path()) {
            return self.answer_tags(request, repository, stream);
        }
        let resource = self
            .resources
            .lock()
            .expect("no panic holds it")
            .get(request.path())
            .cloned();
        let Some(resource) = resource else {
            let code = if request.path().contains("/manifests/") {
                "MANIFEST_UNKNOWN"
            } else {
                "BLOB_UNKNOWN"
            };
            let body = json!({"errors": [{"code": code, "message": "not here"}]}).to_string();
            let headers = [("Content-Type", "application/json")];
            return respond(request, stream, 404, &headers, body.as_bytes());
        };
        resource.send(request, behaviour, stream)
    }

    /// Why this request gets no further, if it does not.
    fn refusal(&self, request: &Request) -> Option<Refusal> {
        let repository = repository(request.path());
        match &self.auth {
            Auth::Open => None,
            Auth::Basic(accounts) => {
                let (user, password) = request.basic().unwrap_or_default();
                if !accounts.knows(&user, &password) {
                    return Some(Refusal {
                        status: 401,
                        challenge: Some("Basic realm=\"tests\"".to_owned()),
                    });
                }
                let is_permitted =
                    repository.is_none_or(|name| accounts.permits(&user, &password, name));
                (!is_permitted).then_some(Refusal {
                    status: 403,
                    challenge: None,
                })
            }
            Auth::Bearer { realm, issued } => {
                let is_permitted = repository.is_some_and(|name| {
                    request
                        .bearer()
                        .is_some_and(|token| issued.permits(token, name))
                });
                let scope = repository
                    .map(|name| format!(",scope=\"repository:{name}:pull\""))
                    .unwrap_or_default();
                (!is_permitted).then(|| Refusal {
                    status: 401,
                    challenge: Some(format!(
                        "Bearer realm=\"{realm}\",service=\"{SERVICE}\"{scope}"
                    )),
                })
            }
        }
    }

    fn next_behaviour(&self, request: &Request) -> Option<Behaviour> {
        let mut behaviours = self.behaviours.lock().expect("no panic holds it");
        let script = behaviours.get_mut(request.path())?;
        let next = script.first.front().or(script.then.as_ref())?.clone();
        let applies_to_head = matches!(
            next,
            Behaviour::HangUp
                | Behaviour::Answer(..)
                | Behaviour::ClaimDigest(_)
                | Behaviour::NoDigest
        );
        if request.method == "HEAD" && !applies_to_head {
            return None;
        }
        script.first.pop_front();
        Some(next)
    }

    /// With pages and a `Link` to the next, as in the specification (end-8b).
    fn answer_tags(
        &self,
        request: &Request,
        repository: &str,
        stream: &mut TcpStream,
    ) -> io::Result<Next> {
        let all = self.tags.lock().expect("no panic holds it");
        let mut tags = all.get(repository).cloned().unwrap_or_default();
        drop(all);
        if let Some(last) = request.query("last") {
            tags.retain(|tag| *tag > last);
        }
        let mut link = None;
        let page_size: Option<usize> = request.query("n").and_then(|count| count.parse().ok());
        if let Some(page_size) = page_size
            && tags.len() > page_size
        {
            tags.truncate(page_size);
            let last = tags.last().cloned().unwrap_or_default();
            let next = format!("/v2/{repository}/tags/list?n={page_size}&last={last}");
            link = Some(format!("<{next}>; rel=\"next\""));
        }
        let body = json!({"name": repository, "tags": tags}).to_string();
        let mut headers = vec![("Content-Type", "application/json")];
        if let Some(link) = &link {
            headers.push(("Link", link));
        }
        respond(request, stream, 200, &headers, body.as_bytes())
    }
}

impl Resource {
    fn send(
        &self,
        request: &Request,
        behaviour: Option<Behaviour>,
        stream: &mut TcpStream,
    ) -> io::Result<Next> {
        let size = self.content.size();
        let wanted = match &behaviour {
            Some(Behaviour::IgnoreRange) => None,
            _ => requested_range(request, size),
        };
        let (start, end) = wanted.unwrap_or((0, size));
        let content_range = format!("bytes {start}-{}/{size}", end.saturating_sub(1));
        let digest = match &behaviour {
            Some(Behaviour::ClaimDigest(other)) => other,
            _ => &self.digest,
        };
        let mut headers = vec![("Content-Type", self.content_type.as_str())];
        if !matches!(behaviour, Some(Behaviour::NoDigest)) {
            headers.push(("Docker-Content-Digest", digest));
        }
        if wanted.is_some() {
            headers.push(("Content-Range", &content_range));
        }
        // A balancer's cookie and hop-by-hop headers: no proxy may copy them.
        headers.push(("Set-Cookie", "balancer=7"));
        headers.push(("Keep-Alive", "timeout=5"));
        let length = match behaviour {
            Some(Behaviour::Chunked) => {
                headers.push(("Transfer-Encoding", "chunked"));
                None
            }
            Some(Behaviour::UntilClose) => {
                headers.push(("Connection", "close"));
                None
            }
            _ => Some(end - start),
        };
        let status = if wanted.is_some() { 206 } else { 200 };
        stream.write_all(&head(status, &headers, length))?;
        if request.method == "HEAD" {
            return Ok(Next::Keep);
        }
        let part = |from: u64, to: u64| self.content.range(from, to);
        match behaviour {
            Some(Behaviour::WrongBytes) => {
                io::copy(&mut part(start, end - 1), stream)?;
                let mut last = [0];
                part(end - 1, end).read_exact(&mut last)?;
                stream.write_all(&[last[0] ^ 1])?;
            }
            Some(Behaviour::CutAfter(count)) => {
                io::copy(&mut part(start, (start + count).min(end)), stream)?;
                return Ok(Next::Close);
            }
            Some(Behaviour::StallAfter(count)) => {
                io::copy(&mut part(start, (start + count).min(end)), stream)?;
                let _ = stream.read(&mut [0]);
                return Ok(Next::Close);
            }
            Some(Behaviour::Gated(count, gate)) => {
                let middle = (start + count).min(end);
                io::copy(&mut part(start, middle), stream)?;
                gate.wait()?;
                io::copy(&mut part(middle, end), stream)?;
            }
            Some(Behaviour::Chunked) => {
                let mut reader = part(start, end);
                let mut piece = vec![0; 50_000];
                loop {
                    let count = reader.read(&mut piece)?;
                    write!(stream, "{count:x}\r\n")?;
                    stream.write_all(&piece[..count])?;
                    stream.write_all(b"\r\n")?;
                    if count == 0 {
                        break;
                    }
                }
            }
            Some(Behaviour::UntilClose) => {
                io::copy(&mut part(start, end), stream)?;
                return Ok(Next::Close);
            }
            _ => {
                io::copy(&mut part(start, end), stream)?;
            }
        }
        Ok(Next::Keep)
    }
}

/// `bytes=a-b` and `bytes=a-`, which is all that a resuming proxy asks for.
fn requested_range(request: &Request, size: u64) -> Option<(u64, u64)> {
    let (first, last) = request
        .header("range")?
        .strip_prefix("bytes=")?
        .split_once('-')?;
    let start: u64 = first.parse().ok()?;
    let end = match last {
        "" => size,
        last => last.parse::<u64>().ok()?.checked_add(1)?.min(size),
    };
    (start < end).then_some((start, end))
}

fn repository(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    ["/manifests/", "/blobs/", "/tags/list", "/referrers/"]
        .iter()
        .find_map(|kind| Some(&rest[..rest.rfind(kind)?]))
}

fn tag_list(path: &str) -> Option<&str> {
    path.strip_prefix("/v2/")?.strip_suffix("/tags/list")
}
