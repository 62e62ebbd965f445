//! How fast is a cached blob served, and what does it cost the server, compared with nginx and `sendfile`?
//!
//! ```sh
//! cargo bench --bench blob_hit
//! cargo bench --bench blob_hit -- "2 KiB"     # one size
//! ```
//!
//! Starts the release binary and, if installed, nginx with two workers, on loopback; the same bytes, the same
//! clients, in turns. CPU is the server's own, from `/proc`. Only the ratios mean anything: loopback, the clients and
//! both servers share this machine's cores.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};

const GIB: f64 = (1_u64 << 30) as f64;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(3);

struct Size {
    name: &'static str,
    bytes: usize,
    connections: usize,
}

const SIZES: [Size; 4] = [
    Size {
        name: "2 KiB",
        bytes: 2 << 10,
        connections: 32,
    },
    Size {
        name: "64 KiB",
        bytes: 64 << 10,
        connections: 32,
    },
    Size {
        name: "1 MiB",
        bytes: 1 << 20,
        connections: 16,
    },
    Size {
        name: "256 MiB",
        bytes: 256 << 20,
        connections: 4,
    },
];

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let blobs = folder.path().join("blobs");
    fs::create_dir(&blobs).expect("a folder for the blobs");
    let digests: Vec<String> = SIZES
        .iter()
        .map(|size| create_blob(&blobs, size.bytes))
        .collect();

    let upstream = serve_upstream(&blobs);
    let tidegate = Server::tidegate(folder.path(), upstream);
    let nginx = Server::nginx(folder.path(), &blobs);
    println!(
        "blob_hit: {} rounds of {:?} each, in turns; TCP congestion control {}\n",
        ROUNDS,
        ROUND,
        fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")
            .unwrap_or_default()
            .trim(),
    );
    println!("| blob | server | GiB/s | requests/s | CPU s/GiB | tidegate ÷ nginx: GiB/s | CPU |");
    println!("|---|---|---:|---:|---:|---:|---:|");
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    for (size, digest) in SIZES.iter().zip(&digests) {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == size.name) {
            continue;
        }
        let path = format!("/v2/{upstream}/bench/blobs/blobs/sha256:{digest}");
        let ours = Target {
            server: &tidegate,
            path,
        };
        let theirs = nginx.as_ref().map(|server| Target {
            server,
            path: format!("/{digest}"),
        });
        // Fills the cache, and brings the pages of both into memory.
        ours.fetch_once(size.bytes);
        if let Some(theirs) = &theirs {
            theirs.fetch_once(size.bytes);
        }
        let (mut our_sum, mut their_sum) = (Figures::default(), Figures::default());
        for _ in 0..ROUNDS {
            our_sum.add(&ours.measure(size));
            if let Some(theirs) = &theirs {
                their_sum.add(&theirs.measure(size));
            }
        }
        print!("| {} | tidegate | {} |", size.name, our_sum);
        if theirs.is_some() {
            println!(
                " {:.2} | {:.2} |\n| | nginx | {their_sum} | | |",
                our_sum.rate() / their_sum.rate(),
                our_sum.cpu_per_gib() / their_sum.cpu_per_gib(),
            );
        } else {
            println!(" – | – |");
        }
    }
    if nginx.is_none() {
        println!("\nleft out: nginx is not installed (apt-get install nginx-light)");
    }
}

/// Random enough to be its own content, and named by its digest.
fn create_blob(folder: &Path, size: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ size as u64;
    let content: Vec<u8> = (0..size.div_ceil(8))
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(size)
        .collect();
    let digest: String = Sha256::digest(&content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    fs::write(folder.join(&digest), content).expect("the blob is written");
    digest
}

/// A registry that has the blobs and asks for nothing. Only the first pull of each comes here.
fn serve_upstream(blobs: &Path) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let blobs = blobs.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let blobs = blobs.clone();
            thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                while let Ok(Some(request)) = read_head(&mut reader) {
                    let digest = request
                        .split(' ')
                        .nth(1)
                        .and_then(|path| path.rsplit(':').next())
                        .unwrap_or_default();
                    let content = fs::read(blobs.join(digest)).unwrap_or_default();
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                        content.len()
                    );
                    let stream = reader.get_mut();
                    if stream
                        .write_all(head.as_bytes())
                        .and_then(|()| stream.write_all(&content))
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    address
}

struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn tidegate(folder: &Path, upstream: SocketAddr) -> Self {
        let address = free_address();
        let config = folder.join("tidegate.toml");
        let text = format!(
            "url = \"http://{address}\"\nstate_dir = \"state\"\n[listener]\naddresses = [\"{address}\"]\nadmin = \"{}\"\n\
             [cache]\ndirectory = \"cache\"\n[log]\naccess = \"off\"\nlevel = \"warn\"\n\
             [registry.\"{upstream}\"]\ninsecure = true\nallow_private = true\nanonymous_pull = true\n",
            free_address(),
        );
        fs::write(&config, text).expect("the configuration is written");
        let child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .spawn()
            .expect("tidegate starts");
        Self::when_it_listens(child, address)
    }

    fn nginx(folder: &Path, blobs: &Path) -> Option<Self> {
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx"]
            .into_iter()
            .find(|path| Path::new(path).exists())?;
        let address = free_address();
        let prefix = folder.join("nginx");
        fs::create_dir_all(&prefix).expect("a folder for nginx");
        let config = prefix.join("nginx.conf");
        // As root, nginx's workers would become another user, who may not read a temporary folder.
        let user = if prefix
            .metadata()
            .is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
        {
            "user root;"
        } else {
            ""
        };
        let text = format!(
            "{user} daemon off; worker_processes 2; error_log stderr crit; pid {prefix}/pid;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000000;\n\
             client_body_temp_path {prefix}/b; proxy_temp_path {prefix}/p; fastcgi_temp_path {prefix}/f;\n\
             uwsgi_temp_path {prefix}/u; scgi_temp_path {prefix}/s;\n\
             open_file_cache max=100; server {{ listen {address} reuseport; root {root}; }} }}\n",
            prefix = prefix.display(),
            root = blobs.display(),
        );
        fs::write(&config, text).expect("nginx's configuration is written");
        let child = Command::new(program)
            .arg("-p")
            .arg(&prefix)
            .arg("-c")
            .arg(&config)
            .spawn()
            .ok()?;
        Some(Self::when_it_listens(child, address))
    }

    fn when_it_listens(child: Child, address: SocketAddr) -> Self {
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            assert!(
                Instant::now() < deadline,
                "the server at {address} does not listen"
            );
            thread::yield_now();
        }
        Self { child, address }
    }

    /// CPU of the process and its children, in seconds.
    fn cpu(&self) -> f64 {
        let mut ticks = 0;
        let own = self.child.id();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
                continue;
            };
            let Some((before, after)) = stat.rsplit_once(") ") else {
                continue;
            };
            let fields: Vec<u64> = after
                .split(' ')
                .filter_map(|field| field.parse().ok())
                .collect();
            let pid = before
                .split(' ')
                .next()
                .and_then(|pid| pid.parse::<u32>().ok());
            // After the name and the state letter: parent, …, user time, system time (proc(5), fields 4, 14, 15).
            let (Some(&parent), Some(&user), Some(&system)) =
                (fields.first(), fields.get(10), fields.get(11))
            else {
                continue;
            };
            if pid == Some(own) || parent == u64::from(own) {
                ticks += user + system;
            }
        }
        // The kernel's tick for user space has been a hundredth of a second everywhere for decades.
        ticks as f64 / 100.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx's master ends its workers on SIGTERM; SIGKILL would leave them.
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
}

struct Target<'a> {
    server: &'a Server,
    path: String,
}

#[derive(Default)]
struct Figures {
    seconds: f64,
    bytes: f64,
    requests: f64,
    cpu: f64,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        self.bytes += other.bytes;
        self.requests += other.requests;
        self.cpu += other.cpu;
    }

    fn rate(&self) -> f64 {
        self.bytes / GIB / self.seconds
    }

    fn cpu_per_gib(&self) -> f64 {
        self.cpu / (self.bytes / GIB)
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{:.2} | {:.0} | {:.2}",
            self.rate(),
            self.requests / self.seconds,
            self.cpu_per_gib()
        )
    }
}

impl Target<'_> {
    fn fetch_once(&self, size: usize) {
        let received = Client::connect(self)
            .and_then(|mut client| client.fetch())
            .expect("the blob is served");
        assert_eq!(received, size as u64, "all of the blob");
    }

    fn measure(&self, size: &Size) -> Figures {
        let (stop, bytes, requests) = (
            Arc::new(AtomicBool::new(false)),
            AtomicU64::new(0),
            AtomicU64::new(0),
        );
        let cpu = self.server.cpu();
        let started = Instant::now();
        thread::scope(|scope| {
            for _ in 0..size.connections {
                scope.spawn(|| {
                    let mut client = Client::connect(self).expect("a connection");
                    client.stop = Some(&stop);
                    while !stop.load(Ordering::Relaxed) {
                        // A blob that is cut short by the end of the round counts as far as it came.
                        bytes.fetch_add(client.fetch().expect("a blob"), Ordering::Relaxed);
                        requests.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            while started.elapsed() < ROUND {
                thread::park_timeout(ROUND.saturating_sub(started.elapsed()));
            }
            stop.store(true, Ordering::Relaxed);
        });
        Figures {
            seconds: started.elapsed().as_secs_f64(),
            bytes: bytes.into_inner() as f64,
            requests: requests.into_inner() as f64,
            cpu: self.server.cpu() - cpu,
        }
    }
}

struct Client<'a> {
    reader: BufReader<TcpStream>,
    request: Vec<u8>,
    sink: Vec<u8>,
    stop: Option<&'a AtomicBool>,
}

impl<'a> Client<'a> {
    fn connect(target: &Target<'_>) -> io::Result<Self> {
        let stream = TcpStream::connect(target.server.address)?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\n\r\n",
            target.path, target.server.address
        );
        Ok(Self {
            reader: BufReader::with_capacity(16 << 10, stream),
            request: request.into_bytes(),
            sink: vec![0; 512 << 10],
            stop: None,
        })
    }

    fn fetch(&mut self) -> io::Result<u64> {
        self.reader.get_mut().write_all(&self.request)?;
        let head = read_head(&mut self.reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let length = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase()
                    .strip_prefix("content-length:")
                    .map(|value| value.trim().to_owned())
            })
            .and_then(|value| value.parse::<u64>().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        let mut left = length;
        while left > 0 {
            let wanted = self
                .sink
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = self
                .reader
                .read(self.sink.get_mut(..wanted).unwrap_or_default())?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= count as u64;
            if self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                break;
            }
        }
        Ok(length - left)
    }
}

fn read_head(reader: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let start = head.len();
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
        if head.get(start..) == Some("\r\n") {
            return Ok(Some(head));
        }
    }
}
