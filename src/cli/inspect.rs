//! `tidegate inspect`: what an image is, asked of a server, which sees it with the caller's logins.

use std::{fmt::Write as _, process::ExitCode};

use serde::Deserialize as _;
use serde_json::{Value, json};

use super::{
    MISCONFIGURED,
    output::{Output, yaml},
    print_line,
    service::{ServiceArguments, ServiceError, SetupError, printable},
};
use crate::{
    api::inspection::{Container, ImageConfig, Index, Inspection, RunConfig},
    http::percent_encode_query,
    secret::Secret,
    units::ByteSize,
};

const EXAMPLES: &str = "\
Examples:
  tidegate inspect alpine
      Which platforms there are; or of an image for one platform what it runs and what it is made of.
  tidegate inspect alpine --platform linux/arm64
  tidegate inspect quay.io/acme/app:v1 --token-file ada.token --server https://tidegate.example.com
      As Ada. `tidegate request --help` has the environment variables, which are the same.
  tidegate inspect alpine --platform amd64 -o json | jq -r '.container.manifest.layers[].digest'

-o json is what the server answers: {container: {registry, imageName, reference, digest, config, manifest, …}}, or {index:
{mediaType, digest, manifests: [{digest, size, platform}]}} where there are several platforms and none was asked for.
Exit codes: 0 told; 1 the server does not say, or cannot be reached; 2 wrong arguments.";

/// Say what an image is: digest, platforms, configuration, layers.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The image: quay.io/acme/app:v1
    image: String,

    /// The image for this platform, if there are several: linux/arm64
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,

    /// For people or for programs
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,

    #[command(flatten)]
    service: ServiceArguments,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("the server's answer is no inspection: {0}")]
    Strange(#[from] serde_json::Error),
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let told = arguments.inspect().and_then(|answer| {
        Ok(match arguments.output {
            Output::Text => summary(&Inspection::deserialize(&answer)?),
            Output::Json => answer.to_string(),
            Output::Yaml => yaml(&answer),
        })
    });
    match told {
        Ok(text) => print_line(text.trim_end()),
        Err(failure) => {
            eprintln!("tidegate: {failure}");
            match failure {
                Failure::Setup(_) => ExitCode::from(MISCONFIGURED),
                Failure::Service(_) | Failure::Strange(_) => ExitCode::FAILURE,
            }
        }
    }
}

impl Arguments {
    fn inspect(&self) -> Result<Value, Failure> {
        let (service, identity) = self.service.open()?;
        let mut question = json!({
            "containerImage": self.image,
            "towerAccessToken": identity.token.as_ref().map(Secret::expose),
            "towerEndpoint": identity.tower_endpoint,
            "towerWorkspaceId": identity.workspace,
        });
        if let Value::Object(fields) = &mut question {
            fields.retain(|_, value| !value.is_null());
        }
        let question = Secret::new(question.to_string());
        let path = match &self.platform {
            Some(platform) => format!(
                "/v1alpha1/inspect?platform={}",
                percent_encode_query(platform)
            ),
            None => "/v1alpha1/inspect".to_owned(),
        };
        Ok(service.post(&path, &question)?)
    }
}

fn summary(inspection: &Inspection) -> String {
    let mut summary = Summary::default();
    if let Some(container) = &inspection.container {
        summary.container(container);
    }
    if let Some(index) = &inspection.index {
        summary.index(index);
    }
    summary.0
}

#[derive(Default)]
struct Summary(String);

impl Summary {
    /// Images come from anywhere, and a terminal obeys what they say.
    fn line(&mut self, name: &str, said: &str) {
        if !said.is_empty() {
            let _ = writeln!(self.0, "{name:<11} {}", printable(said));
        }
    }

    fn lines(&mut self, name: &str, said: impl IntoIterator<Item = String>) {
        let mut name = name;
        for said in said {
            self.line(name, &said);
            name = "";
        }
    }

