//! A running server, asked at its admin listener.

use std::{
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use serde::{Deserialize, de::DeserializeOwned};
use ureq::{Agent, http};

use super::{MISCONFIGURED, print_problems};
use crate::{
    api::GUARD,
    config::{Config, listen_address},
    secret::Secret,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One blob may be all of a large and slow disk.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// Well above what one turn of the server's fills.
const LARGEST_ANSWER: u64 = 64 << 20;

/// Which server is meant.
#[derive(clap::Args)]
pub(super) struct Whereabouts {
    /// The server's settings; without it all have their defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where the server's admin listener is, instead of listener.admin
    #[arg(long, value_name = "ADDR", value_parser = listen_address)]
    admin: Option<SocketAddr>,
}

impl Whereabouts {
    /// Otherwise what is wrong with the settings is told, and this is how to exit.
    pub(super) fn server(&self) -> Result<Server, ExitCode> {
        let admin = match (self.admin, self.config.as_deref().map(Config::load)) {
            (Some(admin), _) => admin,
            (None, None) => Config::default().listener.admin,
            (None, Some(Ok(loaded))) => loaded.config.listener.admin,
            (None, Some(Err(problems))) => {
                print_problems(&problems);
                return Err(ExitCode::from(MISCONFIGURED));
            }
        };
        Ok(Server::at(admin))
    }
}

pub(super) struct Server {
    pub(super) admin: SocketAddr,
    agent: Agent,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("no server answers at {admin}: {cause}")]
    Unreachable { admin: SocketAddr, cause: String },
    #[error("the server at {admin} says: {message}")]
    Refused { admin: SocketAddr, message: String },
    #[error("what answers at {admin} is no tidegate of this version ({cause})")]
    Strange { admin: SocketAddr, cause: String },
}

impl AskError {
    /// For commands whose server is found by its address alone.
    pub(super) fn advice(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::Strange { .. } => {
                "; where its admin listener is, say --admin or --config"
            }
            Self::Refused { .. } => "",
        }
    }
}

impl Server {
    pub(super) fn at(admin: SocketAddr) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // It is on this machine, or named by its address.
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(TIMEOUT))
            .build();
        Self {
            admin: reachable(admin),
            agent: config.into(),
        }
    }

    /// `guard` says to the server that no web page asks.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        guard: &str,
        body: Option<&Secret<String>>,
    ) -> Result<T, AskError> {
        let admin = self.admin;
        let strange = |cause: String| AskError::Strange { admin, cause };
        let unreachable = |cause: String| AskError::Unreachable { admin, cause };
        let request = http::Request::builder()
            .method(method)
            .uri(format!("http://{admin}/{path}"))
            .header(GUARD, guard);
        let sent = match body {
            None => request.body(()).map(|request| self.agent.run(request)),
            Some(body) => request
                .body(body.expose().as_bytes())
                .map(|request| self.agent.run(request)),
        };
        let response = sent
            .map_err(|error| strange(error.to_string()))?
            .map_err(|error| {
                unreachable(match error {
                    ureq::Error::Io(error) => error.to_string(),
                    error => error.to_string(),
                })
            })?;
        let status = response.status();
        let mut body = Vec::new();
        response
            .into_body()
            .into_reader()
            .take(LARGEST_ANSWER)
            .read_to_end(&mut body)
            .map_err(|error| unreachable(error.to_string()))?;
        if !status.is_success() {
            #[derive(Deserialize)]
            struct Said {
                message: String,
            }
            return Err(match serde_json::from_slice(&body) {
                Ok(Said { message }) => AskError::Refused { admin, message },
                Err(_) => strange(format!("status {status}")),
            });
        }
        serde_json::from_slice(&body).map_err(|error| strange(error.to_string()))
    }
}

/// One that listens everywhere listens on loopback too.
fn reachable(mut admin: SocketAddr) -> SocketAddr {
    if admin.ip().is_unspecified() {
        admin.set_ip(match admin.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    admin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_asked_on_loopback() {
        for (admin, asked) in [
            ("0.0.0.0:5001", "127.0.0.1:5001"),
            ("[::]:5001", "[::1]:5001"),
            ("10.0.0.1:5001", "10.0.0.1:5001"),
        ] {
            let admin = admin.parse().expect("an address");
            assert_eq!(reachable(admin).to_string(), asked);
        }
    }
}
