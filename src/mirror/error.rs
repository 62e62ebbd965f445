//! Why a copy did not come about, in sentences for whoever wanted it.

use std::time::Duration;

use crate::{
    cache::FillError,
    oci::{Digest, Registry, Repository},
    pull::{FetchError, PullError},
    upstream::PushError,
};

#[derive(Clone, Debug, thiserror::Error)]
pub enum CopyError {
    #[error("the image cannot be read: {}", told(.0))]
    Source(#[from] PullError),
    /// Of the login for it, or of reading what stands there.
    #[error("the destination cannot be used: {}", told(.0))]
    Destination(PullError),
    #[error(
        "there is no login of yours for {registry}, and the operator's is not for pushing; add one to your \
         credentials, or let the operator set mirror.push_with_own_logins = true"
    )]
    OperatorsLogin { registry: Registry },
    #[error(
        "there is no login of yours for {registry}, and nobody pushes without one into the operator's network; add \
         one to your credentials, or let the operator set mirror.push_with_own_logins = true"
    )]
    OperatorsNetwork { registry: Registry },
    #[error("{registry}/{repository} is a repository of this server itself; name one of your own")]
    OperatorsRepository {
        registry: Registry,
        repository: Repository,
    },
    #[error("{0}")]
    Push(#[from] PushError),
    #[error("what refers to the image cannot be read: {}; without referrers it can be copied", told(.0))]
    Referrers(PullError),
    #[error("{what} cannot be copied: {cause}")]
    Content {
        what: String,
        cause: String,
        is_transient: bool,
    },
    #[error("it has no image for {wanted}, only for {present}")]
    NoPlatform { wanted: String, present: String },
    #[error("{registry}: manifest {digest} cannot be copied: {problem}")]
    Manifest {
        registry: Registry,
        digest: Digest,
        problem: String,
    },
    #[error(
        "the destination is named by {named}, and the image is {copied}; name it by a tag, or without a version"
    )]
    OtherDigest { named: String, copied: String },
    #[error("the copy was cancelled")]
    Cancelled,
}

impl CopyError {
    /// The registry that may say yes to whoever logs in.
    pub fn lacks_login(&self) -> Option<&Registry> {
        match self {
            Self::Source(PullError::Fetch(error))
            | Self::Destination(PullError::Fetch(error))
            | Self::Referrers(PullError::Fetch(error)) => error.lacks_login(),
            Self::Push(error) => error.lacks_login(),
            _ => None,
        }
    }

    /// Another attempt may do better.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Source(error) | Self::Destination(error) | Self::Referrers(error) => {
                is_transient(error)
            }
            Self::Push(error) => error.is_transient(),
            Self::Content { is_transient, .. } => *is_transient,
            Self::OperatorsLogin { .. }
            | Self::OperatorsNetwork { .. }
            | Self::OperatorsRepository { .. }
            | Self::NoPlatform { .. }
            | Self::Manifest { .. }
            | Self::OtherDigest { .. }
            | Self::Cancelled => false,
        }
    }

    /// What the registry asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Source(error) | Self::Destination(error) | Self::Referrers(error) => {
                retry_after(error)
            }
            Self::Push(error) => error.retry_after(),
            Self::OperatorsLogin { .. }
            | Self::OperatorsNetwork { .. }
            | Self::OperatorsRepository { .. }
            | Self::Content { .. }
            | Self::NoPlatform { .. }
            | Self::Manifest { .. }
            | Self::OtherDigest { .. }
            | Self::Cancelled => None,
        }
    }
}

/// What concerns the operator's logins is for the operator.
fn told(error: &PullError) -> String {
    match error {
        PullError::Caller(error) => error.to_caller(),
        error => error.to_string(),
    }
}

fn is_transient(error: &PullError) -> bool {
    match error {
        PullError::Fetch(error) => match error {
            FetchError::RateLimited { .. }
            | FetchError::Unreachable { .. }
            | FetchError::Busy(_)
            // A body that broke is one, too.
            | FetchError::Malformed { .. } => true,
            FetchError::Failed { status, .. } => matches!(status, 408 | 429 | 500..),
            FetchError::Unknown { .. }
            | FetchError::Refused { .. }
            | FetchError::Forbidden { .. } => false,
        },
        PullError::Caller(error) => error.is_outage(),
        PullError::Busy(_) => true,
        PullError::Fill { cause, .. } => match &**cause {
            FillError::Mismatch { .. } | FillError::WrongSize { .. } => false,
            FillError::NoRoom
            | FillError::DiskFull(_)
            | FillError::Disk(_)
            | FillError::Busy(_)
            | FillError::Source(_)
            | FillError::Dropped => true,
        },
        PullError::Mismatch { .. }
        | PullError::Manifest { .. }
        | PullError::Overlay(_)
        | PullError::Belongings(_) => false,
    }
}

fn retry_after(error: &PullError) -> Option<Duration> {
    match error {
        PullError::Fetch(FetchError::RateLimited { retry_after, .. }) => *retry_after,
        _ => None,
    }
}
