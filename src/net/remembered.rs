//! What one core remembers of files that it sent lately, so that sending them again costs no system call but the one that
//! sends: small bodies, and which windows were in memory a moment ago.
//!
//! It is remembered of an open file, not of a name: whoever was just given that very file to send finds it, and nobody
//! else does. So what the cache has dropped or made anew, for whatever reason, is not found any more: it is not given out,
//! or it is another file.

use std::{
    fs::File,
    ops::Range,
    sync::{Arc, Weak},
};

use super::patience::Tick;

/// Larger bodies are rare among those that are asked for often, and are sent from the page cache with less work.
const LARGEST_BODY: usize = 16 << 10;
/// Twice as many as the cache keeps files open, so few of them meet in one place. With bodies, 16 MiB at most.
const PLACES: usize = 1024;
const _: () = assert!(PLACES.is_power_of_two());

#[derive(Default)]
pub(super) struct Remembered {
    bodies: Places<Body>,
    windows: Places<Window>,
}

struct Body {
    offset: u64,
    bytes: Vec<u8>,
}

struct Window {
    range: Range<u64>,
    seen: Tick,
}

impl Remembered {
    pub(super) fn body(&self, file: &Arc<File>, offset: u64, size: usize) -> Option<&[u8]> {
        let body = self.bodies.find(file)?;
        (body.offset == offset && body.bytes.len() == size).then_some(&body.bytes)
    }

    /// Only of a file that nobody writes to any more.
    pub(super) fn keep_body(&mut self, file: &Arc<File>, offset: u64, bytes: &[u8]) {
        if bytes.len() <= LARGEST_BODY {
            let bytes = bytes.to_vec();
            self.bodies.put(file, Body { offset, bytes });
        }
    }

    /// Whether the window was in memory when somebody looked during this tick. A page that was sent a moment ago is the
    /// last to go.
    pub(super) fn is_warm(&self, file: &Arc<File>, window: &Range<u64>, now: Tick) -> bool {
        let known = self.windows.find(file);
        known.is_some_and(|known| known.range == *window && known.seen == now)
    }

    pub(super) fn note_warm(&mut self, file: &Arc<File>, window: &Range<u64>, now: Tick) {
        let range = window.clone();
        self.windows.put(file, Window { range, seen: now });
    }
}

/// A file's place follows from its address, and whoever comes last has it.
struct Places<T>(Vec<Option<Place<T>>>);

struct Place<T> {
    /// Not an `Arc`, which would make the file look as if it were read. As long as this is here no other file can have the
    /// same address.
    file: Weak<File>,
    value: T,
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Places<T> {
    fn find(&self, file: &Arc<File>) -> Option<&T> {
        let place = self.0.get(place_of(file))?.as_ref()?;
        std::ptr::eq(place.file.as_ptr(), Arc::as_ptr(file)).then_some(&place.value)
    }

    fn put(&mut self, file: &Arc<File>, value: T) {
        if self.0.is_empty() {
            self.0.resize_with(PLACES, || None);
        }
        if let Some(place) = self.0.get_mut(place_of(file)) {
            let file = Arc::downgrade(file);
            *place = Some(Place { file, value });
        }
    }
}

fn place_of(file: &Arc<File>) -> usize {
    // Fibonacci hashing: addresses differ in their middle bits, the product in its upper ones.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let address = Arc::as_ptr(file).addr() as u64;
    let hash = address.wrapping_mul(FACTOR) >> (u64::BITS - PLACES.trailing_zeros());
    usize::try_from(hash).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Arc<File> {
        Arc::new(File::open("/dev/null").expect("opened"))
    }

    #[test]
    fn a_body_is_found_for_its_file_and_part_only() {
        let mut remembered = Remembered::default();
        let (one, other) = (file(), file());
        assert_eq!(remembered.body(&one, 0, 4), None);
        remembered.keep_body(&one, 0, b"body");
        assert_eq!(remembered.body(&one, 0, 4), Some(&b"body"[..]));
        assert_eq!(remembered.body(&one, 0, 3), None);
        assert_eq!(remembered.body(&one, 1, 4), None);
        assert_eq!(remembered.body(&other, 0, 4), None);
        assert_eq!(Arc::strong_count(&one), 1, "nobody reads it");
    }

    #[test]
    fn a_file_opened_anew_is_another_file() {
        let mut remembered = Remembered::default();
        for _ in 0..100 {
            let opened = file();
            assert_eq!(remembered.body(&opened, 0, 4), None);
            remembered.keep_body(&opened, 0, b"body");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut remembered = Remembered::default();
        let (large, small) = (file(), file());
        remembered.keep_body(&large, 0, &vec![0; LARGEST_BODY + 1]);
        assert_eq!(remembered.body(&large, 0, LARGEST_BODY + 1), None);
        for offset in 0..10 {
            remembered.keep_body(&small, offset, b"body");
        }
        let found = (0..10).filter(|&offset| remembered.body(&small, offset, 4).is_some());
        assert_eq!(found.count(), 1, "a file has one place");
        assert_eq!(remembered.bodies.0.len(), PLACES);
    }

    #[test]
    fn a_window_is_warm_for_a_tick() {
        let mut remembered = Remembered::default();
        let (file, now) = (file(), Tick::default());
        assert!(!remembered.is_warm(&file, &(0..8), now));
        remembered.note_warm(&file, &(0..8), now);
        assert!(remembered.is_warm(&file, &(0..8), now));
        assert!(!remembered.is_warm(&file, &(0..9), now));
        assert!(!remembered.is_warm(&file, &(0..8), now.next()));
    }
}
