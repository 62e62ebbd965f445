//! What to say to a registry so that it lets us in: the challenges learnt, the tokens obtained.
//!
//! A token is kept under everything that it depends on: the registry's origin, realm, service, scope and the
//! identity of the credentials. A key with less has served one tenant's token to another elsewhere. One
//! exchange per key is under way at a time; those who ask meanwhile share its answer, a refusal too.

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{
    endpoint::Endpoint,
    error::{FetchError, Said},
    token::{BearerToken, TokenError, TokenRequest, basic},
};
use crate::{
    blocking::{self, Errand, Pool, PoolError, Receiver, Sender, lock},
    http::{Challenge, Origin},
    oci::{Credentials, Repository},
    secret::Secret,
};

/// A bad password must not hammer the realm: Docker Hub locks the account for a quarter of an hour.
const REFUSAL_AGE: Duration = Duration::from_secs(30);
/// Exchanges under way with one realm: one that does not answer must not take all threads.
const MOST_AT_ONE_REALM: usize = 12;
const REALM_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const MOST_TOKENS: usize = 16_384;
const MOST_CHALLENGES: usize = 16_384;

/// Who asks. The identity stands for the credentials in keys, also when they are renewed; it is not a secret.
#[derive(Clone, Debug)]
pub struct Login {
    pub credentials: Option<Credentials>,
    pub identity: Arc<str>,
    /// Of credentials that end.
    pub renewal: Option<Renewal>,
}

/// Brings other credentials for those that have ended, if there are any.
#[derive(Clone)]
pub struct Renewal(Rc<Renew>);

type Renew = dyn Fn() -> Pin<Box<dyn Future<Output = Option<Credentials>>>>;

impl Renewal {
    pub fn new<F>(renew: impl Fn() -> F + 'static) -> Self
    where
        F: Future<Output = Option<Credentials>> + 'static,
    {
        Self(Rc::new(move || Box::pin(renew())))
    }
}

impl fmt::Debug for Renewal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Renewal")
    }
}

impl Login {
    pub fn who(&self) -> &'static str {
        if self.credentials.is_some() {
            "these credentials"
        } else {
            "anonymous access"
        }
    }

    /// `None`: there is nothing better. What comes is not renewed again.
    pub(super) async fn renewed(&self) -> Option<Self> {
        let Renewal(renew) = self.renewal.as_ref()?;
        let credentials = renew().await?;
        Some(Self {
            credentials: Some(credentials),
            identity: Arc::clone(&self.identity),
            renewal: None,
        })
    }
}

/// Whether this refusal is about credentials that were good once. ECR says so with 403, like everything that is not
/// allowed; ECR Public with 400.
pub(super) fn has_login_ended(status: u16, said: &Said) -> bool {
    let text = said.0.as_deref().unwrap_or_default();
    match status {
        401 => true,
        400 | 403 => [
            "authorization token has expired",
            "security token included in the request",
            "Authorization Token is invalid",
        ]
        .iter()
        .any(|words| text.contains(words)),
        _ => false,
    }
}

/// A value for `Authorization`.
#[derive(Clone)]
pub enum Authorization {
    Basic(Secret<String>),
    Bearer {
        value: Secret<String>,
        is_fresh: bool,
    },
}

impl Authorization {
    pub fn value(&self) -> &Secret<String> {
        match self {
            Self::Basic(value) | Self::Bearer { value, .. } => value,
        }
    }
}

/// Shared by all cores.
pub struct Authorizer {
    pool: Arc<Pool>,
    challenges: Mutex<HashMap<(Origin, Option<Repository>), Learnt>>,
    tokens: Arc<Mutex<HashMap<Key, State>>>,
}

/// What a registry wants to see.
#[derive(Clone, Debug)]
enum Learnt {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    origin: Origin,
    realm: String,
    realm_host: String,
    service: Option<String>,
    scope: String,
    identity: Arc<str>,
}

type Answer = Result<BearerToken, TokenError>;

enum State {
    /// Those who wait for the exchange that is under way.
    Asking(Vec<Sender<Answer>>),
    Held(BearerToken),
    Refused {
        error: TokenError,
        /// Others of the same identity are not refused.
        credentials: Option<Credentials>,
        until: Instant,
    },
}

