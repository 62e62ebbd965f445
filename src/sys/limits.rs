//! What the system allows the process.

use std::fs;

use super::checked;

/// Raises the soft limit of open files to the hard one, and returns it: each connection and each open blob is one,
/// and the usual soft limit is for programs that use `select`.
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if checked(read as isize).is_err() {
        return 1024;
    }
    let soft = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is initialised.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    if checked(raised as isize).is_ok() {
        limit.rlim_max
    } else {
        soft
    }
}

/// How many pages all pipes of this user may hold before new ones are made too small to be of use; `None` if there is
/// no such limit. Root and those with CAP_SYS_RESOURCE are exempt from it, which is of no matter here.
pub fn pipe_pages() -> Option<usize> {
    let text = fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").ok()?;
    text.trim().parse().ok().filter(|&pages| pages > 0)
}
