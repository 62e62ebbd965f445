//! A client's connection, with or without TLS.

use std::{io, time::Duration};

use monoio::{io::AsyncWriteRent as _, net::TcpStream, time::timeout};

use super::{Identity, tls_session::TlsSession, transfer::is_transient};
use crate::sys::{self, reset_on_close};

pub struct Socket(pub(super) Kind);

pub(super) enum Kind {
    Plain(TcpStream),
    Tls(Box<TlsSession>),
}

/// Why a client that should speak TLS gets no session.
pub enum Refused {
    /// It speaks plain HTTP, and can be told so.
    PlainHttp(Socket),
    Failed(io::Error),
}

impl Socket {
    pub fn plain(tcp: TcpStream) -> Self {
        Self(Kind::Plain(tcp))
    }

    /// Waits for the client's hello and agrees on a session with it, all within `patience`.
    pub async fn accept_tls(
        tcp: TcpStream,
        identity: &Identity,
        patience: Duration,
    ) -> Result<Self, Refused> {
        let accepting = async {
            if speaks_http(&tcp).await.map_err(Refused::Failed)? {
                return Err(Refused::PlainHttp(Self::plain(tcp)));
            }
            let mut session = TlsSession::new(tcp, identity).map_err(Refused::Failed)?;
            session.handshake().await.map_err(Refused::Failed)?;
            Ok(Self(Kind::Tls(Box::new(session))))
        };
        match timeout(patience, accepting).await {
            Ok(accepted) => accepted,
            Err(_) => Err(Refused::Failed(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Appends what comes next to `buffer`, up to its capacity; 0 is the end. Nothing is lost if it takes longer than
    /// `patience`.
    pub async fn read(&mut self, buffer: &mut Vec<u8>, patience: Duration) -> io::Result<usize> {
        if buffer.len() == buffer.capacity() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let reading = async {
            match &mut self.0 {
                Kind::Plain(tcp) => read_plain(tcp, buffer).await,
                Kind::Tls(session) => session.read(buffer).await,
            }
        };
        match timeout(patience, reading).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Says that no more is sent, and then reads until the client has closed too, up to `most` bytes and for no longer
    /// than `patience`. Closing with unread bytes in the receive buffer would reset the connection, and with it might go
    /// the answer that the client has not read yet.
    pub async fn close(self, most: usize, patience: Duration) {
        let closing = async {
            let mut tcp = match self.0 {
                Kind::Plain(tcp) => tcp,
                Kind::Tls(mut session) => {
                    session.close().await?;
                    session.into_tcp()
                }
            };
            tcp.shutdown().await?;
            let mut drained = 0;
            let mut buffer = Vec::with_capacity(4 << 10);
            while drained < most {
                buffer.clear();
                match read_plain(&tcp, &mut buffer).await? {
                    0 => break,
                    count => drained += count,
                }
            }
            Ok::<(), io::Error>(())
        };
        // Whatever goes wrong, it ends here.
        let _ = timeout(patience, closing).await;
    }

    /// Makes closing the connection reset it, so that what was sent cannot pass for a whole answer.
    pub fn reset_on_close(&self) {
        reset_on_close(self.tcp());
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        match &self.0 {
            Kind::Plain(tcp) => tcp,
            Kind::Tls(session) => session.tcp(),
        }
    }
}

/// Waiting first, and reading what is there then: an idle connection lends no buffer to the kernel.
async fn read_plain(tcp: &TcpStream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        tcp.readable(false).await?;
        match sys::receive_more(tcp, buffer) {
            Err(error) if is_transient(&error) => {}
            settled => return settled,
        }
    }
}

/// Whether the first byte starts a request's method and not a TLS record.
async fn speaks_http(tcp: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    loop {
        tcp.readable(false).await?;
        match sys::peek(tcp, &mut first) {
            Ok(_) => return Ok(first[0].is_ascii_uppercase()),
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
    }
}
