//! The environment as AWS's programs read it: a blank value is none.

use std::{collections::HashMap, env, fmt, sync::Arc};

use crate::secret::Secret;

type LookUp = dyn Fn(&str) -> Option<String> + Send + Sync;

/// Where variables are looked up. Not copied, since some are secrets.
#[derive(Clone)]
pub struct Environment(Arc<LookUp>);

impl Environment {
    pub fn of_process() -> Self {
        Self(Arc::new(|name| env::var(name).ok()))
    }

    /// One that a test makes up.
    pub fn of(variables: &[(&str, &str)]) -> Self {
        let variables: HashMap<String, String> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Self(Arc::new(move |name| variables.get(name).cloned()))
    }

    pub(super) fn get(&self, name: &str) -> Option<String> {
        let value = (self.0)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    pub(super) fn secret(&self, name: &str) -> Option<Secret<String>> {
        self.get(name).map(Secret::new)
    }

    /// The first that is set, with its name.
    pub(super) fn first<'n>(&self, names: &[&'n str]) -> Option<(&'n str, String)> {
        names.iter().find_map(|name| Some((*name, self.get(name)?)))
    }

    pub(super) fn is_on(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Environment")
    }
}
