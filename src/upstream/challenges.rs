//! What registries want to see: what they said when they let us in no further, and what was learnt of it.

use std::{collections::HashMap, sync::Mutex};

use super::{
    login::Authorization,
    rights::{Actions, Rights},
};
use crate::{
    blocking::lock,
    http::{Challenge, Origin},
    oci::Repository,
};

const MOST_CHALLENGES: usize = 16_384;

/// A registry's answer to a request that was not good enough for it.
pub(super) struct Rebuff<'a> {
    pub challenges: &'a [Challenge],
    pub sent: Option<&'a Authorization>,
    /// It came from where the registry itself had redirected to: another repository, perhaps.
    pub is_moved: bool,
}

/// What a registry wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Learnt {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// For all cores. What was said of one kind of actions says nothing about the scope of another.
#[derive(Default)]
pub(super) struct Challenges(Mutex<HashMap<Key, Learnt>>);

/// Without a repository: what holds for those of which nothing else is known.
type Key = (Origin, Option<(Repository, Actions)>);

impl Challenges {
    pub(super) fn known(&self, origin: &Origin, rights: Rights<'_>) -> Option<Learnt> {
        let challenges = lock(&self.0);
        let own = challenges.get(&own_key(origin, rights));
        own.or_else(|| challenges.get(&(origin.clone(), None)))
            .cloned()
    }

    pub(super) fn learn(
        &self,
        origin: &Origin,
        rights: Rights<'_>,
        learnt: &Learnt,
        sent: Option<&Authorization>,
    ) {
        let mut known = lock(&self.0);
        if known.len() >= MOST_CHALLENGES {
            known.clear();
        }
        let (own, general) = match learnt {
            // A scope that is not the usual one belongs to this repository (or, as ECR Public's, to all of them, and
            // is then learnt again for each).
            Learnt::Bearer {
                realm,
                service,
                scope,
            } => {
                let is_unusual = scope
                    .as_ref()
                    .is_some_and(|scope| *scope != rights.usual_scope());
                let general = Learnt::Bearer {
                    realm: realm.clone(),
                    service: service.clone(),
                    scope: None,
                };
                (is_unusual.then(|| learnt.clone()), Some(general))
            }
            // In answer to a token it may be meant for this repository alone.
            Learnt::Basic => match sent {
                Some(Authorization::Bearer { .. }) => (Some(Learnt::Basic), None),
                _ => (None, Some(Learnt::Basic)),
            },
        };
        let own_key = own_key(origin, rights);
        match own {
            Some(own) => known.insert(own_key, own),
            None => known.remove(&own_key),
        };
        if let Some(general) = general {
            known.insert((origin.clone(), None), general);
        }
    }
}

fn own_key(origin: &Origin, rights: Rights<'_>) -> Key {
    let own = (rights.repository.clone(), rights.actions);
    (origin.clone(), Some(own))
}

/// Bearer, then Basic; and what was learnt before, if nothing was said.
pub(super) fn choose(
    rebuff: &Rebuff<'_>,
    known: Option<&Learnt>,
    has_login: bool,
    rights: Rights<'_>,
    trusts: impl Fn(&str) -> bool,
) -> Option<Learnt> {
    let mut bearers = rebuff
        .challenges
        .iter()
        .filter_map(|challenge| match challenge {
            Challenge::Bearer {
                realm,
                service,
                scope,
                ..
            } => Some(Learnt::Bearer {
                realm: realm.clone(),
                service: service.clone(),
                scope: scope.as_deref().and_then(|scope| rights.admit(scope)),
            }),
            Challenge::Basic { .. } => None,
        });
    let is_good = |bearer: &Learnt| match bearer {
        Learnt::Bearer { realm, .. } => trusts(realm),
        Learnt::Basic => false,
    };
    let bearer = bearers.clone().find(is_good).or_else(|| bearers.next());
    let takes_basic = rebuff
        .challenges
        .iter()
        .any(|challenge| matches!(challenge, Challenge::Basic { .. }));
    let sent_is_stale = matches!(
        rebuff.sent,
        Some(Authorization::Bearer {
            is_fresh: false,
            ..
        })
    );
    match (bearer, known) {
        (Some(bearer), _) if is_good(&bearer) => Some(bearer),
        // The registry itself takes the password that its realm must not see.
        (Some(_), _) if takes_basic && has_login => Some(Learnt::Basic),
        // Its realm is not trusted, and the error will say so.
        (Some(bearer), _) => Some(bearer),
        // Harbor says no more than this to a token that has ended.
        (None, Some(known @ Learnt::Bearer { .. })) if takes_basic && sent_is_stale => {
            Some(known.clone())
        }
        (None, _) if takes_basic => Some(Learnt::Basic),
        (None, Some(known)) => Some(known.clone()),
        (None, None) => has_login.then_some(Learnt::Basic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{http::parse_challenges, secret::Secret};

    fn bearer(realm: &str) -> Learnt {
        Learnt::Bearer {
            realm: realm.to_owned(),
            service: None,
            scope: None,
        }
    }

    #[test]
    fn of_several_challenges_the_one_that_can_be_met_is_chosen() {
        let own = r#"Bearer realm="own""#;
        let other = r#"Bearer realm="other""#;
        let basic = r#"Basic realm="x""#;
        let token = |is_fresh| Authorization::Bearer {
            value: Secret::new("Bearer t".to_owned()),
            is_fresh,
            scope: String::new(),
        };
        let (stale, fresh) = (token(false), token(true));
        let known = bearer("known");
        let repository: Repository = "acme/app".parse().expect("a repository");
        for (lines, sent, known, has_login, expected) in [
            (&[own][..], None, None, true, Some(bearer("own"))),
            (&[basic, own], None, None, true, Some(bearer("own"))),
            (&[other, own], None, None, true, Some(bearer("own"))),
            (&[other], None, None, true, Some(bearer("other"))),
            (&[other, basic], None, None, true, Some(Learnt::Basic)),
            (&[other, basic], None, None, false, Some(bearer("other"))),
            (&[basic], None, None, true, Some(Learnt::Basic)),
            (&[basic], None, Some(&known), true, Some(Learnt::Basic)),
            (
                &[basic],
                Some(&stale),
                Some(&known),
                false,
                Some(known.clone()),
            ),
            (
                &[basic],
                Some(&fresh),
                Some(&known),
                true,
                Some(Learnt::Basic),
            ),
            (&[], None, Some(&known), true, Some(known.clone())),
            (&[], None, None, true, Some(Learnt::Basic)),
            (&[], None, None, false, None),
        ] {
            let challenges = parse_challenges(lines.iter().copied());
            let rebuff = Rebuff {
                challenges: &challenges,
                sent,
                is_moved: false,
            };
            let rights = Rights::pull(&repository);
            let chosen = choose(&rebuff, known, has_login, rights, |realm| realm == "own");
            assert_eq!(chosen, expected, "{lines:?} {has_login}");
        }
    }
}
