//! Container requests and the tokens that stand for them.

mod token;

pub use token::{Token, TokenError};

use serde::Deserialize;

use crate::units::HumanDuration;

/// `[tokens]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How long an ephemeral name can be pulled: `"36h"`.
    pub lifetime: HumanDuration,
    /// How long a request can still be looked up after its name has expired: `"7days"`.
    pub record_retention: HumanDuration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lifetime: HumanDuration::hours(36),
            record_retention: HumanDuration::hours(7 * 24),
        }
    }
}
