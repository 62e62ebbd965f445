//! `tidegate request`: a name for an image, from a shell. It sends what the Wave CLI sends, so it works for Wave too.

use std::{
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::Value;

use super::{
    MISCONFIGURED,
    changes::Changes,
    layer::{self, PackError},
    output::{Output, yaml},
    print_line,
    service::{Identity, Service, ServiceArguments, ServiceError, SetupError, printable, wait},
};
use crate::{config::BaseUrl, secret::Secret, units::ByteSize};

/// All layers of a request together, packed: servers take no more.
const LARGEST_LAYERS: ByteSize = ByteSize::mib(10);

const EXAMPLES: &str = "\
Examples:
  docker pull $(tidegate request quay.io/acme/app:v1)
      As an anonymous caller of the server on this machine.
  tidegate request quay.io/acme/app:v1 --token-file ada.token --server https://tidegate.example.com
      As Ada. A token is read from a file or from the environment, never passed as an argument: arguments can be seen by
      every user of a machine.
  tidegate request ubuntu --layer ./tools --env PATH=/opt/tools/bin:/usr/bin:/bin --entrypoint /opt/tools/bin/start
      With the files of ./tools laid over the image: ./tools/opt/tools/bin/start becomes /opt/tools/bin/start in it. The same
      files give the same layer, whatever their times and owners; modes are kept. All layers together may have 10MiB when
      they are packed.
  tidegate request ubuntu --cmd sh --cmd -c --cmd 'echo hello'
      --entrypoint and --cmd take one word each time, or all words as a JSON list: --cmd '[\"sh\", \"-c\", \"echo hello\"]'
  tidegate request alpine --freeze --to quay.io/acme/kept --await
      An image that stays, made by the server: waits until it is there. The login for it must be allowed to push.
  tidegate request alpine -o json | jq -r .expiration

Environment:
  TIDEGATE_TOKEN, TOWER_ACCESS_TOKEN  the access token, if there is no --token-file
  TIDEGATE_SERVER, WAVE_ENDPOINT      the server, if there is no --server
  TOWER_WORKSPACE_ID, TOWER_API_ENDPOINT
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY   for servers on other machines
The first that is set counts; `null` counts as not set.

Only the name goes to standard output, or with -o the server's whole answer.
Exit codes: 0 there is a name; 1 the server gave none, cannot be reached, or what it made failed; 2 wrong arguments, or a
layer that cannot be packed.";

/// Ask a server for an image's ephemeral name, and print it.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The image: quay.io/acme/app:v1
    image: String,

    /// For this platform: linux/arm64; with --freeze also for several, linux/amd64,linux/arm64 [default: linux/amd64]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,

    /// The workflow run that the name lives as long as
    #[arg(long, value_name = "ID")]
    workflow_id: Option<String>,

    /// A copy that stays, changed as is said here, in the repository that --to names
    #[arg(long, requires = "to", group = "copy")]
    freeze: bool,

    /// An exact copy that stays, in the repository that --to names
    #[arg(long, requires = "to", group = "copy")]
    mirror: bool,

    /// Where the copy goes: quay.io/acme/kept
    #[arg(
        long,
        value_name = "REPOSITORY",
        requires = "copy",
        visible_alias = "build-repository"
    )]
    to: Option<String>,

    /// Wait until the image is there, for so long at most [default if there is no duration: 15m]
    #[arg(long = "await", value_name = "DURATION", num_args = 0..=1, require_equals = true,
        default_missing_value = "15m", value_parser = duration)]
    patience: Option<Duration>,

    /// The name alone, or all of the server's answer
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,

    #[command(flatten)]
    changes: Changes,

    #[command(flatten)]
    service: ServiceArguments,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; a duration has a unit, as in 90s or 15m"))
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Layer(#[from] PackError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("the server's answer has no targetImage")]
    NoName,
    #[error("{target} was not made: {reason}")]
    Unsuccessful { target: String, reason: String },
    #[error("{target} is not there after {patience}; it is still {status}")]
    NotYet {
        target: String,
        patience: humantime::FormattedDuration,
        status: String,
    },
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match arguments.request() {
        Ok(answer) => match arguments.output {
            Output::Text => print_line(text(&answer, "targetImage")),
            Output::Json => print_line(&answer.to_string()),
            Output::Yaml => print_line(yaml(&answer).trim_end()),
        },
        Err(failure) => {
            eprintln!("tidegate: {failure}");
            match failure {
                Failure::Setup(_) | Failure::Layer(_) => ExitCode::from(MISCONFIGURED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// A container request as the API takes it; what is absent is left out.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Submission<'a> {
    container_image: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_platform: Option<&'a str>,
    #[serde(skip_serializing_if = "ContainerConfig::is_empty")]
    container_config: ContainerConfig,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    container_includes: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    tower_access_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tower_endpoint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tower_workspace_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_id: Option<&'a str>,
    freeze: bool,
    mirror: bool,
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    build_repository: Option<&'a str>,
    timestamp: String,
}

#[derive(Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerConfig {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<Layer>,
}

/// It travels inside the request.
#[derive(PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    location: String,
    gzip_digest: String,
    gzip_size: usize,
    tar_digest: String,
}

impl ContainerConfig {
    fn of(changes: &Changes) -> Result<Self, PackError> {
        let layers = layer::pack_all(&changes.layers, LARGEST_LAYERS)?;
        Ok(Self {
            entrypoint: changes.entrypoint(),
            cmd: changes.cmd(),
            env: changes.env.clone(),
            working_dir: changes.workdir.clone(),
            layers: layers.iter().map(Layer::of).collect(),
        })
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Layer {
    fn of(layer: &layer::Layer) -> Self {
        Self {
            location: format!("data:{}", STANDARD.encode(&layer.bytes)),
            gzip_digest: layer.digest.to_string(),
            gzip_size: layer.bytes.len(),
            tar_digest: layer.diff_id.to_string(),
        }
    }
}

impl Arguments {
    fn request(&self) -> Result<Value, Failure> {
        let (service, identity) = self.service.open()?;
        let submission = self.submission(&identity)?;
        let answer = service.post("/v1alpha2/container", &submission)?;
        let target = text(&answer, "targetImage");
        if !is_name(target) {
            return Err(Failure::NoName);
        }
        // Whoever is not on that machine would look for the name on his own.
        let host = target.split('/').next().unwrap_or_default();
        if let Ok(named) = format!("http://{host}").parse::<BaseUrl>()
            && named.is_this_machine()
            && !service.server().is_this_machine()
            && !self.freeze
            && !self.mirror
        {
            eprintln!(
                "tidegate: warning: {} calls itself {}, so the name is good on its own machine only; its operator should \
                 set `url` to what clients call it",
                service.server(),
                named.authority()
            );
        }
        match self.patience {
            Some(patience) => settled(&service, answer, patience),
            None => successful(answer, None),
        }
    }

    fn submission(&self, identity: &Identity) -> Result<Secret<String>, PackError> {
        let submission = Submission {
            container_image: &self.image,
            container_platform: self.platform.as_deref(),
            container_config: ContainerConfig::of(&self.changes)?,
            container_includes: &self.changes.includes,
            tower_access_token: identity.token.as_ref().map(|token| token.expose().as_str()),
            tower_endpoint: identity.tower_endpoint.as_deref(),
            tower_workspace_id: identity.workspace,
            workflow_id: self.workflow_id.as_deref(),
            freeze: self.freeze,
            mirror: self.mirror,
            dry_run: false,
            build_repository: self.to.as_deref(),
            timestamp: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        };
        let json = serde_json::to_string(&submission);
        Ok(Secret::new(
            json.expect("texts, numbers and lists are JSON"),
        ))
    }
}

/// Asks until the image is there. An answer that says `succeeded` needs no question.
fn settled(service: &Service, answer: Value, patience: Duration) -> Result<Value, Failure> {
    const SHORTEST: Duration = Duration::from_secs(1);
    /// How often the Wave CLI asks.
    const LONGEST: Duration = Duration::from_secs(10);
    let id = text(&answer, "requestId").to_owned();
    if id.is_empty() || answer.get("succeeded").is_some_and(|it| !it.is_null()) {
        return successful(answer, None);
    }
    let begun = Instant::now();
    let mut pause = SHORTEST;
    let mut told = String::new();
    loop {
        let status = service.get(&format!("/v1alpha2/container/{id}/status"))?;
        let state = text(&status, "status");
        if state == "DONE" {
            return successful(answer, Some(&status));
        }
        if state != told {
            let target = text(&answer, "targetImage");
            let state = printable(state);
            match page(&answer) {
                Some(page) => {
                    eprintln!("tidegate: {target} is {state}: {}{page}", service.server())
                }
                None => eprintln!("tidegate: {target} is {state}"),
            }
            state.clone_into(&mut told);
        }
        if begun.elapsed() + pause > patience {
            return Err(Failure::NotYet {
                target: text(&answer, "targetImage").to_owned(),
                patience: humantime::format_duration(patience),
                status: told,
            });
        }
        wait(pause);
        pause = (pause * 2).min(LONGEST);
    }
}

/// For people, of what is being made. Wave has it at the same place.
fn page(answer: &Value) -> Option<String> {
    let id = text(answer, "buildId");
    let is_plain = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_');
    let kind = match answer.get("mirror").and_then(Value::as_bool) {
        Some(true) => "mirrors",
        _ => "builds",
    };
    (!id.is_empty() && id.bytes().all(is_plain)).then(|| format!("/view/{kind}/{id}"))
}

/// The answer, with how it ended.
fn successful(mut answer: Value, status: Option<&Value>) -> Result<Value, Failure> {
    let last = status.unwrap_or(&answer);
    if last.get("succeeded").and_then(Value::as_bool) == Some(false) {
        let details = match text(last, "detailsUri") {
            "" => String::new(),
            uri => format!("; see {uri}"),
        };
        let reason = match text(last, "reason") {
            "" => "the server does not say why",
            reason => reason,
        };
        return Err(Failure::Unsuccessful {
            target: text(&answer, "targetImage").to_owned(),
            reason: format!("{reason}{details}"),
        });
    }
    if let Some(succeeded) = status.and_then(|status| status.get("succeeded")).cloned()
        && let Value::Object(fields) = &mut answer
    {
        fields.insert("succeeded".to_owned(), succeeded);
    }
    Ok(answer)
}

/// A shell makes several words of one with blanks, and runtimes take a dash for an option.
fn is_name(target: &str) -> bool {
    !target.is_empty() && !target.starts_with('-') && target.bytes().all(|it| it.is_ascii_graphic())
}

/// Empty if it is none.
fn text<'a>(answer: &'a Value, name: &str) -> &'a str {
    answer.get(name).and_then(Value::as_str).unwrap_or_default()
}
