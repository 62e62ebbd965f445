#![no_main]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use libfuzzer_sys::fuzz_target;
use tidegate::credentials::DockerConfig;

fuzz_target!(|bytes: &[u8]| {
    let _ = DockerConfig::parse(bytes);

    // Whatever a password is, it comes back as it was in either way to write it, or is left out with a word, and no word
    // has it in it.
    let Ok(password) = str::from_utf8(bytes) else {
        return;
    };
    let auth = STANDARD.encode(format!("ada:{password}"));
    let plain =
        serde_json::json!({"auths": {"quay.io/acme": {"username": "ada", "password": password}}});
    let encoded = serde_json::json!({"auths": {"quay.io/acme": {"auth": auth}}});
    let (registry, repository) = (
        "quay.io".parse().expect("a registry"),
        "acme/app".parse().expect("a repository"),
    );
    for (file, expected) in [
        (plain, password),
        // Docker's padding.
        (encoded, password.trim_end_matches('\0')),
    ] {
        let text = file.to_string();
        let (config, warnings) =
            DockerConfig::parse(text.as_bytes()).expect("it is JSON of that shape");
        match config.login(&registry, &repository) {
            Some(login) => {
                assert_eq!(
                    (login.username.as_str(), login.password.expose().as_str()),
                    ("ada", expected)
                );
                assert!(warnings.is_empty(), "{warnings:?}");
            }
            None => assert!(expected.is_empty(), "{warnings:?}"),
        }
        if password.len() > 8 {
            assert!(!warnings.concat().contains(password));
            assert!(!format!("{config:?}").contains(password));
        }
    }
});
