//! Method and path to a value. Pure: whether a token exists, and what it allows, is authorization's
//! business. Query strings are split off before.

mod admin;

pub use admin::{AdminRoute, CacheRoute};

use std::borrow::Cow;

use crate::{
    http::{Method, percent_decode},
    mirror::jobs::JobId,
    oci::{Digest, DigestError, ReferenceError, Registry, Repository, TagOrDigest},
    requests::{DurableKind, Token},
    secret::Secret,
};

/// Everything that is asked for on the public listeners. Where a route answers GET it answers HEAD too,
/// so the caller still looks at the method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `GET /v2/`: is this a registry?
    Version,
    Pull {
        name: Name,
        wish: Wish,
    },
    /// `POST /v1alpha2/container`, `POST /container-token`
    SubmitContainer(ApiVersion),
    /// `GET /container-token/{token}`
    DescribeToken(Token),
    /// `DELETE /container-token/{token}`
    RevokeToken(Token),
    /// `GET /v1alpha2/container/{token}`
    Record(Token),
    /// `GET /v1alpha2/container/{token}/status`
    Status(Token),
    /// `GET /v1alpha1/mirrors/{id}` and `GET /v1alpha1/builds/{id}`, and below them
    Job(JobId, JobPart),
    /// `GET /view/mirrors/{id}` and `GET /view/builds/{id}`, for people
    JobPage(JobId),
    /// `POST /v1alpha1/inspect`
    Inspect,
    /// `POST /v1alpha2/validate-creds`, `POST /validate-creds`
    CheckCredentials(ApiVersion),
    /// `GET /openapi.json`
    OpenApi,
    /// `GET /pairing/tower/token/{token}`, for Seqera Platform
    Pair(Secret<String>),
    /// `GET /view/containers/{token}`, for people
    ContainerPage(Token),
    /// `GET /view/inspect`, for people
    InspectPage,
    /// `GET /service-info`
    ServiceInfo,
    /// `GET /health`
    Health,
    /// `GET /`
    Landing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiVersion {
    V1Alpha1,
    V1Alpha2,
}

/// What of a job is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobPart {
    Record,
    /// Of a build only: a mirror's is in its record.
    Status,
    Log,
}

/// The image of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// `/v2/wt/<token>/<repository>/…`; the registry stands in the container request.
    Ephemeral {
        token: Token,
        repository: Repository,
    },
    /// `/v2/<registry>/<repository>/…`, without a token.
    Direct {
        registry: Registry,
        repository: Repository,
    },
}

/// What of the image is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    Manifest(TagOrDigest),
    Blob(Digest),
    TagList,
    Referrers(Digest),
}

#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    #[error("there is nothing under this path")]
    UnknownPath,
    /// Also for what cannot be a token: to a guesser both must look alike.
    #[error("there is no container request with this token; it may have expired")]
    UnknownToken,
    #[error("there is no {kind} with this id; its record may be too old")]
    UnknownRecord { kind: &'static str },
    #[error("only {allow} can be used here")]
    MethodNotAllowed {
        /// For the `Allow` field.
        allow: &'static str,
    },
    #[error(
        "`{first}` is no registry; a path starts with /v2/wt/ and a token, or with /v2/ and a registry's host name, as in /v2/quay.io/"
    )]
    NoRegistry { first: String },
    #[error(transparent)]
    Name(ReferenceError),
    #[error(transparent)]
    Tag(ReferenceError),
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl RouteError {
    pub(super) fn unknown_job(kind: DurableKind) -> Self {
        Self::UnknownRecord {
            kind: match kind {
                DurableKind::Mirror => "mirror",
                DurableKind::Freeze => "build",
            },
        }
    }
}

const READ: &str = "GET, HEAD";

