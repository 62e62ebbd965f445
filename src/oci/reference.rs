//! Image names: `registry/repository:tag@digest`, with Docker Hub's defaults and aliases.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use super::{Digest, DigestError};

/// Clients cap `host/name` at 255 characters.
const LONGEST_REPOSITORY: usize = 255;
const LONGEST_TAG: usize = 128;

const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_ALIASES: [&str; 3] = [
    "index.docker.io",
    "registry-1.docker.io",
    "registry.hub.docker.com",
];

#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    #[error("the image name is empty")]
    Empty,
    #[error("`{text}` is a URL; an image is named without a scheme, as in quay.io/acme/app:v1")]
    Url { text: String },
    #[error("`{text}` is not a registry's host name")]
    Registry { text: String },
    #[error(
        "`{text}` is not a repository; its parts are lower-case letters and digits, separated by . _ - and /"
    )]
    Repository { text: String },
    #[error("`{text}` is not a tag; it is up to 128 letters, digits, and . _ -")]
    Tag { text: String },
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// A registry's name: host and, if it is not the scheme's own, port; lower-case, Docker Hub's aliases
/// made one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Registry(Arc<str>);

impl Registry {
    pub fn docker_hub() -> Self {
        Self(DOCKER_HUB.into())
    }

    /// A name that nobody's host has (RFC 6761 §6.4), for content that is at no registry. `label`: letters and digits.
    pub fn made_up(label: &str) -> Self {
        Self(format!("{label}.invalid").into())
    }

    pub fn is_made_up(&self) -> bool {
        self.0.ends_with(".invalid")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_docker_hub(&self) -> bool {
        &*self.0 == DOCKER_HUB
    }

    /// Without the port.
    pub fn host(&self) -> &str {
        match self.0.rfind(']') {
            Some(end) => self.0.get(..=end).unwrap_or(&self.0),
            None => self.0.split(':').next().unwrap_or(&self.0),
        }
    }

    /// Whoever uses the name elsewhere reaches his own machine.
    pub fn is_this_machine(&self) -> bool {
        let host = self.host().trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for Registry {
    type Err = ReferenceError;

    /// Also takes what people paste into a settings field: a scheme, a trailing slash, `/v1/`.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let malformed = || ReferenceError::Registry {
            text: shorten(text),
        };
        let bare = text.trim();
        let bare = bare
            .strip_prefix("https://")
            .or_else(|| bare.strip_prefix("http://"))
            .unwrap_or(bare);
        let bare = bare.trim_end_matches('/');
        let bare = bare
            .strip_suffix("/v1")
            .or_else(|| bare.strip_suffix("/v2"))
            .unwrap_or(bare);
        let host = bare.to_ascii_lowercase();
        // A host without a dot keeps its port: an image name would not show that it is a host.
        let host = host
            .strip_suffix(":443")
            .filter(|host| host.contains(['.', ':']))
            .unwrap_or(&host);
        if !is_authority(host) {
            return Err(malformed());
        }
        if DOCKER_HUB_ALIASES.contains(&host) {
            return Ok(Self::docker_hub());
        }
        Ok(Self(host.into()))
    }
}

fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
            return rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        }
        Some(_) => return false,
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    port.is_none_or(is_port)
        && host.len() <= 253
        && !host.is_empty()
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_')
                })
        })
}

fn is_port(text: &str) -> bool {
    text.len() <= 5
        && text.bytes().all(|b| b.is_ascii_digit())
        && text.parse::<u16>().is_ok_and(|port| port != 0)
}

/// The name of a repository within its registry: `library/alpine`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(Arc<str>);

impl Repository {
    /// Docker Hub keeps its official images under `library/`; nobody else does.
    pub fn within(registry: &Registry, path: &str) -> Result<Self, ReferenceError> {
        if registry.is_docker_hub() && !path.contains('/') {
            return format!("library/{path}").parse();
        }
        path.parse()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() <= LONGEST_REPOSITORY && text.split('/').all(is_name_component) {
            Ok(Self(text.into()))
        } else {
            Err(ReferenceError::Repository {
                text: shorten(text),
            })
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (distribution-spec, pulling manifests).
fn is_name_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if bytes.iter().all(is_word) {
        return !bytes.is_empty();
    }
    if !bytes.first().is_some_and(is_word) || !bytes.last().is_some_and(is_word) {
        return false;
    }
    bytes.split(is_word).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&byte| byte == b'-')
    })
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let good = text.len() <= LONGEST_TAG
            && text.bytes().next().is_some_and(is_word)
            && text.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-'));
        if good {
            Ok(Self(text.into()))
        } else {
            Err(ReferenceError::Tag {
                text: shorten(text),
            })
        }
    }
}

/// The last part of a `/v2/…/manifests/` path. A tag has no colon, so the two cannot be confused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TagOrDigest {
    Tag(Tag),
    Digest(Digest),
}

