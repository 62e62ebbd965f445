//! From errors to answers: the one place where errors get status codes. Each API has its own shape: `/v2` that of
//! the distribution specification, pages are pages, the rest is `{"message"}`.

use std::time::Duration;

use serde_json::json;

use super::{
    Response, pages,
    route::{RouteError, Wish, is_page_path, is_registry_path},
};
use crate::{
    augment::AugmentError,
    blocking::PoolError,
    credentials::FindError,
    http::HeadError,
    mirror::jobs::{self, Full},
    oci::{ErrorCode, Reference},
    pull::{FetchError, PullError},
    requests::{KeepError, StoreError},
};

/// When a full queue is worth another try.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// When room is made: by those whose names expire.
const FULL_PAUSE: Duration = Duration::from_secs(600);

/// When a job may have ended that stands in the way of others.
const QUEUE_PAUSE: Duration = Duration::from_secs(30);
/// When a Platform, or AWS, that did not answer is worth another try.
const SILENCE_PAUSE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Registry,
    Api,
    /// For people.
    Page,
}

impl Shape {
    pub(super) fn of(path: &str) -> Self {
        if is_registry_path(path) {
            Self::Registry
        } else if is_page_path(path) {
            Self::Page
        } else {
            Self::Api
        }
    }
}

pub(super) fn registry(status: u16, code: ErrorCode, message: &str) -> Response {
    Response::new(status).json(&json!({"errors": [{"code": code.as_str(), "message": message}]}))
}

pub(super) fn api(status: u16, message: &str) -> Response {
    Response::new(status).json(&json!({ "message": message }))
}

/// In the shape that is asked for, with the code that fits the status.
pub(super) fn plain(shape: Shape, status: u16, message: &str) -> Response {
    match shape {
        Shape::Api => api(status, message),
        Shape::Page => pages::problem(status, message),
        Shape::Registry => {
            let code = match status {
                401 => ErrorCode::Unauthorized,
                403 => ErrorCode::Denied,
                404 => ErrorCode::NotFound,
                405 | 417 | 505 => ErrorCode::Unsupported,
                416 => ErrorCode::RangeInvalid,
                429 => ErrorCode::TooManyRequests,
                502..=504 => ErrorCode::Unavailable,
                _ => ErrorCode::Unknown,
            };
            registry(status, code, message)
        }
    }
}

pub(super) fn malformed(shape: Shape, error: &HeadError) -> Response {
    let response = match error {
        // Runtimes try TLS first and look for exactly such an answer before they fall back.
        HeadError::TlsHello => {
            let text = "Client sent an HTTPS request to an HTTP server: use http:// or configure this registry as insecure.\n";
            Response::new(400).content("text/plain; charset=utf-8", text)
        }
        error => plain(shape, error.status(), &error.to_string()),
    };
    response.closing()
}

pub(super) fn unknown_token(shape: Shape) -> Response {
    plain(shape, 404, &RouteError::UnknownToken.to_string())
}

pub(super) fn too_many_guesses(shape: Shape, wait: Duration) -> Response {
    let message = "too many requests with unknown tokens; wait a little";
    too_many(shape, message, wait)
}

pub(super) fn too_many(shape: Shape, message: &str, wait: Duration) -> Response {
    plain(shape, 429, message).field("Retry-After", whole_seconds(wait))
}

pub(super) fn of_route(shape: Shape, error: &RouteError) -> Response {
    let message = error.to_string();
    let code = match error {
        RouteError::UnknownPath | RouteError::UnknownToken | RouteError::UnknownRecord { .. } => {
            return plain(shape, 404, &message);
        }
        RouteError::MethodNotAllowed { allow } => {
            return plain(shape, 405, &message).field("Allow", allow);
        }
        RouteError::NoRegistry { .. } | RouteError::Name(_) => ErrorCode::NameInvalid,
        RouteError::Tag(_) => ErrorCode::TagInvalid,
        RouteError::Digest(_) => ErrorCode::DigestInvalid,
    };
    match (shape, code) {
        (Shape::Registry, ErrorCode::NameInvalid) => registry(404, code, &message),
        (Shape::Registry, _) => registry(400, code, &message),
        (Shape::Api | Shape::Page, _) => plain(shape, 400, &message),
    }
}

