//! What a Platform's API says, from JSON to values.
//!
//! Order-independent and lenient: unknown properties are ignored, and an element of a list that cannot be read is left
//! out, because one odd credential must not take all others of its workspace away.

use serde::{Deserialize, Deserializer};
use serde_json::{Value, value::RawValue};

use crate::secret::Secret;

/// The answer is not what the API promises. What it was is not repeated: there may be secrets in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Who an access token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
}

/// One line of a workspace's list of credentials: no secret in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedCredentials {
    pub id: String,
    pub name: String,
    /// `container-reg`, `aws`, …
    pub provider: String,
    /// As its owner typed it. `None`: nothing, which means Docker Hub.
    pub registry: Option<String>,
    /// The Platform itself says that it is no good.
    pub is_invalid: bool,
    pub is_deleted: bool,
}

/// The secrets of one credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    Registry {
        username: String,
        password: Secret<String>,
    },
    Aws(AwsKeys),
    /// Of a kind that opens no registry.
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AwsKeys {
    Static {
        access_key: String,
        secret_key: Secret<String>,
    },
    Role {
        arn: String,
        external_id: Option<Secret<String>>,
    },
}

/// Where a run's tasks are computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComputeEnvironment {
    /// `aws-batch`, …
    pub platform: String,
    pub credentials_id: Option<String>,
}

/// How a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// Submitted or running.
    Active,
    Ended,
}

pub(super) fn user(body: &Secret<String>) -> Result<User, Malformed> {
    #[derive(Deserialize)]
    struct Answer {
        user: Answered,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answered {
        id: Option<Value>,
        user_name: Option<String>,
        email: Option<String>,
    }
    let Answer { user } = parse(body)?;
    let texts = [user.user_name, user.email];
    let named = texts.into_iter().flatten().find(|text| !text.is_empty());
    // A user without a name is a user all the same.
    let name = named.or_else(|| user.id.map(|id| format!("user {id}")));
    Ok(User {
        name: name.ok_or(Malformed)?,
    })
}

pub(super) fn credentials(body: &Secret<String>) -> Result<Vec<ListedCredentials>, Malformed> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow, default)]
        credentials: Option<Vec<&'a RawValue>>,
    }
    #[derive(Deserialize)]
    struct Listed {
        id: Text,
        #[serde(default)]
        name: Option<String>,
        #[serde(default)]
        provider: Option<String>,
        #[serde(default)]
        keys: Option<ListedKeys>,
        #[serde(default)]
        status: Option<String>,
        #[serde(default)]
        deleted: Option<Value>,
    }
    #[derive(Deserialize)]
    struct ListedKeys {
        #[serde(default)]
        registry: Option<Value>,
    }
    let answer: Answer<'_> = parse(body)?;
    let elements = answer.credentials.unwrap_or_default();
    let read = elements
        .into_iter()
        .filter_map(|element| serde_json::from_str::<Listed>(element.get()).ok());
    let listed = read.map(|it| ListedCredentials {
        id: it.id.0,
        name: it.name.unwrap_or_default(),
        provider: it.provider.unwrap_or_default(),
        registry: match it.keys.and_then(|keys| keys.registry) {
            Some(Value::String(text)) if !text.trim().is_empty() => Some(text),
            None | Some(Value::Null | Value::String(_)) => None,
            // No text names a registry so, and so it will match nothing.
            Some(other) => Some(other.to_string()),
        },
        is_invalid: it
            .status
            .is_some_and(|status| status.eq_ignore_ascii_case("INVALID")),
        is_deleted: !matches!(it.deleted, None | Some(Value::Null | Value::Bool(false))),
    });
    Ok(listed.collect())
}

/// The text with which `keys` were encrypted for us.
pub(super) fn packet(body: &Secret<String>) -> Result<Secret<String>, Malformed> {
    #[derive(Deserialize)]
    struct Answer {
        keys: Secret<String>,
    }
    parse::<Answer>(body).map(|answer| answer.keys)
}

