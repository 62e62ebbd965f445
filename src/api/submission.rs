//! A container request as clients post it, and the rules it must keep. Pure: who the caller is and whether the image
//! exists is found out elsewhere.
//!
//! Unknown properties are ignored and an explicit `null` is an absent one: known clients send both.

use serde::Deserialize;

use super::{layers::PostedLayer, route::ApiVersion};
use crate::{
    credentials::Claim,
    oci::{Platform, Reference, TagOrDigest},
    secret::Secret,
};

const LONGEST_LAYER: usize = 14_000_000;
const MOST_INCLUDES: usize = 10;
/// What a kernel passes to a program is bounded, at 2 MiB mostly; a request is kept in memory and on disk.
const LARGEST_SETTINGS: usize = 256 << 10;
/// Well above any Platform's; both are kept with the request.
const LONGEST_RUN_ID: usize = 256;
const LONGEST_REFRESH_TOKEN: usize = 64 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Submission {
    pub tower_access_token: Option<Secret<String>>,
    pub tower_refresh_token: Option<Secret<String>>,
    pub tower_endpoint: Option<String>,
    pub tower_workspace_id: Option<i64>,
    pub workflow_id: Option<String>,
    pub container_image: Option<String>,
    pub container_platform: Option<String>,
    pub fingerprint: Option<String>,
    pub timestamp: Option<String>,
    container_file: Option<String>,
    container_config: Option<ContainerConfig>,
    container_includes: Option<Vec<String>>,
    packages: Option<serde_json::Value>,
    conda_file: Option<String>,
    build_repository: Option<String>,
    build_context: Option<serde_json::Value>,
    freeze: Option<bool>,
    mirror: Option<bool>,
    format: Option<String>,
    name_strategy: Option<NameStrategy>,
    scan_mode: Option<ScanMode>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerConfig {
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) cmd: Option<Vec<String>>,
    pub(super) env: Option<Vec<String>>,
    pub(super) working_dir: Option<String>,
    pub(super) layers: Option<Vec<PostedLayer>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum NameStrategy {
    None,
    TagPrefix,
    ImageSuffix,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ScanMode {
    None,
    Async,
    Required,
}

/// Why a submission is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejection {
    #[error("{0}")]
    Invalid(String),
    /// Part of the API, and not of this server.
    #[error(
        "{0} is not supported by this server; it serves a containerImage, with a containerConfig and containerIncludes if you like"
    )]
    Unsupported(&'static str),
}

/// What is left of a submission that keeps the rules.
pub(super) struct Plain {
    pub image: Reference,
    pub platform: Option<Platform>,
    pub additions: Option<Additions>,
}

/// What is to be put on the image.
pub(super) struct Additions {
    pub config: ContainerConfig,
    pub includes: Vec<Reference>,
}

fn invalid(message: impl Into<String>) -> Rejection {
    Rejection::Invalid(message.into())
}

