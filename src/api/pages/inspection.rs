//! What `POST /v1alpha1/inspect` answers, of which people want to know: read loosely, since servers leave out what is empty.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Inspection {
    /// An image.
    pub container: Option<Container>,
    /// Images for several platforms, of which none was chosen.
    pub index: Option<Index>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub registry: String,
    pub image_name: String,
    pub reference: String,
    pub digest: String,
    pub config: Option<ImageConfig>,
    pub manifest: Option<ImageManifest>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageConfig {
    pub architecture: Option<String>,
    pub os: Option<String>,
    pub variant: Option<String>,
    pub created: Option<String>,
    pub config: Option<RunConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunConfig {
    pub user: Option<String>,
    pub env: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub working_dir: Option<String>,
    pub entrypoint: Option<Vec<String>>,
    pub labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageManifest {
    pub media_type: Option<String>,
    pub artifact_type: Option<String>,
    pub layers: Option<Vec<Entry>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Index {
    pub media_type: Option<String>,
    pub digest: Option<String>,
    pub manifests: Option<Vec<Entry>>,
}

/// A layer, or an image of an index.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Entry {
    pub media_type: Option<String>,
    pub digest: String,
    pub size: u64,
    pub platform: Option<EntryPlatform>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryPlatform {
    pub os: Option<String>,
    pub architecture: Option<String>,
    pub variant: Option<String>,
}

impl Container {
    /// `docker.io/library/alpine:latest`
    pub fn image(&self) -> String {
        let separator = match self.reference.contains(':') {
            true => '@',
            false => ':',
        };
        format!(
            "{}/{}{separator}{}",
            self.registry, self.image_name, self.reference
        )
    }

    pub fn layers(&self) -> &[Entry] {
        let manifest = self.manifest.as_ref();
        manifest
            .and_then(|manifest| manifest.layers.as_deref())
            .unwrap_or_default()
    }

    /// Together. Sizes are what a registry says, and may add up to more than there is.
    pub fn size_of_layers(&self) -> u64 {
        let sizes = self.layers().iter().map(|layer| layer.size);
        sizes.fold(0, u64::saturating_add)
    }
}

impl ImageConfig {
    /// Linux, where it does not say.
    pub fn platform(&self) -> String {
        platform(&self.os, &self.architecture, &self.variant)
    }
}

impl Entry {
    /// `linux/arm64`, or `unknown/unknown` for what belongs to no platform: signatures, provenance.
    pub fn platform(&self) -> String {
        let none = EntryPlatform::default();
        let it = self.platform.as_ref().unwrap_or(&none);
        platform(&it.os, &it.architecture, &it.variant)
    }
}

fn platform(
    os: &Option<String>,
    architecture: &Option<String>,
    variant: &Option<String>,
) -> String {
    let os = os.as_deref().unwrap_or("linux");
    let architecture = architecture.as_deref().unwrap_or("unknown");
    match variant.as_deref() {
        Some(variant) if !variant.is_empty() => format!("{os}/{architecture}/{variant}"),
        _ => format!("{os}/{architecture}"),
    }
}
