//! Whose login for which registry.
//!
//! Three sources behind one face, the `Keyring`: the *directory*, users and workspaces with their logins, in a file;
//! the *operator's* logins, from the configuration and Docker's files (`operator.rs`); and none. The rule, which tenants rely on: an anonymous caller
//! has the operator's logins and no other; an authenticated one has his own workspace's and no other, and without
//! a match is anonymous to the registry.
//!
//! All of this is plain blocking Rust. Only Docker's credential helpers are waited for.

mod directory_file;
mod docker;
mod embedded;
mod identity;
mod operator;
mod password;
mod scope;

pub use directory_file::DirectoryError;
pub use docker::{DockerConfig, DockerConfigError, DockerError, DockerLogins, DockerOptions};
pub use embedded::Directory;
pub use password::{Loaded, PasswordError, load_password};
pub use scope::{Scope, ScopeError};

use std::{path::PathBuf, sync::Arc};

use serde::Deserialize;

use self::{
    docker::{Effort, Known},
    operator::Operator,
    scope::longest_match,
};
use crate::{
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

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// Since the request was made, the access token was withdrawn, or its owner left the workspace.
    #[error("the request was made by {name}, who may no longer make it")]
    CallerRevoked { name: String },
}

/// One for the process, shared by all cores and the pool. It does not change: another configuration is another one.
pub struct Keyring {
    operator: Operator,
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
        Self {
            operator: Operator::new(operator),
            directory,
            is_anonymous_allowed: anonymous_allowed,
        }
    }

    pub fn with_docker(self, docker: Arc<DockerLogins>) -> Self {
        Self {
            operator: self.operator.with_docker(docker),
            ..self
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
        let (owner, entries) = match caller {
            Caller::Anonymous => {
                let known = self.operator.find(registry, repository, Effort::Ask);
                let login = match known {
                    Known::Login(login) => Some((login.credentials, login.source)),
                    Known::None | Known::Unknown => None,
                };
                return Ok(Login::of("operator", login, registry, repository));
            }
            Caller::User {
                name,
                workspace,
                access_token,
            } => self
                .entries_of_user(access_token, *workspace)
                .ok_or_else(|| FindError::CallerRevoked { name: name.clone() })?,
        };
        let entry = longest_match(entries, registry, repository);
        let login = entry.map(|entry| (entry.credentials.clone(), entry.scope.to_string()));
        Ok(Login::of(&owner, login, registry, repository))
    }

    /// Whether `find` would wait for a helper.
    pub fn has_to_ask(
        &self,
        caller: &Caller,
        registry: &Registry,
        repository: &Repository,
    ) -> bool {
        let known = || self.operator.find(registry, repository, Effort::Remember);
        matches!(caller, Caller::Anonymous) && known() == Known::Unknown
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

impl Login {
    /// `found`: credentials and where they stood.
    fn of(
        owner: &str,
        found: Option<(Credentials, String)>,
        registry: &Registry,
        repository: &Repository,
    ) -> Self {
        match found {
            Some((credentials, source)) => Self {
                identity: identity::of(&credentials),
                description: format!("{owner}: {source} as {}", shown_user(&credentials)),
                credentials: Some(credentials),
            },
            None => Self {
                credentials: None,
                identity: identity::ANONYMOUS.to_owned(),
                description: format!("{owner}: no login for {registry}/{repository}, so anonymous"),
            },
        }
    }
}

fn shown_user(credentials: &Credentials) -> &str {
    match credentials.are_a_refresh_token() {
        true => "the holder of a refresh token",
        false => &credentials.username,
    }
}

/// What the directory file has in the place of an access token: its SHA-256, in hex.
pub fn hash_access_token(access_token: &str) -> String {
    Digest::of(access_token.as_bytes()).hex()
}

#[cfg(test)]
mod tests;
