//! A request with a body, which goes to the registry piece by piece.
//!
//! A registry may answer before it has all of it: it says what is wrong and closes. That answer is read like any other,
//! and the connection is not used again.

use std::{io, ops::Range, rc::Rc, time::Duration};

use bytes::Bytes;

use super::{
    exchange::{Answer, Exchange, ExchangeError, Request, Response, Way},
    push::{Upload, UploadError, unless_given_up},
};
use crate::net::{More, Piece, Stream, Uploaded};

/// What a body is.
pub(super) struct Payload<'a> {
    pub(super) content_type: Option<&'a str>,
    /// Which part of a blob. Registries write it without a unit and a total (distribution-spec, pushing a blob in chunks).
    pub(super) part: Option<Range<u64>>,
    pub(super) size: u64,
    /// From the end of the body to the head of the answer.
    pub(super) patience: Duration,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum BodyFailure {
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error(transparent)]
    Source(#[from] UploadError),
}

impl From<io::Error> for BodyFailure {
    fn from(error: io::Error) -> Self {
        Self::Exchange(error.into())
    }
}

impl Exchange {
    /// Sends the body once, from where `content` stands, and says whether all of it went. What a registry has of a body that
    /// broke off only it can tell.
    pub(super) async fn send_body(
        self: &Rc<Self>,
        way: &Way,
        request: &Request<'_>,
        payload: &Payload<'_>,
        content: &mut impl Upload,
    ) -> Result<(Response, Uploaded), BodyFailure> {
        let entering = async {
            let (place, seat) = self.enter(way, request.url).await?;
            let stream = match self.take_idle(&place) {
                Some(stream) => stream,
                None => self.connect(way, &place).await?,
            };
            Ok::<_, ExchangeError>((place, seat, stream))
        };
        let (place, seat, stream) = unless_given_up(content, entering).await??;
        let (answer, sent) = self.attempt_body(stream, request, payload, content).await?;
        Ok((self.respond(answer, place, seat), sent))
    }

    /// Sends what may be sent again if a kept connection turns out to be closed.
    pub(super) async fn send_bytes(
        self: &Rc<Self>,
        way: &Way,
        request: &Request<'_>,
        payload: &Payload<'_>,
        bytes: &Bytes,
    ) -> Result<Response, ExchangeError> {
        let (place, seat) = self.enter(way, request.url).await?;
        let attempt = async |stream| {
            let mut whole = InMemory(bytes.clone());
            match self
                .attempt_body(stream, request, payload, &mut whole)
                .await
            {
                Ok((answer, _)) => Ok(answer),
                Err(BodyFailure::Exchange(error)) => Err(error),
                Err(BodyFailure::Source(error)) => Err(io::Error::other(error).into()),
            }
        };
        if let Some(stream) = self.take_idle(&place) {
            match attempt(stream).await {
                Ok(answer) => return Ok(self.respond(answer, place, seat)),
                Err(ExchangeError::Broken(error)) if error.kind() != io::ErrorKind::TimedOut => {}
                Err(error) => return Err(error),
            }
        }
        let answer = attempt(self.connect(way, &place).await?).await?;
        Ok(self.respond(answer, place, seat))
    }

    async fn attempt_body(
        &self,
        mut stream: Stream,
        request: &Request<'_>,
        payload: &Payload<'_>,
        content: &mut impl Upload,
    ) -> Result<(Answer, Uploaded), BodyFailure> {
        let patience = *self.options.body_timeout;
        stream.write_all(payload.encode(request), patience).await?;
        let mut left = payload.size;
        let mut sent = Uploaded::Whole;
        while left > 0 && sent == Uploaded::Whole {
            let Some(piece) = content.next().await? else {
                let error = UploadError {
                    cause: format!("it ended {left} bytes before the end of what was announced"),
                    is_transient: false,
                };
                return Err(error.into());
            };
            let piece = first_of(piece, left);
            left -= piece.size();
            let more = if left > 0 { More::Follows } else { More::Ends };
            let sending = self.transfer.upload(&mut stream, piece, more, patience);
            sent = unless_given_up(content, sending).await??;
        }
        let receiving = Self::receive_head(stream, request.method, payload.patience);
        let mut answer = unless_given_up(content, receiving).await??;
        if sent == Uploaded::Interrupted {
            answer.head.keep_alive = false;
        }
        Ok((answer, sent))
    }
}

impl Payload<'_> {
    fn encode(&self, request: &Request<'_>) -> Vec<u8> {
        let size = self.size.to_string();
        let part = self
            .part
            .as_ref()
            .map(|part| format!("{}-{}", part.start, part.end.saturating_sub(1)));
        let mut fields = vec![("Content-Length", size.as_str())];
        fields.extend(self.content_type.map(|kind| ("Content-Type", kind)));
        fields.extend(part.as_deref().map(|part| ("Content-Range", part)));
        request.encode(&fields)
    }
}

/// No more of the piece than is wanted.
fn first_of(piece: Piece, most: u64) -> Piece {
    match piece {
        Piece::File {
            file,
            range,
            is_complete,
        } => Piece::File {
            file,
            range: range.start..range.end.min(range.start.saturating_add(most)),
            is_complete,
        },
        Piece::Bytes(mut bytes) => {
            bytes.truncate(usize::try_from(most).unwrap_or(usize::MAX));
            Piece::Bytes(bytes)
        }
    }
}

struct InMemory(Bytes);

impl Upload for InMemory {
    async fn seek(&mut self, _: u64) -> Result<(), UploadError> {
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Piece>, UploadError> {
        let bytes = std::mem::take(&mut self.0);
        Ok((!bytes.is_empty()).then_some(Piece::Bytes(bytes)))
    }
}
