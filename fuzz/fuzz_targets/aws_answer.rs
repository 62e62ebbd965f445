//! What AWS, and what stands for it, may answer: anything. Reading it never panics, what is read can be sent in a field,
//! and an error's words are one bounded line.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::aws::{
    EcrHost,
    answer::{assumed_role, authorization_token, caller_identity, error_text, lent_keys},
};

fuzz_target!(|text: &str| {
    for lent in [assumed_role(text), lent_keys(text)].into_iter().flatten() {
        assert!(!lent.keys.id.is_empty() && !lent.keys.secret.expose().is_empty());
    }
    if let Some(found) = authorization_token(text) {
        assert!(!found.password.expose().is_empty());
    }
    let error = error_text(None, text);
    for line in [error.code, error.message, caller_identity(text)].into_iter().flatten() {
        assert!(!line.contains('\n') && line.chars().count() <= 400, "{line}");
    }
    // A registry's name comes from callers too.
    if let Some(EcrHost::Private(host)) = EcrHost::parse(text) {
        assert!(text.starts_with(&host.account) && text.contains(host.region.as_str()));
    }
});
