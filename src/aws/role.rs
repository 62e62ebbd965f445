//! Names of roles, the ids that their owners agreed on with us, and the names under which they see us.

use std::{fmt, str::FromStr};

use crate::secret::Secret;

/// `arn:aws:iam::123456789012:role/path/name`
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoleArn(String);

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a role's ARN, as arn:aws:iam::123456789012:role/pull is")]
pub struct RoleArnError(String);

impl FromStr for RoleArn {
    type Err = RoleArnError;

    fn from_str(text: &str) -> Result<Self, RoleArnError> {
        const LONGEST: usize = 2048;
        const SHOWN: usize = 80;
        let malformed = || RoleArnError(text.chars().take(SHOWN).collect());
        let mut parts = text.splitn(6, ':');
        let mut next = || parts.next().unwrap_or_default();
        let (arn, partition, service, region, account, resource) =
            (next(), next(), next(), next(), next(), next());
        let is_partition = partition == "aws"
            || partition.strip_prefix("aws-").is_some_and(|rest| {
                !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
            });
        let name = resource.strip_prefix("role/").unwrap_or_default();
        let is_role = arn == "arn"
            && is_partition
            && (service, region) == ("iam", "")
            && account.len() == 12
            && account.bytes().all(|b| b.is_ascii_digit())
            && !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_graphic())
            && text.len() <= LONGEST;
        match is_role {
            true => Ok(Self(text.to_owned())),
            false => Err(malformed()),
        }
    }
}

impl RoleArn {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn partition(&self) -> &str {
        self.0.split(':').nth(1).unwrap_or_default()
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What a role's owner and its user agreed on, so that nobody else can have us assume it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExternalId(Secret<String>);

#[derive(Debug, thiserror::Error)]
#[error("the external id is not 2 to 1224 letters, digits, and _ + = , . @ : / -")]
pub struct ExternalIdError;

impl FromStr for ExternalId {
    type Err = ExternalIdError;

    fn from_str(text: &str) -> Result<Self, ExternalIdError> {
        let is_id = (2..=1224).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b));
        match is_id {
            true => Ok(Self(Secret::new(text.to_owned()))),
            false => Err(ExternalIdError),
        }
    }
}

impl ExternalId {
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

/// Under which name a role is used: the account's CloudTrail shows it, and so who of our tenants it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionName(String);

impl SessionName {
    /// For nobody in particular.
    pub fn own() -> Self {
        Self(OWN.to_owned())
    }

    /// What AWS does not take, and the `=` of workspaces, is replaced.
    pub fn of_user(name: &str) -> Self {
        let taken = |char: char| match char {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '+' | ',' | '.' | '@' | '-' => char,
            _ => '-',
        };
        let shown = name.chars().map(taken);
        let name: String = format!("{OWN}-").chars().chain(shown).collect();
        Self(name.chars().take(LONGEST_SESSION_NAME).collect())
    }

    pub fn of_workspace(id: i64) -> Self {
        Self(format!("{OWN}-workspace={id}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const OWN: &str = "tidegate";
/// Of AWS.
const LONGEST_SESSION_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_known_by_their_names() {
        for text in [
            "arn:aws:iam::123456789012:role/pull",
            "arn:aws-cn:iam::123456789012:role/a/b/pull",
            "arn:aws-us-gov:iam::123456789012:role/pull+x=,.@-_",
            "arn:aws-iso-b:iam::123456789012:role/pull",
        ] {
            assert!(text.parse::<RoleArn>().is_ok(), "{text}");
        }
        for text in [
            "",
            "arn:aws:iam::123456789012:user/ada",
            "arn:aws:iam::12345678901:role/pull",
            "arn:aws:iam:eu-west-1:123456789012:role/pull",
            "arn:aws:sts::123456789012:role/pull",
            "arn:awsome:iam::123456789012:role/pull",
            "arn:aws:iam::123456789012:role/",
            "arn:aws:iam::123456789012:role/a b",
            "AKIAEXAMPLE",
        ] {
            assert!(text.parse::<RoleArn>().is_err(), "{text}");
        }
    }

    #[test]
    fn external_ids_are_what_aws_takes() {
        assert!("acme-1:x/y".parse::<ExternalId>().is_ok());
        for text in ["", "a", "a b", "a\nb", "é1", &"x".repeat(1225)] {
            assert!(text.parse::<ExternalId>().is_err(), "{text}");
        }
    }

    #[test]
    fn sessions_are_named_after_tenants_as_aws_takes_it() {
        let long = "x".repeat(100);
        for (name, expected) in [
            (SessionName::own(), "tidegate"),
            (SessionName::of_user("ada"), "tidegate-ada"),
            (
                SessionName::of_user("ada@acme.org"),
                "tidegate-ada@acme.org",
            ),
            (SessionName::of_user("Ada Løve/l"), "tidegate-Ada-L-ve-l"),
            (SessionName::of_user(""), "tidegate-"),
            (SessionName::of_user("workspace=1"), "tidegate-workspace-1"),
            (SessionName::of_workspace(17), "tidegate-workspace=17"),
            (
                SessionName::of_user(&long),
                &format!("tidegate-{}", "x".repeat(55)),
            ),
        ] {
            assert_eq!(name.as_str(), expected);
        }
    }
}
