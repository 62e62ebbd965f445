//! Programs that real servers and runtimes come from, and the processes the tests start of them.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Longer than anything here takes on a slow machine; a program still silent then is a failed test.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Leaves a test out on a machine without these programs. With `TIDEGATE_REAL=1` that is a failure: `tests/run`
/// installs them all.
macro_rules! require {
    ($($program:literal),+) => {
        if !$crate::support::programs::are_here(&[$($program),+]) {
            return;
        }
    };
}
pub(crate) use require;

pub fn are_here(programs: &[&str]) -> bool {
    let Some(missing) = programs.iter().find(|program| find(program).is_none()) else {
        return true;
    };
    let package = match *missing {
        "ctr" => "containerd",
        "busybox" => "busybox-static",
        "nginx" => "nginx-light",
        "mkfs.btrfs" | "btrfs" => "btrfs-progs",
        "script" => "bsdutils",
        other => other,
    };
    let install = match *missing {
        "moto_server" => "pip install 'moto[server]'".to_owned(),
        "schemathesis" => "pip install schemathesis".to_owned(),
        _ => format!("apt-get install {package}"),
    };
    leave_out(&format!("{missing} ({install})"))
}

/// The test that runs lacks something; returns false, unless that is a failure.
pub fn leave_out(missing: &str) -> bool {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test").to_owned();
    let message = format!("left out: {test} needs {missing}");
    assert!(
        env::var_os("TIDEGATE_REAL").is_none_or(|value| value != "1"),
        "{message}"
    );
    // Past the test harness, which keeps to itself what a passing test prints.
    let _ = writeln!(io::stderr(), "{message}");
    false
}

/// Servers live in `/usr/sbin`, which is not in every user's path.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

pub fn command(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| panic!("{program} is not installed")))
}

/// Runs to its end; panics with all it said if it fails.
pub fn run(command: &mut Command) -> Output {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?} ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs to its end, successful or not.
pub fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// A port that nobody listens on. Below the range from which the kernel takes ports for outgoing connections, so
/// that no client of another test gets it in between.
pub fn free_port() -> u16 {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_add(offset.wrapping_mul(7))) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Lines that a process has written, on either stream.
#[derive(Clone, Default)]
pub struct Log(Arc<(Mutex<Lines>, Condvar)>);

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    open_streams: usize,
}

impl Log {
    pub fn lines(&self) -> Vec<String> {
        self.0.0.lock().expect("no panic holds it").lines.clone()
    }

    pub fn text(&self) -> String {
        self.lines().join("\n")
    }

    pub fn count(&self, wanted: impl Fn(&str) -> bool) -> usize {
        self.lines().iter().filter(|line| wanted(line)).count()
    }

    /// The first such line, when it has been written; `None` if the process ended without it.
    pub fn wait_for(&self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let (lines, changed) = &*self.0;
        let find = |state: &Lines| state.lines.iter().find(|line| wanted(line)).cloned();
        let state = lines.lock().expect("no panic holds it");
        let (state, _) = changed
            .wait_timeout_while(state, PATIENCE, |state| {
                state.open_streams > 0 && find(state).is_none()
            })
            .expect("no panic holds it");
        find(&state)
    }

    /// Waits until the process has closed its streams: all it will ever say.
    pub fn wait_for_end(&self) {
        self.wait_for(|_| false);
    }

    fn follow(&self, stream: impl Read + Send + 'static) {
        self.0.0.lock().expect("no panic holds it").open_streams += 1;
        let log = self.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while reader
                .read_until(b'\n', &mut line)
                .is_ok_and(|count| count > 0)
            {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                log.0.0.lock().expect("no panic holds it").lines.push(text);
                log.0.1.notify_all();
                line.clear();
            }
            log.0.0.lock().expect("no panic holds it").open_streams -= 1;
            log.0.1.notify_all();
        });
    }
}

/// A child that ends with its owner, and tells what it said if the test fails.
pub struct Process {
    name: &'static str,
    child: Child,
    pub log: Log,
}

impl Process {
    pub fn spawn(name: &'static str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let log = Log::default();
        log.follow(child.stdout.take().expect("a piped stream"));
        log.follow(child.stderr.take().expect("a piped stream"));
        Self { name, child, log }
    }

    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)) | Err(_))
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// `"TERM"`, `"INT"`.
    pub fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        run(Command::new("sh").args(["-c", &kill]));
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until(&format!("the end of {}", self.name), || {
            status = self.child.try_wait().expect("a child of ours");
            status.is_some()
        });
        status.expect("it was waited for")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- {} said:\n{}\n---", self.name, self.log.text());
        }
    }
}

/// For what sends no event: asks again and again, within bounds.
#[expect(
    clippy::disallowed_methods,
    reason = "a test's thread, which serves nobody"
)]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "{what} did not come");
        thread::sleep(Duration::from_millis(10));
    }
}
