//! A client that shows what is on the wire: raw requests in, heads as they came, and how a body ended.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned, pki_types::ServerName};

use super::content::Hash;

/// No answer within this time is a failed test, not a slow one.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Clone, Debug)]
pub struct Head {
    pub version: String,
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn count(&self, name: &str) -> usize {
        self.headers
            .iter()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .count()
    }

    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    pub fn content_range(&self) -> Option<ContentRange> {
        self.header("content-range").map(ContentRange::parse)
    }

    pub fn closes(&self) -> bool {
        self.header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// `bytes 0-9/100`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentRange {
    pub bytes: Range<u64>,
    pub size: u64,
}

impl ContentRange {
    fn parse(text: &str) -> Self {
        let parsed = || {
            let (bytes, size) = text.strip_prefix("bytes ")?.split_once('/')?;
            let (first, last) = bytes.split_once('-')?;
            let end = last.parse::<u64>().ok()?.checked_add(1)?;
            Some(Self {
                bytes: first.parse().ok()?..end,
                size: size.parse().ok()?,
            })
        };
        parsed().unwrap_or_else(|| panic!("not a Content-Range: {text:?}"))
    }
}

/// One of several ranges in one answer.
#[derive(Clone, Debug)]
pub struct Part {
    pub range: ContentRange,
    pub bytes: Vec<u8>,
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As its framing promised.
    Complete,
    /// With the connection, before its framing allowed it: what a runtime takes as a broken download.
    Cut,
}

#[derive(Clone, Debug)]
pub struct Response {
    pub head: Head,
    pub body: Vec<u8>,
    pub end: End,
}

impl Response {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The start of the body, fit for a failed test's message.
    pub fn excerpt(&self) -> String {
        let start = &self.body[..self.body.len().min(200)];
        start.escape_ascii().to_string()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON: {error}: {:?}", self.text()))
    }

    pub fn digest(&self) -> String {
        super::content::digest(&self.body)
    }

    /// The parts of a `multipart/byteranges` (RFC 9110 §14.6); panics if it is not exactly that.
    pub fn parts(&self) -> Vec<Part> {
        let content_type = self.header("content-type").expect("a type");
        let boundary = content_type
            .strip_prefix("multipart/byteranges;")
            .and_then(|rest| rest.trim().strip_prefix("boundary="))
            .unwrap_or_else(|| panic!("not parts: {content_type}"))
            .trim_matches('"');
        let mut parts = Vec::new();
        // The first delimiter may stand at the very start; every other one has a line of its own.
        let mut rest = self.body.strip_prefix(b"\r\n").unwrap_or(&self.body);
        loop {
            rest = rest
                .strip_prefix(format!("--{boundary}").as_bytes())
                .unwrap_or_else(|| panic!("no delimiter after {} parts", parts.len()));
            if let Some(end) = rest.strip_prefix(b"--") {
                assert!(end.is_empty() || end == b"\r\n", "more after the last part");
                return parts;
            }
            rest = rest.strip_prefix(b"\r\n").expect("a line of its own");
            let end = find(rest, b"\r\n\r\n").expect("a part has a head");
            let head = String::from_utf8(rest[..end].to_vec()).expect("a head is text");
            let range = head
                .lines()
                .find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-range")
                        .then(|| ContentRange::parse(value.trim()))
                })
                .unwrap_or_else(|| panic!("a part of nothing: {head}"));
            let (bytes, after) = rest[end + 4..]
                .split_at_checked((range.bytes.end - range.bytes.start) as usize)
                .expect("as many bytes as the part has");
            rest = after.strip_prefix(b"\r\n").expect("the end of the part");
            parts.push(Part {
                range,
                bytes: bytes.to_vec(),
            });
        }
    }

    /// The code of an OCI error body; panics if the body has another shape.
    pub fn error_code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body = self.json();
        let errors = body["errors"].as_array().expect("an errors array");
        assert_eq!(errors.len(), 1, "{body}");
        assert!(errors[0]["message"].is_string(), "{body}");
        errors[0]["code"].as_str().expect("a code").to_owned()
    }
}

/// What a pull of something large came to, without keeping it.
#[derive(Clone, Debug)]
pub struct Pulled {
    pub head: Head,
    pub size: u64,
    pub digest: String,
    pub end: End,
}

enum Framing {
    Sized(u64),
    Chunked(ChunkState),
    UntilClose,
}

enum ChunkState {
    Size,
    Data(u64),
    Done,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref(),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(into),
            Self::Tls(tls) => tls.read(into),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.write_all(bytes),
            Self::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
        }
    }
}

