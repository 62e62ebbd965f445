//! What does a blob that is not cached yet cost on its way through, in time beside the origin itself, and in CPU?
//!
//! ```sh
//! cargo bench --bench blob_miss
//! cargo bench --bench blob_miss -- CPU                    # one part: "first byte" or "CPU"
//! cargo bench --bench blob_miss -- --driver both
//! ```
//!
//! The origin is on loopback, so its own time is next to nothing and all that is added shows. Every blob is asked of
//! the origin directly right before it is asked of the server, both on connections that are open already.

mod support;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use serde_json::json;
use sha2::{Digest as _, Sha256};
use support::{
    GIB,
    client::{Get, Load, Single, Target, Transfer},
    origin::{Blob, Origin},
    pause,
    report::{Arguments, Report, median, size_name},
    servers::{Cores, Nginx, Server, Tidegate, varnish},
    sys,
};

/// Blobs of each size, and the size.
const LATENCY_ROWS: [(usize, u64); 4] =
    [(41, 2 << 10), (41, 1 << 20), (9, 64 << 20), (5, 512 << 20)];
const LARGE: u64 = 512 << 20;
const CPU_ROUNDS: usize = 5;

fn main() {
    let arguments = Arguments::read();
    let mut report = Report::start("blob_miss", "a cold blob's way through, one client");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let origin = Origin::start(folder.path(), LARGE);
    for driver in &arguments.drivers {
        let tidegate = Tidegate {
            origin: &origin,
            cores: Cores::All,
            driver,
            tls: None,
        };
        let mut servers = vec![tidegate.start(folder.path()).expect("tidegate without TLS")];
        servers.extend(varnish(folder.path(), &origin, Cores::All));
        if arguments.is_full {
            servers.extend(Nginx::Proxy(&origin).start(folder.path(), Cores::All, None));
        }
        report.note(&format!(
            "tidegate on {}:",
            servers.first().map_or_else(String::new, Server::driver)
        ));
        if arguments.wants("first byte") {
            latency(&mut report, &origin, &servers);
        }
        if arguments.wants("CPU") {
            cpu(&mut report, folder.path(), &origin, &servers);
        }
    }
}

fn latency(report: &mut Report, origin: &Origin, servers: &[Server]) {
    report.head(
        2,
        &[
            "blob",
            "through",
            "first byte, median µs",
            "beyond the origin's own",
            "whole, median ms",
            "÷ the origin's own",
        ],
    );
    for (count, size) in LATENCY_ROWS {
        origin.touch();
        let connect = |target| Single::connect(&target).expect("a connection");
        let mut direct = connect(Target::plain(origin.address));
        let mut through: Vec<Single> = servers
            .iter()
            .map(|server| connect(server.target()))
            .collect();
        // With the origin's own right before.
        let mut all: Vec<Vec<(Transfer, Transfer)>> = vec![Vec::new(); servers.len()];
        // The first opens connections, there and behind.
        for round in 0..=count {
            for ((server, single), transfers) in servers.iter().zip(&mut through).zip(&mut all) {
                let blob = origin.new_blob(size);
                let get = Get::new(origin.address, &Origin::path(&blob), &blob);
                let own = direct.fetch(&get).expect("a whole answer");
                let cold = single.fetch(&server.get(&blob)).expect("a whole answer");
                server.wait_until_stored(&blob);
                if round > 0 {
                    transfers.push((own, cold));
                }
            }
        }
        let own: Vec<Transfer> = all.iter().flatten().map(|(own, _)| *own).collect();
        let (own_first, own_whole) = medians(&own);
        report.row(&[
            size_name(size),
            "the origin itself".to_owned(),
            format!("{:.0}", own_first * 1e6),
            "–".to_owned(),
            format!("{:.2}", own_whole * 1e3),
            "–".to_owned(),
        ]);
        for (server, transfers) in servers.iter().zip(&all) {
            let (first, whole) =
                medians(&transfers.iter().map(|(_, cold)| *cold).collect::<Vec<_>>());
            let beyond = median(
                transfers
                    .iter()
                    .map(|(own, cold)| cold.first_byte_seconds() - own.first_byte_seconds())
                    .collect(),
            );
            let to_own = median(
                transfers
                    .iter()
                    .map(|(own, cold)| cold.seconds() / own.seconds())
                    .collect(),
            );
            report.row(&[
                String::new(),
                server.name.to_owned(),
                format!("{:.0}", first * 1e6),
                format!("{:.0}", beyond * 1e6),
                format!("{:.2}", whole * 1e3),
                format!("{to_own:.2}"),
            ]);
            report.record(json!({
                "row": format!("first byte {}", size_name(size)), "server": server.name,
                "driver": servers.first().map(Server::driver), "blob_bytes": size,
                "first_byte_seconds": first, "first_byte_beyond_origin_seconds": beyond,
                "whole_seconds": whole, "whole_to_origin": to_own,
            }));
        }
    }
}

