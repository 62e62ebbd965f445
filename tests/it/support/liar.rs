//! A registry held in memory that does what it is told: lies, stalls, cuts, redirects, refuses. It keeps every
//! request, so that a test can say what must not have been asked or sent.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use serde_json::json;

use super::{
    accounts::Accounts,
    aws_double::{Passwords, Standing},
    content::{Content, digest},
    server::{Next, Request, Server, head, respond, respond_json},
    token_server::{Issued, SERVICE},
};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A gate that a test never opens ends a wait with an error instead of a hung suite.
const PATIENCE: Duration = Duration::from_secs(90);

/// What goes wrong. The bodies are those of GET; HEAD knows only what `applies_to_head` lists.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Nothing: for the requests before the one that goes wrong.
    Honest,
    /// All of these at once.
    All(Vec<Self>),
    /// The last byte differs; the length is right.
    WrongBytes,
    /// The byte at this place of the blob differs, in whatever part it is sent.
    WrongByteAt(u64),
    /// All is promised, this much is sent, then the connection ends.
    CutAfter(u64),
    /// All is promised, this much is sent, then nothing until the client leaves.
    StallAfter(u64),
    /// This much is sent, the rest once the gate is open.
    Gated(u64, Gate),
    /// This much is sent, then a little now and then until the gate is open or the client leaves.
    Trickling(u64, Gate),
    /// This much is sent, then single bytes until the client leaves.
    Dripping(u64),
    /// Of the blob these bytes are sent at once, all others only when the gate is open.
    GatedOutside(Range<u64>, Gate),
    /// No length: chunks.
    Chunked,
    /// No length: the end is the connection's.
    UntilClose,
    /// This is promised as the length, whatever comes.
    StatedLength(u64),
    /// The whole, whatever part was asked for.
    IgnoreRange,
    /// A part that starts so much before what was asked for, and says so.
    PartFromEarlier(u64),
    /// One that starts so much behind it.
    PartFromLater(u64),
    /// A part of no more than this, and it says so.
    ShorterPart(u64),
    /// A part of what it says is a blob of this size.
    PartOfOther(u64),
    /// A part of a blob of a size that it does not say: `bytes 0-9/*`.
    PartOfUnknown,
    /// A part that does not say which.
    UnnamedPart,
    /// These bytes with 206, though no part was asked for.
    UnaskedPart(Range<u64>),
    /// The bytes as they are under a `Content-Encoding`.
    Labelled(&'static str),
    /// Other bytes, and a `Content-Encoding` which says how they become the right ones.
    Encoded(&'static str, Content),
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

    /// What a registry says that knows no such part of a blob of this size.
    pub fn unsatisfiable(size: u64) -> Self {
        let content_range = ("Content-Range".to_owned(), format!("bytes */{size}"));
        Self::Answer(416, vec![content_range], String::new())
    }

    fn applies_to_head(&self) -> bool {
        matches!(
            self,
            Self::HangUp | Self::Answer(..) | Self::ClaimDigest(_) | Self::NoDigest
        )
    }
}

/// Held shut until a test has seen what it wants to see.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().expect("no panic holds it") = true;
        self.0.1.notify_all();
    }

    pub(super) fn is_open(&self) -> bool {
        *self.0.0.lock().expect("no panic holds it")
    }

    pub(super) fn wait(&self) -> io::Result<()> {
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
    /// As ECR: Basic with a password of AWS; 403 with one that has ended.
    Ecr(Passwords),
    /// As ECR Public: a bearer token of the realm; 400 without a challenge for any other.
    EcrPublic {
        realm: String,
        issued: Passwords,
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
    seen: Mutex<Seen>,
    /// Something was added to `seen`.
    arrived: Condvar,
}

/// All that has happened.
#[derive(Default)]
struct Seen {
    requests: Vec<Request>,
    sent: Vec<Sent>,
    /// Paths of answers whose client left while they stalled or trickled.
    left: Vec<String>,
}

/// Bytes of a body that were handed to the kernel; a client that leaves early has not taken all of them.
struct Sent {
    path: String,
    span: Range<u64>,
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
            seen: Mutex::default(),
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

    /// One after the other, and then for ever the last.
    pub fn misbehave_in_the_end(&self, path: &str, first: &[Behaviour], then: Behaviour) {
        self.script(path, first, Some(then));
    }

    pub fn behave(&self, path: &str) {
        self.state
            .behaviours
            .lock()
            .expect("no panic holds it")
            .remove(path);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.seen().requests.clone()
    }

    /// GETs of this path, in the order of their arrival.
    pub fn gets(&self, path: &str) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|request| request.method == "GET" && request.path() == path);
        requests
    }

    /// The `Range` of each GET of this path, empty where there was none.
    pub fn asked_ranges(&self, path: &str) -> Vec<String> {
        let range = |request: &Request| request.header("range").unwrap_or_default().to_owned();
        self.gets(path).iter().map(range).collect()
    }

    /// Which bytes of a path have been sent, one span for each answer.
    pub fn sent(&self, path: &str) -> Vec<Range<u64>> {
        let seen = self.state.seen();
        let ours = seen.sent.iter().filter(|sent| sent.path == path);
        ours.map(|sent| sent.span.clone()).collect()
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
        self.state.seen().requests.clear();
    }

    /// Waits until a request has arrived that the test waits for.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Request) -> bool) {
        self.wait_while(what, |seen| !seen.requests.iter().any(&wanted));
    }

    pub fn wait_for_count(&self, count: usize) {
        self.wait_while("enough requests", |seen| seen.requests.len() < count);
    }

    /// Waits until so many bytes of bodies have been sent, whatever they were.
    pub fn wait_for_sent(&self, bytes: u64) {
        self.wait_while("enough bytes", |seen| total(&seen.sent) < bytes);
    }

    pub fn total_sent(&self) -> u64 {
        total(&self.state.seen().sent)
    }

    /// Waits until so many clients have left an answer that stalls or trickles.
    pub fn wait_for_leavers(&self, path: &str, count: usize) {
        self.wait_while("the client's leave", |seen| {
            seen.left.iter().filter(|left| *left == path).count() < count
        });
    }

    fn wait_while(&self, what: &str, is_missing: impl Fn(&Seen) -> bool) {
        let seen = self.state.seen();
        let (seen, waited) = self
            .state
            .arrived
            .wait_timeout_while(seen, PATIENCE, |seen| is_missing(seen))
            .expect("no panic holds it");
        // The liar's own threads go on.
        drop(seen);
        assert!(!waited.timed_out(), "{what} never arrived");
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

const UNAUTHORIZED: (&str, &str) = ("UNAUTHORIZED", "authentication required");

struct Refusal {
    status: u16,
    challenge: Option<String>,
    said: (&'static str, &'static str),
}

impl State {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic holds it")
    }

    /// Where in `Seen::sent` an answer of a body counts its bytes.
    fn begin_sending(&self, path: &str, start: u64) -> usize {
        let mut seen = self.seen();
        seen.sent.push(Sent {
            path: path.to_owned(),
            span: start..start,
        });
        seen.sent.len() - 1
    }

    fn note_sent(&self, place: usize, end: u64) {
        self.seen().sent[place].span.end = end;
        self.arrived.notify_all();
    }

    fn note_leave(&self, path: &str) {
        self.seen().left.push(path.to_owned());
        self.arrived.notify_all();
    }

    fn answer(&self, request: &Request, stream: &mut TcpStream) -> io::Result<Next> {
        self.seen().requests.push(request.clone());
        self.arrived.notify_all();
        if let Some(refusal) = self.refusal(request) {
            let challenge = refusal.challenge.as_deref();
            let headers = challenge.map(|challenge| ("WWW-Authenticate", challenge));
            let (code, message) = refusal.said;
            let body = json!({"errors": [{"code": code, "message": message}]});
            return respond_json(request, stream, refusal.status, headers.as_slice(), &body);
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
        if request.path() == "/v2/" {
            return respond(request, stream, 200, &[], b"{}");
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
            let body = json!({"errors": [{"code": code, "message": "not here"}]});
            return respond_json(request, stream, 404, &[], &body);
        };
        resource.send(self, request, behaviour, stream)
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
                        said: UNAUTHORIZED,
                    });
                }
                let is_permitted =
                    repository.is_none_or(|name| accounts.permits(&user, &password, name));
                (!is_permitted).then_some(Refusal {
                    status: 403,
                    challenge: None,
                    said: UNAUTHORIZED,
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
                    said: UNAUTHORIZED,
                })
            }
            Auth::Ecr(passwords) => {
                let (user, password) = request.basic().unwrap_or_default();
                match passwords.standing(&password) {
                    Standing::Good if user == "AWS" => None,
                    Standing::Ended => Some(Refusal {
                        status: 403,
                        challenge: None,
                        said: (
                            "DENIED",
                            "Your authorization token has expired. Reauthenticate and try again.",
                        ),
                    }),
                    _ => Some(Refusal {
                        status: 401,
                        challenge: Some(
                            "Basic realm=\"https://ecr/\",service=\"ecr.amazonaws.com\"".to_owned(),
                        ),
                        said: ("UNAUTHORIZED", "Not Authorized"),
                    }),
                }
            }
            Auth::EcrPublic { realm, issued } => {
                if request.header("authorization").is_none() {
                    return Some(Refusal {
                        status: 401,
                        challenge: Some(format!(
                            "Bearer realm=\"{realm}\",service=\"public.ecr.aws\",scope=\"aws\""
                        )),
                        said: UNAUTHORIZED,
                    });
                }
                let is_good = request
                    .bearer()
                    .is_some_and(|token| issued.standing(token) == Standing::Good);
                (!is_good).then_some(Refusal {
                    status: 400,
                    challenge: None,
                    said: ("DENIED", "Your Authorization Token is invalid."),
                })
            }
        }
    }

    fn next_behaviour(&self, request: &Request) -> Option<Behaviour> {
        let mut behaviours = self.behaviours.lock().expect("no panic holds it");
        let script = behaviours.get_mut(request.path())?;
        let next = script.first.front().or(script.then.as_ref())?.clone();
        if request.method == "HEAD" && !next.applies_to_head() {
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
        let headers = link.as_deref().map(|link| ("Link", link));
        let body = json!({"name": repository, "tags": tags});
        respond_json(request, stream, 200, headers.as_slice(), &body)
    }
}

