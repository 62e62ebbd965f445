//! Read-only windows of files, for work that wants their bytes without a copy.

use std::{fs::File, io, ops::Deref, ops::Range};

use memmap2::{Advice, Mmap, MmapOptions};

/// A part of a file as memory.
///
/// The part must not change while it is mapped: it belongs to a blob that is complete, or to what has been written
/// of one that grows. A part that is gone all the same (the file was cut short by somebody, the disk fails) kills
/// the process with SIGBUS when it is read, unless `populate` has met it first and made it an error.
pub struct FileWindow {
    /// None of an empty window, which the system does not map.
    mapping: Option<Mmap>,
}

impl FileWindow {
    /// Maps the range, all of which the file must have; nothing is read yet.
    pub fn map(file: &File, range: Range<u64>) -> io::Result<Self> {
        let size = range.end.saturating_sub(range.start);
        if size == 0 {
            return Ok(Self { mapping: None });
        }
        let size = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        // The rest of the file's last page would read as zeros.
        if file.metadata()?.len() < range.end {
            return Err(cut_short());
        }
        let mut options = MmapOptions::new();
        options.offset(range.start).len(size);
        // SAFETY: whoever maps a blob's file keeps the rule above: tidegate writes no byte of a blob twice and shortens
        // none, it removes files whole, which leaves mappings as they are.
        let mapping = unsafe { options.map(file) }?;
        Ok(Self {
            mapping: Some(mapping),
        })
    }

    /// Brings all of it into memory, and waits for the disk where it must. What cannot be read is an error here.
    /// `Unsupported`: the kernel is older than 5.14 and cannot promise that; read the file instead.
    pub fn populate(&self) -> io::Result<()> {
        let Some(mapping) = &self.mapping else {
            return Ok(());
        };
        loop {
            return match mapping.advise(Advice::PopulateRead) {
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN) => continue,
                    Some(libc::EINVAL) => Err(io::ErrorKind::Unsupported.into()),
                    // What would be SIGBUS.
                    Some(libc::EFAULT) => Err(cut_short()),
                    _ => Err(error),
                },
                Ok(()) => Ok(()),
            };
        }
    }
}

fn cut_short() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the file is shorter than it was, or its disk cannot be read",
    )
}

impl Deref for FileWindow {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.mapping.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file_of(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(content).expect("written");
        file
    }

    #[test]
    fn a_window_shows_the_range_and_nothing_else() {
        let content: Vec<u8> = (0..5_000_u32).flat_map(u32::to_le_bytes).collect();
        let file = file_of(&content);
        for range in [0..20_000, 1..2, 4_095..8_193, 4_096..8_192, 19_999..20_000] {
            let window = FileWindow::map(&file, range.start as u64..range.end as u64)
                .unwrap_or_else(|error| panic!("{range:?}: {error}"));
            window
                .populate()
                .unwrap_or_else(|error| panic!("{range:?}: {error}"));
            assert_eq!(&window[..], &content[range.clone()], "{range:?}");
        }
        let empty = FileWindow::map(&file, 7..7).expect("an empty window");
        empty.populate().expect("nothing to read");
        assert!(empty.is_empty());
    }

    #[test]
    fn a_file_that_was_cut_short_is_an_error_and_no_signal() {
        let file = file_of(&[1; 20_000]);
        let window = FileWindow::map(&file, 0..20_000).expect("mapped");
        file.set_len(5_000).expect("shortened");
        let error = window.populate().expect_err("pages are gone");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let Err(error) = FileWindow::map(&file, 4_999..5_001) else {
            panic!("a byte more than there is");
        };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
