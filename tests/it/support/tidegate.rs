//! The product, as an operator runs it: a configuration file, a child process, a log.

use std::{
    env,
    fmt::Write as _,
    fs::{self, Metadata},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    content::sha256_hex,
    http::{self, Connection, Pulled, Response},
    liar::Liar,
    programs::{self, Log, Process, free_port, wait_until},
};

pub const BINARY: &str = env!("CARGO_BIN_EXE_tidegate");

const UNLIMITED: &str = r#"[limits]
anonymous_requests = "off"
user_requests = "off"
anonymous_pulls = "off"
user_pulls = "off"
credential_checks = "off"
"#;

/// What to start. `Setup::new()` alone is a working configuration for anonymous callers.
#[derive(Default)]
pub struct Setup {
    top: String,
    sections: String,
    directory: Option<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    launcher: Vec<String>,
    cache_folder: Option<PathBuf>,
}

impl Setup {
    pub fn new() -> Self {
        Self::default()
    }

    /// Top-level keys: `anonymous = false`.
    pub fn top(mut self, toml: &str) -> Self {
        let _ = writeln!(self.top, "{toml}");
        self
    }

    /// Whole tables, header included.
    pub fn section(mut self, toml: &str) -> Self {
        let _ = writeln!(self.sections, "{toml}");
        self
    }

    /// A registry that the tests run: on this machine, over plain HTTP.
    pub fn registry(self, name: impl ToString) -> Self {
        self.registry_with(name, "")
    }

    pub fn registry_with(self, name: impl ToString, more: &str) -> Self {
        let name = name.to_string();
        self.section(&format!(
            "[registry.\"{name}\"]\ninsecure = true\nallow_private = true\n{more}"
        ))
    }

    pub fn liar(self, liar: &Liar) -> Self {
        self.registry(liar.name())
    }

    pub fn directory(mut self, directory: &Directory) -> Self {
        self.directory = Some(directory.0.clone());
        self
    }

    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Elsewhere than in the folder of all the rest.
    pub fn cache_folder(mut self, folder: PathBuf) -> Self {
        self.cache_folder = Some(folder);
        self
    }

    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A command that runs the rest of its line: the product starts in a world that it has made.
    pub fn launcher(mut self, command: &[&str]) -> Self {
        self.launcher = command.iter().map(|&part| part.to_owned()).collect();
        self
    }

    pub fn start(self) -> Tidegate {
        let home = tempfile::tempdir().expect("a temporary folder");
        loop {
            let port = free_port();
            if let Some(tidegate) = self.try_start(home.path(), port) {
                let (registry, admin, process) = tidegate;
                return Tidegate {
                    registry,
                    admin,
                    setup: self,
                    process,
                    home,
                };
            }
        }
    }

    /// For what must not start: its exit code and all it said.
    pub fn fails_to_start(self) -> (Option<i32>, String) {
        let home = tempfile::tempdir().expect("a temporary folder");
        let mut process = Process::spawn("tidegate", &mut self.command(home.path(), free_port()));
        let status = process.wait();
        process.log.wait_for_end();
        (status.code(), process.log.text())
    }

    /// `None` if another process was quicker to take the port.
    fn try_start(&self, home: &Path, port: u16) -> Option<(SocketAddr, SocketAddr, Process)> {
        let mut process = Process::spawn("tidegate", &mut self.command(home, port));
        let bound = |listener: &str| {
            process
                .log
                .wait_for(|line| {
                    line.contains("listening") && bound_address(line, listener).is_some()
                })
                .and_then(|line| bound_address(&line, listener))
        };
        let (registry, admin) = (bound("registry"), bound("admin"));
        let (Some(registry), Some(admin)) = (registry, admin) else {
            let status = process.wait();
            process.log.wait_for_end();
            let log = process.log.text();
            assert!(
                log.contains("in use"),
                "tidegate did not start, {status}:\n{log}"
            );
            return None;
        };
        // The address is known before anybody listens there.
        wait_until("/readyz", || {
            TcpStream::connect(admin).is_ok() && http::get(admin, "/readyz").status() == 200
        });
        Some((registry, admin, process))
    }

    fn command(&self, home: &Path, port: u16) -> Command {
        let config = home.join("tidegate.toml");
        let scheme = match self.sections.contains("tls = {") {
            true => "https",
            false => "http",
        };
        let mut text = format!("url = \"{scheme}://127.0.0.1:{port}\"\n{}", self.top);
        if let Some(directory) = &self.directory {
            fs::write(home.join("directory.toml"), directory).expect("a writable folder");
            text.push_str("[directory]\nfile = \"directory.toml\"\n");
        }
        text.push_str(&self.sections);
        // Tests are in more of a hurry than anybody else.
        if !self.sections.contains("[limits]") {
            text.push_str(UNLIMITED);
        }
        fs::write(&config, text).expect("a writable folder");
        let mut line = self.launcher.iter().map(String::as_str).chain([BINARY]);
        let mut command = Command::new(line.next().expect("at least the product"));
        command
            .args(line)
            .arg("serve")
            .arg("--config")
            .arg(config)
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin", "127.0.0.1:0"])
            .arg("--state-dir")
            .arg(home.join("state"))
            .arg("--cache-dir")
            .arg(
                self.cache_folder
                    .clone()
                    .unwrap_or_else(|| home.join("cache")),
            )
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        // So that all of it can be run on either driver.
        if let Ok(driver) = env::var("TESTS_DRIVER")
            && !self.arguments.iter().any(|argument| argument == "--driver")
        {
            command.args(["--driver", &driver]);
        }
        command
    }
}

