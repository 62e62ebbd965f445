//! A small HTTP/1.1 server on threads, for the servers that the tests play themselves.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

/// No connection of a test outlives this.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// As it came, with its query.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// All lines of one name, joined as RFC 9110 §5.3 allows.
    pub fn joined(&self, name: &str) -> String {
        let values: Vec<&str> = self
            .headers
            .iter()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect();
        values.join(", ")
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The first value of a query parameter, decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        self.queries(name).into_iter().next()
    }

    /// Every value of a query parameter, decoded.
    pub fn queries(&self, name: &str) -> Vec<String> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        fields(query, name).collect()
    }

    /// The first value of a field of a form, decoded.
    pub fn form(&self, name: &str) -> Option<String> {
        fields(str::from_utf8(&self.body).ok()?, name).next()
    }

    /// User and password, if the request has Basic credentials.
    pub fn basic(&self) -> Option<(String, String)> {
        use base64::Engine as _;
        let (scheme, encoded) = self.header("authorization")?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(encoded.trim())
            .ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    }

    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    }
}

fn fields(text: &str, name: &str) -> impl Iterator<Item = String> {
    text.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| percent_decode(value))
    })
}

pub fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let digits = rest.get(..2).and_then(|digits| str::from_utf8(digits).ok());
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                rest = rest.get(2..).unwrap_or_default();
                byte.unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Keep,
    Close,
}

pub struct Server {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// `answer` runs on one thread for each connection. An error ends the connection: clients leave when they like.
    pub fn start_on(
        host: &str,
        answer: impl Fn(&Request, &mut TcpStream) -> io::Result<Next> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((host, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let answer = Arc::clone(&answer);
                thread::spawn(move || {
                    let _ = serve(stream, &*answer);
                });
            }
        });
        Self { address, stop }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &dyn Fn(&Request, &mut TcpStream) -> io::Result<Next>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read_request(&mut reader)? {
        if answer(&request, &mut stream)? == Next::Close {
            break;
        }
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let Some((_, mut request)) = read_head(reader)? else {
        return Ok(None);
    };
    let length: u64 = request
        .header("content-length")
        .and_then(|length| length.parse().ok())
        .unwrap_or_default();
    reader.take(length).read_to_end(&mut request.body)?;
    Ok(Some(request))
}

/// As it came, and read.
pub fn read_head(reader: &mut impl BufRead) -> io::Result<Option<(Vec<u8>, Request)>> {
    let mut raw = String::new();
    if reader.read_line(&mut raw)? == 0 {
        return Ok(None);
    }
    let mut parts = raw.trim_end().split(' ');
    let (Some(method), Some(target)) = (parts.next(), parts.next()) else {
        return Ok(None);
    };
    let mut request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        raw.push_str(&line);
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            request
                .headers
                .push((name.to_owned(), value.trim().to_owned()));
        }
    }
    Ok(Some((raw.into_bytes(), request)))
}

/// An answer with a body in memory; without the body if it answers HEAD.
pub fn respond(
    request: &Request,
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Next> {
    let mut bytes = head(status, headers, Some(body.len() as u64));
    if request.method != "HEAD" {
        bytes.extend_from_slice(body);
    }
    stream.write_all(&bytes)?;
    Ok(Next::Keep)
}

/// The same with a body of JSON.
pub fn respond_json(
    request: &Request,
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&str, &str)],
    body: &Value,
) -> io::Result<Next> {
    let mut all = vec![("Content-Type", "application/json")];
    all.extend_from_slice(headers);
    respond(request, stream, status, &all, body.to_string().as_bytes())
}

/// A response's head; without a length its body ends with the connection or says how long it is itself.
pub fn head(status: u16, headers: &[(&str, &str)], length: Option<u64>) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} Answer\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(length) = length {
        text.push_str(&format!("Content-Length: {length}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}
