//! Pinned repositories: their blobs are not evicted. `<cache>/pins` has one in each line.
//!
//! A blob is pinned if the repository that used it last is; a pinned repository stays noted when others use the blob,
//! too. Of a blob that was used by others last when its repository was pinned, the next use will tell.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use super::{as_written, index::Index};
use crate::{
    blocking::lock,
    oci::{Reference, Registry, Repository},
};

/// A repository whose blobs are not evicted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pin {
    #[serde(with = "as_written::text")]
    pub registry: Registry,
    #[serde(with = "as_written::text")]
    pub repository: Repository,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no repository; write it with its registry and without a tag, as in quay.io/acme/app"
)]
pub struct PinError {
    text: String,
}

/// As people write the name of an image, but without a tag or digest: a repository is kept as a whole.
impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let error = || PinError {
            text: text.to_owned(),
        };
        let last = text.rsplit('/').next().unwrap_or_default();
        // A registry alone would be taken for an image of Docker Hub.
        let is_registry = last == text && text.contains('.');
        if is_registry || last.contains([':', '@']) {
            return Err(error());
        }
        let reference: Reference = text.parse().map_err(|_| error())?;
        Ok(Self {
            registry: reference.registry,
            repository: reference.repository,
        })
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.repository)
    }
}

impl Pin {
    fn parse(line: &str) -> Option<Self> {
        let (registry, repository) = line.trim().split_once('/')?;
        let registry = registry.parse().ok()?;
        Some(Self {
            repository: Repository::within(&registry, repository).ok()?,
            registry,
        })
    }

    pub(super) fn hash(&self, index: &Index) -> u64 {
        index.repository_hash(index.registry_hash(&self.registry), &self.repository)
    }
}

pub(super) struct Pins {
    path: PathBuf,
    pins: Mutex<BTreeSet<Pin>>,
    /// Read by cores.
    hashes: ArcSwap<HashSet<u64>>,
    /// What pinned blobs occupy. Counted by many at once, so it may be a little off until it is counted anew.
    bytes: AtomicU64,
}

impl Pins {
    pub(super) fn load(path: PathBuf, index: &Index) -> io::Result<Self> {
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes?,
        };
        let text = String::from_utf8_lossy(&bytes);
        let mut pins = BTreeSet::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match Pin::parse(line) {
                Some(pin) => {
                    pins.insert(pin);
                }
                None => {
                    tracing::warn!(path = %path.display(), line, "not a repository; the line is left out")
                }
            }
        }
        Ok(Self {
            path,
            hashes: ArcSwap::from_pointee(hashes(&pins, index)),
            pins: Mutex::new(pins),
            bytes: AtomicU64::new(0),
        })
    }

    /// False if it was pinned already. Nothing has changed if it cannot be written.
    pub(super) fn add(&self, pin: &Pin, index: &Index) -> io::Result<bool> {
        self.change(index, |pins| pins.insert(pin.clone()))
    }

    /// False if it was not pinned.
    pub(super) fn remove(&self, pin: &Pin, index: &Index) -> io::Result<bool> {
        self.change(index, |pins| pins.remove(pin))
    }

    fn change(
        &self,
        index: &Index,
        change: impl FnOnce(&mut BTreeSet<Pin>) -> bool,
    ) -> io::Result<bool> {
        let mut pins = lock(&self.pins);
        let mut changed = pins.clone();
        if !change(&mut changed) {
            return Ok(false);
        }
        write(&self.path, &changed)?;
        self.hashes.store(hashes(&changed, index).into());
        *pins = changed;
        Ok(true)
    }

    pub(super) fn all(&self) -> Vec<Pin> {
        lock(&self.pins).iter().cloned().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hashes.load().is_empty()
    }

    /// Whether the repository with this hash is pinned. Without a lock.
    pub(super) fn has(&self, repository: u64) -> bool {
        self.hashes.load().contains(&repository)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn subtract_bytes(&self, bytes: u64) {
        let _ = self
            .bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sum| {
                Some(sum.saturating_sub(bytes))
            });
    }
}

fn hashes(pins: &BTreeSet<Pin>, index: &Index) -> HashSet<u64> {
    pins.iter().map(|pin| pin.hash(index)).collect()
}

/// The old file or the new one, whatever happens.
fn write(path: &Path, pins: &BTreeSet<Pin>) -> io::Result<()> {
    let text: String = pins.iter().map(|pin| format!("{pin}\n")).collect();
    let draft = path.with_extension("new");
    let mut file = File::create(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(text: &str) -> Pin {
        Pin::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn a_repository_is_written_as_people_write_images() {
        for (text, shown) in [
            ("quay.io/acme/app", Some("quay.io/acme/app")),
            ("localhost:5000/app", Some("localhost:5000/app")),
            ("docker.io/alpine", Some("docker.io/library/alpine")),
            ("alpine", Some("docker.io/library/alpine")),
            ("quay.io/acme/app:v1", None),
            ("quay.io/acme/app@sha256:ab", None),
            ("quay.io:443", None),
            ("quay.io", None),
            ("quay.io/", None),
            ("https://quay.io/acme/app", None),
            ("quay.io/../app", None),
            ("quay.io/acme app", None),
            ("", None),
        ] {
            let parsed = text.parse::<Pin>().ok().map(|pin| pin.to_string());
            assert_eq!(parsed.as_deref(), shown, "{text}");
        }
    }

    #[test]
    fn pins_survive_a_restart_and_foreign_lines_are_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pins");
        let (index, _) = Index::in_memory(0);
        let (one, other) = (pin("docker.io/alpine"), pin("localhost:5000/acme/app"));
        {
            let pins = Pins::load(path.clone(), &index).expect("none yet");
            assert!(pins.is_empty());
            assert!(pins.add(&one, &index).expect("written"));
            assert!(pins.add(&other, &index).expect("written"));
            assert!(!pins.add(&one, &index).expect("there already"));
        }
        let text = fs::read_to_string(&path).expect("read");
        assert_eq!(text, "docker.io/library/alpine\nlocalhost:5000/acme/app\n");
        let foreign = [
            b"\nno repository\n../..\n\xff/\xff\n",
            text.as_bytes(),
            b"\0\n",
        ]
        .concat();
        fs::write(&path, foreign).expect("written");
        // Another index has other keys: hashes are made anew.
        let (index, _) = Index::in_memory(0);
        let pins = Pins::load(path, &index).expect("loaded");
        assert_eq!(pins.all(), [one.clone(), other.clone()]);
        assert!(pins.has(one.hash(&index)) && pins.has(other.hash(&index)));
        assert!(pins.remove(&one, &index).expect("written"));
        assert!(!pins.has(one.hash(&index)) && pins.has(other.hash(&index)));
        assert!(!pins.remove(&one, &index).expect("gone already"));
    }
}
