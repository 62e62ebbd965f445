//! Where a server is: scheme, host and port, and nothing behind them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

use crate::oci::Registry;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    is_https: bool,
    /// Host and port as they were written, in lower case.
    authority: String,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "`{text}` is not the URL of a server; write scheme, host and port only, as in \"https://tidegate.example.com\" or \"http://localhost:5000\""
)]
pub struct BaseUrlError {
    text: String,
}

impl BaseUrl {
    /// What clients on this machine call a listener of this port.
    pub fn on_this_machine(port: u16) -> Self {
        Self {
            is_https: false,
            authority: format!("localhost:{port}"),
        }
    }

    /// The same of a listener with TLS.
    pub fn https_on_this_machine(port: u16) -> Self {
        Self {
            is_https: true,
            ..Self::on_this_machine(port)
        }
    }

    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// What starts an image's name: `localhost:5000`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Whoever uses it elsewhere reaches his own machine.
    pub fn is_this_machine(&self) -> bool {
        let registry = self.authority.parse::<Registry>();
        registry.is_ok_and(|registry| registry.is_this_machine())
    }

    /// Runtimes take the first part of an image's name for a registry only if it looks like one.
    pub(super) fn names_a_registry(&self) -> Result<(), NoRegistryName> {
        match self.authority == "localhost" || self.authority.contains(['.', ':']) {
            true => Ok(()),
            false => Err(NoRegistryName {
                host: self.authority.clone(),
            }),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "runtimes would take `{host}` for a repository on Docker Hub; give it a port or a domain, as in \"http://{host}:5000\""
)]
pub(super) struct NoRegistryName {
    host: String,
}

impl FromStr for BaseUrl {
    type Err = BaseUrlError;

    fn from_str(text: &str) -> Result<Self, BaseUrlError> {
        let malformed = || BaseUrlError {
            // Of `scheme://user:password@host` nothing must be repeated.
            text: match text.contains('@') {
                true => "…@…".to_owned(),
                false => text.to_owned(),
            },
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(malformed)?;
        let is_https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(malformed()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest).to_ascii_lowercase();
        // A registry's name is host and port too, but its parser also takes what people paste around it.
        let is_bare = !authority.contains(|c: char| c == '/' || c.is_whitespace());
        if !is_bare || authority.parse::<Registry>().is_err() {
            return Err(malformed());
        }
        Ok(Self {
            is_https,
            authority,
        })
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(formatter, "{scheme}://{}", self.authority)
    }
}

impl<'de> Deserialize<'de> for BaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scheme_host_and_port_are_taken() {
        for (text, printed) in [
            ("http://localhost:5000", Some("http://localhost:5000")),
            (
                "HTTPS://Tide.Example.com/",
                Some("https://tide.example.com"),
            ),
            ("https://docker.io", Some("https://docker.io")),
            ("http://[::1]:5000", Some("http://[::1]:5000")),
            ("http://10.0.0.1", Some("http://10.0.0.1")),
            ("localhost:5000", None),
            ("ftp://localhost", None),
            ("http://", None),
            ("http:///", None),
            ("http://host/path", None),
            ("http://host/v2", None),
            ("http://host//", None),
            ("http://host?x", None),
            ("http://host#x", None),
            ("http://user:hunter2@host", None),
            ("http://ho st", None),
            (" http://host", None),
            ("http://host ", None),
            ("http://host:port", None),
            ("http://host:70000", None),
            ("http://http://host", None),
        ] {
            match (text.parse::<BaseUrl>(), printed) {
                (Ok(url), Some(printed)) => assert_eq!(url.to_string(), printed, "{text}"),
                (Err(error), None) => {
                    assert!(!error.to_string().contains("hunter2"), "{error}");
                }
                (parsed, _) => panic!("{text}: {parsed:?}"),
            }
        }
    }

    #[test]
    fn this_machine_is_known() {
        for (server, is_this) in [
            ("http://localhost:5000", true),
            ("http://localhost", true),
            ("https://127.0.0.1:5000", true),
            ("http://127.9.9.9", true),
            ("http://[::1]:5000", true),
            ("https://wave.seqera.io", false),
            ("http://10.0.0.1:5000", false),
            ("http://localhost.example.com", false),
        ] {
            let url: BaseUrl = server.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(url.is_this_machine(), is_this, "{server}");
        }
    }
}
