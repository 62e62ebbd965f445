//! Whose login for which registry.

use std::path::PathBuf;

use serde::Deserialize;

/// `[directory]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Users, workspaces and their registry logins. Without it there are anonymous callers only.
    pub file: Option<PathBuf>,
}
