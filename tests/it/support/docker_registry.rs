//! The registry that Debian ships (distribution 2.8): a real upstream, and a real target of pushes, with its log.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use tempfile::TempDir;

use super::{
    http::{self, Connection},
    image::Image,
    programs::{Process, command, free_port, run, wait_until},
    token_server::{ISSUER, SERVICE, TokenServer},
};

pub const USER: &str = "ada";
pub const PASSWORD: &str = "correct horse";
/// bcrypt of `PASSWORD` at the lowest cost: the registry computes it for every request.
const HTPASSWD: &str = "ada:$2b$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e\n";

pub enum Login<'a> {
    Open,
    Htpasswd,
    /// Further lines of `htpasswd` beside the own user's, who pushes.
    HtpasswdWith(&'a str),
    Token(&'a TokenServer),
}

pub struct DockerRegistry {
    pub address: SocketAddr,
    process: Process,
    home: TempDir,
    storage: PathBuf,
    certificate: Option<PathBuf>,
}

/// A request that it has answered, by its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub method: String,
    /// Without a query.
    pub path: String,
    pub status: u16,
}

impl Answered {
    /// Of a blob or a manifest, or of an upload.
    pub fn is_write(&self) -> bool {
        matches!(self.method.as_str(), "POST" | "PUT" | "PATCH")
    }
}

/// As people make one for a registry of their own (`openssl req -x509`): it says of itself that it signs others. With its key.
fn own_certificate() -> (String, String) {
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().expect("a key");
    let made = params.self_signed(&key).expect("a certificate");
    (made.pem(), key.serialize_pem())
}

impl DockerRegistry {
    pub fn start(login: &Login<'_>) -> Self {
        Self::start_with(login, false, None)
    }

    /// What it is given goes to this folder: a small disk's, say.
    pub fn start_in(login: &Login<'_>, storage: &Path) -> Self {
        Self::start_with(login, false, Some(storage))
    }

    /// With a certificate of its own; `ca_file` is what to trust.
    pub fn start_tls(login: &Login<'_>) -> Self {
        Self::start_with(login, true, None)
    }

