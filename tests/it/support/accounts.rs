//! Who may pull what, for the registries and token servers that the tests play.

use std::sync::{Arc, Mutex};

#[derive(Clone)]
struct Account {
    user: String,
    password: String,
    repositories: Vec<String>,
}

/// Shared by whoever must agree on it; changes count from the next request.
#[derive(Clone, Default)]
pub struct Accounts(Arc<Mutex<Vec<Account>>>);

impl Accounts {
    pub fn none() -> Self {
        Self::default()
    }

    /// `"*"` stands for every repository.
    pub fn with(self, user: &str, password: &str, repositories: &[&str]) -> Self {
        self.0.lock().expect("no panic holds it").push(Account {
            user: user.to_owned(),
            password: password.to_owned(),
            repositories: repositories.iter().map(|&name| name.to_owned()).collect(),
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
        self.find(user, password).is_some_and(|account| {
            account
                .repositories
                .iter()
                .any(|name| name == "*" || name == repository)
        })
    }

    fn find(&self, user: &str, password: &str) -> Option<Account> {
        let accounts = self.0.lock().expect("no panic holds it");
        accounts
            .iter()
            .find(|account| account.user == user && account.password == password)
            .cloned()
    }
}
