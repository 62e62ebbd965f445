//! What stays free of the file system: it is shared with others, and a full one fails more than the cache.

use std::path::PathBuf;

use super::Options;
use crate::{sys::FileSystem, units::GIB};

/// The default takes this part of the file system, but not more than a server can spare.
const DEFAULT_PART: u64 = 20;
const DEFAULT_MOST: u64 = GIB;

pub(super) struct Floor {
    folder: PathBuf,
    free_bytes: u64,
    free_inodes: u64,
}

/// What is missing before more may be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shortfall {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

impl Shortfall {
    pub(super) fn is_none(self) -> bool {
        self == Self::default()
    }
}

impl Floor {
    pub(super) fn new(folder: PathBuf, options: &Options) -> Self {
        let system = FileSystem::of(&folder).unwrap_or_default();
        let default = (system.total_bytes / DEFAULT_PART).min(DEFAULT_MOST);
        Self {
            folder,
            free_bytes: options.min_free.map_or(default, |size| size.bytes()),
            free_inodes: options.min_free_inodes.of(system.total_inodes),
        }
    }

    /// If `bytes` more were written to one more file. Blocks for a moment. What the file system does not say is no
    /// reason against writing: it will say when it is full.
    pub(super) fn shortfall(&self, bytes: u64) -> Shortfall {
        let Ok(system) = FileSystem::of(&self.folder) else {
            return Shortfall::default();
        };
        let bytes_needed = self.free_bytes.saturating_add(bytes);
        let has_inodes = system.total_inodes > 0;
        Shortfall {
            bytes: bytes_needed.saturating_sub(system.free_bytes),
            inodes: match has_inodes {
                true => (self.free_inodes + 1).saturating_sub(system.free_inodes),
                false => 0,
            },
        }
    }

    pub(super) fn free_bytes(&self) -> u64 {
        FileSystem::of(&self.folder).map_or(0, |system| system.free_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{ByteSize, Percent};

    #[test]
    fn a_shortfall_is_what_is_missing() {
        let folder = tempfile::tempdir().expect("a folder");
        let floor = |min_free, inodes| {
            let options = Options {
                min_free,
                min_free_inodes: Percent(inodes),
                ..Options::default()
            };
            Floor::new(folder.path().to_owned(), &options)
        };
        let free = floor(Some(ByteSize(0)), 0);
        assert!(free.shortfall(1).is_none());
        let whole = FileSystem::of(folder.path()).expect("the file system");
        let full = floor(Some(ByteSize(whole.total_bytes + 4096)), 0);
        assert!(full.shortfall(0).bytes >= 4096);
        if whole.total_inodes > 0 {
            assert!(floor(Some(ByteSize(0)), 100).shortfall(0).inodes > 0);
        }
        let default = floor(None, 1);
        assert!(default.free_bytes <= GIB && default.free_bytes <= whole.total_bytes / 20);
    }
}
