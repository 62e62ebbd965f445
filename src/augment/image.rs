//! The manifest of one image, and its configuration.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    AugmentError, Compression, Family, Layer, MOST_LAYERS, Overlay, Place,
    config::Config,
    json::{Member, Object, raw},
};
use crate::oci::{Descriptor, Digest};

const PART: &str = "its manifest";

/// Equal to what they were where the overlay says nothing about this image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedImage {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    size: u64,
}

/// Whatever is not for running, a chart or a signature, is kept in manifests of the same shape.
pub(super) fn config_of(manifest: &[u8]) -> Result<Descriptor, AugmentError> {
    let members = Object::parse(PART, manifest)?;
    let config: Named = members
        .get(PART, "config")?
        .ok_or_else(|| AugmentError::Artifact {
            kind: "it has no configuration".to_owned(),
        })?;
    let media_type = config.media_type.unwrap_or_default();
    let is_image = matches!(
        media_type.as_str(),
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
            // Of images that were pushed by the first clients of Docker's schema 2.
            | "application/octet-stream"
            | ""
    );
    if !is_image {
        return Err(AugmentError::Artifact { kind: media_type });
    }
    let layers: Vec<Named> = members.get(PART, "layers")?.unwrap_or_default();
    // Attestations have the configuration of an image.
    if let Some(kind) = layers
        .into_iter()
        .filter_map(|layer| layer.media_type)
        .find(|kind| kind.starts_with("application/vnd.in-toto"))
    {
        return Err(AugmentError::Artifact { kind });
    }
    let digest = config.digest.parse::<Digest>();
    Ok(Descriptor {
        digest: digest.map_err(|cause| AugmentError::Malformed {
            part: PART,
            cause: cause.to_string(),
        })?,
        media_type,
        size: config.size,
    })
}

pub(super) fn change<'a>(
    overlay: &Overlay,
    layers: impl Iterator<Item = &'a Layer>,
    family: Family,
    manifest: &[u8],
    config: &[u8],
) -> Result<ChangedImage, AugmentError> {
    let parsed = Config::parse(config)?;
    let layers: Vec<&Layer> = layers
        .filter(|layer| layer.fits(&parsed.architecture))
        .collect();
    let has_settings = !overlay.entrypoint.is_empty()
        || !overlay.cmd.is_empty()
        || !overlay.env.is_empty()
        || overlay.working_dir.is_some();
    if layers.is_empty() && !has_settings {
        return Ok(ChangedImage {
            manifest: manifest.to_owned(),
            config: config.to_owned(),
        });
    }
    let mut members = Object::parse(PART, manifest)?;
    let named: Vec<&RawValue> = members.get(PART, "layers")?.unwrap_or_default();
    let mut named: Vec<Member<'_>> = named.into_iter().map(Member::Borrowed).collect();
    if named.len() != parsed.layer_count() {
        return Err(AugmentError::LayerCount {
            layers: named.len(),
            diff_ids: parsed.layer_count(),
        });
    }
    named.extend(layers.iter().map(|layer| descriptor(family, layer)));
    let named = raw(&named);
    let config = parsed.with(overlay, &layers)?;
    let configuration = {
        let mut descriptor: Object<'_> = members.get(PART, "config")?.unwrap_or_else(Object::empty);
        point_to(&mut descriptor, &Digest::of(&config), config.len() as u64);
        descriptor.to_member()
    };
    members.set("config", &configuration);
    members.set("layers", &named);
    Ok(ChangedImage {
        manifest: members.to_bytes(),
        config,
    })
}

pub(super) fn layers(
    manifest: &[u8],
    config: &[u8],
    place: &Place,
) -> Result<Vec<Layer>, AugmentError> {
    let members = Object::parse(PART, manifest)?;
    let named: Vec<Named> = members.get(PART, "layers")?.unwrap_or_default();
    if named.len() > MOST_LAYERS {
        return Err(AugmentError::LayersOverMost { count: named.len() });
    }
    let diff_ids = Config::parse(config)?.diff_ids()?;
    if named.len() != diff_ids.len() {
        return Err(AugmentError::LayerCount {
            layers: named.len(),
            diff_ids: diff_ids.len(),
        });
    }
    let layers = named.into_iter().zip(diff_ids);
    layers
        .map(|(named, diff_id)| {
            let media_type = named.media_type.unwrap_or_default();
            let Some(compression) = Compression::of_layer(&media_type) else {
                return Err(AugmentError::Layer { media_type });
            };
            let digest = named.digest.parse::<Digest>();
            Ok(Layer {
                digest: digest.map_err(|cause| AugmentError::Malformed {
                    part: PART,
                    cause: cause.to_string(),
                })?,
                size: named.size,
                diff_id,
                compression,
                place: place.clone(),
                only_for: None,
            })
        })
        .collect()
}

/// All that a descriptor says of other bytes goes.
pub(super) fn point_to(descriptor: &mut Object<'_>, digest: &Digest, size: u64) {
    descriptor.set("digest", &digest.to_string());
    descriptor.set("size", &size);
    descriptor.remove("data");
    descriptor.remove("urls");
}

fn descriptor(family: Family, layer: &Layer) -> Member<'static> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Written {
        media_type: &'static str,
        digest: String,
        size: u64,
    }
    raw(&Written {
        media_type: family.layer_type(layer.compression),
        digest: layer.digest.to_string(),
        size: layer.size,
    })
}
