//! Sending through TLS. Files are encrypted straight from a mapping, a batch at a time: all records of a batch leave in
//! one call, and their memory is given back when they have.

use std::{
    fs::File, io, io::IoSlice, ops::Deref, ops::Range, os::unix::fs::FileExt as _, sync::Arc,
};

use super::{
    tls_session::TlsSession,
    transfer::{BUDGET, Patience, Transfer},
};
use crate::sys::{FileWindow, More, Sent};

impl Transfer {
    pub(super) async fn send_through(
        &self,
        session: &mut TlsSession,
        bytes: &[u8],
        more: More,
        patience: Patience<'_>,
    ) -> io::Result<()> {
        let mut batches = bytes.chunks(BUDGET).peekable();
        while let Some(batch) = batches.next() {
            let is_last = batches.peek().is_none();
            session.seal(&[IoSlice::new(batch)])?;
            send_batch(
                session,
                if is_last { more } else { More::Follows },
                patience,
            )
            .await?;
            if !is_last {
                patience.writable(session.tcp()).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn send_file_through(
        &self,
        session: &mut TlsSession,
        mut head: &[u8],
        file: &Arc<File>,
        range: Range<u64>,
        more: More,
        patience: Patience<'_>,
    ) -> io::Result<()> {
        if range.is_empty() {
            return self.send_through(session, head, more, patience).await;
        }
        let mut offset = range.start;
        while offset < range.end {
            let end = self.warm(file, offset, offset, range.end, patience).await?;
            let window = Window::of(file, offset..end)?;
            offset = end;
            let mut batches = window.chunks(BUDGET).peekable();
            while let Some(batch) = batches.next() {
                let is_last = offset == range.end && batches.peek().is_none();
                // The head shares the first record with the body's first bytes.
                session.seal(&[IoSlice::new(std::mem::take(&mut head)), IoSlice::new(batch)])?;
                send_batch(
                    session,
                    if is_last { more } else { More::Follows },
                    patience,
                )
                .await?;
                if !is_last {
                    patience.writable(session.tcp()).await?;
                }
            }
        }
        Ok(())
    }
}

/// Sends what was sealed.
async fn send_batch(
    session: &mut TlsSession,
    more: More,
    patience: Patience<'_>,
) -> io::Result<()> {
    while !session.is_sent() {
        if session.send_sealed(more)? == Sent::Full {
            patience.writable(session.tcp()).await?;
        }
    }
    Ok(())
}

/// A window's bytes.
enum Window {
    Mapped(FileWindow),
    /// Where the kernel cannot promise that a mapping is readable.
    Read(Vec<u8>),
}

impl Window {
    /// The range has been brought into memory before, so that this does not wait for a disk.
    fn of(file: &File, range: Range<u64>) -> io::Result<Self> {
        let mapped = FileWindow::map(file, range.clone())?;
        match mapped.populate() {
            Ok(()) => Ok(Self::Mapped(mapped)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let mut bytes = vec![0; mapped.len()];
                file.read_exact_at(&mut bytes, range.start)?;
                Ok(Self::Read(bytes))
            }
            Err(error) => Err(error),
        }
    }
}

impl Deref for Window {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(window) => window,
            Self::Read(bytes) => bytes,
        }
    }
}
