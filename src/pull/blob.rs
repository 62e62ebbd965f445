//! A blob: may this holder have it, who has it, and if nobody has, fetch it once for all who ask.

use std::{ops::Range, rc::Rc};

use super::{
    Access, Pull, PullError,
    body::{Body, HELD_BACK, Passing},
};
use crate::{
    blocking::without_panic,
    cache::{Blob, Ending, Fill, FillError, OpenError, Opened, Presence, Reader, Release},
    oci::Digest,
    telemetry::metrics::{self, Counter},
    upstream::{self, BlobBody, FetchError, FetchedBlob, Login},
};

/// How often we come back to a blob whose claim was given up by another. Then we stream it for ourselves.
const MOST_ROUNDS: usize = 16;

/// Registries remembered as redirecting; forgetting one costs a claim.
const MOST_REDIRECTING: usize = 1024;

/// A blob whose bytes can be had.
pub enum OpenBlob {
    /// The client is to fetch it there itself. Byte-exact: signatures cover the spelling.
    Redirect {
        status: u16,
        location: String,
    },
    Content(Content),
}

/// What is known without its bytes.
pub enum BlobHead {
    Redirect {
        status: u16,
        location: String,
    },
    /// A registry may leave the size out.
    Found {
        size: Option<u64>,
    },
}

pub struct Content {
    size: Option<u64>,
    source: ContentSource,
}

enum ContentSource {
    Stored(Blob),
    Following(Reader),
    Passing(Digest, Box<BlobBody>),
    Collected(Vec<u8>),
}

impl Content {
    /// `None`: the end will show it.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The bytes of `range`; all of them where the size is not known.
    pub fn into_body(self, range: Range<u64>) -> Body {
        match self.source {
            ContentSource::Stored(blob) => Body::stored(blob, range),
            ContentSource::Following(reader) => Body::following(reader, range),
            ContentSource::Passing(digest, body) => {
                Body::passing(Passing::new(digest, body.body, range))
            }
            ContentSource::Collected(bytes) => {
                let place = |position| {
                    usize::try_from(position)
                        .unwrap_or(usize::MAX)
                        .min(bytes.len())
                };
                let part = bytes
                    .get(place(range.start)..place(range.end))
                    .unwrap_or_default();
                Body::bytes(part.to_vec())
            }
        }
    }
}

impl Pull {
    pub async fn blob(
        self: &Rc<Self>,
        access: &Access,
        digest: &Digest,
    ) -> Result<OpenBlob, PullError> {
        let key = access.key(digest);
        for _ in 0..MOST_ROUNDS {
            let presence = self.cache.presence(&key);
            if presence == Presence::Absent && self.redirecting.borrow().contains(&access.registry)
            {
                break;
            }
            if presence != Presence::Absent
                && !self.proofs.may_have(access, digest)
                && !self.prove(access, digest).await?
            {
                break;
            }
            let opened = match self.cache.open(&key).await {
                Ok(opened) => opened,
                Err(OpenError::Busy(error)) => return Err(error.into()),
                Err(OpenError::Disk(error)) => {
                    tracing::warn!(%digest, %error, "a cached blob cannot be opened; it is streamed uncached");
                    break;
                }
            };
            match opened {
                Opened::Missing(fill) => return self.fetch_into(access, digest, fill).await,
                // It came to be since we looked: by another, whose proof is not ours.
                _ if !self.proofs.may_have(access, digest) => {}
                // A manifest says another size. One of the two is wrong; a file that was cut short, by a power cut
                // or a copy, would be.
                Opened::Stored(blob)
                    if self
                        .proofs
                        .size(access, digest)
                        .is_some_and(|size| size != blob.size)
                        && !self.cache.verify(&key, blob.clone()).await? => {}
                Opened::Stored(blob) => {
                    metrics::add(Counter::BlobHits, 1);
                    return Ok(stored(blob));
                }
                Opened::Filling(reader) => {
                    if let Some(content) = self.follow(access, digest, reader).await? {
                        metrics::add(Counter::BlobFollows, 1);
                        return Ok(OpenBlob::Content(content));
                    }
                }
            }
        }
        self.fetch_for_one(access, digest).await
    }

    pub async fn blob_head(&self, access: &Access, digest: &Digest) -> Result<BlobHead, PullError> {
        let key = access.key(digest);
        if self.proofs.may_have(access, digest)
            && let Presence::Stored { size } = self.cache.presence(&key)
        {
            return Ok(BlobHead::Found { size: Some(size) });
        }
        let login = self
            .login(&access.caller, &access.registry, &access.repository)
            .await?;
        Ok(
            match self
                .upstream
                .blob_head(access.source(&login), digest)
                .await?
            {
                upstream::BlobHead::Redirect { status, location } => {
                    BlobHead::Redirect { status, location }
                }
                upstream::BlobHead::Found { size } => {
                    self.proofs.note_allowed(access, *digest, size);
                    BlobHead::Found { size }
                }
            },
        )
    }

