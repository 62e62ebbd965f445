//! A blob's way into an upload: in one request if it is small, else streamed, and taken up again where it broke off if
//! the registry knows where that was.
//!
//! ```text
//! small      PUT  all of it, with the digest
//! large      PATCH all of it (or parts, of a registry that takes no more at once), PUT the digest
//! broken     GET  how much is there ──► PATCH the rest
//!                 └► it does not know: a new upload
//! ```

use std::time::Duration;

use super::{
    PushError, Upload,
    blob::expect_digest,
    pusher::{Answer, Ask, Pusher, is_full, pause_of},
    session::{Session, received},
    unless_given_up,
};
use crate::{
    http::{Method, ResponseHead, Url},
    net::Uploaded,
    oci::Digest,
    upstream::{
        exchange::{ExchangeError, Response},
        send::{LONGEST_PAUSE, MOST_REDIRECTS, Problem, Refusal, is_passing},
        upload::{BodyFailure, Payload},
    },
};

/// Up to here a blob goes with the request that ends its upload, which saves one; what breaks off is sent again from its
/// start. A guess: a second's worth.
const AT_ONCE: u64 = 16 << 20;
/// Of a registry, or a proxy before it, that takes no more in one request. Under the limits that are met (100 MB), and
/// above the least that storages want of a part (5 MiB).
const PART: u64 = 32 << 20;
/// From a body's last byte to the answer. Registries hash, move and copy what they have before they say yes. A guess with
/// room: ten gigabytes inside an object store take about two minutes.
const SETTLING: Duration = Duration::from_secs(300);
const OCTETS: &str = "application/octet-stream";

pub(super) struct Parts<'a, C> {
    pusher: Pusher<'a>,
    digest: &'a Digest,
    size: u64,
    content: &'a mut C,
    most_at_once: u64,
    /// What the registry has had of it at best.
    furthest: u64,
    /// Since it had more.
    failures: u32,
    redirects: usize,
    /// Where the next request goes, by a redirect.
    instead: Option<Url>,
    was_resumed: bool,
}

/// What one request has brought.
enum Step {
    Done,
    /// The registry has more than before.
    Taken,
    /// The same again: with another token, or elsewhere.
    Again,
    Failed(Failure),
}

struct Failure {
    cause: PushError,
    pause: Option<Duration>,
    upload: Remains,
}

/// What is left of an upload by a request that failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Remains {
    /// All that the registry says to have.
    Part,
    /// Nothing of use.
    Waste,
    Nothing,
}

/// What a registry says of an upload.
enum Standing {
    Has(u64),
    Unclear,
    Gone,
}

impl<'a, C: Upload> Parts<'a, C> {
    pub(super) fn new(
        pusher: Pusher<'a>,
        digest: &'a Digest,
        size: u64,
        content: &'a mut C,
    ) -> Self {
        Self {
            pusher,
            digest,
            size,
            content,
            most_at_once: u64::MAX,
            furthest: 0,
            failures: 0,
            redirects: 0,
            instead: None,
            was_resumed: false,
        }
    }

    /// With an error comes what it leaves open.
    pub(super) async fn push(
        mut self,
        mut session: Session,
    ) -> Result<(), (PushError, Option<Session>)> {
        loop {
            let failure = match self.step(&mut session).await {
                Ok(Step::Done) => return Ok(()),
                Ok(Step::Taken) => {
                    self.note(session.position);
                    continue;
                }
                Ok(Step::Again) => continue,
                Ok(Step::Failed(failure)) => failure,
                Err(error) => return Err((error, Some(session))),
            };
            self.failures += 1;
            if self.failures > self.pusher.upstream.retry_count() {
                let left = (failure.upload != Remains::Nothing).then_some(session);
                return Err((failure.cause, left));
            }
            let pause = pause_of(self.failures - 1);
            let pause = failure.pause.map_or(pause, |asked| asked.max(pause));
            if let Err(given_up) = unless_given_up(self.content, self.pusher.pause(pause)).await {
                let left = (failure.upload != Remains::Nothing).then_some(session);
                return Err((given_up.into(), left));
            }
            let remains = match failure.upload {
                Remains::Part => match self.standing(&mut session).await {
                    Ok(Standing::Has(position)) => {
                        self.was_resumed = true;
                        session.position = position;
                        self.note(position);
                        continue;
                    }
                    Ok(Standing::Unclear) => Remains::Waste,
                    Ok(Standing::Gone) => Remains::Nothing,
                    Err(error) => return Err((error, Some(session))),
                },
                remains => remains,
            };
            match self.begin_anew(session, remains).await {
                Ok(Some(new)) => session = new,
                Ok(None) => return Ok(()),
                Err(error) => return Err((error, None)),
            }
        }
    }

