//! The chunked transfer coding (RFC 9112 §7.1), taken off piece by piece. No chunk is ever held.

/// Longer ones are refused: nobody sends that much, and skipping must end. A guess.
const MAX_EXTENSION_SIZE: usize = 8 * 1024;
const MAX_TRAILERS_SIZE: usize = 8 * 1024;

/// As many as a `u64` has; leading zeros count.
const MAX_SIZE_DIGITS: u8 = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChunkError {
    #[error("malformed chunk: {reason}")]
    Malformed { reason: &'static str },
    #[error("chunk extension or trailers are too long")]
    TooLong,
}

/// Decodes one body. Extensions and trailers are skipped: nothing here uses them.
#[derive(Clone, Debug)]
pub struct ChunkDecoder {
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Size {
        size: u64,
        digits: u8,
    },
    /// Blanks between the size and what may follow it.
    AfterSize {
        size: u64,
        skipped: usize,
    },
    Extension {
        size: u64,
        skipped: usize,
    },
    SizeLineFeed {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataReturn,
    DataLineFeed,
    /// At the start of a trailer line, or of the empty line that ends all.
    TrailerStart {
        skipped: usize,
    },
    Trailer {
        skipped: usize,
    },
    TrailerLineFeed {
        skipped: usize,
    },
    LastLineFeed,
    Done,
}

const FIRST: State = State::Size { size: 0, digits: 0 };

impl Default for ChunkDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl ChunkDecoder {
    pub const fn new() -> Self {
        Self { state: FIRST }
    }

    /// How many bytes of `input` were used up, and the data among them. Call again with the rest; it is
    /// over when `is_done`, and more input is needed when everything was used up without.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Result<(usize, &'a [u8]), ChunkError> {
        let mut consumed = 0;
        loop {
            if let State::Data { left } = self.state {
                let rest = input.get(consumed..).unwrap_or_default();
                let data = match usize::try_from(left) {
                    Ok(left) => rest.get(..left).unwrap_or(rest),
                    Err(_) => rest,
                };
                self.state = match left - data.len() as u64 {
                    0 => State::DataReturn,
                    left => State::Data { left },
                };
                return Ok((consumed + data.len(), data));
            }
            let (false, Some(&byte)) = (self.is_done(), input.get(consumed)) else {
                return Ok((consumed, &[]));
            };
            self.state = self.state.after(byte)?;
            consumed += 1;
        }
    }

    /// The last chunk and the trailers are over; what follows is the next message.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }
}

impl State {
    /// One byte of everything that is not data.
    fn after(self, byte: u8) -> Result<Self, ChunkError> {
        use State::{
            AfterSize, Data, DataLineFeed, DataReturn, Done, Extension, LastLineFeed, Size,
            SizeLineFeed, Trailer, TrailerLineFeed, TrailerStart,
        };
        Ok(match (self, byte) {
            (Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == MAX_SIZE_DIGITS {
                    return Err(malformed("its size has more than 16 digits"));
                }
                Size {
                    size: size << 4 | hex_value(byte),
                    digits: digits + 1,
                }
            }
            (Size { digits: 0, .. }, _) => return Err(malformed("no size")),
            (Size { size, .. } | AfterSize { size, .. } | Extension { size, .. }, b'\r') => {
                SizeLineFeed { size }
            }
            (Size { size, .. }, b' ' | b'\t') => AfterSize { size, skipped: 1 },
            (AfterSize { size, skipped }, b' ' | b'\t') => AfterSize {
                size,
                skipped: one_more(skipped, MAX_EXTENSION_SIZE)?,
            },
            (Size { size, .. }, b';') => Extension { size, skipped: 1 },
            (AfterSize { size, skipped }, b';') => Extension { size, skipped },
            (Extension { size, skipped }, byte) if is_text(byte) => Extension {
                size,
                skipped: one_more(skipped, MAX_EXTENSION_SIZE)?,
            },
            (SizeLineFeed { size: 0 }, b'\n') => TrailerStart { skipped: 0 },
            (SizeLineFeed { size }, b'\n') => Data { left: size },
            (DataReturn, b'\r') => DataLineFeed,
            (DataLineFeed, b'\n') => FIRST,
            (TrailerStart { .. }, b'\r') => LastLineFeed,
            (Trailer { skipped }, b'\r') => TrailerLineFeed { skipped },
            (TrailerStart { skipped } | Trailer { skipped }, byte) if is_text(byte) => Trailer {
                skipped: one_more(skipped, MAX_TRAILERS_SIZE)?,
            },
            (TrailerLineFeed { skipped }, b'\n') => TrailerStart { skipped },
            (LastLineFeed, b'\n') => Done,
            (Size { .. } | AfterSize { .. }, _) => {
                return Err(malformed("no hex digit in its size"));
            }
            (Extension { .. }, _) => return Err(malformed("a control byte in its extension")),
            (SizeLineFeed { .. }, _) => return Err(malformed("no line end after its size")),
            (DataReturn | DataLineFeed, _) => return Err(malformed("longer than its size")),
            (TrailerStart { .. } | Trailer { .. }, _) => {
                return Err(malformed("a control byte in the trailers"));
            }
            (TrailerLineFeed { .. } | LastLineFeed, _) => {
                return Err(malformed("a bare carriage return in the trailers"));
            }
            (Data { .. } | Done, _) => unreachable!("{self:?} takes no framing"),
        })
    }
}

fn hex_value(digit: u8) -> u64 {
    u64::from(match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    })
}

