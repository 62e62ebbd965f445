//! A blob past the cache: for one client alone, or not by us at all.

use super::{
    Access, Pull, PullError,
    blob::{OpenBlob, stored},
    content::{Content, ContentSource},
};
use crate::{
    cache::{HELD_BACK, Opened, Presence},
    oci::Digest,
    telemetry::metrics::{self, Counter},
    upstream::{BlobBody, FetchError, FetchedBlob},
};

/// Registries remembered as redirecting; forgetting one costs a claim.
const MOST_REDIRECTING: usize = 1024;

impl Pull {
    /// Without a claim, for this client alone.
    pub(super) async fn fetch_for_one(
        &self,
        access: &Access,
        digest: &Digest,
    ) -> Result<OpenBlob, PullError> {
        match self.fetch(access, digest, None).await? {
            FetchedBlob::Redirect { status, location } => {
                Ok(self.pass_redirect(access, status, location))
            }
            FetchedBlob::Inline(body) => {
                // The registry has changed its ways, or it redirects some blobs only.
                self.redirecting.borrow_mut().remove(&access.registry);
                self.proofs.note_allowed(access, *digest, body.size);
                // That was the yes that the cached blob lacked.
                let key = access.key(digest);
                if let Presence::Stored { size } = self.cache.presence(&key)
                    && body.size.is_none_or(|stated| stated == size)
                    && let Ok(Opened::Stored(blob)) =
                        self.cache.open(&key, &access.repository).await
                {
                    metrics::add(Counter::BlobHits, 1);
                    return Ok(stored(blob));
                }
                self.pass(access, digest, body).await
            }
        }
    }

    pub(super) fn pass_redirect(&self, access: &Access, status: u16, location: String) -> OpenBlob {
        metrics::add(Counter::BlobRedirects, 1);
        let mut redirecting = self.redirecting.borrow_mut();
        if redirecting.len() >= MOST_REDIRECTING {
            redirecting.clear();
        }
        if !redirecting.contains(&access.registry) {
            redirecting.insert(access.registry.clone());
        }
        OpenBlob::Redirect { status, location }
    }

    /// Past the cache. A blob so small that nothing of it is released before it is verified is verified here: an
    /// error can then still be told in words.
    pub(super) async fn pass(
        &self,
        access: &Access,
        digest: &Digest,
        body: Box<BlobBody>,
    ) -> Result<OpenBlob, PullError> {
        metrics::add(Counter::BlobBypasses, 1);
        if let Some(coding) = &body.coding {
            return Err(coded(access, digest, coding).into());
        }
        let size = body.size;
        if size.is_none_or(|size| size > HELD_BACK) {
            let source = ContentSource::Passing(*digest, body);
            return Ok(OpenBlob::Content(Content { size, source }));
        }
        let bytes = body
            .body
            .collect(usize::try_from(HELD_BACK).unwrap_or(usize::MAX))
            .await
            .map_err(|error| FetchError::Malformed {
                registry: access.sender().clone(),
                problem: format!("a blob that could not be read: {error}"),
            })?;
        if !digest.matches(&bytes) {
            metrics::add(Counter::BlobMismatches, 1);
            return Err(PullError::Mismatch {
                registry: access.sender().clone(),
                digest: *digest,
            });
        }
        Ok(OpenBlob::Content(Content::collected(bytes.into())))
    }
}

pub(super) fn coded(access: &Access, digest: &Digest, coding: &str) -> FetchError {
    FetchError::Malformed {
        registry: access.sender().clone(),
        problem: format!(
            "{digest} with Content-Encoding {coding}, which nobody asked for; its bytes are not the blob's"
        ),
    }
}