/// A pull that failed, to a runtime. Never 401: the client's own token was good, and a 401 would make it look
/// for another.
pub(super) fn of_pull(wish: &Wish, error: &PullError) -> Response {
    let message = match error {
        // Who that was, and with what, is nobody's business who only holds the name.
        PullError::Caller(error) => error.to_strangers(),
        error => error.to_string(),
    };
    let (status, code, wait) = match error {
        PullError::Fetch(error) => match error {
            FetchError::Unknown { .. } => (404, unknown_code(wish), None),
            FetchError::Refused { .. } | FetchError::Forbidden { .. } => {
                (403, ErrorCode::Denied, None)
            }
            FetchError::RateLimited { retry_after, .. } => {
                // A runtime that is told nothing asks again at once.
                (
                    429,
                    ErrorCode::TooManyRequests,
                    Some(retry_after.unwrap_or(Duration::from_secs(60))),
                )
            }
            FetchError::Unreachable { .. }
            | FetchError::Failed { .. }
            | FetchError::Malformed { .. } => (502, ErrorCode::Unavailable, None),
            FetchError::Busy(_) => (503, ErrorCode::Unavailable, Some(BUSY_PAUSE)),
        },
        PullError::Caller(error) => match **error {
            _ if error.is_outage() => (503, ErrorCode::Unavailable, Some(SILENCE_PAUSE)),
            FindError::CallerRevoked { .. }
            | FindError::Denied { .. }
            | FindError::NoAnswer { .. }
            | FindError::Aws { .. } => (403, ErrorCode::Denied, None),
        },
        PullError::Busy(_) => (503, ErrorCode::Unavailable, Some(BUSY_PAUSE)),
        PullError::Mismatch { .. } | PullError::Fill { .. } | PullError::Manifest { .. } => {
            (502, ErrorCode::Unavailable, None)
        }
        // The tag means something else than when the name was given out.
        PullError::Overlay(_) => (400, ErrorCode::Unsupported, None),
        PullError::Belongings(error) => {
            tracing::error!(%error, "what belongs to a name cannot be read; look at state_dir");
            (503, ErrorCode::Unavailable, Some(BUSY_PAUSE))
        }
    };
    let response = registry(status, code, &message);
    match wait {
        Some(wait) => response.field("Retry-After", whole_seconds(wait)),
        None => response,
    }
}

fn unknown_code(wish: &Wish) -> ErrorCode {
    match wish {
        Wish::Manifest(_) => ErrorCode::ManifestUnknown,
        Wish::Blob(_) => ErrorCode::BlobUnknown,
        Wish::TagList => ErrorCode::NameUnknown,
        Wish::Referrers(_) => ErrorCode::NotFound,
    }
}

/// An image that could not be resolved, to whoever submitted it: always something to correct or to wait for.
pub(super) fn of_submit(error: &PullError) -> Response {
    match error {
        PullError::Busy(_) | PullError::Fetch(FetchError::Busy(_)) => {
            busy(Shape::Api, &error.to_string())
        }
        PullError::Caller(error) => of_caller(error),
        PullError::Fetch(FetchError::RateLimited {
            retry_after: Some(wait),
            ..
        }) => api(400, &error.to_string()).field("Retry-After", whole_seconds(*wait)),
        PullError::Fetch(_)
        | PullError::Mismatch { .. }
        | PullError::Manifest { .. }
        | PullError::Belongings(_)
        | PullError::Fill { .. } => api(400, &error.to_string()),
        PullError::Overlay(cause) => api(400, &format!("{error}{}", advice(cause))),
    }
}

fn advice(error: &AugmentError) -> &'static str {
    match error {
        AugmentError::NoPlatform { .. } => "; ask for one of these by containerPlatform",
        AugmentError::Malformed { .. }
        | AugmentError::Artifact { .. }
        | AugmentError::TooMany { .. }
        | AugmentError::LayerCount { .. }
        | AugmentError::Layer { .. }
        | AugmentError::LayersOverMost { .. } => "",
    }
}

/// The same of an image that is included.
pub(super) fn of_include(image: &Reference, error: &PullError) -> Response {
    match error {
        PullError::Overlay(cause) => api(
            400,
            &format!("containerIncludes: {image}: {cause}{}", advice(cause)),
        ),
        PullError::Fetch(FetchError::Busy(_)) => of_submit(error),
        PullError::Fetch(cause) => api(400, &format!("containerIncludes: {cause}")),
        error => of_submit(error),
    }
}

