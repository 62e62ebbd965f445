//! The server's side of TLS: rustls over a client's socket.
//!
//! The socket is waited for and then asked without waiting, so that an idle session holds no buffer, and a wait that
//! is given up loses nothing.

use std::{
    io::{self, BufRead as _},
    sync::Arc,
};

use monoio::net::TcpStream;
use rustls::{ConnectionCommon, ServerConnection, server::ServerConnectionData};

use super::{
    Identity,
    sealing::{Sealing, Wire},
    transfer::is_transient,
};
use crate::sys::{More, Sent};

pub(super) struct TlsSession {
    tcp: TcpStream,
    session: ServerConnection,
}

impl TlsSession {
    pub(super) fn new(tcp: TcpStream, identity: &Identity) -> io::Result<Self> {
        let mut session =
            ServerConnection::new(Arc::clone(&identity.config)).map_err(io::Error::other)?;
        // No more is encrypted than is sent next, so the session need not count.
        session.set_buffer_limit(None);
        Ok(Self { tcp, session })
    }

    pub(super) async fn handshake(&mut self) -> io::Result<()> {
        while self.session.is_handshaking() {
            if self.advance().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    pub(super) fn into_tcp(self) -> TcpStream {
        self.tcp
    }

    pub(super) fn into_parts(self) -> (TcpStream, ServerConnection) {
        (self.tcp, self.session)
    }

    /// Appends what comes next to `buffer`, up to its capacity; 0 is the end.
    pub(super) async fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            let mut reader = self.session.reader();
            match reader.fill_buf() {
                Ok(plain) => {
                    let count = plain.len().min(buffer.capacity() - buffer.len());
                    buffer.extend_from_slice(plain.get(..count).unwrap_or_default());
                    reader.consume(count);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            self.advance().await?;
        }
    }

    /// Says that nothing more comes: without it an end may be somebody else's work.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        self.session.send_close_notify();
        self.flush().await
    }

    /// Gives the session what has come, at least one piece of it, and sends its answers. At the socket's end (0) the
    /// session decides whether that was a proper close.
    async fn advance(&mut self) -> io::Result<usize> {
        let count = loop {
            self.tcp.readable(false).await?;
            let mut wire = Wire {
                tcp: &self.tcp,
                more: More::Ends,
            };
            match self.session.read_tls(&mut wire) {
                Ok(count) => break count,
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        };
        match self.session.process_new_packets() {
            Ok(_) => self.flush().await?,
            Err(error) => {
                // The alert tells the client what is wrong; it may have gone already.
                let _ = self.send_sealed(More::Ends);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        Ok(count)
    }

    async fn flush(&mut self) -> io::Result<()> {
        while !self.is_sent() {
            if self.send_sealed(More::Ends)? == Sent::Full {
                self.tcp.writable(false).await?;
            }
        }
        Ok(())
    }
}

impl Sealing for TlsSession {
    type Side = ServerConnectionData;

    fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    fn parts(&mut self) -> (&TcpStream, &mut ConnectionCommon<ServerConnectionData>) {
        (&self.tcp, &mut self.session)
    }
}
