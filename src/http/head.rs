//! Request and response heads, on httparse.
//!
//! httparse reads the grammar; what it leaves open is decided here: bare line feeds, targets, hosts,
//! framing. Parsing starts at the beginning each time, so a caller that receives a head in many pieces
//! asks `head_end` first, which goes on where it stopped.

use std::{mem::MaybeUninit, sync::Arc};

use super::{
    BodyLength, Headers, Method, Target, Version, headers::trim_blanks, url::split_authority,
};

/// What upstreams send (signed redirects, security policies) fits easily, and a request with the
/// largest login tokens (12 KiB) too. A guess with room.
pub const MAX_HEAD_SIZE: usize = 64 * 1024;

/// Real heads have 5 to 40 field lines, balancers in between add a dozen. A guess with room; the table
/// costs 4 KiB of stack.
pub const MAX_HEADERS: usize = 128;

/// RFC 9112 §2.2 asks for one at least: old clients sent one after a body.
const MAX_LEADING_EMPTY_LINES: usize = 2;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeadError {
    #[error("the head is larger than {MAX_HEAD_SIZE} bytes")]
    TooLarge,
    #[error("the head has more than {MAX_HEADERS} header fields")]
    TooManyHeaders,
    #[error("only HTTP/1.0 and HTTP/1.1 are spoken here")]
    UnsupportedVersion,
    #[error("only the expectation 100-continue can be met")]
    ExpectationFailed,
    #[error("this is a TLS handshake, but plain HTTP is spoken here")]
    TlsHello,
    #[error("malformed head: {reason}")]
    Bad { reason: &'static str },
}

impl HeadError {
    /// The answer to a request with this fault. The connection ends after it: where the next request
    /// would begin is unknown.
    pub const fn status(&self) -> u16 {
        match self {
            Self::TooLarge | Self::TooManyHeaders => 431,
            Self::UnsupportedVersion => 505,
            Self::ExpectationFailed => 417,
            Self::TlsHello | Self::Bad { .. } => 400,
        }
    }
}

#[derive(Clone, Debug)]
pub struct RequestHead {
    pub method: Method,
    pub target: Target,
    pub version: Version,
    pub headers: Headers,
    pub body: BodyLength,
    /// The client will send another request on this connection.
    pub keep_alive: bool,
    /// The client waits for a 100 before it sends the body.
    pub expects_continue: bool,
}

impl RequestHead {
    pub fn path(&self) -> &str {
        self.target.path()
    }

    pub fn query(&self) -> Option<&str> {
        self.target.query()
    }

    /// Host and perhaps port under which the client knows us; empty if an HTTP/1.0 client does not say.
    /// A target's own authority wins over `Host` (RFC 9112 §3.2.2).
    pub fn host(&self) -> &str {
        self.target
            .authority()
            .or_else(|| self.headers.get("host"))
            .unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub status: u16,
    pub version: Version,
    pub headers: Headers,
    pub body: BodyLength,
    /// What `Content-Length` says; to HEAD that is the size of a body that does not follow.
    pub content_length: Option<u64>,
    /// The connection may serve another request after this response's body.
    pub keep_alive: bool,
}

/// `None`: more bytes are needed. The number is the size of the head, with the empty lines before it.
pub fn parse_request(buffer: &[u8]) -> Result<Option<(RequestHead, usize)>, HeadError> {
    if looks_like_tls(buffer) {
        return Err(HeadError::TlsHello);
    }
    let skipped = leading_empty_lines(buffer);
    let Some(head) = complete_head(buffer.get(skipped..).unwrap_or_default())? else {
        return Ok(None);
    };
    let text = readable(head);
    let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let outcome = parsed.parse_with_uninit_headers(text.as_bytes(), &mut fields);
    expect_whole(outcome, &text)?;
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(bad("incomplete request line"));
    };

    let method = Method::parse(method);
    let version = version(minor);
    let target = Target::parse(target, &text, method)?;
    let headers = Headers::new(Arc::clone(&text), parsed.headers);
    expect_one_host(&headers, version, &target)?;
    let body = BodyLength::of_request(&headers, version)?;
    let request = RequestHead {
        method,
        target,
        version,
        keep_alive: keeps_alive(&headers, version),
        expects_continue: expects_continue(&headers, version)? && body != BodyLength::Empty,
        headers,
        body,
    };
    Ok(Some((request, skipped + head.len())))
}

/// `None`: more bytes are needed. The number is the size of the head.
///
/// 1xx are heads of their own, without body; the caller skips them. Only 101 is refused: nobody here asks
/// for another protocol.
pub fn parse_response(
    buffer: &[u8],
    request_method: Method,
) -> Result<Option<(ResponseHead, usize)>, HeadError> {
    let Some(head) = complete_head(buffer)? else {
        return Ok(None);
    };
    let text = readable(head);
    let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let outcome = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut parsed,
        text.as_bytes(),
        &mut fields,
    );
    expect_whole(outcome, &text)?;
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(bad("incomplete status line"));
    };
    match status {
        ..=99 => return Err(bad("a status below 100")),
        101 => return Err(bad("another protocol, unasked")),
        _ => {}
    }

    let version = version(minor);
    let headers = Headers::new(Arc::clone(&text), parsed.headers);
    let (body, content_length) =
        BodyLength::of_response(&headers, version, status, request_method)?;
    let response = ResponseHead {
        status,
        version,
        keep_alive: keeps_alive(&headers, version) && body != BodyLength::UntilClose,
        headers,
        body,
        content_length,
    };
    Ok(Some((response, head.len())))
}

