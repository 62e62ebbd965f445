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
    error::{FetchError, Said, Service},
    token::{BearerToken, TokenError, TokenRequest, basic},
};
use crate::{
    blocking::{self, Errand, Pool, PoolError, Receiver, Sender, lock},
    http::{Challenge, Origin, Url},
    oci::{Credentials, Repository},
    secret::Secret,
    telemetry::metrics::{self, Counter},
};

/// A bad password must not hammer the realm: Docker Hub locks the account for a quarter of an hour.
const REFUSAL_AGE: Duration = Duration::from_secs(30);
/// A realm that asks for more patience than that is asked again all the same.
const LONGEST_REFUSAL_AGE: Duration = Duration::from_secs(900);
/// A realm that is out of order is asked again after these pauses, or their doubles …
const OUTAGE_PAUSE: Duration = Duration::from_millis(200);
const MOST_TRIES_IN_OUTAGE: u32 = 3;
/// … and while a token is still good, no sooner than that.
const OUTAGE_AGE: Duration = Duration::from_secs(5);
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
        /// Made for this request, so another would be no better.
        is_fresh: bool,
        scope: String,
    },
}

impl Authorization {
    pub fn value(&self) -> &Secret<String> {
        match self {
            Self::Basic(value) | Self::Bearer { value, .. } => value,
        }
    }

    /// What follows the scheme.
    pub(super) fn secret_part(&self) -> &str {
        let value = self.value().expose();
        value.split_once(' ').map_or(value, |(_, part)| part)
    }
}

/// Shared by all cores.
pub struct Authorizer {
    pool: Arc<Pool>,
    challenges: Mutex<HashMap<(Origin, Option<Repository>), Learnt>>,
    tokens: Arc<Mutex<HashMap<Key, State>>>,
}

/// A registry's answer to a request that was not good enough for it.
pub struct Rebuff<'a> {
    pub challenges: &'a [Challenge],
    pub sent: Option<&'a Authorization>,
    /// It came from where the registry itself had redirected to: another repository, perhaps.
    pub is_moved: bool,
}

