//! Reading the body of a request, for those who want it, and past it, for those who do not.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::Load;
use crate::{
    http::{BodyLength, ChunkDecoder},
    net::Socket,
};

/// For a whole body: the largest takes as long at 70 KiB/s.
const LONGEST: Duration = Duration::from_secs(300);
/// Between two pieces of a body.
const PATIENCE: Duration = Duration::from_secs(20);
const READ_SIZE: usize = 64 << 10;
/// Bodies in memory, of all connections together: beyond it callers come back later.
const MOST_BODY_BYTES: usize = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the body is larger than {limit} bytes (max_body_size)")]
    TooLarge { limit: u64 },
    #[error("the body is not properly chunked")]
    Malformed,
    #[error("too many bodies are being received")]
    Busy,
    #[error("the client went away")]
    Gone(#[from] io::Error),
}

/// Counts what one body takes of the memory for all.
struct Share {
    load: Arc<Load>,
    count: usize,
}

impl Share {
    fn take(&mut self, count: usize) -> Result<(), BodyError> {
        self.count += count;
        let before = self.load.body_bytes.fetch_add(count, Ordering::Relaxed);
        if before + count > MOST_BODY_BYTES {
            Err(BodyError::Busy)
        } else {
            Ok(())
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.load
            .body_bytes
            .fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// A body that is counted for as long as it is in memory.
struct Counted {
    bytes: Vec<u8>,
    _share: Share,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads the whole body. `buffer` holds what came after the head; what follows the body stays in it.
pub(super) async fn read(
    socket: &mut Socket,
    buffer: &mut Vec<u8>,
    length: BodyLength,
    limit: u64,
    load: &Arc<Load>,
) -> Result<Bytes, BodyError> {
    let mut share = Share {
        load: Arc::clone(load),
        count: 0,
    };
    let mut body = Vec::new();
    let started = Instant::now();
    let mut decoder = match length {
        BodyLength::Chunked => Some(ChunkDecoder::new()),
        _ => None,
    };
    let expected = match length {
        BodyLength::Exactly(size) if size > limit => return Err(BodyError::TooLarge { limit }),
        BodyLength::Exactly(size) => size,
        BodyLength::Chunked => u64::MAX,
        // A request without either has no body (RFC 9112 §6.3).
        BodyLength::Empty | BodyLength::UntilClose => 0,
    };
    loop {
        let before = body.len();
        match &mut decoder {
            Some(decoder) => take_chunks(decoder, buffer, &mut body)?,
            None => {
                let left = usize::try_from(expected).unwrap_or(usize::MAX) - body.len();
                body.extend(buffer.drain(..left.min(buffer.len())));
            }
        }
        share.take(body.len() - before)?;
        if body.len() as u64 > limit {
            return Err(BodyError::TooLarge { limit });
        }
        let is_over = decoder
            .as_ref()
            .map_or(body.len() as u64 == expected, ChunkDecoder::is_done);
        if is_over {
            return Ok(Bytes::from_owner(Counted {
                bytes: body,
                _share: share,
            }));
        }
        if started.elapsed() > LONGEST {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        receive(socket, buffer).await?;
    }
}

fn take_chunks(
    decoder: &mut ChunkDecoder,
    buffer: &mut Vec<u8>,
    body: &mut Vec<u8>,
) -> Result<(), BodyError> {
    let mut position = 0;
    while position < buffer.len() && !decoder.is_done() {
        let rest = buffer.get(position..).unwrap_or_default();
        let (taken, data) = decoder.decode(rest).map_err(|_| BodyError::Malformed)?;
        body.extend_from_slice(data);
        position += taken;
        if taken == 0 {
            break;
        }
    }
    buffer.drain(..position);
    Ok(())
}

async fn receive(socket: &mut Socket, buffer: &mut Vec<u8>) -> Result<(), BodyError> {
    buffer.reserve(READ_SIZE);
    let deadline = socket.after(PATIENCE);
    match socket.read(buffer, deadline).await? {
        0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        _ => Ok(()),
    }
}
