//! What is there, told to people and their programs.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Store, key};
use crate::{
    cache::{Key, as_written, budget::on_disk, index::Entry},
    oci::Registry,
};

/// A stored blob, for people and their programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    #[serde(flatten)]
    pub key: Key,
    pub size: u64,
    /// Seconds since 1970.
    #[serde(with = "as_written::instant")]
    pub last_use: u64,
    /// Uses since it was last looked at for eviction, 3 at most.
    #[serde(rename = "uses")]
    pub frequency: u8,
    #[serde(rename = "pinned")]
    pub is_pinned: bool,
    #[serde(rename = "verified")]
    pub is_verified: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    #[serde(rename = "max_size")]
    pub max_bytes: u64,
    /// Blobs, what is reserved, and what was removed but is still read.
    #[serde(rename = "used")]
    pub used_bytes: u64,
    /// Reserved by fills, written or not.
    #[serde(rename = "reserved")]
    pub reserved_bytes: u64,
    #[serde(rename = "pinned")]
    pub pinned_bytes: u64,
    #[serde(rename = "blobs")]
    pub blob_bytes: u64,
    #[serde(rename = "count")]
    pub blob_count: u64,
    pub registries: Vec<RegistryUsage>,
    /// What the file system has left for us.
    #[serde(rename = "free")]
    pub free_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryUsage {
    #[serde(with = "as_written::text")]
    pub registry: Registry,
    #[serde(rename = "size")]
    pub bytes: u64,
    #[serde(rename = "count")]
    pub blob_count: u64,
}

impl Store {
    pub(in crate::cache) fn listed<'s>(
        &'s self,
        entries: impl Iterator<Item = Entry> + 's,
    ) -> impl Iterator<Item = Listed> + 's {
        let registries = self.desk().registries.clone();
        entries.filter_map(move |entry| {
            let key = key(&registries, &self.folder, &entry.name)?;
            Some(self.describe(key, &entry))
        })
    }

    /// Those that have had blobs here.
    pub(in crate::cache) fn registries(&self) -> Vec<Registry> {
        self.desk().registries.values().cloned().collect()
    }

    /// The blob, as the index has it.
    pub(in crate::cache) fn entry(&self, key: &Key) -> Option<Entry> {
        let seen = self.index.find(&self.name(key))?;
        self.index.entry(seen.place)
    }

    pub(super) fn describe(&self, key: Key, entry: &Entry) -> Listed {
        Listed {
            key,
            size: entry.size,
            last_use: entry.last_use,
            frequency: entry.frequency,
            is_pinned: self.pins.has(entry.repository),
            is_verified: self.is_place_verified(entry.place),
        }
    }

    pub(in crate::cache) fn usage(&self) -> Usage {
        let mut registries: HashMap<u64, RegistryUsage> = self
            .desk()
            .registries
            .iter()
            .map(|(hash, registry)| {
                let usage = RegistryUsage {
                    registry: registry.clone(),
                    bytes: 0,
                    blob_count: 0,
                };
                (*hash, usage)
            })
            .collect();
        for entry in self.index.entries() {
            if let Some(usage) = registries.get_mut(&entry.name.registry_hash()) {
                usage.bytes += on_disk(entry.size);
                usage.blob_count += 1;
            }
        }
        let mut registries: Vec<RegistryUsage> = registries
            .into_values()
            .filter(|usage| usage.blob_count > 0)
            .collect();
        registries.sort_by(|one, other| one.registry.cmp(&other.registry));
        Usage {
            max_bytes: self.max_bytes(),
            used_bytes: self.used_bytes(),
            reserved_bytes: self.used_bytes().saturating_sub(self.index.bytes()),
            pinned_bytes: self.pins.bytes(),
            blob_bytes: self.index.bytes(),
            blob_count: self.blob_count(),
            registries,
            free_bytes: self.floor.free_bytes(),
        }
    }
}
