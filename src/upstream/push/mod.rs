//! Putting blobs and manifests into a registry: as another login than pulls, and with a token that is asked for by its
//! rights. What is to be pushed comes as an `Upload`, from wherever it is.
//!
//! An upload's address belongs to the registry: it is used as it was last given, to the byte, and its query is a secret.
//! Credentials go to the registry's own host only, wherever an upload's address leads.

mod blob;
mod error;
mod manifest;
mod parts;
mod pusher;
mod session;

pub use blob::Mount;
pub use error::PushError;
pub use manifest::PushedManifest;
pub use session::Session;

use super::login::Login;
use crate::{
    net::Piece,
    oci::{Registry, Repository},
};

/// Whereto something is pushed, and as whom.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub registry: &'a Registry,
    pub repository: &'a Repository,
    pub login: &'a Login,
}

/// A blob's bytes for an upload.
#[expect(async_fn_in_trait, reason = "all of it stays on one core")]
pub trait Upload {
    /// Goes to this byte of the blob: before the first piece, and when an interrupted upload is taken up again.
    async fn seek(&mut self, position: u64) -> Result<(), UploadError>;

    /// Never empty; `None` is the end. Whoever gives up says so with an error here: what has begun is then cancelled at the
    /// registry, which a future that is only dropped cannot do.
    async fn next(&mut self) -> Result<Option<Piece>, UploadError>;

    /// Answers when whoever sends has given up, with what `next` would say then: no registry that takes nothing, or says
    /// nothing, is waited for any more. May be dropped before.
    async fn given_up(&mut self) -> UploadError {
        std::future::pending().await
    }
}

/// Drops the work if its content is given up, and with it the connection that it has.
pub(super) async fn unless_given_up<T>(
    content: &mut impl Upload,
    work: impl Future<Output = T>,
) -> Result<T, UploadError> {
    monoio::select! {
        done = work => Ok(done),
        error = content.given_up() => Err(error),
    }
}

/// The source's side failed, which is no fault of the target.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{cause}")]
pub struct UploadError {
    pub cause: String,
    /// It may fare better later.
    pub is_transient: bool,
}
