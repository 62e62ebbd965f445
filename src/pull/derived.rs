//! What was made of images by overlays, in memory: the same overlay on the same image is worked out once, whoever asks.
//!
//! That it stands here says nothing about who may have it: whoever looks has been let have the image that it came from.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;

use super::{Access, shelf::Stored};
use crate::{
    augment::NamedOverlay,
    blocking::lock,
    oci::{Digest, Registry, Repository},
};

/// Some KiB each. Beyond it all are forgotten, and worked out again by whoever needs them.
const MOST_BYTES: usize = 32 << 20;

/// An image with its overlay.
#[derive(Debug)]
pub(super) struct Derived {
    /// What the tag means now.
    pub(super) top: Arc<Stored>,
    /// The images of an index that became others.
    pub(super) images: Vec<Arc<Stored>>,
    pub(super) configs: Vec<(Digest, Bytes)>,
    /// What the tag means at the registry.
    pub(super) source: Digest,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) registry: Registry,
    pub(super) repository: Repository,
    pub(super) source: Digest,
    pub(super) overlay: Digest,
}

impl Origin {
    pub(super) fn of(access: &Access, source: Digest, overlay: &NamedOverlay) -> Self {
        Self {
            registry: access.registry.clone(),
            repository: access.repository.clone(),
            source,
            overlay: overlay.digest(),
        }
    }
}

#[derive(Default)]
pub(super) struct Derivations(Mutex<Known>);

#[derive(Default)]
struct Known {
    derived: HashMap<Origin, Arc<Derived>>,
    manifests: HashMap<Digest, Arc<Stored>>,
    configs: HashMap<Digest, Bytes>,
    byte_count: usize,
}

impl Derived {
    pub(super) fn manifest(&self, digest: &Digest) -> Option<&Arc<Stored>> {
        self.manifests().find(|stored| stored.digest == *digest)
    }

    pub(super) fn config(&self, digest: &Digest) -> Option<&Bytes> {
        let mut configs = self.configs.iter();
        configs
            .find(|(known, _)| known == digest)
            .map(|(_, bytes)| bytes)
    }

    pub(super) fn manifests(&self) -> impl Iterator<Item = &Arc<Stored>> {
        [&self.top].into_iter().chain(&self.images)
    }

    /// All that did not come from the registry. What is named comes before what names it: who keeps them in this order has
    /// all of it when he has the top.
    pub(super) fn contents(&self) -> impl Iterator<Item = (&Digest, &[u8])> {
        let configs = self.configs.iter();
        let configs = configs.map(|(digest, bytes)| (digest, bytes.as_ref()));
        let manifests = self.images.iter().chain([&self.top]);
        configs.chain(manifests.map(|stored| (&stored.digest, stored.bytes.as_ref())))
    }
}

impl Derivations {
    pub(super) fn find(&self, origin: &Origin) -> Option<Arc<Derived>> {
        lock(&self.0).derived.get(origin).map(Arc::clone)
    }

    /// For those to whom it belongs.
    pub(super) fn manifest(&self, digest: &Digest) -> Option<Arc<Stored>> {
        lock(&self.0).manifests.get(digest).map(Arc::clone)
    }

    /// For those to whom it belongs.
    pub(super) fn config(&self, digest: &Digest) -> Option<Bytes> {
        lock(&self.0).configs.get(digest).cloned()
    }

    pub(super) fn put(&self, origin: Origin, derived: &Arc<Derived>) {
        let size: usize = derived.contents().map(|(_, bytes)| bytes.len()).sum();
        let mut known = lock(&self.0);
        known.make_room(size);
        for stored in derived.manifests() {
            known.manifests.insert(stored.digest, Arc::clone(stored));
        }
        known.configs.extend(derived.configs.iter().cloned());
        known.derived.insert(origin, Arc::clone(derived));
    }

    /// One that was made before, and read from the disk.
    pub(super) fn put_manifest(&self, stored: &Arc<Stored>) {
        let mut known = lock(&self.0);
        if !known.manifests.contains_key(&stored.digest) {
            known.make_room(stored.bytes.len());
            known.manifests.insert(stored.digest, Arc::clone(stored));
        }
    }
}

impl Known {
    fn make_room(&mut self, byte_count: usize) {
        if self.byte_count + byte_count > MOST_BYTES {
            *self = Self::default();
        }
        self.byte_count += byte_count;
    }
}
