//! What a container request adds to an image: its *overlay*, layers and settings, applied to the bytes of manifests
//! and configurations. Values in, values out: who fetches and keeps them is known to `pull` and `requests`.
//!
//! The same input gives the same bytes, on every machine and at any time: no clock, no random numbers, no maps without
//! an order. What an overlay does not concern stays as it was written, byte for byte, fields that nobody here knows
//! included.

mod config;
mod image;
mod index;
mod json;

pub use image::ChangedImage;

use std::ops::Deref;

use crate::oci::{Descriptor, Digest, Platform, Platforms, Registry, Repository, media_type};

/// That can be put on one image. What overlayfs takes less than (it has 128 in Docker), the image's own not counted.
pub const MOST_LAYERS: usize = 127;
/// Of all platforms together, some 300 bytes each, which are kept in memory and on disk for as long as the request. A guess: as
/// many as four images can have.
const MOST_LAYERS_IN_ALL: usize = 512;

/// `containerConfig` and `containerIncludes` of a container request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Replaces the image's, unless it is empty; so do the next two.
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: Option<String>,
    /// `NAME=value`: a variable that the image has already gets the new value.
    pub env: Vec<String>,
    /// On top of the image's, in this order.
    pub layers: Vec<Layer>,
    /// Which images of an index are changed.
    pub platforms: Platforms,
}

/// An overlay to which nothing comes any more, and its digest, which to work out is too much for each pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedOverlay {
    overlay: Overlay,
    digest: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Of the blob, as it is stored and sent.
    pub digest: Digest,
    pub size: u64,
    /// Of the archive in it.
    pub diff_id: Digest,
    pub compression: Compression,
    pub place: Place,
    /// Of several platforms, the only one whose image gets it: an included image has others for each.
    pub only_for: Option<Platform>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Where a layer's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// They came with the request.
    Inline,
    Web {
        url: String,
    },
    Repository {
        registry: Registry,
        repository: Repository,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AugmentError {
    #[error("{part} is not JSON of the expected shape: {cause}")]
    Malformed { part: &'static str, cause: String },
    #[error(
        "it is an artifact ({kind}) and not an image: a containerConfig or containerIncludes cannot be applied to it"
    )]
    Artifact { kind: String },
    #[error("it has no image for {wanted}, only for {present}")]
    NoPlatform { wanted: String, present: String },
    #[error("it has {count} images for {wanted}, which is too many")]
    TooMany { wanted: String, count: usize },
    #[error("its manifest has {layers} layers, and its configuration knows {diff_ids}")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("it has a layer of type {media_type}, which cannot be put on another image")]
    Layer { media_type: String },
    #[error("it has {count} layers; {MOST_LAYERS} is the most that can be put on another image")]
    LayersOverMost { count: usize },
}

/// Of an overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooManyLayers {
    #[error("more layers for one image than {MOST_LAYERS}, which is the most")]
    OnOneImage,
    #[error("more layers for all platforms together than {MOST_LAYERS_IN_ALL}, which is the most")]
    InAll,
}

/// What of an image an overlay concerns, to be fetched before it can be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Image {
        config: Descriptor,
    },
    /// Manifests that an index names. There is one for each platform at least.
    Index {
        images: Vec<PlatformImage>,
    },
}

/// What an index has for a platform that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformImage {
    pub platform: Platform,
    pub image: Descriptor,
}

impl Target {
    /// The media type is the registry's word for what may not say it itself.
    pub fn of(
        platforms: &Platforms,
        media_type: &str,
        manifest: &[u8],
    ) -> Result<Self, AugmentError> {
        match media_type {
            media_type::OCI_INDEX | media_type::DOCKER_LIST => Ok(Target::Index {
                images: index::matching(platforms, manifest)?,
            }),
            media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => Ok(Target::Image {
                config: image::config_of(manifest)?,
            }),
            other => Err(AugmentError::Artifact {
                kind: other.to_owned(),
            }),
        }
    }
}

/// The layers of an image that is included in another one.
pub fn layers_of(
    manifest: &[u8],
    config: &[u8],
    place: &Place,
) -> Result<Vec<Layer>, AugmentError> {
    image::layers(manifest, config, place)
}

/// An index without the images for other platforms than these.
pub fn narrow_index(platforms: &Platforms, index: &[u8]) -> Result<Vec<u8>, AugmentError> {
    index::narrow(platforms, index)
}

/// That a single image is for these platforms, as far as its configuration says. It is never for several.
pub fn ensure_platforms(platforms: &Platforms, config: &[u8]) -> Result<(), AugmentError> {
    config::ensure_platforms(platforms, config)
}

impl Overlay {
    pub fn target(&self, media_type: &str, manifest: &[u8]) -> Result<Target, AugmentError> {
        Target::of(&self.platforms, media_type, manifest)
    }

