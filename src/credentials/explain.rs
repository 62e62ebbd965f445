//! Which login an image gets and why, told to the operator: who the caller is found to be, which sources were asked in
//! which order, and what became of each of their logins. Never a secret.
//!
//! It is the same search as for a pull (`Keyring::choose`), told step by step; what was chosen is what that says.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{
    Claim, Entry, IdentityError, Keyring, Known,
    docker::Effort,
    scope::{Scope, closest},
    shown_user,
    tenants::{Line, Reach, Tenant},
};
use crate::{oci::Reference, requests::Caller};

#[derive(Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// With its defaults filled in.
    pub image: String,
    pub caller: String,
    /// In the order in which they were asked.
    pub sources: Vec<Source>,
    /// `None`: the registry is asked as nobody in particular.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// What was chosen and why, or why nothing could be.
    pub chosen: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Source {
    pub name: String,
    pub said: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<Considered>,
}

/// A login of a source.
#[derive(Debug, Serialize, Deserialize)]
pub struct Considered {
    /// As its owner typed it.
    pub registry: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub verdict: String,
}

impl Keyring {
    /// A Platform may be asked, until `deadline`. The caller, if it is one, to ask the registry as.
    pub fn explain(
        &self,
        claim: &Claim,
        image: &Reference,
        deadline: Instant,
    ) -> (Explanation, Option<Caller>) {
        let mut explanation = Explanation {
            image: image.to_string(),
            caller: String::new(),
            sources: Vec::new(),
            username: None,
            chosen: String::new(),
        };
        let caller = match self.authenticate(claim, deadline) {
            Ok(caller) => caller,
            Err(error) => {
                explanation.caller = "nobody".to_owned();
                let is_known = matches!(error, IdentityError::WorkspaceDenied { .. });
                explanation.sources = self.who_was_asked(claim, None, is_known);
                explanation.chosen = error.to_string();
                return (explanation, None);
            }
        };
        explanation.caller = caller.to_string();
        explanation.sources = self.who_was_asked(claim, Some(&caller), true);
        explanation
            .sources
            .extend(self.sources_of(&caller, image, deadline));
        match self.find(&caller, &image.registry, &image.repository, deadline) {
            Ok(login) => {
                explanation.username = login
                    .credentials
                    .as_ref()
                    .map(|it| shown_user(it).to_owned());
                explanation.chosen = login.description;
            }
            Err(error) => explanation.chosen = error.to_string(),
        }
        (explanation, Some(caller))
    }

    /// About the access token.
    fn who_was_asked(&self, claim: &Claim, caller: Option<&Caller>, is_known: bool) -> Vec<Source> {
        let has_token = claim
            .access_token
            .as_ref()
            .is_some_and(|token| !token.expose().is_empty());
        if !has_token {
            return Vec::new();
        }
        let told = |name: String, said: &str| Source {
            name,
            said: said.to_owned(),
            entries: Vec::new(),
        };
        // Only the directory knows an access token and says no to its workspace.
        let is_embedded = match caller {
            Some(caller) => matches!(caller, Caller::User { platform: None, .. }),
            None => is_known,
        };
        let mut asked = vec![told(
            "directory".to_owned(),
            match (&self.directory, is_embedded) {
                (None, _) => "not set ([directory] file)",
                (Some(_), true) => "knows the access token",
                (Some(_), false) => "does not know the access token",
            },
        )];
        if !is_embedded {
            let named = claim.endpoint.as_deref();
            let endpoint = self.tenants.as_ref();
            let endpoint = endpoint.and_then(|it| it.client().endpoint(named));
            let name = endpoint.or(named).unwrap_or("platform").to_owned();
            asked.push(match (endpoint, caller) {
                (Some(_), Some(_)) => told(name, "knows the access token"),
                (Some(_), None) => told(name, "does not say whose the access token is"),
                (None, _) => told(name, "is not among [platform] endpoints"),
            });
        }
        asked
    }

