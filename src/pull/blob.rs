//! A blob: may this holder have it, who has it, and if nobody has, fetch it once for all who ask.

use std::{ops::Range, rc::Rc};

use super::{
    Access, Pull, PullError,
    content::{Content, ContentSource},
    fill::{Filler, asked, concerns_everybody},
    uncached::coded,
};
use crate::{
    cache::{
        Begun, Blob, Ending, Fill, FillError, HELD_BACK, OpenError, Opened, Presence, Reader,
        Release, SMALL,
    },
    oci::Digest,
    telemetry::metrics::{self, Counter},
    upstream::{self, BlobBody, FetchError, FetchedBlob},
};

/// How often we come back to a blob whose claim was given up by another. Then we stream it for ourselves.
const MOST_ROUNDS: usize = 16;

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

/// Which part of a blob is wanted first, given its size. Never empty, unless the blob is.
pub type FirstPart<'a> = &'a dyn Fn(u64) -> Range<u64>;

impl Pull {
    pub async fn blob(
        self: &Rc<Self>,
        access: &Access,
        digest: &Digest,
        first_part: FirstPart<'_>,
    ) -> Result<OpenBlob, PullError> {
        match self.hit(access, digest) {
            Some(blob) => Ok(stored(blob)),
            // In a box, so that those who wait for nothing need not carry its state along.
            None => Box::pin(self.overlaid_or_plain_blob(access, digest, first_part)).await,
        }
    }

    /// The blob, if nobody has to be asked or waited for: one look at what is proved, one at what is stored.
    fn hit(&self, access: &Access, digest: &Digest) -> Option<Blob> {
        let standing = self.proofs.standing(access, digest);
        if !standing.may_have {
            return None;
        }
        let blob = self
            .cache
            .open_at_once(&access.key(digest), &access.repository)?;
        let is_as_named = standing.size.is_none_or(|size| size == blob.size);
        is_as_named.then(|| {
            metrics::add(Counter::BlobHits, 1);
            blob
        })
    }

    pub(super) async fn blob_by_asking(
        self: &Rc<Self>,
        access: &Access,
        digest: &Digest,
        first_part: FirstPart<'_>,
    ) -> Result<OpenBlob, PullError> {
        let ask = || self.blob_by_asking_once(access, digest, first_part);
        self.for_access(access, ask).await
    }

