//! The serving edge: connections, and how answers leave them. Knows neither OCI nor the cache.

use std::net::SocketAddr;

use serde::Deserialize;

use crate::units::{ByteSize, HumanDuration};

/// `[listener]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Where the registry and the API listen: `["127.0.0.1:5000"]`.
    pub addresses: Vec<SocketAddr>,
    /// Where `/livez`, `/readyz` and `/metrics` listen; keep it off the public network: `"127.0.0.1:5001"`.
    pub admin: SocketAddr,
    /// From the first byte of a request to the end of its head: `"10s"`.
    pub head_timeout: HumanDuration,
    /// How long a connection may wait for its next request: `"75s"`.
    pub idle_timeout: HumanDuration,
    /// A client that takes no byte for this long is cut: `"60s"`.
    pub send_timeout: HumanDuration,
    /// Open connections of all cores together; one more is answered 503 and closed: `16384`.
    pub max_connections: usize,
    /// Largest body of an API call: `"20MiB"`.
    pub max_body_size: ByteSize,
    /// How long running transfers may go on after SIGTERM: `"30s"`.
    pub shutdown_grace: HumanDuration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 5000))],
            admin: SocketAddr::from(([127, 0, 0, 1], 5001)),
            head_timeout: HumanDuration::seconds(10),
            idle_timeout: HumanDuration::seconds(75),
            send_timeout: HumanDuration::seconds(60),
            max_connections: 16_384,
            max_body_size: ByteSize::mib(20),
            shutdown_grace: HumanDuration::seconds(30),
        }
    }
}
