//! The users of Seqera Platforms and the logins of their workspaces: what is asked when, what is remembered, and which
//! login matches.
//!
//! The Platform's list says for which registry each credential is, as people typed it; the secret is asked for only when
//! one is chosen. The list and the secrets are remembered apart, so a workspace's many images cost one list.

use std::{
    mem::size_of,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    FindError, Known,
    memory::{Ages, Memory},
    scope::{Scope, closest},
    session_of,
};
use crate::{
    aws::EcrHost,
    oci::{Credentials, Registry, Repository},
    platform::{
        self, AwsKeys, CallError, Client, FamilyId, Keys, ListedCredentials, Session, User,
    },
    requests::Caller,
    secret::Secret,
};

/// While the Platform is silent. A run that works must not end for that: as long as other proxies use what they know in
/// a run, without asking at all.
const STALE_IN_RUNS: Duration = Duration::from_secs(24 * 3600);
/// All lists together; most have a few lines.
const LISTS_CAPACITY: usize = 64 << 20;
/// All of each of the others, some hundred bytes each.
const CAPACITY: usize = 16 << 20;

/// Whom a Platform is asked for.
#[derive(Clone, Debug)]
pub(super) struct Tenant {
    pub session: Session,
    /// `None`: the personal one.
    pub workspace: Option<i64>,
    pub run: Option<String>,
}

impl Tenant {
    /// `None`: the caller is no Platform's user.
    pub(super) fn of(caller: &Caller) -> Option<Self> {
        let user = caller.platform_user()?;
        Some(Self {
            session: session_of(user),
            workspace: user.workspace,
            run: user.platform.workflow_id.clone(),
        })
    }

    pub(super) fn owner(&self, name: &str) -> String {
        let endpoint = &self.session.endpoint;
        match self.workspace {
            None => format!("user {name} of {endpoint}"),
            Some(id) => format!("workspace {id} of {endpoint}"),
        }
    }

    pub(super) fn failure(&self, name: &str, error: &CallError) -> FindError {
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

/// How far to go for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Nobody is asked: for the cores.
    Memory,
    /// Until then. Blocks.
    Platform(Instant),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub credentials: Credentials,
    /// Which one, and why, for the operator.
    pub reason: String,
}

/// A workspace's credentials for registries, in the Platform's order.
#[derive(Debug, Default)]
pub(super) struct List {
    pub lines: Vec<Line>,
    /// For other things.
    pub other_count: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Line {
    pub id: String,
    pub name: String,
    /// As its owner typed it.
    pub registry: String,
    pub scope: Result<Scope, Skipped>,
}

/// Why a credential is not considered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Skipped {
    #[error("the Platform calls it invalid")]
    Invalid,
    #[error("it is deleted")]
    Deleted,
    #[error("its registry is none: {0}")]
    NoRegistry(String),
}

impl List {
    pub(super) fn of(listed: Vec<ListedCredentials>) -> Self {
        let mut list = Self::default();
        for credentials in listed {
            if credentials.provider == "container-reg" {
                list.lines.push(Line::of(credentials));
            } else {
                list.other_count += 1;
            }
        }
        list
    }

    /// About as many bytes.
    fn weight(&self) -> usize {
        let texts = self.lines.iter();
        let texts = texts.map(|line| line.id.len() + line.name.len() + 3 * line.registry.len());
        texts.sum::<usize>() + (self.lines.len() + 1) * size_of::<Line>()
    }