/// The first bytes of a TLS record that opens a handshake.
pub fn looks_like_tls(buffer: &[u8]) -> bool {
    buffer.starts_with(&[0x16, 0x03])
}

/// Where the head in `buffer` ends, if it is there whole: time to parse. Bytes before `from` were searched
/// by an earlier call. A bare line feed ends it too, since no head goes on after that; parsing then says so.
///
/// After empty lines before a request the parser may still want more; then search on from the end of
/// what was there.
pub fn head_end(buffer: &[u8], from: usize) -> Option<usize> {
    let mut searched = from;
    loop {
        let rest = buffer.get(searched..)?;
        let end_of_line = searched + memchr::memchr(b'\n', rest)?;
        let before = buffer.get(..end_of_line)?;
        searched = end_of_line + 1;
        if before.ends_with(b"\r\n\r") || !before.ends_with(b"\r") {
            return Some(searched);
        }
    }
}

fn leading_empty_lines(buffer: &[u8]) -> usize {
    let lines = buffer
        .chunks_exact(2)
        .take(MAX_LEADING_EMPTY_LINES)
        .take_while(|pair| *pair == b"\r\n");
    2 * lines.count()
}

fn complete_head(buffer: &[u8]) -> Result<Option<&[u8]>, HeadError> {
    let end = head_end(buffer, 0);
    if end.unwrap_or(buffer.len()) > MAX_HEAD_SIZE {
        return Err(HeadError::TooLarge);
    }
    let Some(head) = end.and_then(|end| buffer.get(..end)) else {
        return Ok(None);
    };
    if !head.ends_with(b"\r\n\r\n") {
        return Err(bad("a bare line feed"));
    }
    if head.starts_with(b"\r") {
        return Err(bad("an empty line before the first"));
    }
    Ok(Some(head))
}

/// The copy that all parts of the head point into.
fn readable(head: &[u8]) -> Arc<str> {
    match str::from_utf8(head) {
        Ok(text) => text.into(),
        Err(_) => String::from_utf8_lossy(head).into(),
    }
}

fn expect_whole(outcome: httparse::Result<usize>, text: &str) -> Result<(), HeadError> {
    match outcome {
        Ok(httparse::Status::Complete(size)) if size == text.len() => Ok(()),
        Ok(_) => Err(bad("it ends early")),
        Err(httparse::Error::TooManyHeaders) => Err(HeadError::TooManyHeaders),
        Err(httparse::Error::Version) if names_a_version(text) => {
            Err(HeadError::UnsupportedVersion)
        }
        Err(httparse::Error::Version) => Err(bad("no HTTP version")),
        Err(httparse::Error::HeaderName) => Err(bad("a malformed field name")),
        Err(httparse::Error::HeaderValue) => Err(bad("a malformed field value")),
        Err(httparse::Error::NewLine) => Err(bad("a bare carriage return")),
        Err(httparse::Error::Status) => Err(bad("a malformed status")),
        Err(httparse::Error::Token) => Err(bad("a malformed first line")),
    }
}

/// First word of a status line, third and last of a request line.
fn names_a_version(text: &str) -> bool {
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    let is_version = |word: &str| word.starts_with("HTTP/");
    words.next().is_some_and(is_version)
        || (words.nth(1).is_some_and(is_version) && words.next().is_none())
}

const fn version(minor: u8) -> Version {
    match minor {
        0 => Version::Http10,
        _ => Version::Http11,
    }
}

