//! What a kill left half done.

use crate::{
    cache::{
        Key,
        folder::Folder,
        index::{Files, Index, Name},
    },
    oci::Registry,
};

pub(super) struct Settling<'f> {
    pub(super) folder: &'f Folder,
    pub(super) registries: &'f [Registry],
}

impl Settling<'_> {
    fn key(&self, index: &Index, name: &Name) -> Option<Key> {
        let registry = self
            .registries
            .iter()
            .find(|registry| index.registry_hash(registry) == name.registry_hash())?;
        Some(Key {
            digest: self.folder.digest(registry, name)?,
            registry: registry.clone(),
        })
    }
}

impl Files for Settling<'_> {
    fn size_of(&mut self, index: &Index, name: &Name) -> Option<u64> {
        let key = self.key(index, name)?;
        self.folder.stored(&key).map(|stored| stored.size)
    }

    fn remove(&mut self, index: &Index, name: &Name) {
        if let Some(key) = self.key(index, name) {
            self.folder.remove(&key);
        }
    }
}
