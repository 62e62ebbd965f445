//! Names for credentials that say nothing about them, for the keys of caches.

use std::sync::LazyLock;

use ring::{hmac, rand::SystemRandom};

use crate::oci::Credentials;

/// No name of credentials: those are hex.
pub(super) const ANONYMOUS: &str = "anonymous";

/// The same for the same credentials as long as the process lives, also from one configuration to the next. Without
/// the key, which nobody has, a name that got into a log is no help to guess a password.
pub(super) fn of(credentials: &Credentials) -> String {
    static KEY: LazyLock<hmac::Key> = LazyLock::new(|| {
        hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .expect("the system has a random generator")
    });
    let mut mac = hmac::Context::with_key(&KEY);
    // Its length first, so that no letter can move from the user name to the password.
    mac.update(&credentials.username.len().to_le_bytes());
    mac.update(credentials.username.as_bytes());
    mac.update(credentials.password.expose().as_bytes());
    let tag = mac.sign();
    /// 128 bits: no two are the same by chance.
    const SIZE: usize = 16;
    let bytes = tag.as_ref().iter().take(SIZE);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn credentials_have_one_name_and_share_it_with_no_others() {
        let name = |username: &str, password: &str| {
            of(&Credentials {
                username: username.to_owned(),
                password: Secret::new(password.to_owned()),
            })
        };
        assert_eq!(name("ada", "hunter2"), name("ada", "hunter2"));
        assert_eq!(name("ada", "hunter2").len(), 32);
        for (username, password) in [
            ("ada", "hunter3"),
            ("adah", "unter2"),
            ("", "adahunter2"),
            ("adahunter2", ""),
        ] {
            let other = name(username, password);
            assert_ne!(other, name("ada", "hunter2"), "{username} {password}");
        }
    }
}
