//! What somebody may know of an image who does not pull it, and whether a registry takes a login. Both are asked of the
//! registry anew; nothing is noted of what the caller may have.

use std::sync::Arc;

use bytes::Bytes;

use super::{Access, Pull, PullError, include::empty_index};
use crate::{
    augment::{AugmentError, Target, ensure_platforms},
    credentials,
    oci::{Credentials, Digest, Platform, Platforms, Reference, Registry},
    requests::Caller,
    upstream::CheckError,
};

#[derive(Debug)]
pub struct Inspected {
    /// Where the registry really is: `https://registry-1.docker.io`.
    pub host: String,
    pub digest: Digest,
    pub media_type: String,
    pub manifest: Bytes,
    /// `None` of an index, and of an artifact, which is configured by other rules.
    pub config: Option<Vec<u8>>,
}

impl Pull {
    /// `platform`: the image for it, where the name is an index's. Without one that index is what is shown.
    pub async fn inspect(
        &self,
        caller: &Arc<Caller>,
        image: &Reference,
        platform: Option<&Platform>,
    ) -> Result<Inspected, PullError> {
        let ask = || self.inspect_once(caller, image, platform);
        self.with_another_login(caller, &image.registry, &image.repository, ask)
            .await
    }

    async fn inspect_once(
        &self,
        caller: &Arc<Caller>,
        image: &Reference,
        platform: Option<&Platform>,
    ) -> Result<Inspected, PullError> {
        let access = Access::unproven(caller, image);
        let login = self
            .login(caller, &access.registry, &access.repository)
            .await?;
        let top = self.fetch_unnoted(&access, &login, &image.version).await?;
        let wanted = Platforms::from(platform.cloned().unwrap_or_default());
        let (stored, config) = match self.target_of(&wanted, &top).await {
            Ok(Target::Image { config }) => (top, Some(config)),
            Ok(Target::Index { images }) if platform.is_some() => {
                let first = images.into_iter().next();
                let first = first.ok_or_else(|| empty_index(&access))?;
                let (stored, config) = self
                    .image_of_index(&access, &login, &wanted, &first.image)
                    .await?;
                (stored, Some(config))
            }
            Ok(Target::Index { .. }) | Err(PullError::Overlay(AugmentError::Artifact { .. })) => {
                (top, None)
            }
            // Nobody asked for the usual one.
            Err(PullError::Overlay(AugmentError::NoPlatform { .. })) if platform.is_none() => {
                (top, None)
            }
            Err(error) => return Err(error),
        };
        let config = match config {
            Some(config) => Some(self.config_of(&access, &login, &config).await?),
            None => None,
        };
        let endpoint = self.upstream.endpoint(&access.registry)?;
        Ok(Inspected {
            host: endpoint.url("").to_string(),
            digest: stored.digest,
            media_type: stored.manifest.media_type.clone(),
            manifest: stored.bytes.clone(),
            config,
        })
    }

    /// That an image has all of these platforms. An artifact is for every one.
    pub async fn ensure_platforms(
        &self,
        caller: &Arc<Caller>,
        image: &Reference,
        digest: Digest,
        wanted: &Platforms,
    ) -> Result<(), PullError> {
        let access = &Access::unproven(caller, image);
        let ask = || async move {
            let login = self
                .login(caller, &access.registry, &access.repository)
                .await?;
            let top = self.find_or_fetch(access, &login, digest).await?;
            match self.target_of(wanted, &top).await {
                Ok(Target::Image { config }) => {
                    let config = self.config_of(access, &login, &config).await?;
                    Ok(ensure_platforms(wanted, &config)?)
                }
                Ok(Target::Index { .. })
                | Err(PullError::Overlay(AugmentError::Artifact { .. })) => Ok(()),
                Err(error) => Err(error),
            }
        };
        self.for_access(access, ask).await
    }

    /// Whether a registry takes this login of somebody whom we do not know.
    pub async fn check_login(
        &self,
        registry: &Registry,
        credentials: Credentials,
    ) -> Result<bool, CheckError> {
        let found = credentials::Login::of_stranger(credentials);
        let Ok(exchanged) = self.exchange.login(registry, found).await? else {
            return Ok(false);
        };
        match exchanged.login.credentials {
            Some(credentials) => self.upstream.check_login(registry, &credentials).await,
            None => Ok(false),
        }
    }
}
