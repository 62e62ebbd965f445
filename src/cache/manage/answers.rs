//! What is asked and answered; also the JSON that programs get.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    cache::{Key, Listed, Pin, Usage, budget::on_disk},
    oci::{Digest, Registry},
};

/// `gc` names so many; all are counted.
const MOST_NAMED: usize = 10_000;

/// Which blobs are meant: those that fit everything that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub registry: Option<Registry>,
    /// Those that this repository has used last: which else have used a blob is not known.
    pub repository: Option<Pin>,
    pub digest: Option<Digest>,
}

impl Selection {
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether what is asked for is done, or only told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    Do,
    DryRun,
}

/// A part of the list, in no particular order.
#[derive(Debug, Serialize, Deserialize)]
pub struct Page {
    pub blobs: Vec<Listed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}

/// What is used, and what for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub directory: PathBuf,
    pub folder_id: FolderId,
    #[serde(flatten)]
    pub usage: Usage,
    pub partials: Unfinished,
    /// False while the index is made anew from the files: some blobs are not listed yet.
    #[serde(rename = "complete")]
    pub is_complete: bool,
}

/// Downloads that stopped half-way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    pub count: usize,
    #[serde(rename = "size")]
    pub bytes: u64,
}

/// Tells whether two paths are one folder, also where it is mounted under another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderId {
    device: u64,
    inode: u64,
}

impl FolderId {
    pub fn of(directory: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(directory)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

/// What reading and hashing has come to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Checked {
    pub count: u64,
    /// What they occupy.
    #[serde(rename = "size")]
    pub bytes: u64,
    pub damaged: Vec<Damaged>,
    /// Nothing is known of these; they stay.
    pub unread: Vec<Unread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Damaged {
    #[serde(flatten)]
    pub key: Key,
    pub size: u64,
    pub damage: Damage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Damage {
    /// It is not what its name says.
    Content,
    /// Its file is gone, or of another size.
    File,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unread {
    #[serde(flatten)]
    pub key: Key,
    pub error: String,
}

/// What was removed, or would be.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Gone {
    pub count: u64,
    /// What they occupied.
    #[serde(rename = "size")]
    pub bytes: u64,
    pub blobs: Vec<Listed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}

impl Gone {
    pub(super) fn add(&mut self, listed: Listed) {
        self.count += 1;
        self.bytes += on_disk(listed.size);
        if self.blobs.len() < MOST_NAMED {
            self.blobs.push(listed);
        }
    }
}

/// A repository, and how many of the stored blobs it has used last.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    #[serde(flatten)]
    pub pin: Pin,
    pub count: usize,
}
