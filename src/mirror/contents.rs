//! What a manifest names, read for copying: all of it, or not at all. Readers of `oci::Manifest` may leave out what they
//! cannot verify; a copy that leaves something out is none.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::Deserialize;

use super::Kind;
use crate::oci::{Descriptor, Digest, media_type};

/// Of one manifest. Images have up to 127 layers, and indexes some dozen manifests.
const MOST_NAMED: usize = 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// Of an index.
    pub manifests: Vec<Descriptor>,
    /// Configuration and layers, each once.
    pub blobs: Vec<Part>,
    /// What it says something about.
    pub subject: Option<Digest>,
    /// For lists of what says something about a subject, like the next.
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

/// A blob as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub digest: Digest,
    pub size: u64,
    pub kind: Kind,
    /// Registries need not have it: its owner does not let everybody pass it on, or it has addresses of its own.
    pub is_foreign: bool,
    /// Its bytes, verified, where the manifest carries them.
    pub data: Option<Bytes>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    manifests: Option<Vec<Entry>>,
    #[serde(default)]
    config: Option<Entry>,
    #[serde(default)]
    layers: Option<Vec<Entry>>,
    /// OCI artifact manifests, withdrawn, list their content here.
    #[serde(default)]
    blobs: Option<Vec<Entry>>,
    #[serde(default)]
    subject: Option<Entry>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    media_type: Option<String>,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    urls: Option<Vec<String>>,
    #[serde(default)]
    data: Option<String>,
}

impl Contents {
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let shape: Shape = serde_json::from_slice(body).map_err(|cause| cause.to_string())?;
        let config_type = shape
            .config
            .as_ref()
            .and_then(|config| config.media_type.clone());
        let manifests = shape.manifests.unwrap_or_default();
        let layers = [shape.layers, shape.blobs].into_iter().flatten().flatten();
        let named: Vec<(Kind, Entry)> = shape
            .config
            .into_iter()
            .map(|config| (Kind::Config, config))
            .chain(layers.map(|layer| (Kind::Layer, layer)))
            .collect();
        let count = manifests.len() + named.len();
        if count > MOST_NAMED {
            return Err(format!(
                "it names {count} things, and more than {MOST_NAMED} are not copied"
            ));
        }
        let mut contents = Self {
            artifact_type: shape.artifact_type.or(config_type),
            annotations: shape.annotations.unwrap_or_default(),
            subject: match shape.subject {
                Some(subject) => Some(subject.digest()?),
                None => None,
            },
            ..Self::default()
        };
        for manifest in manifests {
            let digest = manifest.digest()?;
            if contents.manifests.iter().all(|it| it.digest != digest) {
                contents.manifests.push(Descriptor {
                    digest,
                    size: manifest.size,
                    media_type: manifest.media_type.unwrap_or_default(),
                });
            }
        }
        for (kind, entry) in named {
            let part = entry.part(kind)?;
            if contents.blobs.iter().all(|it| it.digest != part.digest) {
                contents.blobs.push(part);
            }
        }
        Ok(contents)
    }
}

impl Entry {
    fn digest(&self) -> Result<Digest, String> {
        self.digest.parse::<Digest>().map_err(|e| e.to_string())
    }

    fn part(self, kind: Kind) -> Result<Part, String> {
        let digest = self.digest()?;
        let media_type = self.media_type.unwrap_or_default();
        let has_urls = self.urls.is_some_and(|urls| !urls.is_empty());
        Ok(Part {
            digest,
            size: self.size,
            kind,
            is_foreign: has_urls
                || media_type.contains(".nondistributable.")
                || media_type.contains(".foreign."),
            data: self.data.and_then(|text| {
                let bytes = BASE64_STANDARD.decode(text).ok()?;
                let is_it = bytes.len() as u64 == self.size && digest.matches(&bytes);
                is_it.then(|| Bytes::from(bytes))
            }),
        })
    }
}

pub(super) fn is_index(media_type: &str) -> bool {
    matches!(media_type, media_type::OCI_INDEX | media_type::DOCKER_LIST)
}

/// Whether it names blobs only, so that who has it has all of it.
pub(super) fn is_image(media_type: &str) -> bool {
    matches!(
        media_type,
        media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST | media_type::OCI_ARTIFACT
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(of: &str) -> Digest {
        Digest::of(of.as_bytes())
    }

    #[test]
    fn what_an_image_names_is_told_apart() {
        let (config, plain, foreign) = (digest("config"), digest("plain"), digest("foreign"));
        let (windows, zstd, subject) = (digest("windows"), digest("zstd"), digest("subject"));
        let body = format!(
            r#"{{"config":{{"mediaType":"application/vnd.example","digest":"{config}","size":6}},
            "layers":[{{"mediaType":"l","digest":"{plain}","size":5}},
            {{"mediaType":"l","digest":"{plain}","size":5}},
            {{"mediaType":"l","digest":"{foreign}","size":7,"urls":["https://elsewhere.example/x"]}},
            {{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"{windows}","size":7}},
            {{"mediaType":"application/vnd.oci.image.layer.v1.tar+zstd","digest":"{zstd}","size":4,"urls":[]}}],
            "subject":{{"digest":"{subject}"}}}}"#
        );
        let contents = Contents::parse(body.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        let told: Vec<_> = contents
            .blobs
            .iter()
            .map(|part| (part.digest, part.kind, part.is_foreign))
            .collect();
        assert_eq!(
            told,
            [
                (config, Kind::Config, false),
                (plain, Kind::Layer, false),
                (foreign, Kind::Layer, true),
                (windows, Kind::Layer, true),
                (zstd, Kind::Layer, false),
            ]
        );
        assert_eq!(contents.subject, Some(subject));
        assert_eq!(
            contents.artifact_type.as_deref(),
            Some("application/vnd.example")
        );
    }

    #[test]
    fn bytes_within_a_descriptor_are_taken_if_they_are_the_blobs() {
        let empty = Digest::of(b"{}");
        for (data, size, is_taken) in [("e30=", 2, true), ("e30=", 3, false), ("e31=", 2, false)] {
            let body =
                format!(r#"{{"config":{{"digest":"{empty}","size":{size},"data":"{data}"}}}}"#);
            let contents = Contents::parse(body.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
            let data_found = contents.blobs.first().and_then(|part| part.data.clone());
            assert_eq!(data_found.is_some(), is_taken, "{body}");
        }
    }

    #[test]
    fn what_cannot_be_copied_whole_is_not_copied() {
        let many = format!(
            r#"{{"layers":[{}]}}"#,
            vec![format!(r#"{{"digest":"{}"}}"#, digest("x")); MOST_NAMED + 1].join(",")
        );
        for body in [
            r#"{"layers":[{"digest":"md5:00"}]}"#,
            r#"{"manifests":[{"digest":"sha256:short"}]}"#,
            r#"{"layers":{}}"#,
            many.as_str(),
        ] {
            assert!(Contents::parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
