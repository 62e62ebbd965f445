//! The messages on a pairing socket: JSON objects, told apart by `@type`.
//!
//! What comes in is read as tolerantly as the other side reads: properties in any order, unknown ones and unknown types
//! passed over, absent and null alike. Bodies hold logins and tokens, so no error quotes what it could not read.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::{
    keys::PublicRecord,
    transport::{Request, Response},
};
use crate::secret::Secret;

/// Ties an answer to its request. To the other side it means nothing.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct MessageId(String);

impl MessageId {
    /// Twelve hex digits.
    pub fn random() -> Self {
        let mut bytes = [0; 6];
        SystemRandom::new()
            .fill(&mut bytes)
            .expect("the system has a random generator");
        let mut text = String::with_capacity(12);
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for MessageId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What a Platform sends.
#[derive(Debug)]
pub enum Incoming {
    Heartbeat,
    Answer {
        to: MessageId,
        response: Response,
    },
    /// Of a type that means nothing to us.
    Other,
}

/// No JSON object, or one whose properties are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message that cannot be read, from column {column} on")]
pub struct MessageError {
    column: usize,
}

impl Incoming {
    pub fn parse(text: &str) -> Result<Self, MessageError> {
        let malformed = |error: serde_json::Error| MessageError {
            column: error.column(),
        };
        // An array would be taken for the properties in their order.
        if !text.trim_start().starts_with('{') {
            return Err(MessageError { column: 1 });
        }
        let head: Head = serde_json::from_str(text).map_err(malformed)?;
        match head.kind.as_deref() {
            Some("pairing-heartbeat") => Ok(Self::Heartbeat),
            Some("proxy-http-response") => {
                let answer: Answer = serde_json::from_str(text).map_err(malformed)?;
                Ok(Self::Answer {
                    to: MessageId(answer.id),
                    response: Response {
                        status: answer.status,
                        fields: fields(answer.headers.unwrap_or_default()),
                        body: answer.body.unwrap_or_default(),
                    },
                })
            }
            _ => Ok(Self::Other),
        }
    }
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "@type", default, borrow)]
    kind: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "msgId")]
    id: String,
    status: u16,
    body: Option<Secret<String>>,
    headers: Option<BTreeMap<String, Option<Values>>>,
}

/// An array as documented; some JSON libraries unwrap one that has a single element.
#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    Many(Vec<Option<Secret<String>>>),
    One(Secret<String>),
}

fn fields(headers: BTreeMap<String, Option<Values>>) -> Vec<(String, Secret<String>)> {
    let mut fields = Vec::new();
    for (mut name, values) in headers {
        name.make_ascii_lowercase();
        let values = match values {
            Some(Values::Many(values)) => values.into_iter().flatten().collect(),
            Some(Values::One(value)) => vec![value],
            None => Vec::new(),
        };
        fields.extend(values.into_iter().map(|value| (name.clone(), value)));
    }
    fields
}

#[derive(Serialize)]
#[serde(
    tag = "@type",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase"
)]
enum Outgoing<'a> {
    PairingResponse {
        msg_id: &'a str,
        pairing_id: &'a str,
        public_key: &'a str,
    },
    PairingHeartbeat {
        msg_id: &'a str,
    },
    ProxyHttpRequest {
        msg_id: &'a str,
        method: &'a str,
        uri: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        auth: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        body: Option<&'a str>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<&'a str, [&'a str; 1]>,
    },
}

/// The first message of a session: for which key the Platform is to encrypt.
pub fn pairing_response(record: &PublicRecord) -> String {
    print(&Outgoing::PairingResponse {
        msg_id: MessageId::random().as_str(),
        pairing_id: &record.pairing_id,
        public_key: &record.public_key,
    })
}

pub fn heartbeat() -> String {
    print(&Outgoing::PairingHeartbeat {
        msg_id: MessageId::random().as_str(),
    })
}

pub fn http_request(id: &MessageId, request: &Request) -> Secret<String> {
    let body = request.body.as_ref();
    Secret::new(print(&Outgoing::ProxyHttpRequest {
        msg_id: id.as_str(),
        method: request.method,
        uri: &request.url,
        auth: request
            .authorization
            .as_ref()
            .map(|value| value.expose().as_str()),
        body: body.map(|(_, content)| content.expose().as_str()),
        headers: body
            .map(|(media_type, _)| ("content-type", [*media_type]))
            .into_iter()
            .collect(),
    }))
}

