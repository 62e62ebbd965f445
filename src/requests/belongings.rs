//! Files that belong to tokens: layers that came with their requests, and what was made for them of images. They are
//! content, named by digests, and shared where they are equal; each is there as long as a token that it belongs to.
//! Everything here blocks.
//!
//! ```text
//! <state folder>/overlays/content/ab/<algorithm>-<hex>          once, however many tokens have it
//! <state folder>/overlays/tokens/ab/<token>/<algorithm>-<hex>   a hard link to it
//! <state folder>/overlays/new/<number>                          being written; emptied at the next start
//! ```
//!
//! The file system does the counting: what has no link but its own belongs to nobody. A file under its name is whole
//! and was synced. Whoever asks for a file names the token too: that somebody has it says nothing about anybody else.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Options, Tenant, Token, shares::Shares};
use crate::{oci::Digest, units::ByteSize};

/// Someone removes what belongs to nobody while we link to it. He comes once an hour.
const MOST_ROUNDS: usize = 4;

pub(super) struct Belongings {
    content: PathBuf,
    tokens: PathBuf,
    new: PathBuf,
    next_new: AtomicU64,
    /// Of content, as of the last walk and what has come since.
    used: AtomicU64,
    max_size: ByteSize,
    shares: Shares,
    most_of_one: ByteSize,
}

/// Whom a token is for.
pub(super) enum Owner {
    Tenant(Tenant),
    /// It is good no more.
    Nobody,
    /// As long as its record cannot be read.
    Unknown,
}

#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error(
        "the layers of container requests take up all of {max_size} (tokens.max_layers_size); some go when their names expire"
    )]
    Full { max_size: ByteSize },
    #[error(
        "the layers of your container requests take up all that one workspace or user may have, {most} \
         (tokens.max_layers_size_per_tenant); some go when their names expire"
    )]
    ShareUsedUp { most: ByteSize },
    #[error("layers of container requests cannot be kept: {0}")]
    Disk(#[from] io::Error),
}

impl Belongings {
    pub(super) fn open(state_directory: &Path, options: &Options) -> io::Result<Self> {
        let folder = state_directory.join("overlays");
        let max_size = options.max_layers_size;
        let most_of_one = options.layers_size_of_one();
        let belongings = Self {
            content: folder.join("content"),
            tokens: folder.join("tokens"),
            new: folder.join("new"),
            next_new: AtomicU64::new(0),
            used: AtomicU64::new(0),
            max_size,
            // Who may have all is told of the whole.
            shares: Shares::new(match most_of_one < max_size {
                true => most_of_one.bytes(),
                false => u64::MAX,
            }),
            most_of_one,
        };
        match fs::remove_dir_all(&belongings.new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut used = 0;
        for (_, metadata) in files_in_parts(&belongings.content)? {
            used += metadata.len();
        }
        belongings.used.store(used, Ordering::Relaxed);
        Ok(belongings)
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Layers that came with a request, as far as its tenant's share has room. On disk when it returns.
    pub(super) fn keep_layers<'c>(
        &self,
        token: &Token,
        tenant: &Tenant,
        layers: impl Iterator<Item = (&'c Digest, &'c [u8])> + Clone,
    ) -> Result<(), KeepError> {
        let sizes = layers.clone();
        let sizes = sizes.map(|(digest, bytes)| (*digest, bytes.len() as u64));
        let taken = self.shares.take(tenant, sizes);
        let taken = taken.map_err(|_| KeepError::ShareUsedUp {
            most: self.most_of_one,
        })?;
        let kept = self.keep(token, layers);
        if kept.is_err() {
            self.shares.give_back(tenant, &taken);
        }
        kept
    }

    /// On disk when it returns. The content was found to have these digests. For its tenant's share it counts from the next
    /// purge on: it is little, and whoever pulls by a name that he has must get what was made for it.
    pub(super) fn keep<'c>(
        &self,
        token: &Token,
        contents: impl IntoIterator<Item = (&'c Digest, &'c [u8])>,
    ) -> Result<(), KeepError> {
        let folder = self.folder_of(token);
        create_folder(&folder)?;
        for (digest, bytes) in contents {
            self.keep_one(&folder, digest, bytes)?;
        }
        sync_folder(&folder)?;
        Ok(())
    }

