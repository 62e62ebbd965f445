//! A fill: from the registry to the disk, for whoever follows. It belongs to no client, takes a broken download up
//! again, and ends when it is not worth its bytes of the cache any more.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use super::{Access, Pull, PullError};
use crate::{
    cache::{FillError, FillWriter},
    oci::Digest,
    telemetry::metrics::{self, Counter},
    upstream,
};

/// A download that breaks again after this many bytes has not failed, its connections are short.
const PROGRESS: u64 = 16 << 20;

impl Pull {
    pub(super) async fn fill(
        self: Rc<Self>,
        access: Access,
        digest: Digest,
        mut writer: FillWriter,
        mut body: upstream::Body,
    ) {
        let started = Instant::now();
        let mut last_followed = started;
        let mut broken = 0;
        let mut broken_at = 0;
        loop {
            match body.next().await {
                Ok(Some(piece)) => {
                    metrics::add(Counter::BytesFetched, piece.len() as u64);
                    if let Err(error) = writer.write(piece).await {
                        return writer.fail(error);
                    }
                    if writer.is_followed() {
                        last_followed = Instant::now();
                    }
                    if !is_worth_it(&writer, started.elapsed(), last_followed.elapsed()) {
                        let text = "it was too slow, or nobody waited for it any more".to_owned();
                        return writer.fail(FillError::Source(text));
                    }
                }
                Ok(None) => return writer.finish().await,
                Err(error) => {
                    if writer.written() - broken_at >= PROGRESS {
                        broken = 0;
                    }
                    broken_at = writer.written();
                    if broken >= self.upstream.retry_count() {
                        let text = format!("the registry's connection broke: {error}");
                        return writer.fail(FillError::Source(text));
                    }
                    broken += 1;
                    tracing::info!(%digest, registry = %access.registry, at = broken_at, %error,
                        "a download broke and is taken up again");
                    body = match self
                        .resume(&access, &digest, broken_at, writer.size())
                        .await
                    {
                        Ok(rest) => rest,
                        Err(error) => return writer.fail(FillError::Source(error.to_string())),
                    };
                }
            }
        }
    }

    async fn resume(
        &self,
        access: &Access,
        digest: &Digest,
        start: u64,
        size: u64,
    ) -> Result<upstream::Body, PullError> {
        let login = self
            .login(&access.caller, &access.registry, &access.repository)
            .await?;
        Ok(self
            .upstream
            .blob_rest(access.source(&login), digest, start, size)
            .await?)
    }
}

/// A fill belongs to no client, but it is for clients. One that is small or well on its way is finished for the next;
/// one that nobody waits for, or that crawls, would hold its bytes of the cache for nothing.
fn is_worth_it(writer: &FillWriter, elapsed: Duration, unfollowed: Duration) -> bool {
    // A client whose connection broke comes back within seconds.
    const LONGEST_UNFOLLOWED: Duration = Duration::from_secs(10);
    const SMALL: u64 = 8 << 20;
    const SLOWEST_PER_SECOND: u64 = 16 << 10;
    const TIME_TO_GET_GOING: Duration = Duration::from_secs(60);
    let (written, size) = (writer.written(), writer.size());
    if size <= SMALL || written == size {
        return true;
    }
    let is_slow = elapsed > TIME_TO_GET_GOING && written / elapsed.as_secs() < SLOWEST_PER_SECOND;
    !is_slow && (unfollowed < LONGEST_UNFOLLOWED || written >= size / 4)
}