/// How a body and its head are told to differ from the honest ones.
#[derive(Default)]
struct Manners {
    framing: Framing,
    ignores_range: bool,
    unasked: Option<Range<u64>>,
    earlier: u64,
    later: u64,
    longest: Option<u64>,
    /// What stands after the slash of `Content-Range`.
    total: Option<String>,
    is_unnamed: bool,
    label: Option<&'static str>,
    other_content: Option<Content>,
    claimed_digest: Option<String>,
    has_no_digest: bool,
    has_wrong_end: bool,
    wrong: Option<u64>,
    /// Counted from the answer's first byte, as all that follows.
    ends_after: Option<u64>,
    stalls: bool,
    gate: Option<(u64, Gate)>,
    trickle: Option<Trickle>,
    /// Places in the blob.
    gate_outside: Option<(Range<u64>, Gate)>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Framing {
    #[default]
    Sized,
    Stated(u64),
    Chunked,
    UntilClose,
}

impl Manners {
    fn adopt(&mut self, behaviour: Behaviour) {
        match behaviour {
            // These have been answered already.
            Behaviour::Honest | Behaviour::HangUp | Behaviour::Answer(..) => {}
            Behaviour::All(behaviours) => {
                for behaviour in behaviours {
                    self.adopt(behaviour);
                }
            }
            Behaviour::WrongBytes => self.has_wrong_end = true,
            Behaviour::WrongByteAt(position) => self.wrong = Some(position),
            Behaviour::CutAfter(count) => self.ends_after = Some(count),
            Behaviour::StallAfter(count) => {
                self.ends_after = Some(count);
                self.stalls = true;
            }
            Behaviour::Gated(count, gate) => self.gate = Some((count, gate)),
            Behaviour::Trickling(count, gate) => {
                self.trickle = Some(Trickle {
                    count,
                    gate,
                    drip: DRIP,
                });
            }
            Behaviour::Dripping(count) => {
                let gate = Gate::default();
                self.trickle = Some(Trickle {
                    count,
                    gate,
                    drip: 1,
                });
            }
            Behaviour::GatedOutside(span, gate) => self.gate_outside = Some((span, gate)),
            Behaviour::Chunked => self.framing = Framing::Chunked,
            Behaviour::UntilClose => self.framing = Framing::UntilClose,
            Behaviour::StatedLength(length) => self.framing = Framing::Stated(length),
            Behaviour::IgnoreRange => self.ignores_range = true,
            Behaviour::PartFromEarlier(count) => self.earlier = count,
            Behaviour::PartFromLater(count) => self.later = count,
            Behaviour::ShorterPart(count) => self.longest = Some(count),
            Behaviour::PartOfOther(size) => self.total = Some(size.to_string()),
            Behaviour::PartOfUnknown => self.total = Some("*".to_owned()),
            Behaviour::UnnamedPart => self.is_unnamed = true,
            Behaviour::UnaskedPart(span) => self.unasked = Some(span),
            Behaviour::Labelled(encoding) => self.label = Some(encoding),
            Behaviour::Encoded(encoding, content) => {
                self.label = Some(encoding);
                self.other_content = Some(content);
            }
            Behaviour::ClaimDigest(digest) => self.claimed_digest = Some(digest),
            Behaviour::NoDigest => self.has_no_digest = true,
        }
    }

