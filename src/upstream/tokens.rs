//! The bearer tokens obtained, each kept under everything that it depends on: the registry's origin, realm, service, scope
//! and the identity of the credentials. A key with less has served one tenant's token to another elsewhere.
//!
//! One exchange per key is under way at a time; those who ask meanwhile share its answer, a refusal too.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{
    endpoint::Endpoint,
    error::FetchError,
    login::Authorization,
    realm::{BearerToken, TokenError, TokenRequest},
};
use crate::{
    blocking::{self, Errand, Pool, PoolError, Receiver, Sender, lock},
    http::Origin,
    oci::Credentials,
};

/// A bad password must not hammer the realm: Docker Hub locks the account for a quarter of an hour.
const REFUSAL_AGE: Duration = Duration::from_secs(30);
/// A realm that asks for more patience than that is asked again all the same.
const LONGEST_REFUSAL_AGE: Duration = Duration::from_secs(900);
/// While a token is still good, a realm that is out of order is asked again no sooner than that.
const OUTAGE_AGE: Duration = Duration::from_secs(5);
/// Exchanges under way with one realm: one that does not answer must not take all threads.
const MOST_AT_ONE_REALM: usize = 12;
const REALM_PAUSE: Duration = Duration::from_millis(25);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(10);
const MOST_TOKENS: usize = 16_384;

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) origin: Origin,
    pub(super) realm: String,
    pub(super) realm_host: String,
    pub(super) service: Option<String>,
    pub(super) scope: String,
    pub(super) identity: Arc<str>,
}

pub(super) type Answer = Result<BearerToken, TokenError>;

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

/// For all cores.
pub(super) struct Tokens {
    pool: Arc<Pool>,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    states: HashMap<Key, State>,
    /// Exchanges under way, by the realm's host: counted here, since those who wait for a busy realm look often.
    under_way: HashMap<String, usize>,
}

impl Table {
    fn begin(&mut self, key: &Key, asking: State) {
        *self.under_way.entry(key.realm_host.clone()).or_default() += 1;
        self.states.insert(key.clone(), asking);
    }

    /// What was there for the exchange, which is over.
    fn end(&mut self, key: &Key) -> Option<State> {
        if let Some(count) = self.under_way.get_mut(&key.realm_host) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&key.realm_host);
            }
        }
        self.states.remove(key)
    }
}

impl Tokens {
    pub(super) fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            table: Arc::default(),
        }
    }

    /// The token of `key`, and whether it is newer than what was `sent`.
    pub(super) async fn obtain(
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
        let mut table = lock(&self.table);
        match table.states.get_mut(key) {
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
        let at_this_realm = table.under_way.get(&key.realm_host);
        if at_this_realm.is_some_and(|count| *count >= MOST_AT_ONE_REALM) {
            return Ok(Asked::RealmIsBusy);
        }
        let previous = match table.states.remove(key) {
            Some(State::Held(token)) if now < token.end && !is_same(&token, sent) => Some(token),
            _ => None,
        };
        make_room(&mut table.states, now);
        let (sender, receiver) = blocking::oneshot();
        let asking = State::Asking {
            waiting: vec![sender],
            previous,
        };
        table.begin(key, asking);
        let (realms, request) = (endpoint.realms.clone(), request.clone());
        // Settles also if the exchange panics: those who wait are then told that nothing came.
        let settling = Settling {
            table: Arc::clone(&self.table),
            key: Some(key.clone()),
            credentials: request.credentials.clone(),
        };
        // A refused errand drops it, and it takes the lock.
        drop(table);
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
    table: Arc<Mutex<Table>>,
    key: Option<Key>,
    credentials: Option<Credentials>,
}

impl Settling {
    fn settle(mut self, answer: Answer) {
        let Some(key) = self.key.take() else { return };
        let now = Instant::now();
        let (waiting, answer) = {
            let mut table = lock(&self.table);
            let (waiting, previous) = match table.end(&key) {
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
                table.states.insert(key, state);
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
            lock(&self.table).end(&key);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{http::Url, secret::Secret, upstream::Said};

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
            let table = Arc::new(Mutex::new(Table::default()));
            lock(&table).begin(&key, asking);
            let settling = Settling {
                table: Arc::clone(&table),
                key: Some(key.clone()),
                credentials: None,
            };
            settling.settle(Err(error.clone()));
            let table = lock(&table);
            let is_held = matches!(table.states.get(&key), Some(State::Held(_)));
            assert_eq!(is_held, is_good, "{error}");
            assert!(table.under_way.is_empty());
            drop(receiver);
        }
    }
}