pub struct Connection {
    stream: Stream,
    /// Received, not yet taken: `buffer[taken..]`.
    buffer: Vec<u8>,
    taken: usize,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address)
            .unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a timeout can be set");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("a timeout can be set");
        Self {
            stream: Stream::Plain(stream),
            buffer: Vec::new(),
            taken: 0,
        }
    }

    /// The same through TLS, with the address as the server's name. The error is the handshake's.
    pub fn open_tls(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let plain = Self::open(address);
        let Stream::Plain(mut tcp) = plain.stream else {
            unreachable!("it was opened without TLS");
        };
        let name = ServerName::from(address.ip());
        let mut session =
            ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut tcp)?;
        }
        Ok(Self {
            stream: Stream::Tls(Box::new(StreamOwned::new(session, tcp))),
            ..plain
        })
    }

    /// The certificate that the server showed.
    pub fn certificate(&self) -> Vec<u8> {
        let Stream::Tls(tls) = &self.stream else {
            panic!("a connection without TLS");
        };
        let shown = tls.conn.peer_certificates().expect("a certificate");
        shown[0].to_vec()
    }

    pub fn alpn(&self) -> Option<&[u8]> {
        match &self.stream {
            Stream::Plain(_) => None,
            Stream::Tls(tls) => tls.conn.alpn_protocol(),
        }
    }

    pub fn is_resumed(&self) -> bool {
        matches!(&self.stream, Stream::Tls(tls) if tls.conn.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    /// Sends bytes as they are. The peer may have closed already, having seen enough: what it said is read later.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    pub fn finish_sending(&self) {
        let _ = self.stream.tcp().shutdown(Shutdown::Write);
    }

    pub fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            let address = self.stream.tcp().peer_addr().expect("a connected socket");
            head.push_str(&format!("Host: {address}\r\n"));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.send(head);
        self.send(body);
    }

    /// The next head, or `None` if the peer closed before it began.
    pub fn head(&mut self) -> Option<Head> {
        let end = loop {
            if let Some(end) = find(&self.buffer[self.taken..], b"\r\n\r\n") {
                break self.taken + end;
            }
            match self.receive() {
                Ok(0) if self.taken == self.buffer.len() => return None,
                Ok(0) => panic!(
                    "closed within a head: {:?}",
                    String::from_utf8_lossy(&self.buffer[self.taken..])
                ),
                Ok(_) => {}
                Err(error) if is_reset(&error) => return None,
                Err(error) => panic!("no head: {error}"),
            }
        };
        let text =
            String::from_utf8(self.buffer[self.taken..end].to_vec()).expect("a head is text");
        self.taken = end + 4;
        let mut lines = text.split("\r\n");
        let status_line = lines.next().expect("a first line");
        let mut parts = status_line.splitn(3, ' ');
        let version = parts.next().unwrap_or_default().to_owned();
        let status = parts
            .next()
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("not a status line: {status_line:?}"));
        let headers = lines
            .map(|line| {
                let (name, value) = line
                    .split_once(':')
                    .unwrap_or_else(|| panic!("not a header: {line:?}"));
                (name.to_owned(), value.trim().to_owned())
            })
            .collect();
        Some(Head {
            version,
            status,
            headers,
        })
    }

    /// The body that follows `head`, the answer to a request with `method`.
    pub fn body<'a>(&'a mut self, method: &str, head: &Head) -> Body<'a> {
        let framing = if method == "HEAD" || matches!(head.status, 100..=199 | 204 | 304) {
            Framing::Sized(0)
        } else if head.header("transfer-encoding").is_some() {
            Framing::Chunked(ChunkState::Size)
        } else if let Some(length) = head.content_length() {
            Framing::Sized(length)
        } else {
            Framing::UntilClose
        };
        Body {
            connection: self,
            framing,
            end: None,
        }
    }

    pub fn response(&mut self, method: &str) -> Response {
        let head = self.head().expect("an answer");
        let mut body = Vec::new();
        let mut reader = self.body(method, &head);
        reader.read_to_end(&mut body).expect("a readable body");
        let end = reader.end();
        Response { head, body, end }
    }

    /// Whether the peer ends the connection here, having sent nothing more.
    pub fn is_closed_by_peer(&mut self) -> bool {
        if self.taken < self.buffer.len() {
            return false;
        }
        match self.receive() {
            Ok(count) => count == 0,
            Err(error) => is_reset(&error),
        }
    }

    /// Everything up to the end of the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        while matches!(self.receive(), Ok(1..)) {}
        self.buffer[self.taken..].to_vec()
    }

    fn receive(&mut self) -> io::Result<usize> {
        if self.taken == self.buffer.len() {
            self.buffer.clear();
            self.taken = 0;
        }
        let mut piece = [0; 16 * 1024];
        let count = self.stream.read(&mut piece)?;
        self.buffer.extend_from_slice(&piece[..count]);
        Ok(count)
    }

    /// Body bytes: what is buffered first, then straight from the socket.
    fn take(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let buffered = &self.buffer[self.taken..];
        if buffered.is_empty() {
            return self.stream.read(into);
        }
        let count = buffered.len().min(into.len());
        into[..count].copy_from_slice(&buffered[..count]);
        self.taken += count;
        Ok(count)
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.buffer[self.taken..], b"\r\n") {
                let line = self.buffer[self.taken..self.taken + end].to_vec();
                self.taken += end + 2;
                return Some(String::from_utf8(line).expect("a chunk's size is text"));
            }
            if !matches!(self.receive(), Ok(1..)) {
                return None;
            }
        }
    }
}

