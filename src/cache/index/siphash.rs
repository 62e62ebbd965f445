//! SipHash (Aumasson, Bernstein 2012): a keyed hash of short text.
//!
//! What is hashed here comes from outside and the hashes are kept in a file, so nobody may be able to choose what
//! collides, and a new compiler may not change them: std's keyed hash promises only the former. One round for each
//! word and three at the end are what std uses, too.

use std::{
    array,
    hash::{BuildHasher as _, RandomState},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SipKeys(pub(super) [u64; 2]);

impl SipKeys {
    pub(super) fn random() -> Self {
        let random = || RandomState::new().hash_one(());
        Self([random(), random()])
    }

    pub(super) fn hash(self, text: &[u8]) -> u64 {
        sip::<1, 3>(self.0, text)
    }
}

fn sip<const WORD_ROUNDS: usize, const END_ROUNDS: usize>(keys: [u64; 2], text: &[u8]) -> u64 {
    let [k0, k1] = keys;
    let mut state = State([
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ]);
    let (words, rest) = text.as_chunks::<8>();
    for word in words {
        state.take::<WORD_ROUNDS>(u64::from_le_bytes(*word));
    }
    // The last word is what is left over, and the length's low byte at its top.
    let mut last: [u8; 8] = array::from_fn(|index| rest.get(index).copied().unwrap_or(0));
    let [.., top] = &mut last;
    *top = text.len().to_le_bytes()[0];
    state.take::<WORD_ROUNDS>(u64::from_le_bytes(last));
    state.0[2] ^= 0xff;
    state.rounds::<END_ROUNDS>();
    state.0.into_iter().fold(0, |hash, word| hash ^ word)
}

struct State([u64; 4]);

impl State {
    fn take<const ROUNDS: usize>(&mut self, word: u64) {
        self.0[3] ^= word;
        self.rounds::<ROUNDS>();
        self.0[0] ^= word;
    }

    fn rounds<const COUNT: usize>(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.0;
        for _ in 0..COUNT {
            a = a.wrapping_add(b);
            b = b.rotate_left(13) ^ a;
            a = a.rotate_left(32);
            c = c.wrapping_add(d);
            d = d.rotate_left(16) ^ c;
            a = a.wrapping_add(d);
            d = d.rotate_left(21) ^ a;
            c = c.wrapping_add(b);
            b = b.rotate_left(17) ^ c;
            c = c.rotate_left(32);
        }
        self.0 = [a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of the authors' reference implementation: key 00 01 … 0f, text 00 01 02 ….
    #[test]
    fn the_reference_vectors_hold() {
        let keys = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let text: Vec<u8> = (0..15).collect();
        for (length, hash) in [
            (0, 0x726f_db47_dd0e_0e31),
            (1, 0x74f8_39c5_93dc_67fd),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
        ] {
            assert_eq!(sip::<2, 4>(keys, &text[..length]), hash, "{length} bytes");
        }
    }

    #[test]
    fn it_is_the_hash_that_std_uses() {
        use std::hash::{DefaultHasher, Hasher as _};
        for text in ["", "docker.io", "registry.example.com:5000"] {
            let mut hasher = DefaultHasher::new();
            hasher.write(text.as_bytes());
            assert_eq!(
                SipKeys([0, 0]).hash(text.as_bytes()),
                hasher.finish(),
                "{text}"
            );
        }
    }
}