    pub(super) fn find(&self, registry: &Registry, repository: &Repository) -> Option<&Line> {
        let candidates = self.lines.iter();
        let candidates = candidates.filter_map(|line| Some((line.scope.as_ref().ok()?, line)));
        closest(candidates, registry, repository)
    }
}

impl Line {
    fn of(credentials: ListedCredentials) -> Self {
        // What nobody filled in means Docker Hub.
        let registry = credentials.registry.unwrap_or("docker.io".to_owned());
        let scope = if credentials.is_deleted {
            Err(Skipped::Deleted)
        } else if credentials.is_invalid {
            Err(Skipped::Invalid)
        } else {
            let parsed = registry.parse::<Scope>();
            parsed.map_err(|error| Skipped::NoRegistry(error.to_string()))
        };
        Self {
            id: credentials.id,
            name: credentials.name,
            registry,
            scope,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Workspace {
    family: FamilyId,
    id: Option<i64>,
}

/// One for the process.
pub(super) struct Tenants {
    client: Arc<Client>,
    fresh: Duration,
    fresh_in_runs: Duration,
    stale: Duration,
    users: Memory<FamilyId, User>,
    lists: Memory<Workspace, List>,
    /// `None`: of a kind that opens no registry.
    logins: Memory<(Workspace, String), Option<Credentials>>,
    /// The id of the AWS credentials with which a run's tasks are computed.
    environments: Memory<(Workspace, String), Option<String>>,
}

impl Tenants {
    pub(super) fn new(client: Arc<Client>, options: &platform::Options) -> Self {
        Self {
            client,
            fresh: *options.remember,
            fresh_in_runs: *options.remember_in_runs,
            stale: *options.remember_while_silent,
            users: Memory::new(CAPACITY),
            lists: Memory::new(LISTS_CAPACITY),
            logins: Memory::new(CAPACITY),
            environments: Memory::new(CAPACITY),
        }
    }

    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Who holds the session's access token.
    pub(super) fn user(&self, tenant: &Tenant, deadline: Instant) -> Result<String, CallError> {
        let family = self.client.family(&tenant.session)?;
        let key = tenant.family();
        let user = self
            .users
            .obtain(&key, &family, self.ages(tenant), deadline, || {
                let user = self.client.user(&tenant.session, deadline)?;
                let weight = size_of::<User>() + user.name.len();
                Ok((user, weight))
            })?;
        Ok(user.name.clone())
    }

    pub(super) fn find(
        &self,
        tenant: &Tenant,
        registry: &Registry,
        repository: &Repository,
        reach: Reach,
    ) -> Result<Known<Found>, CallError> {
        let Some(list) = self.list(tenant, reach)? else {
            return Ok(Known::Unknown);
        };
        let found = match list.find(registry, repository) {
            None => return self.of_environment(tenant, registry, reach),
            Some(line) => self.login_of(tenant, line, reach),
        };
        match (found, reach) {
            // It was deleted since the list was made: once more with a new one.
            (Err(CallError::Denied { .. }), Reach::Platform(_)) => {
                self.lists
                    .doubt(&tenant.workspace(), Duration::ZERO, Instant::now());
                let Some(list) = self.list(tenant, reach)? else {
                    return Ok(Known::Unknown);
                };
                match list.find(registry, repository) {
                    None => Ok(Known::None),
                    Some(line) => self.login_of(tenant, line, reach),
                }
            }
            (found, _) => found,
        }
    }

    /// The registry has just refused what was found: what is remembered may be out of date. Whether it makes sense to
    /// ask again.
    pub(super) fn doubt(
        &self,
        tenant: &Tenant,
        registry: &Registry,
        repository: &Repository,
    ) -> bool {
        /// A wrong password must not make us ask the Platform at each pull.
        const MOMENT: Duration = Duration::from_secs(5);
        let (key, now) = (tenant.workspace(), Instant::now());
        let line = self
            .lists
            .recall(&key, Duration::MAX, now)
            .and_then(|list| Some(list.find(registry, repository)?.id.clone()));
        let is_login_forgotten =
            line.is_some_and(|id| self.logins.doubt(&(key.clone(), id), MOMENT, now));
        self.lists.doubt(&key, MOMENT, now) || is_login_forgotten
    }

    /// Whether it is time to see if a silent Platform answers again, which who asks this then has to do.
    pub(super) fn is_probe_due(&self, tenant: &Tenant) -> bool {
        let endpoint = &tenant.session.endpoint;
        self.client.is_probe_due(endpoint, Instant::now())
    }

    pub(super) fn list(
        &self,
        tenant: &Tenant,
        reach: Reach,
    ) -> Result<Option<Arc<List>>, CallError> {
        self.reach(
            tenant,
            reach,
            &self.lists,
            &tenant.workspace(),
            |deadline| {
                let listed =
                    self.client
                        .credentials(&tenant.session, tenant.workspace, deadline)?;
                let list = List::of(listed);
                let weight = list.weight();
                Ok((list, weight))
            },
        )
    }

    fn login_of(
        &self,
        tenant: &Tenant,
        line: &Line,
        reach: Reach,
    ) -> Result<Known<Found>, CallError> {
        let known = self.login(tenant, &line.id, reach)?;
        Ok(known.map(|credentials| Found {
            reason: format!("{} (\"{}\")", line.registry, line.name),
            credentials,
        }))
    }

    /// For an ECR registry and nothing better: what the run itself is computed with.
    fn of_environment(
        &self,
        tenant: &Tenant,
        registry: &Registry,
        reach: Reach,
    ) -> Result<Known<Found>, CallError> {
        let Some(run) = tenant.run.as_deref().filter(|_| is_ecr(registry)) else {
            return Ok(Known::None);
        };
        let key = (tenant.workspace(), run.to_owned());
        let environment = self.reach(tenant, reach, &self.environments, &key, |deadline| {
            let environment =
                self.client
                    .compute_environment(&tenant.session, tenant.workspace, run, deadline);
            let environment = match environment {
                // Not his run, or not one that was launched there.
                Err(CallError::Denied { .. }) => None,
                environment => environment?,
            };
            let id = environment.filter(|it| it.platform == "aws-batch");
            let id = id.and_then(|it| it.credentials_id);
            Ok((id, size_of::<Workspace>()))
        })?;
        let id = match environment.as_ref().map(|it| it.as_deref()) {
            None => return Ok(Known::Unknown),
            Some(None) => return Ok(Known::None),
            Some(Some(id)) => id,
        };
        let known = match self.login(tenant, id, reach) {
            Err(CallError::Denied { .. }) => Known::None,
            known => known?,
        };
        Ok(known.map(|credentials| Found {
            credentials,
            reason: format!("the compute environment of run {run}"),
        }))
    }

    fn login(
        &self,
        tenant: &Tenant,
        id: &str,
        reach: Reach,
    ) -> Result<Known<Credentials>, CallError> {
        let key = (tenant.workspace(), id.to_owned());
        let login = self.reach(tenant, reach, &self.logins, &key, |deadline| {
            let keys = self
                .client
                .keys(&tenant.session, tenant.workspace, id, deadline)?;
            let credentials = credentials(keys);
            let weight = credentials.as_ref().map_or(0, |it| {
                it.username.len() + it.password.expose().len() + size_of::<Credentials>()
            });
            Ok((credentials, weight))
        })?;
        Ok(login.map_or(Known::Unknown, |login| (*login).clone().into()))
    }

    fn reach<K: Clone + Eq + std::hash::Hash, V>(
        &self,
        tenant: &Tenant,
        reach: Reach,
        memory: &Memory<K, V>,
        key: &K,
        ask: impl FnOnce(Instant) -> Result<(V, usize), CallError>,
    ) -> Result<Option<Arc<V>>, CallError> {
        let ages = self.ages(tenant);
        match reach {
            Reach::Memory => {
                let now = Instant::now();
                // Nobody waits for an answer that did not come to the one before.
                let age = match self.client.is_silent(&tenant.session.endpoint) {
                    true => ages.stale,
                    false => ages.fresh,
                };
                Ok(memory.recall(key, age, now))
            }
            Reach::Platform(deadline) => {
                let family = self.client.family(&tenant.session)?;
                let answer = memory.obtain(key, &family, ages, deadline, || ask(deadline));
                answer.map(Some)
            }
        }
    }

    fn ages(&self, tenant: &Tenant) -> Ages {
        let (fresh, stale) = match tenant.run {
            None => (self.fresh, self.stale),
            Some(_) => (self.fresh_in_runs, self.stale.max(STALE_IN_RUNS)),
        };
        Ages {
            fresh,
            stale: stale.max(fresh),
        }
    }
}

impl Tenant {
    fn family(&self) -> FamilyId {
        FamilyId::of(&self.session.endpoint, &self.session.access_token)
    }

    fn workspace(&self) -> Workspace {
        Workspace {
            family: self.family(),
            id: self.workspace,
        }
    }
}

/// AWS keys stand for a login at ECR, as people enter them for a registry: the access key and its secret, or a role and
/// its external id.
fn credentials(keys: Keys) -> Option<Credentials> {
    let (username, password) = match keys {
        Keys::Registry { username, password } => (username, password),
        Keys::Aws(AwsKeys::Static {
            access_key,
            secret_key,
        }) => (access_key, secret_key),
        Keys::Aws(AwsKeys::Role { arn, external_id }) => (
            arn,
            external_id.unwrap_or_else(|| Secret::new(String::new())),
        ),
        Keys::Other => return None,
    };
    Some(Credentials { username, password })
}

fn is_ecr(registry: &Registry) -> bool {
    matches!(EcrHost::parse(registry.as_str()), Some(EcrHost::Private(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Reference;

    fn listed(id: usize, provider: &str, registry: Option<&str>) -> ListedCredentials {
        ListedCredentials {
            id: id.to_string(),
            name: String::new(),
            provider: provider.to_owned(),
            registry: registry.map(str::to_owned),
            is_invalid: false,
            is_deleted: false,
        }
    }

    #[test]
    fn the_closest_credential_of_the_list_is_found() {
        let hosts = |registries: &[&str]| {
            let listed = registries
                .iter()
                .enumerate()
                .map(|(id, registry)| listed(id, "container-reg", Some(registry)));
            List::of(listed.collect())
        };
        for (registries, image, expected) in [
            // Hosts, however they were typed.
            (&["quay.io"][..], "quay.io/a/b", Some("0")),
            (&["https://quay.io"], "quay.io/a/b", Some("0")),
            (&["http://QUAY.io/"], "quay.io/a/b", Some("0")),
            (&[" quay.io:443 "], "quay.io/a/b", Some("0")),
            (&["docker.io"], "alpine", Some("0")),
            (&["index.docker.io"], "alpine", Some("0")),
            (&["https://index.docker.io/v1/"], "acme/app", Some("0")),
            (&["registry-1.docker.io"], "docker.io/acme/app", Some("0")),
            (&["localhost:5000"], "localhost:5000/a", Some("0")),
            (&["quay.io"], "ghcr.io/a/b", None),
            (&["quay.io.evil.example"], "quay.io/a/b", None),
            (&["evil.quay.io"], "quay.io/a/b", None),
            // The longest prefix, whatever the order, on whole components.
            (&["quay.io", "quay.io/a"], "quay.io/a/b", Some("1")),
            (&["quay.io/a", "quay.io"], "quay.io/a/b", Some("0")),
            (&["quay.io/a", "quay.io/a/b"], "quay.io/a/b/c", Some("1")),
            (&["quay.io/a", "quay.io"], "quay.io/ab/c", Some("1")),
            (&["docker.io/acme", "docker.io"], "acme/app", Some("0")),
            (&["docker.io/acme"], "alpine", None),
            // The first among equals.
            (&["quay.io", "https://quay.io/"], "quay.io/a/b", Some("0")),
            (&["quay.io/a/", "quay.io/a"], "quay.io/a/b", Some("0")),
            // What cannot be read costs only itself.
            (&["*", "quay io", "", "quay.io"], "quay.io/a/b", Some("3")),
            (&["quay.io/A", "quay.io"], "quay.io/a/b", Some("1")),
        ] {
            let image: Reference = image.parse().unwrap_or_else(|e| panic!("{image}: {e}"));
            let list = hosts(registries);
            let found = list.find(&image.registry, &image.repository);
            let found = found.map(|line| line.id.as_str());
            assert_eq!(found, expected, "{registries:?} for {image}");
        }
    }

    #[test]
    fn what_is_for_something_else_or_no_good_is_skipped() {
        let list = List::of(vec![
            listed(0, "aws", Some("quay.io")),
            ListedCredentials {
                is_invalid: true,
                ..listed(1, "container-reg", Some("quay.io/a"))
            },
            ListedCredentials {
                is_deleted: true,
                ..listed(2, "container-reg", Some("quay.io"))
            },
            listed(3, "container-reg", Some("quay.io")),
            listed(4, "container-reg", None),
            listed(5, "github", None),
        ]);
        assert_eq!(list.other_count, 2);
        for (image, expected) in [("quay.io/a/b", Some("3")), ("alpine", Some("4"))] {
            let image: Reference = image.parse().unwrap_or_else(|e| panic!("{image}: {e}"));
            let found = list.find(&image.registry, &image.repository);
            assert_eq!(found.map(|line| line.id.as_str()), expected, "{image}");
        }
        let skipped: Vec<_> = list
            .lines
            .iter()
            .filter_map(|it| it.scope.clone().err())
            .collect();
        assert_eq!(skipped, [Skipped::Invalid, Skipped::Deleted]);
    }

    #[test]
    fn aws_keys_stand_for_a_login() {
        let secret = |text: &str| Secret::new(text.to_owned());
        for (keys, expected) in [
            (
                Keys::Registry {
                    username: "u".to_owned(),
                    password: secret("p"),
                },
                Some(("u", "p")),
            ),
            (
                Keys::Aws(AwsKeys::Static {
                    access_key: "AK".to_owned(),
                    secret_key: secret("SK"),
                }),
                Some(("AK", "SK")),
            ),
            (
                Keys::Aws(AwsKeys::Role {
                    arn: "arn:aws:iam::1:role/r".to_owned(),
                    external_id: None,
                }),
                Some(("arn:aws:iam::1:role/r", "")),
            ),
            (Keys::Other, None),
        ] {
            let login = credentials(keys);
            let pair = login.as_ref();
            let pair = pair.map(|it| (it.username.as_str(), it.password.expose().as_str()));
            assert_eq!(pair, expected);
        }
    }
}
