#![no_main]

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use libfuzzer_sys::fuzz_target;
use rsa::pkcs8::DecodePublicKey;
use tidegate::platform::packet::PrivateKey;

static KEY: LazyLock<PrivateKey> = LazyLock::new(PrivateKey::generate);

/// Session keys of all sizes from 0 to 32, wrapped as they should be.
static WRAPPED: LazyLock<Vec<String>> = LazyLock::new(|| {
    let der = STANDARD.decode(KEY.public_key()).expect("Base64");
    let public = rsa::PublicKey::from_public_key_der(&der).expect("our own key");
    (0..=32)
        .map(|size| {
            STANDARD.encode(
                public
                    .pkcs1v15_encrypt(&vec![7; size])
                    .expect("it is short"),
            )
        })
        .collect()
});

fuzz_target!(|data: &[u8]| {
    // As a whole.
    if let Ok(text) = str::from_utf8(data) {
        assert!(
            KEY.decrypt(text).is_err(),
            "{text} is no packet of this key"
        );
    }
    // As what is behind a good key.
    let Some((size, content)) = data.split_first() else {
        return;
    };
    let size = usize::from(*size) % WRAPPED.len();
    let packet = format!(r"1\P\{}\{}", WRAPPED[size], STANDARD.encode(content));
    if let Ok(plain) = KEY.decrypt(&packet) {
        assert!(matches!(size, 16 | 24 | 32));
        assert!(content.len() % 16 == 0 && plain.expose().len() < content.len());
        // Nothing is left out between two tokens.
        assert_eq!(KEY.decrypt(&packet.replace('\\', "\\\\")), Ok(plain));
    }
});
