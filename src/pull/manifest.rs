//! Manifests: byte-exact, verified, and asked of the registry no more often than needed.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{Access, Pull, PullError, shelf::Stored};
use crate::{
    oci::{Digest, Manifest, Registry, Tag, TagOrDigest},
    telemetry::metrics::{self, Counter},
    upstream::{FetchError, FetchedManifest, Login, ManifestHead},
};

/// How long after the registry's last yes a tag is served without asking it, while it is down. A revocation there is
/// not noticed meanwhile.
const LONGEST_STALE: Duration = Duration::from_secs(3600);

/// How much of a manifest is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Type, size and digest.
    Head,
    Whole,
}

#[derive(Debug)]
pub struct ServedManifest {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    /// Missing where only the head was asked for and no more was known.
    pub bytes: Option<Bytes>,
    /// Of what it came from at the registry, if that is known.
    pub source: Option<Digest>,
    /// The registry could not be asked whether the tag still means this.
    pub is_stale: bool,
}

impl Pull {
    pub async fn manifest(
        &self,
        access: &Access,
        version: &TagOrDigest,
        extent: Extent,
    ) -> Result<ServedManifest, PullError> {
        let ask = || async {
            if let Some(overlaid) = access.overlaid() {
                let overlaid = self.overlaid_manifest(access, overlaid, version);
                return Box::pin(overlaid).await;
            }
            self.plain_manifest(access, version, extent).await
        };
        self.for_access(access, ask).await
    }

    /// As the registry has it.
    pub(super) async fn plain_manifest(
        &self,
        access: &Access,
        version: &TagOrDigest,
        extent: Extent,
    ) -> Result<ServedManifest, PullError> {
        match version {
            TagOrDigest::Digest(digest) => self.manifest_by_digest(access, digest, extent).await,
            TagOrDigest::Tag(tag) => self.manifest_by_tag(access, tag, extent).await,
        }
    }

    async fn manifest_by_digest(
        &self,
        access: &Access,
        digest: &Digest,
        extent: Extent,
    ) -> Result<ServedManifest, PullError> {
        let stored = self
            .shelf
            .find(&access.registry, &access.repository, digest);
        if let Some(stored) = &stored
            && (self.proofs.may_have(access, digest) || self.proofs.is_named(access, digest))
        {
            metrics::add(Counter::ManifestHits, 1);
            return Ok(self.serve(access, stored));
        }
        let login = self.login_for(access).await?;
        let version = TagOrDigest::Digest(*digest);
        if stored.is_some() || extent == Extent::Head {
            // Without a word from the registry nothing is known of this holder's rights.
            if let Some(head) = self
                .upstream
                .manifest_head(access.source(&login), &version)
                .await?
            {
                self.proofs.note_allowed(access, *digest, head.size);
                if let Some(stored) = stored {
                    metrics::add(Counter::ManifestHits, 1);
                    return Ok(self.serve(access, &stored));
                }
                if let Some(served) = served_head(&head, *digest) {
                    return Ok(served);
                }
            }
        }
        let stored = self.fetch_manifest(access, &login, &version).await?;
        Ok(self.serve(access, &stored))
    }

    /// A tag may move, so the registry is asked what it means unless that was done a moment ago. A HEAD does it:
    /// it is cheap, and Docker Hub does not count it.
    async fn manifest_by_tag(
        &self,
        access: &Access,
        tag: &Tag,
        extent: Extent,
    ) -> Result<ServedManifest, PullError> {
        let known = self.shelf.find_tag(&access.holder, tag);
        let stored = known.and_then(|known| {
            self.shelf
                .find(&access.registry, &access.repository, &known.digest)
        });
        if let Some(known) = known
            && known.is_fresh
        {
            return self.manifest_by_digest(access, &known.digest, extent).await;
        }
        let version = TagOrDigest::Tag(tag.clone());
        let asked = self
            .ask_for_tag(access, tag, &version, extent, known.is_some())
            .await;
        match (asked, stored) {
            (Err(error), Some(stored))
                if is_outage(&error) && known.is_some_and(|known| known.age < LONGEST_STALE) =>
            {
                tracing::warn!(registry = %access.registry, repository = %access.repository, %tag, %error,
                    "the registry cannot be asked; a tag is served as it was");
                metrics::add(Counter::StaleManifests, 1);
                let mut served = self.serve(access, &stored);
                served.is_stale = true;
                Ok(served)
            }
            (asked, _) => asked,
        }
    }

