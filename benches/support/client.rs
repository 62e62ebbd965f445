//! Clients that cost little: many connections on few threads, and plain bodies dropped inside the kernel.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use super::{
    comes_true,
    origin::Blob,
    pause,
    servers::Server,
    sys::{self, Poller, Ready},
};

/// The head of a response, and as much of a small body as comes with it.
const HEAD_ROOM: usize = 4 << 10;
/// What one turn takes from a connection over TLS before the others get theirs.
const TLS_READ_SIZE: usize = 256 << 10;

/// Where to, and over what.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub tls: Option<Arc<ClientConfig>>,
}

impl Target {
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }

    pub fn connect(&self) -> io::Result<Transport> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        let Some(config) = &self.tls else {
            return Ok(Transport::Plain(stream));
        };
        let name = ServerName::from(self.address.ip());
        let mut connection =
            ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(Transport::Tls(Box::new(StreamOwned::new(
            connection, stream,
        ))))
    }

    /// One request with a body, answered with a whole body. For what is not measured.
    pub fn post(&self, path: &str, body: &str) -> io::Result<String> {
        self.send("POST", path, "Content-Type: application/json\r\n", body)
    }

    /// `fields`: lines with their ends.
    pub fn send(&self, method: &str, path: &str, fields: &str, body: &str) -> io::Result<String> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{fields}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.address,
            body.len(),
        );
        let mut transport = self.connect()?;
        transport.stream().set_read_timeout(Some(super::PATIENCE))?;
        let mut answer = Vec::new();
        match &mut transport {
            Transport::Plain(stream) => {
                stream.write_all(request.as_bytes())?;
                stream.read_to_end(&mut answer)?;
            }
            Transport::Tls(stream) => {
                stream.write_all(request.as_bytes())?;
                match stream.read_to_end(&mut answer) {
                    // Closed without TLS' own farewell.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                    other => drop(other?),
                }
            }
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

pub enum Transport {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Transport {
    fn stream(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(both) => &both.sock,
        }
    }

    /// Requests are far smaller than what a socket takes at once.
    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(request),
            Self::Tls(both) => both.write_all(request).and_then(|()| both.flush()),
        }
    }
}

/// What a connection is to ask for next.
#[derive(Clone)]
pub struct Get {
    request: Arc<[u8]>,
    size: u64,
}

impl Get {
    pub fn new(host: SocketAddr, path: &str, blob: &Blob) -> Self {
        Self::with_fields(host, path, "", blob)
    }

    /// `fields`: lines with their ends.
    pub fn with_fields(host: SocketAddr, path: &str, fields: &str, blob: &Blob) -> Self {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
        Self {
            request: request.into_bytes().into(),
            size: blob.size,
        }
    }

    /// A request with a body, whose answer has always the same size.
    pub fn post(host: SocketAddr, path: &str, body: &str, size: u64) -> Self {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Self {
            request: request.into_bytes().into(),
            size,
        }
    }
}

/// What became of one request.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    pub started: Instant,
    pub first_byte: Instant,
    pub ended: Instant,
    pub size: u64,
}

impl Transfer {
    /// From the request to the first byte of its answer, in seconds.
    pub fn first_byte_seconds(&self) -> f64 {
        (self.first_byte - self.started).as_secs_f64()
    }

    pub fn seconds(&self) -> f64 {
        (self.ended - self.started).as_secs_f64()
    }
}

/// Tells a connection, by its number, what to ask for next; `None` ends it.
pub type Next = Arc<dyn Fn(usize) -> Option<Get> + Send + Sync>;

/// Connections in a closed loop: each asks again as soon as it has its answer.
pub struct Load {
    pub target: Target,
    pub connections: usize,
    pub threads: usize,
    pub next: Next,
    /// Behind other threads of the same core.
    pub is_background: bool,
}

impl Load {
    /// All connections ask for the same until they are stopped.
    pub fn of(target: &Target, connections: usize, get: &Get) -> Self {
        let get = get.clone();
        Self {
            target: target.clone(),
            connections,
            threads: if connections > 8 { 2 } else { 1 },
            next: Arc::new(move |_| Some(get.clone())),
            is_background: false,
        }
    }

