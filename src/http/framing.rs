//! Where a body ends (RFC 9112 §6). Everything that two readers could understand differently is refused.

use super::{HeadError, Headers, Method, Version, headers::trim_blanks};

/// How much body follows a head. A length of zero is always `Empty`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyLength {
    Empty,
    Exactly(u64),
    Chunked,
    /// Responses only. The one case in which the end of the connection is an end and not a loss.
    UntilClose,
}

/// What the fields say, before the rules that differ between requests and responses.
enum Declared {
    Nothing,
    Length(u64),
    Chunked,
}

impl BodyLength {
    pub(super) fn of_request(headers: &Headers, version: Version) -> Result<Self, HeadError> {
        // Equal repeated lengths are legal to accept (RFC 9112 §6.3), but no client of ours sends them
        // and a proxy before us may have read only one of them.
        let mut lengths = headers.all("content-length");
        if lengths.next().is_some_and(|value| value.contains(',')) {
            return Err(bad("Content-Length is a list"));
        }
        if lengths.next().is_some() {
            return Err(bad("repeated Content-Length"));
        }
        Ok(match Declared::parse(headers, version)? {
            Declared::Nothing => Self::Empty,
            Declared::Length(length) => Self::exactly(length),
            Declared::Chunked => Self::Chunked,
        })
    }

    /// With the `Content-Length`, which says the size of the resource also where no body follows.
    pub(super) fn of_response(
        headers: &Headers,
        version: Version,
        status: u16,
        request_method: Method,
    ) -> Result<(Self, Option<u64>), HeadError> {
        let (body, content_length) = match Declared::parse(headers, version)? {
            Declared::Nothing => (Self::UntilClose, None),
            Declared::Length(length) => (Self::exactly(length), Some(length)),
            Declared::Chunked => (Self::Chunked, None),
        };
        let has_no_body = matches!(
            (request_method, status),
            (Method::Head, _) | (_, 100..=199 | 204 | 304) | (Method::Connect, 200..=299)
        );
        Ok((if has_no_body { Self::Empty } else { body }, content_length))
    }

    fn exactly(length: u64) -> Self {
        match length {
            0 => Self::Empty,
            length => Self::Exactly(length),
        }
    }
}

impl Declared {
    fn parse(headers: &Headers, version: Version) -> Result<Self, HeadError> {
        let length = content_length(headers)?;
        let mut codings = headers.all("transfer-encoding");
        match (codings.next(), codings.next(), length) {
            (None, _, None) => Ok(Self::Nothing),
            (None, _, Some(length)) => Ok(Self::Length(length)),
            (_, Some(_), _) => Err(bad("repeated Transfer-Encoding")),
            (Some(_), _, Some(_)) => Err(bad("both Content-Length and Transfer-Encoding")),
            (Some(_), ..) if version == Version::Http10 => {
                Err(bad("Transfer-Encoding in HTTP/1.0"))
            }
            (Some(coding), ..) if trim_blanks(coding).eq_ignore_ascii_case("chunked") => {
                Ok(Self::Chunked)
            }
            (Some(_), ..) => Err(bad("a Transfer-Encoding other than chunked")),
        }
    }
}

/// Repeated ones must agree.
fn content_length(headers: &Headers) -> Result<Option<u64>, HeadError> {
    let mut length = None;
    let values = headers
        .all("content-length")
        .flat_map(|line| line.split(','));
    for value in values {
        let value = decimal(trim_blanks(value)).ok_or(bad("malformed Content-Length"))?;
        if length.is_some_and(|first| first != value) {
            return Err(bad("differing Content-Length"));
        }
        length = Some(value);
    }
    Ok(length)
}

