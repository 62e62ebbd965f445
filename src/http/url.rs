//! URLs of registries, realms and redirects (RFC 3986), `http` and `https` only.
//!
//! What follows the authority is kept byte-exact: storage services sign it as they wrote it.

use std::{fmt, net::Ipv6Addr, str::FromStr};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Http, Self::Https]
            .into_iter()
            .find(|scheme| text.eq_ignore_ascii_case(scheme.as_str()))
    }
}

/// Whom a connection talks to, and whom credentials are for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    pub scheme: Scheme,
    /// Lower-case; an IPv6 address keeps its brackets.
    pub host: String,
    pub port: u16,
}

impl Origin {
    /// As in `Host`: with the port only if it is not the scheme's own.
    pub fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UrlError {
    #[error("the URL starts with neither http:// nor https://")]
    Scheme,
    #[error("the URL has no host, or a malformed one")]
    Host,
    #[error("the URL carries a user name or password")]
    UserInfo,
    #[error("the URL has a byte that must be percent-encoded")]
    Byte,
}

/// An absolute URL without fragment.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    pub origin: Origin,
    /// Path and query, byte-exact, at least `/`.
    pub target: String,
}

impl Url {
    /// Without the query.
    pub fn path(&self) -> &str {
        split_query(&self.target).0
    }

    /// The URL that `location` means in an answer to a request for this one (RFC 3986 §5.2), without its
    /// fragment. Dot segments are resolved only where the location is a relative path.
    pub fn join(&self, location: &str) -> Result<Self, UrlError> {
        expect_url_bytes(location)?;
        let location = without_fragment(location);
        if has_scheme(location) {
            return location.parse();
        }
        if location.starts_with("//") {
            return format!("{}:{location}", self.origin.scheme.as_str()).parse();
        }
        let (path, query) = split_query(location);
        let target = if path.starts_with('/') {
            location.to_owned()
        } else if !path.is_empty() {
            let folder = self
                .path()
                .rsplit_once('/')
                .map_or("", |(folder, _)| folder);
            without_dot_segments(&format!("{folder}/{path}")) + query
        } else if !query.is_empty() {
            format!("{}{query}", self.path())
        } else {
            self.target.clone()
        };
        Ok(Self {
            origin: self.origin.clone(),
            target,
        })
    }
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        expect_url_bytes(text)?;
        let (scheme, rest) = without_fragment(text)
            .split_once("://")
            .ok_or(UrlError::Scheme)?;
        let scheme = Scheme::parse(scheme).ok_or(UrlError::Scheme)?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at_checked(end).ok_or(UrlError::Host)?;
        if authority.contains('@') {
            return Err(UrlError::UserInfo);
        }
        let (host, port) = split_authority(authority).ok_or(UrlError::Host)?;
        Ok(Self {
            origin: Origin {
                scheme,
                host: host.to_ascii_lowercase(),
                port: port.unwrap_or(scheme.default_port()),
            },
            target: match target.starts_with('/') {
                true => target.to_owned(),
                false => format!("/{target}"),
            },
        })
    }
}

/// Whole. The query of a redirect may be a signature: not for logs, which get the `Debug`.
impl fmt::Display for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", self.origin, self.target)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = match split_query(&self.target).1 {
            "" => "",
            _ => "?***",
        };
        write!(formatter, "{}{}{hidden}", self.origin, self.path())
    }
}

/// Host and port of `host[:port]`; nothing if it is malformed. Strict: letters, digits, `.`, `-` and `_`, or
/// an IPv6 address in brackets; no user, no empty port.
pub(super) fn split_authority(text: &str) -> Option<(&str, Option<u16>)> {
    let colon = memchr::memrchr(b':', text.as_bytes());
    let (host, port) = match colon.and_then(|colon| text.split_at_checked(colon)) {
        Some((host, port)) if !port.ends_with(']') => {
            (host, Some(parse_port(port.strip_prefix(':')?)?))
        }
        _ => (text, None),
    };
    let is_host = match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        }
    };
    is_host.then_some((host, port))
}

fn parse_port(text: &str) -> Option<u16> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port: u16 = is_number.then_some(text)?.parse().ok()?;
    (port != 0).then_some(port)
}

