//! The license server, which may be asked whether a pairing token is one of a license.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use ureq::Agent;

use super::LicenseOptions;
use crate::secret::Secret;

/// A Platform waits for its key meanwhile.
const TIMEOUT: Duration = Duration::from_secs(5);
const LARGEST_ANSWER: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Known, or the server could not be asked: it must not stand between a Platform and its users.
    Good,
    /// Only where the operator is strict.
    Unknown,
}

pub(super) struct License {
    agent: Agent,
    options: LicenseOptions,
}

#[derive(Deserialize)]
struct Answer {
    id: Option<serde_json::Value>,
    expiration: Option<String>,
}

impl License {
    pub(super) fn new(options: &LicenseOptions) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            .max_redirects(0)
            .proxy(None)
            .build()
            .into();
        Self {
            agent,
            options: options.clone(),
        }
    }

    /// The token is part of a URL here, as the protocol has it; so no error is logged with its URL.
    pub(super) fn check(&self, token: &Secret<String>) -> Verdict {
        let answer = match self.ask(token) {
            Ok(answer) => answer,
            Err(problem) => {
                tracing::warn!(
                    "the license server {} cannot be asked, so the pairing goes on: {problem}",
                    self.options.url
                );
                return Verdict::Good;
            }
        };
        let Some(answer) = answer.filter(|answer| answer.id.is_some()) else {
            return match self.options.strict {
                true => Verdict::Unknown,
                false => Verdict::Good,
            };
        };
        let expiration = answer.expiration.as_deref();
        let expires = expiration.and_then(|text| humantime::parse_rfc3339_weak(text).ok());
        if expires.is_some_and(|at| at < SystemTime::now()) {
            tracing::warn!(
                expiration,
                "a Platform has paired with a license that has expired"
            );
        }
        Verdict::Good
    }

    /// `None`: the server does not know it.
    fn ask(&self, token: &Secret<String>) -> Result<Option<Answer>, String> {
        let url = format!("{}/check", self.options.url.trim_end_matches('/'));
        let response = self
            .agent
            .get(url)
            .query("token", token.expose())
            .query("product", "tower-enterprise")
            .call()
            .map_err(|error| match error {
                ureq::Error::Timeout(_) => "it did not answer in time".to_owned(),
                ureq::Error::Io(error) => error.kind().to_string(),
                ureq::Error::HostNotFound => "its name cannot be resolved".to_owned(),
                _ => "the connection failed".to_owned(),
            })?;
        let status = response.status().as_u16();
        let text = response
            .into_body()
            .with_config()
            .limit(LARGEST_ANSWER)
            .read_to_string()
            .map_err(|_| "its answer cannot be read".to_owned())?;
        match status {
            200 if text.trim().is_empty() || text.trim() == "null" => Ok(None),
            200 => serde_json::from_str(&text)
                .map(Some)
                .map_err(|_| "its answer is not what a license server says".to_owned()),
            404 => Ok(None),
            status => Err(format!("it answered {status}")),
        }
    }
}
