//! A full disk costs the cache, not the pull.

use std::{path::Path, process::Command};

use crate::support::{
    content::Content,
    http::End,
    liar::Liar,
    tidegate::{Setup, files_below},
};

const MIB: u64 = 1 << 20;

/// A file system of a few MiB, gone with its drop.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Only root may mount.
    fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .output();
        mounted
            .is_ok_and(|output| output.status.success())
            .then_some(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_fails_no_pull() {
    let Some(disk) = SmallDisk::mount("6m") else {
        eprintln!("left out: a_full_disk_fails_no_pull needs to mount a file system (root)");
        return;
    };
    let liar = Liar::open();
    let layers: Vec<Content> = (0..4)
        .map(|seed| Content::Generated {
            seed,
            size: 4 * MIB,
        })
        .collect();
    let image = liar.image("acme/app", "v1", &layers);
    // It is told that it may use much more than there is.
    let directory = disk.path().join("cache");
    let tidegate = Setup::new()
        .liar(&liar)
        .section("[cache]\nmax_size = \"1GiB\"")
        .cache_folder(directory.clone())
        .start();
    let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
    for round in 0..2 {
        for digest in &image.layers {
            let pulled = tidegate.pull(&grant.blob(digest));
            assert_eq!(
                (&pulled.digest, pulled.end),
                (digest, End::Complete),
                "round {round}"
            );
        }
    }
    let kept = files_below(&directory.join("blobs"));
    assert_eq!(kept.len(), 1, "one fits: {kept:?}");
    assert!(
        tidegate.log().text().contains("streamed uncached"),
        "the operator is told"
    );
    assert!(
        files_below(&directory.join("fills")).is_empty(),
        "nothing half is left behind"
    );
}
