//! AWS Signature Version 4, for services other than S3: from a request and keys to header fields. Pure.

use std::time::SystemTime;

use ring::{digest, hmac};

use super::Keys;
use crate::secret::Secret;

/// What is signed, as it goes over the wire.
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// Percent-encoded already.
    pub query: &'a str,
    /// `host` is among them; all of them are signed.
    pub fields: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
}

/// What a signature is good for, besides a day.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    pub region: &'a str,
    pub service: &'a str,
}

/// The fields that the signature adds to the request.
pub fn sign(
    request: &Request<'_>,
    keys: &Keys,
    scope: Scope<'_>,
    time: SystemTime,
) -> Vec<(&'static str, Secret<String>)> {
    let time = timestamp(time);
    let mut added = vec![("x-amz-date", Secret::new(time.clone()))];
    if let Some(token) = &keys.session_token {
        added.push(("x-amz-security-token", token.clone()));
    }
    let signed: Vec<(&str, &str)> = request
        .fields
        .iter()
        .copied()
        .chain(
            added
                .iter()
                .map(|(name, value)| (*name, value.expose().as_str())),
        )
        .collect();
    let (canonical, names) = canonical_request(request, &signed);
    let date = time.get(..8).unwrap_or(&time);
    let scope_text = format!("{date}/{}/{}/aws4_request", scope.region, scope.service);
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{time}\n{scope_text}\n{}",
        sha256(canonical.expose().as_bytes())
    );
    let key = signing_key(keys, date, scope);
    let signature = hex(mac(&key, &to_sign).as_ref());
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope_text}, SignedHeaders={names}, Signature={signature}",
        keys.id
    );
    added.push(("authorization", Secret::new(authorization)));
    added
}

/// `20150830T123600Z`
fn timestamp(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.chars().filter(|c| !matches!(c, '-' | ':')).collect()
}

/// With the names of the signed fields. Secret for its session token.
fn canonical_request(request: &Request<'_>, signed: &[(&str, &str)]) -> (Secret<String>, String) {
    let mut fields: Vec<(String, String)> = Vec::new();
    for (name, value) in signed {
        let name = name.to_ascii_lowercase();
        let value = value.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        match fields.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => {
                values.push(',');
                values.push_str(&value);
            }
            None => fields.push((name, value)),
        }
    }
    fields.sort();
    let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let mut text = format!(
        "{}\n{}\n{}\n",
        request.method,
        canonical_path(request.path),
        canonical_query(request.query)
    );
    for (name, value) in &fields {
        text.push_str(&format!("{name}:{value}\n"));
    }
    text.push_str(&format!("\n{names}\n{}", sha256(request.body)));
    (Secret::new(text), names)
}

/// Dot segments and double slashes resolved, and what is left encoded once more than it is sent.
fn canonical_path(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let ends_open = path.ends_with('/') || path.ends_with("/.") || path.ends_with("/..");
    let mut text = String::from("/");
    for byte in segments.join("/").bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    if ends_open && text.len() > 1 {
        text.push('/');
    }
    text
}

fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<(&str, &str)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join("&")
}

fn signing_key(keys: &Keys, date: &str, scope: Scope<'_>) -> hmac::Key {
    let seed = Secret::new(format!("AWS4{}", keys.secret.expose()));
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, seed.expose().as_bytes());
    for part in [date, scope.region, scope.service, "aws4_request"] {
        key = hmac::Key::new(hmac::HMAC_SHA256, mac(&key, part).as_ref());
    }
    key
}

