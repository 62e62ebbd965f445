//! `POST /validate-creds`: whether a registry takes a login. Anybody may ask, about any host, so it is bounded in every way:
//! how often for each client, how many at once, and to which addresses.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;

use super::{
    Api, Request, Response,
    error_response::{self, Shape},
    json_body::parse_json,
    route::ApiVersion,
};
use crate::{
    oci::{Credentials, Registry},
    pull::{CheckError, FetchError},
    secret::Secret,
};

/// Each may take a thread as long as a stranger's server likes, of those that pulls need too.
const MOST_AT_ONCE: usize = 8;
/// Longer ones are no logins. ECR's passwords have 3 KiB.
const LONGEST_PASSWORD: usize = 64 << 10;
const LONGEST_NAME: usize = 1024;

const WHAT: &str = "a login to check";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Login {
    user_name: Option<String>,
    password: Option<Secret<String>>,
    registry: Option<String>,
}

/// The first version wraps it once more.
#[derive(Deserialize)]
struct Wrapped {
    request: Option<Login>,
}

/// How many checks run, for all cores.
#[derive(Default)]
pub struct Checks(AtomicUsize);

struct Place<'a>(&'a Checks);

impl Checks {
    fn enter(&self) -> Option<Place<'_>> {
        // A count, and nothing else hangs on it.
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let place = Place(self);
        (before < MOST_AT_ONCE).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Api {
    pub(super) async fn check_credentials(
        &self,
        version: ApiVersion,
        request: &Request,
    ) -> Response {
        let (registry, credentials) = match parse(version, &request.body) {
            Ok(login) => login,
            Err(message) => return error_response::api(400, &message),
        };
        if let Err(refusal) = self.shared.quotas.take_credential_check(request.client) {
            return refusal;
        }
        let Some(_place) = self.shared.checks.enter() else {
            return error_response::busy(Shape::Api, "too many logins are being checked");
        };
        match self.pull.check_login(&registry, credentials).await {
            Ok(is_taken) => {
                tracing::info!(client = %request.client, %registry, is_taken, "a login was checked");
                Response::new(200).json(&is_taken)
            }
            Err(CheckError::Address(problem)) => {
                error_response::api(400, &format!("registry: {problem}"))
            }
            Err(CheckError::Busy(error)) => error_response::of_pool(Shape::Api, error),
            Err(CheckError::Fetch(error @ FetchError::Busy(_))) => {
                error_response::busy(Shape::Api, &error.to_string())
            }
            Err(error @ (CheckError::Fetch(_) | CheckError::Realm { .. })) => {
                tracing::info!(client = %request.client, %registry, %error, "a login could not be used");
                Response::new(200).json(&false)
            }
        }
    }
}

fn parse(version: ApiVersion, body: &[u8]) -> Result<(Registry, Credentials), String> {
    let login = match version {
        ApiVersion::V1Alpha2 => parse_json(body, WHAT)?,
        ApiVersion::V1Alpha1 => {
            let wrapped: Wrapped = parse_json(body, WHAT)?;
            wrapped.request.ok_or("request is missing")?
        }
    };
    let present = |name: &str, text: Option<String>, longest: usize| {
        let text = text.filter(|text| !text.trim().is_empty());
        let text = text.ok_or_else(|| format!("{name} is missing"))?;
        match text.len() > longest {
            true => Err(format!("{name} is longer than {longest} characters")),
            false => Ok(text),
        }
    };
    let username = present("userName", login.user_name, LONGEST_NAME)?;
    let password = login
        .password
        .filter(|password| !password.expose().trim().is_empty())
        .ok_or("password is missing")?;
    if password.expose().len() > LONGEST_PASSWORD {
        return Err(format!(
            "password is longer than {LONGEST_PASSWORD} characters"
        ));
    }
    if username
        .chars()
        .chain(password.expose().chars())
        .any(char::is_control)
    {
        return Err("userName and password cannot have control characters".to_owned());
    }
    let registry = present("registry", login.registry, LONGEST_NAME)?;
    let registry = host_of(&registry)
        .parse()
        .map_err(|error| format!("registry: {error}"))?;
    Ok((registry, Credentials { username, password }))
}

/// Docker's own files name a registry as `https://index.docker.io/v1/`.
fn host_of(registry: &str) -> &str {
    let registry = registry.trim();
    let bare = registry.strip_prefix("https://").unwrap_or(registry);
    bare.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_read_in_both_shapes() {
        let login = r#"{"userName":"ada","password":"hunter2","registry":"quay.io","more":1}"#;
        let wrapped = format!(r#"{{"request":{login}}}"#);
        for (version, body, registry) in [
            (ApiVersion::V1Alpha2, login.to_owned(), "quay.io"),
            (ApiVersion::V1Alpha1, wrapped, "quay.io"),
            (
                ApiVersion::V1Alpha2,
                login.replace("quay.io", "https://index.docker.io/v1/"),
                "docker.io",
            ),
            (
                ApiVersion::V1Alpha2,
                login.replace("quay.io", "localhost:5000"),
                "localhost:5000",
            ),
        ] {
            match parse(version, body.as_bytes()) {
                Ok((parsed, credentials)) => {
                    assert_eq!(parsed.as_str(), registry, "{body}");
                    assert_eq!(credentials.username, "ada");
                    assert_eq!(credentials.password.expose(), "hunter2");
                }
                Err(message) => panic!("{body}: {message}"),
            }
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (version, body, expected) in [
            (ApiVersion::V1Alpha1, "{}", "request is missing"),
            (
                ApiVersion::V1Alpha1,
                r#"{"request":{"userName":" "}}"#,
                "userName is missing",
            ),
            (ApiVersion::V1Alpha2, "{}", "userName is missing"),
            (
                ApiVersion::V1Alpha2,
                r#"{"userName":"a","password":""}"#,
                "password is missing",
            ),
            (
                ApiVersion::V1Alpha2,
                r#"{"userName":"a","password":"b"}"#,
                "registry is missing",
            ),
            (
                ApiVersion::V1Alpha2,
                r#"{"userName":"a","password":"b","registry":"a b"}"#,
                "registry: ",
            ),
            (
                ApiVersion::V1Alpha2,
                r#"{"userName":"a\r\nb","password":"b","registry":"quay.io"}"#,
                "control characters",
            ),
            (
                ApiVersion::V1Alpha2,
                r#"{"userName":7}"#,
                "userName must be a text",
            ),
        ] {
            match parse(version, body.as_bytes()) {
                Err(message) => assert!(message.contains(expected), "{body}: {message}"),
                Ok(_) => panic!("{body}: taken"),
            }
        }
    }

    #[test]
    fn so_many_are_checked_at_once_and_no_more() {
        let checks = Checks::default();
        let places: Vec<_> = (0..MOST_AT_ONCE).filter_map(|_| checks.enter()).collect();
        assert_eq!(places.len(), MOST_AT_ONCE);
        assert!(checks.enter().is_none());
        drop(places);
        assert!(checks.enter().is_some(), "a refusal took a place");
    }
}