impl Authorizer {
    pub fn new(pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            pool,
            challenges: Mutex::default(),
            tokens: Arc::default(),
        })
    }

    /// What to send with a first request; nothing, if the registry has not told yet what it wants.
    pub async fn authorization(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        login: &Login,
    ) -> Result<Option<Authorization>, FetchError> {
        let origin = endpoint.url("/").origin;
        match self.known(&origin, repository) {
            Some(Learnt::Basic) if !endpoint.takes_basic => Ok(None),
            Some(learnt) => {
                let answer = self
                    .answer(endpoint, repository, login, &learnt, None)
                    .await;
                match answer {
                    // It may have been another repository's challenge: the registry is asked what it wants for this one.
                    Err(
                        FetchError::Refused { .. }
                        | FetchError::Forbidden { .. }
                        | FetchError::Failed { .. }
                        | FetchError::Malformed { .. },
                    ) => Ok(None),
                    answer => answer,
                }
            }
            None => Ok(None),
        }
    }

    /// What to send after a refusal, once; nothing, if there is nothing better. `sent` is dropped.
    pub async fn after_refusal(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        login: &Login,
        challenges: &[Challenge],
        sent: Option<&Authorization>,
    ) -> Result<Option<Authorization>, FetchError> {
        let Some(learnt) = self.wanted(endpoint, repository, login, challenges) else {
            return Ok(None);
        };
        match (&learnt, sent) {
            // The same again would get the same answer.
            (Learnt::Basic, Some(Authorization::Basic(_))) => Ok(None),
            (Learnt::Bearer { .. }, Some(Authorization::Bearer { is_fresh: true, .. })) => Ok(None),
            _ => {
                self.answer(endpoint, repository, login, &learnt, sent)
                    .await
            }
        }
    }

    /// The same for a login that came in the place of one that has ended. Whatever was sent was that one's.
    pub async fn with_other_login(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        login: &Login,
        challenges: &[Challenge],
        sent: Option<&Authorization>,
    ) -> Result<Option<Authorization>, FetchError> {
        match self.wanted(endpoint, repository, login, challenges) {
            Some(learnt) => {
                self.answer(endpoint, repository, login, &learnt, sent)
                    .await
            }
            None => Ok(None),
        }
    }

    /// What the registry wants to see, if it can be shown.
    fn wanted(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        login: &Login,
        challenges: &[Challenge],
    ) -> Option<Learnt> {
        let origin = endpoint.url("/").origin;
        self.learn(&origin, repository, login, challenges)
            .filter(|learnt| endpoint.takes_basic || !matches!(learnt, Learnt::Basic))
    }

    fn known(&self, origin: &Origin, repository: &Repository) -> Option<Learnt> {
        let challenges = lock(&self.challenges);
        let own = challenges.get(&(origin.clone(), Some(repository.clone())));
        own.or_else(|| challenges.get(&(origin.clone(), None)))
            .cloned()
    }

    /// Chooses among the challenges: Bearer, then Basic. Without any, what was learnt before holds.
    fn learn(
        &self,
        origin: &Origin,
        repository: &Repository,
        login: &Login,
        challenges: &[Challenge],
    ) -> Option<Learnt> {
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer {
                realm,
                service,
                scope,
                ..
            } => Some(Learnt::Bearer {
                realm: realm.clone(),
                service: service.clone(),
                scope: scope.clone().filter(|scope| is_pull_scope(scope)),
            }),
            Challenge::Basic { .. } => None,
        });
        let basic = challenges
            .iter()
            .any(|challenge| matches!(challenge, Challenge::Basic { .. }));
        let learnt = match bearer {
            Some(bearer) => bearer,
            None if basic || (challenges.is_empty() && login.credentials.is_some()) => {
                if !basic && let Some(known) = self.known(origin, repository) {
                    return Some(known);
                }
                Learnt::Basic
            }
            None => return self.known(origin, repository),
        };
        let mut known = lock(&self.challenges);
        if known.len() >= MOST_CHALLENGES {
            known.clear();
        }
        // A scope that is not the usual one belongs to this repository (or, as ECR Public's, to all of them, and
        // is then learnt again for each).
        if let Learnt::Bearer {
            realm,
            service,
            scope: Some(scope),
        } = &learnt
        {
            if *scope != default_scope(repository) {
                known.insert((origin.clone(), Some(repository.clone())), learnt.clone());
            }
            let general = Learnt::Bearer {
                realm: realm.clone(),
                service: service.clone(),
                scope: None,
            };
            known.insert((origin.clone(), None), general);
        } else {
            known.insert((origin.clone(), None), learnt.clone());
        }
        Some(learnt)
    }

    async fn answer(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        login: &Login,
        learnt: &Learnt,
        sent: Option<&Authorization>,
    ) -> Result<Option<Authorization>, FetchError> {
        let Learnt::Bearer {
            realm,
            service,
            scope,
        } = learnt
        else {
            return Ok(login
                .credentials
                .as_ref()
                .map(|pair| Authorization::Basic(basic(pair))));
        };
        let forbidden = |rule: String| FetchError::Forbidden {
            registry: endpoint.registry.clone(),
            rule,
        };
        // A relative realm is relative to the registry.
        let realm_url = endpoint
            .url("/v2/")
            .join(realm)
            .map_err(|_| FetchError::Malformed {
                registry: endpoint.registry.clone(),
                problem: "a token realm that is not a URL".to_owned(),
            })?;
        endpoint.trusts_realm(&realm_url).map_err(forbidden)?;
        let request = TokenRequest {
            realm: realm_url,
            service: service.clone(),
            scope: scope.clone().unwrap_or_else(|| default_scope(repository)),
            credentials: login.credentials.clone(),
        };
        let key = Key {
            origin: endpoint.url("/").origin,
            realm: realm.clone(),
            realm_host: request.realm.origin.host.clone(),
            service: service.clone(),
            scope: request.scope.clone(),
            identity: Arc::clone(&login.identity),
        };
        let (answer, is_fresh) = self.obtain(endpoint, key, request, sent).await?;
        match answer {
            Ok(token) => Ok(Some(Authorization::Bearer {
                value: token.authorization,
                is_fresh,
            })),
            Err(error) => Err(token_error(endpoint, repository, login, error)),
        }
    }

    /// The token of `key`, and whether it is newer than what was `sent`.
    async fn obtain(
        &self,
        endpoint: &Endpoint,
        key: Key,
        request: TokenRequest,
        sent: Option<&Authorization>,
    ) -> Result<(Answer, bool), FetchError> {
        let deadline = Instant::now() + LONGEST_WAIT;
        let receiver = loop {
            match self.ask(endpoint, &key, &request, sent)? {
                Asked::Known(answer, is_fresh) => return Ok((answer, is_fresh)),
                Asked::UnderWay(receiver) => break receiver,
                Asked::RealmIsBusy if Instant::now() < deadline => {
                    monoio::time::sleep(REALM_PAUSE).await
                }
                Asked::RealmIsBusy => return Err(PoolError::Full(Errand::Tokens).into()),
            }
        };
        match receiver.receive().await {
            Some(answer) => Ok((answer, true)),
            None => Err(PoolError::Panicked(Errand::Tokens).into()),
        }
    }

    /// Looks the token up, joins those who wait for it, or sends for it.
    fn ask(
        &self,
        endpoint: &Endpoint,
        key: &Key,
        request: &TokenRequest,
        sent: Option<&Authorization>,
    ) -> Result<Asked, FetchError> {
        let now = Instant::now();
        let mut tokens = lock(&self.tokens);
        match tokens.get_mut(key) {
            Some(State::Held(token)) if now < token.until && !is_same(token, sent) => {
                return Ok(Asked::Known(Ok(token.clone()), sent.is_some()));
            }
            Some(State::Refused {
                error,
                credentials,
                until,
            }) if now < *until && *credentials == request.credentials => {
                return Ok(Asked::Known(Err(error.clone()), true));
            }
            Some(State::Asking(waiting)) => {
                let (sender, receiver) = blocking::oneshot();
                waiting.push(sender);
                return Ok(Asked::UnderWay(receiver));
            }
            _ => {}
        }
        let at_this_realm = tokens
            .iter()
            .filter(|(other, state)| {
                matches!(state, State::Asking(_)) && other.realm_host == key.realm_host
            })
            .count();
        if at_this_realm >= MOST_AT_ONE_REALM {
            return Ok(Asked::RealmIsBusy);
        }
        make_room(&mut tokens, now);
        let (sender, receiver) = blocking::oneshot();
        tokens.insert(key.clone(), State::Asking(vec![sender]));
        let (realms, request) = (endpoint.realms.clone(), request.clone());
        // Settles also if the exchange panics: those who wait are then told that nothing came.
        let settling = Settling {
            tokens: Arc::clone(&self.tokens),
            key: Some(key.clone()),
            credentials: request.credentials.clone(),
        };
        // A refused errand drops it, and it takes the lock.
        drop(tokens);
        self.pool.send(Errand::Tokens, move || {
            let answer = realms.obtain(&request);
            settling.settle(answer);
        })?;
        Ok(Asked::UnderWay(receiver))
    }
}

