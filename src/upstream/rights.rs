//! What a token is asked for: a list of actions of ours, and nothing that a registry could add to it. Its challenge may say
//! how it spells a scope (the repository's other name, a word of its own), so a scope is admitted if it is about no
//! more than these actions.

use crate::oci::Repository;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Actions {
    Pull,
    /// To push is to look, too, what is there.
    Push,
    /// To give up a push that has begun: some take that for a deletion.
    Cancel,
}

impl Actions {
    const fn admitted(self) -> &'static [&'static str] {
        match self {
            Self::Pull => &["pull"],
            Self::Push => &["pull", "push"],
            Self::Cancel => &["pull", "push", "delete"],
        }
    }

    /// Without it a scope would not do.
    const fn needed(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Cancel => "delete",
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Rights<'a> {
    pub(super) repository: &'a Repository,
    pub(super) actions: Actions,
    /// Of this one a blob is to be mounted.
    mounted: Option<&'a Repository>,
}

const LONGEST_SCOPE: usize = 1024;

impl<'a> Rights<'a> {
    pub(super) fn pull(repository: &'a Repository) -> Self {
        Self::of(repository, Actions::Pull)
    }

    pub(super) fn of(repository: &'a Repository, actions: Actions) -> Self {
        Self {
            repository,
            actions,
            mounted: None,
        }
    }

    pub(super) fn mounting(self, from: &'a Repository) -> Self {
        Self {
            mounted: Some(from),
            ..self
        }
    }

    /// As registries usually spell it. A push is given up with its own token, unless the registry asks for more.
    pub(super) fn usual_scope(&self) -> String {
        let actions = match self.actions {
            Actions::Pull => "pull",
            Actions::Push | Actions::Cancel => "pull,push",
        };
        format!("repository:{}:{actions}", self.repository)
    }

    /// All that a token is asked for, given what was learnt of the registry's spelling. Some read only the first of it.
    pub(super) fn scope(&self, learnt: Option<&str>) -> String {
        let own = learnt.map_or_else(|| self.usual_scope(), str::to_owned);
        match self.mounted {
            Some(from) => format!("{own} repository:{from}:pull"),
            None => own,
        }
    }

    /// A challenge's scope as a key is made of it: each part once, in one order, what is written to first. `None` if it
    /// is about other actions than these. A registry may name another repository than its path does (Artifactory,
    /// GitLab's proxy); but what is written to is at least named by the end of our path.
    pub(super) fn admit(&self, scope: &str) -> Option<String> {
        let written = scope.split(' ').filter(|part| !part.is_empty());
        let written: Vec<String> = written.map(in_order).collect();
        let mut parts: Vec<&str> = written.iter().map(String::as_str).collect();
        if parts.is_empty() || scope.len() > LONGEST_SCOPE {
            return None;
        }
        if !parts.iter().all(|part| self.admits(part)) {
            return None;
        }
        let suffices = |part: &&str| actions(part).is_none_or(|actions| has(actions, self.actions));
        if !parts.iter().any(suffices) {
            return None;
        }
        parts.sort_unstable_by_key(|part| (!suffices(part), *part));
        parts.dedup();
        Some(parts.join(" "))
    }

    fn admits(&self, part: &str) -> bool {
        // A word that is no list of actions, such as ECR Public's `aws`.
        let Some(actions) = actions(part) else {
            return true;
        };
        let admitted = self.actions.admitted();
        if !actions.split(',').all(|action| admitted.contains(&action)) {
            return false;
        }
        actions == "pull" || self.is_named_by(part)
    }

    fn is_named_by(&self, part: &str) -> bool {
        let name = part.strip_prefix("repository:");
        let name = name.and_then(|rest| rest.rsplit_once(':'));
        let own = self.repository.as_str();
        name.is_some_and(|(name, _)| {
            own.strip_suffix(name)
                .is_some_and(|rest| !name.is_empty() && (rest.is_empty() || rest.ends_with('/')))
        })
    }
}

