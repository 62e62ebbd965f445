//! An image with its overlay. A manifest by tag is what the registry has, changed; by digest it is what was made for this
//! token, or the registry's own. What was made is kept with the token before its name is told to anybody, so that it can be
//! had by digest for as long as the token is good, whatever the tag means by then.
//!
//! A blob may be one of four: a layer that came with the request, the configuration that was made for it, a layer that lies
//! elsewhere, or the image's own.

use std::{io::Read, rc::Rc, sync::Arc};

use bytes::Bytes;

use super::{
    Access, BlobHead, Extent, Overlaid, Pull, PullError, ServedManifest, WebLayers,
    blob::{FirstPart, OpenBlob},
    content::Content,
    derived::{Derived, Origin},
    proof::Holder,
    shelf::Stored,
};
use crate::{
    augment::{
        AugmentError, ChangedImage, Layer, NamedOverlay, Place, PlatformImage, Target,
        ensure_platforms,
    },
    blocking::Errand,
    cache::Blob,
    oci::{Descriptor, Digest, Manifest, Platform, Reference, TagOrDigest},
    requests::{Caller, Token},
    upstream::{FetchError, Login, WebPlace},
};

/// Where a layer's bytes are to be had.
enum Elsewhere {
    /// The client goes there itself.
    Redirect(String),
    At(WebPlace),
}

/// What was made of one that was fetched is hardly larger.
const LARGEST_MANIFEST: u64 = 16 << 20;

impl Pull {
    /// Whether the overlay can be put on the image at all. The work is not done twice: it is remembered for the first pull.
    pub async fn rehearse(
        &self,
        caller: &Arc<Caller>,
        image: &Reference,
        source: Digest,
        overlay: &Arc<NamedOverlay>,
    ) -> Result<(), PullError> {
        let access = Access::unproven(caller, image);
        let origin = Origin::of(&access, source, overlay);
        if self.shelf.derived.find(&origin).is_some() {
            return Ok(());
        }
        let ask = || async {
            let login = self
                .login(caller, &access.registry, &access.repository)
                .await?;
            let base = self.find_or_fetch(&access, &login, source).await?;
            self.derive(&access, &login, overlay, origin.clone(), &base)
                .await
        };
        self.for_access(&access, ask).await.map(|_| ())
    }

    pub(super) async fn overlaid_manifest(
        &self,
        access: &Access,
        overlaid: Overlaid<'_>,
        version: &TagOrDigest,
    ) -> Result<ServedManifest, PullError> {
        let digest = match version {
            TagOrDigest::Digest(digest) if version != overlaid.version => digest,
            // A request may name its image by digest, and then that is what the overlay is put on.
            TagOrDigest::Tag(_) | TagOrDigest::Digest(_) => {
                let (derived, is_stale) = self.derive_by_tag(access, overlaid, version).await?;
                let mut served = self.serve(access, &derived.top);
                served.source = Some(derived.source);
                served.is_stale = is_stale;
                return Ok(served);
            }
        };
        if let Some(own) = self.own_manifest(overlaid, digest).await? {
            let mut served = self.serve(access, &own);
            served.source = None;
            return Ok(served);
        }
        match self.plain_manifest(access, version, Extent::Whole).await {
            Err(PullError::Fetch(unknown @ FetchError::Unknown { .. })) => {
                // Of another server's making, maybe.
                let (derived, _) = self
                    .derive_by_tag(access, overlaid, overlaid.version)
                    .await?;
                let made = derived.manifest(digest).ok_or(unknown)?;
                let mut served = self.serve(access, made);
                served.source = None;
                Ok(served)
            }
            served => served,
        }
    }