    fn container(&mut self, container: &Container) {
        self.line("image", &container.image());
        self.line("digest", &container.digest);
        if let Some(manifest) = &container.manifest {
            self.line("type", manifest.media_type.as_deref().unwrap_or_default());
            let artifact_type = manifest.artifact_type.as_deref();
            self.line("artifact", artifact_type.unwrap_or_default());
        }
        if let Some(config) = &container.config {
            self.config(config);
        }
        let layers = container.layers();
        let total = container.size_of_layers();
        self.line(
            "layers",
            &format!("{}, {}", layers.len(), ByteSize(total).rounded()),
        );
        for layer in layers {
            let size = ByteSize(layer.size).rounded();
            self.line("", &format!("{size:>8}  {}", layer.digest));
        }
    }

    fn config(&mut self, config: &ImageConfig) {
        self.line("platform", &config.platform());
        self.line("created", config.created.as_deref().unwrap_or_default());
        let Some(RunConfig {
            user,
            env,
            cmd,
            working_dir,
            entrypoint,
            labels,
        }) = &config.config
        else {
            return;
        };
        self.line("entrypoint", &words(entrypoint));
        self.line("cmd", &words(cmd));
        self.line("workdir", working_dir.as_deref().unwrap_or_default());
        self.line("user", user.as_deref().unwrap_or_default());
        self.lines("env", env.iter().flatten().cloned());
        let labels = labels.iter().flatten();
        self.lines(
            "labels",
            labels.map(|(name, value)| format!("{name}={value}")),
        );
    }

    fn index(&mut self, index: &Index) {
        self.line("digest", index.digest.as_deref().unwrap_or_default());
        self.line("type", index.media_type.as_deref().unwrap_or_default());
        let images = index.manifests.iter().flatten();
        self.lines(
            "platforms",
            images.map(|image| format!("{:<16} {}", image.platform(), image.digest)),
        );
        self.line("", "--platform shows one of them");
    }
}

/// As they are typed in a Dockerfile, so that blanks in words can be seen.
fn words(words: &Option<Vec<String>>) -> String {
    match words.as_deref() {
        None | Some([]) => String::new(),
        Some(words) => json!(words).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_told_top_down() {
        let inspection = json!({"container": {
            "registry": "docker.io", "hostName": "https://registry-1.docker.io",
            "imageName": "library/alpine", "reference": "latest", "digest": "sha256:aa",
            "config": {"architecture": "amd64", "created": "2026-01-02T03:04:05Z", "config": {
                "env": ["PATH=/bin", "EVIL=\u{1b}[2J"], "cmd": ["/bin/sh", "-c", "a b"],
                "entrypoint": null, "labels": {"a": "b"}, "workingDir": "/w", "tty": false,
            }},
            "manifest": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": [
                {"digest": "sha256:bb", "size": 3_500_000}, {"digest": "sha256:cc", "size": 32},
            ]},
            "v1": false,
        }});
        let inspection = Inspection::deserialize(&inspection).expect("an inspection");
        let expected = "\
image       docker.io/library/alpine:latest
digest      sha256:aa
type        application/vnd.oci.image.manifest.v1+json
platform    linux/amd64
created     2026-01-02T03:04:05Z
cmd         [\"/bin/sh\",\"-c\",\"a b\"]
workdir     /w
env         PATH=/bin
            EVIL= [2J
labels      a=b
layers      2, 3.3MiB
              3.3MiB  sha256:bb
                 32B  sha256:cc
";
        assert_eq!(summary(&inspection), expected);
    }

    #[test]
    fn an_index_lists_its_platforms() {
        let inspection = json!({"index": {
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "digest": "sha256:aa",
            "manifests": [
                {"digest": "sha256:bb", "size": 7, "platform": {"architecture": "amd64", "os": "linux"}},
                {"digest": "sha256:cc", "size": 7, "platform": {"architecture": "arm", "os": "linux", "variant": "v7"}},
            ],
        }});
        let inspection = Inspection::deserialize(&inspection).expect("an inspection");
        let expected = "\
digest      sha256:aa
type        application/vnd.oci.image.index.v1+json
platforms   linux/amd64      sha256:bb
            linux/arm/v7     sha256:cc
            --platform shows one of them
";
        assert_eq!(summary(&inspection), expected);
    }
}