fn print(message: &Outgoing<'_>) -> String {
    serde_json::to_string(message).expect("text can be written")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(text: &str) -> Incoming {
        Incoming::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn answer(text: &str) -> (String, Response) {
        match parse(text) {
            Incoming::Answer { to, response } => (to.0, response),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn an_answer_is_read_whatever_the_order_of_its_properties() {
        for text in [
            r#"{"@type":"proxy-http-response","msgId":"9e8d7c6b5a41","status":200,"body":"{\"user\":1}","headers":{"content-type":["application/json"],"Set-Cookie":["JWT=a","JWT_REFRESH_TOKEN=b"]}}"#,
            r#"{"headers":{"Set-Cookie":["JWT=a",null,"JWT_REFRESH_TOKEN=b"],"content-type":"application/json","x":null},"body":"{\"user\":1}","status":200,"msgId":"9e8d7c6b5a41","of-tomorrow":{"a":[1]},"@type":"proxy-http-response"}"#,
        ] {
            let (to, response) = answer(text);
            assert_eq!(to, "9e8d7c6b5a41", "{text}");
            assert_eq!(response.status, 200, "{text}");
            assert_eq!(response.body.expose(), "{\"user\":1}", "{text}");
            let cookies: Vec<_> = response.field("set-cookie").map(Secret::expose).collect();
            assert_eq!(cookies, ["JWT=a", "JWT_REFRESH_TOKEN=b"], "{text}");
            assert_eq!(response.field("content-type").count(), 1, "{text}");
        }
    }

    #[test]
    fn absent_and_null_are_alike() {
        for more in ["", r#","body":null,"headers":null"#, r#","headers":{}"#] {
            let text =
                format!(r#"{{"@type":"proxy-http-response","msgId":"1","status":404{more}}}"#);
            let (_, response) = answer(&text);
            assert_eq!(response.status, 404, "{text}");
            assert!(
                response.body.expose().is_empty() && response.fields.is_empty(),
                "{text}"
            );
        }
    }

    #[test]
    fn other_messages_are_told_apart() {
        for (text, expected) in [
            (
                r#"{"@type":"pairing-heartbeat","msgId":"0a1b2c3d4e5f"}"#,
                "Heartbeat",
            ),
            (r#"{"@type":"pairing-heartbeat"}"#, "Heartbeat"),
            (r#"{"@type":"of-tomorrow","msgId":"1"}"#, "Other"),
            (r#"{"@type":null}"#, "Other"),
            ("{}", "Other"),
        ] {
            assert_eq!(format!("{:?}", parse(text)), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error_that_quotes_nothing() {
        for text in [
            "",
            "null",
            "[]",
            r#"["pairing-heartbeat"]"#,
            "{",
            "secret",
            r#"{"@type":7}"#,
            r#"{"@type":"proxy-http-response","status":200}"#,
            r#"{"@type":"proxy-http-response","msgId":"1"}"#,
            r#"{"@type":"proxy-http-response","msgId":"1","status":"secret"}"#,
            r#"{"@type":"proxy-http-response","msgId":"1","status":65536}"#,
            r#"{"@type":"proxy-http-response","msgId":"1","status":200,"body":["secret"]}"#,
            r#"{"@type":"proxy-http-response","msgId":"1","status":200} secret"#,
        ] {
            let error = Incoming::parse(text).err();
            let error = error.unwrap_or_else(|| panic!("{text} was read"));
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
    }

    #[test]
    fn what_is_passed_over_may_be_as_deep_as_it_likes() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let text = format!(r#"{{"x":{deep}}}"#);
        assert!(matches!(Incoming::parse(&text), Ok(Incoming::Other)));
    }

    #[test]
    fn a_request_says_what_it_has_and_nothing_else() {
        let mut request = Request {
            method: "GET",
            url: "https://api.cloud.seqera.io/user-info".to_owned(),
            authorization: Some(Secret::new("Bearer eyJ".to_owned())),
            body: None,
        };
        let id = MessageId::from("9e8d7c6b5a41");
        let read = |request: &Request| -> Value {
            serde_json::from_str(http_request(&id, request).expose()).expect("JSON")
        };
        assert_eq!(
            read(&request),
            json!({
                "@type": "proxy-http-request", "msgId": "9e8d7c6b5a41", "method": "GET",
                "uri": "https://api.cloud.seqera.io/user-info", "auth": "Bearer eyJ",
            })
        );
        request.authorization = None;
        request.body = Some((
            "application/x-www-form-urlencoded",
            Secret::new("a=\"b\"".to_owned()),
        ));
        let read = read(&request);
        assert_eq!(read["body"], "a=\"b\"");
        assert_eq!(read["auth"], Value::Null);
        assert_eq!(
            read["headers"],
            json!({"content-type": ["application/x-www-form-urlencoded"]})
        );
    }

    #[test]
    fn sessions_begin_with_the_key_and_heartbeats_have_ids_of_their_own() {
        let record = PublicRecord {
            pairing_id: "161028477311234".to_owned(),
            public_key: "MIIB".to_owned(),
        };
        let read: Value = serde_json::from_str(&pairing_response(&record)).expect("JSON");
        assert_eq!(read["@type"], "pairing-response");
        assert_eq!(read["pairingId"], "161028477311234");
        assert_eq!(read["publicKey"], "MIIB");
        let id = read["msgId"].as_str().expect("text");
        assert!(
            id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()),
            "{id}"
        );
        let read: Value = serde_json::from_str(&heartbeat()).expect("JSON");
        assert_eq!(read["@type"], "pairing-heartbeat");
        assert_ne!(heartbeat(), heartbeat());
    }
}
