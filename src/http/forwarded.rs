//! Who the client is behind proxies. Each of them appends the address that it was asked from, so the fields are read from their
//! ends: whatever stands before the first address that is no proxy of ours was written by whom it names.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use super::{Headers, headers::trim_blanks};

/// The field in which the proxies say so. Only one: clients can send the other, and no proxy would take it away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedField {
    #[default]
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// `peer` itself, unless it is trusted to say for whom it asks.
pub fn client_behind(
    peer: IpAddr,
    headers: &Headers,
    field: ForwardedField,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> IpAddr {
    let name = match field {
        ForwardedField::XForwardedFor => "x-forwarded-for",
        ForwardedField::Forwarded => "forwarded",
    };
    let mut client = peer;
    // Several lines are one list (RFC 9110 §5.3).
    let lines = headers.all(name).rev();
    let mut named = lines.flat_map(|line| line.rsplit(','));
    while is_trusted(client) {
        // What cannot be read hides who asked: it counts as asked by the proxy that passed it on.
        let address = named.next().and_then(|element| match field {
            ForwardedField::XForwardedFor => address_in(trim_blanks(element)),
            ForwardedField::Forwarded => element.split(';').find_map(for_parameter),
        });
        match address {
            Some(address) => client = address,
            None => break,
        }
    }
    client
}

fn for_parameter(pair: &str) -> Option<IpAddr> {
    let (name, value) = pair.split_once('=')?;
    if !trim_blanks(name).eq_ignore_ascii_case("for") {
        return None;
    }
    address_in(trim_blanks(value).trim_matches('"'))
}

/// With or without a port, which some proxies add.
fn address_in(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let address = match bare.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => text.parse::<SocketAddr>().ok()?.ip(),
    };
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::parse_request;

    fn client(peer: &str, field: ForwardedField, lines: &str) -> String {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let parsed = parse_request(head.as_bytes());
        let Ok(Some((head, _))) = parsed else {
            panic!("{lines}: no head");
        };
        let peer = peer
            .parse()
            .unwrap_or_else(|error| panic!("{peer}: {error}"));
        let is_trusted = |address: IpAddr| address.to_string().starts_with("10.");
        client_behind(peer, &head.headers, field, is_trusted).to_string()
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_proxy() {
        use ForwardedField::{Forwarded, XForwardedFor};
        for (peer, field, lines, expected) in [
            // Nobody in between, whatever he says.
            (
                "192.0.2.1",
                XForwardedFor,
                "X-Forwarded-For: 198.51.100.1\r\n",
                "192.0.2.1",
            ),
            ("10.0.0.1", XForwardedFor, "", "10.0.0.1"),
            (
                "10.0.0.1",
                XForwardedFor,
                "X-Forwarded-For: 192.0.2.1\r\n",
                "192.0.2.1",
            ),
            (
                "10.0.0.1",
                XForwardedFor,
                "x-forwarded-for: 198.51.100.1, 192.0.2.1\r\n",
                "192.0.2.1",
            ),
            (
                "10.0.0.1",
                XForwardedFor,
                "X-Forwarded-For: 192.0.2.1 , 10.0.0.2\r\n",
                "192.0.2.1",
            ),
            (
                "10.0.0.1",
                XForwardedFor,
                "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 10.0.0.2\r\n",
                "192.0.2.1",
            ),
            (
                "10.0.0.1",
                XForwardedFor,
                "X-Forwarded-For: 10.0.0.3, 10.0.0.2\r\n",
                "10.0.0.3",
            ),
            (
                "10.0.0.1",
                XForwardedFor,
                "X-Forwarded-For: 198.51.100.1, unknown, 10.0.0.2\r\n",
                "10.0.0.2",
            ),
            (
                "10.0.0.1",
                XForwardedFor,
                "X-Forwarded-For: 192.0.2.1:4711\r\n",
                "192.0.2.1",
            ),
            (
                "10.0.0.1",
                XForwardedFor,
                "X-Forwarded-For: [2001:db8::1]:4711\r\n",
                "2001:db8::1",
            ),
            (
                "10.0.0.1",
                XForwardedFor,
                "X-Forwarded-For: ::ffff:192.0.2.1\r\n",
                "192.0.2.1",
            ),
            (
                "10.0.0.1",
                XForwardedFor,
                "X-Forwarded-For:\r\n",
                "10.0.0.1",
            ),
            // The other field may be the client's own.
            (
                "10.0.0.1",
                XForwardedFor,
                "Forwarded: for=192.0.2.1\r\n",
                "10.0.0.1",
            ),
            (
                "10.0.0.1",
                Forwarded,
                "X-Forwarded-For: 192.0.2.1\r\n",
                "10.0.0.1",
            ),
            (
                "10.0.0.1",
                Forwarded,
                "Forwarded: for=192.0.2.1;proto=https\r\n",
                "192.0.2.1",
            ),
            (
                "10.0.0.1",
                Forwarded,
                "Forwarded: for=198.51.100.1, by=x;For=\"[2001:db8::1]:80\"\r\n",
                "2001:db8::1",
            ),
            (
                "10.0.0.1",
                Forwarded,
                "Forwarded: for=_hidden\r\n",
                "10.0.0.1",
            ),
        ] {
            assert_eq!(client(peer, field, lines), expected, "{peer} {lines}");
        }
    }
}