    /// One request with what comes next.
    async fn step(&mut self, session: &mut Session) -> Result<Step, PushError> {
        let start = session.position;
        let most = self.most_at_once.max(session.smallest_part);
        let end = self.size.min(start.saturating_add(most));
        let is_whole = start == 0 && end == self.size && self.size <= AT_ONCE;
        let (method, url) = if is_whole || start == self.size {
            (Method::Put, session.end(self.digest))
        } else {
            (Method::Patch, session.url.clone())
        };
        let url = self.instead.take().unwrap_or(url);
        // Who sends all of a blob says it as Docker does, which every registry knows. Who goes on says where, so that
        // the registry can object.
        let is_part = method == Method::Patch && (start > 0 || end < self.size);
        let payload = Payload {
            content_type: Some(OCTETS),
            part: is_part.then_some(start..end),
            size: end - start,
            patience: SETTLING.max(*self.pusher.upstream.options.response_timeout),
        };
        if start < end {
            self.content.seek(start).await?;
        }
        self.pusher.authorize().await?;
        let sent = self
            .pusher
            .send_part(method, &url, &payload, self.content)
            .await;
        let (response, went) = match sent {
            Ok(sent) => sent,
            Err(BodyFailure::Source(error)) => return Err(error.into()),
            Err(BodyFailure::Exchange(error)) => return self.broken(error),
        };
        match response.head.status {
            200..300 => {
                self.pusher.succeeded();
                let head = response.head;
                response.body.discard().await;
                // Of what it did not wait for it can only have what it says.
                let end = match went {
                    Uploaded::Whole => end,
                    Uploaded::Interrupted => received(&head).unwrap_or(start).min(end),
                };
                self.accepted(session, method, &url, &head, end).await
            }
            300..400 => self.redirected(method, &url, response).await,
            _ => {
                let refused = self.pusher.renewed_after(response, &url, method).await?;
                match refused {
                    None => Ok(Step::Again),
                    Some(refusal) => self.refused(refusal, &url, end - start),
                }
            }
        }
    }

    async fn accepted(
        &mut self,
        session: &mut Session,
        method: Method,
        url: &Url,
        head: &ResponseHead,
        end: u64,
    ) -> Result<Step, PushError> {
        if method == Method::Put {
            expect_digest(self.pusher.target, head, self.digest)?;
            return Ok(Step::Done);
        }
        // Amazon's takes the last part for the end of it.
        if head.status == 201 && end == self.size && self.pusher.has_blob(self.digest).await? {
            return Ok(Step::Done);
        }
        let moved = session.moved(url, head);
        moved.map_err(|problem| self.pusher.malformed(problem))?;
        // If it has less than was sent it says so. What it says of more cannot be so; the digest will tell.
        let taken = received(head).map_or(end, |position| position.min(end));
        if taken <= session.position {
            let problem = format!("it took nothing of what follows byte {}", session.position);
            return Ok(Step::Failed(Failure {
                cause: self.mismatch(problem),
                pause: None,
                upload: Remains::Part,
            }));
        }
        self.was_resumed |= taken < end;
        session.position = taken;
        Ok(Step::Taken)
    }

    async fn redirected(
        &mut self,
        method: Method,
        url: &Url,
        response: Response,
    ) -> Result<Step, PushError> {
        let next = self.pusher.redirect(method, url, &response.head);
        let status = response.head.status;
        response.body.discard().await;
        self.redirects += 1;
        self.instead = next.map_err(|problem| self.pusher.problem(problem))?;
        if self.instead.is_none() {
            let problem = format!("a redirect ({status}) of an upload, which is not followed");
            return Err(self.pusher.malformed(problem));
        }
        if self.redirects > MOST_REDIRECTS {
            let problem = Problem::Redirect("one redirect after the other");
            return Err(self.pusher.problem(problem));
        }
        Ok(Step::Again)
    }

