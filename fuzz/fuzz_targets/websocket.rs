#![no_main]

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use tidegate::platform::{
    messages::Incoming,
    session::{Bounds, Socket},
};
use tidegate_fuzz::cuts;

fuzz_target!(|data: &[u8]| {
    let whole = read(data, data.len());
    for cut in cuts(data.len()) {
        assert_eq!(read(data, cut), whole, "cut at {cut}");
    }
});

/// What a session makes of the bytes: its messages, and how it ended.
fn read(data: &[u8], cut: usize) -> Vec<String> {
    let bounds = Bounds {
        message_bytes: 1000,
        silence: Duration::MAX,
    };
    let pieces = [data.get(cut..), data.get(..cut)].map(Option::unwrap_or_default);
    let mut socket = Socket::new(Feed(pieces.to_vec()), bounds);
    let mut seen = Vec::new();
    loop {
        match socket.next_message() {
            Ok(Some(Incoming::Answer { to, response })) => seen.push(format!(
                "{to} {} {} {:?}",
                response.status,
                response.body.expose(),
                response.fields
            )),
            Ok(Some(other)) => seen.push(format!("{other:?}")),
            Ok(None) => {}
            Err(end) => {
                seen.push(end.to_string());
                return seen;
            }
        }
    }
}

/// Pieces, the last one first, with nothing to be had between them; then the end.
struct Feed<'a>(Vec<&'a [u8]>);

impl Read for Feed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(piece) = self.0.last_mut() else {
            return Ok(0);
        };
        if piece.is_empty() {
            self.0.pop();
            return Err(io::ErrorKind::WouldBlock.into());
        }
        piece.read(buffer)
    }
}

impl Write for Feed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
