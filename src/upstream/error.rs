//! What came of a wish to a registry.

use std::time::Duration;

use super::login::ANONYMOUS;
use crate::{blocking::PoolError, oci::Registry};

/// Says what happened to the wish, in words for the client: which registry said what. Never a secret, never a
/// signed URL.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{registry}: {what} not found{said}")]
    Unknown {
        registry: Registry,
        what: String,
        said: Said,
    },
    #[error("{registry}: not allowed to pull {what} with {who}; {}{said}", by.refusal())]
    Refused {
        registry: Registry,
        what: String,
        who: &'static str,
        by: Service,
        said: Said,
    },
    #[error("{registry}: the rate limit{} is reached{said}", by.whose())]
    RateLimited {
        registry: Registry,
        by: Service,
        retry_after: Option<Duration>,
        said: Said,
    },
    #[error("{registry} cannot be reached: {cause}")]
    Unreachable {
        registry: Registry,
        cause: String,
        /// What it answered instead (500 and above), if it did.
        status: Option<u16>,
    },
    /// A rule of this server, which its operator can change.
    #[error("{registry}: {rule}")]
    Forbidden { registry: Registry, rule: String },
    #[error("{registry} answered {status} for {what}{said}")]
    Failed {
        registry: Registry,
        what: String,
        status: u16,
        said: Said,
    },
    /// It answered, and the answer makes no sense.
    #[error("{registry} sent {problem}")]
    Malformed { registry: Registry, problem: String },
    #[error("tidegate is busy: {0}")]
    Busy(Busy),
}

impl FetchError {
    /// The registry that may say yes to whoever logs in.
    pub fn lacks_login(&self) -> Option<&Registry> {
        match self {
            Self::Refused {
                registry,
                who: ANONYMOUS,
                ..
            } => Some(registry),
            _ => None,
        }
    }
}

/// Which part of a registry an answer came from: they are run, limited and mended apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Registry,
    /// Its realm.
    Tokens,
}

impl Service {
    fn refusal(self) -> &'static str {
        match self {
            Self::Registry => "it is private, or does not exist",
            Self::Tokens => "its token service refused them, or what was asked for",
        }
    }

    fn whose(self) -> &'static str {
        match self {
            Self::Registry => "",
            Self::Tokens => " of its token service",
        }
    }
}

/// What there is not enough of just now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Busy {
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(
        "all {count} connections that a core may have to the host of {registry} are in use (upstream.max_connections_per_host)"
    )]
    Crowded { registry: Registry, count: usize },
}

impl From<PoolError> for FetchError {
    fn from(error: PoolError) -> Self {
        Self::Busy(error.into())
    }
}

/// The code and text of a registry's own error body, as far as there was one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said(pub Option<String>);

impl std::fmt::Display for Said {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(text) => write!(formatter, " (it said: {text})"),
            None => Ok(()),
        }
    }
}

/// A registry's text may be anything: a page of HTML, control characters, a megabyte.
const LONGEST: usize = 200;

impl Said {
    /// Reads `{"errors":[{"code","message"}]}`, `{"details"}`, or a line of plain text. What repeats a secret that was sent
    /// says nothing.
    pub(super) fn parse(content_type: Option<&str>, body: &[u8], secrets: &[&str]) -> Self {
        /// Whoever has a shorter password has no secret, and would get no message.
        const SHORTEST: usize = 4;
        let text = words(content_type, body).filter(|text| {
            let repeats = |secret: &&str| secret.len() >= SHORTEST && text.contains(secret);
            !secrets.iter().any(repeats)
        });
        let text = text.map(|text| clean(&text));
        Self(text.filter(|text| !text.is_empty()))
    }
}

