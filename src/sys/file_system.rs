//! What a file system has left.

use std::{
    ffi::CString,
    fs::File,
    io,
    mem::MaybeUninit,
    os::{fd::AsRawFd, unix::ffi::OsStrExt as _},
    path::Path,
};

use super::checked;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    pub total_bytes: u64,
    /// For us: what is set aside for root is not ours.
    pub free_bytes: u64,
    /// Zero where inodes are made as they are needed.
    pub total_inodes: u64,
    pub free_inodes: u64,
}

impl FileSystem {
    pub fn of(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut answer = MaybeUninit::<libc::statvfs>::zeroed();
        // SAFETY: the path ends with a zero byte, and `answer` is writable.
        let result = unsafe { libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) };
        checked(result as isize)?;
        // SAFETY: the call has filled it, and plain integers may be zero anyway.
        let answer = unsafe { answer.assume_init() };
        Ok(Self {
            total_bytes: answer.f_blocks.saturating_mul(answer.f_frsize),
            free_bytes: answer.f_bavail.saturating_mul(answer.f_frsize),
            total_inodes: answer.f_files,
            free_inodes: answer.f_favail,
        })
    }
}

/// Whether a page of the file that has its disk is written where it is. Others need room for each change of it, and end the
/// process that stores to a mapped page when there is none.
pub(super) fn writes_in_place(file: &File) -> io::Result<bool> {
    /// btrfs, ZFS, bcachefs.
    const COPY_ON_WRITE: [u32; 3] = [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e];
    let mut answer = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is borrowed from `file`, and `answer` is writable.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), answer.as_mut_ptr()) };
    checked(result as isize)?;
    // SAFETY: the call has filled it, and plain integers may be zero anyway.
    let answer = unsafe { answer.assume_init() };
    // Its type is not the same everywhere; the magic numbers have 32 bits.
    let magic = u32::try_from(answer.f_type & 0xffff_ffff).unwrap_or(0);
    Ok(!COPY_ON_WRITE.contains(&magic))
}

/// Waits until all that was done to the file system that `file` is on is on disk.
pub fn sync_file_system(file: &File) -> io::Result<()> {
    // SAFETY: plain values only; the descriptor is borrowed from `file`.
    let answer = unsafe { libc::syncfs(file.as_raw_fd()) };
    checked(answer as isize).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_a_size() {
        let root = FileSystem::of(Path::new("/")).expect("the root");
        assert!(
            root.total_bytes > 0 && root.free_bytes <= root.total_bytes,
            "{root:?}"
        );
        assert!(FileSystem::of(Path::new("/no such folder")).is_err());
    }
}
