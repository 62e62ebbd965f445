//! Images that are included in another one: their layers are put on it, and stay where they are.

use std::{ops::Range, sync::Arc};

use super::{Access, Pull, PullError, Web, proof::Holder, shelf::Stored};
use crate::{
    augment::{Layer, Place, PlatformImage, Target, ensure_platforms, layers_of},
    oci::{Descriptor, Digest, Platform, Platforms, Reference},
    requests::Caller,
    upstream::{BlobBody, FetchError, Login},
};

/// Of an image. Most have some KiB; those of large histories some hundred.
pub(super) const LARGEST_CONFIG: usize = 8 << 20;

impl Pull {
    /// What of an image is included in another one. For several platforms each layer is for the image of one of them only,
    /// and the image must have all: they stand in the platforms' order.
    pub async fn layers_of(
        &self,
        caller: &Arc<Caller>,
        image: &Reference,
        platforms: &Platforms,
    ) -> Result<Vec<Layer>, PullError> {
        let ask = || self.layers_of_once(caller, image, platforms);
        self.with_another_login(caller, &image.registry, &image.repository, ask)
            .await
    }

    async fn layers_of_once(
        &self,
        caller: &Arc<Caller>,
        image: &Reference,
        platforms: &Platforms,
    ) -> Result<Vec<Layer>, PullError> {
        let access = Access::unproven(caller, image);
        let login = self
            .login(caller, &access.registry, &access.repository)
            .await?;
        let top = self.fetch_unnoted(&access, &login, &image.version).await?;
        let images = match self.target_of(platforms, &top).await? {
            Target::Image { config } => {
                let config = self.config_of(&access, &login, &config).await?;
                if platforms.are_several() {
                    ensure_platforms(platforms, &config)?;
                }
                return self.read_layers(&access, &top, config).await;
            }
            Target::Index { images } => images,
        };
        let mut layers = Vec::new();
        // One after the other: the configurations need not be in memory together.
        for platform in platforms.iter() {
            let image = first_for(platform, &images).ok_or_else(|| empty_index(&access))?;
            let (manifest, config) = self
                .image_of_index(&access, &login, platforms, image)
                .await?;
            let config = self.config_of(&access, &login, &config).await?;
            let read = self.read_layers(&access, &manifest, config).await?;
            let only_for = platforms.are_several().then_some(platform);
            layers.extend(read.into_iter().map(|layer| Layer {
                only_for: only_for.cloned(),
                ..layer
            }));
        }
        Ok(layers)
    }

    async fn read_layers(
        &self,
        access: &Access,
        manifest: &Arc<Stored>,
        config: Vec<u8>,
    ) -> Result<Vec<Layer>, PullError> {
        let place = Place::Repository {
            registry: access.registry.clone(),
            repository: access.repository.clone(),
        };
        let (manifest, size) = (Arc::clone(manifest), manifest.bytes.len() + config.len());
        let layers = self.compute(size, move || layers_of(&manifest.bytes, &config, &place));
        Ok(layers.await??)
    }

    /// What of this manifest concerns the platform.
    pub(super) async fn target_of(
        &self,
        platform: &Platforms,
        stored: &Arc<Stored>,
    ) -> Result<Target, PullError> {
        let (platform, stored) = (platform.clone(), Arc::clone(stored));
        let target = self.compute(stored.bytes.len(), move || {
            Target::of(&platform, &stored.manifest.media_type, &stored.bytes)
        });
        Ok(target.await??)
    }

    /// A manifest that an index names, and its configuration's descriptor.
    pub(super) async fn image_of_index(
        &self,
        access: &Access,
        login: &Login,
        platform: &Platforms,
        image: &Descriptor,
    ) -> Result<(Arc<Stored>, Descriptor), PullError> {
        let stored = self.find_or_fetch(access, login, image.digest).await?;
        match self.target_of(platform, &stored).await? {
            Target::Image { config } => Ok((stored, config)),
            Target::Index { .. } => Err(FetchError::Malformed {
                registry: access.registry.clone(),
                problem: format!("an index in an index, {}", image.digest),
            }
            .into()),
        }
    }

    /// Verified.
    pub async fn config_of(
        &self,
        access: &Access,
        login: &Login,
        config: &Descriptor,
    ) -> Result<Vec<u8>, PullError> {
        let (source, digest) = (access.source(login), config.digest);
        let bytes = self
            .upstream
            .whole_blob(source, &digest, LARGEST_CONFIG)
            .await?;
        let verifying = self.compute(bytes.len(), move || digest.matches(&bytes).then_some(bytes));
        let verified = verifying.await?;
        Ok(verified.ok_or_else(|| FetchError::Malformed {
            registry: access.registry.clone(),
            problem: format!("content that is not {digest}"),
        })?)
    }

    pub(super) async fn fetch_from_web(
        &self,
        web: &Web,
        digest: &Digest,
        part: Option<Range<u64>>,
    ) -> Result<BlobBody, PullError> {
        let body = self.upstream.web_blob(&web.place, digest, part).await?;
        // Nobody who asked for it would take it.
        match body.size.filter(|size| *size != web.size) {
            Some(size) => Err(FetchError::Malformed {
                registry: web.place.server.clone(),
                problem: format!(
                    "{size} bytes for layer {digest}, of which the container request says that it has {}",
                    web.size
                ),
            }
            .into()),
            None => Ok(body),
        }
    }
}

/// An index may have one for each version of an operating system.
fn first_for<'a>(platform: &Platform, images: &'a [PlatformImage]) -> Option<&'a Descriptor> {
    let found = images.iter().find(|found| found.platform == *platform);
    found.map(|found| &found.image)
}

pub(super) fn empty_index(access: &Access) -> FetchError {
    FetchError::Malformed {
        registry: access.registry.clone(),
        problem: "an index without images".to_owned(),
    }
}

impl Access {
    /// To ask a registry with somebody's login. Nothing may be noted under it: its holder is nobody.
    pub(super) fn unproven(caller: &Arc<Caller>, image: &Reference) -> Self {
        Self {
            holder: Holder::Anyone(image.registry.clone(), image.repository.clone()),
            caller: Arc::clone(caller),
            registry: image.registry.clone(),
            repository: image.repository.clone(),
            grant: None,
            web: None,
            follows_redirects: false,
        }
    }
}
