//! An answer as a value: status, fields, body. How it travels is `server`'s business.

use std::fmt::{self, Write as _};

use super::Body;
use crate::{oci::Digest, platform::Stream};

/// How long the body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Also of a HEAD's answer, which has no body.
    Known(u64),
    Unknown,
    /// No body and no length: 304.
    Absent,
}

/// Who takes the connection over, once the answer is out.
pub type Upgrade = Box<dyn FnOnce(Box<dyn Stream>)>;

pub struct Response {
    pub status: u16,
    /// Field lines, each with its line end.
    pub fields: Vec<u8>,
    pub length: Length,
    pub body: Body,
    /// For the access log: where a blob's bytes come from.
    pub origin: Option<&'static str>,
    /// The connection must end after it.
    pub close: bool,
    /// With 101: no further request comes on this connection.
    pub upgrade: Option<Upgrade>,
}

impl Response {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            // A blob's fit, so that they are not moved as they become more.
            fields: Vec::with_capacity(512),
            length: Length::Known(0),
            body: Body::empty(),
            origin: None,
            close: false,
            upgrade: None,
        }
    }

    /// 101, after which the connection is another's.
    pub fn switching_protocols(upgrade: Upgrade) -> Self {
        Self {
            length: Length::Absent,
            upgrade: Some(upgrade),
            ..Self::new(101)
        }
    }

    /// `value` may come from a registry, whose fields were read without line ends; one that has them all the
    /// same would start a field of its own, so it is left out.
    pub fn field(mut self, name: &str, value: impl fmt::Display) -> Self {
        let start = self.fields.len();
        self.fields.extend_from_slice(name.as_bytes());
        self.fields.extend_from_slice(b": ");
        let _ = write!(Text(&mut self.fields), "{value}");
        let line = self.fields.get(start..).unwrap_or_default();
        if line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            self.fields.truncate(start);
        } else {
            self.fields.extend_from_slice(b"\r\n");
        }
        self
    }

    /// Whole field lines that are always the same.
    pub(super) fn fixed(mut self, lines: &'static str) -> Self {
        self.fields.extend_from_slice(lines.as_bytes());
        self
    }

    /// The line of a field, with its end.
    pub(super) fn line(&self, name: &str) -> Option<&[u8]> {
        let mut lines = self.fields.split_inclusive(|byte| *byte == b'\n');
        lines.find(|line| {
            let value = line.strip_prefix(name.as_bytes());
            value.is_some_and(|value| value.starts_with(b":"))
        })
    }

    /// What names the content, for runtimes and for caches.
    pub(super) fn content_digest(mut self, digest: &Digest) -> Self {
        self.fields.extend_from_slice(b"Docker-Content-Digest: ");
        let start = self.fields.len();
        digest.append_to(&mut self.fields);
        let end = self.fields.len();
        self.fields.extend_from_slice(b"\r\nETag: \"");
        self.fields.extend_from_within(start..end);
        self.fields.extend_from_slice(b"\"\r\n");
        self
    }

    pub fn content(mut self, content_type: &str, bytes: impl Into<bytes::Bytes>) -> Self {
        let bytes = bytes.into();
        self.length = Length::Known(bytes.len() as u64);
        self.body = Body::bytes(bytes);
        self.field("Content-Type", content_type)
    }

    pub fn json(self, value: &impl serde::Serialize) -> Self {
        let bytes = serde_json::to_vec(value)
            .expect("our own values have string keys and no fallible parts");
        self.content("application/json", bytes)
    }

    pub fn body(mut self, length: Option<u64>, body: Body) -> Self {
        self.length = length.map_or(Length::Unknown, Length::Known);
        self.body = body;
        self
    }

    /// Tells how long the body would be, and sends none.
    pub fn length(mut self, length: Length) -> Self {
        self.length = length;
        self.body = Body::empty();
        self
    }

    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    pub(super) fn drop_body(&mut self) {
        self.body = Body::empty();
        if self.length == Length::Unknown {
            self.length = Length::Absent;
        }
    }
}

/// Formats without the detour over `io::Write`, whose errors a vector does not have.
struct Text<'a>(&'a mut Vec<u8>);

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_names_the_content_twice() {
        let digest = Digest::of(b"");
        let response = Response::new(200).content_digest(&digest).fixed("A: b\r\n");
        let expected = format!("Docker-Content-Digest: {digest}\r\nETag: \"{digest}\"\r\nA: b\r\n");
        assert_eq!(response.fields, expected.as_bytes());
    }

    #[test]
    fn no_value_starts_a_field_of_its_own() {
        let response = Response::new(200)
            .field("A", "b")
            .field("Location", "x\r\nSet-Cookie: y")
            .field("C", 1);
        assert_eq!(response.fields, b"A: b\r\nC: 1\r\n");
    }
}
