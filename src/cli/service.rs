//! The container request API of a server, this one's or Wave's, as a client sees it.

use std::{
    io::{self, Read as _},
    path::PathBuf,
    thread,
    time::Duration,
};

use serde_json::Value;
use ureq::{
    Agent, http,
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{
    access_token::{self, TokenFileError},
    environment,
};
use crate::{
    config::BaseUrl,
    net::{Trust, TrustError},
    secret::Secret,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The server asks a registry and maybe a Platform before it answers.
const TIMEOUT: Duration = Duration::from_secs(120);
/// A configuration and its layers' descriptions are far below.
const LARGEST_ANSWER: u64 = 16 << 20;
/// As the Wave CLI does it, for what may pass by itself.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(150);
/// Whoever is told to come back later than that decides for himself.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Longer bodies are no messages.
const LONGEST_MESSAGE: usize = 2000;

/// Whom to ask, and as whom.
#[derive(clap::Args)]
#[command(next_help_heading = "Server and caller")]
pub(super) struct ServiceArguments {
    /// The server: scheme, host and port [default: $TIDEGATE_SERVER, $WAVE_ENDPOINT or http://localhost:5000]
    #[arg(long, value_name = "URL")]
    server: Option<BaseUrl>,

    /// PEM file with certificates to trust besides the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// The access token is in this file (`-`: on standard input) [default: $TIDEGATE_TOKEN, $TOWER_ACCESS_TOKEN, or
    /// anonymous]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// The workspace whose registry logins count [default: $TOWER_WORKSPACE_ID, or the personal one]
    #[arg(long, value_name = "ID", value_parser = workspace)]
    workspace: Option<i64>,

    /// The Platform that knows the token [default: $TOWER_API_ENDPOINT, or the server's own]
    #[arg(long, value_name = "URL")]
    tower_endpoint: Option<String>,
}

/// What is wrong before anybody was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    #[error(transparent)]
    TokenFile(#[from] TokenFileError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("{variable}: {cause}")]
    Variable {
        variable: &'static str,
        cause: String,
    },
    #[error(
        "--workspace needs an access token: --token-file, TIDEGATE_TOKEN or TOWER_ACCESS_TOKEN"
    )]
    WorkspaceOfNobody,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ServiceError {
    #[error("{server} cannot be asked: {cause}")]
    Unreachable { server: String, cause: String },
    #[error("{server} says: {message}")]
    Refused {
        server: String,
        status: u16,
        message: String,
    },
    #[error("what answers at {server} has no such API ({cause}); is --server right?")]
    Strange { server: String, cause: String },
}

/// On whose behalf.
pub(super) struct Identity {
    pub(super) token: Option<Secret<String>>,
    pub(super) workspace: Option<i64>,
    pub(super) tower_endpoint: Option<String>,
}

pub(super) struct Service {
    server: BaseUrl,
    agent: Agent,
}

impl ServiceArguments {
    pub(super) fn open(&self) -> Result<(Service, Identity), SetupError> {
        let server = match &self.server {
            Some(server) => server.clone(),
            None => server_of_environment()?,
        };
        let token = match &self.token_file {
            Some(file) => Some(access_token::from_file(file)?),
            None => access_token::from_environment(),
        };
        let workspace = match (self.workspace, &token) {
            (Some(_), None) => return Err(SetupError::WorkspaceOfNobody),
            (Some(workspace), Some(_)) => Some(workspace),
            (None, Some(_)) => workspace_of_environment()?,
            (None, None) => None,
        };
        let tower_endpoint = self.tower_endpoint.clone();
        let identity = Identity {
            tower_endpoint: tower_endpoint.or_else(|| environment("TOWER_API_ENDPOINT")),
            token,
            workspace,
        };
        if identity.token.is_some() && !server.is_https() && !server.is_this_machine() {
            eprintln!("tidegate: warning: the access token goes to {server} unencrypted");
        }
        let agent = self.agent(&server)?;
        Ok((Service { server, agent }, identity))
    }

    fn agent(&self, server: &BaseUrl) -> Result<Agent, SetupError> {
        let mut roots = Trust::platform().roots.to_vec();
        if let Some(file) = &self.ca_file {
            roots.extend(Trust::from_file(file)?.roots.iter().cloned());
        }
        let mut tls = TlsConfig::builder();
        if !roots.is_empty() {
            let roots = roots.iter();
            let roots = roots.map(|root| Certificate::from_der(root).to_owned());
            tls = tls.root_certs(RootCerts::from(roots));
        }
        let proxy = match server.is_this_machine() {
            true => None,
            false => ureq::Proxy::try_from_env(),
        };
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            // One could lead an access token elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(proxy)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(TIMEOUT))
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(config.into())
    }
}

fn server_of_environment() -> Result<BaseUrl, SetupError> {
    /// The default of `listener.addresses`.
    const PORT: u16 = 5000;
    for variable in ["TIDEGATE_SERVER", "WAVE_ENDPOINT"] {
        if let Some(text) = environment(variable) {
            return text.parse().map_err(|cause| SetupError::Variable {
                variable,
                cause: format!("{cause}"),
            });
        }
    }
    Ok(BaseUrl::on_this_machine(PORT))
}

pub(super) fn workspace(text: &str) -> Result<i64, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is not the number of a workspace"))
}

fn workspace_of_environment() -> Result<Option<i64>, SetupError> {
    let variable = "TOWER_WORKSPACE_ID";
    let workspace = environment(variable)
        .map(|text| workspace(&text).map_err(|cause| SetupError::Variable { variable, cause }));
    workspace.transpose()
}

