//! The field lines of a head.

use std::{fmt, sync::Arc};

/// Where a piece of a head lies in its copy. Four bytes each: a head has dozens of pieces and at most
/// `MAX_HEAD_SIZE` bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Of `part`, which must be a slice of `whole`.
    pub(super) fn of(part: &[u8], whole: &str) -> Self {
        let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
        if part.is_empty() || start >= whole.len() {
            return Self::default();
        }
        let narrow = |offset| u32::try_from(offset).expect("a head is no larger than 200 KiB");
        Self {
            start: narrow(start),
            end: narrow(start + part.len()),
        }
    }

    const fn len(self) -> usize {
        self.end as usize - self.start as usize
    }

    pub(super) fn within(self, whole: &str) -> &str {
        whole
            .get(self.start as usize..self.end as usize)
            .unwrap_or_default()
    }
}

/// Field lines in the order in which they came. Names compare case-insensitively; values come without
/// the blanks around them. A value is UTF-8: bytes that are not were replaced by U+FFFD, which nothing
/// that decides by a value accepts.
#[derive(Clone)]
pub struct Headers {
    /// The whole head. Shared with the target, so that a head is copied once.
    text: Arc<str>,
    lines: Vec<Line>,
}

#[derive(Clone, Copy)]
struct Line {
    name: Span,
    value: Span,
}

impl Headers {
    pub(super) fn new(text: Arc<str>, parsed: &[httparse::Header<'_>]) -> Self {
        let lines = parsed
            .iter()
            .map(|header| Line {
                name: Span::of(header.name.as_bytes(), &text),
                value: Span::of(header.value, &text),
            })
            .collect();
        Self { text, lines }
    }

    /// The first of this name.
    pub fn get<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
        // Most differ in their lengths: each head is asked for a dozen names.
        self.lines
            .iter()
            .filter(move |line| {
                line.name.len() == name.len()
                    && line.name.within(&self.text).eq_ignore_ascii_case(name)
            })
            .map(|line| line.value.within(&self.text))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines
            .iter()
            .map(|line| (line.name.within(&self.text), line.value.within(&self.text)))
    }

    pub fn len(&self) -> usize {
        self.lines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Whether one of the comma lists under this name has this token.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name)
            .flat_map(|list| list.split(','))
            .any(|element| trim_blanks(element).eq_ignore_ascii_case(token))
    }
}

/// Values may carry tokens, passwords and signed URLs, so only the names are shown.
impl fmt::Debug for Headers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_list()
            .entries(self.iter().map(|(name, _)| name))
            .finish()
    }
}

/// OWS (RFC 9110 §5.6.3); `str::trim` would also take what is no blank in HTTP.
pub(super) fn trim_blanks(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use crate::http::{Headers, Method, parse_response};

    fn headers(lines: &[u8]) -> Headers {
        let head = [b"HTTP/1.1 200 OK\r\n", lines, b"\r\n"].concat();
        match parse_response(&head, Method::Get) {
            Ok(Some((head, _))) => head.headers,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_compare_without_case_and_values_without_blanks() {
        let headers = headers(b"ETag:  \"a b\" \t\r\nX-Empty:\r\nx-two: 1\r\nX-Two: 2\r\n");
        for (name, value) in [
            ("etag", Some("\"a b\"")),
            ("ETAG", Some("\"a b\"")),
            ("x-empty", Some("")),
            ("x-two", Some("1")),
            ("x-tw", None),
            ("", None),
        ] {
            assert_eq!(headers.get(name), value, "{name}");
        }
        assert_eq!(headers.all("X-TWO").collect::<Vec<_>>(), ["1", "2"]);
        let names: Vec<_> = headers.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["ETag", "X-Empty", "x-two", "X-Two"]);
        assert_eq!(headers.len(), 4);
    }

    #[test]
    fn tokens_are_found_in_all_lists_of_the_name() {
        let headers = headers(b"Connection: Upgrade , x\r\nConnection: ,close\r\n");
        for (token, found) in [
            ("upgrade", true),
            ("X", true),
            ("Close", true),
            ("clos", false),
            ("upgrade , x", false),
        ] {
            assert_eq!(headers.has_token("connection", token), found, "{token}");
        }
    }

    #[test]
    fn values_that_are_not_utf8_lose_only_the_foreign_bytes() {
        let headers = headers(b"A: caf\xe9\r\nB: caf\xc3\xa9\r\nC: c\r\n");
        for (name, value) in [("a", "caf\u{fffd}"), ("b", "café"), ("c", "c")] {
            assert_eq!(headers.get(name), Some(value), "{name}");
        }
    }

    #[test]
    fn debug_shows_no_values() {
        let shown = format!("{:?}", headers(b"Authorization: Bearer hush\r\n"));
        assert_eq!(shown, r#"["Authorization"]"#);
    }
}
