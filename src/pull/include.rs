//! Images that are included in another one: their layers are put on it, and stay where they are.

use std::{ops::Range, sync::Arc};

use super::{Access, Pull, PullError, Web, proof::Holder, shelf::Stored};
use crate::{
    augment::{Layer, Place, Target, layers_of},
    oci::{Descriptor, Digest, Platforms, Reference},
    requests::Caller,
    upstream::{BlobBody, FetchError, Login},
};

/// Of an image. Most have some KiB; those of large histories some hundred.
pub(super) const LARGEST_CONFIG: usize = 8 << 20;

impl Pull {
    /// What of an image is included in another one for this platform. Whoever wants several includes nothing: of each
    /// platform the layers are others.
    pub async fn layers_of(
        &self,
        caller: &Arc<Caller>,
        image: &Reference,
        platform: &Platforms,
    ) -> Result<Vec<Layer>, PullError> {
        let ask = || self.layers_of_once(caller, image, platform);
        self.with_another_login(caller, &image.registry, &image.repository, ask)
            .await
    }

    async fn layers_of_once(
        &self,
        caller: &Arc<Caller>,
        image: &Reference,
        platform: &Platforms,
    ) -> Result<Vec<Layer>, PullError> {
        let access = Access::unproven(caller, image);
        let login = self
            .login(caller, &access.registry, &access.repository)
            .await?;
        let top = self.fetch_unnoted(&access, &login, &image.version).await?;
        let (manifest, config) = match self.target_of(platform, &top).await? {
            Target::Image { config } => (top, config),
            Target::Index { images } => {
                let first = images.into_iter().next();
                let image = first.ok_or(FetchError::Malformed {
                    registry: access.registry.clone(),
                    problem: "an index without images".to_owned(),
                })?;
                self.image_of_index(&access, &login, platform, &image)
                    .await?
            }
        };
        let config = self.config_of(&access, &login, &config).await?;
        let place = Place::Repository {
            registry: access.registry,
            repository: access.repository,
        };
        let size = manifest.bytes.len() + config.len();
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
