//! The servers under comparison: each a child process with a folder of its own, which ends with its owner.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, AtomicUsize, Ordering},
    time::Duration,
};

use super::{
    client::{Get, Target},
    comes_true,
    origin::{Blob, Origin, file_of},
    sys,
    tls::Certificate,
};

/// The one built with the bench, or `TIDEGATE_BINARY`: so an older one can be measured with the same clients.
pub fn tidegate_binary() -> PathBuf {
    std::env::var_os("TIDEGATE_BINARY").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_tidegate")),
        PathBuf::from,
    )
}

/// Which cores a server gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    All,
    Only(usize),
}

impl Cores {
    fn count(self) -> usize {
        match self {
            Self::All => std::thread::available_parallelism().map_or(1, usize::from),
            Self::Only(_) => 1,
        }
    }

    /// Each launcher becomes what follows it, so the process stays the same.
    fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut line: Vec<OsString> = Vec::new();
        // A bench that is killed takes its servers with it.
        if let Some(launcher) = find("setpriv") {
            line.extend([launcher.into(), "--pdeathsig".into(), "TERM".into()]);
        }
        if let Self::Only(core) = self {
            line.extend(["taskset".into(), "-c".into(), core.to_string().into()]);
        }
        line.push(program.as_ref().to_owned());
        let mut line = line.into_iter();
        let mut command = Command::new(line.next().expect("at least the program"));
        command.args(line);
        command
    }
}

pub struct Server {
    pub name: &'static str,
    pub address: SocketAddr,
    child: Child,
    folder: PathBuf,
    tls: Option<std::sync::Arc<rustls::ClientConfig>>,
    /// `/wt/<token>`
    prefix: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Paths as an origin has them, behind a token.
    Tidegate,
    /// Paths as an origin has them.
    Registry,
    /// The digest alone.
    Files,
}

/// How tidegate is to run.
pub struct Tidegate<'a> {
    pub origin: &'a Origin,
    pub cores: Cores,
    pub driver: &'a str,
    pub tls: Option<&'a Certificate>,
}

impl Tidegate<'_> {
    /// `Err` says why this binary cannot.
    pub fn start(&self, folder: &Path) -> Result<Server, String> {
        let mut server = self.start_with(folder, "")?;
        server.ask_for_name(self.origin, "");
        Ok(server)
    }

    /// With more settings, and before any name is asked for.
    pub fn start_with(&self, folder: &Path, settings: &str) -> Result<Server, String> {
        let folder = own_folder(folder, "tidegate");
        let address = free_address();
        let origin = self.origin.address;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut text = format!(
            "url = \"{scheme}://{address}\"\nstate_dir = \"state\"\ndriver = \"{}\"\ncores = {}\n\
             [cache]\ndirectory = \"cache\"\nmax_size = \"60GiB\"\n[log]\naccess = \"off\"\n\
             [limits]\nanonymous_requests = \"off\"\nuser_requests = \"off\"\nanonymous_pulls = \"off\"\nuser_pulls = \"off\"\n\
             [registry.\"{origin}\"]\ninsecure = true\nallow_private = true\n\
             [listener]\naddresses = [\"{address}\"]\nadmin = \"{}\"\nidle_timeout = \"600s\"\n",
            self.driver,
            self.cores.count(),
            free_address(),
        );
        if let Some(tls) = self.tls {
            let _ = writeln!(
                text,
                "tls = {{ cert_file = {:?}, key_file = {:?} }}",
                tls.certificate, tls.key
            );
        }
        text.push_str(settings);
        let config = folder.join("tidegate.toml");
        fs::write(&config, text).expect("a writable folder");
        let check = Command::new(tidegate_binary())
            .args(["check-config", "--config"])
            .arg(&config)
            .output()
            .expect("tidegate runs");
        if !check.status.success() {
            let said = String::from_utf8_lossy(&check.stderr).into_owned()
                + &String::from_utf8_lossy(&check.stdout);
            if self.tls.is_some() && said.contains("tls") {
                return Err("this binary has no TLS listener".to_owned());
            }
            panic!("the configuration is not taken:\n{said}");
        }
        let mut command = self.cores.command(tidegate_binary());
        command.args(["serve", "--config"]).arg(&config);
        let name = match self.driver {
            "io_uring" => "tidegate, io_uring",
            "epoll" => "tidegate, epoll",
            _ => "tidegate",
        };
        let mut server =
            Server::spawn(name, command, address, folder, Kind::Tidegate).expect("tidegate starts");
        server.tls = self.tls.map(|tls| std::sync::Arc::clone(&tls.client));
        Ok(server)
    }
}

