//! One line for each request. An ephemeral name is a key, so its token is cut short; queries are left out.

use std::{fmt, net::IpAddr, time::Duration};

use super::log::ACCESS;

pub struct Line<'a> {
    pub client: IpAddr,
    pub method: &'a str,
    pub path: &'a str,
    pub status: u16,
    /// Where a blob's bytes came from.
    pub origin: Option<&'static str>,
    pub body_bytes: u64,
    pub duration: Duration,
    pub agent: Option<&'a str>,
    /// The answer ended before its last byte.
    pub is_cut: bool,
}

pub fn is_on() -> bool {
    tracing::enabled!(target: ACCESS, tracing::Level::INFO)
}

pub fn write(line: &Line<'_>) {
    tracing::info!(
        target: ACCESS,
        client = %line.client,
        method = line.method,
        path = %Redacted(line.path),
        status = line.status,
        from = line.origin,
        bytes = line.body_bytes,
        ms = u64::try_from(line.duration.as_millis()).unwrap_or(u64::MAX),
        agent = line.agent.unwrap_or_default(),
        cut = line.is_cut,
    );
}

/// A path whose tokens are no longer of use to whoever reads the log.
pub struct Redacted<'a>(pub &'a str);

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        for (index, part) in self.0.split('/').enumerate() {
            if index > 0 {
                formatter.write_str("/")?;
            }
            let is_token = matches!(
                before,
                "wt" | "container-token" | "container" | "containers" | "token"
            );
            if is_token && part.len() > 4 {
                write!(formatter, "{}…", part.get(..4).unwrap_or_default())?;
            } else {
                formatter.write_str(part)?;
            }
            before = part;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_cut_short() {
        for (path, expected) in [
            (
                "/v2/wt/abcdefghijkl/library/alpine/tags/list",
                "/v2/wt/abcd…/library/alpine/tags/list",
            ),
            ("/container-token/abcdefghijkl", "/container-token/abcd…"),
            (
                "/v1alpha2/container/abcdefghijkl/status",
                "/v1alpha2/container/abcd…/status",
            ),
            ("/view/containers/abcdefghijkl", "/view/containers/abcd…"),
            (
                "/pairing/tower/token/0123456789",
                "/pairing/tower/token/0123…",
            ),
            ("/v2/quay.io/a/b/manifests/1", "/v2/quay.io/a/b/manifests/1"),
            ("/", "/"),
        ] {
            assert_eq!(Redacted(path).to_string(), expected, "{path}");
        }
    }
}
