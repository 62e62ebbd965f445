//! The blob cache.

use std::path::PathBuf;

use serde::Deserialize;

use crate::units::ByteSize;

/// `[cache]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Must be one file system: a blob is committed by renaming it. Default: `$XDG_CACHE_HOME/tidegate`, for root
    /// `/var/cache/tidegate`.
    pub directory: Option<PathBuf>,
    /// Never exceeded, because a fill reserves its bytes first: `"20GiB"`.
    pub max_size: ByteSize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            directory: None,
            max_size: ByteSize::gib(20),
        }
    }
}
