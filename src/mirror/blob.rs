//! One blob: there already, mounted, or sent. What is sent comes from the cache, or follows its fill: the source's bytes go
//! on to the destination while they arrive.

use std::sync::Arc;

use super::{CopyError, State, contents::Part, copying::Copying, progress::Tracked};
use crate::{
    net::Piece,
    oci::Repository,
    pull::{BlobHead, Body, BodyError, FetchError, OpenBlob, PullError},
    requests::Tenant,
    upstream::{Login, Mount, Upload, UploadError},
};

/// At once to the pusher: after each the watchers see how far it is, and a cancelled copy ends.
const LARGEST_PIECE: u64 = 4 << 20;

impl Copying<'_> {
    pub(super) async fn bring_blob(&self, part: &Part) -> Result<(), CopyError> {
        let tracked = self.progress.track(part.digest, part.kind, part.size);
        tracked.set(State::Waiting);
        let brought = self.try_to_bring(part, &tracked).await;
        match &brought {
            Ok(state) => {
                tracked.set(*state);
                self.count_blob(*state, part.size);
            }
            // By no fault of its own.
            Err(CopyError::Cancelled) => tracked.set(State::Waiting),
            Err(_) => {
                tracked.set(State::Failed);
                // Those that are on their way need not be sent to their ends.
                self.end();
            }
        }
        brought.map(|_| ())
    }

    async fn try_to_bring(&self, part: &Part, tracked: &Arc<Tracked>) -> Result<State, CopyError> {
        let digest = &part.digest;
        let login = self.unless_cancelled(self.pusher.login()).await?;
        let whose = self.whose(&login);
        let is_there = self.unless_cancelled(self.pusher.has_blob(digest)).await?;
        if is_there {
            self.note_place(&whose, part);
            return Ok(State::Present);
        }
        if part.is_foreign && part.data.is_none() && !self.is_at_the_source(part).await? {
            return Ok(State::Skipped);
        }
        let mut session = None;
        if let Some(from) = self.place_to_mount_from(&whose, part) {
            let mount = self.pusher.mount_blob(digest, &from);
            match Box::pin(mount).await? {
                Some(Mount::Mounted) => {
                    self.note_place(&whose, part);
                    return Ok(State::Mounted);
                }
                Some(Mount::Opened(opened)) => session = Some(opened),
                None => {}
            }
        }
        tracked.set(State::Copying);
        let mut content = Sending {
            copying: self,
            part,
            tracked,
            body: Body::empty(),
            rest: None,
            position: 0,
            failure: None,
        };
        let pushed = self
            .pusher
            .push_blob(digest, part.size, session, &mut content);
        match (Box::pin(pushed).await, content.failure) {
            (Ok(()), _) => {}
            (Err(_), Some(failure)) => return Err(failure),
            (Err(error), None) => return Err(error),
        }
        self.note_place(&whose, part);
        Ok(State::Copied)
    }

    async fn is_at_the_source(&self, part: &Part) -> Result<bool, CopyError> {
        let asked = self.mirror.pull.blob_head(&self.source, &part.digest);
        match self.unless_cancelled(async { Ok(asked.await) }).await? {
            Ok(BlobHead::Found { .. } | BlobHead::Redirect { .. }) => Ok(true),
            Err(PullError::Fetch(FetchError::Unknown { .. })) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Tenants may have a login in common, the operator's. What one of them put there with it proves nothing for another.
    fn whose(&self, login: &Login) -> String {
        let tenant = Tenant::of(&self.plan.destination.caller);
        format!("{} for {tenant}", login.identity)
    }

    fn place_to_mount_from(&self, whose: &str, part: &Part) -> Option<Repository> {
        let destination = &self.plan.destination;
        let is_same_registry = self.source.registry == destination.registry;
        let known = self
            .mirror
            .whereabouts
            .find(&destination.registry, whose, part.digest);
        let source = is_same_registry.then(|| self.source.repository.clone());
        known
            .into_iter()
            .chain(source)
            .find(|from| *from != destination.repository)
    }

    fn note_place(&self, whose: &str, part: &Part) {
        let destination = &self.plan.destination;
        self.mirror.whereabouts.note(
            &destination.registry,
            whose,
            part.digest,
            &destination.repository,
        );
    }
}

/// The bytes of a blob on their way to the destination.
struct Sending<'a> {
    copying: &'a Copying<'a>,
    part: &'a Part,
    tracked: &'a Tracked,
    body: Body,
    /// Of a piece that was too large.
    rest: Option<Piece>,
    /// Where the bytes end that were handed out.
    position: u64,
    /// More than an `UploadError` can say.
    failure: Option<CopyError>,
}

