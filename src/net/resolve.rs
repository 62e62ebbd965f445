//! From host names to addresses that we may dial.
//!
//! Callers name hosts of their choice, and this is a server: without the rule here they could make it talk
//! to a cloud's metadata service or to anything inside the operator's network. The addresses returned are
//! the ones to dial; looking a name up again could give others.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
};

/// Which addresses a host may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    Public,
    /// The operator vouches for the host: `allow_private = true`.
    Any,
}

#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("the name {host} cannot be looked up: {cause}")]
    Unknown { host: String, cause: io::Error },
    #[error(
        "{host} has a private, loopback or link-local address, to which it is not allowed to connect"
    )]
    Private { host: String },
}

/// Blocks: for the pool. `host` is a name or an address, IPv6 with or without brackets.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that looks names up"
)]
pub fn look_up(host: &str, port: u16, allowed: Addresses) -> Result<Vec<SocketAddr>, ResolveError> {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    let found: Vec<SocketAddr> = (bare, port)
        .to_socket_addrs()
        .map_err(|cause| ResolveError::Unknown {
            host: host.to_owned(),
            cause,
        })?
        .collect();
    if found.is_empty() {
        return Err(ResolveError::Unknown {
            host: host.to_owned(),
            cause: io::ErrorKind::NotFound.into(),
        });
    }
    match allowed {
        Addresses::Any => Ok(found),
        // One bad address condemns the name: a mixture is what an attacker's name server would answer.
        Addresses::Public if found.iter().all(|address| is_public(address.ip())) => Ok(found),
        Addresses::Public => Err(ResolveError::Private {
            host: host.to_owned(),
        }),
    }
}

/// Whether an address belongs to the public network (IANA special-purpose registries).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b)) // shared by carriers, and some clouds' metadata
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b == 18 || b == 19)))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(inside) = embedded_v4(address) {
        return is_public_v4(inside);
    }
    // What is in use of the global unicast space; it leaves out ::1, fc00::/7, fe80::/10 and ff00::/8.
    let [first, second, ..] = address.segments();
    first & 0xe000 == 0x2000 && !(first == 0x2001 && (second == 0x0db8 || second < 0x0200))
}

/// Addresses that end in an IPv4 address and lead to it: mapped, NAT64, 6to4.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0xffff | 0) | (0x64, 0xff9b, 0, 0, 0, 0) => Some(join(g, h)),
        (0x2002, ..) => Some(join(b, c)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for (text, expected) in [
            ("8.8.8.8", true),
            ("127.0.0.1", false),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("172.32.0.1", true),
            ("192.168.1.1", false),
            ("169.254.169.254", false),
            ("100.100.100.200", false),
            ("0.0.0.0", false),
            ("255.255.255.255", false),
            ("224.0.0.1", false),
            ("::1", false),
            ("::", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:8.8.8.8", true),
            ("::127.0.0.1", false),
            ("64:ff9b::a9fe:a9fe", false),
            ("2002:7f00:1::", false),
            ("fe80::1", false),
            ("fd00:ec2::254", false),
            ("2606:4700::1111", true),
            ("2001:db8::1", false),
            ("2001:0:1::", false),
            ("ff02::1", false),
        ] {
            let address: IpAddr = text.parse().expect(text);
            assert_eq!(is_public(address), expected, "{text}");
        }
    }

    #[test]
    fn loopback_needs_the_operators_word() {
        assert!(matches!(
            look_up("127.0.0.1", 80, Addresses::Public),
            Err(ResolveError::Private { .. })
        ));
        assert!(matches!(
            look_up("[::1]", 80, Addresses::Public),
            Err(ResolveError::Private { .. })
        ));
        assert_eq!(
            look_up("[::1]", 80, Addresses::Any).expect("allowed"),
            ["[::1]:80".parse().expect("an address")]
        );
    }
}
