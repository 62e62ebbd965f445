//! What AWS answers, in its two spellings: XML of STS, JSON of all others. Pure, and total: a service may send
//! anything.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::Value;

use super::Keys;
use crate::secret::Secret;

/// Far more than any answer that is known here.
const MOST_NODES: u32 = 10_000;
const LONGEST_TEXT: usize = 400;

/// Keys, and the instant they end at if they do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LentKeys {
    pub keys: Keys,
    pub expires: Option<SystemTime>,
}

/// A registry's password and its end, by AWS's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryPassword {
    pub password: Secret<String>,
    pub expires: Option<SystemTime>,
}

/// What AWS said no with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorText {
    /// `AccessDenied`, without a namespace.
    pub code: Option<String>,
    /// One line. May name keys' owners and resources, and repeat what was signed.
    pub message: Option<String>,
}

/// Of AssumeRole and AssumeRoleWithWebIdentity.
pub fn assumed_role(xml: &str) -> Option<LentKeys> {
    let document = parse_xml(xml)?;
    let credentials = find(&document, "Credentials")?;
    let field = |name: &str| {
        let node = credentials.children().find(|it| it.has_tag_name_of(name))?;
        node.text().map(str::trim).filter(|text| !text.is_empty())
    };
    Some(LentKeys {
        keys: Keys {
            id: field("AccessKeyId")?.to_owned(),
            secret: Secret::new(field("SecretAccessKey")?.to_owned()),
            session_token: Some(Secret::new(field("SessionToken")?.to_owned())),
        },
        expires: field("Expiration").and_then(instant),
    })
}

/// Of GetCallerIdentity: the ARN.
pub fn caller_identity(xml: &str) -> Option<String> {
    let document = parse_xml(xml)?;
    let node = find(&document, "Arn")?;
    node.text().map(str::trim).map(one_line)
}

/// Of both GetAuthorizationToken: a list in one service, an object in the other.
pub fn authorization_token(json: &str) -> Option<RegistryPassword> {
    let answer: Value = serde_json::from_str(json).ok()?;
    let data = match answer.get("authorizationData")? {
        Value::Array(list) => list.first()?,
        data => data,
    };
    let token = data.get("authorizationToken")?.as_str()?;
    let pair = Secret::new(STANDARD.decode(token).ok()?);
    let pair = str::from_utf8(pair.expose()).ok()?;
    let password = pair.strip_prefix("AWS:")?;
    if password.is_empty() {
        return None;
    }
    Some(RegistryPassword {
        password: Secret::new(password.to_owned()),
        expires: data
            .get("expiresAt")
            .and_then(Value::as_f64)
            .and_then(seconds),
    })
}

