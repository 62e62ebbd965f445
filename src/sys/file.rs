//! File tricks: reading only what is in memory, and claiming space ahead.

use std::{fs::File, io, ops::Range, os::fd::AsRawFd};

use super::checked;

/// Reads at `offset` if the page cache has it; `WouldBlock` if the disk would have to be asked.
pub fn read_if_cached(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let offset = offset_of(offset)?;
    // SAFETY: the vector describes `buffer`, which is writable and outlives the call.
    let answer = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            &raw const vector,
            1,
            offset,
            libc::RWF_NOWAIT,
        )
    };
    checked(answer)
}

/// Whether the page at `offset` is in memory, as far as the file system can tell; asking starts its reading.
pub fn is_cached(file: &File, offset: u64) -> bool {
    let mut byte = [0];
    match read_if_cached(file, &mut byte, offset) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

/// Claims the disk for a part of `file`, whose size stays as it is. Growing a file piece by piece costs twice as
/// much; a file system that cannot do it is no error.
pub fn preallocate(file: &File, part: Range<u64>) -> io::Result<()> {
    if part.is_empty() {
        return Ok(());
    }
    let (start, size) = (offset_of(part.start)?, offset_of(part.end - part.start)?);
    // SAFETY: plain values only; the descriptor is borrowed from `file`.
    let answer =
        unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, start, size) };
    match checked(answer as isize) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) fn offset_of(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_just_written_is_read_without_waiting() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        preallocate(&file, 0..4096).expect("space");
        file.write_all(b"hello").expect("written");
        let mut buffer = [0; 16];
        match read_if_cached(&file, &mut buffer, 1) {
            Ok(count) => assert_eq!(&buffer[..count], b"ello"),
            // A file system without the flag, or a page that has gone already: both are answers.
            Err(error) => assert!(
                error.kind() == io::ErrorKind::WouldBlock
                    || error.raw_os_error() == Some(libc::EOPNOTSUPP),
                "{error}"
            ),
        }
    }
}
