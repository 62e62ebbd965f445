//! A client's connection, with or without TLS.

use std::{io, rc::Rc, time::Duration};

use monoio::{
    buf::IoBufMut as _,
    io::{AsyncReadRent as _, AsyncWriteRent as _},
    net::TcpStream,
};

use super::{
    Identity,
    patience::{Alarm, Clock, Deadline},
    sealing::Sealing as _,
    tls_session::TlsSession,
    transfer::is_transient,
};
use crate::sys::{self, reset_on_close};

pub struct Socket {
    pub(super) kind: Kind,
    pub(super) alarm: Alarm,
}

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
    pub fn plain(tcp: TcpStream, clock: &Rc<Clock>) -> Self {
        Self {
            kind: Kind::Plain(tcp),
            alarm: clock.alarm(),
        }
    }

    /// Waits for the client's hello and agrees on a session with it, all within `patience`.
    pub async fn accept_tls(
        tcp: TcpStream,
        clock: &Rc<Clock>,
        identity: &Identity,
        patience: Duration,
    ) -> Result<Self, Refused> {
        let alarm = clock.alarm();
        let deadline = clock.after(patience);
        match alarm.within(deadline, speaks_http(&tcp)).await {
            Ok(false) => {}
            Ok(true) => return Err(Refused::PlainHttp(Self::plain(tcp, clock))),
            Err(error) => return Err(Refused::Failed(error)),
        }
        let accepting = async {
            let mut session = TlsSession::new(tcp, identity)?;
            session.handshake().await?;
            Ok(session)
        };
        match alarm.within(deadline, accepting).await {
            Ok(session) => Ok(Self {
                kind: Kind::Tls(Box::new(session)),
                alarm,
            }),
            Err(error) => Err(Refused::Failed(error)),
        }
    }

    /// A wait of at least `patience` from now, for `read`.
    pub fn after(&self, patience: Duration) -> Deadline {
        self.alarm.clock().after(patience)
    }

    /// Appends what comes next to `buffer`, up to its capacity; 0 is the end. After a time-out what `buffer` held may be
    /// gone: it is the kernel's then.
    pub async fn read(&mut self, buffer: &mut Vec<u8>, deadline: Deadline) -> io::Result<usize> {
        let start = buffer.len();
        if start == buffer.capacity() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match &mut self.kind {
            Kind::Plain(tcp) => {
                let lent = std::mem::take(buffer);
                let capacity = lent.capacity();
                let reading = async {
                    let (result, slice) = tcp.read(lent.slice_mut(start..capacity)).await;
                    *buffer = slice.into_inner();
                    result
                };
                self.alarm.within(deadline, reading).await
            }
            Kind::Tls(session) => self.alarm.within(deadline, session.read(buffer)).await,
        }
    }

    /// Says that no more is sent, and then reads until the client has closed too, up to `most` bytes and for no longer
    /// than `patience`. Closing with unread bytes in the receive buffer would reset the connection, and with it might go
    /// the answer that the client has not read yet.
    pub async fn close(self, most: usize, patience: Duration) {
        let deadline = self.after(patience);
        let Self { kind, alarm } = self;
        let closing = async {
            let mut tcp = match kind {
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
                tcp.readable(false).await?;
                match sys::receive_more(&tcp, &mut buffer) {
                    Ok(0) => break,
                    Ok(count) => drained += count,
                    Err(error) if is_transient(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        // Whatever goes wrong, it ends here.
        let _ = alarm.within(deadline, closing).await;
    }

    /// Makes closing the connection reset it, so that what was sent cannot pass for a whole answer.
    pub fn reset_on_close(&self) {
        match &self.kind {
            Kind::Plain(tcp) => reset_on_close(tcp),
            Kind::Tls(session) => reset_on_close(session.tcp()),
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