    /// `platform`: what an index has it for. Which one a single image is for does not matter: it is the only one that is wanted.
    pub fn change_image(
        &self,
        platform: Option<&Platform>,
        media_type: &str,
        manifest: &[u8],
        config: &[u8],
    ) -> Result<ChangedImage, AugmentError> {
        let layers = self.layers_for(platform);
        image::change(self, layers, Family::of(media_type), manifest, config)
    }

    fn layers_for(&self, platform: Option<&Platform>) -> impl Iterator<Item = &Layer> {
        let is_for = move |layer: &&Layer| {
            let only = layer.only_for.as_ref();
            only.is_none_or(|only| Some(only) == platform)
        };
        self.layers.iter().filter(is_for)
    }

    /// That each image can take the layers that are for it, and we all of them.
    pub fn ensure_room(&self) -> Result<(), TooManyLayers> {
        let is_too_high = |it: &Platform| self.layers_for(Some(it)).count() > MOST_LAYERS;
        if self.platforms.iter().any(is_too_high) {
            return Err(TooManyLayers::OnOneImage);
        }
        match self.layers.len() <= MOST_LAYERS_IN_ALL {
            true => Ok(()),
            false => Err(TooManyLayers::InAll),
        }
    }

    /// `changed`: what each image of the target has become.
    pub fn change_index(
        &self,
        index: &[u8],
        changed: &[(PlatformImage, Descriptor)],
    ) -> Result<Vec<u8>, AugmentError> {
        index::change(index, changed)
    }

    /// Equal overlays have equal ones. Works it out; a `NamedOverlay` has it.
    pub fn digest(&self) -> Digest {
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| {
                let place = match &layer.place {
                    Place::Inline => String::new(),
                    Place::Web { url } => url.clone(),
                    Place::Repository {
                        registry,
                        repository,
                    } => format!("{registry}/{repository}"),
                };
                (
                    layer.digest.to_string(),
                    layer.size,
                    layer.diff_id.to_string(),
                    layer.compression.suffix(),
                    place,
                )
            })
            .collect();
        let all = (
            (&self.entrypoint, &self.cmd, &self.working_dir, &self.env),
            layers,
            self.platforms.to_string(),
        );
        let only_for = self.layers.iter().map(|layer| layer.only_for.as_ref());
        let only_for: Vec<_> = only_for.map(|it| it.map(Platform::to_string)).collect();
        // An overlay without such layers has the digest that it has always had.
        let text = match only_for.iter().any(Option::is_some) {
            false => serde_json::to_vec(&all),
            true => serde_json::to_vec(&(all, only_for)),
        };
        Digest::of(&text.expect("texts, numbers and lists are always JSON"))
    }

    /// One that came along before one that has to be fetched.
    pub fn layer(&self, digest: &Digest) -> Option<&Layer> {
        let layers = self.layers.iter().filter(|layer| layer.digest == *digest);
        layers.min_by_key(|layer| layer.place != Place::Inline)
    }
}

impl From<Overlay> for NamedOverlay {
    fn from(overlay: Overlay) -> Self {
        Self {
            digest: overlay.digest(),
            overlay,
        }
    }
}

impl NamedOverlay {
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl Deref for NamedOverlay {
    type Target = Overlay;

    fn deref(&self) -> &Overlay {
        &self.overlay
    }
}

impl Layer {
    /// Fusion comes as one layer for each architecture; only the image's own is of use.
    fn fits(&self, architecture: &str) -> bool {
        let Place::Web { url } = &self.place else {
            return true;
        };
        let path = url.split(['?', '#']).next().unwrap_or_default();
        let word = path
            .rsplit('/')
            .next()
            .and_then(|name| name.strip_prefix("fusion-"))
            .and_then(|name| name.strip_suffix(".tar.gz"));
        word.is_none_or(|word| common_name(word) == common_name(architecture))
    }
}

fn common_name(architecture: &str) -> &str {
    match architecture {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Compression {
    /// Of a layer's media type, in either family; `None`: it is no layer that a registry hands out.
    pub fn of_layer(media_type: &str) -> Option<Self> {
        let rest = media_type
            .strip_prefix("application/vnd.oci.image.layer.v1.tar")
            .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff.tar"))?;
        match rest {
            "" => Some(Self::None),
            "+gzip" | ".gzip" => Some(Self::Gzip),
            "+zstd" | ".zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    pub fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// Whose media types an image has. Mixed ones are taken by most runtimes and refused by some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Docker,
    Oci,
}

impl Family {
    fn of(manifest: &str) -> Self {
        match manifest {
            media_type::DOCKER_MANIFEST | media_type::DOCKER_LIST => Self::Docker,
            _ => Self::Oci,
        }
    }

    fn layer_type(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Docker, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
            (Self::Docker, Compression::Gzip) => {
                "application/vnd.docker.image.rootfs.diff.tar.gzip"
            }
            (Self::Docker, Compression::Zstd) => {
                "application/vnd.docker.image.rootfs.diff.tar.zstd"
            }
            (Self::Oci, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

#[cfg(test)]
mod tests;
