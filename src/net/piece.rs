//! What can be sent next of something larger: to a client, or to a registry.

use std::{fs::File, ops::Range, sync::Arc};

use bytes::Bytes;

#[derive(Debug)]
pub enum Piece {
    /// Goes from the page cache to the socket.
    File {
        file: Arc<File>,
        range: Range<u64>,
        /// Nobody writes to it any more.
        is_complete: bool,
    },
    Bytes(Bytes),
}

impl Piece {
    pub fn size(&self) -> u64 {
        match self {
            Self::File { range, .. } => range.end.saturating_sub(range.start),
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}
