//! A registry that takes pushes, and goes wrong as it is told: once for each fault, in their order.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{PrivateKeyDer, pem::PemObject as _},
};
use tempfile::TempDir;

use super::{
    content::digest,
    server::{Request, head},
    token_server::Issued,
};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub enum Fault {
    /// An answer to a request that was read whole, and is not obeyed.
    Answer(u16, Vec<(String, String)>, String),
    /// The same before its body is read; then the connection is closed.
    Early(u16, Vec<(String, String)>, String),
    /// Takes so many bytes of the body, and breaks off.
    CutAfter(usize),
    /// Obeys, and breaks off instead of answering.
    CutBeforeAnswer,
    /// Obeys, and says this instead of `Range` and `Location` or beside them.
    Say(u16, Vec<(String, String)>),
    /// Takes no byte, and says none.
    Stall,
}

impl Fault {
    pub fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), String::new())
    }

    pub fn says(status: u16, code: &str, message: &str) -> Self {
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#);
        Self::Answer(status, Vec::new(), body)
    }

    pub fn with(self, name: &str, value: impl Into<String>) -> Self {
        let added = (name.to_owned(), value.into());
        let push = |mut fields: Vec<_>| {
            fields.push(added);
            fields
        };
        match self {
            Self::Answer(status, fields, body) => Self::Answer(status, push(fields), body),
            Self::Early(status, fields, body) => Self::Early(status, push(fields), body),
            Self::Say(status, fields) => Self::Say(status, push(fields)),
            other => other,
        }
    }

    pub fn early(self) -> Self {
        match self {
            Self::Answer(status, fields, body) => Self::Early(status, fields, body),
            other => other,
        }
    }
}

pub struct PushTarget {
    pub address: SocketAddr,
    state: Arc<State>,
    certificate: Option<(TempDir, PathBuf)>,
}

/// A connection, with or without TLS.
trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

struct State {
    /// Realm and what it has issued.
    bearer: Option<(String, Issued)>,
    /// Where uploads are said to be.
    storage: Mutex<Option<String>>,
    limit: Mutex<Option<u64>>,
    faults: Mutex<HashMap<String, VecDeque<Fault>>>,
    uploads: Mutex<HashMap<String, Upload>>,
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    requests: Mutex<Vec<Request>>,
    is_over: AtomicBool,
}

#[derive(Default)]
struct Upload {
    bytes: Vec<u8>,
    state: usize,
}

impl PushTarget {
    pub fn open() -> Self {
        Self::start_with(None, false)
    }

    /// With a certificate of its own; `ca_file` is what to trust.
    pub fn open_tls() -> Self {
        Self::start_with(None, true)
    }

    pub fn start(realm: String, issued: Issued) -> Self {
        Self::start_with(Some((realm, issued)), false)
    }

    fn start_with(bearer: Option<(String, Issued)>, with_tls: bool) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let state = Arc::new(State {
            bearer,
            storage: Mutex::default(),
            limit: Mutex::default(),
            faults: Mutex::default(),
            uploads: Mutex::default(),
            blobs: Mutex::default(),
            requests: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let (certificate, tls) = with_tls.then(certificate).unzip();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (state, tls) = (Arc::clone(&shared), tls.clone());
                thread::spawn(move || {
                    let _ = state.accept(stream, tls);
                });
            }
        });
        Self {
            address,
            state,
            certificate,
        }
    }

    pub fn ca_file(&self) -> &Path {
        let (_, path) = self.certificate.as_ref().expect("a target with TLS");
        path
    }

    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// What becomes of the next request of this method that has none yet.
    pub fn fault(&self, method: &str, fault: Fault) {
        let mut faults = lock(&self.state.faults);
        faults
            .entry(method.to_owned())
            .or_default()
            .push_back(fault);
    }

    /// Its uploads are there, it says.
    pub fn uploads_at(&self, origin: &str) {
        *lock(&self.state.storage) = Some(origin.to_owned());
    }

    /// Takes no larger bodies.
    pub fn limit_bodies(&self, limit: u64) {
        *lock(&self.state.limit) = Some(limit);
    }

    pub fn requests(&self) -> Vec<Request> {
        lock(&self.state.requests).clone()
    }

    /// Each request's method, and which part of a blob it brought: `PATCH 0-9`.
    pub fn told(&self) -> Vec<String> {
        let told = |request: &Request| match request.header("content-range") {
            Some(part) => format!("{} {part}", request.method),
            None => request.method.clone(),
        };
        self.requests().iter().map(told).collect()
    }

    pub fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        lock(&self.state.blobs).get(digest).cloned()
    }

    pub fn open_uploads(&self) -> usize {
        lock(&self.state.uploads).len()
    }
}

