//! From a registry's name to where and how it is reached, and which realms may see its credentials.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use serde::Deserialize;

use super::{exchange::Way, known_hosts, realm::RealmClient};
use crate::{
    http::{Origin, Scheme, Url, UrlError},
    net::{Addresses, Trust, TrustError},
    oci::{Registry, RegistryPattern},
    secret::Secret,
};

/// `[registry."quay.io"]`: all of it is optional; a registry that is not listed is reached over HTTPS at its name. A `*` in
/// the name stands for anything but a dot; a table of the exact name goes before one that fits, the longer pattern
/// before the shorter.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryOptions {
    /// Where the registry is reached, if not at `https://` and its name: `"https://mirror.example.com"`.
    pub endpoint: Option<String>,
    /// Certificates to trust for this registry, in PEM, instead of the system's: of authorities, or its own.
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
    /// Instead of a login: `"aws"`, tidegate's own identity there, for ECR and for the same callers as a login.
    pub identity: Option<CloudIdentity>,
    /// A role to assume with it: `"arn:aws:iam::123456789012:role/pull"`.
    pub assume_role: Option<String>,
    /// A file with the external id that the role's trust policy asks for.
    pub external_id_file: Option<PathBuf>,
    /// A role to assume before it, instead of `aws.jump_role`.
    pub jump_role: Option<String>,
    /// For a host of one's own in front of ECR: the name that the registry has at AWS.
    pub ecr: Option<String>,
}

/// Whom the machine is known to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CloudIdentity {
    Aws,
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
    /// The operator knows of it.
    is_listed: bool,
    pub(super) takes_basic: bool,
    allows_plain_http: bool,
    realm_hosts: Vec<String>,
    pub(super) realms: RealmClient,
}

/// What is made once for each table of the configuration: it reads files.
#[derive(Clone)]
struct Reach {
    way: Way,
    realms: RealmClient,
}

impl Reach {
    fn new(options: &RegistryOptions, platform: &Platform) -> Result<Self, EndpointError> {
        let trust = match &options.ca_file {
            Some(path) => Some(Trust::from_file(path)?),
            None if options.insecure => Some(Trust::unchecked()),
            None => None,
        };
        if trust.is_none() && !options.allow_private {
            return Ok(platform.reach.clone());
        }
        let way = Way {
            addresses: if options.allow_private {
                Addresses::Any
            } else {
                platform.reach.way.addresses
            },
            trust: trust.unwrap_or_else(|| platform.reach.way.trust.clone()),
        };
        let realms = RealmClient::new(&way);
        Ok(Self { way, realms })
    }
}

