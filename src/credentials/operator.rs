//! The operator's logins, from all places where he can have them.
//!
//! Which one serves: that with the longest repository prefix, wherever it stands. For all of a registry: the one of
//! `[registry."…"]`, else that of the first of Docker's files which has one; in a file, the one of the registry's
//! helper, or the store's, else the file's own.

use std::sync::Arc;

use super::{
    Entry, Known, OperatorLogin, Scope,
    docker::{DockerLogins, Effort, KnownLogin},
    scope::longest_match,
};
use crate::oci::{Registry, Repository};

#[derive(Default)]
pub(super) struct Operator {
    tables: Vec<Entry>,
    docker: Option<Arc<DockerLogins>>,
}

impl Operator {
    pub(super) fn new(logins: Vec<OperatorLogin>) -> Self {
        let tables = logins.into_iter().map(|login| Entry {
            scope: Scope {
                registry: login.registry,
                prefix: login.prefix,
            },
            credentials: login.credentials,
        });
        Self {
            tables: tables.collect(),
            docker: None,
        }
    }

    pub(super) fn with_docker(self, docker: Arc<DockerLogins>) -> Self {
        Self {
            docker: Some(docker),
            ..self
        }
    }

    /// Those of `[registry."…"]`.
    pub(super) fn tables(&self) -> &[Entry] {
        &self.tables
    }

    /// A registry has refused what was found. Whether there may be something else by now.
    pub(super) fn doubt(&self, registry: &Registry) -> bool {
        self.docker
            .as_ref()
            .is_some_and(|docker| docker.doubt(registry))
    }

    /// What Docker's files alone have; `None` without any.
    pub(super) fn find_in_docker(
        &self,
        registry: &Registry,
        repository: &Repository,
        effort: Effort,
    ) -> Option<Known<KnownLogin>> {
        let docker = self.docker.as_ref().filter(|docker| !docker.is_empty())?;
        Some(match docker.narrow(registry, repository) {
            Some(narrow) => Known::Login(narrow),
            None => docker.wide(registry, effort),
        })
    }

    pub(super) fn find(
        &self,
        registry: &Registry,
        repository: &Repository,
        effort: Effort,
    ) -> Known<KnownLogin> {
        let table = longest_match(&self.tables, registry, repository).map(|entry| KnownLogin {
            credentials: entry.credentials.clone(),
            source: entry.scope.to_string(),
            prefix_size: entry.scope.prefix_size(),
        });
        let Some(docker) = &self.docker else {
            return table.into();
        };
        match (table, docker.narrow(registry, repository)) {
            (Some(table), Some(narrow)) if table.prefix_size < narrow.prefix_size => {
                Known::Login(narrow)
            }
            (Some(table), _) => Known::Login(table),
            (None, Some(narrow)) => Known::Login(narrow),
            (None, None) => docker.wide(registry, effort),
        }
    }
}
