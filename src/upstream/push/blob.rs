//! Pushing a blob: whether it is there, whether it can be had from a neighbour, and how an upload begins and is given up.
//! How its bytes get there is in `parts.rs`.

use std::time::Duration;

use bytes::Bytes;
use monoio::time::timeout;

use super::{
    PushError, Target, Upload,
    parts::Parts,
    pusher::{Answer, Ask, Pusher},
    session::Session,
};
use crate::{
    http::{Method, ResponseHead, Url},
    oci::{Digest, Repository},
    upstream::{
        Upstream,
        rights::{Actions, Rights},
    },
};

/// What it costs at most to be tidy. Registries clear up what was left behind, after days.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);

pub enum Mount {
    Mounted,
    /// The registry opened an upload instead.
    Opened(Session),
}

impl Upstream {
    /// Opens an upload and cancels it: whether this login may push there, before much is transferred.
    pub async fn try_push(&self, target: Target<'_>) -> Result<(), PushError> {
        let session = self.pusher(target)?.open_upload().await?;
        self.cancel_upload(target, session).await;
        Ok(())
    }

    pub async fn has_blob(&self, target: Target<'_>, digest: &Digest) -> Result<bool, PushError> {
        self.pusher(target)?.has_blob(digest).await
    }

    /// Without sending it, if the registry has it in `from` and this login may pull there.
    pub async fn mount_blob(
        &self,
        target: Target<'_>,
        digest: &Digest,
        from: &Repository,
    ) -> Result<Mount, PushError> {
        let rights = Rights::of(target.repository, Actions::Push).mounting(from);
        let mut pusher = Pusher::new(self, target, rights)?;
        let url = pusher.url(&format!("blobs/uploads/?mount={digest}&from={from}"));
        match pusher.post(&url).await {
            Ok(Answer::Yes { head, .. }) if head.status == 201 => {
                expect_digest(target, &head, digest)?;
                Ok(Mount::Mounted)
            }
            Ok(Answer::Yes { head, url }) if head.status == 202 => {
                let session = Session::opened(&url, &head);
                let session = session.map_err(|problem| pusher.malformed(problem))?;
                Ok(Mount::Opened(session))
            }
            // A registry that knows no mounts, or a login that may not look there.
            Ok(_) | Err(PushError::Refused { .. } | PushError::Failed { .. }) => {
                let session = self.pusher(target)?.open_upload().await?;
                Ok(Mount::Opened(session))
            }
            Err(error) => Err(error),
        }
    }

    /// `session`: of a mount that became an upload. What has begun is cancelled if it comes to nothing.
    pub async fn push_blob(
        &self,
        target: Target<'_>,
        digest: &Digest,
        size: u64,
        session: Option<Session>,
        content: &mut impl Upload,
    ) -> Result<(), PushError> {
        let mut pusher = self.pusher(target)?;
        let session = match session {
            Some(session) => session,
            None => pusher.open_upload().await?,
        };
        match Parts::new(pusher, digest, size, content)
            .push(session)
            .await
        {
            Ok(()) => Ok(()),
            Err((error, session)) => {
                if let Some(session) = session {
                    self.cancel_upload(target, session).await;
                }
                Err(error)
            }
        }
    }

    fn pusher<'a>(&'a self, target: Target<'a>) -> Result<Pusher<'a>, PushError> {
        let rights = Rights::of(target.repository, Actions::Push);
        Pusher::new(self, target, rights)
    }

    /// As far as possible: some registries know no such request, and some want the right to delete for it.
    pub(super) async fn cancel_upload(&self, target: Target<'_>, session: Session) {
        let rights = Rights::of(target.repository, Actions::Cancel);
        let Ok(mut pusher) = Pusher::new(self, target, rights) else {
            return;
        };
        let ask = Ask {
            method: Method::Delete,
            url: &session.url,
            body: None,
        };
        let _ = timeout(CANCEL_PATIENCE, pusher.ask(&ask)).await;
    }
}

impl Pusher<'_> {
    pub(super) async fn open_upload(&mut self) -> Result<Session, PushError> {
        let url = self.url("blobs/uploads/");
        match self.post(&url).await? {
            Answer::Yes { head, url } if (200..300).contains(&head.status) => {
                Session::opened(&url, &head).map_err(|problem| self.malformed(problem))
            }
            Answer::Yes { head, .. } => Err(self.malformed(format!(
                "a redirect ({}) for a new upload, which is not followed",
                head.status
            ))),
            // In whichever words: there is nothing else that could be missing.
            Answer::No(refusal) if refusal.status == 404 => Err(PushError::NoRepository {
                registry: self.target.registry.clone(),
                repository: self.target.repository.clone(),
                said: refusal.said,
            }),
            Answer::No(refusal) => {
                let what = format!("an upload to {}", self.target.repository);
                Err(PushError::of_refusal(refusal, self.target, what))
            }
        }
    }

    pub(super) async fn has_blob(&mut self, digest: &Digest) -> Result<bool, PushError> {
        let url = self.url(&format!("blobs/{digest}"));
        let ask = Ask {
            method: Method::Head,
            url: &url,
            body: None,
        };
        match self.ask(&ask).await? {
            Answer::Yes { .. } => Ok(true),
            // 405: it knows no HEAD. 500: it cannot tell, as of what it was writing when it was killed. Pushing it will tell, and
            // puts it right.
            Answer::No(refusal) if matches!(refusal.status, 404 | 405 | 500..) => Ok(false),
            Answer::No(refusal) => {
                let what = format!("blob {digest} of {}", self.target.repository);
                Err(PushError::of_refusal(refusal, self.target, what))
            }
        }
    }

    async fn post(&mut self, url: &Url) -> Result<Answer, PushError> {
        let nothing = Bytes::new();
        self.ask(&Ask {
            method: Method::Post,
            url,
            body: Some((None, &nothing)),
        })
        .await
    }
}

/// A registry that says another digest has stored something else.
pub(super) fn expect_digest(
    target: Target<'_>,
    head: &ResponseHead,
    digest: &Digest,
) -> Result<(), PushError> {
    let said = head.headers.get("docker-content-digest");
    match said.and_then(|text| text.trim().parse::<Digest>().ok()) {
        Some(said) if said.algorithm() == digest.algorithm() && said != *digest => {
            Err(PushError::Mismatch {
                registry: target.registry.clone(),
                digest: *digest,
                problem: format!("it says to have stored {said}"),
            })
        }
        _ => Ok(()),
    }
}
