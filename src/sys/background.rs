//! For threads whose work may wait.

use std::{fs::File, os::fd::AsRawFd};

use super::file::offset_of;

/// The idle class (ioprio_set(2)), in the bits above the level.
const IDLE: libc::c_int = 3 << 13;
const THIS_THREAD: libc::c_int = 0;
const BY_THREAD: libc::c_int = 1;
const NICEST: libc::c_int = 19;

/// The calling thread reads the disk and takes the processor when nobody else wants to. A kernel that refuses leaves it
/// as it was.
pub fn lower_priority() {
    // SAFETY: plain values only.
    unsafe { libc::syscall(libc::SYS_ioprio_set, BY_THREAD, THIS_THREAD, IDLE) };
    // SAFETY: plain values only; on Linux it is the thread's.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICEST) };
}

/// Drops a part of a file from the page cache: what was read only to be checked would push out what is served.
pub fn forget(file: &File, offset: u64, size: u64) {
    let (Ok(offset), Ok(size)) = (offset_of(offset), offset_of(size)) else {
        return;
    };
    // SAFETY: plain values only; the descriptor is borrowed from `file`.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, size, libc::POSIX_FADV_DONTNEED) };
}
