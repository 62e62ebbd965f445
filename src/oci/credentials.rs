//! What we prove ourselves with to a registry.

use crate::secret::Secret;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: Secret<String>,
}
