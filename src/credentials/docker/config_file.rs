//! Docker's `config.json`, also as Kubernetes mounts it (`.dockerconfigjson`): logins, and programs that know some.
//!
//! Others write these files, for themselves too: what cannot be used is left out with a warning. No message repeats what
//! stands in a file.

use std::{collections::BTreeMap, fmt};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{
    credentials::{Entry, Scope, scope::longest_match},
    oci::{Credentials, Registry, Repository},
    secret::Secret,
};

/// With or without the padding: both are met.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How Docker names its Hub to helpers, and in its files.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A helper's user name for an identity token.
pub(super) const TOKEN_USER: &str = "<token>";

/// What one file says.
#[derive(Debug, Default)]
pub struct DockerConfig {
    logins: Vec<Entry>,
    helpers: Vec<(Registry, HelperCall)>,
    /// For all registries that have none of their own.
    store: Option<HelperName>,
}

/// The part after `docker-credential-` of a program's name. No path: it is found as any command is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct HelperName(String);

/// A program and what it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct HelperCall {
    pub helper: HelperName,
    pub server: String,
}

/// It is not repeated what the file has in that place: it may be a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct DockerConfigError {
    line: usize,
    column: usize,
    problem: &'static str,
}

#[derive(Deserialize)]
struct File {
    auths: Option<BTreeMap<String, Option<Stored>>>,
    #[serde(rename = "credHelpers")]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(rename = "credsStore")]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Stored {
    auth: Option<Secret<String>>,
    username: Option<String>,
    password: Option<Secret<String>>,
    identitytoken: Option<Secret<String>>,
    registrytoken: Option<Secret<String>>,
}

impl DockerConfig {
    /// And what was left out of it.
    pub fn parse(text: &[u8]) -> Result<(Self, Vec<String>), DockerConfigError> {
        let file: File = serde_json::from_slice(text).map_err(|error| DockerConfigError {
            line: error.line(),
            column: error.column(),
            problem: match error.classify() {
                serde_json::error::Category::Data => "this is not what Docker has here",
                _ => "this is not JSON",
            },
        })?;
        let mut config = Self::default();
        let mut warnings = Vec::new();
        for (key, stored) in file.auths.into_iter().flatten() {
            match (key.parse::<Scope>(), stored.map(Stored::credentials)) {
                (Err(_), _) => warnings.push(format!("auths: {} is no registry", shown(&key))),
                (Ok(_), Some(Err(problem))) => {
                    warnings.push(format!("auths: {}: {problem}", shown(&key)));
                }
                (Ok(scope), Some(Ok(Some(credentials)))) => {
                    config.logins.push(Entry { scope, credentials });
                }
                // Docker notes so that it has put the login into a store.
                (Ok(_), None | Some(Ok(None))) => {}
            }
        }
        for (key, name) in file.cred_helpers.into_iter().flatten() {
            // An empty name turns the store off for a registry, and that is what no helper comes to, too.
            match (key.parse::<Scope>(), HelperName::parse(&name)) {
                (Ok(scope), Some(helper)) if scope.prefix.is_none() => {
                    let call = HelperCall {
                        helper,
                        server: key,
                    };
                    config.helpers.push((scope.registry, call));
                }
                (Ok(scope), Some(_)) => {
                    let registry = scope.registry;
                    warnings.push(format!(
                        "credHelpers: {} is a part of {registry}, and helpers are for all of one",
                        shown(&key)
                    ));
                }
                (Err(_), _) => {
                    warnings.push(format!("credHelpers: {} is no registry", shown(&key)))
                }
                (_, None) => warnings.push(format!(
                    "credHelpers: {}: that is no name of a program",
                    shown(&key)
                )),
            }
        }
        if let Some(name) = file.creds_store.filter(|name| !name.is_empty()) {
            config.store = HelperName::parse(&name);
            if config.store.is_none() {
                warnings.push("credsStore: that is no name of a program".to_owned());
            }
        }
        Ok((config, warnings))
    }

    /// What the file itself says.
    pub fn login(&self, registry: &Registry, repository: &Repository) -> Option<&Credentials> {
        let entry = self
            .narrow(registry, repository)
            .or_else(|| self.wide(registry))?;
        Some(&entry.credentials)
    }

    /// The login for the smallest part of the registry that has the repository, if it is not all of it.
    pub(super) fn narrow(&self, registry: &Registry, repository: &Repository) -> Option<&Entry> {
        longest_match(&self.logins, registry, repository)
            .filter(|entry| entry.scope.prefix.is_some())
    }

    /// The login for all of the registry.
    pub(super) fn wide(&self, registry: &Registry) -> Option<&Entry> {
        self.logins
            .iter()
            .find(|entry| entry.scope.prefix.is_none() && entry.scope.registry == *registry)
    }