impl Upload for Sending<'_> {
    async fn seek(&mut self, position: u64) -> Result<(), UploadError> {
        self.failure = None;
        let opened = self.open(position).await;
        self.body = self.or_fail(opened)?;
        self.rest = None;
        self.position = position;
        self.tracked.set_done(position);
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Piece>, UploadError> {
        // What was handed out has been sent when more is wanted.
        self.tracked.set_done(self.position);
        let next = self.piece().await;
        self.or_fail(next)
    }

    async fn given_up(&mut self) -> UploadError {
        self.copying.stopped().await;
        self.fail(CopyError::Cancelled)
    }
}

impl Sending<'_> {
    async fn open(&self, position: u64) -> Result<Body, CopyError> {
        if let Some(data) = &self.part.data {
            let from = usize::try_from(position).unwrap_or(usize::MAX);
            return Ok(Body::bytes(data.slice(from.min(data.len())..)));
        }
        let Copying { mirror, source, .. } = self.copying;
        let first_part = |size: u64| position.min(size)..size;
        let opened = async {
            let opened = mirror.pull.blob(source, &self.part.digest, &first_part);
            Ok(opened.await?)
        };
        match self.copying.unless_cancelled(opened).await? {
            OpenBlob::Content(content) => match content.size() {
                Some(size) if size != self.part.size => Err(self.wrong_size(size)),
                _ => Ok(content.into_body(position..self.part.size)),
            },
            OpenBlob::Redirect { .. } => Err(self.failure(
                "it lies where only a client can fetch it, at an address that is none for a server",
                false,
            )),
        }
    }

    async fn piece(&mut self) -> Result<Option<Piece>, CopyError> {
        self.copying.go_on()?;
        let size = self.part.size;
        let piece = match self.rest.take() {
            Some(rest) => Some(rest),
            None => {
                let got = self
                    .copying
                    .unless_cancelled(async { Ok(self.body.next().await) });
                got.await?.map_err(|error| {
                    let is_transient = !matches!(error, BodyError::Mismatch(_));
                    self.failure(&error.to_string(), is_transient)
                })?
            }
        };
        let Some(piece) = piece else {
            return match self.position == size {
                true => Ok(None),
                false => Err(self.wrong_size(self.position)),
            };
        };
        let (piece, rest) = cut(piece);
        self.rest = rest;
        self.position = self.position.saturating_add(piece.size());
        match self.position > size {
            true => Err(self.wrong_size(self.position)),
            false => Ok(Some(piece)),
        }
    }

    fn wrong_size(&self, size: u64) -> CopyError {
        let named = self.part.size;
        self.failure(
            &format!("its manifest says that it has {named} bytes, and {size} came"),
            false,
        )
    }

    fn failure(&self, cause: &str, is_transient: bool) -> CopyError {
        CopyError::Content {
            what: format!("{} {}", self.part.kind.as_str(), self.part.digest),
            cause: cause.to_owned(),
            is_transient,
        }
    }

    fn or_fail<T>(&mut self, outcome: Result<T, CopyError>) -> Result<T, UploadError> {
        outcome.map_err(|error| self.fail(error))
    }

    fn fail(&mut self, error: CopyError) -> UploadError {
        let told = UploadError {
            cause: error.to_string(),
            is_transient: error.is_transient(),
        };
        self.failure = Some(error);
        told
    }
}

/// The first of it, and what is left.
fn cut(piece: Piece) -> (Piece, Option<Piece>) {
    match piece {
        Piece::File {
            file,
            range,
            is_complete,
        } if range.end.saturating_sub(range.start) > LARGEST_PIECE => {
            let middle = range.start + LARGEST_PIECE;
            let part = |range| Piece::File {
                file: Arc::clone(&file),
                range,
                is_complete,
            };
            (part(range.start..middle), Some(part(middle..range.end)))
        }
        piece => (piece, None),
    }
}
