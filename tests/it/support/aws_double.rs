//! AWS as far as logins for its registries go, in one server: ECR, ECR Public with its token realm, STS, an instance's
//! metadata and a container's credentials. It lends keys and passwords, knows which it has lent, ends them when it is
//! told to, and keeps every request. Signatures are moto's to check.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use super::server::{Request, Server, respond};

/// Keys that need no session token.
pub const KEY_ID: &str = "AKIADOUBLEDOUBLE";
pub const OTHER_KEY_ID: &str = "AKIAOTHEROTHEROT";
pub const SECRET: &str = "the/secret+key/of/the/double";
pub const METADATA_TOKEN: &str = "metadata-token-of-the-double";
pub const CONTAINER_TOKEN: &str = "container-token-of-the-double";

const HOUR: Duration = Duration::from_secs(3600);

/// What was issued, and whether it is still good.
#[derive(Clone, Default)]
pub struct Passwords(Arc<Mutex<HashMap<String, Standing>>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Good,
    Ended,
    Unknown,
}

impl Passwords {
    fn issue(&self, password: &str) {
        self.lock().insert(password.to_owned(), Standing::Good);
    }

    pub fn standing(&self, password: &str) -> Standing {
        self.lock()
            .get(password)
            .copied()
            .unwrap_or(Standing::Unknown)
    }

    /// All that were issued so far.
    pub fn end_all(&self) {
        self.lock()
            .values_mut()
            .for_each(|it| *it = Standing::Ended);
    }