fn mac(key: &hmac::Key, text: &str) -> hmac::Tag {
    hmac::sign(key, text.as_bytes())
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    /// 2015-08-30T12:36:00Z
    const TIME: Duration = Duration::from_secs(1_440_938_160);
    const TOKEN: &str = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";

    /// Of the public suite, by its names, and a call of ECR.
    #[test]
    fn signatures_are_those_of_the_public_suite() {
        const UNRESERVED: &str =
            "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let unreserved_query = format!("{UNRESERVED}={UNRESERVED}");
        let unreserved_path = format!("/{UNRESERVED}");
        let none: &[(&str, &str)] = &[];
        let vanilla = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";
        for (name, method, path, query, fields, body, token, signature) in [
            ("get-vanilla", "GET", "/", "", none, "", "", vanilla),
            (
                "get-relative-relative",
                "GET",
                "/example1/example2/../..",
                "",
                none,
                "",
                "",
                vanilla,
            ),
            ("get-slash", "GET", "//", "", none, "", "", vanilla),
            (
                "get-slash-dot-slash",
                "GET",
                "/./",
                "",
                none,
                "",
                "",
                vanilla,
            ),
            (
                "get-slash-pointless-dot",
                "GET",
                "/./example",
                "",
                none,
                "",
                "",
                "ef75d96142cf21edca26f06005da7988e4f8dc83a165a80865db7089db637ec5",
            ),
            (
                "get-slashes",
                "GET",
                "//example//",
                "",
                none,
                "",
                "",
                "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84",
            ),
            (
                "get-space",
                "GET",
                "/example space/",
                "",
                none,
                "",
                "",
                "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741",
            ),
            (
                "get-utf8",
                "GET",
                "/\u{1234}",
                "",
                none,
                "",
                "",
                "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
            ),
            (
                "get-unreserved",
                "GET",
                unreserved_path.as_str(),
                "",
                none,
                "",
                "",
                "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
            ),
            (
                "get-vanilla-query-unreserved",
                "GET",
                "/",
                unreserved_query.as_str(),
                none,
                "",
                "",
                "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
            ),
            (
                "get-vanilla-query-order-key-case",
                "GET",
                "/",
                "Param2=value2&Param1=value1",
                none,
                "",
                "",
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "get-vanilla-query-order-value",
                "GET",
                "/",
                "Param1=value2&Param1=value1",
                none,
                "",
                "",
                "5772eed61e12b33fae39ee5e7012498b51d56abc0abb7c60486157bd471c4694",
            ),
            (
                "get-header-value-trim",
                "GET",
                "/",
                "",
                &[("My-Header1", " value1"), ("My-Header2", " \"a   b   c\"")],
                "",
                "",
                "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
            ),
            (
                "get-header-key-duplicate",
                "GET",
                "/",
                "",
                &[
                    ("My-Header1", "value2"),
                    ("My-Header1", "value2"),
                    ("My-Header1", "value1"),
                ],
                "",
                "",
                "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
            ),
            (
                "post-vanilla",
                "POST",
                "/",
                "",
                none,
                "",
                "",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "post-x-www-form-urlencoded",
                "POST",
                "/",
                "",
                &[("Content-Type", "application/x-www-form-urlencoded")],
                "Param1=value1",
                "",
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
            (
                "post-sts-header-before",
                "POST",
                "/",
                "",
                none,
                "",
                TOKEN,
                "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
            ),
        ] {
            let scope = Scope {
                region: "us-east-1",
                service: "service",
            };
            let fields = [&[("Host", "example.amazonaws.com")], fields].concat();
            let request = Request {
                method,
                path,
                query,
                fields: &fields,
                body: body.as_bytes(),
            };
            assert_eq!(signature_of(&request, token, scope), signature, "{name}");
        }
        let request = Request {
            method: "POST",
            path: "/",
            query: "",
            fields: &[
                ("Host", "api.ecr.eu-west-1.amazonaws.com"),
                ("Content-Type", "application/x-amz-json-1.1"),
                (
                    "X-Amz-Target",
                    "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
                ),
            ],
            body: b"{}",
        };
        let scope = Scope {
            region: "eu-west-1",
            service: "ecr",
        };
        assert_eq!(
            signature_of(&request, "", scope),
            "ce953a52a1215175c49d9a611ae10b5db817f776f0ad5d2a6ff9b0198dd390bc"
        );
    }

    fn signature_of(request: &Request<'_>, token: &str, scope: Scope<'_>) -> String {
        let keys = Keys {
            id: "AKIDEXAMPLE".to_owned(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned()),
            session_token: (!token.is_empty()).then(|| Secret::new(token.to_owned())),
        };
        let added = sign(request, &keys, scope, UNIX_EPOCH + TIME);
        let (_, authorization) = added.last().expect("a signature");
        let (_, signature) = authorization
            .expose()
            .split_once("Signature=")
            .expect("a signature");
        signature.to_owned()
    }

    #[test]
    fn what_is_sent_encoded_is_signed_encoded_again() {
        assert_eq!(canonical_path("/a%3Ab"), "/a%253Ab");
        assert_eq!(canonical_path("/../.."), "/");
        assert_eq!(canonical_path("/a/b/.."), "/a/");
    }
}
