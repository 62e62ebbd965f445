//! What becomes of a container request: mostly a name that can be pulled, sometimes an image that stays elsewhere.

use std::time::Duration;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// A name that can be pulled.
    #[default]
    Name,
    /// An image in a repository of the caller's. Nothing can be pulled under its token, which only says how it goes.
    Durable(Durable),
    /// What a job reads from, for that long at the most. Nobody is told its token.
    Source(Duration),
}

/// An image that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    pub kind: DurableKind,
    /// Where it is, or will be.
    pub target: String,
    /// What makes it. `None`: it was there, and nobody here knows who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DurableKind {
    /// A copy, byte for byte.
    Mirror,
    /// With what the request puts on it.
    Freeze,
}

impl Purpose {
    pub(super) fn durable(&self) -> Option<&Durable> {
        match self {
            Self::Durable(durable) => Some(durable),
            Self::Name | Self::Source(_) => None,
        }
    }
}

impl DurableKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mirror => "mirror",
            Self::Freeze => "freeze",
        }
    }
}