    /// The program that knows the login for all of the registry: its own, or the store.
    pub(super) fn helper(&self, registry: &Registry) -> Option<HelperCall> {
        let own = self.helpers.iter().find(|(known, _)| known == registry);
        if let Some((_, call)) = own {
            return Some(call.clone());
        }
        Some(HelperCall {
            helper: self.store.clone()?,
            server: match registry.is_docker_hub() {
                true => DOCKER_HUB.to_owned(),
                false => registry.to_string(),
            },
        })
    }

    #[cfg(test)]
    fn login_count(&self) -> usize {
        self.logins.len()
    }
}

impl Stored {
    /// `None`: there is nothing in it.
    fn credentials(self) -> Result<Option<Credentials>, &'static str> {
        if let Some(token) = self.identitytoken.filter(is_filled) {
            return Ok(Some(Credentials::of_refresh_token(token)));
        }
        let (username, password) = match (self.auth.filter(is_filled), self.username, self.password)
        {
            (Some(auth), ..) => decode(&auth)?,
            (None, Some(username), Some(password)) => (username, password),
            (None, None, None) if self.registrytoken.is_some_and(|token| is_filled(&token)) => {
                return Err("a token for a registry itself (registrytoken) cannot be used here");
            }
            (None, None, None) => return Ok(None),
            (None, ..) => return Err("it has half a login"),
        };
        if username.is_empty() || username.contains(':') {
            return Err("it has no user name, or one that cannot be sent");
        }
        if password.expose().is_empty() {
            return Err("its password is empty");
        }
        Ok(Some(Credentials { username, password }))
    }
}

fn is_filled(secret: &Secret<String>) -> bool {
    !secret.expose().is_empty()
}

/// `user:password`, in base64.
fn decode(auth: &Secret<String>) -> Result<(String, Secret<String>), &'static str> {
    let decoded = BASE64.decode(auth.expose().trim_ascii());
    let decoded = Zeroizing::new(decoded.map_err(|_| "its auth is not base64")?);
    let text = str::from_utf8(&decoded).map_err(|_| "its auth is not text")?;
    let (username, password) = text
        .split_once(':')
        .ok_or("its auth has no colon between user and password")?;
    // Docker fills some up with zeros.
    let password = password.trim_end_matches('\0');
    Ok((username.to_owned(), Secret::new(password.to_owned())))
}

impl HelperName {
    fn parse(text: &str) -> Option<Self> {
        const LONGEST: usize = 100;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let is_good = (1..=LONGEST).contains(&text.len()) && text.bytes().all(is_plain);
        is_good.then(|| Self(text.to_owned()))
    }

    pub(super) fn program(&self) -> String {
        format!("docker-credential-{}", self.0)
    }
}

impl fmt::Display for HelperCall {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} for {}",
            self.helper.program(),
            shown(&self.server)
        )
    }
}