    fn keep_one(&self, folder: &Path, digest: &Digest, bytes: &[u8]) -> Result<(), KeepError> {
        let shared = self.path_of(digest);
        let link = folder.join(file_name(digest));
        for _ in 0..MOST_ROUNDS {
            match fs::hard_link(&shared, &link) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let written = self.write(bytes)?;
                    if let Some(part) = shared.parent() {
                        create_folder(part)?;
                    }
                    fs::rename(written, &shared)?;
                }
                // It has as many links as a file may have, or the file system knows none.
                Err(error) => {
                    tracing::debug!(%digest, %error, "content is kept once more");
                    let written = self.write(bytes)?;
                    fs::rename(written, &link)?;
                    return Ok(());
                }
            }
        }
        Err(io::Error::other("what was written is removed again and again").into())
    }

    fn write(&self, bytes: &[u8]) -> Result<PathBuf, KeepError> {
        let size = bytes.len() as u64;
        let used = self.used.fetch_add(size, Ordering::Relaxed) + size;
        let written = if used > self.max_size.bytes() {
            Err(KeepError::Full {
                max_size: self.max_size,
            })
        } else {
            self.write_new(bytes).map_err(KeepError::from)
        };
        if written.is_err() {
            self.used.fetch_sub(size, Ordering::Relaxed);
        }
        written
    }

    fn write_new(&self, bytes: &[u8]) -> io::Result<PathBuf> {
        let number = self.next_new.fetch_add(1, Ordering::Relaxed);
        create_folder(&self.new)?;
        let path = self.new.join(number.to_string());
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_data()
            });
        if let Err(error) = written {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(path)
    }

    /// `None`: it does not belong to this token.
    pub(super) fn find(&self, token: &Token, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        let path = self.folder_of(token).join(file_name(digest));
        match File::open(path) {
            Ok(file) => {
                let size = file.metadata()?.len();
                Ok(Some((file, size)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Finds out who has how much of what is there.
    pub(super) fn count(&self, owner_of: impl Fn(&Token) -> Owner) -> io::Result<()> {
        self.count_and(owner_of, |_| Ok(()))
    }

    /// Removes what belongs to tokens that are no more, and says how many bytes that was.
    pub(super) fn purge(&self, owner_of: impl Fn(&Token) -> Owner) -> io::Result<u64> {
        self.count_and(owner_of, |folder| fs::remove_dir_all(folder))?;
        let before = self.used_bytes();
        let (mut kept, mut removed) = (0, 0);
        for (path, metadata) in files_in_parts(&self.content)? {
            // Whoever links to it just now keeps the content by his link, and the next one writes it again.
            if metadata.nlink() == 1 {
                fs::remove_file(path)?;
                removed += metadata.len();
            } else {
                kept += metadata.len();
            }
        }
        // What came while we walked stays counted.
        let since = self.used_bytes().saturating_sub(before);
        self.used.store(kept + since, Ordering::Relaxed);
        Ok(removed)
    }

    fn count_and(
        &self,
        owner_of: impl Fn(&Token) -> Owner,
        of_nobody: impl Fn(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        self.shares.begin_round();
        for part in folders_in(&self.tokens)? {
            for folder in folders_in(&part)? {
                let name = folder.file_name().and_then(|name| name.to_str());
                let token = name.and_then(|name| name.parse::<Token>().ok());
                match token.map(|token| owner_of(&token)) {
                    Some(Owner::Tenant(tenant)) => {
                        for (digest, size) in contents_of(&folder)? {
                            self.shares.note(&tenant, digest, size);
                        }
                    }
                    Some(Owner::Nobody) => of_nobody(&folder)?,
                    Some(Owner::Unknown) | None => {}
                }
            }
        }
        self.shares.end_round();
        Ok(())
    }

    fn folder_of(&self, token: &Token) -> PathBuf {
        let part = token.as_str().get(..2).unwrap_or_default();
        self.tokens.join(part).join(token.as_str())
    }

    fn path_of(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let part = hex.get(..2).unwrap_or_default();
        self.content.join(part).join(file_name(digest))
    }
}

fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().as_str(), digest.hex())
}

/// As `file_name` names them.
fn contents_of(folder: &Path) -> io::Result<Vec<(Digest, u64)>> {
    let mut contents = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let digest = name.to_str().map(|name| name.replacen('-', ":", 1));
        if let Some(digest) = digest.and_then(|digest| digest.parse().ok()) {
            contents.push((digest, entry.metadata()?.len()));
        }
    }
    Ok(contents)
}

fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// So that the links in it survive a power cut.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn folders_in(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    let entries = match fs::read_dir(path) {
        // Nothing was ever kept.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(folders),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn files_in_parts(path: &Path) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut files = Vec::new();
    for part in folders_in(path)? {
        for entry in fs::read_dir(part)? {
            let entry = entry?;
            files.push((entry.path(), entry.metadata()?));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn read(belongings: &Belongings, token: &Token, digest: &Digest) -> Option<Vec<u8>> {
        let found = belongings.find(token, digest);
        let (mut file, size) = found.unwrap_or_else(|error| panic!("{error}"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("it is ours");
        assert_eq!(bytes.len() as u64, size);
        Some(bytes)
    }

    fn open(folder: &Path, max_size: ByteSize) -> Belongings {
        let options = Options {
            max_layers_size: max_size,
            ..Options::default()
        };
        Belongings::open(folder, &options).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn content_is_kept_once_and_as_long_as_one_token_has_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let belongings = open(folder.path(), ByteSize::mib(1));
        let [ada, bob, stranger] = [Token::random(), Token::random(), Token::random()];
        let (shared, own) = (vec![1; 1000], vec![2; 100]);
        let (shared_digest, own_digest) = (Digest::of(&shared), Digest::of(&own));
        for (token, contents) in [
            (
                ada,
                vec![
                    (&shared_digest, shared.as_slice()),
                    (&own_digest, own.as_slice()),
                ],
            ),
            (bob, vec![(&shared_digest, shared.as_slice())]),
            (bob, vec![(&shared_digest, shared.as_slice())]),
        ] {
            let kept = belongings.keep(&token, contents);
            kept.unwrap_or_else(|error| panic!("{error}"));
        }
        assert_eq!(belongings.used_bytes(), 1100);
        assert_eq!(
            read(&belongings, &ada, &shared_digest),
            Some(shared.clone())
        );
        assert_eq!(read(&belongings, &ada, &own_digest), Some(own));
        assert_eq!(read(&belongings, &bob, &own_digest), None);
        assert_eq!(read(&belongings, &stranger, &shared_digest), None);

        drop(belongings);
        let belongings = open(folder.path(), ByteSize::mib(1));
        assert_eq!(belongings.used_bytes(), 1100);
        let only_bobs = |token: &Token| match *token == bob {
            true => Owner::Unknown,
            false => Owner::Nobody,
        };
        assert_eq!(belongings.purge(only_bobs).ok(), Some(100));
        assert_eq!(belongings.used_bytes(), 1000);
        assert_eq!(read(&belongings, &ada, &shared_digest), None);
        assert_eq!(read(&belongings, &bob, &shared_digest), Some(shared));
        assert_eq!(belongings.purge(|_| Owner::Nobody).ok(), Some(1000));
        assert_eq!(belongings.used_bytes(), 0);
    }

    #[test]
    fn there_is_an_end_to_what_is_kept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let belongings = open(folder.path(), ByteSize::mib(1));
        let (token, large) = (Token::random(), vec![1; 900 << 10]);
        let digest = Digest::of(&large);
        assert!(
            belongings
                .keep(&token, [(&digest, large.as_slice())])
                .is_ok()
        );
        let (more, another) = (vec![2; 900 << 10], Token::random());
        let error = belongings
            .keep(&another, [(&Digest::of(&more), more.as_slice())])
            .expect_err("there is no room");
        assert!(
            error.to_string().contains("tokens.max_layers_size"),
            "{error}"
        );
        assert!(
            belongings
                .keep(&another, [(&digest, large.as_slice())])
                .is_ok(),
            "it is there"
        );
        assert_eq!(belongings.used_bytes(), 900 << 10);
    }
}
