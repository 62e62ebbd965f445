//! The random part of an ephemeral name.

use std::{fmt, str::FromStr};

use ring::rand::{SecureRandom, SystemRandom};

const LENGTH: usize = 12;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// Twelve characters of `[a-z0-9]`, 62 bits from the system's generator. Lower-case, because it is part of
/// a repository's name. Whoever has it may pull, so its `Debug` shows a few characters only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token([u8; LENGTH]);

#[derive(Debug, thiserror::Error)]
#[error("a token is {LENGTH} lower-case letters and digits")]
pub struct TokenError;

impl Token {
    pub fn random() -> Self {
        // The largest multiple of the alphabet's size: bytes above it would favour its first letters.
        const USABLE: u8 = 252;
        let generator = SystemRandom::new();
        let mut characters = ALPHABET.iter().cycle();
        let mut token = [0; LENGTH];
        for slot in &mut token {
            let byte = loop {
                let mut byte = [0];
                generator
                    .fill(&mut byte)
                    .expect("the system has a random generator");
                if byte[0] < USABLE {
                    break byte[0];
                }
            };
            *slot = *characters
                .nth(usize::from(byte))
                .expect("a cycle has no end");
        }
        Self(token)
    }

    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("a token is ASCII")
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let token: [u8; LENGTH] = text.as_bytes().try_into().map_err(|_| TokenError)?;
        if token
            .iter()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'))
        {
            Ok(Self(token))
        } else {
            Err(TokenError)
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}…", self.as_str().get(..4).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_print_as_they_parse_and_do_not_repeat() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1_000 {
            let token = Token::random();
            assert_eq!(token.to_string().parse::<Token>().ok(), Some(token));
            assert!(seen.insert(token), "{token} came twice");
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in [
            "",
            "0123456789a",
            "0123456789abc",
            "0123456789aB",
            "0123456789a/",
            "0123456789é",
        ] {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
    }
}
