//! Straight to the Platform over HTTPS, where it can be reached from here.

use std::{
    io::Read as _,
    time::{Duration, Instant},
};

use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{Options, Request, Response, Transport, TransportError};
use crate::{net::Trust, secret::Secret};

/// The operator lists the endpoints, and so vouches for their addresses: a Platform may well be on a private network.
pub struct Https {
    agent: Agent,
    request_timeout: Duration,
    largest_answer: u64,
}

impl Https {
    pub fn new(options: &Options) -> Self {
        let trust = Trust::platform();
        let mut tls = TlsConfig::builder();
        if !trust.roots.is_empty() {
            let roots = trust.roots.iter();
            let roots = roots.map(|root| Certificate::from_der(root).to_owned());
            tls = tls.root_certs(RootCerts::from(roots));
        }
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            // The API sends none, and one could lead an access token elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: Agent::new_with_config(config),
            request_timeout: *options.request_timeout,
            largest_answer: options.max_message_size.bytes(),
        }
    }

    fn once(&self, request: &Request, timeout: Duration) -> Result<Response, ureq::Error> {
        let sent = match &request.body {
            Some((media_type, body)) => {
                let mut call = self.agent.post(&request.url).content_type(*media_type);
                if let Some(authorization) = &request.authorization {
                    call = call.header("Authorization", authorization.expose());
                }
                call.config()
                    .timeout_global(Some(timeout))
                    .build()
                    .send(body.expose())?
            }
            None => {
                let mut call = self.agent.get(&request.url);
                if let Some(authorization) = &request.authorization {
                    call = call.header("Authorization", authorization.expose());
                }
                call.config().timeout_global(Some(timeout)).build().call()?
            }
        };
        let status = sent.status().as_u16();
        let fields = sent.headers().iter().filter_map(|(name, value)| {
            let value = value.to_str().ok()?;
            Some((name.as_str().to_owned(), Secret::new(value.to_owned())))
        });
        let fields = fields.collect();
        let mut body = String::new();
        let reader = sent.into_body().into_reader();
        let read = reader
            .take(self.largest_answer + 1)
            .read_to_string(&mut body);
        let body = Secret::new(body);
        let size = read? as u64;
        if size > self.largest_answer {
            return Err(ureq::Error::BodyExceedsLimit(self.largest_answer));
        }
        Ok(Response {
            status,
            fields,
            body,
        })
    }
}

impl Transport for Https {
    fn exchange(
        &self,
        endpoint: &str,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, TransportError> {
        /// A connection that the other side has just closed costs one try.
        const TRIES: u32 = 2;
        let mut last = TransportError::TimedOut {
            endpoint: endpoint.to_owned(),
        };
        for _ in 0..TRIES {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match self.once(request, left.min(self.request_timeout)) {
                Ok(response) => return Ok(response),
                Err(error) => last = failure(endpoint, &error),
            }
            // A refresh token may be good for one use.
            if request.body.is_some() {
                break;
            }
        }
        Err(last)
    }
}

fn failure(endpoint: &str, error: &ureq::Error) -> TransportError {
    let endpoint = endpoint.to_owned();
    match error {
        ureq::Error::Timeout(_) => TransportError::TimedOut { endpoint },
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            TransportError::TimedOut { endpoint }
        }
        error => TransportError::Unreachable {
            endpoint,
            cause: error.to_string(),
        },
    }
}
