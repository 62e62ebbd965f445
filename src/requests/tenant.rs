//! Who shares what with whom: the logins, the jobs, and the room for layers.

use std::{convert::Infallible, fmt, str::FromStr};

use super::Caller;

/// With whom a tenant shares logins: what is made for one may be told to the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tenant(String);

impl Tenant {
    /// Those have the same logins who share a workspace; without one, everybody has his own. Callers without a name all
    /// have the operator's.
    pub fn of(caller: &Caller) -> Self {
        match caller {
            Caller::Anonymous => Self::anonymous(),
            Caller::User {
                name,
                workspace,
                platform,
                ..
            } => {
                let home = platform.as_ref().map(|platform| platform.endpoint.as_str());
                Self::of_user(name, *workspace, home)
            }
        }
    }

    pub(super) fn anonymous() -> Self {
        Self("anonymous".to_owned())
    }

    /// `endpoint`: of the Platform that knows him; `None`: the directory does.
    pub(super) fn of_user(name: &str, workspace: Option<i64>, endpoint: Option<&str>) -> Self {
        let home = endpoint.unwrap_or("directory");
        Self(match workspace {
            Some(id) => format!("{home} workspace {id}"),
            None => format!("{home} user {name}"),
        })
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for Tenant {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{requests::AtPlatform, secret::Secret};

    fn caller(name: &str, workspace: Option<i64>, endpoint: Option<&str>) -> Caller {
        Caller::User {
            name: name.to_owned(),
            workspace,
            access_token: Secret::new("hunter2".to_owned()),
            platform: endpoint.map(|endpoint| AtPlatform {
                endpoint: endpoint.to_owned(),
                refresh_token: None,
                workflow_id: None,
            }),
        }
    }

    #[test]
    fn tenants_are_those_who_have_the_same_logins() {
        let of = |name, workspace, endpoint| Tenant::of(&caller(name, workspace, endpoint));
        let all = [
            Tenant::of(&Caller::Anonymous),
            of("ada", None, None),
            of("bob", None, None),
            of("ada", Some(1), None),
            of("ada", Some(2), None),
            of("ada", None, Some("https://a.example")),
            of("ada", Some(1), Some("https://a.example")),
            of("ada", Some(1), Some("https://b.example")),
        ];
        for (place, tenant) in all.iter().enumerate() {
            for (other_place, other) in all.iter().enumerate() {
                assert_eq!(tenant == other, place == other_place, "{tenant} {other}");
            }
            assert!(!tenant.to_string().contains("hunter2"));
        }
        assert_eq!(of("ada", Some(1), None), of("bob", Some(1), None));
    }
}