/// Of the container service, of an instance's metadata (`Token`), and of a `credential_process` (`SessionToken`).
pub fn lent_keys(json: &str) -> Option<LentKeys> {
    let answer: Value = serde_json::from_str(json).ok()?;
    let field = |name: &str| {
        let text = answer.get(name)?.as_str()?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    Some(LentKeys {
        keys: Keys {
            id: field("AccessKeyId")?,
            secret: Secret::new(field("SecretAccessKey")?),
            session_token: field("Token")
                .or_else(|| field("SessionToken"))
                .map(Secret::new),
        },
        expires: field("Expiration").as_deref().and_then(instant),
    })
}

/// An error's code and words, in whichever spelling. `field` is `x-amzn-ErrorType`.
pub fn error_text(field: Option<&str>, body: &str) -> ErrorText {
    let (code, message) = match serde_json::from_str::<Value>(body) {
        Ok(answer) => {
            let first = |names: &[&str]| {
                let found = names.iter().find_map(|name| answer.get(*name)?.as_str());
                found.map(str::to_owned)
            };
            (
                first(&["__type", "code", "Code"]),
                first(&["message", "Message"]),
            )
        }
        Err(_) => match parse_xml(body) {
            Some(document) => {
                let text = |name: &str| find(&document, name)?.text().map(str::to_owned);
                (text("Code"), text("Message"))
            }
            None => (None, None),
        },
    };
    let code = code.or_else(|| field.map(str::to_owned));
    ErrorText {
        code: code
            .map(|code| bare_code(&code))
            .filter(|code| !code.is_empty()),
        message: message
            .map(|message| one_line(&message))
            .filter(|message| !message.is_empty()),
    }
}

/// `com.amazon.coral.service#AccessDenied:http://…` is `AccessDenied`.
fn bare_code(text: &str) -> String {
    let text = text.rsplit_once('#').map_or(text, |(_, code)| code);
    let text = text.split_once(':').map_or(text, |(code, _)| code);
    one_line(text)
}

fn parse_xml(text: &str) -> Option<Document<'_>> {
    let options = ParsingOptions {
        // No entities of its own, which could blow it up.
        allow_dtd: false,
        nodes_limit: MOST_NODES,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(text, options).ok()
}

fn find<'a, 'input>(document: &'a Document<'input>, name: &str) -> Option<Node<'a, 'input>> {
    document
        .descendants()
        .find(|node| node.has_tag_name_of(name))
}

trait InAnyNamespace {
    /// Each service and version has its own namespace.
    fn has_tag_name_of(&self, name: &str) -> bool;
}

impl InAnyNamespace for Node<'_, '_> {
    fn has_tag_name_of(&self, name: &str) -> bool {
        self.is_element() && self.tag_name().name() == name
    }
}

fn instant(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

fn seconds(since_1970: f64) -> Option<SystemTime> {
    let since = Duration::try_from_secs_f64(since_1970).ok()?;
    UNIX_EPOCH.checked_add(since)
}

fn one_line(text: &str) -> String {
    let printable = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c });
    printable.take(LONGEST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_that_was_assumed_is_read() {
        for expiration in ["2026-03-05T17:06:07Z", "2026-03-05T17:06:07.123456Z"] {
            let xml = format!(
                "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult>\
                 <SourceIdentity/><Credentials><AccessKeyId>ASIAX</AccessKeyId>\
                 <SecretAccessKey>a&amp;b</SecretAccessKey><SessionToken>t\n</SessionToken>\
                 <Expiration>{expiration}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
            );
            let lent = assumed_role(&xml).unwrap_or_else(|| panic!("{xml}"));
            assert_eq!(lent.keys.id, "ASIAX");
            assert_eq!(lent.keys.secret.expose(), "a&b");
            assert_eq!(lent.keys.session_token, Some(Secret::new("t".to_owned())));
            let since = lent.expires.expect("it ends").duration_since(UNIX_EPOCH);
            assert_eq!(since.expect("after 1970").as_secs(), 1_772_730_367);
        }
        for xml in [
            "",
            "<a/>",
            "<Credentials><AccessKeyId>x</AccessKeyId></Credentials>",
            "<!DOCTYPE a [<!ENTITY b \"c\">]><Credentials>&b;</Credentials>",
            "{}",
        ] {
            assert_eq!(assumed_role(xml), None, "{xml}");
        }
    }

    #[test]
    fn passwords_come_in_lists_and_alone_and_end_in_every_number() {
        // AWS:pass:word
        const TOKEN: &str = "QVdTOnBhc3M6d29yZA==";
        for (expires, seconds) in [
            ("1700000000", Some(1_700_000_000)),
            ("1700000000.25", Some(1_700_000_000)),
            ("1.7E9", Some(1_700_000_000)),
            ("-1", None),
            ("1e300", None),
            ("\"soon\"", None),
        ] {
            let data = format!("{{\"authorizationToken\":\"{TOKEN}\",\"expiresAt\":{expires}}}");
            for data in [format!("[{data}]"), data] {
                let json = format!("{{\"authorizationData\":{data}}}");
                let found = authorization_token(&json).unwrap_or_else(|| panic!("{json}"));
                assert_eq!(found.password.expose(), "pass:word", "{json}");
                let since = found.expires.map(|end| {
                    end.duration_since(UNIX_EPOCH)
                        .expect("after 1970")
                        .as_secs()
                });
                assert_eq!(since, seconds, "{json}");
            }
        }
        for json in [
            "",
            "{}",
            r#"{"authorizationData":[]}"#,
            r#"{"authorizationData":[{"authorizationToken":"!"}]}"#,
            r#"{"authorizationData":{"authorizationToken":"QVdTOg=="}}"#,
            r#"{"authorizationData":{"authorizationToken":"YWRhOng="}}"#,
        ] {
            assert_eq!(authorization_token(json), None, "{json}");
        }
    }

    #[test]
    fn lent_keys_are_read_in_the_shapes_that_exist() {
        for (json, token) in [
            (
                r#"{"AccessKeyId":"A","SecretAccessKey":"s","Token":"t","Expiration":"2026-03-05T17:06:07Z"}"#,
                Some("t"),
            ),
            (
                r#"{"Version":1,"AccessKeyId":"A","SecretAccessKey":"s","SessionToken":"t"}"#,
                Some("t"),
            ),
            (r#"{"AccessKeyId":"A","SecretAccessKey":"s"}"#, None),
        ] {
            let lent = lent_keys(json).unwrap_or_else(|| panic!("{json}"));
            assert_eq!(lent.keys.id, "A", "{json}");
            let expected = token.map(|token| Secret::new(token.to_owned()));
            assert_eq!(lent.keys.session_token, expected, "{json}");
        }
        for json in [
            "",
            "[]",
            r#"{"Code":"Failed"}"#,
            r#"{"AccessKeyId":"A","SecretAccessKey":""}"#,
        ] {
            assert_eq!(lent_keys(json), None, "{json}");
        }
    }

    #[test]
    fn errors_are_read_in_every_spelling() {
        for (field, body, code, message) in [
            (
                None,
                r#"{"__type":"com.amazon.coral.service#AccessDeniedException","Message":"User: x is not authorized"}"#,
                Some("AccessDeniedException"),
                Some("User: x is not authorized"),
            ),
            (
                Some("AccessDeniedException:http://internal.amazon.com/coral/"),
                r#"{"message":"no"}"#,
                Some("AccessDeniedException"),
                Some("no"),
            ),
            (
                None,
                "<ErrorResponse xmlns=\"https://sts\"><Error><Type>Sender</Type><Code>ExpiredToken</Code><Message>over\nnow</Message></Error></ErrorResponse>",
                Some("ExpiredToken"),
                Some("over now"),
            ),
            (None, "<html><body>oops</body></html>", None, None),
            (None, "", None, None),
        ] {
            let text = error_text(field, body);
            assert_eq!(text.code.as_deref(), code, "{body}");
            assert_eq!(text.message.as_deref(), message, "{body}");
        }
    }

    /// On a thread of the pool, with a stack like this one's.
    #[test]
    fn deep_nesting_ends_in_nothing() {
        for depth in [1_000, 9_000, 300_000] {
            let open = "<a>".repeat(depth);
            let closed = format!("{open}{}", "</a>".repeat(depth));
            for xml in [open, closed] {
                assert_eq!(caller_identity(&xml), None);
                assert_eq!(error_text(None, &xml), ErrorText::default());
            }
        }
        let json = "[".repeat(1 << 20);
        assert_eq!(lent_keys(&json), None);
        assert_eq!(authorization_token(&json), None);
    }

    #[test]
    fn the_caller_is_named() {
        let xml = "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/ada</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>";
        assert_eq!(
            caller_identity(xml).as_deref(),
            Some("arn:aws:iam::123456789012:user/ada")
        );
    }
}