    pub fn all(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Standing>> {
        self.0.lock().expect("no panic holds it")
    }
}

pub struct AwsDouble {
    server: Server,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    requests: Mutex<Vec<(String, Request)>>,
    /// By operation: status and body instead of the answer.
    troubles: Mutex<HashMap<String, (u16, String)>>,
    /// Of ECR.
    passwords: Passwords,
    /// Of ECR Public's realm.
    bearer_tokens: Passwords,
    /// Session token by access key id.
    sessions: Mutex<HashMap<String, String>>,
    serial: AtomicUsize,
}

impl AwsDouble {
    pub fn start() -> Self {
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let server = Server::start_on("127.0.0.1", move |request, stream| {
            let (status, content_type, body) = shared.answer(request);
            let headers = [("Content-Type", content_type)];
            respond(request, stream, status, &headers, body.as_bytes())
        });
        Self { server, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// Of ECR Public.
    pub fn realm(&self) -> String {
        format!("{}/token/", self.url())
    }

    pub fn passwords(&self) -> Passwords {
        self.state.passwords.clone()
    }

    pub fn bearer_tokens(&self) -> Passwords {
        self.state.bearer_tokens.clone()
    }

    /// Sessions lent so far are not known any more: `ExpiredToken`.
    pub fn end_sessions(&self) {
        let mut sessions = self.state.sessions.lock().expect("no panic holds it");
        sessions.values_mut().for_each(String::clear);
    }

    /// The operation fails so from now on.
    pub fn fail(&self, operation: &str, status: u16, body: &str) {
        let mut troubles = self.state.troubles.lock().expect("no panic holds it");
        troubles.insert(operation.to_owned(), (status, body.to_owned()));
    }

    /// `"ecr"`, `"ecr-public"`, `"realm"`, `"metadata"`, `"container"`, or an action of STS.
    pub fn requests(&self, operation: &str) -> Vec<Request> {
        let requests = self.state.requests.lock().expect("no panic holds it");
        let ours = requests.iter().filter(|(known, _)| known == operation);
        ours.map(|(_, request)| request.clone()).collect()
    }

    /// Everything secret that was lent.
    pub fn secrets(&self) -> Vec<String> {
        let sessions = self.state.sessions.lock().expect("no panic holds it");
        let mut secrets = self.state.passwords.all();
        secrets.extend(self.state.bearer_tokens.all());
        secrets.extend(sessions.values().filter(|it| !it.is_empty()).cloned());
        secrets
    }
}

type Answer = (u16, &'static str, String);

const JSON: &str = "application/x-amz-json-1.1";
const XML: &str = "text/xml";

impl State {
    fn answer(&self, request: &Request) -> Answer {
        let operation = operation(request);
        let mut requests = self.requests.lock().expect("no panic holds it");
        requests.push((operation.clone(), request.clone()));
        drop(requests);
        let troubles = self.troubles.lock().expect("no panic holds it");
        if let Some((status, body)) = troubles.get(&operation) {
            return (*status, JSON, body.clone());
        }
        drop(troubles);
        match operation.as_str() {
            "ecr" | "ecr-public" => self.password(request, &operation),
            "AssumeRole" | "GetCallerIdentity" => match self.signer(request) {
                Err(refusal) => refusal,
                Ok(id) if operation == "GetCallerIdentity" => (
                    200,
                    XML,
                    format!("<R><Arn>arn:aws:iam::123456789012:user/{id}</Arn></R>"),
                ),
                Ok(_) => self.session_xml(),
            },
            "AssumeRoleWithWebIdentity" => self.session_xml(),
            "realm" => self.bearer_token(request),
            "metadata" => self.metadata(request),
            "container" => match request.header("authorization") {
                Some(CONTAINER_TOKEN) => self.session_json(),
                _ => (401, JSON, json!({"message": "who are you?"}).to_string()),
            },
            _ => (404, JSON, "{}".to_owned()),
        }
    }

    /// The access key id, if it is known and its session token came with it.
    fn signer(&self, request: &Request) -> Result<String, Answer> {
        let refused = |code: &str| {
            (
                403,
                JSON,
                json!({"__type": code, "message": "no"}).to_string(),
            )
        };
        let authorization = request.header("authorization").unwrap_or_default();
        let id = authorization
            .split_once("Credential=")
            .and_then(|(_, rest)| rest.split('/').next())
            .unwrap_or_default();
        let token = request.header("x-amz-security-token");
        let sessions = self.sessions.lock().expect("no panic holds it");
        match sessions.get(id) {
            None if [KEY_ID, OTHER_KEY_ID].contains(&id) && token.is_none() => Ok(id.to_owned()),
            None => Err(refused("UnrecognizedClientException")),
            Some(ended) if ended.is_empty() => Err(refused("ExpiredTokenException")),
            Some(expected) if token == Some(expected) => Ok(id.to_owned()),
            Some(_) => Err(refused("UnrecognizedClientException")),
        }
    }

    fn password(&self, request: &Request, operation: &str) -> Answer {
        let id = match self.signer(request) {
            Ok(id) => id,
            Err(refusal) => return refusal,
        };
        let scope = request.header("authorization").unwrap_or_default();
        assert!(
            scope.contains(&format!("/{operation}/aws4_request")),
            "{scope}"
        );
        let password = format!("ecr-password-{}-of-{id}", self.serial());
        self.passwords.issue(&password);
        let token = STANDARD.encode(format!("AWS:{password}"));
        let end = SystemTime::now() + 12 * HOUR;
        let end = end
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_secs_f64();
        let data = json!({"authorizationToken": token, "expiresAt": end});
        let data = match operation {
            "ecr" => json!([data]),
            _ => data,
        };
        (200, JSON, json!({"authorizationData": data}).to_string())
    }

    /// A realm takes Basic, and says no to a password that has ended.
    fn bearer_token(&self, request: &Request) -> Answer {
        if let Some((user, password)) = request.basic()
            && (user != "AWS" || self.passwords.standing(&password) != Standing::Good)
        {
            let body = json!({"errors": [{"code": "DENIED", "message": "Your Authorization Token is invalid."}]});
            return (400, "application/json", body.to_string());
        }
        let token = format!("public-token-{}", self.serial());
        self.bearer_tokens.issue(&token);
        (200, "application/json", json!({"token": token}).to_string())
    }

    /// IMDSv2 only.
    fn metadata(&self, request: &Request) -> Answer {
        const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
        if request.target == "/latest/api/token" {
            let has_life = request
                .header("x-aws-ec2-metadata-token-ttl-seconds")
                .is_some();
            return match request.method == "PUT" && has_life {
                true => (200, "text/plain", METADATA_TOKEN.to_owned()),
                false => (400, "text/plain", String::new()),
            };
        }
        if request.header("x-aws-ec2-metadata-token") != Some(METADATA_TOKEN) {
            return (401, "text/plain", String::new());
        }
        match request.target.strip_prefix(ROLES) {
            Some("") => (200, "text/plain", "node-role\n".to_owned()),
            Some("node-role") => self.session_json(),
            _ => (404, "text/plain", String::new()),
        }
    }

    fn session_json(&self) -> Answer {
        let (id, token, end) = self.session();
        let body = json!({
            "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": id, "SecretAccessKey": SECRET, "Token": token,
            "Expiration": end,
        });
        (200, "application/json", body.to_string())
    }

    fn session_xml(&self) -> Answer {
        let (id, token, end) = self.session();
        let body = format!(
            "<R xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Credentials><AccessKeyId>{id}</AccessKeyId>\
             <SecretAccessKey>{SECRET}</SecretAccessKey><SessionToken>{token}</SessionToken>\
             <Expiration>{end}</Expiration></Credentials></R>"
        );
        (200, XML, body)
    }

    fn session(&self) -> (String, String, String) {
        let serial = self.serial();
        let (id, token) = (
            format!("ASIASESSION{serial:05}"),
            format!("session-token-{serial}"),
        );
        let mut sessions = self.sessions.lock().expect("no panic holds it");
        sessions.insert(id.clone(), token.clone());
        let end = humantime::format_rfc3339_seconds(SystemTime::now() + HOUR);
        (id, token, end.to_string())
    }

    fn serial(&self) -> usize {
        self.serial.fetch_add(1, Ordering::SeqCst)
    }
}

fn operation(request: &Request) -> String {
    match (request.path(), request.header("x-amz-target")) {
        ("/token/", _) => "realm".to_owned(),
        ("/container", _) => "container".to_owned(),
        (path, _) if path.starts_with("/latest/") => "metadata".to_owned(),
        (_, Some(target)) if target.starts_with("Spencer") => "ecr-public".to_owned(),
        (_, Some(_)) => "ecr".to_owned(),
        _ => request.form("Action").unwrap_or_default(),
    }
}
