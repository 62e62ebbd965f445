//! `/pairing/tower/token/{token}?endpoint=…`: a Seqera Platform connects, and stays.

use std::time::Instant;

use super::{
    Api, Request, Response,
    error_response::{self, Shape},
};
use crate::{
    http::{HandshakeError, accept_websocket, percent_decode},
    limits::client_key,
    platform::Refusal,
    secret::Secret,
    telemetry::metrics::{self, Counter},
};

/// Of a stranger's text, in the log.
const LONGEST_LOGGED: usize = 200;

impl Api {
    /// The token is looked at before anything is set up for the connection.
    pub(super) fn pair(&self, token: Secret<String>, request: &Request) -> Response {
        let accept = match accept_websocket(&request.head) {
            Ok(accept) => accept,
            Err(error) => return no_websocket(error),
        };
        let Some(endpoint) = endpoint(request.head.query().unwrap_or_default()) else {
            return error_response::api(
                400,
                "the query must name the Platform: ?endpoint=https%3A%2F%2F…",
            );
        };
        let admission = match self.shared.pairing.admit(&endpoint, token) {
            Ok(admission) => admission,
            Err(refusal) => return self.refuse_pairing(&endpoint, &refusal, request),
        };
        let client = request.client;
        Response::switching_protocols(Box::new(move |stream| {
            if let Err(error) = admission.open(stream) {
                tracing::error!(%client, %error, "a Platform cannot pair: no thread can be started");
            }
        }))
        .field("Upgrade", "websocket")
        .field("Connection", "Upgrade")
        .field("Sec-WebSocket-Accept", accept)
    }

    /// The operator is told what would let it in, but no stranger can fill the log.
    fn refuse_pairing(&self, endpoint: &str, refusal: &Refusal, request: &Request) -> Response {
        metrics::add(Counter::PairingsRefused, 1);
        let client = request.client;
        if let Err(wait) = self.shared.guesses.take(client_key(client), Instant::now()) {
            return error_response::too_many_guesses(Shape::Api, wait);
        }
        let shown: String = endpoint.chars().take(LONGEST_LOGGED).collect();
        let message = refusal.to_string();
        match refusal {
            Refusal::UnknownEndpoint => {
                tracing::warn!(%client, endpoint = ?shown,
                    "a pairing was refused: the endpoint is not in platform.endpoints, where it has to stand letter by letter");
                error_response::api(403, &message)
            }
            Refusal::UnknownToken { sha256 } => {
                tracing::warn!(%client,
                    "a pairing was refused. If this was your Platform, accept its token: under [platform], pairing_tokens = {{ {shown:?} = [\"{sha256}\"] }}");
                error_response::api(403, &message)
            }
            Refusal::Full => {
                tracing::warn!(%client, endpoint = ?shown, "a pairing was refused: platform.max_sessions are open");
                error_response::api(503, &message).field("Retry-After", 10)
            }
        }
    }
}

fn no_websocket(error: HandshakeError) -> Response {
    let message = error.to_string();
    match error {
        HandshakeError::NoUpgrade => {
            error_response::api(426, &message).field("Upgrade", "websocket")
        }
        HandshakeError::Version => {
            error_response::api(426, &message).field("Sec-WebSocket-Version", 13)
        }
        HandshakeError::Key => error_response::api(400, &message),
    }
}

fn endpoint(query: &str) -> Option<String> {
    let mut pairs = query.split('&');
    percent_decode(pairs.find_map(|pair| pair.strip_prefix("endpoint="))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_found_in_the_query() {
        for (query, expected) in [
            (
                "endpoint=https%3A%2F%2Fa.example%2Fapi",
                Some("https://a.example/api"),
            ),
            ("x=1&endpoint=https://a.example", Some("https://a.example")),
            ("endpoint=", Some("")),
            ("endpoint=%zz", None),
            ("endpoints=a", None),
            ("", None),
        ] {
            assert_eq!(endpoint(query).as_deref(), expected, "{query}");
        }
    }
}
