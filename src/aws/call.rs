//! Calls over HTTP: signed ones to AWS's services, and plain ones to what lends keys on this machine.

use std::{
    io::{self, Read as _},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ureq::{
    Agent,
    http::{Response, Uri},
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{
    AwsError, Keys,
    answer::error_text,
    error::{Action, Failure},
    region::Service,
    sigv4::{self, Scope},
};
use crate::{net::Trust, secret::Secret};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Of one try.
const TRY_TIMEOUT: Duration = Duration::from_secs(8);
/// Of all tries: runtimes wait for 30 s, and a role may have to be assumed first.
const CALL_TIMEOUT: Duration = Duration::from_secs(12);
const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LARGEST_ANSWER: u64 = 1 << 20;

/// Where a service is asked, and as what it is signed.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// `https://sts.eu-west-1.amazonaws.com`, or what stands for it.
    pub(super) url: String,
    pub(super) region: String,
    pub(super) service: Service,
}

/// What is asked of a service.
pub(super) struct Call<'a> {
    pub(super) content_type: &'static str,
    /// `X-Amz-Target`
    pub(super) operation: Option<&'static str>,
    pub(super) body: &'a Secret<String>,
    /// In the body.
    pub(super) secret: Option<&'a str>,
}

impl Call<'_> {
    /// Some complaints of AWS quote the value that they are about; those are not passed on.
    fn is_quoted_in(&self, message: &str, keys: Option<&Keys>) -> bool {
        let tokens = keys.and_then(|keys| keys.session_token.as_ref());
        let secrets = keys.map(|keys| &keys.secret).into_iter().chain(tokens);
        let secrets = secrets.map(|secret| secret.expose().as_str());
        let mut secrets = secrets.chain(self.secret);
        secrets.any(|secret| !secret.is_empty() && message.contains(secret))
    }
}

/// What was answered with 200.
pub(super) struct Answer {
    pub(super) body: Secret<String>,
    /// AWS's clock.
    pub(super) date: Option<SystemTime>,
}

impl Answer {
    /// How long something lasts that ends at an instant of AWS's clock: ours may be wrong.
    pub(super) fn life_until(&self, end: Option<SystemTime>) -> Option<Duration> {
        let now = self.date.unwrap_or_else(SystemTime::now);
        end.map(|end| end.duration_since(now).unwrap_or_default())
    }
}

/// Shared by all that ask.
#[derive(Clone)]
pub(super) struct Http {
    services: Agent,
    local: Agent,
}

impl Http {
    pub(super) fn new(trust: &Trust, local_timeout: Duration) -> Self {
        let roots = trust.roots.iter();
        let roots: Vec<_> = roots
            .map(|root| Certificate::from_der(root).to_owned())
            .collect();
        let agent = |connect: Duration, whole: Duration| {
            let mut tls = TlsConfig::builder();
            if !roots.is_empty() {
                tls = tls.root_certs(RootCerts::from(roots.clone()));
            }
            let config = Agent::config_builder()
                .tls_config(tls.build())
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .timeout_connect(Some(connect))
                .timeout_global(Some(whole))
                // What lends keys on this machine must not be asked through one.
                .proxy(None)
                .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
                .build();
            Agent::new_with_config(config)
        };
        Self {
            services: agent(CONNECT_TIMEOUT, TRY_TIMEOUT),
            local: agent(local_timeout, local_timeout),
        }
    }

