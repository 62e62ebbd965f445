//! What copies are called. Whoever knows what was asked for knows the name, before anything is copied: so equal requests
//! end at one image, whether a server or a command makes it.

use std::{fmt, str::FromStr};

use crate::{
    augment::Overlay,
    oci::{Digest, Platforms, Reference, ReferenceError, Registry, Repository, TagOrDigest},
};

/// Where copies go: a repository, or all of a registry. `quay.io/acme/kept`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub registry: Registry,
    pub path: Option<Repository>,
}

#[derive(Debug, thiserror::Error)]
pub enum NameError {
    #[error("it is empty; a repository is named as in quay.io/acme/kept")]
    Empty,
    #[error("`{0}` is a URL; a repository is named without a scheme, as in quay.io/acme/kept")]
    Url(String),
    #[error(
        "`{0}` has a tag or a digest of its own; a copy's is made for it, so name the repository alone"
    )]
    Version(String),
    #[error("{0} is a registry; name a repository in it, as in {0}/acme/kept")]
    NoRepository(Registry),
    #[error(
        "docker.io/{0} is a user or an organization of Docker Hub; name a repository of theirs, as in docker.io/{0}/kept"
    )]
    NoRepositoryOfHub(Repository),
    #[error(transparent)]
    Malformed(#[from] ReferenceError),
}

impl FromStr for Place {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let text = text.trim();
        if text.contains("://") {
            return Err(NameError::Url(text.chars().take(100).collect()));
        }
        let name = text.trim_end_matches('/');
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        let is_host = |word: &str| word.contains(['.', ':']);
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if is_host(host) => (host.parse()?, Some(path)),
            None if is_host(name) => (name.parse()?, None),
            Some(_) | None => (Registry::docker_hub(), Some(name)),
        };
        if path.is_some_and(|path| path.contains([':', '@'])) {
            return Err(NameError::Version(name.chars().take(100).collect()));
        }
        let path = path.map(Repository::from_str).transpose()?;
        Ok(Self { registry, path })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.registry.fmt(formatter)?;
        match &self.path {
            Some(path) => write!(formatter, "/{path}"),
            None => Ok(()),
        }
    }
}

impl Place {
    /// The name of an exact copy of `image`: its own, below this place, without its registry. Images of two registries may
    /// have one name then.
    pub fn mirrored(&self, image: &Reference) -> Result<Reference, NameError> {
        let repository = match &self.path {
            Some(path) => format!("{path}/{}", image.repository).parse()?,
            None => image.repository.clone(),
        };
        Ok(Reference {
            registry: self.registry.clone(),
            repository,
            version: image.version.clone(),
        })
    }

    /// The name of an image that is made.
    pub fn frozen(&self, of: &Frozen<'_>) -> Result<Reference, NameError> {
        let repository = self.repository()?;
        let tag = of.tag(&self.registry, repository).parse()?;
        Ok(Reference {
            registry: self.registry.clone(),
            repository: repository.clone(),
            version: TagOrDigest::Tag(tag),
        })
    }

    /// That there is one to push to, if names are not to be put below it.
    pub fn repository(&self) -> Result<&Repository, NameError> {
        match &self.path {
            None => Err(NameError::NoRepository(self.registry.clone())),
            Some(path) if self.registry.is_docker_hub() && !path.as_str().contains('/') => {
                Err(NameError::NoRepositoryOfHub(path.clone()))
            }
            Some(path) => Ok(path),
        }
    }
}

/// All that an image is made of that is frozen. Its name has the digest of the source and not the source's tag, so a tag
/// that has moved gives another image.
#[derive(Clone, Copy, Debug)]
pub struct Frozen<'a> {
    /// What the image's name meant.
    pub source: &'a Digest,
    pub platforms: &'a Platforms,
    pub overlay: Option<&'a Overlay>,
}

