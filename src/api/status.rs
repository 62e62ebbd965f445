//! Small answers about the service itself, to clients and to its operator.

use serde_json::json;

use super::Response;

/// Clients compare it with the versions they know, so it must be a plain semantic version of the API that we speak,
/// not our own.
pub(super) const API_VERSION: &str = "1.37.0";

pub(super) fn service_info() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    Response::new(200).json(&json!({
        "serviceInfo": {"version": API_VERSION, "commitId": format!("tidegate-{version}")}
    }))
}

pub(super) fn health() -> Response {
    Response::new(200).json(&json!({"status": "UP"}))
}

pub(super) fn landing(url: &str) -> Response {
    let text = format!(
        "tidegate {version}, a registry proxy.\n\n\
         Ask for an ephemeral name:\n\n  \
         curl -s {url}/v1alpha2/container -H 'content-type: application/json' \\\n       \
         -d '{{\"containerImage\":\"docker.io/library/alpine:3.20\"}}'\n\n\
         and pull the targetImage of the answer with any container runtime.\n",
        version = env!("CARGO_PKG_VERSION"),
    );
    Response::new(200).content("text/plain; charset=utf-8", text)
}

pub(super) fn admin_landing() -> Response {
    let text = concat!(
        "tidegate ",
        env!("CARGO_PKG_VERSION"),
        ", its operator's address. Images and names are at the others (listener.addresses).\n\n  \
         /livez     is the process alive\n  \
         /readyz    does it take connections\n  \
         /metrics   for Prometheus\n  \
         /jobs      mirrors and freezes that wait and run, as in `tidegate jobs`\n  \
         /cache/…   what `tidegate cache` uses\n  \
         /credentials/explain   what `tidegate creds explain` uses\n",
    );
    Response::new(200).content("text/plain; charset=utf-8", text)
}
