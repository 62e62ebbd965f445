//! Sending an answer: its head and the start of its body together, files by splice, everything else from memory.

use std::io::Write as _;

use super::{Edge, date};
use crate::{
    api::{BodyError, Length, Piece, Response},
    http::Version,
    net::{FilePart, More, Socket},
    telemetry::metrics::{self, Counter},
};

/// How the client may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Afterwards {
    KeepAlive,
    Close,
}

#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) body_bytes: u64,
    pub(super) afterwards: Afterwards,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DeliverError {
    /// The client takes no more. That is its right.
    #[error("the client went away: {0}")]
    Gone(#[from] std::io::Error),
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("the body has {sent} bytes more or less than the {announced} announced")]
    Length { sent: u64, announced: u64 },
}

/// What was sent before it went wrong.
pub(super) struct Cut {
    pub(super) body_bytes: u64,
    pub(super) cause: DeliverError,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// By `Content-Length`, or no body at all.
    Counted,
    Chunked,
    /// HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
    UntilClose,
}

pub(super) async fn deliver(
    edge: &Edge,
    socket: &mut Socket,
    version: Version,
    mut afterwards: Afterwards,
    response: Response,
) -> Result<Delivered, Cut> {
    let patience = *edge.options.send_timeout;
    let framing = match (response.length, version) {
        (Length::Known(_) | Length::Absent, _) => Framing::Counted,
        (Length::Unknown, Version::Http11) => Framing::Chunked,
        (Length::Unknown, Version::Http10) => Framing::UntilClose,
    };
    if response.close || framing == Framing::UntilClose {
        afterwards = Afterwards::Close;
    }
    let chunk_end: &[u8] = match framing {
        Framing::Chunked => b"\r\n",
        Framing::Counted | Framing::UntilClose => b"",
    };
    let announced = response.length;
    let mut head = encode_head(&response, version, framing, afterwards);
    let mut body = response.body;
    let mut body_bytes = 0;
    let sending = async {
        if !body.is_ready() {
            edge.transfer
                .send(socket, &head, More::Ends, patience)
                .await?;
            head.clear();
        }
        while let Some(piece) = body.next().await? {
            let length = match &piece {
                Piece::File { range, .. } => range.end - range.start,
                Piece::Bytes(bytes) => bytes.len() as u64,
            };
            let more = match (framing, announced) {
                (Framing::Counted, Length::Known(size))
                    if body_bytes + length < size && body.is_ready() =>
                {
                    More::Follows
                }
                _ => More::Ends,
            };
            if framing == Framing::Chunked {
                let _ = write!(head, "{length:x}\r\n");
            }
            match piece {
                Piece::File {
                    file,
                    range,
                    is_complete,
                } => {
                    let part = FilePart {
                        file: &file,
                        range,
                        is_complete,
                    };
                    edge.transfer
                        .send_file(socket, &head, part, more, patience)
                        .await?;
                    head.clear();
                    // Goes with what comes next.
                    head.extend_from_slice(chunk_end);
                }
                Piece::Bytes(bytes) => {
                    head.extend_from_slice(&bytes);
                    head.extend_from_slice(chunk_end);
                    edge.transfer.send(socket, &head, more, patience).await?;
                    head.clear();
                }
            }
            body_bytes += length;
            metrics::add(Counter::BytesSent, length);
        }
        if framing == Framing::Chunked {
            head.extend_from_slice(b"0\r\n\r\n");
        }
        if !head.is_empty() {
            edge.transfer
                .send(socket, &head, More::Ends, patience)
                .await?;
        }
        match announced {
            // Of a HEAD's answer only the length is sent.
            Length::Known(size) if body_bytes != size && body_bytes != 0 => {
                Err(DeliverError::Length {
                    sent: body_bytes,
                    announced: size,
                })
            }
            _ => Ok(()),
        }
    };
    match sending.await {
        Ok(()) => Ok(Delivered {
            body_bytes,
            afterwards,
        }),
        Err(cause) => {
            metrics::add(Counter::ResponsesCut, 1);
            if framing == Framing::UntilClose {
                // A proper close would make half a body look whole.
                socket.reset_on_close();
            }
            Err(Cut { body_bytes, cause })
        }
    }
}

fn encode_head(
    response: &Response,
    version: Version,
    framing: Framing,
    afterwards: Afterwards,
) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    head.extend_from_slice(b"HTTP/1.1 ");
    append_number(&mut head, u64::from(response.status));
    head.push(b' ');
    head.extend_from_slice(reason(response.status).as_bytes());
    head.extend_from_slice(b"\r\n");
    date::append(&mut head);
    head.extend_from_slice(&response.fields);
    match (framing, response.length) {
        (Framing::Chunked, _) => head.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        (_, Length::Known(size)) => {
            head.extend_from_slice(b"Content-Length: ");
            append_number(&mut head, size);
            head.extend_from_slice(b"\r\n");
        }
        _ => {}
    }
    match (afterwards, version) {
        (Afterwards::Close, _) => head.extend_from_slice(b"Connection: close\r\n"),
        (Afterwards::KeepAlive, Version::Http10) => {
            head.extend_from_slice(b"Connection: keep-alive\r\n")
        }
        (Afterwards::KeepAlive, Version::Http11) => {}
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// In decimal, without the machinery of formatting: each answer has two.
fn append_number(text: &mut Vec<u8>, number: u64) {
    let start = text.len();
    let mut rest = number;
    loop {
        let digit = u8::try_from(rest % 10).unwrap_or_default();
        text.push(b'0' + digit);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    text.get_mut(start..).unwrap_or_default().reverse();
}

const fn reason(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_everybody_writes_them() {
        for number in [0, 1, 9, 10, 200, 65_536, 1_000_000, u64::MAX] {
            let mut text = b"x".to_vec();
            append_number(&mut text, number);
            assert_eq!(text, format!("x{number}").as_bytes());
        }
    }
}
