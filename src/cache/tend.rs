//! What running fills need from time to time: their progress written down, and to be put away when nobody is there any
//! more. A thread of its own, which may block.

use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use crossbeam::channel;

use super::{
    Shared,
    flight::{Ending, Flight, Release},
    progress::SMALL,
};

const ROUND: Duration = Duration::from_secs(1);
/// Who fetches a blob in small parts comes back soon; in between, its file stays as it is.
const IDLE_ROUNDS: usize = 2;
/// What a kill may cost of a download.
const NOTED_EVERY: u64 = 4 << 20;

pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name("fills".to_owned())
        .spawn(move || {
            for _ in channel::tick(ROUND) {
                shared.tend();
            }
        })?;
    Ok(())
}

impl Shared {
    fn tend(&self) {
        for flight in self.running() {
            if flight.progress().is_idle() {
                let rounds = flight.idle_rounds.fetch_add(1, Ordering::Relaxed);
                if rounds >= IDLE_ROUNDS {
                    self.put_away(&flight);
                }
            } else {
                flight.idle_rounds.store(0, Ordering::Relaxed);
                self.note(&flight, NOTED_EVERY);
            }
        }
        self.partials.drop_aged();
    }

    /// For the end of the process: its successor goes on from here.
    pub(super) fn note_all(&self) {
        for flight in self.running() {
            self.note(&flight, 1);
        }
    }

    /// An idle fill holds room for all of its blob; put away, for what there is of it.
    pub(super) fn put_idle_away(&self) {
        for flight in self.running() {
            self.put_away(&flight);
        }
    }

    fn running(&self) -> Vec<Arc<Flight>> {
        let shards = self.flights.iter();
        shards
            .flat_map(|shard| shard.values().cloned().collect::<Vec<_>>())
            .filter(|flight| flight.has_begun() && flight.ending().is_none())
            .collect()
    }

    fn note(&self, flight: &Flight, least: u64) {
        let (size, extents) = {
            let progress = flight.progress();
            (progress.size(), progress.written().clone())
        };
        let Some(size) = size.filter(|size| *size > SMALL) else {
            return;
        };
        let total = extents.total();
        if total < flight.noted.load(Ordering::Relaxed) + least {
            return;
        }
        let path = flight.draft().as_ref().map(|draft| draft.path().to_owned());
        let Some(path) = path else { return };
        match self.partials.note(&path, &flight.key, size, &extents) {
            Ok(()) => flight.noted.store(total, Ordering::Relaxed),
            Err(error) => tracing::debug!(%error, "the progress of a fill was not written down"),
        }
        // It may have ended meanwhile, and taken its files along.
        if flight.draft().is_none() {
            self.partials.forget_note(&path);
        }
    }

    fn put_away(&self, flight: &Arc<Flight>) {
        let draft = {
            let mut shard = self.flights.lock(&flight.key);
            // Who finds it in the table follows it at once, so nobody comes in between.
            if !flight.progress().is_idle() {
                return;
            }
            let Some(draft) = flight.draft().take() else {
                return;
            };
            flight.end(Ending::Released(Release::AskYourself));
            shard.remove(&flight.key);
            draft
        };
        tracing::debug!(digest = %flight.key.digest, "a download that nobody waits for is put away");
        self.keep(flight, draft);
    }
}
