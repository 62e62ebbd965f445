//! The files that are open, by their slots. A hit takes one without a lock; opening, closing and removing come one at a
//! time, under the store's lock.
//!
//! A blob is being read when somebody else has its file. Whether that is so can be said for sure only of a file that
//! has been taken out: from then on nobody new finds it, and who found it before is counted. So whoever wants to close
//! or remove takes it out, counts, and puts it back if it is read. Meanwhile readers take the long way, by the pool, and
//! wait there for the lock.

use std::{
    collections::VecDeque,
    fs::File,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwapOption;

use super::index::Place;

/// Opening a file takes a turn on the pool, an open one none. Half of the smallest limit of open files that systems
/// have.
pub(super) const KEPT_OPEN: usize = 512;
/// Cells that are made together, when the first is needed: 32 KiB.
const CHUNK: usize = 4096;

type Cell = ArcSwapOption<File>;

pub(super) struct OpenFiles {
    chunks: Box<[OnceLock<Box<[Cell]>>]>,
}

/// Those that are open, opened longest ago first. Behind the store's lock.
#[derive(Default)]
pub(super) struct OpenOrder(VecDeque<Place>);

impl OpenOrder {
    /// All that are read are among them.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.0.iter().copied()
    }
}

impl OpenFiles {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            chunks: (0..slots.div_ceil(CHUNK))
                .map(|_| OnceLock::new())
                .collect(),
        }
    }

    /// Without a lock. It is the file of whatever blob has the slot at this moment.
    pub(super) fn get(&self, slot: u32) -> Option<Arc<File>> {
        self.cell(slot)?.load_full()
    }

    /// Whether somebody seems to read it: not for sure, see above.
    pub(super) fn is_read(&self, slot: u32) -> bool {
        // Ours and the table's.
        self.get(slot)
            .is_some_and(|file| Arc::strong_count(&file) > 2)
    }

    pub(super) fn put(&self, place: Place, file: Arc<File>, order: &mut OpenOrder) {
        self.restore(place.slot, file);
        order.0.push_back(place);
        // Those that are read stay, so it may take a look at each; the rest is closed when the readers have gone.
        for _ in 0..order.0.len() {
            if order.0.len() <= KEPT_OPEN {
                break;
            }
            let Some(oldest) = order.0.pop_front() else {
                break;
            };
            if self.take_unread(oldest.slot).is_err() {
                order.0.push_back(oldest);
            }
        }
    }

    /// `Err`: it is read, and has stayed. `Ok`: nobody has it any more, if it was open at all.
    pub(super) fn take_unread(&self, slot: u32) -> Result<Option<Arc<File>>, ()> {
        match self.take(slot) {
            Some(file) if Arc::strong_count(&file) > 1 => {
                self.restore(slot, file);
                Err(())
            }
            file => Ok(file),
        }
    }

    pub(super) fn take(&self, slot: u32) -> Option<Arc<File>> {
        self.cell(slot)?.swap(None)
    }

    fn restore(&self, slot: u32, file: Arc<File>) {
        let (chunk, index) = position(slot);
        let cells = self
            .chunks
            .get(chunk)
            .map(|chunk| chunk.get_or_init(|| (0..CHUNK).map(|_| Cell::empty()).collect()));
        if let Some(cell) = cells.and_then(|cells| cells.get(index)) {
            cell.store(Some(file));
        }
    }

    fn cell(&self, slot: u32) -> Option<&Cell> {
        let (chunk, index) = position(slot);
        self.chunks.get(chunk)?.get()?.get(index)
    }
}

fn position(slot: u32) -> (usize, usize) {
    (slot as usize / CHUNK, slot as usize % CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(slot: u32) -> Place {
        Place {
            slot,
            generation: 1,
        }
    }

    fn file() -> Arc<File> {
        Arc::new(File::open("/dev/null").expect("opened"))
    }

    #[test]
    fn what_is_read_is_neither_taken_nor_closed() {
        let files = OpenFiles::new(1 << 12);
        let mut order = OpenOrder::default();
        files.put(place(7), file(), &mut order);
        let reader = files.get(7).expect("open");
        assert!(files.is_read(7));
        assert!(files.take_unread(7).is_err());
        for slot in (100..).take(2 * KEPT_OPEN) {
            files.put(place(slot), file(), &mut order);
        }
        assert_eq!(order.0.len(), KEPT_OPEN);
        assert!(files.get(100).is_none(), "closed as the oldest");
        assert!(Arc::ptr_eq(&files.get(7).expect("still open"), &reader));
        drop(reader);
        assert!(!files.is_read(7));
        assert!(files.take_unread(7).expect("unread").is_some());
        assert!(files.get(7).is_none());
    }

    #[test]
    fn a_slot_beyond_the_table_is_closed() {
        let files = OpenFiles::new(1 << 12);
        assert!(files.get(u32::MAX).is_none());
        assert!(files.take(1 << 12).is_none());
    }
}
