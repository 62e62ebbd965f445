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
mod exchange;
mod explain;
mod identity;
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
pub use exchange::{Exchange, Exchanged};
pub use explain::{Considered, Explanation, Source};
pub use password::{Loaded, PasswordError, load_external_id, load_password};
pub use scope::{Scope, ScopeError};

use std::{path::PathBuf, sync::Arc, time::Instant};

use serde::Deserialize;

use self::{
    docker::{Effort, Known, KnownLogin},
    operator::Operator,
    scope::longest_match,
    tenants::{Answer, Found, Reach, Tenant, Tenants},
};
use crate::{
    aws::{AwsError, SessionName},
    oci::{Credentials, Digest, Registry, Repository},
    platform::{self, CallError, Client, Session},
    requests::{AtPlatform, Caller},
    secret::Secret,
};

/// Well above any access token.
const LONGEST_TOKEN: usize = 64 << 10;

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
    /// The registries that they are in.
    pub fn registries(&self) -> Vec<Registry> {
        let repositories = [
            &self.build_repository,
            &self.cache_repository,
            &self.public_repository,
        ];
        let scopes = repositories.into_iter().flatten();
        scopes.map(|scope| scope.registry.clone()).collect()
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

/// One for the process, shared by all cores and the pool. It does not change: another configuration is another one.
pub struct Keyring {
    operator: Operator,
    own: Vec<Registry>,
    directory: Option<Directory>,
    tenants: Option<Tenants>,
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
            own: Vec::new(),
            directory,
            tenants: None,
            is_anonymous_allowed: anonymous_allowed,
        }
    }

    /// Registries where every caller without a login of his own has the operator's.
    pub fn with_own(mut self, own: &OwnOptions) -> Self {
        self.own = own.registries();
        self
    }

    pub fn with_docker(self, docker: Arc<DockerLogins>) -> Self {
        Self {
            operator: self.operator.with_docker(docker),
            ..self
        }
    }

    pub fn with_platforms(mut self, client: Arc<Client>, options: &platform::Options) -> Self {
        self.tenants = Some(Tenants::new(client, options));
        self
    }

    /// Who claims this, if no Platform has to be asked for it. Nobody's workspace is of no interest, and known clients
    /// send one all the same.
    pub fn recognize(&self, claim: &Claim) -> Result<Option<Caller>, IdentityError> {
        let access_token = match &claim.access_token {
            Some(token) if !token.expose().is_empty() => token,
            _ if self.is_anonymous_allowed => return Ok(Some(Caller::Anonymous)),
            _ => return Err(IdentityError::AnonymousOff),
        };
        if self.directory.is_none() && self.tenants.is_none() {
            return Err(IdentityError::NoDirectory);
        }
        if access_token.expose().len() > LONGEST_TOKEN {
            return Err(IdentityError::UnknownToken);
        }
        let embedded = self.directory.as_ref();
        let known = embedded.and_then(|it| Some((it, it.user(access_token)?)));
        let Some((directory, user)) = known else {
            return match self.tenants {
                Some(_) => Ok(None),
                None => Err(IdentityError::UnknownToken),
            };
        };
        if let Some(workspace) = claim.workspace
            && directory.workspace(user, workspace).is_none()
        {
            return Err(IdentityError::WorkspaceDenied { workspace });
        }
        Ok(Some(Caller::User {
            name: user.name.clone(),
            workspace: claim.workspace,
            access_token: access_token.clone(),
            platform: None,
        }))
    }

    /// Who claims this. A Platform may be asked, until `deadline`.
    pub fn authenticate(&self, claim: &Claim, deadline: Instant) -> Result<Caller, IdentityError> {
        if let Some(caller) = self.recognize(claim)? {
            return Ok(caller);
        }
        let endpoint = self.claimed_endpoint(claim)?;
        let (Some(tenants), Some(access_token)) = (&self.tenants, &claim.access_token) else {
            return Err(IdentityError::UnknownToken);
        };
        let tenant = Tenant {
            session: Session {
                endpoint: endpoint.clone(),
                access_token: access_token.clone(),
                refresh_token: claim.refresh_token.clone(),
            },
            workspace: claim.workspace,
            run: claim.workflow_id.clone(),
        };
        let name = tenants.user(&tenant, deadline).map_err(|error| {
            let cause = error.to_string();
            match error {
                CallError::NotPaired { .. } => IdentityError::NotPaired { cause },
                CallError::Unauthorized { .. } | CallError::Denied { .. } => {
                    IdentityError::UnknownToken
                }
                CallError::Silent { .. } | CallError::Malformed { .. } => {
                    IdentityError::NoAnswer { cause }
                }
            }
        })?;
        let Tenant { session, run, .. } = tenant;
        Ok(Caller::User {
            name,
            workspace: claim.workspace,
            access_token: session.access_token,
            platform: Some(AtPlatform {
                endpoint,
                refresh_token: session.refresh_token,
                workflow_id: run,
            }),
        })
    }

    /// The Platform that is to be asked about the claim.
    fn claimed_endpoint(&self, claim: &Claim) -> Result<String, IdentityError> {
        let named = claim.endpoint.as_deref();
        let tenants = self.tenants.as_ref().ok_or(IdentityError::UnknownToken)?;
        let endpoint = tenants.client().endpoint(named);
        let endpoint = endpoint.ok_or_else(|| IdentityError::UnknownEndpoint {
            endpoint: named.unwrap_or_default().chars().take(200).collect(),
        })?;
        if tenants.client().is_paired(endpoint) {
            Ok(endpoint.to_owned())
        } else {
            let endpoint = endpoint.to_owned();
            let cause = CallError::NotPaired { endpoint }.to_string();
            Err(IdentityError::NotPaired { cause })
        }
    }

    /// The login for a pull on behalf of `caller`, if nobody has to be asked for it: for the cores.
    pub fn recall(
        &self,
        caller: &Caller,
        registry: &Registry,
        repository: &Repository,
    ) -> Option<Login> {
        self.choose(caller, registry, repository, Reach::Memory)
            .ok()?
    }

    /// The login for a pull on behalf of `caller`. Asked at each pull, so that who was removed pulls no more. A Platform
    /// may be asked, until `deadline`.
    pub fn find(
        &self,
        caller: &Caller,
        registry: &Registry,
        repository: &Repository,
        deadline: Instant,
    ) -> Result<Login, FindError> {
        let reach = Reach::Platform(deadline);
        let chosen = self.choose(caller, registry, repository, reach)?;
        chosen.ok_or_else(|| FindError::NoAnswer {
            cause: "nothing is remembered".to_owned(),
        })
    }

    /// The registry has just refused the caller's login. Whether there may be another one meanwhile.
    pub fn doubt(&self, caller: &Caller, registry: &Registry, repository: &Repository) -> bool {
        match (&self.tenants, Tenant::of(caller)) {
            (Some(tenants), Some(tenant)) => tenants.doubt(&tenant, registry, repository),
            _ if *caller == Caller::Anonymous => self.operator.doubt(registry),
            _ => false,
        }
    }

    /// What is remembered serves, because the caller's Platform is silent; whether it is time to ask it again all the same.
    fn is_probe_due(&self, caller: &Caller) -> bool {
        match (&self.tenants, Tenant::of(caller)) {
            (Some(tenants), Some(tenant)) => tenants.is_probe_due(&tenant),
            _ => false,
        }
    }

    /// Whether somebody has to be asked for the login, a Platform or a helper.
    fn has_to_ask(&self, caller: &Caller, registry: &Registry, repository: &Repository) -> bool {
        let chosen = self.choose(caller, registry, repository, Reach::Memory);
        matches!(chosen, Ok(None))
    }

    /// `None`: somebody would have to be asked, and `reach` does not go so far.
    fn choose(
        &self,
        caller: &Caller,
        registry: &Registry,
        repository: &Repository,
        reach: Reach,
    ) -> Result<Option<Login>, FindError> {
        let effort = match reach {
            Reach::Memory => Effort::Remember,
            Reach::Platform(_) => Effort::Ask,
        };
        let operators = || self.operator.find(registry, repository, effort);
        let (session, owner, found) = match caller {
            Caller::Anonymous => {
                let found = match operators() {
                    Known::Login(login) => Some(Found::of_operator(login)),
                    Known::None => None,
                    Known::Unknown => return Ok(None),
                };
                return Ok(Some(Login::of(
                    Side::Operator,
                    SessionName::own(),
                    "operator",
                    found,
                    registry,
                    repository,
                )));
            }
            Caller::User {
                name,
                workspace,
                access_token,
                platform: None,
            } => {
                let entries = self.entries_of_user(access_token, *workspace);
                let (owner, entries) =
                    entries.ok_or_else(|| FindError::CallerRevoked { name: name.clone() })?;
                let found = longest_match(entries, registry, repository);
                (session(name, *workspace), owner, found.map(Found::of))
            }
            Caller::User {
                name, workspace, ..
            } => {
                // Without Platforms, since the configuration has changed, he is nobody's user any more.
                let (Some(tenants), Some(tenant)) = (&self.tenants, Tenant::of(caller)) else {
                    return Err(FindError::CallerRevoked { name: name.clone() });
                };
                let found = tenants.find(&tenant, registry, repository, reach);
                let found = found.map_err(|error| tenant.failure(name, &error))?;
                let found = match found {
                    Answer::Login(found) => Some(found),
                    Answer::None => None,
                    Answer::Unknown => return Ok(None),
                };
                (session(name, *workspace), tenant.owner(name), found)
            }
        };
        if found.is_none() && self.own.contains(registry) {
            let found = match operators() {
                Known::Login(login) => Some(Found::of_operator(login)),
                Known::None => None,
                Known::Unknown => return Ok(None),
            };
            if found.is_some() {
                let owner =
                    format!("{owner}: none, but the operator has one for his own repositories");
                return Ok(Some(Login::of(
                    Side::Operator,
                    SessionName::own(),
                    &owner,
                    found,
                    registry,
                    repository,
                )));
            }
        }
        Ok(Some(Login::of(
            Side::Tenant,
            session,
            &owner,
            found,
            registry,
            repository,
        )))
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

impl Found {
    fn of(entry: &Entry) -> Self {
        Self {
            credentials: entry.credentials.clone(),
            reason: entry.scope.to_string(),
        }
    }

    fn of_operator(login: KnownLogin) -> Self {
        Self {
            credentials: login.credentials,
            reason: login.source,
        }
    }
}

impl Login {
    fn of(
        side: Side,
        session: SessionName,
        owner: &str,
        found: Option<Found>,
        registry: &Registry,
        repository: &Repository,
    ) -> Self {
        match found {
            Some(Found {
                credentials,
                reason,
            }) => Self {
                identity: identity::of(&credentials),
                description: format!("{owner}: {reason} as {}", shown_user(&credentials)),
                credentials: Some(credentials),
                side,
                session,
            },
            None => Self {
                credentials: None,
                identity: identity::ANONYMOUS.to_owned(),
                description: format!("{owner}: no login for {registry}/{repository}, so anonymous"),
                side,
                session,
            },
        }
    }
}

impl Tenant {
    /// `None`: the caller is no Platform's user.
    fn of(caller: &Caller) -> Option<Self> {
        let Caller::User {
            workspace,
            access_token,
            platform: Some(platform),
            ..
        } = caller
        else {
            return None;
        };
        Some(Self {
            session: Session {
                endpoint: platform.endpoint.clone(),
                access_token: access_token.clone(),
                refresh_token: platform.refresh_token.clone(),
            },
            workspace: *workspace,
            run: platform.workflow_id.clone(),
        })
    }

    fn owner(&self, name: &str) -> String {
        let endpoint = &self.session.endpoint;
        match self.workspace {
            None => format!("user {name} of {endpoint}"),
            Some(id) => format!("workspace {id} of {endpoint}"),
        }
    }

    fn failure(&self, name: &str, error: &CallError) -> FindError {
        let name = name.to_owned();
        let cause = error.to_string();
        match error {
            CallError::Unauthorized { .. } => FindError::CallerRevoked { name },
            CallError::Denied { .. } => FindError::Denied {
                owner: self.owner(&name),
                name,
                cause,
            },
            CallError::NotPaired { .. }
            | CallError::Silent { .. }
            | CallError::Malformed { .. } => FindError::NoAnswer { cause },
        }
    }
}

/// Whose credentials they are.
fn session(user: &str, workspace: Option<i64>) -> SessionName {
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
