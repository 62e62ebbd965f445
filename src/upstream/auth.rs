//! What to say to a registry so that it lets us in: its challenge is answered with the login, or with a token for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    challenges::{Challenges, Learnt, Rebuff, choose},
    endpoint::Endpoint,
    error::{FetchError, Service},
    login::{Authorization, Login},
    realm::{TokenError, TokenRequest, basic},
    rights::Rights,
    tokens::{Key, LONGEST_WAIT, Tokens},
};
use crate::{
    blocking::Pool,
    http::Url,
    oci::Repository,
    telemetry::metrics::{self, Counter},
};

/// A realm that is out of order is asked again after these pauses, or their doubles.
const OUTAGE_PAUSE: Duration = Duration::from_millis(200);
const MOST_TRIES_IN_OUTAGE: u32 = 3;

/// Shared by all cores.
pub struct Authorizer {
    pub(super) pool: Arc<Pool>,
    challenges: Challenges,
    tokens: Tokens,
}

impl Authorizer {
    pub fn new(pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            challenges: Challenges::default(),
            tokens: Tokens::new(Arc::clone(&pool)),
            pool,
        })
    }

    /// What to send with a first request; nothing, if the registry has not told yet what it wants.
    pub(super) async fn authorization(
        &self,
        endpoint: &Endpoint,
        rights: Rights<'_>,
        login: &Login,
    ) -> Result<Option<Authorization>, FetchError> {
        let origin = endpoint.url("/").origin;
        match self.challenges.known(&origin, rights) {
            Some(Learnt::Basic) if !endpoint.takes_basic => Ok(None),
            Some(learnt) => {
                let answer = self.answer(endpoint, rights, login, &learnt, None).await;
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
    pub(super) async fn after_refusal(
        &self,
        endpoint: &Endpoint,
        rights: Rights<'_>,
        login: &Login,
        rebuff: &Rebuff<'_>,
    ) -> Result<Option<Authorization>, FetchError> {
        let Some(learnt) = self.wanted(endpoint, rights, login, rebuff) else {
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
            ) => wanted.is_none() || rights.scope(wanted.as_deref()) == *scope,
            _ => false,
        };
        if is_the_same {
            return Ok(None);
        }
        self.answer(endpoint, rights, login, &learnt, rebuff.sent)
            .await
    }

    /// The same for a login that came in the place of one that has ended. Whatever was sent was that one's.
    pub(super) async fn with_other_login(
        &self,
        endpoint: &Endpoint,
        rights: Rights<'_>,
        login: &Login,
        rebuff: &Rebuff<'_>,
    ) -> Result<Option<Authorization>, FetchError> {
        match self.wanted(endpoint, rights, login, rebuff) {
            Some(learnt) => {
                self.answer(endpoint, rights, login, &learnt, rebuff.sent)
                    .await
            }
            None => Ok(None),
        }
    }

    /// What the registry wants to see, if it can be shown.
    fn wanted(
        &self,
        endpoint: &Endpoint,
        rights: Rights<'_>,
        login: &Login,
        rebuff: &Rebuff<'_>,
    ) -> Option<Learnt> {
        let origin = endpoint.url("/").origin;
        let known = self.challenges.known(&origin, rights);
        let has_login = login.credentials.is_some();
        let trusts = |realm: &str| {
            realm_url(endpoint, realm).is_some_and(|realm| endpoint.trusts_realm(&realm).is_ok())
        };
        let learnt = match choose(rebuff, known.as_ref(), has_login, rights, trusts)? {
            Learnt::Bearer {
                realm,
                service,
                scope: Some(scope),
            } if rebuff.is_moved => Learnt::Bearer {
                realm,
                service,
                // The first place is asked again, and then both.
                scope: rights.admit(&format!("{} {scope}", rights.usual_scope())),
            },
            learnt => learnt,
        };
        if !rebuff.challenges.is_empty() {
            self.challenges.learn(&origin, rights, &learnt, rebuff.sent);
        }
        (endpoint.takes_basic || learnt != Learnt::Basic).then_some(learnt)
    }

    /// Whether the registry has told what it wants.
    pub(super) fn knows(&self, endpoint: &Endpoint, rights: Rights<'_>) -> bool {
        let origin = endpoint.url("/").origin;
        self.challenges.known(&origin, rights).is_some()
    }

    async fn answer(
        &self,
        endpoint: &Endpoint,
        rights: Rights<'_>,
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
            scope: rights.scope(scope.as_deref()),
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
            let (answer, is_fresh) = self.tokens.obtain(endpoint, &key, &request, sent).await?;
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
                Err(error) => return Err(token_error(endpoint, rights.repository, login, error)),
            }
        }
    }
}

/// A relative realm is relative to the registry.
pub(super) fn realm_url(endpoint: &Endpoint, realm: &str) -> Option<Url> {
    endpoint.url("/v2/").join(realm).ok()
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
                status: None,
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