    async fn blob_by_asking_once(
        self: &Rc<Self>,
        access: &Access,
        digest: &Digest,
        first_part: FirstPart<'_>,
    ) -> Result<OpenBlob, PullError> {
        let key = access.key(digest);
        for _ in 0..MOST_ROUNDS {
            let presence = self.cache.presence(&key);
            if presence == Presence::Absent
                && !access.follows_redirects
                && self.redirecting.borrow().contains(&access.registry)
            {
                break;
            }
            if matches!(presence, Presence::Stored { .. })
                && !self.proofs.may_have(access, digest)
                && !self.prove(access, digest).await?
            {
                break;
            }
            let opened = match self.cache.open(&key, &access.repository).await {
                Ok(opened) => opened,
                Err(OpenError::Busy(error)) => return Err(error.into()),
                Err(OpenError::Disk(error)) => {
                    tracing::warn!(%digest, %error, "a cached blob cannot be opened; it is streamed uncached");
                    break;
                }
            };
            match opened {
                Opened::Missing(fill) => {
                    return self.fetch_into(access, digest, fill, first_part).await;
                }
                // Another asks the registry right now, and its answer may prove enough for us as well.
                Opened::Filling(reader) if !self.proofs.may_have(access, digest) => {
                    let _ = reader.size().await;
                    drop(reader);
                    if !self.proofs.may_have(access, digest) && !self.prove(access, digest).await? {
                        break;
                    }
                }
                // It came to be since we looked: by another, whose proof is not ours.
                Opened::Stored(_) if !self.proofs.may_have(access, digest) => {}
                // A manifest says another size. One of the two is wrong; a file that was cut short, by a power cut
                // or a copy, would be.
                Opened::Stored(blob)
                    if self
                        .proofs
                        .size(access, digest)
                        .is_some_and(|size| size != blob.size)
                        && !self.cache.verify(&key).await? => {}
                Opened::Stored(blob) => {
                    metrics::add(Counter::BlobHits, 1);
                    return Ok(stored(blob));
                }
                Opened::Filling(reader) => {
                    if let Some(content) = self.follow(access, digest, reader, first_part).await? {
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
        self.overlaid_or_plain_head(access, digest).await
    }

    pub(super) async fn blob_head_by_asking(
        &self,
        access: &Access,
        digest: &Digest,
    ) -> Result<BlobHead, PullError> {
        let ask = || self.blob_head_by_asking_once(access, digest);
        self.for_access(access, ask).await
    }

    async fn blob_head_by_asking_once(
        &self,
        access: &Access,
        digest: &Digest,
    ) -> Result<BlobHead, PullError> {
        let login = self.login_for(access).await?;
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
        let login = self.login_for(access).await?;
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
        self: &Rc<Self>,
        access: &Access,
        digest: &Digest,
        reader: Reader,
        first_part: FirstPart<'_>,
    ) -> Result<Option<Content>, PullError> {
        let failed = |cause| PullError::Fill {
            registry: access.sender().clone(),
            digest: *digest,
            cause,
        };
        let size = match reader.size().await {
            Ok(size) => size,
            Err(Ending::Failed(cause)) => return Err(failed(cause)),
            Err(Ending::Released(_) | Ending::Complete) => return Ok(None),
        };
        let wanted = wanted(size, first_part);
        reader.want(wanted.clone());
        let filler = Filler::new(self, access, digest);
        if let Some(run) = reader.claim(wanted.start) {
            filler.start_after_answer(run).await?;
        }
        // Nothing of a blob this small is released before it is verified, so wait: an error can then
        // still be told in words.
        if size.is_some_and(|size| size <= HELD_BACK) {
            match reader.ended().await {
                Ending::Complete => {}
                Ending::Failed(cause) => return Err(failed(cause)),
                Ending::Released(_) => return Ok(None),
            }
        }
        Ok(Some(Content {
            size,
            source: ContentSource::Following(reader, filler),
        }))
    }

    /// We hold the claim: all who ask now wait for us.
    async fn fetch_into(
        self: &Rc<Self>,
        access: &Access,
        digest: &Digest,
        fill: Fill,
        first_part: FirstPart<'_>,
    ) -> Result<OpenBlob, PullError> {
        let whole = |size| 0..size;
        let first_part: FirstPart<'_> = if fill.is_doubtful() {
            &whole
        } else {
            first_part
        };
        let kept = fill.kept();
        let named = match &kept {
            Some((size, _)) => Some(*size),
            None => self.known_size(access, digest, first_part).await,
        };
        // What is there already need not be asked for, but whether this holder may have it must be.
        let missing = match (named, &kept) {
            (Some(size), Some((_, extents))) => {
                let wanted = wanted(named, first_part);
                extents.gap(wanted.start, wanted.end.min(size))
            }
            _ => Some(wanted(named, first_part)),
        };
        let Some(missing) = missing else {
            if !self.proofs.may_have(access, digest) && !self.prove(access, digest).await? {
                fill.release(Release::AskYourself);
                return self.fetch_for_one(access, digest).await;
            }
            return self
                .begin(access, digest, fill, named, None, first_part)
                .await;
        };
        let part = match named {
            Some(size) => asked(missing, Some(size)),
            None => None,
        };
        let mut fetched = self.fetch(access, digest, part.clone()).await;
        let is_no_answer = match &fetched {
            Ok(FetchedBlob::Inline(body)) => {
                body.is_part
                    && (body.coding.is_some() || body.size.is_some_and(|size| Some(size) != named))
            }
            Err(PullError::Fetch(error)) => is_about_parts(error),
            _ => false,
        };
        if part.is_some() && is_no_answer {
            fetched = self.fetch(access, digest, None).await;
        }
        let body = match fetched {
            Ok(FetchedBlob::Inline(body)) => body,
            Ok(FetchedBlob::Redirect { status, location }) => {
                fill.release(Release::AskYourself);
                return Ok(self.pass_redirect(access, status, location));
            }
            Err(error) => {
                match &error {
                    PullError::Fetch(error) if concerns_everybody(error) => {
                        fill.fail(FillError::Source(error.to_string()));
                    }
                    _ => fill.release(Release::AskYourself),
                }
                return Err(error);
            }
        };
        if let (Some(coding), Some(stated), Some(named)) = (&body.coding, body.size, named)
            && stated != named
        {
            let error = coded(access, digest, coding);
            fill.fail(FillError::Source(error.to_string()));
            return Err(error.into());
        }
        let first_part = if body.coding.is_some() {
            // Whether they are the blob's bytes shows at the end only.
            fill.doubt();
            &whole
        } else {
            first_part
        };
        let size = body.size.or(named);
        self.proofs.note_allowed(access, *digest, size);
        self.begin(access, digest, fill, size, Some(body), first_part)
            .await
    }

    async fn begin(
        self: &Rc<Self>,
        access: &Access,
        digest: &Digest,
        fill: Fill,
        size: Option<u64>,
        body: Option<Box<BlobBody>>,
        first_part: FirstPart<'_>,
    ) -> Result<OpenBlob, PullError> {
        let Ok(Begun { reader, run }) = fill.begin(size, wanted(size, first_part)).await else {
            return match body {
                Some(body) if !body.is_part => self.pass(access, digest, body).await,
                _ => self.fetch_for_one(access, digest).await,
            };
        };
        let filler = Filler::new(self, access, digest);
        if let Some(run) = run {
            filler.start(run, body);
        }
        match self.follow(access, digest, reader, first_part).await? {
            Some(content) => Ok(OpenBlob::Content(content)),
            None => self.fetch_for_one(access, digest).await,
        }
    }

    /// A part can only be asked for of a blob whose size is known. Mostly a manifest has said it.
    async fn known_size(
        &self,
        access: &Access,
        digest: &Digest,
        first_part: FirstPart<'_>,
    ) -> Option<u64> {
        if let Some(size) = self.proofs.size(access, digest) {
            return Some(size);
        }
        const LARGE: u64 = u64::MAX / 2;
        if first_part(LARGE) == (0..LARGE) {
            return None;
        }
        let login = self.login_for(access).await.ok()?;
        match self.upstream.blob_head(access.source(&login), digest).await {
            Ok(upstream::BlobHead::Found { size }) => size,
            // Whatever is wrong, the question for the blob itself will tell.
            Ok(upstream::BlobHead::Redirect { .. }) | Err(_) => None,
        }
    }

    pub(super) async fn fetch(
        &self,
        access: &Access,
        digest: &Digest,
        part: Option<Range<u64>>,
    ) -> Result<FetchedBlob, PullError> {
        if let Some(web) = &access.web {
            let body = self.fetch_from_web(web, digest, part).await?;
            return Ok(FetchedBlob::Inline(Box::new(body)));
        }
        let login = self.login_for(access).await?;
        let source = access.source(&login);
        Ok(match access.follows_redirects {
            true => self.upstream.blob_wherever(source, digest, part).await?,
            false => self.upstream.blob(source, digest, part).await?,
        })
    }
}

pub(super) fn stored(blob: Blob) -> OpenBlob {
    OpenBlob::Content(Content::stored(blob))
}

/// What is fetched first: of a small blob, or one of unknown size, all of it.
fn wanted(size: Option<u64>, first_part: FirstPart<'_>) -> Range<u64> {
    match size {
        Some(size) if size > SMALL => first_part(size),
        Some(size) => 0..size,
        None => 0..u64::MAX,
    }
}

/// The registry may have the blob and not divide it.
fn is_about_parts(error: &FetchError) -> bool {
    matches!(
        error,
        FetchError::Failed { .. } | FetchError::Malformed { .. }
    )
}
