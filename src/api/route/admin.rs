//! The operator's listener: method and path to a value, as pure as the public ones.

use super::{READ, RouteError, decode};
use crate::{
    cache::Pin,
    http::Method,
    mirror::jobs::JobId,
    oci::{Registry, Repository},
};

/// What is asked for on the operator's listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRoute {
    /// `GET /`
    Landing,
    /// `GET /livez`
    Live,
    /// `GET /readyz`
    Ready,
    /// `GET /metrics`
    Metrics,
    /// `POST /credentials/explain`
    Explain,
    /// `GET /jobs`
    Jobs,
    /// `DELETE /jobs/{id}`
    CancelJob(JobId),
    Cache(CacheRoute),
}

/// Below `/cache`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheRoute {
    /// `GET /cache/usage`
    Usage,
    /// `GET /cache/blobs`
    Blobs,
    /// `DELETE /cache/blobs`
    RemoveBlobs,
    /// `POST /cache/verify`
    Verify,
    /// `POST /cache/gc`
    Gc,
    /// `GET /cache/pins`
    Pins,
    /// `PUT /cache/pins/{registry}/{repository}`
    Pin(Pin),
    /// `DELETE /cache/pins/{registry}/{repository}`
    Unpin(Pin),
}

impl AdminRoute {
    pub fn parse(method: Method, path: &str) -> Result<Self, RouteError> {
        use Method::{Get, Head};
        if let Some(path) = path.strip_prefix("/cache/") {
            return CacheRoute::parse(method, path).map(Self::Cache);
        }
        if let Some(id) = path.strip_prefix("/jobs/") {
            let Ok(id) = id.parse() else {
                return Err(RouteError::UnknownRecord { kind: "job" });
            };
            return match method {
                Method::Delete => Ok(Self::CancelJob(id)),
                _ => Err(RouteError::MethodNotAllowed { allow: "DELETE" }),
            };
        }
        if path == "/credentials/explain" {
            return match method {
                Method::Post => Ok(Self::Explain),
                _ => Err(RouteError::MethodNotAllowed { allow: "POST" }),
            };
        }
        let route = match path {
            "/" => Self::Landing,
            "/livez" => Self::Live,
            "/readyz" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/jobs" => Self::Jobs,
            _ => return Err(RouteError::UnknownPath),
        };
        match method {
            Get | Head => Ok(route),
            _ => Err(RouteError::MethodNotAllowed { allow: READ }),
        }
    }
}

impl CacheRoute {
    fn parse(method: Method, path: &str) -> Result<Self, RouteError> {
        use Method::{Delete, Get, Head, Post, Put};
        let pin = path.strip_prefix("pins/");
        let allow = match (path, method) {
            ("usage", Get | Head) => return Ok(Self::Usage),
            ("blobs", Get | Head) => return Ok(Self::Blobs),
            ("blobs", Delete) => return Ok(Self::RemoveBlobs),
            ("verify", Post) => return Ok(Self::Verify),
            ("gc", Post) => return Ok(Self::Gc),
            ("pins", Get | Head) => return Ok(Self::Pins),
            ("usage" | "pins", _) => READ,
            ("blobs", _) => "GET, HEAD, DELETE",
            ("verify" | "gc", _) => "POST",
            _ => match (pin, method) {
                (Some(name), Put) => return Ok(Self::Pin(parse_pin(name)?)),
                (Some(name), Delete) => return Ok(Self::Unpin(parse_pin(name)?)),
                (Some(_), _) => "PUT, DELETE",
                (None, _) => return Err(RouteError::UnknownPath),
            },
        };
        Err(RouteError::MethodNotAllowed { allow })
    }

    /// Whether it does more than tell.
    pub fn changes(&self) -> bool {
        match self {
            Self::Usage | Self::Blobs | Self::Pins => false,
            Self::RemoveBlobs | Self::Verify | Self::Gc | Self::Pin(_) | Self::Unpin(_) => true,
        }
    }
}