/// What was in the packet.
pub(super) fn keys(text: &Secret<String>) -> Result<Keys, Malformed> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Plain {
        #[serde(default)]
        discriminator: Option<String>,
        #[serde(default)]
        user_name: Option<String>,
        #[serde(default)]
        password: Option<Secret<String>>,
        #[serde(default)]
        access_key: Option<String>,
        #[serde(default)]
        secret_key: Option<Secret<String>>,
        #[serde(default)]
        assume_role_arn: Option<String>,
        #[serde(default)]
        external_id: Option<Secret<String>>,
    }
    let plain: Plain = parse(text)?;
    let filled = |secret: Option<Secret<String>>| secret.filter(|it| !it.expose().is_empty());
    Ok(match plain.discriminator.as_deref() {
        Some("container-reg") => Keys::Registry {
            username: plain.user_name.ok_or(Malformed)?,
            password: plain.password.ok_or(Malformed)?,
        },
        Some("aws") => Keys::Aws(match plain.assume_role_arn.filter(|arn| !arn.is_empty()) {
            Some(arn) => AwsKeys::Role {
                arn,
                external_id: filled(plain.external_id),
            },
            None => AwsKeys::Static {
                access_key: plain.access_key.ok_or(Malformed)?,
                secret_key: filled(plain.secret_key).ok_or(Malformed)?,
            },
        }),
        _ => Keys::Other,
    })
}

pub(super) fn compute_environment(
    body: &Secret<String>,
) -> Result<Option<ComputeEnvironment>, Malformed> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        #[serde(default)]
        launch: Option<Launch>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Launch {
        #[serde(default)]
        compute_env: Option<Environment>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Environment {
        #[serde(default)]
        platform: Option<String>,
        #[serde(default)]
        credentials_id: Option<String>,
    }
    let answer: Answer = parse(body)?;
    let environment = answer.launch.and_then(|launch| launch.compute_env);
    Ok(environment.map(|environment| ComputeEnvironment {
        platform: environment.platform.unwrap_or_default(),
        credentials_id: environment.credentials_id.filter(|id| !id.is_empty()),
    }))
}

pub(super) fn run_status(body: &Secret<String>) -> Result<RunStatus, Malformed> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        workflow: Option<Workflow>,
    }
    #[derive(Deserialize)]
    struct Workflow {
        #[serde(default)]
        status: Option<String>,
    }
    let answer: Answer = parse(body)?;
    let status = answer.workflow.and_then(|workflow| workflow.status);
    Ok(match status.as_deref() {
        Some("SUBMITTED" | "RUNNING") => RunStatus::Active,
        _ => RunStatus::Ended,
    })
}

/// New tokens come as cookies, of which only name and value are of interest.
pub(super) fn cookie<'a>(
    fields: impl Iterator<Item = &'a Secret<String>>,
    name: &str,
) -> Option<Secret<String>> {
    let values = fields.filter_map(|field| {
        let pair = field.expose().split(';').next()?;
        let (found, value) = pair.split_once('=')?;
        let value = value.trim().trim_matches('"');
        (found.trim() == name && !value.is_empty()).then(|| Secret::new(value.to_owned()))
    });
    // Who sets a cookie twice means the second.
    values.last()
}

fn parse<'a, T: Deserialize<'a>>(text: &'a Secret<String>) -> Result<T, Malformed> {
    serde_json::from_str(text.expose()).map_err(|_| Malformed)
}