fn actions(part: &str) -> Option<&str> {
    part.rsplit_once(':').map(|(_, actions)| actions)
}

/// The distribution project's registry lists actions as they come.
fn in_order(part: &str) -> String {
    let Some((name, actions)) = part.rsplit_once(':') else {
        return part.to_owned();
    };
    let mut actions: Vec<&str> = actions.split(',').collect();
    actions.sort_unstable();
    actions.dedup();
    format!("{name}:{}", actions.join(","))
}

fn has(listed: &str, actions: Actions) -> bool {
    listed.split(',').any(|action| action == actions.needed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scopes_that_pull_are_asked_for_and_in_one_order() {
        let repository: Repository = "acme/app".parse().expect("a repository");
        let rights = Rights::pull(&repository);
        for (scope, expected) in [
            ("repository:a/b:pull", Some("repository:a/b:pull")),
            (
                "repository:host:5000/a:pull",
                Some("repository:host:5000/a:pull"),
            ),
            ("aws", Some("aws")),
            (
                "repository:b:pull  repository:a:pull repository:b:pull",
                Some("repository:a:pull repository:b:pull"),
            ),
            ("repository:a:pull,push", None),
            ("repository:acme/app:pull,push", None),
            ("repository:acme/app:push", None),
            ("repository:acme/app:delete", None),
            ("repository:a:*", None),
            ("registry:catalog:*", None),
            ("repository:a:", None),
            ("", None),
            (" ", None),
        ] {
            assert_eq!(rights.admit(scope).as_deref(), expected, "{scope}");
        }
        assert_eq!(rights.scope(None), "repository:acme/app:pull");
        assert_eq!(rights.scope(Some("aws")), "aws");
    }

    #[test]
    fn what_is_written_to_is_the_repository_that_was_meant() {
        let repository: Repository = "docker-local/acme/app".parse().expect("a repository");
        let push = Rights::of(&repository, Actions::Push);
        let cancel = Rights::of(&repository, Actions::Cancel);
        for (scope, by_push, by_cancel) in [
            ("repository:docker-local/acme/app:pull,push", true, false),
            ("repository:acme/app:push,pull", true, false),
            ("repository:app:push", true, false),
            ("repository:pp:push", false, false),
            ("repository::push", false, false),
            ("repository:other/app:pull,push", false, false),
            ("repository:other/docker-local/acme/app:push", false, false),
            // GitHub's says so whatever is asked: the usual scope is better then.
            ("repository:acme/app:pull", false, false),
            ("repository:acme/app:push repository:b:pull", true, false),
            ("repository:acme/app:push repository:b:push", false, false),
            ("repository:acme/app:delete", false, true),
            ("repository:acme/app:delete,pull,push", false, true),
            ("repository:other/app:delete", false, false),
            ("repository:acme/app:*", false, false),
            ("registry:catalog:*", false, false),
            ("aws", true, true),
            ("", false, false),
        ] {
            assert_eq!(push.admit(scope).is_some(), by_push, "push {scope}");
            assert_eq!(cancel.admit(scope).is_some(), by_cancel, "cancel {scope}");
        }
    }

    #[test]
    fn the_scope_that_is_written_to_comes_first() {
        let repository: Repository = "z/app".parse().expect("a repository");
        let base: Repository = "acme/base".parse().expect("a repository");
        let push = Rights::of(&repository, Actions::Push);
        assert_eq!(
            push.admit("repository:a:pull repository:z/app:pull,push")
                .as_deref(),
            Some("repository:z/app:pull,push repository:a:pull")
        );
        assert_eq!(
            push.admit("repository:z/app:push,pull repository:z/app:pull,push")
                .as_deref(),
            Some("repository:z/app:pull,push")
        );
        assert_eq!(
            push.mounting(&base).scope(None),
            "repository:z/app:pull,push repository:acme/base:pull"
        );
    }
}