impl Route {
    pub fn parse(method: Method, path: &str) -> Result<Self, RouteError> {
        use Method::{Delete, Get, Head, Post};
        if is_registry_path(path) {
            return match method {
                Get | Head => parse_registry_path(path),
                _ => Err(RouteError::MethodNotAllowed { allow: READ }),
            };
        }
        let path = path.strip_prefix('/').ok_or(RouteError::UnknownPath)?;
        // One more than the longest path has.
        let parts: Vec<&str> = path.split('/').take(5).collect();
        match (parts.as_slice(), method) {
            ([""], Get | Head) => Ok(Self::Landing),
            (["service-info"], Get | Head) => Ok(Self::ServiceInfo),
            (["health"], Get | Head) => Ok(Self::Health),
            (["container-token"], Post) => Ok(Self::SubmitContainer(ApiVersion::V1Alpha1)),
            (["container-token", token], Get | Head) => {
                Ok(Self::DescribeToken(parse_token(token)?))
            }
            (["container-token", token], Delete) => Ok(Self::RevokeToken(parse_token(token)?)),
            (["v1alpha2", "container"], Post) => Ok(Self::SubmitContainer(ApiVersion::V1Alpha2)),
            (["v1alpha2", "container", token], Get | Head) => Ok(Self::Record(parse_token(token)?)),
            (["v1alpha2", "container", token, "status"], Get | Head) => {
                Ok(Self::Status(parse_token(token)?))
            }
            (["view", "containers", token], Get | Head) => {
                Ok(Self::ContainerPage(parse_token(token)?))
            }
            (["view", "inspect"], Get | Head) => Ok(Self::InspectPage),
            (["v1alpha1", "inspect"], Post) => Ok(Self::Inspect),
            (["validate-creds"], Post) => Ok(Self::CheckCredentials(ApiVersion::V1Alpha1)),
            (["v1alpha2", "validate-creds"], Post) => {
                Ok(Self::CheckCredentials(ApiVersion::V1Alpha2))
            }
            (["openapi.json"], Get | Head) => Ok(Self::OpenApi),
            (["v1alpha1", kind, id, rest @ ..], Get | Head) if !id.is_empty() => {
                parse_record(kind, id, rest)
            }
            (["view", kind @ ("mirrors" | "builds"), id], Get | Head) => {
                Ok(Self::JobPage(parse_job(kind, id)?))
            }
            (["pairing", "tower", "token", token], Get) if !token.is_empty() => {
                Ok(Self::Pair(Secret::new(decode(token).into_owned())))
            }
            (["pairing", "tower", "token", _], _) => {
                Err(RouteError::MethodNotAllowed { allow: "GET" })
            }
            (
                ["container-token"]
                | ["v1alpha2", "container"]
                | ["v1alpha1", "inspect"]
                | ["validate-creds"]
                | ["v1alpha2", "validate-creds"],
                _,
            ) => Err(RouteError::MethodNotAllowed { allow: "POST" }),
            (["v1alpha1", kind, id, rest @ ..], _) if !id.is_empty() => {
                Err(match parse_record(kind, id, rest) {
                    Ok(_) | Err(RouteError::UnknownRecord { .. }) => {
                        RouteError::MethodNotAllowed { allow: READ }
                    }
                    Err(error) => error,
                })
            }
            (["container-token", _], _) => Err(RouteError::MethodNotAllowed {
                allow: "GET, HEAD, DELETE",
            }),
            (
                [""]
                | ["service-info"]
                | ["health"]
                | ["openapi.json"]
                | ["v1alpha2", "container", _]
                | ["view", "containers" | "mirrors" | "builds", _]
                | ["view", "inspect"]
                | ["v1alpha2", "container", _, "status"],
                _,
            ) => Err(RouteError::MethodNotAllowed { allow: READ }),
            _ => Err(RouteError::UnknownPath),
        }
    }
}

/// What is told of mirrors and of builds, which are freezes here. There are no scans and no Conda environments, so there is
/// nothing of them under any id.
fn parse_record(kind: &str, id: &str, rest: &[&str]) -> Result<Route, RouteError> {
    let part = match (kind, rest) {
        ("builds" | "mirrors", []) => JobPart::Record,
        ("builds", ["status"]) => JobPart::Status,
        ("builds" | "mirrors", ["logs"]) => JobPart::Log,
        ("builds", ["condalock"]) => {
            return Err(RouteError::UnknownRecord { kind: "build" });
        }
        ("scans", [] | ["spdx" | "logs"]) => {
            return Err(RouteError::UnknownRecord { kind: "scan" });
        }
        _ => return Err(RouteError::UnknownPath),
    };
    Ok(Route::Job(parse_job(kind, id)?, part))
}

