//! How fast is a cached blob served, and what does it cost the server, compared with nginx and `sendfile`?
//!
//! ```sh
//! cargo bench --bench blob_hit
//! cargo bench --bench blob_hit -- "plain 2 KiB"           # rows whose names contain it
//! cargo bench --bench blob_hit -- --driver both           # io_uring, then epoll
//! cargo bench --bench blob_hit -- --one-core              # servers on one core, clients on another
//! cargo bench --bench blob_hit -- --full                  # 1, 64 and 1000 connections, 1 GiB, proxies
//! ```
//!
//! The same bytes and the same clients, in turns. tidegate is asked under a token, so it checks every request; nginx
//! serves files. CPU is the server's own. Only the ratios mean anything.

mod support;

use std::{fs, path::Path, time::Duration};

use serde_json::json;
use support::{
    client::{Figures, Load},
    origin::{Blob, Origin},
    report::{Arguments, Report, median, size_name},
    servers::{Cores, Nginx, Server, Tidegate, docker_registry},
    sys,
    tls::Certificate,
};

const SIZES: [u64; 6] = [2 << 10, 64 << 10, 1 << 20, 32 << 20, 256 << 20, 1 << 30];
const CONNECTIONS: [usize; 3] = [1, 64, 1000];
const ROUNDS: usize = 5;
const WARM_UP: Duration = Duration::from_millis(300);
const WINDOW: Duration = Duration::from_secs(1);

fn main() {
    let arguments = Arguments::read();
    let mut report = Report::start("blob_hit", "a cached blob's way out");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cores = if arguments.on_one_core {
        sys::stay_on_core(1).expect("a second core for the clients");
        Cores::Only(0)
    } else {
        Cores::All
    };
    println!(
        "{ROUNDS} rounds of {WINDOW:?} each, in turns; servers on {}; tidegate is asked under a token",
        match cores {
            Cores::All => "all cores",
            Cores::Only(_) => "one core, clients on another",
        }
    );
    let sizes: Vec<u64> = SIZES
        .into_iter()
        .filter(|&size| arguments.is_full || size < 1 << 30)
        .collect();
    let origin = Origin::start(
        folder.path(),
        sizes.iter().copied().max().unwrap_or(1 << 20),
    );
    let blobs: Vec<Blob> = sizes.iter().map(|&size| origin.new_blob(size)).collect();
    let files = folder.path().join("files");
    fs::create_dir(&files).expect("a folder for the files");
    for blob in &blobs {
        origin.write_blob(blob, &files);
    }
    let certificate = Certificate::create(folder.path());
    for tls in [None, Some(&certificate)] {
        let rows = rows(&arguments, &blobs, tls.is_some());
        if !rows.is_empty() {
            match start(&arguments, folder.path(), &files, &origin, cores, tls) {
                Ok(servers) => table(&mut report, &servers, &rows),
                Err(why) => report.note(&format!("left out: {why}")),
            }
        }
    }
}

struct Row {
    name: String,
    blob: Blob,
    connections: usize,
    is_tls: bool,
}

fn rows(arguments: &Arguments, blobs: &[Blob], is_tls: bool) -> Vec<Row> {
    let way = if is_tls { "TLS" } else { "plain" };
    CONNECTIONS
        .into_iter()
        .filter(|&connections| arguments.is_full || connections == 64)
        .flat_map(|connections| {
            blobs.iter().map(move |blob| Row {
                name: format!("{way} {} × {connections}", size_name(blob.size)),
                blob: blob.clone(),
                connections,
                is_tls,
            })
        })
        .filter(|row| arguments.wants(&row.name))
        .collect()
}

/// tidegate first, once for each driver.
fn start(
    arguments: &Arguments,
    folder: &Path,
    files: &Path,
    origin: &Origin,
    cores: Cores,
    tls: Option<&Certificate>,
) -> Result<Vec<Server>, String> {
    let mut servers = Vec::new();
    for driver in &arguments.drivers {
        let tidegate = Tidegate {
            origin,
            cores,
            driver,
            tls,
        };
        servers.push(tidegate.start(folder)?);
    }
    match Nginx::Files(files).start(folder, cores, tls) {
        Some(nginx) => servers.push(nginx),
        None => println!("\nleft out: nginx is not installed (apt-get install nginx-light)"),
    }
    if arguments.is_full && tls.is_none() {
        servers.extend(Nginx::Proxy(origin).start(folder, cores, None));
        match docker_registry(folder, origin, cores) {
            Some(registry) => servers.push(registry),
            None => println!("\nleft out: docker-registry is not installed"),
        }
    }
    Ok(servers)
}

