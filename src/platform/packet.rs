//! The packet in which a Platform sends a login's secrets: encrypted for the pairing key of one endpoint.
//!
//! ```text
//! 1 \ P \ base64( session key, RSAES-PKCS1-v1_5 ) \ base64( UTF-8 JSON, AES-ECB, PKCS#7 padding )
//! ```
//! Nothing in it is authenticated, so what comes out is as good as the connection that the packet came by. Whoever could
//! tell the ways to fail apart would learn the session key from them (Bleichenbacher): so there is one error, and bad RSA
//! padding makes no error of its own but another session key, which then opens nothing.

use std::convert::Infallible;

use aes::{
    Aes128, Aes192, Aes256,
    cipher::{BlockCipherDecrypt, KeyInit, consts::U16},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ring::rand::{SecureRandom, SystemRandom};
use rsa::{
    pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey},
    rand_core::{TryCryptoRng, TryRng},
};
use zeroize::{Zeroize, Zeroizing};

use crate::secret::Secret;

/// The Platform knows this size only.
const KEY_BITS: usize = 2048;
const BLOCK_SIZE: usize = 16;

/// Wrong key, damage, or no packet: nobody is told which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the packet cannot be opened with the pairing keys of this endpoint")]
pub struct PacketError;

/// One endpoint's half that stays here.
#[derive(Clone)]
pub struct PrivateKey(rsa::PrivateKey);

impl PrivateKey {
    /// Takes a tenth of a second and more.
    pub fn generate() -> Self {
        let key = rsa::PrivateKey::new(&mut SystemRng, KEY_BITS)
            .expect("the size is a good one, and the system has a random generator");
        Self(key)
    }

    pub fn from_pkcs8(der: &[u8]) -> Option<Self> {
        rsa::PrivateKey::from_pkcs8_der(der).ok().map(Self)
    }

    /// In standard Base64.
    pub fn to_pkcs8(&self) -> Secret<String> {
        let der = self.0.to_pkcs8_der().expect("every RSA key has this form");
        Secret::new(STANDARD.encode(der.as_bytes()))
    }

    /// The half for the Platform: X.509 SubjectPublicKeyInfo in standard Base64.
    pub fn public_key(&self) -> String {
        let public = self.0.as_public_key();
        let der = public
            .to_public_key_der()
            .expect("every RSA key has this form");
        STANDARD.encode(der.as_bytes())
    }

    pub fn decrypt(&self, packet: &str) -> Result<Secret<String>, PacketError> {
        let (wrapped, mut content) = parse(packet).ok_or(PacketError)?;
        let session_key = self.0.pkcs1v15_decrypt_with_rng(&mut SystemRng, &wrapped);
        let session_key = Zeroizing::new(session_key.map_err(|_| PacketError)?);
        let plain = decrypt_content(&session_key, &mut content)
            .and_then(|plain| str::from_utf8(plain).ok())
            .map(|plain| Secret::new(plain.to_owned()));
        content.zeroize();
        plain.ok_or(PacketError)
    }
}

/// The wrapped session key and the encrypted content.
fn parse(packet: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut tokens = packet.split('\\').filter(|token| !token.is_empty());
    let (version, mode) = (tokens.next()?, tokens.next()?);
    let (wrapped, content) = (tokens.next()?, tokens.next()?);
    // `p` would be wrapped with a private key: anybody could open it.
    if tokens.next().is_some() || version != "1" || mode != "P" {
        return None;
    }
    Some((
        STANDARD.decode(wrapped).ok()?,
        STANDARD.decode(content).ok()?,
    ))
}

fn decrypt_content<'c>(session_key: &[u8], content: &'c mut [u8]) -> Option<&'c [u8]> {
    match session_key.len() {
        16 => decrypt_blocks(&Aes128::new_from_slice(session_key).ok()?, content)?,
        24 => decrypt_blocks(&Aes192::new_from_slice(session_key).ok()?, content)?,
        32 => decrypt_blocks(&Aes256::new_from_slice(session_key).ok()?, content)?,
        _ => return None,
    }
    without_padding(content)
}

