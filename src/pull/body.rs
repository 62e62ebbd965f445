//! The bytes of an answer, in the pieces in which they become available.

use std::{collections::VecDeque, fs::File, io, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::fill::Filler;
use crate::{
    cache::{Blob, Ending, HELD_BACK, Next, Reader, Release},
    net::Piece,
    oci::{Digest, Hasher},
    telemetry::metrics::{self, Counter},
    upstream,
};

/// Why a body ends early. The connection is cut then: that is how the client learns of it.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the content is not what {0} names")]
    Mismatch(Digest),
    #[error("the fill ended: {0}")]
    Fill(String),
    #[error("the registry's connection broke: {0}")]
    Broken(#[from] io::Error),
}

pub struct Body(Kind);

enum Kind {
    Empty,
    Bytes(Bytes),
    Stored {
        file: Arc<File>,
        range: Range<u64>,
    },
    Following(Box<Following>),
    Passing(Box<Passing>),
    /// One after the other.
    Parts(VecDeque<Body>),
}

struct Following {
    reader: Reader,
    filler: Filler,
    range: Range<u64>,
}

impl Body {
    pub fn empty() -> Self {
        Self(Kind::Empty)
    }

    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self(Kind::Bytes(bytes.into()))
    }

    pub(super) fn stored(blob: Blob, range: Range<u64>) -> Self {
        Self(Kind::Stored {
            file: blob.file,
            range,
        })
    }

    pub(super) fn following(reader: Reader, filler: Filler, range: Range<u64>) -> Self {
        Self(Kind::Following(Box::new(Following {
            reader,
            filler,
            range,
        })))
    }

    pub(super) fn passing(passing: Passing) -> Self {
        Self(Kind::Passing(Box::new(passing)))
    }

    pub fn parts(parts: impl IntoIterator<Item = Self>) -> Self {
        Self(Kind::Parts(parts.into_iter().collect()))
    }

    /// Whether `next` would answer at once. A head need not wait for what may take long.
    pub fn is_ready(&self) -> bool {
        match &self.0 {
            Kind::Empty | Kind::Bytes(_) | Kind::Stored { .. } => true,
            Kind::Following(following) => following.reader.has_past(following.range.start),
            Kind::Passing(_) => false,
            Kind::Parts(parts) => parts.front().is_none_or(Self::is_ready),
        }
    }

    /// The next piece, never empty; `None` is the end. Waits until there is one.
    pub async fn next(&mut self) -> Result<Option<Piece>, BodyError> {
        loop {
            match &mut self.0 {
                Kind::Empty => return Ok(None),
                Kind::Bytes(bytes) => {
                    let bytes = std::mem::take(bytes);
                    self.0 = Kind::Empty;
                    return Ok((!bytes.is_empty()).then_some(Piece::Bytes(bytes)));
                }
                Kind::Stored { file, range } => {
                    let piece = Piece::File {
                        file: Arc::clone(file),
                        range: range.clone(),
                        is_complete: true,
                    };
                    let is_empty = range.is_empty();
                    self.0 = Kind::Empty;
                    return Ok((!is_empty).then_some(piece));
                }
                Kind::Following(following) => match following.next().await? {
                    Followed::Piece(piece) => return Ok(piece),
                    Followed::NoRoom => {
                        let Following { filler, range, .. } = &**following;
                        let passing = filler.past_the_cache(range.clone()).await?;
                        self.0 = Kind::Passing(Box::new(passing));
                    }
                },
                Kind::Passing(passing) => return Ok(passing.next().await?.map(Piece::Bytes)),
                Kind::Parts(parts) => {
                    let Some(part) = parts.front_mut() else {
                        return Ok(None);
                    };
                    if let Some(piece) = Box::pin(part.next()).await? {
                        return Ok(Some(piece));
                    }
                    parts.pop_front();
                }
            }
        }
    }
}

enum Followed {
    Piece(Option<Piece>),
    /// The cache can take no more of it: whoever wants the rest fetches it for himself.
    NoRoom,
}