fn medians(transfers: &[Transfer]) -> (f64, f64) {
    (
        median(transfers.iter().map(Transfer::first_byte_seconds).collect()),
        median(transfers.iter().map(Transfer::seconds).collect()),
    )
}

fn cpu(report: &mut Report, folder: &std::path::Path, origin: &Origin, servers: &[Server]) {
    report.head(
        1,
        &[
            "512 MiB, cold, one client",
            "seconds",
            "CPU-s/GiB",
            "÷ bare loop",
            "of which, by thread, CPU-s/GiB",
        ],
    );
    let mut bare = Vec::new();
    let mut all = vec![Vec::new(); servers.len()];
    for _ in 0..CPU_ROUNDS {
        bare.push(bare_loop(folder, origin));
        for (server, costs) in servers.iter().zip(&mut all) {
            costs.push(cost(origin, server));
        }
    }
    let bare_cpu = median(bare.iter().map(|cost| cost.cpu).collect());
    show_cpu(
        report,
        "",
        "a bare loop: receive, write, hash, send",
        &bare,
        bare_cpu,
    );
    let driver = servers.first().map_or_else(String::new, Server::driver);
    for (server, costs) in servers.iter().zip(&all) {
        show_cpu(report, &driver, server.name, costs, bare_cpu);
    }
    for server in servers {
        // Rounds of their own: being watched costs something.
        let profile = server.profile(folder, || {
            for _ in 0..2 {
                cost(origin, server);
            }
        });
        let Some(profile) = profile else {
            report.note("left out: what the CPU goes to; perf is not installed, or may not look");
            return;
        };
        let shown: Vec<String> = profile
            .iter()
            .map(|(name, part)| format!("{name} {:.0} %", part * 1e2))
            .collect();
        report.note(&format!(
            "{}'s CPU by purpose: {}",
            server.name,
            shown.join(", ")
        ));
        let profile: BTreeMap<&str, f64> = profile.into_iter().collect();
        report.record(json!({
            "row": "CPU 512 MiB by purpose", "server": server.name, "driver": driver, "parts": profile,
        }));
    }
}

#[derive(Clone, Debug, Default)]
struct Cost {
    seconds: f64,
    /// Per GiB.
    cpu: f64,
    by_thread: BTreeMap<String, f64>,
}

/// Until the blob is in its place: hash, write and commit may go on behind the client's last byte.
fn cost(origin: &Origin, server: &Server) -> Cost {
    let blob = origin.new_blob(LARGE);
    origin.touch();
    server.wait_until_quiet();
    let (before, by_thread) = (server.cpu(), server.cpu_by_thread());
    let transfers = Load::once(&server.target(), 1, &server.get(&blob));
    server.wait_until_stored(&blob);
    let cpu = server.cpu().saturating_sub(before);
    let per_gib = |used: Duration| used.as_secs_f64() / (LARGE as f64 / GIB);
    let known: BTreeMap<String, Duration> = by_thread.into_iter().collect();
    let by_thread = server
        .cpu_by_thread()
        .into_iter()
        .map(|(name, used)| {
            let before = known.get(&name).copied().unwrap_or_default();
            (name, per_gib(used.saturating_sub(before)))
        })
        .filter(|(_, used)| *used >= 0.005)
        .collect();
    Cost {
        seconds: median(transfers.iter().map(Transfer::seconds).collect()),
        cpu: per_gib(cpu),
        by_thread,
    }
}

