//! Whether a registry takes a login, as `docker login` finds out: at its door, without any repository.
//!
//! Whoever asks may name any host, so its addresses are looked at first, and told apart from a refusal. Nothing is remembered:
//! a password that has just been changed must not be what it was before.

use super::{
    auth::realm_url,
    endpoint::Endpoint,
    error::FetchError,
    exchange::{Request, Response},
    fetch::Upstream,
    login::Authorization,
    realm::{TokenRequest, basic},
    send::Problem,
};
use crate::{
    blocking::{Errand, PoolError},
    http::{Challenge, Method, parse_challenges},
    net::look_up,
    oci::{Credentials, Registry},
};

/// Why it is not known.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CheckError {
    /// Such a registry is not asked at all.
    #[error("{0}")]
    Address(String),
    #[error(transparent)]
    Busy(#[from] PoolError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{registry}: {problem}")]
    Realm { registry: Registry, problem: String },
}

/// What a registry wants to see at its door.
#[derive(Debug, PartialEq, Eq)]
enum Door {
    Open,
    Basic,
    Token {
        realm: String,
        service: Option<String>,
    },
    /// No word about how.
    Shut,
}

impl Upstream {
    pub async fn check_login(
        &self,
        registry: &Registry,
        credentials: &Credentials,
    ) -> Result<bool, CheckError> {
        let endpoint = self.endpoint(registry)?;
        self.ensure_address(&endpoint).await?;
        let response = self.knock(&endpoint, None).await?;
        let status = response.head.status;
        let challenges = parse_challenges(response.head.headers.all("www-authenticate"));
        response.body.discard().await;
        match door(status, &challenges) {
            Door::Token { realm, service } => {
                self.check_at_realm(&endpoint, &realm, service, credentials)
                    .await
            }
            Door::Open | Door::Basic => {
                let pair = Authorization::Basic(basic(credentials));
                let response = self.knock(&endpoint, Some(&pair)).await?;
                let status = response.head.status;
                response.body.discard().await;
                Ok(status == 200)
            }
            Door::Shut => Ok(false),
        }
    }

    async fn ensure_address(&self, endpoint: &Endpoint) -> Result<(), CheckError> {
        let (origin, allowed) = (endpoint.url("/v2/").origin, endpoint.way.addresses);
        let looked_up = self.authorizer.pool.run(Errand::Names, move || {
            look_up(&origin.host, origin.port, allowed).map(drop)
        });
        let found = looked_up.await?;
        found.map_err(|error| CheckError::Address(error.to_string()))
    }

    async fn knock(
        &self,
        endpoint: &Endpoint,
        authorization: Option<&Authorization>,
    ) -> Result<Response, FetchError> {
        let request = Request {
            method: Method::Get,
            url: &endpoint.url("/v2/"),
            accept: None,
            range: None,
            authorization: authorization.map(Authorization::value),
        };
        let sent = self.exchange.send(&endpoint.way, &request).await;
        sent.map_err(|error| Problem::from(error).into_error(&endpoint.registry))
    }

    async fn check_at_realm(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        service: Option<String>,
        credentials: &Credentials,
    ) -> Result<bool, CheckError> {
        let failed = |problem: String| CheckError::Realm {
            registry: endpoint.registry.clone(),
            problem,
        };
        let realm = realm_url(endpoint, realm)
            .ok_or_else(|| failed("it has a token realm that is not a URL".to_owned()))?;
        endpoint.trusts_realm(&realm).map_err(failed)?;
        let request = TokenRequest {
            realm,
            service,
            scope: String::new(),
            credentials: Some(credentials.clone()),
        };
        let realms = endpoint.realms.clone();
        let asked = self
            .authorizer
            .pool
            .run(Errand::Tokens, move || realms.obtain(&request).map(drop));
        match asked.await? {
            Ok(()) => Ok(true),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

fn door(status: u16, challenges: &[Challenge]) -> Door {
    let mut door = match status {
        200 => Door::Open,
        _ => Door::Shut,
    };
    for challenge in challenges {
        match challenge {
            // Whatever else it takes.
            Challenge::Bearer { realm, service, .. } => {
                return Door::Token {
                    realm: realm.clone(),
                    service: service.clone(),
                };
            }
            Challenge::Basic { .. } => door = Door::Basic,
        }
    }
    door
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_says_what_it_wants_to_see() {
        let token = |service: Option<&str>| Door::Token {
            realm: "https://r.io/token".to_owned(),
            service: service.map(str::to_owned),
        };
        for (status, lines, expected) in [
            (200, &[][..], Door::Open),
            (401, &[], Door::Shut),
            (404, &[], Door::Shut),
            (401, &[r#"Basic realm="x""#], Door::Basic),
            (
                401,
                &[r#"Bearer realm="https://r.io/token",service="r.io""#],
                token(Some("r.io")),
            ),
            (
                401,
                &[r#"Basic realm="x""#, r#"Bearer realm="https://r.io/token""#],
                token(None),
            ),
        ] {
            let challenges = parse_challenges(lines.iter().copied());
            assert_eq!(door(status, &challenges), expected, "{status} {lines:?}");
        }
    }
}
