//! Fetching again what scrubbing has found damaged, before anybody has to wait for it.
//!
//! Nobody has asked, so nobody's login is used but the operator's own, as for a pull without one. What only a user's
//! login opens is fetched by the next pull that wants it.

use std::{rc::Rc, time::Duration};

use super::{Access, BodyError, OpenBlob, Piece, Pull, PullError};
use crate::{
    blocking::without_panic,
    cache::Presence,
    oci::Digest,
    telemetry::metrics::{self, Counter},
};

/// How often the cache is asked. Scrubbing finds at most a few in its turn of a week.
const ROUND: Duration = Duration::from_secs(1);

/// Why a damaged blob is left to the next pull.
#[derive(Debug, thiserror::Error)]
enum HealError {
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("the registry redirects it, so it is not ours to keep")]
    Redirected,
    #[error("it came past the cache")]
    Uncached,
}

impl Pull {
    /// One after the other, for ever. For one core: what a dying disk loses is not worth more of the registries.
    pub async fn heal(self: Rc<Self>) {
        loop {
            monoio::time::sleep(ROUND).await;
            without_panic("a healing", Rc::clone(&self).heal_next()).await;
        }
    }

    async fn heal_next(self: Rc<Self>) {
        let Some((key, repository)) = self.cache.next_damaged() else {
            return;
        };
        // Somebody was faster.
        if self.cache.presence(&key) != Presence::Absent {
            return;
        }
        // Only a container request knows the URL.
        if key.registry.is_made_up() {
            return;
        }
        let access = Access::anonymous(key.registry, repository);
        let (registry, repository, digest) = (&access.registry, &access.repository, key.digest);
        match self.fetch_again(&access, &digest).await {
            Ok(()) => {
                metrics::add(Counter::BlobsHealed, 1);
                tracing::info!(%digest, %registry, %repository, "a damaged blob was fetched again");
            }
            Err(error) => {
                tracing::info!(%digest, %registry, %repository, %error, "a damaged blob is left to the next pull that wants it");
            }
        }
    }

    async fn fetch_again(
        self: &Rc<Self>,
        access: &Access,
        digest: &Digest,
    ) -> Result<(), HealError> {
        let whole = |size| 0..size;
        let content = match self.blob(access, digest, &whole).await? {
            OpenBlob::Content(content) => content,
            OpenBlob::Redirect { .. } => return Err(HealError::Redirected),
        };
        let range = 0..content.size().unwrap_or(u64::MAX);
        let mut body = content.into_body(range);
        // What is in a file need not be read; the fill hashes it.
        while let Some(piece) = body.next().await? {
            if let Piece::Bytes(_) = piece {
                return Err(HealError::Uncached);
            }
        }
        Ok(())
    }
}
