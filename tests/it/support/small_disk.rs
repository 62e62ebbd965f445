//! A file system of a few MiB, gone with its drop.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use super::programs;

/// Of the image that a quota is in: btrfs is not made smaller than about 110 MiB.
const IMAGE_SIZE: u64 = 256 << 20;

pub struct SmallDisk {
    mount_point: tempfile::TempDir,
    cache_folder: PathBuf,
    /// What is mounted, if it is in a file.
    _image: Option<tempfile::TempDir>,
}

impl SmallDisk {
    /// Only root may mount: for others the test is left out, with a line that says so.
    pub fn mount(size: &str) -> Option<Self> {
        let mount_point = tempfile::tempdir().expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        let is_mounted = succeeds(mount.arg(mount_point.path()));
        Self::of(is_mounted, "mount a file system (root)", mount_point, None)
    }

    /// Larger than `size`, but the cache's folder may not take more than that. It binds root as well, as other quotas do
    /// not.
    pub fn with_quota(size: &str) -> Option<Self> {
        if !programs::are_here(&["mkfs.btrfs", "btrfs"]) {
            return None;
        }
        let mount_point = tempfile::tempdir().expect("a folder");
        let image = tempfile::tempdir().expect("a folder");
        let path = image.path().join("image");
        let file = File::create(&path).expect("a writable folder");
        file.set_len(IMAGE_SIZE).expect("a writable file");
        let (image_path, folder) = (path.as_path(), mount_point.path());
        let is_mounted = succeeds(programs::command("mkfs.btrfs").arg("-q").arg(image_path))
            && succeeds(
                Command::new("mount")
                    .args(["-o", "loop"])
                    .arg(image_path)
                    .arg(folder),
            );
        let what = "mount a file in btrfs (root, loop devices)";
        let disk = Self::of(is_mounted, what, mount_point, Some(image))?;
        let btrfs = |arguments: &[&str], folder: &Path| {
            programs::run(programs::command("btrfs").args(arguments).arg(folder));
        };
        btrfs(&["quota", "enable"], disk.path());
        btrfs(&["subvolume", "create"], &disk.cache_folder);
        btrfs(&["qgroup", "limit", size], &disk.cache_folder);
        Some(disk)
    }

    fn of(
        is_mounted: bool,
        needed: &str,
        mount_point: tempfile::TempDir,
        image: Option<tempfile::TempDir>,
    ) -> Option<Self> {
        if !is_mounted {
            let thread = thread::current();
            let test = thread.name().unwrap_or("a test");
            eprintln!("left out: {test} needs to {needed}");
            return None;
        }
        Some(Self {
            cache_folder: mount_point.path().join("cache"),
            mount_point,
            _image: image,
        })
    }

    pub fn path(&self) -> &Path {
        self.mount_point.path()
    }

    /// Waits until it has written all that it was given.
    pub fn sync(&self) {
        programs::run(Command::new("sync").arg("-f").arg(&self.cache_folder));
    }

    pub fn cache_folder(&self) -> PathBuf {
        self.cache_folder.clone()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