    pub(super) async fn overlaid_or_plain_blob(
        self: &Rc<Self>,
        access: &Access,
        digest: &Digest,
        first_part: FirstPart<'_>,
    ) -> Result<OpenBlob, PullError> {
        let Some(overlaid) = access.overlaid() else {
            return self.blob_by_asking(access, digest, first_part).await;
        };
        let layer = overlaid.overlay.layer(digest);
        match layer.map(|layer| (layer, &layer.place)) {
            Some((layer, Place::Web { url })) => match self.elsewhere_on_the_web(access, url) {
                Elsewhere::Redirect(location) => {
                    return Ok(OpenBlob::Redirect {
                        status: 307,
                        location,
                    });
                }
                Elsewhere::At(place) => {
                    let access = self.access_on_the_web(layer, url, place);
                    return Box::pin(self.blob(&access, digest, first_part)).await;
                }
            },
            Some((layer, Place::Repository { .. })) => {
                let access = Self::included(access, overlaid, layer);
                return Box::pin(self.blob(&access, digest, first_part)).await;
            }
            Some((_, Place::Inline)) | None => {}
        }
        if let Some(own) = self.own_blob(overlaid, digest).await? {
            return Ok(OpenBlob::Content(own));
        }
        match self.blob_by_asking(access, digest, first_part).await {
            Err(PullError::Fetch(unknown @ FetchError::Unknown { .. })) => {
                let made = self.made_config(access, overlaid, digest).await?;
                let made = Content::collected(made.ok_or(unknown)?);
                Ok(OpenBlob::Content(made))
            }
            opened => opened,
        }
    }

    pub(super) async fn overlaid_or_plain_head(
        &self,
        access: &Access,
        digest: &Digest,
    ) -> Result<BlobHead, PullError> {
        let Some(overlaid) = access.overlaid() else {
            return self.blob_head_by_asking(access, digest).await;
        };
        let layer = overlaid.overlay.layer(digest);
        match layer.map(|layer| (layer, &layer.place)) {
            Some((layer, Place::Web { url })) => {
                return Ok(match self.elsewhere_on_the_web(access, url) {
                    Elsewhere::Redirect(location) => BlobHead::Redirect {
                        status: 307,
                        location,
                    },
                    Elsewhere::At(_) => BlobHead::Found {
                        size: Some(layer.size),
                    },
                });
            }
            Some((layer, Place::Repository { .. })) => {
                let access = Self::included(access, overlaid, layer);
                return Box::pin(self.blob_head(&access, digest)).await;
            }
            Some((_, Place::Inline)) | None => {}
        }
        if let Some(own) = self.own_blob(overlaid, digest).await? {
            return Ok(BlobHead::Found { size: own.size() });
        }
        match self.blob_head_by_asking(access, digest).await {
            Err(PullError::Fetch(unknown @ FetchError::Unknown { .. })) => {
                let made = self.made_config(access, overlaid, digest).await?;
                let size = made.ok_or(unknown)?.len() as u64;
                Ok(BlobHead::Found { size: Some(size) })
            }
            head => head,
        }
    }

    /// Of another server's making, or there was no room to keep it.
    async fn made_config(
        &self,
        access: &Access,
        overlaid: Overlaid<'_>,
        digest: &Digest,
    ) -> Result<Option<Bytes>, PullError> {
        let ask = || self.derive_by_tag(access, overlaid, overlaid.version);
        let (derived, _) = self.for_access(access, ask).await?;
        Ok(derived.config(digest).cloned())
    }

    /// What a tag means, with the overlay on it, kept with the token; and whether the registry could not be asked.
    async fn derive_by_tag(
        &self,
        access: &Access,
        overlaid: Overlaid<'_>,
        version: &TagOrDigest,
    ) -> Result<(Arc<Derived>, bool), PullError> {
        let served = self.plain_manifest(access, version, Extent::Whole).await?;
        let origin = Origin::of(access, served.digest, overlaid.overlay);
        let derived = match self.shelf.derived.find(&origin) {
            Some(derived) => derived,
            None => {
                let login = self.login_for(access).await?;
                let base = self.find_or_fetch(access, &login, served.digest).await?;
                self.derive(access, &login, overlaid.overlay, origin, &base)
                    .await?
            }
        };
        self.keep(overlaid.token, &derived).await?;
        Ok((derived, served.is_stale))
    }

