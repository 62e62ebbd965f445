//! Listening on the same address from every core.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
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
/// And it fails until somebody goes: once is enough to know.
const TELLING_INTERVAL: Duration = Duration::from_secs(10);

pub struct Listener(TcpListener);

/// Resolves a port of 0 to a real one, for every core to use. `SO_REUSEPORT` would let a second process join in
/// silence and take half of the connections, so look first whether the port is free.
pub fn bind(address: SocketAddr) -> io::Result<SocketAddr> {
    StdListener::bind(address)?.local_addr()
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
