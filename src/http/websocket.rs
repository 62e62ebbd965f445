//! The opening handshake of WebSocket (RFC 6455 §4.2): an upgrade that the server proves to have understood.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use super::{BodyLength, Method, RequestHead, Version};

/// RFC 6455 §1.3. The hash keeps nobody out; it only shows that the upgrade was meant.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error(
        "this path is for WebSocket: an HTTP/1.1 GET with `Connection: Upgrade` and `Upgrade: websocket`"
    )]
    NoUpgrade,
    #[error("only version 13 of WebSocket is spoken here")]
    Version,
    #[error("Sec-WebSocket-Key is not 16 bytes in Base64")]
    Key,
}

/// The value of `Sec-WebSocket-Accept`. Extensions and sub-protocols that are offered may be declined by silence.
pub fn accept_websocket(head: &RequestHead) -> Result<String, HandshakeError> {
    let headers = &head.headers;
    if head.method != Method::Get
        || head.version != Version::Http11
        || head.body != BodyLength::Empty
        || !headers.has_token("connection", "upgrade")
        || !headers.has_token("upgrade", "websocket")
    {
        return Err(HandshakeError::NoUpgrade);
    }
    if headers.get("sec-websocket-version") != Some("13") {
        return Err(HandshakeError::Version);
    }
    let key = headers.get("sec-websocket-key").unwrap_or_default();
    let is_key = STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16);
    if !is_key || headers.all("sec-websocket-key").count() != 1 {
        return Err(HandshakeError::Key);
    }
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    Ok(STANDARD.encode(hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::parse_request;

    fn accept(request_line: &str, fields: &str) -> Result<String, HandshakeError> {
        let text = format!("{request_line}\r\nHost: a\r\n{fields}\r\n");
        let parsed = parse_request(text.as_bytes());
        let (head, _) = parsed
            .ok()
            .flatten()
            .unwrap_or_else(|| panic!("{text} is a head"));
        accept_websocket(&head)
    }

    #[test]
    fn the_example_of_the_specification_is_accepted() {
        // RFC 6455 §1.3
        let fields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                      Sec-WebSocket-Version: 13\r\n";
        assert_eq!(
            accept("GET /chat HTTP/1.1", fields).as_deref(),
            Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        );
        let spelt = fields
            .replace("Connection: Upgrade", "Connection: keep-alive, uPGRADE")
            .replace("websocket", "WebSocket");
        assert!(accept("GET /chat HTTP/1.1", &spelt).is_ok());
        for (from, to, error) in [
            (
                "Upgrade: websocket",
                "Upgrade: h2c",
                HandshakeError::NoUpgrade,
            ),
            ("Connection: Upgrade", "X: y", HandshakeError::NoUpgrade),
            ("Version: 13", "Version: 8", HandshakeError::Version),
            ("Version: 13", "Version: 13, 8", HandshakeError::Version),
            ("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", HandshakeError::Key),
            (
                "dGhlIHNhbXBsZSBub25jZQ==",
                "dGhlIHNhbXBsZSBub25jZQ",
                HandshakeError::Key,
            ),
            ("Sec-WebSocket-Key:", "X:", HandshakeError::Key),
            (
                "Sec-WebSocket-Key:",
                "Sec-WebSocket-Key: a\r\nSec-WebSocket-Key:",
                HandshakeError::Key,
            ),
        ] {
            let changed = fields.replace(from, to);
            assert_eq!(
                accept("GET /chat HTTP/1.1", &changed),
                Err(error),
                "{changed}"
            );
        }
        for line in [
            "HEAD /chat HTTP/1.1",
            "POST /chat HTTP/1.1",
            "GET /chat HTTP/1.0",
        ] {
            assert_eq!(
                accept(line, fields),
                Err(HandshakeError::NoUpgrade),
                "{line}"
            );
        }
    }
}
