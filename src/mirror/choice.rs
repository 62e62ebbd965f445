//! Which image of those that a version names is copied, or which images.

use bytes::Bytes;

use super::{CopyError, contents::Contents, copying::Copying, tree::Node};
use crate::{
    augment::{AugmentError, Target, ensure_platforms, narrow_index},
    oci::{Descriptor, Digest, Platforms, TagOrDigest},
    pull::{Access, PullError},
};

impl Copying<'_> {
    /// What becomes the destination's version.
    pub(super) async fn root(&self) -> Result<Node, CopyError> {
        let top = self.read(&self.plan.version).await?;
        let Some(wanted) = &self.plan.platforms else {
            return Ok(top);
        };
        let chosen = match self.target(&top, wanted).await? {
            Ok(Target::Index { .. }) if wanted.are_several() => {
                return self.narrowed(top, wanted).await;
            }
            Ok(Target::Index { images }) => match images.first() {
                Some(first) => return self.read(&TagOrDigest::Digest(first.image.digest)).await,
                None => Ok(()),
            },
            Ok(Target::Image { config }) => self.ensure_platforms(wanted, &config).await?,
            // Charts and the like are for every platform.
            Err(AugmentError::Artifact { .. }) => Ok(()),
            Err(error) => Err(error),
        };
        match chosen {
            Ok(()) => Ok(top),
            Err(AugmentError::NoPlatform { wanted, present }) => {
                Err(CopyError::NoPlatform { wanted, present })
            }
            Err(error) => Err(self.unfit(&top.digest, error.to_string())),
        }
    }

    /// What the top manifest has for those platforms.
    async fn target(
        &self,
        top: &Node,
        wanted: &Platforms,
    ) -> Result<Result<Target, AugmentError>, CopyError> {
        let (media_type, bytes) = (top.media_type.clone(), top.bytes.clone());
        let wanted = wanted.clone();
        let pull = &self.mirror.pull;
        let read = pull.compute(bytes.len(), move || {
            Target::of(&wanted, &media_type, &bytes)
        });
        Ok(read.await.map_err(PullError::from)?)
    }

    /// An index of its own, unless it is the same: what it names stays as it is.
    async fn narrowed(&self, top: Node, wanted: &Platforms) -> Result<Node, CopyError> {
        let (wanted, index) = (wanted.clone(), top.bytes.clone());
        let pull = &self.mirror.pull;
        let narrowed = pull.compute(index.len(), move || {
            let bytes = narrow_index(&wanted, &index).map_err(|error| error.to_string())?;
            let contents = Contents::parse(&bytes)?;
            Ok::<_, String>((Digest::of(&bytes), Bytes::from(bytes), contents))
        });
        let narrowed = narrowed.await.map_err(PullError::from)?;
        let (digest, bytes, contents) =
            narrowed.map_err(|problem| self.unfit(&top.digest, problem))?;
        if bytes == top.bytes {
            return Ok(top);
        }
        Ok(Node {
            digest,
            media_type: top.media_type,
            bytes,
            contents,
        })
    }

    /// That a single image is for what is wanted.
    async fn ensure_platforms(
        &self,
        wanted: &Platforms,
        config: &Descriptor,
    ) -> Result<Result<(), AugmentError>, CopyError> {
        // Its configuration is made here, for the platform of the overlay.
        if self.source.is_overlaid() {
            return Ok(Ok(()));
        }
        let pull = &self.mirror.pull;
        let fetched = async {
            let Access {
                caller,
                registry,
                repository,
                ..
            } = &self.source;
            let login = pull.login(caller, registry, repository).await?;
            Ok(pull.config_of(&self.source, &login, config).await?)
        };
        let config = self.unless_cancelled(fetched).await?;
        let wanted = wanted.clone();
        let read = pull.compute(config.len(), move || ensure_platforms(&wanted, &config));
        Ok(read.await.map_err(PullError::from)?)
    }
}
