//! Who may ask the admin listener for more than how the process does.
//!
//! Whoever reaches the listener may. The one who must not is a web page in the operator's browser: it reaches loopback
//! addresses too. So all of it must be asked for by address: under a name, a page's own site could resolve to this machine.
//! And what changes something, or carries a secret, must come with a field that no page may send to another site unasked.

use std::net::{IpAddr, SocketAddr};

use crate::http::RequestHead;

/// The field, and what it says for each part of the listener.
pub const GUARD: &str = "x-tidegate";

#[derive(Debug, thiserror::Error)]
pub(super) enum NotOperator {
    #[error("ask by IP address or localhost, not as {0}")]
    Named(String),
    #[error("this is not for web pages")]
    Foreign,
    #[error("this must come with `X-Tidegate: {0}`")]
    Unguarded(&'static str),
}

pub(super) fn ensure_asked_by_address(head: &RequestHead) -> Result<(), NotOperator> {
    let host = head.host();
    match is_address(host) {
        true => Ok(()),
        false => Err(NotOperator::Named(host.chars().take(100).collect())),
    }
}

pub(super) fn ensure_no_page(head: &RequestHead, value: &'static str) -> Result<(), NotOperator> {
    ensure_asked_by_address(head)?;
    if head.headers.get("origin").is_some() {
        return Err(NotOperator::Foreign);
    }
    match head.headers.get(GUARD) {
        Some(said) if said == value => Ok(()),
        _ => Err(NotOperator::Unguarded(value)),
    }
}

/// No site of others can be called so. An HTTP/1.0 client may leave it out; browsers do not.
fn is_address(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    host.is_empty()
        || host.parse::<SocketAddr>().is_ok()
        || bare.unwrap_or(host).parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
}
