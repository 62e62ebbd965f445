//! An overlay as a record holds it. Bytes of layers are not in it: they are among the token's belongings.
//!
//! ```text
//! {"entrypoint":[…], "cmd":[…], "working_dir":…, "env":[…], "platform":"linux/amd64,linux/arm64",
//!  "layers":[{"digest":…, "size":…, "diff_id":…, "compression":"gzip",
//!             "url":… | "registry":…, "repository":…,            neither: it came with the request
//!             "only_for":"linux/arm64"}]}                        if it is not for each of several platforms
//! ```

use serde::{Deserialize, Serialize};

use super::RecordError;
use crate::{
    augment::{Compression, Layer, Overlay, Place},
    oci::Platform,
};

#[derive(Serialize, Deserialize)]
pub(super) struct StoredOverlay {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    platform: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    layers: Vec<StoredLayer>,
}

#[derive(Serialize, Deserialize)]
struct StoredLayer {
    digest: String,
    size: u64,
    diff_id: String,
    compression: StoredCompression,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registry: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repository: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    only_for: Option<String>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredCompression {
    None,
    Gzip,
    Zstd,
}

impl From<&Overlay> for StoredOverlay {
    fn from(overlay: &Overlay) -> Self {
        Self {
            entrypoint: overlay.entrypoint.clone(),
            cmd: overlay.cmd.clone(),
            working_dir: overlay.working_dir.clone(),
            env: overlay.env.clone(),
            platform: overlay.platforms.to_string(),
            layers: overlay.layers.iter().map(StoredLayer::from).collect(),
        }
    }
}

impl From<&Layer> for StoredLayer {
    fn from(layer: &Layer) -> Self {
        let (url, registry, repository) = match &layer.place {
            Place::Inline => (None, None, None),
            Place::Web { url } => (Some(url.clone()), None, None),
            Place::Repository {
                registry,
                repository,
            } => (
                None,
                Some(registry.to_string()),
                Some(repository.to_string()),
            ),
        };
        Self {
            digest: layer.digest.to_string(),
            size: layer.size,
            diff_id: layer.diff_id.to_string(),
            compression: match layer.compression {
                Compression::None => StoredCompression::None,
                Compression::Gzip => StoredCompression::Gzip,
                Compression::Zstd => StoredCompression::Zstd,
            },
            url,
            registry,
            repository,
            only_for: layer.only_for.as_ref().map(Platform::to_string),
        }
    }
}

impl StoredOverlay {
    pub(super) fn overlay(self) -> Result<Overlay, RecordError> {
        Ok(Overlay {
            entrypoint: self.entrypoint,
            cmd: self.cmd,
            working_dir: self.working_dir,
            env: self.env,
            platforms: self.platform.parse()?,
            layers: self
                .layers
                .into_iter()
                .map(StoredLayer::layer)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl StoredLayer {
    fn layer(self) -> Result<Layer, RecordError> {
        Ok(Layer {
            digest: self.digest.parse()?,
            size: self.size,
            diff_id: self.diff_id.parse()?,
            compression: match self.compression {
                StoredCompression::None => Compression::None,
                StoredCompression::Gzip => Compression::Gzip,
                StoredCompression::Zstd => Compression::Zstd,
            },
            place: match (self.url, self.registry, self.repository) {
                (Some(url), _, _) => Place::Web { url },
                (None, Some(registry), Some(repository)) => Place::Repository {
                    registry: registry.parse()?,
                    repository: repository.parse()?,
                },
                (None, _, _) => Place::Inline,
            },
            only_for: self.only_for.map(|text| text.parse()).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Digest, Platforms};

    #[test]
    fn an_overlay_is_read_as_it_was_stored() {
        let places = [
            Place::Inline,
            Place::Web {
                url: "https://f.example/x?sig=1".to_owned(),
            },
            Place::Repository {
                registry: "quay.io".parse().expect("a registry"),
                repository: "a/b".parse().expect("a repository"),
            },
        ];
        let compressions = [Compression::Gzip, Compression::None, Compression::Zstd];
        let platforms = [None, None, Some("arm/v6".parse().expect("a platform"))];
        let layers = places.into_iter().zip(compressions).zip(platforms);
        let layers = layers.map(|((place, compression), only_for)| Layer {
            digest: Digest::of(b"blob"),
            size: 1 << 40,
            diff_id: Digest::of(b"archive"),
            compression,
            place,
            only_for,
        });
        let full = Overlay {
            entrypoint: vec!["/a".to_owned()],
            cmd: vec!["b".to_owned(), String::new()],
            working_dir: Some("/c".to_owned()),
            env: vec!["D=é".to_owned()],
            layers: layers.collect(),
            platforms: "amd64,arm/v6".parse().expect("platforms"),
        };
        let empty = Overlay {
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            working_dir: None,
            env: Vec::new(),
            layers: Vec::new(),
            platforms: Platforms::default(),
        };
        for overlay in [full, empty] {
            let text = serde_json::to_string(&StoredOverlay::from(&overlay)).expect("JSON");
            let stored: StoredOverlay = serde_json::from_str(&text).expect("JSON");
            let read = stored.overlay();
            assert_eq!(
                read.unwrap_or_else(|error| panic!("{error}")),
                overlay,
                "{text}"
            );
        }
    }
    /// Records are read for as long as their names live, by whichever version runs then.
    #[test]
    fn an_overlay_is_stored_in_one_way_for_ever() {
        let (blob, archive) = (Digest::of(b"blob"), Digest::of(b"archive"));
        let text = format!(
            r#"{{"entrypoint":["/a"],"cmd":["b"],"working_dir":"/c","env":["D=e"],"platform":"linux/amd64","layers":[{{"digest":"{blob}","size":7,"diff_id":"{archive}","compression":"gzip"}},{{"digest":"{blob}","size":7,"diff_id":"{archive}","compression":"zstd","registry":"quay.io","repository":"a/b"}}]}}"#
        );
        let stored: StoredOverlay = serde_json::from_str(&text).expect("JSON");
        let overlay = stored.overlay().unwrap_or_else(|error| panic!("{error}"));
        let layer = |compression, place| Layer {
            digest: blob,
            size: 7,
            diff_id: archive,
            compression,
            place,
            only_for: None,
        };
        let place = Place::Repository {
            registry: "quay.io".parse().expect("a registry"),
            repository: "a/b".parse().expect("a repository"),
        };
        let expected = Overlay {
            entrypoint: vec!["/a".to_owned()],
            cmd: vec!["b".to_owned()],
            working_dir: Some("/c".to_owned()),
            env: vec!["D=e".to_owned()],
            layers: vec![
                layer(Compression::Gzip, Place::Inline),
                layer(Compression::Zstd, place),
            ],
            platforms: Platforms::default(),
        };
        assert_eq!(overlay, expected);
        let written = serde_json::to_string(&StoredOverlay::from(&overlay)).expect("JSON");
        assert_eq!(written, text);
    }
}
