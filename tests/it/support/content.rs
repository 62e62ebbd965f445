//! Bytes that tests send and expect: small ones in memory, large ones made when they are read.

use std::{
    fmt::{self, Write as _},
    io::{self, Read},
    sync::Arc,
};

use ring::digest::{Context, SHA256, SHA512};

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

impl fmt::Debug for Content {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", self.size())
    }
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

    pub fn sha512(&self) -> String {
        let mut hash = Context::new(&SHA512);
        hash.update(&self.bytes());
        format!("sha512:{}", hex(hash.finish().as_ref()))
    }

    /// In gzip (RFC 1952), as large as before: nothing here is about compression.
    pub fn gzip(&self) -> Self {
        let bytes = self.bytes();
        let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
        let mut rest = bytes.as_slice();
        loop {
            let block;
            (block, rest) = rest.split_at(rest.len().min(65_535));
            // Stored as it is (RFC 1951 §3.2.4).
            let length = block.len() as u16;
            packed.push(u8::from(rest.is_empty()));
            packed.extend_from_slice(&length.to_le_bytes());
            packed.extend_from_slice(&(!length).to_le_bytes());
            packed.extend_from_slice(block);
            if rest.is_empty() {
                break;
            }
        }
        packed.extend_from_slice(&crc32(&bytes).to_le_bytes());
        packed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        Self::of(packed)
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
    let skip = (offset % 8) as usize;
    let first = word(seed, offset / 8).to_le_bytes();
    let head = buffer.len().min((8 - skip) % 8);
    let (start, rest) = buffer.split_at_mut(head);
    start.copy_from_slice(&first[skip..][..head]);
    for (index, piece) in (offset.div_ceil(8)..).zip(rest.chunks_mut(8)) {
        let word = word(seed, index).to_le_bytes();
        piece.copy_from_slice(&word[..piece.len()]);
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

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
        crc
    })
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