enum Asked {
    /// The answer, and whether it is newer than what was sent.
    Known(Answer, bool),
    UnderWay(Receiver<Answer>),
    /// As many exchanges as may be are under way there.
    RealmIsBusy,
}

struct Settling {
    tokens: Arc<Mutex<HashMap<Key, State>>>,
    key: Option<Key>,
    credentials: Option<Credentials>,
}

impl Settling {
    fn settle(mut self, answer: Answer) {
        let Some(key) = self.key.take() else { return };
        let state = match &answer {
            Ok(token) => Some(State::Held(token.clone())),
            Err(error @ (TokenError::Refused { .. } | TokenError::RateLimited { .. })) => {
                Some(State::Refused {
                    error: error.clone(),
                    credentials: self.credentials.take(),
                    until: Instant::now() + REFUSAL_AGE,
                })
            }
            Err(_) => None,
        };
        let waiting = {
            let mut tokens = lock(&self.tokens);
            let before = match state {
                Some(state) => tokens.insert(key, state),
                None => tokens.remove(&key),
            };
            match before {
                Some(State::Asking(waiting)) => waiting,
                _ => Vec::new(),
            }
        };
        for sender in waiting {
            sender.send(answer.clone());
        }
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            lock(&self.tokens).remove(&key);
        }
    }
}