    /// Works it out, for all who come after.
    async fn derive(
        &self,
        access: &Access,
        login: &Login,
        overlay: &Arc<NamedOverlay>,
        origin: Origin,
        base: &Arc<Stored>,
    ) -> Result<Arc<Derived>, PullError> {
        let derived = match self.target_of(&overlay.platforms, base).await? {
            Target::Image { config } => {
                let config = self.config_of(access, login, &config).await?;
                // A single image gets its overlay whichever platform is wanted, but it cannot be for several.
                if overlay.platforms.are_several() {
                    ensure_platforms(&overlay.platforms, &config)?;
                }
                let (top, config) = self.change_image(overlay, None, base, config).await?;
                Derived {
                    top,
                    images: Vec::new(),
                    configs: vec![config],
                    source: base.digest,
                }
            }
            Target::Index { images } => {
                let (mut changed, mut configs) = (Vec::new(), Vec::new());
                let mut after = Vec::new();
                for before in images {
                    let (stored, config) = self
                        .image_of_index(access, login, &overlay.platforms, &before.image)
                        .await?;
                    let config = self.config_of(access, login, &config).await?;
                    let platform = Some(before.platform.clone());
                    let changing = self.change_image(overlay, platform, &stored, config);
                    let (stored, config) = changing.await?;
                    let descriptor = Descriptor {
                        digest: stored.digest,
                        media_type: stored.manifest.media_type.clone(),
                        size: stored.bytes.len() as u64,
                    };
                    after.push((before, descriptor));
                    changed.push(stored);
                    configs.push(config);
                }
                Derived {
                    top: self.change_index(overlay, base, after).await?,
                    images: changed,
                    configs,
                    source: base.digest,
                }
            }
        };
        let derived = Arc::new(derived);
        self.shelf.derived.put(origin, &derived);
        Ok(derived)
    }

    /// On the pool: nobody knows how large they are.
    async fn change_image(
        &self,
        overlay: &Arc<NamedOverlay>,
        platform: Option<Platform>,
        image: &Stored,
        config: Vec<u8>,
    ) -> Result<(Arc<Stored>, (Digest, Bytes)), PullError> {
        let (overlay, bytes) = (Arc::clone(overlay), image.bytes.clone());
        let media_type = image.manifest.media_type.clone();
        let changed = self.pool.run(Errand::Hash, move || {
            let ChangedImage { manifest, config } =
                overlay.change_image(platform.as_ref(), &media_type, &bytes, &config)?;
            let config = (Digest::of(&config), Bytes::from(config));
            Ok::<_, AugmentError>((Stored::made(&media_type, manifest.into())?, config))
        });
        let (stored, config) = changed.await??;
        Ok((Arc::new(stored), config))
    }

    async fn change_index(
        &self,
        overlay: &Arc<NamedOverlay>,
        index: &Stored,
        changed: Vec<(PlatformImage, Descriptor)>,
    ) -> Result<Arc<Stored>, PullError> {
        let (overlay, bytes) = (Arc::clone(overlay), index.bytes.clone());
        let media_type = index.manifest.media_type.clone();
        let made = self.pool.run(Errand::Hash, move || {
            let index = overlay.change_index(&bytes, &changed)?;
            Stored::made(&media_type, index.into())
        });
        Ok(Arc::new(made.await??))
    }

    /// Without it there is no harm until we are started again, and then the tag is asked what it means.
    async fn keep(&self, token: Token, derived: &Arc<Derived>) -> Result<(), PullError> {
        if self.proofs.is_kept(token, &derived.top.digest) {
            return Ok(());
        }
        let (requests, contents) = (Arc::clone(&self.requests), Arc::clone(derived));
        let kept = self.pool.run(Errand::Commit, move || {
            requests.keep(&token, contents.contents())
        });
        match kept.await? {
            Ok(()) => {
                for (digest, _) in derived.contents() {
                    self.proofs.note_kept(token, *digest);
                }
            }
            Err(error) => {
                tracing::warn!(?token, %error, "what was made of an image for a name is not kept");
            }
        }
        Ok(())
    }

