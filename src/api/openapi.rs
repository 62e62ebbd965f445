//! `GET /openapi.json`: what the container request API takes and answers, for people and for their tools. The registry API is
//! described by the distribution specification.

use super::Response;

const DESCRIPTION: &str = include_str!("openapi.json");

pub(super) fn description() -> Response {
    Response::new(200).content("application/json", DESCRIPTION)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{
        api::{
            route::{Route, RouteError},
            status::API_VERSION,
        },
        http::Method,
    };

    fn described() -> Value {
        serde_json::from_str(DESCRIPTION).expect("JSON")
    }

    #[test]
    fn what_is_described_is_routed() {
        let described = described();
        let paths = described["paths"].as_object().expect("paths");
        for (path, methods) in paths {
            let path = path
                .replace("{token}", "0123456789ab")
                .replace("{id}", "bd-0123456789abcdef_1");
            for name in methods.as_object().expect("methods").keys() {
                let method = match name.as_str() {
                    "get" => Method::Get,
                    "post" => Method::Post,
                    "delete" => Method::Delete,
                    other => panic!("{path}: {other}"),
                };
                match Route::parse(method, &path) {
                    Ok(_) | Err(RouteError::UnknownRecord { .. }) => {}
                    Err(error) => panic!("{name} {path}: {error}"),
                }
            }
        }
        assert_eq!(described["info"]["version"], API_VERSION);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn look(value: &Value, whole: &Value) {
            match value {
                Value::Object(members) => {
                    if let Some(Value::String(reference)) = members.get("$ref") {
                        let pointer = reference.trim_start_matches('#');
                        assert!(whole.pointer(pointer).is_some(), "{reference}");
                    }
                    members.values().for_each(|value| look(value, whole));
                }
                Value::Array(values) => values.iter().for_each(|value| look(value, whole)),
                _ => {}
            }
        }
        let described = described();
        look(&described, &described);
    }
}
