//! A client's connection that left its core, for a thread that waits by itself: reading and writing never wait.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd},
};

use rustls::{ServerConnection, StreamOwned};

use super::socket::{Kind, Socket};
use crate::sys;

pub struct Detached {
    /// What had been read already.
    early: io::Cursor<Vec<u8>>,
    stream: Stream,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Socket {
    /// `early`: what has been read and belongs to whoever takes over.
    pub fn detach(self, early: Vec<u8>) -> io::Result<Detached> {
        let (tcp, session) = match self.kind {
            Kind::Plain(tcp) => (tcp, None),
            Kind::Tls(session) => {
                let (tcp, session) = session.into_parts();
                (tcp, Some(session))
            }
        };
        // The runtime's own descriptor may still be part of an operation that was given up.
        let own = TcpStream::from(sys::duplicate(&tcp)?);
        own.set_nonblocking(true)?;
        let stream = match session {
            None => Stream::Plain(own),
            Some(session) => Stream::Tls(Box::new(StreamOwned::new(session, own))),
        };
        Ok(Detached {
            early: io::Cursor::new(early),
            stream,
        })
    }
}

impl Read for Detached {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.early.read(buffer)? {
            0 => match &mut self.stream {
                Stream::Plain(tcp) => tcp.read(buffer),
                Stream::Tls(tls) => tls.read(buffer),
            },
            count => Ok(count),
        }
    }
}

impl Write for Detached {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Plain(tcp) => tcp.write(bytes),
            Stream::Tls(tls) => tls.write(bytes),
        }
    }

    /// `WouldBlock`: something is left, for when the socket can be written again.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(tcp) => tcp.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Plain(tcp) => tcp.as_fd(),
            Stream::Tls(tls) => tls.sock.as_fd(),
        }
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        if let Stream::Tls(tls) = &mut self.stream {
            tls.conn.send_close_notify();
            // As far as the socket takes it: nobody waits for this.
            let _ = tls.flush();
        }
    }
}