/// A target goes into a request line as it is, so nothing may end it or split it there.
fn expect_url_bytes(text: &str) -> Result<(), UrlError> {
    match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => Err(UrlError::Byte),
    }
}

fn without_fragment(text: &str) -> &str {
    text.split_once('#').map_or(text, |(before, _)| before)
}

/// The query keeps its question mark.
fn split_query(target: &str) -> (&str, &str) {
    let end = target.find('?').unwrap_or(target.len());
    target.split_at_checked(end).unwrap_or((target, ""))
}

fn has_scheme(location: &str) -> bool {
    location.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
    })
}

/// RFC 3986 §5.2.4, for a path that starts with `/`.
fn without_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

/// For a value in a query: everything but the unreserved characters of RFC 3986 §2.3 is encoded.
pub fn percent_encode_query(text: &str) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    let digit = |value: u8| DIGITS.get(usize::from(value & 15)).copied().unwrap_or('0');
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.extend(['%', digit(byte >> 4), digit(byte)]);
        }
    }
    encoded
}

/// Nothing if an escape is malformed or the result is not UTF-8. A plus sign stays one.
pub fn percent_decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex_value(bytes.next()?)? << 4 | hex_value(bytes.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_come_apart_and_print_whole() {
        for (text, origin, authority, target) in [
            ("https://quay.io", "https://quay.io", "quay.io", "/"),
            (
                "HTTPS://Quay.IO:443/V2/",
                "https://quay.io",
                "quay.io",
                "/V2/",
            ),
            ("http://h:443/", "http://h:443", "h:443", "/"),
            ("http://h:80?a=b", "http://h", "h", "/?a=b"),
            ("http://h?a/b", "http://h", "h", "/?a/b"),
            (
                "http://[2001:DB8::1]:5000/",
                "http://[2001:db8::1]:5000",
                "[2001:db8::1]:5000",
                "/",
            ),
            ("http://[::1]", "http://[::1]", "[::1]", "/"),
            (
                "https://h/a/../b%2F+~?X=%2b#part",
                "https://h",
                "h",
                "/a/../b%2F+~?X=%2b",
            ),
            ("https://h#part", "https://h", "h", "/"),
            (
                "https://h/a@b:c?d=http://x",
                "https://h",
                "h",
                "/a@b:c?d=http://x",
            ),
            (
                "https://my_bucket.s3.amazonaws.com./k",
                "https://my_bucket.s3.amazonaws.com.",
                "my_bucket.s3.amazonaws.com.",
                "/k",
            ),
        ] {
            let url: Url = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(url.origin.to_string(), origin, "{text}");
            assert_eq!(url.origin.authority(), authority, "{text}");
            assert_eq!(url.target, target, "{text}");
            assert_eq!(url.to_string().parse(), Ok(url), "{text}");
        }
    }

    #[test]
    fn what_is_no_url_of_ours_is_refused() {
        for (text, error) in [
            ("", UrlError::Scheme),
            ("/a", UrlError::Scheme),
            ("//h/a", UrlError::Scheme),
            ("h/a", UrlError::Scheme),
            ("ftp://h/", UrlError::Scheme),
            ("file:///etc/passwd", UrlError::Scheme),
            ("http:/h", UrlError::Scheme),
            ("http:h", UrlError::Scheme),
            ("xhttp://h", UrlError::Scheme),
            ("http://", UrlError::Host),
            ("http:///a", UrlError::Host),
            ("http://:80/", UrlError::Host),
            ("http://h:/", UrlError::Host),
            ("http://h:0/", UrlError::Host),
            ("http://h:65536/", UrlError::Host),
            ("http://h:+80/", UrlError::Host),
            ("http://h:80:80/", UrlError::Host),
            ("http://::1/", UrlError::Host),
            ("http://[::1/", UrlError::Host),
            ("http://[::1]x/", UrlError::Host),
            ("http://[fe80::1%25eth0]/", UrlError::Host),
            ("http://h%2eio/", UrlError::Host),
            ("http://h,i/", UrlError::Host),
            ("http://h\\i/", UrlError::Host),
            ("http://u@h/", UrlError::UserInfo),
            ("http://u:p@h/", UrlError::UserInfo),
            ("http://h\\@i/", UrlError::UserInfo),
            ("http://h/a b", UrlError::Byte),
            (" http://h/", UrlError::Byte),
            ("http://h/\r\nHost: i", UrlError::Byte),
            ("http://h/\0", UrlError::Byte),
            ("http://h/\u{7f}", UrlError::Byte),
            ("http://h/caf\u{e9}", UrlError::Byte),
            ("http://caf\u{e9}/", UrlError::Byte),
        ] {
            assert_eq!(text.parse::<Url>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn locations_resolve_as_rfc_3986_resolves_them() {
        let base: Url = "http://a:81/b/c/d;p?q"
            .parse()
            .unwrap_or_else(|error| panic!("{error}"));
        for (location, joined) in [
            ("https://x/y?z#f", "https://x/y?z"),
            ("https://x/a/../b", "https://x/a/../b"),
            ("//x:82/y", "http://x:82/y"),
            ("/y/./z/../%2F?s=1", "http://a:81/y/./z/../%2F?s=1"),
            (
                "/artifacts-downloads/x",
                "http://a:81/artifacts-downloads/x",
            ),
            ("g", "http://a:81/b/c/g"),
            ("./g", "http://a:81/b/c/g"),
            ("g/", "http://a:81/b/c/g/"),
            ("?y", "http://a:81/b/c/d;p?y"),
            ("g?y", "http://a:81/b/c/g?y"),
            ("g?y/../x", "http://a:81/b/c/g?y/../x"),
            ("#s", "http://a:81/b/c/d;p?q"),
            ("g#s/../x", "http://a:81/b/c/g"),
            (";x", "http://a:81/b/c/;x"),
            ("", "http://a:81/b/c/d;p?q"),
            (".", "http://a:81/b/c/"),
            ("./", "http://a:81/b/c/"),
            ("..", "http://a:81/b/"),
            ("../", "http://a:81/b/"),
            ("../g", "http://a:81/b/g"),
            ("../..", "http://a:81/"),
            ("../../g", "http://a:81/g"),
            ("../../../../g", "http://a:81/g"),
            ("g.", "http://a:81/b/c/g."),
            ("..g", "http://a:81/b/c/..g"),
            ("./g/.", "http://a:81/b/c/g/"),
            ("g/./h/../i", "http://a:81/b/c/g/i"),
            ("g;x=1/../y", "http://a:81/b/c/y"),
            ("./sha256:ab", "http://a:81/b/c/sha256:ab"),
        ] {
            let url = base
                .join(location)
                .unwrap_or_else(|error| panic!("{location}: {error}"));
            assert_eq!(url.to_string(), joined, "{location}");
        }
        for location in [
            "ftp://x/",
            "javascript:alert(1)",
            "sha256:ab",
            "https:/x",
            "//u@x/",
            "///x",
            "/a b",
            "/a\r\nb",
        ] {
            assert!(base.join(location).is_err(), "{location:?}");
        }
    }

    #[test]
    fn debug_hides_signatures() {
        let url: Url = "https://s3.example/blob?X-Amz-Signature=hush"
            .parse()
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(format!("{url:?}"), "https://s3.example/blob?***");
    }

    #[test]
    fn percent_encoding_and_back() {
        for (text, encoded) in [
            ("", ""),
            ("az-AZ_09.~", "az-AZ_09.~"),
            (
                "repository:a/b:pull,push",
                "repository%3Aa%2Fb%3Apull%2Cpush",
            ),
            ("a b+c&d=e%", "a%20b%2Bc%26d%3De%25"),
            ("é", "%C3%A9"),
        ] {
            assert_eq!(percent_encode_query(text), encoded, "{text}");
            assert_eq!(percent_decode(encoded).as_deref(), Some(text), "{encoded}");
        }
        for (text, decoded) in [
            ("sha256%3aab", Some("sha256:ab")),
            ("a+b", Some("a+b")),
            ("%", None),
            ("%4", None),
            ("%4x", None),
            ("%+4", None),
            ("%ff", None),
        ] {
            assert_eq!(percent_decode(text).as_deref(), decoded, "{text}");
        }
    }
}