impl Service {
    pub(super) fn server(&self) -> &BaseUrl {
        &self.server
    }

    pub(super) fn post(&self, path: &str, body: &Secret<String>) -> Result<Value, ServiceError> {
        self.ask("POST", path, Some(body))
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, ServiceError> {
        self.ask("GET", path, None)
    }

    /// Again after what may pass by itself.
    fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Secret<String>>,
    ) -> Result<Value, ServiceError> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..TRIES {
            let (error, retry_after) = match self.ask_once(method, path, body) {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let may_pass = match &error {
                ServiceError::Unreachable { .. } => true,
                ServiceError::Refused { status, .. } => matches!(status, 502..=504),
                ServiceError::Strange { .. } => false,
            };
            let wanted = retry_after.unwrap_or_default().max(pause);
            if !may_pass || wanted > LONGEST_PAUSE {
                return Err(error);
            }
            wait(wanted);
            pause *= 2;
        }
        self.ask_once(method, path, body)
            .map_err(|(error, _)| error)
    }

    fn ask_once(
        &self,
        method: &str,
        path: &str,
        body: Option<&Secret<String>>,
    ) -> Result<Value, (ServiceError, Option<Duration>)> {
        let server = self.server.to_string();
        let unreachable = |cause: String| {
            let server = server.clone();
            (ServiceError::Unreachable { server, cause }, None)
        };
        let strange = |cause: String| {
            let server = server.clone();
            (ServiceError::Strange { server, cause }, None)
        };
        let request = http::Request::builder()
            .method(method)
            .uri(format!("{server}{path}"));
        let sent = match body {
            None => request.body(()).map(|request| self.agent.run(request)),
            Some(body) => request
                .header("Content-Type", "application/json")
                .body(body.expose().as_bytes())
                .map(|request| self.agent.run(request)),
        };
        let response = sent
            .map_err(|error| strange(error.to_string()))?
            .map_err(|error| unreachable(cause(&error)))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get("Retry-After");
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        let mut answer = Vec::new();
        response
            .into_body()
            .into_reader()
            .take(LARGEST_ANSWER)
            .read_to_end(&mut answer)
            .map_err(|error| unreachable(error.to_string()))?;
        if status == 200 {
            return match serde_json::from_slice(&answer) {
                Ok(answer @ Value::Object(_)) => Ok(answer),
                Ok(_) => Err(strange("its answer is no JSON object".to_owned())),
                Err(cause) => Err(strange(format!("its answer is no JSON: {cause}"))),
            };
        }
        // A tidegate and a Wave say why in JSON.
        let is_strange =
            matches!(status, 404 | 405) && serde_json::from_slice::<Value>(&answer).is_err();
        if is_strange {
            return Err(strange(format!("status {status}")));
        }
        let refused = ServiceError::Refused {
            server: server.clone(),
            status,
            message: message(status, &answer),
        };
        Err((refused, retry_after.map(Duration::from_secs)))
    }
}

/// Why nobody answered, and what may be done about it.
fn cause(error: &ureq::Error) -> String {
    let ureq::Error::Io(error) = error else {
        return error.to_string();
    };
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    let advice = match (error.kind(), tls) {
        (io::ErrorKind::ConnectionRefused, _) => {
            "; if no server runs there, start one (`tidegate serve`) or name another with --server"
        }
        (_, Some(rustls::Error::InvalidCertificate(_))) => {
            "; --ca-file FILE trusts an authority that the system does not know"
        }
        (_, Some(rustls::Error::InvalidMessage(_))) => "; if it speaks plain HTTP, write http://",
        _ => "",
    };
    format!("{error}{advice}")
}

/// What the server said; where it says nothing, what it means.
fn message(status: u16, answer: &[u8]) -> String {
    let json = serde_json::from_slice::<Value>(answer).ok();
    let said = json.as_ref().and_then(|json| json.get("message")?.as_str());
    let text = String::from_utf8_lossy(answer);
    let said = said.unwrap_or(text.trim());
    match (status, said) {
        (401, "") => {
            "it does not know this access token, or it has expired (status 401)".to_owned()
        }
        (403, "") => "this access token is not allowed to (status 403)".to_owned(),
        (_, "") => format!("status {status}"),
        // A page, of a proxy before it maybe.
        (_, said) if said.starts_with('<') || said.len() > LONGEST_MESSAGE => {
            format!("status {status}, and no message")
        }
        // What is not known here yet keeps its status.
        (_, said) => format!("{} (status {status})", printable(said)),
    }
}

/// A terminal obeys control characters.
pub(super) fn printable(text: &str) -> String {
    let characters = text.chars();
    characters
        .map(|it| if it.is_control() { ' ' } else { it })
        .collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a command has nothing else to do, and no core"
)]
pub(super) fn wait(pause: Duration) {
    thread::sleep(pause);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_says_is_passed_on() {
        for (status, answer, expected) in [
            (
                400,
                r#"{"message":"the image is not found"}"#,
                "the image is not found (status 400)",
            ),
            (
                401,
                "",
                "it does not know this access token, or it has expired (status 401)",
            ),
            (500, "", "status 500"),
            (502, "Bad gateway\n", "Bad gateway (status 502)"),
            (502, "<html>", "status 502, and no message"),
            (400, "{\"message\":\"a\\u001b[2Jb\"}", "a [2Jb (status 400)"),
        ] {
            assert_eq!(message(status, answer.as_bytes()), expected, "{answer}");
        }
    }
}