fn table(report: &mut Report, servers: &[Server], rows: &[Row]) {
    let driver = servers.first().map_or_else(String::new, Server::driver);
    report.note(&format!(
        "tidegate on {driver}; the ratios are its figures ÷ those of the row:"
    ));
    report.head(
        2,
        &[
            "blob × connections",
            "server",
            "GiB/s",
            "requests/s",
            "p50 ms",
            "p99 ms",
            "cores busy",
            "CPU µs/request",
            "CPU-s/GiB",
            "÷ it: rate",
            "CPU",
        ],
    );
    for row in rows {
        let mut all: Vec<Vec<Figures>> = vec![Vec::new(); servers.len()];
        for server in servers {
            // Into its cache.
            Load::once(&server.target(), 1, &server.get(&row.blob));
            server.wait_until_stored(&row.blob);
        }
        for _ in 0..ROUNDS {
            for (server, rounds) in servers.iter().zip(&mut all) {
                rounds.push(measure(server, row));
            }
        }
        for (place, (server, rounds)) in servers.iter().zip(&all).enumerate() {
            let ours = all.first().filter(|_| place > 0);
            show(report, row, server, rounds, ours.map(Vec::as_slice));
        }
    }
}

fn measure(server: &Server, row: &Row) -> Figures {
    let (target, get) = (server.target(), server.get(&row.blob));
    // Into memory, from where it may have been dropped meanwhile.
    Load::once(&target, 1, &get);
    Load::of(&target, row.connections, &get)
        .start()
        .measure(server, WARM_UP, WINDOW)
}

fn show(
    report: &mut Report,
    row: &Row,
    server: &Server,
    rounds: &[Figures],
    ours: Option<&[Figures]>,
) {
    let mut figures = Figures::default();
    for round in rounds {
        figures.add(round.clone());
    }
    let [p50, p99] = figures.quantiles([0.5, 0.99]);
    // Of the rounds beside each other, the middle: what disturbs one round does not count. A round ends within large
    // blobs, so bytes are compared, not requests.
    let ratio = |ours: &[Figures], what: fn(&Figures) -> f64| {
        let pairs = ours.iter().zip(rounds);
        median(pairs.map(|(our, their)| what(our) / what(their)).collect())
    };
    let ratios = ours.map(|ours| {
        (
            ratio(ours, Figures::gib_per_second),
            ratio(ours, Figures::cpu_per_gib),
        )
    });
    let is_small = row.blob.size < 1 << 20;
    report.row(&[
        if ours.is_none() {
            row.name.clone()
        } else {
            String::new()
        },
        server.name.to_owned(),
        format!("{:.2}", figures.gib_per_second()),
        format!("{:.0}", figures.requests_per_second()),
        milliseconds(p50),
        milliseconds(p99),
        format!("{:.2}", figures.cores_busy()),
        if is_small {
            format!("{:.1}", figures.cpu_per_request() * 1e6)
        } else {
            "–".to_owned()
        },
        format!("{:.3}", figures.cpu_per_gib()),
        ratios.map_or_else(|| "–".to_owned(), |(rate, _)| format!("{rate:.2}")),
        ratios.map_or_else(|| "–".to_owned(), |(_, cpu)| format!("{cpu:.2}")),
    ]);
    report.record(json!({
        "row": row.name, "server": server.name, "driver": server.driver(), "tls": row.is_tls,
        "blob_bytes": row.blob.size, "connections": row.connections,
        "bytes_per_second": figures.bytes / figures.seconds,
        "requests_per_second": figures.requests_per_second(),
        "cores_busy": figures.cores_busy(), "p50_seconds": p50, "p99_seconds": p99,
        "cpu_seconds_per_request": if is_small { Some(figures.cpu_per_request()) } else { None },
        "cpu_seconds_per_gib": figures.cpu_per_gib(),
        "first_to_it_rate": ratios.map(|(rate, _)| rate),
        "first_to_it_cpu": ratios.map(|(_, cpu)| cpu),
    }));
}

/// None, if no request of a round had ended when the round did.
fn milliseconds(seconds: f64) -> String {
    if seconds > 0.0 {
        format!("{:.2}", seconds * 1e3)
    } else {
        "–".to_owned()
    }
}
