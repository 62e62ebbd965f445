//! The way to a registry that runs: all goes through unchanged, but for what it was told to spoil.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    liar::Gate,
    server::{Request, head, read_head},
    token_server::{Issued, SERVICE, TokenServer},
};

/// No connection of a test outlives this.
const PATIENCE: Duration = Duration::from_secs(120);

/// What happens to a request on its way.
#[derive(Clone, Debug)]
pub enum Obstacle {
    /// Nothing: for the requests before the one that meets something.
    Nothing,
    /// The registry does not hear of it: status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, &'static str),
    /// So much of its body gets through, then both sides lose the connection.
    CutAfter(u64),
    /// So much of its body gets through, the rest when the gate is open. Not for one that is no longer than that.
    Gated(u64, Gate),
    /// The registry does as it is told, and its client loses the connection instead of hearing so.
    Unanswered,
}

impl Obstacle {
    pub fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), "")
    }

    fn is_met_by(&self, request: &Request) -> bool {
        let length = request.header("content-length");
        let length: Option<u64> = length.and_then(|length| length.parse().ok());
        match (self, length) {
            (Self::Gated(count, _), Some(length @ 1..)) => length > *count,
            _ => true,
        }
    }

    /// 429 or 503, and when to come again.
    pub fn later(status: u16, seconds: u64) -> Self {
        let errors = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
        Self::Answer(status, vec![("Retry-After", seconds.to_string())], errors)
    }
}

/// Which requests.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Opens an upload of a blob, or asks for a mount.
    Opening,
    /// Brings bytes of a blob.
    Bytes,
    /// Ends an upload of a blob, with bytes or without.
    Closing,
    /// Puts a manifest.
    Manifest,
}

impl Kind {
    fn is_of(self, request: &Request) -> bool {
        let method = request.method.as_str();
        let is_upload = request.path().contains("/blobs/uploads/");
        let is_empty = request.header("transfer-encoding").is_none()
            && request
                .header("content-length")
                .is_none_or(|length| length == "0");
        match self {
            Self::Opening => is_upload && method == "POST",
            Self::Bytes => is_upload && matches!(method, "PATCH" | "PUT") && !is_empty,
            Self::Closing => is_upload && method == "PUT",
            Self::Manifest => method == "PUT" && request.path().contains("/manifests/"),
        }
    }
}

pub struct Passage {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    registry: SocketAddr,
    seen: Mutex<Seen>,
    /// `seen` has changed.
    changed: Condvar,
    /// Where tokens are known, and what to say to one that is not.
    tokens: Option<(Issued, String)>,
    is_over: AtomicBool,
}

#[derive(Default)]
struct Seen {
    obstacles: Vec<(Kind, VecDeque<Obstacle>)>,
    requests: Vec<Request>,
    /// How many requests have come to their gates.
    halted: usize,
    /// And how many are there still.
    at_gates: usize,
    /// Of bodies, to the registry.
    carried: u64,
}

impl Passage {
    pub fn to(registry: SocketAddr) -> Self {
        Self::start(registry, None)
    }

    /// Whoever comes with a token that its server has forgotten hears that he needs another.
    pub fn to_with(registry: SocketAddr, tokens: &TokenServer) -> Self {
        let challenge = format!(
            "Bearer realm=\"{}\",service=\"{SERVICE}\",error=\"invalid_token\"",
            tokens.realm()
        );
        Self::start(registry, Some((tokens.issued(), challenge)))
    }