impl Drop for PushTarget {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn accept(&self, tcp: TcpStream, tls: Option<Arc<ServerConfig>>) -> io::Result<()> {
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        tcp.set_nodelay(true)?;
        let raw = tcp.try_clone()?;
        let wire: Box<dyn Wire> = match tls {
            Some(config) => {
                let session = ServerConnection::new(config).map_err(io::Error::other)?;
                Box::new(StreamOwned::new(session, tcp))
            }
            None => Box::new(tcp),
        };
        let served = self.serve(BufReader::new(wire));
        // What nobody reads any more resets the connection, as with a real one.
        let _ = raw.shutdown(Shutdown::Both);
        served
    }

    fn serve(&self, mut reader: BufReader<Box<dyn Wire>>) -> io::Result<()> {
        while let Some(mut request) = read_head(&mut reader)? {
            lock(&self.requests).push(request.clone());
            let size: usize = request
                .header("content-length")
                .map_or(0, |size| size.parse().expect("a number"));
            let fault = lock(&self.faults)
                .get_mut(&request.method)
                .and_then(VecDeque::pop_front);
            let refusal = fault.or_else(|| self.refusal(&request, size as u64));
            match &refusal {
                Some(Fault::Early(status, fields, body)) => {
                    answer(reader.get_mut(), *status, fields, body)?;
                    // As servers do: to close on what was not read would take the answer back.
                    let mut rest = (&mut reader).take(size as u64);
                    let _ = io::copy(&mut rest, &mut io::sink());
                    return Ok(());
                }
                Some(Fault::Stall) => {
                    thread::park_timeout(PATIENCE);
                    return Ok(());
                }
                Some(Fault::CutAfter(count)) => {
                    let mut taken = vec![0; *count];
                    reader.read_exact(&mut taken)?;
                    let name = upload_of(&request);
                    if let Some(upload) = lock(&self.uploads).get_mut(&name) {
                        upload.bytes.extend(taken);
                    }
                    return Ok(());
                }
                _ => {}
            }
            (&mut reader)
                .take(size as u64)
                .read_to_end(&mut request.body)?;
            if request.body.len() < size {
                return Ok(());
            }
            if let Some(Fault::Answer(status, fields, body)) = &refusal {
                answer(reader.get_mut(), *status, fields, body)?;
                continue;
            }
            let (mut status, mut fields) = self.obey(request);
            match refusal {
                Some(Fault::CutBeforeAnswer) => return Ok(()),
                Some(Fault::Say(other, instead)) => {
                    status = other;
                    fields.retain(|(name, _)| !instead.iter().any(|(said, _)| said == name));
                    fields.extend(instead.into_iter().filter(|(_, value)| !value.is_empty()));
                }
                _ => {}
            }
            answer(reader.get_mut(), status, &fields, "")?;
        }
        Ok(())
    }

    fn refusal(&self, request: &Request, size: u64) -> Option<Fault> {
        if let Some(limit) = *lock(&self.limit)
            && size > limit
        {
            return Some(Fault::status(413).early());
        }
        let (realm, issued) = self.bearer.as_ref()?;
        let repository = repository_of(request);
        if request
            .bearer()
            .is_some_and(|token| issued.permits(token, &repository))
        {
            return None;
        }
        let actions = match request.method.as_str() {
            "GET" | "HEAD" => "pull",
            "DELETE" => "delete",
            _ => "pull,push",
        };
        let challenge = format!(
            r#"Bearer realm="{realm}",service="registry.test",scope="repository:{repository}:{actions}""#
        );
        Some(
            Fault::status(401)
                .early()
                .with("WWW-Authenticate", challenge),
        )
    }

