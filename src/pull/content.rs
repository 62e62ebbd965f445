//! A blob's bytes, wherever they are: whole or in parts they become the body of an answer.

use std::ops::Range;

use bytes::Bytes;

use super::{
    body::{Body, Passing, cut},
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
    Collected(Bytes),
}

impl Content {
    pub(super) fn stored(blob: Blob) -> Self {
        Self {
            size: Some(blob.size),
            source: ContentSource::Stored(blob),
        }
    }

    pub(super) fn collected(bytes: Bytes) -> Self {
        Self {
            size: Some(bytes.len() as u64),
            source: ContentSource::Collected(bytes),
        }
    }

    /// In a word, for whoever watches how well the cache does.
    pub fn origin(&self) -> &'static str {
        match self.source {
            ContentSource::Stored(_) => "cache",
            ContentSource::Following(..) => "fill",
            ContentSource::Passing(..) => "registry",
            ContentSource::Collected(_) => "memory",
        }
    }

    /// `None`: the end will show it.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Whether several parts can be had of it.
    pub fn is_divisible(&self) -> bool {
        match self.source {
            ContentSource::Stored(_)
            | ContentSource::Following(..)
            | ContentSource::Collected(_) => true,
            ContentSource::Passing(..) => false,
        }
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
            ContentSource::Collected(bytes) => ranges
                .iter()
                .map(|range| Body::bytes(cut(bytes.clone(), 0, range)))
                .collect(),
            ContentSource::Passing(..) => Vec::new(),
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
            ContentSource::Collected(bytes) => Body::bytes(cut(bytes, 0, &range)),
        }
    }
}
