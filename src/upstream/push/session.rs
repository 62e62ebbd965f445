//! An upload that is open at a registry: where it goes on, and how much of it is there. Its address changes with each
//! answer, may be on another host, and has a state in its query that must come back to the byte.

use std::fmt;

use crate::{
    http::{ResponseHead, Scheme, Url, percent_encode_query},
    oci::Digest,
};

/// Closed by a push, or by itself at the registry after some days.
pub struct Session {
    pub(super) url: Url,
    /// The registry has all before it.
    pub(super) position: u64,
    /// No part but the last may be smaller (`OCI-Chunk-Min-Length`).
    pub(super) smallest_part: u64,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Session")
            .field("url", &self.url)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// `asked`: the URL that was answered.
    pub(super) fn opened(asked: &Url, head: &ResponseHead) -> Result<Self, &'static str> {
        let location = location(asked, head)?;
        let smallest = head.headers.get("oci-chunk-min-length");
        Ok(Self {
            url: location.ok_or("an upload without an address (Location)")?,
            position: 0,
            smallest_part: smallest
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0),
        })
    }

    /// Some registries say the address once only.
    pub(super) fn moved(&mut self, asked: &Url, head: &ResponseHead) -> Result<(), &'static str> {
        if let Some(url) = location(asked, head)? {
            self.url = url;
        }
        Ok(())
    }

    /// Where the upload becomes a blob.
    pub(super) fn end(&self, digest: &Digest) -> Url {
        let separator = match self.url.target.contains('?') {
            true => '&',
            false => '?',
        };
        let digest = percent_encode_query(&digest.to_string());
        Url {
            origin: self.url.origin.clone(),
            target: format!("{}{separator}digest={digest}", self.url.target),
        }
    }
}

fn location(asked: &Url, head: &ResponseHead) -> Result<Option<Url>, &'static str> {
    let Some(location) = head.headers.get("location") else {
        return Ok(None);
    };
    let url = asked
        .join(location)
        .map_err(|_| "an upload's address (Location) that is not a URL")?;
    if asked.origin.scheme == Scheme::Https && url.origin.scheme == Scheme::Http {
        return Err(
            "an upload's address in plain HTTP, though it is asked by HTTPS: it, or the proxy before it, has to be told \
             its own URL (X-Forwarded-Proto)",
        );
    }
    Ok(Some(url))
}

/// How much the registry says to have (`Range: 0-<last byte>`). Nothing is said by `0-0`, which is for one byte and for
/// none.
pub(super) fn received(head: &ResponseHead) -> Option<u64> {
    let text = head.headers.get("range")?.trim();
    let text = text.strip_prefix("bytes=").unwrap_or(text);
    let last: u64 = text.strip_prefix("0-")?.parse().ok()?;
    (last > 0).then(|| last.checked_add(1)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Method, parse_response};

    fn head(fields: &str) -> ResponseHead {
        let text = format!("HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n{fields}\r\n");
        let parsed = parse_response(text.as_bytes(), Method::Post).expect(fields);
        parsed.expect("a whole head").0
    }

    #[test]
    fn an_address_is_kept_to_the_byte_and_gets_the_digest() {
        let asked: Url = "https://r.io/v2/a/blobs/uploads/".parse().expect("a URL");
        let digest = Digest::of(b"");
        let encoded = digest.to_string().replace(':', "%3A");
        for (location, expected) in [
            (
                "/v2/a/blobs/uploads/1",
                "https://r.io/v2/a/blobs/uploads/1?",
            ),
            (
                "/up/1?_state=a%2Bb+c%3d%3D&x",
                "https://r.io/up/1?_state=a%2Bb+c%3d%3D&x&",
            ),
            ("https://s3.io/b?X-Sig=%2f", "https://s3.io/b?X-Sig=%2f&"),
            ("1?s=2", "https://r.io/v2/a/blobs/uploads/1?s=2&"),
        ] {
            let head = head(&format!("Location: {location}\r\n"));
            let session = Session::opened(&asked, &head).expect(location);
            let expected = format!("{expected}digest={encoded}");
            assert_eq!(session.end(&digest).to_string(), expected, "{location}");
        }
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        let asked: Url = "https://r.io/v2/a/blobs/uploads/".parse().expect("a URL");
        for fields in [
            "",
            "Location: http://r.io/v2/\r\n",
            "Location: ftp://x/\r\n",
        ] {
            assert!(Session::opened(&asked, &head(fields)).is_err(), "{fields}");
        }
    }

    #[test]
    fn what_a_registry_has_is_read_in_the_shapes_that_exist() {
        for (range, expected) in [
            ("0-9", Some(10)),
            ("bytes=0-9", Some(10)),
            (" 0-9 ", Some(10)),
            ("0-0", None),
            ("5-9", None),
            ("0--1", None),
            ("0-18446744073709551615", None),
            ("nonsense", None),
        ] {
            let head = head(&format!("Range: {range}\r\n"));
            assert_eq!(received(&head), expected, "{range}");
        }
        assert_eq!(received(&head("")), None);
    }

    #[test]
    fn an_uploads_state_is_not_printed() {
        let asked: Url = "https://r.io/".parse().expect("a URL");
        let head = head("Location: /u?_state=hidden\r\n");
        let session = Session::opened(&asked, &head).expect("an address");
        assert!(!format!("{session:?}").contains("hidden"));
    }
}