impl Following {
    async fn next(&mut self) -> Result<Followed, BodyError> {
        while !self.range.is_empty() {
            let released = match self.reader.next(self.range.start).await {
                Ok(Next::Ready(released)) => released,
                Ok(Next::Fetch(run)) => {
                    if let Some(refusal) = self.filler.refusal() {
                        return Err(BodyError::Fill(refusal));
                    }
                    self.filler.start(run, None);
                    continue;
                }
                Err(Ending::Released(Release::NoRoom)) => return Ok(Followed::NoRoom),
                Err(Ending::Failed(error)) => return Err(BodyError::Fill(error.to_string())),
                Err(Ending::Released(Release::AskYourself) | Ending::Complete) => {
                    return Err(BodyError::Fill("it was given up".to_owned()));
                }
            };
            let file = self
                .reader
                .file()
                .ok_or_else(|| BodyError::Fill("it has no file".to_owned()))?;
            let end = released.min(self.range.end);
            if end <= self.range.start {
                // The end of a blob whose size nobody had said.
                if self.range.end == u64::MAX {
                    break;
                }
                return Err(BodyError::Fill(
                    "it is shorter than it was said to be".to_owned(),
                ));
            }
            let piece = Piece::File {
                file: Arc::clone(file),
                range: self.range.start..end,
                is_complete: false,
            };
            self.range.start = end;
            return Ok(Followed::Piece(Some(piece)));
        }
        Ok(Followed::Piece(None))
    }
}

/// A blob on its way from the registry to one client, without the cache: verified all the same.
pub(super) struct Passing {
    digest: Digest,
    source: upstream::Body,
    /// Taken at the end.
    hasher: Option<Hasher>,
    /// Received and not released.
    held: BytesMut,
    /// Position of the first held byte.
    position: u64,
    wanted: Range<u64>,
}

impl Passing {
    pub(super) fn new(digest: Digest, mut source: upstream::Body, wanted: Range<u64>) -> Self {
        /// A client that stalls has a few of them in memory: received, held back, being sent. As much as TLS sends at once. With
        /// 1 MiB a GiB would take an eighth less CPU, and 60 stalled clients five times the memory.
        const LARGEST_PIECE: usize = 128 << 10;
        source.limit_pieces(LARGEST_PIECE);
        Self {
            digest,
            source,
            hasher: Some(Hasher::new(digest.algorithm())),
            held: BytesMut::new(),
            position: 0,
            wanted,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            // What lies before the tail needs no more of it.
            if self.position >= self.wanted.end {
                return Ok(None);
            }
            let Some(hasher) = &mut self.hasher else {
                return Ok(None);
            };
            let released = match self.source.next().await? {
                Some(piece) => {
                    hasher.update(piece);
                    self.held.extend_from_slice(piece);
                    let held_back = usize::try_from(HELD_BACK).unwrap_or(usize::MAX);
                    let count = self.held.len().saturating_sub(held_back);
                    self.held.split_to(count)
                }
                None => {
                    let digest = self.hasher.take().map(Hasher::finish);
                    if digest != Some(self.digest) {
                        metrics::add(Counter::BlobMismatches, 1);
                        return Err(BodyError::Mismatch(self.digest));
                    }
                    self.held.split()
                }
            };
            let start = self.position;
            self.position += released.len() as u64;
            let part = cut(released.freeze(), start, &self.wanted);
            if !part.is_empty() {
                return Ok(Some(part));
            }
        }
    }
}

/// The part of `bytes`, which start at `start`, that lies in `wanted`.
pub(super) fn cut(bytes: Bytes, start: u64, wanted: &Range<u64>) -> Bytes {
    let length = bytes.len();
    let place = |position: u64| {
        usize::try_from(position.saturating_sub(start))
            .unwrap_or(length)
            .min(length)
    };
    let (from, to) = (place(wanted.start), place(wanted.end));
    if from < to {
        bytes.slice(from..to)
    } else {
        Bytes::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_from_what_passes() {
        let bytes = Bytes::from_static(b"0123456789");
        for (start, wanted, expected) in [
            (0, 0..10, "0123456789"),
            (0, 2..4, "23"),
            (5, 0..7, "01"),
            (5, 7..u64::MAX, "23456789"),
            (20, 0..10, ""),
            (0, 50..60, ""),
        ] {
            assert_eq!(
                cut(bytes.clone(), start, &wanted),
                expected,
                "{start} {wanted:?}"
            );
        }
    }
}
