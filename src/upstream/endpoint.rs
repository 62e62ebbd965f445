//! From a registry's name to where and how it is reached.

use std::path::PathBuf;

use serde::Deserialize;

use crate::secret::Secret;

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
    /// caches what it finds there.
    pub redirect: Redirects,
    /// Pull without a token under `/v2/<registry>/…`, as the anonymous caller. On by default for docker.io,
    /// quay.io, ghcr.io, public.ecr.aws and registry.k8s.io.
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
