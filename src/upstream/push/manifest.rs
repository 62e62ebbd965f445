//! Pushing a manifest.

use bytes::Bytes;

use super::{PushError, Target};
use crate::{
    oci::{Digest, TagOrDigest},
    upstream::Upstream,
};

pub struct PushedManifest {
    /// `OCI-Subject`: the registry lists it among the subject's referrers itself.
    pub subject: Option<Digest>,
}

impl Upstream {
    /// After all that it names.
    pub async fn push_manifest(
        &self,
        _target: Target<'_>,
        _version: &TagOrDigest,
        _media_type: &str,
        _bytes: &Bytes,
    ) -> Result<PushedManifest, PushError> {
        todo!()
    }
}
