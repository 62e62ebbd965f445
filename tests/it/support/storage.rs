//! Where registries redirect blob requests to: a real nginx that logs which secrets reach it.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
};

use tempfile::TempDir;

use super::{
    content::Content,
    programs::{Process, command, free_port, wait_until},
};

pub struct Storage {
    pub address: SocketAddr,
    home: TempDir,
    _process: Process,
}

/// One request that the storage has seen.
#[derive(Debug)]
pub struct Visit {
    pub request_line: String,
    pub authorization: String,
    pub cookie: String,
}

impl Storage {
    pub fn start() -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(home.path().join("blobs")).expect("a writable folder");
        loop {
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let folder = home.path().display();
            // One process, as the user who runs the tests: workers of root would not be let into the folder.
            let config = format!(
                "daemon off; master_process off; pid {folder}/pid; error_log stderr;\n\
                 events {{}}\n\
                 http {{\n\
                 log_format visit '$request\\t$http_authorization\\t$http_cookie';\n\
                 access_log {folder}/visits visit;\n\
                 client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n\
                 fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
                 server {{ listen {address}; root {folder}/blobs; default_type application/octet-stream; }}\n\
                 }}\n"
            );
            let file = home.path().join("nginx.conf");
            fs::write(&file, config).expect("a writable folder");
            let mut process = Process::spawn(
                "nginx",
                command("nginx")
                    .arg("-p")
                    .arg(home.path())
                    .arg("-c")
                    .arg(file),
            );
            wait_until("nginx", || {
                process.has_ended() || TcpStream::connect(address).is_ok()
            });
            if process.has_ended() && process.log.text().contains("Address already in use") {
                continue;
            }
            assert!(!process.has_ended(), "{}", process.log.text());
            return Self {
                address,
                home,
                _process: process,
            };
        }
    }

    /// Makes `content` available and returns its URL, signed by the look of it.
    pub fn put(&self, name: &str, content: &Content) -> String {
        let path = self.home.path().join("blobs").join(name);
        fs::write(path, content.bytes()).expect("a writable folder");
        format!("http://{}/{name}?X-Sig=a%2Fb+c~&X-Expires=60", self.address)
    }

    /// What it has seen, when it has seen this much: nginx logs a request after its last byte is sent.
    pub fn visits(&self, count: usize) -> Vec<Visit> {
        let mut log = String::new();
        wait_until("the storage's visits", || {
            log = fs::read_to_string(self.home.path().join("visits")).unwrap_or_default();
            log.lines().count() >= count
        });
        log.lines()
            .map(|line| {
                let mut fields = line.split('\t').map(str::to_owned);
                let mut field = || fields.next().expect("three fields");
                Visit {
                    request_line: field(),
                    authorization: field(),
                    cookie: field(),
                }
            })
            .collect()
    }
}
