//! Ending what a child process has started.

use std::{io, process::Child};

use super::checked;

/// Ends a child that leads a process group of its own (`CommandExt::process_group(0)`), with all that it has started in it.
/// Only while it has not been waited for: its id is another's after that.
pub fn kill_group(leader: &Child) -> io::Result<()> {
    let id = libc::pid_t::try_from(leader.id()).map_err(io::Error::other)?;
    // SAFETY: the call takes no memory.
    let answer = unsafe { libc::killpg(id, libc::SIGKILL) };
    checked(isize::try_from(answer).unwrap_or(-1)).map(|_| ())
}
