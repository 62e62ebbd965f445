//! A descriptor: media type, digest and size of a piece of content (image-spec, descriptor.md).

use super::Digest;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
}