/// An image that could not be inspected: the registry's own status, as far as it makes sense from here. Never 401, for which
/// clients renew their token.
pub(super) fn of_inspection(error: &PullError) -> Response {
    let message = match error {
        PullError::Overlay(error) => error.to_string(),
        error => error.to_string(),
    };
    let (status, wait) = match error {
        PullError::Busy(_) | PullError::Fetch(FetchError::Busy(_)) => (503, Some(BUSY_PAUSE)),
        PullError::Caller(error) => return of_caller(error),
        PullError::Fetch(error) => match error {
            FetchError::Unknown { .. } => (404, None),
            FetchError::Refused { .. } => (403, None),
            FetchError::Forbidden { .. } => (400, None),
            FetchError::RateLimited { retry_after, .. } => (429, *retry_after),
            FetchError::Failed { status, .. } if (400..500).contains(status) => (400, None),
            FetchError::Unreachable { .. }
            | FetchError::Failed { .. }
            | FetchError::Malformed { .. }
            | FetchError::Busy(_) => (502, None),
        },
        // The index has nothing for this platform.
        PullError::Overlay(_) => (404, None),
        PullError::Mismatch { .. }
        | PullError::Manifest { .. }
        | PullError::Belongings(_)
        | PullError::Fill { .. } => (502, None),
    };
    let response = api(status, &message);
    match wait {
        Some(wait) => response.field("Retry-After", whole_seconds(wait)),
        None => response,
    }
}

fn of_caller(error: &FindError) -> Response {
    match error {
        // With an empty body, as clients know it: they renew their token then.
        FindError::CallerRevoked { .. } => Response::new(401),
        FindError::Denied { .. } => api(403, &error.to_string()),
        error if error.is_outage() => no_answer(Shape::Api, &error.to_caller()),
        FindError::NoAnswer { .. } | FindError::Aws { .. } => api(400, &error.to_caller()),
    }
}

/// A Platform, or AWS, did not say what it was asked.
pub(super) fn no_answer(shape: Shape, message: &str) -> Response {
    plain(shape, 503, message).field("Retry-After", whole_seconds(SILENCE_PAUSE))
}

pub(super) fn of_store(shape: Shape, error: &StoreError) -> Response {
    if let StoreError::Layers(error @ KeepError::Full { .. }) = error {
        tracing::warn!(%error, "a container request was refused");
        return plain(shape, 503, &error.to_string())
            .field("Retry-After", whole_seconds(FULL_PAUSE));
    }
    if let StoreError::Layers(error @ KeepError::ShareUsedUp { .. }) = error {
        tracing::info!(%error, "a container request was refused");
        return plain(shape, 429, &error.to_string())
            .field("Retry-After", whole_seconds(FULL_PAUSE));
    }
    tracing::error!(%error, "the store of container requests failed; look at state_dir");
    plain(
        shape,
        503,
        "container requests cannot be kept or found at the moment",
    )
    .field("Retry-After", 5)
}

pub(super) fn of_jobs(shape: Shape, error: &jobs::StoreError) -> Response {
    tracing::error!(%error, "the store of mirrors and freezes failed; look at state_dir");
    let message = "mirrors and freezes cannot be kept or found at the moment";
    plain(shape, 503, message).field("Retry-After", 5)
}

/// No more jobs may wait.
pub(super) fn of_full(full: Full) -> Response {
    let status = match full {
        Full::OfOne => 429,
        Full::OfAll => 503,
    };
    api(status, &full.to_string()).field("Retry-After", whole_seconds(QUEUE_PAUSE))
}

/// A registry that may do better soon.
pub(super) fn unavailable(message: &str, wait: Option<Duration>) -> Response {
    let wait = wait.unwrap_or(SILENCE_PAUSE);
    api(503, message).field("Retry-After", whole_seconds(wait))
}

pub(super) fn of_pool(shape: Shape, error: PoolError) -> Response {
    busy(shape, &format!("tidegate is busy: {error}"))
}

pub(super) fn busy(shape: Shape, message: &str) -> Response {
    plain(shape, 503, message).field("Retry-After", whole_seconds(BUSY_PAUSE))
}

/// Delta-seconds (RFC 9110 §10.2.3), rounded up: earlier would be too early.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}
