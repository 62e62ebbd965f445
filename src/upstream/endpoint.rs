//! From a registry's name to where and how it is reached, and which realms may see its credentials.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use serde::Deserialize;

use super::{exchange::Way, known_hosts, token::RealmClient};
use crate::{
    http::{Origin, Scheme, Url, UrlError},
    net::{Addresses, Trust, TrustError},
    oci::Registry,
    secret::Secret,
};

/// `[registry."quay.io"]`: all of it is optional; a registry that is not listed is reached over HTTPS at its name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryOptions {
    /// Where the registry is reached, if not at `https://` and its name: `"https://mirror.example.com"`.
    pub endpoint: Option<String>,
    /// Roots to trust for this registry, in PEM, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Allow plain HTTP (the default scheme is then `http`), and HTTPS without a check of the certificate.
    pub insecure: bool,
    /// Allow addresses of private, loopback and link-local networks for this registry and its realm.
    pub allow_private: bool,
    /// `"pass"`: the client follows redirects to the registry's storage itself. `"follow"`: tidegate does, and
    /// caches what it finds there. A storage with a private address, on another host, is listed as a registry of
    /// its own, with `allow_private`.
    pub redirect: Redirects,
    /// Pull without a token under `/v2/<registry>/…`, as the anonymous caller. On by default for docker.io,
    /// quay.io, ghcr.io, public.ecr.aws and registry.k8s.io, unless `anonymous = false`.
    pub anonymous_pull: Option<bool>,
    /// Hosts besides the registry's own that may be sent its credentials as a token realm: `["auth.example.com"]`.
    pub realm_hosts: Vec<String>,
    /// The operator's login, for anonymous callers.
    pub username: Option<String>,
    /// One of the three: in this file, in a file of its own (a line end is not part of it), in the environment.
    pub password: Option<Secret<String>>,
    pub password_file: Option<PathBuf>,
    pub password_env: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Redirects {
    #[default]
    Pass,
    Follow,
}

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("endpoint: {0}")]
    Url(#[from] UrlError),
    #[error("endpoint: it has a query, which no registry's address has")]
    Query,
    #[error("endpoint: plain HTTP needs insecure = true")]
    PlainHttp,
    #[error("ca_file: {0}")]
    Trust(#[from] TrustError),
}

pub struct Endpoint {
    pub registry: Registry,
    /// Without a trailing slash.
    base: Url,
    pub way: Way,
    pub redirects: Redirects,
    pub anonymous_pull: bool,
    allows_plain_http: bool,
    realm_hosts: Vec<String>,
    pub(super) realms: RealmClient,
}

impl Endpoint {
    fn new(
        registry: Registry,
        options: &RegistryOptions,
        platform: &Platform,
    ) -> Result<Self, EndpointError> {
        let allows_plain_http = options.insecure || is_loopback(registry.host());
        // Roots to trust are for TLS only.
        let scheme = if allows_plain_http && options.ca_file.is_none() {
            "http"
        } else {
            "https"
        };
        let text = match &options.endpoint {
            Some(text) => text.clone(),
            None if registry.is_docker_hub() => known_hosts::DOCKER_HUB.to_owned(),
            None => format!("{scheme}://{registry}"),
        };
        let mut base: Url = text.trim_end_matches('/').parse()?;
        if base.target.contains('?') {
            return Err(EndpointError::Query);
        }
        if base.origin.scheme == Scheme::Http && !allows_plain_http {
            return Err(EndpointError::PlainHttp);
        }
        base.target
            .truncate(base.target.trim_end_matches('/').len());
        let trust = match &options.ca_file {
            Some(path) => Some(Trust::from_file(path)?),
            None if options.insecure => Some(Trust::unchecked()),
            None => None,
        };
        let (way, realms) = match (trust, options.allow_private) {
            (None, false) => (platform.way.clone(), platform.realms.clone()),
            (trust, allow_private) => {
                let way = Way {
                    addresses: if allow_private {
                        Addresses::Any
                    } else {
                        Addresses::Public
                    },
                    trust: trust.unwrap_or_else(|| platform.way.trust.clone()),
                };
                let realms = RealmClient::new(&way);
                (way, realms)
            }
        };
        Ok(Self {
            realms,
            anonymous_pull: options.anonymous_pull.unwrap_or_else(|| {
                platform.is_open && known_hosts::is_open_by_default(registry.as_str())
            }),
            registry,
            base,
            way,
            redirects: options.redirect,
            allows_plain_http,
            realm_hosts: options
                .realm_hosts
                .iter()
                .map(|host| host.to_ascii_lowercase())
                .collect(),
        })
    }

    /// `path` starts with `/v2/`.
    pub fn url(&self, path: &str) -> Url {
        Url {
            origin: self.base.origin.clone(),
            target: format!("{}{path}", self.base.target),
        }
    }

    /// Whether this realm may see the registry's credentials. A hostile or compromised registry can name any
    /// realm, and would collect passwords there.
    pub fn trusts_realm(&self, realm: &Url) -> Result<(), String> {
        let host = realm.origin.host.as_str();
        if realm.origin.scheme == Scheme::Http && !self.allows_plain_http {
            return Err(format!(
                "its token realm {host} is plain HTTP, where credentials could be read on the way; if that is meant, \
                 set insecure = true under [registry.\"{}\"]",
                self.registry
            ));
        }
        let own = self.base.origin.host.as_str();
        let is_known = known_hosts::is_realm_of(self.registry.as_str(), host);
        if host == own
            || is_known
            || self.realm_hosts.iter().any(|listed| listed == host)
            || known_hosts::share_domain(own, host)
        {
            return Ok(());
        }
        Err(format!(
            "its token realm is on another host, {host}, which is not trusted with its credentials; if it is the \
             registry's own, set realm_hosts = [\"{host}\"] under [registry.\"{}\"]",
            self.registry
        ))
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host == "[::1]"
        || host
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback())
}

/// How a registry is reached about which nothing is configured. Its clients are made once: they hold the
/// platform's roots.
struct Platform {
    way: Way,
    realms: RealmClient,
    /// Anonymous callers are welcome.
    is_open: bool,
}

impl Platform {
    fn new(trust: Trust, is_open: bool) -> Self {
        let way = Way {
            addresses: Addresses::Public,
            trust,
        };
        Self {
            realms: RealmClient::new(&way),
            way,
            is_open,
        }
    }
}

/// The endpoints of the configuration, and how to reach any other registry.
pub struct Endpoints {
    configured: HashMap<Registry, Arc<Endpoint>>,
    platform: Platform,
}

impl Endpoints {
    /// All problems at once, each with the registry's name.
    pub fn load(
        registries: &[(Registry, RegistryOptions)],
        is_open: bool,
    ) -> Result<Self, Vec<(Registry, EndpointError)>> {
        let platform = Platform::new(Trust::platform(), is_open);
        let mut configured = HashMap::new();
        let mut problems = Vec::new();
        for (registry, options) in registries {
            match Endpoint::new(registry.clone(), options, &platform) {
                Ok(endpoint) => {
                    configured.insert(registry.clone(), Arc::new(endpoint));
                }
                Err(error) => problems.push((registry.clone(), error)),
            }
        }
        if problems.is_empty() {
            Ok(Self {
                configured,
                platform,
            })
        } else {
            Err(problems)
        }
    }

    pub fn find(&self, registry: &Registry) -> Result<Arc<Endpoint>, EndpointError> {
        if let Some(endpoint) = self.configured.get(registry) {
            return Ok(Arc::clone(endpoint));
        }
        Endpoint::new(
            registry.clone(),
            &RegistryOptions::default(),
            &self.platform,
        )
        .map(Arc::new)
    }

    pub fn configured(&self) -> impl Iterator<Item = &Registry> {
        self.configured.keys()
    }

    /// How a redirect of `from` to another origin is followed. That an operator vouches for a registry's address does
    /// not make every address that it names a good one, such as a cloud's metadata service: only its own host,
    /// and those that are listed as registries themselves, are reached by other rules than anybody's.
    pub(super) fn way_to(&self, from: &Endpoint, target: &Origin) -> Way {
        let listed = self
            .configured
            .values()
            .find(|endpoint| endpoint.base.origin == *target);
        match listed {
            Some(endpoint) => endpoint.way.clone(),
            None if target.host == from.base.origin.host => from.way.clone(),
            None => self.platform.way.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(registry: &str, options: &RegistryOptions) -> Result<Endpoint, EndpointError> {
        Endpoint::new(
            registry.parse().expect(registry),
            options,
            &Platform::new(Trust::unchecked(), true),
        )
    }

    #[test]
    fn registries_are_reached_at_their_names() {
        for (registry, options, url) in [
            (
                "docker.io",
                RegistryOptions::default(),
                "https://registry-1.docker.io/v2/",
            ),
            ("quay.io", RegistryOptions::default(), "https://quay.io/v2/"),
            (
                "localhost:5001",
                RegistryOptions::default(),
                "http://localhost:5001/v2/",
            ),
            (
                "reg.corp:5000",
                RegistryOptions {
                    insecure: true,
                    ..Default::default()
                },
                "http://reg.corp:5000/v2/",
            ),
            (
                "docker.io",
                RegistryOptions {
                    endpoint: Some("https://mirror.corp/hub/".to_owned()),
                    ..Default::default()
                },
                "https://mirror.corp/hub/v2/",
            ),
        ] {
            let found =
                endpoint(registry, &options).unwrap_or_else(|error| panic!("{registry}: {error}"));
            assert_eq!(found.url("/v2/").to_string(), url, "{registry}");
        }
        let plain = RegistryOptions {
            endpoint: Some("http://quay.io".to_owned()),
            ..Default::default()
        };
        assert!(matches!(
            endpoint("quay.io", &plain),
            Err(EndpointError::PlainHttp)
        ));
    }

    #[test]
    fn credentials_go_to_realms_of_the_registrys_own() {
        let open = RegistryOptions::default();
        let listed = RegistryOptions {
            realm_hosts: vec!["Login.Other.com".to_owned()],
            ..Default::default()
        };
        let insecure = RegistryOptions {
            insecure: true,
            ..Default::default()
        };
        for (registry, options, realm, expected) in [
            ("docker.io", &open, "https://auth.docker.io/token", true),
            ("quay.io", &open, "https://quay.io/v2/auth", true),
            (
                "registry.gitlab.com",
                &open,
                "https://gitlab.com/jwt/auth",
                true,
            ),
            (
                "registry.corp.com",
                &open,
                "https://auth.corp.com/token",
                true,
            ),
            (
                "registry.corp.com",
                &open,
                "http://auth.corp.com/token",
                false,
            ),
            (
                "registry.corp.com",
                &open,
                "https://corp.com.evil.org/token",
                false,
            ),
            (
                "a.azurecr.io",
                &open,
                "https://a.azurecr.io/oauth2/token",
                true,
            ),
            (
                "a.azurecr.io",
                &open,
                "https://b.azurecr.io/oauth2/token",
                false,
            ),
            ("a.co.uk", &open, "https://b.co.uk/token", false),
            ("a.internal", &open, "https://b.internal/token", false),
            ("quay.io", &open, "https://login.other.com/token", false),
            ("quay.io", &listed, "https://login.other.com/token", true),
            ("127.0.0.1:5000", &open, "http://127.0.0.1:5001/token", true),
            (
                "127.0.0.1:5000",
                &open,
                "http://127.0.0.2:5001/token",
                false,
            ),
            (
                "10.0.0.1:5000",
                &insecure,
                "http://169.254.169.254/token",
                false,
            ),
        ] {
            let endpoint =
                endpoint(registry, options).unwrap_or_else(|error| panic!("{registry}: {error}"));
            let url: Url = realm
                .parse()
                .unwrap_or_else(|error| panic!("{realm}: {error}"));
            assert_eq!(
                endpoint.trusts_realm(&url).is_ok(),
                expected,
                "{registry} {realm}"
            );
        }
    }
}