fn parse_job(kind: &str, id: &str) -> Result<JobId, RouteError> {
    let wanted = match kind {
        "mirrors" => DurableKind::Mirror,
        _ => DurableKind::Freeze,
    };
    let id = id.parse::<JobId>().ok();
    id.filter(|id| id.kind() == wanted)
        .ok_or_else(|| RouteError::unknown_job(wanted))
}

/// Errors under these paths take the shape of the registry API, all others that of the container
/// request API.
pub fn is_registry_path(path: &str) -> bool {
    path == "/v2" || path.starts_with("/v2/")
}

/// Errors under these paths are pages.
pub fn is_page_path(path: &str) -> bool {
    path.starts_with("/view/")
}

fn parse_registry_path(path: &str) -> Result<Route, RouteError> {
    let rest = path.strip_prefix("/v2").unwrap_or_default();
    let rest = rest.strip_prefix('/').unwrap_or_default();
    if rest.is_empty() {
        return Ok(Route::Version);
    }
    // Repository names contain slashes, and parts named `blobs`, so the fixed parts are taken from the right.
    let parts = split_last(rest)
        .and_then(|(rest, last)| split_last(rest).map(|(name, kind)| (name, kind, last)));
    let Some((name, kind, last)) = parts else {
        return Err(RouteError::UnknownPath);
    };
    let wish: fn(&str) -> Result<Wish, RouteError> = match (kind, last) {
        ("manifests", _) => |version| Ok(Wish::Manifest(parse_version(version)?)),
        ("blobs", _) => |digest| Ok(Wish::Blob(digest.parse()?)),
        ("referrers", _) => |digest| Ok(Wish::Referrers(digest.parse()?)),
        ("tags", "list") => |_| Ok(Wish::TagList),
        _ => return Err(RouteError::UnknownPath),
    };
    Ok(Route::Pull {
        name: parse_name(name)?,
        wish: wish(&decode(last))?,
    })
}

/// At the last slash. Every pull's path comes through here, and this is faster than `rsplit_once`.
fn split_last(path: &str) -> Option<(&str, &str)> {
    let slash = memchr::memrchr(b'/', path.as_bytes())?;
    Some((path.get(..slash)?, path.get(slash + 1..)?))
}

fn parse_name(name: &str) -> Result<Name, RouteError> {
    if let Some(rest) = name.strip_prefix("wt/") {
        let (token, repository) = rest.split_once('/').ok_or(RouteError::UnknownPath)?;
        return Ok(Name::Ephemeral {
            token: parse_token(token)?,
            repository: repository.parse().map_err(RouteError::Name)?,
        });
    }
    let (first, rest) = name.split_once('/').unwrap_or((name, ""));
    if first == "wt" {
        return Err(RouteError::UnknownPath);
    }
    if !first.contains(['.', ':']) {
        return Err(RouteError::NoRegistry {
            first: first.chars().take(64).collect(),
        });
    }
    let registry = first.parse().map_err(RouteError::Name)?;
    Ok(Name::Direct {
        repository: Repository::within(&registry, rest).map_err(RouteError::Name)?,
        registry,
    })
}

fn parse_token(text: &str) -> Result<Token, RouteError> {
    text.parse().map_err(|_| RouteError::UnknownToken)
}

fn parse_version(text: &str) -> Result<TagOrDigest, RouteError> {
    text.parse().map_err(|error| match error {
        ReferenceError::Digest(error) => RouteError::Digest(error),
        error => RouteError::Tag(error),
    })
}