/// What a registry wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    Asking {
        /// For the exchange that is under way.
        waiting: Vec<Sender<Answer>>,
        /// Still good, if the realm is not.
        previous: Option<BearerToken>,
    },
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

    /// What to send after a refusal; nothing, if there is nothing better. What was sent is dropped.
    pub async fn after_refusal(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        login: &Login,
        rebuff: &Rebuff<'_>,
    ) -> Result<Option<Authorization>, FetchError> {
        let Some(learnt) = self.wanted(endpoint, repository, login, rebuff) else {
            return Ok(None);
        };
        // The same again would get the same answer.
        let is_the_same = match (&learnt, rebuff.sent) {
            (Learnt::Basic, Some(Authorization::Basic(_))) => true,
            (
                Learnt::Bearer { scope: wanted, .. },
                Some(Authorization::Bearer {
                    is_fresh: true,
                    scope,
                    ..
                }),
            ) => wanted.as_ref().is_none_or(|wanted| wanted == scope),
            _ => false,
        };
        if is_the_same {
            return Ok(None);
        }
        self.answer(endpoint, repository, login, &learnt, rebuff.sent)
            .await
    }

    /// The same for a login that came in the place of one that has ended. Whatever was sent was that one's.
    pub async fn with_other_login(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        login: &Login,
        rebuff: &Rebuff<'_>,
    ) -> Result<Option<Authorization>, FetchError> {
        match self.wanted(endpoint, repository, login, rebuff) {
            Some(learnt) => {
                self.answer(endpoint, repository, login, &learnt, rebuff.sent)
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
        rebuff: &Rebuff<'_>,
    ) -> Option<Learnt> {
        let origin = endpoint.url("/").origin;
        let known = self.known(&origin, repository);
        let has_login = login.credentials.is_some();
        let trusts = |realm: &str| {
            realm_url(endpoint, realm).is_some_and(|realm| endpoint.trusts_realm(&realm).is_ok())
        };
        let learnt = match choose(rebuff, known.as_ref(), has_login, trusts)? {
            Learnt::Bearer {
                realm,
                service,
                scope: Some(scope),
            } if rebuff.is_moved => Learnt::Bearer {
                realm,
                service,
                // The first place is asked again, and then both.
                scope: pull_scope(&format!("{} {scope}", default_scope(repository))),
            },
            learnt => learnt,
        };
        if !rebuff.challenges.is_empty() {
            self.learn(&origin, repository, &learnt, rebuff.sent);
        }
        (endpoint.takes_basic || learnt != Learnt::Basic).then_some(learnt)
    }

    /// Whether the registry has told what it wants.
    pub fn knows(&self, endpoint: &Endpoint, repository: &Repository) -> bool {
        let origin = endpoint.url("/").origin;
        self.known(&origin, repository).is_some()
    }

    fn known(&self, origin: &Origin, repository: &Repository) -> Option<Learnt> {
        let challenges = lock(&self.challenges);
        let own = challenges.get(&(origin.clone(), Some(repository.clone())));
        own.or_else(|| challenges.get(&(origin.clone(), None)))
            .cloned()
    }

    fn learn(
        &self,
        origin: &Origin,
        repository: &Repository,
        learnt: &Learnt,
        sent: Option<&Authorization>,
    ) {
        let mut known = lock(&self.challenges);
        if known.len() >= MOST_CHALLENGES {
            known.clear();
        }
        let (own, general) = match learnt {
            // A scope that is not the usual one belongs to this repository (or, as ECR Public's, to all of them, and
            // is then learnt again for each).
            Learnt::Bearer {
                realm,
                service,
                scope,
            } => {
                let is_unusual = scope
                    .as_ref()
                    .is_some_and(|scope| *scope != default_scope(repository));
                let general = Learnt::Bearer {
                    realm: realm.clone(),
                    service: service.clone(),
                    scope: None,
                };
                (is_unusual.then(|| learnt.clone()), Some(general))
            }
            // In answer to a token it may be meant for this repository alone.
            Learnt::Basic => match sent {
                Some(Authorization::Bearer { .. }) => (Some(Learnt::Basic), None),
                _ => (None, Some(Learnt::Basic)),
            },
        };
        let own_key = (origin.clone(), Some(repository.clone()));
        match own {
            Some(own) => known.insert(own_key, own),
            None => known.remove(&own_key),
        };
        if let Some(general) = general {
            known.insert((origin.clone(), None), general);
        }
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
            let pair = login.credentials.as_ref();
            return Ok(pair
                .filter(|pair| !pair.are_a_refresh_token())
                .map(|pair| Authorization::Basic(basic(pair))));
        };
        let forbidden = |rule: String| FetchError::Forbidden {
            registry: endpoint.registry.clone(),
            rule,
        };
        let realm_url = realm_url(endpoint, realm).ok_or_else(|| FetchError::Malformed {
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
        let started = Instant::now();
        let mut tries = 1;
        loop {
            let (answer, is_fresh) = self.obtain(endpoint, &key, &request, sent).await?;
            match answer {
                Ok(token) => {
                    return Ok(Some(Authorization::Bearer {
                        value: token.authorization,
                        is_fresh,
                        scope: key.scope,
                    }));
                }
                Err(error)
                    if error.is_outage()
                        && tries < MOST_TRIES_IN_OUTAGE
                        && started.elapsed() < LONGEST_WAIT =>
                {
                    metrics::add(Counter::UpstreamRetries, 1);
                    monoio::time::sleep(OUTAGE_PAUSE * tries).await;
                    tries += 1;
                }
                Err(error) => return Err(token_error(endpoint, repository, login, error)),
            }
        }
    }

    /// The token of `key`, and whether it is newer than what was `sent`.
    async fn obtain(
        &self,
        endpoint: &Endpoint,
        key: &Key,
        request: &TokenRequest,
        sent: Option<&Authorization>,
    ) -> Result<(Answer, bool), FetchError> {
        let deadline = Instant::now() + LONGEST_WAIT;
        let receiver = loop {
            match self.ask(endpoint, key, request, sent)? {
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
            Some(State::Asking { waiting, .. }) => {
                let (sender, receiver) = blocking::oneshot();
                waiting.push(sender);
                return Ok(Asked::UnderWay(receiver));
            }
            _ => {}
        }
        let at_this_realm = tokens
            .iter()
            .filter(|(other, state)| {
                matches!(state, State::Asking { .. }) && other.realm_host == key.realm_host
            })
            .count();
        if at_this_realm >= MOST_AT_ONE_REALM {
            return Ok(Asked::RealmIsBusy);
        }
        let previous = match tokens.remove(key) {
            Some(State::Held(token)) if now < token.end && !is_same(&token, sent) => Some(token),
            _ => None,
        };
        make_room(&mut tokens, now);
        let (sender, receiver) = blocking::oneshot();
        let asking = State::Asking {
            waiting: vec![sender],
            previous,
        };
        tokens.insert(key.clone(), asking);
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
        let now = Instant::now();
        let (waiting, answer) = {
            let mut tokens = lock(&self.tokens);
            let (waiting, previous) = match tokens.remove(&key) {
                Some(State::Asking { waiting, previous }) => (waiting, previous),
                _ => (Vec::new(), None),
            };
            let answer = match (answer, previous) {
                (Err(error), Some(mut token)) if is_about_the_realm(&error) && now < token.end => {
                    token.until = token.end.min(now + OUTAGE_AGE);
                    Ok(token)
                }
                (answer, _) => answer,
            };
            let state = match &answer {
                Ok(token) => Some(State::Held(token.clone())),
                Err(error) => refusal_age(error).map(|age| State::Refused {
                    error: error.clone(),
                    credentials: self.credentials.take(),
                    until: now + age,
                }),
            };
            if let Some(state) = state {
                tokens.insert(key, state);
            }
            (waiting, answer)
        };
        for sender in waiting {
            sender.send(answer.clone());
        }
    }
}

/// It says nothing about a token that is still good.
fn is_about_the_realm(error: &TokenError) -> bool {
    error.is_outage() || matches!(error, TokenError::RateLimited { .. })
}

/// How long it is not asked again.
fn refusal_age(error: &TokenError) -> Option<Duration> {
    match error {
        TokenError::Refused { .. } => Some(REFUSAL_AGE),
        TokenError::RateLimited { retry_after, .. } => {
            let asked = retry_after.unwrap_or(REFUSAL_AGE);
            Some(asked.clamp(REFUSAL_AGE, LONGEST_REFUSAL_AGE))
        }
        TokenError::Unreachable { .. }
        | TokenError::Failed { .. }
        | TokenError::Malformed { .. }
        | TokenError::Forbidden { .. } => None,
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
        State::Asking { .. } => true,
        State::Held(token) => now < token.until,
        State::Refused { until, .. } => now < *until,
    });
    if tokens.len() >= MOST_TOKENS {
        tokens.retain(|_, state| matches!(state, State::Asking { .. }));
    }
}

fn default_scope(repository: &Repository) -> String {
    format!("repository:{repository}:pull")
}

/// As a key is made of it: each scope once, in one order. A registry may name another repository than its path does
/// (Artifactory, GitLab's proxy), but a pull asks for no more than to pull: `None`, then.
fn pull_scope(scope: &str) -> Option<String> {
    const LONGEST: usize = 1024;
    let mut scopes: Vec<&str> = scope.split(' ').filter(|one| !one.is_empty()).collect();
    let pulls = |one: &&str| {
        one.rsplit_once(':')
            .is_none_or(|(_, actions)| actions == "pull")
    };
    if scopes.is_empty() || scope.len() > LONGEST || !scopes.iter().all(pulls) {
        return None;
    }
    scopes.sort_unstable();
    scopes.dedup();
    Some(scopes.join(" "))
}

/// A relative realm is relative to the registry.
fn realm_url(endpoint: &Endpoint, realm: &str) -> Option<Url> {
    endpoint.url("/v2/").join(realm).ok()
}

/// Bearer, then Basic; and what was learnt before, if nothing was said.
fn choose(
    rebuff: &Rebuff<'_>,
    known: Option<&Learnt>,
    has_login: bool,
    trusts: impl Fn(&str) -> bool,
) -> Option<Learnt> {
    let mut bearers = rebuff
        .challenges
        .iter()
        .filter_map(|challenge| match challenge {
            Challenge::Bearer {
                realm,
                service,
                scope,
                ..
            } => Some(Learnt::Bearer {
                realm: realm.clone(),
                service: service.clone(),
                scope: scope.as_deref().and_then(pull_scope),
            }),
            Challenge::Basic { .. } => None,
        });
    let is_good = |bearer: &Learnt| match bearer {
        Learnt::Bearer { realm, .. } => trusts(realm),
        Learnt::Basic => false,
    };
    let bearer = bearers.clone().find(is_good).or_else(|| bearers.next());
    let takes_basic = rebuff
        .challenges
        .iter()
        .any(|challenge| matches!(challenge, Challenge::Basic { .. }));
    let sent_is_stale = matches!(
        rebuff.sent,
        Some(Authorization::Bearer {
            is_fresh: false,
            ..
        })
    );
    match (bearer, known) {
        (Some(bearer), _) if is_good(&bearer) => Some(bearer),
        // The registry itself takes the password that its realm must not see.
        (Some(_), _) if takes_basic && has_login => Some(Learnt::Basic),
        // Its realm is not trusted, and the error will say so.
        (Some(bearer), _) => Some(bearer),
        // Harbor says no more than this to a token that has ended.
        (None, Some(known @ Learnt::Bearer { .. })) if takes_basic && sent_is_stale => {
            Some(known.clone())
        }
        (None, _) if takes_basic => Some(Learnt::Basic),
        (None, Some(known)) => Some(known.clone()),
        (None, None) => has_login.then_some(Learnt::Basic),
    }
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
            by: Service::Tokens,
            said,
        },
        TokenError::RateLimited { retry_after, said } => FetchError::RateLimited {
            registry,
            by: Service::Tokens,
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
    use crate::http::parse_challenges;

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
    fn only_scopes_that_pull_are_asked_for_and_in_one_order() {
        for (scope, expected) in [
            ("repository:a/b:pull", Some("repository:a/b:pull")),
            (
                "repository:host:5000/a:pull",
                Some("repository:host:5000/a:pull"),
            ),
            ("aws", Some("aws")),
            (
                "repository:b:pull  repository:a:pull repository:b:pull",
                Some("repository:a:pull repository:b:pull"),
            ),
            ("repository:a:pull,push", None),
            ("repository:a:*", None),
            ("registry:catalog:*", None),
            ("", None),
            (" ", None),
        ] {
            assert_eq!(pull_scope(scope).as_deref(), expected, "{scope}");
        }
    }

    fn bearer(realm: &str) -> Learnt {
        Learnt::Bearer {
            realm: realm.to_owned(),
            service: None,
            scope: None,
        }
    }

    #[test]
    fn of_several_challenges_the_one_that_can_be_met_is_chosen() {
        let own = r#"Bearer realm="own""#;
        let other = r#"Bearer realm="other""#;
        let basic = r#"Basic realm="x""#;
        let token = |is_fresh| Authorization::Bearer {
            value: Secret::new("Bearer t".to_owned()),
            is_fresh,
            scope: String::new(),
        };
        let (stale, fresh) = (token(false), token(true));
        let known = bearer("known");
        for (lines, sent, known, has_login, expected) in [
            (&[own][..], None, None, true, Some(bearer("own"))),
            (&[basic, own], None, None, true, Some(bearer("own"))),
            (&[other, own], None, None, true, Some(bearer("own"))),
            (&[other], None, None, true, Some(bearer("other"))),
            (&[other, basic], None, None, true, Some(Learnt::Basic)),
            (&[other, basic], None, None, false, Some(bearer("other"))),
            (&[basic], None, None, true, Some(Learnt::Basic)),
            (&[basic], None, Some(&known), true, Some(Learnt::Basic)),
            (
                &[basic],
                Some(&stale),
                Some(&known),
                false,
                Some(known.clone()),
            ),
            (
                &[basic],
                Some(&fresh),
                Some(&known),
                true,
                Some(Learnt::Basic),
            ),
            (&[], None, Some(&known), true, Some(known.clone())),
            (&[], None, None, true, Some(Learnt::Basic)),
            (&[], None, None, false, None),
        ] {
            let challenges = parse_challenges(lines.iter().copied());
            let rebuff = Rebuff {
                challenges: &challenges,
                sent,
                is_moved: false,
            };
            let chosen = choose(&rebuff, known, has_login, |realm| realm == "own");
            assert_eq!(chosen, expected, "{lines:?} {has_login}");
        }
    }

    #[test]
    fn a_realm_is_left_alone_as_long_as_it_asks_for() {
        for (retry_after, seconds) in [
            (None, 30),
            (Some(1), 30),
            (Some(60), 60),
            (Some(86_400), 900),
        ] {
            let error = TokenError::RateLimited {
                retry_after: retry_after.map(Duration::from_secs),
                said: Said::default(),
            };
            let age = refusal_age(&error).map(|age| age.as_secs());
            assert_eq!(age, Some(seconds), "{retry_after:?}");
        }
    }

    #[test]
    fn a_token_that_is_still_good_outlives_an_outage_of_its_realm() {
        let now = Instant::now();
        let old = BearerToken {
            authorization: Secret::new("Bearer old".to_owned()),
            until: now,
            end: now + Duration::from_secs(30),
        };
        let ended = BearerToken {
            end: now,
            ..old.clone()
        };
        let url: Url = "https://r.example.com/".parse().expect("a URL");
        let key = Key {
            origin: url.origin,
            realm: String::new(),
            realm_host: String::new(),
            service: None,
            scope: String::new(),
            identity: "ada".into(),
        };
        let out_of_order = TokenError::Failed {
            status: 503,
            said: Said::default(),
        };
        let refused = TokenError::Refused {
            who: "these credentials",
            said: Said::default(),
        };
        for (previous, error, is_good) in [
            (Some(&old), &out_of_order, true),
            (Some(&ended), &out_of_order, false),
            (None, &out_of_order, false),
            (Some(&old), &refused, false),
        ] {
            let (sender, receiver) = blocking::oneshot();
            let asking = State::Asking {
                waiting: vec![sender],
                previous: previous.cloned(),
            };
            let tokens = Arc::new(Mutex::new(HashMap::from([(key.clone(), asking)])));
            let settling = Settling {
                tokens: Arc::clone(&tokens),
                key: Some(key.clone()),
                credentials: None,
            };
            settling.settle(Err(error.clone()));
            let is_held = matches!(lock(&tokens).get(&key), Some(State::Held(_)));
            assert_eq!(is_held, is_good, "{error}");
            drop(receiver);
        }
    }
}
