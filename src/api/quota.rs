//! How often somebody may ask: users wherever they come from, everybody else by his address. A blob costs nothing, and neither
//! does a manifest by tag: whoever pulls pays with the manifests that he asks for by digest.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::{
    Response,
    error_response::{self, Shape},
};
use crate::{
    limits::{Budget, Rate, client_key},
    requests::Caller,
};

/// `[limits]`: the first number is also how many may come at once. `"off"`: no limit.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Container requests and inspections without an access token, from one address (of IPv6: one /64): `"600/1min"`.
    pub anonymous_requests: Rate,
    /// The same of one user: `"2000/1min"`.
    pub user_requests: Rate,
    /// Manifests by digest, with names that were given to callers without an access token or without a name, from one
    /// address: `"30000/1min"`. An image costs one or two.
    pub anonymous_pulls: Rate,
    /// The same with the names of one user, from all machines together: `"60000/1min"`.
    pub user_pulls: Rate,
    /// Checks of a registry's login, from one address: `"20/1min"`. Nobody who asks for one is known.
    pub credential_checks: Rate,
}

impl Default for Options {
    // Guesses, for a cluster behind one address. A workflow engine asks once a second at most, and ten may run there; a thousand
    // machines start ten images each, of two manifests, within a minute.
    fn default() -> Self {
        Self {
            anonymous_requests: Rate::per_minute(600),
            user_requests: Rate::per_minute(2000),
            anonymous_pulls: Rate::per_minute(30_000),
            user_pulls: Rate::per_minute(60_000),
            credential_checks: Rate::per_minute(20),
        }
    }
}

/// What is left for whom, for all cores.
pub struct Quotas {
    requests: Quota,
    pulls: Quota,
    credential_checks: Option<Budget<IpAddr>>,
}

/// Of one kind of request. Where there is no limit there is nothing to look at either.
struct Quota {
    anonymous: Option<Budget<IpAddr>>,
    /// By a hash of the name, so that nothing is allocated; no two users share one by chance.
    users: Option<Budget<u64>>,
    hasher: RandomState,
}

impl Quotas {
    pub fn new(options: &Options) -> Self {
        Self {
            requests: Quota::new(options.anonymous_requests, options.user_requests),
            pulls: Quota::new(options.anonymous_pulls, options.user_pulls),
            credential_checks: Budget::at(options.credential_checks),
        }
    }

    pub(super) fn take_request(&self, caller: &Caller, client: IpAddr) -> Result<(), Response> {
        let taken = self.requests.take(caller, client);
        taken.map_err(|wait| too_many(Shape::Api, "container requests", wait))
    }

    pub(super) fn take_pull(&self, caller: &Caller, client: IpAddr) -> Result<(), Response> {
        let taken = self.pulls.take(caller, client);
        taken.map_err(|wait| too_many(Shape::Registry, "pulls", wait))
    }

    pub(super) fn take_credential_check(&self, client: IpAddr) -> Result<(), Response> {
        let Some(budget) = &self.credential_checks else {
            return Ok(());
        };
        let taken = budget.take(client_key(client), Instant::now());
        taken.map_err(|wait| too_many(Shape::Api, "checks of credentials", wait))
    }
}

impl Quota {
    fn new(anonymous: Rate, users: Rate) -> Self {
        Self {
            anonymous: Budget::at(anonymous),
            users: Budget::at(users),
            hasher: RandomState::new(),
        }
    }

    fn take(&self, caller: &Caller, client: IpAddr) -> Result<(), Duration> {
        match caller {
            Caller::Anonymous => match &self.anonymous {
                Some(budget) => budget.take(client_key(client), Instant::now()),
                None => Ok(()),
            },
            Caller::User { name, platform, .. } => match &self.users {
                Some(budget) => {
                    // Platforms name their users each for itself.
                    let endpoint = platform.as_ref().map(|platform| &platform.endpoint);
                    let user = self.hasher.hash_one((endpoint, name));
                    budget.take(user, Instant::now())
                }
                None => Ok(()),
            },
        }
    }
}

fn too_many(shape: Shape, what: &str, wait: Duration) -> Response {
    let message = format!("too many {what} in a short time; wait a little");
    error_response::too_many(shape, &message, wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{requests::AtPlatform, secret::Secret};

    fn user(name: &str, endpoint: Option<&str>) -> Caller {
        Caller::User {
            name: name.to_owned(),
            workspace: None,
            access_token: Secret::new("hunter2".to_owned()),
            platform: endpoint.map(|endpoint| AtPlatform {
                endpoint: endpoint.to_owned(),
                refresh_token: None,
                workflow_id: None,
            }),
        }
    }

    #[test]
    fn users_pay_wherever_they_are_and_others_by_address() {
        let once = Rate::Limited {
            count: 1,
            period: Duration::from_secs(3600),
        };
        let quota = Quota::new(once, once);
        let here = IpAddr::from([192, 0, 2, 1]);
        let there = IpAddr::from([192, 0, 2, 2]);
        for (caller, client, is_allowed) in [
            (Caller::Anonymous, here, true),
            (Caller::Anonymous, here, false),
            (Caller::Anonymous, there, true),
            (user("ada", None), here, true),
            (user("ada", None), there, false),
            (user("ada", Some("https://a.example")), here, true),
            (user("ada", Some("https://b.example")), here, true),
            (user("ada", Some("https://b.example")), there, false),
            (user("bob", None), here, true),
        ] {
            let taken = quota.take(&caller, client);
            assert_eq!(taken.is_ok(), is_allowed, "{caller:?} {client}");
        }
        let free = Quota::new(Rate::Unlimited, Rate::Unlimited);
        for _ in 0..1000 {
            assert!(free.take(&Caller::Anonymous, here).is_ok());
            assert!(free.take(&user("ada", None), here).is_ok());
        }
    }
}
