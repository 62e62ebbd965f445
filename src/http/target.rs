//! The request target (RFC 9112 §3.2).

use std::{fmt, sync::Arc};

use super::{HeadError, Method, headers::Span, url::split_authority};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TargetForm {
    /// `/v2/?ns=docker.io`
    Origin,
    /// `http://host/v2/`, as sent to a proxy.
    Absolute,
    /// `host:443`, only with CONNECT.
    Authority,
    /// `*`, only with OPTIONS.
    Asterisk,
}

/// A request target in its parts, each byte-exact.
#[derive(Clone)]
pub struct Target {
    text: Arc<str>,
    form: TargetForm,
    whole: Span,
    authority: Span,
    path: Span,
    query: Option<Span>,
}

impl Target {
    /// `target` is a slice of `text`.
    pub(super) fn parse(target: &str, text: &Arc<str>, method: Method) -> Result<Self, HeadError> {
        let bad = |reason| HeadError::Bad { reason };
        // Without an early end, which the compiler turns into a few wide instructions.
        let is_good = target.bytes().fold(true, |is_good, byte| {
            is_good & byte.is_ascii_graphic() & (byte != b'#')
        });
        if !is_good {
            return Err(bad("a byte that no target has"));
        }
        let (form, authority, path_and_query) = match method {
            Method::Connect => (TargetForm::Authority, target, ""),
            Method::Options if target == "*" => (TargetForm::Asterisk, "", target),
            _ if target.starts_with('/') => (TargetForm::Origin, "", target),
            _ => {
                let rest = strip_scheme(target).ok_or(bad("malformed target"))?;
                let end = rest.find(['/', '?']).unwrap_or(rest.len());
                let (authority, path_and_query) =
                    rest.split_at_checked(end).ok_or(bad("malformed target"))?;
                (TargetForm::Absolute, authority, path_and_query)
            }
        };
        let has_authority = matches!(form, TargetForm::Authority | TargetForm::Absolute);
        if has_authority && split_authority(authority).is_none() {
            return Err(bad("malformed host in the target"));
        }
        let mark = memchr::memchr(b'?', path_and_query.as_bytes());
        let (path, query) = match mark.and_then(|mark| path_and_query.split_at_checked(mark)) {
            Some((path, query)) => (path, query.strip_prefix('?')),
            None => (path_and_query, None),
        };
        Ok(Self {
            text: Arc::clone(text),
            form,
            whole: Span::of(target.as_bytes(), text),
            authority: Span::of(authority.as_bytes(), text),
            path: Span::of(path.as_bytes(), text),
            query: query.map(|query| Span::of(query.as_bytes(), text)),
        })
    }

    /// As it came.
    pub fn as_str(&self) -> &str {
        self.whole.within(&self.text)
    }

    /// Host and perhaps port, if the target has them.
    pub fn authority(&self) -> Option<&str> {
        match self.form {
            TargetForm::Authority | TargetForm::Absolute => Some(self.authority.within(&self.text)),
            TargetForm::Origin | TargetForm::Asterisk => None,
        }
    }

    /// Starts with `/`, but is `*` in asterisk form and empty in authority form.
    pub fn path(&self) -> &str {
        match (self.form, self.path.within(&self.text)) {
            (TargetForm::Absolute, "") => "/",
            (_, path) => path,
        }
    }

    /// Without its question mark.
    pub fn query(&self) -> Option<&str> {
        self.query.map(|query| query.within(&self.text))
    }
}

fn strip_scheme(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    let is_ours = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    is_ours.then_some(rest)
}

/// A path may hold a token, so only the form is shown.
impl fmt::Debug for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Target({:?})", self.form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::parse_request;

    #[test]
    fn targets_come_apart_byte_for_byte() {
        use TargetForm::{Absolute, Asterisk, Authority, Origin};
        for (method, target, form, path, query, host) in [
            ("GET", "/", Origin, "/", None, "header"),
            ("GET", "/v2/?", Origin, "/v2/", Some(""), "header"),
            (
                "GET",
                "/a?b=c?d&%2F",
                Origin,
                "/a",
                Some("b=c?d&%2F"),
                "header",
            ),
            ("GET", "//x/../y", Origin, "//x/../y", None, "header"),
            (
                "GET",
                "/a:b@c\"<>\\^`{|}",
                Origin,
                "/a:b@c\"<>\\^`{|}",
                None,
                "header",
            ),
            (
                "GET",
                "http://Own:80/a?b",
                Absolute,
                "/a",
                Some("b"),
                "Own:80",
            ),
            ("HEAD", "HTTPS://own", Absolute, "/", None, "own"),
            (
                "GET",
                "http://[::1]:5000?q",
                Absolute,
                "/",
                Some("q"),
                "[::1]:5000",
            ),
            ("OPTIONS", "*", Asterisk, "*", None, "header"),
            ("OPTIONS", "/a", Origin, "/a", None, "header"),
            ("CONNECT", "own:443", Authority, "", None, "own:443"),
            ("BREW", "/pot", Origin, "/pot", None, "header"),
        ] {
            let head = format!("{method} {target} HTTP/1.1\r\nHost: header\r\n\r\n");
            match parse_request(head.as_bytes()) {
                Ok(Some((head, _))) => {
                    assert_eq!(head.target.form, form, "{method} {target}");
                    assert_eq!(head.path(), path, "{method} {target}");
                    assert_eq!(head.query(), query, "{method} {target}");
                    assert_eq!(head.host(), host, "{method} {target}");
                }
                other => panic!("{method} {target}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for (method, target) in [
            ("GET", ""),
            ("GET", "*"),
            ("GET", "a"),
            ("GET", "host:80"),
            ("GET", "/a#b"),
            ("GET", "/a\u{e9}"),
            ("GET", "/a\u{7f}"),
            ("GET", "/a\0"),
            ("GET", "/a\tb"),
            ("GET", "/a b"),
            ("GET", "ftp://host/"),
            ("GET", "http:/a"),
            ("GET", "http:///a"),
            ("GET", "http://u@host/"),
            ("GET", "http://u:p@host/"),
            ("GET", "http://ho,st/"),
            ("GET", "http://host:/"),
            ("GET", "http://host:65536/"),
            ("GET", "http://host\\@evil/"),
            ("CONNECT", "/a"),
            ("CONNECT", "http://a/"),
            ("OPTIONS", "**"),
        ] {
            let head = format!("{method} {target} HTTP/1.1\r\nHost: header\r\n\r\n");
            match parse_request(head.as_bytes()) {
                Err(error) => assert_eq!(error.status(), 400, "{method} {target}"),
                Ok(_) => panic!("{method} {target} was taken"),
            }
        }
    }
}