fn decrypt_blocks(
    cipher: &impl BlockCipherDecrypt<BlockSize = U16>,
    content: &mut [u8],
) -> Option<()> {
    let (blocks, rest) = content.as_chunks_mut::<BLOCK_SIZE>();
    if !rest.is_empty() {
        return None;
    }
    for block in blocks {
        cipher.decrypt_block(block.into());
    }
    Some(())
}

/// PKCS#7: the last byte says how many are padding, and all of them are that byte.
fn without_padding(content: &[u8]) -> Option<&[u8]> {
    let last = *content.last()?;
    let count = usize::from(last);
    if !(1..=BLOCK_SIZE).contains(&count) {
        return None;
    }
    let (plain, padding) = content.split_at_checked(content.len().checked_sub(count)?)?;
    padding.iter().all(|byte| *byte == last).then_some(plain)
}

/// ring's generator, as the RSA crate wants it.
struct SystemRng;

impl TryRng for SystemRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        SystemRandom::new()
            .fill(bytes)
            .expect("the system has a random generator");
        Ok(())
    }
}

impl TryCryptoRng for SystemRng {}

#[cfg(test)]
impl PrivateKey {
    /// What a Platform would send.
    pub(super) fn encrypt_for_tests(&self, plain: &str) -> String {
        use aes::cipher::BlockCipherEncrypt;
        let session_key = [7; 16];
        let wrapped = self
            .0
            .as_public_key()
            .pkcs1v15_encrypt_with_rng(&mut SystemRng, &session_key)
            .expect("a session key is short enough");
        let cipher = Aes128::new_from_slice(&session_key).expect("the right size");
        let mut content = plain.as_bytes().to_vec();
        let count = BLOCK_SIZE - content.len() % BLOCK_SIZE;
        content.extend(std::iter::repeat_n(
            u8::try_from(count).expect("at most 16"),
            count,
        ));
        for block in content.as_chunks_mut::<BLOCK_SIZE>().0 {
            cipher.encrypt_block(block.into());
        }
        format!(
            r"1\P\{}\{}",
            STANDARD.encode(wrapped),
            STANDARD.encode(content)
        )
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    const JSON: &str = r#"{"userName":"me","password":"you","registry":"quay.io","discriminator":"container-reg"}"#;
    const SESSION_KEY: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    const ENCRYPTED: &str = "z3NwIqtw4EWWf0gpXcR0Njp+6DI84SRU0pcokSew9vt2Rv6M5lyEZqerzj3X6gfxgNnLgiISLF85969/qNWXevBa8ymug3MmK79rv2TeMyIYuIsHFQpo8we1EinzoTBZ";

    fn wrap(key: &PrivateKey, session_key: &[u8]) -> String {
        let public = key.0.as_public_key();
        let wrapped = public.pkcs1v15_encrypt_with_rng(&mut SystemRng, session_key);
        STANDARD.encode(wrapped.expect("a session key is short enough"))
    }

    #[test]
    fn the_documented_content_is_decrypted() {
        let mut content = STANDARD.decode(ENCRYPTED).expect("good Base64");
        let plain = decrypt_content(&SESSION_KEY, &mut content);
        assert_eq!(plain, Some(JSON.as_bytes()));
    }

    #[test]
    fn a_packet_is_opened_by_its_key_only() {
        let key = PrivateKey::generate();
        let wrapped = wrap(&key, &SESSION_KEY);
        let packet = format!(r"1\P\{wrapped}\{ENCRYPTED}");
        let opened = key.decrypt(&packet).expect("the right key");
        assert_eq!(opened.expose(), JSON);
        let kept = STANDARD.decode(key.to_pkcs8().expose()).expect("Base64");
        let loaded = PrivateKey::from_pkcs8(&kept).expect("its own form");
        assert!(loaded.decrypt(&packet).is_ok());
        assert!(PrivateKey::generate().decrypt(&packet).is_err());

        let public = key.public_key();
        assert!(
            public.starts_with("MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A"),
            "{public}"
        );
        assert_eq!(STANDARD.decode(&public).expect("Base64").len(), 294);

        let short = wrap(&key, &SESSION_KEY[..15]);
        let cut = &ENCRYPTED[..ENCRYPTED.len() - 4];
        let block = STANDARD.encode([7; BLOCK_SIZE]);
        for packet in [
            String::new(),
            format!(r"2\P\{wrapped}\{ENCRYPTED}"),
            format!(r"1\p\{wrapped}\{ENCRYPTED}"),
            format!(r"1\P\{wrapped}"),
            format!(r"1\P\{wrapped}\{ENCRYPTED}\{ENCRYPTED}"),
            format!(r"1\P\{wrapped}\***"),
            format!(r"1\P\***\{ENCRYPTED}"),
            format!(r"1\P\{short}\{ENCRYPTED}"),
            format!(r"1\P\{wrapped}\{cut}"),
            format!(r"1\P\{wrapped}\{block}"),
            format!(r"1\P\AAAA\{ENCRYPTED}"),
            format!(r"1\P\{}\{ENCRYPTED}", STANDARD.encode([0xff; 256])),
        ] {
            assert_eq!(key.decrypt(&packet).err(), Some(PacketError), "{packet}");
        }
        // Empty tokens are dropped (the other side's own rule).
        assert!(
            key.decrypt(&format!(r"\1\\P\{wrapped}\{ENCRYPTED}\"))
                .is_ok()
        );
    }

    #[test]
    fn session_keys_of_all_sizes_are_taken() {
        let key = PrivateKey::generate();
        for (size, encrypted) in [
            // `printf '{}' | openssl enc -aes-192-ecb -K 07…07 | base64`, and with -aes-256-ecb.
            (24, "DZfDm4yaJajgE9AbHWIPaQ=="),
            (32, "SH1D4KaiJZYHvzq0QX4GSQ=="),
        ] {
            let wrapped = wrap(&key, &vec![7; size]);
            let opened = key.decrypt(&format!(r"1\P\{wrapped}\{encrypted}"));
            assert_eq!(opened, Ok(Secret::new("{}".to_owned())), "{size}");
        }
    }

    /// The same from a program that shares no code with us.
    #[test]
    fn what_openssl_has_encrypted_is_opened() {
        let key = PrivateKey::generate();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let public = folder.path().join("pub.der");
        std::fs::write(&public, STANDARD.decode(key.public_key()).expect("Base64"))
            .expect("the folder is ours");
        let run = |arguments: &[&str], input: &[u8]| {
            let child = Command::new("openssl")
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            let Ok(mut child) = child else {
                assert!(
                    std::env::var_os("TIDEGATE_REAL").is_none(),
                    "there is no openssl"
                );
                eprintln!("left out: there is no openssl");
                return None;
            };
            let mut stdin = child.stdin.take().expect("it is piped");
            stdin.write_all(input).expect("it reads");
            drop(stdin);
            let output = child.wait_with_output().expect("it ends");
            assert!(output.status.success(), "{arguments:?}");
            Some(STANDARD.encode(output.stdout))
        };
        let public = public.display().to_string();
        let wrapping = [
            "pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey", &public,
        ];
        let encrypting = [
            "enc",
            "-aes-128-ecb",
            "-K",
            "000102030405060708090a0b0c0d0e0f",
        ];
        let Some(wrapped) = run(&wrapping, &SESSION_KEY) else {
            return;
        };
        let encrypted = run(&encrypting, JSON.as_bytes()).expect("it was there just now");
        assert_eq!(encrypted, ENCRYPTED);
        let opened = key.decrypt(&format!(r"1\P\{wrapped}\{encrypted}"));
        assert_eq!(opened, Ok(Secret::new(JSON.to_owned())));
    }
}
