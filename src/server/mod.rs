//! The serving edge: connections, and how answers leave them. Knows neither OCI nor the cache, only `api::Response`.

mod connection;
mod date;
mod deliver;
mod load;
mod request_body;

pub use load::Load;

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use monoio::net::TcpStream;
use serde::Deserialize;

use self::load::{Arrival, Place};
use crate::{
    api::Service,
    blocking::without_panic,
    http::{ForwardedField, Headers, client_behind},
    net::{Clock, Identity, IdentityError, Listener, Network, Transfer},
    telemetry::metrics::{self, Counter},
    units::{ByteSize, HumanDuration},
};

/// `[listener]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Where the registry and the API listen: `["127.0.0.1:5000"]`.
    pub addresses: Vec<SocketAddr>,
    /// Where `/livez`, `/readyz`, `/metrics`, `/cache`, `/jobs` and `/credentials` listen; keep it off the public network:
    /// `"127.0.0.1:5001"`.
    pub admin: SocketAddr,
    /// Certificate and key, in PEM: `{ cert_file = "tidegate.crt", key_file = "tidegate.key" }`. Without them the
    /// registry and the API speak plain HTTP; `admin` always does.
    pub tls: Option<TlsOptions>,
    /// Networks of proxies in front of us: `["10.0.0.0/8"]`. From there, `forwarded_by` says who the client is.
    pub trusted_proxies: Vec<Network>,
    /// The field to which these proxies append whom they ask for: `"x-forwarded-for"` or `"forwarded"`. They must take care
    /// of it: what clients write into it counts only as far as a proxy has appended to it.
    pub forwarded_by: ForwardedField,
    /// From the first byte of a request to the end of its head, and for a whole TLS handshake: `"10s"`.
    pub head_timeout: HumanDuration,
    /// How long a connection may wait for its next request: `"75s"`.
    pub idle_timeout: HumanDuration,
    /// A client that takes no byte for this long is cut: `"60s"`.
    pub send_timeout: HumanDuration,
    /// Open connections of all cores together; one more is answered 503 and closed: `16384`.
    pub max_connections: usize,
    /// Largest body of an API call: `"20MiB"`.
    pub max_body_size: ByteSize,
    /// How long running transfers may go on after SIGTERM: `"30s"`.
    pub shutdown_grace: HumanDuration,
}

/// `[listener] tls`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsOptions {
    /// The server's certificate first, then those that lead to a root.
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

impl TlsOptions {
    /// Blocks: for the start.
    pub fn load(&self) -> Result<Identity, IdentityError> {
        Identity::load(&self.cert_file, &self.key_file)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 5000))],
            admin: SocketAddr::from(([127, 0, 0, 1], 5001)),
            tls: None,
            trusted_proxies: Vec::new(),
            forwarded_by: ForwardedField::default(),
            head_timeout: HumanDuration::seconds(10),
            idle_timeout: HumanDuration::seconds(75),
            send_timeout: HumanDuration::seconds(60),
            max_connections: 16_384,
            max_body_size: ByteSize::mib(20),
            shutdown_grace: HumanDuration::seconds(30),
        }
    }
}

impl Options {
    /// An address that stands twice among those to listen on. Port 0 is another free port each time.
    pub fn clash(&self) -> Option<SocketAddr> {
        let mut seen = std::collections::BTreeSet::new();
        let all = self.addresses.iter().chain([&self.admin]);
        all.filter(|address| address.port() != 0)
            .find(|address| !seen.insert(**address))
            .copied()
    }
}

/// Connections too many that are told so at a time.
const MOST_REFUSED: usize = 256;
/// What was in the listener's queue at the end has its request in flight, most likely.
const LAST_ARRIVALS: Duration = Duration::from_millis(100);

/// One core's edge.
pub struct Edge {
    options: Options,
    /// Of a listener with TLS.
    identity: Option<Arc<Identity>>,
    transfer: Rc<Transfer>,
    clock: Rc<Clock>,
    load: Arc<Load>,
    /// Which of the cores this is.
    core: usize,
    /// Connections in the middle of a request.
    busy: Cell<usize>,
    is_stopping: Cell<bool>,
}

impl Edge {
    pub fn new(
        options: Options,
        identity: Option<Arc<Identity>>,
        load: Arc<Load>,
        core: usize,
        transfer: Rc<Transfer>,
    ) -> Rc<Self> {
        Rc::new(Self {
            options,
            identity,
            transfer,
            clock: Clock::start(),
            load,
            core,
            busy: Cell::new(0),
            is_stopping: Cell::new(false),
        })
    }

    /// Serves until `stop` is over, then lets running requests end.
    pub async fn serve<S: Service>(
        self: Rc<Self>,
        listener: Listener,
        service: Rc<S>,
        stop: impl Future<Output = ()>,
    ) {
        let take = |socket: TcpStream, peer: SocketAddr| {
            metrics::add(Counter::ConnectionsAccepted, 1);
            if let Some((socket, place)) = self.load.place(self.core, socket, peer) {
                self.welcome(socket, peer, place, &service);
            }
        };
        listener.run(stop, take).await;
        self.is_stopping.set(true);
        monoio::time::sleep(LAST_ARRIVALS).await;
        while self.busy.get() > 0 {
            monoio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Takes over what other cores have accepted, for ever.
    pub async fn take_over<S: Service>(self: Rc<Self>, service: Rc<S>) {
        loop {
            let Arrival {
                socket,
                peer,
                place,
            } = self.load.arrival(self.core).await;
            // Whoever has closed it meanwhile misses nothing.
            if let Ok(socket) = TcpStream::from_std(socket) {
                self.welcome(socket, peer, place, &service);
            }
        }
    }

    /// Whoever asked first, as far as those who passed it on can be trusted.
    fn client(&self, peer: SocketAddr, headers: &Headers) -> IpAddr {
        let peer = peer.ip().to_canonical();
        let proxies = &self.options.trusted_proxies;
        let is_trusted = |address| proxies.iter().any(|network| network.contains(address));
        match is_trusted(peer) {
            true => client_behind(peer, headers, self.options.forwarded_by, is_trusted),
            false => peer,
        }
    }

    fn welcome<S: Service>(
        self: &Rc<Self>,
        socket: TcpStream,
        peer: SocketAddr,
        place: Place,
        service: &Rc<S>,
    ) {
        let (edge, service) = (Rc::clone(self), Rc::clone(service));
        monoio::spawn(async move {
            let most = edge.options.max_connections;
            if edge.load.connections() > most {
                metrics::add(Counter::ConnectionsRefused, 1);
                // So many at once that even telling them would cost too much.
                if edge.load.connections() <= most.saturating_add(MOST_REFUSED) {
                    without_panic(
                        "a connection",
                        connection::refuse(&edge, &*service, socket, peer),
                    )
                    .await;
                }
                return;
            }
            without_panic(
                "a connection",
                connection::run(&edge, &*service, socket, peer),
            )
            .await;
            drop(place);
        });
    }
}
