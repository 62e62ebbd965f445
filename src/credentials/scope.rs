//! What a login is for: `quay.io`, or only `quay.io/acme`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer};

use super::Entry;
use crate::oci::{ReferenceError, Registry, Repository};

/// A registry, or of it one repository and those below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub registry: Registry,
    pub prefix: Option<Repository>,
}

#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    #[error(
        "`{text}` names no registry: a host has a dot or a port, as in quay.io/acme or localhost:5000"
    )]
    NoHost { text: String },
    #[error(transparent)]
    Malformed(#[from] ReferenceError),
}

impl FromStr for Scope {
    type Err = ScopeError;

    /// Also takes what people paste: a scheme, a trailing slash, Docker Hub's `https://index.docker.io/v1/`.
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let bare = text.trim();
        let bare = bare.split_once("://").map_or(bare, |(_, bare)| bare);
        let bare = bare.trim_end_matches('/');
        let (host, path) = match bare.split_once('/') {
            Some((host, path)) => (host, Some(path)),
            None => (bare, None),
        };
        // No image name can mean it: without a dot or a port, `acme/app` is a repository of Docker Hub.
        if !host.contains(['.', ':']) {
            return Err(ScopeError::NoHost {
                text: host.chars().take(100).collect(),
            });
        }
        Ok(Self {
            registry: host.parse()?,
            prefix: match path {
                None | Some("v1" | "v2") => None,
                // Not `Repository::within`: `docker.io/acme` is an organisation, not `library/acme`.
                Some(path) => Some(path.parse()?),
            },
        })
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Scope {
    pub(super) fn covers(&self, registry: &Registry, repository: &Repository) -> bool {
        self.registry == *registry
            && self.prefix.as_ref().is_none_or(|prefix| {
                let rest = repository.as_str().strip_prefix(prefix.as_str());
                // On whole components: `acme` has nothing to do with `acmeco/app`.
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
    }

    pub(super) fn prefix_size(&self) -> usize {
        self.prefix.as_ref().map_or(0, |it| it.as_str().len())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.prefix {
            Some(prefix) => write!(formatter, "{}/{prefix}", self.registry),
            None => self.registry.fmt(formatter),
        }
    }
}

/// The longest prefix wins, whatever the order; among equals, the first.
pub(super) fn closest<'s, T>(
    candidates: impl Iterator<Item = (&'s Scope, T)>,
    registry: &Registry,
    repository: &Repository,
) -> Option<T> {
    let matching = candidates.filter(|(scope, _)| scope.covers(registry, repository));
    let closest = matching.reduce(|best, other| {
        if other.0.prefix_size() > best.0.prefix_size() {
            other
        } else {
            best
        }
    });
    closest.map(|(_, candidate)| candidate)
}

pub(super) fn longest_match<'a>(
    entries: &'a [Entry],
    registry: &Registry,
    repository: &Repository,
) -> Option<&'a Entry> {
    let candidates = entries.iter().map(|entry| (&entry.scope, entry));
    closest(candidates, registry, repository)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        oci::{Credentials, Reference},
        secret::Secret,
    };

    #[test]
    fn scopes_are_read_as_people_write_them() {
        for (text, expected) in [
            ("quay.io", "quay.io"),
            ("quay.io/acme", "quay.io/acme"),
            ("https://quay.io/", "quay.io"),
            ("https://Quay.io/acme/team/", "quay.io/acme/team"),
            (" quay.io:443 ", "quay.io"),
            ("docker.io", "docker.io"),
            ("docker.io/acme", "docker.io/acme"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry-1.docker.io/v2", "docker.io"),
            ("index.docker.io/acme", "docker.io/acme"),
            ("http://localhost:5000/acme", "localhost:5000/acme"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            let scope: Scope = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(scope.to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_scope_is_refused() {
        for text in [
            "",
            "/",
            "acme",
            "acme/app",
            "localhost",
            "https://",
            "quay.io//acme",
            "quay.io/Acme",
            "quay.io/acme/app:v1",
            "quay.io/acme/*",
            "user@quay.io",
            "quay.io?x",
        ] {
            assert!(text.parse::<Scope>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_longest_prefix_wins_on_whole_components() {
        let all = [
            "quay.io/acme",
            "quay.io",
            "quay.io/acme/app",
            "quay.io/acme",
            "https://index.docker.io/v1/",
            "docker.io/acme",
            "docker.io/library",
            "ghcr.io/acme",
            "localhost:5000",
        ];
        for (image, expected) in [
            ("quay.io/acme/app", Some(2)),
            ("quay.io/acme/app/debug", Some(2)),
            ("quay.io/acme/application", Some(0)),
            ("quay.io/acme", Some(0)),
            ("quay.io/acmeco/app", Some(1)),
            ("quay.io/other", Some(1)),
            ("alpine", Some(6)),
            ("library/alpine", Some(6)),
            ("index.docker.io/acme/app", Some(5)),
            ("other/app", Some(4)),
            ("ghcr.io/acme/app", Some(7)),
            ("ghcr.io/acmeco/app", None),
            ("gcr.io/acme/app", None),
            ("localhost:5000/app", Some(8)),
            ("localhost:5001/app", None),
        ] {
            let entries: Vec<Entry> = all.iter().enumerate().map(entry).collect();
            let image: Reference = image
                .parse()
                .unwrap_or_else(|error| panic!("{image}: {error}"));
            let found = longest_match(&entries, &image.registry, &image.repository);
            let found = found.map(|entry| entry.credentials.username.clone());
            assert_eq!(
                found,
                expected.map(|index: usize| index.to_string()),
                "{image}"
            );
        }
    }

    fn entry((index, scope): (usize, &&str)) -> Entry {
        Entry {
            scope: scope
                .parse()
                .unwrap_or_else(|error| panic!("{scope}: {error}")),
            credentials: Credentials {
                username: index.to_string(),
                password: Secret::default(),
            },
        }
    }
}
