//! Waiting for two descriptors at once, on a thread that may wait.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use super::checked;

/// Returns when `first` can be read, or written if that `is_wanted_writable`, or when `second` can be read, or after
/// `patience`; and now and then for no reason.
pub fn wait_for_either(
    first: BorrowedFd<'_>,
    is_wanted_writable: bool,
    second: BorrowedFd<'_>,
    patience: Duration,
) -> io::Result<()> {
    let writable = if is_wanted_writable { libc::POLLOUT } else { 0 };
    let wish = |descriptor: BorrowedFd<'_>, events| libc::pollfd {
        fd: descriptor.as_raw_fd(),
        events,
        revents: 0,
    };
    let mut wishes = [
        wish(first, libc::POLLIN | writable),
        wish(second, libc::POLLIN),
    ];
    // Rounded up, so that what is due in less than a millisecond is not asked for again and again.
    let milliseconds = patience.as_micros().div_ceil(1000);
    let milliseconds = libc::c_int::try_from(milliseconds).unwrap_or(libc::c_int::MAX);
    // SAFETY: two valid `pollfd`s, as many as are named.
    match checked(unsafe { libc::poll(wishes.as_mut_ptr(), 2, milliseconds) } as isize) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}