pub struct Body<'a> {
    connection: &'a mut Connection,
    framing: Framing,
    end: Option<End>,
}

impl Body<'_> {
    /// How it ended; panics before the end.
    pub fn end(&self) -> End {
        self.end.expect("the body was read to its end")
    }

    pub fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.read_exact(&mut bytes)
            .unwrap_or_else(|error| panic!("the body ended within {count} bytes: {error}"));
        bytes
    }
}

impl Read for Body<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.end.is_some() || into.is_empty() {
            return Ok(0);
        }
        let limit = match &mut self.framing {
            Framing::UntilClose => u64::MAX,
            Framing::Sized(left) => *left,
            Framing::Chunked(state) => {
                if matches!(state, ChunkState::Size) {
                    let size = self.connection.line().and_then(|line| {
                        let digits = line.split(';').next().unwrap_or_default().trim();
                        u64::from_str_radix(digits, 16).ok()
                    });
                    *state = match size {
                        Some(0) => {
                            while self.connection.line().is_some_and(|line| !line.is_empty()) {}
                            ChunkState::Done
                        }
                        Some(size) => ChunkState::Data(size),
                        None => {
                            self.end = Some(End::Cut);
                            return Ok(0);
                        }
                    };
                }
                match state {
                    ChunkState::Data(left) => *left,
                    ChunkState::Size | ChunkState::Done => 0,
                }
            }
        };
        if limit == 0 {
            self.end = Some(End::Complete);
            return Ok(0);
        }
        let wanted = limit.min(into.len() as u64) as usize;
        let count = match self.connection.take(&mut into[..wanted]) {
            Ok(count) => count,
            Err(error) if is_reset(&error) => 0,
            Err(error) => return Err(error),
        };
        if count == 0 {
            self.end = Some(match self.framing {
                Framing::UntilClose => End::Complete,
                Framing::Sized(_) | Framing::Chunked(_) => End::Cut,
            });
            return Ok(0);
        }
        match &mut self.framing {
            Framing::UntilClose => {}
            Framing::Sized(left) => *left -= count as u64,
            Framing::Chunked(state) => {
                let left = limit - count as u64;
                *state = if left == 0 {
                    self.connection.line();
                    ChunkState::Size
                } else {
                    ChunkState::Data(left)
                };
            }
        }
        Ok(count)
    }
}

pub fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let mut connection = Connection::open(address);
    connection.request(method, target, headers, body);
    connection.response(method)
}

pub fn get(address: SocketAddr, target: &str) -> Response {
    request(address, "GET", target, &[], b"")
}

/// A GET whose body is hashed, not kept.
pub fn pull(address: SocketAddr, target: &str) -> Pulled {
    let mut connection = Connection::open(address);
    connection.request("GET", target, &[], b"");
    let head = connection.head().expect("an answer");
    let mut hash = Hash::new();
    let mut body = connection.body("GET", &head);
    let mut piece = vec![0; 256 * 1024];
    let mut size = 0;
    loop {
        let count = body.read(&mut piece).expect("a readable body");
        if count == 0 {
            break;
        }
        hash.write_all(&piece[..count]).expect("hashing succeeds");
        size += count as u64;
    }
    let end = body.end();
    Pulled {
        head,
        size,
        digest: hash.digest(),
        end,
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
            // A TLS session that ended without a word.
            | io::ErrorKind::UnexpectedEof
    )
}