/// `1*DIGIT`; `u64::from_str` would also take a plus sign.
fn decimal(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

const fn bad(reason: &'static str) -> HeadError {
    HeadError::Bad { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{parse_request, parse_response};

    #[test]
    fn request_bodies_end_in_one_way_only() {
        use BodyLength::{Chunked, Empty, Exactly};
        for (version, fields, body) in [
            ("1.1", "", Some(Empty)),
            ("1.0", "", Some(Empty)),
            ("1.1", "Content-Length: 0\r\n", Some(Empty)),
            ("1.1", "content-length:  12 \r\n", Some(Exactly(12))),
            ("1.0", "Content-Length: 007\r\n", Some(Exactly(7))),
            (
                "1.1",
                "Content-Length: 18446744073709551615\r\n",
                Some(Exactly(u64::MAX)),
            ),
            ("1.1", "Transfer-Encoding: chunked\r\n", Some(Chunked)),
            ("1.1", "transfer-encoding: \tChunked \r\n", Some(Chunked)),
            ("1.1", "Content-Length: 18446744073709551616\r\n", None),
            ("1.1", "Content-Length:\r\n", None),
            ("1.1", "Content-Length: +5\r\n", None),
            ("1.1", "Content-Length: -5\r\n", None),
            ("1.1", "Content-Length: 0x5\r\n", None),
            ("1.1", "Content-Length: 5 5\r\n", None),
            ("1.1", "Content-Length: 5.0\r\n", None),
            ("1.1", "Content-Length: ５\r\n", None),
            ("1.1", "Content-Length: 5, 5\r\n", None),
            ("1.1", "Content-Length: 5, 6\r\n", None),
            ("1.1", "Content-Length: 5,\r\n", None),
            ("1.1", "Content-Length: 5\r\nContent-Length: 5\r\n", None),
            ("1.1", "Content-Length: 5\r\ncontent-length: 6\r\n", None),
            (
                "1.1",
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                None,
            ),
            (
                "1.1",
                "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
                None,
            ),
            ("1.0", "Transfer-Encoding: chunked\r\n", None),
            ("1.1", "Transfer-Encoding:\r\n", None),
            ("1.1", "Transfer-Encoding: identity\r\n", None),
            ("1.1", "Transfer-Encoding: xchunked\r\n", None),
            ("1.1", "Transfer-Encoding: chunked, chunked\r\n", None),
            ("1.1", "Transfer-Encoding: identity, chunked\r\n", None),
            ("1.1", "Transfer-Encoding: gzip, chunked\r\n", None),
            ("1.1", "Transfer-Encoding: chunked;a=b\r\n", None),
            ("1.1", "Transfer-Encoding: \u{b}chunked\r\n", None),
            ("1.1", "Transfer-Encoding: \"chunked\"\r\n", None),
            (
                "1.1",
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                None,
            ),
            (
                "1.1",
                "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
                None,
            ),
        ] {
            let head = format!("POST / HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
            match (parse_request(head.as_bytes()), body) {
                (Ok(Some((parsed, _))), Some(body)) => assert_eq!(parsed.body, body, "{head}"),
                (Err(error), None) => assert_eq!(error.status(), 400, "{head}"),
                (other, _) => panic!("{head}: {other:?}"),
            }
        }
    }

    #[test]
    fn response_bodies_end_as_the_request_and_the_status_say() {
        use BodyLength::{Chunked, Empty, Exactly, UntilClose};
        for (method, status, fields, body, length) in [
            (Method::Get, 200, "", UntilClose, None),
            (
                Method::Get,
                200,
                "Content-Length: 5\r\n",
                Exactly(5),
                Some(5),
            ),
            (Method::Get, 200, "Content-Length: 0\r\n", Empty, Some(0)),
            (
                Method::Get,
                200,
                "Content-Length: 5\r\nContent-Length: 5, 5\r\n",
                Exactly(5),
                Some(5),
            ),
            (
                Method::Get,
                206,
                "Transfer-Encoding: CHUNKED\r\n",
                Chunked,
                None,
            ),
            (Method::Head, 200, "Content-Length: 5\r\n", Empty, Some(5)),
            (Method::Head, 404, "", Empty, None),
            (
                Method::Head,
                200,
                "Transfer-Encoding: chunked\r\n",
                Empty,
                None,
            ),
            (Method::Get, 304, "Content-Length: 5\r\n", Empty, Some(5)),
            (Method::Get, 204, "", Empty, None),
            (Method::Get, 100, "", Empty, None),
            (Method::Get, 103, "Content-Length: 5\r\n", Empty, Some(5)),
            (Method::Connect, 200, "", Empty, None),
        ] {
            let head = format!("HTTP/1.1 {status} x\r\n{fields}\r\n");
            match parse_response(head.as_bytes(), method) {
                Ok(Some((parsed, _))) => {
                    assert_eq!(parsed.body, body, "{method:?} {head}");
                    assert_eq!(parsed.content_length, length, "{method:?} {head}");
                }
                other => panic!("{head}: {other:?}"),
            }
        }
    }

    #[test]
    fn responses_whose_end_is_doubtful_are_refused() {
        for (version, fields) in [
            ("1.1", "Content-Length: 5\r\nContent-Length: 6\r\n"),
            ("1.1", "Content-Length: 5, 6\r\n"),
            ("1.1", "Content-Length: x\r\n"),
            ("1.1", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            ("1.1", "Transfer-Encoding: gzip\r\n"),
            ("1.1", "Transfer-Encoding: gzip, chunked\r\n"),
            (
                "1.1",
                "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
            ),
            ("1.0", "Transfer-Encoding: chunked\r\n"),
        ] {
            for method in [Method::Get, Method::Head] {
                let head = format!("HTTP/{version} 200 OK\r\n{fields}\r\n");
                assert!(
                    matches!(
                        parse_response(head.as_bytes(), method),
                        Err(HeadError::Bad { .. })
                    ),
                    "{head}"
                );
            }
        }
    }
}