    fn start(registry: SocketAddr, tokens: Option<(Issued, String)>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let state = Arc::new(State {
            registry,
            seen: Mutex::default(),
            changed: Condvar::new(),
            tokens,
            is_over: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                let state = Arc::clone(&shared);
                thread::spawn(move || {
                    // Either side leaves when it likes.
                    let _ = state.carry(&client);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Self { address, state }
    }

    /// The registry's name, for those who come this way.
    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// One for each of the next requests of this kind; those after them pass.
    pub fn put(&self, kind: Kind, obstacles: &[Obstacle]) {
        let obstacles = obstacles.to_vec().into();
        self.state.seen().obstacles.push((kind, obstacles));
    }

    /// The same for each of so many.
    pub fn put_often(&self, kind: Kind, obstacle: &Obstacle, count: usize) {
        self.put(kind, &vec![obstacle.clone(); count]);
    }

    /// No more obstacles, and nobody at a gate.
    pub fn clear(&self) {
        let mut seen = self.state.seen();
        seen.obstacles.clear();
        seen.halted = 0;
    }

    /// How many obstacles nobody has met yet.
    pub fn unmet(&self) -> usize {
        let seen = self.state.seen();
        seen.obstacles.iter().map(|(_, left)| left.len()).sum()
    }

    /// Heads of all that has come, those that met an obstacle included.
    pub fn requests(&self) -> Vec<Request> {
        self.state.seen().requests.clone()
    }

    pub fn count(&self, kind: Kind) -> usize {
        let seen = self.state.seen();
        let of_kind = seen.requests.iter().filter(|request| kind.is_of(request));
        of_kind.count()
    }

    /// Bytes of bodies that the registry was sent, with the sizes of chunks.
    pub fn carried(&self) -> u64 {
        self.state.seen().carried
    }

    /// Waits until so many have come to their gates.
    pub fn wait_for_halted(&self, count: usize) {
        let seen = self.state.seen();
        let (seen, waited) = self
            .state
            .changed
            .wait_timeout_while(seen, PATIENCE, |seen| seen.halted < count)
            .expect("no panic holds it");
        let requests = seen.requests.clone();
        // Its own threads go on.
        drop(seen);
        assert!(!waited.timed_out(), "nobody at the gates: {requests:#?}");
    }

    /// Requests that wait at their gates.
    pub fn at_gates(&self) -> usize {
        self.state.seen().at_gates
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic holds it")
    }

    /// One connection. Answers come back by a thread that does not look at them: no client sends its next request
    /// before it has the answer to the last.
    fn carry(&self, client: &TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(PATIENCE))?;
        client.set_nodelay(true)?;
        let registry = TcpStream::connect(self.registry)?;
        registry.set_nodelay(true)?;
        let is_mute = Arc::new(AtomicBool::new(false));
        let (mut from, mut to) = (registry.try_clone()?, client.try_clone()?);
        let is_muted = Arc::clone(&is_mute);
        let answers = thread::spawn(move || {
            let mut piece = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from.read(&mut piece)
                && !is_muted.load(Ordering::SeqCst)
                && to.write_all(&piece[..count]).is_ok()
            {}
            let _ = to.shutdown(Shutdown::Both);
        });
        let carried = self.carry_requests(client, &registry, &is_mute);
        let _ = registry.shutdown(if is_mute.load(Ordering::SeqCst) {
            // It has all, and is about to answer.
            Shutdown::Write
        } else {
            Shutdown::Both
        });
        let _ = answers.join();
        carried
    }

    fn carry_requests(
        &self,
        client: &TcpStream,
        mut registry: &TcpStream,
        is_mute: &AtomicBool,
    ) -> io::Result<()> {
        let mut answers = client;
        let mut reader = BufReader::with_capacity(256 << 10, client);
        while let Some((raw, request)) = read_head(&mut reader)? {
            let obstacle = self.obstacle(&request);
            let mut body = Body::of(&request, &mut reader);
            match obstacle {
                Obstacle::Nothing => {
                    registry.write_all(&raw)?;
                    self.carry_body(&mut body, u64::MAX, registry)?;
                }
                Obstacle::Answer(status, headers, text) => {
                    body.carry(u64::MAX, &mut io::sink())?;
                    let mut fields = vec![("Content-Type", "application/json")];
                    fields.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
                    answers.write_all(&head(status, &fields, Some(text.len() as u64)))?;
                    answers.write_all(text.as_bytes())?;
                }
                Obstacle::CutAfter(count) => {
                    registry.write_all(&raw)?;
                    self.carry_body(&mut body, count, registry)?;
                    return Ok(());
                }
                Obstacle::Gated(count, gate) => {
                    registry.write_all(&raw)?;
                    self.carry_body(&mut body, count, registry)?;
                    if !gate.is_open() {
                        self.seen().halted += 1;
                        self.changed.notify_all();
                    }
                    self.seen().at_gates += 1;
                    let opened = gate.wait();
                    self.seen().at_gates -= 1;
                    opened?;
                    self.carry_body(&mut body, u64::MAX, registry)?;
                }
                Obstacle::Unanswered => {
                    is_mute.store(true, Ordering::SeqCst);
                    registry.write_all(&raw)?;
                    self.carry_body(&mut body, u64::MAX, registry)?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn carry_body(
        &self,
        body: &mut Body<'_, impl BufRead>,
        count: u64,
        mut registry: &TcpStream,
    ) -> io::Result<()> {
        let carried = body.carry(count, &mut registry);
        self.seen().carried += std::mem::take(&mut body.carried);
        carried
    }

    fn obstacle(&self, request: &Request) -> Obstacle {
        let mut seen = self.seen();
        seen.requests.push(request.clone());
        self.changed.notify_all();
        let of_kind = seen.obstacles.iter_mut().find(|(kind, obstacles)| {
            let next = obstacles.front();
            kind.is_of(request) && next.is_some_and(|next| next.is_met_by(request))
        });
        if let Some((_, obstacles)) = of_kind {
            return obstacles.pop_front().unwrap_or(Obstacle::Nothing);
        }
        if let (Some((issued, challenge)), Some(token)) = (&self.tokens, request.bearer())
            && !issued.knows(token)
        {
            let challenge = ("WWW-Authenticate", challenge.clone());
            let errors = r#"{"errors":[{"code":"UNAUTHORIZED","message":"expired"}]}"#;
            return Obstacle::Answer(401, vec![challenge], errors);
        }
        Obstacle::Nothing
    }
}

/// A request's body, as it comes: with its chunks' sizes, if it has any.
struct Body<'a, R> {
    reader: &'a mut R,
    framing: Framing,
    carried: u64,
}

enum Framing {
    Length(u64),
    /// Of the chunk that is being read, its end included.
    Chunk(u64),
    Done,
}

impl<'a, R: BufRead> Body<'a, R> {
    fn of(request: &Request, reader: &'a mut R) -> Self {
        let is_chunked = request
            .header("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        let length = request
            .header("content-length")
            .and_then(|length| length.parse().ok());
        let framing = match (is_chunked, length) {
            (true, _) => Framing::Chunk(0),
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::Done,
        };
        Self {
            reader,
            framing,
            carried: 0,
        }
    }

    /// At most about so many bytes, or all that is left.
    fn carry(&mut self, count: u64, to: &mut impl Write) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            let size = match &mut self.framing {
                Framing::Done => break,
                Framing::Length(size) => size,
                Framing::Chunk(size) => {
                    if *size == 0 {
                        let mut line = String::new();
                        self.reader.read_line(&mut line)?;
                        to.write_all(line.as_bytes())?;
                        let digits = line.trim_end().split(';').next().unwrap_or_default();
                        let length = u64::from_str_radix(digits, 16)
                            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                        // The end of the chunk is a line of its own; so is that of the whole.
                        *size = length + 2;
                        if length == 0 {
                            self.framing = Framing::Length(2);
                        }
                        continue;
                    }
                    size
                }
            };
            let wanted = left.min(*size);
            let carried = io::copy(&mut Read::take(&mut *self.reader, wanted), to)?;
            self.carried += carried;
            if carried < wanted {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            *size -= carried;
            left = left.saturating_sub(carried);
            if matches!(self.framing, Framing::Length(0)) {
                self.framing = Framing::Done;
            }
        }
        Ok(())
    }
}
