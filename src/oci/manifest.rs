//! What a manifest names. The bytes are what counts and are never written anew: this reads from them
//! only what a proxy needs, the content that a pull of this manifest will ask for next.

use serde::Deserialize;

use super::{Descriptor, Digest, media_type};

/// Images have up to 127 layers and indexes a dozen platforms; what goes far beyond that is meant to cost us.
const MOST_NAMED: usize = 1024;

/// A manifest or an index, read loosely: unknown fields are nobody's business here.
#[derive(Debug, PartialEq, Eq)]
pub struct Manifest {
    pub media_type: String,
    /// Manifests (of an index): fetched as manifests.
    pub manifests: Vec<Descriptor>,
    /// Configuration and layers (of an image): fetched as blobs.
    pub blobs: Vec<Descriptor>,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is not JSON of the expected shape: {cause}")]
    Malformed { cause: String },
    #[error(
        "Docker schema 1 manifests are not supported; push the image again with a current client"
    )]
    Schema1,
    #[error("the manifest says it is {inside}, its Content-Type says {label}")]
    Mislabelled { inside: String, label: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    media_type: Option<String>,
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
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    media_type: Option<String>,
    digest: String,
    #[serde(default)]
    size: u64,
}

impl Entry {
    /// Content under a digest that cannot be verified will be refused when it is asked for.
    fn descriptor(self) -> Option<Descriptor> {
        Some(Descriptor {
            digest: self.digest.parse::<Digest>().ok()?,
            media_type: self.media_type.unwrap_or_default(),
            size: self.size,
        })
    }
}

impl Manifest {
    /// `content_type` is the registry's label, if it gave one; parameters are not part of it.
    pub fn parse(content_type: Option<&str>, body: &[u8]) -> Result<Self, ManifestError> {
        let shape: Shape =
            serde_json::from_slice(body).map_err(|cause| ManifestError::Malformed {
                cause: cause.to_string(),
            })?;
        let label = content_type
            .map(|value| value.split(';').next().unwrap_or_default().trim())
            .filter(|value| is_manifest_type(value));
        if shape.fs_layers.is_some()
            || matches!(
                label,
                Some(media_type::DOCKER_SCHEMA1 | media_type::DOCKER_SCHEMA1_SIGNED)
            )
        {
            return Err(ManifestError::Schema1);
        }
        if let (Some(inside), Some(label)) = (&shape.media_type, label)
            && inside != label
        {
            return Err(ManifestError::Mislabelled {
                inside: inside.clone(),
                label: label.to_owned(),
            });
        }
        let names_something = shape.manifests.is_some()
            || shape.layers.is_some()
            || shape.config.is_some()
            || shape.blobs.is_some();
        // serde takes a list for a struct too.
        let is_object = body.trim_ascii_start().first() == Some(&b'{');
        if !names_something || !is_object {
            return Err(ManifestError::Malformed {
                cause: "it names neither manifests nor layers".to_owned(),
            });
        }
        let media_type = match (shape.media_type, label) {
            (Some(inside), _) => inside,
            (None, Some(label)) => label.to_owned(),
            (None, None) if shape.manifests.is_some() => media_type::OCI_INDEX.to_owned(),
            (None, None) => media_type::OCI_MANIFEST.to_owned(),
        };
        let descriptors = |entries: Option<Vec<Entry>>| {
            entries
                .unwrap_or_default()
                .into_iter()
                .filter_map(Entry::descriptor)
                .take(MOST_NAMED)
        };
        Ok(Self {
            media_type,
            manifests: descriptors(shape.manifests).collect(),
            blobs: descriptors(shape.config.map(|config| vec![config]))
                .chain(descriptors(shape.layers))
                .chain(descriptors(shape.blobs))
                .collect(),
        })
    }
}

fn is_manifest_type(text: &str) -> bool {
    matches!(
        text,
        media_type::OCI_MANIFEST
            | media_type::OCI_INDEX
            | media_type::DOCKER_MANIFEST
            | media_type::DOCKER_LIST
            | media_type::DOCKER_SCHEMA1
            | media_type::DOCKER_SCHEMA1_SIGNED
            | media_type::OCI_ARTIFACT
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(fill: char) -> String {
        format!("sha256:{}", String::from(fill).repeat(64))
    }

    #[test]
    fn an_image_names_its_config_and_layers() {
        let body = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{}","size":2}},"layers":[{{"mediaType":"l","digest":"{}","size":9}}]}}"#,
            digest('a'),
            digest('b'),
        );
        let manifest = Manifest::parse(Some("application/json"), body.as_bytes())
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(manifest.media_type, media_type::OCI_MANIFEST);
        assert!(manifest.manifests.is_empty());
        let named: Vec<_> = manifest
            .blobs
            .iter()
            .map(|blob| (blob.digest.to_string(), blob.size))
            .collect();
        assert_eq!(named, [(digest('a'), 2), (digest('b'), 9)]);
    }

    #[test]
    fn an_index_names_its_manifests() {
        let body = format!(
            r#"{{"manifests":[{{"digest":"{}"}},{{"digest":"md5:x"}}]}}"#,
            digest('c')
        );
        let index = Manifest::parse(None, body.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(index.media_type, media_type::OCI_INDEX);
        assert_eq!(index.manifests.len(), 1);
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        for (content_type, body) in [
            (None, "not json"),
            (None, "[]"),
            (None, "{}"),
            (Some(media_type::OCI_MANIFEST), "[]"),
            (Some(media_type::OCI_MANIFEST), "{}"),
            (
                Some(media_type::OCI_MANIFEST),
                r#"[null,null,{"digest":"sha256:00"}]"#,
            ),
            (Some("text/html"), "<html>"),
            (None, r#"{"schemaVersion":1,"fsLayers":[]}"#),
            (Some(media_type::DOCKER_SCHEMA1_SIGNED), "{}"),
            (
                Some(media_type::OCI_INDEX),
                r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#,
            ),
        ] {
            assert!(
                Manifest::parse(content_type, body.as_bytes()).is_err(),
                "{body}"
            );
        }
    }
}