fn is_same(token: &BearerToken, sent: Option<&Authorization>) -> bool {
    sent.is_some_and(|sent| sent.value() == &token.authorization)
}

fn make_room(tokens: &mut HashMap<Key, State>, now: Instant) {
    if tokens.len() < MOST_TOKENS {
        return;
    }
    tokens.retain(|_, state| match state {
        State::Asking(_) => true,
        State::Held(token) => now < token.until,
        State::Refused { until, .. } => now < *until,
    });
    if tokens.len() >= MOST_TOKENS {
        tokens.retain(|_, state| matches!(state, State::Asking(_)));
    }
}

fn default_scope(repository: &Repository) -> String {
    format!("repository:{repository}:pull")
}

/// A registry may name another repository than its path does (Artifactory, GitLab's proxy), but a pull asks for
/// no more than to pull.
fn is_pull_scope(scope: &str) -> bool {
    !scope.is_empty()
        && scope.len() <= 1024
        && scope.split(' ').all(|one| match one.rsplit_once(':') {
            Some((_, actions)) => actions == "pull",
            None => !one.is_empty(),
        })
}

fn token_error(
    endpoint: &Endpoint,
    repository: &Repository,
    login: &Login,
    error: TokenError,
) -> FetchError {
    let registry = endpoint.registry.clone();
    match error {
        TokenError::Refused { said, .. } => FetchError::Refused {
            registry,
            what: repository.to_string(),
            who: login.who(),
            said,
        },
        TokenError::RateLimited { retry_after, said } => FetchError::RateLimited {
            registry,
            retry_after,
            said,
        },
        TokenError::Unreachable { .. } | TokenError::Failed { status: 500.., .. } => {
            FetchError::Unreachable {
                registry,
                cause: error.to_string(),
            }
        }
        TokenError::Forbidden { rule } => FetchError::Forbidden {
            rule: format!(
                "{rule}; if that is meant, set allow_private = true under [registry.\"{registry}\"]"
            ),
            registry,
        },
        TokenError::Failed { status, said } => FetchError::Failed {
            registry,
            what: "a token".to_owned(),
            status,
            said,
        },
        TokenError::Malformed { problem } => FetchError::Malformed {
            registry,
            problem: format!("{problem} from its token service"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_login_is_told_from_a_right_that_is_missing() {
        for (status, said, expected) in [
            (401, "UNAUTHORIZED: Not Authorized", true),
            (
                403,
                "DENIED: Your authorization token has expired. Reauthenticate and try again.",
                true,
            ),
            (
                403,
                "DENIED: The security token included in the request is invalid",
                true,
            ),
            (
                403,
                "DENIED: User: arn:aws:iam::1:user/x is not authorized to perform: ecr:BatchGetImage",
                false,
            ),
            (400, "DENIED: Your Authorization Token is invalid.", true),
            (400, "TAG_INVALID: no", false),
            (404, "Your authorization token has expired", false),
        ] {
            let said = Said(Some(said.to_owned()));
            assert_eq!(has_login_ended(status, &said), expected, "{status} {said}");
        }
    }

    #[test]
    fn only_scopes_that_pull_are_asked_for() {
        for (scope, expected) in [
            ("repository:a/b:pull", true),
            ("repository:host:5000/a:pull", true),
            ("aws", true),
            ("repository:a:pull repository:b:pull", true),
            ("repository:a:pull,push", false),
            ("repository:a:*", false),
            ("registry:catalog:*", false),
            ("", false),
        ] {
            assert_eq!(is_pull_scope(scope), expected, "{scope}");
        }
    }
}
