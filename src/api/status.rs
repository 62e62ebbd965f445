//! Small answers about the service itself, to clients and to its operator.

use std::sync::Arc;

use serde_json::json;

use super::{
    Request, Response, Service,
    error_response::{self, Shape},
    route::AdminRoute,
};
use crate::{
    http::{Method, RequestHead},
    telemetry::metrics::{self, Gauge},
};

/// Clients compare it with the versions they know, so it must be a plain semantic version of the API that we speak,
/// not our own.
const API_VERSION: &str = "1.37.0";

pub(super) fn service_info() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    Response::new(200).json(&json!({
        "serviceInfo": {"version": API_VERSION, "commitId": format!("tidegate-{version}")}
    }))
}

pub(super) fn health() -> Response {
    Response::new(200).json(&json!({"status": "UP"}))
}

pub(super) fn landing(authority: &str) -> Response {
    let text = format!(
        "tidegate {version}, a registry proxy.\n\n\
         Ask for an ephemeral name:\n\n  \
         curl -s {authority}/v1alpha2/container -H 'content-type: application/json' \\\n       \
         -d '{{\"containerImage\":\"docker.io/library/alpine:3.20\"}}'\n\n\
         and pull the targetImage of the answer with any container runtime.\n",
        version = env!("CARGO_PKG_VERSION"),
    );
    Response::new(200).content("text/plain; charset=utf-8", text)
}

/// What the process knows of itself.
pub trait Readiness: Send + Sync + 'static {
    /// `Err`: why not.
    fn ready(&self) -> Result<(), &'static str>;
    fn gauges(&self) -> Vec<Gauge>;
}

/// The admin listener's service.
pub struct Admin(Arc<dyn Readiness>);

impl Admin {
    pub fn new(readiness: Arc<dyn Readiness>) -> Self {
        Self(readiness)
    }
}

impl Service for Admin {
    async fn answer(&self, request: Request) -> Response {
        let head = &request.head;
        let mut response = match AdminRoute::parse(head.method, head.path()) {
            Ok(AdminRoute::Live) => Response::new(200).content("text/plain", "live\n"),
            Ok(AdminRoute::Ready) => match self.0.ready() {
                Ok(()) => Response::new(200).content("text/plain", "ready\n"),
                Err(why) => Response::new(503).content("text/plain", format!("{why}\n")),
            },
            Ok(AdminRoute::Metrics) => {
                let text = metrics::render(&self.0.gauges());
                Response::new(200).content("text/plain; version=0.0.4; charset=utf-8", text)
            }
            Err(error) => error_response::of_route(Shape::Api, &error),
        };
        if head.method == Method::Head {
            response.drop_body();
        }
        response
    }

    fn body_limit(&self, _: &RequestHead) -> Option<u64> {
        None
    }
}
