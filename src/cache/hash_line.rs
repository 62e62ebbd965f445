//! The digest of a growing file, computed behind the writing: on the pool, in order, straight from the page cache.
//!
//! It never stands between what comes in and what goes out: writers only say that there is more, and whoever wants the
//! digest waits for it at the end.

use std::{
    fs::File,
    io,
    ops::Range,
    sync::{Arc, Mutex},
};

use super::flight::Flight;
use crate::{
    blocking::{Errand, Pool, PoolError, lock},
    oci::{Algorithm, Digest, Hasher},
    sys::FileWindow,
};

/// What is worth an errand of its own.
const WORTH_A_TRIP: u64 = 1 << 20;
/// What is mapped at a time. The trip through the page tables costs little then, and little memory is spoken for.
const WINDOW: u64 = 4 << 20;
/// Where a window cannot be had, the bytes are read.
const BUFFER: usize = 256 << 10;

pub(super) struct HashLine(Mutex<State>);

struct State {
    /// `None` after the end.
    hasher: Option<Box<Hasher>>,
    hashed: u64,
    is_running: bool,
    outcome: Option<Result<Digest, Arc<io::Error>>>,
}

impl HashLine {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        Self(Mutex::new(State {
            hasher: Some(Box::new(Hasher::new(algorithm))),
            hashed: 0,
            is_running: false,
            outcome: None,
        }))
    }

    pub(super) fn outcome(&self) -> Option<Result<Digest, Arc<io::Error>>> {
        lock(&self.0).outcome.clone()
    }
}

/// Has the pool hash what there is, if that is worth the trip.
pub(super) fn advance(flight: &Arc<Flight>, pool: &Pool) -> Result<(), PoolError> {
    {
        let mut state = lock(&flight.hash.0);
        if state.is_running || state.outcome.is_some() || due(flight, state.hashed).is_none() {
            return Ok(());
        }
        state.is_running = true;
    }
    let line = Arc::clone(flight);
    let sent = pool.send(Errand::Hash, move || run(&line));
    if sent.is_err() {
        lock(&flight.hash.0).is_running = false;
    }
    sent
}

/// What to hash next: enough of it, or the end.
fn due(flight: &Flight, hashed: u64) -> Option<Range<u64>> {
    let progress = flight.progress();
    let prefix = progress.written().prefix();
    let is_due = prefix - hashed.min(prefix) >= WORTH_A_TRIP || progress.is_complete();
    is_due.then(|| hashed..prefix.min(hashed + WINDOW))
}

fn run(flight: &Flight) {
    loop {
        let (mut hasher, span) = {
            let mut state = lock(&flight.hash.0);
            // Decided under the lock: a writer that saw it running has published before.
            let next = due(flight, state.hashed);
            match (state.hasher.take(), next) {
                (Some(hasher), Some(span)) => (hasher, span),
                (hasher, _) => {
                    state.hasher = hasher;
                    state.is_running = false;
                    return;
                }
            }
        };
        let hashed = match flight.file() {
            Some(file) => hash_span(&mut hasher, file, span.clone()),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let mut state = lock(&flight.hash.0);
        state.hashed = span.end;
        let is_last = {
            let progress = flight.progress();
            progress.is_complete() && progress.size() == Some(span.end)
        };
        match hashed {
            Ok(()) if is_last => state.outcome = Some(Ok(hasher.finish())),
            Ok(()) => state.hasher = Some(hasher),
            Err(error) => state.outcome = Some(Err(Arc::new(error))),
        }
        if state.outcome.is_some() {
            state.is_running = false;
            drop(state);
            flight.wake();
            return;
        }
    }
}

pub(super) fn hash_span(hasher: &mut Hasher, file: &File, span: Range<u64>) -> io::Result<()> {
    let window = FileWindow::map(file, span.clone());
    if let Ok(window) = window
        && window.populate().is_ok()
    {
        hasher.update(&window);
        return Ok(());
    }
    // An old kernel, or a file that is not what it was: reading tells.
    use std::os::unix::fs::FileExt as _;
    let mut buffer = vec![0; BUFFER];
    let mut offset = span.start;
    while offset < span.end {
        let wanted = usize::try_from(span.end - offset).map_or(BUFFER, |left| left.min(BUFFER));
        let piece = buffer.get_mut(..wanted).unwrap_or_default();
        file.read_exact_at(piece, offset)?;
        hasher.update(piece);
        offset += piece.len() as u64;
    }
    Ok(())
}