/// What nginx is to do.
pub enum Nginx<'a> {
    /// `sendfile` and `open_file_cache`, from a folder of blobs named by their digests.
    Files(&'a Path),
    /// The same, with large reads on a pool of threads.
    FilesWithThreads(&'a Path),
    /// `proxy_cache`
    Proxy(&'a Origin),
}

impl Nginx<'_> {
    pub fn start(&self, folder: &Path, cores: Cores, tls: Option<&Certificate>) -> Option<Server> {
        let program = find("nginx")?;
        let prefix = own_folder(folder, "nginx");
        let address = free_address();
        // As root, its workers would become another user, who may not read a temporary folder.
        let user = if prefix.metadata().is_ok_and(|meta| meta.uid() == 0) {
            "user root;"
        } else {
            ""
        };
        let shown = prefix.display();
        let (ssl, keys) = match tls {
            Some(tls) => (
                " ssl",
                format!(
                    "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3;",
                    tls.certificate.display(),
                    tls.key.display()
                ),
            ),
            None => ("", String::new()),
        };
        let (name, kind, serving) = match self {
            Nginx::Files(root) => ("nginx", Kind::Files, format!("root {};", root.display())),
            Nginx::FilesWithThreads(root) => (
                "nginx aio threads",
                Kind::Files,
                format!("aio threads; root {};", root.display()),
            ),
            Nginx::Proxy(origin) => (
                "nginx proxy_cache",
                Kind::Registry,
                format!(
                    "location / {{ proxy_pass http://{}; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
                     proxy_cache blobs; proxy_cache_lock on; proxy_cache_valid 200 1d; proxy_max_temp_file_size 0; }}",
                    origin.address
                ),
            ),
        };
        let text = format!(
            "{user} daemon off; worker_processes {workers}; worker_rlimit_nofile 20000; error_log stderr crit;\n\
             pid {shown}/pid;\n\
             events {{ worker_connections 12000; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; tcp_nodelay on;\n\
             keepalive_requests 1000000000; keepalive_timeout 600s; default_type application/octet-stream;\n\
             client_body_temp_path {shown}/b; proxy_temp_path {shown}/p; fastcgi_temp_path {shown}/f;\n\
             uwsgi_temp_path {shown}/u; scgi_temp_path {shown}/s;\n\
             proxy_cache_path {shown}/cache levels=1:2 keys_zone=blobs:16m max_size=200g use_temp_path=off;\n\
             open_file_cache max=100 inactive=600s; open_file_cache_valid 600s;\n\
             server {{ listen {address} reuseport{ssl} backlog=4096; {keys} {serving} }} }}\n",
            workers = cores.count(),
        );
        let config = prefix.join("nginx.conf");
        fs::write(&config, text).expect("a writable folder");
        let mut command = cores.command(program);
        command.arg("-p").arg(&prefix).arg("-c").arg(&config);
        let mut server = Server::spawn(name, command, address, prefix, kind)?;
        server.tls = tls.map(|tls| std::sync::Arc::clone(&tls.client));
        Some(server)
    }
}

