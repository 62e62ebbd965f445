//! Pushing a blob.

use super::{PushError, Target, Upload};
use crate::{
    http::Url,
    oci::{Digest, Repository},
    upstream::Upstream,
};

/// An upload that is open at the registry.
#[derive(Debug)]
pub struct Session {
    /// The last that the registry gave. Its `Debug` has no query.
    url: Url,
}

pub enum Mount {
    Mounted,
    /// The registry opened an upload instead.
    Opened(Session),
}

impl Upstream {
    /// Opens an upload and cancels it: whether this login may push there, before much is transferred.
    pub async fn try_push(&self, _target: Target<'_>) -> Result<(), PushError> {
        todo!()
    }

    pub async fn has_blob(&self, _target: Target<'_>, _digest: &Digest) -> Result<bool, PushError> {
        todo!()
    }

    pub async fn mount_blob(
        &self,
        _target: Target<'_>,
        _digest: &Digest,
        _from: &Repository,
    ) -> Result<Mount, PushError> {
        todo!()
    }

    /// `session`: of a mount that became an upload.
    pub async fn push_blob(
        &self,
        _target: Target<'_>,
        _digest: &Digest,
        _size: u64,
        _session: Option<Session>,
        _content: &mut impl Upload,
    ) -> Result<(), PushError> {
        todo!()
    }
}
