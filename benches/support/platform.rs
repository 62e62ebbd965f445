//! A Seqera Platform: that of the tests, made of Debian's `python3-websockets` and `python3-cryptography`.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

use super::{client::Target, comes_true, servers::Server};

const ENDPOINT: &str = "https://api.platform.example";

/// The Platform of the tests, in a process of its own.
pub struct Platform {
    child: Child,
    control: SocketAddr,
    _lines: BufReader<ChildStdout>,
}

impl Platform {
    /// `None`, with a line about it: it lacks what it is made of.
    pub fn start() -> Option<Self> {
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/it/support/fake_platform.py"
        );
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut lines = BufReader::new(child.stdout.take()?);
        let mut line = String::new();
        lines.read_line(&mut line).ok()?;
        let control = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("control=")?.parse().ok());
        let Some(control) = control else {
            let _ = child.wait();
            println!("left out: python3-websockets and python3-cryptography are not installed");
            return None;
        };
        Some(Self {
            child,
            control,
            _lines: lines,
        })
    }

    /// For tidegate; more lines of the same section may follow.
    pub fn settings() -> String {
        format!("[platform]\nendpoints = [\"{ENDPOINT}\"]\nallow_any_pairing_token = true\n")
    }

    /// Who has a login for this registry.
    pub fn add_user(&self, token: &str, registry: SocketAddr) {
        self.order("user", &json!({"token": token, "id": 1, "workspaces": []}));
        self.order(
            "credentials",
            &json!({"workspace": null, "user": 1, "list": [{"id": "1", "registry": registry.to_string(),
                "userName": "ada", "password": "sesame"}]}),
        );
    }

    pub fn order(&self, name: &str, order: &Value) {
        let target = Target::plain(self.control);
        let answer = target.post(&format!("/{name}"), &order.to_string());
        let answer = answer.expect("an answer");
        assert!(answer.contains(" 200 "), "{name}: {answer}");
    }

    pub fn pair(&self, server: &Server) {
        let url = format!("ws://{}", server.address);
        self.order("pair", &json!({"url": url, "endpoint": ENDPOINT}));
        let is_paired = comes_true(|| server.log().contains("has paired"));
        assert!(is_paired, "{}", server.log());
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
