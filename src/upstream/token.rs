//! Asking a realm for a bearer token (registry-auth: token by GET, by POST where there is no other way).
//! Runs on the pool.

use std::{
    io::Read as _,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use ureq::{
    Agent,
    http::Uri,
    tls::{Certificate, RootCerts, TlsConfig},
    unversioned::{
        resolver::{ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

use super::{error::Said, exchange::Way};
use crate::{
    http::{Url, percent_encode_query},
    net::{Addresses, look_up},
    oci::Credentials,
    secret::Secret,
    telemetry::metrics::{self, Counter},
};

const TIMEOUT: Duration = Duration::from_secs(20);
const LARGEST_ANSWER: u64 = 1 << 20;
/// Clients may count on as much (distribution-spec, token authentication).
const SHORTEST_LIFE: Duration = Duration::from_secs(60);
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A token that ends while the request is on its way is of no use.
const MARGIN: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum TokenError {
    #[error("its token service refused {who}{said}")]
    Refused { who: &'static str, said: Said },
    #[error("its token service has a rate limit, which is reached{said}")]
    RateLimited {
        retry_after: Option<Duration>,
        said: Said,
    },
    #[error("its token service cannot be reached: {cause}")]
    Unreachable { cause: String },
    #[error("its token service answered {status}{said}")]
    Failed { status: u16, said: Said },
    #[error("its token service sent {problem}")]
    Malformed { problem: &'static str },
    /// A rule of this server.
    #[error("{rule}")]
    Forbidden { rule: String },
}

/// A bearer token and how long it is used: not to its last second.
#[derive(Clone, Debug)]
pub(super) struct BearerToken {
    pub authorization: Secret<String>,
    pub until: Instant,
}

/// What a token is asked for.
#[derive(Clone, Debug)]
pub(super) struct TokenRequest {
    pub realm: Url,
    pub service: Option<String>,
    pub scope: String,
    pub credentials: Option<Credentials>,
}

/// An HTTP client that obeys the rules of one registry.
#[derive(Clone)]
pub(super) struct RealmClient(Agent);

impl RealmClient {
    pub(super) fn new(way: &Way) -> Self {
        let mut tls = TlsConfig::builder().disable_verification(way.trust.is_unchecked);
        if !way.trust.roots.is_empty() {
            let roots = way
                .trust
                .roots
                .iter()
                .map(|root| Certificate::from_der(root).to_owned());
            tls = tls.root_certs(RootCerts::from(roots));
        }
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            // A redirect could lead the password elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(TIMEOUT))
            .proxy(None)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build();
        let resolver = CheckedResolver(way.addresses);
        Self(Agent::with_parts(config, DefaultConnector::new(), resolver))
    }

    pub(super) fn obtain(&self, request: &TokenRequest) -> Result<BearerToken, TokenError> {
        metrics::add(Counter::TokenExchanges, 1);
        let asked = Instant::now();
        let answer = self.by_get(request)?;
        let answer = match (answer.status, &request.credentials) {
            // Some realms know OAuth2 only.
            (404 | 405, Some(credentials)) => self.by_post(request, credentials)?,
            _ => answer,
        };
        answer.token(request, asked)
    }

    fn by_get(&self, request: &TokenRequest) -> Result<Answer, TokenError> {
        let mut url = request.realm.to_string();
        let mut append = |name: &str, value: &str| {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(name);
            url.push('=');
            url.push_str(&percent_encode_query(value));
        };
        if let Some(service) = &request.service {
            append("service", service);
        }
        append("scope", &request.scope);
        let mut call = self.0.get(&url);
        if let Some(credentials) = &request.credentials {
            call = call.header("Authorization", basic(credentials).expose());
        }
        Answer::read(call.call())
    }

    fn by_post(
        &self,
        request: &TokenRequest,
        credentials: &Credentials,
    ) -> Result<Answer, TokenError> {
        let mut form = vec![
            ("grant_type", "password"),
            ("client_id", "tidegate"),
            ("scope", request.scope.as_str()),
            ("username", credentials.username.as_str()),
            ("password", credentials.password.expose().as_str()),
        ];
        if let Some(service) = &request.service {
            form.push(("service", service));
        }
        Answer::read(self.0.post(request.realm.to_string()).send_form(form))
    }
}

/// `Basic` and the pair, as `Authorization` wants it.
pub(super) fn basic(credentials: &Credentials) -> Secret<String> {
    let pair = format!("{}:{}", credentials.username, credentials.password.expose());
    Secret::new(format!("Basic {}", STANDARD.encode(pair)))
}

struct Answer {
    status: u16,
    content_type: Option<String>,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

impl Answer {
    fn read(
        result: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Self, TokenError> {
        let response = result.map_err(|error| match error {
            // How `CheckedResolver` says no.
            ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                TokenError::Forbidden {
                    rule: error.to_string(),
                }
            }
            error => TokenError::Unreachable {
                cause: error.to_string(),
            },
        })?;
        let field = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let content_type = field("content-type");
        let retry_after = field("retry-after")
            .and_then(|text| text.parse().ok())
            .map(Duration::from_secs);
        let status = response.status().as_u16();
        let mut body = Vec::new();
        response
            .into_body()
            .into_reader()
            .take(LARGEST_ANSWER)
            .read_to_end(&mut body)
            .map_err(|error| TokenError::Unreachable {
                cause: error.to_string(),
            })?;
        Ok(Self {
            status,
            content_type,
            retry_after,
            body,
        })
    }

    fn token(self, request: &TokenRequest, asked: Instant) -> Result<BearerToken, TokenError> {
        let said = || Said::parse(self.content_type.as_deref(), &self.body);
        let who = if request.credentials.is_some() {
            "these credentials"
        } else {
            "anonymous access"
        };
        match self.status {
            200 => {}
            401 | 403 => return Err(TokenError::Refused { who, said: said() }),
            429 => {
                return Err(TokenError::RateLimited {
                    retry_after: self.retry_after,
                    said: said(),
                });
            }
            status => {
                return Err(TokenError::Failed {
                    status,
                    said: said(),
                });
            }
        }
        let answer: Value = serde_json::from_slice(&self.body)
            .map_err(|_| TokenError::Malformed { problem: "no JSON" })?;
        let text = |name: &str| {
            answer
                .get(name)
                .and_then(Value::as_str)
                .filter(|token| !token.is_empty())
        };
        let token = text("token").or_else(|| text("access_token"));
        let token = token.ok_or(TokenError::Malformed {
            problem: "no token",
        })?;
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Malformed {
                problem: "a token that no header can carry",
            });
        }
        Ok(BearerToken {
            authorization: Secret::new(format!("Bearer {token}")),
            until: asked + useful_life(&answer),
        })
    }
}

/// Counted from when we asked: the other side's clock is not trusted.
fn useful_life(answer: &Value) -> Duration {
    let seconds = match answer.get("expires_in") {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.parse().ok(),
        _ => None,
    };
    let stated = seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or(SHORTEST_LIFE);
    let life = stated.clamp(SHORTEST_LIFE, LONGEST_LIFE);
    (life * 9 / 10).min(life - MARGIN)
}

/// The rule about addresses, for ureq.
#[derive(Debug)]
struct CheckedResolver(Addresses);

impl Resolver for CheckedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let port = uri
            .port_u16()
            .unwrap_or(if uri.scheme_str() == Some("http") {
                80
            } else {
                443
            });
        let addresses = look_up(host, port, self.0).map_err(|error| {
            let kind = match error {
                crate::net::ResolveError::Private { .. } => std::io::ErrorKind::PermissionDenied,
                crate::net::ResolveError::Unknown { .. } => std::io::ErrorKind::NotFound,
            };
            ureq::Error::Io(std::io::Error::new(kind, error.to_string()))
        })?;
        let mut resolved = self.empty();
        // The table has room for 16, more than any host needs.
        for address in addresses.into_iter().take(16) {
            resolved.push(address);
        }
        Ok(resolved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_live_as_long_as_they_say_and_not_to_the_last_second() {
        for (answer, seconds) in [
            (r#"{"expires_in":300}"#, 270),
            (r#"{"expires_in":"3600"}"#, 3240),
            (r#"{"expires_in":1}"#, 50),
            (r#"{"expires_in":0}"#, 50),
            (r#"{"expires_in":-5}"#, 50),
            (r#"{"expires_in":1e300}"#, 50),
            (r#"{"expires_in":null}"#, 50),
            ("{}", 50),
        ] {
            let answer_value: Value = serde_json::from_str(answer).expect(answer);
            assert_eq!(useful_life(&answer_value).as_secs(), seconds, "{answer}");
        }
    }
}