    fn sources_of(&self, caller: &Caller, image: &Reference, deadline: Instant) -> Vec<Source> {
        let of_operator = |said: &str, is_used: bool| Source {
            name: "operator".to_owned(),
            said: said.to_owned(),
            entries: match is_used {
                true => considered(self.operator.tables(), image),
                false => Vec::new(),
            },
        };
        let is_own = self.own.contains(&image.registry);
        let last = match is_own {
            true => of_operator(
                "serves who has no match: a repository of [own] is there",
                true,
            ),
            false => of_operator("is for anonymous callers only", false),
        };
        match caller {
            Caller::Anonymous => {
                let mut sources = vec![of_operator("serves anonymous callers", true)];
                sources.extend(self.docker_source(image));
                sources
            }
            Caller::User {
                workspace,
                access_token,
                platform: None,
                ..
            } => {
                let found = self.entries_of_user(access_token, *workspace);
                let source = match found {
                    None => Source {
                        name: "directory".to_owned(),
                        said: "the workspace is not the user's".to_owned(),
                        entries: Vec::new(),
                    },
                    Some((owner, entries)) => Source {
                        name: owner,
                        said: count(entries.len(), "login"),
                        entries: considered(entries, image),
                    },
                };
                vec![source, last]
            }
            Caller::User { name, .. } => {
                let tenant = Tenant::of(caller);
                let asked = self.tenants.as_ref().zip(tenant.as_ref());
                let Some((tenants, tenant)) = asked else {
                    return vec![last];
                };
                let source = match tenants.list(tenant, Reach::Platform(deadline)) {
                    Ok(Some(list)) => Source {
                        name: tenant.owner(name),
                        said: format!(
                            "{}, {} for other things",
                            count(list.lines.len(), "registry login"),
                            count(list.other_count, "credential")
                        ),
                        entries: of_lines(&list.lines, image),
                    },
                    Ok(None) => return vec![last],
                    Err(error) => Source {
                        name: tenant.owner(name),
                        said: error.to_string(),
                        entries: Vec::new(),
                    },
                };
                vec![source, last]
            }
        }
    }
}

impl Keyring {
    /// What Docker's files and helpers have, if there are any.
    fn docker_source(&self, image: &Reference) -> Option<Source> {
        let known =
            self.operator
                .find_in_docker(&image.registry, &image.repository, Effort::Ask)?;
        Some(Source {
            name: "docker".to_owned(),
            said: match known {
                Known::Login(login) => format!("has a login: {}", login.source),
                Known::None | Known::Unknown => "has no login ([docker] config_files)".to_owned(),
            },
            entries: Vec::new(),
        })
    }
}

fn count(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

fn considered(entries: &[Entry], image: &Reference) -> Vec<Considered> {
    let scopes: Vec<_> = entries.iter().map(|it| Ok(it.scope.clone())).collect();
    let verdicts = verdicts::<&str>(&scopes, image);
    let told = entries
        .iter()
        .zip(verdicts)
        .map(|(entry, verdict)| Considered {
            registry: entry.scope.to_string(),
            name: String::new(),
            verdict,
        });
    told.collect()
}

fn of_lines(lines: &[Line], image: &Reference) -> Vec<Considered> {
    let scopes: Vec<_> = lines.iter().map(|line| line.scope.clone()).collect();
    let verdicts = verdicts(&scopes, image);
    let told = lines
        .iter()
        .zip(verdicts)
        .map(|(line, verdict)| Considered {
            registry: line.registry.clone(),
            name: line.name.clone(),
            verdict,
        });
    told.collect()
}

fn verdicts<E: ToString>(scopes: &[Result<Scope, E>], image: &Reference) -> Vec<String> {
    let good = scopes.iter().enumerate();
    let good = good.filter_map(|(index, scope)| Some((scope.as_ref().ok()?, index)));
    let chosen = closest(good, &image.registry, &image.repository);
    let closest_scope = chosen.and_then(|index| scopes.get(index)?.as_ref().ok());
    let verdict = |(index, scope): (usize, &Result<Scope, E>)| match scope {
        Err(skipped) => format!("skipped: {}", skipped.to_string()),
        Ok(_) if chosen == Some(index) => "matches, and nothing matches closer".to_owned(),
        Ok(scope) if scope.registry != image.registry => "is for another registry".to_owned(),
        Ok(scope) if !scope.covers(&image.registry, &image.repository) => {
            "is for another repository".to_owned()
        }
        Ok(scope) if Some(scope) == closest_scope => "matches, but another comes first".to_owned(),
        Ok(_) => "matches, but another matches closer".to_owned(),
    };
    scopes.iter().enumerate().map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_login_has_its_verdict() {
        let image: Reference = "quay.io/acme/app:v1".parse().expect("an image");
        let scopes: Vec<Result<Scope, &str>> = [
            "quay.io",
            "quay.io/acme",
            "quay.io/acme",
            "quay.io/other",
            "ghcr.io",
        ]
        .iter()
        .map(|text| Ok(text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))))
        .chain([Err("it is deleted")])
        .collect();
        assert_eq!(
            verdicts(&scopes, &image),
            [
                "matches, but another matches closer",
                "matches, and nothing matches closer",
                "matches, but another comes first",
                "is for another repository",
                "is for another registry",
                "skipped: it is deleted",
            ]
        );
    }
}
