//! Digests (image-spec, descriptor.md#digests). sha256 and sha512 are known: what cannot be verified is
//! not served.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256, Sha512};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

/// Names content by its hash. Small enough to be copied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    #[error("`{text}` is not a digest; it should read sha256: and 64 lower-case hex digits")]
    Malformed { text: String },
    #[error("digests by {algorithm} cannot be verified here; sha256 and sha512 can")]
    UnknownAlgorithm { algorithm: String },
}

impl Digest {
    pub fn of(content: &[u8]) -> Self {
        Self::Sha256(Sha256::digest(content).into())
    }

    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(hash) => hash,
            Self::Sha512(hash) => hash,
        }
    }

    pub fn hex(&self) -> String {
        Hex::of(self.as_bytes()).as_str().to_owned()
    }

    /// As `Display` writes it, without the machinery of formatting: each answer names a digest.
    pub fn append_to(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(self.algorithm().as_str().as_bytes());
        text.push(b':');
        text.extend_from_slice(Hex::of(self.as_bytes()).as_str().as_bytes());
    }

    /// Whether `content` is what this digest names.
    pub fn matches(&self, content: &[u8]) -> bool {
        let mut hasher = Hasher::new(self.algorithm());
        hasher.update(content);
        hasher.finish() == *self
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let malformed = || DigestError::Malformed {
            text: text.chars().take(200).collect(),
        };
        if let Some(encoded) = text.strip_prefix("sha256:") {
            return decode_hex(encoded).map(Self::Sha256).ok_or_else(malformed);
        }
        let (algorithm, encoded) = text.split_once(':').ok_or_else(malformed)?;
        match algorithm {
            "sha512" => decode_hex(encoded).map(Self::Sha512).ok_or_else(malformed),
            _ if is_algorithm(algorithm) && is_encoded(encoded) => {
                Err(DigestError::UnknownAlgorithm {
                    algorithm: algorithm.chars().take(64).collect(),
                })
            }
            _ => Err(malformed()),
        }
    }
}

fn decode_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let value = |byte: u8| DIGITS.get(usize::from(byte)).copied().unwrap_or(NO_DIGIT);
    let mut hash = [0; N];
    // Looked at once at the end: that some byte is no digit is the exception.
    let mut seen = 0;
    for (byte, [high, low]) in hash.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
        let (high, low) = (value(*high), value(*low));
        seen |= high | low;
        *byte = high << 4 | low;
    }
    (seen < NO_DIGIT).then_some(hash)
}

const NO_DIGIT: u8 = 16;

/// What each byte is worth as a hex digit.
#[expect(
    clippy::indexing_slicing,
    reason = "computed when compiling, which an index out of bounds would end"
)]
static DIGITS: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value as usize] as usize] = value;
        value += 1;
    }
    values
};

fn is_algorithm(text: &str) -> bool {
    !text.is_empty()
        && text.split(['+', '.', '_', '-']).all(|part| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        })
}

fn is_encoded(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-'))
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.algorithm().as_str())?;
        formatter.write_str(":")?;
        formatter.write_str(Hex::of(self.as_bytes()).as_str())
    }
}

/// Two hex digits for each byte of a hash, in one piece: each answer names a digest twice.
struct Hex {
    digits: [u8; 128],
    length: usize,
}

impl Hex {
    fn of(hash: &[u8]) -> Self {
        // Arithmetic instead of a table, which the compiler does for many bytes at once.
        let digit = |value: u8| value + b'0' + u8::from(value > 9) * (b'a' - b'0' - 10);
        let mut digits = [0; 128];
        for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(hash) {
            *pair = [digit(byte >> 4), digit(byte & 15)];
        }
        Self {
            digits,
            length: (2 * hash.len()).min(128),
        }
    }

    fn as_str(&self) -> &str {
        let digits = self.digits.get(..self.length).unwrap_or_default();
        str::from_utf8(digits).expect("hex digits are ASCII")
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Computes a digest piece by piece.
#[derive(Clone)]
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub fn update(&mut self, piece: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(piece),
            Self::Sha512(hasher) => hasher.update(piece),
        }
    }

    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_print_as_they_parse() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        let sha512 = format!("sha512:{}", "0a".repeat(64));
        for text in [EMPTY, sha512.as_str()] {
            let parsed: Digest = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn malformed_digests_are_refused() {
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:abc",
            &EMPTY.to_uppercase(),
            &EMPTY[..70],
            &format!("{EMPTY}0"),
            &EMPTY.replace("e3", "g3"),
            "SHA256:00",
            "md5:../..",
        ] {
            assert!(
                matches!(text.parse::<Digest>(), Err(DigestError::Malformed { .. })),
                "{text}"
            );
        }
        assert!(matches!(
            "blake3:00ff".parse::<Digest>(),
            Err(DigestError::UnknownAlgorithm { .. })
        ));
    }

    #[test]
    fn content_matches_only_its_own_digest() {
        let digest: Digest = EMPTY.parse().unwrap_or_else(|error| panic!("{error}"));
        assert!(digest.matches(b""));
        assert!(!digest.matches(b"x"));
    }
}