/// `registry=127.0.0.1:5000`, or the same in JSON.
fn bound_address(line: &str, listener: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once(listener)?;
    let rest = rest.trim_start_matches(['=', ':', '"', ' ']);
    let end = rest.find([' ', '"', ',', '}']).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// The directory file: users, workspaces, and their registry logins.
#[derive(Clone, Default)]
pub struct Directory(String);

impl Directory {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn user(mut self, name: &str, access_token: &str, workspaces: &[i64]) -> Self {
        let hash = sha256_hex(access_token);
        let _ = writeln!(
            self.0,
            "[[user]]\nname = {name:?}\ntoken_sha256 = \"{hash}\"\nworkspaces = {workspaces:?}"
        );
        self
    }

    /// Of the user named last.
    pub fn user_login(self, registry: impl ToString, username: &str, password: &str) -> Self {
        self.login("user", &registry.to_string(), username, password)
    }

    pub fn workspace(mut self, id: i64, name: &str) -> Self {
        let _ = writeln!(self.0, "[[workspace]]\nid = {id}\nname = {name:?}");
        self
    }

    /// Of the workspace named last.
    pub fn workspace_login(self, registry: impl ToString, username: &str, password: &str) -> Self {
        self.login("workspace", &registry.to_string(), username, password)
    }

    fn login(mut self, owner: &str, registry: &str, username: &str, password: &str) -> Self {
        let _ = writeln!(
            self.0,
            "[[{owner}.credentials]]\nregistry = {registry:?}\nusername = {username:?}\npassword = {password:?}"
        );
        self
    }
}

pub struct Tidegate {
    pub registry: SocketAddr,
    pub admin: SocketAddr,
    setup: Setup,
    process: Process,
    home: TempDir,
}

impl Tidegate {
    pub fn log(&self) -> &Log {
        &self.process.log
    }

    pub fn cache_folder(&self) -> PathBuf {
        let elsewhere = self.setup.cache_folder.clone();
        elsewhere.unwrap_or_else(|| self.home.path().join("cache"))
    }

    /// A client has the last byte of a blob before the blob has its name.
    pub fn wait_until_stored(&self, digest: &str) {
        wait_until(&format!("{digest} in the cache"), || {
            self.stored(digest).is_some()
        });
    }

    pub fn stored(&self, digest: &str) -> Option<PathBuf> {
        let (_, hex) = digest.split_once(':').expect("an algorithm");
        self.blob_files()
            .into_iter()
            .map(|(path, _)| path)
            .find(|path| path.ends_with(hex))
    }

    /// What is kept whole.
    pub fn blob_files(&self) -> Vec<(PathBuf, Metadata)> {
        files_below(&self.cache_folder().join("blobs"))
    }

    /// What is growing, or was left to be taken up again.
    pub fn fill_files(&self) -> Vec<(PathBuf, Metadata)> {
        files_below(&self.cache_folder().join("fills"))
    }

    /// Every line of `/metrics` that has a value.
    pub fn metrics(&self) -> Vec<(String, u64)> {
        let text = http::get(self.admin, "/metrics").text();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let values = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        values.collect()
    }

    pub fn metric(&self, name: &str) -> u64 {
        let metrics = self.metrics();
        let metric = metrics.iter().find(|(known, _)| known == name);
        metric.unwrap_or_else(|| panic!("no {name}")).1
    }

    /// Bytes of blobs that came from registries since the start.
    pub fn fetched(&self) -> u64 {
        self.metric("tidegate_fetched_bytes_total")
    }

    /// `tidegate cache … -o json`, which must succeed.
    pub fn cache_json(&self, arguments: &[&str]) -> Value {
        let output = self.cache_command(&[arguments, &["-o", "json"]].concat());
        let (said, told) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{arguments:?}: {said}{told}");
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
    }

    /// `tidegate cache …`, as an operator types it beside the server or instead of it.
    pub fn cache_command(&self, arguments: &[&str]) -> Output {
        let config = self.home.path().join("operator.toml");
        let mut text = format!("{}{}", self.setup.top, self.setup.sections);
        // What the server was told on its command line.
        for (table, line) in [
            (
                "[cache]",
                format!(
                    "directory = {:?}",
                    self.cache_folder().display().to_string()
                ),
            ),
            ("[listener]", format!("admin = \"{}\"", self.admin)),
        ] {
            text = if text.contains(table) {
                text.replace(table, &format!("{table}\n{line}"))
            } else {
                format!("{text}{table}\n{line}\n")
            };
        }
        fs::write(&config, text).expect("a writable folder");
        programs::output(
            Command::new(BINARY)
                .arg("cache")
                .args(arguments)
                .arg("--config")
                .arg(config),
        )
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn submit(&self, request: &Value) -> (u16, Value) {
        self.post("/v1alpha2/container", request)
    }

    pub fn post(&self, path: &str, request: &Value) -> (u16, Value) {
        let response = self.post_text(path, &request.to_string());
        let body = if response.body.is_empty() {
            Value::Null
        } else {
            response.json()
        };
        (response.status(), body)
    }

    pub fn post_text(&self, path: &str, body: &str) -> Response {
        let headers = [("Content-Type", "application/json")];
        http::request(self.registry, "POST", path, &headers, body.as_bytes())
    }

    /// An ephemeral name for an anonymous caller.
    pub fn grant(&self, image: &str) -> Grant {
        self.grant_of(&json!({"containerImage": image}))
    }

    pub fn grant_as(&self, access_token: &str, image: &str) -> Grant {
        self.grant_of(&json!({"containerImage": image, "towerAccessToken": access_token}))
    }

    pub fn grant_of(&self, request: &Value) -> Grant {
        let (status, body) = self.submit(request);
        assert_eq!(status, 200, "{request}: {body}");
        Grant::read(&body)
    }

    pub fn get(&self, path: &str) -> Response {
        http::get(self.registry, path)
    }

    pub fn head(&self, path: &str) -> Response {
        self.request("HEAD", path, &[])
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        http::request(self.registry, method, path, headers, b"")
    }

    pub fn pull(&self, path: &str) -> Pulled {
        http::pull(self.registry, path)
    }

    pub fn connect(&self) -> Connection {
        Connection::open(self.registry)
    }

    pub fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }

    /// Bytes of its own memory, without what it maps of files.
    pub fn anonymous_memory(&self) -> u64 {
        self.memory("RssAnon:")
    }

    /// The same with what it maps of files.
    pub fn resident_memory(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// How often its threads of this name have gone to sleep.
    pub fn turns_of_thread(&self, name: &str) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id()));
        let statuses = tasks
            .expect("it is running")
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("status")).ok())
            .filter(|status| status.starts_with(&format!("Name:\t{name}\n")));
        let turns = statuses.filter_map(|status| {
            let line = status
                .lines()
                .find(|line| line.starts_with("voluntary_ctxt"))?;
            line.split('\t').nth(1)?.parse::<u64>().ok()
        });
        turns.sum()
    }

    fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))
            .expect("it is running");
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .and_then(|value| value.trim().strip_suffix("kB"))
            .and_then(|value| value.trim().parse::<u64>().ok())
            .unwrap_or_else(|| panic!("no {field} in {status}"));
        kib * 1024
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Another configuration from the next start.
    pub fn change(&mut self, from: &str, to: &str) {
        assert!(self.setup.sections.contains(from), "{from} is not set");
        self.setup.sections = self.setup.sections.replace(from, to);
    }

    /// From the next start on.
    pub fn change_directory(&mut self, directory: &Directory) {
        self.setup.directory = Some(directory.0.clone());
    }

    /// Starts again with the same folders and the same address; whatever still runs is killed.
    pub fn restart(&mut self) {
        self.process.kill();
        // The kernel takes a ring apart behind its process, and the listener that waits in it.
        wait_until("the port", || {
            let started = self.setup.try_start(self.home.path(), self.registry.port());
            let is_started = started.is_some();
            if let Some(started) = started {
                (self.registry, self.admin, self.process) = started;
            }
            is_started
        });
    }
}

