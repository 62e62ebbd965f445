//! How a request reaches a Platform: through the socket that it opened to us, or straight over HTTPS.

use std::time::Instant;

use crate::secret::Secret;

/// One call of the Platform's API.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: &'static str,
    /// Absolute: the endpoint and the call's path and query.
    pub url: String,
    /// A whole `Authorization` value.
    pub authorization: Option<Secret<String>>,
    /// With its media type.
    pub body: Option<(&'static str, Secret<String>)>,
}

/// What the Platform said to it, whatever the status.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// By lower-case names, in the order sent. Refreshed tokens come in them, so they are as secret as the body.
    pub fields: Vec<(String, Secret<String>)>,
    pub body: Secret<String>,
}

impl Response {
    /// All values of the field, in order.
    pub fn field(&self, lower_case_name: &str) -> impl Iterator<Item = &Secret<String>> {
        let fields = self.fields.iter();
        fields.filter_map(move |(name, value)| (name == lower_case_name).then_some(value))
    }
}

/// Why no answer came. None of these says anything about the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// Known at once; no deadline was waited for.
    #[error("no Platform has opened its pairing socket for {endpoint}")]
    NotPaired { endpoint: String },
    #[error("the Platform at {endpoint} did not answer in time")]
    TimedOut { endpoint: String },
    #[error("the Platform at {endpoint} cannot be reached: {cause}")]
    Unreachable { endpoint: String, cause: String },
}

/// Two ways: the pairing socket and HTTPS.
pub trait Transport: Send + Sync {
    /// Blocks until the answer is there, `deadline` at the latest. Sends again by itself what may be sent again.
    fn exchange(
        &self,
        endpoint: &str,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, TransportError>;
}