/// An id is a text; one that is written as a number is taken as its digits.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(text)),
            Value::Number(number) => Ok(Self(number.to_string())),
            _ => Err(serde::de::Error::custom("it is no id")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    #[test]
    fn users_are_named() {
        for (text, expected) in [
            (
                r#"{"user":{"id":1,"userName":"ada","email":"a@b.c"}}"#,
                Some("ada"),
            ),
            (r#"{"user":{"id":1,"email":"a@b.c","x":[]}}"#, Some("a@b.c")),
            (r#"{"user":{"id":1,"userName":""}}"#, Some("user 1")),
            (r#"{"user":{}}"#, None),
            (r#"{"user":null}"#, None),
            ("{}", None),
            ("", None),
        ] {
            let user = user(&body(text)).ok().map(|user| user.name);
            assert_eq!(user.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn one_odd_credential_costs_only_itself() {
        let text = r#"{"credentials":[
            {"keys":{"registry":"quay.io","userName":null},"provider":"container-reg","id":"a","name":"n","status":"AVAILABLE","deleted":null},
            {"id":"b","provider":"container-reg","keys":{"registry":null},"status":"INVALID"},
            {"id":"c","provider":"container-reg","keys":{"registry":" "},"deleted":false},
            {"id":4,"provider":"aws","keys":{}},
            {"id":"e","provider":"container-reg","keys":{"registry":[1]},"deleted":"2026-01-01T00:00:00Z"},
            {"provider":"container-reg"}, 7, {"id":{}}, null
        ],"more":1}"#;
        let listed = credentials(&body(text)).unwrap_or_else(|_| panic!("it is a list"));
        let summary: Vec<_> = listed
            .iter()
            .map(|it| {
                let registry = it.registry.as_deref();
                (it.id.as_str(), registry, it.is_invalid, it.is_deleted)
            })
            .collect();
        let expected = [
            ("a", Some("quay.io"), false, false),
            ("b", None, true, false),
            ("c", None, false, false),
            ("4", None, false, false),
            ("e", Some("[1]"), false, true),
        ];
        assert_eq!(summary, expected);
        for (text, count) in [
            (r#"{"credentials":[]}"#, Some(0)),
            ("{}", Some(0)),
            (r#"{"credentials":{}}"#, None),
            ("[]x", None),
        ] {
            let count_of = credentials(&body(text)).ok().map(|listed| listed.len());
            assert_eq!(count_of, count, "{text}");
        }
    }

    #[test]
    fn keys_are_told_by_their_discriminator() {
        let aws = |text| match keys(&body(text)) {
            Ok(Keys::Aws(keys)) => keys,
            other => panic!("{text}: {other:?}"),
        };
        let registry = r#"{"userName":"me","password":"you","registry":"quay.io","discriminator":"container-reg"}"#;
        let expected = Keys::Registry {
            username: "me".to_owned(),
            password: body("you"),
        };
        assert_eq!(keys(&body(registry)), Ok(expected));
        let by_keys = r#"{"discriminator":"aws","accessKey":"AK","secretKey":"SK","assumeRoleArn":"","mode":"keys"}"#;
        let expected = AwsKeys::Static {
            access_key: "AK".to_owned(),
            secret_key: body("SK"),
        };
        assert_eq!(aws(by_keys), expected);
        for (text, external_id) in [
            (
                r#"{"discriminator":"aws","accessKey":"AK","secretKey":"SK","assumeRoleArn":"arn:aws:iam::1:role/r","externalId":"x"}"#,
                Some("x"),
            ),
            (
                r#"{"discriminator":"aws","assumeRoleArn":"arn:aws:iam::1:role/r","externalId":""}"#,
                None,
            ),
        ] {
            let expected = AwsKeys::Role {
                arn: "arn:aws:iam::1:role/r".to_owned(),
                external_id: external_id.map(body),
            };
            assert_eq!(aws(text), expected);
        }
        assert_eq!(
            keys(&body(r#"{"discriminator":"google"}"#)),
            Ok(Keys::Other)
        );
        assert_eq!(keys(&body(r#"{"password":"x"}"#)), Ok(Keys::Other));
        for text in [
            r#"{"discriminator":"container-reg","userName":"me"}"#,
            r#"{"discriminator":"aws","accessKey":"AK"}"#,
            "hunter2",
        ] {
            assert_eq!(keys(&body(text)), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn a_run_is_active_or_it_is_not() {
        for (status, expected) in [
            ("SUBMITTED", RunStatus::Active),
            ("RUNNING", RunStatus::Active),
            ("SUCCEEDED", RunStatus::Ended),
            ("FAILED", RunStatus::Ended),
            ("CANCELLED", RunStatus::Ended),
            ("UNKNOWN", RunStatus::Ended),
            ("", RunStatus::Ended),
        ] {
            let text = format!(r#"{{"workflow":{{"id":"w","status":"{status}"}}}}"#);
            assert_eq!(run_status(&body(&text)), Ok(expected), "{status}");
        }
        assert_eq!(run_status(&body("{}")), Ok(RunStatus::Ended));
    }

    #[test]
    fn compute_environments_are_found() {
        let text =
            r#"{"launch":{"computeEnv":{"id":"e","platform":"aws-batch","credentialsId":"c"}}}"#;
        let expected = ComputeEnvironment {
            platform: "aws-batch".to_owned(),
            credentials_id: Some("c".to_owned()),
        };
        assert_eq!(compute_environment(&body(text)), Ok(Some(expected)));
        assert_eq!(compute_environment(&body(r#"{"launch":null}"#)), Ok(None));
    }

    #[test]
    fn tokens_are_found_among_cookies() {
        for (fields, expected) in [
            (&["JWT=abc; Path=/; HttpOnly"][..], Some("abc")),
            (&["JWT_REFRESH_TOKEN=r; Path=/", "JWT=a=b"], Some("a=b")),
            (&["x=1", " JWT = \"abc\" ; Secure"], Some("abc")),
            (&["JWT=old", "JWT=new"], Some("new")),
            (&["JWT="], None),
            (&["JWT_REFRESH_TOKEN=r", "JWT"], None),
            (&[], None),
        ] {
            let fields: Vec<_> = fields.iter().map(|field| body(field)).collect();
            let found = cookie(fields.iter(), "JWT");
            assert_eq!(found, expected.map(body), "{}", fields.len());
        }
    }
}