/// What a container request came to.
#[derive(Clone, Debug)]
pub struct Grant {
    pub token: String,
    /// `127.0.0.1:5000/wt/…/acme/app:v1`
    pub target: String,
    /// `/v2/wt/…/acme/app`
    pub path: String,
}

impl Grant {
    pub fn read(body: &Value) -> Self {
        let text = |key: &str| {
            body[key]
                .as_str()
                .unwrap_or_else(|| panic!("no {key} in {body}"))
                .to_owned()
        };
        let target = text("targetImage");
        let (_, name) = target.split_once('/').expect("a name after the authority");
        let name = name.split('@').next().expect("a first part");
        let name = match name.rsplit_once(':') {
            Some((name, _tag)) => name,
            None => name,
        };
        Self {
            token: text("containerToken"),
            path: format!("/v2/{name}"),
            target,
        }
    }

    pub fn manifest(&self, version: &str) -> String {
        format!("{}/manifests/{version}", self.path)
    }

    pub fn blob(&self, digest: &str) -> String {
        format!("{}/blobs/{digest}", self.path)
    }
}

/// Regular files below a folder.
pub fn files_below(folder: &Path) -> Vec<(PathBuf, Metadata)> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return found;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        // Files come and go while the product works.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push((path, metadata));
        }
    }
    found
}
