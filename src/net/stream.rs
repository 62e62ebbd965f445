//! A connection to a registry, with or without TLS.

use std::{io, time::Duration};

use monoio::{
    buf::{IoBufMut as _, SliceMut},
    io::{AsyncReadRent as _, AsyncWriteRentExt as _},
    net::TcpStream,
    time::timeout,
};
use zeroize::Zeroize as _;

use super::{sealing::Sealing as _, tls::TlsStream, trust::Trust};
use crate::sys;

pub struct Stream(pub(super) Kind);

pub(super) enum Kind {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

impl Stream {
    pub(super) fn plain(tcp: TcpStream) -> Self {
        Self(Kind::Plain(tcp))
    }

    pub(super) async fn tls(tcp: TcpStream, host: &str, trust: &Trust) -> io::Result<Self> {
        let stream = TlsStream::connect(tcp, host, trust).await?;
        Ok(Self(Kind::Tls(Box::new(stream))))
    }

    /// Appends what comes next to `buffer`, up to its capacity; 0 is the end. After an error, a time-out
    /// included, the stream is good for nothing.
    pub async fn read(
        &mut self,
        mut buffer: Vec<u8>,
        patience: Duration,
    ) -> io::Result<(usize, Vec<u8>)> {
        let start = buffer.len();
        if start == buffer.capacity() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let reading = async {
            match &mut self.0 {
                Kind::Plain(tcp) => {
                    let capacity = buffer.capacity();
                    let slice: SliceMut<Vec<u8>> = buffer.slice_mut(start..capacity);
                    let (result, slice) = tcp.read(slice).await;
                    result.map(|count| (count, slice.into_inner()))
                }
                Kind::Tls(tls) => {
                    let count = tls.read(&mut buffer).await?;
                    Ok((count, buffer))
                }
            }
        };
        match timeout(patience, reading).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// A request's head, with the login in it: what was written is wiped.
    pub async fn write_all(&mut self, mut bytes: Vec<u8>, patience: Duration) -> io::Result<()> {
        let writing = async {
            match &mut self.0 {
                Kind::Plain(tcp) => {
                    let (result, mut bytes) = tcp.write_all(bytes).await;
                    bytes.zeroize();
                    result.map(|_| ())
                }
                Kind::Tls(tls) => {
                    let result = tls.write_all(&bytes).await;
                    bytes.zeroize();
                    result
                }
            }
        };
        match timeout(patience, writing).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Whether an idle connection can take another request. Anything that arrived meanwhile spoils it: it would be
    /// read as the answer.
    pub fn is_quiet(&mut self) -> bool {
        match &mut self.0 {
            Kind::Plain(tcp) => sys::liveness(tcp) == sys::Liveness::Quiet,
            Kind::Tls(tls) => tls.is_drained() && sys::liveness(tls.tcp()) == sys::Liveness::Quiet,
        }
    }

    /// Whether the other side has said something, or gone, while we are sending.
    pub(super) fn has_heard(&mut self) -> io::Result<bool> {
        match &mut self.0 {
            Kind::Plain(tcp) => Ok(sys::liveness(tcp) != sys::Liveness::Quiet),
            Kind::Tls(tls) => tls.has_heard(),
        }
    }
}