impl FromStr for TagOrDigest {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.contains(':') {
            Ok(Self::Digest(text.parse()?))
        } else {
            Ok(Self::Tag(text.parse()?))
        }
    }
}

impl fmt::Display for TagOrDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(formatter),
            Self::Digest(digest) => digest.fmt(formatter),
        }
    }
}

/// All of `ghcr.io/acme/app:v1`. Whoever holds one holds a good one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub registry: Registry,
    pub repository: Repository,
    pub version: TagOrDigest,
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.contains("://") {
            return Err(ReferenceError::Url {
                text: shorten(text),
            });
        }
        let (name, digest) = split_optional(text, '@');
        let (registry, path) = split_registry(name)?;
        let (path, tag) = split_optional(path, ':');
        Ok(Self {
            repository: Repository::within(&registry, path)?,
            version: match digest {
                // It wins over a tag, which is then only a comment.
                Some(digest) => {
                    tag.map(Tag::from_str).transpose()?;
                    TagOrDigest::Digest(digest.parse()?)
                }
                None => TagOrDigest::Tag(tag.unwrap_or("latest").parse()?),
            },
            registry,
        })
    }
}

fn split_optional(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

/// The first part is a registry if it looks like a host: with a dot or a port. `localhost/app` is an
/// image of Docker Hub then, as it is for the clients whose requests we take.
fn split_registry(name: &str) -> Result<(Registry, &str), ReferenceError> {
    match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) => Ok((host.parse()?, path)),
        _ => Ok((Registry::docker_hub(), name)),
    }
}

/// Error messages repeat what was wrong, not a megabyte of it.
fn shorten(text: &str) -> String {
    const LONGEST: usize = 100;
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST).chain(['…']).collect()
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = match self.version {
            TagOrDigest::Tag(_) => ':',
            TagOrDigest::Digest(_) => '@',
        };
        write!(
            formatter,
            "{}/{}{separator}{}",
            self.registry, self.repository, self.version
        )
    }
}

macro_rules! shown_as_its_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    )*};
}
shown_as_its_text!(Registry, Repository, Tag);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_as_docker_resolves_them() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, registry, repository, version) in [
            ("alpine", "docker.io", "library/alpine", "latest"),
            (
                "biocontainers/bwa:0.7",
                "docker.io",
                "biocontainers/bwa",
                "0.7",
            ),
            ("localhost:5000/app", "localhost:5000", "app", "latest"),
            ("localhost/app", "docker.io", "localhost/app", "latest"),
            (
                "index.docker.io/alpine:3",
                "docker.io",
                "library/alpine",
                "3",
            ),
            ("Quay.IO/a/b", "quay.io", "a/b", "latest"),
            ("quay.io/a", "quay.io", "a", "latest"),
            ("ghcr.io:443/a/b:v1", "ghcr.io", "a/b", "v1"),
            (&format!("quay.io/a/b@{digest}"), "quay.io", "a/b", &digest),
            (
                &format!("quay.io/a/b:tag@{digest}"),
                "quay.io",
                "a/b",
                &digest,
            ),
            ("[::1]:5000/a", "[::1]:5000", "a", "latest"),
            ("[::1]:443/a", "[::1]", "a", "latest"),
            ("localhost:443/a", "localhost:443", "a", "latest"),
        ] {
            let parsed: Reference = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed.registry.as_str(), registry, "{text}");
            assert_eq!(parsed.repository.as_str(), repository, "{text}");
            assert_eq!(parsed.version.to_string(), version, "{text}");
            let again: Reference = parsed
                .to_string()
                .parse()
                .unwrap_or_else(|error| panic!("{parsed}: {error}"));
            assert_eq!(again, parsed, "{text}");
        }
    }

    #[test]
    fn what_is_no_image_name_is_refused() {
        for text in [
            "",
            "/",
            "docker://alpine",
            "https://quay.io/a/b",
            "a b",
            "Alpine",
            "quay.io/",
            "quay.io//a",
            "quay.io/a/../b",
            "quay.io/a%2fb",
            "host:port/a",
            "host:70000/a",
            "-x.io/a",
            "a:",
            "a:b:c",
            "a@",
            "a@sha256:12",
            "a:.x",
            "quay.io/a/b:tag@",
            "a_-b",
            "a___b",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn registries_are_one_however_they_are_written() {
        for (text, registry) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry.hub.docker.com", "docker.io"),
            ("https://quay.io/", "quay.io"),
            ("QUAY.io:443", "quay.io"),
            ("http://localhost:5000", "localhost:5000"),
        ] {
            let parsed: Registry = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed.as_str(), registry, "{text}");
        }
        assert_eq!(
            "[::1]:5000"
                .parse::<Registry>()
                .ok()
                .as_ref()
                .map(Registry::host),
            Some("[::1]")
        );
    }
}
