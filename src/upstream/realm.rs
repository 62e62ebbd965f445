//! Asking a realm for a bearer token: by GET, which nearly all know, and by POST where there is no other way.
//! Runs on the pool.

use std::{
    io::Read as _,
    time::{Duration, Instant},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde::Deserialize;
use serde_json::Value;
use ureq::{
    Agent,
    http::{HeaderValue, Uri},
    tls::{Certificate, RootCerts, TlsConfig},
    unversioned::{
        resolver::{ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};
use zeroize::Zeroizing;

use super::{error::Said, exchange::Way, known_hosts, login::ANONYMOUS};
use crate::{
    http::{Url, percent_encode_query},
    net::{Addresses, look_up},
    oci::Credentials,
    secret::Secret,
    telemetry::metrics::{self, Counter},
};

const TIMEOUT: Duration = Duration::from_secs(20);
const LARGEST_ANSWER: u64 = 1 << 20;
/// Most answers fit, so that no copy of a token is left behind where its buffer grew.
const USUAL_ANSWER: usize = 16 << 10;
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

impl TokenError {
    /// It says nothing about the login, and may be over in a moment.
    pub(super) fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Failed { status: 500.., .. }
        )
    }
}

/// A bearer token and how long it is good.
#[derive(Clone, Debug)]
pub(super) struct BearerToken {
    pub authorization: Secret<String>,
    /// A little before its end, so that it does not end while a request is on its way.
    pub until: Instant,
    pub end: Instant,
}

/// What a token is asked for.
#[derive(Clone, Debug)]
pub(super) struct TokenRequest {
    pub realm: Url,
    pub service: Option<String>,
    /// Several are separated by a space. Empty: a login alone.
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
        let Some(credentials) = &request.credentials else {
            return self.by_get(request, None)?.token(request, asked);
        };
        if credentials.are_a_refresh_token() {
            let answer = self.by_post(request, Grant::RefreshToken(&credentials.password))?;
            return answer.token(request, asked);
        }
        let answer = self.by_get(request, Some(credentials))?;
        let grant = Grant::of(credentials);
        match answer.status {
            // Some realms know OAuth2 only.
            404 | 405 => self.by_post(request, grant)?.token(request, asked),
            // And some say so like this. What they say to POST counts only if it is a token: a realm that knows no
            // POST speaks of that, and the login was refused before.
            401 if !known_hosts::takes_get_only(&request.realm.origin.host) => {
                match self.by_post(request, grant) {
                    Ok(other) if other.status == 200 => other.token(request, asked),
                    _ => answer.token(request, asked),
                }
            }
            _ => answer.token(request, asked),
        }
    }

    fn by_get(
        &self,
        request: &TokenRequest,
        credentials: Option<&Credentials>,
    ) -> Result<Answer, TokenError> {
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
        for scope in request.scope.split(' ').filter(|scope| !scope.is_empty()) {
            append("scope", scope);
        }
        let mut call = self.0.get(&url);
        if let Some(credentials) = credentials {
            let value = HeaderValue::from_str(basic(credentials).expose());
            let mut value = value.map_err(|_| TokenError::Forbidden {
                rule: "the login cannot be sent in a header".to_owned(),
            })?;
            value.set_sensitive(true);
            call = call.header("Authorization", value);
        }
        Answer::read(call.call())
    }

    fn by_post(&self, request: &TokenRequest, grant: Grant<'_>) -> Result<Answer, TokenError> {
        let mut form = Zeroizing::new(String::with_capacity(USUAL_ANSWER));
        let mut append = |name: &str, value: &str| {
            let separator = if form.is_empty() { "" } else { "&" };
            let value = Zeroizing::new(percent_encode_query(value));
            for part in [separator, name, "=", &value] {
                form.push_str(part);
            }
        };
        append("client_id", "tidegate");
        if !request.scope.is_empty() {
            append("scope", &request.scope);
        }
        if let Some(service) = &request.service {
            append("service", service);
        }
        match grant {
            Grant::Password(credentials) => {
                append("grant_type", "password");
                append("username", &credentials.username);
                append("password", credentials.password.expose());
            }
            Grant::RefreshToken(token) => {
                append("grant_type", "refresh_token");
                append("refresh_token", token.expose());
            }
        }
        let call = self.0.post(request.realm.to_string());
        let call = call.header("Content-Type", "application/x-www-form-urlencoded");
        Answer::read(call.send(form.as_bytes()))
    }
}