impl Submission {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Rejection> {
        if body.is_empty() {
            return Err(invalid(
                "the body is empty; it should be a container request in JSON",
            ));
        }
        serde_json::from_slice(body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            // The error may quote what it met, which may be a token. What it expected comes after that.
            let text = error.to_string();
            let expected = text
                .rsplit_once("expected ")
                .and_then(|(_, rest)| rest.split(" at line ").next());
            let at = match (field_before(body, line, column), expected) {
                (Some(field), Some(expected)) => format!("{field} must be {expected}, "),
                (Some(field), None) => format!("near {field}, "),
                (None, _) => String::new(),
            };
            invalid(format!(
                "the body is not a container request in JSON: {at}line {line}, column {column}"
            ))
        })
    }

    pub(super) fn claim(&self) -> Claim {
        Claim {
            access_token: self.tower_access_token.clone(),
            refresh_token: self
                .tower_refresh_token
                .clone()
                .filter(|token| !token.expose().is_empty()),
            endpoint: present(&self.tower_endpoint).map(str::to_owned),
            workspace: self.tower_workspace_id,
            workflow_id: present(&self.workflow_id).map(str::to_owned),
        }
    }

    /// The rules that need not know who asks. The order decides which message wins.
    pub(super) fn check_before_identity(&self, version: ApiVersion) -> Result<(), Rejection> {
        for (number, layer) in self.layers().iter().enumerate() {
            if layer
                .location
                .as_ref()
                .is_some_and(|location| location.len() > LONGEST_LAYER)
            {
                let number = number + 1;
                return Err(invalid(format!(
                    "layer {number} is longer than {LONGEST_LAYER} characters"
                )));
            }
        }
        if let Some(image) = present(&self.container_image) {
            image
                .parse::<Reference>()
                .map_err(|error| invalid(format!("containerImage: {error}")))?;
        }
        if present(&self.workflow_id).is_some_and(|id| id.len() > LONGEST_RUN_ID) {
            return Err(invalid("workflowId is too long to be one"));
        }
        let refresh_token = self.tower_refresh_token.as_ref();
        if refresh_token.is_some_and(|token| token.expose().len() > LONGEST_REFRESH_TOKEN) {
            return Err(invalid("towerRefreshToken is too long to be one"));
        }
        if self.is_mirror() {
            self.check_mirror(version)?;
        }
        let config = self.container_config.as_ref();
        if config.is_some_and(|config| config.settings_size() > LARGEST_SETTINGS) {
            return Err(invalid(format!(
                "containerConfig has more than {LARGEST_SETTINGS} bytes of entrypoint, cmd, env and workingDir"
            )));
        }
        Ok(())
    }

    /// A copy stays as it is.
    fn check_mirror(&self, version: ApiVersion) -> Result<(), Rejection> {
        let includes = self.container_includes.as_ref();
        let config = self.container_config.as_ref();
        for (is_wrong, message) in [
            (
                version == ApiVersion::V1Alpha1,
                "mirror needs the endpoint /v1alpha2/container",
            ),
            (
                includes.is_some_and(|includes| !includes.is_empty()),
                "mirror and containerIncludes exclude each other",
            ),
            (
                config.is_some_and(|config| !config.is_empty()),
                "mirror and containerConfig exclude each other",
            ),
        ] {
            if is_wrong {
                return Err(invalid(message));
            }
        }
        Ok(())
    }

    /// The rules that come after it.
    pub(super) fn into_plain(self, version: ApiVersion) -> Result<Plain, Rejection> {
        let container_file = present(&self.container_file);
        match version {
            ApiVersion::V1Alpha2 => {
                if container_file.is_some() && self.packages.is_some() {
                    return Err(invalid("containerFile and packages exclude each other"));
                }
                if present(&self.conda_file).is_some() {
                    return Err(invalid(
                        "condaFile belongs to the endpoint /container-token; use packages here",
                    ));
                }
            }
            ApiVersion::V1Alpha1 => {
                if self.packages.is_some() {
                    return Err(invalid("packages need the endpoint /v1alpha2/container"));
                }
                if self.name_strategy.is_some() {
                    return Err(invalid(
                        "nameStrategy needs the endpoint /v1alpha2/container",
                    ));
                }
            }
        }
        let (freeze, is_mirror) = (self.freeze.unwrap_or_default(), self.is_mirror());
        if freeze && present(&self.build_repository).is_none() && self.packages.is_none() {
            return Err(invalid("freeze needs a buildRepository to push to"));
        }
        let platform = present(&self.container_platform)
            .map(|text| {
                text.parse::<Platform>()
                    .map_err(|error| invalid(format!("containerPlatform: {error}")))
            })
            .transpose()?;
        let image = present(&self.container_image);
        let is_build = container_file.is_some()
            || self.packages.is_some()
            || present(&self.conda_file).is_some();
        let image = match image {
            None if !is_build => return Err(invalid("containerImage is missing")),
            Some(_) if container_file.is_some() => {
                return Err(invalid(
                    "containerImage and containerFile exclude each other",
                ));
            }
            image => image,
        };
        let reference = image
            .map(|text| {
                text.parse::<Reference>()
                    .map_err(|error| invalid(format!("containerImage: {error}")))
            })
            .transpose()?;
        let has_config = self
            .container_config
            .as_ref()
            .is_some_and(|config| !config.is_empty());
        let is_digest = reference
            .as_ref()
            .is_some_and(|image| matches!(image.version, TagOrDigest::Digest(_)));
        let includes = self.container_includes.unwrap_or_default();
        let is_changed = has_config || !includes.is_empty();
        if is_digest && is_changed && !freeze {
            return Err(invalid(
                "an image named by digest cannot have a containerConfig or containerIncludes: its digest would change",
            ));
        }
        let is_singularity = present(&self.format) == Some("sif");
        if is_singularity && !freeze {
            return Err(invalid("format sif needs freeze"));
        }
        if includes.len() > MOST_INCLUDES {
            return Err(invalid(format!(
                "containerIncludes has {} images; {MOST_INCLUDES} is the most",
                includes.len()
            )));
        }
        let includes = includes
            .iter()
            .map(|text| {
                text.parse::<Reference>()
                    .map_err(|error| invalid(format!("containerIncludes: {error}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        for (is_asked, what) in [
            (self.scan_mode.is_some(), "scanMode"),
            (is_mirror, "mirror"),
            (is_build, "building (containerFile, packages, condaFile)"),
            (freeze, "freeze"),
            (self.build_context.is_some(), "buildContext"),
        ] {
            if is_asked {
                return Err(Rejection::Unsupported(what));
            }
        }
        let Some(image) = reference else {
            return Err(invalid("containerImage is missing"));
        };
        let additions = is_changed.then(|| Additions {
            config: self.container_config.unwrap_or_default(),
            includes,
        });
        Ok(Plain {
            image,
            platform,
            additions,
        })
    }

    fn is_mirror(&self) -> bool {
        self.mirror.unwrap_or_default()
    }

    fn layers(&self) -> &[PostedLayer] {
        self.container_config
            .as_ref()
            .and_then(|config| config.layers.as_deref())
            .unwrap_or_default()
    }
}

impl ContainerConfig {
    fn settings_size(&self) -> usize {
        let lists = [&self.entrypoint, &self.cmd, &self.env];
        let texts = lists.into_iter().flatten().flatten();
        let texts = texts.chain(&self.working_dir);
        // Each costs its quotes and comma too.
        texts.map(|text| text.len() + 3).sum()
    }

    /// A configuration whose fields are all null or empty counts as absent.
    fn is_empty(&self) -> bool {
        let none = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
        none(&self.entrypoint)
            && none(&self.cmd)
            && none(&self.env)
            && present(&self.working_dir).is_none()
            && self.layers.as_ref().is_none_or(Vec::is_empty)
    }
}

/// The last property's name before a place in the body; names are the API's, not secrets, if they are among them.
fn field_before(body: &[u8], line: usize, column: usize) -> Option<&str> {
    let start: usize = body
        .split_inclusive(|byte| *byte == b'\n')
        .take(line.checked_sub(1)?)
        .map(<[u8]>::len)
        .sum();
    let before = str::from_utf8(body.get(..(start + column).min(body.len()))?).ok()?;
    let name = before.get(..before.rfind("\":")?)?.rsplit('"').next()?;
    let is_name =
        !name.is_empty() && name.len() <= 32 && name.bytes().all(|byte| byte.is_ascii_alphabetic());
    is_name.then_some(name)
}

/// Empty counts as absent.
fn present(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(version: ApiVersion, body: &str) -> Result<Plain, Rejection> {
        let submission = Submission::parse(body.as_bytes())?;
        submission.check_before_identity(version)?;
        submission.into_plain(version)
    }

    #[test]
    fn plain_images_pass() {
        for body in [
            r#"{"containerImage":"alpine"}"#,
            r#"{"containerImage":"quay.io/a/b:1","unknown":[1],"freeze":null,"mirror":false,"containerConfig":null}"#,
            r#"{"containerImage":"alpine","containerConfig":{"env":[],"layers":null,"workingDir":""},"containerIncludes":[]}"#,
            r#"{"containerImage":"alpine","containerPlatform":"arm64","containerFile":"","towerWorkspaceId":null}"#,
        ] {
            for version in [ApiVersion::V1Alpha1, ApiVersion::V1Alpha2] {
                assert!(judge(version, body).is_ok(), "{body}");
            }
        }
    }

    #[test]
    fn what_is_to_be_put_on_an_image_is_told_from_nothing() {
        for (body, is_changed) in [
            (r#"{"containerImage":"a","containerConfig":{}}"#, false),
            (
                r#"{"containerImage":"a","containerConfig":{"cmd":[],"env":null}}"#,
                false,
            ),
            (
                r#"{"containerImage":"a","containerConfig":{"cmd":["x"]}}"#,
                true,
            ),
            (
                r#"{"containerImage":"a","containerConfig":{"workingDir":"/x"}}"#,
                true,
            ),
            (
                r#"{"containerImage":"a","containerConfig":{"layers":[{"location":"data:x"}]}}"#,
                true,
            ),
            (r#"{"containerImage":"a","containerIncludes":["b"]}"#, true),
        ] {
            let plain = judge(ApiVersion::V1Alpha2, body);
            let plain = plain.unwrap_or_else(|error| panic!("{body}: {error}"));
            assert_eq!(plain.additions.is_some(), is_changed, "{body}");
        }
    }

    #[test]
    fn what_breaks_a_rule_is_told_which() {
        use ApiVersion::{V1Alpha1, V1Alpha2};
        let digest = format!("sha256:{}", "0".repeat(64));
        let long = format!(
            r#"{{"containerConfig":{{"layers":[{{"location":"{}"}}]}}}}"#,
            "x".repeat(LONGEST_LAYER + 1)
        );
        for (version, body, expected) in [
            (V1Alpha2, "{".to_owned(), "not a container request"),
            (V1Alpha2, "[]".to_owned(), "not a container request"),
            (
                V1Alpha2,
                r#"{"containerImage":1}"#.to_owned(),
                "not a container request",
            ),
            (
                V1Alpha2,
                r#"{"containerImage":"a","scanMode":"maybe"}"#.to_owned(),
                "not a container request",
            ),
            (
                V1Alpha2,
                r#"{"containerImage":"a","nameStrategy":"odd"}"#.to_owned(),
                "not a container request",
            ),
            (V1Alpha2, "{}".to_owned(), "containerImage is missing"),
            (
                V1Alpha2,
                r#"{"containerImage":""}"#.to_owned(),
                "containerImage is missing",
            ),
            (
                V1Alpha2,
                r#"{"containerImage":"docker://alpine"}"#.to_owned(),
                "is a URL",
            ),
            (
                V1Alpha2,
                r#"{"containerImage":"oras://a/b"}"#.to_owned(),
                "is a URL",
            ),
            (
                V1Alpha2,
                r#"{"containerImage":"al pine"}"#.to_owned(),
                "is not a repository",
            ),
            (
                V1Alpha2,
                r#"{"containerImage":"host:x/a"}"#.to_owned(),
                "host name",
            ),
            (V1Alpha2, long, "layer 1"),
            (
                V1Alpha2,
                r#"{"containerImage":"a","containerFile":"Zg=="}"#.to_owned(),
                "exclude each other",
            ),
            (
                V1Alpha2,
                r#"{"containerFile":"Zg==","packages":{}}"#.to_owned(),
                "exclude each other",
            ),
            (V1Alpha2, r#"{"condaFile":"Zg=="}"#.to_owned(), "condaFile"),
            (V1Alpha1, r#"{"packages":{}}"#.to_owned(), "packages"),
            (
                V1Alpha1,
                r#"{"containerImage":"a","nameStrategy":"none"}"#.to_owned(),
                "nameStrategy",
            ),
            (
                V1Alpha1,
                r#"{"containerImage":"a","mirror":true}"#.to_owned(),
                "mirror",
            ),
            (
                V1Alpha2,
                r#"{"containerImage":"a","freeze":true}"#.to_owned(),
                "buildRepository",
            ),
            (
                V1Alpha2,
                r#"{"containerImage":"a","containerPlatform":"vax"}"#.to_owned(),
                "containerPlatform",
            ),
            (
                V1Alpha2,
                r#"{"containerImage":"a","format":"sif"}"#.to_owned(),
                "needs freeze",
            ),
            (
                V1Alpha2,
                format!(r#"{{"containerImage":"a@{digest}","containerConfig":{{"env":["A=b"]}}}}"#),
                "digest would change",
            ),
            (
                V1Alpha2,
                format!(
                    r#"{{"containerImage":"a","containerIncludes":[{}"b"]}}"#,
                    r#""b","#.repeat(10)
                ),
                "10 is the most",
            ),
            (
                V1Alpha2,
                r#"{"containerImage":"a","containerIncludes":["https://b"]}"#.to_owned(),
                "containerIncludes: ",
            ),
            (
                V1Alpha2,
                format!(r#"{{"containerImage":"a@{digest}","containerIncludes":["b"]}}"#),
                "digest would change",
            ),
            (
                V1Alpha2,
                r#"{"containerImage":"a","mirror":true,"containerIncludes":["b"]}"#.to_owned(),
                "mirror and containerIncludes",
            ),
            (
                V1Alpha2,
                r#"{"containerImage":"a","mirror":true,"containerConfig":{"cmd":["b"]}}"#
                    .to_owned(),
                "mirror and containerConfig",
            ),
            (
                V1Alpha2,
                format!(
                    r#"{{"containerImage":"a","containerConfig":{{"env":["A={}"]}}}}"#,
                    "x".repeat(LARGEST_SETTINGS)
                ),
                "bytes of entrypoint, cmd, env",
            ),
        ] {
            match judge(version, &body) {
                Err(Rejection::Invalid(message)) => {
                    assert!(message.contains(expected), "{message}")
                }
                Err(other) => panic!("{}: {other:?}", body.get(..200).unwrap_or(&body)),
                Ok(_) => panic!("{}: taken", body.get(..200).unwrap_or(&body)),
            }
        }
    }

    #[test]
    fn what_is_not_there_yet_says_so() {
        for (body, what) in [
            (
                r#"{"containerImage":"a","freeze":true,"buildRepository":"quay.io/a/b"}"#,
                "freeze",
            ),
            (
                r#"{"containerImage":"a","mirror":true,"buildRepository":"quay.io/a/b"}"#,
                "mirror",
            ),
            (r#"{"containerFile":"Zg=="}"#, "building"),
            (r#"{"packages":{"type":"CONDA"}}"#, "building"),
            (r#"{"containerImage":"a","scanMode":"none"}"#, "scanMode"),
        ] {
            match judge(ApiVersion::V1Alpha2, body) {
                Err(Rejection::Unsupported(named)) => assert!(named.starts_with(what), "{named}"),
                Err(other) => panic!("{body}: {other:?}"),
                Ok(_) => panic!("{body}: taken"),
            }
        }
    }

    #[test]
    fn a_malformed_body_is_not_quoted() {
        let Err(error) = Submission::parse(br#"{"towerAccessToken":"hunter2","freeze":"hunter2"}"#)
        else {
            panic!("taken")
        };
        let text = error.to_string();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("freeze must be a boolean"), "{text}");
    }
}