    fn start_with(login: &Login<'_>, with_tls: bool, storage: Option<&Path>) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        let storage = storage.map_or_else(|| home.path().join("storage"), Path::to_owned);
        let file = |name: &str, content: &str| {
            let path = home.path().join(name);
            fs::write(&path, content).expect("a writable folder");
            path
        };
        let auth = match login {
            Login::Open => String::new(),
            Login::Htpasswd | Login::HtpasswdWith(_) => {
                let more = match login {
                    Login::HtpasswdWith(lines) => lines,
                    _ => "",
                };
                format!(
                    "auth:\n  htpasswd:\n    realm: tests\n    path: {}\n",
                    file("htpasswd", &format!("{HTPASSWD}{more}")).display()
                )
            }
            Login::Token(server) => format!(
                "auth:\n  token:\n    realm: {}\n    service: {SERVICE}\n    issuer: {ISSUER}\n    rootcertbundle: {}\n",
                server.realm(),
                file("token.pem", &server.certificate_pem).display()
            ),
        };
        let mut certificate = None;
        let mut tls = String::new();
        if with_tls {
            let (made, key) = own_certificate();
            let path = file("tls.pem", &made);
            let key = file("tls.key", &key);
            tls = format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                path.display(),
                key.display()
            );
            certificate = Some(path);
        }
        loop {
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let config = file(
                "config.yml",
                &format!(
                    "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n  secret: tests\n{tls}{auth}",
                    storage.display()
                ),
            );
            let Some(process) = serve(&config, address) else {
                continue;
            };
            return Self {
                address,
                process,
                home,
                storage,
                certificate,
            };
        }
    }

    /// At once, as by `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Again at its address, with all it has stored; its log begins anew.
    pub fn restart(&mut self) {
        self.process.kill();
        let config = self.home.path().join("config.yml");
        self.process = serve(&config, self.address).expect("its own address is free");
    }

    /// Again at its address, when all that it had stored has been deleted.
    pub fn restart_empty(&mut self) {
        self.process.kill();
        fs::remove_dir_all(self.storage.join("docker")).expect("a writable folder");
        self.restart();
    }

    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// Uploads that were neither ended nor cancelled.
    pub fn open_uploads(&self, repository: &str) -> usize {
        let folder = self.repositories().join(repository).join("_uploads");
        let Ok(uploads) = fs::read_dir(folder) else {
            return 0;
        };
        // Of a cancelled one it leaves an empty tree.
        let is_open = |upload: &fs::DirEntry| upload.path().join("startedat").exists();
        uploads.map_while(Result::ok).filter(is_open).count()
    }

    pub fn ca_file(&self) -> &PathBuf {
        self.certificate.as_ref().expect("a registry with TLS")
    }

    /// Copies an image in, bytes untouched.
    pub fn push(&self, image: &Image, repository: &str, tag: &str) {
        self.push_as(image, repository, tag, &["--all", "--preserve-digests"]);
    }

    /// Copies an image in as skopeo is told to change it.
    pub fn push_as(&self, image: &Image, repository: &str, tag: &str, how: &[&str]) {
        run(Command::new("skopeo")
            .args(["--insecure-policy", "--tmpdir"])
            .arg(self.home.path())
            .arg("copy")
            .args(how)
            .args(["--dest-tls-verify=false", "--dest-creds"])
            .arg(format!("{USER}:{PASSWORD}"))
            .arg(format!("oci:{}:image", image.folder.display()))
            .arg(format!("docker://{}/{repository}:{tag}", self.address)));
    }

    /// All that it has been asked since its start, in the order of its answers.
    pub fn answered(&self) -> Vec<Answered> {
        self.wait_for_its_log();
        let lines = self.process.log.lines();
        lines.iter().filter_map(|line| answered(line)).collect()
    }

    /// Those that change something.
    pub fn writes(&self) -> Vec<Answered> {
        let mut answered = self.answered();
        answered.retain(Answered::is_write);
        answered
    }

    /// Tags of a repository that it has on its disk, whoever may see them.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let folder = self.repositories().join(repository).join("_manifests/tags");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut tags: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        tags.sort();
        tags
    }

    /// Digests of the manifests that a repository has on disk.
    pub fn manifests(&self, repository: &str) -> Vec<String> {
        self.links(repository, "_manifests/revisions/sha256")
    }

    /// Digests of the blobs that a repository has on disk.
    pub fn blobs(&self, repository: &str) -> Vec<String> {
        self.links(repository, "_layers/sha256")
    }

    /// As a kill at the wrong moment leaves it: what says that a repository has this (`_layers/sha256/<hex>`,
    /// `_manifests/tags/<tag>/current`) is there, and empty.
    pub fn tear(&self, repository: &str, what: &str) {
        let link = self.repositories().join(repository).join(what).join("link");
        assert!(link.is_file(), "{}", link.display());
        fs::write(link, "").expect("the registry's storage is writable");
    }

    fn links(&self, repository: &str, folder: &str) -> Vec<String> {
        let folder = self.repositories().join(repository).join(folder);
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let links = entries.filter(|entry| entry.path().join("link").is_file());
        let mut digests: Vec<String> = links
            .filter_map(|entry| entry.file_name().into_string().ok())
            .map(|hex| format!("sha256:{hex}"))
            .collect();
        digests.sort();
        digests
    }

    /// What it has stored under this digest, whichever repositories have it.
    pub fn stored(&self, digest: &str) -> PathBuf {
        let (_, hex) = digest.split_once(':').expect("an algorithm");
        let blobs = self.storage.join("docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    fn repositories(&self) -> PathBuf {
        self.storage.join("docker/registry/v2/repositories")
    }

    /// Successful GETs of this blob.
    pub fn blob_gets(&self, repository: &str, digest: &str) -> usize {
        self.wait_for_its_log();
        let wanted = format!("\"GET /v2/{repository}/blobs/{digest} HTTP/1.1\" 20");
        self.process.log.count(|line| line.contains(&wanted))
    }

    /// A request is logged after its answer is sent: a later one tells when the log has come so far.
    pub fn wait_for_its_log(&self) {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let marker = format!("/marker-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        if self.certificate.is_some() {
            // What is neither TLS nor HTTP is logged, with the address it came from and nothing else.
            let before = self.process.log.count(is_handshake_error);
            let mut connection = Connection::open(self.address);
            connection.send(&marker);
            connection.finish_sending();
            connection.rest();
            wait_until("the registry's log", || {
                self.process.log.count(is_handshake_error) > before
            });
        } else {
            http::get(self.address, &marker);
            let line = self.process.log.wait_for(|line| line.contains(&marker));
            assert!(line.is_some(), "{}", self.log());
        }
    }

    pub fn log(&self) -> String {
        self.process.log.text()
    }
}

/// `None` if another process was quicker to take the address.
fn serve(config: &Path, address: SocketAddr) -> Option<Process> {
    let mut process = Process::spawn(
        "docker-registry",
        command("docker-registry").arg("serve").arg(config),
    );
    wait_until("docker-registry", || {
        process.has_ended() || TcpStream::connect(address).is_ok()
    });
    if process.has_ended() && process.log.text().contains("address already in use") {
        return None;
    }
    assert!(!process.has_ended(), "{}", process.log.text());
    Some(process)
}

/// `127.0.0.1 - - [27/Nov/2026:10:00:00 +0000] "GET /v2/acme/app/tags/list?n=1 HTTP/1.1" 200 27 "" "tests"`
fn answered(line: &str) -> Option<Answered> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let mut words = request.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    Some(Answered {
        method: method.to_owned(),
        path: target.split('?').next()?.to_owned(),
        status: rest.split(' ').next()?.parse().ok()?,
    })
}

fn is_handshake_error(line: &str) -> bool {
    line.contains("TLS handshake error")
}