fn parse_pin(name: &str) -> Result<Pin, RouteError> {
    let (registry, repository) = name.split_once('/').unwrap_or((name, ""));
    let registry: Registry = decode(registry).parse().map_err(RouteError::Name)?;
    let repository = Repository::within(&registry, repository).map_err(RouteError::Name)?;
    Ok(Pin {
        registry,
        repository,
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{good, shown},
        *,
    };

    #[test]
    fn the_operators_paths_are_understood() {
        let pin = |registry: &str, repository: &str| Pin {
            registry: good(registry),
            repository: good(repository),
        };
        for (method, path, outcome) in [
            (
                Method::Get,
                "/cache/usage",
                Ok(AdminRoute::Cache(CacheRoute::Usage)),
            ),
            (
                Method::Head,
                "/cache/blobs",
                Ok(AdminRoute::Cache(CacheRoute::Blobs)),
            ),
            (Method::Get, "/jobs", Ok(AdminRoute::Jobs)),
            (
                Method::Delete,
                "/jobs/mr-0123456789ab",
                Ok(AdminRoute::CancelJob(good("mr-0123456789ab"))),
            ),
            (Method::Get, "/jobs/mr-0123456789ab", Err("DELETE")),
            (Method::Delete, "/jobs/none", Err("record")),
            (Method::Delete, "/jobs", Err(READ)),
            (
                Method::Delete,
                "/cache/blobs",
                Ok(AdminRoute::Cache(CacheRoute::RemoveBlobs)),
            ),
            (
                Method::Post,
                "/cache/verify",
                Ok(AdminRoute::Cache(CacheRoute::Verify)),
            ),
            (
                Method::Post,
                "/cache/gc",
                Ok(AdminRoute::Cache(CacheRoute::Gc)),
            ),
            (
                Method::Get,
                "/cache/pins",
                Ok(AdminRoute::Cache(CacheRoute::Pins)),
            ),
            (
                Method::Put,
                "/cache/pins/localhost:5000/acme/app",
                Ok(AdminRoute::Cache(CacheRoute::Pin(pin(
                    "localhost:5000",
                    "acme/app",
                )))),
            ),
            (
                Method::Delete,
                "/cache/pins/docker.io/alpine",
                Ok(AdminRoute::Cache(CacheRoute::Unpin(pin(
                    "docker.io",
                    "library/alpine",
                )))),
            ),
            (Method::Get, "/cache/gc", Err("POST")),
            (Method::Get, "/cache/verify", Err("POST")),
            (Method::Post, "/cache/usage", Err(READ)),
            (Method::Post, "/cache/blobs", Err("GET, HEAD, DELETE")),
            (Method::Get, "/cache/pins/quay.io/a", Err("PUT, DELETE")),
            (Method::Put, "/cache/pins/quay.io/../a", Err("name")),
            (Method::Put, "/cache/pins/quay.io", Err("name")),
            (Method::Put, "/cache/pins/", Err("name")),
            (Method::Get, "/cache/", Err("path")),
            (Method::Get, "/cache", Err("path")),
            (Method::Get, "/livez", Ok(AdminRoute::Live)),
            (
                Method::Post,
                "/credentials/explain",
                Ok(AdminRoute::Explain),
            ),
            (Method::Head, "/readyz", Ok(AdminRoute::Ready)),
            (Method::Get, "/metrics", Ok(AdminRoute::Metrics)),
            (Method::Post, "/metrics", Err(READ)),
            (Method::Get, "/", Ok(AdminRoute::Landing)),
            (Method::Post, "/", Err("GET, HEAD")),
            (Method::Get, "/metrics/", Err("path")),
            (Method::Get, "/v2/", Err("path")),
        ] {
            let parsed = AdminRoute::parse(method, path);
            assert_eq!(
                parsed.as_ref().map_err(shown),
                outcome.as_ref().map_err(|e| *e),
                "{path}"
            );
        }
    }
}