    /// Tries again what may fare better, each time with a signature of its own. Without keys it is not signed.
    pub(super) fn call(
        &self,
        target: &Target,
        keys: Option<&Keys>,
        call: &Call<'_>,
    ) -> Result<Answer, CallError> {
        let deadline = Instant::now() + CALL_TIMEOUT;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let asked = self.call_once(target, keys, call);
            let is_passing = match &asked {
                Ok(_) => false,
                Err(CallError::Failed(failure)) => failure.is_passing(),
                Err(CallError::Other(error)) => error.is_outage(),
            };
            let pause = pause(attempt);
            if !is_passing || attempt >= TRIES || Instant::now() + pause >= deadline {
                return asked;
            }
            rest(pause);
        }
    }

    fn call_once(
        &self,
        target: &Target,
        keys: Option<&Keys>,
        call: &Call<'_>,
    ) -> Result<Answer, CallError> {
        let malformed = |cause: String| {
            AwsError::Setting(format!("the endpoint {} is no URL: {cause}", target.url))
        };
        let uri: Uri = format!("{}/", target.url.trim_end_matches('/'))
            .parse()
            .map_err(|error: ureq::http::uri::InvalidUri| malformed(error.to_string()))?;
        let host = authority(&uri).ok_or_else(|| malformed("it has no host".to_owned()))?;
        let mut fields = vec![("host", host.as_str()), ("content-type", call.content_type)];
        fields.extend(call.operation.map(|operation| ("x-amz-target", operation)));
        let body = call.body.expose().as_bytes();
        let added = keys.map(|keys| {
            let request = sigv4::Request {
                method: "POST",
                path: uri.path(),
                query: "",
                fields: &fields,
                body,
            };
            let scope = Scope {
                region: &target.region,
                service: target.service.signing_name(),
            };
            sigv4::sign(&request, keys, scope, SystemTime::now())
        });
        let mut request = self.services.post(&uri);
        for (name, value) in &fields {
            request = request.header(*name, *value);
        }
        for (name, value) in added.iter().flatten() {
            request = request.header(*name, value.expose());
        }
        let answer = read(&host, request.send(body))?;
        match answer.status {
            200 => Ok(Answer {
                body: answer.body,
                date: answer.date,
            }),
            status => {
                let mut text = error_text(answer.error_type.as_deref(), answer.body.expose());
                text.message = text.message.filter(|it| !call.is_quoted_in(it, keys));
                Err(CallError::Failed(Failure {
                    status,
                    text,
                    date: answer.date,
                }))
            }
        }
    }

    /// Asks what lends keys on this machine.
    pub(super) fn local(
        &self,
        method: LocalMethod,
        url: &str,
        fields: &[(&str, &Secret<String>)],
    ) -> Result<LocalAnswer, AwsError> {
        let asked = match method {
            LocalMethod::Get => {
                let mut request = self.local.get(url);
                for (name, value) in fields {
                    request = request.header(*name, value.expose());
                }
                request.call()
            }
            LocalMethod::Put => {
                let mut request = self.local.put(url);
                for (name, value) in fields {
                    request = request.header(*name, value.expose());
                }
                request.send_empty()
            }
        };
        let answer = read(url, asked)?;
        Ok(LocalAnswer {
            status: answer.status,
            body: answer.body,
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum LocalMethod {
    Get,
    Put,
}

pub(super) struct LocalAnswer {
    pub(super) status: u16,
    pub(super) body: Secret<String>,
}

/// Why there is no answer to use.
#[derive(Debug)]
pub(super) enum CallError {
    Failed(Failure),
    Other(AwsError),
}

impl From<AwsError> for CallError {
    fn from(error: AwsError) -> Self {
        Self::Other(error)
    }
}

impl CallError {
    pub(super) fn explain(self, action: Action<'_>, keys: Option<&Keys>) -> AwsError {
        match self {
            Self::Failed(failure) => failure.explain(action, keys, SystemTime::now()),
            Self::Other(error) => error,
        }
    }
}

struct Read {
    status: u16,
    error_type: Option<String>,
    date: Option<SystemTime>,
    body: Secret<String>,
}

fn read(host: &str, result: Result<Response<ureq::Body>, ureq::Error>) -> Result<Read, AwsError> {
    let unreachable = |cause: String| AwsError::Unreachable {
        host: host.to_owned(),
        cause,
    };
    let response = result.map_err(|error| unreachable(error.to_string()))?;
    let field = |name: &str| {
        let value = response.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let status = response.status().as_u16();
    let error_type = field("x-amzn-errortype");
    let date = field("date").and_then(|text| httpdate::parse_http_date(&text).ok());
    let mut body = Vec::new();
    let mut reader = response.into_body().into_reader().take(LARGEST_ANSWER);
    let done: io::Result<usize> = reader.read_to_end(&mut body);
    done.map_err(|error| unreachable(error.to_string()))?;
    let body = String::from_utf8(body).map_err(|_| AwsError::Malformed {
        host: host.to_owned(),
        problem: "what is no text",
    })?;
    Ok(Read {
        status,
        error_type,
        date,
        body: Secret::new(body),
    })
}

/// As it is sent in `Host`: without the scheme's own port.
fn authority(uri: &Uri) -> Option<String> {
    let host = uri.host()?;
    let default = match uri.scheme_str()? {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    Some(match uri.port_u16() {
        Some(port) if port != default => format!("{host}:{port}"),
        _ => host.to_owned(),
    })
}

/// Doubling, and anything up to that: callers that failed together do not come back together.
fn pause(attempt: u32) -> Duration {
    let longest = FIRST_PAUSE * 2_u32.saturating_pow(attempt - 1);
    // How far the clock is into a millisecond is as good as random here.
    let nanos = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .subsec_nanos();
    let share = nanos / 1_000 % 64 + 1;
    longest * share / 64
}

#[expect(
    clippy::disallowed_methods,
    reason = "on a thread of the pool, which serves nobody else"
)]
fn rest(pause: Duration) {
    std::thread::sleep(pause);
}

/// A body that must not stay in memory.
pub(super) fn form(pairs: &[(&str, &str)]) -> Secret<String> {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(char::from(byte));
                }
                byte => text.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    Secret::new(text)
}

/// Which certificates AWS may show: those of `AWS_CA_BUNDLE`, or the platform's.
pub(super) fn trust(bundle: Option<&str>) -> Result<Arc<Trust>, AwsError> {
    let Some(bundle) = bundle else {
        return Ok(Arc::new(Trust::platform()));
    };
    let trust = Trust::from_file(bundle.as_ref())
        .map_err(|error| AwsError::Setting(format!("AWS_CA_BUNDLE: {error}")))?;
    Ok(Arc::new(trust))
}
