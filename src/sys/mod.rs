//! The system calls that std and monoio do not offer, wrapped so that nobody else needs `unsafe`.
#![expect(
    unsafe_code,
    reason = "the one place for it: each block states why it is sound"
)]

mod background;
mod clock;
mod file;
mod file_system;
mod limits;
mod mapped;
mod mmap;
mod poll;
mod processes;
mod signals;
mod socket;
mod splice;
mod terminal;

pub use background::{forget, lower_priority};
pub use clock::{coarse_seconds, coarse_time};
pub use file::{is_cached, preallocate, read_if_cached};
pub use file_system::{FileSystem, sync_file_system};
pub use limits::{pipe_pages, raise_open_files};
pub use mapped::MappedWords;
pub use mmap::FileWindow;
pub use poll::wait_for_either;
pub use processes::kill_group;
pub use signals::{Signal, Signals};
pub use socket::{
    Liveness, More, bound_unsent, duplicate, liveness, peek, prepare_accepted, receive,
    receive_more, reset_on_close, send, send_pieces,
};
pub use splice::{Pipe, Sent, send_file};
pub use terminal::{TerminalSize, terminal_size};

use std::io;

/// A system call's answer: `-1` means that `errno` has the reason.
fn checked(answer: isize) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}