    fn obey(&self, request: Request) -> (u16, Vec<(String, String)>) {
        let none = Vec::new;
        let path = request.path().to_owned();
        let repository = repository_of(&request);
        let field = |name: &str, value: String| (name.to_owned(), value);
        if path.contains("/manifests/") {
            let said = field("Docker-Content-Digest", digest(&request.body));
            return (201, vec![said]);
        }
        let mut uploads = lock(&self.uploads);
        let name = upload_of(&request);
        match request.method.as_str() {
            "HEAD" => {
                let digest = path.rsplit('/').next().unwrap_or_default();
                let is_there = lock(&self.blobs).contains_key(digest);
                (if is_there { 200 } else { 404 }, none())
            }
            "POST" => {
                if let Some(mounted) = request.query("mount")
                    && lock(&self.blobs).contains_key(&mounted)
                {
                    return (201, none());
                }
                let name = format!("u{}", lock(&self.requests).len());
                let upload = Upload::default();
                let location = self.location(&repository, &name, &upload);
                uploads.insert(name, upload);
                (
                    202,
                    vec![
                        field("Location", location),
                        field("Range", "0-0".to_owned()),
                    ],
                )
            }
            "DELETE" => match uploads.remove(&name) {
                Some(_) => (204, none()),
                None => (404, none()),
            },
            method => {
                let Some(upload) = uploads.get_mut(&name) else {
                    return (404, none());
                };
                if request.query("_state").as_deref() != Some(&state(upload)) {
                    return (400, none());
                }
                if let Some(part) = request.header("content-range") {
                    let start = part.split('-').next().and_then(|start| start.parse().ok());
                    if start != Some(upload.bytes.len()) {
                        return (416, none());
                    }
                }
                upload.bytes.extend(&request.body);
                if method == "PUT" {
                    let wanted = request.query("digest").unwrap_or_default();
                    let bytes = uploads.remove(&name).expect("it was found").bytes;
                    if digest(&bytes) != wanted {
                        return (400, none());
                    }
                    lock(&self.blobs).insert(wanted.clone(), bytes);
                    return (201, vec![field("Docker-Content-Digest", wanted)]);
                }
                if method == "PATCH" {
                    upload.state += 1;
                }
                let last = upload.bytes.len().saturating_sub(1);
                let location = self.location(&repository, &name, upload);
                let fields = vec![
                    field("Location", location),
                    field("Range", format!("0-{last}")),
                ];
                (if method == "GET" { 204 } else { 202 }, fields)
            }
        }
    }

    /// Relative, unless it is elsewhere; with a state that must come back as it is.
    fn location(&self, repository: &str, name: &str, upload: &Upload) -> String {
        let origin = lock(&self.storage).clone().unwrap_or_default();
        let state = state(upload).replace('+', "%2b").replace('/', "%2F");
        format!("{origin}/v2/{repository}/blobs/uploads/{name}?_state={state}")
    }
}

/// Changes with each part, and would not survive being decoded and encoded again.
fn state(upload: &Upload) -> String {
    format!("hidden+{}/x", upload.state)
}

fn certificate() -> ((TempDir, PathBuf), Arc<ServerConfig>) {
    let made =
        rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let key =
        PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a usable pair");
    let home = tempfile::tempdir().expect("a temporary folder");
    let path = home.path().join("tls.pem");
    fs::write(&path, made.cert.pem()).expect("a writable folder");
    ((home, path), Arc::new(config))
}

fn upload_of(request: &Request) -> String {
    request
        .path()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn repository_of(request: &Request) -> String {
    let path = request.path().strip_prefix("/v2/").unwrap_or_default();
    let end = path.find("/blobs/").or_else(|| path.find("/manifests/"));
    path[..end.unwrap_or(0)].to_owned()
}

fn answer(
    wire: &mut dyn Write,
    status: u16,
    fields: &[(String, String)],
    body: &str,
) -> io::Result<()> {
    let mut fields: Vec<(&str, &str)> = fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    fields.push(("Content-Type", "application/json"));
    let length = (status != 204).then_some(body.len() as u64);
    let mut bytes = head(status, &fields, length);
    bytes.extend_from_slice(body.as_bytes());
    wire.write_all(&bytes)?;
    wire.flush()
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut parts = line.trim_end().split(' ').map(str::to_owned);
    let (Some(method), Some(target)) = (parts.next(), parts.next()) else {
        return Ok(None);
    };
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => break,
        }
    }
    Ok(Some(Request {
        method,
        target,
        headers,
        body: Vec::new(),
    }))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