/// Varnish with its storage in a file, as large blobs want it.
pub fn varnish(folder: &Path, origin: &Origin, cores: Cores) -> Option<Server> {
    let program = find("varnishd")?;
    let home = own_folder(folder, "varnish");
    let address = free_address();
    let mut command = cores.command(program);
    command
        .arg("-F")
        .args(["-j", "none"])
        .args(["-p", "timeout_idle=600"])
        .args(["-a", &address.to_string()])
        .args(["-b", &origin.address.to_string()])
        .arg("-n")
        .arg(home.join("work"))
        .arg("-s")
        .arg(format!("file,{},40g", home.join("storage").display()));
    Server::spawn("varnish", command, address, home, Kind::Registry)
}

/// distribution as a pull-through cache.
pub fn docker_registry(folder: &Path, origin: &Origin, cores: Cores) -> Option<Server> {
    let proxy = format!("proxy:\n  remoteurl: http://{}\n", origin.address);
    docker_registry_with(folder, cores, &proxy)
}

/// distribution, with more of its settings.
pub fn docker_registry_with(folder: &Path, cores: Cores, settings: &str) -> Option<Server> {
    let program = find("docker-registry")?;
    let home = own_folder(folder, "docker-registry");
    let address = free_address();
    let config = home.join("config.yml");
    let text = format!(
        "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\n\
         storage:\n  filesystem:\n    rootdirectory: {}\n  cache:\n    blobdescriptor: inmemory\n\
         http:\n  addr: {address}\n  secret: benches\n{settings}",
        home.join("storage").display(),
    );
    fs::write(&config, text).expect("a writable folder");
    let mut command = cores.command(program);
    command.arg("serve").arg(config);
    Server::spawn("docker-registry", command, address, home, Kind::Registry)
}

impl Server {
    /// From then on it is asked under a token, as a runtime asks: every request is checked. `more`: further fields of the
    /// request, each followed by a comma.
    pub fn ask_for_name(&mut self, origin: &Origin, more: &str) {
        let origin = origin.address;
        let image = format!("{{{more} \"containerImage\": \"{origin}/bench/blobs:v1\"}}");
        let answer = self
            .target()
            .post("/v1alpha2/container", &image)
            .expect("an answer");
        let name = answer
            .split_once("\r\n\r\n")
            .and_then(|(_, body)| serde_json::from_str::<serde_json::Value>(body).ok())
            .and_then(|body| Some(body.get("targetImage")?.as_str()?.to_owned()));
        let name = name.unwrap_or_else(|| panic!("no name in {answer}"));
        let path = name.split_once('/').map_or("", |(_, path)| path);
        let repository = path.strip_suffix(":v1").unwrap_or(path);
        self.prefix = repository
            .strip_suffix("bench/blobs")
            .map(|prefix| format!("/{}", prefix.trim_end_matches('/')))
            .unwrap_or_else(|| panic!("no repository in {name}"));
    }

    fn spawn(
        name: &'static str,
        mut command: Command,
        address: SocketAddr,
        folder: PathBuf,
        kind: Kind,
    ) -> Option<Self> {
        let log = File::create(folder.join("log")).expect("a writable folder");
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .ok()?;
        let mut server = Self {
            name,
            address,
            child,
            folder,
            tls: None,
            prefix: String::new(),
            kind,
        };
        let listens = comes_true(|| {
            TcpStream::connect(address).is_ok() || matches!(server.child.try_wait(), Ok(Some(_)))
        });
        let runs = matches!(server.child.try_wait(), Ok(None));
        assert!(
            listens && runs,
            "{name} does not listen at {address}:\n{}",
            server.log()
        );
        Some(server)
    }

    pub fn target(&self) -> Target {
        Target {
            address: self.address,
            tls: self.tls.clone(),
        }
    }

    pub fn get(&self, blob: &Blob) -> Get {
        let path = match self.kind {
            Kind::Files => format!("/{}", blob.digest),
            Kind::Registry => Origin::path(blob),
            Kind::Tidegate => Origin::path(blob).replacen("/v2", &format!("/v2{}", self.prefix), 1),
        };
        Get::new(self.address, &path, blob)
    }

