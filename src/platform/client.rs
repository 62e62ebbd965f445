//! The calls of a Platform's API that we make, on behalf of its users.
//!
//! An access token that has expired is refreshed once, by whoever notices first. Nothing is remembered here but the
//! tokens; a token that the Platform refuses is withdrawn, and with it whatever others remember of its answers (see
//! `Family`).

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use super::{
    ComputeEnvironment, Family, KeyRecords, Keys, ListedCredentials, Options, Request, RunStatus,
    Session, Transport, TransportError, User, answers,
    families::{Families, Tokens, Turn},
};
use crate::{
    blocking::lock,
    http::percent_encode_query,
    seal::{SealError, SealingKey},
    secret::Secret,
    telemetry::metrics::{self, Counter},
};

/// How often a silent Platform is asked again by those who can do without its answer.
const SILENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no key that it could encrypt for.
    #[error(
        "no Platform has paired for {endpoint}; it must be exactly the address with which that Platform connects to this server"
    )]
    NotPaired { endpoint: String },
    /// The access token, and the refresh token if there is one.
    #[error("the Platform at {endpoint} does not accept the access token")]
    Unauthorized { endpoint: String },
    /// It is not there, or not for this user.
    #[error("the Platform at {endpoint} answered {status} when it was asked for {what}")]
    Denied {
        endpoint: String,
        what: &'static str,
        status: u16,
    },
    /// Says nothing about the caller.
    #[error("{cause}")]
    Silent { cause: String },
    #[error("the Platform at {endpoint} sent no proper answer when it was asked for {what}")]
    Malformed {
        endpoint: String,
        what: &'static str,
    },
}

/// One for the process.
pub struct Client {
    transport: Arc<dyn Transport>,
    keys: Arc<KeyRecords>,
    families: Families,
    endpoints: Vec<String>,
    /// Endpoints that gave no answer when they were last asked, and when to ask them again.
    silent: Mutex<HashMap<String, Instant>>,
}

