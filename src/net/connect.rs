//! Dialling a host: look its name up on the pool, then try its addresses in turn.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use monoio::{
    net::{TcpConnectOpts, TcpStream},
    time::timeout,
};

use super::{
    resolve::{Addresses, ResolveError, look_up},
    stream::Stream,
    trust::Trust,
};
use crate::blocking::{Errand, Pool, PoolError};

/// How long an answer of the name service is used. It does not tell its own lifetime through the system's
/// resolver, and registries move between addresses within minutes.
const NAME_AGE: Duration = Duration::from_secs(30);
const MOST_NAMES: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Name(#[from] ResolveError),
    #[error(transparent)]
    Busy(#[from] PoolError),
    #[error("no connection to {host}:{port}: {cause}")]
    Refused {
        host: String,
        port: u16,
        cause: io::Error,
    },
    #[error("no TLS session with {host}:{port}: {cause}")]
    Tls {
        host: String,
        port: u16,
        cause: io::Error,
    },
}

type Names = HashMap<(String, u16, Addresses), (Instant, Rc<[SocketAddr]>)>;

/// One core's way out.
pub struct Dialer {
    pool: Arc<Pool>,
    names: RefCell<Names>,
    connect_timeout: Duration,
}

impl Dialer {
    pub fn new(pool: Arc<Pool>, connect_timeout: Duration) -> Self {
        Self {
            pool,
            names: RefCell::default(),
            connect_timeout,
        }
    }

    /// `trust`: for TLS; `None` is plain TCP.
    pub async fn connect(
        &self,
        host: &str,
        port: u16,
        allowed: Addresses,
        trust: Option<&Trust>,
    ) -> Result<Stream, ConnectError> {
        let refused = |cause| ConnectError::Refused {
            host: host.to_owned(),
            port,
            cause,
        };
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        let looked_up = timeout(self.connect_timeout, self.addresses(host, port, allowed)).await;
        let addresses = looked_up.map_err(|_| refused(io::ErrorKind::TimedOut.into()))??;
        for &address in addresses.iter() {
            let options = TcpConnectOpts::default();
            let attempt = TcpStream::connect_addr_with_config(address, &options);
            match timeout(self.connect_timeout, attempt).await {
                Ok(Ok(tcp)) => {
                    tcp.set_nodelay(true).map_err(refused)?;
                    let Some(trust) = trust else {
                        return Ok(Stream::plain(tcp));
                    };
                    return match timeout(self.connect_timeout, Stream::tls(tcp, host, trust)).await
                    {
                        Ok(Ok(stream)) => Ok(stream),
                        Ok(Err(cause)) => Err(tls_error(host, port, cause)),
                        Err(_) => Err(tls_error(host, port, io::ErrorKind::TimedOut.into())),
                    };
                }
                Ok(Err(cause)) => last = cause,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        // The addresses may be stale.
        self.names
            .borrow_mut()
            .remove(&(host.to_owned(), port, allowed));
        Err(refused(last))
    }

    async fn addresses(
        &self,
        host: &str,
        port: u16,
        allowed: Addresses,
    ) -> Result<Rc<[SocketAddr]>, ConnectError> {
        let key = (host.to_owned(), port, allowed);
        if let Some((since, addresses)) = self.names.borrow().get(&key)
            && since.elapsed() < NAME_AGE
        {
            return Ok(Rc::clone(addresses));
        }
        let name = host.to_owned();
        let found = self
            .pool
            .run(Errand::Names, move || look_up(&name, port, allowed))
            .await??;
        let addresses: Rc<[SocketAddr]> = found.into();
        let mut names = self.names.borrow_mut();
        if names.len() >= MOST_NAMES {
            names.clear();
        }
        names.insert(key, (Instant::now(), Rc::clone(&addresses)));
        Ok(addresses)
    }
}

fn tls_error(host: &str, port: u16, cause: io::Error) -> ConnectError {
    ConnectError::Tls {
        host: host.to_owned(),
        port,
        cause,
    }
}
