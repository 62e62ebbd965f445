//! As whom we come before a registry, and the value that says so.

use std::{fmt, pin::Pin, rc::Rc, sync::Arc};

use super::error::Said;
use crate::{oci::Credentials, secret::Secret};

/// In messages, for a login without credentials.
pub(super) const ANONYMOUS: &str = "anonymous access";

/// Who asks. The identity stands for the credentials in keys, also when they are renewed; it is not a secret.
#[derive(Clone, Debug)]
pub struct Login {
    pub credentials: Option<Credentials>,
    pub identity: Arc<str>,
    /// Of credentials that end.
    pub renewal: Option<Renewal>,
}

/// Brings other credentials for those that have ended, if there are any.
#[derive(Clone)]
pub struct Renewal(Rc<Renew>);

type Renew = dyn Fn() -> Pin<Box<dyn Future<Output = Option<Credentials>>>>;

impl Renewal {
    pub fn new<F>(renew: impl Fn() -> F + 'static) -> Self
    where
        F: Future<Output = Option<Credentials>> + 'static,
    {
        Self(Rc::new(move || Box::pin(renew())))
    }
}

impl fmt::Debug for Renewal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Renewal")
    }
}

impl Login {
    pub fn who(&self) -> &'static str {
        if self.credentials.is_some() {
            "these credentials"
        } else {
            ANONYMOUS
        }
    }

    /// `None`: there is nothing better. What comes is not renewed again.
    pub(super) async fn renewed(&self) -> Option<Self> {
        let Renewal(renew) = self.renewal.as_ref()?;
        let credentials = renew().await?;
        Some(Self {
            credentials: Some(credentials),
            identity: Arc::clone(&self.identity),
            renewal: None,
        })
    }
}

/// Whether this refusal is about credentials that were good once. ECR says so with 403, like everything that is not
/// allowed; ECR Public with 400.
pub(super) fn has_login_ended(status: u16, said: &Said) -> bool {
    let text = said.0.as_deref().unwrap_or_default();
    match status {
        401 => true,
        400 | 403 => [
            "authorization token has expired",
            "security token included in the request",
            "Authorization Token is invalid",
        ]
        .iter()
        .any(|words| text.contains(words)),
        _ => false,
    }
}

/// A value for `Authorization`.
#[derive(Clone)]
pub(super) enum Authorization {
    Basic(Secret<String>),
    Bearer {
        value: Secret<String>,
        /// Made for this request, so another would be no better.
        is_fresh: bool,
        scope: String,
    },
}

impl Authorization {
    pub(super) fn value(&self) -> &Secret<String> {
        match self {
            Self::Basic(value) | Self::Bearer { value, .. } => value,
        }
    }

    /// What follows the scheme.
    pub(super) fn secret_part(&self) -> &str {
        let value = self.value().expose();
        value.split_once(' ').map_or(value, |(_, part)| part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_login_is_told_from_a_right_that_is_missing() {
        for (status, said, expected) in [
            (401, "UNAUTHORIZED: Not Authorized", true),
            (
                403,
                "DENIED: Your authorization token has expired. Reauthenticate and try again.",
                true,
            ),
            (
                403,
                "DENIED: The security token included in the request is invalid",
                true,
            ),
            (
                403,
                "DENIED: User: arn:aws:iam::1:user/x is not authorized to perform: ecr:BatchGetImage",
                false,
            ),
            (400, "DENIED: Your Authorization Token is invalid.", true),
            (400, "TAG_INVALID: no", false),
            (404, "Your authorization token has expired", false),
        ] {
            let said = Said(Some(said.to_owned()));
            assert_eq!(has_login_ended(status, &said), expected, "{status} {said}");
        }
    }
}