/// Everything but control bytes; a line feed is one of them.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

fn one_more(skipped: usize, most: usize) -> Result<usize, ChunkError> {
    if skipped < most {
        Ok(skipped + 1)
    } else {
        Err(ChunkError::TooLong)
    }
}

const fn malformed(reason: &'static str) -> ChunkError {
    ChunkError::Malformed { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data, and how much of the input was the body; `None` for a body without end.
    fn decode(input: &[u8], piece_size: usize) -> Result<(Vec<u8>, Option<usize>), ChunkError> {
        let mut decoder = ChunkDecoder::new();
        let mut data = Vec::new();
        let mut used = 0;
        for piece in input.chunks(piece_size) {
            let mut rest = piece;
            while !rest.is_empty() && !decoder.is_done() {
                let (consumed, part) = decoder.decode(rest)?;
                assert!(consumed > 0, "it must go on");
                data.extend_from_slice(part);
                used += consumed;
                rest = rest.get(consumed..).unwrap_or_default();
            }
        }
        Ok((data, decoder.is_done().then_some(used)))
    }

    #[test]
    fn bodies_are_decoded_however_they_are_cut() {
        let long_extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(MAX_EXTENSION_SIZE - 1));
        let long_trailers = format!("0\r\n{}\r\n\r\n", "x".repeat(MAX_TRAILERS_SIZE));
        for (input, data, rest) in [
            ("0\r\n\r\n", "", 0),
            ("5\r\nhello\r\n0\r\n\r\n", "hello", 0),
            (
                "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\nGET /",
                "hello world",
                5,
            ),
            ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789", 0),
            ("a\r\n0123456789\r\n000\r\n\r\n", "0123456789", 0),
            ("0000000000000001\r\nx\r\n0\r\n\r\n", "x", 0),
            ("1;a=b;c=\"d e\"\r\nx\r\n0;e\r\n\r\n", "x", 0),
            ("1 \t;a\r\nx\r\n0  \r\n\r\n", "x", 0),
            ("1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n", "\r\n", 0),
            ("1\r\nx\r\n0\r\nA: b\r\nC: \td\r\n\r\nrest", "x", 4),
            (&long_extension, "a", 0),
            (&long_trailers, "", 0),
        ] {
            for piece_size in [1, 2, 3, 7, 100_000] {
                let decoded = decode(input.as_bytes(), piece_size);
                let expected = (data.as_bytes().to_vec(), Some(input.len() - rest));
                assert_eq!(decoded, Ok(expected), "{input:?} by {piece_size}");
            }
        }
    }

    #[test]
    fn bodies_that_end_early_are_not_done() {
        let whole = b"5;a\r\nhello\r\n0\r\nA: b\r\n\r\n";
        for size in 0..whole.len() {
            let part = whole.get(..size).unwrap_or_default();
            assert!(matches!(decode(part, 100), Ok((_, None))), "{size}");
        }
    }

    #[test]
    fn malformed_bodies_are_refused() {
        let long_extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(MAX_EXTENSION_SIZE));
        let long_blanks = format!("1{}\r\na\r\n0\r\n\r\n", " ".repeat(MAX_EXTENSION_SIZE + 1));
        let long_trailers = format!("0\r\n{}\r\n", "A: b\r\n".repeat(MAX_TRAILERS_SIZE / 4 + 1));
        for input in [
            "\r\n",
            "x\r\n",
            ";a\r\n",
            " 1\r\nx\r\n",
            "-1\r\nx\r\n",
            "+1\r\nx\r\n",
            "0x1\r\nx\r\n",
            "1_0\r\nx\r\n",
            "1 1\r\nx\r\n",
            "1\nx\r\n",
            "1\rx\r\n",
            "1;a\nx\r\n",
            "1;\0\r\nx\r\n",
            "00000000000000001\r\nx\r\n",
            "10000000000000000\r\n",
            "1\r\nxx\r\n",
            "1\r\nx\n",
            "1\r\nx\rx",
            "1\r\nx0\r\n\r\n",
            "0\r\n\n",
            "0\r\nA: b\n\r\n",
            "0\r\nA: b\r\r\n",
            "0\r\nA: b\0\r\n",
            "0\r\n\rx",
            &long_extension,
            &long_blanks,
            &long_trailers,
        ] {
            for piece_size in [1, 100_000] {
                assert!(decode(input.as_bytes(), piece_size).is_err(), "{input:?}");
            }
        }
    }

    #[test]
    fn the_largest_size_is_only_a_number() {
        let mut decoder = ChunkDecoder::new();
        let head = b"ffffffffffffffff\r\n";
        assert_eq!(decoder.decode(head), Ok((head.len(), &[][..])));
        assert_eq!(decoder.decode(b"abc"), Ok((3, &b"abc"[..])));
    }
}
