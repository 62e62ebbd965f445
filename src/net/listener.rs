//! Listening on the same address from every core.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    thread,
    time::{Duration, Instant},
};

use monoio::{
    io::Canceller,
    net::{ListenerOpts, TcpListener, TcpStream},
};

use crate::sys;

/// What may wait unsent in a client's socket, with a turn's budget on top: else a reader who is slow costs the kernel as
/// much as the system lets a sender's buffer grow, usually 4 MiB. Much less would cost wake-ups.
const MOST_UNSENT: i32 = 1 << 20;
/// Out of descriptors: `accept` would fail again at once.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a port may be in use by what has ended. Tens of milliseconds were seen.
const LINGERING: Duration = Duration::from_secs(2);
/// And it fails until somebody goes: once is enough to know.
const TELLING_INTERVAL: Duration = Duration::from_secs(10);

pub struct Listener(TcpListener);

/// Resolves a port of 0 to a real one, for every core to use. `SO_REUSEPORT` would let a second process join in
/// silence and take half of the connections, so look first whether the port is free.
///
/// A process that was on io_uring keeps its listeners for a moment after its end, until the kernel has put away what it waited
/// for: whoever starts the next one at once need not know.
#[expect(
    clippy::disallowed_methods,
    reason = "at the start, when nobody is served"
)]
pub fn bind(address: SocketAddr) -> io::Result<SocketAddr> {
    let began = Instant::now();
    loop {
        match StdListener::bind(address) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && began.elapsed() < LINGERING =>
            {
                thread::sleep(PAUSE);
            }
            bound => return bound?.local_addr(),
        }
    }
}

impl Listener {
    pub fn on(address: SocketAddr) -> io::Result<Self> {
        let options = ListenerOpts::new().backlog(4096);
        TcpListener::bind_with_config(address, &options).map(Self)
    }

    /// Gives every connection to `take` until `stop` is over, the ones that are waiting then included.
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        mut take: impl FnMut(TcpStream, SocketAddr),
    ) {
        let mut stop = std::pin::pin!(stop);
        let mut told = None;
        loop {
            let canceller = Canceller::new();
            let mut accepting = std::pin::pin!(self.0.cancelable_accept(canceller.handle()));
            let accepted = monoio::select! {
                accepted = &mut accepting => Some(accepted),
                () = &mut stop => None,
            };
            match accepted {
                Some(Ok((socket, peer))) => take_prepared(socket, peer, &mut take),
                Some(Err(error)) => {
                    if told.is_none_or(|at: Instant| at.elapsed() > TELLING_INTERVAL) {
                        told = Some(Instant::now());
                        tracing::warn!(%error, "connections cannot be accepted; raise the limit of open files if this goes on");
                    }
                    monoio::time::sleep(PAUSE).await;
                }
                None => {
                    canceller.cancel();
                    if let Ok((socket, peer)) = accepting.await {
                        take_prepared(socket, peer, &mut take);
                    }
                    break;
                }
            }
        }
        let _ = self.take_waiting(&mut take);
    }

    /// What is left in the queue of a listener that closes would be reset. The error is that nobody waits any more.
    fn take_waiting(&self, take: &mut impl FnMut(TcpStream, SocketAddr)) -> io::Result<()> {
        let listener = StdListener::from(sys::duplicate(&self.0)?);
        listener.set_nonblocking(true)?;
        loop {
            let (socket, peer) = listener.accept()?;
            if let Ok(socket) = TcpStream::from_std(socket) {
                take_prepared(socket, peer, take);
            }
        }
    }
}

/// Descriptors that block, or that a child would inherit, are of no use to anybody. A socket that refuses this is dead.
fn take_prepared(
    socket: TcpStream,
    peer: SocketAddr,
    take: &mut impl FnMut(TcpStream, SocketAddr),
) {
    let prepared = sys::prepare_accepted(&socket)
        .and_then(|()| socket.set_nodelay(true))
        .and_then(|()| sys::bound_unsent(&socket, MOST_UNSENT));
    if prepared.is_ok() {
        take(socket, peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_about_to_be_free_is_waited_for() {
        let before = StdListener::bind("127.0.0.1:0").expect("a port is free");
        let address = before.local_addr().expect("it is bound");
        assert!(StdListener::bind(address).is_err(), "it is taken");
        let waiting = thread::spawn(move || bind(address));
        drop(before);
        let bound = waiting.join().expect("no panic");
        assert_eq!(bound.ok(), Some(address));
    }

    #[test]
    fn a_port_that_stays_taken_is_told_to_be() {
        let taken = StdListener::bind("127.0.0.1:0").expect("a port is free");
        let address = taken.local_addr().expect("it is bound");
        let refused = bind(address).expect_err("somebody has it");
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    }
}
