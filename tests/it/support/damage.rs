//! What failing disks and careless operators do to files.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
};

use super::tidegate::Tidegate;

/// The file of what is stored.
pub fn open_stored(tidegate: &Tidegate, digest: &str) -> File {
    open(&tidegate.stored(digest).expect("the blob's file"))
}

pub fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("a writable file")
}

/// One bit.
pub fn flip(file: &File, place: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1], place)
        .expect("a writable file");
}
