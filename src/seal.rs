//! Sealing: a secret at rest can be read only with the key file, and only in the record it was sealed for.
//!
//! ```text
//! sealed text = base64( nonce, 12 bytes ┊ ciphertext ┊ tag, 16 bytes )      ChaCha20-Poly1305 (RFC 8439)
//! ```
//! Nonces are random: with 96 bits, two of 2³² seals are the same with a chance below 2⁻³².

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

use crate::secret::Secret;

const KEY_SIZE: usize = 32;

pub struct SealingKey(LessSafeKey);

/// Why a private file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("{} can be read by other users; run: chmod 600 {}", path.display(), path.display())]
    Exposed { path: PathBuf },
    #[error("{} is not a key: it has to be 32 bytes", path.display())]
    KeyMalformed { path: PathBuf },
    #[error("{} cannot be used: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
}

/// Wrong key, another record's secret, or damage: the algorithm does not tell which.
#[derive(Debug, thiserror::Error)]
#[error("the seal does not fit the key and the record")]
pub struct UnsealError;

impl SealingKey {
    /// Who calls this holds the lock of the state folder, so that no other process creates the key meanwhile.
    pub fn load_or_create(path: &Path) -> Result<Self, SealError> {
        match Self::load(path) {
            Err(SealError::File { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
                let mut key = [0; KEY_SIZE];
                fill_random(&mut key);
                write_private(path, &key).map_err(|cause| SealError::File {
                    path: path.to_owned(),
                    cause,
                })?;
                Ok(Self::new(&key))
            }
            loaded => loaded,
        }
    }

    fn load(path: &Path) -> Result<Self, SealError> {
        let failed = |cause| SealError::File {
            path: path.to_owned(),
            cause,
        };
        let file = File::open(path).map_err(failed)?;
        ensure_private(&file, path)?;
        let mut bytes = Vec::with_capacity(KEY_SIZE + 1);
        // One more, to see that it is too long.
        let bound = KEY_SIZE as u64 + 1;
        file.take(bound).read_to_end(&mut bytes).map_err(failed)?;
        match bytes.as_slice().try_into() {
            Ok(key) => Ok(Self::new(key)),
            Err(_) => Err(SealError::KeyMalformed {
                path: path.to_owned(),
            }),
        }
    }

    fn new(key: &[u8; KEY_SIZE]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("the key has the size it needs");
        Self(LessSafeKey::new(key))
    }

    /// `context` is authenticated with the secret: it must be the same again to unseal it.
    pub fn seal(&self, secret: &Secret<String>, context: &str) -> String {
        let mut nonce = [0; NONCE_LEN];
        fill_random(&mut nonce);
        let mut ciphertext = secret.expose().as_bytes().to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context),
                &mut ciphertext,
            )
            .expect("the algorithm takes 256 GiB, more than a record can have");
        STANDARD_NO_PAD.encode([nonce.as_slice(), &ciphertext].concat())
    }

    pub fn unseal(&self, sealed: &str, context: &str) -> Result<Secret<String>, UnsealError> {
        let mut bytes = STANDARD_NO_PAD.decode(sealed).map_err(|_| UnsealError)?;
        let (nonce, ciphertext) = bytes
            .split_first_chunk_mut::<NONCE_LEN>()
            .ok_or(UnsealError)?;
        let secret = self
            .0
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(context),
                ciphertext,
            )
            .map_err(|_| UnsealError)?;
        let secret = str::from_utf8(secret).map_err(|_| UnsealError)?;
        Ok(Secret::new(secret.to_owned()))
    }
}

fn fill_random(bytes: &mut [u8]) {
    SystemRandom::new()
        .fill(bytes)
        .expect("the system has a random generator");
}

/// Whoever reads these files can pull in other people's names, and with their logins.
pub fn ensure_private(file: &File, path: &Path) -> Result<(), SealError> {
    const OTHERS_ACCESS: u32 = 0o077;
    let metadata = file.metadata().map_err(|cause| SealError::File {
        path: path.to_owned(),
        cause,
    })?;
    if metadata.mode() & OTHERS_ACCESS != 0 {
        return Err(SealError::Exposed {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// A private file, under its own name only when it is complete and on disk: half a key would look like a wrong one.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut growing = path.as_os_str().to_owned();
    growing.push(".new");
    let growing = PathBuf::from(growing);
    match fs::remove_file(&growing) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&growing)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&growing, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn secret(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    #[test]
    fn a_secret_is_unsealed_by_its_key_in_its_context_only() {
        let key = SealingKey::new(&[7; KEY_SIZE]);
        for text in ["", "hunter2", "é"] {
            let sealed = key.seal(&secret(text), "record-a");
            let opened = key.unseal(&sealed, "record-a");
            assert_eq!(opened.ok(), Some(secret(text)), "{text}");
            assert!(key.unseal(&sealed, "record-b").is_err(), "{text}");
            let other = SealingKey::new(&[8; KEY_SIZE]);
            assert!(other.unseal(&sealed, "record-a").is_err(), "{text}");
            assert_ne!(key.seal(&secret(text), "record-a"), sealed, "{text}");
        }
    }

    #[test]
    fn damaged_seals_are_refused() {
        let key = SealingKey::new(&[7; KEY_SIZE]);
        let sealed = key.seal(&secret("hunter2"), "record");
        for end in 0..sealed.len() {
            let cut = sealed.get(..end).unwrap_or_default();
            assert!(key.unseal(cut, "record").is_err(), "{cut}");
        }
        for text in ["***", "é", &format!("{sealed}AAAA")] {
            assert!(key.unseal(text, "record").is_err(), "{text}");
        }
    }

    #[test]
    fn the_key_is_created_once_and_private() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("seal.key");
        let leftover = folder.path().join("seal.key.new");
        fs::write(&leftover, "half a k").expect("the folder is ours");
        let load = || SealingKey::load_or_create(&path).unwrap_or_else(|error| panic!("{error}"));
        let sealed = load().seal(&secret("hunter2"), "record");
        assert!(load().unseal(&sealed, "record").is_ok());
        let metadata = fs::metadata(&path).expect("it was created");
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert!(!leftover.exists());
    }

    #[test]
    fn a_key_that_is_exposed_or_of_the_wrong_length_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("seal.key");
        for (mode, size, expected) in [
            (0o640, 32, "chmod 600"),
            (0o604, 32, "chmod 600"),
            (0o600, 0, "32 bytes"),
            (0o600, 31, "32 bytes"),
            (0o600, 33, "32 bytes"),
        ] {
            fs::write(&path, vec![7; size]).expect("the folder is ours");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
            let error = SealingKey::load_or_create(&path)
                .err()
                .unwrap_or_else(|| panic!("{mode:o}, {size} bytes: accepted"))
                .to_string();
            assert!(error.contains(expected), "{mode:o}, {size} bytes: {error}");
            assert!(error.contains("seal.key"), "{error}");
        }
    }
}