    /// By its digest, so that no tag has to be resolved.
    pub fn get_manifest(&self, manifest: &Blob) -> Get {
        let (prefix, digest) = (&self.prefix, &manifest.digest);
        let path = format!("/v2{prefix}/bench/blobs/manifests/sha256:{digest}");
        Get::new(self.address, &path, manifest)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// What tidegate says it runs on; nothing for others.
    pub fn driver(&self) -> String {
        if self.kind != Kind::Tidegate {
            return String::new();
        }
        self.log()
            .split_once("driver=")
            .map(|(_, rest)| {
                rest.trim_start_matches('"')
                    .chars()
                    .take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_')
                    .collect()
            })
            .unwrap_or_else(|| "unknown".to_owned())
    }

    /// The file in which it keeps the blob.
    pub fn stored(&self, blob: &Blob) -> Option<PathBuf> {
        ["cache", "storage"]
            .iter()
            .find_map(|folder| file_of(&self.folder.join(folder), blob))
    }

    /// A client has the last byte before the blob is committed. Where the files tell nothing, quiet tells it.
    pub fn wait_until_stored(&self, blob: &Blob) {
        // Other servers name their files otherwise, or keep all in one.
        if self.kind == Kind::Tidegate {
            let is_stored = comes_true(|| {
                self.stored(blob).is_some_and(|path| {
                    // A fill may have the name of its blob, but not among the blobs.
                    path.components().any(|part| part.as_os_str() == "blobs")
                })
            });
            assert!(is_stored, "{} is not kept:\n{}", blob.digest, self.log());
        }
        self.wait_until_quiet();
    }

    /// Until it has used next to no CPU for a while.
    pub fn wait_until_quiet(&self) {
        comes_true(|| {
            let before = self.cpu();
            super::pause(Duration::from_millis(50));
            self.cpu().saturating_sub(before) < Duration::from_millis(1)
        });
    }

    /// The process, and those that it started.
    fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.child.id()];
        let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let process = entry.file_name().to_str()?.parse().ok()?;
                let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
                // After the name: the state, then the parent (proc(5)).
                let (_, after) = stat.rsplit_once(") ")?;
                Some((process, after.split(' ').nth(1)?.parse().ok()?))
            })
            .collect();
        let mut index = 0;
        while let Some(&parent) = found.get(index) {
            found.extend(
                parents
                    .iter()
                    .filter(|(_, of)| *of == parent)
                    .map(|(process, _)| *process),
            );
            index += 1;
        }
        found
    }

    /// CPU that all of it has used, user and system.
    pub fn cpu(&self) -> Duration {
        self.processes().into_iter().filter_map(sys::cpu_time).sum()
    }

    /// CPU by the names of its threads, without their numbers, most first. What has ended is not in it.
    pub fn cpu_by_thread(&self) -> Vec<(String, Duration)> {
        let mut sums: Vec<(String, Duration)> = Vec::new();
        for process in self.processes() {
            for task in fs::read_dir(format!("/proc/{process}/task"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let path = task.path();
                let Ok(name) = fs::read_to_string(path.join("comm")) else {
                    continue;
                };
                let Some(used) = thread_cpu(&path) else {
                    continue;
                };
                let name = name
                    .trim()
                    .trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '-');
                match sums.iter_mut().find(|(known, _)| known == name) {
                    Some((_, sum)) => *sum += used,
                    None => sums.push((name.to_owned(), used)),
                }
            }
        }
        sums
    }

    /// What its CPU goes to while `work` runs, in parts of one, as `perf` samples it. `None` without `perf`, or where it
    /// may not look.
    pub fn profile(&self, folder: &Path, work: impl FnOnce()) -> Option<Vec<(&'static str, f64)>> {
        let data = folder.join("perf.data");
        let processes: Vec<String> = self.processes().iter().map(u32::to_string).collect();
        let mut recorder = Command::new(find("perf")?)
            .args([
                "record",
                "-q",
                "-F",
                "499",
                "-g",
                "-p",
                &processes.join(","),
            ])
            .arg("-o")
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        // It says nothing when it has begun, but it has made its file by then.
        comes_true(|| data.exists() || !matches!(recorder.try_wait(), Ok(None)));
        super::pause(Duration::from_millis(200));
        work();
        let _ = Command::new("kill")
            .args(["-INT", &recorder.id().to_string()])
            .status();
        let _ = recorder.wait();
        let told = Command::new(find("perf")?)
            .args(["script", "-F", "ip,sym", "-i"])
            .arg(&data)
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let _ = fs::remove_file(&data);
        let told = String::from_utf8_lossy(&told.stdout);
        let stacks: Vec<&str> = told
            .split("\n\n")
            .filter(|stack| !stack.trim().is_empty())
            .collect();
        if stacks.is_empty() {
            return None;
        }
        let part = |name: &str| {
            let count = stacks.iter().filter(|stack| purpose(stack) == name).count();
            count as f64 / stacks.len() as f64
        };
        Some(
            ["hash", "write", "receive", "send", "other"]
                .map(|name| (name, part(name)))
                .into(),
        )
    }

    /// Resident memory of all of it, in bytes.
    pub fn resident(&self) -> u64 {
        self.processes()
            .into_iter()
            .filter_map(|process| {
                let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
                let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
                let kib = line.split_whitespace().nth(1)?.parse::<u64>().ok()?;
                Some(kib << 10)
            })
            .sum()
    }
}

