//! How large a terminal is.

use std::os::fd::{AsFd, AsRawFd};

use super::checked;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub rows: usize,
    pub columns: usize,
}

/// `None`: it is no terminal, or one that does not know.
pub fn terminal_size(terminal: impl AsFd) -> Option<TerminalSize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let descriptor = terminal.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open for as long as it is borrowed, and `size` is writable memory of the type that the
    // request wants.
    let answer = unsafe { libc::ioctl(descriptor, libc::TIOCGWINSZ, &raw mut size) };
    checked(isize::try_from(answer).unwrap_or(-1)).ok()?;
    let (rows, columns) = (usize::from(size.ws_row), usize::from(size.ws_col));
    (rows > 0 && columns > 0).then_some(TerminalSize { rows, columns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_no_terminal() {
        let file = std::fs::File::open("/proc/self/status").expect("every Linux has it");
        assert_eq!(terminal_size(file), None);
    }
}
