//! `POST /v1alpha1/inspect`: manifest and configuration of an image, with the caller's own credentials.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Api, Request, Response,
    error_response::{self, Shape},
    json_body::parse_json,
    record::{instant, without_nulls},
    submission::present,
};
use crate::{
    blocking::Errand,
    credentials::Claim,
    http::percent_decode,
    oci::{Platform, Reference, media_type},
    pull::Inspected,
    requests::ClientTime,
    secret::Secret,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Question {
    container_image: Option<String>,
    tower_access_token: Option<Secret<String>>,
    tower_refresh_token: Option<Secret<String>>,
    tower_endpoint: Option<String>,
    tower_workspace_id: Option<i64>,
}

impl Api {
    pub(super) async fn inspect(&self, request: &Request) -> Response {
        let question = match parse_json::<Question>(&request.body, "an inspection") {
            Ok(question) => question,
            Err(message) => return error_response::api(400, &message),
        };
        let (image, platform) = match wanted(&question, request.head.query()) {
            Ok(wanted) => wanted,
            Err(message) => return error_response::api(400, &message),
        };
        let claim = Claim {
            access_token: question.tower_access_token,
            refresh_token: question.tower_refresh_token,
            endpoint: question.tower_endpoint.filter(|it| !it.is_empty()),
            workspace: question.tower_workspace_id,
            workflow_id: None,
        };
        let caller = match self.identify(claim, request.client).await {
            Ok(caller) => Arc::new(caller),
            Err(refusal) => return refusal,
        };
        if let Err(refusal) = self.shared.quotas.take_request(&caller, request.client) {
            return refusal;
        }
        let inspected = match self.pull.inspect(&caller, &image, platform.as_ref()).await {
            Ok(inspected) => inspected,
            Err(error) => {
                tracing::info!(%caller, %image, %error, "an image could not be inspected");
                return error_response::of_inspection(&error);
            }
        };
        // Megabytes of JSON, perhaps.
        let shown = self.shared.pool.run(Errand::Hash, move || {
            show(&image, &inspected).map(|shown| serde_json::to_vec(&shown).unwrap_or_default())
        });
        match shown.await {
            Ok(Some(bytes)) => Response::new(200).content("application/json", Bytes::from(bytes)),
            Ok(None) => error_response::api(
                502,
                "the registry sent a manifest or a configuration that is not JSON of the expected shape",
            ),
            Err(error) => error_response::of_pool(Shape::Api, error),
        }
    }
}

fn wanted(
    question: &Question,
    query: Option<&str>,
) -> Result<(Reference, Option<Platform>), String> {
    let image = present(&question.container_image).ok_or("containerImage is missing")?;
    let image = image
        .parse()
        .map_err(|error| format!("containerImage: {error}"))?;
    let named = query
        .unwrap_or_default()
        .split('&')
        .find_map(|pair| pair.strip_prefix("platform="))
        .filter(|text| !text.is_empty());
    let Some(text) = named else {
        return Ok((image, None));
    };
    let text = percent_decode(text).ok_or("platform is not a text")?;
    if text.contains(',') {
        return Err("platform: one image is for one platform".to_owned());
    }
    let platform = text.parse();
    let platform = platform.map_err(|error| format!("platform: {error}"))?;
    Ok((image, Some(platform)))
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Manifest {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Named>,
    layers: Option<Vec<Named>>,
    manifests: Option<Vec<Named>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    media_type: Option<String>,
    digest: Option<String>,
    size: Option<u64>,
    annotations: Option<BTreeMap<String, String>>,
    platform: Option<OfPlatform>,
}

#[derive(Deserialize, Serialize)]
struct OfPlatform {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
}

#[derive(Deserialize, Serialize)]
struct Config {
    architecture: Option<String>,
    config: Option<Settings>,
    container: Option<String>,
    created: Option<String>,
    rootfs: Option<RootFs>,
}

/// Of a container: Docker writes them in one way, and this API in another.
#[derive(Deserialize, Serialize)]
#[serde(rename_all(deserialize = "PascalCase", serialize = "camelCase"))]
struct Settings {
    #[serde(rename(deserialize = "Hostname"))]
    host_name: Option<String>,
    #[serde(rename(deserialize = "Domainname"))]
    domain_name: Option<String>,
    user: Option<String>,
    attach_stdin: Option<bool>,
    attach_stdout: Option<bool>,
    attach_stderr: Option<bool>,
    tty: Option<bool>,
    env: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    image: Option<String>,
    working_dir: Option<String>,
    entrypoint: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: Option<String>,
    diff_ids: Option<Vec<String>>,
}

/// `None`: the bytes are not what they should be.
fn show(image: &Reference, inspected: &Inspected) -> Option<Value> {
    let mut manifest: Manifest = serde_json::from_slice(&inspected.manifest).ok()?;
    let media_type = inspected.media_type.as_str();
    manifest.media_type = Some(media_type.to_owned());
    let digest = inspected.digest.to_string();
    if manifest.manifests.is_some() {
        return Some(without_nulls(json!({
            "index": {
                "schemaVersion": manifest.schema_version,
                "mediaType": media_type,
                "digest": digest,
                "manifests": manifest.manifests,
            }
        })));
    }
    let config = match &inspected.config {
        Some(bytes) => {
            let mut config: Config = serde_json::from_slice(bytes).ok()?;
            // Clients take no other zone than UTC.
            let created = config.created.and_then(|text| text.parse().ok());
            config.created = created.map(|time: ClientTime| instant(time.instant));
            Some(config)
        }
        None => None,
    };
    Some(without_nulls(json!({
        "container": {
            "registry": image.registry.as_str(),
            "hostName": inspected.host,
            "imageName": image.repository.to_string(),
            "reference": image.version.to_string(),
            "digest": digest,
            "config": config,
            "manifest": manifest,
            "v1": false,
            "v2": media_type == media_type::DOCKER_MANIFEST,
            "oci": media_type == media_type::OCI_MANIFEST,
        }
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn shown(media_type: &str, manifest: &str, config: Option<&str>) -> Option<Value> {
        let image = "quay.io/acme/app:v1".parse().expect("an image");
        let inspected = Inspected {
            host: "https://quay.io".to_owned(),
            digest: Digest::of(manifest.as_bytes()),
            media_type: media_type.to_owned(),
            manifest: manifest.to_owned().into(),
            config: config.map(|config| config.as_bytes().to_vec()),
        };
        show(&image, &inspected)
    }

    #[test]
    fn a_configuration_is_told_in_the_words_of_the_api() {
        let manifest = r#"{"schemaVersion":2,"config":{"mediaType":"c","digest":"sha256:x","size":2},"layers":[{"mediaType":"l","size":0}],"annotations":{}}"#;
        let config = r#"{"architecture":"arm64","created":"2026-03-04T06:06:07+01:00",
            "config":{"Hostname":"","Domainname":"d","User":"u","AttachStdin":false,"Env":["A=b"],"Cmd":null,"WorkingDir":"/w","Entrypoint":["e"],"Labels":{"l":"m"},"Other":1},
            "rootfs":{"type":"layers","diff_ids":["sha256:y"]},"history":[]}"#;
        let shown = shown(media_type::OCI_MANIFEST, manifest, Some(config)).expect("JSON");
        assert_eq!(
            shown["container"]["config"],
            json!({
                "architecture": "arm64",
                "created": "2026-03-04T05:06:07.000000000Z",
                "config": {"domainName": "d", "user": "u", "attachStdin": false, "env": ["A=b"], "workingDir": "/w",
                    "entrypoint": ["e"], "labels": {"l": "m"}},
                "rootfs": {"type": "layers", "diff_ids": ["sha256:y"]},
            })
        );
        assert_eq!(
            shown["container"]["manifest"],
            json!({
                "schemaVersion": 2,
                "mediaType": media_type::OCI_MANIFEST,
                "config": {"mediaType": "c", "digest": "sha256:x", "size": 2},
                "layers": [{"mediaType": "l", "size": 0}],
            })
        );
        assert_eq!(shown["container"]["oci"], json!(true));
        assert_eq!(shown["container"]["v2"], json!(false));
    }

    #[test]
    fn what_is_no_image_is_not_shown() {
        for (manifest, config) in [
            ("{}", Some("7")),
            (r#"{"layers":7}"#, None),
            (r#"{"schemaVersion":"x"}"#, None),
        ] {
            let shown = shown(media_type::OCI_MANIFEST, manifest, config);
            assert!(shown.is_none(), "{manifest} {config:?}: {shown:?}");
        }
    }

    #[test]
    fn a_platform_is_one() {
        let question = |image: Option<&str>| Question {
            container_image: image.map(str::to_owned),
            tower_access_token: None,
            tower_refresh_token: None,
            tower_endpoint: None,
            tower_workspace_id: None,
        };
        for (image, query, expected) in [
            (Some("a"), None, Ok(None)),
            (Some("a"), Some("platform="), Ok(None)),
            (
                Some("a"),
                Some("x=1&platform=linux%2Farm64"),
                Ok(Some("linux/arm64")),
            ),
            (Some("a"), Some("platform=arm64"), Ok(Some("linux/arm64"))),
            (Some("a"), Some("platform=amd64,arm64"), Err("one platform")),
            (Some("a"), Some("platform=vax"), Err("not a platform")),
            (Some("a"), Some("platform=%ff"), Err("not a text")),
            (Some("https://a"), None, Err("is a URL")),
            (Some(""), None, Err("containerImage is missing")),
            (None, None, Err("containerImage is missing")),
        ] {
            match (wanted(&question(image), query), expected) {
                (Ok((_, platform)), Ok(expected)) => {
                    let platform = platform.map(|platform| platform.to_string());
                    assert_eq!(platform.as_deref(), expected, "{query:?}");
                }
                (Err(message), Err(expected)) => assert!(message.contains(expected), "{message}"),
                (other, _) => panic!("{image:?} {query:?}: {other:?}"),
            }
        }
    }
}