/// RFC 9112 §3.2. An empty `Host` is taken only where the target brings its own authority.
fn expect_one_host(headers: &Headers, version: Version, target: &Target) -> Result<(), HeadError> {
    let mut hosts = headers.all("host");
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(bad("repeated Host")),
        (None, _) if version == Version::Http11 => Err(bad("no Host")),
        (None, _) => Ok(()),
        (Some(""), _) if target.authority().is_some() => Ok(()),
        (Some(host), _) if split_authority(host).is_none() => Err(bad("malformed Host")),
        (Some(_), _) => Ok(()),
    }
}

fn keeps_alive(headers: &Headers, version: Version) -> bool {
    let is_kept_by_default = version == Version::Http11;
    !headers.has_token("connection", "close")
        && (is_kept_by_default || headers.has_token("connection", "keep-alive"))
}

fn expects_continue(headers: &Headers, version: Version) -> Result<bool, HeadError> {
    // An HTTP/1.0 client would take the 100 for the answer (RFC 9110 §10.1.1).
    if version == Version::Http10 {
        return Ok(false);
    }
    let mut expectations = headers.all("expect").flat_map(|list| list.split(','));
    let Some(first) = expectations.next() else {
        return Ok(false);
    };
    let is_continue = |expectation| trim_blanks(expectation).eq_ignore_ascii_case("100-continue");
    if is_continue(first) && expectations.all(is_continue) {
        Ok(true)
    } else {
        Err(HeadError::ExpectationFailed)
    }
}