fn show_cpu(report: &mut Report, driver: &str, name: &str, costs: &[Cost], bare_cpu: f64) {
    let seconds = median(costs.iter().map(|cost| cost.seconds).collect());
    let cpu = median(costs.iter().map(|cost| cost.cpu).collect());
    let mut names: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for cost in costs {
        for (name, used) in &cost.by_thread {
            names.entry(name).or_default().push(*used);
        }
    }
    let split: Vec<(&str, f64)> = names
        .into_iter()
        .map(|(name, used)| (name, median(used)))
        .collect();
    let shown: Vec<String> = split
        .iter()
        .map(|(name, used)| format!("{name} {used:.2}"))
        .collect();
    report.row(&[
        name.to_owned(),
        format!("{seconds:.2}"),
        format!("{cpu:.2}"),
        format!("{:.2}", cpu / bare_cpu),
        shown.join(", "),
    ]);
    let split: BTreeMap<&str, f64> = split.into_iter().collect();
    report.record(json!({
        "row": "CPU 512 MiB", "server": name, "driver": driver, "seconds": seconds,
        "cpu_seconds_per_gib": cpu, "to_bare_loop": cpu / bare_cpu, "cpu_seconds_per_gib_by_thread": split,
    }));
}

/// The least that can be done: one blocking thread that receives, writes, sends and hashes, a MiB at a time.
fn bare_loop(folder: &std::path::Path, origin: &Origin) -> Cost {
    let blob = origin.new_blob(LARGE);
    origin.touch();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let path = folder.join("bare");
    let file = path.clone();
    let upstream = origin.address;
    let asked = blob.clone();
    let relay = thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let before = sys::own_cpu_time();
        let parts = relay(&mut client, upstream, &asked, &file);
        (sys::own_cpu_time().saturating_sub(before), parts)
    });
    let transfers = Load::once(&Target::plain(address), 1, &Get::new(address, "/", &blob));
    let (used, parts) = relay.join().expect("the loop ends well");
    let _ = std::fs::remove_file(path);
    // As the servers get a pause before and after theirs.
    pause(Duration::from_millis(50));
    let per_gib = |used: Duration| used.as_secs_f64() / (LARGE as f64 / GIB);
    Cost {
        seconds: median(transfers.iter().map(Transfer::seconds).collect()),
        cpu: per_gib(used),
        by_thread: parts
            .into_iter()
            .map(|(name, used)| (name.to_owned(), per_gib(used)))
            .collect(),
    }
}

fn relay(
    client: &mut TcpStream,
    upstream: std::net::SocketAddr,
    blob: &Blob,
    path: &std::path::Path,
) -> [(&'static str, Duration); 4] {
    let mut buffer = vec![0; 1 << 20];
    let mut file = File::create(path).expect("a writable folder");
    let mut hash = Sha256::new();
    let _ = client.read(&mut buffer).expect("a request");
    let mut stream = TcpStream::connect(upstream).expect("the origin");
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", Origin::path(blob));
    stream.write_all(request.as_bytes()).expect("a request");
    let mut reader = std::io::BufReader::with_capacity(4 << 10, stream);
    let head = support::origin::read_head(&mut reader)
        .expect("a head")
        .expect("an answer");
    client.write_all(head.as_bytes()).expect("a head");
    let mut times = [Duration::ZERO; 4];
    let mut left = blob.size;
    let mut clock = sys::own_cpu_time();
    let mut lap = |sum: &mut Duration| {
        let now = sys::own_cpu_time();
        *sum += now.saturating_sub(clock);
        clock = now;
    };
    while left > 0 {
        let wanted = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let piece = buffer.get_mut(..wanted).unwrap_or_default();
        let [received, written, hashed, sent] = &mut times;
        reader.read_exact(piece).expect("bytes");
        lap(received);
        file.write_all(piece).expect("space");
        lap(written);
        client.write_all(piece).expect("the client listens");
        lap(sent);
        hash.update(&piece);
        lap(hashed);
        left -= wanted as u64;
    }
    assert_eq!(
        support::origin::hex(&hash.finalize()),
        blob.digest,
        "the origin's bytes"
    );
    let [received, written, hashed, sent] = times;
    [
        ("receive", received),
        ("write", written),
        ("hash", hashed),
        ("send", sent),
    ]
}