    /// Each connection asks once, all at the same moment.
    pub fn once(target: &Target, connections: usize, get: &Get) -> Vec<Transfer> {
        let asked: Vec<AtomicBool> = (0..connections).map(|_| AtomicBool::new(false)).collect();
        let get = get.clone();
        let load = Self {
            next: Arc::new(move |connection| {
                let is_first = !asked.get(connection)?.swap(true, Ordering::Relaxed);
                is_first.then(|| get.clone())
            }),
            ..Self::of(target, connections, &get_nothing())
        };
        load.start().wait()
    }

    pub fn start(self) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let connected = Arc::new(AtomicUsize::new(0));
        let go = Arc::new(AtomicBool::new(false));
        let bytes = Arc::new(AtomicU64::new(0));
        let threads = self.threads.clamp(1, self.connections.max(1));
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let (stop, go) = (Arc::clone(&stop), Arc::clone(&go));
                let (bytes, connected) = (Arc::clone(&bytes), Arc::clone(&connected));
                let (target, next) = (self.target.clone(), Arc::clone(&self.next));
                let numbers: Vec<usize> = (thread..self.connections).step_by(threads).collect();
                let is_background = self.is_background;
                thread::spawn(move || {
                    if is_background {
                        sys::yield_to_others();
                    }
                    let mut driver =
                        Driver::connect(&target, &numbers, next, stop, bytes).expect("connections");
                    connected.fetch_add(1, Ordering::Relaxed);
                    while !go.load(Ordering::Relaxed) {
                        thread::park_timeout(Duration::from_micros(100));
                    }
                    driver.run().expect("whole answers");
                    driver.transfers
                })
            })
            .collect();
        let is_connected =
            comes_true(|| connected.load(Ordering::Relaxed) == threads || has_ended(&handles));
        assert!(
            is_connected && !has_ended(&handles),
            "{} does not take {} connections",
            self.target.address,
            self.connections
        );
        go.store(true, Ordering::Relaxed);
        Running {
            stop,
            bytes,
            handles,
        }
    }
}

fn has_ended(handles: &[JoinHandle<Vec<Transfer>>]) -> bool {
    handles.iter().any(JoinHandle::is_finished)
}

fn get_nothing() -> Get {
    Get {
        request: Arc::new([]),
        size: 0,
    }
}

/// A load at work.
pub struct Running {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    handles: Vec<JoinHandle<Vec<Transfer>>>,
}

impl Running {
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Watches a load that has come into its stride, and stops it.
    pub fn measure(self, server: &Server, warm_up: Duration, window: Duration) -> Figures {
        pause(warm_up);
        let (start, bytes, cpu) = (Instant::now(), self.bytes(), server.cpu());
        pause(window);
        let (end, bytes, cpu) = (
            Instant::now(),
            self.bytes() - bytes,
            server.cpu().saturating_sub(cpu),
        );
        let latencies = self
            .stop()
            .into_iter()
            .filter(|transfer| transfer.ended >= start && transfer.ended < end)
            .map(|transfer| transfer.seconds())
            .collect();
        Figures {
            seconds: (end - start).as_secs_f64(),
            bytes: bytes as f64,
            cpu: cpu.as_secs_f64(),
            latencies,
        }
    }

    /// Cuts what is under way.
    pub fn stop(self) -> Vec<Transfer> {
        self.stop.store(true, Ordering::Relaxed);
        self.wait()
    }

    pub fn wait(self) -> Vec<Transfer> {
        self.handles
            .into_iter()
            .flat_map(|handle| handle.join().expect("the client ends well"))
            .collect()
    }
}

/// What was seen of a load, and what it cost the server.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub seconds: f64,
    pub bytes: f64,
    pub cpu: f64,
    /// Of whole requests, in seconds.
    pub latencies: Vec<f64>,
}

impl Figures {
    pub fn add(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.bytes += other.bytes;
        self.cpu += other.cpu;
        self.latencies.extend(other.latencies);
    }

    pub fn gib_per_second(&self) -> f64 {
        self.bytes / super::GIB / self.seconds
    }

    /// Cores that the server kept busy. Below what it has, something else was the limit.
    pub fn cores_busy(&self) -> f64 {
        self.cpu / self.seconds
    }

