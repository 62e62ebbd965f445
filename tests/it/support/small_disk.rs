//! A file system of a few MiB, gone with its drop.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
};

pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Only root may mount: for others the test is left out, with a line that says so.
    pub fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        let thread = thread::current();
        let test = thread.name().unwrap_or("a test");
        eprintln!("left out: {test} needs to mount a file system (root)");
        None
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn cache_folder(&self) -> PathBuf {
        self.path().join("cache")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
