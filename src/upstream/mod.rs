//! Whom we ask: registries, over HTTP/1.1.

mod auth;
mod challenges;
mod crowd;
mod endpoint;
mod error;
mod exchange;
mod fetch;
mod known_hosts;
mod login;
mod login_check;
mod push;
mod realm;
mod rights;
mod send;
mod tokens;
mod upload;
mod web;

pub use auth::Authorizer;
pub use endpoint::{CloudIdentity, Endpoint, EndpointError, Endpoints, Redirects, RegistryOptions};
pub use error::{Busy, FetchError, Said, Service};
pub use exchange::{Body, Exchange};
pub use fetch::{
    BlobBody, BlobHead, FetchedBlob, FetchedManifest, List, ManifestHead, Source, Upstream,
    next_page,
};
pub use login::{Login, Renewal};
pub use login_check::CheckError;
pub use push::{Mount, PushError, PushedManifest, Session, Target, Upload, UploadError};
pub use web::WebPlace;

use serde::Deserialize;

use crate::units::HumanDuration;

/// `[upstream]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// For a connection to a registry, TLS included: `"10s"`.
    pub connect_timeout: HumanDuration,
    /// From the end of a request to the head of its response: `"25s"`. Runtimes give up on us at 30 s.
    pub response_timeout: HumanDuration,
    /// A registry that sends no byte of a body for this long is cut: `"30s"`.
    pub body_timeout: HumanDuration,
    /// How long a connection is kept for the next request: `"30s"`.
    pub idle_timeout: HumanDuration,
    /// Connections to one host that a core may have in use; a request beyond them waits for one, up to
    /// `connect_timeout`, and is then answered 503: `64`.
    pub max_connections_per_host: usize,
    /// How often a request is tried again after a broken connection, 429 or 5xx: `2`.
    pub retry_count: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: HumanDuration::seconds(10),
            response_timeout: HumanDuration::seconds(25),
            body_timeout: HumanDuration::seconds(30),
            idle_timeout: HumanDuration::seconds(30),
            // A guess: ten pulls at once, with the layers that runtimes fetch in parallel.
            max_connections_per_host: 64,
            retry_count: 2,
        }
    }
}