/// A key of the file may be anything.
fn shown(key: &str) -> String {
    key.chars()
        .take(100)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose;

    use super::*;
    use crate::oci::Reference;

    fn parse(text: &str) -> (DockerConfig, Vec<String>) {
        DockerConfig::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn auth(pair: &str) -> String {
        general_purpose::STANDARD.encode(pair)
    }

    fn login(config: &DockerConfig, image: &str) -> Option<(String, String)> {
        let image: Reference = image.parse().expect(image);
        let login = config.login(&image.registry, &image.repository)?;
        let Credentials { username, password } = login.clone();
        Some((username, password.expose().clone()))
    }

    #[test]
    fn logins_are_read_as_docker_and_kubernetes_write_them() {
        let text = format!(
            r#"{{"auths": {{
                "https://index.docker.io/v1/": {{"auth": "{}"}},
                "quay.io": {{"username": "acme+robot", "password": "p:q", "email": "x"}},
                "quay.io/acme/special": {{"auth": "{}"}},
                "https://ghcr.io": {{"auth": "{}"}},
                "acme.azurecr.io": {{"auth": "MDAwOg==", "identitytoken": "refresh"}},
                "localhost:5000": {{}},
                "gcr.io": null
            }}, "HttpHeaders": {{"x": "y"}}, "psFormat": 1}}"#,
            auth("ada:hunter2"),
            auth("special:sesame").trim_end_matches('='),
            auth("any:ghp\0\0"),
        );
        let (config, warnings) = parse(&text);
        assert_eq!(warnings, [""; 0]);
        for (image, expected) in [
            ("alpine", Some(("ada", "hunter2"))),
            ("acme/app", Some(("ada", "hunter2"))),
            ("quay.io/acme/app", Some(("acme+robot", "p:q"))),
            ("quay.io/acme/special/app", Some(("special", "sesame"))),
            ("ghcr.io/acme/app", Some(("any", "ghp"))),
            ("acme.azurecr.io/app", Some(("", "refresh"))),
            ("localhost:5000/app", None),
            ("gcr.io/app", None),
            ("other.io/app", None),
        ] {
            let found = login(&config, image);
            let found = found
                .as_ref()
                .map(|(user, word)| (user.as_str(), word.as_str()));
            assert_eq!(found, expected, "{image}");
        }
    }

    #[test]
    fn helpers_are_asked_by_the_names_that_docker_uses() {
        let (config, warnings) = parse(
            r#"{"credsStore": "secretservice", "credHelpers": {
                "1.dkr.ecr.eu-west-1.amazonaws.com": "ecr-login", "https://index.docker.io/v1/": "hub"}}"#,
        );
        assert_eq!(warnings, [""; 0]);
        for (registry, program, server) in [
            (
                "1.dkr.ecr.eu-west-1.amazonaws.com",
                "docker-credential-ecr-login",
                "1.dkr.ecr.eu-west-1.amazonaws.com",
            ),
            (
                "docker.io",
                "docker-credential-hub",
                "https://index.docker.io/v1/",
            ),
            ("quay.io", "docker-credential-secretservice", "quay.io"),
        ] {
            let call = config.helper(&registry.parse().expect(registry));
            let call = call.unwrap_or_else(|| panic!("{registry}"));
            assert_eq!(call.helper.program(), program, "{registry}");
            assert_eq!(call.server, server, "{registry}");
        }
        let (config, _) = parse(r#"{"credsStore": "x"}"#);
        let hub = config.helper(&"docker.io".parse().expect("a registry"));
        assert_eq!(hub.map(|call| call.server).as_deref(), Some(DOCKER_HUB));
        let (config, _) = parse("{}");
        assert_eq!(config.helper(&"quay.io".parse().expect("a registry")), None);
    }

    #[test]
    fn what_cannot_be_used_is_left_out_with_a_word_about_it() {
        for (text, expected) in [
            (
                r#"{"auths": {"nonsense": {"auth": "eDp5"}}}"#,
                "is no registry",
            ),
            (
                r#"{"auths": {"*.corp.io": {"auth": "eDp5"}}}"#,
                "is no registry",
            ),
            (
                r#"{"auths": {"quay.io": {"auth": "hunter2!"}}}"#,
                "not base64",
            ),
            (
                r#"{"auths": {"quay.io": {"auth": "aHVudGVyMg=="}}}"#,
                "no colon",
            ),
            (
                r#"{"auths": {"quay.io": {"auth": "Omh1bnRlcjI="}}}"#,
                "no user name",
            ),
            (r#"{"auths": {"quay.io": {"auth": "eDo="}}}"#, "is empty"),
            (r#"{"auths": {"quay.io": {"auth": "/w=="}}}"#, "not text"),
            (
                r#"{"auths": {"quay.io": {"password": "hunter2"}}}"#,
                "half a login",
            ),
            (
                r#"{"auths": {"quay.io": {"registrytoken": "hunter2"}}}"#,
                "registrytoken",
            ),
            (
                r#"{"credHelpers": {"quay.io": "../hunter2"}}"#,
                "no name of a program",
            ),
            (
                r#"{"credHelpers": {"quay.io/acme": "x"}}"#,
                "for all of one",
            ),
            (r#"{"credsStore": "a/b"}"#, "no name of a program"),
        ] {
            let (config, warnings) = parse(text);
            assert_eq!(config.login_count(), 0, "{text}");
            let [warning] = warnings.as_slice() else {
                panic!("{text}: {warnings:?}");
            };
            assert!(warning.contains(expected), "{warning}");
            assert!(!warning.contains("hunter2"), "{warning}");
        }
    }

    #[test]
    fn what_is_no_such_file_is_refused_without_showing_it() {
        for text in [
            "",
            "hunter2",
            "[\"hunter2\"]",
            "{\"auths\": \"hunter2\"}",
            "{\"auths\": {\"quay.io\": \"hunter2\"}}",
            "{\"auths\": {\"quay.io\": {\"auth\": 1}}}",
            "{\"credsStore\": [\"hunter2\"]}",
            "{\"auths\": {\"quay.io\": {\"auth\": \"hunter2",
        ] {
            let error = DockerConfig::parse(text.as_bytes()).expect_err(text);
            assert!(!error.to_string().contains("hunter2"), "{error}");
            assert!(error.to_string().starts_with("line "), "{error}");
        }
    }

    #[test]
    fn secrets_are_not_shown_in_debug_prints() {
        let (config, _) = parse(r#"{"auths": {"quay.io": {"auth": "YWRhOmh1bnRlcjI="}}}"#);
        let shown = format!("{config:?}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("YWRhOmh1bnRlcjI"),
            "{shown}"
        );
    }
}
