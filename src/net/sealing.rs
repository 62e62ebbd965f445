//! Sending through TLS, a batch at a time: read, encrypted and sent before the next one is read. What a client that does
//! not read costs is the rest of one batch; an answer that is over keeps nothing.
//!
//! Files are read into a buffer that the core's answers share. rustls copies what it encrypts, so that a mapping saves no
//! copy: both ways cost the same from 64 KiB up (within 5 %), and a mapping's pages count as ours while a client stalls.

use std::{
    fs::File,
    io::{self, IoSlice, Read, Write},
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use monoio::net::TcpStream;
use rustls::ConnectionCommon;

use super::{
    patience::{EarlyAnswer, Patience},
    transfer::{BUDGET, Transfer, is_transient},
};
use crate::sys::{self, More, Sent};

/// Eight whole records. Twice or half as much costs the same within what measuring it can tell, from 1 MiB up.
const BATCH: usize = 128 << 10;

/// Either side of a TLS session, over a socket that is asked without waiting.
pub(super) trait Sealing {
    type Side;

    fn tcp(&self) -> &TcpStream;

    fn parts(&mut self) -> (&TcpStream, &mut ConnectionCommon<Self::Side>);

    /// Encrypts a copy; `send_sealed` sends it.
    fn seal(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (_, session) = self.parts();
        session.writer().write_all(bytes)
    }

    /// Whether all that was sealed is with the socket.
    fn is_sent(&mut self) -> bool {
        let (_, session) = self.parts();
        !session.wants_write()
    }

    /// Sends what the socket takes now.
    fn send_sealed(&mut self, more: More) -> io::Result<Sent> {
        let (tcp, session) = self.parts();
        match session.write_tls(&mut Wire { tcp, more }) {
            Ok(count) => Ok(Sent::Bytes(count)),
            Err(error) if is_transient(&error) => Ok(Sent::Full),
            Err(error) => Err(error),
        }
    }

    /// Takes what has come while we send, and says whether it was more than the session's own business: the other side's
    /// words, or its end. It matters of registries only.
    fn has_heard(&mut self) -> io::Result<bool> {
        Ok(true)
    }
}

impl Transfer {
    pub(super) async fn send_through(
        &self,
        session: &mut impl Sealing,
        bytes: &[u8],
        more: More,
        patience: Patience<'_>,
    ) -> io::Result<()> {
        let mut turn = Turn::new(patience);
        let mut batches = bytes.chunks(BATCH).peekable();
        while let Some(batch) = batches.next() {
            session.seal(batch)?;
            let batch_more = match batches.peek() {
                Some(_) => More::Follows,
                None => more,
            };
            turn.send_sealed(session, batch_more).await?;
        }
        Ok(())
    }

    pub(super) async fn send_file_through(
        &self,
        session: &mut impl Sealing,
        mut head: &[u8],
        file: &Arc<File>,
        range: Range<u64>,
        more: More,
        patience: Patience<'_>,
    ) -> io::Result<()> {
        if range.is_empty() {
            return self.send_through(session, head, more, patience).await;
        }
        let mut turn = Turn::new(patience);
        let mut offset = range.start;
        let mut warm_until = offset;
        while offset < range.end {
            let room = BATCH.saturating_sub(head.len()).max(1);
            let left = usize::try_from(range.end - offset).unwrap_or(usize::MAX);
            let size = left.min(room);
            let sealed = if offset < warm_until {
                self.seal_file(session, head, size, |part| file.read_at(part, offset))
            } else {
                self.seal_file(session, head, size, |part| {
                    sys::read_if_cached(file, part, offset)
                })
            };
            match sealed {
                // The file is shorter than it was said to be.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    offset += count as u64;
                    head = &[];
                }
                // Not in memory, or a file system that cannot tell: after this a read does not wait for the disk.
                Err(_) if offset >= warm_until => {
                    warm_until = self.warm(file, offset, range.end, patience).await?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let batch_more = if offset < range.end {
                More::Follows
            } else {
                more
            };
            turn.send_sealed(session, batch_more).await?;
        }
        Ok(())
    }

    /// Encrypts `head` and, sharing its record, the up to `size` bytes that `read` has for what follows; says how many
    /// those were. With none of them nothing is encrypted.
    fn seal_file(
        &self,
        session: &mut impl Sealing,
        head: &[u8],
        size: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.with_scratch(head.len() + size, |joined| {
            let (front, body) = joined.split_at_mut(head.len());
            front.copy_from_slice(head);
            let count = read(body)?;
            if count > 0 {
                session.seal(joined.get(..head.len() + count).unwrap_or_default())?;
            }
            Ok(count)
        })
    }
}

/// What an answer has sent since the core's other tasks had their turn.
struct Turn<'a> {
    budget: usize,
    patience: Patience<'a>,
}

impl<'a> Turn<'a> {
    fn new(patience: Patience<'a>) -> Self {
        Self {
            budget: BUDGET,
            patience,
        }
    }

    /// Sends all that is encrypted. With more to follow this ends the turn when the budget is used up, or the socket full.
    async fn send_sealed(&mut self, session: &mut impl Sealing, more: More) -> io::Result<()> {
        while !session.is_sent() {
            match session.send_sealed(more)? {
                Sent::Bytes(count) => self.budget = self.budget.saturating_sub(count),
                Sent::Full => self.pass(session).await?,
            }
        }
        if more == More::Follows && self.budget == 0 {
            self.pass(session).await?;
        }
        Ok(())
    }

    async fn pass(&mut self, session: &mut impl Sealing) -> io::Result<()> {
        self.budget = BUDGET;
        loop {
            match self.patience.writable(session.tcp()).await {
                Err(error) if EarlyAnswer::is(&error) && !session.has_heard()? => {}
                turned => return turned,
            }
        }
    }
}

/// The socket as rustls wants it: never waiting.
pub(super) struct Wire<'a> {
    pub(super) tcp: &'a TcpStream,
    pub(super) more: More,
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        sys::receive(self.tcp, buffer)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        sys::send(self.tcp, bytes, self.more)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        sys::send_pieces(self.tcp, pieces, self.more)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
