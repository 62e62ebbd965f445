//! Why somebody is no caller, and why a caller gets no login.

use crate::{aws::AwsError, oci::Registry};

/// Why somebody is no caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("container requests without an access token are turned off here")]
    AnonymousOff,
    #[error(
        "an access token was sent, but this server knows no users: neither its `[directory] file` nor its \
         `[platform] endpoints` are set"
    )]
    NoDirectory,
    #[error("the access token is not known")]
    UnknownToken,
    #[error(
        "{endpoint} is no Platform that this server knows (`[platform] endpoints`, compared letter by letter)"
    )]
    UnknownEndpoint { endpoint: String },
    #[error("{cause}")]
    NotPaired { cause: String },
    /// Also if there is no such workspace: who is not a member need not know.
    #[error("workspace {workspace} is not one of yours")]
    WorkspaceDenied { workspace: i64 },
    /// Says nothing about the caller.
    #[error("{cause}; try again")]
    NoAnswer { cause: String },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// Since the request was made, the access token was withdrawn, or its owner left the workspace.
    #[error("the request was made by {name}, who may no longer make it")]
    CallerRevoked { name: String },
    /// The Platform does not show them to the caller.
    #[error("{owner}: its credentials are not for {name} to use ({cause})")]
    Denied {
        owner: String,
        name: String,
        cause: String,
    },
    /// Says nothing about the caller.
    #[error("whose credentials to use cannot be found out: {cause}")]
    NoAnswer { cause: String },
    /// Its words are for the owner of the credentials, which are the operator's or the caller's.
    #[error("no login for {registry} could be had from AWS: {cause}")]
    Aws {
        registry: Registry,
        is_operators: bool,
        cause: AwsError,
    },
}

impl FindError {
    /// What may be said to whoever holds no more than a name that was given out.
    pub fn to_strangers(&self) -> String {
        match self {
            Self::CallerRevoked { .. } | Self::Denied { .. } => {
                "whoever asked for this name may no longer pull".to_owned()
            }
            Self::NoAnswer { .. } => {
                "the Platform that knows whose login to use does not answer; try again".to_owned()
            }
            Self::Aws { registry, .. } => {
                format!(
                    "no login for {registry} could be had from AWS; the operator's log says why"
                )
            }
        }
    }

    /// To whoever asked for the name.
    pub fn to_caller(&self) -> String {
        match self {
            Self::Aws {
                is_operators: true, ..
            }
            // What this machine lacks is the operator's, whoever's login needs it.
            | Self::Aws {
                cause: AwsError::Setting(_),
                ..
            } => self.to_strangers(),
            error => error.to_string(),
        }
    }

    /// It says nothing about the caller or his credentials.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::CallerRevoked { .. } | Self::Denied { .. } => false,
            Self::NoAnswer { .. } => true,
            Self::Aws { cause, .. } => cause.is_outage(),
        }
    }
}
