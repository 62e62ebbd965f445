//! A blob's bytes, wherever they are: whole or in parts they become the body of an answer.

use std::ops::Range;

use super::{
    body::{Body, Passing},
    fill::Filler,
};
use crate::{
    cache::{Blob, Reader},
    oci::Digest,
    upstream::BlobBody,
};

pub struct Content {
    pub(super) size: Option<u64>,
    pub(super) source: ContentSource,
}

pub(super) enum ContentSource {
    Stored(Blob),
    Following(Reader, Filler),
    Passing(Digest, Box<BlobBody>),
    Collected(Vec<u8>),
}

impl Content {
    /// `None`: the end will show it.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Whether several parts can be had of it.
    pub fn is_divisible(&self) -> bool {
        matches!(
            self.source,
            ContentSource::Stored(_) | ContentSource::Following(..)
        )
    }

    /// The bytes of each range.
    pub fn into_parts(self, ranges: &[Range<u64>]) -> Vec<Body> {
        match self.source {
            ContentSource::Stored(blob) => ranges
                .iter()
                .map(|range| Body::stored(blob.clone(), range.clone()))
                .collect(),
            // Each has a reader of its own, so that nothing between them is fetched for their sake.
            ContentSource::Following(reader, filler) => ranges
                .iter()
                .map(|range| {
                    let reader = reader.another(range.clone());
                    Body::following(reader, filler.clone(), range.clone())
                })
                .collect(),
            ContentSource::Passing(..) | ContentSource::Collected(_) => Vec::new(),
        }
    }

    /// The bytes of `range`; all of them where the size is not known.
    pub fn into_body(self, range: Range<u64>) -> Body {
        match self.source {
            ContentSource::Stored(blob) => Body::stored(blob, range),
            ContentSource::Following(reader, filler) => Body::following(reader, filler, range),
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