/// Some clients write `sha256%3A…`. What does not decode stays, and is then no tag and no digest.
fn decode(last: &str) -> Cow<'_, str> {
    match memchr::memchr(b'%', last.as_bytes()) {
        Some(_) => percent_decode(last).map_or(Cow::Borrowed(last), Cow::Owned),
        None => Cow::Borrowed(last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    pub(in crate::api::route) fn good<T: std::str::FromStr>(text: &str) -> T {
        text.parse()
            .unwrap_or_else(|_| panic!("{text} should be good"))
    }

    fn ephemeral(repository: &str, wish: Wish) -> Route {
        let name = Name::Ephemeral {
            token: good("0123456789ab"),
            repository: good(repository),
        };
        Route::Pull { name, wish }
    }

    fn direct(registry: &str, repository: &str, wish: Wish) -> Route {
        let name = Name::Direct {
            registry: good(registry),
            repository: good(repository),
        };
        Route::Pull { name, wish }
    }

    #[test]
    fn pulls_are_understood() {
        let digest = format!("sha256:{HEX}");
        let sha512 = format!("sha512:{HEX}{HEX}");
        let tag = || Wish::Manifest(good("latest"));
        let wt = "/v2/wt/0123456789ab";
        for (path, route) in [
            ("/v2".to_owned(), Route::Version),
            ("/v2/".to_owned(), Route::Version),
            (
                format!("{wt}/library/alpine/manifests/latest"),
                ephemeral("library/alpine", tag()),
            ),
            (format!("{wt}/a/manifests/latest"), ephemeral("a", tag())),
            (
                format!("{wt}/a/b/c/d/e/manifests/latest"),
                ephemeral("a/b/c/d/e", tag()),
            ),
            (
                format!("{wt}/a/b/manifests/{digest}"),
                ephemeral("a/b", Wish::Manifest(good(&digest))),
            ),
            (
                format!("{wt}/a/b/manifests/sha256%3A{HEX}"),
                ephemeral("a/b", Wish::Manifest(good(&digest))),
            ),
            (
                format!("{wt}/a/b/manifests/v1%2E0"),
                ephemeral("a/b", Wish::Manifest(good("v1.0"))),
            ),
            (
                format!("{wt}/a/b/manifests/sha256-{HEX}.sig"),
                ephemeral("a/b", Wish::Manifest(good(&format!("sha256-{HEX}.sig")))),
            ),
            (
                format!("{wt}/a/b/blobs/{digest}"),
                ephemeral("a/b", Wish::Blob(good(&digest))),
            ),
            (
                format!("{wt}/a/b/blobs/sha256%3a{HEX}"),
                ephemeral("a/b", Wish::Blob(good(&digest))),
            ),
            (
                format!("{wt}/a/b/blobs/{sha512}"),
                ephemeral("a/b", Wish::Blob(good(&sha512))),
            ),
            (
                format!("{wt}/a/b/referrers/{digest}"),
                ephemeral("a/b", Wish::Referrers(good(&digest))),
            ),
            (
                format!("{wt}/a/b/tags/list"),
                ephemeral("a/b", Wish::TagList),
            ),
            // The fixed words are good parts of a name, and good tags.
            (
                format!("{wt}/blobs/manifests/tags/list"),
                ephemeral("blobs/manifests", Wish::TagList),
            ),
            (
                format!("{wt}/manifests/manifests/manifests"),
                ephemeral("manifests", Wish::Manifest(good("manifests"))),
            ),
            (
                format!("{wt}/a/tags/manifests/list"),
                ephemeral("a/tags", Wish::Manifest(good("list"))),
            ),
            (
                format!("{wt}/a/blobs/{digest}/manifests/latest").replace(&digest, "x"),
                ephemeral("a/blobs/x", tag()),
            ),
            (
                format!("{wt}/wt/0123456789ab/blobs/{digest}"),
                ephemeral("wt/0123456789ab", Wish::Blob(good(&digest))),
            ),
            (
                format!("{wt}/quay.io/a/manifests/latest"),
                ephemeral("quay.io/a", tag()),
            ),
            (
                "/v2/quay.io/a/b/manifests/latest".to_owned(),
                direct("quay.io", "a/b", tag()),
            ),
            (
                "/v2/Quay.IO:443/a/manifests/latest".to_owned(),
                direct("quay.io", "a", tag()),
            ),
            (
                "/v2/localhost:5000/a/tags/list".to_owned(),
                direct("localhost:5000", "a", Wish::TagList),
            ),
            (
                "/v2/[::1]:5000/a/tags/list".to_owned(),
                direct("[::1]:5000", "a", Wish::TagList),
            ),
            (
                format!("/v2/docker.io/alpine/blobs/{digest}"),
                direct("docker.io", "library/alpine", Wish::Blob(good(&digest))),
            ),
            (
                "/v2/index.docker.io/acme/app/manifests/latest".to_owned(),
                direct("docker.io", "acme/app", tag()),
            ),
        ] {
            for method in [Method::Get, Method::Head] {
                match Route::parse(method, &path) {
                    Ok(parsed) => assert_eq!(parsed, route, "{path}"),
                    Err(error) => panic!("{path}: {error}"),
                }
            }
        }
    }

    /// The variant's name, and what an answer needs of it.
    pub(in crate::api::route) fn shown(error: &RouteError) -> &'static str {
        match error {
            RouteError::UnknownPath => "path",
            RouteError::UnknownToken => "token",
            RouteError::UnknownRecord { .. } => "record",
            RouteError::MethodNotAllowed { allow } => allow,
            RouteError::NoRegistry { .. } => "no registry",
            RouteError::Name(_) => "name",
            RouteError::Tag(_) => "tag",
            RouteError::Digest(_) => "digest",
        }
    }

    #[test]
    fn what_is_no_pull_is_refused() {
        let wt = "/v2/wt/0123456789ab";
        for (path, error) in [
            ("/v2//".to_owned(), "path"),
            ("/v2/_catalog".to_owned(), "path"),
            ("/v2/alpine".to_owned(), "path"),
            ("/v2/manifests/latest".to_owned(), "path"),
            ("/v2/a/tags/lists".to_owned(), "path"),
            ("/v2/quay.io/a/tags/list/".to_owned(), "path"),
            ("/v2/quay.io/a/manifests/latest/".to_owned(), "path"),
            (format!("{wt}/manifests/latest"), "path"),
            ("/v2/wt/manifests/latest".to_owned(), "path"),
            (format!("{wt}/a/blobs/uploads/"), "path"),
            (format!("{wt}/a/layers/sha256:{HEX}"), "path"),
            (format!("{wt}/a/Manifests/latest"), "path"),
            (format!("{wt}/a%2Fmanifests%2Flatest"), "path"),
            ("/v2/wt/0123456789AB/a/manifests/latest".to_owned(), "token"),
            ("/v2/wt/0123456789a/a/manifests/latest".to_owned(), "token"),
            ("/v2/wt//a/manifests/latest".to_owned(), "token"),
            (
                "/v2/wt/0123456789%61b/a/manifests/latest".to_owned(),
                "token",
            ),
            ("/v2/alpine/manifests/latest".to_owned(), "no registry"),
            (
                "/v2/library/alpine/manifests/latest".to_owned(),
                "no registry",
            ),
            ("/v2//quay.io/a/manifests/latest".to_owned(), "no registry"),
            (
                "/v2/WT/0123456789ab/a/manifests/latest".to_owned(),
                "no registry",
            ),
            ("/v2/quay.io/manifests/latest".to_owned(), "name"),
            ("/v2/quay.io//a/manifests/latest".to_owned(), "name"),
            ("/v2/../a/manifests/latest".to_owned(), "name"),
            ("/v2/https:/a/manifests/latest".to_owned(), "name"),
            ("/v2/host:0/a/manifests/latest".to_owned(), "name"),
            ("/v2/u@quay.io/a/manifests/latest".to_owned(), "name"),
            ("/v2/quay.io%2Fa/b/manifests/latest".to_owned(), "name"),
            (format!("{wt}//manifests/latest"), "name"),
            (format!("{wt}/A/manifests/latest"), "name"),
            (format!("{wt}/a//b/manifests/latest"), "name"),
            (format!("{wt}/a/../b/manifests/latest"), "name"),
            (format!("{wt}/a/./b/manifests/latest"), "name"),
            (format!("{wt}/a%2Fb/manifests/latest"), "name"),
            (format!("{wt}/a%2f..%2fb/manifests/latest"), "name"),
            (format!("{wt}/a\\b/manifests/latest"), "name"),
            (format!("{wt}/a b/manifests/latest"), "name"),
            (
                format!("{wt}/{}/manifests/latest", "a/".repeat(200)),
                "name",
            ),
            (format!("{wt}/a/manifests/"), "tag"),
            (format!("{wt}/a/manifests/.x"), "tag"),
            (format!("{wt}/a/manifests/.."), "tag"),
            (format!("{wt}/a/manifests/a%2Fb"), "tag"),
            (format!("{wt}/a/manifests/a%"), "tag"),
            (format!("{wt}/a/manifests/%ff"), "tag"),
            (format!("{wt}/a/manifests/a%252Eb"), "tag"),
            (format!("{wt}/a/manifests/{}", "a".repeat(129)), "tag"),
            (format!("{wt}/a/manifests/sha256:12"), "digest"),
            (format!("{wt}/a/manifests/md5:{HEX}"), "digest"),
            (format!("{wt}/a/blobs/latest"), "digest"),
            (
                format!("{wt}/a/blobs/sha256:{}", HEX.to_uppercase()),
                "digest",
            ),
            (format!("{wt}/a/blobs/sha256%253A{HEX}"), "digest"),
            (format!("{wt}/a/blobs/"), "digest"),
            (format!("{wt}/a/referrers/latest"), "digest"),
        ] {
            match Route::parse(Method::Get, &path) {
                Err(found) => assert_eq!(shown(&found), error, "{path}: {found}"),
                Ok(route) => panic!("{path} was taken for {route:?}"),
            }
        }
    }

    #[test]
    fn the_container_request_api_is_understood() {
        use Method::{Delete, Get, Head, Post, Put};
        let token: Token = good("0123456789ab");
        for (method, path, outcome) in [
            (Get, "/", Ok(Route::Landing)),
            (Head, "/", Ok(Route::Landing)),
            (Post, "/", Err(READ)),
            (Get, "/health", Ok(Route::Health)),
            (Put, "/health", Err(READ)),
            (Get, "/service-info", Ok(Route::ServiceInfo)),
            (
                Post,
                "/container-token",
                Ok(Route::SubmitContainer(ApiVersion::V1Alpha1)),
            ),
            (Get, "/container-token", Err("POST")),
            (
                Post,
                "/v1alpha2/container",
                Ok(Route::SubmitContainer(ApiVersion::V1Alpha2)),
            ),
            (Delete, "/v1alpha2/container", Err("POST")),
            (
                Get,
                "/container-token/0123456789ab",
                Ok(Route::DescribeToken(token)),
            ),
            (
                Delete,
                "/container-token/0123456789ab",
                Ok(Route::RevokeToken(token)),
            ),
            (
                Put,
                "/container-token/0123456789ab",
                Err("GET, HEAD, DELETE"),
            ),
            (Delete, "/container-token/x", Err("token")),
            (Get, "/container-token/", Err("token")),
            (Get, "/container-token/0123456789ab/", Err("path")),
            (
                Get,
                "/v1alpha2/container/0123456789ab",
                Ok(Route::Record(token)),
            ),
            (Post, "/v1alpha2/container/0123456789ab", Err(READ)),
            (Get, "/v1alpha2/container/../health", Err("path")),
            (
                Get,
                "/v1alpha2/container/0123456789ab/status",
                Ok(Route::Status(token)),
            ),
            (Get, "/v1alpha2/container/x/status", Err("token")),
            (Delete, "/v1alpha2/container/0123456789ab/status", Err(READ)),
            (Get, "/v1alpha2/container/0123456789ab/status/", Err("path")),
            (
                Get,
                "/view/containers/0123456789ab",
                Ok(Route::ContainerPage(token)),
            ),
            (
                Head,
                "/view/containers/0123456789ab",
                Ok(Route::ContainerPage(token)),
            ),
            (Post, "/view/containers/0123456789ab", Err(READ)),
            (Get, "/view/containers/x", Err("token")),
            (Get, "/view/inspect", Ok(Route::InspectPage)),
            (Post, "/view/inspect", Err(READ)),
            (Get, "/view/", Err("path")),
            (Get, "/v1alpha2", Err("path")),
            (Get, "/v20/", Err("path")),
            (Get, "/V2/", Err("path")),
            (Get, "//v2/", Err("path")),
            (Get, "/Health", Err("path")),
            (Get, "", Err("path")),
            (Get, "*", Err("path")),
            (Get, "v2/", Err("path")),
        ] {
            let parsed = Route::parse(method, path);
            match (&parsed, outcome) {
                (Ok(route), Ok(expected)) => assert_eq!(*route, expected, "{method:?} {path}"),
                (Err(error), Err(expected)) => {
                    assert_eq!(shown(error), expected, "{method:?} {path}");
                }
                _ => panic!("{method:?} {path}: {parsed:?}"),
            }
        }
    }

    #[test]
    fn jobs_are_told_of_by_their_kind() {
        use Method::{Delete, Get, Head, Post};
        let mirror: JobId = good("mr-0123456789ab");
        let freeze: JobId = good("bd-0123456789abcdef_2");
        let of_mirror = |part| Ok(Route::Job(mirror.clone(), part));
        let of_freeze = |part| Ok(Route::Job(freeze.clone(), part));
        let (m, b) = (
            "/v1alpha1/mirrors/mr-0123456789ab",
            "/v1alpha1/builds/bd-0123456789abcdef_2",
        );
        for (method, path, outcome) in [
            (Get, m.to_owned(), of_mirror(JobPart::Record)),
            (Head, format!("{m}/logs"), of_mirror(JobPart::Log)),
            (Get, format!("{m}/status"), Err("path")),
            (Get, format!("{m}/logs/"), Err("path")),
            (Post, m.to_owned(), Err(READ)),
            (Get, b.to_owned(), of_freeze(JobPart::Record)),
            (Get, format!("{b}/status"), of_freeze(JobPart::Status)),
            (Get, format!("{b}/logs"), of_freeze(JobPart::Log)),
            (Get, format!("{b}/condalock"), Err("record")),
            (Delete, format!("{b}/logs"), Err(READ)),
            (
                Get,
                "/v1alpha1/mirrors/bd-0123456789abcdef_2".to_owned(),
                Err("record"),
            ),
            (
                Get,
                "/v1alpha1/builds/mr-0123456789ab".to_owned(),
                Err("record"),
            ),
            (Get, "/v1alpha1/mirrors/".to_owned(), Err("path")),
            (
                Get,
                "/view/mirrors/mr-0123456789ab".to_owned(),
                Ok(Route::JobPage(mirror.clone())),
            ),
            (
                Get,
                "/view/builds/bd-0123456789abcdef_2".to_owned(),
                Ok(Route::JobPage(freeze.clone())),
            ),
            (
                Get,
                "/view/builds/mr-0123456789ab".to_owned(),
                Err("record"),
            ),
            (Post, "/view/mirrors/mr-0123456789ab".to_owned(), Err(READ)),
        ] {
            let parsed = Route::parse(method, &path);
            assert_eq!(
                parsed.as_ref().map_err(shown),
                outcome.as_ref().map_err(|e| *e),
                "{path}"
            );
        }
    }

    #[test]
    fn registries_are_only_read() {
        use Method::{Connect, Delete, Options, Other, Patch, Post, Put, Trace};
        for method in [Post, Put, Patch, Delete, Options, Connect, Trace, Other] {
            for path in [
                "/v2",
                "/v2/",
                "/v2/wt/0123456789ab/a/blobs/uploads/",
                "/v2/quay.io/a/manifests/latest",
                "/v2/nothing",
            ] {
                match Route::parse(method, path) {
                    Err(RouteError::MethodNotAllowed { allow }) => assert_eq!(allow, READ),
                    other => panic!("{method:?} {path}: {other:?}"),
                }
            }
        }
    }
}