const fn bad(reason: &'static str) -> HeadError {
    HeadError::Bad { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "GET /v2/ HTTP/1.1\r\nHost: a:5000\r\nUser-Agent: containerd/2.0\r\n\r\n";

    #[test]
    fn requests_are_read() {
        for (head, method, version, keep_alive, expects_continue) in [
            (REQUEST, Method::Get, Version::Http11, true, false),
            (
                "HEAD / HTTP/1.0\r\n\r\n",
                Method::Head,
                Version::Http10,
                false,
                false,
            ),
            (
                "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
                Method::Get,
                Version::Http10,
                true,
                false,
            ),
            (
                "GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
                Method::Get,
                Version::Http10,
                false,
                false,
            ),
            (
                "PUT / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n",
                Method::Put,
                Version::Http11,
                false,
                true,
            ),
            (
                "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
                Method::Put,
                Version::Http11,
                true,
                false,
            ),
            (
                "PUT / HTTP/1.0\r\nExpect: anything\r\nContent-Length: 1\r\n\r\n",
                Method::Put,
                Version::Http10,
                false,
                false,
            ),
            (
                "get / HTTP/1.1\r\nHost: [::1]\r\n\r\n",
                Method::Other,
                Version::Http11,
                true,
                false,
            ),
            (
                "GET http://a/ HTTP/1.1\r\nHost:\r\n\r\n",
                Method::Get,
                Version::Http11,
                true,
                false,
            ),
        ] {
            match parse_request(head.as_bytes()) {
                Ok(Some((parsed, size))) => {
                    assert_eq!(parsed.method, method, "{head}");
                    assert_eq!(parsed.version, version, "{head}");
                    assert_eq!(parsed.keep_alive, keep_alive, "{head}");
                    assert_eq!(parsed.expects_continue, expects_continue, "{head}");
                    assert_eq!(size, head.len(), "{head}");
                }
                other => panic!("{head}: {other:?}"),
            }
        }
    }

    #[test]
    fn requests_that_can_be_misread_are_refused() {
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(MAX_HEAD_SIZE));
        let long_whole = format!("{long}Host: a\r\n\r\n");
        let many = format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "a:b\r\n".repeat(MAX_HEADERS)
        );
        for (head, status) in [
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: caf\u{e9}\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\nHost: a b\r\n\r\n", 400),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\n\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
            ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\rb: c\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nb: c\0d\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nb: c\u{8}d\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nb: c\u{7f}d\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nb: c\r\n d\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nb\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nb\0: c\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nb\u{e9}: c\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("GET / http/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            ("GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue, tea\r\n\r\n",
                417,
            ),
            ("\u{16}\u{3}\u{1}\u{2}", 400),
            (&long, 431),
            (&long_whole, 431),
            (&many, 431),
            ("\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ] {
            match parse_request(head.as_bytes()) {
                Err(error) => assert_eq!(error.status(), status, "{head:?}: {error}"),
                Ok(_) => panic!("{head:?} was taken"),
            }
        }
    }

    #[test]
    fn the_largest_heads_are_taken() {
        let most = format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "a:b\r\n".repeat(MAX_HEADERS - 1)
        );
        let frame = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".len();
        let longest = format!(
            "GET /{} HTTP/1.1\r\nHost: a\r\n\r\n",
            "a".repeat(MAX_HEAD_SIZE - frame)
        );
        for head in [most, longest] {
            assert!(
                matches!(parse_request(head.as_bytes()), Ok(Some((_, size))) if size == head.len())
            );
        }
    }

    #[test]
    fn where_a_head_is_cut_changes_nothing() {
        for (head, before) in [
            (REQUEST.to_owned(), 0),
            (format!("\r\n{REQUEST}"), 2),
            (format!("\r\n\r\n{REQUEST}"), 4),
        ] {
            let and_more = format!("{head}GET /next HTTP/1.1\r\n");
            for end in 0..and_more.len() {
                let part = and_more.as_bytes().get(..end).unwrap_or_default();
                match parse_request(part) {
                    Ok(None) => assert!(end < head.len(), "{end}"),
                    Ok(Some((_, size))) => assert_eq!(size, REQUEST.len() + before, "{end}"),
                    Err(error) => panic!("{end}: {error}"),
                }
            }
        }
    }

    #[test]
    fn the_end_of_a_head_is_found_where_the_search_went_on() {
        for (text, end) in [
            ("", None),
            ("GET / HTTP/1.1\r\nA: b\r\n\r", None),
            ("GET / HTTP/1.1\r\nA: b\r\n\r\nxyz\r\n\r\n", Some(24)),
            ("GET / HTTP/1.1\nA: b", Some(15)),
            ("\n", Some(1)),
            ("\r\nGET", None),
            ("\r\n\r\nGET", Some(4)),
        ] {
            let bytes = text.as_bytes();
            assert_eq!(head_end(bytes, 0), end, "{text:?}");
            let mut found = None;
            for size in 0..=bytes.len() {
                let part = bytes.get(..size).unwrap_or_default();
                found = found.or_else(|| head_end(part, size.saturating_sub(1)));
            }
            assert_eq!(found, end, "{text:?} byte by byte");
        }
        assert_eq!(head_end(b"abc", 7), None);
    }

    #[test]
    fn responses_are_read() {
        for (head, status, version, keep_alive) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n",
                200,
                Version::Http11,
                true,
            ),
            (
                "HTTP/1.1 200\r\nContent-Length: 1\r\n\r\n",
                200,
                Version::Http11,
                true,
            ),
            (
                "HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\n",
                200,
                Version::Http11,
                true,
            ),
            (
                "HTTP/1.1 404 Non trouv\u{e9}\r\nContent-Length: 1\r\n\r\n",
                404,
                Version::Http11,
                true,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", 200, Version::Http11, false),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n",
                200,
                Version::Http11,
                false,
            ),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n",
                200,
                Version::Http10,
                false,
            ),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n",
                200,
                Version::Http10,
                true,
            ),
            ("HTTP/1.1 100 Continue\r\n\r\n", 100, Version::Http11, true),
            (
                "HTTP/1.1 599 x\r\nContent-Length: 0\r\n\r\n",
                599,
                Version::Http11,
                true,
            ),
        ] {
            match parse_response(head.as_bytes(), Method::Get) {
                Ok(Some((parsed, size))) => {
                    assert_eq!(parsed.status, status, "{head}");
                    assert_eq!(parsed.version, version, "{head}");
                    assert_eq!(parsed.keep_alive, keep_alive, "{head}");
                    assert_eq!(size, head.len(), "{head}");
                }
                other => panic!("{head}: {other:?}"),
            }
        }
    }

    #[test]
    fn responses_that_can_be_misread_are_refused() {
        let long = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(MAX_HEAD_SIZE));
        let many = format!(
            "HTTP/1.1 200 OK\r\n{}\r\n",
            "a:b\r\n".repeat(MAX_HEADERS + 1)
        );
        for head in [
            "HTTP/1.1 200 OK\n\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 099 x\r\n\r\n",
            "HTTP/1.1 000 x\r\n\r\n",
            "HTTP/1.1 1000 x\r\n\r\n",
            "HTTP/1.1 20 x\r\n\r\n",
            "HTTP/1.1 abc x\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "http/1.1 200 OK\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
            "HTTP/1.1 200 O\rK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n",
            &long,
            &many,
        ] {
            match parse_response(head.as_bytes(), Method::Get) {
                Err(_) => {}
                Ok(_) => panic!("{head:?} was taken"),
            }
        }
    }
}