    /// The cache has it; whether this holder may have it too, the registry says. `false`: it says neither yes nor
    /// no to the question, and is then asked for the blob itself. A redirect is no yes: some registries
    /// redirect whatever they are asked for.
    async fn prove(&self, access: &Access, digest: &Digest) -> Result<bool, PullError> {
        let login = self
            .login(&access.caller, &access.registry, &access.repository)
            .await?;
        match self.upstream.blob_head(access.source(&login), digest).await {
            Ok(upstream::BlobHead::Found { size }) => {
                self.proofs.note_allowed(access, *digest, size);
                Ok(true)
            }
            Ok(upstream::BlobHead::Redirect { .. }) => Ok(false),
            Err(FetchError::Failed {
                status: 400..500, ..
            }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// `None`: the claim was given up, so ask again.
    async fn follow(
        &self,
        access: &Access,
        digest: &Digest,
        reader: Reader,
    ) -> Result<Option<Content>, PullError> {
        let failed = |cause| PullError::Fill {
            registry: access.registry.clone(),
            digest: *digest,
            cause,
        };
        let size = match reader.size().await {
            Ok(size) => size,
            Err(Ending::Failed(cause)) => return Err(failed(cause)),
            Err(Ending::Released(_) | Ending::Complete) => return Ok(None),
        };
        // Nothing of a blob this small is released before it is verified, so wait: an error can then
        // still be told in words.
        if size <= HELD_BACK as u64 {
            match reader.ended().await {
                Ending::Complete => {}
                Ending::Failed(cause) => return Err(failed(cause)),
                Ending::Released(_) => return Ok(None),
            }
        }
        Ok(Some(Content {
            size: Some(size),
            source: ContentSource::Following(reader),
        }))
    }

    /// We hold the claim: all who ask now wait for us.
    async fn fetch_into(
        self: &Rc<Self>,
        access: &Access,
        digest: &Digest,
        fill: Fill,
    ) -> Result<OpenBlob, PullError> {
        let login = self
            .login(&access.caller, &access.registry, &access.repository)
            .await?;
        let body = match self.upstream.blob(access.source(&login), digest).await {
            Ok(FetchedBlob::Inline(body)) => body,
            Ok(FetchedBlob::Redirect { status, location }) => {
                fill.release(Release::AskYourself);
                return Ok(self.pass_redirect(access, status, location));
            }
            Err(error) => {
                if concerns_everybody(&error) {
                    fill.fail(FillError::Source(error.to_string()));
                } else {
                    fill.release(Release::AskYourself);
                }
                return Err(error.into());
            }
        };
        let named = self.proofs.size(access, digest);
        self.proofs.note_allowed(access, *digest, body.size);
        let Some(size) = body.size.or(named) else {
            // Bytes that cannot be reserved cannot be cached.
            fill.release(Release::NoRoom);
            return self.pass(access, digest, body).await;
        };
        let Ok(writer) = fill.begin(size).await else {
            return self.pass(access, digest, body).await;
        };
        let reader = writer.reader();
        let run = Rc::clone(self).fill(access.clone(), *digest, writer, body.body);
        monoio::spawn(without_panic("a fill", run));
        match self.follow(access, digest, reader).await? {
            Some(content) => Ok(OpenBlob::Content(content)),
            None => self.fetch_for_one(access, digest).await,
        }
    }

    /// Without a claim, for this client alone.
    async fn fetch_for_one(&self, access: &Access, digest: &Digest) -> Result<OpenBlob, PullError> {
        let login: Login = self
            .login(&access.caller, &access.registry, &access.repository)
            .await?;
        match self.upstream.blob(access.source(&login), digest).await? {
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
                    && let Ok(Opened::Stored(blob)) = self.cache.open(&key).await
                {
                    metrics::add(Counter::BlobHits, 1);
                    return Ok(stored(blob));
                }
                self.pass(access, digest, body).await
            }
        }
    }

    fn pass_redirect(&self, access: &Access, status: u16, location: String) -> OpenBlob {
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
    async fn pass(
        &self,
        access: &Access,
        digest: &Digest,
        body: Box<BlobBody>,
    ) -> Result<OpenBlob, PullError> {
        metrics::add(Counter::BlobBypasses, 1);
        let size = body.size;
        if size.is_none_or(|size| size > HELD_BACK as u64) {
            let source = ContentSource::Passing(*digest, body);
            return Ok(OpenBlob::Content(Content { size, source }));
        }
        let bytes = body
            .body
            .collect(HELD_BACK)
            .await
            .map_err(|error| FetchError::Malformed {
                registry: access.registry.clone(),
                problem: format!("a blob that could not be read: {error}"),
            })?;
        if !digest.matches(&bytes) {
            metrics::add(Counter::BlobMismatches, 1);
            return Err(PullError::Mismatch {
                registry: access.registry.clone(),
                digest: *digest,
            });
        }
        let source = ContentSource::Collected(bytes);
        Ok(OpenBlob::Content(Content { size, source }))
    }
}

fn stored(blob: Blob) -> OpenBlob {
    OpenBlob::Content(Content {
        size: Some(blob.size),
        source: ContentSource::Stored(blob),
    })
}

/// Whether another caller, with other credentials, would fare the same.
fn concerns_everybody(error: &FetchError) -> bool {
    match error {
        FetchError::Unreachable { .. } | FetchError::Malformed { .. } => true,
        FetchError::Failed { .. }
        | FetchError::Unknown { .. }
        | FetchError::Refused { .. }
        | FetchError::RateLimited { .. }
        | FetchError::Forbidden { .. }
        | FetchError::Busy(_) => false,
    }
}
