//! moto, an emulator of AWS, as a process of its own. With signature checks on it is the one that says whether ours are
//! right.

use std::net::{SocketAddr, TcpStream};

use super::{
    http,
    programs::{Process, command, free_port, wait_until},
};

/// The account of whoever has no other.
pub const ACCOUNT: &str = "123456789012";

pub struct Moto {
    pub address: SocketAddr,
    process: Process,
}

/// A user of an account, and a key of his.
pub struct User {
    pub key_id: String,
    pub secret: String,
}

impl Moto {
    /// Takes every key and every signature.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// Checks signatures and permissions after so many calls, which make the users.
    pub fn checking_after(calls: u32) -> Self {
        Self::start_with(Some(calls))
    }

    fn start_with(unchecked: Option<u32>) -> Self {
        loop {
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let mut command = command("moto_server");
            command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
            if let Some(count) = unchecked {
                command.env("INITIAL_NO_AUTH_ACTION_COUNT", count.to_string());
            }
            let mut process = Process::spawn("moto_server", &mut command);
            wait_until("moto_server", || {
                process.has_ended() || TcpStream::connect(address).is_ok()
            });
            if process.has_ended() && process.log.text().contains("in use") {
                continue;
            }
            assert!(!process.has_ended(), "{}", process.log.text());
            return Self { address, process };
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Three calls, or two without a policy.
    pub fn user(&self, name: &str, allowed: Option<&str>) -> User {
        self.iam(&format!("Action=CreateUser&UserName={name}"));
        if let Some(action) = allowed {
            let policy = format!(
                "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C%22Action%22%3A%22{action}%22%2C%22Resource%22%3A%22%2A%22%7D%5D%7D"
            );
            self.iam(&format!(
                "Action=PutUserPolicy&UserName={name}&PolicyName=own&PolicyDocument={policy}"
            ));
        }
        let answer = self.iam(&format!("Action=CreateAccessKey&UserName={name}"));
        User {
            key_id: element(&answer, "AccessKeyId"),
            secret: element(&answer, "SecretAccessKey"),
        }
    }

    fn iam(&self, form: &str) -> String {
        let headers = [
            ("Content-Type", "application/x-www-form-urlencoded"),
            (
                "Authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAFIRST/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=0",
            ),
        ];
        let body = format!("{form}&Version=2010-05-08");
        let response = http::request(self.address, "POST", "/", &headers, body.as_bytes());
        assert_eq!(response.status(), 200, "{form}: {}", response.text());
        response.text()
    }

    /// Requests that it has answered; each is a line of its log.
    pub fn calls(&self) -> usize {
        self.process.log.count(|line| line.contains("\"POST / "))
    }
}

fn element(xml: &str, name: &str) -> String {
    let (_, rest) = xml.split_once(&format!("<{name}>")).expect(xml);
    rest.split('<').next().expect(xml).to_owned()
}