    /// Which part it is to be, if not the whole.
    fn part(&self, asked: Option<Range<u64>>, size: u64) -> Option<Range<u64>> {
        if self.ignores_range {
            return None;
        }
        let asked = asked.or_else(|| self.unasked.clone())?;
        let start = asked.start.saturating_sub(self.earlier) + self.later;
        let longest = self.longest.unwrap_or(u64::MAX);
        Some(start..asked.end.min(size).min(start.saturating_add(longest)))
    }

    /// Waits for what is held shut at `position`, and says up to where nothing else is.
    fn pass_gates(&self, body: &Range<u64>, position: u64) -> io::Result<u64> {
        let mut until = body.end;
        let mut hold = |shut: Range<u64>, gate: &Gate| {
            if shut.contains(&position) {
                gate.wait()?;
            } else if shut.start > position {
                until = until.min(shut.start);
            }
            Ok::<_, io::Error>(())
        };
        if let Some((count, gate)) = &self.gate {
            hold(body.start.saturating_add(*count)..u64::MAX, gate)?;
        }
        if let Some((span, gate)) = &self.gate_outside {
            hold(0..span.start, gate)?;
            hold(span.end..u64::MAX, gate)?;
        }
        Ok(until)
    }
}

impl Resource {
    fn send(
        &self,
        state: &State,
        request: &Request,
        behaviour: Option<Behaviour>,
        stream: &mut TcpStream,
    ) -> io::Result<Next> {
        let mut manners = Manners::default();
        if let Some(behaviour) = behaviour {
            manners.adopt(behaviour);
        }
        let content = manners.other_content.as_ref().unwrap_or(&self.content);
        let size = content.size();
        let etag = format!("\"{}\"", self.digest);
        let counts = request.header("if-range").is_none_or(|tag| tag == etag);
        let asked = match requested_range(request, size).filter(|_| counts) {
            Some(Wish::Beyond) if !manners.ignores_range => {
                let content_range = format!("bytes */{size}");
                let headers = [("Content-Range", content_range.as_str())];
                return respond(request, stream, 416, &headers, b"");
            }
            Some(Wish::Part(part)) => Some(part),
            Some(Wish::Beyond) | None => None,
        };
        let part = manners.part(asked, size);
        let is_part = part.is_some();
        let body = part.unwrap_or(0..size);
        let total = manners.total.clone().unwrap_or_else(|| size.to_string());
        let last = body.end.saturating_sub(1);
        let content_range = format!("bytes {}-{last}/{total}", body.start);
        let mut headers = vec![
            ("Content-Type", self.content_type.as_str()),
            ("ETag", &etag),
        ];
        if !manners.has_no_digest {
            let digest = manners.claimed_digest.as_ref().unwrap_or(&self.digest);
            headers.push(("Docker-Content-Digest", digest));
        }
        if is_part && !manners.is_unnamed {
            headers.push(("Content-Range", &content_range));
        }
        if let Some(label) = manners.label {
            headers.push(("Content-Encoding", label));
        }
        // A balancer's cookie and hop-by-hop headers: no proxy may copy them.
        headers.push(("Set-Cookie", "balancer=7"));
        headers.push(("Keep-Alive", "timeout=5"));
        let length = match manners.framing {
            Framing::Sized => Some(body.end - body.start),
            Framing::Stated(length) => Some(length),
            Framing::Chunked => {
                headers.push(("Transfer-Encoding", "chunked"));
                None
            }
            Framing::UntilClose => {
                headers.push(("Connection", "close"));
                None
            }
        };
        let status = if is_part { 206 } else { 200 };
        stream.write_all(&head(status, &headers, length))?;
        if request.method == "HEAD" {
            return Ok(Next::Keep);
        }
        send_body(state, request, content, body.clone(), &manners, stream)?;
        if manners.stalls {
            let _ = stream.read(&mut [0]);
            state.note_leave(request.path());
            return Ok(Next::Close);
        }
        Ok(match manners.framing {
            _ if manners.ends_after.is_some() => Next::Close,
            Framing::Sized => Next::Keep,
            Framing::Stated(_) | Framing::UntilClose => Next::Close,
            Framing::Chunked => {
                stream.write_all(b"0\r\n\r\n")?;
                Next::Keep
            }
        })
    }
}

fn send_body(
    state: &State,
    request: &Request,
    content: &Content,
    body: Range<u64>,
    manners: &Manners,
    stream: &mut TcpStream,
) -> io::Result<()> {
    let end = match manners.ends_after {
        Some(count) => body.end.min(body.start.saturating_add(count)),
        None => body.end,
    };
    let wrong = match manners.has_wrong_end {
        true => body.end.checked_sub(1),
        false => manners.wrong,
    };
    let place = state.begin_sending(request.path(), body.start);
    let mut position = body.start;
    let mut piece = vec![0; 64 << 10];
    while position < end {
        let mut until = manners.pass_gates(&body, position)?.min(end);
        match &manners.trickle {
            Some(Trickle { count, gate, drip }) if !gate.is_open() => {
                let free = body.start + count;
                if position < free {
                    until = until.min(free);
                } else {
                    until = until.min(position + drip);
                    if has_left(stream)? {
                        state.note_leave(request.path());
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                }
            }
            _ => {}
        }
        let count = (until - position).min(piece.len() as u64) as usize;
        let bytes = &mut piece[..count];
        content.range(position, until).read_exact(bytes)?;
        let offset = wrong.and_then(|wrong| wrong.checked_sub(position));
        if let Some(byte) = offset.and_then(|offset| bytes.get_mut(offset as usize)) {
            *byte ^= 1;
        }
        position += count as u64;
        // Before it is sent: whoever has it finds it counted.
        state.note_sent(place, position);
        if manners.framing == Framing::Chunked {
            write!(stream, "{count:x}\r\n")?;
            stream.write_all(bytes)?;
            stream.write_all(b"\r\n")?;
        } else {
            stream.write_all(bytes)?;
        }
    }
    Ok(())
}

struct Trickle {
    /// What is sent at once.
    count: u64,
    gate: Gate,
    /// What is sent at a time behind it.
    drip: u64,
}

/// Sent at a time by an answer that trickles.
const DRIP: u64 = 4 << 10;

/// Waits a moment for the client to leave: that moment is also what makes a trickle slow.
fn has_left(stream: &mut TcpStream) -> io::Result<bool> {
    const MOMENT: Duration = Duration::from_millis(20);
    let patience = stream.read_timeout()?;
    stream.set_read_timeout(Some(MOMENT))?;
    let has_left = match stream.peek(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ),
    };
    stream.set_read_timeout(patience)?;
    Ok(has_left)
}

enum Wish {
    Part(Range<u64>),
    /// It starts after the end.
    Beyond,
}

/// One range (RFC 9110 §14.1.2); several are answered with the whole.
fn requested_range(request: &Request, size: u64) -> Option<Wish> {
    let (first, last) = request
        .header("range")?
        .strip_prefix("bytes=")?
        .split_once('-')?;
    let part = match (first, last) {
        ("", count) => size.saturating_sub(count.parse().ok()?)..size,
        (first, "") => first.parse().ok()?..size,
        (first, last) => first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?.min(size),
    };
    Some(if part.start < size {
        (!part.is_empty()).then_some(Wish::Part(part))?
    } else {
        Wish::Beyond
    })
}

fn total(sent: &[Sent]) -> u64 {
    sent.iter()
        .map(|sent| sent.span.end - sent.span.start)
        .sum()
}

/// How many bytes are in at least one of the spans.
pub fn covered(spans: &[Range<u64>]) -> u64 {
    let mut spans = spans.to_vec();
    spans.sort_by_key(|span| span.start);
    let mut covered = 0;
    let mut end = 0;
    for span in spans {
        covered += span.end.saturating_sub(span.start.max(end));
        end = end.max(span.end);
    }
    covered
}

/// How many bytes were sent again.
pub fn sent_again(spans: &[Range<u64>]) -> u64 {
    let all: u64 = spans.iter().map(|span| span.end - span.start).sum();
    all - covered(spans)
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
