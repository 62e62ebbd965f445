//! Whose login for which registry.
//!
//! Four sources behind one face, the `Keyring`: the *directory*, users and workspaces with their logins, in a file;
//! *Seqera Platforms*, which have them too, and are asked (`tenants.rs`); the *operator's* logins, from the configuration
//! and Docker's files (`operator.rs`); and none. The rule, which tenants rely on: an anonymous caller has the operator's logins and no other; an authenticated
//! one has his own workspace's, and without a match is anonymous to the registry. Where tidegate's own repositories are
//! (`[own]`), he has the operator's then.
//!
//! What was found may not yet be what the registry takes: logins for AWS's registries are exchanged at AWS (`Exchange`).
//!
//! The `Keyring` is plain blocking Rust; Platforms are waited for, and Docker's credential helpers. The `Desk` is where the cores ask: what is
//! remembered is there at once.

mod desk;
mod directory_file;
mod docker;
mod ecr;
mod embedded;
mod error;
mod exchange;
mod explain;
mod identity;
mod keyring;
mod memory;
mod operator;
mod password;
mod scope;
mod tenants;

pub use desk::Desk;
pub use directory_file::DirectoryError;
pub use docker::{DockerConfig, DockerConfigError, DockerError, DockerLogins, DockerOptions};
pub use ecr::{Ecr, EcrTable};
pub use embedded::Directory;
pub use error::{FindError, IdentityError};
pub use exchange::{Exchange, Exchanged};
pub use explain::{Considered, Explanation, Source};
pub use keyring::Keyring;
pub use password::{Loaded, PasswordError, load_external_id, load_password};
pub use scope::{Scope, ScopeError};

use std::path::PathBuf;

use serde::Deserialize;

use crate::{
    aws::SessionName,
    oci::{Credentials, Digest, Registry, Repository},
    platform::Session,
    requests::PlatformUser,
    secret::Secret,
};

/// `[directory]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The file of users, workspaces and their logins: `"directory.toml"`. Without it, and without a Platform, all callers
    /// are anonymous.
    pub file: Option<PathBuf>,
}

/// `[own]`: repositories of this server, where it pushes to with the operator's logins. Callers without a login of their
/// own have the operator's at these registries.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OwnOptions {
    /// `"quay.io/acme/wave"`
    pub build_repository: Option<Scope>,
    pub cache_repository: Option<Scope>,
    pub public_repository: Option<Scope>,
}

impl OwnOptions {
    /// Whether it is one of them, or lies below one.
    pub fn covers(&self, registry: &Registry, repository: &Repository) -> bool {
        self.scopes()
            .any(|scope| scope.covers(registry, repository))
    }

    /// The registries that they are in.
    pub fn registries(&self) -> Vec<Registry> {
        self.scopes().map(|scope| scope.registry.clone()).collect()
    }

    fn scopes(&self) -> impl Iterator<Item = &Scope> {
        let repositories = [
            &self.build_repository,
            &self.cache_repository,
            &self.public_repository,
        ];
        repositories.into_iter().flatten()
    }
}

/// A login of the configuration, for anonymous callers.
#[derive(Clone, Debug)]
pub struct OperatorLogin {
    pub registry: Registry,
    /// For this repository and those below it; `None`: for all of the registry.
    pub prefix: Option<Repository>,
    pub credentials: Credentials,
}

/// What a client says of itself.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    pub access_token: Option<Secret<String>>,
    pub refresh_token: Option<Secret<String>>,
    /// The Platform that knows the access token.
    pub endpoint: Option<String>,
    /// `None`: the personal one.
    pub workspace: Option<i64>,
    /// The Platform's run for which the image is wanted.
    pub workflow_id: Option<String>,
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
    /// Under which name a role is assumed for it.
    pub session: SessionName,
}

/// Who answers for a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// May also come with tidegate's own identity in a cloud.
    Operator,
    Tenant,
}

/// Credentials and what they are for.
#[derive(Clone, Debug)]
struct Entry {
    scope: Scope,
    credentials: Credentials,
}

/// What there is for somebody at a registry, as far as one went to find it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known<T> {
    Login(T),
    None,
    /// Somebody would have to be asked.
    Unknown,
}

impl<T> Known<T> {
    fn map<U>(self, with: impl FnOnce(T) -> U) -> Known<U> {
        match self {
            Self::Login(login) => Known::Login(with(login)),
            Self::None => Known::None,
            Self::Unknown => Known::Unknown,
        }
    }
}

impl<T> From<Option<T>> for Known<T> {
    fn from(login: Option<T>) -> Self {
        login.map_or(Self::None, Self::Login)
    }
}

/// How to ask the user's Platform on his behalf.
pub fn session_of(user: PlatformUser<'_>) -> Session {
    Session {
        endpoint: user.platform.endpoint.clone(),
        access_token: user.access_token.clone(),
        refresh_token: user.platform.refresh_token.clone(),
    }
}

/// Whose credentials they are, for AWS's records.
fn session_name(user: &str, workspace: Option<i64>) -> SessionName {
    match workspace {
        Some(id) => SessionName::of_workspace(id),
        None => SessionName::of_user(user),
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
