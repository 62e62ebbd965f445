//! Who may pull and push what, for the registries and token servers that the tests play.

use std::sync::{Arc, Mutex};

#[derive(Clone)]
struct Account {
    user: String,
    password: String,
    repositories: Vec<String>,
    may_push: bool,
}

impl Account {
    fn sees(&self, repository: &str) -> bool {
        self.repositories
            .iter()
            .any(|name| match name.strip_suffix('*') {
                Some(start) => repository.starts_with(start),
                None => name == repository,
            })
    }
}

/// Shared by whoever must agree on it; changes count from the next request.
#[derive(Clone, Default)]
pub struct Accounts(Arc<Mutex<Vec<Account>>>);

impl Accounts {
    pub fn none() -> Self {
        Self::default()
    }

    /// `"*"` stands for every repository, `"acme/*"` for all that begin so.
    pub fn with(self, user: &str, password: &str, repositories: &[&str]) -> Self {
        self.add(user, password, repositories, true)
    }

    /// Pulls, and pushes nothing.
    pub fn with_reader(self, user: &str, password: &str, repositories: &[&str]) -> Self {
        self.add(user, password, repositories, false)
    }

    fn add(self, user: &str, password: &str, repositories: &[&str], may_push: bool) -> Self {
        self.0.lock().expect("no panic holds it").push(Account {
            user: user.to_owned(),
            password: password.to_owned(),
            repositories: repositories.iter().map(|&name| name.to_owned()).collect(),
            may_push,
        });
        self
    }

    pub fn withdraw(&self, user: &str) {
        for account in &mut *self.0.lock().expect("no panic holds it") {
            if account.user == user {
                account.repositories.clear();
            }
        }
    }

    pub fn knows(&self, user: &str, password: &str) -> bool {
        self.find(user, password).is_some()
    }

    pub fn permits(&self, user: &str, password: &str, repository: &str) -> bool {
        self.find(user, password)
            .is_some_and(|account| account.sees(repository))
    }

    pub fn permits_pushes(&self, user: &str, password: &str, repository: &str) -> bool {
        self.find(user, password)
            .is_some_and(|account| account.may_push && account.sees(repository))
    }

    fn find(&self, user: &str, password: &str) -> Option<Account> {
        let accounts = self.0.lock().expect("no panic holds it");
        accounts
            .iter()
            .find(|account| account.user == user && account.password == password)
            .cloned()
    }
}
