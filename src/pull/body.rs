//! The bytes of an answer, in the pieces in which they become available.

use std::{fs::File, io, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};

use crate::{
    cache::{Blob, Ending, Reader},
    oci::{Digest, Hasher},
    telemetry::metrics::{self, Counter},
    upstream,
};

/// Bytes at the end of an uncached blob that are kept until its digest has matched: whoever lacks them has no blob.
pub(super) const HELD_BACK: usize = 64 << 10;

/// What can be sent next.
#[derive(Debug)]
pub enum Piece {
    /// Goes from the page cache to the socket.
    File {
        file: Arc<File>,
        range: Range<u64>,
    },
    Bytes(Bytes),
}

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
    Stored { file: Arc<File>, range: Range<u64> },
    Following { reader: Reader, range: Range<u64> },
    Passing(Box<Passing>),
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

    pub(super) fn following(reader: Reader, range: Range<u64>) -> Self {
        Self(Kind::Following { reader, range })
    }

    pub(super) fn passing(passing: Passing) -> Self {
        Self(Kind::Passing(Box::new(passing)))
    }

    /// Whether `next` would answer at once. A head need not wait for what may take long.
    pub fn is_ready(&self) -> bool {
        match &self.0 {
            Kind::Empty | Kind::Bytes(_) | Kind::Stored { .. } => true,
            Kind::Following { reader, range } => reader.has_past(range.start),
            Kind::Passing(_) => false,
        }
    }

    /// The next piece, never empty; `None` is the end. Waits until there is one.
    pub async fn next(&mut self) -> Result<Option<Piece>, BodyError> {
        match &mut self.0 {
            Kind::Empty => Ok(None),
            Kind::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Kind::Empty;
                Ok((!bytes.is_empty()).then_some(Piece::Bytes(bytes)))
            }
            Kind::Stored { file, range } => {
                let piece = Piece::File {
                    file: Arc::clone(file),
                    range: range.clone(),
                };
                let is_empty = range.is_empty();
                self.0 = Kind::Empty;
                Ok((!is_empty).then_some(piece))
            }
            Kind::Following { reader, range } => follow(reader, range).await,
            Kind::Passing(passing) => Ok(passing.next().await?.map(Piece::Bytes)),
        }
    }
}

async fn follow(reader: &Reader, range: &mut Range<u64>) -> Result<Option<Piece>, BodyError> {
    if range.is_empty() {
        return Ok(None);
    }
    let released = reader
        .released_past(range.start)
        .await
        .map_err(|ending| match ending {
            Ending::Failed(error) => BodyError::Fill(error.to_string()),
            Ending::Released(_) | Ending::Complete => BodyError::Fill("it was given up".to_owned()),
        })?;
    let file = reader
        .file()
        .ok_or_else(|| BodyError::Fill("it has no file".to_owned()))?;
    let end = released.min(range.end);
    if end <= range.start {
        return Err(BodyError::Fill(
            "it is shorter than it was said to be".to_owned(),
        ));
    }
    let piece = Piece::File {
        file: Arc::clone(file),
        range: range.start..end,
    };
    range.start = end;
    Ok(Some(piece))
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
    pub(super) fn new(digest: Digest, source: upstream::Body, wanted: Range<u64>) -> Self {
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
                    let count = self.held.len().saturating_sub(HELD_BACK);
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
fn cut(bytes: Bytes, start: u64, wanted: &Range<u64>) -> Bytes {
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