/// What is shown to a realm by POST.
#[derive(Clone, Copy)]
enum Grant<'a> {
    Password(&'a Credentials),
    RefreshToken(&'a Secret<String>),
}

impl<'a> Grant<'a> {
    fn of(credentials: &'a Credentials) -> Self {
        if credentials.username == known_hosts::REFRESH_TOKEN_USER {
            Self::RefreshToken(&credentials.password)
        } else {
            Self::Password(credentials)
        }
    }
}

/// `Basic` and the pair, as `Authorization` wants it.
pub(super) fn basic(credentials: &Credentials) -> Secret<String> {
    let password = credentials.password.expose();
    let pair = Zeroizing::new(format!("{}:{password}", credentials.username));
    let encoded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
    Secret::new(format!("Basic {}", *encoded))
}

struct Answer {
    status: u16,
    content_type: Option<String>,
    retry_after: Option<Duration>,
    body: Zeroizing<Vec<u8>>,
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
        let mut body = Zeroizing::new(Vec::with_capacity(USUAL_ANSWER));
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
        // Its words go to clients and into the log.
        let said = || {
            let (mut password, mut pair) = ("", Secret::default());
            if let Some(credentials) = &request.credentials {
                password = credentials.password.expose();
                pair = basic(credentials);
            }
            let pair = pair.expose().trim_start_matches("Basic ");
            Said::parse(self.content_type.as_deref(), &self.body, &[password, pair])
        };
        let who = if request.credentials.is_some() {
            "these credentials"
        } else {
            ANONYMOUS
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
        let granted: Granted = serde_json::from_slice(&self.body)
            .map_err(|_| TokenError::Malformed { problem: "no JSON" })?;
        let life = granted.life();
        let token = [granted.token, granted.access_token]
            .into_iter()
            .flatten()
            .find(|token| !token.expose().is_empty());
        let token = token.ok_or(TokenError::Malformed {
            problem: "no token",
        })?;
        if !token.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Malformed {
                problem: "a token that no header can carry",
            });
        }
        Ok(BearerToken {
            authorization: Secret::new(format!("Bearer {}", token.expose())),
            until: asked + (life * 9 / 10).min(life - MARGIN),
            end: asked + life,
        })
    }
}

/// A realm's answer. Either name of the token is met, and both.
#[derive(Deserialize)]
struct Granted {
    token: Option<Secret<String>>,
    access_token: Option<Secret<String>>,
    expires_in: Option<Value>,
}

impl Granted {
    /// Counted from when we asked: the other side's clock is not trusted.
    fn life(&self) -> Duration {
        let seconds = match &self.expires_in {
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => text.parse().ok(),
            _ => None,
        };
        let stated = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let told_by_itself = || {
            let token = self.token.as_ref().or(self.access_token.as_ref())?;
            life_of_jwt(token.expose())
        };
        stated
            .or_else(|| match self.expires_in {
                None => told_by_itself(),
                Some(_) => None,
            })
            .unwrap_or(SHORTEST_LIFE)
            .clamp(SHORTEST_LIFE, LONGEST_LIFE)
    }
}

/// From its making to its end, both by the realm's clock. Quay and Azure say it nowhere else. Nothing is believed of a
/// token but this.
fn life_of_jwt(token: &str) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        iat: Option<f64>,
        nbf: Option<f64>,
        exp: f64,
    }
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    let made = claims.iat.or(claims.nbf)?;
    Duration::try_from_secs_f64(claims.exp - made).ok()
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

    fn token(body: &str) -> BearerToken {
        let request = TokenRequest {
            realm: "https://auth.example.com/token".parse().expect("a URL"),
            service: None,
            scope: "repository:a:pull".to_owned(),
            credentials: None,
        };
        let answer = Answer {
            status: 200,
            content_type: None,
            retry_after: None,
            body: Zeroizing::new(body.as_bytes().to_vec()),
        };
        let token = answer.token(&request, Instant::now());
        token.unwrap_or_else(|error| panic!("{body}: {error}"))
    }

    #[test]
    fn tokens_live_as_long_as_they_say() {
        let jwt = |claims: &str| format!("eyJ9.{}.sig", URL_SAFE_NO_PAD.encode(claims));
        for (token, expires_in, seconds) in [
            ("t", "300", 300),
            ("t", r#""3600""#, 3600),
            ("t", "1", 60),
            ("t", "0", 60),
            ("t", "-5", 60),
            ("t", "1e300", 60),
            ("t", "1e9", 24 * 3600),
            ("t", "null", 60),
            (&jwt(r#"{"iat":1000,"exp":4600}"#), "null", 3600),
            (&jwt(r#"{"nbf":1000,"exp":5500,"aud":"x"}"#), "null", 4500),
            // What the realm says itself goes before what its token does.
            (&jwt(r#"{"iat":1000,"exp":4600}"#), "300", 300),
            (&jwt(r#"{"iat":4600,"exp":1000}"#), "null", 60),
            (&jwt(r#"{"exp":4600}"#), "null", 60),
            ("a.b.c", "null", 60),
        ] {
            let text = format!(r#"{{"token":"{token}","expires_in":{expires_in}}}"#);
            let granted: Granted = serde_json::from_str(&text).expect(&text);
            assert_eq!(granted.life().as_secs(), seconds, "{text}");
        }
    }

    #[test]
    fn tokens_are_not_used_to_their_last_second() {
        for (seconds, used) in [(300, 270), (60, 50), (3600, 3240)] {
            let token = token(&format!(r#"{{"token":"t","expires_in":{seconds}}}"#));
            let rest = token.end - token.until;
            assert_eq!(rest.as_secs(), seconds - used, "{seconds}");
        }
    }

    #[test]
    fn a_token_has_either_name() {
        for (body, expected) in [
            (r#"{"token":"t"}"#, "Bearer t"),
            (r#"{"access_token":"a"}"#, "Bearer a"),
            (r#"{"token":"","access_token":"a"}"#, "Bearer a"),
            (
                r#"{"token":null,"access_token":"a","scope":"x"}"#,
                "Bearer a",
            ),
            (
                r#"{"token":"t","access_token":"t","issued_at":"yesterday"}"#,
                "Bearer t",
            ),
        ] {
            assert_eq!(token(body).authorization.expose(), expected, "{body}");
        }
    }

    #[test]
    fn a_login_is_not_shown_in_debug_prints() {
        let token = token(r#"{"token":"secret-token"}"#);
        assert!(!format!("{token:?}").contains("secret-token"));
    }
}