    pub fn cpu_per_gib(&self) -> f64 {
        self.cpu / (self.bytes / super::GIB)
    }

    /// Small bodies: requests count, not bytes.
    pub fn cpu_per_request(&self) -> f64 {
        self.cpu / self.latencies.len() as f64
    }

    pub fn requests_per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }

    pub fn quantiles<const N: usize>(&self, wanted: [f64; N]) -> [f64; N] {
        let mut sorted = self.latencies.clone();
        sorted.sort_by(f64::total_cmp);
        wanted.map(|q| super::quantile(&sorted, q))
    }
}

struct Connection {
    number: usize,
    transport: Transport,
    is_open: bool,
    started: Instant,
    first_byte: Option<Instant>,
    response: Response,
}

/// As much of a response as has come.
#[derive(Default)]
struct Response {
    head: Vec<u8>,
    wanted: u64,
    /// `None` within the head.
    left: Option<u64>,
}

impl Response {
    fn of(get: &Get) -> Self {
        Self {
            head: Vec::new(),
            wanted: get.size,
            left: None,
        }
    }

    /// How many of the bytes are of the body.
    fn take(&mut self, bytes: &[u8]) -> u64 {
        if let Some(left) = &mut self.left {
            let count = bytes.len() as u64;
            *left = left.checked_sub(count).expect("no more than was said");
            return count;
        }
        let seen = self.head.len();
        self.head.extend_from_slice(bytes);
        let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
            assert!(self.head.len() < HEAD_ROOM, "the head has an end");
            return 0;
        };
        let body = bytes.get(end + 4 - seen..).unwrap_or_default().len() as u64;
        let head = String::from_utf8_lossy(self.head.get(..end).unwrap_or_default()).into_owned();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<u64>().ok())?
        });
        assert_eq!(length.unwrap_or(self.wanted), self.wanted, "{head}");
        self.left = Some(
            self.wanted
                .checked_sub(body)
                .expect("no more than was said"),
        );
        self.head.clear();
        body
    }

    fn is_whole(&self) -> bool {
        self.left == Some(0)
    }
}

/// The connections of one thread.
struct Driver {
    connections: Vec<Connection>,
    open: usize,
    next: Next,
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    poller: Poller,
    scratch: Vec<u8>,
    transfers: Vec<Transfer>,
}

impl Driver {
    fn connect(
        target: &Target,
        numbers: &[usize],
        next: Next,
        stop: Arc<AtomicBool>,
        bytes: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        let poller = Poller::new()?;
        let mut connections = Vec::new();
        for (index, &number) in numbers.iter().enumerate() {
            let transport = target.connect()?;
            transport.stream().set_nonblocking(true)?;
            poller.add(transport.stream(), index)?;
            connections.push(Connection {
                number,
                transport,
                is_open: true,
                started: Instant::now(),
                first_byte: None,
                response: Response::default(),
            });
        }
        Ok(Self {
            open: connections.len(),
            connections,
            next,
            stop,
            bytes,
            poller,
            scratch: vec![0; TLS_READ_SIZE],
            transfers: Vec::new(),
        })
    }

    fn run(&mut self) -> io::Result<()> {
        for index in 0..self.connections.len() {
            self.ask(index)?;
        }
        let mut ready = Ready::with_capacity(self.connections.len().min(256));
        while self.open > 0 && !self.stop.load(Ordering::Relaxed) {
            for index in self.poller.wait(&mut ready)? {
                self.read(index)?;
            }
        }
        Ok(())
    }

    /// After all were done.
    fn reopen(&mut self) {
        for connection in &mut self.connections {
            connection.is_open = true;
        }
        self.open = self.connections.len();
    }

