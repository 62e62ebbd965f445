//! Taking stock: the index made anew from the files, in the background, while blobs are served.
//!
//! Until it is done, what is not found may be there all the same, and how much is on disk is not known: so nothing can be
//! reserved, and misses stream through. Who asks for a blob that has not come up yet gets it from its file.

use std::{io, sync::Weak, thread, time::Instant};

use crossbeam::channel::{self, Receiver};

use super::{Key, folder::Folder, store::Store};
use crate::oci::Registry;

/// The channel closes when it is done.
pub(super) fn begin(store: Weak<Store>, registries: Vec<Registry>) -> io::Result<Receiver<()>> {
    let (sender, done) = channel::bounded(0);
    thread::Builder::new()
        .name("stock".to_owned())
        .spawn(move || {
            take(&store, &registries);
            drop(sender);
        })?;
    Ok(done)
}

fn take(store: &Weak<Store>, registries: &[Registry]) {
    let begun = Instant::now();
    if !registries.is_empty() {
        tracing::info!(
            "the cache's index is made anew from its files; until then nothing more is cached"
        );
    }
    for registry in registries {
        if take_registry(store, registry).is_none() {
            return;
        }
    }
    let Some(store) = store.upgrade() else { return };
    store.stock_is_taken();
    if !registries.is_empty() {
        tracing::info!(
            blobs = store.blob_count(),
            milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the cache's index is complete"
        );
    }
}

/// `None`: the store has gone.
fn take_registry(store: &Weak<Store>, registry: &Registry) -> Option<()> {
    let shelves = store.upgrade()?.folder.shelves(registry);
    for (shelf, algorithm) in shelves.unwrap_or_else(|error| unread(registry, &error)) {
        let digests = Folder::blobs(&shelf, algorithm);
        for digest in digests.unwrap_or_else(|error| unread(registry, &error)) {
            // Held for one blob only: whoever drops the store means it.
            let store = store.upgrade().filter(|store| !store.stop.is_set())?;
            let registry = registry.clone();
            store.adopt(&Key { registry, digest }, 0);
        }
    }
    Some(())
}

/// The rest is listed all the same.
fn unread<T>(registry: &Registry, error: &io::Error) -> Vec<T> {
    tracing::warn!(%registry, %error, "a folder of the cache cannot be read; what is in it is not known");
    Vec::new()
}
