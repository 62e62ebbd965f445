//! Who may pull what, for the registries and token servers that the tests play.

use std::sync::{Arc, Mutex};

#[derive(Clone)]
struct Account {
    user: String,
    password: String,
    repositories: Vec<String>,
    only_reads: bool,
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
        self.with_rights(user, password, repositories, false)
    }

    /// May pull from them, and not push to them.
    pub fn with_reader(self, user: &str, password: &str, repositories: &[&str]) -> Self {
        self.with_rights(user, password, repositories, true)
    }

    fn with_rights(
        self,
        user: &str,
        password: &str,
        repositories: &[&str],
        only_reads: bool,
    ) -> Self {
        self.0.lock().expect("no panic holds it").push(Account {
            user: user.to_owned(),
            password: password.to_owned(),
            repositories: repositories.iter().map(|&name| name.to_owned()).collect(),
            only_reads,
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

    pub fn only_reads(&self, user: &str, password: &str) -> bool {
        let account = self.find(user, password);
        account.is_some_and(|account| account.only_reads)
    }

    fn find(&self, user: &str, password: &str) -> Option<Account> {
        let accounts = self.0.lock().expect("no panic holds it");
        accounts
            .iter()
            .find(|account| account.user == user && account.password == password)
            .cloned()
    }
}