    fn refused(&mut self, refusal: Refusal, url: &Url, sent: u64) -> Result<Step, PushError> {
        let status = refusal.status;
        let code = refusal.said.0.clone().unwrap_or_default();
        let pause = refusal.retry_after;
        let is_full = is_full(&refusal);
        let what = format!("blob {}", self.digest);
        let is_of_upload = code.starts_with("BLOB_UPLOAD_");
        let cause = PushError::of_refusal(refusal, self.pusher.target, what);
        let failed = |cause, upload| {
            Ok(Step::Failed(Failure {
                cause,
                pause,
                upload,
            }))
        };
        match status {
            _ if is_full => Err(cause),
            // A signed address that has ended, most likely: the registry gives another.
            400..500 if status != 413 && !self.pusher.is_home(url) => {
                let cause = PushError::Unreachable {
                    registry: self.pusher.target.registry.clone(),
                    cause: format!("the storage that it names answered {status} for an upload"),
                    retry_after: None,
                };
                failed(cause, Remains::Nothing)
            }
            404 | 410 => failed(cause, Remains::Nothing),
            400 if is_of_upload => failed(cause, Remains::Nothing),
            400 if code.starts_with("DIGEST_INVALID") || code.starts_with("SIZE_INVALID") => {
                let cause = self.mismatch(code);
                match self.was_resumed {
                    // What was put together from parts may be wrong by their seams.
                    true => failed(cause, Remains::Waste),
                    false => Err(cause),
                }
            }
            413 if sent > PART => {
                self.most_at_once = PART;
                failed(cause, Remains::Waste)
            }
            416 => failed(cause, Remains::Part),
            429 | 500.. if pause.is_none_or(|asked| asked <= LONGEST_PAUSE) => {
                failed(cause, Remains::Part)
            }
            _ => Err(cause),
        }
    }

    fn broken(&self, error: ExchangeError) -> Result<Step, PushError> {
        // Of an answer that does not come the registry may still have all.
        let is_passing = is_passing(&error) || matches!(error, ExchangeError::Silent(_));
        let cause = self.pusher.problem(Problem::Exchange(error));
        match is_passing {
            true => Ok(Step::Failed(Failure {
                cause,
                pause: None,
                upload: Remains::Part,
            })),
            false => Err(cause),
        }
    }

    /// How much the registry has. The distribution project's own does not say it in the middle of a part, and ends the
    /// upload.
    async fn standing(&mut self, session: &mut Session) -> Result<Standing, PushError> {
        let asked = session.url.clone();
        let ask = Ask {
            method: Method::Get,
            url: &asked,
            body: None,
        };
        match unless_given_up(self.content, self.pusher.ask(&ask)).await?? {
            Answer::Yes { head, url } if (200..300).contains(&head.status) => {
                let moved = session.moved(&url, &head);
                moved.map_err(|problem| self.pusher.malformed(problem))?;
                let position = received(&head).filter(|position| *position <= self.size);
                Ok(position.map_or(Standing::Unclear, Standing::Has))
            }
            Answer::No(refusal) if refusal.status == 404 => Ok(Standing::Gone),
            Answer::Yes { .. } | Answer::No(_) => Ok(Standing::Unclear),
        }
    }

    /// `None`: the upload has gone because it is a blob now.
    async fn begin_anew(
        &mut self,
        old: Session,
        remains: Remains,
    ) -> Result<Option<Session>, PushError> {
        if self.pusher.has_blob(self.digest).await? {
            return Ok(None);
        }
        if remains != Remains::Nothing {
            let Pusher {
                upstream, target, ..
            } = self.pusher;
            upstream.cancel_upload(target, old).await;
        }
        self.was_resumed = false;
        self.pusher.open_upload().await.map(Some)
    }

    fn note(&mut self, position: u64) {
        if position > self.furthest {
            self.furthest = position;
            self.failures = 0;
        }
    }

    fn mismatch(&self, problem: String) -> PushError {
        PushError::Mismatch {
            registry: self.pusher.target.registry.clone(),
            digest: *self.digest,
            problem,
        }
    }
}
