//! A Seqera Platform in a process of its own (`fake_platform.py`, whose first lines tell all orders that it takes): its
//! API, and the client that opens pairing sockets to tidegate. It encrypts with other code than ours.

use std::{
    env,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{
    http,
    programs::{self, Process, wait_until},
};

/// Debian's, since its packages are for that one.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/it/support/fake_platform.py"
);

/// Shown by the fake Platform unless a test says otherwise.
pub const PAIRING_TOKEN: &str = "license-token-of-the-tests";

/// Whether this machine has what the fake Platform is made of; says so if not.
pub fn is_here() -> bool {
    let imports = Command::new(PYTHON)
        .args(["-c", "import websockets, cryptography"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    imports.is_ok_and(|status| status.success())
        || programs::leave_out("python3-websockets and python3-cryptography")
}

pub struct FakePlatform {
    /// Where its API is, for those who ask it straight.
    pub api: SocketAddr,
    control: SocketAddr,
    arguments: Vec<String>,
    process: Process,
}

impl FakePlatform {
    pub fn start() -> Self {
        Self::start_with(Vec::new())
    }

    /// Its API speaks HTTPS.
    pub fn start_tls(certificate: &Path, key: &Path) -> Self {
        let (certificate, key) = (certificate.display(), key.display());
        Self::start_with(vec![
            format!("--cert={certificate}"),
            format!("--key={key}"),
        ])
    }

    fn start_with(arguments: Vec<String>) -> Self {
        let mut process = spawn(&arguments);
        let (api, control) = addresses(&mut process);
        Self {
            api,
            control,
            arguments,
            process,
        }
    }

    /// At the same addresses, knowing nothing any more.
    pub fn restart(&mut self) {
        self.process.kill();
        let ports = [
            format!("--api={}", self.api.port()),
            format!("--control={}", self.control.port()),
        ];
        let mut process = spawn(&[&self.arguments[..], &ports].concat());
        assert_eq!(addresses(&mut process), (self.api, self.control));
        self.process = process;
    }

    /// Gives an order: `order("revoke", json!({"token": "…"}))`.
    pub fn order(&self, name: &str, order: Value) {
        let body = order.to_string();
        let response = http::request(
            self.control,
            "POST",
            &format!("/{name}"),
            &[],
            body.as_bytes(),
        );
        assert_eq!(
            response.status(),
            200,
            "{name} {order}: {}",
            response.text()
        );
    }

    fn ask(&self, name: &str) -> Value {
        let response = http::get(self.control, &format!("/{name}"));
        assert_eq!(response.status(), 200, "{name}: {}", response.text());
        response.json()
    }

    pub fn user(&self, token: &str, id: u64, workspaces: &[i64]) {
        self.order(
            "user",
            json!({"token": token, "id": id, "workspaces": workspaces}),
        );
    }

    /// The only login of a workspace: `id`, registry, user name, password.
    pub fn workspace_login(&self, workspace: i64, login: [&str; 4]) {
        let [id, registry, username, password] = login;
        self.order(
            "credentials",
            json!({"workspace": workspace, "list": [
                {"id": id, "registry": registry, "userName": username, "password": password}
            ]}),
        );
    }

    /// The only personal login of a user.
    pub fn personal_login(&self, user: u64, login: [&str; 4]) {
        let [id, registry, username, password] = login;
        self.order(
            "credentials",
            json!({"workspace": null, "user": user, "list": [
                {"id": id, "registry": registry, "userName": username, "password": password}
            ]}),
        );
    }

    /// Opens pairing sockets to a tidegate; does not wait for them.
    pub fn pair(&self, tidegate: SocketAddr, endpoint: &str, sessions: usize) {
        self.order(
            "pair",
            json!({"url": format!("ws://{tidegate}"), "endpoint": endpoint, "token": PAIRING_TOKEN,
                "sessions": sessions}),
        );
    }

    /// The same, until all of them have their key.
    pub fn paired(&self, tidegate: SocketAddr, endpoint: &str, sessions: usize) {
        self.pair(tidegate, endpoint, sessions);
        self.wait_for_sessions("pairing", sessions, Session::is_paired);
    }

    pub fn sessions(&self) -> Vec<Session> {
        let sessions = self.ask("sessions");
        let sessions = sessions.as_array().expect("a list");
        sessions.iter().cloned().map(Session).collect()
    }

    /// Until at least so many of the sessions are so.
    pub fn wait_for_sessions(&self, what: &str, count: usize, are: impl Fn(&Session) -> bool) {
        wait_until(what, || {
            self.sessions()
                .iter()
                .filter(|session| are(session))
                .count()
                >= count
        });
    }

    /// How often a call was made: `"GET /user-info"`.
    pub fn count(&self, call: &str) -> u64 {
        self.ask("counts")[call].as_u64().unwrap_or_default()
    }

    /// All calls, in order of their arrival: `method`, `path`, `query`, `authorization`, `body`.
    pub fn calls(&self) -> Vec<Value> {
        self.ask("calls").as_array().expect("a list").clone()
    }

    /// Of the packets with logins that it has given out.
    pub fn packet_keys(&self) -> Vec<String> {
        let keys = self.ask("packet-keys");
        let keys = keys.as_array().expect("a list").iter();
        keys.filter_map(|key| key.as_str().map(str::to_owned))
            .collect()
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }
}

/// What the Platform knows of one of its sockets.
#[derive(Debug)]
pub struct Session(pub Value);

impl Session {
    pub fn is_paired(&self) -> bool {
        self.0["state"] == "open" && self.0["pairingId"].is_string()
    }

    pub fn pairing_id(&self) -> String {
        self.0["pairingId"]
            .as_str()
            .expect("a paired session")
            .to_owned()
    }

    pub fn public_key(&self) -> String {
        self.0["publicKey"]
            .as_str()
            .expect("a paired session")
            .to_owned()
    }

    /// `opened`, `refused`, `refusedStatus`, `closeCode`, `heartbeats`, `requests`; 0 where there is none.
    pub fn number(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or_default()
    }
}

fn spawn(arguments: &[String]) -> Process {
    let mut command = Command::new(PYTHON);
    Process::spawn("the fake Platform", command.arg(SCRIPT).args(arguments))
}

fn addresses(process: &mut Process) -> (SocketAddr, SocketAddr) {
    let line = process.log.wait_for(|line| line.starts_with("listening "));
    let line = line.unwrap_or_else(|| panic!("it did not start: {}", process.log.text()));
    let address = |name: &str| {
        let value = line.split(' ').find_map(|part| part.strip_prefix(name));
        value.and_then(|value| value.parse().ok())
    };
    let (api, control) = (address("api="), address("control="));
    api.zip(control)
        .unwrap_or_else(|| panic!("no addresses in {line}"))
}