    async fn ask_for_tag(
        &self,
        access: &Access,
        tag: &Tag,
        version: &TagOrDigest,
        extent: Extent,
        is_known: bool,
    ) -> Result<ServedManifest, PullError> {
        let login = self.login_for(access).await?;
        if extent == Extent::Head || is_known {
            let head = self
                .upstream
                .manifest_head(access.source(&login), version)
                .await?;
            if let Some(head) = head
                && let Some(digest) = head.digest
            {
                self.shelf.note_tag(&access.holder, tag, digest);
                self.proofs.note_allowed(access, digest, head.size);
                if let Some(stored) = self
                    .shelf
                    .find(&access.registry, &access.repository, &digest)
                {
                    metrics::add(Counter::ManifestHits, 1);
                    return Ok(self.serve(access, &stored));
                }
                if extent == Extent::Head
                    && let Some(served) = served_head(&head, digest)
                {
                    return Ok(served);
                }
                let by_digest = TagOrDigest::Digest(digest);
                let stored = self.fetch_manifest(access, &login, &by_digest).await?;
                return Ok(self.serve(access, &stored));
            }
        }
        let stored = self.fetch_manifest(access, &login, version).await?;
        self.shelf.note_tag(&access.holder, tag, stored.digest);
        Ok(self.serve(access, &stored))
    }

    async fn fetch_manifest(
        &self,
        access: &Access,
        login: &Login,
        version: &TagOrDigest,
    ) -> Result<Arc<Stored>, PullError> {
        let stored = self.fetch_unnoted(access, login, version).await?;
        self.proofs.note_allowed(access, stored.digest, None);
        Ok(stored)
    }

    /// From the shelf if it is there. Says nothing of what the holder of `access` may have.
    pub(super) async fn find_or_fetch(
        &self,
        access: &Access,
        login: &Login,
        digest: Digest,
    ) -> Result<Arc<Stored>, PullError> {
        let (registry, repository) = (&access.registry, &access.repository);
        if let Some(stored) = self.shelf.find(registry, repository, &digest) {
            return Ok(stored);
        }
        let version = TagOrDigest::Digest(digest);
        self.fetch_unnoted(access, login, &version).await
    }

    /// Says nothing of what the holder of `access` may have.
    pub(super) async fn fetch_unnoted(
        &self,
        access: &Access,
        login: &Login,
        version: &TagOrDigest,
    ) -> Result<Arc<Stored>, PullError> {
        metrics::add(Counter::ManifestFetches, 1);
        let fetched = self
            .upstream
            .manifest(access.source(login), version)
            .await?;
        let (registry, version) = (access.registry.clone(), version.clone());
        let verifying = self.compute(fetched.body.len(), move || {
            verify(&registry, &version, fetched)
        });
        let stored = Arc::new(verifying.await??);
        self.shelf
            .put(&access.registry, &access.repository, Arc::clone(&stored));
        Ok(stored)
    }

    /// Whoever is served a manifest has half the proof for all that it names.
    pub(super) fn serve(&self, access: &Access, stored: &Stored) -> ServedManifest {
        for named in stored
            .manifest
            .manifests
            .iter()
            .chain(&stored.manifest.blobs)
        {
            self.proofs
                .note_named(&access.holder, named.digest, named.size);
        }
        ServedManifest {
            media_type: stored.manifest.media_type.clone(),
            digest: stored.digest,
            size: stored.bytes.len() as u64,
            bytes: Some(stored.bytes.clone()),
            source: Some(stored.digest),
            is_stale: false,
        }
    }
}

/// Nothing unverified is kept or served: by digest the body must be what was asked for, by tag what the registry
/// says it is.
fn verify(
    registry: &Registry,
    version: &TagOrDigest,
    fetched: FetchedManifest,
) -> Result<Stored, PullError> {
    let digest = match (version, fetched.digest) {
        (TagOrDigest::Digest(digest), _) => *digest,
        (TagOrDigest::Tag(_), Some(digest)) => digest,
        (TagOrDigest::Tag(_), None) => Digest::of(&fetched.body),
    };
    if !digest.matches(&fetched.body) {
        metrics::add(Counter::BlobMismatches, 1);
        return Err(PullError::Mismatch {
            registry: registry.clone(),
            digest,
        });
    }
    let manifest = Manifest::parse(fetched.content_type.as_deref(), &fetched.body);
    let manifest = manifest.map_err(|cause| PullError::Manifest {
        registry: registry.clone(),
        cause: Arc::new(cause),
    })?;
    Ok(Stored {
        digest,
        bytes: fetched.body.into(),
        manifest,
    })
}

/// An answer from a HEAD alone; clients need all three fields.
fn served_head(head: &ManifestHead, digest: Digest) -> Option<ServedManifest> {
    let media_type = head.content_type.as_deref()?.split(';').next()?.trim();
    if !media_type.ends_with("+json") {
        return None;
    }
    Some(ServedManifest {
        media_type: media_type.to_owned(),
        digest,
        size: head.size?,
        bytes: None,
        source: Some(digest),
        is_stale: false,
    })
}

/// Nobody has said no.
fn is_outage(error: &PullError) -> bool {
    match error {
        PullError::Fetch(error) => matches!(error, FetchError::Unreachable { .. }),
        PullError::Caller(error) => error.is_outage(),
        PullError::Busy(_)
        | PullError::Mismatch { .. }
        | PullError::Manifest { .. }
        | PullError::Overlay(_)
        | PullError::Belongings(_)
        | PullError::Fill { .. } => false,
    }
}
