//! TLS towards registries: rustls over a socket of this runtime.
//!
//! Our own glue, because the ready-made one panics after a timed-out read and sends each 16 KiB record in a
//! call of its own.

use std::io::{self, BufRead as _, Write as _};

use monoio::{
    io::{AsyncReadRent as _, AsyncWriteRentExt as _},
    net::TcpStream,
};
use rustls::{
    ClientConnection, ConnectionCommon, client::ClientConnectionData, pki_types::ServerName,
};

use super::{
    sealing::Sealing,
    transfer::is_transient,
    trust::{Trust, explain},
};
use crate::sys;

/// One read of the socket: four of TLS' largest records.
const READ_SIZE: usize = 64 << 10;

/// A client's TLS session over a socket.
pub(super) struct TlsStream {
    tcp: TcpStream,
    session: ClientConnection,
    /// Ciphertext that the session has not taken yet, from `taken` on: it takes no more while plaintext waits in it.
    received: Vec<u8>,
    taken: usize,
}

impl TlsStream {
    pub(super) async fn connect(tcp: TcpStream, host: &str, trust: &Trust) -> io::Result<Self> {
        let bare = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        let name = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
        let mut session = ClientConnection::new(trust.client(), name).map_err(io::Error::other)?;
        // No more is encrypted than is sent next, so the session need not count.
        session.set_buffer_limit(None);
        let mut stream = Self {
            tcp,
            session,
            received: Vec::new(),
            taken: 0,
        };
        stream.flush().await?;
        while stream.session.is_handshaking() {
            if stream.advance().await.map_err(explained)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        stream.flush().await?;
        Ok(stream)
    }

    /// Whether nothing was received that nobody has read.
    pub(super) fn is_drained(&mut self) -> bool {
        let state = self.session.process_new_packets();
        self.taken == self.received.len()
            && state
                .is_ok_and(|state| state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed())
    }

    /// Appends what comes next to `buffer`, up to its capacity; 0 is the end.
    pub(super) async fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let start = buffer.len();
        loop {
            // All that one read of the socket has brought: a few records.
            while buffer.len() < buffer.capacity() {
                let mut reader = self.session.reader();
                match reader.fill_buf() {
                    Ok([]) => return Ok(buffer.len() - start),
                    Ok(plain) => {
                        let count = plain.len().min(buffer.capacity() - buffer.len());
                        buffer.extend_from_slice(plain.get(..count).unwrap_or_default());
                        reader.consume(count);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // What was read before it counts; it comes again.
                    Err(_) if buffer.len() > start => break,
                    Err(error) => return Err(error),
                }
            }
            if buffer.len() > start {
                return Ok(buffer.len() - start);
            }
            self.advance().await?;
        }
    }

    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        // A head: a few KiB.
        self.session.writer().write_all(bytes)?;
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            let mut records = Vec::new();
            self.session.write_tls(&mut records)?;
            let (result, _) = self.tcp.write_all(records).await;
            result?;
        }
        Ok(())
    }

    /// Gives the session more ciphertext, from the socket if there is none left. At the socket's end (0) the session
    /// decides whether that was a proper close.
    async fn advance(&mut self) -> io::Result<usize> {
        if self.taken == self.received.len() {
            self.receive().await?;
        }
        let mut rest = self.received.get(self.taken..).unwrap_or_default();
        let count = self.session.read_tls(&mut rest)?;
        self.taken += count;
        self.session
            .process_new_packets()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.flush().await?;
        Ok(count)
    }

    async fn receive(&mut self) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.received);
        self.taken = 0;
        buffer.clear();
        buffer.reserve(READ_SIZE);
        let (result, buffer) = self.tcp.read(buffer).await;
        self.received = buffer;
        result.map(|_| ())
    }
}

fn explained(error: io::Error) -> io::Error {
    let told = error.get_ref().and_then(|cause| cause.downcast_ref());
    match told.map(explain) {
        Some(words) => io::Error::new(error.kind(), words),
        None => error,
    }
}

impl Sealing for TlsStream {
    type Side = ClientConnectionData;

    fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    fn parts(&mut self) -> (&TcpStream, &mut ConnectionCommon<ClientConnectionData>) {
        (&self.tcp, &mut self.session)
    }

    /// Tickets for later sessions come at any time.
    fn has_heard(&mut self) -> io::Result<bool> {
        if self.taken == self.received.len() {
            self.taken = 0;
            self.received.clear();
            self.received.reserve(READ_SIZE);
            match sys::receive_more(&self.tcp, &mut self.received) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if is_transient(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        while let Some(mut rest) = self.received.get(self.taken..).filter(|it| !it.is_empty()) {
            self.taken += self.session.read_tls(&mut rest)?;
            let state = self
                .session
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if state.plaintext_bytes_to_read() > 0 || state.peer_has_closed() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
