//! Bytes that tests send and expect: small ones in memory, large ones made when they are read.

use std::{
    fmt::Write as _,
    io::{self, Read},
    sync::Arc,
};

use ring::digest::{Context, SHA256};

/// What a blob or a manifest consists of.
#[derive(Clone)]
pub enum Content {
    Bytes(Arc<[u8]>),
    /// Incompressible, the same for the same seed, readable from any offset: half a gigabyte needs no memory.
    Generated {
        seed: u64,
        size: u64,
    },
}

impl Content {
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self::Bytes(bytes.as_ref().into())
    }

    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Generated { size, .. } => *size,
        }
    }

    /// Reads from `start` to `end` (not included).
    pub fn range(&self, start: u64, end: u64) -> ContentReader {
        ContentReader {
            content: self.clone(),
            position: start,
            end: end.min(self.size()),
        }
    }

    pub fn reader(&self) -> ContentReader {
        self.range(0, self.size())
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.reader()
            .read_to_end(&mut bytes)
            .expect("content in memory is readable");
        bytes
    }

    pub fn digest(&self) -> String {
        let mut hash = Hash::new();
        io::copy(&mut self.reader(), &mut hash).expect("content in memory is readable");
        hash.digest()
    }
}

pub struct ContentReader {
    content: Content,
    position: u64,
    end: u64,
}

impl Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = (self.end - self.position.min(self.end)).min(buffer.len() as u64) as usize;
        let buffer = &mut buffer[..wanted];
        match &self.content {
            Content::Bytes(bytes) => {
                let start = self.position as usize;
                buffer.copy_from_slice(&bytes[start..start + wanted]);
            }
            Content::Generated { seed, .. } => generate(*seed, self.position, buffer),
        }
        self.position += wanted as u64;
        Ok(wanted)
    }
}

/// SplitMix64 over the index of each word, so that any offset can be made without those before it.
fn generate(seed: u64, offset: u64, buffer: &mut [u8]) {
    let mut index = offset / 8;
    let mut skip = (offset % 8) as usize;
    let mut rest = buffer;
    while !rest.is_empty() {
        let word = word(seed, index).to_le_bytes();
        let count = rest.len().min(8 - skip);
        let (now, later) = rest.split_at_mut(count);
        now.copy_from_slice(&word[skip..skip + count]);
        (rest, skip, index) = (later, 0, index + 1);
    }
}

fn word(seed: u64, index: u64) -> u64 {
    let mut word = seed
        .wrapping_mul(0xa076_1d64_78bd_642f)
        .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// sha256 of what is written to it.
pub struct Hash(Context);

impl Hash {
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub fn digest(self) -> String {
        format!("sha256:{}", hex(self.0.finish().as_ref()))
    }
}

impl io::Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn digest(bytes: &[u8]) -> String {
    Content::of(bytes).digest()
}

/// sha256 without the algorithm's name.
pub fn sha256_hex(text: &str) -> String {
    hex(ring::digest::digest(&SHA256, text.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
