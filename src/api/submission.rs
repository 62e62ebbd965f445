//! A container request as clients post it. The rules that it must keep are `validation`'s.
//!
//! Unknown properties are ignored and an explicit `null` is an absent one: known clients send both.

use serde::Deserialize;

use super::{json_body::parse_json, layers::PostedLayer};
use crate::{credentials::Claim, secret::Secret};

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
    pub(super) container_file: Option<String>,
    pub(super) container_config: Option<ContainerConfig>,
    pub(super) container_includes: Option<Vec<String>>,
    pub(super) packages: Option<Packages>,
    pub(super) conda_file: Option<String>,
    pub(super) build_repository: Option<String>,
    pub(super) cache_repository: Option<String>,
    pub(super) build_context: Option<PostedLayer>,
    pub(super) freeze: Option<bool>,
    pub(super) mirror: Option<bool>,
    pub(super) format: Option<Format>,
    pub(super) name_strategy: Option<NameStrategy>,
    pub(super) scan_mode: Option<ScanMode>,
    /// A plain request is the same with it: its name is given out.
    pub(super) dry_run: Option<bool>,
    // Nothing to us as long as we build nothing. They must have their types all the same: who gets one wrong learns it now.
    #[serde(rename = "buildTemplate")]
    _build_template: Option<String>,
    #[serde(rename = "buildCompression")]
    _build_compression: Option<BuildCompression>,
    #[serde(rename = "scanLevels")]
    _scan_levels: Option<Vec<ScanLevel>>,
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

/// Turned into a container file, where there is something that builds.
#[derive(Deserialize)]
pub(super) struct Packages {
    #[serde(rename = "type")]
    _kind: Option<PackageKind>,
    #[serde(rename = "environment")]
    _environment: Option<String>,
    #[serde(rename = "entries")]
    _entries: Option<Vec<String>>,
    #[serde(rename = "channels")]
    _channels: Option<Vec<String>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum PackageKind {
    Conda,
    Cran,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    Docker,
    /// Singularity.
    Sif,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum NameStrategy {
    None,
    TagPrefix,
    ImageSuffix,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ScanMode {
    None,
    Async,
    Required,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum ScanLevel {
    Low,
    Medium,
    High,
    Critical,
}

#[derive(Deserialize)]
struct BuildCompression {
    #[serde(rename = "mode")]
    _mode: Option<CompressionMode>,
    #[serde(rename = "level")]
    _level: Option<i64>,
    #[serde(rename = "force")]
    _force: Option<bool>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CompressionMode {
    Gzip,
    Estargz,
    Zstd,
}

/// Why a submission is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejection {
    #[error("{0}")]
    Invalid(String),
    /// Part of the API, and not of this server.
    #[error(
        "{0} is not supported by this server; it serves, mirrors and freezes a containerImage, with a containerConfig and \
         containerIncludes if you like, and builds nothing"
    )]
    Unsupported(&'static str),
}

impl Submission {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Rejection> {
        parse_json(body, "a container request").map_err(Rejection::Invalid)
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

    pub(super) fn is_mirror(&self) -> bool {
        self.mirror.unwrap_or_default()
    }

    pub(super) fn layers(&self) -> &[PostedLayer] {
        self.container_config
            .as_ref()
            .and_then(|config| config.layers.as_deref())
            .unwrap_or_default()
    }
}

impl ContainerConfig {
    pub(super) fn settings_size(&self) -> usize {
        let lists = [&self.entrypoint, &self.cmd, &self.env];
        let texts = lists.into_iter().flatten().flatten();
        let texts = texts.chain(&self.working_dir);
        // Each costs its quotes and comma too.
        texts.map(|text| text.len() + 3).sum()
    }

    /// A configuration whose fields are all null or empty counts as absent.
    pub(super) fn is_empty(&self) -> bool {
        let none = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
        none(&self.entrypoint)
            && none(&self.cmd)
            && none(&self.env)
            && present(&self.working_dir).is_none()
            && self.layers.as_ref().is_none_or(Vec::is_empty)
    }
}

/// Empty counts as absent.
pub(super) fn present(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}
