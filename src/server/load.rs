//! What all cores count together, and which of them serves a connection.
//!
//! The kernel spreads connections over the cores' listeners by chance, and sixteen large downloads are seldom eight and
//! eight then: one core works while another rests. So a core that has more than others hands on what it accepts.

use std::{
    net::{SocketAddr, TcpStream as StdTcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use monoio::net::TcpStream;

use crate::{blocking::Inbox, sys};

/// How far the cores may be apart: this many connections, or this part of what the least busy one has. A few large
/// downloads are spread evenly; among thousands of connections it is not worth a wake-up of another core.
const SLACK: usize = 1;
const SLACK_PART: usize = 8;

pub struct Load {
    connections: AtomicUsize,
    /// Bytes of request bodies in memory.
    pub(super) body_bytes: AtomicUsize,
    cores: Vec<Core>,
}

#[derive(Default)]
struct Core {
    connections: AtomicUsize,
    arrivals: Inbox<Arrival>,
}

/// A connection that another core has accepted.
pub(super) struct Arrival {
    pub(super) socket: StdTcpStream,
    pub(super) peer: SocketAddr,
    pub(super) place: Place,
}

/// Counts one connection for as long as it lives.
pub(super) struct Place {
    load: Arc<Load>,
    core: usize,
}

impl Load {
    pub fn of(core_count: usize) -> Arc<Self> {
        Arc::new(Self {
            connections: AtomicUsize::new(0),
            body_bytes: AtomicUsize::new(0),
            cores: (0..core_count).map(|_| Core::default()).collect(),
        })
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Where a connection is served that `core` has accepted: there, or it is handed on to another core, and gone.
    pub(super) fn place(
        self: &Arc<Self>,
        core: usize,
        socket: TcpStream,
        peer: SocketAddr,
    ) -> Option<(TcpStream, Place)> {
        let chosen = self.choose(core);
        let place = Place::take(self, chosen);
        let other = self.cores.get(chosen).filter(|_| chosen != core);
        let Some(other) = other else {
            return Some((socket, place));
        };
        match sys::duplicate(&socket) {
            Ok(socket) => {
                other.arrivals.put(Arrival {
                    socket: socket.into(),
                    peer,
                    place,
                });
                None
            }
            // Out of descriptors.
            Err(_) => Some((socket, Place::take(self, core))),
        }
    }

    fn choose(&self, core: usize) -> usize {
        let counts = self.cores.iter().map(Core::count);
        let Some((least_busy, least)) = counts.enumerate().min_by_key(|(_, count)| *count) else {
            return core;
        };
        let own = self.cores.get(core).map_or(0, Core::count);
        if own >= least + SLACK + least / SLACK_PART {
            least_busy
        } else {
            core
        }
    }

    /// The next connection for `core` that another one has accepted.
    pub(super) async fn arrival(&self, core: usize) -> Arrival {
        match self.cores.get(core) {
            Some(core) => core.arrivals.take().await,
            None => std::future::pending().await,
        }
    }
}

impl Core {
    fn count(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Place {
    fn take(load: &Arc<Load>, core: usize) -> Self {
        load.connections.fetch_add(1, Ordering::Relaxed);
        if let Some(core) = load.cores.get(core) {
            core.connections.fetch_add(1, Ordering::Relaxed);
        }
        Self {
            load: Arc::clone(load),
            core,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(core) = self.load.cores.get(self.core) {
            core.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_connections_are_spread_evenly_and_many_nearly() {
        for (count, most_apart) in [(16, 1), (64, 4), (4096, 300)] {
            let load = Load::of(2);
            // The first core accepts all of them.
            let places: Vec<Place> = (0..count)
                .map(|_| Place::take(&load, load.choose(0)))
                .collect();
            let counts: Vec<usize> = load.cores.iter().map(Core::count).collect();
            assert_eq!(counts.iter().sum::<usize>(), count);
            assert!(counts[0].abs_diff(counts[1]) <= most_apart, "{counts:?}");
            drop(places);
            assert_eq!(load.connections(), 0);
            assert!(load.cores.iter().all(|core| core.count() == 0));
        }
    }

    #[test]
    fn a_core_that_has_no_more_than_others_keeps_what_it_accepts() {
        let load = Load::of(3);
        assert_eq!(load.choose(2), 2);
        let _place = Place::take(&load, 0);
        assert_eq!(load.choose(1), 1);
        assert_eq!(load.choose(0), 1);
    }
}
