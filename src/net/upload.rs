//! Sending to a registry: the pieces of a request's body, by the same ways as to a client, and with an ear for an answer
//! that comes before it has all. Whoever only wrote on would see the connection break, and never learn why.

use std::{io, time::Duration};

use super::{
    Piece,
    patience::{EarlyAnswer, Patience},
    stream::{Kind, Stream},
    transfer::{FilePart, Transfer},
};
use crate::sys::More;

/// How the sending of a piece ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploaded {
    Whole,
    /// The registry has something to say, or has gone. No more can be sent on this connection.
    Interrupted,
}

impl Transfer {
    /// `patience`: how long the registry may take no byte at all. `more`: whether another piece follows.
    pub async fn upload(
        &self,
        stream: &mut Stream,
        piece: Piece,
        more: More,
        patience: Duration,
    ) -> io::Result<Uploaded> {
        let sent = self.upload_piece(stream, piece, more, patience).await;
        match sent {
            Ok(()) => Ok(Uploaded::Whole),
            Err(error) if EarlyAnswer::is(&error) || has_gone(&error) => Ok(Uploaded::Interrupted),
            Err(error) => Err(error),
        }
    }

    async fn upload_piece(
        &self,
        stream: &mut Stream,
        piece: Piece,
        more: More,
        patience: Duration,
    ) -> io::Result<()> {
        // What is sent in one turn waits for nothing, and would not hear.
        if stream.has_heard()? {
            return Err(io::Error::other(EarlyAnswer));
        }
        let patience = Patience::with_registry(patience);
        match (&mut stream.0, piece) {
            (Kind::Plain(tcp), Piece::Bytes(bytes)) => {
                self.send_plain(tcp, &bytes, more, patience).await
            }
            (Kind::Tls(tls), Piece::Bytes(bytes)) => {
                self.send_through(&mut **tls, &bytes, more, patience).await
            }
            (
                Kind::Plain(tcp),
                Piece::File {
                    file,
                    range,
                    is_complete,
                },
            ) => {
                let part = FilePart {
                    file: &file,
                    range,
                    is_complete,
                };
                self.send_file_plain(tcp, &[], part, more, patience).await
            }
            (Kind::Tls(tls), Piece::File { file, range, .. }) => {
                self.send_file_through(&mut **tls, &[], &file, range, more, patience)
                    .await
            }
        }
    }
}

/// It may have said why before, which can still be read.
fn has_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}
