#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use monoio_codec::{Decoded, Decoder};
use monoio_http::h1::codec::decoder::ChunkedBodyDecoder;
use tidegate::http::{ChunkDecoder, ChunkError};

fuzz_target!(|input: &[u8]| {
    // The first byte says how the rest is cut.
    let Some((&first, input)) = input.split_first() else {
        return;
    };
    let ours = Decoding::of(input, input.len().max(1));
    assert_eq!(Decoding::of(input, usize::from(first) + 1), ours);
    assert_eq!(Decoding::of(input, 1), ours);
    printing_and_parsing_gives_the_same(&ours, usize::from(first) + 1);
    compare(input, &ours);
});

/// All that is seen of a body.
#[derive(PartialEq, Debug)]
struct Decoding {
    data: Vec<u8>,
    framing: Vec<u8>,
    end: End,
}

#[derive(PartialEq, Debug)]
enum End {
    Done,
    Open,
    Failed(ChunkError),
}

impl Decoding {
    fn of(input: &[u8], piece_size: usize) -> Self {
        let mut decoder = ChunkDecoder::new();
        let (mut data, mut framing) = (Vec::new(), Vec::new());
        for mut piece in input.chunks(piece_size) {
            while !piece.is_empty() && !decoder.is_done() {
                match decoder.decode(piece) {
                    Ok((consumed, part)) => {
                        assert!(consumed > 0, "it must go on");
                        // Data is always the end of what was consumed.
                        assert!(piece[..consumed].ends_with(part));
                        framing.extend_from_slice(&piece[..consumed - part.len()]);
                        data.extend_from_slice(part);
                        piece = &piece[consumed..];
                    }
                    // The framing before a fault is consumed or not, as the input was cut.
                    Err(error) => {
                        return Self {
                            data,
                            framing: Vec::new(),
                            end: End::Failed(error),
                        };
                    }
                }
            }
        }
        let end = match decoder.is_done() {
            true => End::Done,
            false => End::Open,
        };
        Self { data, framing, end }
    }

    /// Reads the framing line by line (RFC 9112 §7.1), and says whether there is more than sizes in it.
    fn has_extension_or_trailer(&self) -> bool {
        let framing = str::from_utf8(&self.framing).unwrap_or_else(|error| {
            let (good, _) = self.framing.split_at(error.valid_up_to());
            str::from_utf8(good).expect("it is valid up to there")
        });
        if framing.len() < self.framing.len() {
            return true; // Only they may have such bytes.
        }
        let mut lines = framing.split("\r\n");
        let mut has_more = false;
        loop {
            let line = lines.next().expect("a size");
            assert!(!line.contains(['\r', '\n']));
            let rest = line.trim_start_matches(|digit: char| digit.is_ascii_hexdigit());
            let digits = &line[..line.len() - rest.len()];
            assert!((1..=16).contains(&digits.len()));
            let extension = rest.trim_start_matches([' ', '\t']);
            assert!(extension.is_empty() || extension.starts_with(';'));
            has_more |= !rest.is_empty();
            if digits.bytes().all(|digit| digit == b'0') {
                break;
            }
            assert_eq!(lines.next(), Some(""), "a line ends the data");
        }
        loop {
            let line = lines.next().expect("an empty line ends the trailers");
            assert!(!line.contains(['\r', '\n']));
            if line.is_empty() {
                break;
            }
            has_more = true;
        }
        assert_eq!((lines.next(), lines.next()), (Some(""), None));
        has_more
    }
}

fn printing_and_parsing_gives_the_same(decoding: &Decoding, chunk_size: usize) {
    let mut text = Vec::new();
    for chunk in decoding.data.chunks(chunk_size) {
        text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        text.extend_from_slice(chunk);
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"0\r\n\r\n");
    let again = Decoding::of(&text, text.len());
    assert_eq!(again.end, End::Done);
    assert_eq!(again.data, decoding.data);
    assert!(!again.has_extension_or_trailer());
    assert!(
        matches!(theirs(&text), Theirs::Done { data, size } if data == decoding.data && size == text.len())
    );
}

enum Theirs {
    Done { data: Vec<u8>, size: usize },
    Open,
    Failed,
}

fn theirs(input: &[u8]) -> Theirs {
    let mut buffer = BytesMut::from(input);
    let mut decoder = ChunkedBodyDecoder::default();
    let mut data = Vec::new();
    loop {
        match decoder.decode(&mut buffer) {
            Ok(Decoded::Some(Some(chunk))) => data.extend_from_slice(&chunk),
            Ok(Decoded::Some(None)) => {
                let size = input.len() - buffer.len();
                return Theirs::Done { data, size };
            }
            Ok(_) => return Theirs::Open,
            Err(_) => return Theirs::Failed,
        }
    }
}

fn compare(input: &[u8], ours: &Decoding) {
    match (&ours.end, theirs(input)) {
        (End::Done, Theirs::Done { data, size }) => {
            assert_eq!(ours.data, data);
            assert_eq!(ours.data.len() + ours.framing.len(), size);
            assert!(!ours.has_extension_or_trailer());
        }
        // It knows neither extensions nor trailers.
        (End::Done, Theirs::Failed) => assert!(ours.has_extension_or_trailer()),
        (End::Failed(error), Theirs::Done { .. }) => assert!(
            [
                // An empty line is no size (RFC 9112 §7.1), but the end of the body to it.
                "no size",
                // Leading zeros without end; the number is no larger for them.
                "its size has more than 16 digits",
            ]
            .into_iter()
            .any(|reason| *error == ChunkError::Malformed { reason }),
            "only we refuse: {error}"
        ),
        // It waits for whole chunks, and only then looks what they are.
        (End::Open | End::Failed(_), Theirs::Open | Theirs::Failed) => {}
        (End::Done, Theirs::Open) => panic!("it waits for more"),
        (End::Open, Theirs::Done { .. }) => panic!("it is done"),
    }
}