/// By the functions in a sample's stack. Sending comes first: a file that is sent is read within it.
fn purpose(stack: &str) -> &'static str {
    const SIGNS: [(&str, &[&str]); 4] = [
        ("send", &["tcp_sendmsg", "splice", "sendfile"]),
        ("receive", &["tcp_recvmsg", "sock_recvmsg"]),
        ("hash", &["sha2", "sha256", "sha512"]),
        (
            "write",
            &[
                "_write_iter",
                "perform_write",
                "vfs_write",
                "fallocate",
                "fsync",
                "sync_file",
            ],
        ),
    ];
    SIGNS
        .iter()
        .find(|(_, signs)| signs.iter().any(|sign| stack.contains(sign)))
        .map_or("other", |(purpose, _)| purpose)
}

/// The scheduler's account in nanoseconds, or else the ticks of a hundredth of a second.
fn thread_cpu(task: &Path) -> Option<Duration> {
    let used = fs::read_to_string(task.join("schedstat"))
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .filter(|&nanoseconds: &u64| nanoseconds > 0);
    if let Some(nanoseconds) = used {
        return Some(Duration::from_nanos(nanoseconds));
    }
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    let (_, after) = stat.rsplit_once(") ")?;
    // User and system time, fields 14 and 15; the state is the third.
    let ticks = after.split(' ').skip(11).take(2);
    let sum: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Duration::from_millis(sum * 10))
}

impl Drop for Server {
    fn drop(&mut self) {
        // Masters end their workers on SIGTERM; SIGKILL would leave them.
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let ended = comes_true(|| !matches!(self.child.try_wait(), Ok(None)));
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}\n---", self.name, self.log());
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Servers live in `/usr/sbin`, which is not in every user's path.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn own_folder(folder: &Path, name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let path = folder.join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(&path).expect("a writable folder");
    path
}

/// Below the range from which the kernel takes ports for outgoing connections, so that no client gets it in between.
fn free_address() -> SocketAddr {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap_or_default();
    loop {
        let offset = NEXT.fetch_add(7, Ordering::Relaxed);
        let address =
            SocketAddr::from(([127, 0, 0, 1], FIRST + start.wrapping_add(offset) % COUNT));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
