//! Which image of those that a version names is copied.

use serde::Deserialize;

use super::{CopyError, copying::Copying, tree::Node};
use crate::{
    augment::{AugmentError, Target},
    oci::{Descriptor, Platform, TagOrDigest},
    pull::{Access, PullError},
    upstream::Source,
};

/// Of an image.
const LARGEST_CONFIG: usize = 8 << 20;

/// What a configuration says of its image's platform.
#[derive(Deserialize)]
struct Stated {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl Copying<'_> {
    /// What becomes the destination's version.
    pub(super) async fn root(&self) -> Result<Node, CopyError> {
        let top = self.read(&self.plan.version).await?;
        let Some(wanted) = &self.plan.platform else {
            return Ok(top);
        };
        let no_platform = |present| CopyError::NoPlatform {
            wanted: wanted.clone(),
            present,
        };
        match Target::of(wanted, &top.media_type, &top.bytes) {
            Ok(Target::Index { images }) => {
                let image = images
                    .first()
                    .ok_or_else(|| no_platform("nothing".to_owned()))?;
                self.read(&TagOrDigest::Digest(image.digest)).await
            }
            Ok(Target::Image { config }) => match self.other_platform(wanted, &config).await? {
                Some(present) => Err(no_platform(present)),
                None => Ok(top),
            },
            // Charts and the like are for every platform.
            Err(AugmentError::Artifact { .. }) => Ok(top),
            Err(AugmentError::NoPlatform { present, .. }) => Err(no_platform(present)),
            Err(error) => Err(self.unfit(&top.digest, error.to_string())),
        }
    }

    /// The platform of a single image, if it is another one.
    async fn other_platform(
        &self,
        wanted: &Platform,
        config: &Descriptor,
    ) -> Result<Option<String>, CopyError> {
        // Its configuration is made here, for the platform of the overlay.
        if self.source.is_overlaid() {
            return Ok(None);
        }
        let Access {
            caller,
            registry,
            repository,
            ..
        } = &self.source;
        let pull = &self.mirror.pull;
        let fetched = async {
            let login = pull.login(caller, registry, repository).await?;
            let source = Source {
                registry,
                repository,
                login: &login,
            };
            let upstream = pull.upstream();
            let fetched = upstream
                .whole_blob(source, &config.digest, LARGEST_CONFIG)
                .await;
            Ok(fetched.map_err(PullError::Fetch)?)
        };
        let config = self.unless_cancelled(fetched).await?;
        // Nothing is known of it, then.
        let Ok(Stated {
            os,
            architecture,
            variant,
        }) = serde_json::from_slice(&config)
        else {
            return Ok(None);
        };
        if architecture.is_empty() || wanted.is_met_by(&os, &architecture, variant.as_deref()) {
            return Ok(None);
        }
        let variant = variant.filter(|variant| !variant.is_empty());
        let variant = variant.map(|variant| format!("/{variant}"));
        let present = format!("{os}/{architecture}{}", variant.unwrap_or_default());
        Ok(Some(present.chars().take(60).collect()))
    }
}