    async fn own_manifest(
        &self,
        overlaid: Overlaid<'_>,
        digest: &Digest,
    ) -> Result<Option<Arc<Stored>>, PullError> {
        if self.proofs.is_kept(overlaid.token, digest)
            && let Some(stored) = self.shelf.derived.manifest(digest)
        {
            return Ok(Some(stored));
        }
        let (requests, token, wanted) = (Arc::clone(&self.requests), overlaid.token, *digest);
        let read = self.pool.run(Errand::Disk, move || {
            let Some((file, size)) = requests.belonging(&token, &wanted)? else {
                return Ok(None);
            };
            // A layer, which is no manifest.
            if size > LARGEST_MANIFEST {
                return Ok(None);
            }
            let mut bytes = Vec::new();
            file.take(LARGEST_MANIFEST).read_to_end(&mut bytes)?;
            let manifest = Manifest::parse(None, &bytes).ok();
            Ok(manifest.map(|manifest| Stored {
                digest: wanted,
                bytes: bytes.into(),
                manifest,
            }))
        });
        let stored = read
            .await?
            .map_err(|error| PullError::Belongings(Arc::new(error)))?;
        Ok(stored.map(|stored| {
            let stored = Arc::new(stored);
            self.shelf.derived.put_manifest(&stored);
            self.proofs.note_kept(overlaid.token, *digest);
            stored
        }))
    }

    async fn own_blob(
        &self,
        overlaid: Overlaid<'_>,
        digest: &Digest,
    ) -> Result<Option<Content>, PullError> {
        let config = self.shelf.derived.config(digest);
        if let Some(bytes) = &config
            && self.proofs.is_kept(overlaid.token, digest)
        {
            return Ok(Some(Content::collected(bytes.clone())));
        }
        let (requests, token, wanted) = (Arc::clone(&self.requests), overlaid.token, *digest);
        let opened = self
            .pool
            .run(Errand::Disk, move || requests.belonging(&token, &wanted));
        let opened = opened
            .await?
            .map_err(|error| PullError::Belongings(Arc::new(error)))?;
        let Some((file, size)) = opened else {
            return Ok(None);
        };
        if config.is_some() {
            self.proofs.note_kept(overlaid.token, *digest);
        }
        let file = Arc::new(file);
        Ok(Some(Content::stored(Blob { file, size })))
    }

    fn elsewhere_on_the_web(&self, access: &Access, url: &str) -> Elsewhere {
        let place = match self.options.web_layers {
            WebLayers::Redirect if !access.follows_redirects => None,
            WebLayers::Redirect | WebLayers::Fetch => WebPlace::parse(url),
        };
        place.map_or_else(|| Elsewhere::Redirect(url.to_owned()), Elsewhere::At)
    }

    /// Whoever knows the URL may have what it gives, and has the digest from the same request.
    fn access_on_the_web(&self, layer: &Layer, url: &str, place: WebPlace) -> Access {
        let (access, size) = (Access::on_the_web(url, place, layer.size), Some(layer.size));
        let standing = self.proofs.standing(&access, &layer.digest);
        // Another request may have said another size of the same URL. This one's counts now.
        if !standing.may_have || standing.size != size {
            self.proofs.note_allowed(&access, layer.digest, size);
        }
        access
    }

    fn included(access: &Access, overlaid: Overlaid<'_>, layer: &Layer) -> Access {
        let Place::Repository {
            registry,
            repository,
        } = &layer.place
        else {
            return access.clone();
        };
        // That the request names it proves nothing, not even with a repository that has it: its registry is asked.
        Access {
            holder: Holder::Included(overlaid.token, registry.clone(), repository.clone()),
            caller: Arc::clone(&access.caller),
            registry: registry.clone(),
            repository: repository.clone(),
            grant: None,
            web: None,
            follows_redirects: access.follows_redirects,
        }
    }
}
