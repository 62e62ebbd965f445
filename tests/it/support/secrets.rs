//! Secrets of a run, in every form in which they could get out, and a search for them.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use memchr::memmem;

/// Where a secret must not be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Forbidden {
    Everywhere,
    /// Clients are told it, and it is kept.
    InLogs,
}

#[derive(Default)]
pub struct Secrets(Vec<(String, String, Forbidden)>);

/// What a run has left, by the name under which a failure shows it.
#[derive(Default)]
pub struct Traces {
    /// Log lines, and what commands print.
    pub logs: Vec<(String, Vec<u8>)>,
    /// Bodies, and files.
    pub others: Vec<(String, Vec<u8>)>,
}

/// Shorter ones would be found by chance, in base64 above all.
const SHORTEST: usize = 12;

impl Secrets {
    /// Must be found nowhere.
    pub fn add(&mut self, name: &str, secret: &str) {
        self.put(name, secret, Forbidden::Everywhere);
    }

    /// Must be found in no log.
    pub fn add_for_logs(&mut self, name: &str, secret: &str) {
        self.put(name, secret, Forbidden::InLogs);
    }

    fn put(&mut self, name: &str, secret: &str, forbidden: Forbidden) {
        assert!(secret.len() >= SHORTEST, "{name} is too short to look for");
        let entry = (name.to_owned(), secret.to_owned(), forbidden);
        self.0.push(entry);
    }

    pub fn assert_are_nowhere(&self, traces: &Traces) {
        let mut found = Vec::new();
        for (name, secret, forbidden) in &self.0 {
            let others = match forbidden {
                Forbidden::Everywhere => traces.others.as_slice(),
                Forbidden::InLogs => &[],
            };
            for (form, text) in forms(secret) {
                let finder = memmem::Finder::new(&text);
                for (place, bytes) in traces.logs.iter().chain(others) {
                    if let Some(position) = finder.find(bytes) {
                        let around = position.saturating_sub(100)..bytes.len().min(position + 150);
                        let around = String::from_utf8_lossy(&bytes[around]).into_owned();
                        found.push(format!("{name} ({form}) in {place}: …{around}…"));
                    }
                }
            }
        }
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}

/// Each once, however many of them are the same.
fn forms(secret: &str) -> Vec<(&'static str, Vec<u8>)> {
    let mut forms: Vec<(&'static str, Vec<u8>)> = Vec::new();
    let mut add = |name, text: Vec<u8>| {
        if forms.iter().all(|(_, known)| *known != text) {
            forms.push((name, text));
        }
    };
    add("plain", secret.as_bytes().to_vec());
    let debug = format!("{secret:?}");
    add("debug", debug.trim_matches('"').as_bytes().to_vec());
    let json = serde_json::Value::from(secret).to_string();
    add("JSON", json.trim_matches('"').as_bytes().to_vec());
    let upper = percent_encode(secret, |byte| format!("%{byte:02X}"));
    add(
        "lower-case URL",
        percent_encode(secret, |byte| format!("%{byte:02x}")).into(),
    );
    add("query string", upper.replace("%20", "+").into());
    add("URL", upper.into());
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    add("hex", hex.into());
    // As a part of something longer it may start at any of three places in a group.
    for (skipped, name) in ["base64", "base64 after one", "base64 after two"]
        .into_iter()
        .enumerate()
    {
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let longer = [vec![0; skipped], secret.as_bytes().to_vec()].concat();
            let encoded = engine.encode(&longer);
            let start = (skipped * 8).div_ceil(6);
            // The last character may be another's, too.
            let end = longer.len() * 8 / 6;
            add(name, encoded[start..end].into());
        }
    }
    forms
}

fn percent_encode(text: &str, escape: impl Fn(u8) -> String) -> String {
    text.bytes()
        .map(
            |byte| match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                true => char::from(byte).to_string(),
                false => escape(byte),
            },
        )
        .collect()
}

/// The search itself must find what it looks for.
#[test]
fn secrets_are_found_in_all_their_forms() {
    let secret = "s3cret+of/some=length \"quoted\"";
    for hidden in [
        format!("password={secret};"),
        format!("{:?}", [secret]),
        serde_json::json!({"password": secret}).to_string(),
        URL_SAFE_NO_PAD.encode(format!("ada:{secret}")),
        STANDARD_NO_PAD.encode(format!("x:{secret}!")),
        STANDARD_NO_PAD.encode(format!("{secret}!!")),
        format!(
            "?password={}&x",
            percent_encode(secret, |byte| format!("%{byte:02X}"))
        ),
        format!(
            "?password={}&x",
            percent_encode(secret, |byte| format!("%{byte:02x}"))
        ),
        "s3cret%2Bof%2Fsome%3Dlength+%22quoted%22".to_owned(),
    ] {
        let is_found = forms(secret)
            .iter()
            .any(|(_, text)| memmem::find(hidden.as_bytes(), text).is_some());
        assert!(is_found, "{hidden}");
    }
}
