//! A file's words, shared by all threads, and by whoever opens the file next.

use std::{fs::File, io, os::fd::AsRawFd, slice, sync::atomic::AtomicU64};

use memmap2::{MmapMut, MmapOptions, MmapRaw, UncheckedAdvice};

use super::{file::offset_of, file_system::writes_in_place};

const WORD_SIZE: usize = size_of::<AtomicU64>();

/// Memory as 64-bit words that any thread may change: of a file, or nobody's.
///
/// A store is in the page cache as soon as it is done, so it outlives the process, not the machine. The kernel ends the
/// process if the file is cut shorter meanwhile or its disk cannot be read.
pub struct MappedWords {
    mapping: MmapRaw,
    is_file: bool,
}

impl MappedWords {
    /// The first `count` words of `file`, which is made that long and gets disk for all of them first: a store to a
    /// page that the disk has no room for would end the process. An error where it could not have it for good.
    pub fn of_file(file: &File, count: usize) -> io::Result<Self> {
        let size = size_of_words(count)?;
        if !writes_in_place(file)? {
            let problem = "its file system needs room for every change of a file";
            return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
        }
        // SAFETY: plain values only; the descriptor is borrowed from `file`.
        let error = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, offset_of(size as u64)?) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(Self {
            mapping: MmapOptions::new().len(size).map_raw(file)?,
            is_file: true,
        })
    }

    /// `count` words that are zero and end with this value.
    pub fn anonymous(count: usize) -> io::Result<Self> {
        Ok(Self {
            mapping: MmapMut::map_anon(size_of_words(count)?)?.into(),
            is_file: false,
        })
    }

    pub fn words(&self) -> &[AtomicU64] {
        let count = self.mapping.len() / WORD_SIZE;
        // SAFETY: the mapping is page-aligned, readable and writable, of this many words, and outlives the borrow. Any
        // bits are a valid `AtomicU64`, and others may change them.
        unsafe { slice::from_raw_parts(self.mapping.as_ptr().cast(), count) }
    }

    /// Gives the memory of a file's pages back; they come again from the page cache when they are looked at. For after a walk
    /// through all of them.
    pub fn give_pages_back(&self) {
        if self.is_file {
            // SAFETY: the mapping is shared with a file, so what was stored stays in the page cache.
            let _ = unsafe { self.mapping.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }

    /// Waits until the first `count` words are on disk.
    pub fn sync(&self, count: usize) -> io::Result<()> {
        self.mapping.flush_range(0, size_of_words(count)?)
    }
}

fn size_of_words(count: usize) -> io::Result<usize> {
    match count.checked_mul(WORD_SIZE) {
        Some(size) if size > 0 => Ok(size),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, sync::atomic::Ordering};

    use super::*;

    #[test]
    fn stores_are_in_the_file_at_once() {
        let mut file = tempfile::tempfile().expect("a file");
        let mapped = MappedWords::of_file(&file, 1024).expect("mapped");
        mapped.words()[1023].store(0x0102_0304_0506_0708, Ordering::Relaxed);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read");
        assert_eq!(bytes.len(), 8192);
        assert_eq!(bytes[8184..], 0x0102_0304_0506_0708_u64.to_ne_bytes());
        mapped.give_pages_back();
        assert_eq!(
            mapped.words()[1023].load(Ordering::Relaxed),
            0x0102_0304_0506_0708
        );
        mapped.sync(512).expect("on disk");
        drop(mapped);
        let again = MappedWords::of_file(&file, 1024).expect("mapped again");
        assert_eq!(
            again.words()[1023].load(Ordering::Relaxed),
            0x0102_0304_0506_0708
        );
    }

    #[test]
    fn a_wrong_range_is_an_error() {
        let mapped = MappedWords::anonymous(512).expect("mapped");
        mapped.words()[0].store(7, Ordering::Relaxed);
        mapped.give_pages_back();
        assert_eq!(
            mapped.words()[0].load(Ordering::Relaxed),
            7,
            "nobody else has it"
        );
        assert!(mapped.sync(513).is_err());
        assert!(mapped.sync(usize::MAX).is_err());
        assert!(MappedWords::anonymous(0).is_err());
        assert!(MappedWords::anonymous(usize::MAX).is_err());
    }
}
