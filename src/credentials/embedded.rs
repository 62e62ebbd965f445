//! The embedded directory: users, workspaces and their logins, with no other service.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
};

use super::{DirectoryError, Entry, directory_file};
use crate::{oci::Digest, secret::Secret};

/// Immutable, and made from a file. Knows its users by the hash of their access token.
#[derive(Debug, Default)]
pub struct Directory {
    pub(super) users: HashMap<Digest, User>,
    pub(super) workspaces: BTreeMap<i64, Workspace>,
}

#[derive(Debug)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) workspaces: HashSet<i64>,
    /// The personal workspace's.
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug)]
pub(super) struct Workspace {
    pub(super) name: String,
    pub(super) entries: Vec<Entry>,
}

impl Directory {
    /// Also says what the operator should be warned of.
    pub fn load(path: &Path) -> Result<(Self, Vec<String>), DirectoryError> {
        directory_file::load(path)
    }

    pub(super) fn user(&self, access_token: &Secret<String>) -> Option<&User> {
        // The time that this takes tells about the hash only, and nobody can choose an access token by its hash.
        self.users
            .get(&Digest::of(access_token.expose().as_bytes()))
    }

    /// `None` also if there is no such workspace.
    pub(super) fn workspace(&self, user: &User, id: i64) -> Option<&Workspace> {
        let is_member = user.workspaces.contains(&id);
        self.workspaces.get(&id).filter(|_| is_member)
    }
}
