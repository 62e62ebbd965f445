//! What came of a wish to push.

use std::time::Duration;

use super::{super::login::ANONYMOUS, UploadError};
use crate::{
    oci::{Digest, Registry, Repository},
    upstream::{Busy, Said},
};

/// Says what happened, in words for whoever asked for the push, and what is to be changed. Never a secret, never an
/// upload's address.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PushError {
    #[error(
        "{registry}: not allowed to push to {repository} with {who}; the login needs the right to push (write) there{said}"
    )]
    Refused {
        registry: Registry,
        repository: Repository,
        who: &'static str,
        said: Said,
    },
    #[error(
        "{registry} takes no pushes to {repository}: it is read-only, or a mirror of another registry{said}"
    )]
    ReadOnly {
        registry: Registry,
        repository: Repository,
        said: Said,
    },
    #[error(
        "{registry} has no repository {repository}, and does not make it by itself: create it there{said}"
    )]
    NoRepository {
        registry: Registry,
        repository: Repository,
        said: Said,
    },
    #[error(
        "{registry} has no room for {what}: free space there or raise its quota, and push again{said}"
    )]
    Full {
        registry: Registry,
        what: String,
        said: Said,
    },
    #[error(
        "{registry} does not take as much at a time as {what} has: raise the limit of it, or of the proxy before it{said}"
    )]
    TooLarge {
        registry: Registry,
        what: String,
        said: Said,
    },
    #[error("{registry}: the rate limit is reached{said}")]
    RateLimited {
        registry: Registry,
        retry_after: Option<Duration>,
        said: Said,
    },
    #[error("{registry} cannot be reached: {cause}")]
    Unreachable {
        registry: Registry,
        cause: String,
        retry_after: Option<Duration>,
    },
    /// A rule of this server, which its operator can change.
    #[error("{registry}: {rule}")]
    Forbidden { registry: Registry, rule: String },
    /// It has made something else of what was sent.
    #[error("{registry} did not get {digest} as it is: {problem}; push it again")]
    Mismatch {
        registry: Registry,
        digest: Digest,
        problem: String,
    },
    #[error("{registry} answered {status} for {what}{said}")]
    Failed {
        registry: Registry,
        what: String,
        status: u16,
        said: Said,
    },
    /// It answered, and the answer makes no sense.
    #[error("{registry} sent {problem}")]
    Malformed { registry: Registry, problem: String },
    #[error("tidegate is busy: {0}")]
    Busy(Busy),
    /// What was to be pushed could not be read.
    #[error("what was to be pushed cannot be had: {0}")]
    Source(#[from] UploadError),
}

impl PushError {
    /// The registry that may say yes to whoever logs in.
    pub fn lacks_login(&self) -> Option<&Registry> {
        match self {
            Self::Refused {
                registry,
                who: ANONYMOUS,
                ..
            } => Some(registry),
            _ => None,
        }
    }

    /// Whether the same push may fare better later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::Unreachable { .. }
            | Self::Mismatch { .. }
            | Self::Busy(_) => true,
            Self::Failed { status, .. } => *status >= 500,
            Self::Source(UploadError { is_transient, .. }) => *is_transient,
            Self::Refused { .. }
            | Self::ReadOnly { .. }
            | Self::NoRepository { .. }
            | Self::Full { .. }
            | Self::TooLarge { .. }
            | Self::Forbidden { .. }
            | Self::Malformed { .. } => false,
        }
    }

    /// How long the registry asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Unreachable { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }
}
