//! HTTP Basic for the accounts of the configuration (RFC 7617).

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{credentials::hash_access_token, http::Headers};

/// Whether the request names an account and its password. Comparing hashes tells nothing of the password,
/// however long it takes.
pub(super) fn is_account(headers: &Headers, accounts: &BTreeMap<String, String>) -> bool {
    let pair = headers
        .get("authorization")
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
        .and_then(|(_, encoded)| STANDARD.decode(encoded.trim()).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let Some((name, password)) = pair.as_deref().and_then(|pair| pair.split_once(':')) else {
        return false;
    };
    accounts
        .get(name)
        .is_some_and(|hash| *hash == hash_access_token(password))
}