impl Endpoint {
    fn new(
        registry: Registry,
        options: &RegistryOptions,
        reach: Reach,
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
        let Reach { way, realms } = reach;
        let takes_none = |host: &str| known_hosts::takes_basic_at_the_realm_only(host);
        Ok(Self {
            realms,
            anonymous_pull: options.anonymous_pull.unwrap_or_else(|| {
                platform.is_open && known_hosts::is_open_by_default(registry.as_str())
            }),
            takes_basic: !takes_none(registry.host())
                && !options.ecr.as_deref().is_some_and(takes_none),
            registry,
            base,
            way,
            is_listed: true,
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
    reach: Reach,
    /// Anonymous callers are welcome.
    is_open: bool,
}

impl Platform {
    fn new(trust: Trust, addresses: Addresses, is_open: bool) -> Self {
        let way = Way { addresses, trust };
        let realms = RealmClient::new(&way);
        Self {
            reach: Reach { way, realms },
            is_open,
        }
    }
}

/// The endpoints of the configuration, and how to reach any other registry.
pub struct Endpoints {
    configured: HashMap<Registry, Arc<Endpoint>>,
    /// The most precise first.
    patterns: Vec<(RegistryPattern, RegistryOptions, Reach)>,
    platform: Platform,
}

impl Endpoints {
    /// All problems at once, each with the table's name. `addresses`: of registries that no table allows private ones.
    pub fn load(
        tables: &[(RegistryPattern, RegistryOptions)],
        addresses: Addresses,
        is_open: bool,
    ) -> Result<Self, Vec<(RegistryPattern, EndpointError)>> {
        let mut endpoints = Self {
            configured: HashMap::new(),
            patterns: Vec::new(),
            platform: Platform::new(Trust::platform(), addresses, is_open),
        };
        let mut problems = Vec::new();
        for (pattern, options) in tables {
            if let Err(error) = endpoints.add(pattern, options) {
                problems.push((pattern.clone(), error));
            }
        }
        endpoints
            .patterns
            .sort_by_key(|(pattern, ..)| std::cmp::Reverse(pattern.precision()));
        match problems.is_empty() {
            true => Ok(endpoints),
            false => Err(problems),
        }
    }

    fn add(
        &mut self,
        pattern: &RegistryPattern,
        options: &RegistryOptions,
    ) -> Result<(), EndpointError> {
        let reach = Reach::new(options, &self.platform)?;
        match pattern {
            RegistryPattern::Exact(registry) => {
                let endpoint = Endpoint::new(registry.clone(), options, reach, &self.platform)?;
                self.configured.insert(registry.clone(), Arc::new(endpoint));
            }
            RegistryPattern::Holes(_) => {
                self.patterns
                    .push((pattern.clone(), options.clone(), reach));
            }
        }
        Ok(())
    }

    pub fn find(&self, registry: &Registry) -> Result<Arc<Endpoint>, EndpointError> {
        if let Some(endpoint) = self.configured.get(registry) {
            return Ok(Arc::clone(endpoint));
        }
        let fitting = self.patterns.iter().find(|(it, ..)| it.fits(registry));
        let none = RegistryOptions::default();
        let (options, reach) = match fitting {
            Some((_, options, reach)) => (options, reach),
            None => (&none, &self.platform.reach),
        };
        let endpoint = Endpoint::new(registry.clone(), options, reach.clone(), &self.platform)?;
        Ok(Arc::new(Endpoint {
            is_listed: fitting.is_some(),
            ..endpoint
        }))
    }

    pub fn configured(&self) -> impl Iterator<Item = &Registry> {
        self.configured.keys()
    }

    /// How a redirect of `from` to another origin is followed. That an operator vouches for a registry's address does
    /// not make every address that it names a good one, such as a cloud's metadata service: only its own host,
    /// and those that are listed as registries themselves, are reached by other rules than anybody's. And that only from
    /// registries that are listed: anybody can have another one, send us into the operator's network by it, and change things
    /// there with an upload's address.
    pub(super) fn way_to(&self, from: &Endpoint, target: &Origin) -> Way {
        match self.listed_at(target) {
            Some(endpoint) if from.is_listed => endpoint.way.clone(),
            Some(endpoint) => Way {
                addresses: self.platform.reach.way.addresses,
                ..endpoint.way.clone()
            },
            None if target.host == from.base.origin.host => from.way.clone(),
            None => self.platform.reach.way.clone(),
        }
    }

    /// How a place is reached that is no registry's, unless it is one of those that are listed.
    pub(super) fn way_anywhere(&self, target: &Origin) -> Way {
        let listed = self.listed_at(target);
        listed.map_or_else(
            || self.platform.reach.way.clone(),
            |endpoint| endpoint.way.clone(),
        )
    }

    fn listed_at(&self, target: &Origin) -> Option<&Endpoint> {
        self.configured
            .values()
            .find(|endpoint| endpoint.base.origin == *target)
            .map(|endpoint| &**endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(registry: &str, options: &RegistryOptions) -> Result<Endpoint, EndpointError> {
        let platform = Platform::new(Trust::unchecked(), Addresses::Public, true);
        let reach = Reach::new(options, &platform)?;
        Endpoint::new(registry.parse().expect(registry), options, reach, &platform)
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
    fn only_registries_of_the_operators_lead_into_his_network() {
        let private = RegistryOptions {
            allow_private: true,
            ..RegistryOptions::default()
        };
        let table = |pattern: &str, options| (pattern.parse().expect(pattern), options);
        let tables = [
            table("storage.corp.example", private),
            table("*.listed.example", RegistryOptions::default()),
            table("quay.io", RegistryOptions::default()),
        ];
        let endpoints = Endpoints::load(&tables, Addresses::Public, false)
            .unwrap_or_else(|_| panic!("good tables"));
        let storage: Url = "https://storage.corp.example/x".parse().expect("a URL");
        let elsewhere: Url = "https://10.0.0.1/x".parse().expect("a URL");
        for (registry, expected) in [
            ("quay.io", Addresses::Any),
            ("a.listed.example", Addresses::Any),
            ("storage.corp.example", Addresses::Any),
            ("evil.example", Addresses::Public),
        ] {
            let from = endpoints.find(&registry.parse().expect(registry));
            let from = from.unwrap_or_else(|error| panic!("{registry}: {error}"));
            let way = endpoints.way_to(&from, &storage.origin);
            assert_eq!(way.addresses, expected, "{registry}");
            let way = endpoints.way_to(&from, &elsewhere.origin);
            assert_eq!(way.addresses, Addresses::Public, "{registry}");
        }
    }

    #[test]
    fn the_exact_name_goes_before_a_pattern_and_the_longer_before_the_shorter() {
        let table = |pattern: &str, redirect, is_open| {
            let options = RegistryOptions {
                redirect,
                anonymous_pull: Some(is_open),
                ..RegistryOptions::default()
            };
            (pattern.parse().expect(pattern), options)
        };
        let tables = [
            table("*.corp.example", Redirects::Follow, false),
            table("reg-*.corp.example", Redirects::Follow, true),
            table("reg-1.corp.example", Redirects::Pass, true),
        ];
        let endpoints = Endpoints::load(&tables, Addresses::Public, false)
            .unwrap_or_else(|_| panic!("good tables"));
        for (registry, redirects, is_open) in [
            ("reg-1.corp.example", Redirects::Pass, true),
            ("reg-2.corp.example", Redirects::Follow, true),
            ("other.corp.example", Redirects::Follow, false),
            ("corp.example", Redirects::Pass, false),
        ] {
            let found = endpoints.find(&registry.parse().expect(registry));
            let found = found.unwrap_or_else(|error| panic!("{registry}: {error}"));
            assert_eq!(
                (found.redirects, found.anonymous_pull),
                (redirects, is_open),
                "{registry}"
            );
            assert_eq!(
                found.url("/v2/").to_string(),
                format!("https://{registry}/v2/")
            );
        }
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
