//! `[platform]`: which Platforms are trusted, and how they are spoken with.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::units::{ByteSize, HumanDuration};

/// `[platform]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The API base URLs of the Platforms that may vouch for callers, exactly as clients name them:
    /// `["https://api.cloud.seqera.io"]`. The first is meant where a request names none. Empty: no Platform is asked.
    pub endpoints: Vec<String>,
    pub transport: TransportKind,
    /// For one answer to one request: `"5s"`.
    pub request_timeout: HumanDuration,
    /// For all that a request has to ask of a Platform, with all tries: `"10s"`. Who asks longer is told to come back.
    pub call_timeout: HumanDuration,
    /// How long what a Platform said to an access token is used before it is asked again: `"1m"`.
    pub remember: HumanDuration,
    /// The same in a workflow run, where each few minutes the run is asked about with that token anyway, and a refusal
    /// ends all that is remembered: `"1h"`.
    pub remember_in_runs: HumanDuration,
    /// How long it is used while the Platform does not answer: `"1h"`. In a run it is a day.
    pub remember_while_silent: HumanDuration,
    /// Who may pair: endpoint → SHA-256 of the pairing tokens that are accepted for it, in lower-case hex.
    pub pairing_tokens: BTreeMap<String, Vec<String>>,
    /// Whoever reaches the listener may pair for any of `endpoints`, and so receives the access tokens of its users.
    pub allow_any_pairing_token: bool,
    /// Open pairing sockets of all endpoints together: `32`.
    pub max_sessions: usize,
    /// Largest message on a pairing socket: `"16MiB"`.
    pub max_message_size: ByteSize,
    /// A pairing socket on which nothing comes for this long is closed: `"910s"`.
    pub session_timeout: HumanDuration,
    /// How old a pairing key may be when a Platform connects; an older one is followed by a new one: `"1day"`.
    pub key_lease: HumanDuration,
    /// How long a pairing key can decrypt: `"30days"`.
    pub key_retention: HumanDuration,
    pub license: Option<LicenseOptions>,
}

/// How a Platform is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// Through the socket that it opens to us.
    #[default]
    Pairing,
    /// Straight. It still has to pair, because it encrypts logins for a pairing key.
    Https,
}

/// `[platform.license]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LicenseOptions {
    /// The license server, asked about each pairing token: `"https://licenses.example.com"`.
    pub url: String,
    /// Refuse a token that the server does not know. A server that cannot be asked refuses nobody.
    #[serde(default)]
    pub strict: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            transport: TransportKind::default(),
            request_timeout: HumanDuration::seconds(5),
            call_timeout: HumanDuration::seconds(10),
            remember: HumanDuration::seconds(60),
            remember_in_runs: HumanDuration::hours(1),
            remember_while_silent: HumanDuration::hours(1),
            pairing_tokens: BTreeMap::new(),
            allow_any_pairing_token: false,
            max_sessions: 32,
            max_message_size: ByteSize::mib(16),
            session_timeout: HumanDuration::seconds(910),
            key_lease: HumanDuration::hours(24),
            key_retention: HumanDuration::hours(30 * 24),
            license: None,
        }
    }
}

impl Options {
    pub fn is_endpoint(&self, endpoint: &str) -> bool {
        self.endpoints.iter().any(|known| known == endpoint)
    }

    /// Whether there is a token with which a Platform may pair for it.
    pub fn can_be_paired(&self, endpoint: &str) -> bool {
        let tokens = self.pairing_tokens.get(endpoint);
        self.allow_any_pairing_token || tokens.is_some_and(|tokens| !tokens.is_empty())
    }
}
