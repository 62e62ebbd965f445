//! The sources of logins behind one face, and the rule which of them serves whom.

use std::{sync::Arc, time::Instant};

use super::{
    Claim, Directory, DockerLogins, Entry, FindError, IdentityError, Known, Login, OperatorLogin,
    OwnOptions, Side,
    docker::{Effort, KnownLogin},
    identity,
    operator::Operator,
    scope::longest_match,
    session_name, shown_user,
    tenants::{Found, Reach, Tenant, Tenants},
};
use crate::{
    aws::SessionName,
    oci::{Credentials, Registry, Repository},
    platform::{self, CallError, Client, Session},
    requests::{AtPlatform, Caller},
    secret::Secret,
};

/// Well above any access token.
const LONGEST_TOKEN: usize = 64 << 10;

/// One for the process, shared by all cores and the pool. It does not change: another configuration is another one.
pub struct Keyring {
    pub(super) operator: Operator,
    pub(super) own: Vec<Registry>,
    pub(super) directory: Option<Directory>,
    pub(super) tenants: Option<Tenants>,
    pub(super) is_anonymous_allowed: bool,
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
    pub(super) fn claimed_endpoint(&self, claim: &Claim) -> Result<String, IdentityError> {
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
    pub(super) fn is_probe_due(&self, caller: &Caller) -> bool {
        match (&self.tenants, Tenant::of(caller)) {
            (Some(tenants), Some(tenant)) => tenants.is_probe_due(&tenant),
            _ => false,
        }
    }

    /// Whether somebody has to be asked for the login, a Platform or a helper.
    pub(super) fn has_to_ask(
        &self,
        caller: &Caller,
        registry: &Registry,
        repository: &Repository,
    ) -> bool {
        let chosen = self.choose(caller, registry, repository, Reach::Memory);
        matches!(chosen, Ok(None))
    }

    /// `None`: somebody would have to be asked, and `reach` does not go so far.
    pub(super) fn choose(
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
        let operators = || {
            let known = self.operator.find(registry, repository, effort);
            known.map(Found::of_operator)
        };
        let (mut side, mut session, mut owner, mut known) = match caller {
            Caller::Anonymous => {
                let (session, owner) = (SessionName::own(), "operator".to_owned());
                (Side::Operator, session, owner, operators())
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
                let found = longest_match(entries, registry, repository).map(Found::of);
                let session = session_name(name, *workspace);
                (Side::Tenant, session, owner, found.into())
            }
            Caller::User {
                name, workspace, ..
            } => {
                // Without Platforms, since the configuration has changed, he is nobody's user any more.
                let (Some(tenants), Some(tenant)) = (&self.tenants, Tenant::of(caller)) else {
                    return Err(FindError::CallerRevoked { name: name.clone() });
                };
                let known = tenants.find(&tenant, registry, repository, reach);
                let known = known.map_err(|error| tenant.failure(name, &error))?;
                let session = session_name(name, *workspace);
                (Side::Tenant, session, tenant.owner(name), known)
            }
        };
        if known == Known::None && side == Side::Tenant && self.own.contains(registry) {
            known = operators();
            if known != Known::None {
                (side, session) = (Side::Operator, SessionName::own());
                owner += ": none, but the operator has one for his own repositories";
            }
        }
        let found = match known {
            Known::Login(found) => Some(found),
            Known::None => None,
            Known::Unknown => return Ok(None),
        };
        let login = Login::of(side, session, &owner, found, registry, repository);
        Ok(Some(login))
    }

    pub(super) fn entries_of_user(
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
    /// Of somebody who shows it to us and is not known otherwise.
    pub fn of_stranger(credentials: Credentials) -> Self {
        Self {
            identity: identity::of(&credentials),
            credentials: Some(credentials),
            description: "shown by a client, to be checked".to_owned(),
            side: Side::Tenant,
            session: session_name("credential-check", None),
        }
    }

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
