//! Whose login for which registry.
//!
//! Three sources behind one face, the `Keyring`: the *directory*, users and workspaces with their logins, in a file;
//! the *operator's* logins, from the configuration; and none. The rule, which tenants rely on: an anonymous caller
//! has the operator's logins and no other; an authenticated one has his own workspace's and no other, and without
//! a match is anonymous to the registry.
//!
//! What was found may not yet be what the registry takes: logins for AWS's registries are exchanged at AWS (`Exchange`).
//!
//! The `Keyring` is plain blocking Rust, without any I/O after the start.

mod directory_file;
mod ecr;
mod embedded;
mod exchange;
mod identity;
mod password;
mod scope;

pub use directory_file::DirectoryError;
pub use ecr::{Ecr, EcrTable};
pub use embedded::Directory;
pub use exchange::{Exchange, Exchanged};
pub use password::{Loaded, PasswordError, load_external_id, load_password};
pub use scope::{Scope, ScopeError};

use std::path::PathBuf;

use serde::Deserialize;

use self::scope::longest_match;
use crate::{
    aws::AwsError,
    oci::{Credentials, Digest, Registry, Repository},
    requests::Caller,
    secret::Secret,
};

/// `[directory]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The file of users, workspaces and their logins: `"directory.toml"`. Without it, all callers are anonymous.
    pub file: Option<PathBuf>,
}

/// A login of the configuration, for anonymous callers.
#[derive(Clone, Debug)]
pub struct OperatorLogin {
    pub registry: Registry,
    /// For this repository and those below it; `None`: for all of the registry.
    pub prefix: Option<Repository>,
    pub credentials: Credentials,
}

/// How to come before a registry on behalf of a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// `None`: as nobody in particular.
    pub credentials: Option<Credentials>,
    /// The same for the same credentials, as long as this process lives, and never for others: part of the key of
    /// what a registry gave or allowed us for them. Tells nothing of the secret.
    pub identity: String,
    /// Whose it is and why it was chosen, for the operator's log.
    pub description: String,
    pub side: Side,
}

/// Who answers for a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// May also come with tidegate's own identity in a cloud.
    Operator,
    Tenant,
}

/// Why somebody is no caller.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("container requests without an access token are turned off here")]
    AnonymousOff,
    #[error(
        "an access token was sent, but this server knows no users: its `[directory] file` is not set"
    )]
    NoDirectory,
    #[error("the access token is not known")]
    UnknownToken,
    /// Also if there is no such workspace: who is not a member need not know.
    #[error("workspace {workspace} is not one of yours")]
    WorkspaceDenied { workspace: i64 },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// Since the request was made, the access token was withdrawn, or its owner left the workspace.
    #[error("the request was made by {name}, who may no longer make it")]
    CallerRevoked { name: String },
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
            Self::CallerRevoked { .. } => {
                "whoever asked for this name may no longer pull".to_owned()
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
            } => self.to_strangers(),
            error => error.to_string(),
        }
    }

    /// It says nothing about the caller or his credentials.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::CallerRevoked { .. } => false,
            Self::Aws { cause, .. } => cause.is_outage(),
        }
    }
}

/// One for the process, shared by all cores and the pool. It does not change: another configuration is another one.
pub struct Keyring {
    operator: Vec<Entry>,
    directory: Option<Directory>,
    is_anonymous_allowed: bool,
}

/// Credentials and what they are for.
#[derive(Clone, Debug)]
struct Entry {
    scope: Scope,
    credentials: Credentials,
}

impl Keyring {
    pub fn new(
        operator: Vec<OperatorLogin>,
        directory: Option<Directory>,
        anonymous_allowed: bool,
    ) -> Self {
        let operator = operator.into_iter().map(|login| Entry {
            scope: Scope {
                registry: login.registry,
                prefix: login.prefix,
            },
            credentials: login.credentials,
        });
        Self {
            operator: operator.collect(),
            directory,
            is_anonymous_allowed: anonymous_allowed,
        }
    }

    /// Who sends this token. Nobody's workspace is of no interest, and known clients send one all the same.
    pub fn authenticate(
        &self,
        access_token: Option<&Secret<String>>,
        workspace: Option<i64>,
    ) -> Result<Caller, IdentityError> {
        let access_token = match access_token {
            Some(token) if !token.expose().is_empty() => token,
            _ if self.is_anonymous_allowed => return Ok(Caller::Anonymous),
            _ => return Err(IdentityError::AnonymousOff),
        };
        let directory = self.directory.as_ref().ok_or(IdentityError::NoDirectory)?;
        let user = directory
            .user(access_token)
            .ok_or(IdentityError::UnknownToken)?;
        if let Some(workspace) = workspace
            && directory.workspace(user, workspace).is_none()
        {
            return Err(IdentityError::WorkspaceDenied { workspace });
        }
        Ok(Caller::User {
            name: user.name.clone(),
            workspace,
            access_token: access_token.clone(),
        })
    }

    /// The login for a pull on behalf of `caller`. Asked at each pull, so that who was removed pulls no more.
    pub fn find(
        &self,
        caller: &Caller,
        registry: &Registry,
        repository: &Repository,
    ) -> Result<Login, FindError> {
        let (side, owner, entries) = match caller {
            Caller::Anonymous => (
                Side::Operator,
                "operator".to_owned(),
                self.operator.as_slice(),
            ),
            Caller::User {
                name,
                workspace,
                access_token,
            } => {
                let (owner, entries) = self
                    .entries_of_user(access_token, *workspace)
                    .ok_or_else(|| FindError::CallerRevoked { name: name.clone() })?;
                (Side::Tenant, owner, entries)
            }
        };
        Ok(match longest_match(entries, registry, repository) {
            Some(entry) => Login {
                identity: identity::of(&entry.credentials),
                description: format!("{owner}: {} as {}", entry.scope, entry.credentials.username),
                credentials: Some(entry.credentials.clone()),
                side,
            },
            None => Login {
                credentials: None,
                identity: identity::ANONYMOUS.to_owned(),
                description: format!("{owner}: no login for {registry}/{repository}, so anonymous"),
                side,
            },
        })
    }

    fn entries_of_user(
        &self,
        access_token: &Secret<String>,
        workspace: Option<i64>,
    ) -> Option<(String, &[Entry])> {
        let directory = self.directory.as_ref()?;
        let user = directory.user(access_token)?;
        Some(match workspace {
            None => (format!("user {}", user.name), user.entries.as_slice()),
            Some(id) => {
                let workspace = directory.workspace(user, id)?;
                let owner = format!("workspace {id} ({})", workspace.name);
                (owner, workspace.entries.as_slice())
            }
        })
    }
}

/// What the directory file has in the place of an access token: its SHA-256, in hex.
pub fn hash_access_token(access_token: &str) -> String {
    Digest::of(access_token.as_bytes()).hex()
}

#[cfg(test)]
mod tests;