impl Frozen<'_> {
    fn tag(&self, registry: &Registry, repository: &Repository) -> String {
        /// 64 bits, as Wave's.
        const DIGITS: usize = 16;
        let inputs = [
            format!("{registry}/{repository}"),
            self.source.to_string(),
            self.platforms.to_string(),
            self.overlay
                .map_or_else(String::new, |overlay| overlay.digest().to_string()),
        ];
        // No input has a line end.
        let mut tag = Digest::of(inputs.join("\n").as_bytes()).hex();
        tag.truncate(DIGITS);
        tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn image(text: &str) -> Reference {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_mirrored_image_keeps_its_name_below_the_place() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (source, to, expected) in [
            ("alpine", "quay.io/org", "quay.io/org/library/alpine:latest"),
            (
                "docker.io/source/image:latest",
                "quay.io/lib",
                "quay.io/lib/source/image:latest",
            ),
            ("ghcr.io/a/b:1.2", "quay.io", "quay.io/a/b:1.2"),
            (
                &format!("quay.io/a/b@{digest}"),
                "reg.example.com/m/",
                &format!("reg.example.com/m/a/b@{digest}"),
            ),
            ("quay.io/a/b:v1", "localhost:5000", "localhost:5000/a/b:v1"),
            ("quay.io/a/b:v1", "docker.io/acme", "docker.io/acme/a/b:v1"),
            ("quay.io/a/b:v1", "acme/kept", "docker.io/acme/kept/a/b:v1"),
        ] {
            let name = place(to).mirrored(&image(source));
            let name = name.unwrap_or_else(|error| panic!("{source} {to}: {error}"));
            assert_eq!(name.to_string(), expected, "{source} {to}");
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for (text, reason) in [
            ("", "empty"),
            ("/", "empty"),
            ("https://quay.io/a", "URL"),
            ("quay.io/a:v1", "tag"),
            ("quay.io/a@sha256:00", "tag"),
            ("quay.io//a", "not a repository"),
            ("quay.io/A", "not a repository"),
            ("-x.io/a", "not a registry"),
        ] {
            let error = text.parse::<Place>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let alpine = image("alpine");
        let long = place(&format!("quay.io/{}", "a".repeat(250)));
        assert!(long.mirrored(&alpine).is_err());
    }

    fn overlay() -> Overlay {
        Overlay {
            entrypoint: vec!["/bin/sh".to_owned()],
            cmd: Vec::new(),
            working_dir: None,
            env: Vec::new(),
            layers: Vec::new(),
            platforms: Platforms::default(),
        }
    }

    #[test]
    fn a_frozen_image_is_named_by_all_that_it_is_made_of() {
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let [amd64, arm64, both, reversed] = ["amd64", "arm64", "amd64,arm64", "arm64,amd64"]
            .map(|text| text.parse::<Platforms>().expect("platforms"));
        let (plain, changed) = (
            overlay(),
            Overlay {
                env: vec!["A=b".to_owned()],
                ..overlay()
            },
        );
        let name = |to: &str, source, platforms, overlay| {
            let of = Frozen {
                source,
                platforms,
                overlay,
            };
            place(to).frozen(&of).expect("a repository").to_string()
        };
        let first = name("quay.io/a/b", &one, &amd64, Some(&plain));
        let (repository, tag) = first.split_once(':').expect("a tag");
        assert_eq!(repository, "quay.io/a/b");
        assert!(
            tag.len() == 16 && tag.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{tag}"
        );
        assert_eq!(name("quay.io/a/b/", &one, &amd64, Some(&plain)), first);
        assert_eq!(
            name("quay.io/a/b", &one, &both, Some(&plain)),
            name("quay.io/a/b", &one, &reversed, Some(&plain))
        );
        // For ever: a name that is made another way finds nothing of what there is.
        assert_eq!(tag, "c19966fe7dabb01a");
        let of_both = name("quay.io/a/b", &one, &both, Some(&plain));
        assert_eq!(of_both, "quay.io/a/b:fda41f6913da30b4");
        let tag_of = |name: String| name.split_once(':').map(|(_, tag)| tag.to_owned());
        for different in [
            name("quay.io/a/b", &other, &amd64, Some(&plain)),
            name("quay.io/a/b", &one, &arm64, Some(&plain)),
            name("quay.io/a/b", &one, &both, Some(&plain)),
            name("quay.io/a/b", &one, &amd64, Some(&changed)),
            name("quay.io/a/b", &one, &amd64, None),
            name("quay.io/a/c", &one, &amd64, Some(&plain)),
        ] {
            assert_ne!(tag_of(different).as_deref(), Some(tag));
        }
    }

    #[test]
    fn a_frozen_image_needs_a_repository() {
        for (to, reason) in [
            ("quay.io", "is a registry"),
            ("docker.io/acme", "organization"),
            ("acme", "organization"),
        ] {
            let error = place(to).repository().expect_err(to).to_string();
            assert!(error.contains(reason), "{to}: {error}");
        }
    }
}
