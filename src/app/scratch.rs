//! A folder for one run of a command, gone at its end.
//!
//! A process that was killed leaves its folder behind. Each holds a lock in its own, so the next one that comes sees which
//! of them are nobody's any more, and removes those.

use std::{
    env,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use crate::requests::Token;

const PREFIX: &str = "tidegate-";
const LOCK: &str = "in-use";
/// Others may still put files into it while it is removed: fills that nobody waits for.
const MOST_ROUNDS: usize = 20;

pub(super) struct Scratch {
    path: PathBuf,
    /// Held for as long as the folder is ours.
    _lock: File,
}

impl Scratch {
    /// In `$TMPDIR`, else where large files may lie: `/tmp` is memory on many machines.
    pub(super) fn create() -> io::Result<Self> {
        let base = match env::var_os("TMPDIR").filter(|folder| !folder.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None if Path::new("/var/tmp").is_dir() => PathBuf::from("/var/tmp"),
            None => env::temp_dir(),
        };
        Self::create_in(&base)
    }

    fn create_in(base: &Path) -> io::Result<Self> {
        remove_abandoned(base);
        let name = format!("{PREFIX}{}", Token::random().as_str());
        let path = base.join(name);
        let about = |cause: io::Error| {
            let folder = base.display();
            io::Error::new(
                cause.kind(),
                format!("{folder}: {cause}; TMPDIR names another folder"),
            )
        };
        DirBuilder::new().mode(0o700).create(&path).map_err(about)?;
        let lock = File::create(path.join(LOCK)).map_err(about)?;
        lock.try_lock().map_err(io::Error::from).map_err(about)?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for _ in 0..MOST_ROUNDS {
            match fs::remove_dir_all(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                _ => return,
            }
        }
    }
}

/// Whatever goes wrong here is for the next one.
fn remove_abandoned(base: &Path) {
    // A process's folder in `/proc` belongs to its effective user.
    let Ok(own) = fs::metadata("/proc/self").map(|process| process.uid()) else {
        return;
    };
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_named_so = name.to_str().is_some_and(|name| name.starts_with(PREFIX));
        let is_ours = || {
            entry
                .metadata()
                .is_ok_and(|it| it.is_dir() && it.uid() == own)
        };
        if !is_named_so || !is_ours() {
            continue;
        }
        let path = entry.path();
        // One that is being created has none yet.
        if let Ok(lock) = File::open(path.join(LOCK))
            && lock.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_removed_by_the_next() {
        let base = tempfile::tempdir().expect("a temporary folder");
        let in_use = Scratch::create_in(base.path()).expect("a writable folder");
        let abandoned = base.path().join("tidegate-abandoned");
        let foreign = base.path().join("tidegate-notes");
        for folder in [&abandoned, &foreign] {
            fs::create_dir(folder).expect("a writable folder");
        }
        fs::write(abandoned.join(LOCK), "").expect("a writable folder");
        fs::write(abandoned.join("blob"), "blob").expect("a writable folder");
        fs::write(in_use.path().join("blob"), "blob").expect("a writable folder");
        let next = Scratch::create_in(base.path()).expect("a writable folder");
        assert!(!abandoned.exists());
        assert!(foreign.exists(), "nobody's of ours");
        assert!(in_use.path().join("blob").exists());
        let path = next.path().to_owned();
        drop(next);
        assert!(!path.exists());
        assert!(in_use.path().exists());
    }
}
