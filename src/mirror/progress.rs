//! How far a copy is, for whoever watches it from another thread, and the way to stop it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
};

use crate::{blocking::lock, oci::Digest};

/// Written by the copy, read by anybody. What it tells is for eyes: its numbers are each right, and not of one moment.
#[derive(Debug, Default)]
pub struct Progress {
    items: Mutex<Items>,
    is_cancelled: AtomicBool,
}

#[derive(Debug, Default)]
struct Items {
    /// In the order in which the copy met them.
    tracked: Vec<Arc<Tracked>>,
    places: HashMap<Digest, usize>,
}

/// A manifest or a blob at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub digest: Digest,
    pub kind: Kind,
    pub size: u64,
    /// Bytes that the destination was sent, or need not be sent.
    pub done: u64,
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Index,
    Manifest,
    Config,
    Layer,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Manifest => "manifest",
            Self::Config => "config",
            Self::Layer => "layer",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Waiting,
    Copying,
    /// From another repository of the destination's registry.
    Mounted,
    /// The destination had it.
    Present,
    Copied,
    /// A layer that lies elsewhere by its nature, and not at the source either.
    Skipped,
    Failed,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Copying => "copying",
            Self::Mounted => "mounted",
            Self::Present => "present",
            Self::Copied => "copied",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }

    fn of(number: u8) -> Self {
        match number {
            0 => Self::Waiting,
            1 => Self::Copying,
            2 => Self::Mounted,
            3 => Self::Present,
            4 => Self::Copied,
            5 => Self::Skipped,
            _ => Self::Failed,
        }
    }

    /// Nothing more comes of it.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Waiting | Self::Copying)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Known so far: a copy learns of more while it reads manifests.
    pub items: u64,
    pub items_over: u64,
    pub bytes: u64,
    pub bytes_done: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// In the order in which the copy met them.
    pub items: Vec<Item>,
    pub totals: Totals,
}

/// What the copy keeps of an item.
#[derive(Debug)]
pub(super) struct Tracked {
    digest: Digest,
    kind: Kind,
    size: u64,
    done: AtomicU64,
    state: AtomicU8,
}

impl Progress {
    pub fn snapshot(&self) -> Snapshot {
        let items: Vec<Item> = {
            let items = lock(&self.items);
            items.tracked.iter().map(|one| one.item()).collect()
        };
        let mut totals = Totals::default();
        for item in &items {
            totals.items += 1;
            totals.items_over += u64::from(item.state.is_over());
            totals.bytes = totals.bytes.saturating_add(item.size);
            totals.bytes_done = totals.bytes_done.saturating_add(item.done);
        }
        Snapshot { items, totals }
    }

    /// The copy ends as soon as it can leave nothing half done.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Relaxed)
    }

    pub(super) fn track(&self, digest: Digest, kind: Kind, size: u64) -> Arc<Tracked> {
        let mut items = lock(&self.items);
        let place = items.places.get(&digest).copied();
        // Of an attempt before this one, or of the same: what is known of it is kept as long as nothing new is.
        if let Some(known) = place.and_then(|place| items.tracked.get(place)) {
            return Arc::clone(known);
        }
        let item = Arc::new(Tracked {
            digest,
            kind,
            size,
            done: AtomicU64::new(0),
            state: AtomicU8::new(State::Waiting as u8),
        });
        let place = items.tracked.len();
        items.places.insert(digest, place);
        items.tracked.push(Arc::clone(&item));
        item
    }
}

impl Tracked {
    pub(super) fn set(&self, state: State) {
        self.state.store(state as u8, Relaxed);
        match state {
            State::Waiting | State::Copying => self.done.store(0, Relaxed),
            State::Mounted | State::Present | State::Copied | State::Skipped => {
                self.done.store(self.size, Relaxed);
            }
            State::Failed => {}
        }
    }

    pub(super) fn set_done(&self, done: u64) {
        self.done.store(done, Relaxed);
    }

    fn item(&self) -> Item {
        Item {
            digest: self.digest,
            kind: self.kind,
            size: self.size,
            done: self.done.load(Relaxed).min(self.size),
            state: State::of(self.state.load(Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_tells_how_far_each_item_is() {
        let progress = Progress::default();
        let layer = progress.track(Digest::of(b"layer"), Kind::Layer, 100);
        let config = progress.track(Digest::of(b"config"), Kind::Config, 10);
        layer.set(State::Copying);
        layer.set_done(40);
        config.set(State::Mounted);
        let Snapshot { items, totals } = progress.snapshot();
        assert_eq!(
            totals,
            Totals {
                items: 2,
                items_over: 1,
                bytes: 110,
                bytes_done: 50,
            }
        );
        let told: Vec<_> = items.iter().map(|item| (item.state, item.done)).collect();
        assert_eq!(told, [(State::Copying, 40), (State::Mounted, 10)]);
    }

    #[test]
    fn every_state_survives_its_number() {
        for state in [
            State::Waiting,
            State::Copying,
            State::Mounted,
            State::Present,
            State::Copied,
            State::Skipped,
            State::Failed,
        ] {
            assert_eq!(State::of(state as u8), state, "{}", state.as_str());
        }
    }

    #[test]
    fn an_item_is_tracked_once() {
        let progress = Progress::default();
        let digest = Digest::of(b"layer");
        progress.track(digest, Kind::Layer, 100).set(State::Failed);
        let again = progress.track(digest, Kind::Layer, 100);
        again.set(State::Copied);
        let items = progress.snapshot().items;
        assert_eq!(items.len(), 1);
        assert_eq!(items.first(), Some(&again.item()));
        assert_eq!(again.item().done, 100);
    }
}
