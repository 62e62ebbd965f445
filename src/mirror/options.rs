//! `[mirror]`

use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Blobs of one image that are copied at the same time: `4`.
    pub blobs_in_parallel: usize,
    /// Signatures, bills of materials and whatever else refers to an image are copied with it.
    pub mirror_referrers: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // Runtimes fetch three or four layers at once, and registries are used to that.
            blobs_in_parallel: 4,
            mirror_referrers: true,
        }
    }
}
