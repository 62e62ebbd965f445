//! A token realm as in the distribution project's specification: Basic in, a signed JWT out. The registry that
//! Debian ships accepts its tokens by the certificate in `certificate_pem`.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rcgen::KeyPair;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::{Value, json};

use super::{
    accounts::Accounts,
    server::{Request, Server, respond_json},
};

pub const ISSUER: &str = "tests";
pub const SERVICE: &str = "registry.test";

pub struct TokenServer {
    server: Server,
    pub certificate_pem: String,
    state: Arc<State>,
}

struct State {
    accounts: Accounts,
    key: EcdsaKeyPair,
    certificate: String,
    expires_in: AtomicU64,
    requests: Mutex<Vec<Request>>,
    /// Which repository each token opens.
    issued: Mutex<HashMap<String, Vec<String>>>,
    serial: AtomicUsize,
}

/// Lets a registry ask whether a token was issued, without its signature.
#[derive(Clone)]
pub struct Issued(Arc<State>);

impl Issued {
    pub fn knows(&self, token: &str) -> bool {
        let issued = self.0.issued.lock().expect("no panic holds it");
        issued.contains_key(token)
    }

    pub fn permits(&self, token: &str, repository: &str) -> bool {
        let issued = self.0.issued.lock().expect("no panic holds it");
        issued
            .get(token)
            .is_some_and(|granted| granted.iter().any(|name| name == repository))
    }
}

impl TokenServer {
    pub fn start(accounts: Accounts) -> Self {
        Self::start_on("127.0.0.1", accounts)
    }

    pub fn start_on(host: &str, accounts: Accounts) -> Self {
        let pair = KeyPair::generate().expect("a key pair");
        let certificate = rcgen::CertificateParams::new(vec!["tests".to_owned()])
            .and_then(|parameters| parameters.self_signed(&pair))
            .expect("a certificate");
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &pair.serialize_der(),
            &SystemRandom::new(),
        )
        .expect("a P-256 key");
        let state = Arc::new(State {
            accounts,
            key,
            certificate: STANDARD.encode(certificate.der()),
            expires_in: AtomicU64::new(300),
            requests: Mutex::default(),
            issued: Mutex::default(),
            serial: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&state);
        let server = Server::start_on(host, move |request, stream| {
            let (status, body) = shared.answer(request);
            respond_json(request, stream, status, &[], &body)
        });
        Self {
            server,
            certificate_pem: certificate.pem(),
            state,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    pub fn realm(&self) -> String {
        format!("http://{}/token", self.server.address)
    }

    pub fn issued(&self) -> Issued {
        Issued(Arc::clone(&self.state))
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state
            .requests
            .lock()
            .expect("no panic holds it")
            .clone()
    }

    /// Every scope that somebody has asked for.
    pub fn scopes(&self) -> Vec<String> {
        let requests = self.requests();
        let asked = requests.iter().flat_map(|request| request.queries("scope"));
        asked
            .flat_map(|scopes| scopes.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    pub fn expires_in(&self, seconds: u64) {
        self.state.expires_in.store(seconds, Ordering::SeqCst);
    }

    /// Tokens issued so far open nothing any more.
    pub fn forget_issued(&self) {
        self.state.issued.lock().expect("no panic holds it").clear();
    }
}

impl State {
    fn answer(&self, request: &Request) -> (u16, Value) {
        self.requests
            .lock()
            .expect("no panic holds it")
            .push(request.clone());
        let Some((user, password)) = request.basic() else {
            return (401, json!({"details": "credentials needed"}));
        };
        if !self.accounts.knows(&user, &password) {
            return (401, json!({"details": "unknown user or wrong password"}));
        }
        let mut access = Vec::new();
        let mut granted = Vec::new();
        // The grant is what was asked for and is allowed, and never an error (registry-auth §2).
        let asked = request.queries("scope");
        for scope in asked.iter().flat_map(|scopes| scopes.split(' ')) {
            let Some((name, actions)) = scope
                .strip_prefix("repository:")
                .and_then(|rest| rest.rsplit_once(':'))
            else {
                continue;
            };
            let is_allowed = |action: &&str| match *action {
                "pull" => self.accounts.permits(&user, &password, name),
                _ => self.accounts.permits_pushes(&user, &password, name),
            };
            let actions: Vec<&str> = actions.split(',').filter(is_allowed).collect();
            if !actions.is_empty() {
                access.push(json!({"type": "repository", "name": name, "actions": actions}));
                granted.push(name.to_owned());
            }
        }
        let token = self.sign(&user, &access);
        self.issued
            .lock()
            .expect("no panic holds it")
            .insert(token.clone(), granted);
        let expires_in = self.expires_in.load(Ordering::SeqCst);
        (200, json!({"token": token, "expires_in": expires_in}))
    }

    fn sign(&self, user: &str, access: &[Value]) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a clock after 1970")
            .as_secs();
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [self.certificate]});
        let claims = json!({
            "iss": ISSUER, "sub": user, "aud": SERVICE, "iat": now, "nbf": now - 10, "exp": now + 3600,
            "jti": self.serial.fetch_add(1, Ordering::SeqCst).to_string(), "access": access,
        });
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}
