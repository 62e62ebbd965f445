#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::{
    api::route::{AdminRoute, ApiVersion, JobPart, Name, Route, Wish},
    http::{Method, percent_encode_query},
    mirror::jobs::JobId,
    requests::DurableKind,
};

const METHODS: [Method; 10] = [
    Method::Get,
    Method::Head,
    Method::Post,
    Method::Put,
    Method::Patch,
    Method::Delete,
    Method::Options,
    Method::Connect,
    Method::Trace,
    Method::Other,
];

fuzz_target!(|path: &str| {
    let _ = AdminRoute::parse(Method::Get, path);
    for method in METHODS {
        let Ok(route) = Route::parse(method, path) else {
            continue;
        };
        let printed = print(&route);
        match Route::parse(method, &printed) {
            Ok(again) => assert_eq!(again, route, "{printed}"),
            Err(error) => panic!("{printed}: {error}"),
        }
        if matches!(route, Route::Pair(_)) {
            // Its token may be any text, and becomes no path.
            continue;
        }
        // Nothing that could climb out of its place, whoever joins it to another path.
        assert!(!printed.contains("//") && !printed.contains('%'));
        assert!(!printed.split('/').any(|part| matches!(part, "." | "..")));
    }
});

fn print(route: &Route) -> String {
    match route {
        Route::Version => "/v2/".to_owned(),
        Route::Pull { name, wish } => {
            let name = match name {
                Name::Ephemeral { token, repository } => format!("wt/{token}/{repository}"),
                Name::Direct {
                    registry,
                    repository,
                } => format!("{registry}/{repository}"),
            };
            match wish {
                Wish::Manifest(version) => format!("/v2/{name}/manifests/{version}"),
                Wish::Blob(digest) => format!("/v2/{name}/blobs/{digest}"),
                Wish::TagList => format!("/v2/{name}/tags/list"),
                Wish::Referrers(digest) => format!("/v2/{name}/referrers/{digest}"),
            }
        }
        Route::SubmitContainer(ApiVersion::V1Alpha1) => "/container-token".to_owned(),
        Route::SubmitContainer(ApiVersion::V1Alpha2) => "/v1alpha2/container".to_owned(),
        Route::DescribeToken(token) | Route::RevokeToken(token) => {
            format!("/container-token/{token}")
        }
        Route::Record(token) => format!("/v1alpha2/container/{token}"),
        Route::Status(token) => format!("/v1alpha2/container/{token}/status"),
        Route::Inspect => "/v1alpha1/inspect".to_owned(),
        Route::CheckCredentials(ApiVersion::V1Alpha1) => "/validate-creds".to_owned(),
        Route::CheckCredentials(ApiVersion::V1Alpha2) => "/v1alpha2/validate-creds".to_owned(),
        Route::OpenApi => "/openapi.json".to_owned(),
        Route::Pair(token) => {
            let token = percent_encode_query(token.expose());
            format!("/pairing/tower/token/{token}")
        }
        Route::ContainerPage(token) => format!("/view/containers/{token}"),
        Route::InspectPage => "/view/inspect".to_owned(),
        Route::Job(id, part) => {
            let part = match part {
                JobPart::Record => "",
                JobPart::Status => "/status",
                JobPart::Log => "/logs",
            };
            format!("/v1alpha1/{}/{id}{part}", folder(id))
        }
        Route::JobPage(id) => format!("/view/{}/{id}", folder(id)),
        Route::ServiceInfo => "/service-info".to_owned(),
        Route::Health => "/health".to_owned(),
        Route::Landing => "/".to_owned(),
    }
}

fn folder(id: &JobId) -> &'static str {
    match id.kind() {
        DurableKind::Mirror => "mirrors",
        DurableKind::Freeze => "builds",
    }
}