fn words(content_type: Option<&str>, body: &[u8]) -> Option<String> {
    match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(value) => {
            let field = |name: &str| {
                value
                    .pointer(&format!("/errors/0/{name}"))
                    .and_then(|field| field.as_str())
            };
            let message = cause(&value).or_else(|| field("message"));
            match (field("code"), message) {
                (Some(code), Some(message)) if !message.is_empty() => {
                    Some(format!("{code}: {message}"))
                }
                (Some(code), _) => Some(code.to_owned()),
                (None, Some(message)) => Some(message.to_owned()),
                (None, None) => value
                    .get("details")
                    .and_then(|field| field.as_str())
                    .map(str::to_owned),
            }
        }
        Err(_) if content_type.is_some_and(|value| value.starts_with("text/plain")) => {
            str::from_utf8(body).ok().map(str::to_owned)
        }
        Err(_) => None,
    }
}

/// What distribution has behind its "unknown error": what the system said last, after paths of the registry's own, or the
/// system's number for it.
fn cause(value: &serde_json::Value) -> Option<&str> {
    let error = value.pointer("/errors/0")?;
    let detail = error
        .get("detail")
        .filter(|_| error.get("code").is_some_and(|code| code == "UNKNOWN"))?;
    if let Some(text) = detail.as_str() {
        return text.rsplit(": ").next().filter(|cause| !cause.is_empty());
    }
    match detail.pointer("/Enclosed/Err")?.as_i64()? {
        28 => Some("no space left on device"),
        122 => Some("disk quota exceeded"),
        _ => None,
    }
}

fn clean(text: &str) -> String {
    let printable = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c });
    let mut cleaned: String = printable.take(LONGEST).collect();
    if text.trim().chars().count() > LONGEST {
        cleaned.push('…');
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_words_are_read_in_the_shapes_that_exist() {
        for (content_type, body, expected) in [
            (
                "application/json",
                r#"{"errors":[{"code":"DENIED","message":"no"}]}"#,
                Some("DENIED: no"),
            ),
            (
                "application/json",
                r#"{"errors":[{"code":"DENIED","message":""}]}"#,
                Some("DENIED"),
            ),
            ("application/json", r#"{"details":"gone"}"#, Some("gone")),
            (
                "application/json",
                r#"{"errors":[{"code":"UNKNOWN","message":"unknown error","detail":"write /a/data: no space left on device"}]}"#,
                Some("UNKNOWN: no space left on device"),
            ),
            (
                "application/json",
                r#"{"errors":[{"code":"UNKNOWN","message":"unknown error","detail":{"DriverName":"filesystem","Enclosed":{"Op":"write","Path":"/a","Err":28}}}]}"#,
                Some("UNKNOWN: no space left on device"),
            ),
            (
                "application/json",
                r#"{"errors":[{"code":"UNKNOWN","message":"unknown error","detail":{"name":"a"}}]}"#,
                Some("UNKNOWN: unknown error"),
            ),
            ("application/json", "{}", None),
            (
                "text/plain; charset=utf-8",
                "Too Many\r\nRequests\n",
                Some("Too Many  Requests"),
            ),
            ("text/html", "<html>", None),
            ("text/plain", "", None),
        ] {
            assert_eq!(
                Said::parse(Some(content_type), body.as_bytes(), &[])
                    .0
                    .as_deref(),
                expected,
                "{body}"
            );
        }
        let long = Said::parse(Some("text/plain"), "x".repeat(1000).as_bytes(), &[]);
        assert_eq!(long.0.map(|text| text.chars().count()), Some(LONGEST + 1));
    }

    #[test]
    fn words_that_repeat_a_secret_are_left_out() {
        for (body, is_kept) in [
            (r#"{"details":"unknown user"}"#, true),
            (r#"{"details":"wrong: hunter2"}"#, false),
            (r#"{"details":"wrong: h\u0075nter2"}"#, false),
            (r#"{"errors":[{"code":"hunter2","message":"x"}]}"#, false),
            ("hunter2", false),
        ] {
            let said = Said::parse(Some("text/plain"), body.as_bytes(), &["a", "hunter2"]);
            assert_eq!(said.0.is_some(), is_kept, "{body}");
        }
        // Also where only its start would have been shown.
        let long = format!("{}hunter2", "x".repeat(LONGEST - 3));
        let said = Said::parse(Some("text/plain"), long.as_bytes(), &["hunter2"]);
        assert_eq!(said, Said(None));
    }
}
