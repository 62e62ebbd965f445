//! Many clients want one blob that nobody has yet: how often is it fetched, and how long does the last one wait?
//!
//! ```sh
//! cargo bench --bench fan_out
//! cargo bench --bench fan_out -- "16 clients"
//! cargo bench --bench fan_out -- --full                   # 512 MiB for 128 clients too, and more peers
//! ```
//!
//! Varnish is the peer: it too sends to all while it still receives, and it verifies nothing. The same origin, the
//! same clients, in turns, a new blob each time.

mod support;

use serde_json::json;
use support::{
    client::{Load, Transfer},
    origin::Origin,
    report::{Arguments, Report, median, size_name},
    servers::{Cores, Nginx, Server, Tidegate, docker_registry, varnish},
};

const ROUNDS: usize = 5;

fn main() {
    let arguments = Arguments::read();
    let mut report = Report::start("fan_out", "many clients, one cold blob");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let origin = Origin::start(folder.path(), 512 << 20);
    println!("{ROUNDS} rounds, in turns; medians");
    let mut rows = vec![
        (1, 512 << 20),
        (16, 512 << 20),
        (1, 64 << 20),
        (128, 64 << 20),
    ];
    if arguments.is_full {
        rows.push((128, 512 << 20));
    }
    for driver in &arguments.drivers {
        let tidegate = Tidegate {
            origin: &origin,
            cores: Cores::All,
            driver,
            tls: None,
        };
        let mut servers = vec![tidegate.start(folder.path()).expect("tidegate without TLS")];
        match varnish(folder.path(), &origin, Cores::All) {
            Some(varnish) => servers.push(varnish),
            None => println!("\nleft out: varnish is not installed (apt-get install varnish)"),
        }
        if arguments.is_full {
            servers.extend(Nginx::Proxy(&origin).start(folder.path(), Cores::All, None));
            servers.extend(docker_registry(folder.path(), &origin, Cores::All));
        }
        table(&arguments, &mut report, &origin, &servers, &rows);
    }
}

#[derive(Clone, Copy, Default)]
struct Outcome {
    fetches: f64,
    /// Bytes from the origin ÷ the blob's.
    bytes: f64,
    last: f64,
    slowest_first_byte: f64,
}

fn table(
    arguments: &Arguments,
    report: &mut Report,
    origin: &Origin,
    servers: &[Server],
    rows: &[(usize, u64)],
) {
    let driver = servers.first().map_or_else(String::new, Server::driver);
    report.note(&format!("tidegate on {driver}:"));
    report.head(
        2,
        &[
            "clients, blob",
            "server",
            "origin fetches",
            "origin bytes ÷ blob",
            "last client s",
            "÷ one client",
            "slowest first byte ms",
            "tidegate ÷ it: last client",
            "first byte",
        ],
    );
    // Of one client, by server and size.
    let mut alone: Vec<(usize, u64, f64)> = Vec::new();
    for &(clients, size) in rows {
        let name = format!("{clients} clients, {}", size_name(size));
        if !arguments.wants(&name) {
            continue;
        }
        let mut all: Vec<Vec<Outcome>> = vec![Vec::new(); servers.len()];
        for _ in 0..ROUNDS {
            for (server, outcomes) in servers.iter().zip(&mut all) {
                outcomes.push(run(origin, server, clients, size));
            }
        }
        let middles: Vec<Outcome> = all.iter().map(|outcomes| middle(outcomes)).collect();
        let ours = middles.first().copied().unwrap_or_default();
        for (place, (server, outcome)) in servers.iter().zip(&middles).enumerate() {
            if clients == 1 {
                alone.push((place, size, outcome.last));
            }
            let to_one = alone
                .iter()
                .find(|(of, with, _)| *of == place && *with == size)
                .map(|(_, _, one)| outcome.last / one);
            let ratios = (place > 0).then(|| {
                (
                    ours.last / outcome.last,
                    ours.slowest_first_byte / outcome.slowest_first_byte,
                )
            });
            let or_dash = |value: Option<f64>| {
                value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"))
            };
            report.row(&[
                if place == 0 {
                    name.clone()
                } else {
                    String::new()
                },
                server.name.to_owned(),
                format!("{:.0}", outcome.fetches),
                format!("{:.2}", outcome.bytes),
                format!("{:.2}", outcome.last),
                or_dash(to_one),
                format!("{:.2}", outcome.slowest_first_byte * 1e3),
                or_dash(ratios.map(|(last, _)| last)),
                or_dash(ratios.map(|(_, first)| first)),
            ]);
            report.record(json!({
                "row": name, "server": server.name, "driver": driver, "clients": clients, "blob_bytes": size,
                "origin_fetches": outcome.fetches, "origin_bytes_to_blob": outcome.bytes,
                "last_client_seconds": outcome.last, "last_client_to_one": to_one,
                "slowest_first_byte_seconds": outcome.slowest_first_byte,
                "tidegate_to_it_last_client": ratios.map(|(last, _)| last),
                "tidegate_to_it_first_byte": ratios.map(|(_, first)| first),
            }));
        }
    }
}

fn run(origin: &Origin, server: &Server, clients: usize, size: u64) -> Outcome {
    let blob = origin.new_blob(size);
    origin.touch();
    server.wait_until_quiet();
    let transfers = Load::once(&server.target(), clients, &server.get(&blob));
    server.wait_until_stored(&blob);
    let counts = origin.counts(&blob);
    let most = |what: fn(&Transfer) -> f64| transfers.iter().map(what).fold(0.0, f64::max);
    let start = transfers.iter().map(|transfer| transfer.started).min();
    let end = transfers.iter().map(|transfer| transfer.ended).max();
    Outcome {
        fetches: counts.gets as f64,
        bytes: counts.bytes as f64 / size as f64,
        last: start
            .zip(end)
            .map(|(start, end)| (end - start).as_secs_f64())
            .unwrap_or_default(),
        slowest_first_byte: most(Transfer::first_byte_seconds),
    }
}

/// The worst of the counts, the middle of the times.
fn middle(outcomes: &[Outcome]) -> Outcome {
    let of = |what: fn(&Outcome) -> f64| outcomes.iter().map(what).collect::<Vec<_>>();
    let worst = |values: Vec<f64>| values.into_iter().fold(0.0, f64::max);
    Outcome {
        fetches: worst(of(|outcome| outcome.fetches)),
        bytes: worst(of(|outcome| outcome.bytes)),
        last: median(of(|outcome| outcome.last)),
        slowest_first_byte: median(of(|outcome| outcome.slowest_first_byte)),
    }
}