impl Client {
    /// `sealing` is the state folder's own key.
    pub fn open(
        state_directory: &Path,
        sealing: Arc<SealingKey>,
        options: &Options,
        keys: Arc<KeyRecords>,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, SealError> {
        Ok(Self {
            transport,
            keys,
            families: Families::open(state_directory, sealing)?,
            endpoints: options.endpoints.clone(),
            silent: Mutex::default(),
        })
    }

    /// What a client means by the endpoint that it names, byte for byte but for two old names. `None`: no Platform
    /// that is trusted here.
    pub fn endpoint(&self, named: Option<&str>) -> Option<&str> {
        let Some(named) = named.filter(|named| !named.is_empty()) else {
            return self.endpoints.first().map(String::as_str);
        };
        let named = named
            .replace("/api.tower.nf", "/api.cloud.seqera.io")
            .replace("/api.stage-tower.net", "/api.cloud.stage-seqera.io");
        let mut endpoints = self.endpoints.iter().map(String::as_str);
        endpoints.find(|endpoint| *endpoint == named)
    }

    pub fn is_paired(&self, endpoint: &str) -> bool {
        self.keys.pairing_id(endpoint).is_some()
    }

    /// Whether it gave no answer when it was last asked: what is remembered serves meanwhile.
    pub fn is_silent(&self, endpoint: &str) -> bool {
        lock(&self.silent).contains_key(endpoint)
    }

    /// Whether it is time to ask a silent Platform again. Only one of those who want to know is told so.
    pub fn is_probe_due(&self, endpoint: &str, now: Instant) -> bool {
        let mut silent = lock(&self.silent);
        let Some(next) = silent.get_mut(endpoint).filter(|next| **next <= now) else {
            return false;
        };
        *next = now + SILENCE;
        true
    }

    /// To be asked for before any call whose answer is to be remembered.
    pub fn family(&self, session: &Session) -> Result<Arc<Family>, CallError> {
        let family = self.families.family(session, Instant::now());
        family.ok_or_else(|| CallError::Unauthorized {
            endpoint: session.endpoint.clone(),
        })
    }

    pub fn user(&self, session: &Session, deadline: Instant) -> Result<User, CallError> {
        let what = "the user";
        let body = self.call(session, "/user-info", what, deadline)?;
        answers::user(&body).map_err(|_| malformed(session, what))
    }

    /// `workspace` of `None`: the personal one.
    pub fn credentials(
        &self,
        session: &Session,
        workspace: Option<i64>,
        deadline: Instant,
    ) -> Result<Vec<ListedCredentials>, CallError> {
        let what = "the workspace's credentials";
        let path = in_workspace("/credentials", &[], workspace);
        let body = self.call(session, &path, what, deadline)?;
        answers::credentials(&body).map_err(|_| malformed(session, what))
    }

    /// The secrets of one of them. Encrypted for our pairing key, which is another one after a while: what cannot be
    /// read is asked for again.
    pub fn keys(
        &self,
        session: &Session,
        workspace: Option<i64>,
        id: &str,
        deadline: Instant,
    ) -> Result<Keys, CallError> {
        let what = "a credential's keys";
        let endpoint = &session.endpoint;
        let pairing_id = self.keys.pairing_id(endpoint);
        let pairing_id = pairing_id.ok_or_else(|| CallError::NotPaired {
            endpoint: endpoint.clone(),
        })?;
        let path = in_workspace(
            &format!("/credentials/{}/keys", path_segment(id)),
            &[("pairingId", &pairing_id)],
            workspace,
        );
        let body = self.call(session, &path, what, deadline)?;
        let packet = answers::packet(&body).map_err(|_| malformed(session, what))?;
        let plain = self.keys.decrypt(endpoint, packet.expose());
        let plain = plain.map_err(|_| malformed(session, what))?;
        answers::keys(&plain).map_err(|_| malformed(session, what))
    }

    /// Where the run's tasks are computed. `None`: the Platform does not say.
    pub fn compute_environment(
        &self,
        session: &Session,
        workspace: Option<i64>,
        run: &str,
        deadline: Instant,
    ) -> Result<Option<ComputeEnvironment>, CallError> {
        let what = "a run's compute environment";
        let run = run_id(session, run, what)?;
        let path = in_workspace(&format!("/workflow/{run}/launch"), &[], workspace);
        let body = self.call(session, &path, what, deadline)?;
        answers::compute_environment(&body).map_err(|_| malformed(session, what))
    }

    pub fn run_status(
        &self,
        session: &Session,
        workspace: Option<i64>,
        run: &str,
        deadline: Instant,
    ) -> Result<RunStatus, CallError> {
        let what = "a run's status";
        let run = run_id(session, run, what)?;
        let path = in_workspace(&format!("/workflow/{run}"), &[], workspace);
        let body = self.call(session, &path, what, deadline)?;
        answers::run_status(&body).map_err(|_| malformed(session, what))
    }

    /// To be called now and then.
    pub fn purge(&self, now: SystemTime) -> std::io::Result<usize> {
        self.families.purge(now)
    }

    fn call(
        &self,
        session: &Session,
        path: &str,
        what: &'static str,
        deadline: Instant,
    ) -> Result<Secret<String>, CallError> {
        let family = self.family(session)?;
        let mut tokens = family.tokens();
        if !is_sendable(&tokens.access) {
            return Err(self.unauthorized(session, &family));
        }
        let mut is_refreshed = false;
        loop {
            let request = Request {
                method: "GET",
                url: format!("{}{path}", base(&session.endpoint)),
                authorization: Some(Secret::new(format!("Bearer {}", tokens.access.expose()))),
                body: None,
            };
            let response = self.exchange(session, &request, deadline)?;
            match response.status {
                200 => return Ok(response.body),
                401 if !is_refreshed => {
                    match self.refresh(session, &family, &tokens, deadline)? {
                        Some(fresh) => tokens = fresh,
                        None => return Err(self.unauthorized(session, &family)),
                    }
                    is_refreshed = true;
                }
                401 => return Err(self.unauthorized(session, &family)),
                status @ (403 | 404) => {
                    return Err(CallError::Denied {
                        endpoint: session.endpoint.clone(),
                        what,
                        status,
                    });
                }
                // Overloaded, broken, or something else in its place.
                status => {
                    return Err(CallError::Silent {
                        cause: format!(
                            "the Platform at {} answered {status} when it was asked for {what}",
                            session.endpoint
                        ),
                    });
                }
            }
        }
    }

    /// `None`: there is no way to a better token.
    fn refresh(
        &self,
        session: &Session,
        family: &Family,
        stale: &Tokens,
        deadline: Instant,
    ) -> Result<Option<Tokens>, CallError> {
        let turn = match self.families.turn(family, stale, deadline) {
            Turn::Refreshed(tokens) => return Ok(Some(tokens)),
            Turn::TimedOut => {
                return Err(CallError::Silent {
                    cause: TransportError::TimedOut {
                        endpoint: session.endpoint.clone(),
                    }
                    .to_string(),
                });
            }
            Turn::Ours(turn) => turn,
        };
        let Some(refresh_token) = &stale.refresh else {
            return Ok(None);
        };
        let form = format!(
            "grant_type=refresh_token&refresh_token={}",
            percent_encode_query(refresh_token.expose())
        );
        let request = Request {
            method: "POST",
            url: format!("{}/oauth/access_token", base(&session.endpoint)),
            authorization: None,
            body: Some(("application/x-www-form-urlencoded", Secret::new(form))),
        };
        let response = self.exchange(session, &request, deadline)?;
        metrics::add(Counter::PlatformRefreshes, 1);
        match response.status {
            200..400 => {}
            429 | 500.. => {
                return Err(CallError::Silent {
                    cause: format!(
                        "the Platform at {} answered {} when a token was to be refreshed",
                        session.endpoint, response.status
                    ),
                });
            }
            _ => return Ok(None),
        }
        let cookie = |name| answers::cookie(response.field("set-cookie"), name);
        let Some(access) = cookie("JWT") else {
            return Ok(None);
        };
        let fresh = Tokens {
            access,
            // It may be good for more than once.
            refresh: cookie("JWT_REFRESH_TOKEN").or_else(|| stale.refresh.clone()),
        };
        self.families.replace(&turn, &fresh);
        Ok(Some(fresh))
    }

    fn unauthorized(&self, session: &Session, family: &Family) -> CallError {
        self.families.withdraw(family, Instant::now());
        CallError::Unauthorized {
            endpoint: session.endpoint.clone(),
        }
    }

    fn exchange(
        &self,
        session: &Session,
        request: &Request,
        deadline: Instant,
    ) -> Result<super::Response, CallError> {
        let endpoint = &session.endpoint;
        metrics::add(Counter::PlatformCalls, 1);
        let answer = self.transport.exchange(endpoint, request, deadline);
        let mut silent = lock(&self.silent);
        match answer {
            Ok(response) => {
                silent.remove(endpoint);
                Ok(response)
            }
            Err(error) => {
                metrics::add(Counter::PlatformSilences, 1);
                silent.insert(endpoint.clone(), Instant::now() + SILENCE);
                drop(silent);
                if matches!(error, TransportError::NotPaired { .. }) && !self.is_paired(endpoint) {
                    return Err(CallError::NotPaired {
                        endpoint: endpoint.clone(),
                    });
                }
                Err(CallError::Silent {
                    cause: error.to_string(),
                })
            }
        }
    }
}

fn malformed(session: &Session, what: &'static str) -> CallError {
    CallError::Malformed {
        endpoint: session.endpoint.clone(),
        what,
    }
}

fn base(endpoint: &str) -> &str {
    endpoint.strip_suffix('/').unwrap_or(endpoint)
}

/// No other text fits into a field of HTTP, and no Platform has given it out.
fn is_sendable(token: &Secret<String>) -> bool {
    token.expose().bytes().all(|byte| byte.is_ascii_graphic())
}

/// Ids come from clients: none may lead to another path.
/// A text that no run can have as its name is not asked for: `..` would lead a server in between elsewhere.
fn run_id<'a>(session: &Session, run: &'a str, what: &'static str) -> Result<&'a str, CallError> {
    /// Guessed: known ones have 14.
    const LONGEST: usize = 64;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !run.is_empty() && run.len() <= LONGEST && run.bytes().all(is_plain) {
        return Ok(run);
    }
    Err(CallError::Denied {
        endpoint: session.endpoint.clone(),
        what,
        status: 404,
    })
}

fn path_segment(id: &str) -> String {
    percent_encode_query(id).replace('.', "%2E")
}

fn in_workspace(path: &str, query: &[(&str, &str)], workspace: Option<i64>) -> String {
    let workspace = workspace.map(|id| ("workspaceId", id.to_string()));
    let query = query
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    let mut url = path.to_owned();
    for (index, (name, value)) in query.chain(workspace).enumerate() {
        url.push(if index == 0 { '?' } else { '&' });
        url.push_str(name);
        url.push('=');
        url.push_str(&percent_encode_query(&value));
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_name_a_run_is_asked_for() {
        let session = Session {
            endpoint: "https://api.example.com".to_owned(),
            access_token: Secret::new("token".to_owned()),
            refresh_token: None,
        };
        let long = "a".repeat(65);
        for (run, is_one) in [
            ("1XaZ8b7Kq0Yw2c", true),
            ("run-1_a", true),
            ("", false),
            ("..", false),
            ("a/../user-info", false),
            ("a%2Fb", false),
            ("a?b", false),
            (&long, false),
        ] {
            assert_eq!(run_id(&session, run, "a run").is_ok(), is_one, "{run}");
        }
    }
}
