//! What we prove ourselves with to a registry.

use crate::secret::Secret;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Without one, the password is a refresh token: clients of registries agree on this, and call it an identity token.
    pub username: String,
    pub password: Secret<String>,
}

impl Credentials {
    pub fn of_refresh_token(token: Secret<String>) -> Self {
        Self {
            username: String::new(),
            password: token,
        }
    }

    /// Good at a realm only, and there by POST.
    pub fn are_a_refresh_token(&self) -> bool {
        self.username.is_empty()
    }
}