    fn ask(&mut self, index: usize) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(index) else {
            return Ok(());
        };
        let Some(get) = (self.next)(connection.number) else {
            connection.is_open = false;
            self.open -= 1;
            return Ok(());
        };
        connection.response = Response::of(&get);
        connection.first_byte = None;
        connection.started = Instant::now();
        connection.transport.send(&get.request)
    }

    /// Takes what has come. The poller reports again what is left.
    fn read(&mut self, index: usize) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(index) else {
            return Ok(());
        };
        if !connection.is_open {
            return Ok(());
        }
        let body = match connection.take(&mut self.scratch) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            other => other?,
        };
        self.bytes.fetch_add(body, Ordering::Relaxed);
        if connection.response.is_whole() {
            let ended = Instant::now();
            self.transfers.push(Transfer {
                started: connection.started,
                first_byte: connection.first_byte.unwrap_or(ended),
                ended,
                size: connection.response.wanted,
            });
            self.ask(index)?;
        }
        Ok(())
    }
}

impl Connection {
    /// How many bytes of the body have come.
    fn take(&mut self, scratch: &mut [u8]) -> io::Result<u64> {
        let response = &mut self.response;
        match &mut self.transport {
            Transport::Plain(stream) => {
                let body = match response.left {
                    Some(left) => {
                        let count = usize::try_from(left).unwrap_or(usize::MAX);
                        let count = some(sys::discard(stream, count)?)? as u64;
                        response.left = Some(left - count);
                        count
                    }
                    None => {
                        let room = scratch.get_mut(..HEAD_ROOM).unwrap_or_default();
                        let count = some(stream.read(room)?)?;
                        self.first_byte.get_or_insert_with(Instant::now);
                        response.take(room.get(..count).unwrap_or_default())
                    }
                };
                Ok(body)
            }
            Transport::Tls(both) => {
                let count = some(both.sock.read(scratch)?)?;
                let mut sealed = scratch.get(..count).unwrap_or_default();
                let mut body = 0;
                while !sealed.is_empty() {
                    both.conn.read_tls(&mut sealed)?;
                    both.conn.process_new_packets().map_err(io::Error::other)?;
                    let mut reader = both.conn.reader();
                    loop {
                        let plain = match io::BufRead::fill_buf(&mut reader) {
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                            other => other?,
                        };
                        let count = some(plain.len())?;
                        self.first_byte.get_or_insert_with(Instant::now);
                        body += response.take(plain);
                        io::BufRead::consume(&mut reader, count);
                    }
                }
                Ok(body)
            }
        }
    }
}

/// Nothing, where something was due, means that the server went away.
fn some(count: usize) -> io::Result<usize> {
    match count {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => Ok(count),
    }
}

/// One connection, asked by its owner's thread.
pub struct Single(Driver);

impl Single {
    pub fn connect(target: &Target) -> io::Result<Self> {
        let nothing: Next = Arc::new(|_| None);
        Driver::connect(target, &[0], nothing, Arc::default(), Arc::default()).map(Self)
    }

    pub fn fetch(&mut self, get: &Get) -> io::Result<Transfer> {
        let wish = Mutex::new(Some(get.clone()));
        self.0.next = Arc::new(move |_| wish.lock().ok()?.take());
        self.0.reopen();
        self.0.run()?;
        self.0
            .transfers
            .pop()
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// Connections that have had one small answer and now wait.
pub fn idle_connections(target: &Target, get: &Get, count: usize) -> Vec<Transport> {
    (0..count)
        .map(|_| {
            let mut transport = target.connect().expect("a connection");
            transport.send(&get.request).expect("a request");
            let mut response = Response::of(get);
            let mut room = [0; HEAD_ROOM];
            while !response.is_whole() {
                let count = match &mut transport {
                    Transport::Plain(stream) => stream.read(&mut room),
                    Transport::Tls(both) => both.read(&mut room),
                };
                let count = count.and_then(some).expect("an answer");
                response.take(room.get(..count).unwrap_or_default());
            }
            transport
        })
        .collect()
}

/// Connections that have asked for much and take next to nothing of it.
pub fn stalled_connections(target: &Target, get: &Get, count: usize) -> Vec<Transport> {
    (0..count)
        .map(|_| {
            let mut transport = target.connect().expect("a connection");
            sys::shrink_receive_buffer(transport.stream()).expect("a smaller buffer");
            transport.send(&get.request).expect("a request");
            let mut byte = [0];
            let count = match &mut transport {
                Transport::Plain(stream) => stream.read(&mut byte),
                Transport::Tls(both) => both.read(&mut byte),
            };
            count.and_then(some).expect("the start of an answer");
            transport
        })
        .collect()
}
